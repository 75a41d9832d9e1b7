//! `xctl inspect`: what an object holds, and what its CO-RE relocations come to on the kernel that a BTF describes.
//!
//! Needs no privilege and asks the kernel nothing but its BTF file.

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::{fmt, fs};

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;

use super::btf_path;
use crate::fault::Exit;
use crate::object::btf_ext::{CoreRelocation, LineInfo};
use crate::object::facts::{Callback, ExternFacts, Facts, FunctionFacts, MapFacts, hex};
use crate::object::insn::Insn;
use crate::object::relo::extent::Extents;
use crate::object::relo::patch::Place;
use crate::object::relo::{
    Outcome, Relocated, RelocationKind, Relocations, Resolution, Resolver, Spec, essential_name, type_name,
};
use crate::object::{Btf, BtfExt, KERNEL_BTF, Kind, ObjectFile, Program, loads, read_btf, second_opinion, struct_ops};

/// Version of the JSON document.
const SCHEMA: u32 = 1;

/// The running kernel's types, and its modules'.
const MODULES: &str = "/sys/kernel/btf";

/// Problems that are listed; a hostile file has as many as it likes.
const MOST_PROBLEMS: usize = 100;

/// Bytes of a source file's name that are shown.
const MOST_PATH: usize = 256;

/// Accesses, and instructions, that are kept as they are shown: most programs read the same members over and over.
const KEPT: usize = 1024;

/// Bytes of output that are gathered.
const GATHERED: usize = 64 << 10;

/// Poisoned instructions whose reason is kept until it is known whether they are reached.
const MOST_POISONED: usize = 4096;

/// What was asked for.
#[derive(Clone, Debug, Default)]
pub struct Args {
    /// The object; the one inside the binary if there is none.
    pub object: Option<PathBuf>,
    /// BTF to resolve against, instead of the running kernel's: raw, or an ELF file with a `.BTF` section.
    pub btf: Option<PathBuf>,
    /// One JSON document instead of text.
    pub json: bool,
}

/// The BTF that relocations were resolved against.
#[derive(Debug, Serialize)]
struct Target {
    path: String,
    types: usize,
    bytes: usize,
}

/// What is known before the first relocation.
#[derive(Debug, Serialize)]
struct Head<'a> {
    schema: u32,
    object: String,
    sha256: String,
    bytes: usize,
    #[serde(flatten)]
    facts: Facts<'a>,
    btf: Option<Target>,
}

/// Where an instruction came from.
#[derive(Debug, Serialize)]
struct Line<'r> {
    file: &'r str,
    line: u32,
}

/// An instruction, as bytes and as text.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Code {
    bytes: String,
    text: String,
}

/// One side of a relocation.
#[derive(Debug, Serialize)]
struct Side {
    /// Type id of the root type.
    type_id: u32,
    #[serde(rename = "type")]
    ty: String,
    /// Access string, with the target's own member numbers.
    spec: String,
    /// As a C programmer writes it.
    access: String,
    /// Bits from the beginning of the root type; null if it is no field.
    bit_offset: Option<u32>,
    /// Bytes: of the field (of a bitfield, the type that it is declared with), the type, the constant's enum.
    size: Option<u32>,
    /// Bits of a bitfield; null if it is not one.
    bitfield_size: Option<u32>,
    value: Option<i128>,
}

/// What a relocation is about, whichever instruction it is for.
#[derive(Debug, Serialize)]
struct About {
    kind: String,
    local: Option<Side>,
    target: Option<Side>,
    /// How many of the target's types have it.
    matches: usize,
}

/// A relocation.
#[derive(Debug, Serialize)]
struct Record<'r> {
    program: Option<&'r str>,
    section: &'r str,
    /// Instruction, counted from the beginning of the program.
    insn: usize,
    source: Option<Line<'r>>,
    /// What the instruction gets; null if it is poisoned or refused.
    value: Option<i128>,
    /// `applied`, `poisoned`, `refused`, `skipped`, `unresolved`.
    outcome: &'static str,
    /// Why it did not resolve, or why an existence check is false.
    why: Option<&'r str>,
    #[serde(skip)]
    about: Rc<Kept<About>>,
    #[serde(skip)]
    before: Rc<Kept<Code>>,
    #[serde(skip)]
    after: Rc<Kept<Code>>,
}

/// Something that is shown again and again, and its JSON once that was asked for.
#[derive(Debug)]
struct Kept<T> {
    value: T,
    json: OnceCell<String>,
}

impl<T> std::ops::Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Serialize> Kept<T> {
    fn new(value: T) -> Rc<Self> {
        Rc::new(Kept { value, json: OnceCell::new() })
    }

    fn json(&self) -> Result<&str> {
        if let Some(json) = self.json.get() {
            return Ok(json);
        }
        let json = json(&self.value)?;
        Ok(self.json.get_or_init(|| json))
    }
}

/// What was shown of something lately.
#[derive(Debug)]
struct Cache<K, T>(RefCell<Vec<Option<(K, T)>>>);

impl<K: PartialEq, T: Clone> Cache<K, T> {
    fn new() -> Self {
        Cache(RefCell::new((0..KEPT).map(|_| None).collect()))
    }

    /// `hash` is of the key.
    fn get(&self, key: K, hash: u64, make: impl FnOnce() -> T) -> T {
        let mut slots = self.0.borrow_mut();
        // The upper bits depend on all of the lower ones.
        let place = (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % KEPT;
        match slots.get(place) {
            Some(Some((known, made))) if *known == key => made.clone(),
            _ => {
                let made = make();
                if let Some(slot) = slots.get_mut(place) {
                    *slot = Some((key, made.clone()));
                }
                made
            }
        }
    }
}

/// How the relocations came out, and what follows.
#[derive(Debug, Default, Serialize)]
struct Verdict {
    relocations_total: usize,
    applied: usize,
    poisoned: usize,
    refused: usize,
    skipped: usize,
    /// Why the object, or a program in it, would not load.
    problems: Vec<String>,
    /// Whether everything in it would load, as far as its relocations decide that; null without a BTF.
    runs: Option<bool>,
}

/// Values are 64 bits that mean what the program makes of them. All but constants of enums are small; those of 32 bits
/// libbpf takes as signed, and those of 64 are what their enum says.
fn number(btf: &Btf, spec: &Spec, kind: RelocationKind, value: u64) -> i128 {
    let ty = btf.resolve(spec.root);
    match kind == RelocationKind::EnumvalValue && btf.kind(ty) == Kind::Enum64 && !btf.enum_is_signed(ty) {
        true => value.into(),
        false => (value as i64).into(),
    }
}

impl Side {
    fn of(btf: &Btf, extents: &Extents<'_>, spec: &Spec, kind: RelocationKind, value: Option<u64>) -> Self {
        let extent = extents.of(kind, spec);
        Side {
            type_id: spec.root.0,
            ty: type_name(btf, spec.root),
            spec: spec.raw_text(),
            access: spec.text(btf, kind),
            bit_offset: kind.is_field().then_some(spec.bit_offset),
            size: extent.size,
            bitfield_size: extent.bits,
            value: value.map(|value| number(btf, spec, kind, value)),
        }
    }

    /// Where it is and how large, as far as the value does not say that.
    fn extent(&self, kind: &str) -> String {
        let bytes = self.size.map(|size| format!("{size} byte{}", if size == 1 { "" } else { "s" }));
        match (self.bit_offset, self.bitfield_size, bytes) {
            (Some(at), Some(bits), _) => format!("{bits} bit{} at bit {at}", if bits == 1 { "" } else { "s" }),
            (Some(at), None, Some(bytes)) if kind != "byte_off" => format!("{bytes} at {}", at / 8),
            (_, _, bytes) => bytes.unwrap_or_default(),
        }
    }
}

impl Verdict {
    fn problem(&mut self, what: String) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(what);
        }
    }
}

/// Writes what the object holds to `out`.
///
/// # Errors
/// Files that cannot be read; with [`Exit::Object`], an object that is refused, or that would not run on the kernel that
/// the BTF describes.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<()> {
    let (bytes, shown) = super::object(args.object.as_deref())?;
    let modules = args.btf.is_none().then_some(Path::new(MODULES));
    report(&bytes, &shown, || target(args), modules, args.json, out)
}

/// The same of an object that was read: `shown` is what to call it. `target` gives the types to resolve against, and where
/// they are from; asked once the object is known to be one. In `modules` are those of the kernel's modules.
///
/// # Errors
/// As [`run`].
pub fn report(
    bytes: &[u8],
    shown: &str,
    target: impl FnOnce() -> Result<Option<(Btf, String)>>,
    modules: Option<&Path>,
    json: bool,
    out: &mut dyn Write,
) -> Result<()> {
    let shown = shown.to_owned();
    let refused = |error: anyhow::Error| error.context(shown.clone()).context(Exit::Object);
    let object = ObjectFile::parse(bytes).map_err(|error| refused(error.into()))?;
    second_opinion(bytes, &object).map_err(|error| refused(error.into()))?;
    let btf = object.btf.map(Btf::parse).transpose().map_err(|error| refused(anyhow!(error).context("its types")))?;
    if let Some((btf, id)) = btf.as_ref().and_then(|btf| Some((btf, btf.cycle()?))) {
        return Err(refused(anyhow!("its types: {} {id} contains itself", type_name(btf, id))));
    }
    let (target, target_facts) = target()?
        .map(|(btf, path)| {
            let facts = Target { path, types: btf.len(), bytes: btf.bytes().len() };
            (btf, facts)
        })
        .unzip();

    let nothing = Btf::nothing();
    let local = btf.as_ref().unwrap_or(&nothing);
    let ext = object.btf_ext.filter(|_| btf.is_some()).map(|data| BtfExt::parse(data, local)).transpose();
    let ext = ext.map_err(|error| refused(error.into()))?.unwrap_or_default();
    let code = Relocations::new(bytes, &object, local, &ext, target.as_ref());
    let mut code = code.map_err(|error| refused(error.into()))?;
    let mut facts = Facts::of(bytes, &object, btf.as_ref(), &code).map_err(|what| refused(anyhow!(what)))?;
    if let Some(target) = &target {
        facts.look_up_targets(target);
        if let Some(modules) = modules {
            look_in_modules(&mut facts, modules);
        }
    }

    let sha256 = hex(&hmac_sha256::Hash::hash(bytes));
    let head = Head { schema: SCHEMA, object: shown.clone(), sha256, bytes: bytes.len(), facts, btf: target_facts };
    let mut out = Gathered { out: Some(out), bytes: Vec::with_capacity(GATHERED) };
    let mut writer: Box<dyn Report> = if json {
        Box::new(Json { out: &mut out, first: true })
    } else {
        Box::new(Text { out: &mut out, program: None })
    };
    writer.head(&head)?;

    let mut verdict = Verdict::default();
    if target.as_ref().is_some_and(|target| target.is_big_endian() == object.is_little_endian) {
        verdict.problem("the object and the BTF are of different byte order".to_owned());
    }
    if let Some(target) = &target {
        loads::refused(&object, btf.as_ref(), &head.facts).into_iter().for_each(|what| verdict.problem(what));
        let in_modules =
            |name: String| modules.is_some_and(|folder| named_in_modules(folder, &[name.into_bytes()]) == [true]);
        let misfits = struct_ops::misfits(&head.facts.struct_ops, local, target, in_modules);
        misfits.into_iter().for_each(|what| verdict.problem(what));
    }
    let view = View::new(local, target.as_ref(), &ext, !object.is_little_endian);
    let mut poisoned = Poisoned::new();
    code.run(
        |_| true,
        |relocated| {
            let record = view.record(relocated);
            let loads = |program: &Program<'_>| head.facts.loads(&object, program);
            count(&mut verdict, &mut poisoned, relocated, &record, loads);
            writer.relocation(&record)
        },
    )?;
    if target.is_some() {
        poisoned_programs(&object, &head.facts, &code, &poisoned, &mut verdict);
        verdict.runs = Some(verdict.problems.is_empty());
    }
    writer.verdict(&verdict)?;
    if verdict.runs == Some(false) {
        let first = verdict.problems.first().map_or("", String::as_str);
        let more = verdict.problems.len().saturating_sub(1);
        let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
        let path = head.btf.as_ref().map_or("", |target| &target.path);
        return Err(anyhow!("{shown} would not run with the types of {path}: {first}{more}").context(Exit::Object));
    }
    Ok(())
}

/// What the running kernel does not have a module may: libbpf looks there too.
fn look_in_modules(facts: &mut Facts<'_>, folder: &Path) {
    let name = |one: &ExternFacts<'_>| essential_name(one.name).as_bytes().to_owned();
    let absent = |one: &&mut ExternFacts<'_>| one.in_btf == Some(false);
    let mut names: Vec<_> = facts.externs.iter_mut().filter(absent).map(|one| name(one)).collect();
    names.sort_unstable();
    names.dedup();
    let found = named_in_modules(folder, &names);
    for one in facts.externs.iter_mut().filter(absent) {
        let there = names.binary_search(&name(one)).is_ok_and(|at| found.get(at) == Some(&true));
        one.in_btf = Some(there);
    }
}

/// Which of `names`, in their order, the types of the running kernel's modules have. They build on the kernel's, and are not
/// read here: that one has the name decides.
fn named_in_modules(folder: &Path, names: &[Vec<u8>]) -> Vec<bool> {
    let mut there = vec![false; names.len()];
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path());
    for file in files.filter(|path| path.file_name() != Path::new(KERNEL_BTF).file_name()) {
        if names.is_empty() {
            break;
        }
        // Every name ends with NUL, and follows one.
        let Ok(bytes) = fs::read(file) else { continue };
        for found in bytes.split(|byte| *byte == 0) {
            let at = names.partition_point(|name| name.as_slice() < found);
            if names.get(at).is_some_and(|name| name == found) {
                there[at] = true;
            }
        }
    }
    there
}

/// The types to resolve against. Without an explicit choice, it is no failure that this host has none.
fn target(args: &Args) -> Result<Option<(Btf, String)>> {
    let path = btf_path(args.btf.as_deref());
    let bytes = match read_btf(&path) {
        Ok(bytes) => bytes,
        Err(_) if args.btf.is_none() && !path.exists() => return Ok(None),
        Err(error) => bail!(anyhow!(error).context("reading BTF")),
    };
    let btf = Btf::from_vec(bytes).with_context(|| path.display().to_string())?;
    Ok(Some((btf, path.display().to_string())))
}

/// Poisoned instructions by section and byte offset, and why they are.
type Poisoned = BTreeMap<(usize, u64), String>;

fn count(
    verdict: &mut Verdict,
    poisoned: &mut Poisoned,
    relocated: &Relocated<'_, '_>,
    record: &Record<'_>,
    loads: impl Fn(&Program<'_>) -> bool,
) {
    verdict.relocations_total += 1;
    let access = record.about.local.as_ref().map_or("", |local| &local.access);
    match &relocated.outcome {
        Outcome::Applied => verdict.applied += 1,
        Outcome::Poisoned(why) => {
            verdict.poisoned += 1;
            if let Some(program) = relocated.program.filter(|_| poisoned.len() < MOST_POISONED) {
                let place = (program.section_index, relocated.relocation.offset.into());
                poisoned.insert(place, format!("{access}: {why}"));
            }
        }
        Outcome::Skipped => verdict.skipped += 1,
        Outcome::Unresolved => {}
        Outcome::Refused(why) => {
            verdict.refused += 1;
            // libbpf passes over programs that are not loaded.
            if relocated.program.is_none_or(loads) {
                verdict.problem(format!("{}, {} of {access}: {why}", relocated.place(), record.about.kind));
            }
        }
    }
}

/// A problem for every program that reaches an instruction that did not resolve.
fn poisoned_programs(
    object: &ObjectFile<'_>,
    facts: &Facts<'_>,
    code: &Relocations<'_, '_>,
    poisoned: &Poisoned,
    verdict: &mut Verdict,
) {
    if verdict.poisoned == 0 {
        return;
    }
    for (function, index) in loads::reaching_poison(object, facts, code) {
        let why = poisoned.get(&loads::place_of(function, index)).map_or("something is not there", String::as_str);
        verdict.problem(format!("program {} reaches instruction {index}: {why}", function.name));
    }
}

/// What it takes to show a relocation.
struct View<'r> {
    local: (&'r Btf, Extents<'r>),
    target: Option<(&'r Btf, Extents<'r>)>,
    /// Source lines, by section.
    lines: HashMap<&'r str, &'r [LineInfo]>,
    big_endian: bool,
    /// By the resolution, which is kept along so that nothing else comes to lie where it is.
    abouts: Cache<*const Resolution, (Rc<Resolution>, Rc<Kept<About>>)>,
    codes: Cache<Place, Rc<Kept<Code>>>,
}

impl<'r> View<'r> {
    fn new(btf: &'r Btf, target: Option<&'r Btf>, ext: &'r BtfExt<'r>, big_endian: bool) -> Self {
        // Of two stretches for a section the first counts.
        let lines = ext.lines.iter().rev().map(|stretch| (stretch.section, stretch.records.as_slice())).collect();
        let local = (btf, Extents::local(btf));
        let target = target.map(|target| (target, Extents::target(target)));
        View { local, target, lines, big_endian, abouts: Cache::new(), codes: Cache::new() }
    }

    fn record<'s>(&self, relocated: &'s Relocated<'s, '_>) -> Record<'s>
    where
        'r: 's,
    {
        let relocation = &relocated.relocation;
        let (outcome, why) = match &relocated.outcome {
            Outcome::Applied => ("applied", None),
            Outcome::Poisoned(why) => ("poisoned", Some(why)),
            Outcome::Refused(why) => ("refused", Some(why)),
            Outcome::Skipped => ("skipped", None),
            Outcome::Unresolved => ("unresolved", None),
        };
        let resolution = relocated.resolution.as_deref();
        let missing = resolution.and_then(|resolution| resolution.missing.as_ref());
        let about = match &relocated.resolution {
            Some(resolution) => {
                let make = || (resolution.clone(), self.about(resolution));
                let place = Rc::as_ptr(resolution);
                self.abouts.get(place, place.addr() as u64 >> 4, make).1
            }
            None => self.unresolved(relocation),
        };
        let done = resolution.filter(|_| matches!(relocated.outcome, Outcome::Applied));
        let value = done.and_then(|resolution| {
            let (btf, spec) = match (&resolution.target, &self.target) {
                (Some(spec), Some((target, _))) => (*target, spec),
                _ => (self.local.0, &resolution.local),
            };
            Some(number(btf, spec, resolution.kind, resolution.value?))
        });
        Record {
            program: relocated.program.map(|program| program.name),
            section: relocated.section,
            insn: relocated.index,
            source: self.line(relocated.section, relocation.offset),
            value,
            outcome,
            why: why.or(missing).map(String::as_str),
            about,
            before: self.code(&relocated.before),
            after: self.code(&relocated.after),
        }
    }

    fn about(&self, resolution: &Resolution) -> Rc<Kept<About>> {
        let kind = resolution.kind;
        let (btf, extents) = &self.local;
        let local = Side::of(btf, extents, &resolution.local, kind, Some(resolution.local_value));
        let target = resolution.target.as_ref().zip(self.target.as_ref());
        let target = target.map(|(spec, (btf, extents))| Side::of(btf, extents, spec, kind, resolution.value));
        Kept::new(About { kind: kind.label().to_owned(), local: Some(local), target, matches: resolution.matches })
    }

    /// Of a relocation that is malformed or ambiguous, or has no target.
    fn unresolved(&self, relocation: &CoreRelocation<'_>) -> Rc<Kept<About>> {
        let (btf, extents) = &self.local;
        let (kind, local) = match Resolver::describe(btf, relocation) {
            Ok((kind, spec, value)) => {
                (kind.label().to_owned(), Some(Side::of(btf, extents, &spec, kind, Some(value))))
            }
            Err(_) => (format!("kind {}", relocation.kind), None),
        };
        Kept::new(About { kind, local, target: None, matches: 0 })
    }

    fn code(&self, place: &Place) -> Rc<Kept<Code>> {
        let make = || Code { bytes: hex(&place.bytes(self.big_endian)), text: place.text() };
        let hash = |insn: Insn| u64::from_le_bytes(insn.encode(false));
        let hash = hash(place.insn) ^ place.second.map_or(0, hash).rotate_left(7);
        self.codes.get(*place, hash, || Kept::new(make()))
    }

    /// The source line that an instruction came from.
    fn line(&self, section: &str, offset: u32) -> Option<Line<'r>> {
        let lines = self.lines.get(section)?;
        let after = lines.partition_point(|line| line.offset <= offset);
        let found = lines.get(after.checked_sub(1)?)?;
        Some(Line { file: self.local.0.beginning(found.file, MOST_PATH), line: found.line })
    }
}

/// A form of output.
trait Report {
    fn head(&mut self, head: &Head<'_>) -> Result<()>;
    fn relocation(&mut self, record: &Record<'_>) -> Result<()>;
    fn verdict(&mut self, verdict: &Verdict) -> Result<()>;
}

/// Output, gathered before it is handed on. Most comes in pieces of a few bytes: those are copied one by one, for that is
/// faster than to call musl's `memcpy`.
struct Gathered<'w> {
    /// None: all of it is kept.
    out: Option<&'w mut dyn Write>,
    bytes: Vec<u8>,
}

/// A JSON document of its own.
fn json(value: &impl Serialize) -> Result<String> {
    let mut all = Gathered { out: None, bytes: Vec::new() };
    serde_json::to_writer(&mut all, value)?;
    Ok(String::from_utf8(all.bytes)?)
}

impl Write for Gathered<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(out) = self.out.as_mut().filter(|_| self.bytes.len() + bytes.len() > GATHERED) {
            out.write_all(&self.bytes)?;
            self.bytes.clear();
        }
        if bytes.len() <= 24 {
            bytes.iter().for_each(|byte| self.bytes.push(*byte));
        } else {
            self.bytes.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        out.write_all(&self.bytes)?;
        self.bytes.clear();
        out.flush()
    }
}

/// One JSON document, written as it becomes known: an object may have more relocations than memory should hold.
struct Json<'o, 'w> {
    out: &'o mut Gathered<'w>,
    first: bool,
}

impl Json<'_, '_> {
    /// Writes an object, without the brace that closes it.
    fn open(&mut self, what: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut *self.out, what)?;
        // What was written last is still here.
        self.out.bytes.pop_if(|last| *last == b'}');
        Ok(())
    }
}

impl Report for Json<'_, '_> {
    fn head(&mut self, head: &Head<'_>) -> Result<()> {
        let written = self.open(head).and_then(|()| self.out.write_all(b",\"relocations\":["));
        written.context("writing the report")
    }

    fn relocation(&mut self, record: &Record<'_>) -> Result<()> {
        let about = record.about.json()?;
        let about = about.strip_prefix('{').unwrap_or(about);
        let parts = [",\"before\":", record.before.json()?, ",\"after\":", record.after.json()?, ",", about];
        let comma: &[u8] = if std::mem::take(&mut self.first) { b"" } else { b"," };
        let mut written = self.out.write_all(comma).and_then(|()| self.open(record));
        for part in parts {
            written = written.and_then(|()| self.out.write_all(part.as_bytes()));
        }
        written.context("writing the report")
    }

    fn verdict(&mut self, verdict: &Verdict) -> Result<()> {
        let text = json(verdict)?;
        let members = text.strip_prefix('{').unwrap_or(&text);
        writeln!(self.out, "],{members}").context("writing the report")?;
        self.out.flush().context("writing the report")
    }
}

/// For people.
struct Text<'w> {
    out: &'w mut dyn Write,
    /// The program whose relocations are being listed.
    program: Option<String>,
}

/// Text of an untrusted file, without what would steer a terminal.
fn plain(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return text.into();
    }
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn list<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    let mut all = String::new();
    for name in names {
        all.push_str(if all.is_empty() { "" } else { ", " });
        all.push_str(&plain(name.as_ref()));
    }
    all
}

impl Text<'_> {
    fn line(&mut self, text: fmt::Arguments<'_>) -> Result<()> {
        writeln!(self.out, "{text}").context("writing the report")
    }

    /// A line that is left out if there is nothing in it.
    fn item(&mut self, name: &str, text: &str) -> Result<()> {
        if text.is_empty() { Ok(()) } else { self.line(format_args!("    {name:<10}{text}")) }
    }

    fn function(&mut self, function: &FunctionFacts<'_>) -> Result<()> {
        let total = if function.insns_total == function.insns {
            String::new()
        } else {
            format!(" ({} with the functions it calls)", function.insns_total)
        };
        self.line(format_args!("  {}: {} instructions{total}", plain(function.name), function.insns))?;
        if let Some(kind) = function.hook {
            let target = function.target.map(|target| format!(" {}", plain(target))).unwrap_or_default();
            let there = if function.target_in_btf == Some(false) { " (not in this BTF)" } else { "" };
            let known = function.program_type.map_or(", not known to libbpf".to_owned(), |ty| format!(", type {ty}"));
            let sleeps = if function.sleepable { ", may sleep" } else { "" };
            let waits = if function.autoload { "" } else { ", not loaded by default" };
            self.item("hook", &format!("{}{target}{there}{known}{sleeps}{waits}", plain(kind)))?;
        }
        self.item("helpers", &list(&function.helpers))?;
        self.item("kfuncs", &list(&function.kfuncs))?;
        self.item("calls", &list(&function.calls))?;
        self.item("maps", &list(&function.maps))?;
        self.item("variables", &list(&function.variables))?;
        self.item("externs", &list(&function.externs))?;
        let unknown = "no: what it takes from outside only its loader knows";
        self.item("provable", if function.provable { "" } else { unknown })
    }

    fn map(&mut self, map: &MapFacts, name: &str) -> Result<()> {
        let sized = |size: Option<u32>, ty: &Option<Arc<str>>| match (size, ty) {
            (Some(size), Some(ty)) => format!("{size} bytes ({})", plain(ty)),
            (Some(size), None) => format!("{size} bytes"),
            (None, _) => "unset".to_owned(),
        };
        let entries = map.max_entries.map_or("unset".to_owned(), |entries| entries.to_string());
        let flags = if map.flags == 0 {
            String::new()
        } else {
            format!(", flags {:#x} ({})", map.flags, list(&map.flag_names))
        };
        let pinned = if map.pinned { ", pinned by name" } else { "" };
        let implicit = if map.implicit { ", made by libbpf for the variables" } else { "" };
        let choice = if map.autocreate { "" } else { ", made only if its loader says so" };
        self.line(format_args!(
            "  {}: {}, key {}, value {}, entries {entries}{flags}{pinned}{implicit}{choice}",
            plain(name),
            map.map_type,
            sized(map.key_size, &map.key),
            sized(map.value_size, &map.value)
        ))?;
        for Callback { member, program } in &map.callbacks {
            self.line(format_args!("    {}: program {}", plain(member), plain(program)))?;
        }
        if let Some(inner) = &map.inner {
            self.map(inner, &format!("  inside {name}"))?;
        }
        Ok(())
    }
}

impl Report for Text<'_> {
    fn head(&mut self, head: &Head<'_>) -> Result<()> {
        let facts = &head.facts;
        self.line(format_args!("object       {}", head.object))?;
        self.line(format_args!("sha256       {}", head.sha256))?;
        self.line(format_args!(
            "file         {} bytes, ELF for BPF, {}-endian, {} sections, {} symbols, {} relocations, {} types",
            head.bytes,
            facts.endian,
            facts.sections.len(),
            facts.symbols,
            facts.elf_relocations,
            facts.types
        ))?;
        self.line(format_args!("license      {}", facts.license.as_deref().map_or("none".into(), plain)))?;
        match &head.btf {
            Some(btf) => {
                self.line(format_args!("resolved by  {} ({} types, {} bytes)", btf.path, btf.types, btf.bytes))
            }
            None => self.line(format_args!("resolved by  nothing: this host has no BTF, --btf FILE takes another's")),
        }?;
        self.line(format_args!("\nsections ({})", facts.sections.len()))?;
        for section in &facts.sections {
            let (name, kind) = (plain(section.name), &section.section_type);
            self.line(format_args!(
                "  {:>8} bytes at {:>8}  {kind:<10} {:<3} {name}",
                section.size, section.offset, section.flags
            ))?;
        }
        self.line(format_args!("\nprograms ({})", facts.programs.len()))?;
        for program in &facts.programs {
            self.function(program)?;
        }
        if !facts.functions.is_empty() {
            self.line(format_args!("\nfunctions that programs call ({})", facts.functions.len()))?;
            for function in &facts.functions {
                self.function(function)?;
            }
        }
        self.line(format_args!("\nmaps ({})", facts.maps.len()))?;
        for map in &facts.maps {
            self.map(map, &map.name)?;
        }
        self.line(format_args!("\nvariables ({})", facts.variables.len()))?;
        for variable in &facts.variables {
            let ty = variable.ty.as_deref().map(|ty| format!(" {}", plain(ty))).unwrap_or_default();
            let value = variable.value.filter(|value| value.iter().any(|byte| *byte != 0));
            let value = value.map(|value| format!(" = {}", hex(value))).unwrap_or_default();
            self.line(format_args!(
                "  {}:{ty}, {} bytes at {} of {}{value}",
                plain(variable.name),
                variable.size,
                variable.offset,
                plain(variable.section)
            ))?;
        }
        if !facts.externs.is_empty() {
            let one = |one: &ExternFacts<'_>| {
                let kind = one.kind.map(|kind| format!("{kind} ")).unwrap_or_default();
                let weak = if one.weak { " (may be missing)" } else { "" };
                let there = if one.in_btf == Some(false) { " (not in this BTF)" } else { "" };
                format!("{kind}{}{weak}{there}", one.name)
            };
            self.line(format_args!("\nexpected from outside: {}", list(facts.externs.iter().map(one))))?;
        }
        self.line(format_args!("\nCO-RE relocations"))
    }

    fn relocation(&mut self, record: &Record<'_>) -> Result<()> {
        let about = &record.about.value;
        let name = record.program.unwrap_or(record.section);
        if self.program.as_deref() != Some(name) {
            self.line(format_args!("  {}", plain(name)))?;
            self.program = Some(name.to_owned());
        }
        let access = about.local.as_ref().map_or("?".to_owned(), |local| match about.kind.starts_with("enumval") {
            true => format!("{} of {}", local.access, local.ty),
            false => local.access.clone(),
        });
        let (local, target) = (about.local.as_ref(), about.target.as_ref());
        let extents = [local, target].map(|side| side.map(|side| side.extent(&about.kind)));
        let [local_extent, target_extent] = extents;
        // Once is enough of what is the same here and there.
        let local_extent = local_extent.filter(|extent| target_extent.as_ref() != Some(extent));
        let path = target.filter(|target| local.is_some_and(|local| local.access != target.access));
        let path = path.map(|target| plain(&target.access).into_owned());
        let aside = |what: [Option<String>; 2]| {
            let what: Vec<String> = what.into_iter().flatten().filter(|what| !what.is_empty()).collect();
            if what.is_empty() { String::new() } else { format!(" ({})", what.join(", ")) }
        };
        let was = local.and_then(|local| local.value);
        let was = was.map(|value| format!("{value} here{}", aside([None, local_extent])));
        let is = match (record.outcome, record.value) {
            ("applied", Some(value)) => Some(format!("{value} there")),
            ("unresolved", _) => None,
            (outcome, _) => Some(outcome.to_owned()),
        };
        let is = is.map(|is| is + &aside([path, target_extent]));
        let values: Vec<String> = was.into_iter().chain(is).collect();
        let why = record.why.map(|why| format!(": {}", plain(why))).unwrap_or_default();
        let source = record.source.as_ref().map(|source| format!("  [{}:{}]", plain(source.file), source.line));
        self.line(format_args!(
            "    {:>5}  {:<14} {}: {}{why}{}",
            record.insn,
            about.kind,
            plain(&access),
            values.join(", "),
            source.unwrap_or_default()
        ))?;
        let spaced = |code: &Code| {
            let mut line = String::with_capacity(code.bytes.len() * 3);
            for (number, digit) in code.bytes.chars().enumerate() {
                if number > 0 && number % 2 == 0 {
                    line.push(' ');
                }
                line.push(digit);
            }
            line + "  " + &code.text
        };
        self.line(format_args!("             {}", spaced(&record.before)))?;
        if record.after.value == record.before.value {
            return Ok(());
        }
        self.line(format_args!("          -> {}", spaced(&record.after)))
    }

    fn verdict(&mut self, verdict: &Verdict) -> Result<()> {
        self.line(format_args!(
            "\n{} relocations: {} applied, {} poisoned, {} refused, {} skipped",
            verdict.relocations_total, verdict.applied, verdict.poisoned, verdict.refused, verdict.skipped
        ))?;
        for problem in &verdict.problems {
            self.line(format_args!("  {}", plain(problem)))?;
        }
        let runs = match verdict.runs {
            None => "not resolved: there is no BTF to say whether it would run",
            Some(true) => "as far as relocations decide, it would run there",
            Some(false) => "it would not run there",
        };
        self.line(format_args!("{runs}"))?;
        self.out.flush().context("writing the report")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn constants_of_64_bits_are_what_their_enum_says() {
        use crate::object::btf::tests::Builder;
        use crate::object::relo::Resolver;

        let mut types = Builder::new(false);
        let enums = [(8, false), (8, true), (4, false)].map(|(size, signed)| {
            let name = format!("enum_{size}_{signed}");
            types.enumeration(&name, size, signed, &[("TOP", -1)])
        });
        let btf = Btf::from_vec(types.finish()).unwrap();
        let shown = enums.map(|root| {
            let access = CoreRelocation { offset: 0, root, access: "0", kind: RelocationKind::EnumvalValue as u32 };
            let (kind, spec, value) = Resolver::describe(&btf, &access).unwrap();
            number(&btf, &spec, kind, value)
        });
        assert_eq!(shown, [i128::from(u64::MAX), -1, -1]);
    }

    #[test]
    fn what_a_module_has_is_there() {
        let folder = std::env::temp_dir().join(format!("xctl-modules-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        // What is called vmlinux was asked before.
        fs::write(folder.join("vmlinux"), b"\0nowhere\0").unwrap();
        fs::write(folder.join("one"), b"BTF\0in_one\0\0").unwrap();
        fs::write(folder.join("two"), b"BTF\0in_two\0nowhere_else\0").unwrap();
        let one = |name| ExternFacts { name, weak: false, kind: Some("function"), in_btf: Some(false) };
        let mut facts = Facts { externs: vec![one("in_two"), one("nowhere"), one("in_one___v2")], ..Facts::default() };
        look_in_modules(&mut facts, &folder);
        fs::remove_dir_all(&folder).unwrap();
        let found: Vec<_> = facts.externs.iter().map(|one| one.in_btf).collect();
        assert_eq!(found, [Some(true), Some(false), Some(true)]);
    }
}
