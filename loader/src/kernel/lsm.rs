//! The active Linux security modules (LSMs).

use std::fs;
use std::io;

/// The names of the active LSMs, in their order; none if neither securityfs nor a system call tells.
#[must_use]
pub fn active() -> Option<Vec<String>> {
    const LIST: &str = "/sys/kernel/security/lsm";
    match fs::read_to_string(LIST) {
        Ok(list) => Some(list.trim().split(',').map(str::to_owned).collect()),
        Err(_) => ids().ok().map(|ids| ids.into_iter().map(name).collect()),
    }
}

/// The ids of the active LSMs, by `lsm_list_modules` (6.8 and newer).
fn ids() -> io::Result<Vec<u64>> {
    // The number is the same on every architecture; the C library's headers may be older.
    const LSM_LIST_MODULES: libc::c_long = 461;
    let mut ids = [0u64; 64];
    let mut size = size_of_val(&ids) as u32;
    // SAFETY: the kernel writes at most `size` bytes to `ids`, and the number of bytes to `size`.
    let count = unsafe { libc::syscall(LSM_LIST_MODULES, ids.as_mut_ptr(), &raw mut size, 0) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    Ok(ids.get(..count).unwrap_or(&ids).to_vec())
}

/// The name of an LSM (include/uapi/linux/lsm.h). The number stands for a newer one.
fn name(id: u64) -> String {
    const FIRST: u64 = 100;
    const NAMES: [&str; 14] = [
        "capability",
        "selinux",
        "smack",
        "tomoyo",
        "apparmor",
        "yama",
        "loadpin",
        "safesetid",
        "lockdown",
        "bpf",
        "landlock",
        "ima",
        "evm",
        "ipe",
    ];
    let known = id.checked_sub(FIRST).and_then(|index| NAMES.get(usize::try_from(index).ok()?));
    known.map_or_else(|| id.to_string(), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sources_agree() {
        // The kernel may lack the system call, and the host the file.
        if let (Ok(ids), Ok(list)) = (ids(), fs::read_to_string("/sys/kernel/security/lsm")) {
            assert_eq!(ids.into_iter().map(name).collect::<Vec<_>>().join(","), list.trim());
        }
        assert_eq!([100, 109, 113, 114, 0].map(name), ["capability", "bpf", "ipe", "114", "0"]);
    }
}
