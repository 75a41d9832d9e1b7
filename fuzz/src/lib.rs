//! The readers alone, without the rest of xctl, and what is asked of them.

pub mod bodies;
#[path = "../../loader/src/object/mod.rs"]
pub mod object;
