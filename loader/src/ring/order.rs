//! Records of several rings, put in the order of their times.
//!
//! Each ring is in order by itself, but for a program that was interrupted between taking the time and writing. A record
//! that was read is held back until every ring was drained again: what another CPU saw earlier has been read by then. On
//! top comes a margin, for a CPU that stood still in between, as virtual CPUs do.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Holds records back, for one round of draining.
#[derive(Debug)]
pub struct Order<T> {
    held: BinaryHeap<Reverse<Held<T>>>,
    /// In the records' clock.
    margin: u64,
    /// Times before this are complete.
    complete: u64,
    started: u64,
    count: u64,
}

#[derive(Debug)]
struct Held<T> {
    /// Time, then order of arrival.
    key: (u64, u64),
    record: T,
}

impl<T> PartialEq for Held<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl<T> Eq for Held<T> {}

impl<T> PartialOrd for Held<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Held<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl<T> Order<T> {
    /// Nothing yet; how long a CPU may have stood still, in the records' clock.
    #[must_use]
    pub fn new(margin: u64) -> Self {
        Self { held: BinaryHeap::new(), margin, complete: 0, started: 0, count: 0 }
    }

    /// A round of draining all rings begins at this time, in the records' clock.
    pub fn begin_round(&mut self, now: u64) {
        self.complete = self.started.saturating_sub(self.margin);
        self.started = now;
    }

    /// A record was read.
    pub fn push(&mut self, time: u64, record: T) {
        self.held.push(Reverse(Held { key: (time, self.count), record }));
        self.count += 1;
    }

    /// The next record whose turn has come.
    pub fn next_complete(&mut self) -> Option<T> {
        let Reverse(first) = self.held.peek()?;
        if first.key.0 >= self.complete {
            return None;
        }
        self.next()
    }

    /// The next record, whether or not an earlier one may still come: for the end.
    #[allow(clippy::should_implement_trait)] // an iterator would say that it is empty and then go on
    pub fn next(&mut self) -> Option<T> {
        self.held.pop().map(|Reverse(held)| held.record)
    }

    /// Whether records are held back, so that another round is due.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_waits_for_a_round_that_began_after_it() {
        let mut order = Order::new(0);
        order.begin_round(100);
        order.push(90, 'b');
        assert_eq!(order.next_complete(), None);
        order.begin_round(110);
        // Another CPU's record of an earlier time, seen one round later.
        order.push(80, 'a');
        order.push(105, 'c');
        assert_eq!(order.next_complete(), Some('a'));
        assert_eq!(order.next_complete(), Some('b'));
        assert_eq!(order.next_complete(), None);
        order.begin_round(120);
        assert_eq!(order.next_complete(), Some('c'));
        assert!(order.is_empty());
    }

    #[test]
    fn the_margin_holds_a_record_back_for_longer() {
        let mut order = Order::new(20);
        order.push(90, 'a');
        order.begin_round(100);
        order.begin_round(110);
        assert_eq!(order.next_complete(), None);
        order.begin_round(120);
        assert_eq!(order.next_complete(), None);
        order.begin_round(130);
        assert_eq!(order.next_complete(), Some('a'));
    }

    #[test]
    fn equal_times_keep_the_order_of_arrival() {
        let mut order = Order::new(0);
        for record in 0..100 {
            order.push(7, record);
        }
        let records: Vec<_> = std::iter::from_fn(|| order.next()).collect();
        assert_eq!(records, (0..100).collect::<Vec<_>>());
    }
}
