//! From an object's bytes to events: check, load, attach, read. Dropping a [`Tracer`] leaves nothing in the kernel.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Error, Result, anyhow};

use crate::events::{self, Event, Plain, Settings, Totals};
use crate::fault::Exit;
use crate::hooks::{Hook, Kind, Offer, Plan, Purpose};
use crate::kernel::host::{self, KprobePmu};
use crate::kernel::libbpf::{self, Loaded, Open};
use crate::kernel::mmap::Mapped;
use crate::kernel::wait::Waiter;
use crate::kernel::{bpf, perf};
use crate::object::{self, Btf, ObjectFile};
use crate::output::summary::{ByProcess, Lost};
use crate::owners;
use crate::ring::{Reader, Record};

/// Map names in the object.
pub(crate) const SOCKETS: &str = "SOCKET_TO_PID";
const CACHE: &str = "SK_CACHE";
const EVENTS: &str = "EVENTS";
const LOST: &str = "LOST";
const PROCESS_TOTALS: &str = "PROCESS_TOTALS";
const NETNS_TOTALS: &str = "NETNS_TOTALS";
const RODATA: &str = ".rodata";

/// Indexes into the LOST map: `enum lost` in events.h.
const LOST_PERF: u32 = 0;
const LOST_OUTPUT: u32 = 1;
const LOST_MAP_FULL: u32 = 2;
const LOST_IN_FLIGHT: u32 = 3;
const LOST_READ: u32 = 4;
const LOST_UNKNOWN: u32 = 5;
const LOST_TOTALS: u32 = 6;

/// What this kernel offers to hooks.
pub struct Kernel {
    pmu: Option<KprobePmu>,
    btf: Btf,
}

impl Kernel {
    /// Ask it: sysfs for the kprobe PMU, its BTF for tracepoints.
    ///
    /// # Errors
    /// [`Exit::Host`] if there is no BTF.
    pub fn ask(btf: &Path) -> Result<Self> {
        let bytes = object::read_btf(btf).map_err(|error| {
            anyhow!(
                "{error}: the kernel needs CONFIG_DEBUG_INFO_BTF=y, or give the BTF of exactly this kernel with --btf FILE"
            )
            .context(Exit::Host)
        })?;
        let btf = Btf::from_vec(bytes).with_context(|| format!("the BTF in {}", btf.display())).context(Exit::Host)?;
        Ok(Self { pmu: host::kprobe_pmu().context(Exit::Host)?, btf })
    }

    /// Whether it has this struct.
    #[must_use]
    pub fn has_struct(&self, name: &str) -> bool {
        self.btf.find(object::Kind::Struct, name).is_some()
    }
}

impl Offer for Kernel {
    fn kprobes(&self) -> bool {
        self.pmu.is_some()
    }

    fn tracepoint_args(&self, name: &str) -> Option<usize> {
        self.btf.tracepoint_args(name)
    }

    fn function_args(&self, name: &str) -> Option<usize> {
        let function = self.btf.find(object::Kind::Func, name)?;
        Some(self.btf.proto_params(self.btf.target(function)).count())
    }
}

/// An object that was checked, and may be given to libbpf.
pub struct Checked<'a> {
    bytes: &'a [u8],
    programs: Vec<&'a str>,
}

/// Read the object without the kernel: is it sane, do two parsers agree on it, does it speak of our events?
///
/// # Errors
/// [`Exit::Object`], saying what is wrong where.
pub fn check_object(bytes: &[u8]) -> Result<Checked<'_>> {
    let refused = |error: Error| error.context(Exit::Object);
    let file = ObjectFile::parse(bytes).map_err(|error| refused(error.into()))?;
    object::second_opinion(bytes, &file).map_err(|error| refused(error.into()))?;
    let btf = file.btf.ok_or_else(|| refused(anyhow!("it has no .BTF section: compile it with -g")))?;
    let btf = Btf::parse(btf).context("its BTF").map_err(refused)?;
    events::check(&btf)?;
    Ok(Checked { bytes, programs: file.programs.iter().map(|program| program.name).collect() })
}

/// How much room there is.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Entries of SOCKET_TO_PID.
    pub max_sockets: u32,
    /// Data pages of a ring, a power of two.
    pub perf_pages: usize,
}

/// Programs that run in the kernel, and what they report.
pub struct Tracer {
    /// What keeps the programs attached. Dropped first.
    links: Vec<OwnedFd>,
    rings: Vec<Reader<Mapped>>,
    object: Loaded,
    can_miss: bool,
    /// Sockets known before the first event.
    pub seeded: usize,
}

impl Tracer {
    /// Load the programs of the first plan that this kernel takes, and attach them. Which plan that was comes with it.
    ///
    /// # Errors
    /// [`Exit::Host`] or [`Exit::Object`], according to whose fault it is: that of the last plan.
    pub fn start(
        object: &Checked<'_>,
        plans: Vec<Plan>,
        kernel: &Kernel,
        btf: &Path,
        settings: Settings,
        sizes: Sizes,
    ) -> Result<(Self, Plan)> {
        let mut refusal = anyhow!("there is no plan");
        for plan in plans {
            let settings = Settings { births_by_state: u8::from(plan.births_by_state), ..settings };
            match Self::start_plan(object, &plan, kernel, btf, &settings, sizes) {
                Ok(tracer) => return Ok((tracer, plan)),
                // Only this plan's hooks were refused; the next has others.
                Err(error) if error.downcast_ref() == Some(&Exit::Host) => refusal = error,
                Err(error) => return Err(error),
            }
        }
        Err(refusal)
    }

    fn start_plan(
        object: &Checked<'_>,
        plan: &Plan,
        kernel: &Kernel,
        btf: &Path,
        settings: &Settings,
        sizes: Sizes,
    ) -> Result<Self> {
        if let Some(hook) = plan.hooks.iter().find(|hook| !object.programs.contains(&hook.program)) {
            return Err(anyhow!("it has no program {}, for {}", hook.program, hook.target_name()).context(Exit::Object));
        }
        let can_seed = kernel.has_struct(owners::SEED_CONTEXT);
        let wanted = |program: &str| plan.has(program) || (can_seed && program == owners::SEED);
        let loaded = load(object, wanted, btf, settings, sizes.max_sockets)?;
        let cpus = host::online_cpus()?;
        let first = *cpus.first().context("no CPU is online")?;
        let rings = cpus.iter().map(|&cpu| open_ring(&loaded, cpu, sizes.perf_pages)).collect::<Result<_>>()?;
        let attach_all = |purpose: Purpose| {
            let hooks = plan.hooks.iter().filter(move |hook| hook.purpose == purpose);
            hooks.map(|hook| attach(hook, &loaded, kernel.pmu, first)).collect::<Result<Vec<_>>>()
        };
        let mut links = attach_all(Purpose::Owner)?;
        // After the hooks, so that no socket falls in between; before the first event, so that it has its owner.
        let seeded = if can_seed { owners::seed(&loaded)? } else { 0 };
        links.extend(attach_all(Purpose::Retransmit)?);
        Ok(Self { links, rings, object: loaded, can_miss: plan.can_miss(), seeded })
    }

    /// Let records end a wait.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn watch(&self, waiter: &Waiter) -> Result<()> {
        self.rings.iter().try_for_each(|ring| waiter.add_ring(ring.memory().event()))
    }

    /// Hand over what the rings hold now, ring by ring.
    ///
    /// # Errors
    /// If a ring or a record in it is not what it should be.
    pub fn drain(&mut self, mut on_event: impl FnMut(Event)) -> Result<()> {
        for ring in &mut self.rings {
            let mut wrong = None;
            ring.drain(|record| match record {
                Record::Sample(bytes) => match Event::parse(bytes) {
                    Ok(event) => on_event(event),
                    Err(error) => wrong = Some(error),
                },
                // The LOST map counts the same records, also those after which no other came to report them.
                Record::Lost(_) | Record::Other(_) => {}
            })?;
            if let Some(error) = wrong {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Detach every program. What they wrote can still be read.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    /// What the programs could not report, so far.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn lost(&self) -> Result<Lost> {
        let map = self.object.map(LOST)?;
        let mut values = vec![0; libbpf::possible_cpus()? * size_of::<u64>()];
        let mut count = |index: u32| -> Result<u64> {
            libbpf::lookup(map, &index.to_ne_bytes(), &mut values).context("cannot read the map LOST")?;
            Ok(values.chunks_exact(size_of::<u64>()).map(u64::get).sum())
        };
        Ok(Lost {
            perf: count(LOST_PERF)?,
            output: count(LOST_OUTPUT)? + count(LOST_IN_FLIGHT)? + count(LOST_READ)?,
            map_full: count(LOST_MAP_FULL)?,
            unknown: count(LOST_UNKNOWN)?,
            totals: count(LOST_TOTALS)?,
            missed: (!self.can_miss).then_some(0),
        })
    }

    /// What the programs counted by network namespace, filters notwithstanding. Keyed by inode number.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn by_netns(&self) -> Result<HashMap<u32, Totals>> {
        Ok(read_map(self.object.map(NETNS_TOTALS)?).context("cannot read the map NETNS_TOTALS")?.into_iter().collect())
    }

    /// What the programs counted by process: exact even where events were lost.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn by_process(&self) -> Result<ByProcess> {
        Ok(read_map(self.object.map(PROCESS_TOTALS)?)
            .context("cannot read the map PROCESS_TOTALS")?
            .into_iter()
            .collect())
    }
}

/// A map's entries. Those that come or go meanwhile may be missing.
pub(crate) fn read_map<K: Plain, V: Plain>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    /// More than any of our maps holds: an iteration that lost its place among changes starts anew, and may do so for ever.
    const MOST: usize = 1 << 20;
    let (mut key, mut next) = (None::<Vec<u8>>, vec![0; size_of::<K>()]);
    let mut value = vec![0; size_of::<V>()];
    let mut entries = Vec::new();
    while entries.len() < MOST && libbpf::next_key(map, key.as_deref(), &mut next)? {
        match libbpf::lookup(map, &next, &mut value) {
            Ok(()) => entries.push((K::get(&next), V::get(&value))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        key = Some(next.clone());
    }
    Ok(entries)
}

/// Load the programs that `wanted` names, and every map.
///
/// # Errors
/// [`Exit::Host`] or [`Exit::Object`], with the decisive lines of the verifier's log.
pub fn load(
    object: &Checked<'_>,
    wanted: impl Fn(&str) -> bool,
    btf: &Path,
    settings: &Settings,
    max_sockets: u32,
) -> Result<Loaded> {
    let mut open = Open::from_bytes(object.bytes, btf).map_err(|error| explain(error).context(Exit::Object))?;
    open.select_programs(wanted)?;
    open.set_max_entries(SOCKETS, max_sockets)?;
    open.set_max_entries(CACHE, max_sockets)?;
    let mut bytes = [0; size_of::<Settings>()];
    settings.put(&mut bytes);
    open.set_global(RODATA, 0, &bytes)?;
    open.load().map_err(|error| {
        let class = match error.raw_os_error() {
            Some(libc::EPERM | libc::ENOMEM) => Exit::Host,
            _ => Exit::Object,
        };
        let what = match class {
            Exit::Host => "the kernel does not permit loading it: lockdown, a security module or a limit of memory",
            _ => "the kernel did not load it",
        };
        explain(Error::new(error).context(what)).context(class)
    })
}

/// Add what libbpf and the verifier said: the decisive lines of it.
fn explain(error: Error) -> Error {
    let messages = libbpf::take_messages();
    match decisive(&messages) {
        lines if lines.is_empty() => error,
        lines => anyhow!("{error:#}\n{lines}\n(-v shows the whole log)"),
    }
}

/// The end of the verifier's log, where it says what it refused, and libbpf's last words; without the statistics.
fn decisive(messages: &str) -> String {
    const LINES: usize = 6;
    let noise = |line: &&str| {
        line.is_empty()
            || line.starts_with("processed ")
            || line.starts_with("verification time")
            || line.starts_with("stack depth")
            || line.contains("PROG LOAD LOG")
    };
    let lines: Vec<_> = messages.lines().map(str::trim_end).filter(|line| !noise(line)).collect();
    let mut text = String::new();
    for line in &lines[lines.len().saturating_sub(LINES)..] {
        let _ = writeln!(text, "  {line}");
    }
    text.truncate(text.trim_end().len());
    text
}

fn open_ring(object: &Loaded, cpu: u32, pages: usize) -> Result<Reader<Mapped>> {
    let describe = |what: &str| format!("{what} the perf ring of CPU {cpu}");
    let event = perf::open_ring(cpu).with_context(|| describe("cannot open"))?;
    let mapped = Mapped::new(event, pages).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::ENOMEM) => Error::new(error)
            .context(format!(
                "{}, {pages} pages: take fewer with --perf-pages, or raise RLIMIT_MEMLOCK or kernel.perf_event_mlock_kb",
                describe("cannot map")
            ))
            .context(Exit::Host),
        _ => Error::new(error).context(describe("cannot map")),
    })?;
    bpf::set_ring(object.map(EVENTS)?, cpu, mapped.event()).with_context(|| describe("cannot register"))?;
    perf::enable_ring(mapped.event()).with_context(|| describe("cannot enable"))?;
    Ok(Reader::new(mapped))
}

fn attach(hook: &Hook, object: &Loaded, pmu: Option<KprobePmu>, cpu: u32) -> Result<OwnedFd> {
    let program = object.program(hook.program)?;
    let attached = match hook.kind {
        Kind::RawTracepoint => bpf::attach_raw_tracepoint(hook.target, program.as_fd()),
        Kind::Fentry | Kind::Fexit => bpf::attach_trampoline(program.as_fd()),
        Kind::Kprobe | Kind::Kretprobe => {
            let pmu = pmu.context("this kernel has no kprobe PMU").context(Exit::Host)?;
            let return_bit = (hook.kind == Kind::Kretprobe).then_some(pmu.return_bit);
            perf::attach_probe(&perf::Probe { pmu: pmu.pmu, return_bit, function: hook.target, cpu }, program.as_fd())
        }
    };
    attached.map_err(|error| {
        let why = blocker(hook.kind, &error);
        Error::new(error).context(format!("cannot attach to {}: {why}", hook.target_name())).context(Exit::Host)
    })
}

/// The kernel's own errno for what it does not support; it was never meant for user space, which has no name for it.
const ENOTSUPP: i32 = 524;

/// What the errno of an attach call means.
fn blocker(kind: Kind, error: &io::Error) -> &'static str {
    match (kind, error.raw_os_error()) {
        (Kind::RawTracepoint, Some(libc::ENOENT)) => "this kernel has no such tracepoint",
        (Kind::RawTracepoint, Some(libc::EINVAL)) => {
            "its arguments are not those in the BTF: give the BTF of exactly this kernel"
        }
        (Kind::Fentry | Kind::Fexit, Some(ENOTSUPP | libc::EINVAL | libc::ENODEV)) => {
            "this kernel has no trampolines for fentry programs: try --attach auto"
        }
        // A return probe on a missing function gives EINVAL before 5.11.
        (_, Some(libc::ENOENT)) | (Kind::Kretprobe, Some(libc::EINVAL)) => "this kernel has no such function",
        (_, Some(libc::EADDRNOTAVAIL)) => "there are several functions of that name, or it may not be probed",
        (_, Some(libc::EPERM | libc::EACCES)) => {
            "not permitted: it needs CAP_PERFMON (CAP_SYS_ADMIN before 5.8), and a kernel that is not locked down"
        }
        _ => "the kernel refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_verifier_log_the_lines_that_decide_are_shown() {
        let log = "libbpf: prog 'x': -- BEGIN PROG LOAD LOG --\n0: (b7) r0 = 1\n; return 0;\n1: (79) r1 = *(u64 *)(r1 \
                   +8)\ninvalid bpf_context access off=8 size=8\nprocessed 2 insns (limit 1000000)\n-- END PROG LOAD LOG \
                   --\nlibbpf: prog 'x': failed to load: -13\n";
        let text = decisive(log);
        assert!(text.contains("invalid bpf_context access") && text.ends_with("failed to load: -13"), "{text}");
        assert!(!text.contains("processed"), "{text}");
        assert_eq!(decisive(""), "");
    }
}
