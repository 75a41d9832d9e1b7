//! The output, from values to bytes. No code in this folder asks the kernel anything.

mod columns;
pub mod connections;
pub mod json;
pub mod line;
pub mod metrics;
mod names;
pub mod screen;
pub mod sockets;
mod stats;
pub mod svg;
pub mod text;
mod top;
mod width;

pub use top::several;

use std::io;

use crate::ledger::connection::Connection;
use crate::ledger::group::By;
use crate::ledger::summary::Summary;
use crate::model::events::{Cut, Drop, Retransmit, Send};
use crate::model::hooks::Hook;
use crate::model::lost::Lost;
use crate::trace::seed::holders::Process;

/// The JSON Schema of the records of `trace`, `top` and `sockets`. `$defs` has a definition for each type, under the type's name.
pub const SCHEMA: &str = include_str!("../../../docs/output.schema.json");

/// The facts of a run, once everything is attached.
#[derive(Debug)]
pub struct Ready<'a> {
    /// The name of the hook set, as `--attach` takes it.
    pub attach: &'static str,
    /// The hooks in use.
    pub hooks: &'a [Hook],
    /// The BTF that the object was relocated against.
    pub btf: &'a str,
    /// SHA-256 of the object, in hexadecimal digits.
    pub object_sha256: &'a str,
    /// Capacity of SOCKET_TO_PID.
    pub max_sockets: u32,
    /// Sockets known before the first event.
    pub seeded: usize,
    /// False: the programs are only loaded.
    pub attached: bool,
    /// Whether the programs in the kernel are proven to be the object's; none if they could not be compared.
    pub proven: Option<bool>,
}

/// The facts that user space adds to an event.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment<'a> {
    /// The time at which the kernel saw the event, ns since 1970, UTC.
    pub realtime_ns: u64,
    /// Whether the owner no longer existed when the event was read.
    pub exited: bool,
    /// The path of the owner's cgroup; none: it is not known, or nobody asked.
    pub cgroup_path: Option<&'a str>,
    /// Whether there were events of several network namespaces so far, which a reader must tell apart.
    pub several_netns: bool,
    /// The name of the socket's network namespace (`ip netns`); none: it has no name, or nobody asked.
    pub netns: Option<&'a str>,
    /// The processes that share the socket, if it is not known which of them uses it.
    pub holders: &'a [Process],
}

/// An interval of `xctl top`.
#[derive(Debug)]
pub struct Interval {
    /// Its end, ns since 1970, UTC.
    pub realtime_ns: u64,
    /// Its end, ns of CLOCK_MONOTONIC.
    pub mono_ns: u64,
    /// Its length, microseconds.
    pub took_us: u64,
    /// The meaning of its rows.
    pub by: By,
    /// Whether there were connections of several network namespaces so far, which a reader must tell apart.
    pub several_netns: bool,
    /// What happened in it. Losses are those since the run began.
    pub summary: Summary,
}

/// The figures of a run so far, for a person who waits.
#[derive(Clone, Copy, Debug)]
pub struct Status {
    /// Now, ns since 1970, UTC.
    pub realtime_ns: u64,
    /// The sockets whose owners are known; none: their number is not known.
    pub sockets: Option<usize>,
    /// Printed retransmissions, in segments.
    pub segs: u64,
    /// Losses since the run began.
    pub lost: Lost,
}

/// A format to print in.
pub trait Output {
    /// Print that everything is attached, or loaded if nothing is to be attached.
    ///
    /// # Errors
    /// If standard output refuses the bytes; the same holds for the other functions.
    fn ready(&mut self, ready: &Ready<'_>) -> io::Result<()>;
    /// Print a retransmit.
    ///
    /// # Errors
    /// The errors of `ready`.
    fn retransmit(&mut self, event: &Retransmit, moment: Moment<'_>) -> io::Result<()>;
    /// Print a send.
    ///
    /// # Errors
    /// The errors of `ready`.
    fn send(&mut self, event: &Send, moment: Moment<'_>) -> io::Result<()>;
    /// Print a cut of a congestion window.
    ///
    /// # Errors
    /// The errors of `ready`.
    fn cut(&mut self, event: &Cut, moment: Moment<'_>) -> io::Result<()>;
    /// Print that this host dropped a packet. `reason` is the kernel's name for the reason; none: the kernel does not tell.
    ///
    /// # Errors
    /// The errors of `ready`.
    fn dropped(&mut self, event: &Drop, reason: Option<&str>, moment: Moment<'_>) -> io::Result<()>;
    /// Print the end of a connection.
    ///
    /// # Errors
    /// The errors of `ready`.
    fn connection(&mut self, connection: &Connection, moment: Moment<'_>) -> io::Result<()>;
    /// Print an interval.
    ///
    /// # Errors
    /// The errors of `ready`.
    fn interval(&mut self, interval: &Interval) -> io::Result<()>;
    /// Show the status below the last line, on a terminal. The next line takes its place.
    ///
    /// # Errors
    /// The errors of `ready`.
    fn status(&mut self, _status: &Status) -> io::Result<()> {
        Ok(())
    }
    /// Print the summary at the end.
    ///
    /// # Errors
    /// The errors of `ready`.
    fn summary(&mut self, summary: &Summary) -> io::Result<()>;
    /// Pass on to the reader the output so far.
    ///
    /// # Errors
    /// The errors of `ready`.
    fn flush(&mut self) -> io::Result<()>;
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use crate::ledger::group::By;
    use crate::ledger::verdict::Word;
    use crate::model::events::{CutWhy, How, Kind};
    use crate::verify::report::Check;

    #[test]
    fn the_schema_has_the_words_of_kinds_owners_verdicts_cuts_and_checks() {
        let schema: Value = serde_json::from_str(super::SCHEMA).unwrap();
        let same = |at: &str, mut words: Vec<Option<&str>>| {
            let listed = schema.pointer(&format!("/$defs/{at}/enum")).and_then(Value::as_array);
            let mut listed: Vec<Option<&str>> = listed.unwrap().iter().map(Value::as_str).collect();
            listed.sort_unstable();
            words.sort_unstable();
            assert_eq!(listed, words, "{at}");
        };
        same("kind", Kind::ALL.iter().map(|kind| Some(kind.name())).collect());
        same("owner", How::ALL.iter().map(|how| Some(how.name())).collect());
        same("word", Word::ALL.iter().map(|word| Some(word.name())).collect());
        same("group/properties/by", By::ALL[1..].iter().map(|by| Some(by.name())).collect());
        same("cut/properties/why", CutWhy::ALL.iter().map(|why| why.name()).collect());
        same(
            "verify/properties/check",
            [&Check::ALL[..], &Check::LEDGER].concat().iter().map(|c| Some(c.name())).collect(),
        );
    }
}
