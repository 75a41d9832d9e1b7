//! What a run did to the kernel: the proof that what was loaded is the object, relocated as its own data and the BTF say, and
//! nothing else; and for `--record` one JSON document of everything that xctl, libbpf included, did.
//!
//! - [`document`]: the file. Calls are written as they are made, so that a long run takes no memory; the rest at the end.
//! - [`decode`]: a call, with names for numbers.
//! - [`proof`]: every instruction that was handed over, and the kernel's own hash of it; [`tag`]: that hash; [`translated`]: what
//!   the kernel made of it. [`statistics`]: how much work that was.
//! - [`capabilities`]: those that are held and needed, by name.
//!
//! `schema.json` beside this file describes the document.

mod capabilities;
mod decode;
mod document;
pub mod proof;
mod statistics;
pub mod tag;
mod translated;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use anyhow::{Context, Error, Result, anyhow};
use serde::Serialize;

use crate::fault::Exit;
use crate::hooks::{Hook, Kind, Plan};
use crate::kernel::bpf::{self, MapInfo, ProgramInfo};
use crate::kernel::calls::{Recording, word};
use crate::kernel::host::kprobe_pmu;
use crate::kernel::libbpf::Loaded;
use crate::kernel::symbols;
use crate::object::elf::INSN_SIZE;
use crate::object::facts::{MapFacts, hex};
use crate::object::{Btf, maps};
use crate::say::say;
use capabilities::Capabilities;
use document::Document;
use proof::{Maps, Proof, Unproven};
use statistics::Statistics;
use translated::{Translation, Unexplained};

/// The document's schema, in the language of JSON Schema.
pub const SCHEMA: &str = include_str!("schema.json");

/// A file or part of one, by its content.
#[derive(Clone, Debug, Serialize)]
struct Content {
    /// Null: the object inside this binary.
    path: Option<String>,
    bytes: usize,
    sha256: String,
}

impl Content {
    fn of(path: Option<&Path>, bytes: &[u8]) -> Self {
        let path = path.map(|path| path.display().to_string());
        Self { path, bytes: bytes.len(), sha256: hex(&hmac_sha256::Hash::hash(bytes)) }
    }
}

/// Hooks that were tried together.
#[derive(Clone, Debug, Serialize)]
struct Attempt {
    attach: &'static str,
    /// Why this kernel did not take them; null if it did.
    refused: Option<String>,
}

/// A program in the kernel.
#[derive(Clone, Debug, Serialize)]
struct ProgramRecord {
    name: String,
    id: u32,
    #[serde(rename = "type")]
    program_type: String,
    /// The kernel's hash of what it was given, and what kind of hash that is.
    tag: String,
    tag_hash: Option<tag::Hash>,
    /// Instructions that the kernel was given.
    insns: usize,
    /// Instructions after verification.
    insns_verified: u32,
    /// Bytes of machine code; null if it is interpreted.
    jited_bytes: Option<u32>,
    /// Instructions that the verifier went through; null where the kernel does not tell.
    verifier_steps: Option<u32>,
    /// What the verifier says of its work; null where it does not.
    verifier: Option<Statistics>,
    /// What it made of the program, compared; null if the kernel does not show it, or not as it is.
    translated: Option<Translation>,
    /// How long loading it took.
    load_ns: u64,
    /// When it was loaded, by CLOCK_BOOTTIME.
    loaded_boottime_ns: u64,
    map_ids: Vec<u32>,
    /// CO-RE relocations: those that were applied, and those that do not resolve on this kernel.
    relocations: usize,
    poisoned: usize,
    proven: bool,
}

/// A map's properties.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
struct MapShape {
    #[serde(rename = "type")]
    map_type: Cow<'static, str>,
    key_size: Option<u32>,
    value_size: Option<u32>,
    max_entries: Option<u32>,
    flags: u32,
}

impl MapShape {
    fn defined(map: &MapFacts) -> Self {
        Self {
            map_type: map.map_type.clone(),
            key_size: map.key_size,
            value_size: map.value_size,
            max_entries: map.max_entries,
            flags: map.flags,
        }
    }

    /// From the attributes of BPF_MAP_CREATE.
    fn asked(attributes: &[u8]) -> Self {
        let word = |at| word(attributes, at);
        Self {
            map_type: maps::map_type_name(word(0).unwrap_or(0)),
            key_size: word(4),
            value_size: word(8),
            max_entries: word(12),
            flags: word(16).unwrap_or(0),
        }
    }

    fn created(info: &MapInfo) -> Self {
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
struct MapRecord {
    name: String,
    id: u32,
    /// As the object defines it.
    defined: Option<MapShape>,
    /// As the kernel was asked for it.
    asked: Option<MapShape>,
    /// As the kernel says that it is.
    created: MapShape,
}

/// A hook.
#[derive(Clone, Debug, Serialize)]
struct HookRecord {
    hook: Kind,
    target: &'static str,
    program: &'static str,
    /// The kernel function that is probed, or that runs the tracepoint's programs.
    symbol: String,
    /// Its address; null if the kernel hides it, or has several of that name.
    address: Option<String>,
    attached: bool,
}

impl HookRecord {
    fn new(hook: &Hook, program: &'static str) -> Self {
        let target = hook.target_name();
        let symbol = match hook.kind {
            Kind::RawTracepoint => format!("__traceiter_{target}"),
            Kind::Kprobe | Kind::Kretprobe | Kind::Fentry | Kind::Fexit => target.to_owned(),
        };
        Self { hook: hook.kind, target, program, symbol, address: None, attached: false }
    }
}

/// What comes after the calls.
#[derive(Debug, Default, Serialize)]
struct Facts {
    object: Option<Content>,
    btf: Option<Content>,
    capabilities: Option<Capabilities>,
    attempts: Vec<Attempt>,
    programs: Vec<ProgramRecord>,
    maps: Vec<MapRecord>,
    hooks: Vec<HookRecord>,
    /// Whether every program is proven; null if it did not come to that.
    proven: Option<bool>,
    unproven: Vec<Unproven>,
    exit_code: u8,
    error: Option<String>,
}

/// What becomes of a run when what is in the kernel is not proven to be what the object says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfUnproven {
    /// It is said, and the run goes on.
    Say,
    /// It ends before anything is attached.
    Refuse,
}

/// A run that is watched. Without a file, what it loads is only compared.
#[derive(Debug)]
pub struct Record {
    /// Without a file only from loading to the comparison.
    recording: Option<Recording>,
    document: Option<Document>,
    if_unproven: IfUnproven,
    facts: Facts,
}

impl Record {
    /// With a file: watch from now on, and write to it. Without one, what is loaded is watched and compared, no more.
    ///
    /// # Errors
    /// [`Exit::Usage`], if it cannot be written.
    pub fn begin(file: Option<&Path>, if_unproven: IfUnproven) -> Result<Self> {
        let document = file.map(Document::begin).transpose().context(Exit::Usage)?;
        let recording = document.as_ref().map(|document| {
            let pmu = kprobe_pmu().ok().flatten().map(|pmu| pmu.pmu);
            let sink = document.calls();
            Recording::begin(pmu, Box::new(move |call, known| sink.add(call, known)))
        });
        let capabilities = document.as_ref().and_then(|_| Capabilities::ask());
        Ok(Self { recording, document, if_unproven, facts: Facts { capabilities, ..Facts::default() } })
    }

    fn is_written(&self) -> bool {
        self.document.is_some()
    }

    /// The object that is going to be loaded; no path: the one inside this binary.
    pub fn object(&mut self, path: Option<&Path>, bytes: &[u8]) {
        self.facts.object = self.is_written().then(|| Content::of(path, bytes));
    }

    /// The types against which it is relocated.
    pub fn btf(&mut self, path: &Path, btf: &Btf) {
        self.facts.btf = self.is_written().then(|| Content::of(Some(path), btf.bytes()));
    }

    /// On this kernel maps count against RLIMIT_MEMLOCK.
    pub fn maps_count(&mut self) {
        if let Some(capabilities) = &mut self.facts.capabilities {
            capabilities.take_memlock();
        }
    }

    /// These hooks are tried next. What was loaded for others is gone.
    pub fn attempt(&mut self, plan: &Plan) {
        self.facts.attempts.push(Attempt { attach: plan.name, refused: None });
        (self.facts.programs, self.facts.maps) = Default::default();
        (self.facts.proven, self.facts.unproven) = Default::default();
        let programs = plan.hooks.iter().flat_map(|hook| hook.programs().map(move |program| (hook, program)));
        self.facts.hooks = programs.map(|(hook, program)| HookRecord::new(hook, program)).collect();
    }

    /// This kernel did not take them.
    pub fn refused(&mut self, error: &Error) {
        if let Some(attempt) = self.facts.attempts.last_mut() {
            attempt.refused = Some(format!("{error:#}"));
        }
    }

    /// Have `load` load the programs of these names, with the verifier's statistics if it is given true. Note what the kernel
    /// says of what it has then, and whether that is what the object says.
    ///
    /// # Errors
    /// That of `load`. If what is not proven is refused: [`Exit::Object`], naming program and instruction; or why it cannot
    /// be compared.
    pub fn load(
        &mut self,
        object: &[u8],
        btf: &Btf,
        programs: &BTreeSet<&str>,
        load: impl Fn(bool) -> Result<Loaded>,
    ) -> Result<Loaded> {
        if !self.is_written() {
            self.recording = Some(Recording::begin(None, Box::new(|_, _| {})));
        }
        let statistics = self.is_written();
        let load = || match load(statistics) {
            // A log for statistics does not have what led to a refusal.
            Err(error) if statistics && error.downcast_ref() == Some(&Exit::Object) => load(false),
            result => result,
        };
        let (proof, loaded) = at_once(|| Proof::new(object, btf, programs), load);
        let loaded = loaded.and_then(|loaded| self.judge(&loaded, proof).map(|()| loaded));
        if !self.is_written() {
            self.recording = None;
            self.facts = Facts { proven: self.facts.proven, ..Facts::default() };
        }
        loaded
    }

    fn judge(&mut self, loaded: &Loaded, proof: Result<Proof<'_>>) -> Result<()> {
        let incomparable = |error: Error| error.context("what was loaded cannot be compared with the object");
        let (error, is_the_objects) = match proof.map(|proof| self.compare(loaded, &proof)) {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(found))) => {
                (anyhow!("what is in the kernel is not proven to be what the object says: {found}"), true)
            }
            Ok(Err(error)) => (incomparable(error), false),
            Err(error) => (incomparable(error), true),
        };
        match self.if_unproven {
            IfUnproven::Say => say(format_args!("{error:#} (--strict and --record FILE would end here)")),
            IfUnproven::Refuse if is_the_objects => return Err(error.context(Exit::Object)),
            IfUnproven::Refuse => return Err(error),
        }
        Ok(())
    }

    /// What is not proven; none if all is.
    fn compare(&mut self, loaded: &Loaded, proof: &Proof<'_>) -> Result<Option<String>> {
        let left_out = loaded.maps_left_out().into_iter().collect();
        let mut maps = Maps { left_out, ..Maps::default() };
        for (name, map) in loaded.maps() {
            let info = bpf::map_info(map).with_context(|| format!("cannot ask about map {name}"))?;
            maps.created.insert(name.clone(), (info.id, map.as_raw_fd()));
            let asked = self.recording.as_ref().and_then(|recording| recording.asked(map.as_raw_fd()));
            self.facts.maps.push(MapRecord {
                id: info.id,
                defined: proof.map(&name).map(MapShape::defined),
                asked: asked.map(|attributes| MapShape::asked(&attributes)),
                created: MapShape::created(&info),
                name,
            });
        }
        for (name, program) in loaded.programs() {
            let info = bpf::program_info(program).with_context(|| format!("cannot ask about program {name}"))?;
            let sent = self.recording.as_ref().and_then(|recording| recording.sent(program.as_raw_fd()));
            let insns = sent.as_ref().map_or(&[][..], |sent| &sent.insns);
            let tag_hash = tag::of(insns, info.tag);
            let translated = bpf::translated(program, info.xlated)
                .with_context(|| format!("cannot ask what became of program {name}"))?;
            let (translated, unexplained) = match translated {
                Some(translated) => proof::translation(insns, &translated, &maps),
                None => (None, None),
            };
            let unexplained =
                unexplained.map(|Unexplained { insn, why }| Unproven { program: name.clone(), insn, why });
            // A wrong tag says that something was altered; what the kernel shows of the program says where.
            let unproven = match (proof.check(&name, insns, &info, tag_hash, &maps), unexplained) {
                (Some(whole @ Unproven { insn: None, .. }), Some(place)) => {
                    Some(Unproven { why: format!("{}: {}", whole.why, place.why), ..place })
                }
                (found, unexplained) => found.or(unexplained),
            };
            let log = sent.as_ref().and_then(|sent| sent.log.as_deref()).unwrap_or_default();
            let (relocations, poisoned) = proof.relocations(&name);
            self.facts.programs.push(ProgramRecord {
                tag_hash,
                verifier: Statistics::parse(&String::from_utf8_lossy(log)),
                translated,
                insns: insns.len() / INSN_SIZE as usize,
                load_ns: sent.as_ref().map_or(0, |sent| u64::try_from(sent.took.as_nanos()).unwrap_or(u64::MAX)),
                relocations,
                poisoned,
                proven: unproven.is_none(),
                ..ProgramRecord::new(name, &info)
            });
            if unproven.is_some() {
                // That stays so if a later question fails.
                self.facts.proven = Some(false);
            }
            self.facts.unproven.extend(unproven);
        }
        self.facts.proven = Some(self.facts.unproven.is_empty() && !self.facts.programs.is_empty());
        if let Some(document) = &self.document {
            document.flush();
            let symbols: Vec<_> = self.facts.hooks.iter().map(|hook| hook.symbol.clone()).collect();
            let addresses = symbols::addresses(&symbols);
            for hook in &mut self.facts.hooks {
                hook.address = addresses.get(&hook.symbol).map(|address| format!("{address:#x}"));
            }
        }
        let found = self.facts.unproven.first().map(|first| match self.facts.unproven.len() - 1 {
            0 => first.to_string(),
            more => format!("{first} (and {more} programs more)"),
        });
        Ok(found)
    }

    /// The hooks of this plan are attached: those of the last attempt but for optional ones that this kernel has not got.
    pub fn attached(&mut self, plan: &Plan) {
        for record in &mut self.facts.hooks {
            let is = |hook: &Hook| hook.kind == record.hook && hook.target_name() == record.target;
            record.attached =
                plan.hooks.iter().any(|hook| is(hook) && hook.programs().any(|own| own == record.program));
        }
        if let Some(document) = &self.document {
            document.flush();
        }
    }

    /// Whether what is loaded was proven; none if it could not be compared.
    #[must_use]
    pub fn proven(&self) -> Option<bool> {
        self.facts.proven
    }

    /// The run is over: put the document in its place, whatever became of the run, and hand that on.
    ///
    /// # Errors
    /// That of the run, or that the document could not be written.
    pub fn finish(mut self, result: Result<()>) -> Result<()> {
        let Some(document) = self.document.take() else { return result };
        if let Err(error) = &result
            && !crate::commands::is_closed_pipe(error)
        {
            self.facts.exit_code = Exit::code_of(error);
            self.facts.error = Some(format!("{error:#}"));
        }
        drop(self.recording);
        match (document.finish(&self.facts), result) {
            (Ok(()), result) => result,
            (Err(error), Ok(())) => Err(error),
            (Err(record), Err(error)) => Err(error.context(format!("and {record:#}"))),
        }
    }
}

/// Two things, `aside` in a thread of its own; where there cannot be one, afterwards.
fn at_once<A: Send, B>(aside: impl Fn() -> A + Sync, here: impl FnOnce() -> B) -> (A, B) {
    thread::scope(|scope| {
        let thread = thread::Builder::new().spawn_scoped(scope, &aside);
        let here = here();
        let aside = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => aside(),
        };
        (aside, here)
    })
}

impl ProgramRecord {
    fn new(name: String, info: &ProgramInfo) -> Self {
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
