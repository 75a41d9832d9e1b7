//! `xctl trace`: print retransmits as they happen.

mod callers;
mod follow;
mod live;
mod metrics;
mod printer;
mod privilege;
mod progress;
mod ticks;

use std::io::BufWriter;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use self::callers::callers;
use self::follow::{Live, finish, follow};
use self::live::View;
use self::metrics::Metrics;
use self::printer::{Exits, Printer, Waits};
use self::privilege::give_up_privilege;
use self::ticks::Ticks;
use super::filters::Filters;
use super::{Named, btf_path, check_privilege, default_max_sockets, say_absent};
use crate::audit::{Audit, IfUnproven};
use crate::cli::{Events, TraceOptions};
use crate::console::{end_progress, say, say_all};
use crate::error::{Blocked, Exit};
use crate::kernel::cgroup::Paths;
use crate::kernel::clock::monotonic_ns;
use crate::kernel::netns::Names;
use crate::kernel::privilege::{User, to_see_others};
use crate::kernel::server::Server;
use crate::kernel::terminal::columns;
use crate::kernel::wait::{Stdout, Waiter, Woken};
use crate::kernel::{host, libbpf};
use crate::ledger::epochs::Moving;
use crate::ledger::figures::CutsSeen;
use crate::ledger::group::By;
use crate::ledger::summary::{ByProcess, Others, Seen, Summary};
use crate::model::events::Settings;
use crate::object::facts::hex;
use crate::output::json::Json;
use crate::output::metrics::About as AboutMetrics;
use crate::output::text::Text;
use crate::output::{Output, Ready};
use crate::ring::order::Order;
use crate::trace::check::CheckedObject;
use crate::trace::hooks::{self, HookSet};
use crate::trace::load::{self, Loaded};
use crate::trace::plan::{Plan, Request, first_accepted};
use crate::trace::reasons::DropReasons;
use crate::trace::seed::holders::Seeded;
use crate::trace::session::{self, Running};
use crate::trace::target::{Feature, Target, check_and_read, read_types};
use crate::verify::{Shown, Verifier, report::Report};

/// Bytes of output that gather before they are written: those of some hundred records.
const OUTPUT: usize = 1 << 16;

/// The longest time for which a record is held back, until those with earlier times were read.
const LIMIT_NS: u64 = 1_000_000_000;

/// Run until a signal, `--duration`, `--count` or a closed output ends the run.
///
/// # Errors
/// Any error of the run; [`Exit`] in its chain decides the exit code.
pub fn run(options: &TraceOptions) -> Result<()> {
    let filters = Filters::find(&options.filters)?;
    let user = options.user.as_deref().map(find_user).transpose()?;
    libbpf::collect_messages(options.verbose);
    let refuse = options.strict || options.record.is_some();
    let if_unproven = if refuse { IfUnproven::Refuse } else { IfUnproven::Say };
    let mut audit = Audit::begin(options.record.as_deref(), if_unproven)?;
    let result = trace(options, &filters, user, &mut audit);
    if options.verbose {
        say_all(&libbpf::take_messages());
    }
    audit.finish(result)
}

/// The user of `--user`.
fn find_user(text: &str) -> Result<User> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    User::find(text, &passwd).context("--user").context(Exit::Usage)
}

fn trace(options: &TraceOptions, filters: &Filters, user: Option<User>, audit: &mut Audit) -> Result<()> {
    let (bytes, shown) = super::object(options.object.as_deref())?;
    audit.object(options.object.as_deref(), &bytes);
    let btf = &btf_path(options.btf.as_deref());
    let (object, types) = check_and_read(&bytes, btf);
    let object = object.context(shown)?;
    check_privilege()?;
    let target = Target::ask(btf, types?, &object)?;
    target.check(&object)?;
    audit.btf(btf, target.btf());
    if target.shows(Feature::ChargedMaps) {
        audit.maps_count();
    }
    if (options.events.connections || options.interval.is_some()) && !target.has_ledger() {
        let found = "this kernel does not let xctl read what a connection has counted (Linux 5.10 and newer do)";
        if options.interval.is_some() {
            return Err(Blocked::new(found, "use xctl trace, which shows retransmits").by_host());
        }
        if !options.events.retransmits && !options.events.sends && !options.events.cuts && !options.drops {
            return Err(Blocked::new(found, "leave out --events connection").by_host());
        }
        say(format_args!("{found}: the ends of connections are not printed"));
    }
    let request = Request {
        attach: options.attach,
        settings: settings(options, filters),
        max_sockets: options.max_sockets.map_or_else(default_max_sockets, Ok)?,
        perf_pages: options.perf_pages,
        seed: options.seed,
    };
    let plans = request.plans(&target)?;
    say_absent(&filters.netns)?;
    // Before anything is loaded, so that an address in use leaves nothing behind. Also before signals are caught: opening a
    // Unix socket may wait, and until then a signal can still end this process.
    let server = options.metrics.as_ref().map(Server::open).transpose();
    let server = server.context("--metrics: choose another address, or end the program that uses it")?;
    // Before the programs run, so that no signal can end the process without a summary.
    let waiter = Waiter::new()?;
    let reasons = if options.drops { DropReasons::of(target.btf()) } else { DropReasons::default() };
    let mut target = Reloadable { btf, known: Some(target) };
    let started = first_accepted(plans, |plan| start(options, &object, plan, &mut target, audit));
    let started = started.map_err(|error| hooks::adapt_remedy(options.attach, error))?;
    let about = About {
        btf: btf.to_string_lossy().into_owned(),
        object_sha256: hex(&hmac_sha256::Hash::hash(&bytes)),
        max_sockets: request.max_sockets,
        proven: audit.proven(),
    };
    drop(bytes);
    match started {
        Started::Loaded(loaded) => only_loaded(options, user, &waiter, &about, &loaded),
        Started::Running(running) => follow_to_end(options, user, &waiter, &about, server, reasons, *running),
    }
}

/// The kernel's features, until programs are loaded. If the BTF cannot be mapped, its 5 MB of types are in memory, so they are
/// given away then. If the kernel refuses the programs, the next attempt asks again.
struct Reloadable<'a> {
    btf: &'a Path,
    known: Option<Target>,
}

/// The state that a start reaches. A dry run (`--dry-run`) only loads programs.
enum Started {
    Loaded(Box<Loaded>),
    Running(Box<Running>),
}

/// Load the programs of a plan, prove that they are the object's, and attach them.
fn start(
    options: &TraceOptions,
    object: &CheckedObject<'_>,
    plan: Plan,
    target: &mut Reloadable<'_>,
    audit: &mut Audit,
) -> Result<Started> {
    audit.attempt(plan.set.name, &plan.set.hooks);
    let started = load_and_attach(options, object, plan, target, audit);
    if let Err(error) = &started
        && error.downcast_ref() == Some(&Exit::Host)
    {
        audit.note_refusal(error);
    }
    started
}

fn load_and_attach(
    options: &TraceOptions,
    object: &CheckedObject<'_>,
    plan: Plan,
    target: &mut Reloadable<'_>,
    audit: &mut Audit,
) -> Result<Started> {
    // A dry run attaches nothing, not even the empty program that shows which set the kernel takes.
    let plan = Plan { has_alternative: plan.has_alternative && !options.dry_run, ..plan };
    let known = match target.known.take() {
        Some(known) => known,
        None => Target::ask(target.btf, read_types(target.btf)?, object)?,
    };
    if let Err(refused) = load::try_first(object, &plan, &known) {
        target.known = Some(known);
        return Err(refused);
    }
    let kprobes = *known.kprobe_support();
    let (loaded, expected) = load::load_watched(object, plan, known, audit)?;
    load::prove(&loaded, expected, audit)?;
    if options.dry_run {
        return Ok(Started::Loaded(Box::new(loaded)));
    }
    let running = session::attach(loaded, &kprobes, &mut progress::note);
    end_progress();
    let running = running?;
    audit.attached(&running.set.hooks);
    Ok(Started::Running(Box::new(running)))
}

/// The facts of a run that `ready` reports, except its hooks.
struct About {
    btf: String,
    object_sha256: String,
    max_sockets: u32,
    proven: Option<bool>,
}

impl About {
    fn ready<'a>(&'a self, set: &'a HookSet, seeded: usize, attached: bool) -> Ready<'a> {
        let Self { btf, object_sha256, max_sockets, proven } = self;
        Ready {
            attach: set.name,
            hooks: &set.hooks,
            btf,
            object_sha256,
            max_sockets: *max_sockets,
            seeded,
            attached,
            proven: *proven,
        }
    }
}

/// Call this before system calls are limited: it asks a terminal for its width.
fn output<'w>(options: &TraceOptions, waiter: &'w Waiter) -> Box<dyn Output + 'w> {
    let out = BufWriter::with_capacity(OUTPUT, Named(Stdout::new(waiter)));
    match (options.json, options.interval) {
        (true, _) => Box::new(Json::new(out)),
        (false, Some(_)) => Box::new(Text::of_intervals(out).within(columns())),
        (false, None) => Box::new(Text::new(out, options.current).within(columns())),
    }
}

/// Whether the owners' PIDs are valid in our /proc.
fn sees_processes() -> bool {
    let sees_processes = host::in_initial_pid_namespace().unwrap_or(false);
    if !sees_processes {
        say(
            "this is not the initial PID namespace: PIDs are the host's, and `exited` is the state at the event. Of the \
             owners of sockets that are already open, only those in this namespace are known",
        );
    }
    sees_processes
}

/// The end of a dry run.
fn only_loaded(
    options: &TraceOptions,
    user: Option<User>,
    waiter: &Waiter,
    about: &About,
    loaded: &Loaded,
) -> Result<()> {
    let mut output = output(options, waiter);
    give_up_privilege(options, user, &loaded.tables, false)?;
    sees_processes();
    output.ready(&about.ready(&loaded.plan.set, 0, false))?;
    Ok(output.flush()?)
}

/// Print events until something ends the run, and then the summary.
fn follow_to_end(
    options: &TraceOptions,
    user: Option<User>,
    waiter: &Waiter,
    about: &About,
    server: Option<Server>,
    reasons: DropReasons,
    mut running: Running,
) -> Result<()> {
    say_unseen(&running.seeded)?;
    let cuts = running.set.cuts_seen();
    if options.events.cuts {
        say_unseen_cuts(cuts, options)?;
    }
    if options.reader && !(running.set.sees_readers() && running.accounts.is_some()) {
        say("zero_window is not known: these hooks do not show reads of connections, or this kernel has no ledger");
    }
    running.watch(waiter)?;
    if let Some(error) = running.rings.no_changes() {
        say(format_args!("cannot watch CPUs, so CPUs that go online or offline are not announced: {error}"));
    }
    let mut order = Order::new(LIMIT_NS);
    let verifier = if options.verify {
        if let Some(remedy) = to_see_others()? {
            say(format_args!(
                "network namespaces that only other users' processes or mounts reach are not compared: {remedy}"
            ));
        }
        let (failures, timeouts) = (running.set.shows_failures(), running.set.shows_timeouts());
        let shown = Shown { failures, recoveries: cuts != CutsSeen::None, timeouts };
        Some(Verifier::begin(&mut Live { running: &mut running, order: &mut order }, shown)?)
    } else {
        None
    };

    let view = match options.interval {
        Some(every) if !options.json && !options.batch => View::open(waiter, every, options.by, options.colours)?,
        _ => None,
    };
    let told = AboutMetrics { attach: running.set.name, proven: about.proven };
    let metrics = Metrics::begin(options, server, told)?;
    if let Some(server) = metrics.as_ref().and_then(Metrics::server) {
        waiter.add_server(server.as_fd())?;
    }
    let waits = if options.json || options.interval.is_some() { None } else { Waits::begin(about.max_sockets) };
    let output = output(options, waiter);
    give_up_privilege(options, user, &running.tables, view.is_some())?;
    let sees_processes = sees_processes();
    let holders = running.seeded.holders.clone();
    let exits = Exits::new(sees_processes);
    let deadline = options.duration.and_then(|time| Instant::now().checked_add(time));
    // The intervals begin after the deadline was computed. If a tick falls on it, it comes first: no interval is cut short.
    let seen = Seen { cuts, drops: options.drops };
    let accounts = running.accounts.as_mut();
    let ticks = options.interval.map(|every| Ticks::begin(every, seen, options.by, accounts)).transpose()?;
    let mut printer = Printer {
        output,
        json: options.json,
        by_process: ByProcess::new(),
        left: options.count,
        exits,
        cgroups: (options.json || options.interval.is_some()).then(Paths::begin),
        namespaces: Names::default(),
        holders,
        reasons,
        ticks,
        view,
        metrics,
        waits,
    };
    let ready = about.ready(&running.set, running.seeded.sockets, true);
    printer.output.ready(&ready)?;
    printer.output.flush()?;
    if let Some(view) = &mut printer.view {
        view.begin(&ready)?;
    }
    let mut moving = Moving::new(printer.ticks.is_some() || printer.metrics.is_some());
    let ended = follow(&mut running, &mut order, waiter, &mut printer, &mut moving, deadline)?;
    // The summary is of the whole run, so the view does not need the last interval.
    let viewed = printer.view.take().is_some();
    if ended == Woken::OutputClosed {
        return printer.metrics.as_mut().map_or(Ok(()), |metrics| metrics.refresh(&mut running, &mut moving));
    }
    let mut verify = match verifier {
        Some(verifier) => Some(verifier.finish(&mut Live { running: &mut running, order: &mut order })?),
        None => None,
    };
    let mut ended = running.detach()?;
    finish(&mut ended, &mut order, &mut printer)?;
    let lost = ended.lost()?;
    let gain = moving.gain(&ended.tables)?;
    if let Some(metrics) = &mut printer.metrics {
        metrics.end(&gain, ended.accounts.as_mut(), lost)?;
    }
    if let Some(ticks) = &mut printer.ticks
        && !viewed
    {
        let last = ticks.end(&gain, ended.accounts.as_mut(), lost)?;
        printer.interval(last)?;
    }
    // With --count, the programs' totals also include events after the last one that was printed.
    let (by_process, others, seen) = match printer.left {
        Some(0) => (std::mem::take(&mut printer.by_process), Others::default(), Seen::default()),
        _ => {
            let (by_process, others) = moving.finish(&ended.tables)?;
            (by_process, others, seen)
        }
    };
    if let Some(report) = &mut verify {
        report.explain(&lost);
        report.name(|netns| printer.namespaces.of(netns).map(str::to_owned));
    }
    let difference = verify.as_ref().and_then(Report::difference);
    let mut summary = Summary { verify, ..Summary::new(&by_process, &others, lost, seen) };
    if let Some(accounts) = ended.accounts.take() {
        let balance = accounts.finish();
        summary.add_ledger(&balance.rows, &balance.folded, monotonic_ns()?);
    }
    printer.name_cgroups(&mut summary, By::Process);
    printer.output.summary(&summary)?;
    printer.output.flush()?;
    difference.map_or(Ok(()), |difference| Err(anyhow!(difference).context(Exit::Verify)))
}

/// Say which sockets seeding may not see. Such a socket is unknown until its owner uses it.
fn say_unseen(seeded: &Seeded) -> Result<()> {
    let &Seeded { closed_processes, closed_namespaces, .. } = seeded;
    if closed_processes > 0 {
        let remedy = to_see_others()?.unwrap_or_else(|| "no capability would change this".into());
        say(format_args!(
            "the open files of {closed_processes} processes may not be seen, so the sockets that they hold already are \
             unknown until used: {remedy}"
        ));
    }
    if closed_namespaces > 0 {
        say(format_args!(
            "{closed_namespaces} network namespaces may not be entered, so the sockets that are open there already are \
             unknown until used: give CAP_SYS_ADMIN"
        ));
    }
    Ok(())
}

/// Say which cuts of congestion windows the hooks do not see.
///
/// # Errors
/// [`Exit::Host`] if the user asks for cuts alone, and none is seen.
fn say_unseen_cuts(seen: CutsSeen, options: &TraceOptions) -> Result<()> {
    let only = Events { cuts: true, ..Events::default() };
    match seen {
        CutsSeen::All => {}
        CutsSeen::Losses => {
            say(
                "of the cuts of congestion windows only those by recovery and timeout are printed: others are seen from Linux 5.19 on",
            );
        }
        CutsSeen::None => {
            let found = "these hooks do not show cuts of congestion windows";
            if options.events == only && !options.drops {
                let remedy = "use Linux 5.19 or newer, and not --attach kprobe; or leave out --events cut";
                return Err(Blocked::new(found, remedy).by_host());
            }
            say(format_args!("{found}: none is printed"));
        }
    }
    Ok(())
}

fn settings(options: &TraceOptions, filters: &Filters) -> Settings {
    let settings = Settings {
        retransmits: options.events.retransmits.into(),
        sends: options.events.sends.into(),
        cuts: options.events.cuts.into(),
        connections: options.events.connections.into(),
        reader: options.reader.into(),
        drops: options.drops.into(),
        totals: u8::from(options.metrics.is_some() || options.metrics_file.is_some()),
        by_netns: u8::from(options.verify),
        ..filters.settings()
    };
    if options.events.cuts { callers(settings) } else { settings }
}
