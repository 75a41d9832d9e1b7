//! Events on their way to the output.

use std::collections::HashMap;

use anyhow::Result;

use super::live::View;
use super::metrics::Metrics;
use super::ticks::Ticks;
use crate::kernel::host;
use crate::ledger::summary::{self, ByProcess};
use crate::model::events::{Event, Owner};
use crate::output::{Interval, Moment, Output};
use crate::trace::seed::holders::Holders;
use crate::trace::session::Record;

/// Prints events, and counts them if their number is limited.
pub struct Printer<'w> {
    /// The format.
    pub output: Box<dyn Output + 'w>,
    /// Totals of the printed events, if their number is limited.
    pub by_process: ByProcess,
    /// The number of events that may still be printed.
    pub left: Option<u64>,
    /// The processes that no longer exist.
    pub exits: Exits,
    /// The holders of sockets that were shared at the start.
    pub holders: Holders,
    /// `xctl top`: print intervals, and no event.
    pub ticks: Option<Ticks>,
    /// `xctl top` on a terminal: show intervals here.
    pub view: Option<View<'w>>,
    /// `--metrics` and `--metrics-file`.
    pub metrics: Option<Metrics>,
}

impl Printer<'_> {
    /// Show an interval.
    ///
    /// # Errors
    /// If standard output does not take it.
    pub fn interval(&mut self, interval: Interval) -> Result<()> {
        if let Some(view) = &mut self.view {
            return view.add(interval);
        }
        self.output.interval(&interval)?;
        Ok(self.output.flush()?)
    }

    /// Print a record, unless the limit is reached. `realtime_offset` is CLOCK_REALTIME - CLOCK_MONOTONIC, in ns.
    ///
    /// # Errors
    /// If standard output does not take it.
    pub fn print(&mut self, record: &Record, realtime_offset: u64) -> Result<()> {
        if self.ticks.is_some() {
            return Ok(());
        }
        match &mut self.left {
            Some(0) => return Ok(()),
            Some(left) => *left -= 1,
            None => {}
        }
        let owner = match record {
            Record::Event(event) => event.owner(),
            Record::Connection(connection) => &connection.owner,
        };
        let moment = Moment {
            realtime_ns: record.mono_ns().wrapping_add(realtime_offset),
            exited: owner.is_process() && (owner.gone != 0 || self.exits.has_exited(owner)),
            holders: self.holders.of(owner.holders),
        };
        match record {
            Record::Event(Event::Retransmit(event)) => {
                // Without --count the summary takes the programs' totals. The totals here would grow as processes come and
                // go.
                if self.left.is_some() {
                    summary::add(self.by_process.entry(summary::key_of(owner)).or_default(), event);
                }
                self.output.retransmit(event, moment)?;
            }
            Record::Event(Event::Send(event)) => self.output.send(event, moment)?,
            Record::Event(Event::Cut(event)) => self.output.cut(event, moment)?,
            Record::Connection(connection) => self.output.connection(connection, moment)?,
        }
        Ok(())
    }
}

/// What /proc says about processes. Each process is looked up once for all records that were read before: a process that
/// exists then existed when they were read.
#[derive(Debug)]
pub struct Exits {
    /// /proc is that of the initial PID namespace. In another namespace, owners have other PIDs or none.
    sees_processes: bool,
    /// The processes that were looked up, by PID and start time, and whether they have exited.
    known: HashMap<(u32, u64), bool>,
    /// The process that was asked for last, which the next record is often of.
    last: Option<((u32, u64), bool)>,
}

impl Exits {
    /// Start without knowledge.
    #[must_use]
    pub fn new(sees_processes: bool) -> Self {
        Self { sees_processes, known: HashMap::new(), last: None }
    }

    /// Whether /proc is that of the initial PID namespace.
    #[must_use]
    pub fn sees_processes(&self) -> bool {
        self.sees_processes
    }

    /// Note that more records were read.
    pub fn forget(&mut self) {
        self.known.clear();
        self.last = None;
    }

    /// Whether /proc says that this process has exited.
    fn has_exited(&mut self, owner: &Owner) -> bool {
        if !self.sees_processes {
            return false;
        }
        let process = (owner.tgid, owner.born);
        if let Some((last, exited)) = self.last
            && last == process
        {
            return exited;
        }
        let exited = *self.known.entry(process).or_insert_with(|| !host::is_alive(owner.tgid, owner.born));
        self.last = Some((process, exited));
        exited
    }
}
