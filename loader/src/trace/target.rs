//! The target: the kernel that runs here, and its features. Features are found by asking, never by version.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Error, Result, anyhow};

use super::check::{CheckedObject, check_object};
use crate::error::{Blocked, Exit};
use crate::kernel::host::{self, KprobePmu};
use crate::kernel::source::KERNEL_BTF;
use crate::kernel::thread::at_once;
use crate::kernel::{self, bpf, lsm, symbols};
use crate::model::hooks::{self, HookKind};
use crate::object::cut::Asked;
use crate::object::difference::first_difference;
use crate::object::hook::Hook;
use crate::object::{Btf, Kind, TypeId};

/// The questions on which the choice of hooks depends.
pub trait KernelFeatures {
    /// Whether the kernel has a kprobe PMU.
    fn kprobes(&self) -> bool;
    /// The number of arguments of a raw tracepoint; none if the kernel has no such tracepoint.
    fn tracepoint_args(&self, name: &str) -> Option<usize>;
    /// The number of arguments of a kernel function; none if the kernel's BTF does not know the function.
    fn function_args(&self, name: &str) -> Option<usize>;
    /// Whether the kernel has one of [`IN_SOME_KERNELS`]. The answer is valid even if the kernel's BTF knows no functions.
    fn has_function(&self, name: &str) -> bool;
    /// Whether this host has the kernel's own types.
    fn has_own_btf(&self) -> bool;
    /// Whether the kernel has the trampolines of fentry programs (5.5 and newer).
    fn has_trampolines(&self) -> bool;
    /// The names of the active security modules; none if the kernel does not tell.
    fn active_lsms(&self) -> Option<Vec<String>>;
}

/// Functions that a choice depends on.
pub const IN_SOME_KERNELS: [&str; 3] = ["security_sock_graft", "do_tcp_sendpages", "mptcp_sendmsg"];

/// A feature that a kernel shows by a struct of a certain name.
#[derive(Clone, Copy, Debug)]
pub enum Feature {
    /// Ring buffers (5.8 and newer).
    RingBuffers,
    /// Maps that remember the memory charged for them to RLIMIT_MEMLOCK (until 5.10).
    ChargedMaps,
    /// The iterator over open files (5.8 and newer).
    FileIterator,
    /// The iterator over TCP sockets (5.9 and newer).
    SocketIterator,
    /// Raw tracepoint programs run on request (5.10 and newer).
    RunOnRequest,
    /// The trampolines of fentry programs (5.5 and newer).
    Trampolines,
}

impl Feature {
    const fn type_name(self) -> &'static str {
        match self {
            Self::RingBuffers => "bpf_ringbuf",
            Self::ChargedMaps => "bpf_map_memory",
            Self::FileIterator => "bpf_iter__task_file",
            Self::SocketIterator => "bpf_iter__tcp",
            Self::RunOnRequest => "bpf_raw_tp_test_run_info",
            Self::Trampolines => "bpf_trampoline",
        }
    }
}

/// Links that tell how many runs of a kprobe were skipped (6.7 and newer).
const LINKS_TELL_MISSED: (&str, &str) = ("bpf_link_info", "perf_event.kprobe.missed");

/// Functions that every kernel has; the second is static. BTF made by an old pahole lacks all functions, or all static
/// ones. If BTF lacks one of these two, it is incomplete: a function that it lacks may still exist.
const EVERYWHERE: [&str; 2] = ["tcp_sendmsg", "tcp_v4_init_sock"];

/// The questions that a [`Target`] asks of the BTF, except those about hooks. BTF that is cut down must answer them.
pub const ASKED: Asked<'static> = Asked {
    structs: &[
        Feature::RingBuffers.type_name(),
        Feature::ChargedMaps.type_name(),
        Feature::FileIterator.type_name(),
        Feature::SocketIterator.type_name(),
        Feature::RunOnRequest.type_name(),
        Feature::Trampolines.type_name(),
    ],
    fields: &[LINKS_TELL_MISSED],
    functions: &EVERYWHERE,
};

/// The kernel's support for kprobes.
#[derive(Clone, Copy, Debug)]
pub struct Kprobes {
    /// The kernel's kprobe PMU, if any.
    pub pmu: Option<KprobePmu>,
    /// A BPF link tells how many runs of a kprobe were skipped (6.7 and newer).
    pub links_tell_missed: bool,
}

/// This kernel, as far as tracing depends on it.
pub struct Target {
    kprobes: Kprobes,
    btf_path: PathBuf,
    btf: Btf,
    /// The types that the object's hooks and [`ASKED`] ask for, each with its number; none: the BTF lacks the type. One search
    /// finds all of these types, since each search looks at every type.
    types: HashMap<(Kind, String), Option<TypeId>>,
    /// The file with the kernel's own types, even if `--btf` gives others.
    own_btf: Option<PathBuf>,
    /// The types in that file, if `--btf` gives others; read for the first question.
    other_own: OnceCell<Btf>,
    /// The part of the types that libbpf searches for the object; made for the first load.
    searched: OnceCell<Vec<u8>>,
    /// The number of functions of certain names in the kernel; filled by the first question.
    symbols: OnceCell<HashMap<&'static str, usize>>,
}

impl Target {
    /// Ask the kernel about the hooks of this object: sysfs for the kprobe PMU, the types in the file `btf_path` for the rest.
    ///
    /// # Errors
    /// [`Exit::Host`] if sysfs is not the kernel's own.
    pub fn ask(btf_path: &Path, btf: Btf, object: &CheckedObject<'_>) -> Result<Self> {
        let types = find_all(&btf, object);
        let pmu = host::kprobe_pmu().map_err(|error| {
            Blocked::new(format!("{error:#}"), "mount the kernel's own /sys (mount -t sysfs sysfs /sys)").by_host()
        })?;
        let info = types.get(&(Kind::Struct, LINKS_TELL_MISSED.0.to_owned())).copied().flatten();
        let links_tell_missed = info.is_some_and(|info| btf.field_in(info, LINKS_TELL_MISSED.1).is_some());
        Ok(Self {
            kprobes: Kprobes { pmu, links_tell_missed },
            btf_path: btf_path.to_owned(),
            btf,
            types,
            own_btf: host::own_btf(),
            other_own: OnceCell::new(),
            searched: OnceCell::new(),
            symbols: OnceCell::new(),
        })
    }

    /// Compare the types of `--btf` with those that the kernel shows. For this object both must give the same results.
    /// Programs that read memory by the offsets of another kernel report nonsense.
    ///
    /// # Errors
    /// [`Exit::Host`], with the first difference.
    pub fn check(&self, object: &CheckedObject<'_>) -> Result<()> {
        let own = Path::new(KERNEL_BTF);
        if self.btf_path == own || !own.exists() {
            return Ok(());
        }
        let difference = first_difference(object.bytes(), &self.btf, &read_types(own)?);
        let difference = difference.map_err(|error| anyhow!(error).context(Exit::Object))?;
        difference.map_or(Ok(()), |difference| {
            let found = format!("the BTF in {} is not of this kernel: {difference}", self.btf_path.display());
            Err(Blocked::new(found, "leave out --btf: the kernel has its own").by_host())
        })
    }

    /// The path of the file with the types.
    #[must_use]
    pub fn btf_path(&self) -> &Path {
        &self.btf_path
    }

    /// The types.
    #[must_use]
    pub fn btf(&self) -> &Btf {
        &self.btf
    }

    /// The types alone, when nothing else will be asked.
    #[must_use]
    pub fn into_btf(self) -> Btf {
        self.btf
    }

    /// The kernel's support for kprobes.
    #[must_use]
    pub fn kprobe_support(&self) -> &Kprobes {
        &self.kprobes
    }

    /// Whether the kernel has these iterators, and this host has the kernel's own types. libbpf names an iterator by the
    /// number of a type.
    #[must_use]
    pub fn has_iterators(&self, all: &[Feature]) -> bool {
        self.has_own_btf() && all.iter().all(|iterator| self.shows(*iterator))
    }

    /// Whether the kernel lets xctl read the counters of connections when they end, and while they are open.
    #[must_use]
    pub fn has_ledger(&self) -> bool {
        self.shows(Feature::RingBuffers) && self.shows(Feature::RunOnRequest)
    }

    /// Whether the kernel has this feature.
    #[must_use]
    pub fn shows(&self, what: Feature) -> bool {
        self.find(Kind::Struct, what.type_name()).is_some()
    }

    fn find(&self, kind: Kind, name: &str) -> Option<TypeId> {
        let known = self.types.get(&(kind, name.to_owned())).copied();
        known.unwrap_or_else(|| self.btf.find(kind, name))
    }

    /// The part of the types that libbpf searches for the object that this target was asked about; none if libbpf needs all of
    /// them.
    #[must_use]
    pub fn searched(&self, object: &CheckedObject<'_>) -> Option<&[u8]> {
        object.roots().map(|roots| self.searched.get_or_init(|| roots.within(&self.btf)).as_slice())
    }

    /// The programs among those that `wanted` names which attach to a type, each with the number of that type in the
    /// kernel's own BTF. A program whose type is not there is left out.
    ///
    /// # Errors
    /// [`Exit::Host`] if the kernel's own BTF cannot be read.
    pub fn attach_types(
        &self,
        object: &CheckedObject<'_>,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<(String, TypeId)>> {
        // Raw tracepoints are attached by name.
        let by_type = |hook: &Hook<'_>| matches!(hook.program_type, Some("tracing" | "lsm"));
        let all = object.hooks().filter(|(program, hook)| by_type(hook) && wanted(program));
        let named = all.filter_map(|(program, hook)| Some((program, hook.in_btf()?)));
        let found = named.map(|(program, (kind, name))| {
            let id = self.find_own(kind, &name)?;
            Ok(id.map(|id| (program.to_owned(), id)))
        });
        found.filter_map(Result::transpose).collect()
    }

    /// Let the kernel attach a program that does nothing to the place of a hook, through a trampoline, for a moment.
    ///
    /// # Errors
    /// [`Exit::Host`] if the kernel refuses, or if its own BTF cannot be read.
    pub fn try_trampoline(&self, hook: &hooks::Hook) -> Result<()> {
        let kind = if hook.kind == HookKind::Lsm { bpf::Trampoline::Lsm } else { bpf::Trampoline::Fentry };
        let tried = match self.find_own(Kind::Func, &hook.function())? {
            Some(id) => bpf::try_trampoline(kind, id.0),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        tried.map_err(|error| {
            let name = if hook.kind == HookKind::Lsm { "LSM" } else { "fentry" };
            let found = format!("cannot attach an empty {name} program to {}", hook.target_name());
            Error::new(error).context(Blocked::new(found, "`xctl doctor` says more")).context(Exit::Host)
        })
    }

    /// The number of a type in the kernel's own BTF, even if `--btf` gives other types.
    fn find_own(&self, kind: Kind, name: &str) -> Result<Option<TypeId>> {
        let Some(path) = self.own_btf.as_deref().filter(|own| *own != self.btf_path) else {
            return Ok(self.find(kind, name));
        };
        if self.other_own.get().is_none() {
            let _ = self.other_own.set(read_types(path)?);
        }
        Ok(self.other_own.get().and_then(|own| own.find(kind, name)))
    }
}

/// Look for all types that hooks of this object and [`ASKED`] ask for.
fn find_all(btf: &Btf, object: &CheckedObject<'_>) -> HashMap<(Kind, String), Option<TypeId>> {
    let mut names: HashSet<(Kind, String)> = object.hooks().filter_map(|(_, hook)| hook.in_btf()).collect();
    let functions = object.hooks().filter(|(_, hook)| hook.program_type == Some("kprobe")).map(|(_, hook)| hook.target);
    names.extend(functions.chain(IN_SOME_KERNELS).chain(EVERYWHERE).map(|name| (Kind::Func, name.to_owned())));
    let structs = ASKED.structs.iter().chain(ASKED.fields.iter().map(|(name, _)| name));
    names.extend(structs.map(|name| (Kind::Struct, (*name).to_owned())));
    let found = btf.first(&names.iter().map(|(kind, name)| (*kind, name.as_str())).collect());
    let found: HashMap<_, _> = found.into_iter().map(|((kind, name), id)| ((kind, name.to_owned()), id)).collect();
    names.into_iter().map(|name| (found.get(&name).copied(), name)).map(|(id, name)| (name, id)).collect()
}

/// Check an object, and meanwhile read the types in the file `btf`.
pub fn check_and_read<'a>(object: &'a [u8], btf: &Path) -> (Result<CheckedObject<'a>>, Result<Btf>) {
    let (types, object) = at_once(|| read_types(btf), || check_object(object));
    (object, types)
}

/// Read the types in a file.
///
/// # Errors
/// [`Exit::Host`] if the file cannot be read, or has no types.
pub fn read_types(btf: &Path) -> Result<Btf> {
    let blocked = |found: String| {
        let remedy = match btf == Path::new(KERNEL_BTF) || host::own_btf().as_deref() == Some(btf) {
            true => "the kernel needs CONFIG_DEBUG_INFO_BTF=y, or give the BTF of exactly this kernel with --btf FILE",
            false => "--btf takes the BTF of exactly this kernel: raw, or an ELF file with a .BTF section",
        };
        Blocked::new(found, remedy).by_host()
    };
    let bytes = kernel::btf::read(btf).map_err(|error| blocked(format!("{error:#}")))?;
    Btf::from_cow(bytes).map_err(|error| blocked(format!("the BTF in {}: {error}", btf.display())))
}

impl KernelFeatures for Target {
    fn kprobes(&self) -> bool {
        self.kprobes.pmu.is_some()
    }

    fn tracepoint_args(&self, name: &str) -> Option<usize> {
        self.btf.tracepoint_args_of(self.find(Kind::Typedef, &format!("btf_trace_{name}"))?)
    }

    fn function_args(&self, name: &str) -> Option<usize> {
        Some(self.btf.function_args_of(self.find(Kind::Func, name)?))
    }

    fn has_function(&self, name: &str) -> bool {
        let knows = |name: &str| self.find(Kind::Func, name).is_some();
        if knows(name) || EVERYWHERE.into_iter().all(knows) {
            return knows(name);
        }
        let counts = self.symbols.get_or_init(|| symbols::count(IN_SOME_KERNELS).unwrap_or_default());
        counts.get(name).is_some_and(|count| *count > 0)
    }

    fn has_own_btf(&self) -> bool {
        self.own_btf.is_some()
    }

    fn has_trampolines(&self) -> bool {
        self.shows(Feature::Trampolines)
    }

    fn active_lsms(&self) -> Option<Vec<String>> {
        lsm::active()
    }
}
