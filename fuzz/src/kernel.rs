//! Where the loader looks for BTF. The fuzz targets read no file.

#[path = "../../loader/src/kernel/source.rs"]
pub mod source;
