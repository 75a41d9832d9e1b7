//! Intervals of a run, with the gains of each process: for `xctl top`, and for metrics.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::kernel::clock::{monotonic_ns, realtime_ns};
use crate::ledger::epochs::Moving;
use crate::ledger::group::By;
use crate::ledger::summary::{ByProcess, Others, Seen, Summary};
use crate::model::lost::Lost;
use crate::output::Interval;
use crate::trace::accounts::Accounts;
use crate::trace::session::Running;

/// Intervals, one after the other.
pub struct Ticks {
    every: Duration,
    /// The end of the current interval.
    due: Instant,
    /// The beginning of the current interval, ns of CLOCK_MONOTONIC.
    since_ns: u64,
    /// Which counts the totals have.
    seen: Seen,
    /// The meaning of the rows of the next interval.
    by: By,
}

impl Ticks {
    /// The first interval begins now. `seen` says which counts the totals have, and `by` what rows stand for.
    ///
    /// # Errors
    /// If the clock cannot be read.
    pub fn begin(every: Duration, seen: Seen, by: By, accounts: Option<&mut Accounts>) -> Result<Self> {
        accounts.into_iter().for_each(|accounts| accounts.group(by));
        Ok(Self { every, due: Instant::now() + every, since_ns: monotonic_ns()?, seen, by })
    }

    /// Ask for rows that stand for something else. The current interval ends at once, and the next one has these rows.
    pub fn ask(&mut self, by: By) {
        if by != self.by {
            (self.by, self.due) = (by, Instant::now());
        }
    }

    /// The time of the next tick.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Read the counters of open connections and the totals, and end the interval.
    ///
    /// # Errors
    /// If the kernel does not let us read.
    pub fn read(&mut self, running: &mut Running, moving: &mut Moving) -> Result<Interval> {
        running.tick()?;
        let (gain, lost) = (moving.gain(&running.tables)?, running.lost()?);
        self.end(&gain, running.accounts.as_mut(), lost)
    }

    /// The interval that ends now; the next one begins. `gain` has the gains of the totals, and the accounts have been brought up
    /// to now. `lost` has the losses since the run began.
    ///
    /// # Errors
    /// If the clock cannot be read.
    pub fn end(&mut self, gain: &ByProcess, accounts: Option<&mut Accounts>, lost: Lost) -> Result<Interval> {
        let now_ns = monotonic_ns()?;
        let mut summary = Summary::new(gain, &Others::default(), lost, self.seen);
        let by = accounts.as_deref().map_or(By::Process, Accounts::by);
        if let Some(accounts) = accounts {
            let (rows, folded) = accounts.take_interval(self.since_ns);
            match accounts.take_groups(self.since_ns) {
                Some(groups) => summary.set_groups(groups, now_ns),
                None => summary.add_ledger(&rows, &folded, now_ns),
            }
            if by != self.by {
                accounts.group(self.by);
            }
        }
        let took_us = now_ns.saturating_sub(self.since_ns) / 1000;
        self.since_ns = now_ns;
        // A tick that came late does not make the next ones late.
        let now = Instant::now();
        while self.due <= now {
            self.due += self.every;
        }
        Ok(Interval { realtime_ns: realtime_ns()?, mono_ns: now_ns, took_us, by, several_netns: false, summary })
    }
}
