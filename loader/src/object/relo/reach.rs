//! Which of a function's instructions can run, as far as constants decide it.
//!
//! A program may access what a kernel does not have, if it asks first: the answer becomes a constant, and the verifier
//! never looks at the branch that is not taken. This follows the same constants, only more simply: what is unreachable
//! here is unreachable for the verifier, which also follows ranges, the stack and frozen data.

use crate::object::insn::{CALL, EXIT, Insn, class};

/// Functions with more instructions are not followed: then all of them count as reachable.
const MOST_INSNS: usize = 1 << 16;

/// Registers whose value is known: bit `r` of `known`, and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    known: u16,
    values: [u64; 11],
}

impl State {
    const UNKNOWN: State = State { known: 0, values: [0; 11] };

    fn get(&self, register: u8) -> Option<u64> {
        let value = self.values.get(usize::from(register))?;
        (self.known & (1 << register) != 0).then_some(*value)
    }

    fn set(&mut self, register: u8, value: Option<u64>) {
        if let Some(slot) = self.values.get_mut(usize::from(register)) {
            *slot = value.unwrap_or(0);
            match value {
                Some(_) => self.known |= 1 << register,
                None => self.known &= !(1 << register),
            }
        }
    }

    /// Keeps what both agree on.
    fn meet(&self, other: &State) -> State {
        let mut met = *self;
        for register in 0..11 {
            if self.get(register) != other.get(register) {
                met.set(register, None);
            }
        }
        met
    }
}

/// For each instruction, whether it can run. `constant` says whether the 64-bit immediate load at that index loads a
/// number (and not the address of a map or variable, which is not known before loading).
pub fn reachable(code: &[Insn], constant: impl Fn(usize) -> bool) -> Vec<bool> {
    if code.len() > MOST_INSNS {
        return vec![true; code.len()];
    }
    let mut states: Vec<Option<State>> = vec![None; code.len()];
    let mut todo = vec![(0usize, State::UNKNOWN)];
    while let Some((index, incoming)) = todo.pop() {
        let Some(slot) = states.get_mut(index) else { continue };
        // Each visit makes at least one more register unknown, so there are at most twelve.
        let state = match slot {
            None => incoming,
            Some(known) => {
                let met = known.meet(&incoming);
                if met == *known {
                    continue;
                }
                met
            }
        };
        *slot = Some(state);
        step(code, index, state, &constant, &mut todo);
    }
    states.iter().map(Option::is_some).collect()
}

/// Adds what can run after instruction `index`.
fn step(code: &[Insn], index: usize, state: State, constant: &impl Fn(usize) -> bool, todo: &mut Vec<(usize, State)>) {
    let Some(insn) = code.get(index).copied() else { return };
    let mut after = state;
    let jump = |distance: i64| usize::try_from(index as i64 + 1 + distance).ok();
    match insn.class() {
        class::JMP if insn.code == EXIT || insn == Insn::POISON => return,
        class::JMP if insn.code == CALL => (0..6).for_each(|register| after.set(register, None)),
        class::JMP | class::JMP32 => {
            let narrow = insn.class() == class::JMP32;
            let (taken, passed) = match insn.code & 0xf0 {
                0x00 => (true, false),
                _ => match decide(insn, &state, narrow) {
                    Some(taken) => (taken, !taken),
                    None => (true, true),
                },
            };
            let distance = if narrow && insn.code & 0xf0 == 0 { i64::from(insn.imm) } else { insn.off.into() };
            if let Some(there) = jump(distance).filter(|_| taken) {
                todo.push((there, after));
            }
            if passed {
                todo.push((index + 1, after));
            }
            return;
        }
        class::ALU | class::ALU64 => after.set(insn.dst, compute(insn, &state)),
        class::LDX => after.set(insn.dst, None),
        class::LD if insn.is_ldimm64() => {
            let next = code.get(index + 1).copied();
            let value = next.filter(|_| insn.src == 0 && constant(index)).map(|next| insn.imm64(next));
            after.set(insn.dst, value);
            todo.push((index + 2, after));
            return;
        }
        class::LD => (0..6).for_each(|register| after.set(register, None)),
        // Atomic operations can write the source register, and r0.
        class::STX if insn.code & 0xe0 != 0x60 => {
            for register in [insn.src, insn.dst, 0] {
                after.set(register, None);
            }
        }
        _ => {}
    }
    todo.push((index + 1, after));
}

/// Whether a conditional jump is taken, if its operands are known.
fn decide(insn: Insn, state: &State, narrow: bool) -> Option<bool> {
    let operand = if insn.code & 8 != 0 { state.get(insn.src)? } else { i64::from(insn.imm) as u64 };
    let (mut one, mut two) = (state.get(insn.dst)?, operand);
    let (mut signed_one, mut signed_two) = (one as i64, two as i64);
    if narrow {
        (one, two) = (u64::from(one as u32), u64::from(two as u32));
        (signed_one, signed_two) = (i64::from(one as u32 as i32), i64::from(two as u32 as i32));
    }
    Some(match insn.code & 0xf0 {
        0x10 => one == two,
        0x20 => one > two,
        0x30 => one >= two,
        0x40 => one & two != 0,
        0x50 => one != two,
        0x60 => signed_one > signed_two,
        0x70 => signed_one >= signed_two,
        0xa0 => one < two,
        0xb0 => one <= two,
        0xc0 => signed_one < signed_two,
        0xd0 => signed_one <= signed_two,
        _ => return None,
    })
}

/// What arithmetic makes of known operands.
fn compute(insn: Insn, state: &State) -> Option<u64> {
    let wide = insn.class() == class::ALU64;
    let operator = insn.code & 0xf0;
    let operand = if insn.code & 8 != 0 { state.get(insn.src) } else { Some(i64::from(insn.imm) as u64) };
    let result = if operator == 0xb0 && insn.off == 0 {
        operand?
    } else {
        let (one, two) = (state.get(insn.dst)?, operand?);
        let (one, two) = if wide { (one, two) } else { (u64::from(one as u32), u64::from(two as u32)) };
        let shift = (two & if wide { 63 } else { 31 }) as u32;
        match operator {
            0x00 => one.wrapping_add(two),
            0x10 => one.wrapping_sub(two),
            0x20 => one.wrapping_mul(two),
            0x40 => one | two,
            0x50 => one & two,
            0x60 => one << shift,
            0x70 => one >> shift,
            0xa0 => one ^ two,
            0xc0 if wide => ((one as i64) >> shift) as u64,
            0xc0 => u64::from(((one as u32 as i32) >> shift) as u32),
            _ => return None,
        }
    };
    Some(if wide { result } else { u64::from(result as u32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
        Insn { code, dst, src, off, imm }
    }

    #[test]
    fn a_guard_that_is_zero_hides_what_it_guards() {
        let guarded = |exists: i32| {
            vec![
                insn(0xb7, 1, 0, 0, exists), // r1 = exists
                insn(0x15, 1, 0, 1, 0),      // if r1 == 0 goto +1
                Insn::POISON,
                insn(0xb7, 0, 0, 0, 0),
                insn(EXIT, 0, 0, 0, 0),
            ]
        };
        assert_eq!(reachable(&guarded(0), |_| true), [true, true, false, true, true]);
        assert_eq!(reachable(&guarded(1), |_| true), [true, true, true, false, false]);
    }

    #[test]
    fn loops_end_and_jumps_out_of_the_code_lead_nowhere() {
        let endless = [insn(0x07, 1, 0, 0, 1), insn(0x05, 0, 0, -2, 0)];
        assert_eq!(reachable(&endless, |_| true), [true, true]);
        let counting =
            [insn(0xb7, 1, 0, 0, 0), insn(0x07, 1, 0, 0, 1), insn(0x55, 1, 0, -2, 9), insn(EXIT, 0, 0, 0, 0)];
        assert_eq!(reachable(&counting, |_| true), [true; 4]);
        let wild = [insn(0x05, 0, 0, -100, 0), insn(0x05, 0, 0, 30000, 0)];
        assert_eq!(reachable(&wild, |_| true), [true, false]);
        assert!(reachable(&[], |_| true).is_empty());
    }

    #[test]
    fn arithmetic_of_32_and_64_bits() {
        let mut state = State::UNKNOWN;
        state.set(1, Some(u64::MAX));
        assert_eq!(compute(insn(0x07, 1, 0, 0, 1), &state), Some(0));
        assert_eq!(compute(insn(0x04, 1, 0, 0, 2), &state), Some(1));
        assert_eq!(compute(insn(0xc4, 1, 0, 0, 31), &state), Some(0xffff_ffff));
        assert_eq!(compute(insn(0x77, 1, 0, 0, 63), &state), Some(1));
        assert_eq!(compute(insn(0xbf, 2, 1, 0, 0), &state), Some(u64::MAX));
        assert_eq!(compute(insn(0xbf, 2, 3, 0, 0), &state), None);
    }
}
