//! xctl's library expects these from the linker: see loader/build.rs.

fn main() {
    for function in ["syscall", "ioctl", "feat_supported"] {
        println!("cargo:rustc-link-arg=-Wl,--wrap={function}");
    }
}
