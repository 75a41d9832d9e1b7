//! Runs the fuzz targets' seeds, findings of fuzzing, and deliberately large files through the same code. No file may cause
//! a panic, more than a moment of processor time, or memory out of proportion.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use xctl::{commands, kernel, object};

#[path = "../fuzz/src/bodies.rs"]
mod bodies;
mod hostile;

/// The limit of a thread's processor time for one file, on a slow and busy machine. `make fuzz` allows five seconds.
const MOST_TIME: Duration = Duration::from_secs(4);

/// The limit of memory for one file of a megabyte, in KB: the text report keeps the lines on relocations until it knows the
/// verdict.
const MOST_KB: usize = 32 << 10;

/// Each test holds this lock, because the memory of the whole process is measured.
static ALONE: Mutex<()> = Mutex::new(());

/// A fuzz target's name, and the function that takes the target's bytes.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 6] = [
    ("elf", bodies::elf),
    ("btf", bodies::btf),
    ("btf_ext", bodies::btf_ext),
    ("resolver", bodies::resolver),
    ("accesses", bodies::accesses),
    ("definitions", bodies::definitions),
];

/// A field of this process's status, in KB.
fn status(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// Runs `body`. Returns a message if it takes too much time or memory.
fn run(what: &str, body: impl FnOnce()) -> Option<String> {
    let clock = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    // This resets the peak of the memory (VmHWM).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, started) = (status("VmRSS"), clock());
    body();
    let (time, memory) = (clock() - started, status("VmHWM").saturating_sub(before));
    println!("{what}: {time:?}, {memory} KB");
    (time > MOST_TIME || memory > MOST_KB).then(|| format!("{what}: {time:?}, {memory} KB\n"))
}

/// A hostile object, its report as JSON, and the error at the end of the report, which has exit code 4.
fn refused(name: &str) -> (Vec<u8>, serde_json::Value, String) {
    let (_, bytes) = hostile::all().into_iter().find(|(one, _)| *one == name).unwrap();
    let (text, error) = report(&bytes, true);
    assert_eq!(xctl::error::Exit::code_of(&error), 4);
    (bytes, serde_json::from_str(&text).unwrap(), format!("{error:#}"))
}

/// The report on an object with its own types as the kernel's, and the error at its end.
fn report(bytes: &[u8], json: bool) -> (String, anyhow::Error) {
    let own = object::elf::section(bytes, ".BTF").unwrap().unwrap();
    let target = || Ok(Some((object::Btf::parse(own)?, "its own types".to_owned())));
    let mut out = Vec::new();
    let error = commands::inspect::report(bytes, "object", target, None, json, &mut out).unwrap_err();
    (String::from_utf8(out).unwrap(), error)
}

#[test]
fn a_too_complex_object_is_reported_with_the_number_of_relocations_left() {
    let _alone = ALONE.lock();
    let (bytes, document, error) = refused("accesses");
    let told = document["relocations"].as_array().unwrap();
    let left = document["not_looked_at"].as_u64().unwrap();
    // Each relocation has its own instruction, and the last instruction is the program's exit.
    let insns = document["programs"][0]["insns"].as_u64().unwrap();
    assert_eq!((told.len() as u64 + left, !told.is_empty(), left > 0), (insns - 1, true, true));
    assert_eq!((&document["relocations_total"], &document["applied"]), (&(insns - 1).into(), &told.len().into()));
    assert_eq!((&document["refused"], document["problems"].as_array().unwrap().len()), (&0.into(), 0));
    assert!(document["runs"].is_null());
    let why = document["ended"].as_str().unwrap();
    let first = told.len();
    assert!(why.starts_with(&format!("program program, instruction {first}, ")), "{why}");
    assert!(why.contains(&format!(" {left} relocations, were not looked at")), "{why}");
    assert!(error.ends_with(why), "{error}");

    let (text, _) = report(&bytes, false);
    assert!(text.contains(&format!(", {left} not looked at\n")), "{text}");
    assert!(text.starts_with(&format!("verdict      not decided: {why}\n")), "{text}");
}

#[test]
fn problems_are_counted_beyond_those_that_are_listed() {
    let _alone = ALONE.lock();
    let (bytes, document, error) = refused("long_file_name");
    let (refused, listed) = (document["refused"].as_u64().unwrap(), document["problems"].as_array().unwrap().len());
    assert_eq!((refused > 10_000, listed), (true, 100));
    assert_eq!(document["more_problems"], refused - 100);
    assert!(document["ended"].is_null());
    assert!(error.ends_with(&format!(" (and {} more)", refused - 1)), "{error}");
    let (text, _) = report(&bytes, false);
    assert!(text.contains(&format!("\n  and {} more\n", refused - 100)), "{text}");
}

#[test]
fn every_file_costs_little_time_and_memory() {
    let _alone = ALONE.lock();
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    let mut wrong = String::new();
    for (name, body) in TARGETS {
        let mut files: Vec<_> = fs::read_dir(seeds.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{name}");
        for file in files {
            let bytes = fs::read(&file).unwrap();
            wrong.extend(run(&file.display().to_string(), || body(&bytes)));
        }
    }
    for (name, bytes) in hostile::all() {
        wrong.extend(run(name, || bodies::elf(&bytes)));
        // An object finds the most matches in its own types.
        let Some(types) = object::elf::section(&bytes, ".BTF").unwrap() else { continue };
        let length = u32::try_from(bytes.len()).unwrap().to_le_bytes();
        let both = [&length, bytes.as_slice(), types].concat();
        wrong.extend(run(&format!("{name}, with its own types"), || bodies::resolver(&both)));
    }
    assert!(wrong.is_empty(), "too much for\n{wrong}");
}
