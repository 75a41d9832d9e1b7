//! Which of a function's instructions can run, as far as constants decide it.
//!
//! A program guards an access by `bpf_core_field_exists`, which becomes a constant. The verifier never looks at the
//! branch that is not taken. This analysis tracks fewer constants than the verifier, which also follows ranges and the
//! stack. So an instruction that is unreachable here is unreachable for the verifier.

use crate::insn::{CALL, EXIT, Insn, class};

/// An unknown instruction. Only one thing is known: the next instruction runs after it.
pub const ANY: Insn = Insn { code: 0xff, dst: 0, src: 0, off: 0, imm: 0 };

/// An address in a section of frozen data. The address is constant, but its number is not known before loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The section's index.
    pub section: u16,
    /// Bytes from the section's beginning.
    pub offset: u64,
}

impl Address {
    /// Bits of [`Address::offset`] that are kept. No section is longer.
    const BITS: u32 = 48;

    /// The section and the offset in one number; none if the offset has more than [`Address::BITS`] bits.
    fn pack(self) -> Option<u64> {
        (self.offset < 1 << Self::BITS).then(|| u64::from(self.section) << Self::BITS | self.offset)
    }

    fn unpack(packed: u64) -> Self {
        Address { section: (packed >> Self::BITS) as u16, offset: packed & ((1 << Self::BITS) - 1) }
    }
}

/// The value of a 64-bit immediate load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// The number in it.
    Number,
    /// The address of frozen data.
    Address(Address),
    /// Something that is not known before loading.
    Unknown,
}

/// Copy of a register, and additions, of 64 bits.
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;
const ADD_REGISTER: u8 = 0x0f;
/// Modes of a load: with zeros, or the sign, above what is loaded.
const MEM: u8 = 0x60;
const SIGNED_MEM: u8 = 0x80;

/// Registers whose value is known: bit `r` of `known`, and its value; bit `r` of `addresses` if that is an [`Address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    known: u16,
    addresses: u16,
    values: [u64; 11],
}

impl State {
    const UNKNOWN: State = State { known: 0, addresses: 0, values: [0; 11] };

    /// The number in a register.
    fn get(&self, register: u8) -> Option<u64> {
        let value = self.values.get(usize::from(register))?;
        (self.known & !self.addresses & (1 << register) != 0).then_some(*value)
    }

    /// The address in a register.
    fn address(&self, register: u8) -> Option<Address> {
        let value = self.values.get(usize::from(register))?;
        (self.known & self.addresses & (1 << register) != 0).then(|| Address::unpack(*value))
    }

    fn set(&mut self, register: u8, value: Option<u64>) {
        if let Some(slot) = self.values.get_mut(usize::from(register)) {
            *slot = value.unwrap_or(0);
            self.addresses &= !(1 << register);
            match value {
                Some(_) => self.known |= 1 << register,
                None => self.known &= !(1 << register),
            }
        }
    }

    fn set_address(&mut self, register: u8, address: Option<Address>) {
        let packed = address.and_then(Address::pack);
        self.set(register, packed);
        if packed.is_some() && usize::from(register) < self.values.len() {
            self.addresses |= 1 << register;
        }
    }

    /// Keeps what both agree on.
    fn meet(&self, other: &State) -> State {
        let mut met = *self;
        for register in 0..11 {
            if self.get(register) != other.get(register) || self.address(register) != other.address(register) {
                met.set(register, None);
            }
        }
        met
    }
}

/// For each instruction, whether it can run. `load` gives the value of the 64-bit immediate load at an index. `read` gives the
/// number of so many bytes at an address of frozen data.
pub fn reachable(code: &[Insn], load: impl Fn(usize) -> Load, read: impl Fn(Address, u32) -> Option<u64>) -> Vec<bool> {
    let mut states: Vec<Option<State>> = vec![None; code.len()];
    let mut todo = vec![(0usize, State::UNKNOWN)];
    while let Some((index, incoming)) = todo.pop() {
        let Some(slot) = states.get_mut(index) else { continue };
        // A jump by a table (gotox, 6.19) may lead anywhere.
        if code.get(index).is_some_and(|insn| insn.is_gotox()) {
            return vec![true; code.len()];
        }
        // Each later visit makes at least one more register unknown. So an instruction is visited at most twelve times.
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
        step(code, index, state, (&load, &read), &mut todo);
    }
    states.iter().map(Option::is_some).collect()
}

/// Adds what can run after instruction `index`.
fn step(
    code: &[Insn],
    index: usize,
    state: State,
    (load, read): (&impl Fn(usize) -> Load, &impl Fn(Address, u32) -> Option<u64>),
    todo: &mut Vec<(usize, State)>,
) {
    let Some(insn) = code.get(index).copied() else { return };
    if insn == ANY {
        return todo.push((index + 1, State::UNKNOWN));
    }
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
        class::ALU | class::ALU64 => match moved(insn, &state) {
            Some(address) => after.set_address(insn.dst, Some(address)),
            None => after.set(insn.dst, compute(insn, &state)),
        },
        class::LDX => after.set(insn.dst, loaded(insn, &state, read)),
        class::LD if insn.is_ldimm64() => {
            let next = code.get(index + 1).copied();
            match load(index) {
                Load::Address(address) => after.set_address(insn.dst, Some(address)),
                Load::Number if insn.src == 0 => after.set(insn.dst, next.map(|next| insn.imm64(next))),
                Load::Number | Load::Unknown => after.set(insn.dst, None),
            }
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

/// The address that arithmetic makes of an address: a copy of it, or one so many bytes on.
fn moved(insn: Insn, state: &State) -> Option<Address> {
    let operand = || if insn.code & 8 != 0 { state.get(insn.src) } else { Some(i64::from(insn.imm) as u64) };
    let on = |address: Address, by: u64| Address { offset: address.offset.wrapping_add(by), ..address };
    match insn.code {
        MOVE if insn.off == 0 => state.address(insn.src),
        ADD | ADD_REGISTER => Some(on(state.address(insn.dst)?, operand()?)),
        _ => None,
    }
}

/// The number that a load from frozen data gives.
fn loaded(insn: Insn, state: &State, read: &impl Fn(Address, u32) -> Option<u64>) -> Option<u64> {
    let (address, size) = (state.address(insn.src)?, insn.memory_size());
    let at = Address { offset: address.offset.wrapping_add_signed(insn.off.into()), ..address };
    let number = read(at, size)?;
    let unused = 64 - 8 * size;
    match insn.code & 0xe0 {
        MEM => Some(number),
        SIGNED_MEM => Some(((number << unused) as i64 >> unused) as u64),
        _ => None,
    }
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
    use crate::insn::GOTOX;

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
        assert_eq!(run(&guarded(0)), [true, true, false, true, true]);
        assert_eq!(run(&guarded(1)), [true, true, true, false, false]);
    }

    fn run(code: &[Insn]) -> Vec<bool> {
        reachable(code, |_| Load::Number, |_, _| None)
    }

    #[test]
    fn a_jump_by_a_table_leads_to_every_instruction() {
        let code =
            [insn(0x05, 0, 0, 1, 0), Insn::POISON, insn(GOTOX, 1, 0, 0, 0), Insn::POISON, insn(EXIT, 0, 0, 0, 0)];
        assert_eq!(run(&code), [true; 5]);
        assert_eq!(code[2].text(None), "gotox r1");
    }

    #[test]
    fn frozen_data_is_constant_where_its_address_is() {
        let at = Load::Address(Address { section: 3, offset: 8 });
        let read = |address: Address, size| (address == Address { section: 3, offset: 12 }).then_some(u64::from(size));
        let code = |load: Insn, wanted: i32| {
            let mut code = vec![insn(0x18, 1, 0, 0, 0), insn(0, 0, 0, 0, 0), insn(MOVE, 2, 1, 0, 0)];
            code.extend([insn(ADD, 2, 0, 0, 8), load, insn(0x15, 3, 0, 1, wanted), Insn::POISON]);
            code.extend([insn(0xb7, 0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)]);
            code
        };
        let poison = |load: Insn, wanted: i32, at: Load| reachable(&code(load, wanted), |_| at, read)[6];
        // A load of one byte gives 1, of four 4.
        assert!(!poison(insn(0x71, 3, 2, -4, 0), 1, at) && poison(insn(0x71, 3, 2, -4, 0), 2, at));
        assert!(!poison(insn(0x61, 3, 2, -4, 0), 4, at));
        // From elsewhere, from no constant address, or by an instruction of another kind, nothing is known.
        assert!(poison(insn(0x71, 3, 2, 0, 0), 1, at));
        assert!(poison(insn(0x71, 3, 2, -4, 0), 1, Load::Unknown));
        assert!(poison(insn(0x71, 3, 2, -4, 0), 1, Load::Number));
        assert!(poison(insn(0xd1, 3, 2, -4, 0), 1, at));
    }

    #[test]
    fn loops_end_and_jumps_out_of_the_code_lead_nowhere() {
        let endless = [insn(0x07, 1, 0, 0, 1), insn(0x05, 0, 0, -2, 0)];
        assert_eq!(run(&endless), [true, true]);
        let counting =
            [insn(0xb7, 1, 0, 0, 0), insn(0x07, 1, 0, 0, 1), insn(0x55, 1, 0, -2, 9), insn(EXIT, 0, 0, 0, 0)];
        assert_eq!(run(&counting), [true; 4]);
        let wild = [insn(0x05, 0, 0, -100, 0), insn(0x05, 0, 0, 30000, 0)];
        assert_eq!(run(&wild), [true, false]);
        assert!(run(&[]).is_empty());
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
