//! Builds ways.c. The Makefile has the recipe.

use std::env;
use std::path::Path;
use std::process::{Command, exit};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let root = Path::new(&manifest).join("../..");
    let out = env::var("OUT_DIR").unwrap_or_default();
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    for input in ["Makefile", "tests/ways/ways.c"] {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    let mut make = Command::new("make");
    make.arg("-s").arg("-C").arg(&root).arg("ways").arg(format!("WAYS={out}/ways")).arg(format!("ARCH={arch}"));
    // When make runs cargo runs make: the outer one's flags and job server are not for this one.
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL");
    if !make.status().is_ok_and(|status| status.success()) {
        eprintln!("`make ways` failed: a program of the tests needs a C compiler and a static C library");
        exit(1);
    }
}
