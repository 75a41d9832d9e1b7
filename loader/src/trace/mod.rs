//! Tracing, from the bytes of an object to events. The steps of a run, in order:
//!
//! 1. [`check`]: checks that the object is sane and is one of ours.
//! 2. [`target`]: finds the features of this kernel.
//! 3. [`hooks`] and [`plan`]: hooks and settings, made once.
//! 4. [`load`]: `load() -> Loaded`, then `prove(&Loaded)`. A dry run stops here.
//! 5. [`session`]: `attach(Loaded) -> Running`, with [`attach`], [`rings`] and [`seed`].
//! 6. At the end `Running::detach() -> Ended`; its [`tables`] and rings can still be read.

pub mod accounts;
mod all_open;
pub mod attach;
pub mod check;
pub mod hooks;
pub mod load;
pub mod plan;
pub mod reasons;
mod refusal;
pub mod rings;
pub mod seed;
pub mod session;
pub mod tables;
pub mod target;
mod under_way;
