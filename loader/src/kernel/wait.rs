//! Waiting: for records, for SIGINT and SIGTERM, for the reader of our output to go away, and for a time to pass. Safe
//! code over nix.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
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
    /// SIGINT or SIGTERM asked to end.
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

/// Everything that can end a wait. SIGINT and SIGTERM are blocked from its creation on, and read from here instead.
pub struct Waiter {
    all: Epoll,
    /// The same without the rings, for a pause that records do not cut short.
    pause: Epoll,
    signals: SignalFd,
}

impl Waiter {
    /// Block the two signals and begin to watch.
    ///
    /// # Errors
    /// If the kernel has no descriptor left for us.
    pub fn new() -> Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.add(Signal::SIGTERM);
        signals.thread_block().context("cannot block SIGINT and SIGTERM")?;
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("cannot open a signalfd")?;
        let epoll = || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot open an epoll instance");
        let waiter = Self { all: epoll()?, pause: epoll()?, signals };
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
const GRACE_MS: u16 = 1000;

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

    /// Wait until there is room for at least `PIPE_BUF` bytes. Not by `O_NONBLOCK`: that would be everybody's who has this pipe.
    fn wait_for_room(&mut self) -> io::Result<()> {
        let stdout = io::stdout();
        let mut both = [
            PollFd::new(stdout.as_fd(), PollFlags::POLLOUT),
            PollFd::new(self.waiter.signals.as_fd(), PollFlags::POLLIN),
        ];
        let mut wait = |fds, timeout: PollTimeout| loop {
            match poll(&mut both[..fds], timeout) {
                Err(Errno::EINTR) => {}
                // An error or a reader that went away counts too: write(2) says which.
                result => return result.map(|_| both[0].any().unwrap_or(true)),
            }
        };
        if self.unread || !wait(2, PollTimeout::NONE)? && !wait(1, PollTimeout::from(GRACE_MS))? {
            self.unread = true;
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "asked to end, and nobody has read it for {GRACE_MS} ms: what was not read, the summary too, is lost"
                ),
            ));
        }
        Ok(())
    }
}

impl Write for Stdout<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.wait_for_room()?;
            match nix::unistd::write(io::stdout(), &bytes[..bytes.len().min(libc::PIPE_BUF)]) {
                // Another process that has this pipe took the room; or a stop and continue (SIGSTOP, SIGCONT).
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                // Closed from the start, as for the standard library: nobody wants to read it.
                Err(Errno::EBADF) => return Ok(bytes.len()),
                result => return Ok(result?),
            }
        }
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
