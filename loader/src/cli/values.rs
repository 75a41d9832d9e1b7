//! The values of options, as parsing returns them.

use std::path::PathBuf;
use std::time::Duration;

use crate::kernel::server::At;
use crate::ledger::group::By;
use crate::model::events::Kind;
use crate::model::network::Network;
use crate::trace::hooks::Attach;
use crate::trace::seed::Source;

/// The least default capacity of SOCKET_TO_PID.
pub const LEAST_SOCKETS: u32 = 8192;
/// The greatest capacity of SOCKET_TO_PID.
pub const MOST_SOCKETS: u32 = 1 << 24;
/// Owners with metrics of their own by default.
pub const OWNERS: usize = 200;
/// Data pages of a CPU's ring by default.
pub const PERF_PAGES: usize = 64;

/// Which events to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// `retransmit`
    pub retransmits: bool,
    /// `send`
    pub sends: bool,
    /// `cut`
    pub cuts: bool,
    /// `connection`
    pub connections: bool,
}

/// Filters as the user wrote them. A filter without values lets everything pass. Parsing asks neither kernel nor disk for their
/// meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Owning processes.
    pub pids: Vec<u32>,
    /// Names of processes, at most 15 bytes each.
    pub comms: Vec<String>,
    /// Local or remote ports.
    pub ports: Vec<u16>,
    /// Networks of the local or the remote address.
    pub networks: Vec<Network>,
    /// Network namespaces: inode numbers, files that represent a namespace, or names for `ip netns`.
    pub netns: Vec<String>,
    /// Directories of cgroup v2; the cgroups below such a directory count too.
    pub cgroups: Vec<PathBuf>,
    /// 4 or 6.
    pub family: Option<u8>,
    /// Kinds of retransmission.
    pub kinds: Vec<Kind>,
    /// States of sockets (include/net/tcp_states.h), of `xctl sockets` alone.
    pub states: Vec<u8>,
}

/// Options of `xctl trace`.
#[derive(Debug)]
pub struct TraceOptions {
    /// JSON lines instead of text.
    pub json: bool,
    /// Text output also shows the process that a naive tool would have blamed.
    pub current: bool,
    /// Which hooks.
    pub attach: Attach,
    /// Which events.
    pub events: Events,
    /// `xctl top`: print what each process did in each interval of this length, and no event.
    pub interval: Option<Duration>,
    /// `xctl top`: what a line stands for.
    pub by: By,
    /// `xctl top`: use colours, or not; none: unless NO_COLOR is set.
    pub colours: Option<bool>,
    /// `xctl top`: print blocks on a terminal, too.
    pub batch: bool,
    /// End after this time.
    pub duration: Option<Duration>,
    /// End after this number of events.
    pub count: Option<u64>,
    /// Which sockets and events to report.
    pub filters: Filters,
    /// Capacity of SOCKET_TO_PID. None: enough for this host.
    pub max_sockets: Option<u32>,
    /// Data pages of a CPU's ring, a power of two.
    pub perf_pages: usize,
    /// The object to use instead of the one inside the binary.
    pub object: Option<PathBuf>,
    /// The BTF to use instead of the kernel's own.
    pub btf: Option<PathBuf>,
    /// Where to learn the owners of sockets that are open already. None: the best source that this kernel has.
    pub seed: Option<Source>,
    /// Count how often and how long processes keep their own receive windows shut.
    pub reader: bool,
    /// Print and count what this host drops of its own segments.
    pub drops: bool,
    /// Where to tell metrics.
    pub metrics: Option<At>,
    /// The file to write metrics to.
    pub metrics_file: Option<PathBuf>,
    /// The most owners with metrics of their own.
    pub metrics_owners: usize,
    /// Compare with the kernel's counters at the end.
    pub verify: bool,
    /// End after loading, and attach nothing.
    pub dry_run: bool,
    /// The file for the record of changes to the kernel.
    pub record: Option<PathBuf>,
    /// Attach nothing unless the loaded programs are proven. A record implies this option.
    pub strict: bool,
    /// User to become once everything is attached: a name or a number.
    pub user: Option<String>,
    /// Keep privileges and every system call.
    pub no_sandbox: bool,
    /// Show all of libbpf's messages and of the verifier's log.
    pub verbose: bool,
}

/// Options of `xctl sockets`.
#[derive(Debug)]
pub struct SocketsOptions {
    /// JSON lines instead of text.
    pub json: bool,
    /// Print the counters of each connection, and the verdict about it.
    pub stats: bool,
    /// Text: print the rules, and the figures that they were compared with.
    pub explain: bool,
    /// Which sockets to list.
    pub filters: Filters,
    /// The BTF to use instead of the kernel's own.
    pub btf: Option<PathBuf>,
    /// Show all of libbpf's messages and of the verifier's log.
    pub verbose: bool,
}

/// Options of `xctl doctor`.
#[derive(Debug)]
pub struct DoctorOptions {
    /// One JSON document instead of text.
    pub json: bool,
    /// The BTF to use instead of the kernel's own.
    pub btf: Option<PathBuf>,
}

/// Options of `xctl btf`.
#[derive(Clone, Debug, Default)]
pub struct BtfOptions {
    /// Types, as in a list: `struct sock`, `sock_common`, `struct sock: sk_protocol`.
    pub types: Vec<String>,
    /// A file that lists types, one a line.
    pub list: Option<PathBuf>,
    /// BTF to use instead of the running kernel's: raw, or an ELF file with a `.BTF` section.
    pub btf: Option<PathBuf>,
    /// Write the part of the BTF that the object needs to this file, and no definitions.
    pub min: Option<PathBuf>,
    /// The object for `min`; none: the object inside the binary.
    pub object: Option<PathBuf>,
}

/// Options of `xctl inspect`.
#[derive(Debug)]
pub struct InspectOptions {
    /// The object file; none: the object inside the binary.
    pub object: Option<PathBuf>,
    /// BTF to resolve against instead of the kernel's own.
    pub btf: Option<PathBuf>,
    /// One JSON document instead of text.
    pub json: bool,
}
