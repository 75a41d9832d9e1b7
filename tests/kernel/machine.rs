//! Decides which cases run where. Each case has a [`Runs`] in the table of cases; nothing else decides.
//!
//! The default fits `make ci` into its time: a case runs on the kernels where its result differs most. `--all` runs each case
//! in every set of hooks and over each of its IP versions, on every machine.

use crate::host::{Set, shows_senders};
use crate::{Case, Families, Family};

/// The machines on which a case runs. Each variant except the last includes the machines of the variants before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Runs {
    /// On the kernel of the host that builds: any kernel that has what the case needs gives the same result.
    Here,
    /// Also on the oldest kernel: the kernel's code for the case has changed since, or the host may lack what the case needs
    /// (kprobes, netem, a level of paranoia).
    Oldest,
    /// Also on every newer kernel: these are the main cases.
    Kernels,
    /// Also on another architecture: the case depends on registers, layouts or the order of memory.
    Machines,
    /// On the newest kernel also in every set of hooks: another hook serves the case in each set.
    Sets,
    /// Also under PREEMPT_RT, where softirq runs in threads.
    RealTime,
    /// Only on the host that builds, and on a machine that has enough CPUs for hotplug under load.
    Cpus,
}

/// The machine that runs the cases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Machine {
    /// The host that builds.
    Here,
    /// A virtual machine with the oldest kernel of the matrix.
    Oldest,
    /// A virtual machine with the newest kernel of the matrix.
    Newest,
    /// A virtual machine with a kernel between the oldest and the newest.
    Between,
    /// A virtual machine of another architecture.
    Arm,
    /// A virtual machine with a PREEMPT_RT kernel.
    RealTime,
    /// A virtual machine with four CPUs.
    Cpus,
}

impl Machine {
    /// The machine for a name of tests/vm/fetch with the label of the run: "5.10", "6.12-rt", "6.12-4cpus".
    pub fn named(name: &str) -> Machine {
        match name {
            "5.10" => Machine::Oldest,
            "newest" => Machine::Newest,
            _ if name.contains("-arm64") => Machine::Arm,
            _ if name.ends_with("-rt") => Machine::RealTime,
            _ if name.ends_with("-4cpus") => Machine::Cpus,
            _ => Machine::Between,
        }
    }

    /// Whether this machine runs the case in this set of hooks and over this IP version.
    pub fn runs(self, case: &Case, set: Set, family: Family) -> bool {
        self.runs_case(case.runs) && self.runs_set(case, set) && self.runs_family(case, set, family)
    }

    fn runs_case(self, runs: Runs) -> bool {
        let from = match self {
            Machine::Here => return true,
            Machine::Oldest => Runs::Oldest,
            Machine::Newest | Machine::Between => Runs::Kernels,
            Machine::Arm => Runs::Machines,
            Machine::RealTime => Runs::RealTime,
            Machine::Cpus => Runs::Cpus,
        };
        runs >= from && (runs == Runs::Cpus) == (self == Machine::Cpus)
    }

    fn runs_set(self, case: &Case, set: Set) -> bool {
        if set == Set::Auto || case.sets.len() == 1 {
            return true;
        }
        case.runs >= Runs::Sets
            && match self {
                Machine::Newest => true,
                // The tracepoint sock_send_length shows senders from Linux 6.3 to 6.15 alone. One kernel is enough for these.
                Machine::Between => set == Set::Tracepoint && !shows_senders(),
                _ => false,
            }
    }

    /// Over both IP versions the host runs each case that has both; the Debian kernels run those whose code differs.
    fn runs_family(self, case: &Case, set: Set, family: Family) -> bool {
        let both = match self {
            Machine::Here => true,
            Machine::Oldest | Machine::Newest | Machine::Between => set == Set::Auto && case.families == Families::Both,
            _ => false,
        };
        both || family == case.families.of(set)[0]
    }
}

/// Skips that are allowed on virtual machines: the kernels (all if none is named), the case (all if empty), and how the
/// reason begins. Any other skip is a failure there: a case that silently stops running tests nothing.
const SKIPS: &[(&[&str], &str, &str)] = &[
    // Features that a kernel does not have.
    (&["5.10", "6.1"], "", "this kernel has no tracepoint that sees senders"),
    (&["5.10"], "mptcp", "this kernel has no MPTCP"),
    (&["5.10"], "mptcp_subflows", "this kernel has no MPTCP"),
    (&["5.10"], "mptcp_ledger", "this kernel has no MPTCP"),
    (&["5.10"], "mptcp_reset", "this kernel has no MPTCP"),
    (&["5.10"], "ktls_worker", "this kernel has no kTLS"),
    (&[], "listens_again", "no tracepoint shows listen()"),
    (&["newest"], "smc_fallback", "this kernel has no SMC"),
    (&["5.10", "6.1"], "missed", "this kernel does not tell which kprobes it skipped"),
    (&["6.1", "6.12", "newest"], "no_memlock", "this kernel does not count maps against RLIMIT_MEMLOCK"),
    (&["5.10", "6.1", "6.12", "newest"], "cpu_0_offline", "CPU 0 cannot go offline here"),
    (&["5.10"], "", "bpf is not among the active LSMs"),
    // Features that the virtual machine does not have.
    (&[], "cpus_come_and_go", "it takes 4 CPUs"),
    (&[], "record_strace", "this host has no strace"),
    (&[], "record_schema", "this host has no jsonschema"),
    (&[], "time_namespace", "no way to make a time namespace"),
];

/// Whether the machine of this name may skip the case for this reason.
pub fn may_skip(machine: &str, case: &str, why: &str) -> bool {
    let is_kernel =
        |kernel: &&str| machine.strip_prefix(*kernel).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    SKIPS.iter().any(|(kernels, cases, reason)| {
        let here = kernels.is_empty() || kernels.iter().any(is_kernel);
        here && (cases.is_empty() || *cases == case) && why.starts_with(reason)
    })
}
