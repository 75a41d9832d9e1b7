//! zlib, which is linked because libelf needs it.

use std::ffi::{c_int, c_ulong};
use std::io;

use libbpf_sys as _; // links the library

unsafe extern "C" {
    fn uncompress(to: *mut u8, len: *mut c_ulong, from: *const u8, from_len: c_ulong) -> c_int;
}

/// Decompress `data`, in zlib's format (RFC 1950), into `len` bytes.
///
/// # Errors
/// If `data` does not decompress to these bytes; a checksum is part of the format.
pub fn inflate(data: &[u8], len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut written = len as c_ulong;
    // SAFETY: both buffers have the given lengths. zlib writes at most `written` bytes, and the buffers do not overlap.
    let result = unsafe { uncompress(bytes.as_mut_ptr(), &mut written, data.as_ptr(), data.len() as c_ulong) };
    if result != 0 || written != len as c_ulong {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("zlib cannot inflate it ({result})")));
    }
    Ok(bytes)
}
