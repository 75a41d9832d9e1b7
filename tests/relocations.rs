//! CO-RE relocations, held against three truths: what a person computed (the comments in tests/objects/*.c), what libbpf
//! makes of the same objects, and what libbpf makes of accesses to real kernels' types, chosen at random.
//!
//! libbpf relocates without loading any program (`bpf_object__prepare`), which still takes privilege: without it, that
//! half is skipped.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::io::Write as _;
use std::mem::discriminant;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::{env, fs};

use libbpf_sys as sys;
use nix::unistd::geteuid;
use xctl::commands::inspect::{self, Args};
use xctl::embedded;
use xctl::fault::Exit;
use xctl::hooks::{self, Attach};
use xctl::object::agree::difference;
use xctl::object::cut::{Asked, cut};
use xctl::object::hook::hook;
use xctl::object::image::{Image, MapThere};
use xctl::object::insn::Insn;
use xctl::object::maps::map_type_name;
use xctl::object::relo::{Outcome, RelocationKind, Relocations, Resolver};
use xctl::object::uses::Places;
use xctl::object::{Btf, BtfExt, KERNEL_BTF, Kind, ObjectFile, TypeId, btf_ext::CoreRelocation, source};
use xctl::tracer::{ASKED, Kernel};

/// A folder that is gone with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = env::temp_dir().join(format!("xctl-relocations-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

// ---- our side ----

/// A relocation and what we make of it.
#[derive(Clone, Debug)]
struct Ours {
    program: String,
    kind: u32,
    value: Option<u64>,
    outcome: Outcome,
}

/// A program's name, and its instructions as far as they are known.
type Code = Vec<(String, Vec<Option<Insn>>)>;

/// Every relocation of the programs that `loaded` is true for, and every program's code afterwards, where an instruction
/// that the ELF file relocates, and whose content nobody knows before loading, is `None`.
fn relocate(bytes: &[u8], target: &Btf, loaded: impl Fn(&str, &str) -> bool) -> (Vec<Ours>, Code) {
    let object = ObjectFile::parse(bytes).unwrap();
    let btf = Btf::parse(object.btf.unwrap()).unwrap();
    let ext = BtfExt::parse(object.btf_ext.unwrap(), &btf).unwrap();
    let mut relocations = Relocations::new(bytes, &object, &btf, &ext, Some(target)).unwrap();
    let mut all = Vec::new();
    relocations
        .run::<()>(
            |program| loaded(program.name, program.section),
            |relocated| {
                all.push(Ours {
                    program: relocated.program.unwrap().name.to_owned(),
                    kind: relocated.relocation.kind,
                    value: relocated.resolution.as_ref().and_then(|resolution| resolution.value),
                    outcome: relocated.outcome.clone(),
                });
                Ok(())
            },
        )
        .unwrap();
    let places = Places::new(&object);
    let code = |program: &xctl::object::Program<'_>| {
        let addresses = places.of(program, &relocations).addresses;
        let unknown = |index: &usize| addresses.contains(index) || (*index > 0 && addresses.contains(&(*index - 1)));
        let insns = relocations.code(program).enumerate();
        insns.map(|(index, insn)| (!unknown(&index)).then_some(insn)).collect()
    };
    let code = object.programs.iter().map(|program| (program.name.to_owned(), code(program))).collect();
    (all, code)
}

// ---- libbpf's side ----

/// libbpf is told once to be quiet: what it would say about objects that it refuses is expected here.
static LIBBPF: Mutex<()> = Mutex::new(());

/// An object opened by libbpf, closed with this.
struct Opened(*mut sys::bpf_object);

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: it came from bpf_object__open_mem and is closed once.
        unsafe { sys::bpf_object__close(self.0) };
    }
}

impl Opened {
    fn programs(&self) -> impl Iterator<Item = *mut sys::bpf_program> {
        // SAFETY: the object is open; libbpf takes null as "before the first" and gives null after the last.
        let next = |previous| unsafe { sys::bpf_object__next_program(self.0, previous) };
        let mut program = next(std::ptr::null_mut());
        std::iter::from_fn(move || {
            let this = program;
            if this.is_null() {
                return None;
            }
            program = next(this);
            Some(this)
        })
    }

    /// A program of this object: its name, and its instructions.
    fn code(&self, program: *mut sys::bpf_program) -> (String, Vec<Insn>) {
        // SAFETY: the object is open; libbpf gives as many instructions as it says, which live as long as the object
        // does. They are copied at once.
        let insns = unsafe {
            std::slice::from_raw_parts(
                sys::bpf_program__insns(program).cast::<[u8; 8]>(),
                sys::bpf_program__insn_cnt(program) as usize,
            )
        };
        let insns = insns.iter().map(|bytes| Insn::decode(*bytes, cfg!(target_endian = "big"))).collect();
        (name_of(program), insns)
    }
}

/// No step: the object is only opened.
unsafe extern "C" fn nothing_more(_: *mut sys::bpf_object) -> i32 {
    0
}

fn name_of(program: *const sys::bpf_program) -> String {
    // SAFETY: the program belongs to an open object, and its name lives as long as that.
    unsafe { CStr::from_ptr(sys::bpf_program__name(program)) }.to_str().unwrap().to_owned()
}

/// What libbpf makes of an object.
struct Theirs {
    /// Every program's instructions.
    programs: Vec<(String, Vec<Insn>)>,
    /// The maps' descriptors, by name; those of variables by their section's.
    maps: BTreeMap<String, i32>,
}

/// Opens an object with libbpf, and hands it to libbpf's next step. Its error, if one of both fails.
fn open_and(
    step: unsafe extern "C" fn(*mut sys::bpf_object) -> i32,
    bytes: &[u8],
    btf: &Path,
    loaded: impl Fn(&str) -> bool,
) -> Result<Opened, i32> {
    let _lock = LIBBPF.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: no callback.
    unsafe { sys::libbpf_set_print(None) };
    let path = CString::new(btf.to_str().unwrap()).unwrap();
    let options = sys::bpf_object_open_opts {
        sz: size_of::<sys::bpf_object_open_opts>() as sys::size_t,
        btf_custom_path: path.as_ptr(),
        object_name: c"test".as_ptr(),
        ..Default::default()
    };
    // SAFETY: the bytes and options live through the call, which copies what it needs.
    let object = unsafe { sys::bpf_object__open_mem(bytes.as_ptr().cast(), bytes.len() as sys::size_t, &options) };
    if object.is_null() {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    let opened = Opened(object);
    for program in opened.programs() {
        // SAFETY: the object is open and not loaded yet.
        unsafe { sys::bpf_program__set_autoload(program, loaded(&name_of(program))) };
    }
    // SAFETY: the object is open and not loaded yet.
    let result = unsafe { step(opened.0) };
    if result == 0 { Ok(opened) } else { Err(result) }
}

/// What libbpf makes of an object, or its error. Programs that `loaded` is false for are not relocated.
fn libbpf(bytes: &[u8], btf: &Path, loaded: impl Fn(&str) -> bool) -> Result<Theirs, i32> {
    let opened = open_and(sys::bpf_object__prepare, bytes, btf, loaded)?;
    let mut maps = BTreeMap::new();
    let mut map = std::ptr::null_mut();
    loop {
        // SAFETY: the object is open; libbpf takes null as "before the first" and gives null after the last.
        map = unsafe { sys::bpf_object__next_map(opened.0, map) };
        if map.is_null() {
            break;
        }
        // SAFETY: the map belongs to the object, and its name lives as long as that.
        let (name, fd) = unsafe { (CStr::from_ptr(sys::bpf_map__name(map)), sys::bpf_map__fd(map)) };
        let name = name.to_str().unwrap();
        maps.insert(name.strip_prefix("test").filter(|rest| rest.starts_with('.')).unwrap_or(name).to_owned(), fd);
    }
    Ok(Theirs { programs: opened.programs().map(|program| opened.code(program)).collect(), maps })
}

/// Whether this process may do what libbpf does before it relocates.
fn may_prepare() -> bool {
    static MAY: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *MAY.get_or_init(|| {
        let may = Path::new(KERNEL_BTF).exists()
            && libbpf(&embedded::object().unwrap(), Path::new(KERNEL_BTF), |_| true).is_ok();
        if !may {
            let must = env::var_os(KERNELS).is_some() && geteuid().is_root() && Path::new(KERNEL_BTF).exists();
            assert!(!must, "libbpf does not prepare our own object");
            tell(&format!("not compared with libbpf: that needs root and {KERNEL_BTF}"));
        }
        may
    })
}

/// Our result and libbpf's, instruction by instruction. Returns how many relocations were compared.
fn compare(what: &str, bytes: &[u8], target: &Btf, btf: &Path) -> usize {
    if !may_prepare() {
        return 0;
    }
    // libbpf computes shifts for the byte order of the machine that it runs on.
    let foreign = target.is_big_endian() != cfg!(target_endian = "big");
    let shifted: BTreeSet<String> = relocate(bytes, target, |_, _| foreign)
        .0
        .into_iter()
        .filter(|ours| ours.kind == RelocationKind::FieldLshiftU64 as u32)
        .map(|ours| ours.program)
        .collect();
    let by_default = |name: &str, section: &str| hook(section).autoload && !shifted.contains(name);
    let (all, _) = relocate(bytes, target, by_default);
    let refused: BTreeSet<String> =
        all.iter().filter(|r| matches!(r.outcome, Outcome::Refused(_))).map(|r| r.program.clone()).collect();
    let object = ObjectFile::parse(bytes).unwrap();
    let programs = object.programs.iter().filter(|program| by_default(program.name, program.section));
    let defaults: BTreeSet<&str> = programs.map(|program| program.name).collect();
    // What we refuse libbpf must refuse. With a whole kernel's types each takes it a while: then by default a few do.
    let all_of_them = target.len() < 10_000 || env::var_os("XCTL_ALL_PAIRS").is_some();
    for program in refused.iter().take(if all_of_them { usize::MAX } else { 2 }) {
        let result = libbpf(bytes, btf, |name| name == program);
        assert!(result.is_err(), "{what}: libbpf relocates {program}, we refuse: {all:?}");
    }
    let taken = |name: &str| defaults.contains(name) && !refused.contains(name);
    let (all, ours) = relocate(bytes, target, |name, _| taken(name));
    let still: Vec<_> = all.iter().filter(|r| matches!(r.outcome, Outcome::Refused(_))).collect();
    assert!(still.is_empty(), "{what}: {still:?}");
    let theirs = libbpf(bytes, btf, taken).unwrap_or_else(|error| panic!("{what}: libbpf refuses: {error}"));
    compare_whole(what, bytes, target, &theirs, taken);
    // Theirs have functions of .text among them.
    for (name, insns) in &ours {
        let (_, other) =
            theirs.programs.iter().find(|(other, _)| other == name).unwrap_or_else(|| panic!("{what}: no {name}"));
        if !taken(name) {
            continue;
        }
        for (index, (one, two)) in insns.iter().zip(other).enumerate() {
            let Some(one) = one else { continue };
            assert_eq!(one, two, "{what}: {name}, instruction {index}: {} and {}", one.text(None), two.text(None));
        }
        assert!(insns.len() <= other.len(), "{what}: {name}");
    }
    all.iter().filter(|r| r.outcome != Outcome::Skipped).count()
}

/// Whole programs, with the functions that they call and the descriptors of their maps.
fn compare_whole(what: &str, bytes: &[u8], target: &Btf, theirs: &Theirs, taken: impl Fn(&str) -> bool) {
    let object = ObjectFile::parse(bytes).unwrap();
    let btf = Btf::parse(object.btf.unwrap()).unwrap();
    let ext = BtfExt::parse(object.btf_ext.unwrap(), &btf).unwrap();
    let mut code = Relocations::new(bytes, &object, &btf, &ext, Some(target)).unwrap();
    code.run::<()>(|program| program.section == ".text" || taken(program.name), |_| Ok(())).unwrap();
    for program in object.programs.iter().filter(|program| taken(program.name)) {
        let image = Image::of(program, &object, &code);
        let (_, insns) = theirs.programs.iter().find(|(name, _)| name == program.name).unwrap();
        let difference = image.difference(insns, |map| theirs.maps.get(map).copied().map(MapThere::Descriptor));
        assert_eq!(difference, None, "{what}: {}", program.name);
    }
}

// ---- the corpus ----

fn objects() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/objects")
}

fn clang() -> String {
    env::var("CLANG").unwrap_or_else(|_| "clang".to_owned())
}

fn have_clang() -> bool {
    let have =
        Command::new(clang()).arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !have {
        println!("skipped: no clang");
    }
    have
}

/// Compiles one half of a file of the corpus.
fn compile(source: &Path, big_endian: bool, target: bool, into: &Path) -> Vec<u8> {
    let mut command = Command::new(clang());
    command.arg(if big_endian { "--target=bpfeb" } else { "--target=bpfel" }).args(["-g", "-O2", "-c"]);
    command.args(target.then_some("-DTARGET"));
    let status = command.arg(source).arg("-o").arg(into).status().unwrap();
    assert!(status.success(), "{}", source.display());
    fs::read(into).unwrap()
}

/// One answer in a comment.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Value(i64),
    Poison,
    Refused(String),
    Any,
}

/// The comments' answers: program by program, relocation by relocation.
fn answers(text: &str, big_endian: bool) -> Vec<(String, Answer)> {
    let mut all = Vec::new();
    for line in text.lines() {
        let macros =
            ["PROGRAM(", "LOAD(", "STORE("].iter().find_map(|start| line.strip_prefix(start)).and_then(|rest| {
                let (name, rest) = rest.split_once(',')?;
                Some((name, rest))
            });
        let function = line.strip_prefix("SEC(").and_then(|rest| rest.split_once(" long ")?.1.split_once('('));
        let Some((name, rest)) = macros.or(function) else { continue };
        let said = rest.split_once("// ").unwrap_or_else(|| panic!("no answer for {name}")).1.trim();
        if let Some(words) = said.strip_prefix("refused: ") {
            all.push((name.to_owned(), Answer::Refused(words.to_owned())));
            continue;
        }
        for word in said.split(' ') {
            let (little, big) = word.split_once('|').unwrap_or((word, word));
            let answer = match if big_endian { big } else { little } {
                "poison" => Answer::Poison,
                "any" => Answer::Any,
                number => Answer::Value(number.parse().unwrap_or_else(|_| panic!("{name}: {said}"))),
            };
            all.push((name.to_owned(), answer));
        }
    }
    all
}

fn sources() -> Vec<PathBuf> {
    let mut sources: Vec<PathBuf> = fs::read_dir(objects()).unwrap().map(|entry| entry.unwrap().path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "c"));
    sources.sort();
    assert!(sources.len() >= 10, "{sources:?}");
    sources
}

/// Changes what the relocations of an object ask.
fn ask_instead(bytes: &mut [u8], from: RelocationKind, to: RelocationKind) {
    let object = ObjectFile::parse(bytes).unwrap();
    let big_endian = !object.is_little_endian;
    let section = object.sections.iter().find(|section| section.name == ".BTF.ext").unwrap().offset as usize;
    let word = |at: usize| {
        let four = bytes[at..at + 4].try_into().unwrap();
        if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    };
    // The tables' layout is that of src/object/btf_ext.rs.
    let (mut at, len) =
        ((section as u32 + word(section + 4) + word(section + 24)) as usize, word(section + 28) as usize);
    let (end, size) = (at + len, word(at) as usize);
    at += 4;
    let mut places = Vec::new();
    while at < end {
        let count = word(at + 4) as usize;
        at += 8;
        places.extend((0..count).map(|number| at + number * size + 12));
        at += count * size;
    }
    let number = |kind: RelocationKind| RelocationKind::ALL.iter().position(|other| *other == kind).unwrap() as u32;
    let places: Vec<usize> = places.into_iter().filter(|place| word(*place) == number(from)).collect();
    assert!(!places.is_empty());
    for place in places {
        let bytes_of = if big_endian { u32::to_be_bytes } else { u32::to_le_bytes };
        bytes[place..place + 4].copy_from_slice(&bytes_of(number(to)));
    }
}

#[test]
fn the_corpus_comes_out_as_computed_by_hand_and_as_by_libbpf() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("corpus");
    let mut kinds = BTreeSet::new();
    let (mut relocations, mut compared) = (0, 0);
    for source in sources() {
        let name = source.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&source).unwrap();
        for big_endian in [false, true] {
            let what = format!("{name}, {}-endian", if big_endian { "big" } else { "little" });
            let target = compile(&source, big_endian, true, &scratch.0.join("target.o"));
            let target = Btf::parse(ObjectFile::parse(&target).unwrap().btf.unwrap()).unwrap();
            let mut bytes = compile(&source, big_endian, false, &scratch.0.join("object.o"));
            if name == "matches" {
                ask_instead(&mut bytes, RelocationKind::TypeExists, RelocationKind::TypeMatches);
            }
            let (all, _) = relocate(&bytes, &target, |_, _| true);
            // The compiler may put programs and relocations in another order than the file.
            let mut wanted = answers(&text, big_endian);
            for ours in &all {
                let place = wanted.iter().position(|(program, _)| *program == ours.program);
                let (_, answer) = wanted.remove(place.unwrap_or_else(|| panic!("{what}: {ours:?} was not expected")));
                let fits = match (&answer, &ours.outcome) {
                    (Answer::Any, Outcome::Applied) => true,
                    (Answer::Value(value), Outcome::Applied) => ours.value == Some(*value as u64),
                    (Answer::Poison, Outcome::Poisoned(_)) => true,
                    (Answer::Refused(words), Outcome::Refused(why)) => why.contains(words.as_str()),
                    _ => false,
                };
                assert!(fits, "{what}: {ours:?}, by hand: {answer:?}");
                kinds.insert(ours.kind);
            }
            assert!(wanted.is_empty(), "{what}: no relocation for {wanted:?}");
            relocations += all.len();
            let btf = scratch.file("target.btf", target.bytes());
            compared += compare(&what, &bytes, &target, &btf);
        }
    }
    println!("{relocations} relocations as computed by hand, {compared} as by libbpf");
    assert_eq!(kinds.len(), RelocationKind::ALL.len(), "{kinds:?}");
}

// ---- real kernels ----

/// Kernels that must be there to compare with: `make test` fetches them and says so. Else those that are.
const KERNELS: &str = "XCTL_KERNELS";

/// The test harness shows what a test prints only if it fails.
fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "note: {text}");
}

/// The BTF of the running kernel and of the kernels that tests/vm has fetched: name, file, types.
fn kernels() -> &'static [(String, PathBuf, Btf)] {
    static ALL: std::sync::OnceLock<Vec<(String, PathBuf, Btf)>> = std::sync::OnceLock::new();
    ALL.get_or_init(|| {
        let mut all = Vec::new();
        if let Ok(bytes) = source::read_btf(Path::new(KERNEL_BTF)) {
            all.push(("running".to_owned(), PathBuf::from(KERNEL_BTF), Btf::from_vec(bytes).unwrap()));
        }
        let cache = env::var_os("XCTL_CACHE").map(PathBuf::from).or_else(|| {
            let home = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
            Some(home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))?.join("xctl"))
        });
        let folders = cache.and_then(|cache| fs::read_dir(cache.join("kernels")).ok()).into_iter().flatten().flatten();
        for folder in folders {
            let name = folder.file_name().to_string_lossy().into_owned();
            let path = folder.path().join("vmlinux.btf");
            if let Ok(bytes) = fs::read(&path) {
                all.push((name, path, Btf::from_vec(bytes).unwrap()));
            }
        }
        all.sort_by(|one, two| one.0.cmp(&two.0));
        let names: Vec<&str> = all.iter().map(|(name, ..)| name.as_str()).collect();
        match env::var(KERNELS) {
            Ok(wanted) => {
                let missing: Vec<&str> = wanted.split_whitespace().filter(|name| !names.contains(name)).collect();
                assert!(missing.is_empty(), "no types of kernels {missing:?}: tests/vm/fetch gets them");
            }
            Err(_) => tell(&format!("compared with kernels {}; make test fetches those it wants", names.join(", "))),
        }
        all
    })
}

/// Our object as it is built for a machine.
fn our_object(machine: &str) -> Vec<u8> {
    let scratch = Scratch::new(machine);
    let object = scratch.0.join("xctl.bpf.o");
    let mut make = Command::new("make");
    make.arg("-s").arg("-C").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("..")).arg("bpf");
    make.arg(format!("ARCH={machine}")).arg(format!("BPF_OBJECT={}", object.display()));
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    assert!(make.status().unwrap().success(), "make bpf ARCH={machine}");
    fs::read(object).unwrap()
}

#[test]
fn our_object_comes_out_as_by_libbpf_on_every_kernel() {
    let (own, arm64) = (embedded::object().unwrap(), have_clang().then(|| our_object("aarch64")));
    for (name, path, btf) in kernels() {
        let is_arm64 = name.ends_with("-arm64") || (name == "running" && cfg!(target_arch = "aarch64"));
        let object = arm64.as_ref().filter(|_| is_arm64).unwrap_or(&own);
        let compared = compare(&format!("our object, {name}"), object, btf, path);
        println!("{name}: {compared} relocations as by libbpf");
        let (all, _) = relocate(object, btf, |_, _| true);
        assert!(all.len() > 100);
        assert!(!all.iter().any(|ours| matches!(ours.outcome, Outcome::Refused(_))));
    }
}

#[test]
fn a_kernel_is_told_from_every_other_by_what_our_object_asks() {
    let object = embedded::object().unwrap();
    for (name, _, own) in kernels() {
        let (all, _) = relocate(&object, own, |_, _| true);
        for (other, _, given) in kernels().iter().filter(|(_, _, other)| other.bytes() != own.bytes()) {
            let (others, _) = relocate(&object, given, |_, _| true);
            let differs = |(one, other): &(&Ours, &Ours)| one.value != other.value;
            let (ours, theirs) = all.iter().zip(&others).find(differs).unwrap();
            let told = difference(&object, given, own).unwrap().unwrap();
            let values = [ours.value, theirs.value].map(|value| value.unwrap().to_string());
            let said = format!(" is {} by it, {} by the kernel's own", values[1], values[0]);
            assert!(told.ends_with(&said), "{name}, given that of {other}: {told}, and it is {ours:?}, {theirs:?}");
        }
    }
}

// ---- what the command makes of it ----

/// Runs `inspect`: its output, and its error if it fails.
fn inspect(object: &Path, btf: &Path, json: bool) -> (String, Option<anyhow::Error>) {
    let args = Args { object: Some(object.to_owned()), btf: Some(btf.to_owned()), json };
    let mut out = Vec::new();
    let error = inspect::run(&args, &mut out).err();
    (String::from_utf8(out).unwrap(), error)
}

/// It is refused with exit code 4 and a message that has all of `words`.
fn refused(what: &str, object: &Path, btf: &Path, words: &[&str]) {
    let (_, error) = inspect(object, btf, false);
    let error = error.unwrap_or_else(|| panic!("{what}: not refused"));
    let message = format!("{error:#}");
    assert_eq!(Exit::code_of(&error), 4, "{what}: {message}");
    for word in words {
        assert!(message.contains(word), "{what}: no {word:?} in {message}");
    }
}

#[test]
fn inspect_says_whether_it_would_run() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("inspect");
    for big_endian in [false, true] {
        for (name, words) in [
            ("guarded", None),
            (
                "flavours",
                Some(&["old_field_offset reaches instruction 0", "three___old->before", "has no member before"][..]),
            ),
            ("unguarded", Some(&["program unguarded reaches instruction 0: one->a", "did you mean aa?"][..])),
            ("ambiguous", Some(&["program which, instruction 0, byte_off of one->a", "ambiguous", "0 and 32"][..])),
        ] {
            let source = objects().join(name).with_extension("c");
            let target = scratch.0.join("target.o");
            let object = scratch.0.join("object.o");
            compile(&source, big_endian, true, &target);
            compile(&source, big_endian, false, &object);
            // The BTF inside an ELF file serves as well as one by itself.
            let (text, error) = inspect(&object, &target, false);
            match words {
                None => assert!(error.is_none() && text.contains("it would run there"), "{name}: {error:?}"),
                Some(words) => refused(name, &object, &target, words),
            }
            let (json, _) = inspect(&object, &target, true);
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            assert_eq!(json["runs"], words.is_none(), "{name}");
            assert_eq!(json["endian"], if big_endian { "big" } else { "little" });
            let relocations = json["relocations"].as_array().unwrap();
            assert_eq!(json["relocations_total"], relocations.len());
            assert!(relocations.iter().all(|record| record["source"]["line"].as_u64().is_some()), "{name}");
        }
    }
    // An object for one byte order, types of the other.
    let source = objects().join("guarded.c");
    compile(&source, true, true, &scratch.0.join("target.o"));
    compile(&source, false, false, &scratch.0.join("object.o"));
    refused("byte order", &scratch.0.join("object.o"), &scratch.0.join("target.o"), &["different byte order"]);
}

/// Around relocations too: what `inspect` says is what happens when libbpf loads the object into this kernel.
#[test]
fn what_would_run_is_what_loads() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("loads");
    let compile = |option: &str| compile_with(option, "loads.c", &scratch);
    let target = compile("TARGET");
    let mut compared = 0;
    for (option, problem) in [
        ("guarded_call", None),
        ("call", Some("program takes reaches instruction 0: one->a")),
        ("nested_call", Some("program takes reaches instruction 0: one->a")),
        ("callback", Some("program each reaches instruction 0: one->a")),
        ("guarded_callback", None),
        ("guarded_global_call", Some("program everybodys reaches instruction")),
        ("by_choice", None),
        ("no_such_section", Some("no type of program for section nonsense")),
        ("legacy_maps", Some("section maps")),
        ("absent_function", Some("function xctl_no_such_function of the kernel is not in this BTF")),
        ("absent_variable", Some("variable xctl_no_such_variable of the kernel is not in this BTF")),
        ("absent_and_weak", None),
        ("own_section", Some("section socket refers to number in section numbers: libbpf makes no map")),
        ("in_no_section", Some("section socket refers to number, which is in no section")),
        ("own_arena", Some("section socket refers to number in section .addr_space.1: there is no map of type arena")),
        ("other_program", Some("section xdp refers to called in section socket: functions that programs call")),
        ("without_types", Some("it has no types (section .BTF)")),
        ("undefined_function", Some("other_file is neither here nor declared in .ksyms or .kconfig")),
        ("undefined_and_weak", Some("number is neither here nor declared in .ksyms or .kconfig")),
        ("empty_variables", Some("the variables of section .bss have no bytes")),
        ("long_version", Some("section version has 6 bytes, and libbpf takes 4")),
    ] {
        let object = compile(option);
        let (json, error) = inspect(&object, &target, true);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["runs"], problem.is_none(), "{option}: {}", json["problems"]);
        assert_eq!(error.as_ref().map(Exit::code_of), problem.map(|_| 4), "{option}");
        if let Some(problem) = problem {
            assert!(json["problems"][0].as_str().unwrap().contains(problem), "{option}: {}", json["problems"]);
        }
        // Newer kernels do not look at a global function that nothing calls.
        if may_prepare() && option != "guarded_global_call" {
            let by_default = |name: &str| !["calling", "ambiguous"].contains(&name);
            let loads = open_and(sys::bpf_object__load, &fs::read(&object).unwrap(), &target, by_default);
            assert_eq!(loads.is_ok(), problem.is_none(), "{option}: libbpf says {:?}", loads.err());
            compared += 1;
        }
    }
    println!("{compared} as by libbpf and the kernel");
}

/// Compiles a file for what is around relocations, with one macro defined.
fn compile_with(option: &str, source: &str, scratch: &Scratch) -> PathBuf {
    let out = scratch.0.join(format!("{option}.o"));
    let mut compiler = Command::new(clang());
    compiler.args(["--target=bpf", "-g", "-O2", "-c", "-w"]).arg(format!("-D{option}")).arg("-o").arg(&out);
    if option == "without_types" {
        compiler.arg("-g0");
    }
    assert!(compiler.arg(objects().join("outside").join(source)).status().unwrap().success(), "{option}");
    out
}

/// What libbpf makes of each map before it asks the kernel: type, bytes of keys and values, entries, flags, whether it is
/// made.
fn maps_by_libbpf(bytes: &[u8], btf: &Path) -> BTreeMap<String, [u64; 6]> {
    let opened = open_and(nothing_more, bytes, btf, |_| true).unwrap();
    let (mut maps, mut map) = (BTreeMap::new(), std::ptr::null_mut());
    loop {
        // SAFETY: the object is open; libbpf takes null as "before the first" and gives null after the last.
        map = unsafe { sys::bpf_object__next_map(opened.0, map) };
        if map.is_null() {
            return maps;
        }
        // SAFETY: the map belongs to the object, and its name lives as long as that.
        let (name, facts) = unsafe {
            let (entries, flags) = (sys::bpf_map__max_entries(map), sys::bpf_map__map_flags(map));
            let (kind, autocreate) = (sys::bpf_map__type(map), u32::from(sys::bpf_map__autocreate(map)));
            let (key, value) = (sys::bpf_map__key_size(map), sys::bpf_map__value_size(map));
            (CStr::from_ptr(sys::bpf_map__name(map)), [kind, key, value, entries, flags, autocreate])
        };
        let name = name.to_str().unwrap();
        let name = name.strip_prefix("test").filter(|rest| rest.starts_with('.')).unwrap_or(name);
        maps.insert(name.to_owned(), facts.map(u64::from));
    }
}

/// The maps of an object, those included that it only implies, are as libbpf sees them. How many there are.
fn same_maps(what: &str, object: &Path, btf: &Path) -> usize {
    let (json, _) = inspect(object, btf, true);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let theirs = maps_by_libbpf(&fs::read(object).unwrap(), btf);
    let number = |map: &serde_json::Value, of: &str| map[of].as_u64().unwrap_or(0);
    let ours: BTreeMap<_, _> = json["maps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|map| {
            let kind = (0..100).find(|kind| map_type_name(*kind) == map["type"].as_str().unwrap()).unwrap();
            let [key, value, entries, flags] =
                ["key_size", "value_size", "max_entries", "flags"].map(|of| number(map, of));
            let facts = [kind.into(), key, value, entries, flags, u64::from(map["autocreate"].as_bool().unwrap())];
            (map["name"].as_str().unwrap().to_owned(), facts)
        })
        .collect();
    assert_eq!(ours, theirs, "{what}");
    ours.len()
}

#[test]
fn maps_are_as_libbpf_sees_them() {
    if !have_clang() || !Path::new(KERNEL_BTF).exists() {
        return tell("maps are not compared with libbpf: that needs clang and the kernel's types");
    }
    let scratch = Scratch::new("maps");
    let own = scratch.file("own.o", &embedded::object().unwrap());
    assert!(same_maps("our object", &own, Path::new(KERNEL_BTF)) >= 8);
    let globals = compile_with("globals", "globals.c", &scratch);
    assert_eq!(same_maps("globals.c", &globals, Path::new(KERNEL_BTF)), 6);
    let (json, _) = inspect(&globals, Path::new(KERNEL_BTF), true);
    assert!(json.contains("\"unknown#99\""), "{json}");
    for option in ["plain", "linked", "by_choice", "two_by_choice", "loaded_for_one_of_two"] {
        assert!(same_maps(option, &compile_with(option, "struct_ops.c", &scratch), Path::new(KERNEL_BTF)) >= 1);
    }
}

/// libbpf does not open it, and neither does `inspect` go further.
fn not_opened(object: &Path, btf: &Path, words: &str) {
    let (text, error) = inspect(object, btf, true);
    let error = error.unwrap();
    assert!(text.is_empty() && Exit::code_of(&error) == 4 && format!("{error:#}").contains(words), "{error:#}");
    assert!(open_and(nothing_more, &fs::read(object).unwrap(), btf, |_| true).is_err(), "libbpf opens it: {error:#}");
}

/// Variables in an arena have a map to be in.
#[test]
fn arenas_have_room_for_their_variables() {
    if !have_clang() || !Path::new(KERNEL_BTF).exists() {
        return tell("arenas are not compared with libbpf: that needs clang and the kernel's types");
    }
    let (scratch, btf) = (Scratch::new("arena"), Path::new(KERNEL_BTF));
    for (option, variables) in [("plain", 2), ("without_maps", 2), ("empty", 0)] {
        let object = compile_with(option, "arena.c", &scratch);
        let (json, error) = inspect(&object, btf, true);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(error.is_none(), "{option}: {error:?}");
        assert_eq!(json["variables"].as_array().unwrap().len(), variables, "{option}: {}", json["variables"]);
        same_maps(option, &object, btf);
    }
    for (option, words) in [
        ("too_small", "section .addr_space.1 has 5004 bytes, and map arena room for 4096"),
        ("without", "section .addr_space.1: its variables need a map of type arena"),
        ("two", "maps arena and other are both arenas"),
    ] {
        not_opened(&compile_with(option, "arena.c", &scratch), btf, words);
    }
}

/// What a map's definition and its initial values may be.
#[test]
fn definitions_of_maps_are_what_libbpf_takes() {
    if !have_clang() || !Path::new(KERNEL_BTF).exists() {
        return tell("definitions of maps are not compared with libbpf: that needs clang and the kernel's types");
    }
    let (scratch, btf) = (Scratch::new("definitions"), Path::new(KERNEL_BTF));
    for option in ["plain", "is_weak", "programs", "maps_in_array", "maps_by_long_later"] {
        let object = compile_with(option, "maps.c", &scratch);
        let (_, error) = inspect(&object, btf, true);
        assert!(error.is_none(), "{option}: {error:?}");
        same_maps(option, &object, btf);
    }
    for (option, words) in [
        ("is_static", "map two is static"),
        ("is_hidden", "map two is hidden"),
        ("not_a_program", "map two, byte 32: function is no program"),
        ("structs_for_programs", "map two: values are struct inner"),
        ("maps_by_long", "map two, byte 24: a hash of maps takes values only with keys of 4 bytes"),
        ("functions_for_maps", "map two: values are"),
        ("pinned_inside", "map two: what is in it cannot be pinned"),
        ("pinned_somehow", "map two: its pinning is 2"),
        ("values_in_hash", "map two: a map of type hash takes no values"),
        ("values_first", "map two: values is not its last member"),
        ("key_is_set", "map two, byte 16: only values may be set"),
    ] {
        not_opened(&compile_with(option, "maps.c", &scratch), btf, words);
    }
}

/// A map of callbacks is made where the kernel has the struct, and all that is set of it. Here that is the running one.
#[test]
fn callbacks_that_fit_are_what_libbpf_takes() {
    let btf = Path::new(KERNEL_BTF);
    let has_such = |btf: &Btf| btf.find(Kind::Struct, "bpf_struct_ops_tcp_congestion_ops").is_some();
    if !have_clang() || !kernels().iter().any(|(name, _, btf)| name == "running" && has_such(btf)) {
        return tell("struct_ops is not compared with libbpf: that needs clang and a kernel that has it");
    }
    let scratch = Scratch::new("struct_ops");
    let reaches = "program half reaches instruction 1: sock___ours->xctl_no_such_member";
    for (option, problem) in [
        ("plain", None),
        ("linked", None),
        ("by_choice", None),
        ("absent_and_empty", None),
        ("absent_callback", Some("member xctl_no_such_callback of struct tcp_congestion_ops: it is set, and")),
        ("absent_value", Some("member xctl_no_such_value of struct tcp_congestion_ops: it is set, and")),
        ("absent_type", Some("map ops: the BTF has no struct bpf_struct_ops_xctl_no_such_ops")),
        ("twice", Some("program half is member ssthresh of struct tcp_congestion_ops, and undo_cwnd of")),
        ("other_size", Some("member name of struct tcp_congestion_ops: it has 8 bytes here, 16 there")),
        ("other_kind", Some("member init of struct tcp_congestion_ops: it is")),
        // Only the first of a section is left to the loader's choice.
        ("two_by_choice", Some("map ops: the BTF has no struct bpf_struct_ops_xctl_no_such_ops")),
        // A program is loaded if a map that is made names it, whatever its own section says.
        ("left_out_with_its_map", None),
        ("loaded_for_a_map", Some(reaches)),
        ("loaded_for_one_of_two", Some(reaches)),
        ("unnamed", Some("program idle: no struct_ops map names it")),
        ("unnamed_by_choice", None),
    ] {
        let object = compile_with(option, "struct_ops.c", &scratch);
        let (json, error) = inspect(&object, btf, true);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(error.as_ref().map(Exit::code_of), problem.map(|_| 4), "{option}: {}", json["problems"]);
        if let Some(problem) = problem {
            assert!(json["problems"][0].as_str().unwrap().contains(problem), "{option}: {}", json["problems"]);
        }
        let maps = json["maps"].as_array().unwrap();
        let map = maps.iter().find(|map| map["name"] == "ops").unwrap();
        assert_eq!(map["callbacks"][0], serde_json::json!({"member": "ssthresh", "program": "half"}), "{option}");
        let programs = json["programs"].as_array().unwrap().iter();
        let ours = programs.map(|one| (one["name"].as_str().unwrap().to_owned(), one["autoload"] == true));
        let ours: BTreeMap<_, _> = ours.collect();
        let file = fs::read(&object).unwrap();
        // What the sections say, until libbpf has seen the maps.
        let by_section = |name: &str| {
            let object = ObjectFile::parse(&file).unwrap();
            object.programs.iter().any(|one| one.name == name && hook(one.section).autoload)
        };
        if may_prepare() {
            let theirs = open_and(sys::bpf_object__load, &file, btf, by_section);
            assert_eq!(theirs.is_ok(), problem.is_none(), "{option}: libbpf says {:?}", theirs.err());
        }
        if let Ok(theirs) = open_and(sys::bpf_object__prepare, &file, btf, by_section) {
            // SAFETY: the object is open.
            let loads = |program| unsafe { sys::bpf_program__autoload(program) };
            let theirs = theirs.programs().map(|program| (name_of(program), loads(program))).collect();
            assert_eq!(ours, theirs, "{option}");
        } else {
            assert!(!may_prepare() || problem.is_some(), "{option}");
        }
    }
    for (option, words) in [
        ("of_another_type", "map ops: program half, of section socket, is not one of struct_ops"),
        ("untold", "section .struct_ops: the object's types do not tell what is in it"),
    ] {
        not_opened(&compile_with(option, "struct_ops.c", &scratch), btf, words);
    }
    // The other byte order: only its own types can tell.
    let (text, object) = (objects().join("outside/struct_ops.c"), scratch.0.join("big.o"));
    compile(&text, true, false, &object);
    let (_, error) = inspect(&object, &object, true);
    assert!(
        format!("{:#}", error.unwrap()).contains("map other: the BTF has no struct bpf_struct_ops_tcp_congestion_ops")
    );
}

#[test]
fn inspect_lists_what_only_the_loader_knows() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("outside");
    for big_endian in [false, true] {
        let (source, object) = (objects().join("outside/externs.c"), scratch.0.join("object.o"));
        compile(&source, big_endian, false, &object);
        let (json, error) = inspect(&object, &object, true);
        assert!(error.is_none(), "{error:?}");
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let programs = json["programs"].as_array().unwrap();
        let found = |name: &str| programs.iter().find(|program| program["name"] == name).unwrap();
        let (no, lock, unlock) = (serde_json::json!([]), "bpf_rcu_read_lock", "bpf_rcu_read_unlock");
        for (name, calls, kfuncs, externs) in [
            // One of them by way of a function.
            ("by_configuration", &["version"][..], &[][..], &["CONFIG_PREEMPT", "LINUX_KERNEL_VERSION"][..]),
            ("by_variable", &[], &[], &["bpf_prog_active"]),
            // Whether it is there is asked by its address.
            ("by_function", &[], &[lock, unlock], &[unlock]),
            ("by_itself", &[], &[], &[]),
        ] {
            let program = found(name);
            for (what, names) in [("calls", calls), ("kfuncs", kfuncs), ("externs", externs)] {
                assert_eq!(program[what], serde_json::json!(names), "{what} of {name}");
            }
            assert_eq!(program["provable"], program["kfuncs"] == no && program["externs"] == no, "{name}");
        }
        assert_eq!(found("by_itself")["provable"], true);
        let externs = json["externs"].as_array().unwrap();
        let kinds: BTreeMap<_, _> =
            externs.iter().map(|one| (one["name"].as_str().unwrap(), (&one["kind"], &one["in_btf"]))).collect();
        let (yes, unknown) = (serde_json::json!(true), serde_json::Value::Null);
        for (name, kind, in_btf) in [
            (lock, "function", &yes),
            (unlock, "function", &yes),
            ("bpf_prog_active", "variable", &yes),
            ("CONFIG_PREEMPT", "configuration", &unknown),
            ("LINUX_KERNEL_VERSION", "configuration", &unknown),
        ] {
            assert_eq!(kinds[name], (&serde_json::json!(kind), in_btf), "{name}");
        }
        let weak: Vec<_> = json["externs"].as_array().unwrap().iter().filter(|one| one["weak"] == true).collect();
        assert_eq!(weak.len(), 2, "{weak:?}");
        let (text, _) = inspect(&object, &object, false);
        assert!(text.contains("provable  no: ") && text.contains("bpf_rcu_read_unlock (may be missing)"), "{text}");
    }
}

fn said_by(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).output().unwrap_or_else(|error| panic!("{tool}: {error}"));
    assert!(output.status.success(), "{tool} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_inspect_says_of_our_object_others_say_too() {
    let scratch = Scratch::new("facts");
    let bytes = embedded::object().unwrap();
    let path = scratch.file("xctl.bpf.o", &bytes);
    let file = path.to_str().unwrap();
    if !Path::new(KERNEL_BTF).exists() {
        tell(&format!("not compared: no {KERNEL_BTF}"));
        return;
    }
    let (out, error) = inspect(&path, Path::new(KERNEL_BTF), true);
    assert!(error.is_none(), "{error:?}");
    let facts: serde_json::Value = serde_json::from_str(&out).unwrap();
    let list = |value: &serde_json::Value| value.as_array().unwrap().clone();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();

    assert_eq!(text(&facts["sha256"]), said_by("sha256sum", &[file]).split(' ').next().unwrap());
    // "  [ 1] .strtab STRTAB 0000000000000000 05688a 0006e5 00 ...", with flags before three numbers
    let table = said_by("readelf", &["-SW", file]);
    let theirs: Vec<_> = table.lines().filter_map(|line| line.trim().strip_prefix('[')?.split_once("] ")).collect();
    let ours = list(&facts["sections"]);
    assert_eq!(ours.len(), theirs.len() - 2, "{theirs:?}"); // the heading, and the section that is none
    let mut license = None;
    for (ours, (_, line)) in ours.iter().zip(&theirs[2..]) {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |word: &str| u64::from_str_radix(word, 16).unwrap();
        // of the flags those that say what a section is in memory
        let sorted = |flags: &str| flags.chars().filter(|flag| "AWX".contains(*flag)).collect::<BTreeSet<_>>();
        let flags = if words.len() == 10 { words[6] } else { "" };
        assert_eq!(text(&ours["name"]), words[0]);
        // of LLVM's own types readelf has no names
        let kind = text(&ours["type"]).replace("0x6", "LOOS+0x");
        assert_eq!(kind, words[1], "{line}");
        assert_eq!(sorted(&text(&ours["flags"])), sorted(flags), "{line}");
        assert_eq!((&ours["offset"], &ours["size"]), (&number(words[3]).into(), &number(words[4]).into()), "{line}");
        if words[0] == "license" {
            license = Some(&bytes[number(words[3]) as usize..][..number(words[4]) as usize - 1]);
        }
    }
    assert_eq!(text(&facts["license"]).as_bytes(), license.unwrap());

    if !may_prepare() {
        return;
    }
    if Command::new("bpftool").arg("version").output().is_err() {
        tell("helpers are not compared: no bpftool");
        return;
    }
    // Numbers of functions are the kernel's, and bpftool has their names in that order.
    let names = said_by("bpftool", &["feature", "list_builtins", "helpers"]);
    let names: Vec<_> = names.lines().collect();
    let programs = list(&facts["programs"]);
    let by_default = |name: &str| programs.iter().any(|one| one["name"] == name && one["autoload"] == true);
    let opened = open_and(nothing_more, &bytes, Path::new(KERNEL_BTF), by_default).unwrap();
    let before: BTreeMap<_, _> = opened.programs().map(|program| opened.code(program)).collect();
    let after = libbpf(&bytes, Path::new(KERNEL_BTF), by_default).unwrap();
    let after: BTreeMap<_, _> = after.programs.into_iter().collect();
    for program in programs.iter().filter(|program| program["autoload"] == true) {
        let name = text(&program["name"]);
        assert_eq!(program["insns"], before[&name].len(), "{name}");
        assert_eq!(program["insns_total"], after[&name].len(), "{name}");
        const CALL: u8 = 0x85;
        let called = after[&name].iter().filter(|insn| insn.code == CALL && insn.src == 0);
        // what libbpf makes of a relocation that fails is a call to no function
        let called: BTreeSet<_> = called.filter_map(|insn| names.get(insn.imm as usize).copied()).collect();
        let helpers = list(&program["helpers"]);
        assert_eq!(helpers.iter().map(|name| name.as_str().unwrap()).collect::<BTreeSet<_>>(), called, "{name}");
    }
    let mut insns = 0;
    for relocation in list(&facts["relocations"]) {
        let (name, at) = (text(&relocation["program"]), relocation["insn"].as_u64().unwrap() as usize);
        let Some(code) = before.get(&name).filter(|_| by_default(&name)) else { continue };
        // not by the function that inspect writes them with
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        for (side, insn) in [("before", code[at]), ("after", after[&name][at])] {
            assert_eq!(text(&relocation[side]["bytes"])[..16], hex(&insn.encode(false)), "{relocation}");
        }
        insns += 1;
    }
    println!("{} programs, {insns} instructions before and after", programs.len());
    assert!(programs.len() > 10 && insns > 1000);
}

/// One side of a relocation, as a C expression for the compiler: its size, and where it is if that can be asked.
fn as_c(side: &serde_json::Value) -> (String, Option<String>) {
    let (ty, access) = (side["type"].as_str().unwrap(), side["access"].as_str().unwrap());
    if side["bit_offset"].is_null() || access.starts_with('*') {
        return (format!("sizeof({ty})"), None);
    }
    let path = &access[access.find(['-', '[']).unwrap()..];
    let place = path.strip_prefix("->").map(|path| format!("__builtin_offsetof({ty}, {path})"));
    (format!("sizeof((({ty} *)0){path})"), place)
}

/// Sizes and places of one side of all relocations are those that the compiler finds in the types of `source`. How many.
fn as_the_compiler_says(
    what: &str,
    source: &Path,
    options: &[&str],
    records: &[serde_json::Value],
    side: &str,
) -> usize {
    let scratch = Scratch::new("sizes");
    let sides = records.iter().map(|record| &record[side]).filter(|side| !side.is_null());
    // The compiler has no size for a bitfield, nor for an array without length.
    let sides: Vec<_> = sides.filter(|side| side["bitfield_size"].is_null() && side["size"] != 0).collect();
    let numbers = sides.iter().map(|side| as_c(side));
    let numbers = numbers.map(|(size, place)| format!("{size}, {},\n", place.unwrap_or("-1".to_owned())));
    let text = format!(
        "#include \"{}\"\nunsigned long NUMBERS[] = {{ {} }};\n",
        source.display(),
        numbers.collect::<String>()
    );
    let (c, out) = (scratch.file("sizes.c", text.as_bytes()), scratch.0.join("sizes.o"));
    let mut compiler = Command::new(clang());
    // A kernel has structs whose tag names an anonymous member, and is compiled so.
    compiler.args(["--target=bpfel", "-g", "-O2", "-w", "-fms-extensions", "-c"]).args(options);
    compiler.arg(&c).arg("-o").arg(&out);
    assert!(compiler.status().unwrap().success(), "{what}");
    let bytes = fs::read(&out).unwrap();
    let object = ObjectFile::parse(&bytes).unwrap();
    let symbol = object.symbols.iter().find(|symbol| symbol.name == "NUMBERS");
    let Some(symbol) = symbol.filter(|symbol| symbol.size > 0) else { return 0 };
    let data = &object.sections[usize::from(symbol.section)].bytes(&bytes)[symbol.value as usize..];
    for (side, numbers) in sides.iter().zip(data.chunks(16)) {
        let number = |at: usize| i64::from_le_bytes(numbers[at..at + 8].try_into().unwrap());
        assert_eq!(side["size"], number(0), "{what}: {side}");
        assert!(number(8) < 0 || side["bit_offset"] == number(8) * 8, "{what}: {side}, by the compiler {}", number(8));
    }
    sides.len()
}

#[test]
fn sizes_and_places_are_those_of_the_compiler() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("extents");
    let relocations = |object: &Path, btf: &Path| {
        let json: serde_json::Value = serde_json::from_str(&inspect(object, btf, true).0).unwrap();
        json["relocations"].as_array().unwrap().clone()
    };
    let (mut compared, mut bitfields) = (0, 0);
    for source in sources() {
        let what = source.display().to_string();
        let (target, object) = (scratch.0.join("target.o"), scratch.0.join("object.o"));
        compile(&source, false, true, &target);
        compile(&source, false, false, &object);
        let records = relocations(&object, &target);
        compared += as_the_compiler_says(&what, &source, &[], &records, "local");
        compared += as_the_compiler_says(&what, &source, &["-DTARGET"], &records, "target");
        // What drops all but a bitfield says how many bits it has; the corpus has those numbers by hand.
        for record in records.iter().filter(|record| record["kind"] == "rshift_u64") {
            for side in
                [&record["local"], &record["target"]].into_iter().filter(|side| !side["bitfield_size"].is_null())
            {
                let left = 64 - side["value"].as_i64().unwrap();
                assert_eq!(side["bitfield_size"], left, "{what}: {record}");
                bitfields += 1;
            }
        }
    }
    assert!(compared > 100 && bitfields > 3, "{compared} {bitfields}");
    let object = scratch.file("xctl.bpf.o", &embedded::object().unwrap());
    for (name, path, _) in kernels() {
        let dump = Command::new("bpftool").args(["btf", "dump", "file"]).arg(path).args(["format", "c"]).output();
        let Ok(dump) = dump else {
            println!("not compared with the compiler: no bpftool");
            break;
        };
        assert!(dump.status.success(), "{name}");
        let header = scratch.file("vmlinux.h", &dump.stdout);
        let here = as_the_compiler_says(name, &header, &[], &relocations(&object, path), "target");
        assert!(here > 100, "{name}: {here}");
        println!("{name}: {here} accesses as large, and where, the compiler says");
    }
    println!("{compared} accesses of the corpus, {bitfields} bitfields");
}

#[test]
fn section_names_mean_what_they_mean_to_libbpf() {
    let kinds = "socket sk_reuseport kprobe kretprobe uprobe uretprobe ksyscall kretsyscall usdt kprobe.multi kretprobe.multi \
        kprobe.session uprobe.multi uretprobe.multi uprobe.session tc tcx classifier action netkit tracepoint tp raw_tracepoint \
        raw_tp raw_tracepoint.w raw_tp.w tp_btf fentry fmod_ret fexit fsession freplace lsm lsm_cgroup iter syscall xdp xdp.frags \
        perf_event lwt_in lwt_out lwt_xmit lwt_seg6local sockops sk_skb sk_msg lirc_mode2 flow_dissector cgroup_skb cgroup \
        struct_ops sk_lookup netfilter maps mine";
    let rest = "x a/b ingress egress primary peer migrate devmap cpumap stream_parser stream_verdict verdict skb sock_create \
        sock_release sock post_bind4 post_bind6 bind4 bind6 bind_unix connect4 connect6 connect_unix sendmsg4 sendmsg_unix \
        recvmsg6 recvmsg_unix getpeername4 getpeername_unix getsockname6 getsockname_unix sysctl getsockopt setsockopt dev";
    let _quiet = LIBBPF.lock().unwrap();
    let mut known = 0;
    for kind in kinds.split_whitespace().flat_map(|kind| [kind.to_owned(), format!("{kind}.s"), format!("{kind}.x")]) {
        let names = rest.split_whitespace().map(|rest| format!("{kind}/{rest}"));
        for name in names.chain([kind.clone(), format!("{kind}/")]) {
            let (mut number, mut attach) = (0, 0);
            let section = CString::new(name.as_str()).unwrap();
            // SAFETY: the name ends with NUL, and both numbers are ours. The text is static, or null.
            let theirs = unsafe {
                let error = sys::libbpf_prog_type_by_name(section.as_ptr(), &mut number, &mut attach);
                (error == 0).then(|| CStr::from_ptr(sys::libbpf_bpf_prog_type_str(number)).to_str().unwrap())
            };
            assert_eq!(hook(&name).program_type, theirs, "{name}");
            known += usize::from(theirs.is_some());
        }
    }
    assert!(known > 1000, "{known}");
}

#[test]
fn altered_objects_are_refused_and_the_place_is_named() {
    if !have_clang() {
        return;
    }
    let scratch = Scratch::new("altered");
    let source = objects().join("guarded.c");
    let target = scratch.0.join("target.o");
    compile(&source, false, true, &target);
    let good = compile(&source, false, false, &scratch.0.join("good.o"));
    let object = ObjectFile::parse(&good).unwrap();
    let at = |name: &str| object.sections.iter().find(|section| section.name == name).unwrap().offset as usize;
    let word = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().unwrap());
    let ext = at(".BTF.ext");
    // Past the record size and the section's name and count, the first relocation.
    let relocation = ext + (word(ext + 4) + word(ext + 24)) as usize + 12;
    let types = at(".BTF") + 24;
    let check = |what: &str, place: usize, value: u32, words: &[&str]| {
        let mut bad = good.clone();
        bad[place..place + 4].copy_from_slice(&value.to_le_bytes());
        refused(what, &scratch.file("bad.o", &bad), &target, words);
    };
    check("a relocation beyond the program", relocation, 8000, &["CO-RE relocation record for byte 8000", "socket"]);
    check("a relocation between instructions", relocation, 4, &["byte 4 of section socket: no instruction"]);
    check("a relocation of no type", relocation + 4, 4000, &["refers to type [4000]", ".BTF.ext"]);
    check("a string past the end", relocation + 8, 1 << 20, &["string offset 1048576, past the end", ".BTF.ext"]);
    check("an unknown question", relocation + 12, 77, &["program guarded, instruction", "kind 77"]);
    check("a name past the end", types + 12, 1 << 20, &["not valid BTF", "name offset 1048576", "type ["]);
    // Type 1 is the pointer that the program takes, and 2 the struct: now a pointer to itself.
    check("a type cycle", types + 8, 1, &["its types", "[1] contains itself"]);
    check("16 million members", types + 16, 0x04ff_ffff, &["not valid BTF", "16777215 entries"]);
    let code = object.programs[0].section_index;
    let code = object.sections[code].offset as usize;
    let insn = code + word(relocation) as usize;
    check("another number than the types say", insn + 4, 5, &["it holds 5, but in the object's own types it is 1"]);
    check("another instruction", insn, 0x0000_000f, &["arithmetic on a register has no value to relocate"]);
}

// ---- accesses chosen at random ----

/// A generator of numbers that look random and are the same every time.
struct Noise(u64);

impl Noise {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as u32) % limit.max(1)
    }
}

/// An access to something in a kernel's types: root type, access string, kind.
fn any_access(btf: &Btf, noise: &mut Noise) -> Option<(TypeId, String, RelocationKind)> {
    let root = TypeId(1 + noise.below(btf.len() as u32));
    if btf.name(root).is_empty() {
        return None;
    }
    let resolved = btf.resolve(root);
    let kind = RelocationKind::ALL[noise.below(13) as usize];
    if kind.is_type() {
        let sensible = matches!(
            btf.kind(root),
            Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::Typedef
                | Kind::Int
                | Kind::Fwd
                | Kind::Float
        );
        return sensible.then(|| (root, "0".to_owned(), kind));
    }
    if kind.is_enumval() {
        let count = btf.entry_count(resolved);
        let known = btf.kind(resolved).is_enum() && count > 0;
        return known.then(|| (root, noise.below(count).to_string(), kind));
    }
    if !btf.kind(resolved).is_composite() {
        return None;
    }
    let mut access = if noise.below(20) == 0 { noise.below(4).to_string() } else { "0".to_owned() };
    let mut id = resolved;
    for _ in 0..12 {
        id = btf.resolve(id);
        let index = if let Some(array) = btf.array(id) {
            id = array.elem;
            noise.below(array.nelems.max(1))
        } else {
            let count = btf.entry_count(id);
            if !btf.kind(id).is_composite() || count == 0 {
                break;
            }
            let index = noise.below(count);
            id = btf.member_as_written(id, index)?.ty;
            index
        };
        access.push_str(&format!(":{index}"));
        if noise.below(3) == 0 {
            break;
        }
    }
    Some((root, access, kind))
}

/// First and last constant of every enum of 64 bits: too few to come by chance, and clang makes none before version 15.
fn wide_constants(btf: &Btf) -> Vec<(TypeId, String, RelocationKind)> {
    let wide = btf.ids().filter(|id| btf.kind(*id) == Kind::Enum64 && !btf.name(*id).is_empty());
    let constants = wide.flat_map(|id| [(id, 0), (id, btf.entry_count(id).saturating_sub(1))]);
    let kinds = [RelocationKind::EnumvalValue, RelocationKind::EnumvalExists];
    constants.flat_map(|(id, index)| kinds.map(|kind| (id, index.to_string(), kind))).collect()
}

/// An ELF object with the types of `btf`, and a program of one or two instructions for each access.
fn object_of(btf: &Btf, accesses: &[(TypeId, String, RelocationKind)], noise: &mut Noise) -> Vec<u8> {
    const HEADER: usize = 24;
    // The kernel's own BTF has its strings last, so that more can follow.
    let mut types = btf.bytes().to_vec();
    let section_name = btf.strings_len();
    types.extend_from_slice(b"socket\0");
    let (mut code, mut records, mut symbols) = (Vec::new(), Vec::new(), vec![0u8; 24]);
    let mut names = b"\0".to_vec();
    for (number, (root, access, kind)) in accesses.iter().enumerate() {
        let at = types.len() - types_start(btf);
        types.extend_from_slice(access.as_bytes());
        types.push(0);
        let relocation = CoreRelocation { offset: 0, root: *root, access, kind: *kind as u32 };
        let local = Resolver::describe(btf, &relocation).map_or(0, |(.., value)| value);
        let start = code.len();
        let mut insn = |code_: u8, off: i16, imm: i32| {
            code.extend_from_slice(
                &Insn { code: code_, dst: 0, src: u8::from(code_ & 7 == 1), off, imm }.encode(false),
            );
        };
        let load = *kind == RelocationKind::FieldByteOffset && noise.below(2) == 0;
        match (load, i16::try_from(local), i32::try_from(local as i64)) {
            (true, Ok(offset), _) => insn([0x61, 0x69, 0x71, 0x79][load_size(btf, *root, access, noise)], offset, 0),
            (_, _, Ok(value)) => insn(0xb7, 0, value),
            _ => {
                insn(0x18, 0, local as i32);
                insn(0, 0, (local >> 32) as i32);
            }
        }
        insn(0x95, 0, 0);
        for word in [start as u32, root.0, at as u32, *kind as u32] {
            records.extend_from_slice(&word.to_le_bytes());
        }
        symbols.extend_from_slice(&(names.len() as u32).to_le_bytes());
        symbols.extend_from_slice(&[0x12, 0, 1, 0]); // a global function in section 1
        symbols.extend_from_slice(&(start as u64).to_le_bytes());
        symbols.extend_from_slice(&((code.len() - start) as u64).to_le_bytes());
        names.extend_from_slice(format!("p{number}\0").as_bytes());
    }
    let externs = (types.len() - types_start(btf)) as u32;
    types.extend_from_slice(b".ksyms\0");
    rename_datasecs(btf, &mut types, externs);
    let strings = (types.len() - types_start(btf)) as u32;
    types[20..24].copy_from_slice(&strings.to_le_bytes());
    let mut ext = vec![0x9f, 0xeb, 1, 0, 32, 0, 0, 0];
    let stretch = 4 + 8 + records.len() as u32;
    for word in [0, 0, 0, 0, 0, stretch, 16, section_name as u32, accesses.len() as u32] {
        ext.extend_from_slice(&word.to_le_bytes());
    }
    ext.extend_from_slice(&records);
    assert!(types.len() > HEADER);
    elf(&[
        ("socket", 1, 6, 0, 0, &code),
        (".BTF", 1, 0, 0, 0, &types),
        (".BTF.ext", 1, 0, 0, 0, &ext),
        ("license", 1, 3, 0, 0, b"GPL\0"),
        (".symtab", 2, 0, 6, 24, &symbols),
        (".strtab", 3, 0, 0, 0, &names),
    ])
}

/// libbpf looks for the sections that BTF describes, and a kernel's own are not in the object. It does not look for those
/// of variables that are elsewhere.
fn rename_datasecs(btf: &Btf, types: &mut [u8], name: u32) {
    let mut at = 24;
    for id in btf.ids() {
        let info = u32::from_le_bytes(types[at + 4..at + 8].try_into().unwrap());
        let entries = (info & 0x00ff_ffff) as usize;
        let tail = match btf.kind(id) {
            Kind::Int | Kind::Var | Kind::DeclTag => 4,
            Kind::Array => 12,
            Kind::Struct | Kind::Union | Kind::Datasec | Kind::Enum64 => entries * 12,
            Kind::Enum | Kind::FuncProto => entries * 8,
            _ => 0,
        };
        if btf.kind(id) == Kind::Datasec {
            types[at..at + 4].copy_from_slice(&name.to_le_bytes());
        }
        at += 12 + tail;
    }
}

/// Where the strings begin in the data.
fn types_start(btf: &Btf) -> usize {
    btf.bytes().len() - btf.strings_len()
}

/// Index of the load instruction for a field, or sometimes of another.
fn load_size(btf: &Btf, root: TypeId, access: &str, noise: &mut Noise) -> usize {
    let mut id = root;
    for index in access.split(':').skip(1) {
        id = btf.resolve(id);
        id = match btf.array(id) {
            Some(array) => array.elem,
            None => btf.member_as_written(id, index.parse().unwrap()).unwrap().ty,
        };
    }
    match btf.size_of(id) {
        _ if noise.below(10) == 0 => noise.below(4) as usize,
        Some(2) => 1,
        Some(1) => 2,
        Some(8) => 3,
        _ => 0,
    }
}

/// A section: name, type, flags, link, entry size, bytes.
type Section<'a> = (&'a str, u32, u64, u32, u64, &'a [u8]);

/// An ELF file for BPF with these sections.
fn elf(sections: &[Section<'_>]) -> Vec<u8> {
    let mut names = b"\0".to_vec();
    let mut headers = vec![0u8; 64];
    let mut out = vec![0u8; 64];
    let header = |names: &mut Vec<u8>, out: &[u8], (name, kind, flags, link, entry, bytes): Section<'_>| {
        let mut header = Vec::new();
        header.extend_from_slice(&(names.len() as u32).to_le_bytes());
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        header.extend_from_slice(&kind.to_le_bytes());
        for word in [flags, 0, out.len() as u64, bytes.len() as u64] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        header.extend_from_slice(&link.to_le_bytes());
        header.extend_from_slice(&u32::from(kind == 2).to_le_bytes());
        for word in [8, entry] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        header
    };
    for section in sections {
        headers.extend(header(&mut names, &out, *section));
        out.extend_from_slice(section.5);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    let last = header(&mut names, &out, (".shstrtab", 3, 0, 0, 0, &[]));
    let start = out.len() as u64;
    headers.extend(last);
    let at = headers.len() - 64 + 32;
    headers[at..at + 8].copy_from_slice(&(names.len() as u64).to_le_bytes());
    headers[at - 8..at].copy_from_slice(&start.to_le_bytes());
    out.extend_from_slice(&names);
    out.resize(out.len().next_multiple_of(8), 0);
    let table = out.len() as u64;
    let count = sections.len() as u16 + 2;
    out.extend_from_slice(&headers);
    out[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    out[16..20].copy_from_slice(&[1, 0, 247, 0]);
    out[20..24].copy_from_slice(&1u32.to_le_bytes());
    out[40..48].copy_from_slice(&table.to_le_bytes());
    out[52..54].copy_from_slice(&64u16.to_le_bytes());
    out[58..60].copy_from_slice(&64u16.to_le_bytes());
    out[60..62].copy_from_slice(&count.to_le_bytes());
    out[62..64].copy_from_slice(&(count - 1).to_le_bytes());
    out
}

/// `XCTL_RANDOM_ACCESSES=2000 XCTL_ALL_PAIRS=1` does more of it.
#[test]
fn random_accesses_to_one_kernel_come_out_on_another_as_by_libbpf() {
    let accesses: usize = env::var("XCTL_RANDOM_ACCESSES").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    let mut seen = std::collections::BTreeMap::<&str, usize>::new();
    if !may_prepare() {
        return;
    }
    let all_pairs = env::var_os("XCTL_ALL_PAIRS").is_some();
    let mut of_wide_enums = 0;
    for (number, (from, _, local)) in kernels().iter().enumerate() {
        for (other, (to, path, target)) in kernels().iter().enumerate() {
            // Each takes libbpf about a second: by default every kernel to the next one.
            if !all_pairs && other != (number + 1) % kernels().len() {
                continue;
            }
            let mut noise = Noise(from.len() as u64 * 31 + to.len() as u64);
            let mut chosen = Vec::new();
            while chosen.len() < accesses {
                chosen.extend(any_access(local, &mut noise));
            }
            let wide = wide_constants(local);
            let constants = wide.len();
            of_wide_enums += constants;
            chosen.extend(wide);
            let bytes = object_of(local, &chosen, &mut noise);
            let (all, _) = relocate(&bytes, target, |_, _| true);
            for ours in &all {
                *seen
                    .entry(match ours.outcome {
                        Outcome::Applied => "applied",
                        Outcome::Poisoned(_) => "poisoned",
                        Outcome::Refused(_) => "refused",
                        Outcome::Skipped | Outcome::Unresolved => "skipped",
                    })
                    .or_default() += 1;
            }
            let compared = compare(&format!("accesses to {from} on {to}"), &bytes, target, path);
            println!("{from} on {to}: {compared} of {} as by libbpf, {constants} of 64-bit enums", all.len());
        }
    }
    println!("{seen:?}");
    assert!(of_wide_enums > 0 || kernels().len() < 2, "no kernel has a 64-bit enum");
}

// ---- BTF that was cut down ----

#[test]
fn of_a_long_kernel_image_only_its_types_are_read() {
    let scratch = Scratch::new("image");
    let types = Btf::nothing();
    let types: &[u8] = kernels().first().map_or(types.bytes(), |(.., btf)| btf.bytes());
    let image = scratch.file("vmlinux", &elf(&[(".text", 1, 6, 0, 0, b"code"), (".BTF", 1, 0, 0, 0, types)]));
    // Debug information, as far as its length goes; it takes no room on the disk.
    fs::File::options().append(true).open(&image).unwrap().set_len(8 * source::MAX_FILE).unwrap();
    assert!(source::read_btf(&image).unwrap() == types);
    let other = scratch.file("other", &elf(&[(".text", 1, 6, 0, 0, b"code")]));
    assert!(source::read_btf(&other).unwrap_err().to_string().contains("has no .BTF section"));
}

/// Every relocation comes to the same with both, and the code too. Returns how many.
fn same(what: &str, bytes: &[u8], one: &Btf, two: &Btf) -> usize {
    let ((all, code), (others, other_code)) = (relocate(bytes, one, |_, _| true), relocate(bytes, two, |_, _| true));
    for (ours, theirs) in all.iter().zip(&others) {
        let same = (ours.value, discriminant(&ours.outcome)) == (theirs.value, discriminant(&theirs.outcome));
        assert!(same, "{what}: {ours:?} and {theirs:?}");
    }
    assert_eq!(all.len(), others.len(), "{what}");
    assert!(code == other_code, "{what}: the code differs");
    all.len()
}

/// The hooks that the loader would choose with these types, all of them or why not.
fn plans(btf: &Path) -> Vec<String> {
    let kernel = Kernel::ask(btf).unwrap();
    let all = [Attach::Auto, Attach::Kprobe, Attach::Tracepoint, Attach::Fentry, Attach::Mixed];
    all.iter()
        .flat_map(|attach| [false, true].map(|sends| format!("{:?}", hooks::choose(*attach, sends, &kernel))))
        .collect()
}

#[test]
fn a_cut_btf_answers_as_the_whole_and_as_bpftools() {
    let scratch = Scratch::new("cut");
    let bytes = embedded::object().unwrap();
    let object = scratch.file("xctl.bpf.o", &bytes);
    for (name, path, btf) in kernels() {
        let cut = cut(&bytes, btf, &ASKED).unwrap();
        println!("{name}: {} bytes of {}", cut.bytes.len(), btf.bytes().len());
        assert!(cut.bytes.len() < 8192, "{name}: {} bytes", cut.bytes.len());
        let small = Btf::parse(&cut.bytes).unwrap();
        let file = scratch.file("cut.btf", &cut.bytes);
        assert!(same(name, &bytes, btf, &small) > 100);
        assert_eq!(difference(&bytes, &small, btf), Ok(None), "{name}");
        compare(&format!("our object, {name} cut"), &bytes, &small, &file);
        assert_eq!(plans(path), plans(&file), "{name}");
        let theirs = scratch.0.join("bpftool.btf");
        let bpftool = Command::new("bpftool").args(["gen", "min_core_btf"]).args([path, &theirs, &object]).status();
        match bpftool {
            Ok(status) => {
                assert!(status.success(), "{name}: bpftool refuses");
                let theirs = Btf::parse(&fs::read(&theirs).unwrap()).unwrap();
                same(&format!("{name}, ours and bpftool's"), &bytes, &small, &theirs);
            }
            Err(error) => println!("not compared with bpftool: {error}"),
        }
    }
}

/// What can be cut for an object: with the types that are left, it comes out the same. False if it would not load.
fn cuts(what: &str, bytes: &[u8], target: &Btf, scratch: &Scratch) -> bool {
    let (all, _) = relocate(bytes, target, |_, _| true);
    let number = RelocationKind::TypeIdTarget as u32;
    let impossible = |ours: &Ours| {
        matches!(ours.outcome, Outcome::Refused(_)) || (ours.kind == number && ours.value.is_some_and(|id| id > 0))
    };
    let cut = cut(bytes, target, &Asked::default());
    if all.iter().any(impossible) {
        let error = cut.map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with("program "), "{what}: {error}");
        return false;
    }
    let cut = cut.unwrap_or_else(|error| panic!("{what}: {error}")).bytes;
    let small = Btf::parse(&cut).unwrap();
    assert!(small.len() <= target.len());
    same(what, bytes, target, &small);
    compare(&format!("{what}, cut"), bytes, &small, &scratch.file("cut.btf", &cut));
    true
}

#[test]
fn a_cut_btf_will_do_for_the_corpus_and_for_random_accesses() {
    let scratch = Scratch::new("cuts");
    let mut done = BTreeSet::new();
    for source in sources().into_iter().filter(|_| have_clang()) {
        let name = source.file_stem().unwrap().to_str().unwrap().to_owned();
        for big_endian in [false, true] {
            let target = compile(&source, big_endian, true, &scratch.0.join("target.o"));
            let target = Btf::parse(ObjectFile::parse(&target).unwrap().btf.unwrap()).unwrap();
            let mut bytes = compile(&source, big_endian, false, &scratch.0.join("object.o"));
            if name == "matches" {
                ask_instead(&mut bytes, RelocationKind::TypeExists, RelocationKind::TypeMatches);
            }
            if cuts(&name, &bytes, &target, &scratch) {
                done.insert(name.clone());
            }
        }
    }
    println!("{done:?}");
    let all = kernels();
    for ((from, _, local), (to, _, target)) in all.iter().zip(all.iter().cycle().skip(1)) {
        let mut noise = Noise(from.len() as u64 * 37 + to.len() as u64);
        let mut chosen = Vec::new();
        while chosen.len() < 300 {
            chosen.extend(any_access(local, &mut noise).filter(|(.., kind)| *kind != RelocationKind::TypeIdTarget));
        }
        // Without those that libbpf refuses; whether it does can depend on those before.
        let bytes = loop {
            let bytes = object_of(local, &chosen, &mut Noise(1));
            let (all, _) = relocate(&bytes, target, |_, _| true);
            let mut refused = all.iter().map(|ours| matches!(ours.outcome, Outcome::Refused(_)));
            let before = chosen.len();
            chosen.retain(|_| refused.next() == Some(false));
            if chosen.len() == before {
                break bytes;
            }
        };
        assert!(chosen.len() > 200, "{}", chosen.len());
        assert!(cuts(&format!("accesses to {from} on {to}"), &bytes, target, &scratch));
    }
}
