//! The maps that the loader reads or writes: their names in the object, and the definitions that the object must give
//! them.

use anyhow::{Error, Result, anyhow};

use crate::error::Exit;
use crate::model::events::{Flow, NetnsKey, Owner, ProcessKey, Totals, UnderWay};
use crate::object::Btf;
use crate::object::maps::Definitions;

pub(crate) const SOCKETS: &str = "SOCKET_TO_PID";
pub(crate) const CACHE: &str = "SK_CACHE";
pub(crate) const NO_ROOM: &str = "NO_ROOM";
pub(crate) const HANDLED: &str = "HANDLED";
pub(crate) const EVENTS: &str = "EVENTS";
pub(crate) const SHARED_RING: &str = "SHARED_RING";
pub(crate) const UNDER_WAY: &str = "UNDER_WAY";
pub(crate) const LEDGER: &str = "LEDGER";
pub(crate) const SHUT_WINDOWS: &str = "SHUT_WINDOWS";
pub(crate) const LOST: &str = "LOST";
pub(crate) const PROCESS_TOTALS: &str = "PROCESS_TOTALS";
pub(crate) const EPOCH: &str = "EPOCH";
pub(crate) const NETNS_TOTALS: &str = "NETNS_TOTALS";

/// Name, type, bytes of a key and bytes of a value of each map.
const EXPECTED: [(&str, &str, usize, usize); 13] = [
    (SOCKETS, "hash", size_of::<Flow>(), size_of::<Owner>()),
    (CACHE, "array", size_of::<u32>(), 2 * size_of::<u64>()),
    (NO_ROOM, "lru_hash", size_of::<u64>(), size_of::<u8>()),
    (HANDLED, "lru_hash", 2 * size_of::<u64>(), size_of::<u8>()),
    (EVENTS, "perf_event_array", size_of::<u32>(), size_of::<u32>()),
    (SHARED_RING, "ringbuf", 0, 0),
    (UNDER_WAY, "percpu_array", size_of::<u32>(), size_of::<UnderWay>()),
    (LEDGER, "ringbuf", 0, 0),
    (SHUT_WINDOWS, "hash", size_of::<u64>(), 4 * size_of::<u32>()),
    (LOST, "percpu_array", size_of::<u32>(), size_of::<u64>()),
    (PROCESS_TOTALS, "hash", size_of::<ProcessKey>(), size_of::<Totals>()),
    (EPOCH, "array", size_of::<u32>(), size_of::<u32>()),
    (NETNS_TOTALS, "hash", size_of::<NetnsKey>(), size_of::<Totals>()),
];

/// Compare these maps with the definitions in the object that is about to be loaded.
///
/// # Errors
/// [`Exit::Object`], naming the first map that differs, and the difference.
pub(crate) fn check(object: &Btf) -> Result<()> {
    let object = Definitions::new(object);
    EXPECTED.iter().try_for_each(|expected| check_one(&object, *expected).map_err(|error| error.context(Exit::Object)))
}

fn check_one(object: &Definitions<'_>, (name, kind, key, value): (&str, &str, usize, usize)) -> Result<(), Error> {
    let map = object.of(name).map_err(Error::msg)?;
    let map = map.ok_or_else(|| anyhow!("the object has no map {name}, so it was not built for this xctl"))?;
    if map.type_name() != kind {
        return Err(anyhow!("map {name} has type {} in the object and {kind} in this xctl", map.type_name()));
    }
    for (what, there, here) in [("keys", map.key_size, key), ("values", map.value_size, value)] {
        let there = there.unwrap_or(0);
        if there as usize != here {
            return Err(anyhow!("map {name} has {what} of {there} bytes in the object and {here} in this xctl"));
        }
    }
    Ok(())
}
