//! `xctl trace`: print retransmits as they happen.

use std::collections::HashMap;
use std::io::BufWriter;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::{Named, btf_path, check_privilege, default_max_sockets, say_absent};
use crate::cli::{Events, TraceOptions};
use crate::events::{Event, Owner, Settings, Totals};
use crate::fault::Exit;
use crate::hooks;
use crate::kernel::clock::{monotonic_ns, realtime_ns};
use crate::kernel::confine::{Needs, confine};
use crate::kernel::hotplug::Change;
use crate::kernel::privilege::Capabilities;
use crate::kernel::tcp_counters::{self, Reading};
use crate::kernel::wait::{Stdout, Waiter, Woken};
use crate::kernel::{host, libbpf, privilege};
use crate::object::facts::hex;
use crate::output::json::Json;
use crate::output::summary::{self, ByProcess, Summary};
use crate::output::text::Text;
use crate::output::{Moment, Output, Ready};
use crate::owners::Seeded;
use crate::record::{IfUnproven, Record};
use crate::ring::order::Order;
use crate::say::{say, say_all};
use crate::tracer::{self, Audit, Kernel, Shown, Sizes, Tracer};
use crate::verify::{Report, Source, Verifier};

/// How often the rings are drained while records come.
const ROUND: Duration = Duration::from_millis(5);

/// How much longer than a round records are held back to be put in order.
const MARGIN_NS: u64 = 20_000_000;

/// Run the command until something ends it.
///
/// # Errors
/// Whatever the message says; [`Exit`] in its chain decides the exit code.
pub fn run(options: &TraceOptions) -> Result<()> {
    libbpf::collect_messages(options.verbose);
    let refuse = options.strict || options.record.is_some();
    let if_unproven = if refuse { IfUnproven::Refuse } else { IfUnproven::Say };
    let mut record = Record::begin(options.record.as_deref(), if_unproven)?;
    let result = trace(options, &mut record);
    if options.verbose {
        say_all(&libbpf::take_messages());
    }
    record.finish(result)
}

fn trace(options: &TraceOptions, record: &mut Record) -> Result<()> {
    let (bytes, shown) = super::object(options.object.as_deref())?;
    record.object(options.object.as_deref(), &bytes);
    let object = tracer::check_object(&bytes).context(shown)?;
    check_privilege()?;
    let btf = &btf_path(options.btf.as_deref());
    let kernel = Kernel::ask(btf)?;
    kernel.check(btf, &object)?;
    record.btf(btf, kernel.btf());
    if kernel.shows(Shown::ChargedMaps) {
        record.maps_count();
    }
    let plans = hooks::choose(options.attach, options.events != Events::Retransmit, &kernel)?;
    let settings = settings(options);
    say_absent(options.filters.netns)?;
    // Before the programs run, so that no signal can end the process without a summary.
    let waiter = Waiter::new()?;
    let max_sockets = match options.max_sockets {
        Some(sockets) => sockets,
        None => default_max_sockets()?,
    };
    let sizes = Sizes { max_sockets, perf_pages: options.perf_pages, seed: options.seed };
    let mut audit = Audit { record: Some(&mut *record), dry_run: options.dry_run };
    let mut tracer = Tracer::start(&object, plans, &kernel, btf, settings, sizes, &mut audit)
        .map_err(|error| hooks::refused(options.attach, error))?;
    drop(kernel);
    say_unseen(tracer.seeded)?;
    let sha256 = hex(&hmac_sha256::Hash::hash(&bytes));
    drop(bytes);
    let proven = record.proven();
    tracer.watch(&waiter)?;
    if let Some(error) = tracer.no_changes() {
        say(format_args!("CPUs that come or go will not be told: {error}"));
    }
    let mut order = Order::new(MARGIN_NS);
    let verifier = if options.verify {
        if let Some(remedy) = privilege::to_see_others()? {
            say(format_args!(
                "network namespaces that only other users' processes or mounts lead to are not compared: {remedy}"
            ));
        }
        let shown = tracer.plan.shows_failures();
        Some(Verifier::begin(&mut Live { tracer: &mut tracer, order: &mut order }, shown)?)
    } else {
        None
    };

    give_up_privilege(options, &tracer)?;
    let out = BufWriter::new(Named(Stdout::new(&waiter)));
    let output: Box<dyn Output + '_> =
        if options.json { Box::new(Json::new(out)) } else { Box::new(Text::new(out, options.current)) };
    let sees_processes = host::in_initial_pid_namespace().unwrap_or(false);
    if !sees_processes {
        say(
            "this is not the initial PID namespace: PIDs are the host's, `exited` cannot be told, and who holds sockets \
             that are open already only for processes in here",
        );
    }
    let mut printer = Printer { output, by_process: ByProcess::new(), left: options.count, sees_processes };
    printer.output.ready(&Ready {
        plan: &tracer.plan,
        btf: &btf.to_string_lossy(),
        object_sha256: &sha256,
        max_sockets,
        seeded: tracer.seeded.sockets,
        attached: !options.dry_run,
        proven,
    })?;
    printer.output.flush()?;
    if options.dry_run {
        return Ok(());
    }
    let deadline = options.duration.and_then(|time| Instant::now().checked_add(time));
    let ended = follow(&mut tracer, &mut order, &waiter, &mut printer, deadline)?;
    if ended == Woken::OutputClosed {
        return Ok(());
    }
    let mut verify = match verifier {
        Some(verifier) => Some(verifier.finish(&mut Live { tracer: &mut tracer, order: &mut order })?),
        None => None,
    };
    finish(&mut tracer, &mut order, &mut printer)?;
    // What came after the last event that was asked for is in the kernel's totals and not in ours.
    let by_process = if printer.left == Some(0) { printer.by_process } else { tracer.by_process()? };
    let lost = tracer.lost()?;
    if let Some(report) = &mut verify {
        report.explain(&lost);
    }
    let difference = verify.as_ref().and_then(Report::difference);
    printer.output.summary(&Summary { verify, ..Summary::new(&by_process, lost) })?;
    printer.output.flush()?;
    difference.map_or(Ok(()), |difference| Err(anyhow!(difference).context(Exit::Verify)))
}

/// What seeding was not permitted to see: sockets of there are unknown until their owners act on them.
fn say_unseen(seeded: Seeded) -> Result<()> {
    let Seeded { closed_processes, closed_namespaces, .. } = seeded;
    if closed_processes > 0 {
        let remedy = privilege::to_see_others()?.unwrap_or_else(|| "no capability helps".into());
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

/// All is attached: from now on neither privilege nor most system calls are needed.
fn give_up_privilege(options: &TraceOptions, tracer: &Tracer) -> Result<()> {
    if let Some(user) = options.user {
        user.become_it()?;
    }
    if options.no_sandbox && options.user.is_none() {
        return Ok(());
    }
    let held = privilege::effective()?;
    let mut keep = Vec::new();
    if options.verify {
        keep.extend([privilege::SYS_ADMIN, privilege::SYS_PTRACE, privilege::DAC_READ_SEARCH]);
    }
    if options.record.is_some() {
        // To rename the record, which may lie in another user's folder, or in one where only its owner may.
        keep.extend([privilege::DAC_OVERRIDE, privilege::FOWNER]);
    }
    // Until 5.18 unprivileged_bpf_disabled also forbids to read maps that are open already.
    if !privilege::works_without(|| tracer.lost())? {
        keep.push(if held.has(privilege::BPF) { privilege::BPF } else { privilege::SYS_ADMIN });
    }
    privilege::keep_only(Capabilities::of(&keep).and(held))?;
    if options.no_sandbox {
        return Ok(());
    }
    privilege::no_new_privileges()?;
    match confine(Needs { namespaces: options.verify, record: options.record.is_some() }) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
            say(format_args!("this kernel has no seccomp filters, so system calls are not limited: {error}"));
            Ok(())
        }
        result => result.context("cannot limit system calls: --no-sandbox does without"),
    }
}

/// Read and print until something ends it.
fn follow(
    tracer: &mut Tracer,
    order: &mut Order<Event>,
    waiter: &Waiter,
    printer: &mut Printer<'_>,
    deadline: Option<Instant>,
) -> Result<Woken> {
    loop {
        round(tracer, order)?;
        let realtime_offset = realtime_ns()?.wrapping_sub(monotonic_ns()?);
        while let Some(event) = order.next_complete() {
            printer.print(&event, realtime_offset)?;
        }
        printer.output.flush()?;
        let woken = match printer.left {
            Some(0) => Woken::Timeout,
            _ if order.is_empty() => waiter.wait(deadline)?,
            _ => match waiter.pause(ROUND)? {
                Woken::Timeout if deadline.is_none_or(|deadline| Instant::now() < deadline) => Woken::Records,
                woken => woken,
            },
        };
        match woken {
            Woken::Records => {}
            Woken::Cpus => cpus_changed(tracer, order, waiter)?,
            _ => return Ok(woken),
        }
    }
}

/// Detach, and print the rest.
fn finish(tracer: &mut Tracer, order: &mut Order<Event>, printer: &mut Printer<'_>) -> Result<()> {
    tracer.detach()?;
    round(tracer, order)?;
    let realtime_offset = realtime_ns()?.wrapping_sub(monotonic_ns()?);
    while let Some(event) = order.next() {
        printer.print(&event, realtime_offset)?;
    }
    Ok(())
}

/// Both sides of the comparison, while the programs run.
struct Live<'a> {
    tracer: &'a mut Tracer,
    order: &'a mut Order<Event>,
}

impl Source for Live<'_> {
    fn kernel(&mut self) -> Result<HashMap<u32, Reading>> {
        tcp_counters::read_all()
    }

    fn xctl(&mut self) -> Result<HashMap<u32, Totals>> {
        self.tracer.by_netns()
    }

    /// Two rounds, so that no ring runs full meanwhile. A retransmission passes both counters within microseconds.
    fn settle(&mut self) -> Result<()> {
        for _ in 0..2 {
            thread::sleep(ROUND);
            round(self.tracer, self.order)?;
        }
        Ok(())
    }
}

fn round(tracer: &mut Tracer, order: &mut Order<Event>) -> Result<()> {
    order.begin_round(monotonic_ns()?);
    tracer.drain(|event| order.push(event.mono_ns(), event))?;
    for cpu in tracer.newcomers() {
        say_online(tracer, cpu);
    }
    Ok(())
}

/// What the CPUs that went have written is read between hearing of it and letting their rings go: whatever a CPU wrote before
/// it went is in its ring by the time that this is announced.
fn cpus_changed(tracer: &mut Tracer, order: &mut Order<Event>, waiter: &Waiter) -> Result<()> {
    let changes = tracer.changes()?;
    round(tracer, order)?;
    for change in changes {
        match change {
            change if !tracer.follow(change, waiter)? => {}
            Change::Online(cpu) => say_online(tracer, cpu),
            Change::Offline(cpu) => say(format_args!("CPU {cpu} went offline")),
        }
    }
    Ok(())
}

fn say_online(tracer: &Tracer, cpu: u32) {
    let then = if tracer.has_shared_ring() {
        "its records come through the shared ring"
    } else {
        "its records count as lost.output"
    };
    say(format_args!("CPU {cpu} came online: {then}"));
}

struct Printer<'w> {
    output: Box<dyn Output + 'w>,
    /// Totals of what was printed, where that is limited.
    by_process: ByProcess,
    /// How many events may still be printed.
    left: Option<u64>,
    /// /proc is that of the initial PID namespace: in another one, owners have other PIDs or none.
    sees_processes: bool,
}

impl Printer<'_> {
    /// Print an event, unless enough were. `realtime_offset` is what CLOCK_REALTIME is ahead of CLOCK_MONOTONIC, in ns.
    fn print(&mut self, event: &Event, realtime_offset: u64) -> Result<()> {
        match &mut self.left {
            Some(0) => return Ok(()),
            Some(left) => *left -= 1,
            None => {}
        }
        let (Event::Retransmit(crate::events::Retransmit { owner, .. })
        | Event::Send(crate::events::Send { owner, .. })) = event;
        let moment =
            Moment { realtime_ns: event.mono_ns().wrapping_add(realtime_offset), exited: self.has_exited(owner) };
        match event {
            Event::Retransmit(event) => {
                // Else the kernel's totals are the summary's, and these would grow as long as processes come and go.
                if self.left.is_some() {
                    summary::add(self.by_process.entry(summary::key_of(owner)).or_default(), event);
                }
                self.output.retransmit(event, moment)?;
            }
            Event::Send(event) => self.output.send(event, moment)?,
        }
        Ok(())
    }
}

impl Printer<'_> {
    /// Whether the owner is gone for certain.
    fn has_exited(&self, owner: &Owner) -> bool {
        self.sees_processes && owner.is_process() && !host::is_alive(owner.tgid, owner.born)
    }
}

fn settings(options: &TraceOptions) -> Settings {
    Settings {
        retransmits: u8::from(options.events != Events::Send),
        sends: u8::from(options.events != Events::Retransmit),
        by_netns: u8::from(options.verify),
        ..options.filters.settings()
    }
}
