//! The check that a program after verification is still the same program.
//!
//! The verifier rewrites a program that it has accepted, and the kernel shows the result. Both programs are walked at
//! once from their beginnings, through all pairs of places that belong together. Each step of one program must be the
//! same step of the other. The only exceptions are known changes by the kernel (kernel/bpf/verifier.c, and
//! `bpf_insn_prepare_dump` in kernel/bpf/syscall.c):
//!
//! - Maps are shown by their ids.
//! - A branch that can go only one way becomes a jump or is removed. The instructions that such a branch leads past are
//!   removed too, and so is a jump to the instruction that is then the next. The targets of jumps are compared, not
//!   their distances. The verifier's finding that a branch goes only one way is not checked.
//! - A call to a helper becomes a call to a function of the kernel; the address of the function is not compared. Some
//!   helpers become a few instructions instead. These may write only registers 0 to 5, and memory that these point to.
//! - A division gets instructions around it that lead past the division if the divisor is zero or -1. These may set the
//!   result to 0, negate it, or clear its upper half.
//!
//! Nothing else explains a difference. A call of something that does not exist has no counterpart: libbpf replaces an
//! unresolved access by such a call, and the verifier refuses the program if it reaches the call. An instruction that
//! no step leads to must not be in the translation.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use serde::Serialize;

use super::tag::{PSEUDO_MAP_FD, PSEUDO_MAP_VALUE};
use crate::object::insn::{CALL, EXIT, Insn, PSEUDO_CALL, class};
use crate::object::sort;

/// The value of `src` in a 64-bit load of a function's address.
const PSEUDO_FUNC: u8 = 4;

/// `BPF_JMP | BPF_JA`
const JA: u8 = 0x05;

/// The verifier's own register, which no program can name (`BPF_REG_AX`).
const AX: u8 = 11;

/// The helpers that some kernels replace by instructions (`do_misc_fixups`): map_lookup_elem, get_smp_processor_id,
/// get_current_task, jiffies64, get_current_task_btf, get_func_ip, get_func_arg, get_func_ret, get_func_arg_cnt,
/// map_lookup_percpu_elem.
const INLINED: [i32; 10] = [1, 8, 35, 118, 158, 173, 183, 184, 185, 195];

/// The most instructions that one instruction may become.
const MOST_INLINED: usize = 12;

/// The most pairs of places that may belong together. Programs of thousands of instructions have one or two pairs for
/// each instruction.
const MOST_PAIRS: usize = 1 << 17;

/// The relation of a program after verification to the program that the kernel was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Translation {
    /// Instructions that are the same as in the program, apart from the distances of jumps and the numbers of maps.
    pub same: usize,
    /// Instructions that replace others: calls of the kernel's functions, and the instructions for helpers and
    /// divisions.
    pub rewritten: usize,
    /// Instructions of the program that are gone, since they never run or lead to the next instruction anyway.
    pub dropped: usize,
}

/// The first difference that nothing explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unexplained {
    /// The instruction of the program, if the difference concerns one.
    pub insn: Option<usize>,
    /// The description of the difference.
    pub why: String,
}

/// A place in the program, and a place in its translation.
type Pair = (usize, usize);

/// One way to explain a pair of places. There are thousands at a time.
struct Step {
    /// The numbers of instructions that the step takes, from the program and from its translation.
    taken: (u8, u8),
    /// Whether these instructions are the same in both.
    same: bool,
    /// The numbers of the pairs that must be explained next.
    next: [Option<u32>; 2],
}

impl Step {
    fn next(&self) -> impl Iterator<Item = usize> {
        self.next.into_iter().flatten().map(|number| number as usize)
    }

    fn taken(&self) -> Pair {
        (self.taken.0.into(), self.taken.1.into())
    }
}

/// A pair with half the memory: a program has less than 2^32 instructions. There is a node for each instruction, and comparing
/// takes the most memory of a start.
type Packed = (u32, u32);

struct Node {
    packed: Packed,
    /// The place of the pair's steps among all steps.
    steps: Range<u32>,
    /// Set if no step is possible.
    impossible: Option<Impossible>,
}

impl Node {
    fn pair(&self) -> Pair {
        (self.packed.0 as usize, self.packed.1 as usize)
    }
}

#[derive(Clone, Copy)]
struct Impossible {
    /// The time at which this was found, as the number of pairs excluded before.
    found: u32,
    /// The furthest place in the translation that can be reached from this pair.
    reach: u32,
}

/// Whether the kernel hides constants (`net.core.bpf_jit_harden`). The kernel then computes constants in the verifier's
/// own register.
pub fn is_blinded(translated: &[Insn]) -> bool {
    const MOV_NUMBER: u8 = 0xb7;
    translated.iter().any(|insn| insn.code == MOV_NUMBER && insn.dst == AX)
}

/// Compare a program with its translation. `map_id` returns the id of the map behind a descriptor in `program`.
///
/// # Errors
/// The first difference that nothing explains.
pub fn compare(
    program: &[Insn],
    translated: &[Insn],
    map_id: impl Fn(i32) -> Option<u32>,
) -> Result<Translation, Unexplained> {
    let both = Both { program, translated, map_id };
    let mut nodes = Nodes::with_room(program.len());
    nodes.number((0, 0));
    let mut looked_at = 0;
    while let Some(pair) = nodes.all.get(looked_at).map(Node::pair) {
        if nodes.all.len() > MOST_PAIRS {
            return Err(Unexplained {
                insn: None,
                why: "too many ways lead through the kernel's translation to compare it".to_owned(),
            });
        }
        let first = nodes.steps.len() as u32;
        both.add_steps(pair, &mut nodes);
        nodes.all[looked_at].steps = first..nodes.steps.len() as u32;
        looked_at += 1;
    }
    nodes.exclude();
    if nodes.is_possible(0) { both.count(&nodes) } else { Err(both.first_difference(&nodes)) }
}

/// The pairs of places that may belong together, starting with the first of both programs.
struct Nodes {
    all: Vec<Node>,
    steps: Vec<Step>,
    numbers: HashMap<Packed, u32>,
}

impl Nodes {
    /// Room for the pairs of a program with `insns` instructions: a bit more than one for each, and as many steps.
    fn with_room(insns: usize) -> Self {
        let room = insns + insns / 8;
        Self { all: Vec::with_capacity(room), steps: Vec::with_capacity(room), numbers: HashMap::with_capacity(room) }
    }

    fn number(&mut self, pair: Pair) -> u32 {
        let packed = (pair.0 as u32, pair.1 as u32);
        *self.numbers.entry(packed).or_insert_with(|| {
            self.all.push(Node { packed, steps: 0..0, impossible: None });
            self.all.len() as u32 - 1
        })
    }

    /// All ways to explain a pair; the likeliest first.
    fn steps(&self, node: &Node) -> &[Step] {
        &self.steps[node.steps.start as usize..node.steps.end as usize]
    }

    fn is_possible(&self, number: usize) -> bool {
        self.all[number].impossible.is_none()
    }

    /// Exclude every pair whose steps all lead to an excluded pair, until no more pairs are excluded.
    fn exclude(&mut self) {
        let mut excluded = 0;
        // Most steps lead forward, so the last pairs are decided first.
        let mut left: Vec<usize> = (0..self.all.len()).collect();
        // In place, unlike `bpf_object::sort`: memory counts here.
        left.sort_unstable_by_key(|number| Reverse(self.all[*number].packed));
        loop {
            let before = excluded;
            left.retain(|number| {
                let node = &self.all[*number];
                let ends = self.steps(node).iter().map(|step| Some(self.end_of(step, excluded)?.1));
                let here = Some(node.packed.1);
                let Some(reach) = ends.reduce(|most, end| Some(most?.max(end?))).unwrap_or(here) else {
                    return true;
                };
                self.all[*number].impossible = Some(Impossible { found: excluded, reach });
                excluded += 1;
                false
            });
            if excluded == before {
                return;
            }
        }
    }

    /// Among the pairs that a step leads to and that were excluded before, the pair with the shortest reach, and that
    /// reach. None if the step was possible at that time.
    fn end_of(&self, step: &Step, before: u32) -> Option<(usize, u32)> {
        let known = |next: usize| self.all[next].impossible.filter(|impossible| impossible.found < before);
        let ends = step.next().filter_map(|next| Some((next, known(next)?.reach)));
        ends.min_by_key(|(_, reach)| *reach)
    }
}

struct Both<'a, M> {
    program: &'a [Insn],
    translated: &'a [Insn],
    map_id: M,
}

/// The target of a jump at `at` that passes over `distance` instructions.
fn target(at: usize, distance: i64) -> Option<usize> {
    usize::try_from(at as i64 + 1 + distance).ok()
}

impl<M: Fn(i32) -> Option<u32>> Both<'_, M> {
    /// Add all ways to explain a pair of places; the likeliest first.
    fn add_steps(&self, (at, there): Pair, nodes: &mut Nodes) {
        let Some(insn) = self.program.get(at).copied() else { return };
        let found = self.translated.get(there).copied();
        let mut add = |taken, same, next: &[Option<Pair>]| {
            if next.iter().all(Option::is_some) {
                let mut numbers = [None; 2];
                for (number, pair) in numbers.iter_mut().zip(next) {
                    *number = pair.map(|pair| nodes.number(pair));
                }
                nodes.steps.push(Step { taken, same, next: numbers });
            }
        };
        let after = Some((at + 1, there + 1));
        let jump = target(at, insn.off.into());
        match insn.class() {
            class::JMP if insn.code == EXIT => {
                if found == Some(insn) {
                    add((1, 1), true, &[]);
                }
            }
            class::JMP if insn.code == CALL && insn.src == PSEUDO_CALL => {
                if let Some(found) = found.filter(|found| (found.code, found.src) == (CALL, PSEUDO_CALL)) {
                    let called = target(at, insn.imm.into()).zip(target(there, found.off.into()));
                    add((1, 1), true, &[called, after]);
                }
            }
            // The verifier lets no program call something that does not exist, and it drops instructions that are never
            // reached.
            class::JMP if insn.is_poison() => {}
            class::JMP if insn.code == CALL => {
                if found.is_some_and(|found| Insn { imm: insn.imm, ..found } == insn) {
                    add((1, 1), false, &[after]);
                }
                for length in (1..=MOST_INLINED).filter(|_| insn.src == 0 && INLINED.contains(&insn.imm)) {
                    if self.is_inlined(there, length) {
                        add((1, length as u8), false, &[Some((at + 1, there + length))]);
                    }
                }
            }
            class::JMP | class::JMP32 => {
                let always = insn.code == JA;
                let goes = found.filter(|found| found.code == JA).and_then(|found| target(there, found.off.into()));
                if found.is_some_and(|found| !always && Insn { off: insn.off, ..found } == insn) {
                    let goes = found.and_then(|found| target(there, found.off.into()));
                    add((1, 1), true, &[jump.zip(goes), after]);
                }
                if goes.is_some() {
                    add((1, 1), always, &[jump.zip(goes)]);
                }
                // A branch that leads back is never left out.
                if !always {
                    add((1, 0), false, &[Some((at + 1, there))]);
                }
                if insn.off >= 0 {
                    add((1, 0), false, &[jump.map(|jump| (jump, there))]);
                }
            }
            class::LD if insn.is_ldimm64() => {
                if self.is_same_load(at, there) {
                    let function = target(at, insn.imm.into()).zip(found.and_then(|f| target(there, f.imm.into())));
                    let next = [Some((at + 2, there + 2)), function];
                    add((2, 2), true, if insn.src == PSEUDO_FUNC { &next } else { &next[..1] });
                }
            }
            _ => {
                if found == Some(insn) {
                    add((1, 1), true, &[after]);
                }
                let divides =
                    matches!(insn.class(), class::ALU | class::ALU64) && matches!(insn.code & 0xf0, 0x30 | 0x90);
                for length in (2..=MOST_INLINED).filter(|_| divides) {
                    if self.is_guarded(insn, there, length) {
                        add((1, length as u8), false, &[Some((at + 1, there + length))]);
                    }
                }
            }
        }
    }

    /// Whether both load the same 64 bits, the same map, or a function.
    fn is_same_load(&self, at: usize, there: usize) -> bool {
        let both = |insns: &[Insn], at: usize| insns.get(at).copied().zip(insns.get(at + 1).copied());
        let Some(((insn, second), (found, found_second))) = both(self.program, at).zip(both(self.translated, there))
        else {
            return false;
        };
        match insn.src {
            PSEUDO_MAP_FD | PSEUDO_MAP_VALUE => {
                let id = (self.map_id)(insn.imm).map(|id| Insn { imm: id as i32, ..insn });
                id == Some(found) && second == found_second
            }
            PSEUDO_FUNC => Insn { imm: insn.imm, ..found } == insn,
            _ => insn == found && second == found_second,
        }
    }

    /// The instructions from `start`, if all jumps among them stay within them.
    fn closed(&self, start: usize, length: usize) -> Option<&[Insn]> {
        let insns = self.translated.get(start..start + length)?;
        let stays = |(index, insn): (usize, &Insn)| match insn.class() {
            class::JMP if insn.code == CALL => insn.src == 0,
            class::JMP | class::JMP32 => {
                insn.code != EXIT && target(index, insn.off.into()).is_some_and(|to| to > index && to <= length)
            }
            _ => true,
        };
        insns.iter().enumerate().all(stays).then_some(insns)
    }

    /// Whether these instructions touch only what a call may touch.
    fn is_inlined(&self, start: usize, length: usize) -> bool {
        let scratch = |register: u8| register <= 5 || register == AX;
        let harmless = |insn: &Insn| matches!(insn.class(), class::JMP | class::JMP32) || scratch(insn.dst);
        self.closed(start, length).is_some_and(|insns| insns.iter().all(harmless))
    }

    /// Whether these instructions are that division with a check for a zero divisor.
    fn is_guarded(&self, division: Insn, start: usize, length: usize) -> bool {
        // `chk_and_div`, `chk_and_sdiv` and the like in the kernel's do_misc_fixups()
        let sets_result = |insn: &Insn| match insn.code & 0xf8 {
            0xa8 | 0xb8 => insn.src == insn.dst,
            0xb0 => insn.imm == 0,
            0x80 => true,
            _ => *insn == division,
        };
        let calculates = |insn: &Insn| match insn.class() {
            class::ALU | class::ALU64 => insn.dst == AX || (insn.dst == division.dst && sets_result(insn)),
            class::JMP | class::JMP32 => insn.code != CALL,
            _ => false,
        };
        self.closed(start, length).is_some_and(|insns| insns.contains(&division) && insns.iter().all(calculates))
    }

    /// Count the instructions that stayed, were rewritten or were dropped, after everything is explained.
    fn count(&self, nodes: &Nodes) -> Result<Translation, Unexplained> {
        let mut reached = vec![false; self.program.len()];
        let mut explained: Vec<Option<bool>> = vec![None; self.translated.len()];
        let mut seen = vec![false; nodes.all.len()];
        let mut todo = vec![0];
        while let Some(number) = todo.pop() {
            if std::mem::replace(&mut seen[number], true) {
                continue;
            }
            let node = &nodes.all[number];
            let Some(step) = nodes.steps(node).iter().find(|step| step.next().all(|next| nodes.is_possible(next)))
            else {
                continue;
            };
            let (taken, taken_there) = step.taken();
            explained.iter_mut().skip(node.pair().1).take(taken_there).for_each(|slot| *slot = Some(step.same));
            if taken_there > 0 {
                reached.iter_mut().skip(node.pair().0).take(taken).for_each(|slot| *slot = true);
            }
            todo.extend(step.next());
        }
        if let Some(more) = explained.iter().position(Option::is_none) {
            let why = format!(
                "the kernel has instruction {more}, {}, which no instruction of the object explains",
                self.shown(more)
            );
            return Err(Unexplained { insn: None, why });
        }
        let same = explained.iter().filter(|same| **same == Some(true)).count();
        let dropped = reached.iter().filter(|reached| !**reached).count();
        Ok(Translation { same, rewritten: explained.len() - same, dropped })
    }

    /// The place where the longest attempt at an explanation ends.
    fn first_difference(&self, nodes: &Nodes) -> Unexplained {
        let (mut number, mut place) = (0, 0);
        while let node @ Node { impossible: Some(when), .. } = &nodes.all[number] {
            let ends = nodes.steps(node).iter().filter_map(|step| Some((step, nodes.end_of(step, when.found)?)));
            let Some((step, (next, _))) = ends.max_by_key(|(_, (_, reach))| *reach) else { break };
            number = next;
            if step.taken.1 > 0 {
                place = number;
            }
        }
        let (at, there) = self.likeliest(place, nodes);
        let wanted =
            self.program.get(at).map_or("nothing".to_owned(), |insn| insn.text(self.program.get(at + 1).copied()));
        let why = format!("the kernel has, as instruction {there}, {}; it was {wanted}", self.shown(there));
        Unexplained { insn: Some(at), why }
    }

    /// The likeliest counterpart of a place. A branch may be left out, so the translation may stand for any place that
    /// the branch leads to. The first such place with a similar instruction is chosen, if there is one.
    fn likeliest(&self, place: usize, nodes: &Nodes) -> Pair {
        let kind = |insns: &[Insn], at: usize| insns.get(at).map(|insn| (insn.code, insn.dst));
        let (mut places, mut seen) = (VecDeque::from([place]), sort::set([place]));
        while let Some(number) = places.pop_front() {
            let node = &nodes.all[number];
            let pair = node.pair();
            if kind(self.program, pair.0) == kind(self.translated, pair.1) {
                return pair;
            }
            let left_out = nodes.steps(node).iter().filter(|step| step.taken.1 == 0);
            places.extend(left_out.flat_map(Step::next).filter(|next| seen.insert(*next)));
        }
        nodes.all[place].pair()
    }

    fn shown(&self, at: usize) -> String {
        self.translated.get(at).map_or("nothing".to_owned(), |insn| insn.text(self.translated.get(at + 1).copied()))
    }
}

#[cfg(test)]
mod tests;
