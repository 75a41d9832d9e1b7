//! The columns of events in text.

use std::io::{self, Write};

use super::Moment;
use super::names::{NETNS, addresses, name, netns, pid};
use super::width::{padded, shorten};
use crate::kernel::calendar::Calendar;
use crate::model::events::{Flow, How, Owner};

/// The columns, and what the events so far ask of them.
pub(super) struct Columns {
    /// A column shows the process that softirq interrupted.
    current: bool,
    /// The width of the terminal; none: lines may have any length.
    terminal: Option<usize>,
    /// Each event names its network namespace.
    netns: bool,
}

/// The width of the columns that are always there, with most pairs of IPv4 addresses.
const ALL: usize = 79 + 42;
/// The widths of the columns that may be added.
const CURRENT: usize = 26;

/// The state of most connections, which few columns leave out.
const ESTABLISHED: &str = "ESTABLISHED";

/// The values of an event's columns.
#[derive(Clone, Copy)]
pub(super) struct Cells<'a> {
    /// The kind of the event.
    pub(super) what: &'a str,
    /// The segments that it is about.
    pub(super) segs: Option<u32>,
    pub(super) owner: &'a Owner,
    /// The process that softirq interrupted.
    pub(super) current: &'a str,
    /// The socket's state, or what happened to the connection.
    pub(super) state: &'a str,
    pub(super) flow: &'a Flow,
}

impl Columns {
    pub(super) fn new(current: bool) -> Self {
        Self { current, terminal: None, netns: false }
    }

    /// The columns on a terminal of this width.
    pub(super) fn within(self, width: usize) -> Self {
        Self { terminal: Some(width), ..self }
    }

    /// Whether only the shorter form of a line fits the terminal: times without fractions, shorter names, and no column for the state.
    fn is_short(&self) -> bool {
        let current = if self.current { CURRENT + 1 } else { 0 };
        let netns = if self.netns { NETNS + 1 } else { 0 };
        self.terminal.is_some_and(|width| width < ALL + current + netns)
    }

    /// Print the titles.
    pub(super) fn titles(&self, out: &mut impl Write) -> io::Result<()> {
        let (time, name) = self.widths();
        let title = if self.is_short() { "TIME" } else { "TIME (UTC)" };
        write!(out, "{title:<time$} {:<10} {:>4} {:>7} {:<name$} ", "KIND", "SEGS", "PID", "COMM")?;
        if self.current {
            write!(out, "{:<CURRENT$} ", "CURRENT (not the owner)")?;
        }
        if self.netns {
            write!(out, "{:<NETNS$} ", "NETNS")?;
        }
        writeln!(out, "{}LOCAL -> REMOTE", if self.is_short() { "" } else { "STATE        " })
    }

    /// The widths of the time, and of the name.
    fn widths(&self) -> (usize, usize) {
        if self.is_short() { (8, 15) } else { (15, 24) }
    }

    /// Print an event. The caller ends the line. Once a second network namespace is seen, each line names its namespace, below new
    /// titles.
    pub(super) fn begin_line(
        &mut self,
        out: &mut impl Write,
        calendar: &mut Calendar,
        moment: Moment<'_>,
        &Cells { what, segs, owner, current, state, flow }: &Cells<'_>,
    ) -> io::Result<()> {
        if moment.several_netns && !self.netns {
            self.netns = true;
            self.titles(out)?;
        }
        let (time, width) = self.widths();
        let now = time_of_day(calendar, moment.realtime_ns);
        let segs = segs.map(|segs| segs.to_string()).unwrap_or_default();
        let mut name = name(owner, moment.exited, moment.holders);
        // Nobody has sent on the socket since.
        if owner.how() == How::Seed && !moment.exited && !self.is_short() {
            name += " (seed)";
        }
        let name = if self.is_short() && owner.is_process() { shorten(&name, width) } else { name };
        let (now, name) = (now.get(..time).unwrap_or(now), padded(&name, width));
        write!(out, "{now:<time$} {what:<10} {segs:>4} {:>7} {name} ", pid(owner))?;
        if self.current {
            write!(out, "{} ", padded(current, CURRENT))?;
        }
        if self.netns {
            write!(out, "{} ", netns(flow.netns, moment.netns))?;
        }
        match state {
            _ if !self.is_short() => write!(out, "{state:<12} {}", addresses(flow)),
            ESTABLISHED => write!(out, "{}", addresses(flow)),
            _ => write!(out, "{}  {state}", addresses(flow)),
        }
    }
}

/// The time of day, to the microsecond.
pub(super) fn time_of_day(calendar: &mut Calendar, realtime_ns: u64) -> &str {
    calendar.rfc3339(realtime_ns).get(11..26).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of events in these namespaces.
    fn lines(columns: Columns, events: &[(u32, Option<&str>, &str)]) -> Vec<String> {
        let (mut out, mut columns, mut calendar) = (Vec::new(), columns, Calendar::default());
        columns.titles(&mut out).unwrap();
        let mut owner = Owner { tgid: 4_194_304, how: How::Send as u8, ..Owner::default() };
        owner.comm[..15].copy_from_slice(b"123456789012345");
        let mut flow = Flow { sport: 55384, dport: 5432, ..Flow::default() };
        for address in [&mut flow.saddr, &mut flow.daddr] {
            *address = std::net::Ipv4Addr::new(10, 1, 0, 1).to_ipv6_mapped().octets();
        }
        for &(inum, netns, state) in events {
            let moment = Moment { several_netns: inum != events[0].0 || netns.is_some(), netns, ..Moment::default() };
            let flow = Flow { netns: inum, ..flow };
            let cells = Cells { what: "slow_start", segs: Some(9), owner: &owner, current: "", state, flow: &flow };
            columns.begin_line(&mut out, &mut calendar, moment, &cells).unwrap();
            out.push(b'\n');
        }
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_second_namespace_gets_a_column() {
        let events = [(1, None, "X"), (1, None, "X"), (4_026_531_840, None, "X"), (1, Some("blue"), "X")];
        let lines = lines(Columns::new(false), &events);
        assert!(!lines[..3].iter().any(|line| line.contains("NETNS")), "{lines:?}");
        assert!(lines[3].contains(" NETNS            STATE"), "{lines:?}");
        assert!(lines[4].contains(" 4026531840       X") && lines[5].contains(" blue             X"), "{lines:?}");
    }

    #[test]
    fn a_narrow_terminal_gets_shorter_lines() {
        let events = [(1, None, ESTABLISHED), (1, None, "SYN_SENT")];
        let wide = lines(Columns::new(false).within(ALL), &events[..1]);
        assert!(wide.iter().all(|line| line.len() <= ALL) && wide[1].contains(ESTABLISHED), "{wide:?}");
        let several = lines(Columns::new(false).within(ALL), &[events[0], (2, None, ESTABLISHED)]);
        assert!(several[1].contains(ESTABLISHED) && !several[3].contains(ESTABLISHED), "{several:?}");
        let few = lines(Columns::new(false).within(ALL - 1), &events);
        assert_eq!(few[1].len(), 80, "{few:?}");
        assert!(few[2].ends_with("5432  SYN_SENT") && few[1].ends_with("5432"), "{few:?}");
    }
}
