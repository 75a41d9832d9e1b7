//! The time before which every record has been written.
//!
//! A program counts itself as started on its CPU, takes the time of its record, writes the record, and counts itself as
//! finished. If the two counts of a CPU are equal, the CPU is quiet: no program there is between the two. Every record of the
//! CPU with an earlier time is then in a ring or lost, however long its program was stopped. The CPUs need not be quiet at the
//! same time.
//!
//! A CPU other than x86 may show its writes to other CPUs in another order, but only for as long as its store buffer holds
//! them. The last writes may then be missing from the counts, and a record from its ring although its program counts as
//! finished. So a look at the counts says nothing about the time just before it, and serves only for a reading of the rings
//! that begins some time later.

/// What the counts of programs have shown so far. All times are in the records' clock.
#[derive(Debug)]
pub struct Written {
    /// When each CPU was quiet for the last time.
    quiet: Vec<u64>,
    /// The longest time for which a CPU may hold its writes back; 0 if others see them in their order.
    delay: u64,
    /// The look at the counts that waits for `delay` to pass: its time, and the time before which all records were written.
    look: (u64, u64),
    /// The time before which a reading of the rings sees every record.
    before: u64,
}

impl Written {
    /// Begin without knowledge.
    #[must_use]
    pub fn new(delay: u64) -> Self {
        Self { quiet: Vec::new(), delay, look: (0, 0), before: 0 }
    }

    /// Note how many programs had started and finished on each CPU. `now` is a time before the look. The counts of finished
    /// programs were read before those of started ones: a program that ends between the two then makes the CPU look busy,
    /// and not quiet.
    ///
    /// Returns a time. Every record before it is seen by a reading of the rings that begins now.
    pub fn look(&mut self, now: u64, counts: impl Iterator<Item = (u64, u64)>) -> u64 {
        for (cpu, (started, finished)) in counts.enumerate() {
            if cpu == self.quiet.len() {
                self.quiet.push(0);
            }
            if started == finished {
                self.quiet[cpu] = now;
            }
        }
        let look = (now, self.quiet.iter().copied().min().unwrap_or(0));
        if self.delay == 0 {
            self.look = look;
        }
        let (seen, written) = self.look;
        if now - seen >= self.delay {
            self.before = written.saturating_sub(self.delay);
            self.look = look;
        }
        self.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The counts (started, finished) of each CPU.
    fn look(written: &mut Written, now: u64, counts: &[(u64, u64)]) -> u64 {
        written.look(now, counts.iter().copied())
    }

    #[test]
    fn a_program_under_way_holds_the_time_back() {
        let mut written = Written::new(0);
        assert_eq!(look(&mut written, 100, &[(0, 0)]), 100);
        assert_eq!(look(&mut written, 200, &[(1, 0)]), 100);
        // Others come and go meanwhile, and their number alone says nothing about the first.
        assert_eq!(look(&mut written, 300, &[(9, 8)]), 100);
        assert_eq!(look(&mut written, 400, &[(9, 9)]), 400);
    }

    #[test]
    fn the_last_cpu_decides_and_none_has_to_wait_for_another() {
        let mut written = Written::new(0);
        assert_eq!(look(&mut written, 100, &[(1, 0), (5, 5), (7, 6)]), 0);
        assert_eq!(look(&mut written, 200, &[(2, 2), (6, 5), (8, 7)]), 0);
        assert_eq!(look(&mut written, 300, &[(3, 2), (6, 5), (8, 8)]), 100);
        assert_eq!(look(&mut written, 400, &[(3, 2), (7, 7), (9, 8)]), 200);
        assert_eq!(look(&mut written, 500, &[(3, 3), (7, 7), (9, 9)]), 500);
    }

    #[test]
    fn counts_may_wrap() {
        let mut written = Written::new(0);
        assert_eq!(look(&mut written, 100, &[(u64::MAX, u64::MAX)]), 100);
        assert_eq!(look(&mut written, 200, &[(0, u64::MAX)]), 100);
        assert_eq!(look(&mut written, 300, &[(0, 0)]), 300);
    }

    #[test]
    fn where_writes_may_be_held_back_a_look_serves_for_a_later_reading() {
        let mut written = Written::new(10);
        assert_eq!(look(&mut written, 100, &[(1, 1)]), 0);
        assert_eq!(look(&mut written, 105, &[(2, 1)]), 0);
        // The look at 100 serves now. What had started just before it may not have been counted.
        assert_eq!(look(&mut written, 110, &[(2, 1)]), 90);
        assert_eq!(look(&mut written, 120, &[(2, 2)]), 90);
        assert_eq!(look(&mut written, 130, &[(3, 2)]), 110);
    }
}
