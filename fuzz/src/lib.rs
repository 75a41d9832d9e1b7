//! The readers, and what prints what they read, without the rest of xctl; and what is asked of them.

pub mod bodies;
pub mod commands;
#[path = "../../loader/src/error.rs"]
pub mod error;
pub mod kernel;
pub use bpf_object as object;
