//! The main loop of a run. Each round reads the rings, and prints the records before which no other record can still come.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::metrics::Metrics;
use super::printer::{Printer, Waits};
use super::ticks::Ticks;
use crate::console::say;
use crate::kernel::cgroup::Paths;
use crate::kernel::clock::{monotonic_ns, realtime_ns};
use crate::kernel::host;
use crate::kernel::hotplug::Change;
use crate::kernel::tcp_counters::{self, Reading};
use crate::kernel::wait::{Waiter, Woken};
use crate::ledger::epochs::Moving;
use crate::ledger::rows::Limit;
use crate::model::event::Event;
use crate::model::events::{NetnsKey, Totals};
use crate::ring::order::Order;
use crate::trace::accounts::Accounts;
use crate::trace::rings::{Drained, Rings};
use crate::trace::session::{Ended, Record, Running};
use crate::verify::{Ledger, Source};

/// The interval at which busy rings are read.
const ROUND: Duration = Duration::from_millis(5);

/// The time for which records gather after a round that had some, even if each wakes the reader. A ring of 64 pages has room
/// for the sends of this time. It is also the time until the first look at a program that holds records back, since a program
/// takes microseconds to write its record.
const GATHER: Duration = Duration::from_millis(1);

/// The longest time between two looks at a program that was stopped before it wrote its record.
const LONGEST_LOOK: Duration = Duration::from_millis(20);

/// Read and print until an event ends the run.
pub(super) fn follow(
    running: &mut Running,
    order: &mut Order<Record>,
    waiter: &Waiter,
    printer: &mut Printer<'_>,
    moving: &mut Moving,
    deadline: Option<Instant>,
) -> Result<Woken> {
    let mut look = GATHER;
    let mut limit = Limit::new(printer.exits.sees_processes());
    loop {
        let drained = round(running, order)?;
        printer.exits.forget();
        printer.cgroups.iter_mut().for_each(Paths::forget);
        printer.namespaces.forget();
        let realtime_offset = realtime_ns()?.wrapping_sub(monotonic_ns()?);
        let mut counted = 0;
        for record in order.complete() {
            counted +=
                usize::from(matches!(record, Record::Event(Event::Retransmit(_) | Event::Cut(_) | Event::Drop(_))));
            printer.print(&record, realtime_offset)?;
            look = GATHER;
        }
        moving.note(counted);
        moving.go_on(&running.tables)?;
        let folded = fold(running, moving, &mut limit)?;
        printer.output.flush()?;
        tick(running, printer, moving)?;
        let read = printer.metrics.as_mut().map_or(Ok(false), |metrics| metrics.go_on(running, moving))?;
        printer.status(running, waiter)?;
        let ticks = printer.ticks.as_ref().map(Ticks::due);
        let metrics = printer.metrics.as_ref().map(Metrics::due);
        let status = printer.waits.as_ref().map(Waits::due);
        let due = deadline.into_iter().chain(moving.due()).chain(ticks).chain(metrics).chain(status);
        // The next round prints the connections that ended meanwhile.
        let due = due.chain((read || folded).then(Instant::now)).min();
        let woken = match printer.left {
            Some(0) => Woken::Timeout,
            _ => match next_round(waiter, drained, order.is_settled(), &mut look, due)? {
                Woken::Timeout if deadline.is_none_or(|deadline| Instant::now() < deadline) => Woken::Records,
                woken => woken,
            },
        };
        match woken {
            Woken::Records => {}
            Woken::Cpus => cpus_changed(running, order, waiter)?,
            Woken::Keys | Woken::Stop | Woken::Resized => {
                if let Some(view) = &mut printer.view
                    && view.answer(woken)?
                {
                    return Ok(Woken::Signal);
                }
            }
            _ => return Ok(woken),
        }
    }
}

/// Fold rows of exited processes if there are too many. True: accounts were read, so connections that ended may be printed.
fn fold(running: &mut Running, moving: &mut Moving, limit: &mut Limit) -> Result<bool> {
    let Running { accounts, tables, .. } = running;
    let balance = accounts.as_ref().map(Accounts::balance);
    let exited = limit.exited(moving, balance, tables, |key| host::is_alive(key.tgid, key.born))?;
    let Some(exited) = exited else { return Ok(false) };
    if let Some(accounts) = accounts {
        accounts.drain()?;
    }
    limit.fold(exited, moving, accounts.as_mut().map(Accounts::balance_mut), tables)?;
    Ok(true)
}

/// If an interval of `xctl top` is over, show it.
fn tick(running: &mut Running, printer: &mut Printer<'_>, moving: &mut Moving) -> Result<()> {
    let Some(ticks) = &mut printer.ticks else { return Ok(()) };
    if let Some(view) = &printer.view {
        ticks.ask(view.by());
    }
    if ticks.due() <= Instant::now() {
        let interval = ticks.read(running, moving)?;
        printer.interval(interval)?;
    }
    Ok(())
}

/// Wait for the time of the next round, for a record that wakes the reader, or until `due`. If a program holds records back,
/// the next round is after `look`, which grows.
fn next_round(
    waiter: &Waiter,
    drained: Drained,
    settled: bool,
    look: &mut Duration,
    due: Option<Instant>,
) -> Result<Woken> {
    if drained.eager {
        match waiter.pause(GATHER)? {
            Woken::Timeout if settled || drained.busy => {}
            // This was also the time until the next look.
            woken => return Ok(woken),
        }
    }
    let round = match settled {
        true => {
            *look = GATHER;
            None
        }
        false if drained.busy => Some(ROUND),
        false => Some(std::mem::replace(look, LONGEST_LOOK.min(*look * 2))),
    };
    waiter.wait(due.into_iter().chain(round.map(|time| Instant::now() + time)).min())
}

/// Print the remaining records.
pub(super) fn finish(ended: &mut Ended, order: &mut Order<Record>, printer: &mut Printer<'_>) -> Result<()> {
    // A program that was running when it was detached may still write its record.
    order.watch_until(monotonic_ns()?);
    loop {
        let drained = ended.drain(|ring, record| order.push(ring, record.mono_ns(), record))?;
        order.advance(drained.began, drained.written);
        if order.has_seen_all() {
            break;
        }
        thread::sleep(GATHER);
    }
    say_newcomers(&mut ended.rings);
    printer.exits.forget();
    let realtime_offset = realtime_ns()?.wrapping_sub(monotonic_ns()?);
    for record in order.rest() {
        printer.print(&record, realtime_offset)?;
    }
    Ok(())
}

/// Both sides of the comparison, read while the programs run.
pub(super) struct Live<'a> {
    pub(super) running: &'a mut Running,
    pub(super) order: &'a mut Order<Record>,
}

impl Source for Live<'_> {
    fn kernel(&mut self) -> Result<HashMap<u32, Reading>> {
        tcp_counters::read_all()
    }

    fn xctl(&mut self) -> Result<HashMap<NetnsKey, Totals>> {
        self.running.tables.by_netns()
    }

    /// An account is in the ring within microseconds after its connection has ended.
    fn ledger(&mut self) -> Result<Option<Ledger>> {
        let Some(accounts) = &mut self.running.accounts else { return Ok(None) };
        let Some(open) = accounts.read_all()? else { return Ok(None) };
        thread::sleep(ROUND);
        round(self.running, self.order)?;
        Ok(self.running.accounts.as_mut().and_then(|accounts| accounts.sums(open)))
    }

    /// Wait for two rounds, and drain the rings so that none fills up. A retransmission passes both counters within
    /// microseconds.
    fn settle(&mut self) -> Result<()> {
        for _ in 0..2 {
            thread::sleep(ROUND);
            round(self.running, self.order)?;
        }
        Ok(())
    }
}

/// Read all rings.
fn round(running: &mut Running, order: &mut Order<Record>) -> Result<Drained> {
    let drained = running.drain(|ring, record| order.push(ring, record.mono_ns(), record))?;
    order.advance(drained.began, drained.written);
    if drained.busy {
        order.watch_until(monotonic_ns()?);
    }
    say_newcomers(&mut running.rings);
    Ok(drained)
}

/// Follow CPUs that came or went. When the kernel announces that a CPU went, the CPU's last records are in its ring. So the
/// rings are drained between the announcement and the closing of the ring.
fn cpus_changed(running: &mut Running, order: &mut Order<Record>, waiter: &Waiter) -> Result<()> {
    let changes = running.rings.changes()?;
    round(running, order)?;
    for change in changes {
        match change {
            change if !running.follow(change, waiter)? => {}
            Change::Online(cpu) => say_online(&running.rings, cpu),
            Change::Offline(cpu) => say(format_args!("CPU {cpu} went offline")),
        }
    }
    Ok(())
}

fn say_newcomers(rings: &mut Rings) {
    for cpu in rings.newcomers() {
        say_online(rings, cpu);
    }
}

fn say_online(rings: &Rings, cpu: u32) {
    let then = if rings.has_shared_ring() {
        "its records come through the shared ring"
    } else {
        "its records count as lost.output"
    };
    say(format_args!("CPU {cpu} came online: {then}"));
}
