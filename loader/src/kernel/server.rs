//! A listening socket, and its clients. Once the socket is open nothing here waits, so a slow client delays nobody. accept4(2)
//! is the only system call that no other part of xctl makes.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// An address and a port of TCP.
    Tcp(SocketAddr),
    /// A path for a Unix socket.
    Unix(PathBuf),
    /// A listening socket that this process inherited: systemd's first one has the number 3.
    Inherited(RawFd),
}

/// A listening socket.
pub struct Server {
    listener: OwnedFd,
    /// The path of a Unix socket's file, and the numbers of its device and inode. The file is removed when this value is
    /// dropped, unless another socket has taken its place.
    file: Option<(PathBuf, (u64, u64))>,
}

impl Server {
    /// Listen. A Unix socket at the path that nobody listens at is replaced.
    ///
    /// # Errors
    /// If the kernel refuses, or if the inherited descriptor is no listening socket.
    pub fn open(at: &At) -> Result<Self> {
        match at {
            At::Tcp(address) => {
                let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
                listener.set_nonblocking(true)?;
                Ok(Self { listener: listener.into(), file: None })
            }
            At::Unix(path) => {
                let shown = || format!("cannot listen at {}", path.display());
                let listener = bind(path).with_context(shown)?;
                listener.set_nonblocking(true)?;
                let file = Some((path.clone(), identity(path).with_context(shown)?));
                Ok(Self { listener: listener.into(), file })
            }
            At::Inherited(number) => Ok(Self { listener: inherited(*number)?, file: None }),
        }
    }

    /// The next client; none: no client waits, or the next one has gone already.
    ///
    /// # Errors
    /// Those of accept(2): for example, this process has too many open files.
    pub fn accept(&self) -> io::Result<Option<File>> {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the descriptor is open, and null pointers ask for no address.
        let fd = unsafe { libc::accept4(self.listener.as_raw_fd(), address, length, flags) };
        if fd >= 0 {
            // SAFETY: the kernel has just made the descriptor, which nobody else has.
            return Ok(Some(File::from(unsafe { OwnedFd::from_raw_fd(fd) })));
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            // The client has gone already, or its network has failed (accept(2)).
            error if matches!(error.raw_os_error(), Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO)) => Ok(None),
            error => Err(error),
        }
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((path, own)) = &self.file
            && identity(path).is_ok_and(|now| now == *own)
        {
            // Another user's folder may not let us. The next start replaces the file.
            let _ = fs::remove_file(path);
        }
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => match UnixStream::connect(path) {
            // The process of this socket has gone without removing it. A file that is no socket gives the same error.
            Err(gone) if gone.kind() == io::ErrorKind::ConnectionRefused && is_socket(path)? => {
                fs::remove_file(path)?;
                UnixListener::bind(path)
            }
            _ => Err(error),
        },
        result => result,
    }
}

/// The numbers of a file's device and of its inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

fn is_socket(path: &Path) -> io::Result<bool> {
    Ok(fs::symlink_metadata(path)?.file_type().is_socket())
}

/// An inherited listening socket. Its flag `O_NONBLOCK` also holds for other processes that have the socket.
fn inherited(number: RawFd) -> Result<OwnedFd> {
    let (mut listens, mut size): (libc::c_int, _) = (0, size_of::<libc::c_int>() as libc::socklen_t);
    let value = (&raw mut listens).cast();
    // SAFETY: the kernel writes at most `size` bytes to the value.
    let asked = unsafe { libc::getsockopt(number, libc::SOL_SOCKET, libc::SO_ACCEPTCONN, value, &raw mut size) };
    if asked < 0 {
        let error = io::Error::last_os_error();
        return Err(error).with_context(|| format!("cannot use descriptor {number}: it must be a listening socket"));
    }
    if listens == 0 {
        return Err(anyhow!("cannot use descriptor {number}: the socket does not listen"));
    }
    // SAFETY: no pointer is passed.
    let set = unsafe { libc::fcntl(number, libc::F_SETFL, libc::O_NONBLOCK) };
    if set < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot use descriptor {number}"));
    }
    // SAFETY: the descriptor is open, and this process inherited it for this use: nothing else in xctl has a listening socket.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
