//! The privileges that this process has and needs, and how it gives them up.

use std::io;

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

use super::capability::{
    BPF, Capabilities, Capability, DAC_READ_SEARCH, PERFMON, SETGID, SETPCAP, SETUID, SYS_ADMIN, SYS_PTRACE,
};
use super::file::read;
use crate::error::{Blocked, Exit};

/// `struct __user_cap_header_struct`, version 3: two words of data.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `struct __user_cap_data_struct`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const VERSION_3: u32 = 0x2008_0522;

fn get() -> io::Result<[Data; 2]> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut data = [Data::default(); 2];
    // SAFETY: version 3 fills in two words of data for the calling thread; both structures are the kernel's own.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(data) }
}

fn set(effective: Capabilities, permitted: Capabilities, inheritable: Capabilities) -> io::Result<()> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let word = |shift: u32| Data {
        effective: (effective.0 >> shift) as u32,
        permitted: (permitted.0 >> shift) as u32,
        inheritable: (inheritable.0 >> shift) as u32,
    };
    let data = [word(0), word(32)];
    // SAFETY: version 3 reads two words of data for the calling thread; both structures are the kernel's own.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// prctl(2) with one or two numbers.
fn prctl(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> io::Result<()> {
    const UNUSED: libc::c_ulong = 0;
    // SAFETY: the options that this file passes take numbers, no pointers.
    let result = unsafe { libc::prctl(option, first, second, UNUSED, UNUSED) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The capabilities in force for the calling thread.
///
/// # Errors
/// If the kernel does not tell.
pub fn effective() -> Result<Capabilities> {
    let [low, high] = get().context("cannot ask for this process's capabilities")?;
    Ok(Capabilities(u64::from(low.effective) | u64::from(high.effective) << 32))
}

/// Give up all capabilities of the calling thread but these for good. Where that is permitted, this also holds for the
/// programs that the thread executes.
///
/// # Errors
/// If the thread lacks one of these capabilities.
pub fn keep_only(keep: Capabilities) -> Result<()> {
    if effective()?.has(SETPCAP) {
        for bit in (0..64).filter(|bit| keep.0 & 1 << bit == 0) {
            match prctl(libc::PR_CAPBSET_DROP, bit, 0) {
                // Neither this number nor a larger one is a capability.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                result => result.with_context(|| format!("cannot drop capability {bit} from the bounding set"))?,
            }
        }
    }
    set(keep, keep, Capabilities::NONE).context("cannot give up capabilities")
}

/// Whether an operation works without any capability. The capabilities that are held are back in force afterwards.
///
/// # Errors
/// If the capabilities cannot be lowered or raised again.
pub fn works_without<T, E>(what: impl FnOnce() -> Result<T, E>) -> Result<bool> {
    let held = effective()?;
    set(Capabilities::NONE, held, Capabilities::NONE).context("cannot set capabilities aside")?;
    let works = what().is_ok();
    set(held, held, Capabilities::NONE).context("cannot take capabilities back")?;
    Ok(works)
}

/// Let programs that the calling thread executes have these capabilities too, though their user is not root
/// ("ambient").
///
/// # Errors
/// If the thread lacks one of these capabilities.
pub fn hand_on(capabilities: Capabilities) -> Result<()> {
    set(capabilities, capabilities, capabilities).context("cannot make capabilities inheritable")?;
    for bit in (0..64).filter(|bit| capabilities.0 & 1 << bit != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, bit)
            .with_context(|| format!("cannot make ambient capability {bit}"))?;
    }
    Ok(())
}

/// From now on, executing a program never gives more privilege than this process has.
///
/// # Errors
/// If the kernel refuses.
pub fn no_new_privileges() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).context("cannot set no_new_privs")
}

/// A user that this process is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's id.
    pub uid: u32,
    /// The id of the user's group.
    pub gid: u32,
}

impl User {
    /// Find a user by a name or number, in the text of /etc/passwd. For a number that is not in the text, the group has
    /// the same number.
    ///
    /// # Errors
    /// If no user has this name.
    pub fn find(wanted: &str, passwd: &str) -> Result<Self> {
        // The fields of a line are `name:password:UID:GID:comment:home:shell`.
        let mut users = passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            Some((name, Self { uid, gid }))
        });
        let number: Option<u32> = wanted.parse().ok();
        match (users.find(|(name, user)| *name == wanted || Some(user.uid) == number), number) {
            (Some((_, user)), _) => Ok(user),
            // chown(2) and setresuid(2) take this number to mean "leave the id as it is".
            (None, Some(uid)) if uid != u32::MAX => Ok(Self { uid, gid: uid }),
            (None, _) => Err(anyhow!("/etc/passwd has no user {wanted}")),
        }
    }
}

/// Become this user, with no other group than the user's, and keep the capabilities that are held.
///
/// # Errors
/// [`Exit::Host`] without CAP_SETUID and CAP_SETGID.
pub fn switch_user(user: User) -> Result<()> {
    let held = effective()?;
    let what = || format!("cannot become user {}", user.uid);
    prctl(libc::PR_SET_KEEPCAPS, 1, 0).with_context(what)?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let ids = || {
        setgroups(&[])?;
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)
    };
    ids().map_err(|error| match error {
        Errno::EPERM => {
            let blocked = Blocked::new(what(), format!("give xctl {} and {}", SETUID.name, SETGID.name));
            anyhow!(error).context(blocked).context(Exit::Host)
        }
        _ => anyhow!(error).context(what()),
    })?;
    // The change of the user makes capabilities ineffective, but they are still permitted.
    set(held, held, Capabilities::NONE).with_context(what)?;
    ensure!(nix::unistd::geteuid() == uid, "the kernel did not make this process one of user {uid}");
    Ok(())
}

/// The capabilities that this process lacks to see other users' processes and folders. None: this process has them.
///
/// # Errors
/// If the kernel does not tell.
pub fn to_see_others() -> Result<Option<String>> {
    let held = effective()?;
    let missing = [SYS_PTRACE, DAC_READ_SEARCH].into_iter().filter(|&one| !held.has(one));
    let names: Vec<_> = missing.map(|one| one.name).collect();
    Ok((!names.is_empty()).then(|| format!("give {}", names.join(" and "))))
}

/// The capabilities that loading and attaching need and this process lacks. CAP_SYS_ADMIN includes both others.
/// CAP_SYS_ADMIN is the only one on a kernel that does not know the others.
///
/// # Errors
/// If the kernel does not tell.
pub fn missing() -> Result<Vec<Capability>> {
    let (held, needed) = (effective()?, needed()?);
    if held.has(SYS_ADMIN) {
        return Ok(Vec::new());
    }
    Ok(needed.iter().copied().filter(|&capability| !held.has(capability)).collect())
}

/// The capabilities that loading and attaching take on this kernel, for a process without CAP_SYS_ADMIN.
///
/// # Errors
/// If the kernel does not tell.
pub fn needed() -> Result<&'static [Capability]> {
    let last: u32 = read("/proc/sys/kernel/cap_last_cap")?.trim().parse().context("cap_last_cap is not a number")?;
    Ok(if last >= BPF.bit { &[BPF, PERFMON] } else { &[SYS_ADMIN] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_name_or_a_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n#odd\nnobody:x:65534:65533:nobody:/:/bin/sh\n";
        let nobody = User { uid: 65534, gid: 65533 };
        assert_eq!(User::find("nobody", passwd).unwrap(), nobody);
        assert_eq!(User::find("65534", passwd).unwrap(), nobody);
        assert_eq!(User::find("17", passwd).unwrap(), User { uid: 17, gid: 17 });
        for wrong in ["nobod", "", "-1", "4294967295", "x"] {
            assert!(User::find(wrong, passwd).is_err(), "{wrong}");
        }
    }

    #[test]
    fn effective_capabilities_equal_those_in_proc() {
        let status = read("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        assert_eq!(effective().unwrap(), Capabilities(u64::from_str_radix(line.trim(), 16).unwrap()));
    }
}
