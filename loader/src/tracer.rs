//! From an object's bytes to events: check, load, attach, read. Dropping a [`Tracer`] leaves nothing in the kernel.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io;
use std::path::Path;

use anyhow::{Context, Error, Result, anyhow};

use crate::attach::{self, Attached, Probes};
use crate::events::{self, Event, Plain, Settings, Totals};
use crate::fault::{Blocked, Exit};
use crate::hooks::{self, Hook, Offer, Plan, Purpose, StandIn};
use crate::kernel::host;
use crate::kernel::hotplug::{Change, Changes};
use crate::kernel::libbpf::{self, Loaded, Open};
use crate::kernel::map::{Map, possible_cpus};
use crate::kernel::mmap::{Mapped, page_size};
use crate::kernel::shared_ring::SharedRing;
use crate::kernel::wait::Waiter;
use crate::kernel::{self, bpf, perf, privilege, symbols};
use crate::maps::{self, CACHE, EVENTS, HANDLED, LOST, NETNS_TOTALS, PROCESS_TOTALS, SHARED_RING, SOCKETS};
use crate::object::agree;
use crate::object::cut::Asked;
use crate::object::facts::{Facts, MOST_FUNCTIONS};
use crate::object::relo::type_name;
use crate::object::{self, Btf, BtfExt, KERNEL_BTF, ObjectFile, Relocations};
use crate::output::summary::{ByProcess, Lost};
use crate::owners;
use crate::record;
use crate::ring::{Reader, Record, shared};

/// Where the programs' settings are.
const RODATA: &str = ".rodata";

/// Indexes into the LOST map: `enum lost` in events.h.
const LOST_PERF: usize = 0;
const LOST_OUTPUT: usize = 1;
const LOST_MAP_FULL: usize = 2;
const LOST_IN_FLIGHT: usize = 3;
const LOST_READ: usize = 4;
const LOST_UNKNOWN: usize = 5;
const LOST_TOTALS: usize = 6;
const STOOD_IN: usize = 7;
const STATE_STOOD_IN: usize = 8;
const LOST_REFUSED: usize = 9;
const LOST_KINDS: usize = 10;

/// What a kernel shows by having a struct of a certain name.
#[derive(Clone, Copy, Debug)]
pub enum Shown {
    /// Ring buffers (5.8 and newer).
    RingBuffers,
    /// Maps that remember what they were charged to RLIMIT_MEMLOCK (until 5.10).
    ChargedMaps,
    /// The iterator over open files (5.8 and newer).
    FileIterator,
    /// The iterator over TCP sockets (5.9 and newer).
    SocketIterator,
    /// The trampolines of fentry programs (5.5 and newer).
    Trampolines,
}

impl Shown {
    const fn by(self) -> &'static str {
        match self {
            Self::RingBuffers => "bpf_ringbuf",
            Self::ChargedMaps => "bpf_map_memory",
            Self::FileIterator => "bpf_iter__task_file",
            Self::SocketIterator => "bpf_iter__tcp",
            Self::Trampolines => "bpf_trampoline",
        }
    }
}

/// Links that tell how many runs of a kprobe were skipped (6.7 and newer).
const LINKS_TELL_MISSED: (&str, &str) = ("bpf_link_info", "perf_event.kprobe.missed");

/// Functions that every kernel has. BTF that an old pahole made has none at all, or none of those that are static, as the
/// second is: then what it does not know may be there.
const EVERYWHERE: [&str; 2] = ["tcp_sendmsg", "tcp_v4_init_sock"];

/// All that a [`Kernel`] asks of the BTF, besides what hooks it has: a BTF that was cut down must know it.
pub const ASKED: Asked<'static> = Asked {
    structs: &[
        Shown::RingBuffers.by(),
        Shown::ChargedMaps.by(),
        Shown::FileIterator.by(),
        Shown::SocketIterator.by(),
        Shown::Trampolines.by(),
    ],
    fields: &[LINKS_TELL_MISSED],
    functions: &EVERYWHERE,
};

/// What this kernel offers to hooks.
pub struct Kernel {
    probes: Probes,
    btf: Btf,
    /// Its types are to be found on this host, whichever we take.
    has_own_btf: bool,
    /// How many functions of certain names it has, once that is asked.
    symbols: OnceCell<HashMap<&'static str, usize>>,
}

impl Kernel {
    /// Ask it: sysfs for the kprobe PMU, its BTF for tracepoints.
    ///
    /// # Errors
    /// [`Exit::Host`] if there is no BTF.
    pub fn ask(btf: &Path) -> Result<Self> {
        let btf = read_types(btf)?;
        let pmu = host::kprobe_pmu().map_err(|error| {
            Blocked::new(format!("{error:#}"), "mount the kernel's own /sys (mount -t sysfs sysfs /sys)").by_host()
        })?;
        let links_tell_missed = btf.field(LINKS_TELL_MISSED.0, LINKS_TELL_MISSED.1).is_some();
        let has_own_btf = host::own_btf().is_some();
        Ok(Self { probes: Probes { pmu, links_tell_missed }, btf, has_own_btf, symbols: OnceCell::new() })
    }

    /// Whether the types in `btf`, which were given instead of the kernel's own, come to the same for this object where the
    /// kernel shows its own. Programs that read memory by another kernel's offsets say what is not true.
    ///
    /// # Errors
    /// [`Exit::Host`], with the first difference.
    pub fn check(&self, btf: &Path, object: &Checked<'_>) -> Result<()> {
        let own = Path::new(KERNEL_BTF);
        if btf == own || !own.exists() {
            return Ok(());
        }
        let difference = agree::difference(object.bytes, &self.btf, &read_types(own)?);
        let difference = difference.map_err(|error| anyhow!(error).context(Exit::Object))?;
        difference.map_or(Ok(()), |difference| {
            let found = format!("the BTF in {} is not of this kernel: {difference}", btf.display());
            Err(Blocked::new(found, "leave out --btf: the kernel shows its own").by_host())
        })
    }

    /// Its types.
    #[must_use]
    pub fn btf(&self) -> &Btf {
        &self.btf
    }

    /// How it takes kprobes.
    #[must_use]
    pub fn probes(&self) -> &Probes {
        &self.probes
    }

    /// Whether it has the iterators that these types show, and libbpf can name them to it.
    #[must_use]
    pub fn has_iterators(&self, all: &[Shown]) -> bool {
        self.has_own_btf && all.iter().all(|iterator| self.shows(*iterator))
    }

    /// Whether its types show this.
    #[must_use]
    pub fn shows(&self, what: Shown) -> bool {
        self.btf.find(object::Kind::Struct, what.by()).is_some()
    }
}

/// The types in a file.
fn read_types(btf: &Path) -> Result<Btf> {
    let blocked = |found: String| {
        let remedy = match btf == Path::new(KERNEL_BTF) || host::own_btf().as_deref() == Some(btf) {
            true => "the kernel needs CONFIG_DEBUG_INFO_BTF=y, or give the BTF of exactly this kernel with --btf FILE",
            false => "--btf takes the BTF of exactly this kernel: raw, or an ELF file with a .BTF section",
        };
        Blocked::new(found, remedy).by_host()
    };
    let bytes = kernel::btf::read(btf).map_err(|error| blocked(error.to_string()))?;
    Btf::from_cow(bytes).map_err(|error| blocked(format!("the BTF in {}: {error}", btf.display())))
}

impl Offer for Kernel {
    fn kprobes(&self) -> bool {
        self.probes.pmu.is_some()
    }

    fn tracepoint_args(&self, name: &str) -> Option<usize> {
        self.btf.tracepoint_args(name)
    }

    fn function_args(&self, name: &str) -> Option<usize> {
        self.btf.function_args(name)
    }

    fn has_function(&self, name: &str) -> bool {
        let knows = |name: &str| self.btf.function_args(name).is_some();
        if knows(name) || EVERYWHERE.into_iter().all(knows) {
            return knows(name);
        }
        let counts = self.symbols.get_or_init(|| symbols::count(hooks::IN_SOME_KERNELS).unwrap_or_default());
        counts.get(name).is_some_and(|count| *count > 0)
    }

    fn has_own_btf(&self) -> bool {
        self.has_own_btf
    }

    fn has_trampolines(&self) -> bool {
        self.shows(Shown::Trampolines)
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
    // libbpf follows a chain of modifiers without a limit.
    if let Some(id) = btf.cycle() {
        return Err(refused(anyhow!("its types: {} {id} contains itself", type_name(&btf, id))));
    }
    let ext = file.btf_ext.map(|data| BtfExt::parse(data, &btf)).transpose().map_err(|error| refused(error.into()))?;
    let ext = ext.unwrap_or_default();
    let code = Relocations::new(bytes, &file, &btf, &ext, None).map_err(|error| refused(error.into()))?;
    // libbpf follows calls as deep as they go, on its stack.
    if code.functions().len() >= MOST_FUNCTIONS {
        Facts::of(bytes, &file, Some(&btf), &code).map_err(|what| refused(anyhow!(what)))?;
    }
    events::check(&btf)?;
    maps::check(&btf)?;
    Ok(Checked { bytes, programs: file.programs.iter().map(|program| program.name).collect() })
}

/// How much room there is, and what fills it at first.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Entries of SOCKET_TO_PID.
    pub max_sockets: u32,
    /// Data pages of a ring, a power of two.
    pub perf_pages: usize,
    /// Who tells what is open already; none: the best that this kernel has.
    pub seed: Option<owners::Source>,
}

/// What else is wanted of loading.
#[derive(Debug, Default)]
pub struct Audit<'r> {
    /// Note what is done, and compare what was loaded before anything is attached.
    pub record: Option<&'r mut record::Record>,
    /// Attach nothing.
    pub dry_run: bool,
}

/// Programs that run in the kernel, and what they report.
pub struct Tracer {
    /// What keeps the programs attached. Dropped first.
    links: Vec<Attached>,
    /// With their CPUs.
    rings: Vec<(u32, Reader<Mapped>)>,
    /// For the CPUs that have none.
    shared: Option<shared::Reader<SharedRing>>,
    /// The CPUs that write there, and whether that was told.
    late: BTreeMap<u32, bool>,
    /// An error: why this host does not tell. None: they do not matter.
    changes: Option<io::Result<Changes>>,
    object: Loaded,
    /// The hooks in use.
    pub plan: Plan,
    /// As of the end; none until then, and where the kernel does not tell.
    missed: Option<u64>,
    /// What LOST_IN_FLIGHT was when everything was attached, and at the end. While a probe is there and its other half is
    /// not, that says nothing.
    in_flight: (u64, Option<u64>),
    /// What was known before the first event.
    pub seeded: owners::Seeded,
}

impl Tracer {
    /// Load the programs of the first plan that this kernel takes, and attach them, unless `audit` says otherwise.
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
        audit: &mut Audit<'_>,
    ) -> Result<Self> {
        let mut refusal = anyhow!("there is no plan");
        for plan in plans {
            let settings = Settings { births_by_state: u8::from(plan.births_by_state), ..settings };
            if let Some(record) = &mut audit.record {
                record.attempt(&plan);
            }
            match Self::start_plan(object, plan, kernel, btf, &settings, sizes, audit) {
                Ok(tracer) => return Ok(tracer),
                // Only this plan's hooks were refused; the next has others.
                Err(error) if error.downcast_ref() == Some(&Exit::Host) => {
                    if let Some(record) = &mut audit.record {
                        record.refused(&error);
                    }
                    refusal = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(refusal)
    }

    fn start_plan(
        object: &Checked<'_>,
        mut plan: Plan,
        kernel: &Kernel,
        btf: &Path,
        settings: &Settings,
        sizes: Sizes,
        audit: &mut Audit<'_>,
    ) -> Result<Self> {
        let mut needed = plan.hooks.iter().flat_map(Hook::programs);
        if let Some(program) = needed.find(|program| !object.programs.contains(program)) {
            return Err(anyhow!("it has no program {program}").context(Exit::Object));
        }
        let source = match sizes.seed {
            Some(source) => source,
            None if kernel.has_iterators(&[Shown::FileIterator]) => owners::Source::Iterator,
            None => owners::Source::Proc,
        };
        let iterator = source == owners::Source::Iterator;
        if iterator && !kernel.has_iterators(&[Shown::FileIterator]) {
            let found = "this kernel has no iterator over open files, or its own BTF is not here to tell";
            return Err(Blocked::new(found, "use --seed proc").by_host());
        }
        let settings = &Settings { by_inode: u8::from(source == owners::Source::Proc), ..*settings };
        let wanted = |program: &str| plan.has(program) || (iterator && program == owners::SEED);
        let has_ring = kernel.shows(Shown::RingBuffers);
        let load = |statistics| load_with(object, wanted, btf, settings, sizes.max_sockets, has_ring, statistics);
        let loaded = match &mut audit.record {
            None => load(false)?,
            Some(record) => {
                let names = object.programs.iter().copied().filter(|program| wanted(program)).collect();
                record.load(object.bytes, &kernel.btf, &names, load)?
            }
        };
        if audit.dry_run {
            let (links, rings, late, seeded) = Default::default();
            let (shared, changes, missed) = Default::default();
            let in_flight = (0, None);
            return Ok(Self { links, rings, shared, late, changes, object: loaded, plan, missed, in_flight, seeded });
        }
        // Before CPUs are asked for: a change after that is told.
        let changes = Some(Changes::listen());
        let cpus = host::online_cpus().context(Exit::Host)?;
        fits(cpus.len(), sizes.perf_pages)?;
        let rings = cpus.iter().filter_map(|&cpu| {
            let ring = open_ring(&loaded, cpu, sizes.perf_pages).transpose()?;
            Some(ring.map(|ring| (cpu, ring)))
        });
        let rings = rings.collect::<Result<_>>()?;
        let shared = match has_ring {
            false => None,
            true => Some(SharedRing::new(loaded.map(SHARED_RING)?).context("cannot map the shared ring")?),
        };
        let shared = shared.map(shared::Reader::new);
        let attach_all = |purpose: Purpose| {
            let hooks = plan.hooks.iter().filter(move |hook| hook.purpose == purpose);
            hooks
                .flat_map(|hook| hook.programs().map(move |program| (hook, program)))
                .filter_map(|(hook, program)| attach::attach(hook, program, &loaded, &kernel.probes, &cpus).transpose())
                .collect::<Result<Vec<_>>>()
        };
        let mut links = attach_all(Purpose::End)?;
        links.extend(attach_all(Purpose::Owner)?);
        // After the hooks, so that no socket falls in between; before the first event, so that it has its owner.
        let seeded = owners::seed(&loaded, source, settings.cgroup)?;
        links.extend(attach_all(Purpose::Retransmit)?);
        plan.hooks.retain(|hook| links.iter().any(|link| link.hook() == hook));
        if let Some(record) = &mut audit.record {
            record.attached(&plan);
        }
        let (late, missed, in_flight) = (BTreeMap::new(), None, (0, None));
        let mut tracer = Self { links, rings, shared, late, changes, object: loaded, plan, missed, in_flight, seeded };
        tracer.in_flight.0 = tracer.counts()?[LOST_IN_FLIGHT];
        Ok(tracer)
    }

    /// Let records end a wait, and CPUs that come or go.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn watch(&self, waiter: &Waiter) -> Result<()> {
        self.rings.iter().try_for_each(|(_, ring)| waiter.add_ring(ring.memory().event()))?;
        if let Some(Ok(changes)) = &self.changes {
            waiter.add_cpus(changes.fd())?;
        }
        if self.shared.is_some() {
            waiter.add_ring(self.object.map(SHARED_RING)?)?;
        }
        Ok(())
    }

    /// Hand over what the rings hold now, ring by ring.
    ///
    /// # Errors
    /// If a ring or a record in it is not what it should be.
    pub fn drain(&mut self, mut on_event: impl FnMut(Event)) -> Result<()> {
        for (_, ring) in &mut self.rings {
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
        let Some(shared) = &mut self.shared else { return Ok(()) };
        let mut wrong = None;
        shared.drain(|bytes| match Event::parse(bytes) {
            Ok(event) => {
                self.late.entry(event.cpu()).or_insert(false);
                on_event(event);
            }
            Err(error) => wrong = Some(error),
        })?;
        wrong.map_or(Ok(()), Err)
    }

    /// Why CPUs that come or go will not be told, if so.
    #[must_use]
    pub fn no_changes(&self) -> Option<&io::Error> {
        self.changes.as_ref()?.as_ref().err()
    }

    /// What became of CPUs since the last call.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn changes(&mut self) -> Result<Vec<Change>> {
        let Some(Ok(changes)) = &mut self.changes else { return Ok(Vec::new()) };
        let all = std::iter::from_fn(|| changes.take().transpose());
        all.collect::<io::Result<_>>().context("cannot learn which CPUs came and went")
    }

    /// Follow a change, after which the rings were drained: the ring of a CPU that went is let go, for the kernel has given
    /// up its perf event, also for the time when the CPU is back. True if there is something to tell.
    ///
    /// # Errors
    /// If a ring cannot be let go.
    pub fn follow(&mut self, change: Change, waiter: &Waiter) -> Result<bool> {
        let place = |of: u32| self.rings.iter().position(|(cpu, _)| *cpu == of);
        match change {
            Change::Offline(cpu) => {
                self.late.remove(&cpu);
                if let Some(index) = place(cpu) {
                    let (_, ring) = self.rings.swap_remove(index);
                    waiter.remove_ring(ring.memory().event())?;
                    bpf::unset_ring(self.object.map(EVENTS)?, cpu)
                        .with_context(|| format!("cannot let the perf ring of CPU {cpu} go"))?;
                }
                Ok(true)
            }
            Change::Online(cpu) => Ok(place(cpu).is_none() && !self.late.insert(cpu, true).unwrap_or(false)),
        }
    }

    /// Whether CPUs without a ring of their own have one that they share.
    #[must_use]
    pub fn has_shared_ring(&self) -> bool {
        self.shared.is_some()
    }

    /// CPUs that had no ring when they wrote their first record, each once.
    pub fn newcomers(&mut self) -> Vec<u32> {
        let new = self.late.iter_mut().filter_map(|(&cpu, told)| (!std::mem::replace(told, true)).then_some(cpu));
        new.collect()
    }

    /// Detach every program, the last one first. What they wrote can still be read.
    ///
    /// # Errors
    /// If the kernel does not tell how many runs it skipped, though it does so, or the map LOST cannot be read.
    pub fn detach(&mut self) -> Result<()> {
        self.missed = self.missed()?;
        self.in_flight.1 = Some(self.counts()?[LOST_IN_FLIGHT]);
        while self.links.pop().is_some() {}
        Ok(())
    }

    /// Probe runs that the kernel skipped so far; none where it does not tell.
    fn missed(&self) -> Result<Option<u64>> {
        let alone = |link: &&Attached| !self.plan.is_backed(link.hook());
        let kprobes: Option<u64> = self.links.iter().filter(alone).map(Attached::missed).sum::<Result<_>>()?;
        let (mut missed, mut retransmits, mut states) = (0, 0, 0);
        for hook in self.plan.hooks.iter().filter(|hook| !self.plan.is_backed(hook)) {
            let skipped = self.object.skipped(hook.program)?;
            match (hook.second, hook.stands_in) {
                (None, _) => missed += skipped,
                // The second counts each time that it does the first's work.
                (Some(_), Some(StandIn::Retransmit)) => retransmits += skipped,
                (Some(_), Some(StandIn::State)) => states += skipped,
                // Both do the whole work: lost is at most what both missed.
                (Some(second), None) => missed += skipped.min(self.object.skipped(second)?),
            }
        }
        let count = self.counts()?;
        for (skipped, counter) in [(retransmits, STOOD_IN), (states, STATE_STOOD_IN)] {
            missed += u64::saturating_sub(skipped, count[counter]);
        }
        Ok(kprobes.map(|kprobes| kprobes + missed))
    }

    /// What the programs could not report, so far.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn lost(&self) -> Result<Lost> {
        let count = self.counts()?;
        let (before, after) = self.in_flight;
        let in_flight = after.unwrap_or(count[LOST_IN_FLIGHT]).saturating_sub(before);
        Ok(Lost {
            perf: count[LOST_PERF],
            output: count[LOST_OUTPUT] + in_flight + count[LOST_READ] + count[LOST_REFUSED],
            map_full: count[LOST_MAP_FULL] + self.seeded.no_room,
            unknown: count[LOST_UNKNOWN],
            totals: count[LOST_TOTALS],
            missed: self.missed,
        })
    }

    /// The entries of the LOST map, each over all CPUs.
    fn counts(&self) -> Result<[u64; LOST_KINDS]> {
        let lost = self.object.contents(LOST)?;
        let mut values = vec![0; lost.value_size()];
        let mut counts = [0; LOST_KINDS];
        for (index, count) in (0u32..).zip(&mut counts) {
            lost.lookup(&index.to_ne_bytes(), &mut values).context("cannot read the map LOST")?;
            *count = values.chunks_exact(size_of::<u64>()).map(u64::get).sum();
        }
        Ok(counts)
    }

    /// What the programs counted by network namespace, filters notwithstanding. Keyed by inode number.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn by_netns(&self) -> Result<HashMap<u32, Totals>> {
        Ok(read_map(&self.object.contents(NETNS_TOTALS)?)
            .context("cannot read the map NETNS_TOTALS")?
            .into_iter()
            .collect())
    }

    /// What the programs counted by process: exact even where events were lost.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn by_process(&self) -> Result<ByProcess> {
        Ok(read_map(&self.object.contents(PROCESS_TOTALS)?)
            .context("cannot read the map PROCESS_TOTALS")?
            .into_iter()
            .collect())
    }
}

/// A map's entries. Those that come or go meanwhile may be missing.
pub(crate) fn read_map<K: Plain, V: Plain>(map: &Map<'_>) -> io::Result<Vec<(K, V)>> {
    /// More than any of our maps holds: an iteration that lost its place among changes starts anew, and may do so for ever.
    const MOST: usize = 1 << 20;
    let (mut key, mut next) = (None::<Vec<u8>>, vec![0; size_of::<K>()]);
    let mut value = vec![0; size_of::<V>()];
    let mut entries = Vec::new();
    while entries.len() < MOST && map.next_key(key.as_deref(), &mut next)? {
        match map.lookup(&next, &mut value) {
            Ok(()) => entries.push((K::get(&next), V::get(&value))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        key = Some(next.clone());
    }
    Ok(entries)
}

/// Load the programs that `wanted` names, and every map; SHARED_RING only where `has_ring`, which programs find out by
/// [`Shown::RingBuffers`].
///
/// # Errors
/// [`Exit::Host`] or [`Exit::Object`], with the decisive lines of the verifier's log.
pub fn load(
    object: &Checked<'_>,
    wanted: impl Fn(&str) -> bool,
    btf: &Path,
    settings: &Settings,
    max_sockets: u32,
    has_ring: bool,
) -> Result<Loaded> {
    load_with(object, wanted, btf, settings, max_sockets, has_ring, false)
}

fn load_with(
    object: &Checked<'_>,
    wanted: impl Fn(&str) -> bool,
    btf: &Path,
    settings: &Settings,
    max_sockets: u32,
    has_ring: bool,
    statistics: bool,
) -> Result<Loaded> {
    let mut open = Open::from_bytes(object.bytes, (btf != Path::new(KERNEL_BTF)).then_some(btf)).map_err(|error| {
        let (class, blocked) = refused(errno(&error));
        explain(error, &libbpf::take_messages()).context(blocked).context(class)
    })?;
    open.select_programs(wanted)?;
    open.set_max_entries(SOCKETS, max_sockets)?;
    open.set_max_entries(CACHE, max_sockets)?;
    open.set_max_entries(HANDLED, marks()?)?;
    if !has_ring {
        open.leave_out(SHARED_RING)?;
    }
    let mut bytes = [0; size_of::<Settings>()];
    settings.put(&mut bytes);
    open.set_global(RODATA, 0, &bytes)?;
    if statistics {
        open.ask_for_statistics()?;
    }
    open.load().map_err(|error| {
        let messages = libbpf::take_messages();
        if may_not_read(&messages) {
            return Blocked::new("this kernel lets no program read its memory", privilege::LOCKED_DOWN).by_host();
        }
        let (class, blocked) = refused(error.raw_os_error());
        explain(Error::new(error), &messages).context(blocked).context(class)
    })
}

/// Room for what the first of two programs has done and the second has not seen yet. Each CPU has its share of it, and a few
/// on the way at a time: in process context, in a softirq that interrupted that, in tasks that were preempted.
fn marks() -> Result<u32> {
    const EACH_CPU: u32 = 16;
    Ok(u32::try_from(possible_cpus()?)?.saturating_mul(EACH_CPU).max(1024))
}

/// Whether the verifier said that it has no helper that reads kernel memory. libbpf takes the older one where the kernel
/// refuses to load a trivial program with the newer; a kernel has neither for us only while it is locked down
/// (LOCKDOWN_BPF_READ_KERNEL), also where it does not tell that it is.
fn may_not_read(messages: &str) -> bool {
    let refused = |line: &str| line.starts_with("unknown func ") || line.contains(" cannot use helper ");
    messages.lines().any(|line| refused(line) && line.contains(" bpf_probe_read"))
}

/// Whose fault it is that the object was not loaded, and the remedy.
fn refused(errno: Option<i32>) -> (Exit, Blocked) {
    let by_host = |found, remedy| (Exit::Host, Blocked::new(found, remedy));
    match errno {
        Some(libc::EPERM) => (Exit::Host, not_permitted()),
        Some(libc::ENOMEM) => by_host("there is no memory to load it", "take fewer with --max-sockets, or free some"),
        Some(libc::EMFILE) => by_host("too many open files to load it", "raise that limit (ulimit -n)"),
        Some(libc::ENFILE) => by_host("the host has too many open files to load it", "raise fs.file-max"),
        _ => {
            (Exit::Object, Blocked::new("it was not loaded", "`xctl inspect` says whether it fits this kernel's types"))
        }
    }
}

/// Why a load is not permitted is more than an errno tells: name what this host shows of the usual causes.
fn not_permitted() -> Blocked {
    let mut causes = privilege::load_blockers();
    if causes.is_empty() {
        causes.push("lockdown, a security module or a limit of memory".into());
    }
    Blocked::new("the kernel does not permit loading it", causes.join("; "))
}

/// Add what libbpf and the verifier said: the decisive lines of it.
fn explain(error: Error, messages: &str) -> Error {
    match decisive(messages) {
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

/// The ring of a CPU; none if it went offline meanwhile.
fn open_ring(object: &Loaded, cpu: u32, pages: usize) -> Result<Option<Reader<Mapped>>> {
    let describe = |what: &str| format!("{what} the perf ring of CPU {cpu}");
    let mapped = match map_ring(cpu, pages) {
        Err(error) if errno(&error) == Some(libc::ENODEV) => return Ok(None),
        result => result?,
    };
    bpf::set_ring(object.map(EVENTS)?, cpu, mapped.event()).with_context(|| describe("cannot register"))?;
    perf::enable(mapped.event()).with_context(|| describe("cannot enable"))?;
    Ok(Some(Reader::new(mapped)))
}

fn errno(error: &Error) -> Option<i32> {
    error.downcast_ref().and_then(io::Error::raw_os_error)
}

/// The ring of a CPU, which nothing writes to yet.
///
/// # Errors
/// [`Exit::Host`] with the remedy, if it is not permitted or takes more memory than there is.
pub(crate) fn map_ring(cpu: u32, pages: usize) -> Result<Mapped> {
    let describe = |what: &str| format!("{what} the perf ring of CPU {cpu}");
    let event = perf::open_ring(cpu).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => Error::new(error)
            .context(Blocked::new(describe("cannot open"), privilege::perf_remedy()))
            .context(Exit::Host),
        _ => Error::new(error).context(describe("cannot open")),
    })?;
    Mapped::new(event, pages).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::ENOMEM) => Error::new(error)
            .context(Blocked::new(
                format!("{}, {pages} pages", describe("cannot map")),
                format!("take fewer with --perf-pages, or raise a limit: {}", privilege::ring_limits()),
            ))
            .context(Exit::Host),
        _ => Error::new(error).context(describe("cannot map")),
    })
}

/// Whether rings of so many pages fit into memory. The kernel would end other processes to make room for them.
///
/// # Errors
/// [`Exit::Host`] with the remedy, if they do not.
pub(crate) fn fits(cpus: usize, pages: usize) -> Result<()> {
    let needed = cpus as u64 * (pages as u64 + 1) * page_size() as u64;
    match host::available_memory() {
        Some(available) if needed > available => {
            let found = format!(
                "perf rings of {pages} pages for {cpus} CPUs take {} MiB, and {} MiB of memory are available",
                needed >> 20,
                available >> 20
            );
            Err(Blocked::new(found, "take fewer with --perf-pages").by_host())
        }
        _ => Ok(()),
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

    #[test]
    fn a_locked_down_kernel_is_told_from_an_object_at_fault() {
        assert!(may_not_read("59: (85) call bpf_probe_read#4\nunknown func bpf_probe_read#4\n"));
        assert!(may_not_read("program of this type cannot use helper bpf_probe_read_kernel#113\n"));
        assert!(!may_not_read("59: (85) call bpf_probe_read#4\nunknown func bpf_loop#181\n"));
    }
}
