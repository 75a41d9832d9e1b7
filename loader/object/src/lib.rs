//! Files as data: the BPF object (ELF) and BTF, in which the kernel and the object each describe their types.
//!
//! Nothing here needs privilege, asks the kernel or contains unsafe code. Every input is untrusted. A damaged or hostile
//! file gives an error that says what is wrong and where. It never causes a panic, an endless loop or memory beyond a small
//! multiple of the file's size.
//!
//! - [`elf`]: the object file, read by the `object` crate; [`second_parser`]: the same bytes read by `goblin`, compared.
//! - [`btf`]: types, members, sizes.
//! - [`btf_ext`]: the source line of each instruction, and the CO-RE relocations; [`relo`]: their results on a given kernel;
//!   [`insn`]: instructions before and after; [`image`]: a whole program as it must reach the kernel.
//! - [`steps`]: the bound on the work for one object.
//! - [`completeness`]: whether the object's parts describe the same things; [`loads`]: whether the object would be loaded;
//!   [`struct_ops`]: the maps of callbacks, and whether libbpf would make them.
//! - [`names`]: functions that share a name; [`pointers`]: addresses in variables, which libbpf leaves as they are.
//! - [`known`]: helpers, map types and program types that a kernel has; [`attributes`]: maps that no kernel makes.
//! - [`cut`]: the part of a kernel's BTF that an object needs; [`search`]: the part that libbpf searches; [`difference`]:
//!   whether an object has the same results with two BTFs.
//! - [`cdef`]: C definitions of kernel types, made from BTF.
//!
//! # Example
//!
//! The programs of an object, and how many types a kernel describes:
//!
//! ```
//! use bpf_object::{Btf, ObjectFile};
//!
//! fn show(object: &[u8], kernel_types: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
//!     let object = ObjectFile::parse(object)?;
//!     for program in &object.programs {
//!         println!("{} in section {}", program.name, program.section);
//!     }
//!     let target = Btf::parse(kernel_types)?;
//!     println!("{} types in the target", target.len());
//!     Ok(())
//! }
//! # assert!(show(b"no object", b"no types").is_err());
//! ```

#![forbid(unsafe_code)]

pub mod attributes;
pub mod btf;
pub mod btf_ext;
pub mod cdef;
pub mod completeness;
pub mod cut;
pub mod difference;
pub mod elf;
pub mod facts;
mod frozen;
pub mod helpers;
pub mod hook;
pub mod image;
pub mod insn;
pub mod known;
pub mod loads;
pub mod maps;
pub mod names;
pub mod nearest;
pub mod pointers;
pub mod relo;
pub mod search;
pub mod second_parser;
#[doc(hidden)]
pub mod sort;
pub mod steps;
pub mod struct_ops;
pub mod uses;

pub use btf::{Btf, BtfError, Field, Kind, Member, TypeId};
pub use btf_ext::BtfExt;
pub use elf::{ObjectFile, Program, Refused};
pub use relo::Relocations;
pub use second_parser::compare_parsers;
