//! The BPF object inside the binary: what the Makefile built from `bpf-src/`.

/// ELF structures are read in place, so the bytes begin at a multiple of 8.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/xctl.bpf.o")));

/// The object's bytes.
#[must_use]
pub fn object() -> &'static [u8] {
    &OBJECT.0
}
