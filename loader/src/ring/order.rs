//! Records of several rings, in the order of their times.
//!
//! Each ring is in order by itself, except if a program was interrupted between taking the time and writing. So the records
//! of a ring are kept as they come, and those of all rings are merged. A record is held back until every record with an
//! earlier time has been read; [`super::written`] tells when that is so. A program may be stopped for any time before it
//! writes: Linux 7.2 preempts the programs of tracepoints, and a virtual CPU can stand still. After a limit, the records that
//! wait for such a program are handed on. When the record of that program comes, it is late, and is handed on at once.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Records of one ring with their times, by time.
type Run<T> = VecDeque<(u64, T)>;

/// The number of records for which an empty run keeps its memory.
const KEPT: usize = 64;

/// A queue that holds records back until no earlier record can come.
#[derive(Debug)]
pub struct Order<T> {
    /// The records of each ring.
    held: Vec<Run<T>>,
    /// The longest time for which a record is held back, in the records' clock.
    limit: u64,
    /// All records before this time have been read, or are late.
    complete: u64,
    /// A record with a time up to this one may come without waking the reader.
    watched: u64,
}

impl<T> Order<T> {
    /// Make an empty queue. `limit` is the longest time for which a record is held back, in the records' clock.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { held: Vec::new(), limit, complete: 0, watched: 0 }
    }

    /// Note that all rings have been read, and that every record before `written` was seen. `now` is the time of the reading.
    pub fn advance(&mut self, now: u64, written: u64) {
        for run in self.held.iter_mut().filter(|run| run.is_empty()) {
            run.shrink_to(KEPT);
        }
        self.complete = self.complete.max(written).max(now.saturating_sub(self.limit));
    }

    /// Go on reading until every record up to this time has been seen: such a record may wake nobody.
    pub fn watch_until(&mut self, time: u64) {
        self.watched = time;
    }

    /// Add a record that was read from the ring of this number. The numbers of rings are small.
    pub fn push(&mut self, ring: usize, time: u64, record: T) {
        if ring >= self.held.len() {
            self.held.resize_with(ring + 1, Run::new);
        }
        let run = &mut self.held[ring];
        // Nearly always the record is the latest of its ring, and the place is the end.
        let place = match run.back() {
            Some(&(latest, _)) if latest > time => run.partition_point(|&(earlier, _)| earlier <= time),
            _ => run.len(),
        };
        run.insert(place, (time, record));
    }

    /// The records that no earlier record can precede any more.
    pub fn complete(&mut self) -> Merged<'_, T> {
        Merged::new(&mut self.held, self.complete)
    }

    /// All records, even if an earlier one may still arrive. This function is for the end of a run.
    pub fn rest(&mut self) -> Merged<'_, T> {
        Merged::new(&mut self.held, u64::MAX)
    }

    /// Whether every record has been seen that [`Order::watch_until`] asked for.
    #[must_use]
    pub fn has_seen_all(&self) -> bool {
        self.complete > self.watched
    }

    /// Whether no record is held back, and none may come without waking the reader. Otherwise another reading is due.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.has_seen_all() && self.held.iter().all(VecDeque::is_empty)
    }
}

/// Takes records out of an [`Order`], the earliest first.
#[derive(Debug)]
pub struct Merged<'a, T> {
    held: &'a mut [Run<T>],
    /// The ring with the earliest record.
    current: usize,
    /// The first time and the number of each other ring that has records.
    others: BinaryHeap<Reverse<(u64, usize)>>,
    /// Records from this time on stay.
    end: u64,
}

impl<'a, T> Merged<'a, T> {
    fn new(held: &'a mut [Run<T>], end: u64) -> Self {
        let first = |(ring, run): (usize, &Run<T>)| run.front().map(|&(time, _)| Reverse((time, ring)));
        let mut others: BinaryHeap<_> = held.iter().enumerate().filter_map(first).collect();
        let current = others.pop().map_or(0, |Reverse((_, ring))| ring);
        Self { held, current, others, end }
    }
}

impl<T> Iterator for Merged<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        // Only a record of another ring that comes next costs a change of the heap.
        let head = self.held.get(self.current)?.front().map(|&(time, _)| Reverse((time, self.current)));
        if let Some(mut other) = self.others.peek_mut()
            && head.is_none_or(|head| head < *other)
        {
            let Reverse((_, next)) = *other;
            match head {
                Some(head) => *other = head,
                None => drop(std::collections::binary_heap::PeekMut::pop(other)),
            }
            self.current = next;
        }
        let run = &mut self.held[self.current];
        let &(time, _) = run.front()?;
        (time < self.end).then(|| run.pop_front().map(|(_, record)| record))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete<T>(order: &mut Order<T>) -> Vec<T> {
        order.complete().collect()
    }

    const LIMIT: u64 = 1_000;

    #[test]
    fn a_record_waits_until_all_earlier_ones_were_seen() {
        let mut order = Order::new(LIMIT);
        order.push(0, 90, 'b');
        order.advance(100, 80);
        assert_eq!(complete(&mut order), []);
        assert!(!order.is_settled());
        // A program on another CPU was under way. Its record has an earlier time and comes later.
        order.push(1, 85, 'a');
        order.push(0, 105, 'c');
        order.advance(110, 100);
        assert_eq!(complete(&mut order), ['a', 'b']);
        assert!(!order.is_settled());
        order.advance(120, 120);
        assert_eq!(complete(&mut order), ['c']);
        assert!(order.is_settled());
    }

    #[test]
    fn a_record_is_held_back_no_longer_than_the_limit() {
        let mut order = Order::new(LIMIT);
        order.push(0, 90, 'b');
        order.advance(90 + LIMIT, 50);
        assert_eq!(complete(&mut order), []);
        order.advance(91 + LIMIT, 50);
        assert_eq!(complete(&mut order), ['b']);
        order.push(1, 80, 'a');
        order.advance(92 + LIMIT, 0);
        assert_eq!(complete(&mut order), ['a'], "it is late");
    }

    #[test]
    fn reading_goes_on_as_long_as_a_record_may_wake_nobody() {
        let mut order = Order::<char>::new(LIMIT);
        order.advance(100, 100);
        assert!(order.is_settled());
        order.watch_until(105);
        order.advance(110, 100);
        assert!(!order.is_settled());
        order.advance(120, 105);
        assert!(!order.is_settled(), "a record of that very time may still come");
        order.advance(130, 106);
        assert!(order.is_settled());
    }

    #[test]
    fn equal_times_keep_the_order_of_arrival() {
        let mut order = Order::new(LIMIT);
        for record in 0..100 {
            order.push(record / 10, 7, record);
        }
        assert_eq!(order.rest().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
        order.advance(1, 1);
        assert!(order.is_settled());
    }

    #[test]
    fn any_records_of_any_rings_come_out_as_if_sorted() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for rings in [1, 2, 7] {
            let (mut order, mut expected, mut came) = (Order::new(LIMIT), Vec::new(), Vec::new());
            for round in 2..200_u64 {
                for _ in 0..random(30) {
                    let time = round * 100 - random(150);
                    order.push(random(rings) as usize, time, time);
                    expected.push(time);
                }
                // The records of the next round have this time or a later one.
                order.advance(round * 100, round * 100 - 49);
                came.extend(order.complete());
            }
            came.extend(order.rest());
            expected.sort_unstable();
            assert_eq!(came, expected);
        }
    }
}
