//! The command line as a user meets it, without privilege: what is refused, with which message and exit code.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use xctl::embedded;
use xctl::object::KERNEL_BTF;

#[path = "kernel/altered.rs"]
mod altered;

/// Exit codes of the contract.
const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const HOST: i32 = 3;
const OBJECT: i32 = 4;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xctl"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn xctl(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// A file that is gone with the test.
struct Temporary(PathBuf);

impl Temporary {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("xctl-cli-{}-{name}", std::process::id()));
        fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        Self(path)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// `xctl trace` refuses this object with exit code 4 and one message that holds all of `words`.
fn refused(name: &str, bytes: &[u8], words: &[&str]) {
    let file = Temporary::new(name, bytes);
    let path = file.0.to_str().unwrap();
    // Were it not refused, it would end all the same.
    let output = xctl(&["trace", "--dry-run", "--object", path]);
    assert_eq!(output.stdout, b"", "{name}");
    says(name, &output, path, words);
}

/// It ended with exit code 4 and one message that holds the object's path and all of `words`.
fn says(name: &str, output: &Output, path: &str, words: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(OBJECT), "{name}: {message}");
    assert_eq!(message.lines().count(), 1, "{name}: {message}");
    assert!(message.contains(path), "{name}: {message}");
    for word in words {
        assert!(message.contains(word), "{name}: no {word:?} in {message}");
    }
}

#[test]
fn an_object_that_is_none_is_refused_with_one_message() {
    refused("text", b"This is no object.\n", &["not an ELF file"]);
    refused("empty", b"", &["not an ELF file"]);
    refused("x86", &fs::read(env!("CARGO_BIN_EXE_xctl")).unwrap(), &["x86-64"]);
}

#[test]
fn an_error_is_an_error_where_traces_of_the_stack_are_asked_for() {
    let output = command(&["trace", "--object", "/dev/null"]).env("RUST_BACKTRACE", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(OBJECT), "{output:?}");
}

#[test]
fn a_truncated_object_is_refused_wherever_it_ends() {
    let object = embedded::object().unwrap();
    refused("truncated", &object[..object.len() / 2], &["truncated: the section header table"]);
    for length in (0..object.len()).step_by(object.len() / 40) {
        let file = Temporary::new(&format!("truncated-{length}"), &object[..length]);
        let output = xctl(&["trace", "--object", file.0.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(OBJECT), "{length}: {output:?}");
    }
}

#[test]
fn an_object_of_another_program_is_refused() {
    // The same object with one field of an event struct renamed, so that layouts differ.
    let mut object = embedded::object().unwrap();
    let at = object.windows(8).position(|window| window == b"\0srtt_us").unwrap();
    object[at + 1] = b'x';
    refused("other", &object, &["retransmit_event", "xrtt_us"]);
}

#[test]
fn a_missing_object_is_named() {
    for arguments in [&["trace", "--object"][..], &["inspect"], &["btf", "--min", "/dev/null", "--object"]] {
        let output = xctl(&[arguments, &["/nonexistent/object.o"]].concat());
        assert_eq!(output.status.code(), Some(FAILED), "{arguments:?}");
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains("cannot read /nonexistent/object.o: No such file"), "{arguments:?}: {message}");
    }
}

/// To read types is what `inspect` and `btf` do; to the others they are what the host must have.
#[test]
fn types_that_are_none_are_named_with_the_exit_code_of_what_they_are_for() {
    let corrupt = Temporary::new("corrupt", b"\x9f\xeb\x01\x00 twenty bytes of what is no BTF");
    let corrupt = corrupt.0.to_str().unwrap();
    for (file, what) in [("/nonexistent", "No such file"), ("/dev/null", "holds no BTF"), (corrupt, "not valid BTF")] {
        for (arguments, code) in [
            (&["inspect"][..], FAILED),
            (&["btf", "struct sock"], FAILED),
            (&["trace", "--dry-run"], HOST),
            (&["sockets"], HOST),
            (&["doctor"], HOST),
        ] {
            let output = xctl(&[arguments, &["--btf", file]].concat());
            assert_eq!(output.status.code(), Some(code), "{arguments:?}, {file}");
            let said = [output.stderr, output.stdout].concat();
            let said = String::from_utf8_lossy(&said);
            let privileged = !said.contains("missing CAP_");
            assert!(!privileged || said.contains(what) && said.contains(file), "{arguments:?}, {file}: {said}");
            assert!(!said.contains("CONFIG_DEBUG_INFO_BTF"), "{arguments:?}, {file}: {said}");
        }
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for arguments in [
        &["--no-such-option"][..],
        &["no-such-command"],
        &["trace", "--count", "-1"],
        &["trace", "--attach", "guess"],
        &["trace", "--netns", "/nonexistent"],
        // as /run/netns/NAME is when its mount is gone
        &["trace", "--netns", "/dev/null"],
        &["trace", "--netns", "/proc/self/ns/mnt"],
        &["trace", "--events", "send", "--kind", "rto"],
        &["trace", "--record", "-"],
        &["sockets", "--kind", "rto"],
        &["btf"],
        &["btf", "struct sock: +"],
        &["btf", "--object", "/dev/null"],
        &["btf", "--object", "/dev/null", "struct sock"],
    ] {
        let output = xctl(arguments);
        assert_eq!(output.status.code(), Some(USAGE), "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_full_disk_is_named() {
    for arguments in [&["inspect"][..], &["btf", "struct sock_common"], &["doctor"], &["doctor", "--json"]] {
        let full = fs::File::create("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_xctl")).args(arguments).stdout(full).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(FAILED), "{arguments:?}: {message}");
        assert!(message.contains("standard output") && message.contains("No space left"), "{arguments:?}: {message}");
    }
}

#[test]
fn the_exit_code_holds_where_nothing_can_be_said() {
    let no_netns = ["trace", "--netns", "/nonexistent"];
    let no_object = ["trace", "--object", "/dev/null"];
    let no_btf = ["doctor", "--btf", "/dev/null"];
    for (arguments, code) in [(&no_netns[..], USAGE), (&no_btf, HOST), (&no_object, OBJECT)] {
        let full = fs::File::create("/dev/full").unwrap();
        let status = command(arguments).stdout(Stdio::null()).stderr(full).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}: {status}");
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        let status = command(arguments).stdout(Stdio::null()).stderr(closed).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}: {status}");
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for arguments in [&["--help"][..], &["trace", "--help"], &["btf", "--help"], &["--version"]] {
        let output = xctl(arguments);
        assert_eq!(output.status.code(), Some(DONE), "{arguments:?}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn every_option_of_the_contract_is_there() {
    let help = String::from_utf8(xctl(&["trace", "--help"]).stdout).unwrap();
    for option in [
        "--json",
        "--attach",
        "--events",
        "--duration",
        "--count",
        "--pid",
        "--comm",
        "--port",
        "--netns",
        "--cgroup",
        "-4",
        "-6",
        "--kind",
        "--max-sockets",
        "--perf-pages",
        "--object",
        "--btf",
        "--verify",
        "--record",
        "--dry-run",
        "--strict",
    ] {
        assert!(help.contains(option), "{option}");
    }
}

#[test]
fn altered_objects_are_refused_and_the_place_is_named() {
    let all = altered::all();
    assert!(all.len() > 5);
    for altered in &all {
        let name = altered.what.replace(' ', "-");
        let mut words: Vec<&str> = altered.words.iter().map(String::as_str).collect();
        match altered.on_loading {
            None => refused(&name, &altered.bytes, &words),
            // Without privilege it does not come to loading: that half is a case of tests/kernel.
            Some(_) if !Path::new(KERNEL_BTF).exists() => {
                println!("{name}: skipped, for `inspect` needs {KERNEL_BTF}");
                continue;
            }
            Some(what) => words = vec![altered::LOADED, "instruction", what],
        }
        let file = Temporary::new(&name, &altered.bytes);
        let path = file.0.to_str().unwrap();
        says(&name, &xctl(&["inspect", path]), path, &words);
    }
}

#[test]
fn maps_that_are_not_what_the_loader_reads_are_refused() {
    for altered in altered::maps() {
        let words: Vec<&str> = altered.words.iter().map(String::as_str).collect();
        refused(&altered.what.replace(' ', "-"), &altered.bytes, &words);
    }
}

#[test]
fn a_run_that_is_refused_is_recorded_too() {
    let object = Temporary::new("recorded.o", b"This is no object.\n");
    let record = Temporary::new("recorded.json", b"of an earlier run");
    let (object, file) = (object.0.to_str().unwrap(), record.0.to_str().unwrap());
    let output = xctl(&["trace", "--object", object, "--record", file]);
    assert_eq!(output.status.code(), Some(OBJECT), "{output:?}");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_eq!((&record["exit_code"], &record["calls_total"]), (&4.into(), &0.into()));
    let error = record["error"].as_str().unwrap();
    assert!(error.contains("not an ELF file") && String::from_utf8_lossy(&output.stderr).contains(error), "{error}");
    assert_eq!(record["object"]["bytes"], 19);
    assert!(!std::path::Path::new(&format!("{file}.partial")).exists());
}

#[test]
fn a_record_that_cannot_be_written_is_wrong_usage_and_nothing_is_done() {
    for (file, why) in [("/nonexistent/record.json", "No such file"), ("/dev/null", "not a regular file")] {
        let output = xctl(&["trace", "--dry-run", "--record", file]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(USAGE), "{message}");
        assert!(message.contains(file) && message.contains(why) && message.lines().count() == 1, "{message}");
    }
}
