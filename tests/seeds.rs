//! The fuzz targets' seeds, and what fuzzing found, run through the same code: no panic, and no more than a moment each.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, fs};

use xctl::object;

#[path = "../fuzz/src/bodies.rs"]
mod bodies;

/// A fuzz target's name, and what it does with its bytes.
type Target = (&'static str, fn(&[u8]));

#[test]
fn seeds_and_findings_are_read_or_refused() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let targets: [Target; 4] =
        [("elf", bodies::elf), ("btf", bodies::btf), ("btf_ext", bodies::btf_ext), ("resolver", bodies::resolver)];
    for (name, body) in targets {
        let mut files: Vec<_> = fs::read_dir(seeds.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{name}");
        for file in files {
            let bytes = fs::read(&file).unwrap();
            let started = Instant::now();
            body(&bytes);
            // Unoptimised, on a busy machine; a fraction of that elsewhere.
            assert!(started.elapsed() < Duration::from_secs(20), "{}", file.display());
        }
    }
}
