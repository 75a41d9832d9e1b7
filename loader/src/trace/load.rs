//! Loading: libbpf relocates the programs of a plan and hands them to the kernel. Nothing is attached yet.

use std::path::Path;

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
    check_programs(object, &plan)?;
    try_first(&plan, target)?;
    let loaded = load_for(object, &plan, target, false)?;
    Ok(Loaded::new(loaded, plan, target))
}

/// Load the programs of a plan, and meanwhile compute the instructions that [`prove`] expects in them.
///
/// # Errors
/// As [`load`].
pub fn load_watched<'a>(
    object: &CheckedObject<'a>,
    plan: Plan,
    target: &Target,
    audit: &mut Audit,
) -> Result<(Loaded, Expected<'a>)> {
    check_programs(object, &plan)?;
    try_first(&plan, target)?;
    let names = object.programs().iter().copied().filter(|program| plan.loads(program)).collect();
    let load = |statistics| load_for(object, &plan, target, statistics);
    let (loaded, expected) = audit.watch(object.bytes(), target.btf(), &names, load)?;
    Ok((Loaded::new(loaded, plan, target), expected))
}

/// Compare the programs in the kernel with the object, instruction by instruction.
///
/// # Errors
/// [`Exit::Object`] if the two differ and the user asked for a proof; or the reason why they cannot be compared.
pub fn prove(loaded: &Loaded, expected: Expected<'_>, audit: &mut Audit) -> Result<()> {
    audit.judge(&loaded.tables.object, expected)
}

impl Loaded {
    fn new(object: LoadedObject, plan: Plan, target: &Target) -> Self {
        Self { plan, tables: Tables { object }, has_shared_ring: target.shows(Feature::RingBuffers) }
    }
}

fn check_programs(object: &CheckedObject<'_>, plan: &Plan) -> Result<()> {
    let mut needed = plan.set.hooks.iter().flat_map(Hook::programs);
    match needed.find(|program| !object.programs().contains(program)) {
        Some(program) => Err(anyhow!("it has no program {program}").context(Exit::Object)),
        None => Ok(()),
    }
}

/// If another plan is left, find out with one tiny program whether the kernel takes this plan's kind of hooks. Loading
/// a whole set that the kernel then refuses takes as long as a start.
fn try_first(plan: &Plan, target: &Target) -> Result<()> {
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

fn load_for(object: &CheckedObject<'_>, plan: &Plan, target: &Target, statistics: bool) -> Result<LoadedObject> {
    let options = Options {
        settings: plan.settings,
        max_sockets: plan.max_sockets,
        shared_ring: target.shows(Feature::RingBuffers),
        statistics,
    };
    load_programs(object, |program| plan.loads(program), target, &options)
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
    let types = match target.searched(object) {
        Some(searched) => Some(Types::Part(searched)),
        None => (target.btf_path() != Path::new(KERNEL_BTF)).then(|| Types::File(target.btf_path())),
    };
    let mut open = OpenObject::from_bytes(object.bytes(), types).map_err(|error| {
        let errno = error.downcast_ref().and_then(std::io::Error::raw_os_error);
        let (class, blocked) = class_and_remedy(errno);
        explain(error, &libbpf::take_messages()).context(blocked).context(class)
    })?;
    open.select_programs(&wanted)?;
    open.attach_to_types(target.attach_types(object, &wanted)?);
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
    open.load().map_err(|error| {
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
