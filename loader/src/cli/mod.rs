//! The command line: arguments in, plain values out. Parsing validates, and asks neither kernel nor disk.

mod definition;
mod values;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::ArgMatches;

use crate::error::Exit;
use crate::ledger::group::By;
use crate::model::events::FILTER_VALUES;
use crate::model::network::Network;
use crate::model::tcp::state::{NEW_SYN_RECV, SYN_RECV};
use crate::trace::hooks::Attach;
use crate::trace::seed::Source;
use definition::FILTERS;
pub use definition::clap;
pub use values::*;

/// A command with its options.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one value a run")]
pub enum Command {
    /// `xctl trace`
    Trace(TraceOptions),
    /// `xctl sockets`
    Sockets(SocketsOptions),
    /// `xctl btf`
    Btf(BtfOptions),
    /// `xctl report`, with the files to read.
    Report {
        /// The files with JSON lines.
        files: Vec<PathBuf>,
        /// Draw a picture.
        svg: bool,
    },
    /// `xctl doctor`
    Doctor(DoctorOptions),
    /// `xctl inspect`
    Inspect(InspectOptions),
}

/// Parse this process's arguments. Wrong usage, `--help` and `--version` end the process.
///
/// # Errors
/// [`Exit::Usage`] if options contradict each other.
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
        Some((name, mut matches)) if name == "sockets" => Ok(Command::Sockets(SocketsOptions {
            json: matches.get_flag("json"),
            stats: matches.get_flag("stats"),
            explain: matches.get_flag("explain"),
            filters: filters(&mut matches)?,
            btf: matches.remove_one("btf"),
            verbose: matches.get_flag("verbose"),
        })),
        Some((name, mut matches)) if name == "doctor" => {
            Ok(Command::Doctor(DoctorOptions { json: matches.get_flag("json"), btf: matches.remove_one("btf") }))
        }
        Some((name, mut matches)) if name == "inspect" => Ok(Command::Inspect(InspectOptions {
            object: matches.remove_one("object"),
            btf: matches.remove_one("btf"),
            json: matches.get_flag("json"),
        })),
        Some((name, mut matches)) if name == "report" => {
            let files = matches.remove_many("files").into_iter().flatten().collect();
            Ok(Command::Report { files, svg: matches.get_flag("svg") })
        }
        Some((name, mut matches)) if name == "btf" => Ok(Command::Btf(BtfOptions {
            types: matches.remove_many("types").into_iter().flatten().collect(),
            list: matches.remove_one("list"),
            btf: matches.remove_one("btf"),
            min: matches.remove_one("min"),
            object: matches.remove_one("object"),
        })),
        Some((name, matches)) if name == "top" => {
            let retransmits = Events { retransmits: true, ..Events::default() };
            trace(matches).map(|options| Command::Trace(TraceOptions { events: retransmits, ..options }))
        }
        Some((_, matches)) => trace(matches).map(Command::Trace),
    }
}

fn filters(matches: &mut ArgMatches) -> Result<Filters> {
    if let Some(name) =
        FILTERS.iter().find(|name| matches.get_raw(name).is_some_and(|values| values.len() > FILTER_VALUES))
    {
        return Err(anyhow!("--{name} takes at most {FILTER_VALUES} values").context(Exit::Usage));
    }
    let family = match (matches.get_flag("4"), matches.get_flag("6")) {
        (true, _) => Some(4),
        (_, true) => Some(6),
        _ => None,
    };
    let networks: Vec<Network> = many(matches, "addr");
    if let Some(family) = family
        && !networks.is_empty()
        && networks.iter().all(|network| network.family != u64::from(family))
    {
        return Err(anyhow!("no network of --addr has addresses of IPv{family}").context(Exit::Usage));
    }
    let mut states: Vec<u8> = many(matches, "state");
    if states.contains(&SYN_RECV) {
        states.push(NEW_SYN_RECV);
    }
    Ok(Filters {
        pids: many(matches, "pid"),
        comms: many(matches, "comm"),
        ports: many(matches, "port"),
        networks,
        netns: many(matches, "netns"),
        cgroups: many(matches, "cgroup"),
        family,
        kinds: many(matches, "kind"),
        states,
    })
}

/// The values of an option, which the command may not have.
fn many<T: Clone + Send + Sync + 'static>(matches: &mut ArgMatches, option: &str) -> Vec<T> {
    matches.try_remove_many(option).ok().flatten().into_iter().flatten().collect()
}

/// A flag, which the command may not have.
fn flag(matches: &ArgMatches, name: &str) -> bool {
    matches.try_get_one(name).ok().flatten().copied().unwrap_or(false)
}

/// The options of `xctl trace`, and those that `xctl top` shares with it.
fn trace(mut matches: ArgMatches) -> Result<TraceOptions> {
    let text = |matches: &mut ArgMatches, name| matches.remove_one::<String>(name).unwrap_or_default();
    let filters = filters(&mut matches)?;
    let named: Vec<String> = many(&mut matches, "events");
    let prints = |event: &str| named.iter().any(|name| name == event || name == "all");
    let events = Events {
        retransmits: prints("retransmit"),
        sends: prints("send"),
        cuts: prints("cut"),
        connections: prints("connection"),
    };
    if !named.is_empty() && !events.retransmits && !filters.kinds.is_empty() {
        let why = format!("--kind selects retransmits, and --events {} prints no retransmits", named.join(","));
        return Err(anyhow!(why).context(Exit::Usage));
    }
    let record: Option<PathBuf> = matches.remove_one("record");
    if record.as_deref() == Some(Path::new("-")) {
        let why = "--record cannot write to standard output, which has the events: for a file of the name -, write --record ./-";
        return Err(anyhow!(why).context(Exit::Usage));
    }
    Ok(TraceOptions {
        json: flag(&matches, "json"),
        current: flag(&matches, "current"),
        attach: match text(&mut matches, "attach").as_str() {
            "kprobe" => Attach::Kprobe,
            "tracepoint" => Attach::Tracepoint,
            "fentry" | "fentry+tracepoint" => Attach::Fentry,
            "kprobe+tracepoint" => Attach::Mixed,
            "lsm" | "lsm+kprobe+tracepoint" => Attach::Lsm,
            _ => Attach::Auto,
        },
        events,
        by: {
            let named: Option<String> = matches.try_remove_one("by").ok().flatten();
            By::ALL.into_iter().find(|by| Some(by.name()) == named.as_deref()).unwrap_or_default()
        },
        colours: match matches.try_remove_one::<String>("color").ok().flatten().as_deref() {
            Some("always") => Some(true),
            Some("never") => Some(false),
            _ => None,
        },
        batch: flag(&matches, "batch"),
        interval: matches.try_remove_one("interval").ok().flatten(),
        duration: matches.remove_one("duration"),
        count: matches.try_remove_one("count").ok().flatten(),
        filters,
        max_sockets: matches.remove_one("max-sockets"),
        perf_pages: matches.remove_one("perf-pages").unwrap_or(PERF_PAGES),
        object: matches.remove_one("object"),
        btf: matches.remove_one("btf"),
        seed: match text(&mut matches, "seed").as_str() {
            "iterator" => Some(Source::Iterator),
            "proc" => Some(Source::Proc),
            "none" => Some(Source::None),
            _ => None,
        },
        reader: flag(&matches, "reader"),
        drops: flag(&matches, "drops"),
        metrics: matches.try_remove_one("metrics").ok().flatten(),
        metrics_file: matches.try_remove_one("metrics-file").ok().flatten(),
        metrics_owners: matches.try_remove_one("metrics-owners").ok().flatten().unwrap_or(OWNERS),
        verify: flag(&matches, "verify"),
        dry_run: flag(&matches, "dry-run"),
        record,
        strict: flag(&matches, "strict"),
        user: matches.remove_one("user"),
        no_sandbox: flag(&matches, "no-sandbox"),
        verbose: flag(&matches, "verbose"),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kernel::server::At;
    use crate::model::events::Kind;

    fn trace(arguments: &[&str]) -> TraceOptions {
        match parse_from(["xctl"].iter().chain(arguments)).unwrap() {
            Command::Trace(options) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_clap_definition_is_consistent() {
        clap().debug_assert();
        let of = |name| clap().find_subcommand(name).unwrap().clone();
        for (name, command) in [("xctl", clap()), ("trace", of("trace")), ("top", of("top"))] {
            let without: Vec<_> =
                command.get_arguments().filter(|option| option.get_help_heading().is_none()).collect();
            assert!(without.is_empty(), "{name}: below no heading: {without:?}");
        }
    }

    #[test]
    fn trace_is_the_default_command() {
        assert!(trace(&["--json"]).json);
        assert!(trace(&["trace", "--json"]).json);
        assert_eq!(trace(&["--max-sockets", "9"]).max_sockets, Some(9));
    }

    #[test]
    fn top_has_its_interval_and_takes_no_events() {
        let options = trace(&["top", "--json", "--port", "443", "--attach", "kprobe"]);
        assert_eq!((options.interval, &*options.filters.ports), (Some(Duration::from_secs(2)), &[443][..]));
        assert_eq!((options.json, options.attach, options.verify, options.count), (true, Attach::Kprobe, false, None));
        assert_eq!(options.events, Events { retransmits: true, ..Events::default() });
        assert_eq!(trace(&["top", "--interval", "0.5"]).interval, Some(Duration::from_millis(500)));
        assert_eq!(trace(&["--json"]).interval, None);
    }

    #[test]
    fn attach_takes_every_name_that_ready_prints() {
        for (name, set) in
            [("fentry", Attach::Fentry), ("fentry+tracepoint", Attach::Fentry), ("kprobe", Attach::Kprobe)]
        {
            assert_eq!(trace(&["--attach", name]).attach, set);
        }
        assert_eq!(trace(&["--attach", "kprobe+tracepoint"]).attach, Attach::Mixed);
        for name in ["lsm", "lsm+kprobe+tracepoint"] {
            assert_eq!(trace(&["--attach", name]).attach, Attach::Lsm);
        }
    }

    #[test]
    fn values_are_checked() {
        for wrong in [
            &["--perf-pages", "3"][..],
            &["--count", "0"],
            &["--duration", "0"],
            &["--duration", "-1"],
            &["--duration", "inf"],
            &["--duration", "315360001"],
            &["--kind", "fast,slow"],
            &["--comm", "sixteen-bytes-xx"],
            &["-4", "-6"],
            &["--port", "65536"],
            &["--attach", "guess"],
            &["--no-such-option"],
            &["top", "--interval", "0.09"],
            &["top", "--interval", "2s"],
            &["top", "--events", "send"],
        ] {
            let error = parse_from(["xctl"].iter().chain(wrong)).unwrap_err();
            assert_eq!(Exit::code_of(&error), 2, "{wrong:?}: {error:#}");
        }
        let error = parse_from(["xctl", "--duration", "1e9"]).unwrap_err();
        assert!(format!("{error:#}").contains("at most 315360000 (ten years)"), "{error:#}");
        assert_eq!(trace(&["--duration", "315360000"]).duration, Some(Duration::from_secs(315_360_000)));
    }

    #[test]
    fn metrics_are_told_at_an_address_or_a_socket() {
        let at = |text| trace(&["--metrics", text]).metrics.unwrap();
        assert_eq!(at("127.0.0.1:9435"), At::Tcp("127.0.0.1:9435".parse().unwrap()));
        assert_eq!(at("[::]:1"), At::Tcp("[::]:1".parse().unwrap()));
        assert_eq!(at("unix:/run/x"), At::Unix("/run/x".into()));
        assert_eq!(at("fd:3"), At::Inherited(3));
        let long = format!("unix:{}", "x".repeat(108));
        for wrong in ["9435", "localhost:9435", ":9435", "unix:", &long, "fd:2", "fd:x", "fd:-1"] {
            assert!(parse_from(["xctl", "--metrics", wrong]).is_err(), "{wrong}");
        }
        assert_eq!(trace(&[]).metrics_owners, 200);
        assert!(parse_from(["xctl", "--metrics-owners", "0"]).is_err());
        assert!(parse_from(["xctl", "top", "--metrics", "127.0.0.1:1"]).is_err());
    }

    #[test]
    fn filters_add_up() {
        let filters = trace(&["-6", "--kind", "rto,syn", "--port", "443", "--netns", "17"]).filters;
        assert_eq!(filters.family, Some(6));
        assert_eq!(filters.kinds, [Kind::Rto, Kind::Syn]);
        assert_eq!((filters.ports, filters.netns), (vec![443], vec!["17".to_owned()]));
    }

    #[test]
    fn a_filter_may_have_several_values() {
        let all = ["--pid", "1,2", "--pid", "3", "--comm", "a,b", "--comm", "c", "--addr", "10.0.0.0/8,::1"];
        let filters = trace(&all).filters;
        assert_eq!((filters.pids, filters.networks.len()), (vec![1, 2, 3], 2));
        assert_eq!(filters.comms, ["a,b", "c"], "a name may hold a comma");
        let sockets = parse_from(["xctl", "sockets", "--state", "listen,ESTABLISHED"]).unwrap();
        assert!(matches!(sockets, Command::Sockets(options) if options.filters.states == [10, 1]));
        assert_eq!(trace(&["--port", "1,2,3,4,5,6,7,8"]).filters.ports.len(), 8);
        for wrong in [
            vec!["--port", "1,2,3,4,5,6,7,8,9"],
            vec!["--addr", "10.0.0.0/33"],
            vec!["-6", "--addr", "10.0.0.0/8"],
            vec!["sockets", "--state", "open"],
        ] {
            let error = parse_from(["xctl"].iter().chain(&wrong)).unwrap_err();
            assert_eq!(Exit::code_of(&error), 2, "{wrong:?}: {error:#}");
        }
    }
}
