//! Attributes of maps that no kernel takes: the checks that every version of a map type's `map_alloc_check` has
//! (kernel/bpf/arraymap.c, hashtab.c, ringbuf.c and others).
//!
//! A loader may set the attributes that a definition leaves out. So only the attributes in the definition are judged.

use super::facts::MapFacts;

const NO_PREALLOC: u32 = 1;

/// The largest ring buffer that libbpf can round up to a power of two (`adjust_ringbuf_sz` in its src/libbpf.c).
const LARGEST_RING: u32 = 1 << 31;

/// Why no kernel makes the map, if that is so.
#[must_use]
pub fn why_refused(map: &MapFacts) -> Option<String> {
    let kind = &*map.map_type;
    let (keys, values): (&[u32], &[u32]) = match kind {
        "array" | "percpu_array" | "stack_trace" => (&[4], &[]),
        "prog_array" | "perf_event_array" | "cgroup_array" | "array_of_maps" | "xskmap" => (&[4], &[4]),
        "devmap" | "devmap_hash" | "cpumap" | "sockmap" | "reuseport_sockarray" => (&[4], &[4, 8]),
        "hash_of_maps" => (&[], &[4]),
        "sockhash" => (&[], &[4, 8]),
        "queue" | "stack" | "bloom_filter" => (&[0], &[]),
        "ringbuf" | "user_ringbuf" | "arena" => (&[0], &[0]),
        "sk_storage" | "inode_storage" | "task_storage" | "cgrp_storage" => (&[4], &[]),
        _ => (&[], &[]),
    };
    for (what, given, taken) in [("key", map.key_size, keys), ("value", map.value_size, values)] {
        if let Some(size) = given.filter(|size| !taken.is_empty() && !taken.contains(size)) {
            let taken: Vec<_> = taken.iter().map(u32::to_string).collect();
            return Some(format!("its {what} has {size} bytes, and a map of type {kind} takes {}", taken.join(" or ")));
        }
    }
    let is_storage = kind.ends_with("_storage") && !kind.contains("cgroup_storage");
    if (is_storage || kind == "lpm_trie") && map.flags & NO_PREALLOC == 0 {
        return Some(format!("a map of type {kind} needs the flag BPF_F_NO_PREALLOC"));
    }
    let entries = map.max_entries.unwrap_or(0);
    if is_storage && entries != 0 {
        return Some(format!("it has {entries} entries, and a map of type {kind} takes no number of entries"));
    }
    if kind.ends_with("ringbuf") && entries > LARGEST_RING {
        return Some(format!("a ring buffer of {entries} bytes is larger than {LARGEST_RING}"));
    }
    None
}
