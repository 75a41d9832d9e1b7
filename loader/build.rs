//! Puts the BPF object where the binary includes it from. The Makefile has the one recipe for it.

use std::env;
use std::path::Path;
use std::process::{Command, exit};

fn main() {
    let manifest = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    let root = Path::new(&manifest).join("..");
    let out = env::var("OUT_DIR").unwrap_or_default();
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    for input in ["Makefile", "bpf-src", "vmlinux/vmlinux.h"] {
        println!("cargo:rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo:rerun-if-env-changed=CLANG");
    // What libbpf and we call passes src/kernel/calls.rs, which can record it.
    for function in ["syscall", "ioctl", "feat_supported"] {
        println!("cargo:rustc-link-arg=-Wl,--wrap={function}");
    }
    let object = format!("{out}/xctl.bpf.o");
    let mut make = Command::new("make");
    make.arg("-s").arg("-C").arg(&root).arg("bpf").arg(format!("BPF_OBJECT={object}")).arg(format!("ARCH={arch}"));
    // When make runs cargo runs make: the outer one's flags and job server are not for this one.
    make.env_remove("MAKEFLAGS").env_remove("MFLAGS").env_remove("MAKELEVEL");
    match make.status() {
        Ok(status) if status.success() => {}
        Ok(status) => {
            eprintln!(
                "`make bpf` failed ({status}): the BPF object needs clang and libbpf's headers, see `make setup`"
            );
            exit(1);
        }
        Err(error) => {
            eprintln!("cannot run make, which builds the BPF object: {error}");
            exit(1);
        }
    }
}
