//! The system calls of a process as ptrace shows them. ptrace is an independent witness, also on hosts that have no strace.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::process::{PATIENCE, Process, nameless_file, poll};

/// A bpf(2), perf_event_open(2) or perf ioctl(2) call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub name: &'static str,
    pub arguments: [u64; 5],
    /// The kernel's return value, if the call has returned. A negative errno is a failure.
    pub result: i64,
    pub returned: bool,
    /// The attributes before the call, of bpf(2) and perf_event_open(2).
    pub attributes: Vec<u8>,
    /// The program's instructions, of BPF_PROG_LOAD.
    pub insns: Vec<u8>,
}

pub const BPF_PROG_LOAD: u64 = 5;
pub const BPF_OBJ_GET_INFO_BY_FD: u64 = 15;

impl Call {
    pub fn word(&self, at: usize) -> u32 {
        self.attributes.get(at..at + 4).map_or(0, |bytes| u32::from_ne_bytes(bytes.try_into().unwrap_or_default()))
    }

    pub fn long(&self, at: usize) -> u64 {
        u64::from(self.word(at)) | u64::from(self.word(at + 4)) << 32
    }

    /// The name at that offset of the attributes.
    pub fn text(&self, at: usize) -> String {
        let bytes = self.attributes.get(at..at + 16).unwrap_or_default();
        bytes.iter().take_while(|&&byte| byte != 0).map(|&byte| char::from(byte)).collect()
    }
}

/// The number of the system call, its five arguments, and its return value.
#[cfg(target_arch = "x86_64")]
fn registers(pid: Pid) -> Result<(i64, [u64; 5], i64)> {
    let regs = ptrace::getregs(pid).context("reading registers")?;
    Ok((regs.orig_rax as i64, [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8], regs.rax as i64))
}

#[cfg(target_arch = "aarch64")]
fn registers(pid: Pid) -> Result<(i64, [u64; 5], i64)> {
    let regs = ptrace::getregset::<ptrace::regset::NT_PRSTATUS>(pid).context("reading registers")?.regs;
    Ok((regs[8] as i64, [regs[0], regs[1], regs[2], regs[3], regs[4]], regs[0] as i64))
}

/// Interrupts a process that waits in a system call, and makes it call another one instead. The process goes back to the
/// instruction of the call, with another number.
pub fn call_instead(pid: u32, number: libc::c_long) -> Result<()> {
    let pid = Pid::from_raw(pid.try_into()?);
    let made = poll(PATIENCE, || {
        ptrace::attach(pid).context("tracing it")?;
        let stopped = waitpid(pid, None).context("waiting until it stops")?;
        ensure!(matches!(stopped, WaitStatus::Stopped(..)), "it did not stop: {stopped:?}");
        let (was, _, result) = registers(pid)?;
        let waits = was >= 0 && result == -i64::from(libc::EINTR);
        if waits {
            call_again(pid, number)?;
        }
        ptrace::detach(pid, None).context("letting it go")?;
        Ok(waits)
    })?;
    ensure!(made, "it never waits");
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn call_again(pid: Pid, number: libc::c_long) -> Result<()> {
    let mut regs = ptrace::getregs(pid).context("reading registers")?;
    regs.rip -= 2;
    regs.rax = number as u64;
    // the kernel must not restart the interrupted call
    regs.orig_rax = u64::MAX;
    ptrace::setregs(pid, regs).context("writing registers")
}

#[cfg(target_arch = "aarch64")]
fn call_again(pid: Pid, number: libc::c_long) -> Result<()> {
    let mut regs = ptrace::getregset::<ptrace::regset::NT_PRSTATUS>(pid).context("reading registers")?;
    regs.pc -= 4;
    regs.regs[8] = number as u64;
    ptrace::setregset::<ptrace::regset::NT_PRSTATUS>(pid, regs).context("writing registers")
}

pub fn read(memory: &File, at: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    memory.read_exact_at(&mut bytes, at).with_context(|| format!("reading {length} bytes of its memory"))?;
    Ok(bytes)
}

/// Runs a command to its end. `meddle` may alter the memory of the process: before and after each bpf(2) call, and before
/// each perf_event_open(2). In threads other than the first these calls and ioctl(2) fail (ENOSYS), so that none is
/// overlooked.
pub fn watch(
    what: &str,
    command: &Command,
    mut meddle: impl FnMut(&Call, &File) -> Result<()>,
) -> Result<(Process, Vec<Call>)> {
    let (_file, path) = nameless_file(::ways::PROGRAM)?;
    let mut waiting = Command::new(path);
    waiting.arg("to-trace").arg(command.get_program()).args(command.get_args());
    let mut process = Process::start(what, waiting)?;
    let pid = Pid::from_raw(process.pid().try_into()?);
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACESECCOMP
        | Options::PTRACE_O_TRACEEXIT
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).context("tracing it")?;
    ptrace::interrupt(pid).context("stopping it")?;
    process.tell("")?;
    let mut calls = Vec::new();
    let mut entered: Option<Call> = None;
    loop {
        let mut signal = None;
        match waitpid(pid, None).with_context(|| format!("waiting for {what}"))? {
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_SECCOMP) => entered = enter(pid, &mut meddle)?,
            WaitStatus::PtraceSyscall(_) => {
                let mut call = entered.take().context("a call returned that was not seen before")?;
                (.., call.result) = registers(pid)?;
                call.returned = true;
                if call.name == "bpf" {
                    meddle(&call, &memory_of(pid)?)?;
                }
                calls.push(call);
            }
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXIT) => {
                ptrace::detach(pid, None).context("letting it go")?;
                return Ok((process, calls));
            }
            WaitStatus::PtraceEvent(..) => {}
            WaitStatus::Stopped(_, of) => signal = Some(of),
            other => bail!("{what} ended before its end was seen: {other:?}"),
        }
        let go_on = if entered.is_some() { ptrace::syscall } else { ptrace::cont };
        go_on(pid, signal).context("letting it go on")?;
    }
}

fn memory_of(pid: Pid) -> Result<File> {
    OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")).context("opening its memory")
}

/// The system call that begins now, if it is one of those in [`Call`].
fn enter(pid: Pid, meddle: &mut impl FnMut(&Call, &File) -> Result<()>) -> Result<Option<Call>> {
    let (number, arguments, _) = registers(pid)?;
    let name = match number {
        libc::SYS_bpf => "bpf",
        libc::SYS_perf_event_open => "perf_event_open",
        libc::SYS_ioctl if (arguments[1] >> 8) & 0xff == u64::from(b'$') => "ioctl",
        _ => return Ok(None),
    };
    let mut call = Call { name, arguments, result: 0, returned: false, attributes: Vec::new(), insns: Vec::new() };
    if name == "bpf" {
        let memory = memory_of(pid)?;
        let size = usize::try_from(arguments[2])?;
        ensure!(size <= 4096, "{size} bytes of attributes");
        call.attributes = read(&memory, arguments[1], size)?;
        if arguments[0] == BPF_PROG_LOAD {
            call.insns = read(&memory, call.long(8), call.word(4) as usize * 8)?;
        }
        meddle(&call, &memory)?;
    }
    if name == "perf_event_open" {
        const SIZE: u64 = 4;
        let memory = memory_of(pid)?;
        let size = read(&memory, arguments[0] + SIZE, 4)?;
        let size = u32::from_ne_bytes(size.try_into().unwrap_or_default());
        ensure!(size <= 4096, "{size} bytes of attributes");
        call.attributes = read(&memory, arguments[0], size as usize)?;
        meddle(&call, &memory)?;
    }
    Ok(Some(call))
}
