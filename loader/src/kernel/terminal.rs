//! The terminal of a full-screen view: its mode, its size and its keys. Standard input has the keys and the mode, and
//! standard output has the screen.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};
use std::panic;
use std::sync::{Mutex, OnceLock};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::wait::{Waiter, reopened, write_soon};

/// The alternate screen, without a cursor and without line wrap.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?7l";
/// The screen as before.
const LEAVE: &[u8] = b"\x1b[m\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The mode of the terminal before [`Terminal::enter`]; none: the terminal has that mode. nix's type would lose flags that
/// nix does not know.
static BEFORE: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Standard output, for [`leave`] from anywhere in this process.
static SCREEN: OnceLock<File> = OnceLock::new();

/// A terminal that a full-screen view may take. While this value lives, SIGTSTP and SIGWINCH are blocked, and a [`Waiter`]
/// watches them and the keys. Dropping it leaves the screen.
pub struct Terminal {
    stops: SignalFd,
    resizes: SignalFd,
}

/// Whether this stream goes to a terminal that can move its cursor.
#[must_use]
pub fn moves_cursor(stream: &impl IsTerminal) -> bool {
    let moves = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
    moves && stream.is_terminal()
}

fn signals(of: Signal) -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(of);
    signals
}

fn blocked(of: Signal) -> Result<SignalFd> {
    let signals = signals(of);
    signals.thread_block().context("cannot block the terminal's signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("cannot open a signalfd")
}

impl Terminal {
    /// The terminal of this process; none if standard input or standard output is no terminal, or if the terminal cannot
    /// move its cursor. Nothing changes before [`Terminal::enter`]. A panic leaves the screen, too.
    ///
    /// # Errors
    /// If the kernel has no descriptor left.
    pub fn open(waiter: &Waiter) -> Result<Option<Self>> {
        if !moves_cursor(&io::stdout()) || !io::stdin().is_terminal() {
            return Ok(None);
        }
        let screen = match reopened(io::stdout()) {
            Some(screen) => screen,
            None => File::from(io::stdout().as_fd().try_clone_to_owned().context("cannot copy standard output")?),
        };
        let _ = SCREEN.set(screen);
        let terminal = Self { stops: blocked(Signal::SIGTSTP)?, resizes: blocked(Signal::SIGWINCH)? };
        waiter.add_terminal(io::stdin().as_fd(), terminal.stops.as_fd(), terminal.resizes.as_fd())?;
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            leave();
            hook(info);
        }));
        Ok(Some(terminal))
    }

    /// Take the screen: keys come one by one and without echo. Ctrl-C and Ctrl-Z stay signals; Ctrl-\ is none, since it would
    /// end the process without [`leave`].
    ///
    /// # Errors
    /// If the terminal does not take the mode.
    pub fn enter(&self) -> Result<()> {
        let before = mode().context("cannot read the terminal's mode")?;
        let mut mode = before;
        mode.c_lflag &= !(libc::ICANON | libc::ECHO);
        mode.c_cc[libc::VQUIT] = 0;
        (mode.c_cc[libc::VMIN], mode.c_cc[libc::VTIME]) = (0, 0);
        set_mode(&mode).context("cannot set the terminal's mode (--batch needs none)")?;
        if let Ok(mut saved) = BEFORE.lock() {
            *saved = Some(before);
        }
        Ok(write_soon(io::stdout().as_fd(), ENTER)?)
    }

    /// The keys that were pressed, at most as many as there is room for. It never waits.
    ///
    /// # Errors
    /// If the terminal cannot be read.
    pub fn keys<'k>(&self, room: &'k mut [u8]) -> Result<&'k [u8]> {
        let count = nix::unistd::read(io::stdin().as_fd(), room).context("cannot read keys")?;
        Ok(&room[..count])
    }

    /// Stop as SIGTSTP asked, with the screen as before, and take the screen again afterwards. SIGTSTP still waits to be
    /// delivered. The kernel drops it if no shell could continue this process.
    ///
    /// # Errors
    /// Those of [`Terminal::enter`].
    pub fn stop(&self) -> Result<()> {
        leave();
        let signals = signals(Signal::SIGTSTP);
        signals.thread_unblock().and_then(|()| signals.thread_block()).context("cannot stop")?;
        self.enter()
    }

    /// Note that the size has changed.
    pub fn resized(&self) {
        while let Ok(Some(_)) = self.resizes.read_signal() {}
    }

    /// The number of rows and of columns. A terminal that does not know its size has 24 and 80.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let (rows, columns) = size();
        (rows.unwrap_or(24), columns.unwrap_or(80))
    }
}

/// The columns of the terminal that standard output is; none: it is no terminal, or does not know its size.
#[must_use]
pub fn columns() -> Option<usize> {
    io::stdout().is_terminal().then(size)?.1
}

/// Rows and columns of the terminal, if it knows them.
fn size() -> (Option<usize>, Option<usize>) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel writes a winsize.
    unsafe { libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    let known = |count: u16| (count > 0).then(|| count.into());
    (known(size.ws_row), known(size.ws_col))
}

impl Drop for Terminal {
    fn drop(&mut self) {
        leave();
        for signal in [Signal::SIGWINCH, Signal::SIGTSTP] {
            let _ = signals(signal).thread_unblock();
        }
    }
}

/// Give the terminal back as it was before [`Terminal::enter`]. Nothing is allocated. A terminal that is gone needs nothing.
pub fn leave() {
    let Ok(mut before) = BEFORE.try_lock() else { return };
    if let (Some(before), Some(screen)) = (before.take(), SCREEN.get()) {
        let _ = write_soon(screen.as_fd(), LEAVE);
        let _ = set_mode(&before);
    }
}

/// Whether a full-screen view has the terminal.
#[must_use]
pub fn is_taken() -> bool {
    BEFORE.lock().is_ok_and(|before| before.is_some())
}

fn mode() -> io::Result<libc::termios> {
    // SAFETY: a termios of zeros is valid: it has only numbers.
    let mut mode = unsafe { std::mem::zeroed() };
    // SAFETY: the C library writes a termios.
    let result = unsafe { libc::tcgetattr(io::stdin().as_raw_fd(), &raw mut mode) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(mode) }
}

/// Set the mode at once: waiting for output could last for ever.
fn set_mode(mode: &libc::termios) -> io::Result<()> {
    // SAFETY: the C library reads a termios.
    let result = unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSANOW, mode) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
