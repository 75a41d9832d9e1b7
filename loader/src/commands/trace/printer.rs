//! Events on their way to the output.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::live::View;
use super::metrics::Metrics;
use super::ticks::Ticks;
use crate::console::expect_status;
use crate::kernel::cgroup::Paths;
use crate::kernel::clock::realtime_ns;
use crate::kernel::host;
use crate::kernel::netns::Names;
use crate::kernel::terminal::moves_cursor;
use crate::kernel::wait::Waiter;
use crate::ledger::group::{By, Group};
use crate::ledger::summary::{self, ByProcess, Summary};
use crate::model::event::Event;
use crate::model::events::{Owner, ProcessKey};
use crate::output::{Interval, Moment, Output, Status};
use crate::trace::reasons::DropReasons;
use crate::trace::seed::holders::Holders;
use crate::trace::session::{Record, Running};

/// Prints events, and counts them if their number is limited.
pub struct Printer<'w> {
    /// The format.
    pub output: Box<dyn Output + 'w>,
    /// It prints JSON, which has every name.
    pub json: bool,
    /// Totals of the printed events, if their number is limited.
    pub by_process: ByProcess,
    /// The number of events that may still be printed.
    pub left: Option<u64>,
    /// The processes that no longer exist.
    pub exits: Exits,
    /// The paths of cgroups, if the output has them.
    pub cgroups: Option<Paths>,
    /// The names of network namespaces.
    pub namespaces: Names,
    /// The holders of sockets that were shared at the start.
    pub holders: Holders,
    /// The names of the reasons of drops.
    pub reasons: DropReasons,
    /// `xctl top`: print intervals, and no event.
    pub ticks: Option<Ticks>,
    /// `xctl top` on a terminal: show intervals here.
    pub view: Option<View<'w>>,
    /// `--metrics` and `--metrics-file`.
    pub metrics: Option<Metrics>,
    /// The status on a terminal.
    pub waits: Option<Waits>,
}

/// The status for a person who waits for events.
pub struct Waits {
    /// When the status is shown again.
    due: Instant,
    /// Printed retransmissions, in segments.
    segs: u64,
    /// Whether the known sockets are counted. With a large map, counting would keep xctl from reading events.
    counts_sockets: bool,
}

impl Waits {
    /// The time between two updates.
    const EVERY: Duration = Duration::from_secs(1);
    /// The largest map whose entries are counted: that takes a few milliseconds.
    const MOST_SOCKETS: u32 = 1 << 16;

    /// The status is due at once. SOCKET_TO_PID has room for `max_sockets`. None: standard output is no terminal that can show a
    /// status. Call this before system calls are limited.
    #[must_use]
    pub fn begin(max_sockets: u32) -> Option<Self> {
        if !moves_cursor(&io::stdout()) {
            return None;
        }
        expect_status();
        Some(Self { due: Instant::now(), segs: 0, counts_sockets: max_sockets <= Self::MOST_SOCKETS })
    }

    /// The next time at which [`Printer::status`] has work to do.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }
}

impl Printer<'_> {
    /// Add the names of network namespaces to rows of connections.
    fn name_namespaces(&mut self, interval: &mut Interval) {
        for process in &mut interval.summary.processes {
            if let Some(Group::Connection(flow, _)) = process.group {
                interval.several_netns = self.namespaces.note(flow.netns);
                process.netns_name = self.namespaces.of(flow.netns).map(str::to_owned);
            }
        }
    }

    /// Add the paths of cgroups to rows, if these rows are printed with them.
    pub fn name_cgroups(&mut self, summary: &mut Summary, by: By) {
        let Some(paths) = self.cgroups.as_mut().filter(|_| self.json || by == By::Cgroup) else { return };
        for process in &mut summary.processes {
            let path = process.cgroup.and_then(|cgroup| paths.of(cgroup, process.key.tgid));
            process.cgroup_path = path.map(str::to_owned);
        }
    }

    /// Show an interval.
    ///
    /// # Errors
    /// If standard output does not take it.
    pub fn interval(&mut self, mut interval: Interval) -> Result<()> {
        self.name_cgroups(&mut interval.summary, interval.by);
        self.name_namespaces(&mut interval);
        if let Some(view) = &mut self.view {
            return view.add(interval);
        }
        self.output.interval(&interval)?;
        Ok(self.output.flush()?)
    }

    /// Show the status, if there is one and it is due. A terminal that was stopped (Ctrl-S) does not get it: waiting for that
    /// terminal would cost events.
    ///
    /// # Errors
    /// If a map cannot be read, or standard output does not take it.
    pub fn status(&mut self, running: &Running, waiter: &Waiter) -> Result<()> {
        let now = Instant::now();
        let Some(waits) = self.waits.as_mut().filter(|waits| waits.due <= now) else { return Ok(()) };
        waits.due = now + Waits::EVERY;
        if !waiter.has_room() {
            return Ok(());
        }
        let sockets = if waits.counts_sockets { running.tables.sockets()? } else { None };
        let lost = running.lost()?;
        Ok(self.output.status(&Status { realtime_ns: realtime_ns()?, sockets, segs: waits.segs, lost })?)
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
        let (owner, flow) = match record {
            Record::Event(event) => (event.owner(), event.flow()),
            Record::Connection(connection) => (&connection.owner, &connection.flow),
        };
        let cgroup_path = match &mut self.cgroups {
            Some(paths) if owner.is_process() => paths.of(owner.cgroup, owner.tgid),
            _ => None,
        };
        let several_netns = self.namespaces.note(flow.netns);
        let moment = Moment {
            cgroup_path,
            several_netns,
            netns: if several_netns || self.json { self.namespaces.of(flow.netns) } else { None },
            realtime_ns: record.mono_ns().wrapping_add(realtime_offset),
            exited: owner.is_process() && (owner.gone != 0 || self.exits.has_exited(owner)),
            holders: self.holders.of(owner.holders),
        };
        match record {
            Record::Event(Event::Retransmit(event)) => {
                // Without --count the summary takes the programs' totals. The totals here would grow as processes come and
                // go.
                if self.left.is_some() {
                    summary::add(self.by_process.entry(ProcessKey::of(owner)).or_default(), event);
                }
                if let Some(waits) = &mut self.waits
                    && event.err == 0
                {
                    waits.segs += u64::from(event.segs);
                }
                self.output.retransmit(event, moment)?;
            }
            Record::Event(Event::Send(event)) => self.output.send(event, moment)?,
            Record::Event(Event::Cut(event)) => self.output.cut(event, moment)?,
            Record::Event(Event::Drop(event)) => {
                self.output.dropped(event, self.reasons.name(event.reason).as_deref(), moment)?;
            }
            Record::Connection(connection) => self.output.connection(connection, moment)?,
        }
        Ok(())
    }
}

/// The state of processes by /proc. Each process is looked up once for all records that were read before. If it exists at the
/// look-up, it existed when these records were read.
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
