//! Copies of xctl's own object without something that xctl needs. A case about that part must fail with such an object.

use xctl::model::embedded;
use xctl::model::events::Owner;
use xctl::object::{Btf, BtfExt, ObjectFile};

/// An object, and the code of its programs, to be altered.
struct Code {
    bytes: Vec<u8>,
    /// For each program, and each function that programs call: its name, its offset, and its number of instructions.
    programs: Vec<(String, usize, usize)>,
    /// The offsets of instructions that will be relocated.
    relocated: Vec<usize>,
}

const LOAD: u8 = 0x79;
const COPY: u8 = 0xbf;
const MOVE: u8 = 0xb7;
const AND: u8 = 0x57;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const JUMP_IF_EQUAL: u8 = 0x15;
/// The code of an instruction that loads a number of 64 bits. The next instruction is its second half.
const LOAD_64: u8 = 0x18;

impl Code {
    fn of_ours() -> Code {
        let bytes = embedded::object().expect("our own object");
        let object = ObjectFile::parse(&bytes).expect("our own object");
        let btf = Btf::parse(object.btf.expect("its BTF")).expect("its BTF");
        let ext = BtfExt::parse(object.btf_ext.expect("its .BTF.ext"), &btf).expect("its .BTF.ext");
        let in_file = |name: &str, offset: u64| {
            let section = object.sections.iter().find(|section| section.name == name).expect("the section");
            (section.offset + offset) as usize
        };
        let programs = object.programs.iter().chain(&object.subprograms);
        let programs = programs.map(|one| (one.name.to_owned(), in_file(one.section, one.offset), one.insns)).collect();
        let stretches = ext.relocations.iter();
        let relocated = stretches
            .flat_map(|stretch| stretch.records.iter().map(|record| in_file(stretch.section, record.offset.into())))
            .collect();
        Code { programs, relocated, bytes: bytes.clone() }
    }

    /// Writes an instruction that works on `r0`.
    fn put(&mut self, at: usize, code: u8, jump: i16, number: i32) {
        self.bytes[at..at + 2].copy_from_slice(&[code, 0]);
        self.bytes[at + 2..at + 4].copy_from_slice(&jump.to_le_bytes());
        self.bytes[at + 4..at + 8].copy_from_slice(&number.to_le_bytes());
    }

    /// The offsets of all instructions of all programs that have this code and this number.
    fn find(&self, code: u8, number: i32) -> Vec<usize> {
        let all = self.programs.iter().flat_map(|(_, begin, insns)| (*begin..begin + insns * 8).step_by(8));
        let number = number.to_le_bytes();
        let found: Vec<_> = all.filter(|at| self.bytes[*at] == code && self.bytes[at + 4..at + 8] == number).collect();
        assert!(!found.is_empty(), "no instruction {code:#x} {number:?}");
        found
    }
}

/// Disables these programs: they are in the object, and do nothing.
pub fn programs(programs: &[&str]) -> Vec<u8> {
    let mut code = Code::of_ours();
    for name in programs {
        let (_, begin, insns) = code.programs.iter().find(|(own, ..)| own == name).expect("the program").clone();
        let at = |number: usize| begin + number * 8;
        // such an instruction is not relocated, and not half of an instruction that takes two places
        let free = |number: usize| {
            let halves = [at(number.saturating_sub(1)), at(number)].iter().any(|at| code.bytes[*at] == LOAD_64);
            !code.relocated.contains(&at(number)) && !halves
        };
        // the verifier refuses unreachable instructions: so the jump has a condition, which is always true
        let first = (0..insns - 1).find(|number| free(*number) && free(number + 1)).expect("two instructions");
        let jump = first + 1;
        let exit = (0..insns).rfind(|number| code.bytes[at(*number)] == EXIT).expect("an exit");
        code.put(at(first), MOVE, 0, 0);
        code.put(at(jump), JUMP_IF_EQUAL, i16::try_from(exit - jump - 1).expect("a short program"), 0);
    }
    code.bytes
}

/// Removes a program, by another name.
pub fn name(program: &str) -> Vec<u8> {
    let mut bytes = embedded::object().expect("our own object");
    let text = format!("\0{program}\0");
    let places: Vec<_> = (0..bytes.len() - text.len()).filter(|at| bytes[*at..].starts_with(text.as_bytes())).collect();
    assert!(!places.is_empty(), "nothing is called {program}");
    for at in places {
        bytes[at + 1] = b'X';
    }
    bytes
}

/// Removes an argument that a program of a raw tracepoint reads: the program reads the last possible argument instead.
pub fn argument(program: &str) -> Vec<u8> {
    const LAST: i16 = 11 * 8;
    let mut code = Code::of_ours();
    let (_, begin, insns) = code.programs.iter().find(|(own, ..)| own == program).expect("the program").clone();
    // r1 points to the arguments when the program begins, and other registers get copies of this pointer
    let mut pointers = vec![1];
    let mut load = None;
    for at in (begin..begin + insns * 8).step_by(8) {
        let (to, from) = (code.bytes[at + 1] & 15, code.bytes[at + 1] >> 4);
        match code.bytes[at] {
            LOAD if pointers.contains(&from) => {
                load = Some(at);
                break;
            }
            COPY if pointers.contains(&from) => pointers.push(to),
            CALL => pointers.retain(|register| *register > 5),
            _ => pointers.retain(|register| *register != to),
        }
    }
    let load = load.expect("a load of an argument");
    code.bytes[load + 2..load + 4].copy_from_slice(&LAST.to_le_bytes());
    code.bytes
}

/// Removes the check for kernel threads: the programs take them for processes.
pub fn kernel_threads() -> Vec<u8> {
    const PF_KTHREAD: i32 = 0x0020_0000;
    let mut code = Code::of_ours();
    for at in code.find(AND, PF_KTHREAD) {
        code.bytes[at + 4..at + 8].fill(0);
    }
    code.bytes
}

/// Removes the check for the kernel's own sockets: the programs read another field of the socket, which is zero.
pub fn kernel_sockets() -> Vec<u8> {
    const FIELD: &[u8] = b"\0sk_kern_sock\0";
    const ZERO: &[u8] = b"\0sk_userlocks\0";
    let mut bytes = embedded::object().expect("our own object").clone();
    let places: Vec<_> = (0..bytes.len() - FIELD.len()).filter(|at| bytes[*at..].starts_with(FIELD)).collect();
    let [at] = places[..] else { panic!("{} fields of that name", places.len()) };
    bytes[at..at + ZERO.len()].copy_from_slice(ZERO);
    bytes
}

/// Removes the check whether another process sends on a socket with a known sender: the programs always find the same
/// process.
pub fn same_process() -> Vec<u8> {
    const IF_GREATER: u8 = 0x2d;
    const COPY: u8 = 0xbf;
    let mut code = Code::of_ours();
    // only the upper halves of the ids are compared: their difference is greater than 32 bits of ones
    for at in code.find(LOAD_64, -1).into_iter().map(|at| at + 16) {
        if code.bytes[at] == IF_GREATER {
            let to = code.bytes[at + 1] & 15;
            code.bytes[at..at + 8].copy_from_slice(&[COPY, to << 4 | to, 0, 0, 0, 0, 0, 0]);
        }
    }
    code.bytes
}

/// Removes the start times of processes: all processes have the same start time.
pub fn start_times() -> Vec<u8> {
    const DIVIDE: u8 = 0x37;
    const TICK: i32 = 10_000_000;
    let mut code = Code::of_ours();
    for at in code.find(DIVIDE, TICK) {
        code.bytes[at] = MOVE;
        code.bytes[at + 4..at + 8].fill(0);
    }
    code.bytes
}

/// Removes the check whether an entry of SOCKET_TO_PID belongs to the socket, for entries that are tied to no socket. Every
/// socket that asks gets such an entry.
pub fn own_entries() -> Vec<u8> {
    const IF: [u8; 2] = [0x1d, 0x5d];
    const LOAD_BYTE: u8 = 0x71;
    let known_by = (std::mem::offset_of!(Owner, known_by) as u16).to_le_bytes();
    let mut code = Code::of_ours();
    let mut altered = 0;
    // the entry's first field is compared with a register; the next instruction reads the byte with the field's kind
    for at in code.find(LOAD, 0) {
        let [read, like, kind] = [0, 8, 16].map(|more| &code.bytes[at + more..at + more + 8]);
        let to = read[1] & 15;
        let compared = IF.contains(&like[0]) && like[1] & 15 == to && kind[0] == LOAD_BYTE && kind[2..4] == known_by;
        if read[2..4] == [0, 0] && compared {
            // the comparison is of the field with itself
            code.bytes[at + 9] = to << 4 | to;
            altered += 1;
        }
    }
    assert!(altered > 0, "nowhere is an entry's socket compared");
    code.bytes
}

/// Disables all output: no record reaches a ring.
pub fn output() -> Vec<u8> {
    const PERF_EVENT_OUTPUT: i32 = 25;
    const RINGBUF_OUTPUT: i32 = 130;
    const EPERM: i32 = 1;
    let mut code = Code::of_ours();
    for at in [code.find(CALL, PERF_EVENT_OUTPUT), code.find(CALL, RINGBUF_OUTPUT)].concat() {
        code.put(at, MOVE, 0, -EPERM);
    }
    code.bytes
}

/// Disables removal from maps: every map is always busy.
pub fn removal() -> Vec<u8> {
    const MAP_DELETE_ELEM: i32 = 3;
    const EBUSY: i32 = 16;
    let mut code = Code::of_ours();
    for at in code.find(CALL, MAP_DELETE_ELEM) {
        code.put(at, MOVE, 0, -EBUSY);
    }
    code.bytes
}

/// Limits the number of processes in the totals.
pub fn room_for_totals(processes: u32) -> Vec<u8> {
    room(4096, processes)
}

/// Limits the number of network namespaces in the totals.
pub fn room_for_netns_totals(namespaces: u32) -> Vec<u8> {
    room(1024, namespaces)
}

/// Gives the one map that has room for `was` entries room for `entries`.
fn room(was: u32, entries: u32) -> Vec<u8> {
    const ARRAY: u32 = 3 << 24;
    let mut bytes = embedded::object().expect("our own object");
    let object = ObjectFile::parse(&bytes).expect("our own object");
    let section = object.sections.iter().find(|section| section.name == ".BTF").expect("its BTF");
    let begin = section.offset as usize;
    // a map's size is the length of an array type in its BTF: no name, kind, 0, element, index, length
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    let sizes = (begin..begin + section.size as usize - 20).step_by(4);
    let sizes: Vec<_> =
        sizes.filter(|at| [word(*at), word(at + 4), word(at + 8), word(at + 20)] == [0, ARRAY, 0, was]).collect();
    let [size] = sizes[..] else { panic!("{} arrays of {was}", sizes.len()) };
    bytes[size + 20..size + 24].copy_from_slice(&entries.to_le_bytes());
    bytes
}
