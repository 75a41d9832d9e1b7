//! A child process that prints lines. Every wait has a time limit, and the process cannot outlive its handle.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// The limit of every wait, long enough for a busy emulated machine. A run without errors never reaches it.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct Process {
    what: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    errors: Option<JoinHandle<String>>,
}

impl Process {
    /// Starts `command` in the network namespace of the calling thread.
    pub fn start(what: &str, command: Command) -> Result<Process> {
        Process::start_by(what, command, |command| Ok(command.spawn()?))
    }

    /// Like [`Process::start`], but `spawn` starts the command.
    pub fn start_by(
        what: &str,
        mut command: Command,
        spawn: impl FnOnce(&mut Command) -> Result<Child>,
    ) -> Result<Process> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawn(&mut command).with_context(|| format!("starting {what} ({command:?})"))?;
        let output = child.stdout.take().context("no pipe for its output")?;
        let mut stderr = child.stderr.take().context("no pipe for its errors")?;
        let (line, lines) = mpsc::channel();
        // the thread ends at the first line after the receiver is gone, and so closes the pipe
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|text| line.send(text))
        });
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = stderr.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let input = child.stdin.take();
        Ok(Process { what: what.into(), child, input, lines, errors: Some(errors) })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of the output. An error if the process ended, with its standard error.
    pub fn line(&mut self) -> Result<String> {
        let line = self.line_until(Instant::now() + PATIENCE)?;
        line.with_context(|| format!("{} printed nothing for {PATIENCE:?}", self.what))
    }

    /// Like [`Process::line`], until `end`. None if there is no line by then.
    pub fn line_until(&mut self, end: Instant) -> Result<Option<String>> {
        match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                let (status, said) = (self.wait()?, self.errors());
                bail!("{} ended ({status}) and said: {}", self.what, said.trim())
            }
        }
    }

    /// All remaining lines of the output.
    pub fn rest(&mut self) -> Result<Vec<String>> {
        let end = Instant::now() + PATIENCE;
        let mut lines = Vec::new();
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => return Ok(lines),
                Err(RecvTimeoutError::Timeout) => bail!("{} did not end within {PATIENCE:?}", self.what),
            }
        }
    }

    /// Stops reading the output: from the next line on the process writes into a closed pipe.
    pub fn close_output(&mut self) {
        let (_, nobody) = mpsc::channel();
        self.lines = nobody;
    }

    /// Sends a line to the standard input.
    pub fn tell(&mut self, text: &str) -> Result<()> {
        let input = self.input.as_mut().context("its input is closed")?;
        writeln!(input, "{text}").with_context(|| format!("writing to {}", self.what))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), signal)
            .with_context(|| format!("sending {signal} to {}", self.what))
    }

    /// Waits until the process ends, and reaps it.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().with_context(|| format!("waiting for {}", self.what))? {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("{} still runs after {PATIENCE:?}", self.what);
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the process ends. An error unless it ended with success.
    pub fn succeed(&mut self) -> Result<()> {
        let (status, said) = (self.wait()?, self.errors());
        ensure!(status.success(), "{} ended ({status}) and said: {}", self.what, said.trim());
        Ok(())
    }

    /// The standard error of the process; only after it has ended.
    pub fn errors(&mut self) -> String {
        self.errors.take().and_then(|reader| reader.join().ok()).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file without a name, so no one has to remove it. Also returns the path that leads to the file as long as this process
/// has it open.
pub fn nameless_file(bytes: &[u8]) -> Result<(File, String)> {
    let mut file = File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).context("making a file")?);
    file.write_all(bytes).context("writing to it")?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    Ok((file, path))
}

/// The command that runs this executable again as `part`, with these arguments.
pub fn again(part: &str, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("finding this executable")?);
    command.arg(part).args(arguments);
    Ok(command)
}

/// The exit code of a process of [`again`]; prints its error.
pub fn end(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The time of the clock that stamps xctl's records (`CLOCK_MONOTONIC`), in nanoseconds.
pub fn now() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("reading the clock")?;
    Ok(u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?)
}

/// Calls `done` repeatedly until it returns true. False if it does not within `limit`.
pub fn poll(limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        if done()? {
            return Ok(true);
        }
        if Instant::now() > end {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
