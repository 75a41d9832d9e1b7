//! Everything that talks to the kernel. All `unsafe` code of xctl is in this folder, behind safe functions; nothing here
//! prints. What can be asked of the kernel through a file is asked that way, in [`host`].

#![allow(unsafe_code)] // the one place

pub mod bpf;
pub mod btf;
pub mod calendar;
pub mod calls;
pub mod clock;
pub mod confine;
pub mod heap;
pub mod host;
pub mod hotplug;
pub mod libbpf;
pub mod map;
pub mod mmap;
pub mod netns;
pub mod perf;
pub mod privilege;
pub mod shared_ring;
pub mod symbols;
pub mod tcp_counters;
pub mod wait;
pub mod zlib;
