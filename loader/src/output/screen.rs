//! The live view of `xctl top`: one screen, redrawn as a whole.

use super::Interval;
use super::names::named;
use super::top::{Cells, heading, several, title};
use super::width::{beginning, width};
use crate::kernel::calendar::Calendar;
use crate::ledger::group::By;
use crate::ledger::summary::Process;

/// The number of intervals that a line remembers. A sparkline shows those of the last minute.
pub const HISTORY: usize = 60;
const MINUTE_US: u64 = 60_000_000;

const DIM: &str = "\x1b[2m";
const BOLD: &str = "\x1b[1m";
const REVERSE: &str = "\x1b[7m";
const RED: &str = "\x1b[31m";

/// The figures of [`Cells`]: the title, its width, and the width of a screen that shows it.
const COLUMNS: [(&str, usize, usize); 9] = [
    ("OPEN", 6, 90),
    ("ENDED", 6, 100),
    ("SENT/s", 8, 0),
    ("RECV/s", 8, 72),
    ("AGAIN", 6, 0),
    ("RTT", 7, 60),
    ("+QUEUE", 7, 130),
    ("RWND", 6, 150),
    ("SNDBUF", 6, 150),
];
/// The place of the share that was sent again in them.
const AGAIN: usize = 4;

/// The width of the columns before them that name a process, and of the column that names something else: from 130 columns on,
/// where OPEN and ENDED still fit, and on a narrower screen.
const NAMED: (usize, [usize; 2]) = (7 + 1 + 15, [48, 40]);
/// The width that a verdict needs before there is room for a sparkline, and the least width of that.
const VERDICT: usize = 32;
const SPARKLINE: usize = 10;

/// The levels of a sparkline: nothing, more than nothing, and from 0.1, 0.3, 1, 3, 10, 30 and 100 per cent on.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const ASCII: [char; 9] = [' ', '.', ':', '-', '=', '+', '*', '%', '#'];

/// The level of a share in a sparkline.
#[must_use]
pub fn level(part: u64, whole: u64) -> u8 {
    let from = [1, 3, 10, 30, 100, 300, 1000];
    let permille = u128::from(part) * 1000;
    let reached = from.iter().filter(|from| permille >= u128::from(whole) * **from).count();
    if part == 0 { 0 } else { 1 + reached as u8 }
}

/// A row of the screen.
#[derive(Debug)]
pub struct Line {
    /// The process or group, with its figures in the last interval that had any.
    pub process: Process,
    /// The length of that interval.
    pub took_us: u64,
    /// The end of that interval, ns of CLOCK_MONOTONIC.
    pub seen_ns: u64,
    /// The levels of its share that was sent again, the newest last.
    pub history: [u8; HISTORY],
}

/// What the terminal can show.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    /// Rows and columns.
    pub size: (usize, usize),
    /// It may have colours.
    pub colours: bool,
    /// It has the characters of sparklines; otherwise ASCII.
    pub blocks: bool,
}

/// The values of a screen.
#[derive(Debug)]
pub struct Screen<'a> {
    /// The kernel and the hooks.
    pub about: &'a str,
    /// The meaning of the lines.
    pub by: By,
    /// The last interval; its rows are in `lines`. None: no interval has ended yet.
    pub interval: Option<&'a Interval>,
    /// The rows in the order to show.
    pub lines: &'a [Line],
    /// Only names with this text are shown.
    pub filter: &'a str,
    /// The length of an interval, microseconds.
    pub every_us: u64,
    /// How the lines are ordered, and the like.
    pub state: &'a str,
    /// A line to show in place of the last.
    pub help: Option<&'a str>,
}

/// The bytes of a screen so far. Nothing is put right of its last column or below its last row.
struct Frame {
    out: Vec<u8>,
    rows: usize,
    columns: usize,
    left: usize,
}

impl Frame {
    /// Begin the next line. A terminal may erase its last column with what is right of it, so a line is erased first.
    fn line(&mut self) {
        self.left = 0;
        if self.rows > 0 {
            (self.rows, self.left) = (self.rows - 1, self.columns);
            self.out.extend_from_slice(if self.out.is_empty() { b"\x1b[H\x1b[2K" } else { b"\r\n\x1b[2K" });
        }
    }

    /// Put a text, as much as has room.
    fn put(&mut self, style: &str, text: &str) {
        let text = beginning(text, self.left);
        self.left -= width(text);
        for part in [style, text, if style.is_empty() { "" } else { "\x1b[m" }] {
            self.out.extend_from_slice(part.as_bytes());
        }
    }
}

/// Draw a screen.
#[must_use]
pub fn draw(screen: &Screen<'_>, calendar: &mut Calendar, style: Style) -> Vec<u8> {
    let (rows, columns) = style.size;
    let mut frame = Frame { out: Vec::new(), rows, columns, left: 0 };
    let (again, lost) = match screen.interval {
        Some(interval) => heading(calendar, interval),
        None => ("waiting for the end of the first interval".into(), None),
    };
    frame.line();
    frame.put(BOLD, screen.about);
    frame.line();
    frame.put("", &again);
    frame.line();
    frame.put(if lost.is_some() { BOLD } else { DIM }, lost.as_deref().unwrap_or("no known loss so far"));

    let by = screen.by;
    let room_for_name = match by {
        By::Process => NAMED.0,
        _ => NAMED.1[usize::from(columns < 130)],
    };
    let shown = |from: usize| columns + NAMED.0 >= from + room_for_name;
    let figures: usize = COLUMNS.iter().filter(|column| shown(column.2)).map(|(_, width, _)| width + 1).sum();
    let room = columns.saturating_sub(room_for_name + figures + 1);
    let every_us = screen.every_us.max(1);
    let remembered = ((MINUTE_US + every_us / 2) / every_us).clamp(1, HISTORY as u64) as usize;
    // A character stands for several intervals where there is less room: it has the highest level of them.
    let (spark, group) = match room.saturating_sub(VERDICT + 1) {
        0..SPARKLINE => (0, 1),
        room => {
            let group = remembered.div_ceil(room);
            (remembered.div_ceil(group).max(SPARKLINE), group)
        }
    };
    let verdict = if spark > 0 { room - spark - 1 } else { room };
    frame.line();
    let mut titles = title(by, room_for_name);
    for (title, width, _) in COLUMNS.iter().filter(|column| shown(column.2)) {
        titles += &format!(" {title:>width$}");
    }
    titles += &format!(" {:<verdict$}", "VERDICT");
    if spark > 0 {
        let seconds = (remembered as u64 * every_us + 500_000) / 1_000_000;
        let again = if spark < "AGAIN, 60 s".len() { "" } else { "AGAIN, " };
        titles += &format!(" {:<spark$}", format!("{again}{seconds} s"));
    }
    frame.put(REVERSE, &titles);

    let several_netns = screen.interval.is_some_and(|interval| interval.several_netns);
    let mut lines = screen
        .lines
        .iter()
        .filter(|line| screen.filter.is_empty() || named(&line.process, by).1.contains(screen.filter));
    for line in lines.by_ref().take(rows.saturating_sub(5)) {
        let cells = Cells::new(&line.process, by, line.took_us, several_netns);
        let now = screen.interval.is_some_and(|interval| interval.mono_ns == line.seen_ns);
        let plain = if now { "" } else { DIM };
        frame.line();
        frame.put(plain, &cells.named(room_for_name));
        for (at, (_, width, _)) in COLUMNS.iter().enumerate().filter(|(_, column)| shown(column.2)) {
            let figure = cells.figures.as_ref().map_or("", |figures| &figures[at]);
            let high = at == AGAIN && now && style.colours && is_high(&line.process);
            frame.put(if high { RED } else { plain }, &format!(" {figure:>width$}"));
        }
        frame.put(plain, &format!(" {:<verdict$}", cells.verdict(verdict)));
        if spark > 0 {
            let levels = if style.blocks { BLOCKS } else { ASCII };
            let highest =
                line.history[HISTORY - remembered..].rchunks(group).rev().filter_map(|part| part.iter().max());
            let history: String = highest.filter_map(|level| levels.get(usize::from(*level))).collect();
            frame.put(plain, &format!(" {history:>spark$}"));
        }
    }
    let more = lines.count();
    while frame.rows > 1 {
        frame.line();
    }
    frame.line();
    match screen.help {
        Some(help) => frame.put("", help),
        None => {
            frame.put("", screen.state);
            let more = if more > 0 { format!(", and {more} more {}", several(by)) } else { String::new() };
            frame.put(DIM, &format!("{more} (? for help)"));
        }
    }
    frame.out
}

/// Whether at least 1 % of the bytes were sent again.
fn is_high(process: &Process) -> bool {
    process.ledger.tcp.is_some_and(|tcp| tcp.bytes_retrans > 0 && tcp.bytes_retrans >= tcp.bytes_sent.div_ceil(100))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::group::Group;
    use crate::output::top::tests::interval;

    /// What a terminal shows, each line with its attributes as `<2>` and `<>`. It knows only what [`draw`] may send.
    fn shown(bytes: &[u8], (rows, columns): (usize, usize)) -> Vec<String> {
        let text = str::from_utf8(bytes).unwrap().strip_prefix("\x1b[H").unwrap();
        let mut lines = Vec::new();
        for line in text.split("\r\n") {
            let (mut shown, mut count) = (String::new(), 0);
            let mut chars = line.strip_prefix("\x1b[2K").unwrap().chars();
            while let Some(char) = chars.next() {
                if char != '\x1b' {
                    assert!(!char.is_control(), "{char:?} in {line:?}");
                    (shown, count) = (shown + &char.to_string(), count + 1);
                    continue;
                }
                assert_eq!(chars.next(), Some('['), "{line:?}");
                shown += &format!("<{}>", chars.by_ref().take_while(|char| *char != 'm').collect::<String>());
            }
            assert!(count <= columns, "{count} of {columns} columns: {shown}");
            lines.push(shown);
        }
        assert_eq!(lines.len(), rows);
        lines
    }

    /// The screen of an interval with this many processes, after each was changed.
    fn lines(size: (usize, usize), processes: u32, change: impl Fn(&mut Line)) -> Vec<String> {
        lines_by(By::Process, size, processes, change)
    }

    fn lines_by(by: By, size: (usize, usize), processes: u32, change: impl Fn(&mut Line)) -> Vec<String> {
        let mut interval = interval(processes);
        let line = |process| Line { process, took_us: 2_000_000, seen_ns: interval.mono_ns, history: [0; HISTORY] };
        let mut lines: Vec<_> = std::mem::take(&mut interval.summary.processes).into_iter().map(line).collect();
        lines.iter_mut().for_each(change);
        interval.by = by;
        let (about, state, interval) = ("Linux 6.1  kprobe, proven", "by again", Some(&interval));
        let screen = Screen { about, by, interval, lines: &lines, filter: "", every_us: 2_000_000, state, help: None };
        let style = Style { size, colours: true, blocks: true };
        shown(&draw(&screen, &mut Calendar::default(), style), size)
    }

    #[test]
    fn eighty_columns_have_the_figures_that_matter() {
        let lines = lines((24, 80), 2, |_| ());
        let expected = [
            "<1>Linux 6.1  kprobe, proven<>",
            "01:02:03  2.0 s: 700 segments sent again, 350.0/s (rto 700)",
            "<1>lost so far: perf 3, missed 9<>",
            "<7>    PID COMM              SENT/s   RECV/s  AGAIN     RTT VERDICT                <>",
            "      1 fifteen-letters   5.0 MB      0 B<31>   10 %<>    99 s loss 10 %,..queue +99 s",
            "      2 fifteen-letters   5.0 MB      0 B  0.0 %    99 s network: queue +99 s   ",
            "",
        ];
        assert_eq!(lines[..7], expected);
        assert_eq!(lines[23], "by again<2> (? for help)<>");
    }

    #[test]
    fn a_wide_screen_has_every_column_and_a_sparkline() {
        let levels = |line: &mut Line| {
            line.history[HISTORY - 18..].copy_from_slice(&[0, 0, 1, 1, 2, 0, 0, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8]);
        };
        let lines = lines((40, 120), 1, levels);
        let titles = "    PID COMM              OPEN  ENDED   SENT/s   RECV/s  AGAIN     RTT VERDICT                           \
                      AGAIN, 60 s    ";
        assert_eq!(lines[3], format!("<7>{titles}<>"));
        let line = "      1 fifteen-letters 123456      7   5.0 MB      0 B<31>   10 %<>    99 s loss 10 %, \
                    mark.. MB, queue +99 s        ▁▂▃▄▅▆▇█";
        assert_eq!(lines[4], line);
        let shares = [(0, 0), (1, 1_000_000), (1, 1000), (3, 1000), (1, 100), (3, 100), (1, 10), (3, 10), (7, 7)];
        assert_eq!(shares.map(|(part, whole)| level(part, whole)), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn a_row_that_stands_for_no_process_has_more_room_for_its_name() {
        let remote = "2001:db8:1234:5678:9abc:def0:1234:5678".parse::<std::net::Ipv6Addr>().unwrap().octets();
        let shown = |columns| {
            let change = |line: &mut Line| line.process.group = Some(Group::Remote(remote));
            lines_by(By::Remote, (24, columns), 1, change)
        };
        let of_80 = shown(80);
        let titles = "REMOTE                                     SENT/s  AGAIN     RTT VERDICT        ";
        assert_eq!(of_80[3], format!("<7>{titles}<>"));
        let line = "2001:db8:1234:5678:9abc:def0:1234:5678     5.0 MB<31>   10 %<>    99 s loss 1..e +99 s";
        assert_eq!(of_80[4], line);
        let shown =
            [90, 107, 117, 120, 129, 130, 155].map(|columns| shown(columns)[3].matches(char::is_uppercase).count());
        assert!(shown.is_sorted() && shown[0] < shown[6], "a wider screen has no column less: {shown:?}");
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        let lines = lines((24, 80), 1, |line| line.process.comm = Some("\x1b[2J\r\n\u{9b}31mé".into()));
        assert!(lines[4].starts_with("      1 ?[2J???31mé       5.0 MB"), "{lines:?}");
    }

    #[test]
    fn lines_without_room_are_counted_and_nothing_leaves_a_small_screen() {
        let of_24 = lines((24, 80), 30, |_| ());
        let pids = of_24[4..23].iter().map(|line| line.trim_start().split(' ').next().unwrap().parse());
        assert_eq!(pids.collect::<Result<Vec<u32>, _>>(), Ok((1..20).collect()));
        assert_eq!(of_24[23], "by again<2>, and 11 more processes (? for help)<>");
        for size in [(1, 1), (2, 7), (3, 30), (5, 60), (6, 79), (200, 400)] {
            lines(size, 30, |_| ());
        }
    }

    #[test]
    fn a_process_without_a_connection_is_dim_and_never_red() {
        let lines = lines((24, 80), 1, |line| line.seen_ns -= 1);
        assert!(lines[4].starts_with("<2>      1 fifteen-letters<>") && lines[4].contains("<2>   10 %<>"), "{lines:?}");
    }
}
