//! Puts the BPF object, compressed, where the binary includes it from. The Makefile has the one recipe for it.

use std::env;
use std::fs;
use std::io;
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
    let script = Path::new(&manifest).join("no-unwind.ld");
    println!("cargo:rerun-if-changed={}", script.display());
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{}", script.display());
    // The linker takes the first of two definitions: src/kernel/unwind.rs comes before the unwinder, other parts of which the
    // standard library refers to.
    println!("cargo:rustc-link-arg-bins=-Wl,-z,muldefs");
    // LLVM's linker, which Rust takes on x86_64, cannot tell libraries apart in what it discards.
    println!("cargo:rustc-link-arg-bins=-fuse-ld=bfd");
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
    if let Err(error) = compress(&object) {
        eprintln!("cannot compress {object} with gzip: {error}");
        exit(1);
    }
}

/// Write the object in zlib's format beside it, and its length with that as an expression for src/embedded.rs.
fn compress(path: &str) -> io::Result<()> {
    let object = fs::read(path)?;
    let gzip = Command::new("gzip").args(["-9nc", path]).output()?;
    if !gzip.status.success() {
        return Err(io::Error::other(gzip.status.to_string()));
    }
    // gzip (RFC 1952) and zlib (RFC 1950) differ in what stands before the data and in the checksum after it.
    let data = &gzip.stdout[10..gzip.stdout.len() - 8];
    let (mut low, mut high) = (1, 0);
    for byte in &object {
        low = (low + u32::from(*byte)) % 65521;
        high = (high + low) % 65521;
    }
    fs::write(format!("{path}.z"), [&[0x78, 0xda], data, &(high << 16 | low).to_be_bytes()].concat())?;
    let expression = format!("({}, include_bytes!(\"xctl.bpf.o.z\"))\n", object.len());
    fs::write(Path::new(path).with_file_name("object.rs"), expression)
}
