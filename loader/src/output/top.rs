//! One interval of `xctl top` as a block of text.

use std::io::{self, Write};

use super::Interval;
use super::connections::{WIDTH, bytes, say as say_verdict, say_slowness, share, time};
use super::names::{named, printable};
use super::width::{fitted, padded, shorten, width};
use crate::kernel::calendar::Calendar;
use crate::ledger::counters::Rtt;
use crate::ledger::figures::Ledger;
use crate::ledger::group::{By, Group};
use crate::ledger::summary::Process;
use crate::model::events::Kind;
use crate::model::lost::Lost;

/// The number of rows in a block.
const WORST: usize = 20;

/// The width of the columns that name a process, and of the column that names something else.
const NAMED: (usize, usize) = (24, 40);

/// The width of the columns between these and the verdict.
const FIGURES: usize = 55;

/// The titles of the columns that name a row, in this width.
pub(super) fn title(by: By, width: usize) -> String {
    match by {
        By::Process => format!("{:>7} {:<w$}", "PID", "COMM", w = width.saturating_sub(8)),
        By::Connection => format!("{:>7} {:<w$}", "PID", "COMM :PORT REMOTE", w = width.saturating_sub(8)),
        By::Remote => format!("{:<width$}", "REMOTE"),
        By::Cgroup => format!("{:<width$}", "CGROUP"),
    }
}

/// Rows of this kind, as a word for several.
#[must_use]
pub fn several(by: By) -> &'static str {
    match by {
        By::Process => "processes",
        By::Connection => "connections",
        By::Remote => "remote addresses",
        By::Cgroup => "cgroups",
    }
}

/// What was sent again in an interval, and what was lost so far; none: nothing that is known.
pub(super) fn heading(calendar: &mut Calendar, interval: &Interval) -> (String, Option<String>) {
    let Interval { summary, took_us, .. } = interval;
    let seconds = *took_us as f64 / 1e6;
    let at = calendar.rfc3339(interval.realtime_ns).get(11..19).unwrap_or_default();
    let kinds = Kind::ALL.iter().zip(summary.kinds).filter(|(_, segs)| *segs > 0);
    let kinds: Vec<_> = kinds.map(|(kind, segs)| format!("{} {segs}", kind.name())).collect();
    let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
    let rate = summary.segs as f64 / seconds.max(1e-6);
    let again = format!("{at}  {seconds:.1} s: {} segments sent again, {rate:.1}/s{kinds}", summary.segs);
    (again, lost(&summary.lost))
}

/// The losses so far; none: no loss is known.
pub(super) fn lost(lost: &Lost) -> Option<String> {
    let lost = lost.entries().into_iter().filter(|(_, count)| count.is_some_and(|count| count > 0));
    let lost: Vec<_> = lost.map(|(name, count)| format!("{name} {}", count.unwrap_or(0))).collect();
    (!lost.is_empty()).then(|| format!("lost so far: {}", lost.join(", ")))
}

/// The columns of a row as text.
pub(super) struct Cells {
    pid: Option<String>,
    name: String,
    /// The network namespace of a connection, if a reader must tell several apart.
    netns: String,
    /// Open and ended connections, bytes sent and received a second, the share that was sent again, and the RTT. Blocks leave out the
    /// rest: how far the RTT is above its least, and the shares of the busy time that the receiver and the send buffer limited. None:
    /// the ledger of this interval has no such row. The process only repeated SYN-ACKs, or there is no ledger.
    pub(super) figures: Option<[String; 9]>,
    /// The verdict.
    pub(super) said: String,
}

impl Cells {
    /// The verdict in this width. One that does not fit says the cause alone.
    pub(super) fn verdict(&self, width: usize) -> String {
        let cause = self.said.strip_prefix("network: ").filter(|_| self.said.len() > width);
        shorten(cause.unwrap_or(&self.said), width)
    }

    /// The name of the row, in this width, and the network namespace if both fit.
    pub(super) fn named(&self, columns: usize) -> String {
        let before = self.pid.as_ref().map_or(String::new(), |pid| format!("{pid:>7} "));
        let room = columns.saturating_sub(before.len());
        let mut name = shorten(&self.name, room);
        if width(&name) + width(&self.netns) <= room {
            name += &self.netns;
        }
        before + &padded(&name, room)
    }

    /// The columns of a row in an interval of this length.
    pub(super) fn new(process: &Process, by: By, took_us: u64, several_netns: bool) -> Self {
        let (pid, name) = named(process, by);
        let netns = match process.group {
            Some(Group::Connection(flow, _)) if several_netns => {
                format!(" ({})", process.netns_name.as_deref().map_or_else(|| flow.netns.to_string(), printable))
            }
            _ => String::new(),
        };
        let Ledger { connections: Some(fates), tcp: Some(tcp), judged, rtt, .. } = &process.ledger else {
            return Self { pid, name, netns, figures: None, said: format!("{} segments sent again", process.segs) };
        };
        let seconds = took_us as f64 / 1e6;
        let rate = |count: u64| bytes((count as f64 / seconds.max(1e-6)) as u64);
        let rtt = rtt.as_ref().map_or_else(Rtt::default, |worst| worst.rtt);
        let shown = |us: Option<u64>| us.map_or_else(|| "-".to_owned(), time);
        let above = rtt.srtt_us.zip(rtt.min_us).map(|(srtt, least)| srtt.saturating_sub(least));
        let again = share(tcp.bytes_retrans, tcp.bytes_sent);
        let (open, ended) = (fates.open.to_string(), fates.ended.to_string());
        let (sent, received) = (rate(tcp.bytes_sent), rate(tcp.bytes_received));
        let [rwnd, sndbuf] = [tcp.rwnd_limited_us, tcp.sndbuf_limited_us].map(|us| share(us, tcp.busy_us));
        let figures = Some([open, ended, sent, received, again, shown(rtt.srtt_us), shown(above), rwnd, sndbuf]);
        let mut said = say_slowness(&process.ledger);
        said.extend(judged.as_ref().map(|verdict| say_verdict(tcp, rtt, verdict)));
        Self { pid, name, netns, figures, said: said.join("; ") }
    }
}

/// Print a block: the worst rows of the interval first.
///
/// # Errors
/// If the writer refuses the bytes.
pub(super) fn block(
    out: &mut impl Write,
    terminal: Option<usize>,
    calendar: &mut Calendar,
    interval: &Interval,
) -> io::Result<()> {
    /// The column of a verdict that does not fit behind the figures.
    const BELOW: usize = 8;
    let width = terminal.unwrap_or(WIDTH);
    let (again, lost) = heading(calendar, interval);
    for line in [Some(again), lost].iter().flatten() {
        // The kinds of segments, in parentheses, may begin a line of their own.
        let (first, kinds) = line.split_at(line.find('(').unwrap_or(line.len()));
        match terminal {
            Some(_) => fitted(out, terminal, BELOW, first, &[kinds])?,
            None => writeln!(out, "{}", shorten(line, WIDTH))?,
        }
    }
    let by = interval.by;
    let named = if by == By::Process { NAMED.0 } else { NAMED.1.min(width.saturating_sub(FIGURES)).max(NAMED.0) };
    let figures =
        format!("{:>6} {:>6} {:>10} {:>10} {:>7}  {:>8} ", "OPEN", "ENDED", "SENT/s", "RECEIVED/s", "AGAIN", "RTT");
    fitted(out, terminal, BELOW, &format!("{} {figures}", title(by, named)), &["VERDICT"])?;
    let processes = &interval.summary.processes;
    for process in processes.iter().take(WORST) {
        let cells = Cells::new(process, by, interval.took_us, interval.several_netns);
        let mut first = format!("{} ", cells.named(named));
        if let Some([open, ended, sent, received, again, rtt, ..]) = &cells.figures {
            first += &format!("{open:>6} {ended:>6} {sent:>10} {received:>10} {again:>7}  {rtt:>8} ");
        }
        let room = if width < WIDTH { width.saturating_sub(BELOW) } else { width - named - FIGURES };
        fitted(out, terminal, BELOW, &first, &[&cells.verdict(room)])?;
    }
    let more = processes.len().saturating_sub(WORST);
    if more > 0 {
        writeln!(out, "and {more} more {}", several(by))?;
    }
    writeln!(out)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::ledger::counters::Counters;
    use crate::ledger::row::{Fates, Folded, Row};
    use crate::ledger::summary::{ByProcess, Others, Seen, Summary};
    use crate::model::events::{Flow, KINDS, ProcessKey, Totals};
    use std::collections::HashMap;

    /// An interval of two seconds in which this many processes sent 10 MB each, and the first sent segments again.
    pub(crate) fn interval(processes: u32) -> Interval {
        let key = |tgid| ProcessKey { tgid, ..ProcessKey::default() };
        let mut rows = HashMap::new();
        for tgid in 1..=processes {
            let again = if tgid == 1 { 1_000_000 } else { 0 };
            let (bytes_sent, bytes_retrans, busy_us) = (10_000_000, again, 1_900_000);
            let (delivered, delivered_ce, local_bytes) = (100, 10 * again / 1_000_000, Some(again));
            let counters = Counters { bytes_sent, bytes_retrans, busy_us, delivered, delivered_ce, ..Counters::ZERO };
            let counters = Counters { local_bytes, ..counters };
            let rtt = Rtt { srtt_us: Some(99_000_000), min_us: Some(1000), var_us: Some(1) };
            let fates = Fates { open: 123_456, ended: 7, ..Fates::default() };
            let comm = *b"fifteen-letters\0";
            let rtt = Some((rtt, Flow::default()));
            rows.insert(key(tgid), Row { comm, fates, counters, rtt, since_ns: 0, ..Row::default() });
        }
        let mut segs = [0; KINDS];
        segs[Kind::Rto as usize] = 700;
        let comm = *b"fifteen-letters\0";
        let totals = Totals { segs, comm, retransmits: 700, bytes: 1_000_000, ..Totals::default() };
        let lost = Lost { perf: 3, missed: Some(9), ..Lost::default() };
        let mut summary = Summary::new(&ByProcess::from([(key(1), totals)]), &Others::default(), lost, Seen::default());
        summary.add_ledger(&rows, &Folded::default(), 2_000_000_000);
        let by = By::Process;
        Interval {
            realtime_ns: 3_723_000_000_000,
            mono_ns: 2_000_000_000,
            took_us: 2_000_000,
            by,
            several_netns: false,
            summary,
        }
    }

    fn printed(interval: &Interval) -> String {
        let mut out = Vec::new();
        block(&mut out, None, &mut Calendar::default(), interval).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_block_has_rates_the_worst_first_and_what_was_lost() {
        let text = printed(&interval(2));
        let expected = [
            "01:02:03  2.0 s: 700 segments sent again, 350.0/s (rto 700)",
            "lost so far: perf 3, missed 9",
            "    PID COMM               OPEN  ENDED     SENT/s RECEIVED/s   AGAIN       RTT VERDICT",
            "      1 fifteen-letters  123456      7     5.0 MB        0 B    10 %      99 s loss 10 %, marks 10.. 1.0 MB, queue +99 s",
            "      2 fifteen-letters  123456      7     5.0 MB        0 B   0.0 %      99 s network: queue +99 s",
            "",
            "",
        ];
        assert_eq!(text.split('\n').collect::<Vec<_>>(), expected);
    }

    #[test]
    fn no_line_is_too_long_and_rows_that_are_left_out_are_counted() {
        let mut interval = interval(WORST as u32 + 5);
        interval.summary.kinds = [1_000_000_000; KINDS];
        let most = u64::MAX;
        let (perf, output, map_full, unknown, unattributed, totals, ledger) =
            (most, most, most, most, most, most, most);
        interval.summary.lost =
            Lost { perf, output, map_full, unknown, unattributed, totals, ledger, missed: Some(most) };
        let text = printed(&interval);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.contains("and 5 more processes") && text.lines().count() == WORST + 5, "{text}");
    }
}
