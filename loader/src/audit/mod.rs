//! The audit of a run. The audit proves that the loaded programs are the object, relocated as its own data and the BTF
//! demand, and nothing else. For `--record` the audit writes one JSON document of everything that xctl, with libbpf,
//! did to the kernel.
//!
//! - [`document`]: the file. Calls are written as they are made, so that a long run takes no memory; the rest is
//!   written at the end.
//! - [`decode`]: a call, with names for numbers.
//! - [`proof`]: the comparison of every instruction that was passed to the kernel. [`tag`]: the kernel's own hash of
//!   these instructions. [`translated`]: the comparison with the instructions after verification. [`statistics`]: the
//!   work of the verifier.
//! - [`facts`]: the rest of the file.
//! - [`capabilities`]: the capabilities that are held and needed, by name.
//!
//! docs/record.schema.json describes the document.

mod capabilities;
mod decode;
mod document;
mod facts;
pub mod proof;
mod statistics;
pub mod tag;
mod translated;

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::console::say;
use crate::error::{Exit, is_closed_pipe};
use crate::kernel::bpf;
use crate::kernel::calls::Recording;
use crate::kernel::host::kprobe_pmu;
use crate::kernel::loaded::LoadedObject;
use crate::kernel::symbols;
use crate::kernel::thread::at_once;
use crate::model::hooks::Hook;
use crate::object::Btf;
use crate::object::elf::INSN_SIZE;
use capabilities::Capabilities;
use document::Document;
use facts::{Attempt, Content, Facts, HookRecord, MapRecord, MapShape, ProgramRecord};
use proof::{Maps, Proof, Unproven};
use statistics::Statistics;
use translated::Unexplained;

/// The document's schema, in the language of JSON Schema.
pub const SCHEMA: &str = include_str!("../../../docs/record.schema.json");

/// The reaction if the programs in the kernel are not proven to be the object's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfUnproven {
    /// Print a message, and go on.
    Say,
    /// End the run before anything is attached.
    Refuse,
}

/// The programs as they must be, or the reason why that cannot be computed.
#[derive(Debug)]
pub struct Expected<'a>(Result<Proof<'a>>);

/// The audit of one run. Without a file, the programs are only compared.
#[derive(Debug)]
pub struct Audit {
    /// The recording of calls. Without a file, the recording lasts only from loading to the comparison.
    recording: Option<Recording>,
    document: Option<Document>,
    if_unproven: IfUnproven,
    facts: Facts,
}

impl Audit {
    /// Begin the audit. With a file, all calls are recorded from now on and written to the file. Without one, only
    /// loading is recorded, for the comparison.
    ///
    /// # Errors
    /// [`Exit::Usage`], if the file cannot be written.
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

    /// Whether there is a file, which gets all calls.
    #[must_use]
    pub fn is_written(&self) -> bool {
        self.document.is_some()
    }

    /// Note the object that will be loaded. Without a path, the object is the one inside this binary.
    pub fn object(&mut self, path: Option<&Path>, bytes: &[u8]) {
        self.facts.object = self.is_written().then(|| Content::of(path, bytes));
    }

    /// Note the types that the object is relocated against.
    pub fn btf(&mut self, path: &Path, btf: &Btf) {
        self.facts.btf = self.is_written().then(|| Content::of(Some(path), btf.bytes()));
    }

    /// Note that maps count against RLIMIT_MEMLOCK on this kernel.
    pub fn maps_count(&mut self) {
        if let Some(capabilities) = &mut self.facts.capabilities {
            capabilities.take_memlock();
        }
    }

    /// Note that the hooks of this set are tried next. Programs that were loaded for another set are gone.
    pub fn attempt(&mut self, set: &'static str, hooks: &[Hook]) {
        self.facts.attempts.push(Attempt { attach: set, refused: None });
        (self.facts.programs, self.facts.maps) = Default::default();
        (self.facts.proven, self.facts.unproven) = Default::default();
        let programs = hooks.iter().flat_map(|hook| hook.programs().map(move |program| (hook, program)));
        self.facts.hooks = programs.map(|(hook, program)| HookRecord::new(hook, program)).collect();
    }

    /// Note that this kernel refused these hooks.
    pub fn note_refusal(&mut self, error: &Error) {
        if let Some(attempt) = self.facts.attempts.last_mut() {
            attempt.refused = Some(format!("{error:#}"));
        }
    }

    /// Load the programs of these names by calling `load`, whose argument tells whether to ask for the verifier's
    /// statistics. Meanwhile compute the programs as they must be, for [`Audit::judge`].
    ///
    /// # Errors
    /// The error of `load`.
    pub fn watch<'a>(
        &mut self,
        object: &'a [u8],
        btf: Btf,
        programs: &BTreeSet<&str>,
        load: impl Fn(bool) -> Result<LoadedObject>,
    ) -> Result<(LoadedObject, Expected<'a>)> {
        if !self.is_written() {
            self.recording = Some(Recording::begin(None, Box::new(|_, _| {})));
        }
        let statistics = self.is_written();
        let load = || match load(statistics) {
            // The verifier's log holds either statistics or the reasons of a refusal.
            Err(error) if statistics && error.downcast_ref() == Some(&Exit::Object) => load(false),
            result => result,
        };
        let types = Mutex::new(Some(btf));
        let prove = || match types.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(btf) => Proof::new(object, btf, programs),
            None => bail!("the types are gone"),
        };
        let (proof, loaded) = at_once(prove, load);
        if loaded.is_err() {
            self.end_comparison();
        }
        Ok((loaded?, Expected(proof)))
    }

    /// Compare the programs in the kernel with the programs as they must be, and note the kernel's information about
    /// them.
    ///
    /// # Errors
    /// If unproven programs are to be refused: [`Exit::Object`], naming program and instruction; or the reason why the
    /// programs cannot be compared.
    pub fn judge(&mut self, loaded: &LoadedObject, expected: Expected<'_>) -> Result<()> {
        let result = self.compare_all(loaded, expected);
        self.end_comparison();
        result
    }

    /// End the comparison. Without a file, nothing is recorded after the comparison, and only its result is kept.
    fn end_comparison(&mut self) {
        if !self.is_written() {
            self.recording = None;
            self.facts = Facts { proven: self.facts.proven, ..Facts::default() };
        }
    }

    fn compare_all(&mut self, loaded: &LoadedObject, Expected(proof): Expected<'_>) -> Result<()> {
        let incomparable = |error: Error| error.context("cannot compare the loaded programs with the object");
        let (error, is_the_objects) = match proof.map(|proof| self.compare(loaded, &proof)) {
            Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(found))) => {
                (anyhow!("the programs in the kernel are not proven to be those of the object: {found}"), true)
            }
            Ok(Err(error)) => (incomparable(error), false),
            Err(error) => (incomparable(error), true),
        };
        match self.if_unproven {
            IfUnproven::Say => {
                say(format_args!("{error:#} (xctl goes on; with --strict or --record it would end here)"))
            }
            IfUnproven::Refuse if is_the_objects => return Err(error.context(Exit::Object)),
            IfUnproven::Refuse => return Err(error),
        }
        Ok(())
    }

    /// Describe the first program that is not proven; none if all programs are proven.
    fn compare(&mut self, loaded: &LoadedObject, proof: &Proof<'_>) -> Result<Option<String>> {
        let left_out = loaded.maps_left_out().map(|(name, index)| (name.to_owned(), index)).collect();
        let mut maps = Maps { left_out, ..Maps::default() };
        for (name, map) in loaded.maps() {
            let info = bpf::map_info(map).with_context(|| format!("cannot ask about map {name}"))?;
            maps.created.insert(name.to_owned(), (info.id, map.as_raw_fd()));
            let asked = self.recording.as_ref().and_then(|recording| recording.asked(map.as_raw_fd()));
            self.facts.maps.push(MapRecord {
                id: info.id,
                defined: proof.map(name).map(MapShape::defined),
                asked: asked.map(|attributes| MapShape::asked(&attributes)),
                created: MapShape::created(&info),
                name: name.to_owned(),
            });
        }
        for (name, program) in loaded.programs() {
            let info = bpf::program_info(program).with_context(|| format!("cannot ask about program {name}"))?;
            let sent = self.recording.as_ref().and_then(|recording| recording.sent(program.as_raw_fd()));
            let insns = sent.as_ref().map_or(&[][..], |sent| &sent.insns);
            let tag_hash = tag::of(insns, info.tag);
            let translated = bpf::translated(program, info.xlated)
                .with_context(|| format!("cannot ask for the instructions of program {name}"))?;
            let (translated, unexplained) = match translated {
                Some(translated) => proof::translation(insns, &translated, &maps),
                None => (None, None),
            };
            let unexplained =
                unexplained.map(|Unexplained { insn, why }| Unproven { program: name.to_owned(), insn, why });
            // A wrong tag shows that the program was altered. The instructions that the kernel shows tell the place.
            let unproven = match (proof.check(name, insns, &info, tag_hash, &maps), unexplained) {
                (Some(whole @ Unproven { insn: None, .. }), Some(place)) => {
                    Some(Unproven { why: format!("{}: {}", whole.why, place.why), ..place })
                }
                (found, unexplained) => found.or(unexplained),
            };
            let log = sent.as_ref().and_then(|sent| sent.log.as_deref()).unwrap_or_default();
            let (relocations, poisoned) = proof.relocations(name);
            self.facts.programs.push(ProgramRecord {
                tag_hash,
                verifier: Statistics::parse(&String::from_utf8_lossy(log)),
                translated,
                insns: insns.len() / INSN_SIZE as usize,
                load_ns: sent.as_ref().map_or(0, |sent| u64::try_from(sent.took.as_nanos()).unwrap_or(u64::MAX)),
                relocations,
                poisoned,
                proven: unproven.is_none(),
                ..ProgramRecord::new(name.to_owned(), &info)
            });
            if unproven.is_some() {
                // This result must stay if a later question to the kernel fails.
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

    /// Note that these hooks are attached. These are the hooks of the last attempt, without the optional ones that this
    /// kernel lacks.
    pub fn attached(&mut self, hooks: &[Hook]) {
        for record in &mut self.facts.hooks {
            let is = |hook: &Hook| hook.kind == record.hook && hook.target_name() == record.target;
            record.attached = hooks.iter().any(|hook| is(hook) && hook.programs().any(|own| own == record.program));
        }
        if let Some(document) = &self.document {
            document.flush();
        }
    }

    /// Whether the programs are proven to be the object's; none if they could not be compared.
    #[must_use]
    pub fn proven(&self) -> Option<bool> {
        self.facts.proven
    }

    /// End the audit after the run, whether the run failed or not. The document gets its final name, and the result of
    /// the run is returned.
    ///
    /// # Errors
    /// The error of the run, or the error of writing the document.
    pub fn finish(mut self, result: Result<()>) -> Result<()> {
        let Some(document) = self.document.take() else { return result };
        if let Err(error) = &result
            && !is_closed_pipe(error)
        {
            self.facts.exit_code = Exit::code_of(error);
            self.facts.error = Some(format!("{error:#}"));
        }
        drop(self.recording);
        match (document.finish(&self.facts), result) {
            (Ok(()), result) => result,
            (Err(error), Ok(())) => Err(error),
            (Err(record), Err(error)) => Err(error.context(format!("{record:#}; the run had failed before that"))),
        }
    }
}
