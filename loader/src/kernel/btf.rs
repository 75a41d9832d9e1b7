//! The running kernel's BTF, read where it lies.

use std::borrow::Cow;
use std::fs::File;
use std::num::NonZeroUsize;
use std::path::Path;
use std::slice;

use anyhow::Result;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::statfs::{SYSFS_MAGIC, fstatfs};

use super::source::{KERNEL_BTF, read_btf};

/// The bytes of the BTF in a file, as [`read_btf`] reads them. The running kernel's own BTF is mapped rather than
/// copied, where the kernel can do that.
///
/// # Errors
/// The errors of [`read_btf`].
pub fn read(path: &Path) -> Result<Cow<'static, [u8]>> {
    let own = if path == Path::new(KERNEL_BTF) { mapped() } else { None };
    own.map_or_else(|| read_btf(path).map(Cow::Owned), |bytes| Ok(Cow::Borrowed(bytes)))
}

/// The pages of the kernel's own BTF, mapped for as long as the process lives. These pages do not count as memory of
/// the process. None where the kernel cannot map them (before 6.16, `btf_sysfs_vmlinux_mmap` in
/// kernel/bpf/sysfs_btf.c).
fn mapped() -> Option<&'static [u8]> {
    let file = File::open(KERNEL_BTF).ok()?;
    // Another file may be mounted over this path, and that file could change.
    if fstatfs(&file).ok()?.filesystem_type() != SYSFS_MAGIC {
        return None;
    }
    let len = NonZeroUsize::new(file.metadata().ok()?.len().try_into().ok()?)?;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, &file, 0) }.ok()?;
    // SAFETY: `len` bytes are mapped there and stay mapped; the kernel never changes its BTF.
    Some(unsafe { slice::from_raw_parts(base.cast().as_ptr(), len.get()) })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn mapped_btf_equals_the_btf_that_is_read() {
        match mapped() {
            Some(bytes) => assert!(bytes == fs::read(KERNEL_BTF).unwrap()),
            None => println!("skipped: this kernel does not let its BTF be mapped"),
        }
    }
}
