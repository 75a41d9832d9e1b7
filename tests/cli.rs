//! The command line as a user meets it, without privilege: refusals, their messages and exit codes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use xctl::kernel::source::KERNEL_BTF;
use xctl::model::embedded;

#[path = "kernel/altered.rs"]
mod altered;

/// The exit codes of the contract.
const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const HOST: i32 = 3;
const OBJECT: i32 = 4;

/// The binary under test: the release binary that XCTL names, or else the one that cargo built along with the tests.
fn binary() -> PathBuf {
    std::env::var_os("XCTL").unwrap_or_else(|| env!("CARGO_BIN_EXE_xctl").into()).into()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null());
    command
}

fn xctl(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

/// A file that is removed with the test.
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

/// Checks that `xctl trace` refuses this object with exit code 4 and one message that contains all of `words`.
fn refused(name: &str, bytes: &[u8], words: &[&str]) {
    let file = Temporary::new(name, bytes);
    let path = file.0.to_str().unwrap();
    // With --dry-run xctl ends even if it does not refuse the object.
    let output = xctl(&["trace", "--dry-run", "--object", path]);
    assert_eq!(output.stdout, b"", "{name}");
    says(name, &output, path, words);
}

/// Checks that xctl ended with exit code 4 and one message that contains the object's path and all of `words`.
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
fn a_file_that_is_no_object_is_refused_with_one_message() {
    refused("text", b"This is no object.\n", &["not an ELF file"]);
    refused("empty", b"", &["not an ELF file"]);
    refused("x86", &fs::read(binary()).unwrap(), &["x86-64"]);
}

#[test]
fn rust_backtrace_does_not_change_the_exit_code() {
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

/// For `inspect` and `btf`, reading types is the task (exit code 1). For the other commands, types are a feature of the
/// host (exit code 3).
#[test]
fn unusable_btf_is_named_with_the_exit_code_of_the_command() {
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
        // /run/netns/NAME is such a file when its mount is gone
        &["trace", "--netns", "/dev/null"],
        &["trace", "--netns", "/proc/self/ns/mnt"],
        &["trace", "--events", "send", "--kind", "rto"],
        &["trace", "--events", "send,connection", "--kind", "rto"],
        &["trace", "--events", "send,guess"],
        &["trace", "--record", "-"],
        &["sockets", "--kind", "rto"],
        &["report"],
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

/// Names and times in the records are anybody's text. Python's parser reads the picture: it is XML, and has the text as text.
#[test]
fn a_picture_of_anybodys_text_is_xml() {
    const PARSE: &str = "import sys, xml.etree.ElementTree as tree\n\
                         root = tree.fromstring(sys.stdin.buffer.read())\n\
                         print(root.tag)\n\
                         for text in root.iter('{http://www.w3.org/2000/svg}text'): print(text.text)";
    let lost = r#"{"perf":0,"output":0,"map_full":0,"unknown":0,"unattributed":0,"totals":0,"ledger":0,"missed":0}"#;
    let lines = [
        r#"{"type":"ready","schema":1,"attach":"]]>","version":"<!--"}"#.to_owned(),
        format!(r#"{{"type":"interval","time":"\"&lt;","interval_us":1000000,"lost":{lost}}}"#),
        r#"{"type":"process","pid":7,"comm":"</text><b>\u0000\u001b\ufffe&","segs":0,"bytes":0,"retransmits":0}"#
            .to_owned(),
    ];
    let file = Temporary::new("picture", (lines.join("\n") + "\n").as_bytes());
    let output = xctl(&["report", "--svg", file.0.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut python = Command::new("python3");
    python.args(["-c", PARSE]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut python) = python.spawn() else {
        println!("skipped: no python3");
        return;
    };
    python.stdin.take().unwrap().write_all(&output.stdout).unwrap();
    let parsed = python.wait_with_output().unwrap();
    let said = String::from_utf8(parsed.stdout).unwrap();
    assert!(parsed.status.success() && said.starts_with("{http://www.w3.org/2000/svg}svg\n"), "{said}");
    for text in ["</text><b>& (7)", "xctl <!--, hooks ]]>", "until \"&lt; UTC"] {
        assert!(said.contains(text), "{text}: {said}");
    }
}

#[test]
fn a_full_disk_is_named() {
    for arguments in [&["inspect"][..], &["btf", "struct sock_common"], &["doctor"], &["doctor", "--json"]] {
        let full = fs::File::create("/dev/full").unwrap();
        let output = Command::new(binary()).args(arguments).stdout(full).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(FAILED), "{arguments:?}: {message}");
        assert!(message.contains("standard output") && message.contains("No space left"), "{arguments:?}: {message}");
    }
}

#[test]
fn the_exit_code_holds_if_standard_error_is_not_writable() {
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
fn running_out_of_memory_is_one_message_and_exit_code_1() {
    let output = Command::new("sh").args(["-c", "ulimit -d 1000; exec \"$0\" inspect"]).arg(binary()).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(FAILED), "{message}");
    assert!(message.starts_with("xctl: out of memory: ") && message.lines().count() == 1, "{message}");
}

#[test]
fn memory_is_limited_while_files_are_read() {
    let fifo = Temporary(std::env::temp_dir().join(format!("xctl-cli-{}-fifo", std::process::id())));
    mkfifo(&fifo.0, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let mut inspect =
        command(&["inspect", fifo.0.to_str().unwrap()]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // This waits until xctl opens the file. Then xctl waits for its content.
    let writer = fs::File::create(&fifo.0).unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", inspect.id())).unwrap();
    drop(writer);
    assert_eq!(inspect.wait().unwrap().code(), Some(OBJECT));
    let data = limits.lines().find(|line| line.starts_with("Max data size")).unwrap();
    assert_eq!(data.split_whitespace().nth(3).unwrap(), (1024 << 20).to_string(), "{limits}");
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
            // Without privilege xctl does not load: a case of tests/kernel checks that half.
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
fn maps_that_differ_from_the_loaders_are_refused() {
    for altered in altered::maps() {
        let words: Vec<&str> = altered.words.iter().map(String::as_str).collect();
        refused(&altered.what.replace(' ', "-"), &altered.bytes, &words);
    }
}

#[test]
fn a_refused_run_is_recorded_too() {
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
fn an_unwritable_record_is_wrong_usage() {
    for (file, why) in [("/nonexistent/record.json", "No such file"), ("/dev/null", "not a regular file")] {
        let output = xctl(&["trace", "--dry-run", "--record", file]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(USAGE), "{message}");
        assert!(message.contains(file) && message.contains(why) && message.lines().count() == 1, "{message}");
    }
}
