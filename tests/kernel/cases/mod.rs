//! The table of cases. Cases that depend on the way in which xctl is attached run for every hook set of the kernel.

use crate::host::Set;
use crate::machine::Runs;
use crate::{Case, Families};

mod accept_queue;
mod already_open;
mod batches;
mod capabilities;
mod churn;
mod closers;
mod cuts;
mod cycles;
mod doctor;
mod drops;
mod ends;
mod exited_owner;
mod fates;
mod filters;
mod full_map;
mod handed_over;
mod holders;
mod hosts;
mod hotplug;
mod idle;
mod io_uring;
mod kernel_threads;
mod kinds;
mod ledger;
mod listeners;
mod lossy_link;
mod lost;
mod lost_race;
mod lost_syn;
mod metrics;
mod mptcp;
mod privilege;
mod rare_kinds;
mod record;
mod refusals;
mod renamed;
mod reused_pid;
mod room;
mod screen;
mod send_events;
mod senders;
mod shared_fd;
mod sockets;
mod ss;
mod stale_entry;
mod stats;
mod status;
mod stopped_reader;
mod styles;
mod text;
mod time_namespace;
mod top;
mod top_by;
mod tuples;
mod verdicts;
mod verify;
mod verify_ledger;
mod without_btf;
mod zero_window;

const BOTH: Families = Families::Both;
const EITHER: Families = Families::Either;
const V4: Families = Families::V4;
const HERE: Runs = Runs::Here;
const OLDEST: Runs = Runs::Oldest;
const KERNELS: Runs = Runs::Kernels;
const MACHINES: Runs = Runs::Machines;
const SETS: Runs = Runs::Sets;
const AUTO: &[Set] = &[Set::Auto];
/// Sets with a tracepoint that shows changes of state.
const WITH_STATES: &[Set] = &[Set::Auto, Set::Tracepoint, Set::Fentry, Set::Mixed, Set::Lsm];
/// Sets with every kind of program, and every action that needs its own capability: `auto` has kprobes if the kernel has
/// any.
const EVERY_KIND: &[Set] = &[Set::Auto, Set::Fentry];

macro_rules! case {
    ($name:literal, $sets:expr, $families:expr, $runs:expr, $run:expr) => {
        Case { name: $name, sets: $sets, families: $families, runs: $runs, run: $run }
    };
}

/// A case about a refusal. xctl must leave nothing in the kernel.
macro_rules! refused {
    ($name:literal, $sets:expr, $families:expr, $runs:expr, $run:path) => {
        case!($name, $sets, $families, $runs, |set, family| ends::leaves_nothing(|| $run(set, family)))
    };
}

#[rustfmt::skip]
pub const ALL: &[Case] = &[
    case!("lossy_link",           Set::ALL,    BOTH,   Runs::RealTime, lossy_link::run),
    case!("send_events",          Set::ALL,    V4,     OLDEST,   send_events::run),
    case!("lost_syn",             Set::ALL,    EITHER, SETS,     lost_syn::run),
    case!("same_tuple_two_netns", Set::ALL,    V4,     OLDEST,   tuples::same_tuple_two_netns),
    case!("same_tuple_two_wires", Set::ALL,    V4,     HERE,     tuples::same_tuple_two_devices),
    case!("twins_at_once",        &[Set::Auto, Set::Tracepoint], V4,     OLDEST,   tuples::twins_at_once),
    case!("twins_already_open",   AUTO,        V4,     HERE,     tuples::twins_already_open),
    case!("twins_shut_down",      AUTO,        V4,     HERE,     tuples::twins_shut_down),
    case!("seeded_tuple_in_use",  AUTO,        V4,     HERE,     tuples::seeded_in_use),
    case!("tuple_in_use",         Set::ALL,    V4,     OLDEST,   tuples::in_use),
    case!("v4_mapped",            Set::ALL,    V4,     OLDEST,   tuples::v4_mapped),
    case!("already_open",         AUTO,        BOTH,   MACHINES, already_open::run),
    case!("exited_owner",         Set::ALL,    EITHER, KERNELS,  exited_owner::run),
    case!("unreaped_owner",       AUTO,        V4,     HERE,     exited_owner::unreaped),
    case!("time_namespace",       AUTO,        V4,     HERE,     time_namespace::run),
    case!("senders",              Set::ALL,    EITHER, SETS,     senders::run),
    case!("mptcp",                Set::ALL,    EITHER, SETS,     mptcp::run),
    case!("handed_over",          Set::ALL,    EITHER, SETS,     handed_over::run),
    case!("shared_fd",            Set::ALL,    EITHER, OLDEST,   shared_fd::run),
    case!("shared_at_start",      AUTO,        EITHER, KERNELS,  shared_fd::at_start),
    case!("shared_at_start_proc", AUTO,        V4,     HERE,     shared_fd::at_start_from_proc),
    case!("held_before",          AUTO,        EITHER, OLDEST,   holders::by_iterator),
    case!("held_before_proc",     AUTO,        V4,     HERE,     holders::by_proc),
    case!("stale_entry",          Set::ALL,    EITHER, OLDEST,   stale_entry::run),
    case!("renamed",              Set::ALL,    EITHER, HERE,     renamed::run),
    case!("contended_fd",         Set::ALL,    V4,     HERE,     shared_fd::contended),
    case!("io_uring",             Set::ALL,    EITHER, OLDEST,   io_uring::run),
    case!("sockmap",              Set::ALL,    EITHER, OLDEST,   kernel_threads::sockmap),
    case!("ktls_worker",          Set::ALL,    EITHER, KERNELS,  kernel_threads::ktls),
    case!("kernel_mount",         Set::ALL,    EITHER, OLDEST,   kernel_threads::mount),
    case!("listeners",            Set::ALL,    EITHER, SETS,     listeners::forked),
    case!("crowded_accept",       Set::ALL,    V4,     OLDEST,   listeners::crowded),
    case!("accept_return",        &[Set::Kprobe], V4,     OLDEST,   listeners::by_return),
    case!("shared_port",          Set::ALL,    EITHER, OLDEST,   listeners::shared),
    case!("blocked_accept",       Set::ALL,    EITHER, OLDEST,   listeners::blocked_accept),
    case!("closers",              Set::ALL,    EITHER, SETS,     closers::run),
    case!("listens_again",        Set::ALL,    EITHER, OLDEST,   listeners::again),
    case!("migrated_synack",      Set::ALL,    EITHER, OLDEST,   listeners::migrated),
    case!("smc_fallback",         Set::ALL,    EITHER, OLDEST,   senders::smc),
    case!("mptcp_subflows",       Set::ALL,    EITHER, OLDEST,   mptcp::subflows),
    case!("mptcp_reset",          AUTO,        EITHER, KERNELS,  mptcp::reset),
    case!("mptcp_ledger",         Set::ALL,    EITHER, KERNELS,  mptcp::ledger),
    case!("filters",              AUTO,        V4,     OLDEST,    filters::run),
    case!("filters_full",         AUTO,        V4,     OLDEST,   filters::full),
    case!("cgroup",               AUTO,        V4,     OLDEST,   filters::cgroup),
    case!("absent_netns",         AUTO,        V4,     HERE,     filters::absent),
    case!("filtered_unknown",     AUTO,        V4,     HERE,     filters::unknown),
    case!("namespaces_in_text",   AUTO,        EITHER, HERE,     text::namespaces),
    case!("room",                 AUTO,        V4,     HERE,     room::run),
    case!("signals",              EVERY_KIND,  V4,     OLDEST,   ends::signals),
    case!("closed_pipe",          AUTO,        V4,     HERE,     ends::closed_pipe),
    case!("count",                AUTO,        V4,     HERE,     ends::count),
    case!("duration",             AUTO,        V4,     HERE,     ends::duration),
    case!("idle",                 AUTO,        V4,     HERE,     idle::run),
    case!("sockets",              AUTO,        BOTH,   MACHINES, sockets::run),
    case!("stats",                AUTO,        EITHER, MACHINES, stats::at_rest),
    case!("stats_verdicts",       AUTO,        EITHER, KERNELS,  stats::verdicts),
    case!("stats_netem",          AUTO,        V4,     OLDEST,   stats::with_netem),
    case!("ledger",               Set::ALL,    BOTH,   SETS,     ledger::run),
    case!("fates",                AUTO,        BOTH,   KERNELS,  fates::run),
    case!("top_by",               AUTO,        BOTH,   KERNELS,  top_by::run),
    case!("ledger_backed_up",     WITH_STATES, EITHER, SETS,     ledger::backed_up),
    case!("ledger_fast_open",     AUTO,        BOTH,   KERNELS,  ledger::fast_open),
    case!("ledger_lost_race",     AUTO,        EITHER, KERNELS,  lost_race::run),
    case!("short_connections",    AUTO,        BOTH,   KERNELS,  ledger::short),
    case!("cuts",                 Set::ALL,    BOTH,   SETS,     cuts::run),
    case!("drops",                Set::ALL,    BOTH,   SETS,     drops::run),
    case!("accept_queue",         Set::ALL,    BOTH,   KERNELS,  accept_queue::run),
    case!("zero_window",          Set::ALL,    BOTH,   KERNELS,  zero_window::run),
    case!("verdicts",             AUTO,        BOTH,   KERNELS,  verdicts::run),
    case!("metrics",              AUTO,        EITHER, OLDEST,   metrics::run),
    case!("metrics_owners",       AUTO,        V4,     OLDEST,   metrics::many_owners),
    case!("metrics_sockets",      AUTO,        V4,     OLDEST,   metrics::sockets),
    refused!("metrics_refused",   AUTO,        V4,     HERE,     metrics::refused),
    case!("screen",               AUTO,        V4,     OLDEST,   screen::run),
    case!("status_line",          AUTO,        V4,     OLDEST,   status::run),
    case!("progress",             AUTO,        V4,     OLDEST,   status::progress),
    case!("styles",               AUTO,        V4,     OLDEST,   styles::run),
    case!("mounted_over",         AUTO,        V4,     HERE,     sockets::mounted_over),
    case!("seeded_from_proc",     AUTO,        EITHER, HERE,     already_open::seeded_from_proc),
    case!("verify",               Set::ALL,    EITHER, KERNELS,  verify::run),
    case!("verify_failed",        Set::ALL,    V4,     OLDEST,   verify::failed),
    case!("verify_number_again",  Set::ALL,    V4,     OLDEST,   verify::number_again),
    case!("verify_difference",    AUTO,        V4,     HERE,     verify::difference),
    case!("verify_ledger",        Set::ALL,    BOTH,   SETS,     verify_ledger::run),
    case!("verify_ledger_backed_up", WITH_STATES, V4,     SETS,     verify_ledger::backed_up),
    case!("verify_ledger_starts", AUTO,        V4,     KERNELS,  verify_ledger::starts),
    case!("verify_ledger_differs", AUTO,       V4,     HERE,     verify_ledger::difference),
    case!("read_together",        AUTO,        V4,     HERE,     batches::run),
    case!("printed_soon",         AUTO,        V4,     HERE,     batches::soon),
    case!("stopped_reader",       AUTO,        V4,     HERE,     stopped_reader::run),
    case!("lost_output",          AUTO,        V4,     HERE,     lost::output),
    case!("lost_refused",         AUTO,        V4,     OLDEST,   lost::refused),
    case!("shared_before",        AUTO,        V4,     HERE,     lost::shared_before),
    case!("lost_ledger",          AUTO,        EITHER, OLDEST,   lost::ledger),
    case!("lost_totals",          AUTO,        V4,     HERE,     lost::totals),
    case!("totals_that_last",     AUTO,        V4,     HERE,     lost::totals_that_last),
    case!("lost_netns_totals",    AUTO,        V4,     HERE,     lost::netns_totals),
    case!("missed",               &[Set::Kprobe], V4,     KERNELS,  lost::missed),
    case!("churn",                Set::ALL,    EITHER, SETS,     churn::run),
    case!("full_map",             Set::ALL,    EITHER, HERE,     full_map::run),
    case!("reused_pid",           AUTO,        EITHER, HERE,     reused_pid::run),
    case!("reused_in_one_tick",   AUTO,        V4,     HERE,     reused_pid::in_one_tick),
    case!("kinds",                Set::ALL,    V4,     SETS,     kinds::run),
    case!("kinds_unreachable",    Set::ALL,    V4,     OLDEST,   rare_kinds::unreachable),
    case!("kinds_too_big",        Set::ALL,    V4,     OLDEST,   rare_kinds::too_big),
    case!("kinds_no_window",      Set::ALL,    EITHER, OLDEST,   rare_kinds::no_window),
    case!("fast_open",            Set::ALL,    V4,     OLDEST,   verify::fast_open),
    case!("accepted_early",       Set::ALL,    V4,     OLDEST,   kinds::accepted_early),
    case!("same_as_ss",           Set::ALL,    EITHER, KERNELS,  ss::run),
    case!("timeouts_in_ss",       Set::ALL,    V4,     OLDEST,   ss::timeouts_in_a_row),
    case!("record_calls",         Set::ALL,    V4,     SETS,     record::calls::by_ptrace),
    case!("record_strace",        AUTO,        V4,     HERE,     record::calls::by_strace),
    case!("record_schema",        AUTO,        V4,     HERE,     record::schema),
    case!("record_facts",         EVERY_KIND,  V4,     OLDEST,   record::facts),
    case!("record_altered",       AUTO,        V4,     OLDEST,   record::changed::altered),
    case!("record_without_ring",  AUTO,        V4,     OLDEST,   record::no_ring_buffers),
    case!("record_translated",    AUTO,        V4,     OLDEST,   record::changed::altered_translation),
    case!("record_incomparable",  AUTO,        V4,     HERE,     record::changed::incomparable),
    case!("record_failed",        AUTO,        V4,     HERE,     record::changed::failed),
    case!("record_as_user",       AUTO,        V4,     HERE,     record::as_another_user),
    case!("altered_objects",      AUTO,        V4,     HERE,     record::changed::objects),
    case!("dry_run",              AUTO,        V4,     OLDEST,   record::dry_run),
    case!("inspect_as_nobody",    AUTO,        V4,     HERE,     record::inspect_as_nobody),
    case!("privilege_nobody",     EVERY_KIND,  V4,     OLDEST,   privilege::as_nobody),
    case!("privilege_proc",       AUTO,        V4,     HERE,     privilege::seed_from_proc),
    case!("privilege_each",       AUTO,        V4,     HERE,     capabilities::each),
    case!("privilege_needed",     AUTO,        V4,     OLDEST,   capabilities::needed),
    case!("privilege_seeds",      AUTO,        V4,     OLDEST,   privilege::seed_by_iterator),
    case!("privilege_of_record",  AUTO,        V4,     HERE,     capabilities::of_record),
    case!("privilege_given_up",   AUTO,        V4,     OLDEST,   privilege::given_up),
    case!("privilege_confined",   AUTO,        V4,     HERE,     privilege::confined),
    case!("cpu_came_online",      AUTO,        V4,     OLDEST,   hotplug::came_online),
    case!("cpu_came_back",        AUTO,        V4,     OLDEST,   hotplug::came_back),
    case!("cpu_unheard",          AUTO,        V4,     HERE,     hotplug::unheard),
    case!("cpu_left_meanwhile",   AUTO,        V4,     OLDEST,   hotplug::left_meanwhile),
    case!("cpus_come_and_go",     AUTO,        V4,     Runs::Cpus, hotplug::come_and_go),
    case!("cpu_0_offline",        AUTO,        V4,     OLDEST,   hotplug::first_offline),
    case!("doctor",               AUTO,        V4,     OLDEST,   doctor::agrees_with_trace),
    case!("container",            AUTO,        V4,     HERE,     hosts::container),
    case!("bare_host",            AUTO,        V4,     HERE,     hosts::bare),
    case!("hidepid",              AUTO,        V4,     HERE,     hosts::hidden_processes),
    case!("no_jit",               AUTO,        V4,     HERE,     hosts::no_jit),
    case!("module_gone",          AUTO,        V4,     HERE,     hosts::module_gone),
    case!("full_disk",            AUTO,        V4,     HERE,     hosts::full_disk),
    case!("unread_pipe",          AUTO,        V4,     HERE,     hosts::unread_pipe),
    case!("unread_terminal",      AUTO,        V4,     HERE,     hosts::unread_terminal),
    case!("closed_descriptors",   AUTO,        V4,     HERE,     hosts::closed_descriptors),
    case!("clock_set",            AUTO,        V4,     HERE,     hosts::clock_set),
    case!("cycles",               AUTO,        V4,     HERE,     cycles::run),
    case!("ends_under_load",      Set::ALL,    V4,     OLDEST,   cycles::under_load),
    refused!("no_privilege",      AUTO,        V4,     HERE,     refusals::no_privilege),
    refused!("no_capability",     AUTO,        V4,     OLDEST,   refusals::one_capability),
    refused!("no_memlock",        AUTO,        V4,     OLDEST,   capabilities::no_memlock),
    refused!("no_btf",            AUTO,        V4,     OLDEST,   refusals::no_btf),
    refused!("foreign_btf",       AUTO,        V4,     OLDEST,   refusals::foreign_btf),
    refused!("cut_btf",           EVERY_KIND,  V4,     OLDEST,   without_btf::cut_down),
    case!("kernel_image",         EVERY_KIND,  V4,     HERE,     without_btf::image),
    refused!("no_kprobes",        AUTO,        V4,     OLDEST,   refusals::no_kprobes),
    refused!("no_lsm",            AUTO,        V4,     OLDEST,   refusals::no_lsm),
    refused!("no_hooks",          AUTO,        V4,     OLDEST,   refusals::no_hooks),
    refused!("not_attached",      AUTO,        V4,     OLDEST,   refusals::not_attached),
    refused!("no_files",          AUTO,        V4,     HERE,     refusals::no_files),
    refused!("no_mounts",         AUTO,        V4,     HERE,     refusals::no_mounts),
    refused!("no_symbol",         AUTO,        V4,     HERE,     refusals::no_symbol),
    refused!("no_ring_memory",    AUTO,        V4,     HERE,     refusals::no_ring_memory),
    refused!("no_user_namespace", AUTO,        V4,     HERE,     refusals::user_namespace),
    refused!("paranoid",          AUTO,        V4,     OLDEST,   refusals::paranoid),
    // the last: nothing undoes it
    refused!("lockdown",          AUTO,        V4,     OLDEST,   refusals::lockdown),
];
