//! Connections with their figures and verdicts as a table, the worst first.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::io::{self, Write};

use super::names::{NETNS, from_port, name, netns, pid};
use super::sockets::{addresses, are_of_several_netns};
use super::stats::Figures;
use super::width::{fitted, padded, shorten};
use crate::ledger::counters::{Counters, Rtt};
use crate::ledger::figures::{Ledger, Listener, ZeroWindow};
use crate::ledger::verdict::{Check, Verdict, Word};
use crate::model::reading::ReadingOf;
use crate::trace::seed::listing::{Listed, Listing};
use bpf_object::sort;

/// The width of a table that does not go to a terminal, without a column of network namespaces.
pub(super) const WIDTH: usize = 120;

/// A row of the table.
struct Row<'a> {
    listed: &'a Listed,
    /// None: a listener.
    figures: Option<Figures>,
    said: String,
}

impl<'a> Row<'a> {
    /// The row of a socket; none: the socket counts nothing.
    fn new(listed: &'a Listed, hz: u64) -> Option<Self> {
        let reading = listed.reading.as_deref()?;
        let figures = Figures::new(listed.socket.state, reading, hz);
        let said = match (reading.of(), &figures) {
            (ReadingOf::Listener, _) => {
                let (dropped, queue, backlog) = (reading.drops.into(), reading.queue, reading.backlog);
                say_listener(&Listener { dropped, queue, backlog })
            }
            (_, Some(Figures { counters, rtt, verdict: Some(verdict), .. })) => say(counters, *rtt, verdict),
            (_, Some(_)) => "not connected yet".into(),
            _ => return None,
        };
        Some(Self { listed, figures, said })
    }

    /// The place of the row ([`place`]). Listeners that dropped nothing come last.
    fn order(&self) -> impl Ord + use<> {
        match &self.figures {
            Some(Figures { counters, verdict, .. }) => place(counters, verdict.as_ref(), 0),
            None => match self.listed.reading.as_deref().map_or(0, |reading| reading.drops.into()) {
                0 => (4, Reverse(0)),
                dropped => place(&Counters::ZERO, None, dropped),
            },
        }
    }
}

/// The place of a row in a table. The worst come first: listeners that dropped connections; what something holds up, by the time
/// that this took; what only the path holds up; and the others.
pub(super) fn place(counters: &Counters, verdict: Option<&Verdict>, dropped: u64) -> (u8, Reverse<u64>) {
    let words = verdict.map_or(&[][..], |verdict| &verdict.words);
    let free_us = counters.busy_us.saturating_sub(counters.rwnd_limited_us + counters.sndbuf_limited_us);
    match words {
        _ if dropped > 0 => (0, Reverse(dropped)),
        [Word::Receiver, ..] => (1, Reverse(counters.rwnd_limited_us)),
        [Word::Sndbuf, ..] => (1, Reverse(counters.sndbuf_limited_us)),
        [Word::Network, Word::Path] => (2, Reverse(free_us)),
        [Word::Network, ..] => (1, Reverse(free_us)),
        _ => (3, Reverse(counters.busy_us)),
    }
}

/// The drops and the accept queue of a listener, as text.
pub(super) fn say_listener(listener: &Listener) -> String {
    let Listener { dropped, queue, backlog } = listener;
    format!("listens: {dropped} dropped, {queue} of {backlog} wait")
}

/// Texts about a process that accepts or reads too slowly. A process that only listens has a text about its listeners, even if
/// they are quiet.
pub(super) fn say_slowness(ledger: &Ledger) -> Vec<String> {
    let worth_saying = |listener: &Listener| listener.is_too_slow() || ledger.judged.is_none();
    let accepts = ledger.listener.filter(worth_saying).map(|listener| say_listener(&listener));
    let ZeroWindow { times, us } = ledger.zero_window;
    let shut = times.zip(us).filter(|shut| *shut != (0, 0));
    let often = |times| match times {
        0 => "since before".to_owned(),
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    let reads = shut.map(|(times, us)| format!("reads slowly: window shut {}, {}", time(us), often(times)));
    accepts.into_iter().chain(reads).collect()
}

/// The verdict in a few words, with the decisive figures.
pub(super) fn say(counters: &Counters, rtt: Rtt, verdict: &Verdict) -> String {
    let of_busy = |us| share(us, counters.busy_us);
    let reason = |word: &Word| match word {
        Word::Idle => "idle".into(),
        Word::Receiver => format!("slow receiver, {} of busy time", of_busy(counters.rwnd_limited_us)),
        Word::Sndbuf => format!("small send buffer, {} of busy time", of_busy(counters.sndbuf_limited_us)),
        Word::Network => "network:".into(),
        Word::Loss => format!("loss {}", share(counters.bytes_retrans, counters.bytes_sent)),
        Word::Needless => format!("needless resends {}", share(counters.bytes_retrans, counters.bytes_sent)),
        Word::Ecn => format!("marks {}", share(counters.delivered_ce, counters.delivered)),
        Word::Local => format!("dropped here {}", bytes(counters.local_bytes.unwrap_or(0))),
        Word::Queue => {
            let above = rtt.srtt_us.unwrap_or(0).saturating_sub(rtt.min_us.unwrap_or(0));
            format!("queue +{}", time(above))
        }
        Word::Path => "nothing wrong seen".into(),
    };
    let said = verdict.words.iter().map(reason).collect::<Vec<_>>().join(", ");
    said.replacen(":, ", ": ", 1)
}

/// The meaning of a verdict for a person who is no kernel developer.
fn meaning(word: Word) -> (&'static str, &'static str) {
    match word {
        Word::Idle => ("idle", "had nothing to send most of the time"),
        Word::Receiver => ("slow receiver", "the other end does not read fast enough: its receive window was full"),
        Word::Sndbuf => ("small send buffer", "the process could not hand over enough at a time: SO_SNDBUF, tcp_wmem"),
        Word::Network => ("network", "neither end, but the network between them, sets the pace"),
        Word::Loss => ("loss", "the share of the bytes that had to be sent again, since segments got lost"),
        Word::Needless => {
            ("needless resends", "bytes that were sent again, most of which had arrived: reordering or delay")
        }
        Word::Ecn => ("marks", "the share of segments that routers marked (ECN) to announce congestion"),
        Word::Local => ("dropped here", "bytes that a queue of this host dropped before they left: tc -s qdisc"),
        Word::Queue => ("queue", "the time that segments wait in a queue of the network: RTT above its least"),
        Word::Path => ("nothing wrong seen", "the delay of the path and the congestion window set the pace"),
    }
}

/// Part of a whole, in per cent.
pub(super) fn share(part: u64, whole: u64) -> String {
    let percent = if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    if percent >= 9.95 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

pub(super) fn time(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..10_000 => format!("{:.1} ms", us as f64 / 1e3),
        10_000..10_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        _ => format!("{:.0} s", us as f64 / 1e6),
    }
}

pub(super) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return if unit == "B" || value >= 99.5 {
                format!("{value:.0} {unit}")
            } else {
                format!("{value:.1} {unit}")
            };
        }
        value /= 1e3;
    }
    format!("{value:.1} TB")
}

/// Print a table of connections and listeners, the worst first, and the meaning of each verdict in it. The kernel has `hz`
/// jiffies in a second. `name_of` tells the name of a network namespace.
///
/// # Errors
/// If the writer refuses the bytes.
pub fn text(
    out: &mut impl Write,
    listing: &Listing,
    terminal: Option<usize>,
    hz: u64,
    explain: bool,
    mut name_of: impl FnMut(u32) -> Option<String>,
) -> io::Result<()> {
    /// The width of the columns before the addresses.
    const BEFORE: usize = 24;
    /// The width of the columns between the addresses and the verdict, with the gaps.
    const BETWEEN: usize = 30;
    if explain {
        for word in Word::ALL {
            writeln!(out, "{:<9} {}", word.name(), word.rule())?;
        }
        writeln!(out)?;
    }
    let mut rows: Vec<_> = listing.sockets.iter().filter_map(|listed| Row::new(listed, hz)).collect();
    sort::by_key(&mut rows, Row::order);
    let ends = |row: &Row<'_>| {
        let (local, remote) = addresses(&row.listed.socket);
        format!("{local} -> {remote}")
    };
    let several = are_of_several_netns(listing);
    let title = if several { padded("NETNS", NETNS) + " " } else { String::new() };
    let besides = BEFORE + title.len() + BETWEEN;
    let line = terminal.unwrap_or(WIDTH + title.len());
    // On a narrow terminal a row has two lines.
    let is_narrow = line < WIDTH + title.len();
    // Addresses get what the verdicts leave. A verdict gets at least a third of the line.
    let said = rows.iter().map(|row| row.said.len()).max().unwrap_or(0).min(line / 3);
    let room = if is_narrow { line.saturating_sub(BEFORE + title.len()) } else { line - besides - said };
    let least = "LOCAL -> REMOTE".len();
    let width = rows.iter().map(|row| ends(row).len()).max().unwrap_or(0).clamp(least, room.max(least));
    let (between, indent, aligned) = if is_narrow { ("\n", 7, 0) } else { ("", 0, width) };
    writeln!(
        out,
        "{:>7} {:<15} {title}{:<aligned$}{between}{:indent$} {:>8} {:>9} {:>8}  VERDICT",
        "PID", "COMM", "LOCAL -> REMOTE", "", "RTT", "SENT", "RECEIVED"
    )?;
    let mut words = BTreeSet::new();
    for row in &rows {
        let socket = &row.listed.socket;
        let owner = shorten(&name(&socket.owner, false, listing.holders.of(socket.owner.holders)), 15);
        let (mut rtt, mut sent, mut received) = ("-".to_owned(), "-".to_owned(), "-".to_owned());
        if let Some(Figures { counters, rtt: measured, verdict, .. }) = &row.figures {
            rtt = measured.srtt_us.map_or(rtt, time);
            (sent, received) = (bytes(counters.bytes_sent), bytes(counters.bytes_received));
            words.extend(verdict.iter().flat_map(|verdict| &verdict.words).copied());
        }
        let netns = match several {
            true => netns(socket.flow.netns, name_of(socket.flow.netns).as_deref()) + " ",
            false => String::new(),
        };
        let (pid, owner, mut ends) = (pid(&socket.owner), padded(&owner, 15), ends(row));
        if ends.len() > width && socket.flow.dport != 0 {
            ends = from_port(&socket.flow);
        }
        let ends = shorten(&ends, width);
        write!(out, "{pid:>7} {owner} {netns}{ends:<aligned$}{between}")?;
        let figures = format!("{:indent$} {rtt:>8} {sent:>9} {received:>8}  ", "");
        let verdict = if is_narrow { &row.said } else { &shorten(&row.said, line - besides - width) };
        fitted(out, terminal.filter(|_| is_narrow), indent + 1, &figures, &[verdict])?;
        if explain && let Some(Figures { verdict: Some(verdict), .. }) = &row.figures {
            explained(out, verdict)?;
        }
    }
    let hidden = listing.sockets.len() - rows.len();
    if hidden > 0 {
        writeln!(out, "and {hidden} sockets that count nothing: half-open or in TIME_WAIT")?;
    }
    for (name, meaning) in words.into_iter().map(meaning) {
        fitted(out, terminal, 4, &format!("  {name:<18}  "), &[meaning])?;
    }
    Ok(())
}

/// The comparisons behind a verdict.
fn explained(out: &mut impl Write, verdict: &Verdict) -> io::Result<()> {
    for Check { what, is, from, holds } in &verdict.checks {
        let is = is.map_or_else(|| "not known".to_owned(), number);
        let holds = if *holds { "yes" } else { "no" };
        writeln!(out, "{:>24}{what:<52} {is:>12}  from {:<8} {holds}", "", number(*from))?;
    }
    Ok(())
}

/// A number with as many digits as it needs.
fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.4}") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::model::events::{Flow, How, Owner, SocketRecord};
    use crate::model::reading::Reading;
    use crate::output::stats::Stats;
    use serde_json::Value;

    fn listed(tgid: u32, state: u8, reading: Reading) -> Listed {
        let (saddr, daddr) = ([0x20; 16], [0x21; 16]);
        let flow = Flow { saddr, daddr, sport: 65535, dport: 65534, ..Flow::default() };
        let owner = Owner { tgid, how: How::Seed as u8, comm: [b'm'; 16], ..Owner::default() };
        let socket = SocketRecord { flow, owner, state, ..SocketRecord::default() };
        Listed { socket, reading: Some(Box::new(reading)) }
    }

    fn connection() -> Reading {
        let of = ReadingOf::Connection as u8;
        Reading { of, bytes_sent: 1_000_000, bytes_acked: 1_000_000, free: 1000, locked: 1, ..Reading::default() }
    }

    /// Everything that a table can have, with the longest addresses.
    fn listing() -> Listing {
        let lossy = Reading { bytes_retrans: 31_000, total_retrans: 30, free: 900, ..connection() };
        let long = Reading {
            delivered: 9,
            delivered_ce: 9,
            bytes_sent: 2_000_000_000_000,
            srtt_us: 8 << 20,
            free: 950,
            ..lossy
        };
        let waits = Reading { rwnd_limited: 5000, ..connection() };
        let listener = Reading { of: ReadingOf::Listener as u8, drops: 7, queue: 3, backlog: 5, ..Reading::default() };
        let sockets = vec![
            listed(1, 1, Reading { free: 0, ..connection() }),
            listed(2, 1, connection()),
            listed(3, 1, lossy),
            listed(4, 1, long),
            listed(5, 1, waits),
            listed(6, 10, listener),
            listed(7, 2, connection()),
            listed(8, 6, Reading::default()),
        ];
        Listing { sockets, ..Listing::default() }
    }

    #[test]
    fn the_worst_come_first_and_no_line_is_too_long() {
        let mut out = Vec::new();
        text(&mut out, &listing(), None, 250, true, |_| None).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        let mut out = Vec::new();
        super::text(&mut out, &listing(), Some(80), 250, false, |_| None).unwrap();
        let narrow = String::from_utf8(out).unwrap();
        assert!(narrow.lines().all(|line| line.chars().count() <= 80 && !line.ends_with(' ')), "{narrow}");
        assert!(narrow.contains(" :65535 -> ") && narrow.contains("slow receiver, 83 % of busy time\n"), "{narrow}");
        let pids: Vec<u32> = text.lines().filter_map(|line| line.get(..7)?.trim().parse().ok()).collect();
        assert_eq!(pids, [6, 5, 4, 3, 2, 7, 1], "{text}");
        for said in
            ["loss 3.1 %", "slow receiver, 83 % of busy time", "listens: 7 dropped, 3 of 5 wait", "and 1 sockets"]
        {
            assert!(text.contains(said), "{said}: {text}");
        }
    }

    #[test]
    fn slow_processes_are_named_and_quiet_ones_are_not() {
        let listener = |dropped, queue| Some(Listener { dropped, queue, backlog: 4 });
        let said = |listener, times, us, judged| {
            let zero_window = ZeroWindow { times: Some(times), us: Some(us) };
            let mut ledger = Ledger::default();
            (ledger.listener, ledger.zero_window, ledger.judged) = (listener, zero_window, judged);
            say_slowness(&ledger)
        };
        let judged = || Some(Verdict::default());
        assert_eq!(said(listener(0, 4), 0, 0, judged()), [""; 0]);
        assert_eq!(said(listener(0, 5), 0, 0, judged()), ["listens: 0 dropped, 5 of 4 wait"]);
        assert_eq!(said(listener(7, 0), 0, 2_000_000, judged()).len(), 2);
        assert_eq!(said(None, 0, 2_000_000, judged()), ["reads slowly: window shut 2000 ms, since before"]);
        assert_eq!(said(listener(0, 1), 0, 0, None), ["listens: 0 dropped, 1 of 4 wait"], "it only listens");
        let longest = Some(Listener { dropped: u32::MAX.into(), queue: 65_536, backlog: 65_535 });
        let columns = 70; // of the table in text.rs
        let too_long = |line: &String| columns + line.len() > WIDTH;
        assert!(!said(longest, 99_999, 86_400_000_000, judged()).iter().any(too_long));
    }

    #[test]
    fn what_a_snapshot_cannot_know_is_null() {
        let fields = |listed: &Listed| {
            let stats =
                Stats::new(&listed.socket.owner, listed.socket.state, listed.reading.as_ref().unwrap(), 250, None);
            serde_json::to_value(stats).unwrap()
        };
        let sockets = listing().sockets;
        let lossy = fields(&sockets[2]);
        assert_eq!(lossy["verdict"], serde_json::json!(["network", "loss"]));
        assert_eq!(
            lossy["because"][1],
            serde_json::json!({"what": "bytes_retrans/bytes_sent", "is": 0.031, "from": 0.01})
        );
        assert_eq!(lossy["tcp"]["busy_us"], 3_600_000);
        let null = ["/observed_us", "/tcp/total_rto", "/rtt/srtt_us", "/cuts/recovery", "/zero_window/us", "/listener"];
        for path in null {
            assert_eq!(lossy.pointer(path), Some(&Value::Null), "{path}: {lossy}");
        }
        let listener = fields(&sockets[5]);
        assert_eq!(listener["listener"], serde_json::json!({"dropped": 7, "queue": 3, "backlog": 5}));
        for listed in [&sockets[5], &sockets[7]] {
            assert!(fields(listed)["tcp"].is_null() && fields(listed)["verdict"].is_null());
        }
        let connecting = fields(&sockets[6]);
        assert!(connecting["verdict"].is_null() && connecting["now"]["last_sent_us"].is_null(), "{connecting}");
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([0, 999, 9_999, 10_000, 10_000_000].map(time), ["0 us", "999 us", "10.0 ms", "10 ms", "10 s"]);
        assert_eq!([999, 1000, 99_500, 999_600].map(bytes), ["999 B", "1.0 kB", "100 kB", "1.0 MB"]);
        assert_eq!(
            [(1, 1000), (995, 10_000), (1, 0)].map(|(part, whole)| share(part, whole)),
            ["0.1 %", "10 %", "0.0 %"]
        );
    }
}
