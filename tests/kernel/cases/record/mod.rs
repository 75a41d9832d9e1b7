//! `--dry-run`, `--record` and `--strict`. The record is compared with the calls that ptrace and strace see in the same
//! run, and with bpftool's view of the same kernel.

pub mod calls;
pub mod changed;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use changed::LEFT_OUT;

use super::ends::bpf_objects;
use super::refusals::Btf;
use super::without_btf::hidden;
use crate::folder::Folder;
use crate::host::{Set, has_symbol, tool};
use crate::process::{Process, poll};
use crate::tracee::watch;
use crate::tracefs;
use crate::xctl::{Xctl, command};
use crate::{Family, Outcome, Verdict, schema};

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

/// The arguments of xctl, with enough room for the host's other connections.
fn arguments<'a>(set: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["trace", "--json", "--attach", set, "--max-sockets", "32768"], more].concat()
}

fn installed(tool: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(tool)).find(|path| path.exists())
}

/// An independent validator accepts records as valid for their schema, including the record of a failed run.
pub fn schema(_set: Set, _family: Family) -> Outcome {
    let Some(validator) = installed("jsonschema") else {
        return Ok(Verdict::Skipped("this host has no jsonschema".into()));
    };
    let scratch = Folder::new("record")?;
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
    let mut records: Vec<Value> = vec![];
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

fn bpftool(kind: &str) -> Result<BTreeMap<u64, Value>> {
    let output = tool("bpftool").args(["-j", kind, "show"]).output().context("starting bpftool")?;
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).context("bpftool's answer")?;
    Ok(all.into_iter().filter_map(|one| Some((one["id"].as_u64()?, one))).collect())
}

/// The record agrees with bpftool and kallsyms about programs, maps and symbols.
pub fn facts(set: Set, _family: Family) -> Outcome {
    let scratch = Folder::new("record")?;
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
    let scratch = Folder::new("record")?;
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
    let scratch = Folder::new("record")?;
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
    let scratch = Folder::new("record")?;
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
