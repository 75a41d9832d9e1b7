//! `xctl trace` on a terminal: a status line that each other line replaces, and that the end erases; and the progress of its start.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use super::ends::one_sender;
use super::hosts::by_shell;
use super::screen::read_some;
use crate::host::Set;
use crate::process::{PATIENCE, Process};
use crate::workers::send_all;
use crate::{Family, Outcome, Verdict};

/// The sequence that erases a line from its beginning.
const ERASE: &str = "\r\x1b[K";
const STATUS: &str = " sockets known, ";
/// Less than the time between two statuses.
const SOON: Duration = Duration::from_millis(50);

/// Reads what the terminal shows until `done` says so.
fn read(ends: &OpenptyResult, seen: &mut String, done: impl Fn(&str) -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !done(seen) {
        ensure!(Instant::now() < end, "it never shows that: {seen:?}");
        read_some(&ends.master, seen, SOON)?;
    }
    Ok(())
}

/// The segments that a status tells.
fn segments(status: &str) -> Option<u64> {
    status.split_once(STATUS)?.1.split(' ').next()?.parse().ok()
}

pub fn run(set: Set, family: Family) -> Outcome {
    let (link, receiver, sender) = one_sender(family)?;
    let ends =
        openpty(&Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }, None).context("making a terminal")?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), ends.slave.as_raw_fd());
    let netns = link.a.path().display().to_string();
    let args = ["trace", "--attach", &set.to_string(), "--netns", &netns];
    let mut xctl = Process::start("xctl on a terminal", by_shell("TERM=xterm", &args, &format!(">{path} 2>&1"))?)?;
    let mut seen = String::new();
    // Lines are short on 80 columns.
    read(&ends, &mut seen, |seen| seen.contains("LOCAL -> REMOTE\r\n"))?;
    ensure!(seen.contains("TIME     KIND "), "the titles are not short: {seen:?}");
    // A quiet host has a status, too.
    read(&ends, &mut seen, |seen| seen.contains(STATUS))?;
    send_all(vec![sender])?;
    link.quiet()?;
    drop(receiver);
    // Statuses of the time of the traffic wait to be read.
    while read_some(&ends.master, &mut seen, SOON)? {}
    let begun = seen.matches(STATUS).count();
    read(&ends, &mut seen, |seen| seen.matches(STATUS).count() > begun + 2)?;
    xctl.signal(Signal::SIGINT)?;
    // A kernel that does not tell how many runs it skipped makes the last line another one.
    read(&ends, &mut seen, |seen| seen.contains("nothing lost\r\n") || seen.contains("\r\nlost: "))?;
    xctl.succeed()?;

    let statuses: Vec<_> = seen.split(ERASE).filter(|piece| piece.contains(STATUS)).collect();
    let last = statuses.last().and_then(|status| segments(status)).context("no status")?;
    // A person sees the text after the last erasure of each line.
    let lines: Vec<_> = seen.split("\r\n").map(|line| line.rsplit(ERASE).next().unwrap_or(line)).collect();
    ensure!(lines.iter().all(|line| !line.contains(STATUS) && !line.contains('\x1b')), "a status is left: {lines:#?}");
    let summary = lines.iter().find_map(|line| line.split_once(" segments sent again in ")).context("no summary")?;
    ensure!(summary.0.parse() == Ok(last) && last > 0, "the last status has {last} segments, the summary {summary:?}");
    let events = lines.iter().filter(|line| line.contains(" sender ")).count();
    ensure!(events > 0, "no event: {lines:#?}");
    Ok(Verdict::Passed(format!("{last} segments, {} statuses", statuses.len())))
}

/// Reading many sockets that are open already shows its progress on a terminal, and nothing of the progress stays there. Elsewhere
/// there is none.
pub fn progress(set: Set, _: Family) -> Outcome {
    const CONNECTIONS: usize = 2100;
    const PROGRESS: &str = "reading open sockets: 4096";
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(8192), hard.max(8192))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let connect = || Ok((TcpStream::connect(listener.local_addr()?)?, listener.accept()?));
    let _held = (0..CONNECTIONS).map(|_| connect()).collect::<Result<Vec<_>>>()?;
    let ends =
        openpty(&Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 }, None).context("making a terminal")?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), ends.slave.as_raw_fd());
    let args = ["trace", "--attach", &set.to_string(), "--duration", "0.2"];
    let mut xctl = Process::start("xctl on a terminal", by_shell("TERM=xterm", &args, &format!(">{path} 2>&1"))?)?;
    let mut seen = String::new();
    read(&ends, &mut seen, |seen| seen.contains("LOCAL -> REMOTE\r\n"))?;
    xctl.succeed()?;
    while read_some(&ends.master, &mut seen, SOON)? {}
    ensure!(seen.contains(&format!("{ERASE}xctl: {PROGRESS}{ERASE}")), "no progress that is erased: {seen:?}");
    let mut quiet = Process::start("xctl", by_shell("TERM=xterm", &args, "2>&1")?)?;
    let lines = quiet.rest()?;
    quiet.succeed()?;
    ensure!(!lines.iter().any(|line| line.contains(PROGRESS)), "progress without a terminal: {lines:?}");
    Ok(Verdict::Passed(format!("with {CONNECTIONS} connections")))
}
