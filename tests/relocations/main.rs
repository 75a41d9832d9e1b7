//! CO-RE relocations, compared with three truths: the results that a person computed (the comments in tests/objects/*.c),
//! libbpf's results for the same objects, and libbpf's results for random accesses to the types of real kernels. The verdict
//! and the facts of `xctl inspect` are compared with libbpf, the kernel, bpftool and the compiler. The stack that xctl's own
//! programs need is held against the kernel's limit.
//!
//! `libbpf.rs` gets libbpf's results, and `compared.rs` compares ours with them, relocation by relocation. `corpus.rs`,
//! `kernels.rs` and `random.rs` choose what is compared. In each run of xctl, loader/src/audit/proof.rs compares the whole
//! programs in the kernel with ours.
//!
//! libbpf relocates without loading any program (`bpf_object__prepare`). That still takes privilege: without privilege, the
//! comparison with libbpf is skipped.

#![allow(clippy::unwrap_used)]

mod alike;
mod compared;
mod corpus;
mod cut;
mod facts;
mod kernels;
mod libbpf;
mod maps;
mod objects;
mod random;
mod stack;
mod struct_ops;
mod verdict;

use std::io::Write as _;
use std::path::PathBuf;
use std::{env, fs};

/// A folder that is gone with the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    /// A new folder whose name has `name` in it.
    pub fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("xctl-relocations-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    /// Writes a file of the folder.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The test harness shows what a test prints only if it fails.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "note: {text}");
}
