//! The table of cases. Those that depend on how xctl is attached run for every hook set of the kernel.

use crate::host::Set;
use crate::{About, Case, Families};

mod already_open;
mod capabilities;
mod churn;
mod cycles;
mod doctor;
mod ends;
mod exited_owner;
mod filters;
mod full_map;
mod handed_over;
mod hosts;
mod hotplug;
mod idle;
mod io_uring;
mod kernel_threads;
mod kinds;
mod listeners;
mod lossy_link;
mod lost;
mod lost_syn;
mod mptcp;
mod privilege;
mod record;
mod refusals;
mod renamed;
mod reused_pid;
mod room;
mod send_events;
mod senders;
mod shared_fd;
mod sockets;
mod ss;
mod stopped_reader;
mod time_namespace;
mod tuples;
mod verify;
mod without_btf;

const BOTH: Families = Families::Both;
const EITHER: Families = Families::BothInAuto;
const V4: Families = Families::V4;
const AUTO: &[Set] = &[Set::Auto];
/// Every kind of program, and what takes a capability of its own: `auto` has kprobes where there are any.
const EVERY_KIND: &[Set] = &[Set::Auto, Set::Fentry];

macro_rules! case {
    ($name:literal, $sets:expr, $families:expr, $run:expr) => {
        case!($name, $sets, $families, $run, Kernel)
    };
    ($name:literal, $sets:expr, $families:expr, $run:expr, $about:ident) => {
        Case { name: $name, sets: $sets, families: $families, run: $run, about: About::$about }
    };
}

/// A case of what must be refused, and leaves nothing.
macro_rules! refused {
    ($name:literal, $sets:expr, $families:expr, $run:path $(, $about:ident)?) => {
        case!($name, $sets, $families, refused!($run) $(, $about)?)
    };
    ($run:path) => {
        |set, family| ends::leaves_nothing(|| $run(set, family))
    };
}

#[rustfmt::skip]
pub const ALL: &[Case] = &[
    case!("lossy_link",           Set::ALL, EITHER, lossy_link::run),
    case!("send_events",          Set::ALL, V4,   send_events::run),
    case!("lost_syn",             Set::ALL, EITHER, lost_syn::run),
    case!("same_tuple_two_netns", Set::ALL, V4,   tuples::same_tuple_two_netns),
    case!("same_tuple_two_wires", Set::ALL, V4,   tuples::same_tuple_two_devices),
    case!("twins_at_once",        &[Set::Auto, Set::Tracepoint], V4, tuples::twins_at_once),
    case!("twins_already_open",   AUTO,     V4,   tuples::twins_already_open),
    case!("twins_shut_down",      AUTO,     V4,   tuples::twins_shut_down),
    case!("seeded_tuple_in_use",  AUTO,     V4,   tuples::seeded_in_use),
    case!("tuple_in_use",         Set::ALL, V4,   tuples::in_use),
    case!("v4_mapped",            Set::ALL, V4,   tuples::v4_mapped),
    case!("already_open",         AUTO,     BOTH, already_open::run),
    case!("exited_owner",         Set::ALL, EITHER, exited_owner::run),
    case!("unreaped_owner",       AUTO,     V4,   exited_owner::unreaped),
    case!("time_namespace",       AUTO,     V4,   time_namespace::run),
    case!("senders",              Set::ALL, EITHER, senders::run),
    case!("mptcp",                Set::ALL, EITHER, mptcp::run),
    case!("handed_over",          Set::ALL, EITHER, handed_over::run),
    case!("shared_fd",            Set::ALL, EITHER, shared_fd::run),
    case!("renamed",              Set::ALL, EITHER, renamed::run),
    case!("contended_fd",         Set::ALL, V4,   shared_fd::contended),
    case!("io_uring",             Set::ALL, EITHER, io_uring::run),
    case!("sockmap",              Set::ALL, EITHER, kernel_threads::sockmap),
    case!("ktls_worker",          Set::ALL, EITHER, kernel_threads::ktls),
    case!("kernel_mount",         Set::ALL, EITHER, kernel_threads::mount),
    case!("listeners",            Set::ALL, EITHER, listeners::forked),
    case!("crowded_accept",       Set::ALL, V4,   listeners::crowded),
    case!("accept_return",        &[Set::Kprobe], V4, listeners::by_return),
    case!("shared_port",          Set::ALL, EITHER, listeners::shared),
    case!("blocked_accept",       Set::ALL, EITHER, listeners::blocked_accept),
    case!("mptcp_subflows",       Set::ALL, EITHER, mptcp::subflows),
    case!("filters",              AUTO,     V4,   filters::run),
    case!("cgroup",               AUTO,     V4,   filters::cgroup),
    case!("absent_netns",         AUTO,     V4,   filters::absent, Era),
    case!("filtered_unknown",     AUTO,     V4,   filters::unknown),
    case!("room",                 AUTO,     V4,   room::run),
    case!("signals",              EVERY_KIND, V4, ends::signals),
    case!("closed_pipe",          AUTO,     V4,   ends::closed_pipe, Host),
    case!("count",                AUTO,     V4,   ends::count, Host),
    case!("duration",             AUTO,     V4,   ends::duration, Host),
    case!("idle",                 AUTO,     V4,   idle::run, Era),
    case!("sockets",              AUTO,     BOTH, sockets::run),
    case!("mounted_over",         AUTO,     V4,   sockets::mounted_over, Host),
    case!("seeded_from_proc",     AUTO,     BOTH, already_open::seeded_from_proc),
    case!("verify",               Set::ALL, EITHER, verify::run),
    case!("verify_failed",        Set::ALL, V4,   verify::failed),
    case!("verify_difference",    AUTO,     V4,   verify::difference),
    case!("stopped_reader",       AUTO,     V4,   stopped_reader::run),
    case!("lost_output",          AUTO,     V4,   lost::output),
    case!("lost_refused",         AUTO,     V4,   lost::refused),
    case!("shared_before",        AUTO,     V4,   lost::shared_before),
    case!("lost_totals",          AUTO,     V4,   lost::totals),
    case!("lost_netns_totals",    AUTO,     V4,   lost::netns_totals),
    case!("missed",               &[Set::Kprobe], V4, lost::missed),
    case!("churn",                Set::ALL, EITHER, churn::run),
    case!("full_map",             Set::ALL, EITHER, full_map::run),
    case!("reused_pid",           AUTO,     EITHER, reused_pid::run),
    case!("kinds",                Set::ALL, V4,   kinds::run),
    case!("fast_open",            Set::ALL, V4,   verify::fast_open),
    case!("accepted_early",       Set::ALL, V4,   kinds::accepted_early),
    case!("same_as_ss",           Set::ALL, EITHER, ss::run),
    case!("timeouts_in_ss",       Set::ALL, V4,   ss::timeouts_in_a_row),
    case!("record_calls",         Set::ALL, V4,   record::calls, Era),
    case!("record_strace",        AUTO,     V4,   record::strace, Era),
    case!("record_schema",        AUTO,     V4,   record::schema, Host),
    case!("record_facts",         EVERY_KIND,    V4,   record::facts, Era),
    case!("record_altered",       AUTO,     V4,   record::altered, Era),
    case!("record_without_ring",  AUTO,     V4,   record::no_ring_buffers, Era),
    case!("record_translated",    AUTO,     V4,   record::altered_translation, Era),
    case!("record_incomparable",  AUTO,     V4,   record::incomparable, Host),
    case!("record_failed",        AUTO,     V4,   record::failed, Host),
    case!("record_as_user",       AUTO,     V4,   record::as_another_user, Era),
    case!("altered_objects",      AUTO,     V4,   record::altered_objects, Host),
    case!("dry_run",              AUTO,     V4,   record::dry_run, Era),
    case!("inspect_as_nobody",    AUTO,     V4,   record::inspect_as_nobody, Era),
    case!("privilege_nobody",     EVERY_KIND,   V4,   privilege::as_nobody, Era),
    case!("privilege_proc",       AUTO,     V4,   privilege::seed_from_proc, Era),
    case!("privilege_each",       AUTO,     V4,   capabilities::each, Host),
    case!("privilege_needed",     AUTO,     V4,   capabilities::needed, Era),
    case!("privilege_seeds",      AUTO,     V4,   privilege::seed_by_iterator, Era),
    case!("privilege_of_record",  AUTO,     V4,   capabilities::of_record, Host),
    case!("privilege_given_up",   AUTO,     V4,   privilege::given_up, Era),
    case!("privilege_confined",   AUTO,     V4,   privilege::confined, Era),
    case!("cpu_came_online",      AUTO,     V4,   hotplug::came_online),
    case!("cpu_came_back",        AUTO,     V4,   hotplug::came_back),
    case!("cpu_unheard",          AUTO,     V4,   hotplug::unheard, Host),
    case!("cpu_left_meanwhile",   AUTO,     V4,   hotplug::left_meanwhile),
    case!("cpus_come_and_go",     AUTO,     V4,   hotplug::come_and_go),
    case!("cpu_0_offline",        AUTO,     V4,   hotplug::first_offline),
    case!("doctor",               AUTO,     V4,   doctor::agrees_with_trace, Era),
    case!("container",            AUTO,     V4,   hosts::container, Host),
    case!("bare_host",            AUTO,     V4,   hosts::bare, Host),
    case!("hidepid",              AUTO,     V4,   hosts::hidden_processes, Host),
    case!("no_jit",               AUTO,     V4,   hosts::no_jit, Host),
    case!("module_gone",          AUTO,     V4,   hosts::module_gone, Host),
    case!("full_disk",            AUTO,     V4,   hosts::full_disk, Host),
    case!("unread_pipe",          AUTO,     V4,   hosts::unread_pipe, Host),
    case!("unread_terminal",      AUTO,     V4,   hosts::unread_terminal, Host),
    case!("closed_descriptors",   AUTO,     V4,   hosts::closed_descriptors, Host),
    case!("clock_set",            AUTO,     V4,   hosts::clock_set, Host),
    case!("cycles",               AUTO,     V4,   cycles::run, Host),
    case!("ends_under_load",      Set::ALL, V4,   cycles::under_load),
    refused!("no_privilege",      AUTO,     V4,   refusals::no_privilege, Host),
    refused!("no_capability",     AUTO,     V4,   refusals::one_capability, Era),
    refused!("no_memlock",        AUTO,     V4,   refusals::no_memlock, Era),
    refused!("no_btf",            AUTO,     V4,   refusals::no_btf, Era),
    refused!("foreign_btf",       AUTO,     V4,   refusals::foreign_btf, Era),
    refused!("cut_btf",           EVERY_KIND,   V4,   without_btf::cut_down, Era),
    case!("kernel_image",         EVERY_KIND,   V4,   without_btf::image, Host),
    refused!("no_kprobes",        AUTO,     V4,   refusals::no_kprobes, Era),
    refused!("no_hooks",          AUTO,     V4,   refusals::no_hooks, Era),
    refused!("not_attached",      AUTO,     V4,   refusals::not_attached, Era),
    refused!("no_files",          AUTO,     V4,   refusals::no_files, Host),
    refused!("no_mounts",         AUTO,     V4,   refusals::no_mounts, Host),
    refused!("no_symbol",         AUTO,     V4,   refusals::no_symbol, Host),
    refused!("no_ring_memory",    AUTO,     V4,   refusals::no_ring_memory, Host),
    refused!("no_user_namespace", AUTO,     V4,   refusals::user_namespace, Host),
    refused!("paranoid",          AUTO,     V4,   refusals::paranoid, Host),
    // the last: nothing undoes it
    refused!("lockdown",          AUTO,     V4,   refusals::lockdown, Era),
];
