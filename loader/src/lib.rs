//! xctl: which process is really behind TCP retransmissions.
//!
//! The modules are floors, in the order of `scripts/floors`: a module imports only from modules below its own.
//! `docs/architecture.md` has the picture.

// The standard library's macros panic where standard error cannot be written to; `console` does not.
#![deny(clippy::print_stderr)]

pub mod audit;
pub mod cli;
pub mod commands;
pub mod console;
pub mod error;
pub mod kernel;
pub mod ledger;
pub mod model;
pub mod output;
pub mod ring;
pub mod trace;
pub mod verify;

pub use bpf_object as object;
