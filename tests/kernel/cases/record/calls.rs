//! The calls of a record, beside those that ptrace and strace see in the same run.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use libbpf_sys as sys;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use serde_json::Value;

use super::{arguments, installed, list, read};
use crate::folder::Folder;
use crate::host::Set;
use crate::process::Process;
use crate::tracee::{Call, watch};
use crate::tracefs::private_mounts;
use crate::xctl::command;
use crate::{Family, Outcome, Verdict};

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
pub(super) type Seen = (String, String, i64, String);

pub(super) fn of_record(call: &Value) -> Seen {
    let text = |name: &str| call[name].as_str().unwrap_or_default().to_owned();
    (text("call"), text("command"), call["result"].as_i64().unwrap_or(i64::MIN), text("errno"))
}

pub(super) fn of_ptrace(call: &Call) -> Seen {
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

pub(super) fn same(record: &[Seen], witness: &[Seen], who: &str) -> Result<()> {
    for (number, (one, other)) in record.iter().zip(witness).enumerate() {
        ensure!(one == other, "call {}: the record says {one:?}, {who} {other:?}", number + 1);
    }
    let (ours, theirs) = (record.len(), witness.len());
    ensure!(ours == theirs, "the record has {ours} calls, {who} saw {theirs}");
    Ok(())
}

/// The record has every call, in order, with its input and its output.
pub fn by_ptrace(set: Set, _family: Family) -> Outcome {
    // A separate thread: only it, and processes that it starts, see the changed mounts.
    thread::spawn(move || calls_without_symbols(set)).join().map_err(|_| anyhow!("the thread panicked"))?
}

/// Without kallsyms, addresses are unknown.
fn calls_without_symbols(set: Set) -> Outcome {
    private_mounts()?;
    mount(Some("/dev/null"), "/proc/kallsyms", None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .context("hiding kallsyms")?;
    let scratch = Folder::new("record")?;
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

/// The record has every call that strace sees, if there is a strace. Without a record, several threads load the same programs.
pub fn by_strace(_set: Set, _family: Family) -> Outcome {
    let Some(strace) = installed("strace") else { return Ok(Verdict::Skipped("this host has no strace".into())) };
    let scratch = Folder::new("record")?;
    let (path, file) = scratch.file("calls.json");
    let recorded = by_thread(&strace, &arguments("auto", &["--duration", "0.1", "--record", &file]))?;
    let record = read(&path)?;
    let ours: Vec<_> = list(&record, "calls")?.iter().map(of_record).collect();
    ensure!(recorded.len() == 1, "{} threads made calls", recorded.len());
    same(&ours, &recorded.concat(), "strace")?;

    let loads = |calls: &[Seen]| calls.iter().filter(|(_, command, ..)| command == "BPF_PROG_LOAD").count();
    let several = thread::available_parallelism()?.get() > 1;
    let mut each = vec![];
    // On a busy machine a thread may find nothing left to do.
    for _ in 0..3 {
        let plain = by_thread(&strace, &arguments("auto", &["--duration", "0.1"]))?;
        each = plain.iter().map(|calls| loads(calls)).filter(|&count| count > 0).collect::<Vec<_>>();
        ensure!(each.iter().sum::<usize>() == loads(&ours), "loads by thread: {each:?}, in a record {}", loads(&ours));
        if (each.len() > 1) == several {
            break;
        }
    }
    ensure!((each.len() > 1) == several, "loads by thread: {each:?}");
    Ok(Verdict::Passed(format!("{} calls as strace saw them; loads by thread: {each:?}", ours.len())))
}

/// The calls of each thread that made any, as strace sees them.
fn by_thread(strace: &Path, arguments: &[&str]) -> Result<Vec<Vec<Seen>>> {
    let scratch = Folder::new("strace")?;
    let (seen, log) = scratch.file("strace");
    let xctl = command(arguments)?;
    let mut traced = Command::new(strace);
    // a file for each thread: otherwise strace splits a line when another thread makes a call
    traced.args(["-ff", "-e", "trace=bpf,perf_event_open,ioctl", "-o", &log]);
    traced.arg(xctl.get_program()).args(xctl.get_args());
    Process::start("strace", traced)?.succeed()?;
    let mut threads = vec![];
    for log in fs::read_dir(seen.parent().context("a file in no folder")?)? {
        let log = fs::read_to_string(log?.path())?;
        let calls = log.lines().filter_map(|line| of_strace(line).transpose()).collect::<Result<Vec<_>>>()?;
        threads.extend((!calls.is_empty()).then_some(calls));
    }
    Ok(threads)
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
