//! Loading: libbpf relocates the programs of a plan and hands them to the kernel. Nothing is attached yet.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Error, Result, anyhow};

use super::check::CheckedObject;
use super::plan::Plan;
use super::refusal::{class_and_remedy, explain, may_not_read};
use super::tables::Tables;
use super::target::{Feature, Target};
use crate::audit::{Audit, Expected};
use crate::error::{Blocked, Exit};
use crate::kernel::libbpf::{self, OpenObject, Types};
use crate::kernel::limits;
use crate::kernel::loaded::LoadedObject;
use crate::kernel::map::possible_cpus;
use crate::kernel::source::KERNEL_BTF;
use crate::model::events::{Plain, Settings};
use crate::model::hooks::Hook;
use crate::model::maps::{CACHE, HANDLED, LEDGER, SHARED_RING, SHUT_WINDOWS, SOCKETS};
use crate::object::{TypeId, sort};

/// The map of the programs' settings.
const RODATA: &str = ".rodata";

/// The programs of a plan in the kernel, and its maps. Nothing is attached.
pub struct Loaded {
    /// The plan.
    pub plan: Plan,
    /// The maps.
    pub tables: Tables,
    /// The kernel has ring buffers, and so SHARED_RING was made.
    pub(super) has_shared_ring: bool,
}

/// Load the programs of a plan.
///
/// # Errors
/// [`Exit::Host`] or [`Exit::Object`], with the decisive lines of the verifier's log.
pub fn load(object: &CheckedObject<'_>, plan: Plan, target: &Target) -> Result<Loaded> {
    try_first(object, &plan, target)?;
    let needs = Needs::of(object, |program| plan.loads(program), target)?;
    let options = options(&plan, target);
    Ok(Loaded::new(load_with(object, &needs, &options)?, plan, &options))
}

/// As [`load`], after [`try_first`]. Meanwhile compute the instructions that [`prove`] expects in the programs. The target's
/// types are freed as soon as these are known: many kernels do not let a process map the types, and then they are half of
/// the memory of a start.
///
/// # Errors
/// As [`load`].
pub fn load_watched<'a>(
    object: &CheckedObject<'a>,
    plan: Plan,
    target: Target,
    audit: &mut Audit,
) -> Result<(Loaded, Expected<'a>)> {
    let needs = Needs::of(object, |program| plan.loads(program), &target)?;
    let options = Options { at_once: !audit.is_written(), ..options(&plan, &target) };
    let load = |statistics| load_with(object, &needs, &Options { statistics, ..options });
    let (loaded, expected) = audit.watch(object.bytes(), target.into_btf(), &needs.programs, load)?;
    Ok((Loaded::new(loaded, plan, &options), expected))
}

/// Compare the programs in the kernel with the object, instruction by instruction.
///
/// # Errors
/// [`Exit::Object`] if the two differ and the user asked for a proof; or the reason why they cannot be compared.
pub fn prove(loaded: &Loaded, expected: Expected<'_>, audit: &mut Audit) -> Result<()> {
    audit.judge(&loaded.tables.object, expected)
}

impl Loaded {
    fn new(object: LoadedObject, plan: Plan, options: &Options) -> Self {
        Self { plan, tables: Tables { object }, has_shared_ring: options.shared_ring }
    }
}

fn check_programs(object: &CheckedObject<'_>, plan: &Plan) -> Result<()> {
    let mut needed = plan.set.hooks.iter().flat_map(Hook::programs);
    match needed.find(|program| !object.programs().contains(program)) {
        Some(program) => Err(anyhow!("it has no program {program}").context(Exit::Object)),
        None => Ok(()),
    }
}

/// Check that the object has the programs of a plan. If another plan is left, also find out with one tiny program whether the
/// kernel takes this plan's kind of hooks. Loading a whole set that the kernel then refuses takes as long as a start.
///
/// # Errors
/// [`Exit::Object`] if a program is missing; [`Exit::Host`] if the kernel refuses.
pub fn try_first(object: &CheckedObject<'_>, plan: &Plan, target: &Target) -> Result<()> {
    check_programs(object, plan)?;
    match plan
        .set
        .hooks
        .iter()
        .find(|hook| hook.kind.by_trampoline() && !hook.optional)
        .filter(|_| plan.has_alternative)
    {
        Some(hook) => target.try_trampoline(hook),
        None => Ok(()),
    }
}

fn options(plan: &Plan, target: &Target) -> Options {
    Options {
        settings: plan.settings,
        max_sockets: plan.max_sockets,
        shared_ring: target.shows(Feature::RingBuffers),
        statistics: false,
        at_once: true,
    }
}

/// Settings for loading programs.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The settings that the programs read while they run.
    pub settings: Settings,
    /// Entries of SOCKET_TO_PID.
    pub max_sockets: u32,
    /// Make SHARED_RING. Programs learn from [`Feature::RingBuffers`] whether the ring exists.
    pub shared_ring: bool,
    /// Let the verifier report how much work each program was.
    pub statistics: bool,
    /// Load in several threads. A record has its calls in the same order each time, so it needs one thread.
    pub at_once: bool,
}

/// The programs to load, and what a target answers about them. Loading needs no other answer.
struct Needs<'a> {
    programs: BTreeSet<&'a str>,
    /// The part of the types that libbpf searches; none if it searches all of them.
    part: Option<Vec<u8>>,
    btf_path: PathBuf,
    attach_types: Vec<(String, TypeId)>,
}

impl<'a> Needs<'a> {
    fn of(object: &CheckedObject<'a>, wanted: impl Fn(&str) -> bool, target: &Target) -> Result<Self> {
        Ok(Self {
            programs: sort::set(object.programs().iter().copied().filter(|program| wanted(program))),
            part: target.searched(object).map(<[u8]>::to_vec),
            btf_path: target.btf_path().to_owned(),
            attach_types: target.attach_types(object, &wanted)?,
        })
    }

    fn types(&self) -> Option<Types<'_>> {
        match &self.part {
            Some(part) => Some(Types::Part(part)),
            None => (self.btf_path != Path::new(KERNEL_BTF)).then_some(Types::File(&self.btf_path)),
        }
    }
}

/// Load the programs that `wanted` names, and every map.
///
/// # Errors
/// [`Exit::Host`] or [`Exit::Object`], with the decisive lines of the verifier's log.
pub fn load_programs(
    object: &CheckedObject<'_>,
    wanted: impl Fn(&str) -> bool,
    target: &Target,
    options: &Options,
) -> Result<LoadedObject> {
    load_with(object, &Needs::of(object, wanted, target)?, options)
}

fn load_with(object: &CheckedObject<'_>, needs: &Needs<'_>, options: &Options) -> Result<LoadedObject> {
    let mut open = OpenObject::from_bytes(object.bytes(), needs.types()).map_err(|error| {
        let errno = error.downcast_ref().and_then(std::io::Error::raw_os_error);
        let (class, blocked) = class_and_remedy(errno);
        explain(error, &libbpf::take_messages()).context(blocked).context(class)
    })?;
    open.select_programs(|program| needs.programs.contains(program))?;
    open.attach_to_types(needs.attach_types.clone());
    let slots = cache_slots(options.max_sockets);
    open.set_max_entries(SOCKETS, options.max_sockets)?;
    open.set_max_entries(CACHE, slots)?;
    open.set_max_entries(HANDLED, marks()?)?;
    if !options.shared_ring {
        open.leave_out(SHARED_RING)?;
    }
    if options.settings.ledger == 0 {
        open.leave_out(LEDGER)?;
    }
    if options.settings.reader == 0 {
        open.leave_out(SHUT_WINDOWS)?;
    } else {
        open.set_max_entries(SHUT_WINDOWS, options.max_sockets)?;
    }
    let mut bytes = [0; size_of::<Settings>()];
    Settings { cache_mask: slots - 1, ..options.settings }.put(&mut bytes);
    open.set_global(RODATA, 0, &bytes)?;
    if options.statistics {
        open.ask_for_statistics()?;
    }
    open.load(object.license(), options.at_once).map_err(|error| {
        let messages = libbpf::take_messages();
        if may_not_read(&messages) {
            return Blocked::new("this kernel lets no program read its memory", limits::LOCKED_DOWN).by_host();
        }
        let (class, blocked) = class_and_remedy(error.raw_os_error());
        explain(Error::new(error), &messages).context(blocked).context(class)
    })
}

/// The number of slots of SK_CACHE: eight for each socket, so that few sockets share one. A power of two.
fn cache_slots(max_sockets: u32) -> u32 {
    const MOST: u32 = 1 << 26;
    max_sockets.saturating_mul(8).min(MOST).next_power_of_two()
}

/// The number of entries of HANDLED. Each holds work that one program did and its backup has not seen yet. On each CPU a few
/// pieces of work are in progress at a time: in process context, in a softirq that interrupted it, in tasks that were
/// preempted.
fn marks() -> Result<u32> {
    const EACH_CPU: u32 = 16;
    Ok(u32::try_from(possible_cpus()?)?.saturating_mul(EACH_CPU).max(1024))
}
