//! Waiting for records, for SIGINT, SIGTERM and SIGHUP, for the reader of the output to go away, and for a time to
//! pass. Safe code over nix.

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
use nix::sys::stat::fstat;

/// The reason why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// There are records to read.
    Records,
    /// The time has passed.
    Timeout,
    /// SIGINT, SIGTERM or SIGHUP asked to end.
    Signal,
    /// The reader of standard output is gone.
    OutputClosed,
    /// A CPU went online or offline.
    Cpus,
    /// Keys were pressed.
    Keys,
    /// SIGTSTP asked to stop. It waits until it is unblocked.
    Stop,
    /// The terminal has another size.
    Resized,
}

const RECORDS: u64 = 0;
const SIGNAL: u64 = 1;
const OUTPUT: u64 = 2;
const CPUS: u64 = 3;
const KEYS: u64 = 4;
const STOP: u64 = 5;
const RESIZED: u64 = 6;

/// All sources that can end a wait. While this value lives, SIGINT, SIGTERM and SIGHUP are blocked, and this value
/// reads them.
pub struct Waiter {
    all: Epoll,
    /// The same sources without the rings, for a pause that records do not shorten.
    pause: Epoll,
    signals: SignalFd,
    /// Standard output, opened once more so that no write waits; none if it cannot be opened so.
    reopened: Option<File>,
    /// The most bytes of one write to standard output, once poll(2) says that it has room.
    most: usize,
}

/// Set while no signal ends this process by itself: the signals are blocked, or one has already arrived.
static SIGNALS_HELD: AtomicBool = AtomicBool::new(false);

/// Standard error, if it is a terminal.
static TERMINAL: OnceLock<File> = OnceLock::new();

/// Open a terminal or a pipe once more, so that writing to it never waits. A terminal has room for one byte as soon as
/// poll(2) says that it has room, and a pipe for one page. The result is another file description: `O_NONBLOCK` on the old
/// one would hold for all other users of it. None: the descriptor is neither of them, or may not be opened.
pub(super) fn reopened(fd: impl IsTerminal + AsRawFd + AsFd) -> Option<File> {
    let reopens = fd.is_terminal() || kind(fd.as_fd()) == libc::S_IFIFO;
    let path = reopens.then(|| format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()
}

/// The kind of a file, as in `st_mode`; 0 if it is closed.
fn kind(fd: BorrowedFd<'_>) -> libc::mode_t {
    fstat(fd).map_or(0, |status| status.st_mode & libc::S_IFMT)
}

fn ending_signals() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    signals
}

impl Drop for Waiter {
    /// From now on the signals end the process again. A signal that already makes the process end is dropped.
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
    /// If the kernel has no descriptor left.
    pub fn new() -> Result<Self> {
        let signals = ending_signals();
        signals.thread_block().context("cannot block SIGINT, SIGTERM and SIGHUP")?;
        SIGNALS_HELD.store(true, Ordering::Relaxed);
        let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("cannot open a signalfd")?;
        if let Some(terminal) = reopened(io::stderr()) {
            let _ = TERMINAL.set(terminal);
        }
        let epoll = || Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot open an epoll instance");
        let reopened = reopened(io::stdout());
        // A write to a file or to /dev/null waits for no reader, and a pipe that has room has room for `PIPE_BUF` bytes.
        let never_waits =
            matches!(kind(io::stdout().as_fd()), libc::S_IFREG | libc::S_IFCHR) && !io::stdout().is_terminal();
        let most = if never_waits || reopened.is_some() { usize::MAX } else { libc::PIPE_BUF };
        let waiter = Self { all: epoll()?, pause: epoll()?, signals, reopened, most };
        for set in [&waiter.all, &waiter.pause] {
            set.add(&waiter.signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNAL)).context("cannot watch signals")?;
            match set.add(io::stdout().as_fd(), EpollEvent::new(EpollFlags::empty(), OUTPUT)) {
                // A regular file cannot be watched, and has no reader that could go away. The same holds for a closed
                // standard output.
                Ok(()) | Err(Errno::EPERM | Errno::EBADF) => {}
                Err(error) => return Err(error).context("cannot watch standard output"),
            }
        }
        Ok(waiter)
    }

    /// Let records in this ring end a wait.
    ///
    /// # Errors
    /// If the kernel refuses to watch the ring.
    pub fn add_ring(&self, ring: BorrowedFd<'_>) -> Result<()> {
        self.all.add(ring, EpollEvent::new(EpollFlags::EPOLLIN, RECORDS)).context("cannot watch a perf ring")
    }

    /// Let each client that comes to a listening socket end a wait. A client that cannot be let in ends no further wait.
    ///
    /// # Errors
    /// If the kernel refuses to watch the socket.
    pub fn add_server(&self, listener: BorrowedFd<'_>) -> Result<()> {
        let once = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        self.all.add(listener, EpollEvent::new(once, RECORDS)).context("cannot watch for clients")
    }

    /// Stop watching a ring that was passed to [`Waiter::add_ring`].
    ///
    /// # Errors
    /// If the ring is not watched.
    pub fn remove_ring(&self, ring: BorrowedFd<'_>) -> Result<()> {
        self.all.delete(ring).context("cannot let a perf ring go")
    }

    /// Let changes of CPUs end a wait, and a pause.
    ///
    /// # Errors
    /// If the kernel refuses to watch the changes.
    pub fn add_cpus(&self, changes: BorrowedFd<'_>) -> Result<()> {
        let watch = |set: &Epoll| set.add(changes, EpollEvent::new(EpollFlags::EPOLLIN, CPUS));
        watch(&self.all).and_then(|()| watch(&self.pause)).context("cannot watch CPUs")
    }

    /// Let keys of the terminal, and the signals in these signalfds, end a wait, and a pause.
    ///
    /// # Errors
    /// If the kernel refuses to watch them.
    pub fn add_terminal(&self, keys: BorrowedFd<'_>, stops: BorrowedFd<'_>, resizes: BorrowedFd<'_>) -> Result<()> {
        for set in [&self.all, &self.pause] {
            for (fd, what) in [(keys, KEYS), (stops, STOP), (resizes, RESIZED)] {
                set.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, what)).context("cannot watch the terminal")?;
            }
        }
        Ok(())
    }

    /// Wait until an event arrives, or until `deadline`.
    ///
    /// # Errors
    /// If the kernel cannot wait.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<Woken> {
        until(&self.all, deadline)
    }

    /// Whether standard output takes bytes now, so that writing a few does not wait.
    #[must_use]
    pub fn has_room(&self) -> bool {
        has_room(io::stdout().as_fd())
    }

    /// Wait for `time`, even if records arrive meanwhile.
    ///
    /// # Errors
    /// If the kernel cannot wait.
    pub fn pause(&self, time: Duration) -> Result<Woken> {
        until(&self.pause, Some(Instant::now() + time))
    }
}

/// Whether a descriptor takes bytes now.
fn has_room(to: BorrowedFd<'_>) -> bool {
    let mut room = [PollFd::new(to, PollFlags::POLLOUT)];
    poll(&mut room, PollTimeout::ZERO).is_ok_and(|count| count == 1)
}

/// The time for which the reader of the output may read nothing, once a signal asked to end.
const GRACE: Duration = Duration::from_millis(1000);

/// Wait for room, and then write as much as there is room for. The wait lasts until `end`; after a signal in `signals`,
/// it lasts at most [`GRACE`]. The function does not set `O_NONBLOCK`, which would hold for all other users of the
/// pipe. At most `most` bytes are written, for which the room suffices.
///
/// # Errors
/// `TimedOut`; otherwise the kernel's errno.
fn write_when_read(
    to: BorrowedFd<'_>,
    bytes: &[u8],
    most: usize,
    mut signals: Option<BorrowedFd<'_>>,
    mut end: Option<Instant>,
) -> io::Result<usize> {
    let milliseconds = |time: Duration| PollTimeout::try_from(time.as_millis()).unwrap_or(PollTimeout::MAX);
    loop {
        let timeout = match end.map(|end| end.saturating_duration_since(Instant::now())) {
            None => PollTimeout::NONE,
            Some(Duration::ZERO) => return Err(io::ErrorKind::TimedOut.into()),
            // The time is rounded up, as in `until`.
            Some(left) => milliseconds(left + Duration::from_millis(1)),
        };
        let mut both = [PollFd::new(to, PollFlags::POLLOUT), PollFd::new(signals.unwrap_or(to), PollFlags::POLLIN)];
        match poll(&mut both[..1 + usize::from(signals.is_some())], timeout) {
            // A stop and continue (SIGSTOP, SIGCONT) interrupted the call.
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        // An error or a gone reader counts too: write(2) tells which of the two it is.
        let [has_room, asked_to_end] = both.map(|one| one.any().unwrap_or(true));
        if asked_to_end && signals.take().is_some() {
            end = Some(Instant::now() + GRACE);
        }
        if !has_room {
            continue;
        }
        match nix::unistd::write(to, &bytes[..bytes.len().min(most)]) {
            // Another process that has this pipe took the room. Or a terminal has room for one byte, and a line feed is
            // two bytes.
            Err(Errno::EAGAIN) => {
                let _ = poll(&mut [], milliseconds(Duration::from_millis(10)));
            }
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Standard output of a process whose signals a [`Waiter`] reads. A write waits for room and for those signals. After a
/// signal, a write goes on only as long as the reader reads. So a slow reader gets all output, and a reader that
/// stopped does not keep the process.
pub struct Stdout<'w> {
    waiter: &'w Waiter,
    unread: bool,
}

impl<'w> Stdout<'w> {
    /// Standard output with the signals of this waiter.
    pub fn new(waiter: &'w Waiter) -> Self {
        Self { waiter, unread: false }
    }
}

impl Write for Stdout<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stdout = io::stdout();
        let to = self.waiter.reopened.as_ref().map_or(stdout.as_fd(), AsFd::as_fd);
        let end = self.unread.then(Instant::now);
        match write_when_read(to, bytes, self.waiter.most, Some(self.waiter.signals.as_fd()), end) {
            // Standard output was closed from the start. The standard library too counts this as success, since nobody
            // wants to read it.
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(bytes.len()),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                self.unread = true;
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!(
                        "xctl was asked to end, and nobody has read its output for {} ms: unread records and the summary are lost",
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

/// Standard error. A write waits for room: without limit if a signal would end the process, otherwise at most for `GRACE`.
pub struct Stderr;

impl Stderr {
    /// Whether standard error takes bytes now, so that writing a few does not wait.
    #[must_use]
    pub fn has_room(&self) -> bool {
        has_room(io::stderr().as_fd())
    }
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr();
        let to = TERMINAL.get().map_or(stderr.as_fd(), AsFd::as_fd);
        let end = SIGNALS_HELD.load(Ordering::Relaxed).then(|| Instant::now() + GRACE);
        write_when_read(to, bytes, libc::PIPE_BUF, None, end)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Write all bytes, and wait for room at most for [`GRACE`]. Nothing is allocated.
///
/// # Errors
/// Those of [`write_when_read`].
pub(super) fn write_soon(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    let end = Some(Instant::now() + GRACE);
    while !bytes.is_empty() {
        bytes = &bytes[write_when_read(to, bytes, libc::PIPE_BUF, None, end)?..];
    }
    Ok(())
}

fn until(epoll: &Epoll, deadline: Option<Instant>) -> Result<Woken> {
    let mut events = [EpollEvent::empty(); 8];
    loop {
        let timeout = match deadline {
            None => EpollTimeout::NONE,
            // The time is rounded up: waking a fraction of a millisecond early would make this loop spin.
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
        // The terminal of the keys is gone.
        let gone = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        let no_keys = events[..count].iter().any(|event| event.data() == KEYS && event.events().intersects(gone));
        if woken(SIGNAL) {
            return Ok(Woken::Signal);
        }
        if woken(OUTPUT) {
            return Ok(Woken::OutputClosed);
        }
        if no_keys {
            return Ok(Woken::Signal);
        }
        for (what, woken_by) in [(STOP, Woken::Stop), (RESIZED, Woken::Resized), (KEYS, Woken::Keys)] {
            if woken(what) {
                return Ok(woken_by);
            }
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
