//! Waiting: for records, for SIGINT, SIGTERM and SIGHUP, for the reader of our output to go away, and for a time to pass. Safe
//! code over nix.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// There are records to read.
    Records,
    /// The time has passed.
    Timeout,
    /// SIGINT, SIGTERM or SIGHUP asked to end.
    Signal,
    /// Nobody reads our standard output any more.
    OutputClosed,
    /// A CPU came or went.
    Cpus,
}

const RECORDS: u64 = 0;
const SIGNAL: u64 = 1;
const OUTPUT: u64 = 2;
const CPUS: u64 = 3;

/// Everything that can end a wait. SIGINT, SIGTERM and SIGHUP are blocked as long as it lives, and read from here instead.
pub struct Waiter {
    all: Epoll,
    /// The same without the rings, for a pause that records do not cut short.
    pause: Epoll,
    signals: SignalFd,
    /// Standard output, where that is a terminal.
    terminal: Option<File>,
}

/// No signal ends this process by itself: they are blocked, or one has come already.
static SIGNALS_HELD: AtomicBool = AtomicBool::new(false);

/// Standard error, where that is a terminal.
static TERMINAL: OnceLock<File> = OnceLock::new();

/// A terminal once more, so that writing to it never waits: it has room for a byte as soon as poll(2) says that it has room.
/// As another description, since whoever else has this one would get `O_NONBLOCK` too. None: something else, or it may
/// not be opened.
fn again(fd: impl IsTerminal + AsRawFd) -> Option<File> {
    let path = fd.is_terminal().then(|| format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()
}

fn ending_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    signals
}

impl Drop for Waiter {
    /// From now on they end the process again, but not the one for which it is ending.
    fn drop(&mut self) {
        let mut taken = false;
        while let Ok(Some(_)) = self.signals.read_signal() {
            taken = true;
        }
        let _ = ending_signals().thread_unblock();
        SIGNALS_HELD.store(taken, Ordering::Relaxed);
    }
}

impl Waiter {
    /// Block the signals that end a run and begin to watch.
    ///
    /// # Errors
    /// If the kernel has no descriptor left for us.
    pub fn new() -> Result<Self> {
        let signals = ending_signals();
        signals.thread_block().context("cannot block SIGINT, SIGTERM and SIGHUP")?;
        SIGNALS_HELD.store(true, Ordering::Relaxed);
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("cannot open a signalfd")?;
        if let Some(terminal) = again(io::stderr()) {
            let _ = TERMINAL.set(terminal);
        }
        let epoll = || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot open an epoll instance");
        let waiter = Self { all: epoll()?, pause: epoll()?, signals, terminal: again(io::stdout()) };
        for set in [&waiter.all, &waiter.pause] {
            set.add(&waiter.signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNAL)).context("cannot watch signals")?;
            match set.add(io::stdout().as_fd(), EpollEvent::new(EpollFlags::empty(), OUTPUT)) {
                // A regular file cannot be watched, and has no reader that could go away; nor has a closed stdout.
                Ok(()) | Err(Errno::EPERM | Errno::EBADF) => {}
                Err(error) => return Err(error).context("cannot watch standard output"),
            }
        }
        Ok(waiter)
    }

    /// Let records in this ring end a wait.
    ///
    /// # Errors
    /// If the kernel refuses to watch it.
    pub fn add_ring(&self, ring: BorrowedFd<'_>) -> Result<()> {
        self.all.add(ring, EpollEvent::new(EpollFlags::EPOLLIN, RECORDS)).context("cannot watch a perf ring")
    }

    /// Let a ring go that [`Waiter::add_ring`] was given.
    ///
    /// # Errors
    /// If it is not watched.
    pub fn remove_ring(&self, ring: BorrowedFd<'_>) -> Result<()> {
        self.all.delete(ring).context("cannot let a perf ring go")
    }

    /// Let changes of CPUs end a wait, and a pause.
    ///
    /// # Errors
    /// If the kernel refuses to watch them.
    pub fn add_cpus(&self, changes: BorrowedFd<'_>) -> Result<()> {
        let watch = |set: &Epoll| set.add(changes, EpollEvent::new(EpollFlags::EPOLLIN, CPUS));
        watch(&self.all).and_then(|()| watch(&self.pause)).context("cannot watch CPUs")
    }

    /// Wait until something happens, or until `deadline`.
    ///
    /// # Errors
    /// If the kernel cannot wait.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<Woken> {
        until(&self.all, deadline)
    }

    /// Wait for `time`, whatever records come meanwhile.
    ///
    /// # Errors
    /// If the kernel cannot wait.
    pub fn pause(&self, time: Duration) -> Result<Woken> {
        until(&self.pause, Some(Instant::now() + time))
    }
}

/// How long the reader of our output may take nothing, once a signal asked to end.
const GRACE: Duration = Duration::from_millis(1000);

/// Write what there is room for, once there is some: waiting until `end`, and from a signal in `signals` on at most
/// [`GRACE`]. Not by `O_NONBLOCK`: that would be everybody's who has this pipe; but `PIPE_BUF` bytes have room in a pipe that
/// has room.
///
/// # Errors
/// `TimedOut`; else the kernel's errno.
fn write_when_read(
    to: BorrowedFd<'_>,
    bytes: &[u8],
    mut signals: Option<BorrowedFd<'_>>,
    mut end: Option<Instant>,
) -> io::Result<usize> {
    let milliseconds = |time: Duration| PollTimeout::try_from(time.as_millis()).unwrap_or(PollTimeout::MAX);
    loop {
        let timeout = match end.map(|end| end.saturating_duration_since(Instant::now())) {
            None => PollTimeout::NONE,
            Some(Duration::ZERO) => return Err(io::ErrorKind::TimedOut.into()),
            // Rounded up, as in `until`.
            Some(left) => milliseconds(left + Duration::from_millis(1)),
        };
        let mut both = [PollFd::new(to, PollFlags::POLLOUT), PollFd::new(signals.unwrap_or(to), PollFlags::POLLIN)];
        match poll(&mut both[..1 + usize::from(signals.is_some())], timeout) {
            // A stop and continue (SIGSTOP, SIGCONT).
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        // An error or a reader that went away counts too: write(2) says which.
        let [has_room, asked_to_end] = both.map(|one| one.any().unwrap_or(true));
        if asked_to_end && signals.take().is_some() {
            end = Some(Instant::now() + GRACE);
        }
        if !has_room {
            continue;
        }
        match nix::unistd::write(to, &bytes[..bytes.len().min(libc::PIPE_BUF)]) {
            // Another process that has this pipe took the room; or a terminal has room for one byte, and a line feed is two.
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [], milliseconds(Duration::from_millis(10)));
            }
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Standard output of a process whose signals a [`Waiter`] reads. A write waits for room, and for those signals: after one it
/// goes on only as long as the reader does. So a reader that is slow gets all, and one that stopped does not keep us.
pub struct Stdout<'w> {
    waiter: &'w Waiter,
    unread: bool,
}

impl<'w> Stdout<'w> {
    /// With the signals of this waiter.
    pub fn new(waiter: &'w Waiter) -> Self {
        Self { waiter, unread: false }
    }
}

impl Write for Stdout<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stdout = io::stdout();
        let to = self.waiter.terminal.as_ref().map_or(stdout.as_fd(), AsFd::as_fd);
        let end = self.unread.then(Instant::now);
        match write_when_read(to, bytes, Some(self.waiter.signals.as_fd()), end) {
            // Closed from the start, as for the standard library: nobody wants to read it.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(bytes.len()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                self.unread = true;
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "asked to end, and nobody has read it for {} ms: what was not read, the summary too, is lost",
                        GRACE.as_millis()
                    ),
                ))
            }
            result => result,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard error. A write waits for room: as long as it takes where a signal ends that, else not for long.
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        let to = TERMINAL.get().map_or(stderr.as_fd(), AsFd::as_fd);
        let end = SIGNALS_HELD.load(Ordering::Relaxed).then(|| Instant::now() + GRACE);
        write_when_read(to, bytes, None, end)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn until(epoll: &Epoll, deadline: Option<Instant>) -> Result<Woken> {
    let mut events = [EpollEvent::empty(); 8];
    loop {
        let timeout = match deadline {
            None => EpollTimeout::NONE,
            // Rounded up: waking a fraction of a millisecond early would make this loop spin.
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let ms = left.as_nanos().div_ceil(1_000_000);
                EpollTimeout::try_from(i32::try_from(ms).unwrap_or(i32::MAX)).unwrap_or(EpollTimeout::MAX)
            }
        };
        let count = match epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            // A stop and continue (SIGSTOP, SIGCONT) may interrupt the call.
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("cannot wait for events"),
        };
        let woken = |what| events[..count].iter().any(|event| event.data() == what);
        if woken(SIGNAL) {
            return Ok(Woken::Signal);
        }
        if woken(OUTPUT) {
            return Ok(Woken::OutputClosed);
        }
        if woken(CPUS) {
            return Ok(Woken::Cpus);
        }
        if count > 0 {
            return Ok(Woken::Records);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(Woken::Timeout);
        }
    }
}
