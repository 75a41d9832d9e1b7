//! Sorting that is compiled once. The standard library compiles its sort again for each type and key, 4 KB each time.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::mem;

/// Sorts items by themselves.
pub fn ascending<T: Ord>(items: &mut [T]) {
    let order = sorted(items.len(), &|one, other| items[one].cmp(&items[other]));
    arrange(items, order);
}

/// Sorts by a key. Items with the same key keep their order.
pub fn by_key<T, K: Ord>(items: &mut [T], key: impl Fn(&T) -> K) {
    let order = sorted(items.len(), &|one, other| key(&items[one]).cmp(&key(&items[other])));
    arrange(items, order);
}

/// Collects a set. The standard library's `collect()` sorts the items first, with a sort of its own for each type.
pub fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    let mut set = BTreeSet::new();
    set.extend(items);
    set
}

/// Collects a map, likewise. Of two values of a key, the later counts.
pub fn map<K: Ord, V>(items: impl IntoIterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    map.extend(items);
    map
}

/// Rearranges the items: afterwards each place has the item that was at `order[place]`. Each cycle of this permutation moves
/// by swaps; a place that points to itself is done.
fn arrange<T>(items: &mut [T], mut order: Vec<usize>) {
    for start in 0..items.len() {
        let mut place = start;
        loop {
            let from = mem::replace(&mut order[place], place);
            if from == start || from == place {
                break;
            }
            items.swap(place, from);
            place = from;
        }
    }
}

/// The numbers from 0 to `count` - 1, sorted by the items that have these numbers.
fn sorted(count: usize, compare: &dyn Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by(|one, other| compare(*one, *other));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_standard_library() {
        let mut state = 1_u32;
        let mut next = |most: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % most
        };
        for count in 0..200 {
            // Few keys, so that many items share one; the number tells such items apart.
            let mut items: Vec<(u32, u32)> = (0..count).map(|number| (next(count / 3 + 1), number)).collect();
            let mut expected = items.clone();
            expected.sort_by_key(|(key, _)| *key);
            by_key(&mut items, |(key, _)| *key);
            assert_eq!(items, expected);
            let mut items: Vec<u32> = (0..count).map(|_| next(count)).collect();
            let mut expected = items.clone();
            expected.sort_unstable();
            ascending(&mut items);
            assert_eq!(items, expected);
        }
    }
}
