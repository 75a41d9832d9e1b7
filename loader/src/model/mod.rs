//! Everything that the programs in the kernel and the loader must agree on, each fact in one place.
//!
//! - [`events`] and [`enums`]: the layouts and enumerators of `bpf-src/events.h`. [`layouts`] compares them with the
//!   object. [`event`]: a record that is one of these.
//! - [`tcp`]: states and errors of the kernel's own.
//! - `maps`: the maps.
//! - [`lost`]: the counters of losses.
//! - [`hooks`]: the hooks of the programs.
//! - [`embedded`]: the object itself.

pub mod embedded;
pub mod enums;
pub mod event;
pub mod events;
pub mod hooks;
pub mod layouts;
pub mod lost;
pub(crate) mod maps;
pub mod mirror;
pub mod network;
pub mod reading;
pub mod tcp;
