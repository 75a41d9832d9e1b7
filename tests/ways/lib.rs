//! A program in C, for what takes unsafe code in Rust, which the tests have none of: ways.c says what it does.

/// The program, a static executable for the machine that the tests are built for.
pub const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/ways"));
