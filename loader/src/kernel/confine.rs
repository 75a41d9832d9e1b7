//! A seccomp filter. Once everything is attached, xctl needs only the system calls for reading, printing and ending.
//! Any other system call ends the process with SIGSYS.

use std::io;

use libbpf_sys as sys;

/// Tasks that must still be possible besides reading events and printing them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Look for network namespaces and enter them, in threads of their own: `--verify`.
    pub namespaces: bool,
    /// Put a file on disk, give it another name, or remove it: `--record`, `--metrics-file`, a Unix socket.
    pub names: bool,
    /// Make files: `--metrics-file`.
    pub files: bool,
    /// Let clients in: `--metrics`.
    pub clients: bool,
    /// Draw on a terminal: `xctl top`.
    pub terminal: bool,
}

/// The condition under which one system call is allowed. The filter compares only the low 32 bits of an argument: the
/// arguments in question have no other bits.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// Every call is allowed.
    All(libc::c_long),
    /// A call is allowed if the argument of this index is one of these values.
    OneOf(libc::c_long, u32, &'static [u32]),
    /// A call is allowed if its argument of this index, masked with the first bits, equals the second bits.
    Bits(libc::c_long, u32, u32, u32),
    /// As `Bits`, but other calls are left to a later rule.
    Also(libc::c_long, u32, u32, u32),
    /// No call is allowed, and the call fails as on a kernel that lacks it (ENOSYS). The callers have another way.
    Absent(libc::c_long),
}

use Rule::{Absent, All, Also, Bits, OneOf};

/// Allow calls whose argument of this index has none of these bits.
const fn without(number: libc::c_long, index: u32, bits: u32) -> Rule {
    Bits(number, index, bits, 0)
}

/// The flags of open(2) with which a file could change.
const WRITING: u32 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u32;
/// The flags that say how open(2) makes or changes a file, and those of a new file. With O_EXCL, nothing that exists is opened.
const MAKING: u32 = WRITING | libc::O_EXCL as u32;
const NEW_FILE: u32 = (libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL) as u32;
const EXECUTABLE: u32 = libc::PROT_EXEC as u32;

/// The only signal that abort() sends, to its own thread. A panic ends with abort().
const ABORT: &[u32] = &[libc::SIGABRT as u32];

/// The flags with which clone(2) makes a thread, and those that would put the thread into namespaces of its own.
const THREAD: u32 = (libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM) as u32;
const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// The commands of bpf(2) that are still made.
const ON_MAPS: &[u32] = &[
    sys::BPF_MAP_LOOKUP_ELEM,
    sys::BPF_MAP_GET_NEXT_KEY,
    sys::BPF_OBJ_GET_INFO_BY_FD,
    // The epoch of PROCESS_TOTALS is switched, and the entries of the epoch before are removed. So is the ring of a CPU that
    // went offline.
    sys::BPF_MAP_UPDATE_ELEM,
    sys::BPF_MAP_DELETE_ELEM,
    // The accounts of connections that are open at the end.
    sys::BPF_MAP_LOOKUP_BATCH,
    sys::BPF_PROG_TEST_RUN,
    // The same for --verify, by an iterator that is attached already.
    sys::BPF_ITER_CREATE,
];

/// The calls of the main loop and of the end, on every architecture; the most frequent first.
const ALWAYS: &[Rule] = &[
    All(libc::SYS_epoll_pwait),
    All(libc::SYS_ppoll),
    All(libc::SYS_write),
    All(libc::SYS_read),
    All(libc::SYS_clock_gettime), // where the vDSO cannot read the clock
    // The state of an owner is read from /proc/PID/stat.
    without(libc::SYS_openat, 2, WRITING),
    All(libc::SYS_statx),
    All(libc::SYS_newfstatat),
    All(libc::SYS_fstat),
    All(libc::SYS_lseek),
    // The names of network namespaces, and cgroups, are looked up in folders.
    All(libc::SYS_getdents64),
    All(libc::SYS_close),
    // musl sets close-on-exec once more.
    OneOf(libc::SYS_fcntl, 1, &[libc::F_SETFD as u32]),
    // Signal 0 tells whether a process exists where /proc hides it. Signal 0 does nothing else.
    OneOf(libc::SYS_kill, 1, &[0]),
    // Maps are read, and totals are moved out of a map. Programs and links are asked for the number of skipped runs.
    OneOf(libc::SYS_bpf, 0, ON_MAPS),
    // The allocator needs these calls, and HashMap needs a seed.
    All(libc::SYS_brk),
    without(libc::SYS_mmap, 2, EXECUTABLE),
    without(libc::SYS_mprotect, 2, EXECUTABLE),
    All(libc::SYS_munmap),
    // The ring of a CPU that went offline is no longer watched.
    OneOf(libc::SYS_epoll_ctl, 1, &[libc::EPOLL_CTL_DEL as u32]),
    All(libc::SYS_mremap),
    All(libc::SYS_madvise),
    All(libc::SYS_getrandom),
    // The standard library and the C library make these calls.
    All(libc::SYS_writev),
    All(libc::SYS_futex),
    All(libc::SYS_clock_nanosleep),
    All(libc::SYS_nanosleep),
    All(libc::SYS_restart_syscall),
    All(libc::SYS_sched_yield),
    All(libc::SYS_rt_sigprocmask),
    All(libc::SYS_rt_sigaction),
    All(libc::SYS_rt_sigreturn),
    All(libc::SYS_sigaltstack),
    // These calls end the process, also by a panic.
    All(libc::SYS_getpid),
    All(libc::SYS_gettid),
    OneOf(libc::SYS_tgkill, 2, ABORT), // abort() of glibc
    OneOf(libc::SYS_tkill, 1, ABORT),  // abort() of musl
    All(libc::SYS_exit),
    All(libc::SYS_exit_group),
];

/// The calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OLDER: &[Rule] = &[
    All(libc::SYS_epoll_wait),
    All(libc::SYS_poll),
    All(libc::SYS_readlink),
    without(libc::SYS_open, 1, WRITING),
    All(libc::SYS_stat),
    All(libc::SYS_lstat),
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[Rule] = &[];

/// The calls for looking for network namespaces and entering them.
const NAMESPACES: &[Rule] = &[
    // capget(2) tells whether network namespaces may be entered.
    All(libc::SYS_capget),
    All(libc::SYS_readlinkat),
    // The type of a file is checked before it is opened and after: the file must stand for a network namespace.
    All(libc::SYS_fstatfs),
    OneOf(libc::SYS_ioctl, 1, &[libc::NS_GET_NSTYPE as u32]),
    OneOf(libc::SYS_setns, 1, &[libc::CLONE_NEWNET as u32]),
    // Each namespace gets a thread of its own. clone3() has its flags in memory, where no filter sees them; after
    // ENOSYS glibc calls clone() instead.
    Bits(libc::SYS_clone, 0, THREAD | NEW_NAMESPACES, THREAD),
    Absent(libc::SYS_clone3),
    All(libc::SYS_set_robust_list),
    All(libc::SYS_rseq),
    All(libc::SYS_sched_getaffinity),
];

/// The calls for putting a file on disk and giving it its final name, or removing the file.
const NAMES: &[Rule] =
    &[All(libc::SYS_fsync), All(libc::SYS_renameat), All(libc::SYS_renameat2), All(libc::SYS_unlinkat)];
#[cfg(target_arch = "x86_64")]
const RENAME: &[Rule] = &[All(libc::SYS_rename), All(libc::SYS_unlink)];
#[cfg(not(target_arch = "x86_64"))]
const RENAME: &[Rule] = &[];

/// The calls for making a file. Other calls of open(2) are left to [`ALWAYS`] and [`OLDER`].
const FILES: &[Rule] = &[Also(libc::SYS_openat, 2, MAKING, NEW_FILE)];
#[cfg(target_arch = "x86_64")]
const OLDER_FILES: &[Rule] = &[Also(libc::SYS_open, 1, MAKING, NEW_FILE)];
#[cfg(not(target_arch = "x86_64"))]
const OLDER_FILES: &[Rule] = &[];

/// The call for letting a client in. Its descriptor is read and written like any other.
const CLIENTS: &[Rule] = &[All(libc::SYS_accept4)];

/// TCGETS2 and TCSETS2, which glibc takes from version 2.42 on.
const NEWER_MODE: [u32; 2] = [0x802c_542a, 0x402c_542b];

/// The calls for the mode and the size of a terminal. `xctl top`, which makes them, never needs [`NAMESPACES`].
const TERMINAL: &[Rule] = &[OneOf(
    libc::SYS_ioctl,
    1,
    &[libc::TCGETS as u32, libc::TCSETS as u32, libc::TIOCGWINSZ as u32, NEWER_MODE[0], NEWER_MODE[1]],
)];

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64

/// Offsets in struct seccomp_data. Arguments are 64 bits wide, and both architectures are little-endian.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

pub(super) const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
pub(super) const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
pub(super) const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// An instruction of classic BPF; `yes` and `no` are the numbers of instructions to skip after a comparison.
pub(super) const fn instruction(code: u32, k: u32, yes: u8, no: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: yes, jf: no, k }
}

const ALLOW: libc::sock_filter = instruction(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);
const KILL: libc::sock_filter = instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0, 0);

/// The filter program (classic BPF). The program compares the architecture, then for each rule the number and, if the
/// rule has one, an argument. x32 calls have numbers of their own, which are in no rule.
fn program(rules: &[&[Rule]]) -> Vec<libc::sock_filter> {
    let argument = |index: u32| instruction(LOAD, ARGUMENTS + 8 * index, 0, 0);
    let mut program = vec![instruction(LOAD, ARCHITECTURE, 0, 0), instruction(EQUAL, ARCH, 1, 0), KILL];
    program.push(instruction(LOAD, NUMBER, 0, 0));
    for rule in rules.iter().copied().flatten() {
        let (number, body) = match *rule {
            All(number) => (number, vec![ALLOW]),
            Bits(number, index, bits, value) => {
                let compare = [instruction(AND, bits, 0, 0), instruction(EQUAL, value, 1, 0)];
                (number, [&[argument(index)], &compare[..], &[KILL, ALLOW]].concat())
            }
            // The number is loaded again for the rules that follow.
            Also(number, index, bits, value) => {
                let compare = [instruction(AND, bits, 0, 0), instruction(EQUAL, value, 0, 1)];
                let reload = instruction(LOAD, NUMBER, 0, 0);
                (number, [&[argument(index)], &compare[..], &[ALLOW, reload]].concat())
            }
            Absent(number) => (number, vec![instruction(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, 0, 0)]),
            OneOf(number, index, values) => {
                let mut body = vec![argument(index)];
                for (at, &value) in values.iter().enumerate() {
                    // A match skips the other comparisons and the refusal.
                    body.push(instruction(EQUAL, value, (values.len() - at) as u8, 0));
                }
                body.extend([KILL, ALLOW]);
                (number, body)
            }
        };
        program.push(instruction(EQUAL, number as u32, 0, body.len() as u8));
        program.extend(body);
    }
    program.push(KILL);
    program
}

/// Restrict the calling thread, and the threads that it starts, to the system calls that are still needed.
/// `no_new_privs` must be set. Nothing undoes the restriction.
///
/// # Errors
/// `EINVAL` or `ENOSYS`: this kernel has no seccomp filters.
pub fn confine(needs: Needs) -> io::Result<()> {
    let mut rules = Vec::new();
    if needs.files {
        rules.extend([FILES, OLDER_FILES]);
    }
    rules.extend([ALWAYS, OLDER]);
    if needs.clients {
        rules.push(CLIENTS);
    }
    if needs.namespaces {
        rules.push(NAMESPACES);
    }
    if needs.terminal {
        rules.push(TERMINAL);
    }
    if needs.names {
        rules.extend([NAMES, RENAME]);
    }
    let mut program = program(&rules);
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    const NO_FLAGS: libc::c_ulong = 0;
    // SAFETY: the kernel copies the program, whose length is that of the vector.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, NO_FLAGS, &raw const program) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Rule {
        fn number(self) -> libc::c_long {
            match self {
                All(number) | OneOf(number, ..) | Bits(number, ..) | Also(number, ..) | Absent(number) => number,
            }
        }
    }

    /// The answer of the filter, by an interpreter of the few instructions that the filter consists of.
    fn answer(program: &[libc::sock_filter], arch: u32, number: libc::c_long, arguments: [u64; 6]) -> u32 {
        let load = |offset: u32| match offset {
            NUMBER => number as u32,
            ARCHITECTURE => arch,
            offset => arguments[((offset - ARGUMENTS) / 8) as usize] as u32,
        };
        let (mut at, mut loaded) = (0, 0);
        loop {
            let libc::sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let jump = |taken| usize::from(if taken { jt } else { jf });
            match u32::from(code) {
                LOAD => loaded = load(k),
                EQUAL => at += jump(loaded == k),
                AND => loaded &= k,
                RETURN => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn only_needed_system_calls_are_allowed() {
        let program = program(&[ALWAYS, OLDER]);
        let allowed = |number, arguments| match answer(&program, ARCH, number, arguments) {
            libc::SECCOMP_RET_ALLOW => true,
            libc::SECCOMP_RET_KILL_PROCESS => false,
            other => panic!("{other:#x}"),
        };
        let none = [0; 6];
        assert!(allowed(libc::SYS_read, none) && allowed(libc::SYS_exit_group, none));
        for number in [libc::SYS_execve, libc::SYS_socket, libc::SYS_ptrace, libc::SYS_setns, libc::SYS_perf_event_open]
        {
            assert!(!allowed(number, none), "{number}");
        }
        let command = |command: u32| [u64::from(command), 0, 0, 0, 0, 0];
        for &needed in ON_MAPS {
            assert!(allowed(libc::SYS_bpf, command(needed)), "{needed}");
        }
        for write in [sys::BPF_MAP_CREATE, sys::BPF_PROG_LOAD, sys::BPF_LINK_CREATE] {
            assert!(!allowed(libc::SYS_bpf, command(write)), "{write}");
        }
        let third = |value: i32| [0, 0, value as u64, 0, 0, 0];
        assert!(!allowed(libc::SYS_fcntl, [0, libc::F_SETFL as u64, 0, 0, 0, 0]));
        assert!(allowed(libc::SYS_openat, third(libc::O_RDONLY | libc::O_CLOEXEC)));
        assert!(!allowed(libc::SYS_openat, third(libc::O_RDWR)) && !allowed(libc::SYS_openat, third(libc::O_CREAT)));
        assert!(allowed(libc::SYS_mmap, third(libc::PROT_READ | libc::PROT_WRITE)));
        assert!(!allowed(libc::SYS_mmap, third(libc::PROT_READ | libc::PROT_EXEC)));
        assert!(allowed(libc::SYS_epoll_ctl, [0, libc::EPOLL_CTL_DEL as u64, 0, 0, 0, 0]));
        assert!(!allowed(libc::SYS_epoll_ctl, [0, libc::EPOLL_CTL_ADD as u64, 0, 0, 0, 0]));
        for signal in 0..=64 {
            let abort = signal == libc::SIGABRT as u64;
            assert_eq!(allowed(libc::SYS_kill, [1, signal, 0, 0, 0, 0]), signal == 0, "{signal}");
            assert_eq!(allowed(libc::SYS_tkill, [1, signal, 0, 0, 0, 0]), abort, "{signal}");
            assert_eq!(allowed(libc::SYS_tgkill, [1, 1, signal, 0, 0, 0]), abort, "{signal}");
        }
    }

    #[test]
    fn files_may_be_made_but_not_changed() {
        let opens = |rules: &[&[Rule]], flags: i32| {
            let program = program(rules);
            let answers = answer(&program, ARCH, libc::SYS_openat, [0, 0, flags as u64, 0, 0, 0]);
            // A later rule still holds.
            assert_eq!(answer(&program, ARCH, libc::SYS_read, [0; 6]), libc::SECCOMP_RET_ALLOW);
            assert_eq!(answer(&program, ARCH, libc::SYS_socket, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
            answers == libc::SECCOMP_RET_ALLOW
        };
        let new = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
        let making: &[&[Rule]] = &[FILES, OLDER_FILES, ALWAYS, OLDER];
        assert!(opens(making, new) && opens(making, libc::O_RDONLY | libc::O_CLOEXEC));
        assert!(!opens(&[ALWAYS, OLDER], new));
        for flags in [new & !libc::O_EXCL, new | libc::O_TRUNC, new | libc::O_APPEND, libc::O_WRONLY, libc::O_RDWR] {
            assert!(!opens(making, flags), "{flags:#x}");
        }
    }

    /// The flags of clone(2) in `pthread_create` of musl and of glibc.
    const THREADS: [u64; 2] = [0x7d_0f00, 0x3d_0f00];

    #[test]
    fn threads_may_be_made_only_to_enter_namespaces() {
        let program = program(&[ALWAYS, OLDER, NAMESPACES]);
        let clone = |flags: u64| answer(&program, ARCH, libc::SYS_clone, [flags, 0, 0, 0, 0, 0]);
        for thread in THREADS {
            assert_eq!(clone(thread), libc::SECCOMP_RET_ALLOW, "{thread:#x}");
            for needed in [libc::CLONE_THREAD, libc::CLONE_SIGHAND, libc::CLONE_VM] {
                assert_eq!(clone(thread & !(needed as u64)), libc::SECCOMP_RET_KILL_PROCESS, "{needed:#x}");
            }
            // These are the bits of CLONE_NEW*. CLONE_NEWTIME is for clone3() and unshare() alone.
            for bit in [17, 25, 26, 27, 28, 29, 30] {
                assert_eq!(clone(thread | 1 << bit), libc::SECCOMP_RET_KILL_PROCESS, "{bit}");
            }
        }
        assert_eq!(clone(libc::SIGCHLD as u64), libc::SECCOMP_RET_KILL_PROCESS); // fork()
        let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        assert_eq!(answer(&program, ARCH, libc::SYS_clone3, [0; 6]), absent);
        for option in 0..=u64::from(u8::MAX) {
            let call = answer(&program, ARCH, libc::SYS_prctl, [option, 0, 0, 0, 0, 0]);
            assert_eq!(call, libc::SECCOMP_RET_KILL_PROCESS, "prctl {option}");
        }
        // Without the need for namespaces, no thread may be made.
        let alone = super::program(&[ALWAYS, OLDER]);
        assert_eq!(answer(&alone, ARCH, libc::SYS_clone, [THREADS[0], 0, 0, 0, 0, 0]), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn a_terminal_gets_its_mode_and_nothing_that_puts_bytes_into_it() {
        let program = program(&[ALWAYS, OLDER, TERMINAL]);
        let ioctl = |request: u64| answer(&program, ARCH, libc::SYS_ioctl, [0, request, 0, 0, 0, 0]);
        for needed in [libc::TCGETS, libc::TCSETS, libc::TIOCGWINSZ] {
            assert_eq!(ioctl(needed as u64), libc::SECCOMP_RET_ALLOW, "{needed:#x}");
        }
        for other in [libc::TIOCSTI, libc::TIOCSCTTY, libc::TIOCSETD] {
            assert_eq!(ioctl(other as u64), libc::SECCOMP_RET_KILL_PROCESS, "{other:#x}");
        }
        let alone = super::program(&[ALWAYS, OLDER]);
        let mode = [0, libc::TCSETS as u64, 0, 0, 0, 0];
        assert_eq!(answer(&alone, ARCH, libc::SYS_ioctl, mode), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn every_number_without_a_rule_ends_the_process() {
        let rules = [ALWAYS, OLDER, NAMESPACES, NAMES, RENAME, CLIENTS];
        let program = program(&rules);
        let numbers: Vec<_> = rules.iter().copied().flatten().map(|rule| rule.number()).collect();
        for number in (0..1024).filter(|number| !numbers.contains(number)) {
            assert_eq!(answer(&program, ARCH, number, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS, "{number}");
        }
        let mut once = numbers.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), numbers.len(), "of two rules for a call only the first decides");
    }

    #[test]
    fn calls_of_another_architecture_are_refused() {
        let program = program(&[ALWAYS, OLDER, NAMESPACES]);
        assert_eq!(answer(&program, 0x4000_0003, libc::SYS_read, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
        const X32: libc::c_long = 1 << 30;
        assert_eq!(answer(&program, ARCH, X32 | libc::SYS_read, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
        let netns = [0, libc::CLONE_NEWNET as u64, 0, 0, 0, 0];
        assert_eq!(answer(&program, ARCH, libc::SYS_setns, netns), libc::SECCOMP_RET_ALLOW);
        assert_eq!(answer(&program, ARCH, libc::SYS_setns, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    }
}
