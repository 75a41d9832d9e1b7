//! `xctl top` on a terminal with and without colours, and with `--batch`.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::Signal;

use super::ends::one_sender;
use super::hosts::by_shell;
use super::screen::read_some;
use crate::host::Set;
use crate::process::{PATIENCE, Process};
use crate::workers::send_all;
use crate::{Family, Outcome, Verdict};

/// The sequence that begins a full screen.
const SCREEN: &str = "\x1b[?1049h";
/// The red of a share that is high.
const RED: &str = "\x1b[31m";

const COLUMNS: u16 = 80;

/// A terminal with an `xctl top`.
struct Terminal {
    ends: OpenptyResult,
    xctl: Process,
    /// Everything that was printed.
    seen: String,
}

impl Terminal {
    fn start(set: Set, netns: &str, environment: &str, more: &[&str]) -> Result<Terminal> {
        let size = Winsize { ws_row: 24, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        let ends = openpty(&size, None).context("making a terminal")?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), ends.slave.as_raw_fd());
        let set = set.to_string();
        let args = [&["top", "--interval", "0.5", "--attach", &set, "--netns", netns], more].concat();
        let command = by_shell(&format!("TERM=xterm {environment}"), &args, &format!("<{path} >{path}"))?;
        Ok(Terminal { ends, xctl: Process::start("xctl top on a terminal", command)?, seen: String::new() })
    }

    fn read(&mut self) -> Result<()> {
        while read_some(&self.ends.master, &mut self.seen, Duration::from_millis(5))? {}
        Ok(())
    }

    /// Whether it has printed the last line of the summary.
    fn is_done(&self) -> bool {
        self.seen.contains("nothing lost\r\n") || self.seen.contains("\r\nlost: ")
    }
}

/// Reads all terminals until each shows what is wanted.
fn read_until(terminals: &mut [(Terminal, bool, bool)], wanted: &dyn Fn(&Terminal) -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !terminals.iter().all(|(terminal, ..)| wanted(terminal)) {
        if Instant::now() > end {
            let missing =
                terminals.iter().find(|(terminal, ..)| !wanted(terminal)).map(|(terminal, ..)| &terminal.seen);
            bail!("a terminal never shows that: {missing:?}");
        }
        terminals.iter_mut().try_for_each(|(terminal, ..)| terminal.read())?;
    }
    Ok(())
}

pub fn run(set: Set, family: Family) -> Outcome {
    let (link, receiver, sender) = one_sender(family)?;
    let netns = link.a.path().display().to_string();
    let start = |environment: &str, more: &[&str]| Terminal::start(set, &netns, environment, more);
    // For each terminal: does it show a full screen, and does it use red?
    let mut terminals = [
        (start("", &[])?, true, true),
        (start("NO_COLOR=1", &[])?, true, false),
        (start("NO_COLOR=1", &["--color", "always"])?, true, true),
        (start("", &["--color", "never"])?, true, false),
        (start("", &["--batch"])?, false, false),
        (start("", &["--batch", "--color", "always"])?, false, false),
        (start("", &["--batch", "--by", "connection"])?, false, false),
    ];
    read_until(&mut terminals, &|terminal| terminal.seen.contains("segments sent again"))?;
    send_all(vec![sender])?;
    read_until(&mut terminals, &|terminal| terminal.seen.contains(" sender"))?;
    terminals.iter().try_for_each(|(terminal, ..)| terminal.xctl.signal(Signal::SIGINT))?;
    read_until(&mut terminals, &Terminal::is_done)?;
    drop((receiver, link));
    for (Terminal { xctl, seen, .. }, is_screen, is_red) in &mut terminals {
        xctl.succeed()?;
        ensure!(seen.contains(SCREEN) == *is_screen, "a full screen: {}, {seen:?}", !*is_screen);
        ensure!(seen.contains(RED) == *is_red, "red: {}, {seen:?}", !*is_red);
        if !*is_screen {
            ensure!(!seen.contains('\x1b'), "a sequence for terminals: {seen:?}");
            let long = seen.split("\r\n").find(|line| line.chars().count() > COLUMNS.into());
            ensure!(long.is_none(), "it is too long: {long:?}");
        }
    }
    Ok(Verdict::Passed(format!("on {} terminals", terminals.len())))
}
