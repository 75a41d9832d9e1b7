//! `xctl top` on a terminal: its figures are those that a process was told, and the terminal is as before in every ending.

use std::fs::read_to_string;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll as wait_for};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::Signal;
use nix::sys::termios::tcgetattr;

use super::filters::{Cgroup, path_of};
use super::hosts::by_shell;
use super::stats::{Connection, Stage};
use crate::host::Set;
use crate::process::{PATIENCE, Process, poll};
use crate::ways::Order;
use crate::{Family, Outcome, Verdict};

const ENTER: &str = "\x1b[?1049h";
const LEAVE: &str = "\x1b[?1049l";
/// The first bytes of each screen.
const HOME: &str = "\x1b[H\x1b[2K";
const SIZE: (usize, usize) = (24, 80);
const BYTES: u32 = 500_000;

/// The number of control characters that the kernel has. The C library's structure has more, without values.
const CONTROL: usize = 19;

/// The mode of a terminal: flags of input, of output and of the device, local flags, and control characters.
type Mode = ([u32; 4], [u8; CONTROL]);

fn mode(terminal: &OwnedFd) -> Result<Mode> {
    let mode: libc::termios = tcgetattr(terminal).context("reading the terminal's mode")?.into();
    let control = *mode.c_cc.first_chunk().context("the control characters")?;
    Ok(([mode.c_iflag, mode.c_oflag, mode.c_cflag, mode.c_lflag], control))
}

/// Reads what a terminal shows within this time. Returns whether it shows anything.
pub fn read_some(master: &OwnedFd, seen: &mut String, within: Duration) -> Result<bool> {
    let mut ready = [PollFd::new(master.as_fd(), PollFlags::POLLIN)];
    if wait_for(&mut ready, PollTimeout::try_from(within)?)? == 0 {
        return Ok(false);
    }
    let mut page = [0; 4096];
    let count = nix::unistd::read(master, &mut page).context("reading the terminal")?;
    *seen += str::from_utf8(&page[..count]).context("the terminal shows no text")?;
    Ok(true)
}

/// A terminal of 24 rows and 80 columns with an `xctl top`.
struct Screen {
    ends: OpenptyResult,
    before: Mode,
    xctl: Process,
    /// Everything that was printed.
    seen: String,
}

impl Screen {
    fn start(set: Set) -> Result<Screen> {
        let size = Winsize { ws_row: SIZE.0 as u16, ws_col: SIZE.1 as u16, ws_xpixel: 0, ws_ypixel: 0 };
        let ends = openpty(&size, None).context("making a terminal")?;
        // The terminal is closed once this process closes it.
        for end in [&ends.master, &ends.slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("keeping it from children")?;
        }
        let before = mode(&ends.slave)?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), ends.slave.as_raw_fd());
        let args = ["top", "--interval", "1", "--max-sockets", "32768", "--attach", &set.to_string()];
        let mut command: Command = by_shell("TERM=xterm", &args, &format!("<{path} >{path}"))?;
        // The kernel does not stop a process by SIGTSTP if no process could continue it.
        command.process_group(0);
        let xctl = Process::start("xctl top on a terminal", command)?;
        let mut screen = Screen { ends, before, xctl, seen: String::new() };
        screen.until("the screen", |screen| screen.seen.contains(HOME))?;
        ensure!(screen.seen.contains(ENTER), "it draws on the main screen: {:?}", screen.seen);
        let flags = screen.mode()?.0[3] & (libc::ICANON | libc::ECHO | libc::ISIG);
        ensure!(flags == libc::ISIG, "it has the local flags {flags:#x}");
        Ok(screen)
    }

    fn mode(&self) -> Result<Mode> {
        mode(&self.ends.slave)
    }

    /// Reads what is printed for this time.
    fn read(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while read_some(&self.ends.master, &mut self.seen, end.saturating_duration_since(Instant::now()))? {}
        Ok(())
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Screen) -> bool) -> Result<()> {
        let reached = poll(PATIENCE, || {
            self.read(Duration::from_millis(20))?;
            Ok(done(self))
        })?;
        ensure!(reached, "{what}: never; the last screen: {:#?}", self.screens()?.last());
        Ok(())
    }

    fn press(&mut self, keys: &str) -> Result<()> {
        std::fs::File::from(self.ends.master.try_clone()?).write_all(keys.as_bytes()).context("pressing keys")
    }

    /// The complete screens, each as its lines.
    fn screens(&self) -> Result<Vec<Vec<String>>> {
        let mut all: Vec<_> = self.seen.split(HOME).skip(1).collect();
        all.pop();
        let lines = |screen: &&str| screen.split("\r\n").map(plain).collect::<Vec<_>>();
        let screens: Vec<_> = all.iter().map(lines).collect();
        for screen in &screens {
            let fits = screen.len() == SIZE.0 && screen.iter().all(|line| line.chars().count() <= SIZE.1);
            ensure!(fits, "it has not 24 rows and 80 columns: {screen:#?}");
        }
        Ok(screens)
    }

    /// It has ended with success, and the terminal is as before. Returns what it printed afterwards.
    fn ended(mut self) -> Result<String> {
        let reached = poll(PATIENCE, || {
            self.read(Duration::from_millis(20))?;
            let stat = read_to_string(format!("/proc/{}/stat", self.xctl.pid())).unwrap_or_default();
            Ok(stat.contains(") Z "))
        })?;
        ensure!(reached, "it never ends");
        self.read(Duration::from_millis(20))?;
        self.xctl.succeed()?;
        ensure!(self.mode()? == self.before, "the mode is {:?}, and was {:?}", self.mode()?, self.before);
        let (screen, after) = self.seen.rsplit_once(LEAVE).context("it never leaves the alternate screen")?;
        ensure!(screen.ends_with("\x1b[?25h"), "the cursor is still hidden");
        ensure!(!after.contains('\x1b'), "after the screen it printed {after:?}");
        Ok(after.to_owned())
    }
}

/// A line without the sequences that set attributes or erase.
fn plain(line: &str) -> String {
    let mut pieces = line.split("\x1b[");
    let first = pieces.next().unwrap_or_default().to_owned();
    let after = |piece: &str| piece.split_once(['m', 'K']).map(|(_, text)| text.to_owned()).unwrap_or_default();
    let text = first + &pieces.map(after).collect::<String>();
    text.replace('\r', "")
}

/// The least and the greatest value that is shown as this number.
fn shown(number: &str) -> Result<[f64; 2]> {
    let value: f64 = number.parse().with_context(|| format!("{number:?}"))?;
    let places = number.split_once('.').map_or(0, |(_, places)| places.len() as i32);
    // Half a unit of the last digit. A rate of no byte is none.
    let half = if value == 0.0 && places == 0 { 0.0 } else { 0.5 * 0.1_f64.powi(places) };
    Ok([value - half, value + half])
}

/// The least and the greatest number of bytes that is shown as `500 kB`.
fn bytes(number: &str, unit: &str) -> Result<[f64; 2]> {
    let factor = match unit {
        "B" => 1.0,
        "kB" => 1e3,
        "MB" => 1e6,
        other => anyhow::bail!("what is {other}?"),
    };
    Ok(shown(number)?.map(|value| value * factor))
}

/// The least and the greatest number of bytes that the screens say this process sent.
fn sent(screens: &[Vec<String>], pid: u32) -> Result<[f64; 2]> {
    let mut sum = [0.0; 2];
    for screen in screens {
        let Some(length) = screen[1].split("  ").nth(1).and_then(|text| text.split_once(" s:")) else { continue };
        let lines = screen[4..].iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
        for line in lines.filter(|line| line.first() == Some(&pid.to_string().as_str())) {
            let [_, "writer", number, unit, ..] = line[..] else { anyhow::bail!("not a line of a writer: {line:?}") };
            let (rate, seconds) = (bytes(number, unit)?, shown(length.0)?);
            sum = [sum[0] + rate[0] * seconds[0], sum[1] + rate[1] * seconds[1]];
        }
    }
    Ok(sum)
}

/// The figures of a process that sends a known number of bytes.
fn figures(set: Set, stage: &mut Stage, connection: &Connection) -> Result<String> {
    let pid = stage.writer.who.pid;
    let mut screen = Screen::start(set)?;
    stage.reader.done(Order::Drain(connection.reads.0, 1 << 16, 0))?;
    stage.writer.done(Order::Pour(connection.writes.0, BYTES, 50_000))?;
    stage.rest(connection, BYTES.into())?;
    let told = stage.settled(connection)?[0].counter("bytes_sent");
    let fits = |[least, most]: [f64; 2]| least <= told as f64 && told as f64 <= most;
    let mut sum = [0.0; 2];
    let all = screen.until("all bytes on the screen", |screen| {
        sum = screen.screens().and_then(|screens| sent(&screens, pid)).unwrap_or([0.0; 2]);
        fits(sum)
    });
    all.with_context(|| format!("the screens say {sum:?} bytes, and the process was told {told}"))?;
    for rows in ["connections", "remote addresses", "cgroups", "processes"] {
        screen.press("b")?;
        let other = match rows {
            "connections" => {
                format!("{pid} writer :{} {}", connection.writes.1.local.port(), connection.writes.1.remote)
            }
            "remote addresses" => connection.writes.1.remote.ip().to_string(),
            "cgroups" => path_of(pid)?,
            _ => format!("{pid} writer "),
        };
        let (state, fits) = (format!("{rows} by again"), |line: &String| line.trim_start().starts_with(&other));
        screen.until(&format!("a row of {other:?}"), |screen| {
            let screens = screen.screens().unwrap_or_default();
            let last = screens.last().filter(|last| last[SIZE.0 - 1].starts_with(&state));
            last.is_some_and(|last| last[4..].iter().any(fits))
        })?;
    }
    screen.press("ss/no such\r")?;
    screen.until("the filter", |screen| {
        let screens = screen.screens().unwrap_or_default();
        let last = screens.last().and_then(|screen| screen.last());
        last.is_some_and(|last| last.starts_with("processes by received, /no such"))
    })?;
    let of_writer = |screens: &[Vec<String>]| sent(&screens[screens.len() - 1..], pid);
    ensure!(of_writer(&screen.screens()?)? == [0.0; 2], "the filter hides nothing");
    screen.press("q")?;
    let summary = screen.ended()?;
    let row = summary.lines().find(|line| line.contains(&format!(" {pid}  writer "))).context("not in the summary")?;
    let [_, number, unit, ..] = row.split_whitespace().collect::<Vec<_>>()[..] else { anyhow::bail!("{row:?}") };
    ensure!(fits(bytes(number, unit)?), "the process was told {told}, and the summary has {row:?}");
    Ok(format!("{:.0} to {:.0} bytes, the process was told {told}", sum[0], sum[1]))
}

pub fn run(set: Set, family: Family) -> Outcome {
    let mut stage = Stage::new(family)?;
    // The cgroup's path fits into the column of names.
    let Some(root) = Cgroup::root()? else { return Ok(Verdict::Skipped("this host has no cgroup v2".into())) };
    let cgroup = Cgroup::new(root.join(format!("xctl-{}", std::process::id())))?;
    cgroup.take(stage.writer.who.pid)?;
    let connection = stage.connect()?;
    let note = figures(set, &mut stage, &connection)?;

    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let screen = Screen::start(set)?;
        screen.xctl.signal(signal)?;
        let summary = screen.ended().with_context(|| format!("{signal}"))?;
        ensure!(summary.contains("segments sent again in"), "{signal}: no summary: {summary:?}");
    }

    let mut screen = Screen::start(set)?;
    screen.xctl.signal(Signal::SIGTSTP)?;
    let stat = format!("/proc/{}/stat", screen.xctl.pid());
    screen.until("stopped", |_| read_to_string(&stat).is_ok_and(|stat| stat.contains(") T ")))?;
    ensure!(screen.seen.trim_end().ends_with(LEAVE), "stopped, it keeps the screen: {:?}", screen.seen);
    ensure!(screen.mode()? == screen.before, "stopped, it keeps the mode");
    screen.seen.clear();
    screen.xctl.signal(Signal::SIGCONT)?;
    screen.until("the screen again", |screen| screen.seen.contains(ENTER) && screen.seen.contains(HOME))?;
    ensure!(screen.mode()? != screen.before, "continued, it has not set the mode");
    screen.press("q")?;
    screen.ended()?;

    let Screen { ends, mut xctl, .. } = Screen::start(set)?;
    drop(ends);
    xctl.succeed().context("the terminal was closed")?;
    Ok(Verdict::Passed(note))
}
