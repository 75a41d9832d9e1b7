//! The live view of `xctl top`: what it remembers, and what its keys do.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::env::var_os;
use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use bpf_object::sort;

use crate::commands::Named;
use crate::console::say_held;
use crate::kernel::calendar::Calendar;
use crate::kernel::host;
use crate::kernel::terminal::{self, Terminal};
use crate::kernel::wait::{Stdout, Waiter, Woken};
use crate::ledger::group::By;
use crate::ledger::summary::Process;
use crate::model::events::ProcessKey;
use crate::output::screen::{HISTORY, Line, Screen, Style, draw, level};
use crate::output::{Interval, Ready, several};

/// The time for which a row without a connection stays.
const MINUTE_NS: u64 = 60_000_000_000;
/// The most rows without a connection that stay.
const GONE: usize = 256;

/// The longest filter: an address has up to 39 characters.
const FILTER: usize = 64;

const HELP: &str = "q quit  space pause  s sort  b other rows  f freeze order  / filter  ? this line";

/// The columns that order the lines.
const ORDERS: [&str; 5] = ["again", "sent", "received", "rtt", "open"];

/// The consequence of a key.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    /// The screen stays.
    Nothing,
    /// The screen changes.
    Draw,
    /// The run ends.
    End,
}

/// What the view shows, and what the keys have set.
#[derive(Debug, Default)]
struct State {
    interval: Option<Interval>,
    lines: Vec<Line>,
    /// The meaning of the lines of the next interval.
    by: By,
    /// An index of `ORDERS`.
    order: usize,
    frozen: bool,
    paused: bool,
    filter: String,
    /// Keys go to the filter.
    typing: bool,
    help: bool,
}

impl State {
    /// Add an interval.
    fn add(&mut self, mut interval: Interval) {
        let Interval { mono_ns: seen_ns, took_us, .. } = interval;
        if interval.by != self.lines_by() {
            self.lines.clear();
        }
        // The key of a remote address is that of any of its connections.
        let identity = |row: &Process| (row.group.map_or(row.key, |_| ProcessKey::default()), row.group);
        let places: HashMap<_, _> =
            (0..).zip(&self.lines).map(|(place, line)| (identity(&line.process), place)).collect();
        for process in std::mem::take(&mut interval.summary.processes) {
            match places.get(&identity(&process)).copied().and_then(|place: usize| self.lines.get_mut(place)) {
                Some(line) => (line.process, line.took_us, line.seen_ns) = (process, took_us, seen_ns),
                None => self.lines.push(Line { process, took_us, seen_ns, history: [0; HISTORY] }),
            }
        }
        let mut room = GONE;
        self.lines.retain_mut(|line| {
            line.history.rotate_left(1);
            let tcp = line.process.ledger.tcp.filter(|_| line.seen_ns == seen_ns);
            line.history[HISTORY - 1] = tcp.map_or(0, |tcp| level(tcp.bytes_retrans, tcp.bytes_sent));
            if line.seen_ns != seen_ns {
                room = room.saturating_sub(1);
            }
            line.seen_ns == seen_ns || (room > 0 && line.seen_ns + MINUTE_NS > seen_ns)
        });
        self.interval = Some(interval);
        if !self.frozen {
            self.sort();
        }
    }

    /// The meaning of the lines on the screen.
    fn lines_by(&self) -> By {
        self.interval.as_ref().map_or(self.by, |interval| interval.by)
    }

    fn sort(&mut self) {
        let order = self.order;
        sort::by_key(&mut self.lines, |Line { process, took_us, .. }| {
            let tcp = process.ledger.tcp.as_ref();
            let rate = |count: u64| count * 1000 / (took_us / 1000).max(1);
            let first = match order {
                1 => tcp.map_or(0, |tcp| rate(tcp.bytes_sent)),
                2 => tcp.map_or(0, |tcp| rate(tcp.bytes_received)),
                3 => process.ledger.rtt.as_ref().and_then(|worst| worst.rtt.srtt_us).map_or(0, u64::from),
                4 => process.ledger.connections.map_or(0, |fates| fates.open),
                _ => 0,
            };
            (Reverse((first, process.segs, process.bytes, tcp.map_or(0, |tcp| tcp.bytes_sent))), process.pid)
        });
    }

    fn key(&mut self, key: u8) -> Then {
        match key {
            b'q' if !self.typing => return Then::End,
            b' ' if !self.typing => self.paused = !self.paused,
            _ if self.paused => return Then::Nothing,
            b'\r' | b'\n' => self.typing = false,
            0x1b => (self.typing, self.filter) = (false, String::new()),
            0x7f | 0x08 if self.typing => _ = self.filter.pop(),
            b' '..=b'~' if self.typing && self.filter.len() < FILTER => self.filter.push(key.into()),
            _ if self.typing => return Then::Nothing,
            b's' => {
                self.order = (self.order + 1) % ORDERS.len();
                self.sort();
            }
            b'b' => self.by = self.by.next(),
            b'f' => self.frozen = !self.frozen,
            b'/' => self.typing = true,
            b'?' => self.help = !self.help,
            _ => return Then::Nothing,
        }
        Then::Draw
    }

    /// The state in words.
    fn words(&self) -> String {
        let mut words = format!("{} by {}", several(self.lines_by()), ORDERS.get(self.order).unwrap_or(&""));
        for (said, holds) in [(", frozen", self.frozen), (", PAUSED", self.paused)] {
            words += if holds { said } else { "" };
        }
        if self.typing || !self.filter.is_empty() {
            words += &format!(", /{}{}", self.filter, if self.typing { "_" } else { "" });
        }
        words
    }
}

/// The view on a terminal. Dropping it leaves the screen.
pub struct View<'w> {
    terminal: Terminal,
    out: Named<Stdout<'w>>,
    about: String,
    calendar: Calendar,
    /// The length of an interval, microseconds.
    every_us: u64,
    colours: bool,
    blocks: bool,
    state: State,
}

impl Drop for View<'_> {
    /// Leave the screen, and print the messages that were held back while it was in use.
    fn drop(&mut self) {
        terminal::leave();
        say_held();
    }
}

/// Whether the locale's characters are UTF-8.
fn is_utf8() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| var_os(name).filter(|value| !value.is_empty()));
    let locale = locale.unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    locale.ends_with("utf-8") || locale.ends_with("utf8")
}

impl<'w> View<'w> {
    /// A view on this process's terminal, of intervals of this length; none if it has no terminal. Nothing is drawn yet.
    ///
    /// # Errors
    /// If the kernel does not let us watch the terminal.
    pub fn open(waiter: &'w Waiter, every: Duration, by: By, colours: Option<bool>) -> Result<Option<Self>> {
        let Some(terminal) = Terminal::open(waiter)? else { return Ok(None) };
        Ok(Some(Self {
            terminal,
            out: Named(Stdout::new(waiter)),
            about: format!("Linux {}", host::release()?),
            calendar: Calendar::default(),
            every_us: u64::try_from(every.as_micros()).unwrap_or(u64::MAX / 64),
            colours: colours.unwrap_or_else(|| var_os("NO_COLOR").is_none_or(|value| value.is_empty())),
            blocks: is_utf8(),
            state: State { by, ..State::default() },
        }))
    }

    /// The meaning of the lines of the next interval. A key changes it.
    #[must_use]
    pub fn by(&self) -> By {
        self.state.by
    }

    /// Take the screen.
    ///
    /// # Errors
    /// If the terminal does not take it.
    pub fn begin(&mut self, ready: &Ready<'_>) -> Result<()> {
        let proven = if ready.proven == Some(true) { "proven" } else { "not proven" };
        self.about += &format!("  {}, {proven}", ready.attach);
        self.terminal.enter()?;
        self.draw()
    }

    /// Show an interval.
    ///
    /// # Errors
    /// If the terminal does not take it.
    pub fn add(&mut self, interval: Interval) -> Result<()> {
        self.state.add(interval);
        if self.state.paused { Ok(()) } else { self.draw() }
    }

    /// Answer keys and signals of the terminal. Returns whether the run shall end.
    ///
    /// # Errors
    /// If the terminal refuses.
    pub fn answer(&mut self, woken: Woken) -> Result<bool> {
        let mut then = Then::Draw;
        match woken {
            Woken::Stop => {
                self.terminal.stop()?;
                self.state.paused = false;
            }
            Woken::Resized => {
                self.terminal.resized();
                then = if self.state.paused { Then::Nothing } else { Then::Draw };
            }
            _ => {
                then = Then::Nothing;
                let mut room = [0; 64];
                let keys = self.terminal.keys(&mut room)?;
                for (at, key) in keys.iter().enumerate() {
                    match self.state.key(*key) {
                        Then::End => return Ok(true),
                        Then::Nothing => {}
                        Then::Draw => then = Then::Draw,
                    }
                    // Escape begins the bytes of an arrow and the like; alone it is a key.
                    if *key == 0x1b && at + 1 < keys.len() {
                        break;
                    }
                }
            }
        }
        if then == Then::Draw {
            self.draw()?;
        }
        Ok(false)
    }

    fn draw(&mut self) -> Result<()> {
        let style = Style { size: self.terminal.size(), colours: self.colours, blocks: self.blocks };
        let (by, State { interval, lines, filter, help, .. }) = (self.state.lines_by(), &self.state);
        let (interval, help, state) = (interval.as_ref(), help.then_some(HELP), &self.state.words());
        let every_us = self.every_us;
        let screen = Screen { about: &self.about, by, interval, lines, filter, every_us, state, help };
        Ok(self.out.write_all(&draw(&screen, &mut self.calendar, style))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::counters::{Counters, Rtt};
    use crate::ledger::group::Group;
    use crate::ledger::row::Fates;
    use crate::ledger::summary::Summary;
    use crate::model::events::Flow;

    /// An interval that ends at this second, with processes and the segments that each sent again.
    fn interval(second: u64, processes: &[(u32, u64)]) -> Interval {
        let process = |&(tgid, segs)| {
            let key = ProcessKey { tgid, ..ProcessKey::default() };
            Process { key, pid: Some(tgid), comm: Some("x".into()), segs, ..Process::default() }
        };
        let summary = Summary { processes: processes.iter().map(process).collect(), ..Summary::default() };
        let by = By::Process;
        Interval {
            realtime_ns: 0,
            mono_ns: second * 1_000_000_000,
            took_us: 1_000_000,
            by,
            several_netns: false,
            summary,
        }
    }

    fn pids(state: &State) -> Vec<u32> {
        state.lines.iter().filter_map(|line| line.process.pid).collect()
    }

    #[test]
    fn the_order_holds_while_it_is_frozen() {
        let mut state = State::default();
        state.add(interval(1, &[(1, 9), (2, 5)]));
        assert_eq!(state.key(b'f'), Then::Draw);
        state.add(interval(2, &[(3, 50), (2, 10), (1, 1)]));
        assert_eq!(pids(&state), [1, 2, 3], "new ones come last");
        assert_eq!(state.lines[1].process.segs, 10, "figures go on");
        state.key(b'f');
        state.add(interval(3, &[(3, 50), (2, 10), (1, 1)]));
        assert_eq!(pids(&state), [3, 2, 1]);
    }

    #[test]
    fn a_key_changes_what_lines_stand_for_from_the_next_interval_on() {
        let mut state = State::default();
        state.add(interval(1, &[(1, 9)]));
        assert_eq!((state.key(b'b'), state.by, state.lines_by()), (Then::Draw, By::Connection, By::Process));
        state.add(interval(2, &[(1, 9)]));
        assert_eq!(
            (state.lines.len(), state.words().as_str()),
            (1, "processes by again"),
            "this interval was of processes"
        );
        let flows = [1, 2].map(|sport| Group::Connection(Flow { sport, ..Flow::default() }, ProcessKey::default()));
        let of = |flow| Process { group: Some(flow), ..Process::default() };
        let summary = Summary { processes: flows.map(of).into(), ..Summary::default() };
        state.add(Interval { by: By::Connection, summary, ..interval(3, &[]) });
        assert_eq!((state.lines.len(), state.words().as_str()), (2, "connections by again"), "both have one owner");
        let of = |tgid| Process {
            key: ProcessKey { tgid, ..ProcessKey::default() },
            group: Some(Group::Remote([1; 16])),
            ..Process::default()
        };
        state.key(b'b');
        for tgid in [1, 2] {
            let summary = Summary { processes: vec![of(tgid)], ..Summary::default() };
            state.add(Interval { by: By::Remote, summary, ..interval(3 + u64::from(tgid), &[]) });
            assert_eq!(state.lines.len(), 1, "one address, whoever owns its connections");
        }
        (0..2).for_each(|_| _ = state.key(b'b'));
        assert_eq!((state.by, state.lines.len()), (By::Process, 1), "rows stay until others come");
    }

    #[test]
    fn each_column_orders_the_lines() {
        let mut state = State::default();
        let mut all = interval(1, &[(1, 0), (2, 0), (3, 0), (4, 0), (5, 1)]);
        for process in &mut all.summary.processes {
            process.ledger.tcp = Some(Counters::ZERO);
            match (process.pid, &mut process.ledger.tcp) {
                (Some(1), Some(tcp)) => tcp.bytes_sent = 1,
                (Some(2), Some(tcp)) => tcp.bytes_received = 1,
                (Some(3), _) => process.ledger.rtt = Some(Rtt { srtt_us: Some(1), ..Rtt::default() }.into()),
                (Some(4), _) => process.ledger.connections = Some(Fates { open: 1, ..Fates::default() }),
                _ => {}
            }
        }
        state.add(all);
        let mut first = vec![pids(&state)[0]];
        for _ in 0..ORDERS.len() {
            state.key(b's');
            first.push(pids(&state)[0]);
        }
        assert_eq!(first, [5, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_process_stays_for_a_minute_after_its_last_figures() {
        let mut state = State::default();
        state.add(interval(1, &[(1, 9), (2, 5)]));
        for second in 2..=60 {
            state.add(interval(second, &[(2, 5)]));
            assert_eq!(pids(&state), [1, 2], "{second}");
        }
        state.add(interval(61, &[(2, 5)]));
        assert_eq!(pids(&state), [2]);
        let many: Vec<_> = (1..=1000).map(|pid| (pid, 1)).collect();
        state.add(interval(62, &many));
        state.add(interval(63, &[(2, 5)]));
        assert_eq!(state.lines.len(), GONE, "of short lives only so many stay");
    }

    #[test]
    fn keys_of_a_pause_and_of_a_filter_do_nothing_else() {
        let mut state = State::default();
        assert_eq!([b' ', b's', b'?'].map(|key| state.key(key)), [Then::Draw, Then::Nothing, Then::Nothing]);
        assert_eq!(state.words(), "processes by again, PAUSED");
        assert_eq!([b' ', b's'].map(|key| state.key(key)), [Then::Draw, Then::Draw]);
        b"/qs \x1fz\x7f".iter().for_each(|key| _ = state.key(*key));
        assert_eq!(state.words(), "processes by sent, /qs _");
        state.key(b'\r');
        assert_eq!((state.words().as_str(), state.key(b'q')), ("processes by sent, /qs ", Then::End));
        state.key(0x1b);
        assert_eq!(state.words(), "processes by sent");
    }
}
