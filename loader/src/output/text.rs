//! Text for people: aligned columns, and a table of the worst processes at the end.

use std::io::{self, Write};

use super::summary::Summary;
use super::{Moment, Output, Ready};
use crate::events::{Flow, How, Kind, Owner, Retransmit, Send, address, comm, state_name};
use crate::kernel::calendar::rfc3339;
use crate::say::say;
use crate::verify::{self, Check, Record, Report, Verdict};

/// How many processes the summary shows.
const WORST: usize = 20;

/// Prints text.
pub struct Text<W> {
    out: W,
    current: bool,
}

impl<W: Write> Text<W> {
    /// To this writer; with `current`, a column for whom softirq interrupted.
    pub fn new(out: W, current: bool) -> Self {
        Self { out, current }
    }
}

/// A name as one word that cannot play tricks on a terminal.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() || c == '\u{fffd}' { '?' } else { c }).collect()
}

pub(super) fn pid(owner: &Owner) -> String {
    match owner.how() {
        How::Unknown => "?".into(),
        How::Kernel => "-".into(),
        _ => owner.tgid.to_string(),
    }
}

pub(super) fn name(owner: &Owner, exited: bool) -> String {
    match owner.how() {
        How::Unknown => "unknown".into(),
        How::Kernel => "kernel".into(),
        _ if exited => format!("{} (exited)", printable(&comm(&owner.comm))),
        _ => printable(&comm(&owner.comm)),
    }
}

fn addresses(flow: &Flow) -> String {
    let end = |bytes, port| std::net::SocketAddr::new(address(bytes), port);
    format!("{} -> {}", end(flow.saddr, flow.sport), end(flow.daddr, flow.dport))
}

/// The time of day, to the microsecond.
fn time_of_day(realtime_ns: u64) -> String {
    rfc3339(realtime_ns).get(11..26).unwrap_or_default().to_string()
}

/// The comparison with the kernel's counters: a line for each, but for those of namespaces where nothing was sent again.
fn verified(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let idle = |records: &[Record]| {
        let zero = |record: &Record| record.xctl == 0 && record.kernel == Some([0, 0]);
        records.iter().all(|record| record.verdict == Verdict::Equal && (zero(record) || record.check == Check::Tlp))
    };
    let netns: Vec<_> = report.records.chunk_by(|one, next| one.netns == next.netns).collect();
    let shown: Vec<_> = netns.iter().filter(|records| !idle(records)).collect();
    if !shown.is_empty() {
        writeln!(out, "\n{:>10}  {:<12} {:>16} {:>12}  VERDICT", "NETNS", "SEGMENTS", "KERNEL", "XCTL")?;
    }
    for record in shown.iter().flat_map(|records| records.iter()) {
        let kernel = match record.kernel {
            Some([_, high]) if record.check == Check::Tlp => format!("at most {high}"),
            kernel => verify::range(kernel),
        };
        let (name, verdict) = (record.check.name(), record.verdict.name());
        write!(out, "{:>10}  {name:<12} {kernel:>16} {:>12}  {verdict}", record.netns, record.xctl)?;
        match &record.note {
            Some(note) => writeln!(out, " ({note})")?,
            None => writeln!(out)?,
        }
    }
    let quiet = netns.len() - shown.len();
    if quiet > 0 {
        writeln!(out, "\nin {quiet} network namespaces nothing was sent again, as the kernel says too")?;
    }
    match report.verified() {
        Some(true) => writeln!(out, "verified against the kernel's counters"),
        Some(false) => writeln!(out, "NOT verified: it differs from the kernel's counters"),
        None if report.uncompared() == 0 => writeln!(out, "not verified: nothing could be compared"),
        None => {
            writeln!(out, "not verified: what {} network namespaces had could not be compared", report.uncompared())
        }
    }
}

impl<W: Write> Output for Text<W> {
    fn ready(&mut self, ready: &Ready<'_>) -> io::Result<()> {
        let (hooks, name) = (ready.plan.hooks.len(), ready.plan.name);
        if !ready.attached {
            let proven = if ready.proven == Some(true) { ", proven to be what the object says" } else { "" };
            return writeln!(self.out, "loaded the programs of {hooks} hooks ({name}){proven}; attached nothing");
        }
        say(format_args!("tracing TCP retransmits with {hooks} hooks ({name}); Ctrl-C ends"));
        write!(self.out, "{:<15} {:<10} {:>4} {:>7} {:<24} ", "TIME (UTC)", "KIND", "SEGS", "PID", "COMM")?;
        if self.current {
            write!(self.out, "{:<26} ", "CURRENT (not the owner)")?;
        }
        writeln!(self.out, "{:<12} LOCAL -> REMOTE", "STATE")?;
        self.out.flush()
    }

    fn retransmit(&mut self, event: &Retransmit, moment: Moment) -> io::Result<()> {
        write!(
            self.out,
            "{:<15} {:<10} {:>4} {:>7} {:<24} ",
            time_of_day(moment.realtime_ns),
            event.kind().name(),
            event.segs,
            pid(&event.owner),
            name(&event.owner, moment.exited),
        )?;
        if self.current {
            // The mark says: blaming this one would have been wrong.
            let wrong = event.owner.is_process() && event.current_tgid != event.owner.tgid;
            let current = format!("{} {}", event.current_tgid, printable(&comm(&event.current_comm)));
            write!(self.out, "{:<26} ", format!("{}{current}", if wrong { "!" } else { " " }))?;
        }
        write!(self.out, "{:<12} {}", state_name(event.state), addresses(&event.flow))?;
        if event.err != 0 {
            write!(self.out, "  not sent: {}", io::Error::from_raw_os_error(-event.err))?;
        }
        writeln!(self.out)
    }

    fn send(&mut self, event: &Send, moment: Moment) -> io::Result<()> {
        write!(
            self.out,
            "{:<15} {:<10} {:>4} {:>7} {:<24} ",
            time_of_day(moment.realtime_ns),
            "send",
            "",
            pid(&event.owner),
            name(&event.owner, moment.exited),
        )?;
        if self.current {
            write!(self.out, "{:<26} ", "")?;
        }
        writeln!(self.out, "{:<12} {}", format!("{} bytes", event.bytes), addresses(&event.flow))
    }

    fn summary(&mut self, summary: &Summary) -> io::Result<()> {
        let out = &mut self.out;
        writeln!(out, "\n{} segments sent again in {} retransmits", summary.segs, summary.retransmits)?;
        let kinds: Vec<_> = Kind::ALL
            .iter()
            .zip(summary.kinds)
            .filter(|(_, segs)| *segs > 0)
            .map(|(kind, segs)| format!("{} {segs}", kind.name()))
            .collect();
        if !kinds.is_empty() {
            writeln!(out, "segments by kind: {}", kinds.join(", "))?;
        }
        let processes = &summary.processes;
        if !processes.is_empty() {
            writeln!(out, "\n{:>8} {:>12} {:>11} {:>7}  COMM", "SEGS", "BYTES", "RETRANSMITS", "PID")?;
        }
        for process in processes.iter().take(WORST) {
            let nobody = if process.kernel { "-" } else { "?" };
            let pid = process.pid.map_or_else(|| nobody.into(), |pid| pid.to_string());
            let nobody = if process.kernel { How::Kernel } else { How::Unknown };
            let comm = process.comm.as_deref().map_or_else(|| nobody.name().into(), printable);
            writeln!(out, "{:>8} {:>12} {:>11} {:>7}  {comm}", process.segs, process.bytes, process.retransmits, pid)?;
        }
        if processes.len() > WORST {
            writeln!(out, "and {} more processes", processes.len() - WORST)?;
        }
        let lost: Vec<_> = summary
            .lost
            .entries()
            .into_iter()
            .filter(|(_, count)| *count != Some(0))
            .map(|(name, count)| count.map_or_else(|| format!("{name} not known"), |count| format!("{name} {count}")))
            .collect();
        if lost.is_empty() { writeln!(out, "nothing lost") } else { writeln!(out, "lost: {}", lost.join(", ")) }?;
        summary.verify.as_ref().map_or(Ok(()), |report| verified(out, report))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_cannot_play_tricks_on_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{fffd}"), "a?[2Jb?");
    }

    #[test]
    fn a_wrong_current_is_marked_and_a_right_one_is_not() {
        let mut text = Text::new(Vec::new(), true);
        let mut event = Retransmit::default();
        (event.owner.tgid, event.owner.how, event.current_tgid) = (7, How::Send as u8, 0);
        let moment = Moment { realtime_ns: 0, exited: false };
        text.retransmit(&event, moment).unwrap();
        event.current_tgid = 7;
        text.retransmit(&event, moment).unwrap();
        let lines = String::from_utf8(text.out).unwrap();
        let marked: Vec<_> = lines.lines().map(|line| line.contains('!')).collect();
        assert_eq!(marked, [true, false]);
    }
}
