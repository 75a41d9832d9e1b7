//! `xctl top`: what each process did in each interval.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::kernel::clock::{monotonic_ns, realtime_ns};
use crate::ledger::figures::CutsSeen;
use crate::ledger::summary::{self, ByProcess, Others, Summary};
use crate::model::events::Retransmit;
use crate::model::lost::Lost;
use crate::output::Interval;
use crate::trace::accounts::Accounts;

/// Intervals, one after the other.
pub struct Ticks {
    every: Duration,
    /// The end of the current interval.
    due: Instant,
    /// The beginning of the current interval, ns of CLOCK_MONOTONIC.
    since_ns: u64,
    /// The retransmits in it.
    by_process: ByProcess,
}

impl Ticks {
    /// The first interval begins now.
    ///
    /// # Errors
    /// If the clock cannot be read.
    pub fn begin(every: Duration) -> Result<Self> {
        Ok(Self { every, due: Instant::now() + every, since_ns: monotonic_ns()?, by_process: ByProcess::new() })
    }

    /// The time of the next tick.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Count a retransmit.
    pub fn note(&mut self, event: &Retransmit) {
        summary::add(self.by_process.entry(summary::key_of(&event.owner)).or_default(), event);
    }

    /// The interval that ends now; the next one begins. The accounts have been brought up to now. `lost` is what was lost since
    /// the run began.
    ///
    /// # Errors
    /// If the clock cannot be read.
    pub fn end(&mut self, accounts: Option<&mut Accounts>, lost: Lost) -> Result<Interval> {
        let now_ns = monotonic_ns()?;
        let mut summary = Summary::new(&std::mem::take(&mut self.by_process), &Others::default(), lost, CutsSeen::None);
        if let Some(accounts) = accounts {
            let (rows, folded) = accounts.take_interval(self.since_ns);
            summary.add_ledger(&rows, &folded, now_ns);
        }
        let took_us = now_ns.saturating_sub(self.since_ns) / 1000;
        self.since_ns = now_ns;
        // A tick that came late does not make the next ones late.
        let now = Instant::now();
        while self.due <= now {
            self.due += self.every;
        }
        Ok(Interval { realtime_ns: realtime_ns()?, mono_ns: now_ns, took_us, summary })
    }
}
