//! A run, as states: programs are attached ([`Running`]), and then detached ([`Ended`]). The maps of detached programs can
//! still be read.

use anyhow::Result;

use super::accounts::Accounts;
use super::attach::{Attached, attach_hook};
use super::hooks::HookSet;
use super::load::Loaded;
use super::rings::{Drained, Rings};
use super::seed;
use super::seed::holders::Seeded;
use super::tables::Tables;
use super::target::Kprobes;
use crate::kernel::hotplug::Change;
use crate::kernel::wait::Waiter;
use crate::ledger::connection::Connection;
use crate::model::event::Event;
use crate::model::hooks::{BackupRuns, Purpose};
use crate::model::lost::{Counter, Lost};
use crate::model::maps::LEDGER;

/// The attached programs, and their rings and maps. Dropping the value leaves nothing in the kernel.
pub struct Running {
    /// The links, which keep the programs attached. They are dropped first.
    links: Vec<Attached>,
    /// The rings.
    pub rings: Rings,
    /// The maps.
    pub tables: Tables,
    /// The hooks that are attached.
    pub set: HookSet,
    /// The result of seeding: owners of sockets that were open before.
    pub seeded: Seeded,
    /// The accounts of connections; none if this kernel has no ledger.
    pub accounts: Option<Accounts>,
    /// [`Counter::InFlight`] when everything was attached. Until then one probe of a pair may be attached and the other not.
    in_flight: u64,
}

/// Attach the programs of a plan, and learn the owners of sockets that are open already. `progress` is told how many sockets were read
/// ([`seed::seed`]).
///
/// # Errors
/// [`crate::error::Exit::Host`]; the message names the obstacle.
pub fn attach(loaded: Loaded, kprobes: &Kprobes, progress: &mut dyn FnMut(usize)) -> Result<Running> {
    let Loaded { plan, tables, has_shared_ring } = loaded;
    let tables = Tables { object: tables.object.leave_libbpf()? };
    let object = &tables.object;
    let (rings, cpus) = Rings::open(object, plan.perf_pages, has_shared_ring)?;
    let attach_all = |purpose: Purpose| {
        let hooks = plan.set.hooks.iter().filter(move |hook| hook.purpose == purpose);
        hooks
            .flat_map(|hook| hook.programs().map(move |program| (hook, program)))
            .filter_map(|(hook, program)| attach_hook(hook, program, object, kprobes, &cpus).transpose())
            .collect::<Result<Vec<_>>>()
    };
    let mut links = attach_all(Purpose::End)?;
    links.extend(attach_all(Purpose::Owner)?);
    // Seeding follows the hooks of owners, so that no socket is missed in between. It precedes the first event, so that the
    // event has its owner.
    let seeded = seed::seed(object, plan.seed, &plan.settings.cgroups, progress)?;
    // After seeding, so that the connections that are open already have entries.
    let events = plan.settings.connections != 0;
    let accounts =
        (plan.settings.ledger != 0).then(|| Accounts::open(object, events, plan.verifies_ledger)).transpose()?;
    links.extend(attach_all(Purpose::Retransmit)?);
    let mut set = plan.set;
    set.hooks.retain(|hook| links.iter().any(|link| link.hook() == hook));
    let in_flight = tables.counts()?.of(Counter::InFlight);
    Ok(Running { links, rings, tables, set, seeded, accounts, in_flight })
}

/// A record of a run.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "events are many, and must cost no allocation")]
pub enum Record {
    /// An event that a program has reported.
    Event(Event),
    /// A connection has ended.
    Connection(Box<Connection>),
}

impl Record {
    /// The time of the record, ns of CLOCK_MONOTONIC.
    #[must_use]
    pub fn mono_ns(&self) -> u64 {
        match self {
            Self::Event(event) => event.mono_ns(),
            Self::Connection(connection) => connection.mono_ns,
        }
    }
}

/// Hand over every record that the rings hold now, with the number of its ring.
fn drain(
    rings: &mut Rings,
    accounts: Option<&mut Accounts>,
    tables: &Tables,
    mut on_record: impl FnMut(usize, Record),
) -> Result<Drained> {
    let look = rings.look()?;
    let mut drained = rings.drain(look, &tables.object, |ring, event| on_record(ring, Record::Event(event)))?;
    let Some(accounts) = accounts else { return Ok(drained) };
    if !accounts.drain()? {
        // As for the shared ring.
        drained.written = 0;
    }
    for connection in accounts.take_ended() {
        drained.eager = true;
        on_record(rings.count(), Record::Connection(Box::new(connection)));
    }
    Ok(drained)
}

impl Running {
    /// Wake the waiter on records, and on CPUs that come or go.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn watch(&self, waiter: &Waiter) -> Result<()> {
        if self.accounts.is_some() {
            waiter.add_ring(self.tables.object.map(LEDGER)?)?;
        }
        self.rings.watch(waiter, &self.tables.object)
    }

    /// Hand over every record that the rings hold now ([`Rings::drain`]).
    ///
    /// # Errors
    /// As [`Rings::drain`].
    pub fn drain(&mut self, on_record: impl FnMut(usize, Record)) -> Result<Drained> {
        drain(&mut self.rings, self.accounts.as_mut(), &self.tables, on_record)
    }

    /// Bring the accounts up to now ([`Accounts::tick`]).
    ///
    /// # Errors
    /// If the kernel does not let us read.
    pub fn tick(&mut self) -> Result<()> {
        self.accounts.as_mut().map_or(Ok(()), |accounts| accounts.tick(&self.tables.object))
    }

    /// As [`Ended::lost`], so far.
    ///
    /// # Errors
    /// If the kernel can tell how many runs it skipped, but the query fails; or if the map LOST cannot be read.
    pub fn lost(&self) -> Result<Lost> {
        lost(&self.tables, self.missed()?, self.in_flight()?, self.seeded.no_room)
    }

    /// Follow a change of CPUs ([`Rings`] does it). Drain the rings before. True if the user should be told.
    ///
    /// # Errors
    /// If a ring cannot be closed.
    pub fn follow(&mut self, change: Change, waiter: &Waiter) -> Result<bool> {
        self.rings.follow(change, waiter, &self.tables.object)
    }

    /// Detach every program, the last one first. The programs' maps and rings can still be read.
    ///
    /// # Errors
    /// If the kernel can tell how many runs it skipped, but the query fails; or if the map LOST cannot be read.
    pub fn detach(mut self) -> Result<Ended> {
        let missed = self.missed()?;
        if let Some(accounts) = &mut self.accounts {
            accounts.drain()?;
            accounts.end(&self.tables.object)?;
        }
        let in_flight = self.in_flight()?;
        let Self { mut links, rings, tables, seeded, accounts, .. } = self;
        while links.pop().is_some() {}
        Ok(Ended { rings, tables, accounts, missed, in_flight, no_room: seeded.no_room })
    }

    /// The growth of [`Counter::InFlight`] since everything was attached.
    fn in_flight(&self) -> Result<u64> {
        Ok(self.tables.counts()?.of(Counter::InFlight).saturating_sub(self.in_flight))
    }

    /// The number of runs that the kernel skipped so far and that no other program made up for; none if the kernel does not
    /// tell. If a program has a backup, at most the runs that both programs missed are lost.
    fn missed(&self) -> Result<Option<u64>> {
        let alone = |link: &&Attached| !self.set.is_backed(link.hook());
        let kprobes: Option<u64> = self.links.iter().filter(alone).map(Attached::missed).sum::<Result<_>>()?;
        let skipped = |program| self.tables.object.skipped(program);
        let mut missed = 0;
        // Skipped runs of the first programs, and of their backups.
        let (mut retransmits, mut drops, mut states) = ((0, 0), (0, 0), (0, 0));
        for hook in self.set.hooks.iter().filter(|hook| !self.set.is_backed(hook)) {
            let first = skipped(hook.program)?;
            let Some(backup) = hook.backup.map(skipped).transpose()? else {
                missed += first;
                continue;
            };
            match hook.counted_in {
                Some(BackupRuns::Retransmit) => retransmits = (retransmits.0 + first, retransmits.1 + backup),
                Some(BackupRuns::Drop) => drops = (drops.0 + first, drops.1 + backup),
                Some(BackupRuns::State) => states = (states.0 + first, states.1 + backup),
                // Both programs do the whole work.
                None => missed += first.min(backup),
            }
        }
        // The counters are read last, because the backup counts a run after the kernel has counted it as skipped. The backup
        // counts each run in which it does the work of the first program. It cannot count a skipped run without work: for
        // example, a change of state that is not a cut.
        let counts = self.tables.counts()?;
        for ((first, backup), counter) in
            [(retransmits, Counter::RetransmitBackup), (drops, Counter::DropBackup), (states, Counter::StateBackup)]
        {
            missed += first.saturating_sub(counts.of(counter)).min(backup);
        }
        Ok(kprobes.map(|kprobes| kprobes + missed))
    }
}

/// The state after detaching. Maps and rings can still be read.
pub struct Ended {
    /// The rings.
    pub rings: Rings,
    /// The maps.
    pub tables: Tables,
    /// The accounts of connections; none if this kernel has no ledger.
    pub accounts: Option<Accounts>,
    /// The number of runs that the kernel skipped; none if the kernel does not tell.
    missed: Option<u64>,
    /// The growth of [`Counter::InFlight`] from when everything was attached until the first program was detached.
    in_flight: u64,
    /// Sockets for which SOCKET_TO_PID had no room at the start.
    no_room: u64,
}

impl Ended {
    /// Hand over every record that the rings still hold ([`Rings::drain`]).
    ///
    /// # Errors
    /// As [`Rings::drain`].
    pub fn drain(&mut self, on_record: impl FnMut(usize, Record)) -> Result<Drained> {
        drain(&mut self.rings, self.accounts.as_mut(), &self.tables, on_record)
    }

    /// The number of events that the programs could not report, by reason.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn lost(&self) -> Result<Lost> {
        lost(&self.tables, self.missed, self.in_flight, self.no_room)
    }
}

fn lost(tables: &Tables, missed: Option<u64>, in_flight: u64, no_room: u64) -> Result<Lost> {
    let counts = tables.counts()?;
    let of = |counter| counts.of(counter);
    Ok(Lost {
        perf: of(Counter::Perf),
        output: of(Counter::Output) + in_flight + of(Counter::Read) + of(Counter::Refused),
        map_full: of(Counter::MapFull) + no_room,
        unknown: of(Counter::Unknown),
        unattributed: of(Counter::Unattributed),
        totals: of(Counter::Totals),
        ledger: of(Counter::Ledger),
        missed,
    })
}
