//! The rings that carry events: one for each CPU that was online at the start, and one that later CPUs share.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Error, Result};

use super::under_way::UnderWay;
use crate::error::{Blocked, Exit};
use crate::kernel::clock::monotonic_ns;
use crate::kernel::hotplug::{Change, Changes};
use crate::kernel::loaded::LoadedObject;
use crate::kernel::mmap::{Mapped, page_size};
use crate::kernel::shared_ring::SharedRing;
use crate::kernel::wait::Waiter;
use crate::kernel::{bpf, host, limits, perf};
use crate::model::event::Event;
use crate::model::maps::{EVENTS, SHARED_RING};
use crate::ring::{Reader, Record, shared};

/// The number of records in a round from which on a ring is busy.
const BUSY: usize = 16;

/// The part of a ring, as a divisor, after which a busy ring wakes the reader.
const PART: usize = 4;

/// The ring of a CPU. Programs write through one of two perf events. A wakeup for each record costs the writer more than
/// the record itself, so a busy ring is read once a round, and wakes the reader only when a part of it was written.
struct Ring {
    cpu: u32,
    /// The ring's memory. It is mapped through the perf event that programs use while the ring is busy.
    reader: Reader<Mapped>,
    /// The event that wakes the reader with each record.
    eager: OwnedFd,
    /// Whether programs write through the event of a busy ring.
    busy: bool,
}

impl Ring {
    /// Let programs write through the event that suits the number of records in a round. Returns true if the ring may hold, or
    /// may still get, a record that does not wake the reader. A ring that has just stopped being busy is such a ring: a program
    /// that runs meanwhile may still write through the other event.
    fn adapt(&mut self, records: usize, object: &LoadedObject) -> Result<bool> {
        let was_busy = self.busy;
        let busy = if was_busy { records > 0 } else { records >= BUSY };
        if busy != was_busy {
            let event = if busy { self.reader.memory().event() } else { self.eager.as_fd() };
            bpf::set_ring(object.map(EVENTS)?, self.cpu, event)
                .with_context(|| format!("cannot register the perf ring of CPU {}", self.cpu))?;
            self.busy = busy;
        }
        Ok(busy || was_busy)
    }
}

/// The result of reading all rings. Times are in the records' clock.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    /// When the reading began.
    pub began: u64,
    /// A time: every record that is older than this time has been read, in this reading or before.
    pub written: u64,
    /// There were records in a ring where every record wakes the reader.
    pub eager: bool,
    /// A ring may hold, or may still get, a record that does not wake the reader.
    pub busy: bool,
}

/// A look at the programs that emit a record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// The time of the look.
    began: u64,
    /// Every record before this time is seen by a reading that begins after the look.
    written: u64,
}

/// The rings of a run, and the CPUs that come and go.
pub struct Rings {
    /// The rings.
    rings: Vec<Ring>,
    /// The ring for CPUs without one of their own; none if the kernel has no ring buffers.
    shared: Option<shared::Reader<SharedRing>>,
    /// The programs that emit a record.
    under_way: UnderWay,
    /// The CPUs that write to the shared ring, and whether the user was told.
    late: BTreeMap<u32, bool>,
    /// The source of changes of CPUs. An error says why this host does not report them.
    changes: io::Result<Changes>,
}

impl Rings {
    /// Open a ring of `pages` data pages for each CPU that is online, and the shared ring if `has_shared`. Also returns the
    /// CPUs.
    ///
    /// # Errors
    /// [`Exit::Host`] with the remedy, if the rings are not permitted or need more memory than there is.
    pub(super) fn open(object: &LoadedObject, pages: usize, has_shared: bool) -> Result<(Self, Vec<u32>)> {
        // Listen before asking for CPUs, so that no later change goes unnoticed.
        let changes = Changes::listen();
        let cpus = host::online_cpus().context(Exit::Host)?;
        fits(cpus.len(), pages)?;
        // Each ring needs two files.
        limits::raise_open_files();
        let rings = cpus.iter().filter_map(|&cpu| open_ring(object, cpu, pages).transpose());
        let rings = rings.collect::<Result<_>>()?;
        let shared = match has_shared {
            false => None,
            true => Some(SharedRing::new(object.map(SHARED_RING)?).context("cannot map the shared ring")?),
        };
        let shared = shared.map(shared::Reader::new);
        let under_way = UnderWay::new(object)?;
        Ok((Self { rings, shared, under_way, late: BTreeMap::new(), changes }, cpus))
    }

    /// Wake the waiter on records, and on CPUs that come or go.
    pub(super) fn watch(&self, waiter: &Waiter, object: &LoadedObject) -> Result<()> {
        self.rings.iter().try_for_each(|ring| waiter.add_ring(ring.reader.memory().event()))?;
        if let Ok(changes) = &self.changes {
            waiter.add_cpus(changes.fd())?;
        }
        if self.shared.is_some() {
            waiter.add_ring(object.map(SHARED_RING)?)?;
        }
        Ok(())
    }

    /// Look at the programs that emit a record, before the rings are read.
    ///
    /// # Errors
    /// If the kernel does not let us read.
    pub(super) fn look(&mut self) -> Result<Look> {
        let began = monotonic_ns()?;
        Ok(Look { began, written: self.under_way.look(began)? })
    }

    /// Hand over every record that the rings hold now, ring by ring, with the number of the ring. These numbers are smaller
    /// than [`Rings::count`].
    ///
    /// # Errors
    /// If a ring or a record in the ring is malformed, or if a ring cannot be told when to wake the reader.
    pub(super) fn drain(
        &mut self,
        look: Look,
        object: &LoadedObject,
        mut on_event: impl FnMut(usize, Event),
    ) -> Result<Drained> {
        let Look { began, written } = look;
        let (mut eager, mut busy) = (false, false);
        for (number, ring) in self.rings.iter_mut().enumerate() {
            let (mut records, mut wrong) = (0, None);
            ring.reader.drain(|record| match record {
                Record::Sample(bytes) => match Event::parse(bytes) {
                    Ok(event) => {
                        records += 1;
                        on_event(number, event);
                    }
                    Err(error) => wrong = Some(error),
                },
                // The LOST map counts the same lost records. The map also counts the last ones, which no later record
                // reports.
                Record::Lost(_) | Record::Other(_) => {}
            })?;
            if let Some(error) = wrong {
                return Err(error);
            }
            busy |= ring.adapt(records, object)?;
            eager |= records > 0 && !ring.busy;
        }
        let number = self.rings.len();
        let (mut whole, mut wrong) = (true, None);
        if let Some(shared) = &mut self.shared {
            whole = shared.drain(|bytes| match Event::parse(bytes) {
                Ok(event) => {
                    self.late.entry(event.cpu()).or_insert(false);
                    eager = true;
                    on_event(number, event);
                }
                Err(error) => wrong = Some(error),
            })?;
        }
        // Behind a record that is being written, the shared ring may hold records that were finished at the look.
        let written = if whole { written } else { 0 };
        wrong.map_or(Ok(Drained { began, written, eager, busy }), Err)
    }

    /// The number of rings, the shared one included.
    pub(super) fn count(&self) -> usize {
        self.rings.len() + 1
    }

    /// The reason why changes of CPUs go unnoticed; none if they are noticed.
    #[must_use]
    pub fn no_changes(&self) -> Option<&io::Error> {
        self.changes.as_ref().err()
    }

    /// The changes of CPUs since the last call.
    ///
    /// # Errors
    /// If the kernel does not report changes.
    pub fn changes(&mut self) -> Result<Vec<Change>> {
        let Ok(changes) = &mut self.changes else { return Ok(Vec::new()) };
        let all = std::iter::from_fn(|| changes.take().transpose());
        all.collect::<io::Result<_>>().context("cannot read which CPUs went online and offline")
    }

    /// Follow a change. Drain the rings before. The ring of a CPU that went offline is closed: the kernel has given up the
    /// ring's perf event, even if the CPU comes back. True if the user should be told.
    ///
    /// # Errors
    /// If a ring cannot be closed.
    pub(super) fn follow(&mut self, change: Change, waiter: &Waiter, object: &LoadedObject) -> Result<bool> {
        let place = |of: u32| self.rings.iter().position(|ring| ring.cpu == of);
        match change {
            Change::Offline(cpu) => {
                self.late.remove(&cpu);
                if let Some(index) = place(cpu) {
                    let ring = self.rings.swap_remove(index);
                    waiter.remove_ring(ring.reader.memory().event())?;
                    bpf::unset_ring(object.map(EVENTS)?, cpu)
                        .with_context(|| format!("cannot stop watching the perf ring of CPU {cpu}"))?;
                }
                Ok(true)
            }
            Change::Online(cpu) => Ok(place(cpu).is_none() && !self.late.insert(cpu, true).unwrap_or(false)),
        }
    }

    /// Whether there is a shared ring for CPUs without one of their own.
    #[must_use]
    pub fn has_shared_ring(&self) -> bool {
        self.shared.is_some()
    }

    /// CPUs that had no ring when they wrote their first record. Each CPU is returned once.
    pub fn newcomers(&mut self) -> Vec<u32> {
        let new = self.late.iter_mut().filter_map(|(&cpu, told)| (!std::mem::replace(told, true)).then_some(cpu));
        new.collect()
    }
}

/// The ring of a CPU; none if the CPU went offline meanwhile.
fn open_ring(object: &LoadedObject, cpu: u32, pages: usize) -> Result<Option<Ring>> {
    let describe = |what: &str| format!("{what} the perf ring of CPU {cpu}");
    let (mapped, eager) = match map_ring(cpu, pages) {
        Err(error) if error.downcast_ref().and_then(io::Error::raw_os_error) == Some(libc::ENODEV) => return Ok(None),
        result => result?,
    };
    perf::write_into(eager.as_fd(), mapped.event()).with_context(|| describe("cannot share"))?;
    bpf::set_ring(object.map(EVENTS)?, cpu, eager.as_fd()).with_context(|| describe("cannot register"))?;
    for event in [mapped.event(), eager.as_fd()] {
        perf::enable(event).with_context(|| describe("cannot enable"))?;
    }
    Ok(Some(Ring { cpu, reader: Reader::new(mapped), eager, busy: false }))
}

/// The ring of a CPU, and the event that wakes its reader with each record. Nothing writes to the ring yet.
///
/// # Errors
/// [`Exit::Host`] with the remedy, if the ring is not permitted or needs more memory than there is.
pub fn map_ring(cpu: u32, pages: usize) -> Result<(Mapped, OwnedFd)> {
    let describe = |what: &str| format!("{what} the perf ring of CPU {cpu}");
    let open = |wake| {
        perf::open_ring(cpu, wake).map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Error::new(error)
                .context(Blocked::new(describe("cannot open"), limits::perf_remedy()))
                .context(Exit::Host),
            _ => Error::new(error).context(describe("cannot open")),
        })
    };
    let part = pages.saturating_mul(page_size()) / PART;
    let event = open(Some(u32::try_from(part).unwrap_or(u32::MAX)))?;
    let mapped = Mapped::new(event, pages).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::ENOMEM) => Error::new(error)
            .context(Blocked::new(
                format!("{}, {pages} pages", describe("cannot map")),
                format!("take fewer with --perf-pages, or raise a limit: {}", limits::ring_limits()),
            ))
            .context(Exit::Host),
        _ => Error::new(error).context(describe("cannot map")),
    })?;
    Ok((mapped, open(None)?))
}

/// Check that rings of this many pages fit into memory. If they do not, the kernel would end other processes to make room.
///
/// # Errors
/// [`Exit::Host`] with the remedy, if they do not.
pub fn fits(cpus: usize, pages: usize) -> Result<()> {
    let needed = cpus as u64 * (pages as u64 + 1) * page_size() as u64;
    match host::available_memory() {
        Some(available) if needed > available => {
            let found = format!(
                "perf rings of {pages} pages for {cpus} CPUs take {} MiB, and {} MiB of memory are available",
                needed >> 20,
                available >> 20
            );
            Err(Blocked::new(found, "take fewer with --perf-pages").by_host())
        }
        _ => Ok(()),
    }
}
