//! The facts of a run for the record, without the calls: files, programs, maps and hooks.

use std::borrow::Cow;
use std::path::Path;

use serde::Serialize;

use super::capabilities::Capabilities;
use super::proof::Unproven;
use super::statistics::Statistics;
use super::translated::Translation;
use super::{decode, tag};
use crate::kernel::bpf::{MapInfo, ProgramInfo};
use crate::kernel::call::word;
use crate::model::hooks::{Hook, HookKind};
use crate::object::elf::INSN_SIZE;
use crate::object::facts::{MapFacts, hex};
use crate::object::maps;

/// A file or a part of a file, identified by its content.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Content {
    /// The path; null stands for the object inside this binary.
    pub(super) path: Option<String>,
    pub(super) bytes: usize,
    pub(super) sha256: String,
}

impl Content {
    pub(super) fn of(path: Option<&Path>, bytes: &[u8]) -> Self {
        let path = path.map(|path| path.display().to_string());
        Self { path, bytes: bytes.len(), sha256: hex(&hmac_sha256::Hash::hash(bytes)) }
    }
}

/// One attempt to attach a set of hooks.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Attempt {
    pub(super) attach: &'static str,
    /// The reason why this kernel refused the hooks; null if it accepted them.
    pub(super) refused: Option<String>,
}

/// A program in the kernel.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ProgramRecord {
    pub(super) name: String,
    pub(super) id: u32,
    #[serde(rename = "type")]
    pub(super) program_type: String,
    /// The kernel's hash of the instructions that it was given, and the kind of that hash.
    pub(super) tag: String,
    pub(super) tag_hash: Option<tag::Hash>,
    /// The number of instructions that the kernel was given.
    pub(super) insns: usize,
    /// The number of instructions after verification.
    pub(super) insns_verified: u32,
    /// Bytes of machine code; null if the program is interpreted.
    pub(super) jited_bytes: Option<u32>,
    /// The number of instructions that the verifier processed; null if the kernel does not tell.
    pub(super) verifier_steps: Option<u32>,
    /// The verifier's statistics of its work; null if the kernel does not tell.
    pub(super) verifier: Option<Statistics>,
    /// The comparison with the instructions after verification; null if the kernel hides or alters these instructions.
    pub(super) translated: Option<Translation>,
    /// The duration of loading the program, in ns.
    pub(super) load_ns: u64,
    /// The time of loading, in ns of CLOCK_BOOTTIME.
    pub(super) loaded_boottime_ns: u64,
    pub(super) map_ids: Vec<u32>,
    /// CO-RE relocations: the number that were applied, and the number that do not resolve on this kernel.
    pub(super) relocations: usize,
    pub(super) poisoned: usize,
    pub(super) proven: bool,
}

/// A map's properties.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub(super) struct MapShape {
    #[serde(rename = "type")]
    pub(super) map_type: Cow<'static, str>,
    pub(super) key_size: Option<u32>,
    pub(super) value_size: Option<u32>,
    pub(super) max_entries: Option<u32>,
    pub(super) flags: u32,
}

impl MapShape {
    pub(super) fn defined(map: &MapFacts) -> Self {
        Self {
            map_type: map.map_type.clone(),
            key_size: map.key_size,
            value_size: map.value_size,
            max_entries: map.max_entries,
            flags: map.flags,
        }
    }

    /// Read the properties from the attributes of BPF_MAP_CREATE.
    pub(super) fn asked(attributes: &[u8]) -> Self {
        let word = |at| word(attributes, at);
        Self {
            map_type: maps::map_type_name(word(0).unwrap_or(0)),
            key_size: word(4),
            value_size: word(8),
            max_entries: word(12),
            flags: word(16).unwrap_or(0),
        }
    }

    pub(super) fn created(info: &MapInfo) -> Self {
        Self {
            map_type: maps::map_type_name(info.map_type),
            key_size: Some(info.key_size),
            value_size: Some(info.value_size),
            max_entries: Some(info.max_entries),
            flags: info.flags,
        }
    }
}

/// A map in the kernel.
#[derive(Clone, Debug, Serialize)]
pub(super) struct MapRecord {
    pub(super) name: String,
    pub(super) id: u32,
    /// The properties in the object's definition.
    pub(super) defined: Option<MapShape>,
    /// The properties in the call that created the map.
    pub(super) asked: Option<MapShape>,
    /// The properties that the kernel reports.
    pub(super) created: MapShape,
}

/// A hook.
#[derive(Clone, Debug, Serialize)]
pub(super) struct HookRecord {
    pub(super) hook: HookKind,
    pub(super) target: &'static str,
    pub(super) program: &'static str,
    /// [`Hook::function`].
    pub(super) symbol: String,
    /// The address of the function; null if the kernel hides it, or has several functions of that name.
    pub(super) address: Option<String>,
    pub(super) attached: bool,
}

impl HookRecord {
    pub(super) fn new(hook: &Hook, program: &'static str) -> Self {
        let (target, symbol) = (hook.target_name(), hook.function());
        Self { hook: hook.kind, target, program, symbol, address: None, attached: false }
    }
}

/// The part of the record after the calls.
#[derive(Debug, Default, Serialize)]
pub(super) struct Facts {
    pub(super) object: Option<Content>,
    pub(super) btf: Option<Content>,
    pub(super) capabilities: Option<Capabilities>,
    pub(super) attempts: Vec<Attempt>,
    pub(super) programs: Vec<ProgramRecord>,
    pub(super) maps: Vec<MapRecord>,
    pub(super) hooks: Vec<HookRecord>,
    /// Whether every program is proven; null if the run ended before that was decided.
    pub(super) proven: Option<bool>,
    pub(super) unproven: Vec<Unproven>,
    pub(super) exit_code: u8,
    pub(super) error: Option<String>,
}

impl ProgramRecord {
    pub(super) fn new(name: String, info: &ProgramInfo) -> Self {
        Self {
            name,
            id: info.id,
            program_type: decode::program_type(info.program_type).into_owned(),
            tag: hex(&info.tag),
            tag_hash: None,
            insns: 0,
            insns_verified: info.xlated / INSN_SIZE as u32,
            jited_bytes: (info.jited > 0).then_some(info.jited),
            verifier_steps: (info.verified > 0).then_some(info.verified),
            verifier: None,
            translated: None,
            load_ns: 0,
            loaded_boottime_ns: info.load_time,
            map_ids: info.map_ids.clone(),
            relocations: 0,
            poisoned: 0,
            proven: false,
        }
    }
}
