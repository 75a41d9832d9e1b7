//! The BPF object inside the binary. The Makefile builds the object from `bpf-src/`, and build.rs compresses it.

use std::io;

use crate::kernel::zlib;

/// The object's length, and its bytes in zlib's format.
static OBJECT: (u32, &[u8]) = include!(concat!(env!("OUT_DIR"), "/object.rs"));

/// The object's bytes. The object is six times as long as its compressed bytes in the binary, so callers should not
/// keep it longer than needed.
///
/// # Errors
/// If the binary is damaged.
pub fn object() -> io::Result<Vec<u8>> {
    zlib::inflate(OBJECT.1, OBJECT.0 as usize)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_embedded_object_equals_the_built_one() {
        assert_eq!(object().unwrap(), fs::read(concat!(env!("OUT_DIR"), "/xctl.bpf.o")).unwrap());
    }

    #[test]
    fn a_damaged_object_is_refused() {
        let len = OBJECT.0 as usize;
        let mut damaged = OBJECT.1.to_vec();
        let last = damaged.len() - 1;
        assert!(zlib::inflate(&damaged[..last], len).is_err());
        assert!(zlib::inflate(&damaged, len - 1).is_err());
        assert!(zlib::inflate(&damaged, len + 1).is_err());
        damaged[last] ^= 1; // of the checksum
        assert!(zlib::inflate(&damaged, len).is_err());
    }
}
