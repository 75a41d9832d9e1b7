//! The columns of events in text.

use std::io::{self, Write};

use super::Moment;
use super::names::{NETNS, addresses, from_port, name, netns, pid};
use super::width::{fitted, padded, shorten, width as columns};
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
/// The width of the kind, the segments and the PID, and of the spaces around them.
const OTHERS: usize = 26;
/// The width of the column that may be added.
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
    /// More about the event.
    pub(super) note: &'a str,
}

impl Columns {
    pub(super) fn new(current: bool) -> Self {
        Self { current, terminal: None, netns: false }
    }

    /// The columns on a terminal of this width; none: lines may have any length.
    pub(super) fn within(self, terminal: Option<usize>) -> Self {
        Self { terminal, ..self }
    }

    /// The width of the column that may be added, with the space behind it.
    fn current_width(&self) -> usize {
        if self.current { CURRENT + 1 } else { 0 }
    }

    /// Whether only the shorter form of a line fits the terminal: times without fractions, shorter names, and no column for the state.
    fn is_short(&self) -> bool {
        let netns = if self.netns { NETNS + 1 } else { 0 };
        self.terminal.is_some_and(|width| width < ALL + self.current_width() + netns)
    }

    /// Whether the namespace begins the second part of the line, since it does not fit into the first.
    fn netns_is_below(&self) -> bool {
        let (time, name) = self.widths();
        let first = time + OTHERS + name + self.current_width();
        self.netns && self.terminal.is_some_and(|width| width < first + NETNS)
    }

    /// Print the titles.
    pub(super) fn titles(&self, out: &mut impl Write) -> io::Result<()> {
        let (time, name) = self.widths();
        let title = if self.is_short() { "TIME" } else { "TIME (UTC)" };
        let mut first = format!("{title:<time$} {:<10} {:>4} {:>7} {:<name$} ", "KIND", "SEGS", "PID", "COMM");
        if self.current {
            first += &format!("{:<CURRENT$} ", "CURRENT (not the owner)");
        }
        let netns = if self.netns { format!("{:<NETNS$} ", "NETNS") } else { String::new() };
        let ends = if self.is_short() { "LOCAL -> REMOTE" } else { "STATE        LOCAL -> REMOTE" };
        let (first, ends) =
            if self.netns_is_below() { (first, netns + ends) } else { (first + &netns, ends.to_owned()) };
        fitted(out, self.terminal, time + 1, &first, &[&ends])
    }

    /// The widths of the time, and of the name.
    fn widths(&self) -> (usize, usize) {
        if self.is_short() { (8, 15) } else { (15, 24) }
    }

    /// Print an event. Once a second network namespace is seen, each line names its namespace, below new titles.
    pub(super) fn line(
        &mut self,
        out: &mut impl Write,
        calendar: &mut Calendar,
        moment: Moment<'_>,
        &Cells { what, segs, owner, current, state, flow, note }: &Cells<'_>,
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
        let mut first = format!("{now:<time$} {what:<10} {segs:>4} {:>7} {name} ", pid(owner));
        if self.current {
            first += &padded(current, CURRENT);
            first.push(' ');
        }
        let mut second = if self.netns { netns(flow.netns, moment.netns) + " " } else { String::new() };
        if !self.netns_is_below() {
            first += &std::mem::take(&mut second);
        }
        let mut ends = addresses(flow);
        let state = match state {
            state if !self.is_short() => {
                ends = format!("{state:<12} {ends}");
                ""
            }
            ESTABLISHED => "",
            state => state,
        };
        // The remote address and the local port tell connections apart best.
        if let Some(terminal) = self.terminal.filter(|_| self.is_short()) {
            let shorter = from_port(flow);
            let room = terminal.saturating_sub(columns(&first) + columns(&second));
            let below = terminal.saturating_sub(time + 1 + columns(&second));
            if columns(&ends) > room && (columns(&shorter) <= room || columns(&ends) > below) {
                ends = shorter;
            }
        }
        fitted(out, self.terminal, time + 1, &first, &[&(second + &ends), state, note])
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
            let (what, segs, owner, current) = ("slow_start", Some(9), &owner, "");
            let cells = Cells { what, segs, owner, current, state, flow: &flow, note: "a note" };
            columns.line(&mut out, &mut calendar, moment, &cells).unwrap();
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
        let whole = |lines: &[String], most: usize| lines.iter().all(|line| line.len() <= most);
        let wide = lines(Columns::new(false).within(Some(ALL)), &events[..1]);
        assert!(whole(&wide, ALL) && wide[1].contains(ESTABLISHED), "{wide:?}");
        let several = lines(Columns::new(false).within(Some(ALL)), &[events[0], (2, None, ESTABLISHED)]);
        assert!(several[1].contains(ESTABLISHED) && !several[3].contains(ESTABLISHED), "{several:?}");
        let few = lines(Columns::new(false).within(Some(ALL - 1)), &events);
        assert!(few[2].ends_with("5432  SYN_SENT  a note") && few[1].ends_with("5432  a note"), "{few:?}");
        let narrow = lines(Columns::new(false).within(Some(80)), &events);
        assert!(whole(&narrow, 80) && narrow[1].contains(" 10.1.0.1:55384 -> 10.1.0.1:5432"), "{narrow:?}");
        assert_eq!(narrow[2], "         a note", "{narrow:?}");
        let narrower = lines(Columns::new(false).within(Some(79)), &events);
        assert!(whole(&narrower, 79) && narrower[1].contains(" :55384 -> 10.1.0.1:5432"), "{narrower:?}");
        let current = lines(Columns::new(true).within(Some(80)), &[events[0], (2, Some("blue"), ESTABLISHED)]);
        assert!(whole(&current, 80) && current[5].starts_with("         NETNS            LOCAL"), "{current:?}");
        assert!(current[7].starts_with("         blue             10.1.0.1:55384 -> 10.1.0.1:5432"), "{current:?}");
        let narrowest = lines(Columns::new(false).within(Some(60)), &events);
        assert!(whole(&narrowest, 60) && narrowest[3].starts_with("         10.1.0.1:55384 ->"), "{narrowest:?}");
    }
}
