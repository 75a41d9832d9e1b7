//! Whether the programs of xctl's object fit on the stack that the kernel gives them.
//!
//! A program and all functions that are active in it share 512 bytes (MAX_BPF_STACK, check_max_stack_depth() in
//! kernel/bpf/verifier.c). The kernel rounds each frame up, on 5.10 to 32 bytes and on 7.2 to 16. A kernel refuses what is
//! deeper, but only where it loads that program.

use std::collections::{BTreeMap, BTreeSet};

use xctl::model::embedded;
use xctl::object::image::Image;
use xctl::object::insn::{CALL, Insn, PSEUDO_CALL, class};
use xctl::object::relo::Relocations;
use xctl::object::{Btf, BtfExt, ObjectFile};

const MAX_BPF_STACK: u64 = 512;
const FRAME_ALIGNMENT: u64 = 32;
/// The register that points behind the frame of the running function.
const FRAME: u8 = 10;

/// A function of a laid-out program: the lowest byte of its frame that it names, and the functions that it calls.
#[derive(Debug, Default)]
struct Function {
    frame: u64,
    calls: BTreeSet<usize>,
}

/// The functions of a program, by their first instructions.
fn functions(insns: &[Insn]) -> BTreeMap<usize, Function> {
    let called = |(at, insn): (usize, &Insn)| {
        let is_call = insn.code == CALL && insn.src == PSEUDO_CALL;
        is_call.then(|| usize::try_from(at as i64 + 1 + i64::from(insn.imm)).unwrap())
    };
    let mut functions: BTreeMap<usize, Function> = BTreeMap::from([(0, Function::default())]);
    functions.extend(insns.iter().enumerate().filter_map(called).map(|begins| (begins, Function::default())));
    // A copy of the frame's address, which the next instruction makes an address inside the frame.
    let mut copy = None;
    for (at, insn) in insns.iter().enumerate() {
        let function = functions.range_mut(..=at).next_back().unwrap().1;
        function.calls.extend(called((at, insn)));
        let offset = match insn.class() {
            class::LDX if insn.src == FRAME => insn.off.into(),
            class::ST | class::STX if insn.dst == FRAME => insn.off.into(),
            // dst += imm
            class::ALU64 if insn.code == 0x07 && copy == Some(insn.dst) => insn.imm,
            _ => 0,
        };
        function.frame = function.frame.max(u64::try_from(-i64::from(offset)).unwrap_or(0));
        // dst = r10
        copy = (insn.code == 0xbf && insn.src == FRAME).then_some(insn.dst);
    }
    functions
}

/// The deepest chain of calls: its bytes of stack, and the frames of its functions.
fn deepest(functions: &BTreeMap<usize, Function>, begins: usize) -> (u64, Vec<u64>) {
    let function = &functions[&begins];
    let below = function.calls.iter().map(|called| deepest(functions, *called)).max();
    let (depth, mut frames) = below.unwrap_or_default();
    frames.insert(0, function.frame);
    (depth + function.frame.max(1).next_multiple_of(FRAME_ALIGNMENT), frames)
}

#[test]
fn every_chain_of_calls_fits_on_the_stack() {
    let bytes = &embedded::object().unwrap();
    let object = ObjectFile::parse(bytes).unwrap();
    let btf = Btf::parse(object.btf.unwrap()).unwrap();
    let ext = BtfExt::parse(object.btf_ext.unwrap(), &btf).unwrap();
    let code = Relocations::new(bytes, &object, &btf, &ext, None).unwrap();
    let programs = object.programs.iter().filter(|program| program.section != ".text");
    let depths: Vec<_> = programs
        .map(|program| {
            let insns = Image::of(program, &object, &code).fill(|_| 0);
            (deepest(&functions(&insns), 0), program.name)
        })
        .collect();
    let deep: Vec<_> = depths.iter().filter(|((depth, _), _)| *depth > MAX_BPF_STACK).collect();
    assert!(deep.is_empty(), "more than {MAX_BPF_STACK} bytes, with the frames of the calls: {deep:?}");
    // xctl's programs do call functions, and use their frames.
    let most = depths.iter().map(|((depth, frames), _)| (*depth, frames.len())).max().unwrap();
    assert!(most.0 > MAX_BPF_STACK / 2 && most.1 > 1, "{most:?}");
}
