//! Everything that talks to the kernel. All `unsafe` code of xctl is in this folder, behind safe functions; nothing in
//! this folder prints. [`host`] asks the questions about this host that files of /proc and /sys answer.

#![allow(unsafe_code)] // the one place

pub mod bpf;
pub mod btf;
pub mod calendar;
pub mod call;
pub mod calls;
pub mod capability;
pub mod cgroup;
pub mod clock;
pub mod confine;
mod file;
pub mod host;
pub mod hotplug;
pub mod libbpf;
pub mod limits;
pub mod loaded;
pub mod lsm;
pub mod map;
pub mod memory;
pub mod mmap;
pub mod netns;
pub mod perf;
pub mod privilege;
mod programs;
pub mod server;
pub mod shared_ring;
pub mod source;
pub mod symbols;
pub mod tcp_counters;
pub mod terminal;
pub mod thread;
pub mod wait;
pub mod zlib;
