//! Text for people: aligned columns, and a table of the worst processes at the end.

use std::cmp::Reverse;
use std::io::{self, Write};

use bpf_object::sort;

use super::columns::{Cells, Columns, time_of_day};
use super::connections::{bytes, place, say as say_verdict, say_slowness, share, time};
use super::names::{NETNS, netns, printable, whose};
use super::width::{fitted, padded, shorten, width};
use super::{Interval, Moment, Output, Ready, Status, top};
use crate::console::{ERASE, say};
use crate::kernel::calendar::Calendar;
use crate::ledger::connection::Connection;
use crate::ledger::counters::Rtt;
use crate::ledger::figures::Ledger;
use crate::ledger::row::{Fates, Row};
use crate::ledger::summary::{Drops, Process, Summary};
use crate::model::events::{Cut, Drop, Kind, Retransmit, Send, comm, state_name};
use crate::verify::report::{Check, Comparison, Report, Verdict, range};

/// The number of processes that the summary shows.
const WORST: usize = 20;

/// An output that prints text.
pub struct Text<W> {
    out: W,
    events: bool,
    /// The width of the terminal; none: lines may have any length.
    terminal: Option<usize>,
    columns: Columns,
    calendar: Calendar,
    /// The last line is a status, which the next one replaces.
    has_status: bool,
}

/// The most columns of a status: on a narrower terminal it would wrap.
const NARROW: usize = 79;

impl<W: Write> Text<W> {
    /// Print to this writer. With `current`, a column shows the process that softirq interrupted.
    pub fn new(out: W, current: bool) -> Self {
        let columns = Columns::new(current);
        Self { out, events: true, terminal: None, columns, calendar: Calendar::default(), has_status: false }
    }

    /// The output is a terminal of this width; none: lines may have any length.
    #[must_use]
    pub fn within(self, terminal: Option<usize>) -> Self {
        Self { columns: self.columns.within(terminal), terminal, ..self }
    }

    /// Print intervals, and no events, to this writer.
    pub fn of_intervals(out: W) -> Self {
        Self { events: false, ..Self::new(out, false) }
    }

    /// Erase the status, so that other lines can follow.
    fn end_status(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.has_status) { self.out.write_all(ERASE.as_bytes()) } else { Ok(()) }
    }

    /// Print an event.
    fn line(&mut self, moment: Moment<'_>, cells: &Cells<'_>) -> io::Result<()> {
        self.end_status()?;
        self.columns.line(&mut self.out, &mut self.calendar, moment, cells)
    }
}

/// The table of what this host dropped itself.
fn drops_of(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    let Some(Drops { packets, segs, .. }) = summary.drops() else { return Ok(()) };
    writeln!(out, "\n{segs} segments dropped by this host itself, in {packets} packets")?;
    let dropped = |process: &Process| process.drops.filter(|drops| drops.packets > 0);
    let mut rows: Vec<_> = summary.processes.iter().filter_map(|process| Some((process, dropped(process)?))).collect();
    if rows.is_empty() {
        return Ok(());
    }
    sort::by_key(&mut rows, |(_, drops)| Reverse((drops.segs, drops.bytes)));
    writeln!(out, "\n{:>8} {:>12} {:>11} {:>7}  COMM", "DROPPED", "BYTES", "PACKETS", "PID")?;
    for (process, drops) in rows.iter().take(WORST) {
        let (pid, comm) = whose(process);
        writeln!(out, "{:>8} {:>12} {:>11} {pid:>7}  {comm}", drops.segs, drops.bytes, drops.packets)?;
    }
    if rows.len() > WORST {
        writeln!(out, "and {} more processes", rows.len() - WORST)?;
    }
    Ok(())
}

/// The table of what the connections of each process have counted. Figures of connections that were open before xctl are
/// marked with a star: they begin with the run. If accounts were lost, each row has the star.
fn connections_of(out: &mut impl Write, summary: &Summary, terminal: Option<usize>) -> io::Result<()> {
    /// The column of the verdicts, and the one of those that do not fit there.
    const VERDICTS: usize = 70;
    const BELOW: usize = 7;
    let mut rows: Vec<_> = summary.processes.iter().filter(|process| process.ledger.tcp.is_some()).collect();
    if rows.is_empty() {
        return Ok(());
    }
    sort::by_key(&mut rows, |Process { ledger, .. }| {
        let dropped = ledger.listener.map_or(0, |listener| listener.dropped);
        ledger.tcp.as_ref().map(|tcp| place(tcp, ledger.judged.as_ref(), dropped))
    });
    writeln!(
        out,
        "\n{:>6} {:>9} {:>9} {:>7} {:>8} {:>7}  {:<16} VERDICT",
        "CONNS", "SENT", "RECEIVED", "AGAIN", "RTT", "PID", "COMM"
    )?;
    for process in rows.iter().take(WORST) {
        let Ledger { connections: Some(fates), tcp: Some(tcp), judged, complete, rtt, .. } = &process.ledger else {
            continue;
        };
        let (pid, comm) = whose(process);
        let rtt = rtt.as_ref().map_or_else(Rtt::default, |worst| worst.rtt);
        let (sent, received) = (bytes(tcp.bytes_sent), bytes(tcp.bytes_received));
        let again = share(tcp.bytes_retrans, tcp.bytes_sent);
        let shown = rtt.srtt_us.map_or_else(|| "-".to_owned(), time);
        let star = if *complete == Some(true) { ' ' } else { '*' };
        let verdict = judged.as_ref().map(|verdict| say_verdict(tcp, rtt, verdict));
        let mut said = verdict.into_iter().chain(say_slowness(&process.ledger));
        let (count, comm) = (fates.open + fates.ended, padded(&comm, 16));
        let first = format!("{count:>5}{star} {sent:>9} {received:>9} {again:>7} {shown:>8} {pid:>7}  {comm} ");
        fitted(out, terminal, BELOW, &first, &[&said.next().unwrap_or_default()])?;
        for more in said {
            let fits = terminal.is_none_or(|columns| VERDICTS + width(&more) <= columns);
            writeln!(out, "{:1$}{more}", "", if fits { VERDICTS } else { BELOW })?;
        }
    }
    let more = rows.len().saturating_sub(WORST);
    if more > 0 {
        writeln!(out, "and {more} more processes")?;
    }
    if summary.lost.ledger > 0 {
        writeln!(out, "* not complete: the counters of {} connections or listeners were lost", summary.lost.ledger)?;
    } else if rows.iter().any(|process| process.ledger.complete != Some(true)) {
        writeln!(out, "* figures since xctl started: a connection was open before")?;
    }
    Ok(())
}

/// The result of `--verify`, if everything could be compared.
#[must_use]
pub fn result_of_verify(equal: bool) -> &'static str {
    match equal {
        true => "verified against the kernel's counters",
        false => "NOT verified: it differs from the kernel's counters",
    }
}

/// Print the comparison with the kernel's counters: a line for each comparison. Namespaces without any retransmission
/// are left out.
fn verified(out: &mut impl Write, report: &Report, terminal: Option<usize>) -> io::Result<()> {
    let idle = |records: &[Comparison]| {
        let zero = |record: &Comparison| record.xctl == 0 && record.kernel == Some([0, 0]);
        records.iter().all(|record| record.verdict == Verdict::Equal && (zero(record) || record.check == Check::Tlp))
    };
    let namespaces: Vec<_> = report.records.chunk_by(|one, next| one.netns == next.netns).collect();
    let shown: Vec<_> = namespaces.iter().filter(|records| !idle(records)).collect();
    if !shown.is_empty() {
        writeln!(out, "\n{:<NETNS$}  {:<16} {:>16} {:>12}  VERDICT", "NETNS", "CHECK", "KERNEL", "XCTL")?;
    }
    for record in shown.iter().flat_map(|records| records.iter()) {
        let kernel = match record.kernel {
            Some([_, high]) if record.check == Check::Tlp => format!("at most {high}"),
            kernel => range(kernel),
        };
        let (name, verdict) = (record.check.name(), record.verdict.name());
        let netns = netns(record.netns.inum, record.netns_name.as_deref());
        let note = record.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
        let first = format!("{netns}  {name:<16} {kernel:>16} {:>12}  {verdict}", record.xctl);
        fitted(out, terminal, NETNS + 1, &first, &[&note])?;
    }
    let quiet = namespaces.len() - shown.len();
    if quiet > 0 {
        writeln!(out, "\nnetwork namespaces in which neither the kernel nor xctl counted anything: {quiet}")?;
    }
    match report.verified() {
        Some(equal) => writeln!(out, "{}", result_of_verify(equal)),
        None if report.uncompared() == 0 => writeln!(out, "not verified: nothing could be compared"),
        None => {
            writeln!(out, "not verified: network namespaces that could not be compared: {}", report.uncompared())
        }
    }
}

impl<W: Write> Output for Text<W> {
    fn ready(&mut self, ready: &Ready<'_>) -> io::Result<()> {
        let (hooks, name) = (ready.hooks.len(), ready.attach);
        if !ready.attached {
            let proven = if ready.proven == Some(true) { ", proven to be what the object says" } else { "" };
            return writeln!(self.out, "loaded the programs of {hooks} hooks ({name}){proven}; attached nothing");
        }
        if !self.events {
            say(format_args!("watching TCP connections with {hooks} hooks ({name}); Ctrl-C ends"));
            return self.out.flush();
        }
        say(format_args!("tracing TCP retransmits with {hooks} hooks ({name}); Ctrl-C ends"));
        self.columns.titles(&mut self.out)?;
        self.out.flush()
    }

    fn retransmit(&mut self, event: &Retransmit, moment: Moment<'_>) -> io::Result<()> {
        // The mark shows that it would have been wrong to blame the current process.
        let wrong = event.owner.is_process() && event.current_tgid != event.owner.tgid;
        let mark = if wrong { "!" } else { " " };
        let current = format!("{mark}{} {}", event.current_tgid, printable(&comm(&event.current_comm)));
        let (what, segs, state) = (event.kind().name(), Some(event.segs), &*state_name(event.state));
        let note = match event.err {
            0 => String::new(),
            err => format!("not sent: {}", io::Error::from_raw_os_error(-err)),
        };
        self.line(
            moment,
            &Cells { what, segs, owner: &event.owner, current: &current, state, flow: &event.flow, note: &note },
        )
    }

    fn send(&mut self, event: &Send, moment: Moment<'_>) -> io::Result<()> {
        let state = &*format!("{} bytes", event.bytes);
        let (what, segs, current, note) = ("send", None, "", "");
        self.line(moment, &Cells { what, segs, owner: &event.owner, current, state, flow: &event.flow, note })
    }

    fn cut(&mut self, event: &Cut, moment: Moment<'_>) -> io::Result<()> {
        let known = |value: u32| if value == 0 { "?".to_owned() } else { value.to_string() };
        let state = event.why().name().unwrap_or("unknown");
        let note = &format!("cwnd {}, ssthresh {}", known(event.cwnd), known(event.ssthresh));
        let (what, segs, current) = ("cut", None, "");
        self.line(moment, &Cells { what, segs, owner: &event.owner, current, state, flow: &event.flow, note })
    }

    fn dropped(&mut self, event: &Drop, reason: Option<&str>, moment: Moment<'_>) -> io::Result<()> {
        let reason = reason.map_or("reason unknown".into(), printable);
        let bytes = event.payload().map_or_else(|| "?".to_owned(), |bytes| bytes.to_string());
        let note = &format!("{reason}, {bytes} bytes");
        let (what, segs, current, state) = ("drop", Some(event.segs), "", &*state_name(event.state));
        self.line(moment, &Cells { what, segs, owner: &event.owner, current, state, flow: &event.flow, note })
    }

    fn connection(&mut self, connection: &Connection, moment: Moment<'_>) -> io::Result<()> {
        let Row { fates, counters, rtt, .. } = &connection.row;
        let state = match fates {
            Fates { reset: 1.., .. } => "reset",
            Fates { timed_out: 1.., .. } => "timed out",
            Fates { refused: 1.., .. } => "refused",
            _ => "ended",
        };
        let verdict = Ledger::new(&connection.row, connection.mono_ns).judged.unwrap_or_default();
        let said = say_verdict(counters, rtt.map_or_else(Rtt::default, |(rtt, _)| rtt), &verdict);
        let (sent, received) = (bytes(counters.bytes_sent), bytes(counters.bytes_received));
        let note = &format!("{sent} sent, {received} received: {said}");
        let (what, segs, current, owner, flow) = ("connection", None, "", &connection.owner, &connection.flow);
        self.line(moment, &Cells { what, segs, owner, current, state, flow, note })
    }

    fn status(&mut self, status: &Status) -> io::Result<()> {
        let Status { realtime_ns, sockets, segs, lost } = *status;
        let time = time_of_day(&mut self.calendar, realtime_ns).get(..8).unwrap_or_default();
        let nothing = if lost.missed.is_some() { "nothing lost" } else { "no known loss" };
        let lost = top::lost(&lost).unwrap_or_else(|| nothing.into());
        let sockets = sockets.map(|sockets| format!("{sockets} sockets known, ")).unwrap_or_default();
        let line = format!("{time}  {sockets}{segs} segments sent again, {lost}");
        write!(
            self.out,
            "{ERASE}{}",
            shorten(&line, self.terminal.map_or(NARROW, |columns| NARROW.min(columns.saturating_sub(1))))
        )?;
        self.has_status = true;
        self.out.flush()
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        self.end_status()?;
        self.totals(summary)?;
        let out = &mut self.out;
        let lost: Vec<_> = summary
            .lost
            .entries()
            .into_iter()
            .filter(|(_, count)| *count != Some(0))
            .map(|(name, count)| count.map_or_else(|| format!("{name} not known"), |count| format!("{name} {count}")))
            .collect();
        if lost.is_empty() { writeln!(out, "nothing lost") } else { writeln!(out, "lost: {}", lost.join(", ")) }?;
        summary.verify.as_ref().map_or(Ok(()), |report| verified(out, report, self.terminal))
    }

    fn interval(&mut self, interval: &Interval) -> io::Result<()> {
        top::block(&mut self.out, self.terminal, &mut self.calendar, interval)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl<W: Write> Text<W> {
    /// Print the tables of a summary, without its losses.
    ///
    /// # Errors
    /// The writer's.
    pub fn totals(&mut self, summary: &Summary) -> io::Result<()> {
        let (out, terminal) = (&mut self.out, self.terminal);
        write!(out, "\n{} segments sent again in {} retransmits", summary.segs, summary.retransmits)?;
        match summary.failed {
            0 => writeln!(out)?,
            failed => writeln!(out, "; {failed} attempts failed")?,
        }
        let kinds: Vec<_> = Kind::ALL
            .iter()
            .zip(summary.kinds)
            .filter(|(_, segs)| *segs > 0)
            .map(|(kind, segs)| format!("{} {segs}", kind.name()))
            .collect();
        if !kinds.is_empty() {
            writeln!(out, "segments by kind: {}", kinds.join(", "))?;
        }
        let processes: Vec<_> = summary.processes.iter().filter(|process| process.segs > 0).collect();
        if !processes.is_empty() {
            writeln!(out, "\n{:>8} {:>12} {:>11} {:>7}  COMM", "SEGS", "BYTES", "RETRANSMITS", "PID")?;
        }
        for process in processes.iter().take(WORST) {
            let (pid, comm) = whose(process);
            writeln!(out, "{:>8} {:>12} {:>11} {:>7}  {comm}", process.segs, process.bytes, process.retransmits, pid)?;
        }
        if processes.len() > WORST {
            writeln!(out, "and {} more processes", processes.len() - WORST)?;
        }
        drops_of(out, summary)?;
        connections_of(out, summary, terminal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::counters::Counters;
    use crate::model::events::{Flow, How, Owner};
    use crate::model::lost::Lost;

    #[test]
    fn a_wrong_current_is_marked_and_a_right_one_is_not() {
        let mut text = Text::new(Vec::new(), true);
        let mut event = Retransmit::default();
        (event.owner.tgid, event.owner.how, event.current_tgid) = (7, How::Send as u8, 0);
        let moment = Moment::default();
        text.retransmit(&event, moment).unwrap();
        event.current_tgid = 7;
        text.retransmit(&event, moment).unwrap();
        let lines = String::from_utf8(text.out).unwrap();
        let marked: Vec<_> = lines.lines().map(|line| line.contains('!')).collect();
        assert_eq!(marked, [true, false]);
    }

    #[test]
    fn a_status_is_one_narrow_line_that_the_next_line_replaces() {
        let mut text = Text::new(Vec::new(), false);
        let most = u64::MAX;
        let lost = Lost { perf: most, output: most, map_full: most, ..Lost::default() };
        let nothing = Lost { missed: Some(0), ..Lost::default() };
        let status = Status { realtime_ns: 3_723_000_000_000, sockets: Some(1234), segs: 56, lost: nothing };
        text.status(&status).unwrap();
        text.status(&Status { lost, ..status }).unwrap();
        text.retransmit(&Retransmit::default(), Moment::default()).unwrap();
        text.summary(&Summary::default()).unwrap();
        let printed = String::from_utf8(text.out).unwrap();
        let pieces: Vec<_> = printed.split(ERASE).collect();
        assert_eq!(pieces[1], "01:02:03  1234 sockets known, 56 segments sent again, nothing lost");
        assert!(pieces[2].starts_with("01:02:03  1234 sockets known") && pieces[2].len() <= NARROW, "{:?}", pieces[2]);
        assert!(pieces[3].starts_with("00:00:00.000000 other") && pieces.len() == 4, "{printed:?}");
    }

    #[test]
    fn the_end_of_a_connection_is_one_line() {
        let fates = Fates { ended: 1, reset: 1, ..Fates::default() };
        let counters = Counters { bytes_sent: 1_600_000_000, busy_us: 1, bytes_retrans: 48_000_000, ..Counters::ZERO };
        let row = Row { fates, counters, since_ns: 0, ..Row::default() };
        let mut owner = Owner { tgid: 7, how: How::Send as u8, ..Owner::default() };
        owner.comm[..5].copy_from_slice(b"rsync");
        let connection = Connection { mono_ns: 1000, state: 1, err: 104, flow: Flow::default(), owner, row };
        let mut text = Text::new(Vec::new(), false);
        text.connection(&connection, Moment::default()).unwrap();
        let line = String::from_utf8(text.out).unwrap();
        let expected = "00:00:00.000000 connection            7 rsync                    reset        [::]:0 -> [::]:0  1.6 GB \
                        sent, 0 B received: network: loss 3.0 %\n";
        assert_eq!(line, expected);
    }
}
