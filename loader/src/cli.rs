//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command as Clap, value_parser};

use crate::commands;
use crate::events::{COMM_LEN, Kind, Settings};
use crate::fault::Exit;
use crate::hooks::Attach;
use crate::kernel::host;
use crate::kernel::privilege::User;
use crate::owners;

/// The default capacity of SOCKET_TO_PID is at least this.
pub const LEAST_SOCKETS: u32 = 8192;
/// Its capacity is never more.
pub const MOST_SOCKETS: u32 = 1 << 24;
/// Data pages of a CPU's ring by default.
pub const PERF_PAGES: usize = 64;

/// A command with its options.
#[derive(Debug)]
pub enum Command {
    /// `xctl trace`
    Trace(TraceOptions),
    /// `xctl sockets`
    Sockets(commands::sockets::Args),
    /// `xctl btf`
    Btf(commands::btf::Args),
    /// `xctl doctor`
    Doctor(commands::doctor::Args),
    /// `xctl inspect`
    Inspect(commands::inspect::Args),
}

/// Which events to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Events {
    /// `retransmit`
    Retransmit,
    /// `send`
    Send,
    /// `all`
    All,
}

/// Keep to these; none: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Owning process.
    pub pid: Option<u32>,
    /// Its name, at most 15 bytes.
    pub comm: Option<String>,
    /// Local or remote port.
    pub port: Option<u16>,
    /// Inode number of a network namespace.
    pub netns: Option<u32>,
    /// Id and depth of a cgroup v2 directory; what is below it counts too.
    pub cgroup: Option<(u64, u32)>,
    /// 4 or 6.
    pub family: Option<u8>,
    /// Kinds of retransmission.
    pub kinds: Vec<Kind>,
}

impl Filters {
    /// As the programs take them.
    #[must_use]
    pub fn settings(&self) -> Settings {
        let Filters { pid, comm, port, netns, cgroup, family, kinds } = self;
        let mut padded = [0; COMM_LEN];
        if let Some(comm) = comm {
            padded[..comm.len()].copy_from_slice(comm.as_bytes());
        }
        let (cgroup, cgroup_level) = cgroup.unwrap_or_default();
        Settings {
            cgroup,
            cgroup_level,
            netns: netns.unwrap_or_default(),
            tgid: pid.unwrap_or_default(),
            port: port.unwrap_or_default(),
            family: family.unwrap_or_default(),
            kinds: kinds.iter().fold(0, |mask, &kind| mask | 1 << kind as u8),
            comm: padded,
            ..Settings::default()
        }
    }
}

/// Options of `xctl trace`.
#[derive(Debug)]
pub struct TraceOptions {
    /// JSON lines instead of text.
    pub json: bool,
    /// Text: also show whom a naive tool would have blamed.
    pub current: bool,
    /// Which hooks.
    pub attach: Attach,
    /// Which events.
    pub events: Events,
    /// End after this time.
    pub duration: Option<Duration>,
    /// End after so many events.
    pub count: Option<u64>,
    /// What to keep to.
    pub filters: Filters,
    /// Capacity of SOCKET_TO_PID; none: as the host needs it.
    pub max_sockets: Option<u32>,
    /// Data pages of a CPU's ring, a power of two.
    pub perf_pages: usize,
    /// Another object than the one inside the binary.
    pub object: Option<PathBuf>,
    /// Another BTF than the kernel's own.
    pub btf: Option<PathBuf>,
    /// Where to learn who holds what is open already; none: the best that this kernel has.
    pub seed: Option<owners::Source>,
    /// Compare with the kernel's counters at the end.
    pub verify: bool,
    /// End after loading; attach nothing.
    pub dry_run: bool,
    /// Where to record what was done to the kernel.
    pub record: Option<PathBuf>,
    /// Attach nothing unless what was loaded is proven; a record implies it.
    pub strict: bool,
    /// User to become once everything is attached.
    pub user: Option<User>,
    /// Keep privileges, and every system call.
    pub no_sandbox: bool,
    /// Show libbpf's messages and the verifier's log whole.
    pub verbose: bool,
}

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// Filters of sockets.
fn filter_options() -> Vec<Arg> {
    vec![
        option("pid", "PID", "Only this process").value_parser(value_parser!(u32).range(1..)),
        option("comm", "NAME", "Only processes of this name").value_parser(comm),
        option("port", "PORT", "Only this port, local or remote").value_parser(value_parser!(u16).range(1..)),
        option(
            "netns",
            "INUM|PATH",
            "Only this network namespace: its inode number, a file that stands for it, or its name for ip netns",
        ),
        option("cgroup", "PATH", "Only sockets of processes in this cgroup (v2) or below")
            .value_parser(value_parser!(PathBuf)),
        Arg::new("4").short('4').action(ArgAction::SetTrue).help("Only IPv4").conflicts_with("6"),
        Arg::new("6").short('6').action(ArgAction::SetTrue).help("Only IPv6"),
    ]
}

fn trace_options() -> Vec<Arg> {
    let kinds = PossibleValuesParser::new(Kind::ALL.map(Kind::name))
        .map(|name| Kind::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or(Kind::Other));
    let first = [
        flag("json", "Print one JSON object a line"),
        flag("verify", "At the end, compare with the kernel's own counters in each network namespace"),
        flag("current", "Text: show whom softirq interrupted, the process that other tools blame"),
        option("attach", "SET", "Hooks to use: auto takes the best that this kernel has")
            .value_parser(["auto", "kprobe", "tracepoint", "fentry", "kprobe+tracepoint"])
            .default_value("auto"),
        option("events", "WHICH", "Events to print")
            .value_parser(["retransmit", "send", "all"])
            .default_value("retransmit"),
        option("duration", "SECONDS", "End after this time").value_parser(seconds),
        option("count", "N", "End after so many events").value_parser(value_parser!(u64).range(1..)),
    ];
    let last = [
        option("kind", "KIND,...", "Only these kinds of retransmission").value_delimiter(',').value_parser(kinds),
        option(
            "max-sockets",
            "N",
            "How many sockets to remember [default: 8192, or four times what exists if that is more]",
        )
        .value_parser(value_parser!(u32).range(1..=i64::from(MOST_SOCKETS))),
        option("perf-pages", "N", "Size of each CPU's ring in pages, a power of two")
            .value_parser(power_of_two)
            .default_value("64"),
        option(
            "seed",
            "SOURCE",
            "Who tells the owners of sockets that are open already: the kernel's iterator, or /proc",
        )
        .value_parser(["auto", "iterator", "proc", "none"])
        .default_value("auto"),
        flag("dry-run", "Load everything, attach nothing, and leave nothing behind").conflicts_with("verify"),
        option("record", "FILE", "Write what was done to the kernel to this file, one JSON document; implies --strict")
            .value_parser(value_parser!(PathBuf)),
        flag(
            "strict",
            "Attach nothing unless every instruction in the kernel is proven to be the object's, relocated by the BTF",
        ),
        option("object", "FILE", "Load this BPF object instead of the one inside the binary")
            .value_parser(value_parser!(PathBuf)),
        option("btf", "FILE", "Relocate against this BTF instead of the kernel's own")
            .value_parser(value_parser!(PathBuf)),
        option("user", "NAME|UID", "Become this user once everything is attached").value_parser(user),
        flag("no-sandbox", "Keep privileges and every system call, where else both are given up once all is attached"),
        verbose(),
    ];
    first.into_iter().chain(filter_options()).chain(last).collect()
}

fn user(text: &str) -> Result<User, String> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    User::find(text, &passwd).map_err(|error| error.to_string())
}

fn verbose() -> Arg {
    flag("verbose", "Show what libbpf says, and the verifier's log whole").short('v')
}

fn seconds(text: &str) -> Result<Duration, String> {
    let duration = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    // Ten years: a deadline that no clock overflows on.
    duration
        .filter(|time| !time.is_zero() && time.as_secs() < 315_360_000)
        .ok_or_else(|| "not a number of seconds greater than 0".into())
}

fn comm(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("a name has at least one byte".into()),
        length if length < COMM_LEN => Ok(text.into()),
        length => Err(format!("the kernel keeps {} bytes of a name, and this one has {length}", COMM_LEN - 1)),
    }
}

fn power_of_two(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(pages) if pages.is_power_of_two() && pages <= 1 << 16 => Ok(pages),
        _ => Err("not a power of two from 1 to 65536".into()),
    }
}

/// The command line as clap knows it.
#[must_use]
pub fn clap() -> Clap {
    let trace = Clap::new("trace")
        .about("Print retransmits as they happen, with the process behind each (the default command)")
        .args(trace_options());
    let sockets = Clap::new("sockets")
        .about("List every TCP socket of this host and the process that owns it")
        .arg(flag("json", "Print one JSON object a line"))
        .args(filter_options())
        .args([
            option("btf", "FILE", "Relocate against this BTF instead of the kernel's own")
                .value_parser(value_parser!(PathBuf)),
            verbose(),
        ]);
    let btf = Clap::new("btf")
        .about("Print C definitions of kernel types, from BTF; or cut that down to what xctl needs")
        .args([
            Arg::new("types")
                .value_name("TYPE")
                .num_args(0..)
                .help("A type, such as 'struct sock', or some of its members: 'struct sock: sk_protocol'"),
            option("list", "FILE", "Read the types from this file").value_parser(value_parser!(PathBuf)),
            option("btf", "FILE", "Take this BTF instead of the kernel's own").value_parser(value_parser!(PathBuf)),
            option("min", "OUT", "Write to OUT the few kilobytes of it that xctl needs, for --btf on such kernels")
                .value_parser(value_parser!(PathBuf))
                .conflicts_with_all(["types", "list"]),
            option("object", "FILE", "Of what this BPF object needs, instead of the one inside the binary")
                .value_parser(value_parser!(PathBuf))
                .requires("min")
                .conflicts_with_all(["types", "list"]),
        ]);
    let doctor =
        Clap::new("doctor").about("Say what this host offers, found out by trying, and what is missing").args([
            flag("json", "Print one JSON document"),
            option("btf", "FILE", "Relocate against this BTF instead of the kernel's own")
                .value_parser(value_parser!(PathBuf)),
        ]);
    let inspect = Clap::new("inspect")
        .about("Show what a BPF object holds, and how it would be relocated; needs no privilege")
        .args([
            Arg::new("object")
                .value_name("OBJECT")
                .value_parser(value_parser!(PathBuf))
                .help("The object file; the one inside the binary if there is none"),
            option("btf", "FILE", "Resolve against this BTF instead of the kernel's own")
                .value_parser(value_parser!(PathBuf)),
            flag("json", "Print one JSON document"),
        ]);
    Clap::new("xctl")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Which process is really behind TCP retransmissions")
        .args_conflicts_with_subcommands(true)
        .args(trace_options())
        .subcommands([trace, sockets, inspect, doctor, btf])
        .after_help(
            "Exit codes: 0 done; 1 a failure while running; 2 wrong usage; 3 this host cannot run it; 4 the object file \
             was refused; 5 --verify found a difference",
        )
}

/// Parse this process's arguments. Wrong usage, `--help` and `--version` end the process.
///
/// # Errors
/// [`Exit::Usage`] if an option names something that is not there.
pub fn parse() -> Result<Command> {
    command(clap().get_matches())
}

/// Parse these arguments, the program's name first.
///
/// # Errors
/// As [`parse`], and wrong usage too.
pub fn parse_from<T: Into<OsString> + Clone>(arguments: impl IntoIterator<Item = T>) -> Result<Command> {
    command(clap().try_get_matches_from(arguments).map_err(|error| anyhow!(error).context(Exit::Usage))?)
}

fn command(mut matches: ArgMatches) -> Result<Command> {
    match matches.remove_subcommand() {
        None => trace(matches).map(Command::Trace),
        Some((name, mut matches)) if name == "sockets" => Ok(Command::Sockets(commands::sockets::Args {
            json: matches.get_flag("json"),
            filters: filters(&mut matches)?,
            btf: matches.remove_one("btf"),
            verbose: matches.get_flag("verbose"),
        })),
        Some((name, mut matches)) if name == "doctor" => Ok(Command::Doctor(commands::doctor::Args {
            json: matches.get_flag("json"),
            btf: matches.remove_one("btf"),
        })),
        Some((name, mut matches)) if name == "inspect" => Ok(Command::Inspect(commands::inspect::Args {
            object: matches.remove_one("object"),
            btf: matches.remove_one("btf"),
            json: matches.get_flag("json"),
        })),
        Some((name, mut matches)) if name == "btf" => Ok(Command::Btf(commands::btf::Args {
            types: matches.remove_many("types").into_iter().flatten().collect(),
            list: matches.remove_one("list"),
            btf: matches.remove_one("btf"),
            min: matches.remove_one("min"),
            object: matches.remove_one("object"),
        })),
        Some((_, matches)) => trace(matches).map(Command::Trace),
    }
}

fn filters(matches: &mut ArgMatches) -> Result<Filters> {
    let usage = |error: anyhow::Error| error.context(Exit::Usage);
    let netns = matches.remove_one::<String>("netns").map(|name| host::netns_inode(&name));
    let cgroup = matches.remove_one::<PathBuf>("cgroup").map(|path| host::cgroup_id(&path));
    Ok(Filters {
        pid: matches.remove_one("pid"),
        comm: matches.remove_one("comm"),
        port: matches.remove_one("port"),
        netns: netns.transpose().map_err(usage)?,
        cgroup: cgroup.transpose().map_err(usage)?,
        family: match (matches.get_flag("4"), matches.get_flag("6")) {
            (true, _) => Some(4),
            (_, true) => Some(6),
            _ => None,
        },
        kinds: Vec::new(),
    })
}

fn trace(mut matches: ArgMatches) -> Result<TraceOptions> {
    let text = |matches: &mut ArgMatches, name| matches.remove_one::<String>(name).unwrap_or_default();
    let filters =
        Filters { kinds: matches.remove_many("kind").into_iter().flatten().collect(), ..filters(&mut matches)? };
    let events = match text(&mut matches, "events").as_str() {
        "send" => Events::Send,
        "all" => Events::All,
        _ => Events::Retransmit,
    };
    if events == Events::Send && !filters.kinds.is_empty() {
        return Err(anyhow!("--kind is of retransmits, and --events send asks for none").context(Exit::Usage));
    }
    let record: Option<PathBuf> = matches.remove_one("record");
    if record.as_deref() == Some(Path::new("-")) {
        let why = "--record writes to a file, and standard output has the events: ./- is a file of that name";
        return Err(anyhow!(why).context(Exit::Usage));
    }
    Ok(TraceOptions {
        json: matches.get_flag("json"),
        current: matches.get_flag("current"),
        attach: match text(&mut matches, "attach").as_str() {
            "kprobe" => Attach::Kprobe,
            "tracepoint" => Attach::Tracepoint,
            "fentry" => Attach::Fentry,
            "kprobe+tracepoint" => Attach::Mixed,
            _ => Attach::Auto,
        },
        events,
        duration: matches.remove_one("duration"),
        count: matches.remove_one("count"),
        filters,
        max_sockets: matches.remove_one("max-sockets"),
        perf_pages: matches.remove_one("perf-pages").unwrap_or(PERF_PAGES),
        object: matches.remove_one("object"),
        btf: matches.remove_one("btf"),
        seed: match text(&mut matches, "seed").as_str() {
            "iterator" => Some(owners::Source::Iterator),
            "proc" => Some(owners::Source::Proc),
            "none" => Some(owners::Source::None),
            _ => None,
        },
        verify: matches.get_flag("verify"),
        dry_run: matches.get_flag("dry-run"),
        record,
        strict: matches.get_flag("strict"),
        user: matches.remove_one("user"),
        no_sandbox: matches.get_flag("no-sandbox"),
        verbose: matches.get_flag("verbose"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn trace(arguments: &[&str]) -> TraceOptions {
        match parse_from(["xctl"].iter().chain(arguments)).unwrap() {
            Command::Trace(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn clap_is_content() {
        clap().debug_assert();
    }

    #[test]
    fn trace_is_the_default_command() {
        assert!(trace(&["--json"]).json);
        assert!(trace(&["trace", "--json"]).json);
        assert_eq!(trace(&["--max-sockets", "9"]).max_sockets, Some(9));
    }

    #[test]
    fn values_are_checked() {
        for wrong in [
            &["--perf-pages", "3"][..],
            &["--count", "0"],
            &["--duration", "0"],
            &["--duration", "-1"],
            &["--duration", "inf"],
            &["--kind", "fast,slow"],
            &["--comm", "sixteen-bytes-xx"],
            &["-4", "-6"],
            &["--port", "65536"],
            &["--attach", "guess"],
            &["--no-such-option"],
            &["--netns", "/nonexistent"],
            &["--cgroup", "/proc"],
        ] {
            let error = parse_from(["xctl"].iter().chain(wrong)).unwrap_err();
            assert_eq!(Exit::code_of(&error), 2, "{wrong:?}: {error:#}");
        }
    }

    #[test]
    fn filters_add_up() {
        let filters = trace(&["-6", "--kind", "rto,syn", "--port", "443", "--netns", "17"]).filters;
        assert_eq!(filters.family, Some(6));
        assert_eq!(filters.kinds, [Kind::Rto, Kind::Syn]);
        assert_eq!((filters.port, filters.netns), (Some(443), Some(17)));
    }
}
