//! xctl: which process is really behind TCP retransmissions.
//!
//! The stages, each knowing the one before it only by the value that it was handed:
//! object bytes -> [`object`] -> [`hooks`] -> [`kernel`] (load, attach, ring memory) -> [`ring`] -> [`events`] ->
//! [`output`]. The [`commands`] put them together.

// It panics where that cannot be written to; `say` does not.
#![deny(clippy::print_stderr)]

pub mod attach;
pub mod cli;
pub mod commands;
pub mod embedded;
pub mod events;
pub mod fault;
pub mod hooks;
pub mod kernel;
mod maps;
pub mod object;
pub mod output;
pub mod owners;
pub mod record;
pub mod ring;
pub mod say;
pub mod tracer;
pub mod verify;
