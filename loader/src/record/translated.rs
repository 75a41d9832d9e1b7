//! Whether what the verifier made of a program is still that program.
//!
//! The verifier rewrites what it has accepted, and the kernel shows the result. Both programs are walked at once from their
//! beginnings, through all pairs of places that belong together. Each step of the one must be the same step of the other,
//! but for what the kernel is known to do (kernel/bpf/verifier.c, and `bpf_insn_prepare_dump` in kernel/bpf/syscall.c):
//!
//! - Maps are shown by their ids.
//! - A branch of which only one way is possible is a jump, or gone; so is what it leads past, and a jump to what then is
//!   next. What jumps lead to is compared, not how far they go; that a branch goes only one way is the verifier's finding, and
//!   taken as such.
//! - A call to a helper goes to a function of the kernel: to which is not compared. Some are a few instructions instead, which
//!   may touch only what a call may: registers 0 to 5.
//! - A division is led past by a zero.
//!
//! Nothing else explains a difference, nothing stands for a call of what does not exist (libbpf's, where the verifier must
//! not get), and what no step leads to must not be there.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};

use serde::Serialize;

use crate::object::insn::{CALL, EXIT, Insn, PSEUDO_CALL, class};

/// `src` of a 64-bit load of a map, of a place in a map's value, of a function's address.
const PSEUDO_MAP_FD: u8 = 1;
const PSEUDO_MAP_VALUE: u8 = 2;
const PSEUDO_FUNC: u8 = 4;

/// `BPF_JMP | BPF_JA`
const JA: u8 = 0x05;

/// The verifier's own register, which no program can name (`BPF_REG_AX`).
const AX: u8 = 11;

/// Helpers of which some kernels make instructions (`do_misc_fixups`): map_lookup_elem, get_smp_processor_id,
/// get_current_task, jiffies64, get_current_task_btf, get_func_ip, get_func_arg, get_func_ret, get_func_arg_cnt,
/// map_lookup_percpu_elem.
const INLINED: [i32; 10] = [1, 8, 35, 118, 158, 173, 183, 184, 185, 195];

/// Instructions that one may become.
const MOST_INLINED: usize = 12;

/// Pairs of places that may belong together. Programs of thousands of instructions have one or two for each.
const MOST_PAIRS: usize = 1 << 17;

/// How a translated program relates to the one that the kernel was given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Translation {
    /// Instructions that are those of the program, but for how far jumps go and by what maps are named.
    pub same: usize,
    /// Instructions that stand for others: calls of the kernel's functions, and what it makes of helpers and divisions.
    pub rewritten: usize,
    /// Instructions of the program that have nothing left, since they never run or lead to what is next anyway.
    pub dropped: usize,
}

/// The first difference that nothing explains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unexplained {
    /// The instruction of the program, if it is about one.
    pub insn: Option<usize>,
    /// What is there instead.
    pub why: String,
}

/// A place in the program, and one in its translation.
type Pair = (usize, usize);

/// One way to explain a pair of places.
struct Step {
    /// Instructions taken, of the program and of its translation.
    taken: Pair,
    /// They are the same.
    same: bool,
    /// What must be explained then, by number.
    next: [Option<usize>; 2],
}

impl Step {
    fn next(&self) -> impl Iterator<Item = usize> {
        self.next.into_iter().flatten()
    }
}

struct Node {
    pair: Pair,
    /// All ways to explain it; the likeliest first.
    steps: Vec<Step>,
    /// No step is possible.
    impossible: Option<Impossible>,
}

#[derive(Clone, Copy)]
struct Impossible {
    /// When this was found out.
    found: usize,
    /// How far in the translation one gets from here.
    reach: usize,
}

/// Whether the kernel shows constants otherwise than they are (`net.core.bpf_jit_harden`): it puts them together in its own
/// register.
pub fn is_blinded(translated: &[Insn]) -> bool {
    const MOV_NUMBER: u8 = 0xb7;
    translated.iter().any(|insn| insn.code == MOV_NUMBER && insn.dst == AX)
}

/// Compare. `map_id` tells the id of the map behind a descriptor in `program`.
///
/// # Errors
/// The first difference that nothing explains.
pub fn compare(
    program: &[Insn],
    translated: &[Insn],
    map_id: impl Fn(i32) -> Option<u32>,
) -> Result<Translation, Unexplained> {
    let both = Both { program, translated, map_id };
    let mut nodes = Nodes::default();
    nodes.number((0, 0));
    let mut looked_at = 0;
    while let Some(pair) = nodes.all.get(looked_at).map(|node| node.pair) {
        if nodes.all.len() > MOST_PAIRS {
            return Err(Unexplained {
                insn: None,
                why: "too many ways lead through the kernel's translation to compare it".to_owned(),
            });
        }
        nodes.all[looked_at].steps = both.steps(pair, &mut nodes);
        looked_at += 1;
    }
    nodes.exclude();
    if nodes.is_possible(0) { both.count(&nodes) } else { Err(both.first_difference(&nodes)) }
}

/// The pairs of places that may belong together, from the first of both programs on.
#[derive(Default)]
struct Nodes {
    all: Vec<Node>,
    numbers: HashMap<Pair, usize>,
}

impl Nodes {
    fn number(&mut self, pair: Pair) -> usize {
        *self.numbers.entry(pair).or_insert_with(|| {
            self.all.push(Node { pair, steps: Vec::new(), impossible: None });
            self.all.len() - 1
        })
    }

    fn is_possible(&self, number: usize) -> bool {
        self.all[number].impossible.is_none()
    }

    /// Excludes every pair all of whose steps lead to an excluded one, until there are no more.
    fn exclude(&mut self) {
        let mut excluded = 0;
        // A step leads on, mostly: what is last is known first.
        let mut left: Vec<usize> = (0..self.all.len()).collect();
        left.sort_unstable_by_key(|number| Reverse(self.all[*number].pair));
        loop {
            let before = excluded;
            left.retain(|number| {
                let node = &self.all[*number];
                let ends = node.steps.iter().map(|step| Some(self.end_of(step, excluded)?.1));
                let Some(reach) = ends.reduce(|most, end| Some(most?.max(end?))).unwrap_or(Some(node.pair.1)) else {
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

    /// Of what a step leads to, the pair from which one gets least far of those that were excluded before, and how far; none
    /// if the step was possible then.
    fn end_of(&self, step: &Step, before: usize) -> Option<(usize, usize)> {
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

/// Where a jump at `at` leads that passes over `distance` instructions.
fn target(at: usize, distance: i64) -> Option<usize> {
    usize::try_from(at as i64 + 1 + distance).ok()
}

impl<M: Fn(i32) -> Option<u32>> Both<'_, M> {
    /// All ways to explain a pair of places; the likeliest first.
    fn steps(&self, (at, there): Pair, nodes: &mut Nodes) -> Vec<Step> {
        let Some(insn) = self.program.get(at).copied() else { return Vec::new() };
        let found = self.translated.get(there).copied();
        let mut steps = Vec::new();
        let mut add = |taken, same, next: &[Option<Pair>]| {
            if next.iter().all(Option::is_some) {
                let mut numbers = [None; 2];
                for (number, pair) in numbers.iter_mut().zip(next) {
                    *number = pair.map(|pair| nodes.number(pair));
                }
                steps.push(Step { taken, same, next: numbers });
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
            // What does not exist the verifier lets no program call; it drops what is never reached.
            class::JMP if insn.is_poison() => {}
            class::JMP if insn.code == CALL => {
                if found.is_some_and(|found| Insn { imm: insn.imm, ..found } == insn) {
                    add((1, 1), false, &[after]);
                }
                for length in (1..=MOST_INLINED).filter(|_| insn.src == 0 && INLINED.contains(&insn.imm)) {
                    if self.is_inlined(there, length) {
                        add((1, length), false, &[Some((at + 1, there + length))]);
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
                // What leads back is never left out.
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
                        add((1, length), false, &[Some((at + 1, there + length))]);
                    }
                }
            }
        }
        steps
    }

    /// Both load the same 64 bits, the same map, or a function.
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

    /// The instructions from `start`, if all jumps among them stay there.
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

    /// They touch nothing that a call may not.
    fn is_inlined(&self, start: usize, length: usize) -> bool {
        let scratch = |register: u8| register <= 5 || register == AX;
        let harmless = |insn: &Insn| matches!(insn.class(), class::JMP | class::JMP32) || scratch(insn.dst);
        self.closed(start, length).is_some_and(|insns| insns.iter().all(harmless))
    }

    /// It is that division, and what keeps a zero from it.
    fn is_guarded(&self, division: Insn, start: usize, length: usize) -> bool {
        let calculates = |insn: &Insn| match insn.class() {
            class::ALU | class::ALU64 => insn.dst == division.dst || insn.dst == AX,
            class::JMP | class::JMP32 => insn.code != CALL,
            _ => false,
        };
        self.closed(start, length).is_some_and(|insns| insns.contains(&division) && insns.iter().all(calculates))
    }

    /// What became of each instruction, where everything is explained.
    fn count(&self, nodes: &Nodes) -> Result<Translation, Unexplained> {
        let mut reached = vec![false; self.program.len()];
        let mut explained: Vec<Option<bool>> = vec![None; self.translated.len()];
        let mut seen = vec![false; nodes.all.len()];
        let mut todo = vec![0];
        while let Some(number) = todo.pop() {
            if std::mem::replace(&mut seen[number], true) {
                continue;
            }
            let Node { pair, steps, .. } = &nodes.all[number];
            let Some(step) = steps.iter().find(|step| step.next().all(|next| nodes.is_possible(next))) else {
                continue;
            };
            explained.iter_mut().skip(pair.1).take(step.taken.1).for_each(|slot| *slot = Some(step.same));
            if step.taken.1 > 0 {
                reached.iter_mut().skip(pair.0).take(step.taken.0).for_each(|slot| *slot = true);
            }
            todo.extend(step.next());
        }
        if let Some(more) = explained.iter().position(Option::is_none) {
            let why = format!(
                "the kernel's translation has instruction {more}, {}, for which nothing stands",
                self.shown(more)
            );
            return Err(Unexplained { insn: None, why });
        }
        let same = explained.iter().filter(|same| **same == Some(true)).count();
        let dropped = reached.iter().filter(|reached| !**reached).count();
        Ok(Translation { same, rewritten: explained.len() - same, dropped })
    }

    /// Where the way to explain it that gets furthest ends.
    fn first_difference(&self, nodes: &Nodes) -> Unexplained {
        let (mut number, mut place) = (0, 0);
        while let Node { steps, impossible: Some(when), .. } = &nodes.all[number] {
            let ends = steps.iter().filter_map(|step| Some((step, nodes.end_of(step, when.found)?)));
            let Some((step, (next, _))) = ends.max_by_key(|(_, (_, reach))| *reach) else { break };
            number = next;
            if step.taken.1 > 0 {
                place = number;
            }
        }
        let (at, there) = self.likeliest(place, nodes);
        let wanted =
            self.program.get(at).map_or("nothing".to_owned(), |insn| insn.text(self.program.get(at + 1).copied()));
        let why = format!("the kernel made of it, as instruction {there}, {}; it was {wanted}", self.shown(there));
        Unexplained { insn: Some(at), why }
    }

    /// A branch may be left out, so what is there may stand for any that it leads to: the first that is alike, if there is one.
    fn likeliest(&self, place: usize, nodes: &Nodes) -> Pair {
        let kind = |insns: &[Insn], at: usize| insns.get(at).map(|insn| (insn.code, insn.dst));
        let (mut places, mut seen) = (VecDeque::from([place]), BTreeSet::from([place]));
        while let Some(number) = places.pop_front() {
            let Node { pair, steps, .. } = &nodes.all[number];
            if kind(self.program, pair.0) == kind(self.translated, pair.1) {
                return *pair;
            }
            let left_out = steps.iter().filter(|step| step.taken.1 == 0);
            places.extend(left_out.flat_map(Step::next).filter(|next| seen.insert(*next)));
        }
        nodes.all[place].pair
    }

    fn shown(&self, at: usize) -> String {
        self.translated.get(at).map_or("nothing".to_owned(), |insn| insn.text(self.translated.get(at + 1).copied()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::object::insn::LEFT_OUT;

    const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
        Insn { code, dst, src, off, imm }
    }

    const EXIT_: Insn = insn(EXIT, 0, 0, 0, 0);

    /// A program with everything in it, and what a kernel makes of it: the map behind descriptor 7 has id 70.
    fn pair() -> (Vec<Insn>, Vec<Insn>) {
        let program = vec![
            insn(0xbf, 6, 1, 0, 0),             // 0: r6 = r1
            insn(0x18, 1, PSEUDO_MAP_FD, 0, 7), // 1: r1 = map
            Insn::EMPTY,
            insn(CALL, 0, 0, 0, 1),                // 3: lookup
            insn(0x15, 0, 0, 6, 0),                // 4: if r0 == 0 goto 11
            insn(0x79, 7, 0, 8, 0),                // 5: r7 = *(u64 *)(r0 + 8)
            insn(0x55, 7, 0, 1, 3),                // 6: if r7 != 3 goto 8: always
            insn(0xb7, 7, 0, 0, 9),                // 7: r7 = 9
            insn(0x3f, 7, 6, 0, 0),                // 8: r7 /= r6
            insn(0x15, 7, 0, 3, 5),                // 9: if r7 == 5 goto 13: never
            insn(CALL, 0, 0, 0, 14),               // 10: get_current_pid_tgid
            insn(0x55, 7, 0, -7, 1),               // 11: if r7 != 1 goto 5
            insn(0x05, 0, 0, 1, 0),                // 12: goto 14
            insn(0xb7, 8, 0, 0, 1),                // 13: r8 = 1
            insn(0xb7, 0, 0, 0, 0),                // 14: r0 = 0
            insn(0x18, 2, PSEUDO_MAP_VALUE, 0, 7), // 15: r2 = a place in a map
            insn(0, 0, 0, 0, 24),
            insn(0x63, 2, 0, 4, 0), // 17: *(u32 *)(r2 + 4) = r0
            EXIT_,
        ];
        let translated = vec![
            insn(0xbf, 6, 1, 0, 0),              // 0
            insn(0x18, 1, PSEUDO_MAP_FD, 0, 70), // 1
            Insn::EMPTY,
            insn(CALL, 0, 0, 0, 330_864), // 3: inlined
            insn(0x15, 0, 0, 1, 0),
            insn(0x07, 0, 0, 0, 56),
            insn(0x15, 0, 0, 6, 0), // 6: if r0 == 0 goto 13
            insn(0x79, 7, 0, 8, 0), // 7
            insn(0x55, 6, 0, 2, 0), // 8: guarded
            insn(0xac, 7, 7, 0, 0),
            insn(0x05, 0, 0, 1, 0),
            insn(0x3f, 7, 6, 0, 0),
            insn(CALL, 0, 0, 0, 1000), // 12
            insn(0x55, 7, 0, -7, 1),   // 13: goto 7
            insn(0xb7, 0, 0, 0, 0),    // 14
            insn(0x18, 2, PSEUDO_MAP_VALUE, 0, 70),
            insn(0, 0, 0, 0, 24),
            insn(0x63, 2, 0, 4, 0),
            EXIT_,
        ];
        (program, translated)
    }

    fn compared(program: &[Insn], translated: &[Insn]) -> Result<Translation, Unexplained> {
        compare(program, translated, |fd| (fd == 7).then_some(70))
    }

    #[test]
    fn what_the_verifier_does_is_explained() {
        let (program, translated) = pair();
        let found = compared(&program, &translated).unwrap();
        assert_eq!(found, Translation { same: 11, rewritten: 8, dropped: 5 });
        // Not every kernel does it.
        let id = |insn: &Insn| if insn.code == 0x18 { Insn { imm: 70, ..*insn } } else { *insn };
        let plain: Vec<Insn> = program.iter().map(id).collect();
        assert_eq!(compared(&program, &plain).unwrap(), Translation { same: 17, rewritten: 2, dropped: 0 });
    }

    #[test]
    fn nothing_else_is() {
        let (program, translated) = pair();
        let inlined = 3..6;
        let guard = 8..12;
        for at in 0..translated.len() {
            let good = translated[at];
            for bad in [
                Insn { imm: good.imm ^ 2, ..good },
                Insn { off: good.off ^ 2, ..good },
                Insn { dst: good.dst ^ 8, ..good },
                Insn { src: good.src ^ 4, ..good },
                Insn { code: good.code ^ 0x40, ..good },
            ] {
                let mut altered = translated.clone();
                altered[at] = bad;
                let found = compared(&program, &altered);
                // To which function of the kernel a call goes is not compared, nor what an inlined helper computes.
                let unseen = (good.code == CALL && bad.code == CALL && bad.imm != good.imm)
                    || inlined.contains(&at)
                    || guard.contains(&at);
                assert!(found.is_err() || unseen, "{at}: {} for {}: {found:?}", bad.text(None), good.text(None));
            }
            let mut fewer = translated.clone();
            fewer.remove(at);
            let branch = good.class() == class::JMP && good.code != EXIT;
            let unseen = inlined.contains(&at) || guard.contains(&at) || branch;
            assert!(compared(&program, &fewer).is_err() || unseen, "{at}");
        }
        // One more, where it is never reached too.
        for at in 0..=translated.len() {
            let mut more = translated.clone();
            more.insert(at, insn(0xb7, 8, 0, 0, 1));
            assert!(compared(&program, &more).is_err(), "{at}");
        }
        // Nothing stands for a call of what does not exist: libbpf puts it where the verifier must not get.
        for poison in [Insn::POISON.imm, LEFT_OUT, LEFT_OUT + 7] {
            let mut poisoned = program.clone();
            poisoned[10].imm = poison;
            assert!(compared(&poisoned, &translated).is_err());
            // Where it is dropped it does no harm.
            poisoned[10] = program[10];
            poisoned[13] = insn(CALL, 0, 0, 0, poison);
            assert!(compared(&poisoned, &translated).is_ok());
        }
        // A saved register is no business of a helper's.
        let mut altered = translated.clone();
        altered[5].dst = 6;
        assert!(compared(&program, &altered).is_err());
        assert!(compared(&program, &[]).is_err());
    }

    #[test]
    fn the_first_difference_is_named() {
        let (program, mut translated) = pair();
        translated[17].off = 8;
        let found = compared(&program, &translated).unwrap_err();
        assert_eq!(found.insn, Some(17));
        assert!(found.why.contains("instruction 17, *(u32 *)(r2 +8) = r0; it was *(u32 *)(r2 +4) = r0"), "{found:?}");
        // After a branch that is left out.
        translated[17].off = 4;
        translated[14].imm = 1;
        let found = compared(&program, &translated).unwrap_err();
        assert_eq!(found.insn, Some(14), "{found:?}");
        let after = [insn(0x15, 0, 0, 2, 0), insn(0xb7, 6, 0, 0, 1), EXIT_, insn(0xb7, 0, 0, 0, 0), EXIT_];
        let found = compared(&after, &[insn(0xb7, 0, 0, 0, 1), EXIT_]).unwrap_err();
        assert_eq!(found.insn, Some(3), "{found:?}");
    }

    #[test]
    fn functions_that_it_calls_are_followed() {
        let program = [
            insn(0x18, 2, PSEUDO_FUNC, 0, 3), // a callback: 4
            Insn::EMPTY,
            insn(CALL, 0, PSEUDO_CALL, 0, 2), // 5
            EXIT_,
            EXIT_,
            insn(0xb7, 0, 0, 0, 1),
            EXIT_,
        ];
        let mut translated = program;
        translated[1].imm = 2;
        translated[2] = insn(CALL, 0, PSEUDO_CALL, 2, 1);
        let found = compared(&program, &translated).unwrap();
        assert_eq!(found, Translation { same: 7, rewritten: 0, dropped: 0 });
        translated[5].imm = 2;
        assert_eq!(compared(&program, &translated).unwrap_err().insn, Some(5));
    }

    #[test]
    fn blinded_constants_are_noticed() {
        let (program, translated) = pair();
        assert!(!is_blinded(&program) && !is_blinded(&translated));
        assert!(is_blinded(&[insn(0xb7, AX, 0, 0, 12345)]));
    }
}
