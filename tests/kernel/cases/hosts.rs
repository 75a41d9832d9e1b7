//! Hosts where xctl can run although something is unusual, or goes wrong while xctl runs.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::pty::openpty;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd::pipe;

use super::ends::{bpf_objects, held_by, one_sender};
use super::exited_owner;
use super::privilege::{Paranoid, needed};
use super::{doctor, idle};
use crate::counters::{Counters, wait_until_grown};
use crate::host::{Set, is_guest, tool};
use crate::link::Link;
use crate::process::{PATIENCE, Process, now, poll};
use crate::tracefs::with_private_mounts;
use crate::workers::{self, Puppet, Receiver, send_all};
use crate::xctl::{Xctl, command};
use crate::{Family, Outcome, Verdict};

const FAILED: i32 = 1;

/// The command that runs xctl in a shell, after `before`, with `after` (redirections) at its end.
pub fn by_shell(before: &str, args: &[&str], after: &str) -> Result<Command> {
    let xctl = command(args)?;
    let mut shell = tool("sh");
    shell.args(["-c", &format!("{before} exec \"$0\" \"$@\" {after}")]).arg(xctl.get_program()).args(xctl.get_args());
    Ok(shell)
}

/// xctl runs in namespaces of its own, as in a container: the PIDs of owners are those of the host.
pub fn container(set: Set, family: Family) -> Outcome {
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut sender = Puppet::new(&link.a, "outside", receiver.at)?;
    let truth = sender.truth.clone();
    let args = ["trace", "--json", "--attach", &set.to_string(), "--max-sockets", "32768"];
    let xctl = Xctl::attached(set, contained(&args)?)?;
    let before = Counters::of(&link.a)?;
    link.lose(100)?;
    sender.send()?;
    wait_until_grown(&link.a, &before, "RetransSegs", 2)?;
    link.lose(0)?;
    let lived_until = now()?;
    sender.exit()?;
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;
    trace.nothing_lost()?;
    let records = trace.all_of(link.a.inode, &truth.who, truth.flow()?)?;
    // /proc in the container has no such process, or another one of that PID: only the kernel knows.
    let wrong = trace.of(link.a.inode).find(|record| record.exited && record.mono_ns < lived_until);
    ensure!(wrong.is_none(), "it had not exited: {wrong:?}");
    ensure!(trace.said.contains("not the initial PID namespace"), "it does not say where it is: {:?}", trace.said);
    doctor::notes(contained(&["doctor", "--json"])?, 0, "pid_namespace", "not the initial one")?;
    Ok(Verdict::Passed(format!("{records} retransmits of a process outside")))
}

/// Starts the first process of a PID namespace, with mounts and a network of its own.
fn contained(args: &[&str]) -> Result<Process> {
    let command = by_shell("mount -t proc proc /proc &&", args, "")?;
    Process::start_by("xctl", command, |command| {
        with_private_mounts(|| {
            // children are born in the new PID namespace; from now on this thread cannot create threads
            unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNET).context("making namespaces")?;
            Ok(command.spawn()?)
        })
    })
}

/// The root of xctl has only the kernel's own file systems: no library, no configuration, no other program.
pub fn bare(set: Set, family: Family) -> Outcome {
    const ROOT: &str = "/tmp";
    let args = ["trace", "--json", "--attach", &set.to_string(), "--max-sockets", "32768"].map(str::to_owned);
    exited_owner::run_with(family, || {
        with_private_mounts(move || {
            let program = command(&[])?.get_program().to_owned();
            let program = fs::read(&program).with_context(|| format!("reading {}", program.display()))?;
            mount(None::<&str>, ROOT, Some("tmpfs"), MsFlags::empty(), None::<&str>).context("mounting a tmpfs")?;
            for (folder, kind) in [("proc", "proc"), ("sys", "sysfs")] {
                let folder = Path::new(ROOT).join(folder);
                fs::create_dir(&folder)?;
                mount(None::<&str>, &folder, Some(kind), MsFlags::empty(), None::<&str>)
                    .with_context(|| format!("mounting {kind}"))?;
            }
            let file = Path::new(ROOT).join("xctl");
            fs::write(&file, program)?;
            fs::set_permissions(&file, Permissions::from_mode(0o755))?;
            let mut chroot = tool("chroot");
            chroot.arg(ROOT).arg("/xctl").args(args);
            Xctl::start_command(set, chroot)
        })
    })
}

/// /proc hides the processes of other users, and xctl runs as nobody.
pub fn hidden_processes(set: Set, family: Family) -> Outcome {
    let _paranoid = Paranoid::at_most_2()?;
    let args = ["trace", "--json", "--attach", &set.to_string(), "--max-sockets", "32768"];
    exited_owner::run_with(family, || {
        with_private_mounts(|| {
            mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), Some("hidepid=2"))
                .context("mounting another /proc")?;
            Xctl::start_command(set, workers::by_nobody(&needed(), &command(&args)?)?)
        })
    })
}

/// The kernel interprets BPF programs (no JIT).
pub fn no_jit(set: Set, family: Family) -> Outcome {
    const JIT: &str = "/proc/sys/net/core/bpf_jit_enable";
    if !is_guest() {
        return Ok(Verdict::Skipped("switches the JIT off: only in a virtual machine of tests/vm".into()));
    }
    if let Err(error) = fs::write(JIT, "0") {
        return Ok(Verdict::Skipped(format!("{JIT}: {error}")));
    }
    let outcome = doctor::notes(Process::start("xctl", command(&["doctor", "--json"])?)?, 0, "jit", "interpreted")
        .and_then(|()| exited_owner::run_with(family, || Xctl::start(set, &[])));
    fs::write(JIT, "1").context("switching the JIT on again")?;
    outcome
}

/// A module with code for TCP is removed while xctl runs.
pub fn module_gone(set: Set, family: Family) -> Outcome {
    const MODULE: &str = "/modules/tls.ko";
    if !is_guest() || !Path::new("/sys/module/tls").exists() || !Path::new(MODULE).exists() {
        return Ok(Verdict::Skipped("takes the module tls away: only in a virtual machine of tests/vm".into()));
    }
    let run = |what: &str, of: &str| -> Result<()> {
        let output = tool(what).arg(of).output().with_context(|| format!("starting {what}"))?;
        ensure!(output.status.success(), "{what} {of}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let outcome = exited_owner::run_with(family, || {
        let xctl = Xctl::start(set, &[])?;
        run("rmmod", "tls")?;
        Ok(xctl)
    });
    run("insmod", MODULE)?;
    outcome
}

fn tiny_folder(which: usize) -> PathBuf {
    std::env::temp_dir().join(format!("xctl-tiny-{}-{which}", std::process::id()))
}

/// A file system without room. It is gone when the thread that sees it has ended.
fn tiny(which: usize) -> Result<PathBuf> {
    let folder = tiny_folder(which);
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    mount(Some("none"), &folder, Some("tmpfs"), MsFlags::empty(), Some("size=4k")).context("mounting a tmpfs")?;
    Ok(folder)
}

/// The disk for the output is full after a few records, and the disk for `--record` is full at once.
pub fn full_disk(set: Set, family: Family) -> Outcome {
    let note = with_private_mounts(|| {
        let folder = tiny(0)?;
        let record = folder.join("record.json").display().to_string();
        let mut process = Process::start("xctl", command(&["trace", "--dry-run", "--record", &record])?)?;
        process.rest()?;
        let (status, said) = (process.wait()?, process.errors());
        ensure!(status.code() == Some(FAILED), "it ended with {status} and said {said:?}");
        let words = format!("cannot write the record {record}: No space left on device");
        ensure!(said.contains(&words), "it does not say {words:?}: {said:?}");
        let left: Vec<_> = fs::read_dir(&folder)?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left.is_empty(), "left behind: {left:?}");

        let (link, _receiver, sender) = one_sender(family)?;
        let netns = link.a.path().display().to_string();
        let args = ["trace", "--json", "--attach", &set.to_string(), "--netns", &netns];
        // xctl's message about the full disk has room elsewhere, or has no room either
        let mut both = Vec::new();
        for (which, besides) in [(1, ""), (2, "2>&1")] {
            let output = tiny(which)?.join("output").display().to_string();
            let xctl = Process::start("xctl", by_shell("", &args, &format!("> {output} {besides}"))?)?;
            let ready = || Ok(fs::metadata(&output).is_ok_and(|about| about.len() > 0));
            ensure!(poll(PATIENCE, ready)?, "it is not ready");
            both.push((xctl, output, besides));
        }
        send_all(vec![sender])?;
        let mut printed = 0;
        for (mut xctl, output, besides) in both {
            let (status, said) = (xctl.wait()?, xctl.errors());
            ensure!(status.code() == Some(FAILED), "{besides} it ended with {status} and said {said:?}");
            let words = "cannot write to standard output: No space left on device";
            ensure!(said.contains(words) != (besides == "2>&1"), "{besides} it does not say {words:?}: {said:?}");
            printed += fs::read_to_string(&output)?.lines().count();
        }
        link.quiet()?;
        Ok(format!("{printed} records, then no space"))
    });
    for which in 0..3 {
        let _ = fs::remove_dir(tiny_folder(which));
    }
    Ok(Verdict::Passed(note?))
}

/// The reader's end and xctl's end of a pipe or terminal.
type Ends = (OwnedFd, OwnedFd);

/// A pipe of one page.
fn small_pipe() -> Result<Ends> {
    let (read, write) = pipe().context("making a pipe")?;
    fcntl(&write, FcntlArg::F_SETPIPE_SZ(4096)).context("making it small")?;
    Ok((read, write))
}

fn terminal() -> Result<Ends> {
    let ends = openpty(None, None).context("making a terminal")?;
    Ok((ends.master, ends.slave))
}

/// Starts an xctl that prints into the write end, with `besides` as a further redirection. Also returns the read end.
fn into(set: Set, link: &Link, (read, write): &Ends, besides: &str) -> Result<(Process, File)> {
    let netns = link.a.path().display().to_string();
    let args = ["trace", "--json", "--attach", &set.to_string(), "--events", "all", "--netns", &netns];
    let into = format!("> /proc/{}/fd/{} {besides}", std::process::id(), write.as_raw_fd());
    let xctl = Process::start("xctl", by_shell("", &args, &into)?)?;
    let mut read = File::from(read.try_clone()?);
    // reads the record `ready` to its last byte: before that, the write end may have no writer
    let mut byte = [0];
    while byte != *b"\n" {
        read.read_exact(&mut byte).context("reading what xctl prints")?;
    }
    Ok((xctl, read))
}

/// Fills the pipe until it has no room for one more byte.
fn fill(write: &OwnedFd) -> Result<()> {
    fcntl(write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("not waiting for room")?;
    loop {
        match nix::unistd::write(write, b"x") {
            Err(Errno::EAGAIN) => return Ok(()),
            count => ensure!(count.context("filling it")? == 1, "no byte was written"),
        }
    }
}

pub fn unread_pipe(set: Set, family: Family) -> Outcome {
    unread(set, family, small_pipe)
}

pub fn unread_terminal(set: Set, family: Family) -> Outcome {
    unread(set, family, terminal)
}

/// A reader does not read xctl's output: xctl ends by a signal nevertheless. A slow reader gets all records, and the
/// summary.
fn unread(set: Set, family: Family, ends: fn() -> Result<Ends>) -> Outcome {
    let (link, receiver, sender) = one_sender(family)?;
    let nobodys = [ends()?, ends()?];
    let (mut unread, _) = into(set, &link, &nobodys[0], "")?;
    // nobody reads xctl's message about this either
    let (mut unheard, _) = into(set, &link, &nobodys[1], "2>&1")?;
    let (mut slow, mut reader) = into(set, &link, &ends()?, "")?;
    send_all(vec![sender])?;
    link.quiet()?;
    let of = |xctl: &Process| held_by(&PathBuf::from(format!("/proc/{}", xctl.pid())));
    let own: BTreeSet<_> = [of(&unread), of(&unheard)].into_iter().flatten().collect();
    ensure!(own.len() > 2, "they hold only {own:?}");

    unread.signal(Signal::SIGTERM)?;
    let status = unread.wait()?;
    let said = unread.errors();
    ensure!(
        status.code() == Some(FAILED) && said.contains("nobody has read its output"),
        "{status}, and it said {said:?}"
    );
    fill(&nobodys[1].1)?;
    unheard.signal(Signal::SIGTERM)?;
    let status = unheard.wait()?;
    ensure!(status.code() == Some(FAILED), "unheard, it ended with {status}");
    drop(nobodys);
    let left = || Ok::<Vec<_>, anyhow::Error>(bpf_objects()?.intersection(&own).cloned().collect());
    ensure!(poll(PATIENCE, || Ok(left()?.is_empty()))?, "they left {:?} behind", left()?);

    slow.signal(Signal::SIGTERM)?;
    let mut printed = Vec::new();
    let mut page = [0; 4096];
    loop {
        let count = match reader.read(&mut page) {
            // EIO: no process has the terminal open for writing any more
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => 0,
            count => count.context("reading what xctl prints")?,
        };
        if count == 0 {
            break;
        }
        printed.extend_from_slice(&page[..count]);
        thread::sleep(Duration::from_millis(20));
    }
    slow.succeed()?;
    let printed = String::from_utf8(printed)?;
    let last = printed.lines().last().context("it printed nothing")?;
    ensure!(last.contains("\"type\":\"summary\"") && printed.len() > 8192, "printed up to {last:?}");
    drop(receiver);
    Ok(Verdict::Passed(format!("ended; {} bytes to the slow reader", printed.len())))
}

/// Descriptors 0 to 2 are closed when xctl starts. No file that xctl opens takes their numbers.
pub fn closed_descriptors(set: Set, _family: Family) -> Outcome {
    let args = ["trace", "--json", "--attach", &set.to_string()];
    let mut process = Process::start("xctl", by_shell("", &args, "<&- >&- 2>&-")?)?;
    let status = format!("/proc/{}/status", process.pid());
    let confined = || Ok(fs::read_to_string(&status).is_ok_and(|text| text.contains("Seccomp:\t2")));
    ensure!(poll(PATIENCE, confined)?, "it does not run");
    for fd in 0..=2 {
        let at = fs::read_link(format!("/proc/{}/fd/{fd}", process.pid())).context("reading a descriptor")?;
        ensure!(at == Path::new("/dev/null"), "descriptor {fd} is {}", at.display());
    }
    process.signal(Signal::SIGINT)?;
    let status = process.wait()?;
    ensure!(status.code() == Some(0), "it ended with {status}");
    // only standard input is closed, which xctl does not read
    let command = by_shell("", &args, "<&-")?;
    let xctl = Xctl::start_command(set, command)?;
    let sleeps = || {
        let before = idle::switches(xctl.process.pid())?;
        std::thread::sleep(Duration::from_millis(500));
        Ok(idle::switches(xctl.process.pid())? == before)
    };
    ensure!(!is_guest() || poll(PATIENCE, sleeps)?, "it never sleeps for half a second");
    xctl.stop(Signal::SIGINT)?;
    Ok(Verdict::Passed("they are /dev/null".into()))
}

/// The wall clock is set while xctl runs. `time` follows the clock. `mono_ns`, by which records are ordered, does not.
pub fn clock_set(set: Set, family: Family) -> Outcome {
    const HOUR: Duration = Duration::from_secs(3600);
    if !is_guest() {
        return Ok(Verdict::Skipped("sets the clock: only in a virtual machine of tests/vm".into()));
    }
    let link = Link::up()?;
    let receiver = Receiver::new(&link.b, "receiver", link.address(&link.b, family), 0)?;
    let mut sender = Puppet::new(&link.a, "sender", receiver.at)?;
    let truth = sender.truth.clone();
    let xctl = Xctl::start(set, &[])?;
    let before = Counters::of(&link.a)?;
    link.lose(100)?;
    sender.send()?;
    wait_until_grown(&link.a, &before, "RetransSegs", 2)?;
    // xctl prints all past events meanwhile
    std::thread::sleep(Duration::from_millis(300));
    let (wall, mono) = (SystemTime::now(), now()?);
    turn(HOUR, true)?;
    let seen = Counters::of(&link.a)?;
    let waited = wait_until_grown(&link.a, &seen, "RetransSegs", 2);
    std::thread::sleep(Duration::from_millis(300));
    turn(HOUR, false)?;
    waited?;
    link.lose(0)?;
    sender.exit()?;
    link.quiet()?;
    let trace = xctl.stop(Signal::SIGINT)?;
    trace.nothing_lost()?;
    trace.all_of(link.a.inode, &truth.who, truth.flow()?)?;
    let (mut earlier, mut later) = (0, 0);
    for record in trace.of(link.a.inode) {
        let time = humantime::parse_rfc3339(&record.time).with_context(|| format!("not a time: {record:?}"))?;
        if record.mono_ns < mono {
            earlier += 1;
            ensure!(time < wall, "the clock was not set yet: {record:?}");
        } else if time > wall + HOUR {
            later += 1;
        }
    }
    ensure!(earlier >= 1 && later >= 1, "{earlier} before the clock was set, {later} after: {:?}", trace.retransmits);
    Ok(Verdict::Passed(format!("{earlier} records, and {later} an hour later")))
}

/// Sets the clock forwards or back by `by`.
fn turn(by: Duration, forwards: bool) -> Result<()> {
    let clock = ClockId::CLOCK_REALTIME;
    let (now, by) = (clock_gettime(clock)?, TimeSpec::from_duration(by));
    clock_settime(clock, if forwards { now + by } else { now - by }).context("setting the clock")
}
