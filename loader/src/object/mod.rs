//! Files as data: the BPF object (ELF) and BTF, the kernel's and the object's own description of their types.
//!
//! Nothing here needs privilege, asks the kernel or contains unsafe code. Every input is untrusted: a damaged or hostile
//! file gives an error that says what is wrong and where, never a panic, an endless loop or memory beyond a small
//! multiple of the file's size.
//!
//! - [`elf`]: the object file, by the `object` crate; [`second_opinion`]: the same bytes by `goblin`, compared.
//! - [`btf`]: types, members, sizes.
//! - [`btf_ext`]: which instruction came from which line, and the CO-RE relocations; [`relo`]: what they come to on a given
//!   kernel; [`insn`]: instructions before and after; [`image`]: a whole program as it must reach the kernel.
//! - [`loads`]: whether it would be loaded; [`struct_ops`]: the maps of callbacks, and whether they would be made.
//! - [`cut`]: of a kernel's BTF, what an object needs; [`agree`]: whether two BTFs come to the same for it.
//! - [`cdef`]: C definitions of kernel types, made from BTF.
//! - [`source`]: reads BTF from a file, raw or inside an ELF file.

pub mod agree;
pub mod btf;
pub mod btf_ext;
pub mod cdef;
pub mod cut;
pub mod elf;
pub mod facts;
pub mod helpers;
pub mod hook;
pub mod image;
pub mod insn;
pub mod loads;
pub mod maps;
pub mod nearest;
pub mod relo;
pub mod second_opinion;
pub mod source;
pub mod struct_ops;
pub mod uses;

pub use btf::{Btf, BtfError, Field, Kind, Member, TypeId};
pub use btf_ext::BtfExt;
pub use elf::{ObjectFile, Program, Refused};
pub use relo::Relocations;
pub use second_opinion::second_opinion;
pub use source::{KERNEL_BTF, read_btf};
