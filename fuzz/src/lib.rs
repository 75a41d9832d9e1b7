//! The readers, and what prints what they read, without the rest of xctl; and what is asked of them.

pub mod bodies;
pub mod commands;
#[path = "../../loader/src/fault.rs"]
pub mod fault;
#[path = "../../loader/src/object/mod.rs"]
pub mod object;
