//! The command line as clap knows it: every option, its help, and its valid values.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, ArgAction, Command as Clap, value_parser};

use super::values::MOST_SOCKETS;
use crate::kernel::server::At;
use crate::ledger::group::By;
use crate::model::events::{COMM_LEN, Kind};
use crate::model::network::Network;
use crate::model::tcp::{state_names, state_number};

fn option(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help)
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// A filter that may be given several times. Numbers and networks may have commas in between; names and paths may contain commas.
fn filter(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    option(name, value, help).action(ArgAction::Append)
}

/// The headings in the help of `xctl trace` and `xctl top`, and the options below each.
const HEADINGS: [(&str, &[&str]); 7] = [
    ("View", &["interval", "by", "batch", "color"]),
    ("Output", &["json", "events", "drops", "reader", "current", "verify", "verbose"]),
    ("End", &["duration", "count"]),
    ("Filters", &["pid", "comm", "port", "addr", "netns", "cgroup", "4", "6", "kind", "state"]),
    ("Hooks and memory", &["attach", "seed", "max-sockets", "perf-pages", "object", "btf"]),
    ("Metrics", &["metrics", "metrics-file", "metrics-owners"]),
    ("Proof and privileges", &["dry-run", "record", "strict", "user", "no-sandbox"]),
];

/// The options, each below its heading.
fn under_headings(options: Vec<Arg>) -> Vec<Arg> {
    let heading = |option: &Arg| HEADINGS.iter().find(|(_, names)| names.contains(&option.get_id().as_str()));
    let place = |option: Arg| match heading(&option) {
        Some((heading, _)) => option.help_heading(*heading),
        None => option,
    };
    options.into_iter().map(place).collect()
}

/// The filters with at most FILTER_VALUES values.
pub(super) const FILTERS: [&str; 6] = ["pid", "comm", "port", "addr", "netns", "cgroup"];

/// Filters of sockets.
fn filter_options() -> Vec<Arg> {
    vec![
        filter("pid", "PID,...", "Only these processes")
            .value_delimiter(',')
            .value_parser(value_parser!(u32).range(1..)),
        filter("comm", "NAME", "Only processes of this name. For several names, repeat the option").value_parser(comm),
        filter(
            "netns",
            "INUM|PATH",
            "Only this network namespace: its inode number, a file such as /proc/PID/ns/net, or its name in `ip netns`. Repeat the option for several",
        ),
        filter(
            "cgroup",
            "PATH",
            "Only sockets of processes in this cgroup (v2) or below. Repeat the option for several",
        )
        .value_parser(value_parser!(PathBuf)),
        filter("port", "PORT,...", "Only these ports, local or remote")
            .value_delimiter(',')
            .value_parser(value_parser!(u16).range(1..)),
        filter(
            "addr",
            "CIDR,...",
            "Only these addresses and networks, local or remote: 192.0.2.1, 10.0.0.0/8, 2001:db8::/32",
        )
        .value_delimiter(',')
        .value_parser(Network::from_str),
        Arg::new("4").short('4').action(ArgAction::SetTrue).help("Only IPv4").conflicts_with("6"),
        Arg::new("6").short('6').action(ArgAction::SetTrue).help("Only IPv6"),
    ]
}

fn trace_options() -> Vec<Arg> {
    let kinds = PossibleValuesParser::new(Kind::ALL.map(Kind::name))
        .map(|name| Kind::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or(Kind::Other));
    let first = vec![
        flag("json", "Print one JSON object a line"),
        option("events", "WHICH,...", "Events to print")
            .value_delimiter(',')
            .value_parser(["retransmit", "send", "cut", "connection", "all"])
            .default_value("retransmit"),
        flag("drops", "Also print and count the packets that this host itself drops before they leave, and why"),
        flag(
            "reader",
            "Also count how often and how long processes keep their own receive windows shut; each read on this host costs about 120 ns more",
        ),
        flag("current", "In text output, also show the process that softirq interrupted, which other tools blame"),
        flag("verify", "At the end, compare with the kernel's own counters in each network namespace"),
        verbose(),
        option("duration", "SECONDS", "End after this time").value_parser(seconds),
        option("count", "N", "End after this number of events").value_parser(value_parser!(u64).range(1..)),
    ];
    let last = vec![
        filter("kind", "KIND,...", "Only these kinds of retransmission").value_delimiter(',').value_parser(kinds),
        option("attach", "SET", "Hooks to use: auto takes the best that this kernel has")
            .value_parser([
                PossibleValue::new("auto"),
                PossibleValue::new("kprobe"),
                PossibleValue::new("tracepoint"),
                PossibleValue::new("fentry").alias("fentry+tracepoint"),
                PossibleValue::new("kprobe+tracepoint"),
                PossibleValue::new("lsm").alias("lsm+kprobe+tracepoint"),
            ])
            .default_value("auto"),
        option(
            "seed",
            "SOURCE",
            "Source of the owners of sockets that are already open: the kernel's iterator, or /proc",
        )
        .value_parser(["auto", "iterator", "proc", "none"])
        .default_value("auto"),
        option(
            "max-sockets",
            "N",
            "Number of sockets to remember [default: 8192, or four times the existing sockets if that is more]",
        )
        .value_parser(value_parser!(u32).range(1..=i64::from(MOST_SOCKETS))),
        option("perf-pages", "N", "Size of each CPU's ring in pages, a power of two")
            .value_parser(power_of_two)
            .default_value("64"),
        option("object", "FILE", "Load this BPF object instead of the one inside the binary")
            .value_parser(value_parser!(PathBuf)),
        option("btf", "FILE", "Relocate against this BTF instead of the kernel's own")
            .value_parser(value_parser!(PathBuf)),
        option(
            "metrics",
            "ADDR:PORT|unix:PATH|fd:N",
            "Answer requests for /metrics, in the text format of Prometheus, at this address or this inherited socket",
        )
        .value_parser(metrics),
        option("metrics-file", "FILE", "Write the same metrics to this file, every 15 seconds and at the end")
            .value_parser(value_parser!(PathBuf)),
        option("metrics-owners", "N", "Number of owners with metrics of their own; the rest count as \"other\"")
            .value_parser(owners)
            .default_value("200"),
        flag("dry-run", "Load everything, attach nothing, and leave nothing behind").conflicts_with("verify"),
        option(
            "record",
            "FILE",
            "Record everything that is loaded and attached, as one JSON document in this file; implies --strict",
        )
        .value_parser(value_parser!(PathBuf)),
        flag(
            "strict",
            "Attach nothing unless every instruction in the kernel is proven to be the object's, relocated with the BTF",
        ),
        option("user", "NAME|UID", "Become this user once everything is attached"),
        flag(
            "no-sandbox",
            "Keep the system calls that xctl gives up once everything is attached; without --user, keep the privileges too",
        ),
    ];
    first.into_iter().chain(filter_options()).chain(last).collect()
}

/// The options of `xctl top`: those of `xctl trace` that do not choose events, and its own.
fn top_options() -> Vec<Arg> {
    const OF_EVENTS: [&str; 10] = [
        "verify",
        "drops",
        "current",
        "events",
        "count",
        "kind",
        "dry-run",
        "metrics",
        "metrics-file",
        "metrics-owners",
    ];
    let own = vec![
        option("interval", "SECONDS", "Show what happened in each interval of this length")
            .value_parser(interval)
            .default_value("2"),
        option("by", "WHAT", "What a row stands for; in the live view, the key b changes it")
            .value_parser(PossibleValuesParser::new(By::ALL.map(By::name)))
            .default_value(By::Process.name()),
        flag("batch", "Print one block an interval, on a terminal too, instead of a live view"),
        option("color", "WHEN", "When the live view uses colours; auto: unless NO_COLOR is set")
            .value_parser(["auto", "always", "never"])
            .default_value("auto"),
    ];
    let shared = trace_options().into_iter().filter(|option| !OF_EVENTS.contains(&option.get_id().as_str()));
    own.into_iter().chain(shared).collect()
}

fn states() -> impl TypedValueParser<Value = u8> {
    PossibleValuesParser::new(state_names()).map(|name| state_number(&name).unwrap_or_default())
}

fn verbose() -> Arg {
    flag("verbose", "Show libbpf's messages and the whole verifier log").short('v')
}

/// The longest `--duration`, ten years: no clock overflows on such a deadline.
const LONGEST: Duration = Duration::from_secs(315_360_000);

fn seconds(text: &str) -> Result<Duration, String> {
    let duration = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration
        .filter(|time| !time.is_zero() && *time <= LONGEST)
        .ok_or_else(|| format!("not a number of seconds greater than 0 and at most {} (ten years)", LONGEST.as_secs()))
}

fn interval(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_millis(100);
    seconds(text)
        .ok()
        .filter(|interval| *interval >= LEAST)
        .ok_or_else(|| format!("not a number of seconds from 0.1 to {}", LONGEST.as_secs()))
}

fn comm(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("a process name has at least one byte".into()),
        length if length < COMM_LEN => Ok(text.into()),
        length => Err(format!("the kernel keeps {} bytes of a process name, and this name has {length}", COMM_LEN - 1)),
    }
}

fn metrics(text: &str) -> Result<At, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        // The kernel's limit, with the NUL at the end (struct sockaddr_un).
        return match path.len() {
            0 => Err("the path is empty".into()),
            1..108 => Ok(At::Unix(path.into())),
            _ => Err("the path of a Unix socket has at most 107 bytes".into()),
        };
    }
    if let Some(number) = text.strip_prefix("fd:") {
        let number = number.parse().ok().filter(|number| *number > 2);
        return number.map(At::Inherited).ok_or_else(|| "not the number of a descriptor above 2".into());
    }
    text.parse()
        .map(At::Tcp)
        .map_err(|_| "neither ADDRESS:PORT (such as 127.0.0.1:9435 or [::1]:9435) nor unix:PATH nor fd:N".into())
}

fn owners(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|owners| (1..=10_000).contains(owners))
        .ok_or_else(|| "not a number from 1 to 10000".into())
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
        .args(under_headings(trace_options()));
    let top = Clap::new("top")
        .about("Show what the connections of each process did in each interval, and what held them up: the worst first")
        .args(under_headings(top_options()));
    let sockets = Clap::new("sockets")
        .about("List every TCP socket of this host and the process that owns it")
        .args([
            flag("json", "Print one JSON object a line"),
            flag("stats", "Print what each connection has counted, and what holds it up: the worst first"),
            flag("explain", "Print the rules of the verdicts too, and the figures of each connection")
                .requires("stats")
                .conflicts_with("json"),
        ])
        .args(under_headings(filter_options()))
        .args(under_headings(vec![
            filter("state", "STATE,...", "Only sockets in these states, such as LISTEN")
                .value_delimiter(',')
                .ignore_case(true)
                .value_parser(states()),
        ]))
        .args([
            option("btf", "FILE", "Relocate against this BTF instead of the kernel's own")
                .value_parser(value_parser!(PathBuf)),
            verbose(),
        ]);
    let btf = Clap::new("btf")
        .about("Print C definitions of kernel types from BTF, or cut BTF down to what xctl needs")
        .args([
            Arg::new("types")
                .value_name("TYPE")
                .num_args(0..)
                .help("A type, such as 'struct sock', or some of its members: 'struct sock: sk_protocol'"),
            option("list", "FILE", "Read the types from this file").value_parser(value_parser!(PathBuf)),
            option("btf", "FILE", "Take this BTF instead of the kernel's own").value_parser(value_parser!(PathBuf)),
            option(
                "min",
                "OUT",
                "Write to OUT the few kilobytes of the BTF that xctl needs, for --btf on kernels without BTF",
            )
            .value_parser(value_parser!(PathBuf))
            .conflicts_with_all(["types", "list"]),
            option(
                "object",
                "FILE",
                "With --min: keep what this BPF object needs, instead of the one inside the binary",
            )
            .value_parser(value_parser!(PathBuf))
            .requires("min")
            .conflicts_with_all(["types", "list"]),
        ]);
    let doctor = Clap::new("doctor").about("Try what this host offers, and say what is missing").args([
        flag("json", "Print one JSON document"),
        option("btf", "FILE", "Relocate against this BTF instead of the kernel's own")
            .value_parser(value_parser!(PathBuf)),
    ]);
    let inspect = Clap::new("inspect")
        .about("Show the contents of a BPF object and how it would be relocated; needs no privilege")
        .args([
            Arg::new("object")
                .value_name("OBJECT")
                .value_parser(value_parser!(PathBuf))
                .help("The object file; by default the one inside the binary"),
            option("btf", "FILE", "Resolve against this BTF instead of the kernel's own")
                .value_parser(value_parser!(PathBuf)),
            flag("json", "Print one JSON document"),
        ]);
    let report = Clap::new("report")
        .about("Print the summary and the ledger of runs from the JSON lines that they printed; needs no privilege")
        .arg(
            Arg::new("files")
                .value_name("FILE")
                .num_args(1..)
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("Output of 'xctl trace --json' or 'xctl top --json'; - is standard input"),
        )
        .arg(flag("svg", "Print one picture (SVG) of the last run of 'xctl top', instead"));
    Clap::new("xctl")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Which process is really behind TCP retransmissions")
        .args_conflicts_with_subcommands(true)
        .args(under_headings(trace_options()))
        .subcommands([trace, top, sockets, report, inspect, doctor, btf])
        .after_help(
            "Exit codes: 0 done; 1 a failure while running; 2 wrong usage; 3 this host cannot run it; 4 the object file \
             was refused; 5 --verify found a difference",
        )
}
