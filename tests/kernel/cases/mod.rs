//! The table of cases. Those that depend on how xctl is attached run for every hook set of the kernel.

use crate::host::Set;
use crate::{Case, Family};

mod already_open;
mod ends;
mod exited_owner;
mod filters;
mod idle;
mod lossy_link;
mod lost_syn;
mod refusals;
mod send_events;
mod tuples;

const BOTH: &[Family] = &[Family::V4, Family::V6];
const V4: &[Family] = &[Family::V4];
const AUTO: &[Set] = &[Set::Auto];

macro_rules! case {
    ($name:literal, $sets:expr, $families:expr, $run:path) => {
        Case { name: $name, sets: $sets, families: $families, run: $run }
    };
}

#[rustfmt::skip]
pub const ALL: &[Case] = &[
    case!("lossy_link",           Set::ALL, BOTH, lossy_link::run),
    case!("send_events",          Set::ALL, V4,   send_events::run),
    case!("lost_syn",             Set::ALL, BOTH, lost_syn::run),
    case!("same_tuple_two_netns", Set::ALL, V4,   tuples::same_tuple_two_netns),
    case!("v4_mapped",            Set::ALL, V4,   tuples::v4_mapped),
    case!("already_open",         Set::ALL, BOTH, already_open::run),
    case!("exited_owner",         Set::ALL, V4,   exited_owner::run),
    case!("filters",              Set::ALL, V4,   filters::run),
    case!("signals",              Set::ALL, V4,   ends::signals),
    case!("closed_pipe",          AUTO,     V4,   ends::closed_pipe),
    case!("count",                AUTO,     V4,   ends::count),
    case!("duration",             AUTO,     V4,   ends::duration),
    case!("idle",                 AUTO,     V4,   idle::run),
    case!("no_privilege",         AUTO,     V4,   refusals::no_privilege),
    case!("no_btf",               AUTO,     V4,   refusals::no_btf),
    case!("no_kprobes",           AUTO,     V4,   refusals::no_kprobes),
];
