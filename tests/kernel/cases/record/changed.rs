//! Instructions and objects that were changed on their way to the kernel: xctl refuses or reports them, and the record has them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::ExitStatus;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::calls::{Seen, of_ptrace, of_record, same};
use super::{ATTACHING, arguments, list, read};
use crate::folder::Folder;
use crate::host::Set;
use crate::process::Process;
use crate::tracee::{self, BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_LOAD, Call, watch};
use crate::xctl::{command, refusal};
use crate::{Family, Outcome, Verdict, altered};

/// For a map that is left out, libbpf calls helper 2001000000 plus the map's number. The number changes only the lowest
/// byte.
pub(super) const LEFT_OUT: &[u8] = b"d64477";

/// One instruction is altered on its way to the kernel, so that the program still passes the verifier. xctl reports the
/// change. With --record or --strict xctl attaches nothing, and the record contains the change.
pub fn altered(_set: Set, _family: Family) -> Outcome {
    let scratch = Folder::new("record")?;
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
    let scratch = Folder::new("record")?;
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
    let scratch = Folder::new("record")?;
    let (path, file) = scratch.file("failed.json");
    let xctl = command(&arguments("auto", &["--record", &file, "--seed", "none"]))?;
    let meddle = |call: &Call, memory: &File| -> Result<()> {
        let is_program =
            call.arguments[0] == BPF_PROG_LOAD && !call.returned && call.text(48).starts_with("tp_retransmit");
        match returns_0(&call.insns) {
            Ok(at) if is_program => alter(call, memory, at + 1, 0, 0xff).map(drop),
            _ => Ok(()),
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
pub fn objects(_set: Set, _family: Family) -> Outcome {
    let scratch = Folder::new("record")?;
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
