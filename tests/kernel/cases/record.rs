//! `--dry-run`, `--record` and `--strict`. The record is compared with the calls that ptrace and strace see in the same
//! run, and with bpftool's view of the same kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use libbpf_sys as sys;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::ends::bpf_objects;
use super::refusals::Btf;
use super::without_btf::hidden;
use crate::host::{Set, has_symbol, tool};
use crate::process::{Process, poll};
use crate::tracee::{self, BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_LOAD, Call, watch};
use crate::tracefs::{self, private_mounts};
use crate::xctl::{Xctl, command, refusal};
use crate::{Family, Outcome, Verdict, altered, schema};

/// A folder that is removed with the case.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("xctl-record-{}", std::process::id()));
        fs::create_dir_all(&path).context("making a folder")?;
        Ok(Self(path))
    }

    fn file(&self, name: &str) -> (PathBuf, String) {
        let path = self.0.join(name);
        let text = path.display().to_string();
        (path, text)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Reads a record. An error unless it fits the schema, and only its owner may read it.
fn read(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let record: Value = serde_json::from_slice(&bytes).context("the record is no JSON")?;
    let schema: Value = serde_json::from_str(xctl::audit::SCHEMA)?;
    schema::check(&schema, &record)?;
    let mode = fs::metadata(path)?.mode() & 0o777;
    ensure!(mode == 0o600, "its mode is {mode:o}");
    ensure!(!path.with_extension("json.partial").exists(), "the partial file is still there");
    let calls = list(&record, "calls")?;
    ensure!(record["calls_total"] == calls.len(), "calls_total is {}", record["calls_total"]);
    let numbered = calls.iter().zip(1..).all(|(call, number)| call["number"] == number);
    ensure!(numbered, "its calls are not numbered from 1");
    Ok(record)
}

fn list<'v>(value: &'v Value, name: &str) -> Result<&'v Vec<Value>> {
    value[name].as_array().with_context(|| format!("no list {name}"))
}

/// The commands of bpf(2), by the kernel's own header.
const COMMANDS: [(u32, &str); 20] = [
    (sys::BPF_MAP_CREATE, "BPF_MAP_CREATE"),
    (sys::BPF_MAP_LOOKUP_ELEM, "BPF_MAP_LOOKUP_ELEM"),
    (sys::BPF_MAP_UPDATE_ELEM, "BPF_MAP_UPDATE_ELEM"),
    (sys::BPF_MAP_DELETE_ELEM, "BPF_MAP_DELETE_ELEM"),
    (sys::BPF_MAP_GET_NEXT_KEY, "BPF_MAP_GET_NEXT_KEY"),
    (sys::BPF_MAP_LOOKUP_BATCH, "BPF_MAP_LOOKUP_BATCH"),
    (sys::BPF_PROG_TEST_RUN, "BPF_PROG_TEST_RUN"),
    (sys::BPF_MAP_FREEZE, "BPF_MAP_FREEZE"),
    (sys::BPF_PROG_LOAD, "BPF_PROG_LOAD"),
    (sys::BPF_BTF_LOAD, "BPF_BTF_LOAD"),
    (sys::BPF_OBJ_GET_INFO_BY_FD, "BPF_OBJ_GET_INFO_BY_FD"),
    (sys::BPF_RAW_TRACEPOINT_OPEN, "BPF_RAW_TRACEPOINT_OPEN"),
    (sys::BPF_LINK_CREATE, "BPF_LINK_CREATE"),
    (sys::BPF_ITER_CREATE, "BPF_ITER_CREATE"),
    (sys::BPF_PROG_BIND_MAP, "BPF_PROG_BIND_MAP"),
    (sys::BPF_TOKEN_CREATE, "BPF_TOKEN_CREATE"),
    (sys::BPF_BTF_GET_FD_BY_ID, "BPF_BTF_GET_FD_BY_ID"),
    (sys::BPF_BTF_GET_NEXT_ID, "BPF_BTF_GET_NEXT_ID"),
    (sys::BPF_LINK_DETACH, "BPF_LINK_DETACH"),
    (sys::BPF_TASK_FD_QUERY, "BPF_TASK_FD_QUERY"),
];

/// The part of a call that two witnesses can agree on: its name, its command, its result and its errno.
type Seen = (String, String, i64, String);

fn of_record(call: &Value) -> Seen {
    let text = |name: &str| call[name].as_str().unwrap_or_default().to_owned();
    (text("call"), text("command"), call["result"].as_i64().unwrap_or(i64::MIN), text("errno"))
}

fn of_ptrace(call: &Call) -> Seen {
    let command = match call.name {
        "bpf" => {
            COMMANDS.iter().find(|(number, _)| u64::from(*number) == call.arguments[0]).map_or("?", |(_, name)| name)
        }
        "ioctl" => match call.arguments[1] & 0xff {
            0 => "PERF_EVENT_IOC_ENABLE",
            5 => "PERF_EVENT_IOC_SET_OUTPUT",
            8 => "PERF_EVENT_IOC_SET_BPF",
            _ => "?",
        },
        _ => "",
    };
    let errno = match call.result {
        0.. => String::new(),
        -524 => "ENOTSUPP".to_owned(),
        result => format!("{:?}", Errno::from_raw(-result as i32)),
    };
    (call.name.to_owned(), command.to_owned(), call.result.max(-1), errno)
}

/// The attributes and arguments of a call, each with its path in the record. Their layout is that of the kernel's headers
/// (include/uapi/linux/bpf.h, perf_event.h).
fn given(call: &Call) -> Vec<(&'static str, Value)> {
    let [_, one, two, three, four] = call.arguments;
    let signed = |word: u64| Value::from(word as i32);
    let (mut words, mut descriptors, mut longs, mut others) = (vec![], vec![], vec![], vec![]);
    match call.name {
        "bpf" => match u32::try_from(call.arguments[0]).unwrap_or(u32::MAX) {
            sys::BPF_MAP_CREATE => {
                words = vec![("key_size", 4), ("value_size", 8), ("max_entries", 12), ("map_flags", 16)];
                words.extend([("btf_key_type_id", 52), ("btf_value_type_id", 56)]);
                descriptors = vec![("inner_map_fd", 20), ("btf_fd", 48)];
                others = vec![("map_name", call.text(28).into())];
            }
            sys::BPF_MAP_UPDATE_ELEM => (descriptors, longs) = (vec![("map_fd", 0)], vec![("flags", 24)]),
            sys::BPF_MAP_FREEZE | sys::BPF_MAP_LOOKUP_ELEM => descriptors = vec![("map_fd", 0)],
            sys::BPF_PROG_LOAD => {
                words = vec![("insn_cnt", 4), ("log_level", 24), ("log_size", 28), ("kern_version", 40)];
                words.extend([("prog_flags", 44), ("expected_attach_type", 68), ("attach_btf_id", 108)]);
                words.extend([("func_info_cnt", 88), ("line_info_cnt", 104)]);
                descriptors = vec![("prog_btf_fd", 72), ("attach_btf_obj_fd", 112)];
                let code: String = call.insns.iter().map(|byte| format!("{byte:02x}")).collect();
                others = vec![("prog_name", call.text(48).into())];
                others.push(("insns/code", code.into()));
            }
            sys::BPF_OBJ_GET_INFO_BY_FD => (descriptors, words) = (vec![("bpf_fd", 0)], vec![("info_len", 4)]),
            sys::BPF_RAW_TRACEPOINT_OPEN => descriptors = vec![("prog_fd", 8)],
            sys::BPF_LINK_CREATE => {
                descriptors = vec![("prog_fd", 0), ("target_fd", 4)];
                words = vec![("attach_type", 8), ("flags", 12)];
            }
            sys::BPF_ITER_CREATE => (descriptors, words) = (vec![("link_fd", 0)], vec![("flags", 4)]),
            sys::BPF_PROG_BIND_MAP => descriptors = vec![("prog_fd", 0), ("map_fd", 4)],
            sys::BPF_BTF_LOAD => words = vec![("btf_size", 16), ("btf_log_size", 20), ("btf_log_level", 24)],
            _ => {}
        },
        "perf_event_open" => {
            words = vec![("type", 0), ("size", 4), ("wakeup_events", 48)];
            longs = vec![("config", 8), ("sample_period", 16), ("sample_type", 24), ("bits", 40)];
            others = vec![("pid", signed(one)), ("cpu", signed(two)), ("group_fd", signed(three))];
            others.push(("flags", four.into()));
        }
        _ => others = vec![("fd", signed(call.arguments[0])), ("argument", two.into())],
    }
    let there = |at: usize, size: usize| call.attributes.len() >= at + size;
    let words = words.into_iter().filter(|(_, at)| there(*at, 4)).map(|(name, at)| (name, call.word(at).into()));
    let descriptors = descriptors.into_iter().filter(|(_, at)| there(*at, 4));
    let descriptors = descriptors.map(|(name, at)| (name, signed(call.word(at).into())));
    let longs = longs.into_iter().filter(|(_, at)| there(*at, 8)).map(|(name, at)| (name, call.long(at).into()));
    words.chain(descriptors).chain(longs).chain(others).collect()
}

fn same(record: &[Seen], witness: &[Seen], who: &str) -> Result<()> {
    for (number, (one, other)) in record.iter().zip(witness).enumerate() {
        ensure!(one == other, "call {}: the record says {one:?}, {who} {other:?}", number + 1);
    }
    let (ours, theirs) = (record.len(), witness.len());
    ensure!(ours == theirs, "the record has {ours} calls, {who} saw {theirs}");
    Ok(())
}

/// The arguments of xctl, with enough room for the host's other connections.
fn arguments<'a>(set: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["trace", "--json", "--attach", set, "--max-sockets", "32768"], more].concat()
}

/// The record has every call, in order, with its input and its output.
pub fn calls(set: Set, _family: Family) -> Outcome {
    // A separate thread: only it, and processes that it starts, see the changed mounts.
    thread::spawn(move || calls_without_symbols(set)).join().map_err(|_| anyhow!("the thread panicked"))?
}

/// Without kallsyms, addresses are unknown.
fn calls_without_symbols(set: Set) -> Outcome {
    private_mounts()?;
    mount(Some("/dev/null"), "/proc/kallsyms", None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .context("hiding kallsyms")?;
    let scratch = Scratch::new()?;
    let (path, file) = scratch.file("calls.json");
    let attach = set.to_string();
    let xctl = command(&arguments(&attach, &["--duration", "0.1", "--record", &file]))?;
    let (mut process, witness) = watch("xctl", &xctl, |_, _| Ok(()))?;
    process.succeed()?;
    let record = read(&path)?;
    ensure!(record["exit_code"] == 0 && record["error"].is_null(), "it says that it failed: {}", record["error"]);
    ensure!(record["proven"] == true, "not proven: {}", record["unproven"]);
    let calls = list(&record, "calls")?;
    let (ours, theirs) =
        (calls.iter().map(of_record).collect::<Vec<_>>(), witness.iter().map(of_ptrace).collect::<Vec<_>>());
    same(&ours, &theirs, "ptrace")?;
    for (call, seen) in calls.iter().zip(&witness) {
        let attributes = &call["attributes"];
        ensure!(call["size"] == seen.attributes.len(), "{call} had {} bytes", seen.attributes.len());
        for (name, value) in given(seen) {
            let shown = attributes.pointer(&format!("/{name}"));
            ensure!(shown == Some(&value), "{name} of {call} was {value}");
        }
    }
    let hooks = list(&record, "hooks")?;
    ensure!(!hooks.is_empty() && hooks.iter().all(|hook| hook["address"].is_null()), "{hooks:?}");
    let by = |who: &str| calls.iter().filter(|call| call["by"] == who).count();
    let (probes, libbpf, own) = (by("libbpf_probe"), by("libbpf"), by("xctl"));
    ensure!(probes > 0 && libbpf > 0 && own > 0, "{probes} probes, {libbpf} of libbpf, {own} of xctl");
    // A probe has nothing of the object in it; each of libbpf's other calls has only parts of the object.
    let names: BTreeSet<&str> = list(&record, "programs")?.iter().filter_map(|p| p["name"].as_str()).collect();
    let loads = calls.iter().filter(|call| call["command"] == "BPF_PROG_LOAD");
    for load in loads {
        let name = load["attributes"]["prog_name"].as_str().unwrap_or_default();
        let of_object = !name.is_empty() && names.iter().any(|whole| whole.starts_with(name));
        ensure!(load["by"] != "libbpf_probe" || !of_object, "{load}");
    }
    let attempts = list(&record, "attempts")?.len();
    Ok(Verdict::Passed(format!(
        "{} calls as ptrace saw them, {probes} of them probes, {attempts} attempts",
        ours.len()
    )))
}

fn installed(tool: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(tool)).find(|path| path.exists())
}

/// An independent validator accepts records as valid for their schema, including the record of a failed run.
pub fn schema(_set: Set, _family: Family) -> Outcome {
    let Some(validator) = installed("jsonschema") else {
        return Ok(Verdict::Skipped("this host has no jsonschema".into()));
    };
    let scratch = Scratch::new()?;
    let ((path, file), (schema, schema_file)) = (scratch.file("record.json"), scratch.file("schema.json"));
    fs::write(&schema, xctl::audit::SCHEMA)?;
    let accepts = || -> Result<bool> {
        let output =
            Command::new(&validator).args(["-i", &file, &schema_file]).output().context("starting jsonschema")?;
        Ok(output.status.success())
    };
    for (more, code) in [(&["--dry-run"][..], 0), (&["--object", "/dev/null"], 4)] {
        let xctl = command(&arguments("auto", &[more, &["--record", &file]].concat()))?;
        let status = Process::start("xctl", xctl)?.wait()?;
        ensure!(status.code() == Some(code), "{more:?}: it ended with {status}");
        ensure!(accepts()?, "{more:?}: the validator refuses the record");
    }
    // This shows that the check above can fail.
    let mut record = read(&path)?;
    record["proven"] = Value::from("perhaps");
    fs::write(&path, record.to_string())?;
    ensure!(!accepts()?, "the validator takes anything");

    // The output: a list of records, by the schema of one.
    let mut of_list: Value = serde_json::from_str(xctl::output::SCHEMA)?;
    let one = of_list.as_object_mut().and_then(|schema| schema.remove("anyOf")).context("no anyOf")?;
    of_list["type"] = "array".into();
    of_list["items"] = serde_json::json!({ "anyOf": one });
    fs::write(&schema, of_list.to_string())?;
    let trace = ["--events", "all", "--verify", "--duration", "1"];
    let mut records = vec![];
    for args in [
        arguments("auto", &trace),
        vec!["sockets", "--json", "--stats"],
        vec!["top", "--json", "--duration", "1", "--interval", "0.3"],
    ] {
        let output = command(&args)?.output().context("starting xctl")?;
        for line in std::str::from_utf8(&output.stdout)?.lines() {
            records.push(schema::record(line)?);
        }
    }
    fs::write(&path, Value::from(records.clone()).to_string())?;
    ensure!(accepts()?, "the validator refuses the output");
    records[0]["proven"] = "perhaps".into();
    fs::write(&path, Value::from(records.clone()).to_string())?;
    ensure!(!accepts()?, "the validator takes any output");
    Ok(Verdict::Passed(format!("as the schemas say; {} records of output", records.len())))
}

/// The record has every call that strace sees, if there is a strace.
pub fn strace(_set: Set, _family: Family) -> Outcome {
    let Some(strace) = installed("strace") else { return Ok(Verdict::Skipped("this host has no strace".into())) };
    let scratch = Scratch::new()?;
    let (path, file) = scratch.file("calls.json");
    let (seen, log) = scratch.file("strace");
    let xctl = command(&arguments("auto", &["--duration", "0.1", "--record", &file]))?;
    let mut traced = Command::new(strace);
    // a file for each thread: otherwise strace splits a line when another thread makes a call
    traced.args(["-ff", "-e", "trace=bpf,perf_event_open,ioctl", "-o", &log]);
    traced.arg(xctl.get_program()).args(xctl.get_args());
    Process::start("strace", traced)?.succeed()?;
    let record = read(&path)?;
    let ours: Vec<_> = list(&record, "calls")?.iter().map(of_record).collect();
    let folder = fs::read_dir(seen.parent().context("a file in no folder")?)?;
    let logs = folder.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let logs = logs.iter().filter(|log| log.file_stem() == seen.file_stem() && log.extension() != seen.extension());
    let mut threads = vec![];
    for log in logs {
        let log = fs::read_to_string(log)?;
        let calls = log.lines().filter_map(|line| of_strace(line).transpose()).collect::<Result<Vec<_>>>()?;
        threads.extend((!calls.is_empty()).then_some(calls));
    }
    ensure!(threads.len() == 1, "{} threads made calls", threads.len());
    same(&ours, &threads.concat(), "strace")?;
    Ok(Verdict::Passed(format!("{} calls as strace saw them", ours.len())))
}

/// Parses a line of strace: `bpf(BPF_MAP_FREEZE, {map_fd=15}, 4) = 0`. None for a call that does not matter here.
fn of_strace(line: &str) -> Result<Option<Seen>> {
    let what = || format!("strace said {line:?}");
    let Some((name, rest)) = line.split_once('(') else { return Ok(None) };
    let (arguments, result) = rest.rsplit_once(" = ").with_context(what)?;
    let mut words = result.split(' ');
    let result: i64 = words.next().and_then(|word| word.parse().ok()).with_context(what)?;
    let errno = if result < 0 { words.next().unwrap_or_default() } else { "" };
    let command = match name {
        "bpf" => arguments.split(',').next().unwrap_or_default().to_owned(),
        "ioctl" => arguments.split(", ").nth(1).unwrap_or_default().to_owned(),
        _ => String::new(),
    };
    // strace prints commands that it does not know as numbers.
    let number = command.strip_prefix("0x").and_then(|hex| u32::from_str_radix(hex.split(' ').next()?, 16).ok());
    let known = number.and_then(|number| COMMANDS.iter().find(|(known, _)| *known == number));
    let command = known.map_or(command, |(_, name)| (*name).to_owned());
    if name == "ioctl" && !command.starts_with("PERF_EVENT_IOC") {
        return Ok(None);
    }
    Ok(Some((name.to_owned(), command, result, errno.to_owned())))
}

fn bpftool(kind: &str) -> Result<BTreeMap<u64, Value>> {
    let output = tool("bpftool").args(["-j", kind, "show"]).output().context("starting bpftool")?;
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).context("bpftool's answer")?;
    Ok(all.into_iter().filter_map(|one| Some((one["id"].as_u64()?, one))).collect())
}

/// The record agrees with bpftool and kallsyms about programs, maps and symbols.
pub fn facts(set: Set, _family: Family) -> Outcome {
    let scratch = Scratch::new()?;
    let (path, file) = scratch.file("facts.json");
    let xctl = Xctl::start(set, &["--record", &file])?;
    let (programs, maps) = (bpftool("prog")?, bpftool("map")?);
    let (ready_hooks, sha256) = (xctl.ready.hooks.clone(), xctl.ready.object_sha256.clone());
    ensure!(!path.exists(), "the record is there before the run is over");
    xctl.stop(Signal::SIGINT)?;
    let record = read(&path)?;
    ensure!(record["object"]["sha256"] == sha256, "the object is {}", record["object"]);
    let btf = fs::read("/sys/kernel/btf/vmlinux")?;
    ensure!(record["btf"]["bytes"] == btf.len(), "the BTF is {}", record["btf"]);
    let (object, object_file) = scratch.file("object.o");
    fs::write(object, xctl::model::embedded::object()?)?;
    for (what, file) in [("object", object_file.as_str()), ("btf", "/sys/kernel/btf/vmlinux")] {
        let output = Command::new("sha256sum").arg(file).output().context("starting sha256sum")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let sum = said.split_whitespace().next().unwrap_or_default();
        ensure!(record[what]["sha256"] == sum, "{what} is {}, and sha256sum says {said:?}", record[what]);
    }
    let needed: Vec<_> = list(&record["capabilities"], "needed")?.iter().filter_map(Value::as_str).collect();
    ensure!(needed == super::privilege::needed(), "it needed {needed:?}");
    // xctl began with the capabilities of this process.
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff")?;
    let effective = u64::from_str_radix(effective.trim(), 16)?;
    let held: Vec<_> = list(&record["capabilities"], "held")?.iter().filter_map(Value::as_str).collect();
    ensure!(held.len() == effective.count_ones() as usize, "{held:?}, and /proc says {effective:#x}");
    // The numbers of capabilities, from include/uapi/linux/capability.h.
    for (bit, name) in [(2, "CAP_DAC_READ_SEARCH"), (19, "CAP_SYS_PTRACE"), (21, "CAP_SYS_ADMIN"), (39, "CAP_BPF")] {
        ensure!(held.contains(&name) == (effective >> bit & 1 == 1), "{name}: {held:?}, and /proc says {effective:#x}");
    }

    let recorded = list(&record, "programs")?;
    for program in recorded {
        let id = program["id"].as_u64().context("a program without id")?;
        let theirs = programs.get(&id).with_context(|| format!("bpftool shows no program {id}"))?;
        let xlated = theirs["bytes_xlated"].as_u64().unwrap_or(0) / 8;
        let jited = &theirs["bytes_jited"];
        let pairs = [
            ("tag", &program["tag"], &theirs["tag"]),
            ("type", &program["type"], &theirs["type"]),
            ("instructions after verification", &program["insns_verified"], &xlated.into()),
            ("bytes of machine code", &program["jited_bytes"], jited),
            ("maps", &program["map_ids"], &theirs["map_ids"]),
        ];
        for (what, ours, theirs) in pairs {
            ensure!(ours == theirs, "{what} of {}: {ours}, and bpftool says {theirs}", program["name"]);
        }
        ensure!(program["proven"] == true && !program["tag_hash"].is_null(), "{program}");
        // Every instruction after verification is explained.
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let translated = &program["translated"];
        let explained = number(&translated["same"]) + number(&translated["rewritten"]);
        ensure!(
            explained == xlated && number(&translated["same"]) > xlated / 2,
            "of {xlated} instructions: {translated}"
        );
        // The verifier's log has the same number of steps as the kernel's program info, if the kernel has that number.
        let (steps, verifier) = (&program["verifier_steps"], &program["verifier"]);
        ensure!(number(&verifier["insns_processed"]) > 0, "no statistics of {}", program["name"]);
        ensure!(steps.is_null() || *steps == verifier["insns_processed"], "{steps} steps, and the log says {verifier}");
        ensure!(!list(verifier, "stack_depth")?.is_empty() && verifier["peak_states"].is_u64(), "{verifier}");
    }
    let recorded_maps = list(&record, "maps")?;
    for map in recorded_maps {
        let id = map["id"].as_u64().context("a map without id")?;
        let theirs = maps.get(&id).with_context(|| format!("bpftool shows no map {id}"))?;
        let created = &map["created"];
        for (ours, name) in [
            ("type", "type"),
            ("key_size", "bytes_key"),
            ("value_size", "bytes_value"),
            ("max_entries", "max_entries"),
            ("flags", "flags"),
        ] {
            let (ours, theirs) = (&created[ours], &theirs[name]);
            ensure!(ours == theirs, "{name} of {}: {ours}, and bpftool says {theirs}", map["name"]);
        }
        // The created map is the requested one, and fits the object's definition unless the definition leaves a size open.
        ensure!(map["asked"] == *created, "{map}");
        let defined = &map["defined"];
        for name in ["type", "key_size", "value_size"] {
            ensure!(defined[name].is_null() || defined[name] == created[name], "{name}: {map}");
        }
        let resized = ["SOCKET_TO_PID", "SK_CACHE"].map(Value::from).contains(&map["name"]);
        let entries = &defined["max_entries"];
        ensure!(entries.is_null() || resized || *entries == created["max_entries"], "max_entries: {map}");
        // libbpf adds BPF_F_MMAPABLE to maps of variables if the kernel knows the flag
        let flags = |shape: &Value| shape["flags"].as_u64().map(|flags| flags & !(1 << 10));
        ensure!(flags(defined) == flags(created), "flags: {map}");
    }
    let sockets = recorded_maps.iter().find(|map| map["name"] == "SOCKET_TO_PID").context("no SOCKET_TO_PID")?;
    ensure!(sockets["asked"]["max_entries"] == 32768 && sockets["defined"]["max_entries"] == 8192, "{sockets}");

    let kallsyms = fs::read_to_string("/proc/kallsyms")?;
    let mut known = 0;
    // Optional hooks that this kernel does not have are in the record, unattached.
    let hooks: Vec<_> = list(&record, "hooks")?.iter().filter(|hook| hook["attached"] == true).collect();
    ensure!(hooks.len() == ready_hooks.len(), "{} hooks, and ready has {}", hooks.len(), ready_hooks.len());
    for (hook, ready) in hooks.iter().zip(&ready_hooks) {
        ensure!(hook["target"] == ready.target && hook["program"] == ready.program, "{hook}: {ready:?}");
        let symbol = hook["symbol"].as_str().unwrap_or_default();
        let of_symbol = |line: &&str| line.split_whitespace().nth(2) == Some(symbol);
        let addresses: Vec<_> = kallsyms.lines().filter(of_symbol).filter_map(|line| line.split(' ').next()).collect();
        let expected = match addresses.as_slice() {
            [one] if one.bytes().any(|digit| digit != b'0') => {
                Value::from(format!("0x{}", one.trim_start_matches('0')))
            }
            _ => Value::Null,
        };
        known += usize::from(!expected.is_null());
        ensure!(hook["address"] == expected, "{hook}: kallsyms says {expected}");
    }
    Ok(Verdict::Passed(format!(
        "{} programs and {} maps as bpftool says, {known} of {} addresses",
        recorded.len(),
        recorded_maps.len(),
        hooks.len()
    )))
}

/// The commands that attach a program.
const ATTACHING: [&str; 3] = ["BPF_RAW_TRACEPOINT_OPEN", "BPF_LINK_CREATE", "BPF_ITER_CREATE"];

/// The record belongs to the invoking user and lies where that user may write, whatever user xctl becomes.
pub fn as_another_user(set: Set, _family: Family) -> Outcome {
    let scratch = Scratch::new()?;
    let (path, file) = scratch.file("user.json");
    let attach = set.to_string();
    // A folder for the invoking user alone, and one where everybody may write, but may change only their own files.
    for mode in [0o700, 0o1777] {
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(mode))?;
        let xctl = command(&arguments(&attach, &["--duration", "0.1", "--user", "nobody", "--record", &file]))?;
        let mut process = Process::start("xctl --user nobody", xctl)?;
        process.rest()?;
        process.succeed().with_context(|| format!("in a folder of mode {mode:o}"))?;
        ensure!(read(&path)?["proven"] == true, "not proven");
        let owner = fs::metadata(&path)?.uid();
        ensure!(owner == 0, "it is that of user {owner}");
        fs::remove_file(&path)?;
    }
    Ok(Verdict::Passed("in folders of mode 700 and 1777".into()))
}

/// A dry run loads, attaches nothing, and leaves nothing.
pub fn dry_run(set: Set, _family: Family) -> Outcome {
    let scratch = Scratch::new()?;
    let (path, file) = scratch.file("dry.json");
    let attach = set.to_string();
    let xctl = command(&arguments(&attach, &["--dry-run", "--record", &file]))?;
    let before = bpf_objects()?;
    let mut process = Process::start("xctl --dry-run", xctl)?;
    let lines = process.rest()?;
    process.succeed()?;
    let [line] = lines.as_slice() else { return Err(anyhow!("it printed {lines:?}")) };
    let loaded: Value = serde_json::from_str(line)?;
    ensure!(loaded["type"] == "loaded" && loaded["proven"] == true, "{line}");
    let record = read(&path)?;
    // The case record_calls shows that a record has every call.
    for call in list(&record, "calls")?.iter().filter(|call| call["by"] != "libbpf_probe") {
        let command = call["command"].as_str().unwrap_or_default();
        ensure!(call["call"] == "bpf" && !ATTACHING.contains(&command), "it made a call that attaches: {call}");
    }
    ensure!(list(&record, "hooks")?.iter().all(|hook| hook["attached"] == false), "{}", record["hooks"]);
    let ids = |name: &str, kind: &str| -> Result<Vec<String>> {
        Ok(list(&record, name)?.iter().map(|one| format!("{kind}_id {}", one["id"])).collect())
    };
    let made = [ids("programs", "prog")?, ids("maps", "map")?].concat();
    ensure!(made.len() > 10 && made.iter().all(|id| !before.contains(id)), "{made:?}");
    // Without a file, xctl proves the same.
    let xctl = command(&arguments(&attach, &["--dry-run", "--strict"]))?;
    let mut process = Process::start("xctl --dry-run --strict", xctl)?;
    let line = process.line()?;
    process.succeed()?;
    ensure!(serde_json::from_str::<Value>(&line)?["proven"] == true, "{line}");
    let gone = || Ok(bpf_objects()?.iter().all(|left| !made.contains(left)));
    ensure!(poll(Duration::from_secs(30), gone)?, "left behind: some of {made:?}");
    Ok(Verdict::Passed(format!("{} programs and maps, attached nothing, left nothing", made.len())))
}

/// Before 5.8 there are no ring buffers, and xctl leaves SHARED_RING out. xctl then also proves the programs as libbpf
/// changes them.
pub fn no_ring_buffers(set: Set, _family: Family) -> Outcome {
    let scratch = Scratch::new()?;
    let (path, file) = scratch.file("no-ring-buffers.json");
    let btf = Btf::without("bpf_ringbuf")?;
    let attach = set.to_string();
    let xctl = command(&arguments(&attach, &["--duration", "0.1", "--record", &file, "--btf", &btf.path()]))?;
    let mut process = hidden(|| Process::start("xctl --record", xctl))?;
    process.rest()?;
    process.succeed()?;
    let record = read(&path)?;
    ensure!(record["proven"] == true, "not proven: {}", record["unproven"]);
    let maps: Vec<_> = list(&record, "maps")?.iter().filter_map(|map| map["name"].as_str()).collect();
    ensure!(maps.contains(&"SOCKET_TO_PID") && !maps.contains(&"SHARED_RING"), "its maps are {maps:?}");
    // A program must refer to the ring: otherwise this case shows nothing.
    let calls = list(&record, "calls")?;
    let code = calls.iter().filter_map(|call| call["attributes"]["insns"]["code"].as_str());
    let left_out = |insn: &[u8]| insn.starts_with(b"85000000") && insn.ends_with(LEFT_OUT);
    let left_out = code.filter(|code| code.as_bytes().chunks(16).any(left_out)).count();
    ensure!(left_out > 0, "no program was to use it");
    Ok(Verdict::Passed(format!("{left_out} programs without it, proven")))
}

/// For a map that is left out, libbpf calls helper 2001000000 plus the map's number. The number changes only the lowest
/// byte.
const LEFT_OUT: &[u8] = b"d64477";

/// One instruction is altered on its way to the kernel, so that the program still passes the verifier. xctl reports the
/// change. With --record or --strict xctl attaches nothing, and the record contains the change.
pub fn altered(_set: Set, _family: Family) -> Outcome {
    let scratch = Scratch::new()?;
    let (path, file) = scratch.file("altered.json");
    let flagged = alter_one(&[])?;
    ensure!(flagged.status.success() && flagged.attached.is_some(), "{} {:?}", flagged.status, flagged.said);
    let ready: Value = serde_json::from_str(flagged.printed.first().context("it printed nothing")?)?;
    ensure!(ready["type"] == "ready" && ready["proven"] == false, "{ready}");
    ensure!(flagged.said.starts_with(&format!("xctl: {UNPROVEN}")), "it says {:?}", flagged.said);
    let refused = |Altered { status, said, printed, attached, .. }: &Altered| -> Result<()> {
        ensure!(status.code() == Some(4), "it ended with {status} and said {said:?}");
        ensure!(said.contains(&format!("the object file was refused: {UNPROVEN}")), "it says {said:?}");
        ensure!(printed.is_empty() && attached.is_none(), "it attached {attached:?} and printed {printed:?}");
        Ok(())
    };
    refused(&alter_one(&["--strict"])?)?;
    let recorded = alter_one(&["--record", &file])?;
    refused(&recorded)?;
    let Altered { at, said, .. } = recorded;
    let record = read(&path)?;
    ensure!(record["proven"] == false && record["exit_code"] == 4, "{} {}", record["proven"], record["exit_code"]);
    let unproven = list(&record, "unproven")?;
    ensure!(
        unproven.len() == 1 && list(&record, "hooks")?.iter().all(|hook| hook["attached"] == false),
        "{unproven:?}"
    );
    // The tag shows that the program was altered; the program after verification shows where.
    let blinded = fs::read_to_string("/proc/sys/net/core/bpf_jit_harden").is_ok_and(|harden| harden.trim() == "2");
    ensure!(blinded || unproven[0]["insn"] == at, "it was instruction {at}: {}", unproven[0]);
    ensure!(
        blinded || said.contains(&format!(", instruction {at}: the tag of the program")),
        "it does not name {at}: {said:?}"
    );
    Ok(Verdict::Passed(format!("{}", unproven[0]["why"])))
}

const UNPROVEN: &str = "the programs in the kernel are not proven to be those of the object: program tp_retransmit";

/// The result of an xctl with one altered instruction: the place of the instruction, and what xctl did.
struct Altered {
    at: usize,
    status: ExitStatus,
    said: String,
    printed: Vec<String>,
    attached: Option<Seen>,
}

fn alter_one(more: &[&str]) -> Result<Altered> {
    let more = [&["--duration", "0.1", "--seed", "none"], more].concat();
    let xctl = command(&arguments("auto", &more))?;
    let mut victim = None;
    let meddle = |call: &Call, memory: &File| -> Result<()> {
        if call.arguments[0] == BPF_PROG_LOAD && !call.returned && call.text(48).starts_with("tp_retransmit") {
            victim = Some((call.text(48), alter(call, memory, returns_0(&call.insns)?, 4, 1)?));
        }
        Ok(())
    };
    let (mut process, witness) = watch("xctl", &xctl, meddle)?;
    let (victim, at) = victim.context("no program was loaded that could be altered")?;
    let (printed, status) = (process.rest()?, process.wait()?);
    let said = process.errors();
    ensure!(said.contains(&victim) && said.contains("tag"), "it does not name {victim} and its tag: {said:?}");
    let attached = |(name, command, result, _): &Seen| {
        *result >= 0 && (name == "perf_event_open" || ATTACHING.contains(&command.as_str()))
    };
    // Before its programs are loaded, xctl attaches an empty one for a moment, to find out which set the kernel takes.
    let calls: Vec<Seen> = witness.iter().map(of_ptrace).collect();
    let loaded = calls.iter().rposition(|(_, command, ..)| command == "BPF_PROG_LOAD").context("nothing was loaded")?;
    let attached = calls.into_iter().skip(loaded).find(attached);
    Ok(Altered { at, status, said, printed, attached })
}

/// The return value of a program on a tracepoint means nothing to the kernel: `r0 = 0` may become `r0 = 1`.
const RETURN_0: [u8; 8] = [0xb7, 0, 0, 0, 0, 0, 0, 0];
const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];

/// The kernel's output of a program after verification is altered on its way to xctl. The verifier has no reason to make
/// this change.
pub fn altered_translation(_set: Set, _family: Family) -> Outcome {
    let scratch = Scratch::new()?;
    let (path, file) = scratch.file("translated.json");
    let xctl = command(&arguments("auto", &["--dry-run", "--record", &file]))?;
    let mut altered = 0;
    let meddle = |call: &Call, memory: &File| -> Result<()> {
        if call.arguments[0] != BPF_OBJ_GET_INFO_BY_FD || !call.returned || call.result != 0 || altered > 0 {
            return Ok(());
        }
        // struct bpf_prog_info has the number of bytes after verification at 20, and the address of their buffer at 32.
        let info = tracee::read(memory, call.long(8), call.word(4) as usize)?;
        let number = |at: usize| u32::from_ne_bytes(info[at..at + 4].try_into().unwrap_or_default());
        let address = u64::from(number(32)) | u64::from(number(36)) << 32;
        if info.len() > 200 && address != 0 {
            let insns = tracee::read(memory, address, number(20) as usize)?;
            let at = returns_0(&insns)?;
            memory.write_all_at(&[1], address + at as u64 * 8 + 4).context("altering its memory")?;
            altered += 1;
        }
        Ok(())
    };
    let (mut process, _) = watch("xctl", &xctl, meddle)?;
    let status = process.wait()?;
    let said = process.errors();
    ensure!(altered == 1, "no program's instructions were asked for");
    ensure!(status.code() == Some(4), "it ended with {status} and said {said:?}");
    ensure!(said.contains("r0 = 1; it was r0 = 0"), "it does not name the instruction: {said:?}");
    let record = read(&path)?;
    let unproven = list(&record, "unproven")?;
    ensure!(record["proven"] == false && unproven.len() == 1, "{unproven:?}");
    let program = list(&record, "programs")?.iter().find(|program| program["name"] == unproven[0]["program"]);
    ensure!(program.is_some_and(|program| program["translated"].is_null()), "{program:?}");
    Ok(Verdict::Passed(format!("{}", unproven[0]["why"])))
}

/// The kernel does not answer a question about a program. xctl can compare nothing, and says so. --strict refuses this as a
/// failure of the run, not of the object.
pub fn incomparable(_set: Set, _family: Family) -> Outcome {
    const WHY: &str = "cannot compare the loaded programs with the object: cannot ask about program";
    let unanswered = |more: &[&str]| -> Result<(ExitStatus, Vec<String>, String)> {
        let more = [&["--duration", "0.1", "--seed", "none"], more].concat();
        let mut altered = false;
        let meddle = |call: &Call, memory: &File| -> Result<()> {
            let of_program = call.arguments[0] == BPF_OBJ_GET_INFO_BY_FD && call.word(4) > 200;
            if of_program && !call.returned && !altered {
                memory.write_all_at(&(-1i32).to_ne_bytes(), call.arguments[1]).context("altering its memory")?;
                altered = true;
            }
            Ok(())
        };
        let (mut process, _) = watch("xctl", &command(&arguments("auto", &more))?, meddle)?;
        let (printed, status, said) = (process.rest()?, process.wait()?, process.errors());
        ensure!(altered, "it asked about no program");
        ensure!(said.contains(WHY), "it does not say so: {said:?}");
        Ok((status, printed, said))
    };
    let (status, printed, _) = unanswered(&[])?;
    let ready: Value = serde_json::from_str(printed.first().context("it printed nothing")?)?;
    ensure!(status.success() && ready["type"] == "ready" && ready["proven"].is_null(), "{status} {ready}");
    let (status, printed, said) = unanswered(&["--strict"])?;
    ensure!(status.code() == Some(1) && printed.is_empty(), "it ended with {status} and printed {printed:?}");
    Ok(Verdict::Passed(said.trim().to_owned()))
}

/// The place where a program sets its return value. This place is before the functions that the program calls: their return
/// values do matter.
fn returns_0(insns: &[u8]) -> Result<usize> {
    let ends = [RETURN_0, EXIT].concat();
    (0..insns.len() / 8).find(|at| insns[at * 8..].starts_with(&ends)).context("it does not end so")
}

/// Alters a byte of that instruction in the memory of the process that asks the kernel to load it. Returns the
/// instruction's number.
fn alter(call: &Call, memory: &File, at: usize, byte: u64, value: u8) -> Result<usize> {
    memory.write_all_at(&[value], call.long(8) + at as u64 * 8 + byte).context("altering its memory")?;
    Ok(at)
}

/// A failed run is recorded, too: here the kernel refuses a program with an altered, invalid instruction.
pub fn failed(_set: Set, _family: Family) -> Outcome {
    let scratch = Scratch::new()?;
    let (path, file) = scratch.file("failed.json");
    let xctl = command(&arguments("auto", &["--record", &file, "--seed", "none"]))?;
    let meddle = |call: &Call, memory: &File| -> Result<()> {
        match call.arguments[0] == BPF_PROG_LOAD
            && !call.returned
            && call.text(48).starts_with("tp_retransmit")
            && call.insns.ends_with(&EXIT)
        {
            true => alter(call, memory, returns_0(&call.insns)? + 1, 0, 0xff).map(drop),
            false => Ok(()),
        }
    };
    let (mut process, witness) = watch("xctl", &xctl, meddle)?;
    let status = process.wait()?;
    let said = process.errors();
    ensure!(status.code() == Some(4), "it ended with {status} and said {said:?}");
    let record = read(&path)?;
    ensure!(record["exit_code"] == 4 && record["proven"].is_null(), "{} {}", record["exit_code"], record["proven"]);
    ensure!(record["error"].as_str().is_some_and(|error| said.contains(error)), "{} {said:?}", record["error"]);
    let calls = list(&record, "calls")?;
    same(
        &calls.iter().map(of_record).collect::<Vec<_>>(),
        &witness.iter().map(of_ptrace).collect::<Vec<_>>(),
        "ptrace",
    )?;
    let refused = calls.iter().rfind(|call| call["by"] == "libbpf" && call["command"] == "BPF_PROG_LOAD");
    ensure!(refused.is_some_and(|call| call["result"] == -1), "the last program was not refused: {refused:?}");
    Ok(Verdict::Passed(format!("exit code 4 after {} calls", calls.len())))
}

/// xctl refuses altered objects before they reach the kernel, and names the defect. The record contains the error.
pub fn altered_objects(_set: Set, _family: Family) -> Outcome {
    let scratch = Scratch::new()?;
    let (path, file) = scratch.file("object.json");
    let (object, object_file) = scratch.file("object.o");
    let all: Vec<_> = altered::all().into_iter().chain(altered::maps()).collect();
    for altered in &all {
        fs::write(&object, &altered.bytes)?;
        let xctl = command(&arguments("auto", &["--object", &object_file, "--record", &file]))?;
        let said = refusal(Process::start("xctl", xctl)?, 4).context(altered.what)?;
        for word in &altered.words {
            ensure!(said.contains(word), "{}: it does not say {word:?}: {said:?}", altered.what);
        }
        let record = read(&path)?;
        ensure!(record["exit_code"] == 4, "{}: the record says {}", altered.what, record["exit_code"]);
        // With an empty program `auto` finds out whether the kernel takes LSM or fentry programs. It is none of the object's.
        let is_empty = |call: &Value| call["attributes"]["insns"]["code"] == "b7000000000000009500000000000000";
        let given =
            |call: &&Value| call["by"] != "libbpf_probe" && call["command"] == "BPF_PROG_LOAD" && !is_empty(call);
        let given = list(&record, "calls")?.iter().find(given);
        ensure!(given.is_none(), "{}: the kernel was given {given:?}", altered.what);
        ensure!(
            altered.on_loading.is_some() || record["calls_total"] == 0,
            "{}: {}",
            altered.what,
            record["calls_total"]
        );
    }
    Ok(Verdict::Passed(format!("{} refused", all.len())))
}

/// `inspect` needs no privilege, even on a kernel's own BTF.
pub fn inspect_as_nobody(_set: Set, _family: Family) -> Outcome {
    let mut nobody = command(&["inspect", "--json"])?;
    nobody.uid(65534).gid(65534);
    let output = nobody.output().context("starting xctl inspect")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.is_empty(), "it ended with {} and said {said:?}", output.status);
    // root could make such calls, and does not
    let (mut process, calls) = watch("xctl inspect", &command(&["inspect", "--json"])?, |_, _| Ok(()))?;
    process.succeed()?;
    ensure!(calls.is_empty(), "it made calls into BPF or perf: {calls:?}");
    let facts: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(facts["runs"] == true, "it would not run here: {}", facts["problems"]);
    let (there, not_there) = hooks_are_told(&facts)?;
    let counts = format!("{} relocations, {there} hooks there, {not_there} not", facts["relocations_total"]);
    Ok(Verdict::Passed(counts))
}

/// The record agrees with kallsyms and tracefs on the functions and tracepoints that exist. Returns how many exist, and how
/// many do not.
fn hooks_are_told(facts: &Value) -> Result<(usize, usize)> {
    let mut counts = (0, 0);
    for program in facts["programs"].as_array().context("no programs")? {
        // A program without a target runs on request.
        let Some(target) = program["target"].as_str() else { continue };
        let there = match program["hook"].as_str() {
            Some("fentry" | "fexit") => has_symbol(target),
            Some("lsm") => has_symbol(&format!("bpf_lsm_{target}")),
            Some("raw_tracepoint") => tracefs::has_event(target)?,
            _ => continue,
        };
        ensure!(program["target_in_btf"] == there, "{target} is there: {there}, and inspect says {program}");
        *(if there { &mut counts.0 } else { &mut counts.1 }) += 1;
    }
    ensure!(counts.0 > 0, "no hook was looked up");
    Ok(counts)
}
