//! CPUs that go online and offline during the run, as the kernel announces them (kobject uevents). Other uevents do not
//! wake the reader.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::confine::{EQUAL, LOAD, RETURN, instruction};

/// A change of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The CPU is online from now on.
    Online(u32),
    /// The CPU is offline.
    Offline(u32),
}

/// The changes that the kernel announces. The kernel does not announce that it takes CPUs offline and back when the
/// machine is suspended.
pub struct Changes(File);

impl Changes {
    /// Listen from now on. Listening takes no privilege.
    ///
    /// # Errors
    /// The kernel's errno, if the kernel has no such sockets or something forbids them.
    pub fn listen() -> io::Result<Self> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: the call takes three numbers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just returned this descriptor, and nothing else uses it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // The filter is set before the socket is bound, so that no other text gets in. A text begins with the action:
        // "online@" or "offline@".
        let starts_with = |text: &[u8; 4], yes, no| instruction(EQUAL, u32::from_be_bytes(*text), yes, no);
        let mut program = [
            instruction(LOAD, 0, 0, 0),
            starts_with(b"onli", 1, 0),
            starts_with(b"offl", 0, 1),
            instruction(RETURN, u32::MAX, 0, 0),
            instruction(RETURN, 0, 0, 0),
        ];
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        let length = size_of_val(&program) as libc::socklen_t;
        // SAFETY: the kernel copies the program, whose length is that of the array.
        let result = unsafe {
            let program = (&raw const program).cast();
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program, length)
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        /// The multicast group of the kernel's own uevents, without those that udev has processed.
        const KERNEL: u32 = 1;
        // SAFETY: the structure is plain numbers, for which 0 is a value.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = KERNEL;
        let length = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the kernel reads the address, whose length is that of its type.
        let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(File::from(socket))) }
    }

    /// The next change that was announced; none if there is none at the moment.
    ///
    /// # Errors
    /// The kernel's errno.
    pub fn take(&mut self) -> io::Result<Option<Change>> {
        let mut text = [0; 2048];
        loop {
            match self.0.read(&mut text) {
                Ok(length) => {
                    if let Some(change) = parse(&text[..length]) {
                        return Ok(Some(change));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                // The socket had no room for some changes, so xctl does not learn of them. The records of these CPUs still
                // come through the shared ring (Linux 5.8 and newer).
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The descriptor that is readable when there is a change.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Parse `offline@/devices/system/cpu/cpu3`, a NUL, and more fields.
fn parse(text: &[u8]) -> Option<Change> {
    let first = text.split(|&byte| byte == 0).next()?;
    let (what, path) = std::str::from_utf8(first).ok()?.split_once('@')?;
    let cpu = path.strip_prefix("/devices/system/cpu/cpu")?.parse().ok()?;
    match what {
        "online" => Some(Change::Online(cpu)),
        "offline" => Some(Change::Offline(cpu)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cpus_are_reported_among_all_devices() {
        assert_eq!(parse(b"offline@/devices/system/cpu/cpu12\0ACTION=offline\0"), Some(Change::Offline(12)));
        assert_eq!(parse(b"online@/devices/system/cpu/cpu3\0"), Some(Change::Online(3)));
        for other in [
            &b"online@/devices/system/memory/memory3\0"[..],
            b"change@/devices/system/cpu/cpu3\0",
            b"online@/devices/system/cpu/cpufreq\0",
            b"online\0",
            b"",
            b"\xff@/devices/system/cpu/cpu3",
        ] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn nothing_is_reported_without_an_event() {
        // A developer's machine keeps its CPUs: no other announcement gets through the filter.
        if let Ok(mut changes) = Changes::listen() {
            assert_eq!(changes.take().unwrap_or_default(), None);
        }
    }
}
