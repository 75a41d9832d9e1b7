//! The answer to a panic that asks for a backtrace (`RUST_BACKTRACE=1`): no frame. The binary has no tables from which a stack
//! could be read (`no-unwind.ld`), so nothing is lost: a panic still says its message, its file and its line. With this
//! definition the linker leaves out all that the standard library has to read DWARF and to name functions, 180 kB. `main.rs`
//! alone has this module, and only where a panic aborts: tests unwind.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};

/// `_URC_END_OF_STACK`: no frame is left.
const END_OF_STACK: c_int = 5;

/// Takes the place of the unwinder's function (of libgcc, or of LLVM's libunwind), and calls `trace` for no frame.
// SAFETY: the name, the signature and the result are those of unwind.h, and nothing else here defines the name.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Backtrace(
    _trace: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
    _argument: *mut c_void,
) -> c_int {
    END_OF_STACK
}
