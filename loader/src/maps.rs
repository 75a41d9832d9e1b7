//! The maps that the loader reads or writes: their names in the object, and what they must be there.

use anyhow::{Error, Result, anyhow};

use crate::events::{Flow, Owner, ProcessKey, Totals};
use crate::fault::Exit;
use crate::object::Btf;
use crate::object::maps::Definitions;

pub(crate) const SOCKETS: &str = "SOCKET_TO_PID";
pub(crate) const CACHE: &str = "SK_CACHE";
pub(crate) const HANDLED: &str = "HANDLED";
pub(crate) const EVENTS: &str = "EVENTS";
pub(crate) const SHARED_RING: &str = "SHARED_RING";
pub(crate) const LOST: &str = "LOST";
pub(crate) const PROCESS_TOTALS: &str = "PROCESS_TOTALS";
pub(crate) const NETNS_TOTALS: &str = "NETNS_TOTALS";

/// Of each: its type, bytes of a key, bytes of a value.
const EXPECTED: [(&str, &str, usize, usize); 8] = [
    (SOCKETS, "hash", size_of::<Flow>(), size_of::<Owner>()),
    (CACHE, "lru_hash", size_of::<u64>(), size_of::<u64>()),
    (HANDLED, "lru_hash", 2 * size_of::<u64>(), size_of::<u8>()),
    (EVENTS, "perf_event_array", size_of::<u32>(), size_of::<u32>()),
    (SHARED_RING, "ringbuf", 0, 0),
    (LOST, "percpu_array", size_of::<u32>(), size_of::<u64>()),
    (PROCESS_TOTALS, "hash", size_of::<ProcessKey>(), size_of::<Totals>()),
    (NETNS_TOTALS, "hash", size_of::<u32>(), size_of::<Totals>()),
];

/// Compare them with the definitions in the object that is about to be loaded.
///
/// # Errors
/// [`Exit::Object`], naming the first that differs, and in what.
pub(crate) fn check(object: &Btf) -> Result<()> {
    let object = Definitions::new(object);
    EXPECTED.iter().try_for_each(|expected| check_one(&object, *expected).map_err(|error| error.context(Exit::Object)))
}

fn check_one(object: &Definitions<'_>, (name, kind, key, value): (&str, &str, usize, usize)) -> Result<(), Error> {
    let map = object.of(name).map_err(Error::msg)?;
    let map = map.ok_or_else(|| anyhow!("it has no map {name}, so it is not an object of this xctl"))?;
    if map.type_name() != kind {
        return Err(anyhow!("map {name} is of type {} there and {kind} in this xctl", map.type_name()));
    }
    for (what, there, here) in [("keys", map.key_size, key), ("values", map.value_size, value)] {
        let there = there.unwrap_or(0);
        if there as usize != here {
            return Err(anyhow!("map {name} has {what} of {there} bytes there and {here} in this xctl"));
        }
    }
    Ok(())
}
