//! One BPF instruction: eight bytes, and its text in the kernel's verifier log.
//!
//! The encoding is that of the kernel's Documentation/bpf/standardization/instruction-set.rst. One byte holds both
//! registers. The destination has the low half in little-endian objects and the high half in big-endian objects.

use super::helpers;

/// An instruction. A 64-bit immediate load needs a second one, whose `imm` is the upper half of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Operation; `code & 7` is its class.
    pub code: u8,
    /// Destination register, 0 to 15 (10 is the last that exists).
    pub dst: u8,
    /// Source register, or the meaning of an immediate.
    pub src: u8,
    /// Signed offset: bytes for memory, instructions for jumps.
    pub off: i16,
    /// Signed immediate.
    pub imm: i32,
}

/// `code & 7`
pub mod class {
    /// Loads without a register as address: 64-bit immediates, old packet access.
    pub const LD: u8 = 0;
    /// Load from memory into a register.
    pub const LDX: u8 = 1;
    /// Store an immediate.
    pub const ST: u8 = 2;
    /// Store a register.
    pub const STX: u8 = 3;
    /// Arithmetic of 32 bits.
    pub const ALU: u8 = 4;
    /// Jumps that compare 64 bits, calls, exit.
    pub const JMP: u8 = 5;
    /// Jumps that compare 32 bits.
    pub const JMP32: u8 = 6;
    /// Arithmetic of 64 bits.
    pub const ALU64: u8 = 7;
}

/// First half of a 64-bit immediate load (`BPF_LD | BPF_IMM | BPF_DW`).
pub const LDIMM64: u8 = 0x18;
/// `BPF_JMP | BPF_CALL`
pub const CALL: u8 = 0x85;
/// Jump to the address in a register.
pub const GOTOX: u8 = 0x0d;
/// `BPF_JMP | BPF_EXIT`
pub const EXIT: u8 = 0x95;
/// `src` of a call to another function of the object.
pub const PSEUDO_CALL: u8 = 1;
/// `src` of a call to a kernel function.
pub const PSEUDO_KFUNC_CALL: u8 = 2;

/// A helper's number. Where a program loads a map that was left out, libbpf puts a call to the helper of this number plus
/// the map's. No kernel has such a helper.
pub const LEFT_OUT: i32 = 2_001_000_000;
/// The most maps that these numbers leave room for: other numbers of libbpf's follow.
const MOST_LEFT_OUT: i32 = 1_000_000;

impl Insn {
    /// The instruction that libbpf writes where a relocation does not resolve: a call to a helper that no kernel has. The
    /// verifier refuses it with "invalid func unknown#195896080" unless it proves that the call is never reached.
    pub const POISON: Insn = Insn { code: CALL, dst: 0, src: 0, off: 0, imm: 0x0bad_2310 };

    /// All zeros. The second half of a 64-bit immediate load is the same except for its `imm`.
    pub const EMPTY: Insn = Insn { code: 0, dst: 0, src: 0, off: 0, imm: 0 };

    /// Whether the instruction jumps to the address in a register, which a jump table gives (6.19).
    #[must_use]
    pub fn is_gotox(self) -> bool {
        self.code == GOTOX
    }

    /// Decodes eight bytes.
    pub fn decode(bytes: [u8; 8], big_endian: bool) -> Insn {
        let [code, regs, o0, o1, i0, i1, i2, i3] = bytes;
        if big_endian {
            let (off, imm) = (i16::from_be_bytes([o0, o1]), i32::from_be_bytes([i0, i1, i2, i3]));
            Insn { code, dst: regs >> 4, src: regs & 15, off, imm }
        } else {
            let (off, imm) = (i16::from_le_bytes([o0, o1]), i32::from_le_bytes([i0, i1, i2, i3]));
            Insn { code, dst: regs & 15, src: regs >> 4, off, imm }
        }
    }

    /// The instruction at byte `at` of a section, if it lies within.
    pub fn at(section: &[u8], at: usize, big_endian: bool) -> Option<Insn> {
        let bytes = section.get(at..at.checked_add(8)?)?;
        Some(Insn::decode(bytes.try_into().ok()?, big_endian))
    }

    /// The eight bytes.
    pub fn encode(self, big_endian: bool) -> [u8; 8] {
        let (high, low) = if big_endian { (self.dst, self.src) } else { (self.src, self.dst) };
        let off = if big_endian { self.off.to_be_bytes() } else { self.off.to_le_bytes() };
        let imm = if big_endian { self.imm.to_be_bytes() } else { self.imm.to_le_bytes() };
        let [o0, o1] = off;
        let [i0, i1, i2, i3] = imm;
        [self.code, (high << 4) | (low & 15), o0, o1, i0, i1, i2, i3]
    }

    /// The instruction's class, one of [`class`].
    pub fn class(self) -> u8 {
        self.code & 7
    }

    /// True for a 64-bit immediate load, which also takes the next instruction's place.
    pub fn is_ldimm64(self) -> bool {
        self.code == LDIMM64
    }

    /// True for loads from and stores to memory at a register plus offset.
    pub fn is_memory(self) -> bool {
        matches!(self.class(), class::LDX | class::ST | class::STX)
    }

    /// True for the instructions that libbpf writes to stop the verifier: [`Insn::POISON`], and calls with [`LEFT_OUT`].
    pub fn is_poison(self) -> bool {
        let left_out = LEFT_OUT..LEFT_OUT + MOST_LEFT_OUT;
        self == Insn::POISON || (self.code == CALL && self.src == 0 && left_out.contains(&self.imm))
    }

    /// The number of bytes that a load or store moves.
    pub fn memory_size(self) -> u32 {
        match self.code & 0x18 {
            0x00 => 4,
            0x08 => 2,
            0x10 => 1,
            _ => 8,
        }
    }

    /// The same load or store for `bytes` bytes. `None` if no instruction has that size.
    pub fn with_memory_size(self, bytes: u32) -> Option<Insn> {
        let size = match bytes {
            1 => 0x10,
            2 => 0x08,
            4 => 0x00,
            8 => 0x18,
            _ => return None,
        };
        Some(Insn { code: (self.code & !0x18) | size, ..self })
    }

    /// The value of a 64-bit immediate load whose second half is `next`.
    pub fn imm64(self, next: Insn) -> u64 {
        (u64::from(next.imm as u32) << 32) | u64::from(self.imm as u32)
    }

    /// The instruction as the verifier's log shows it. `next` is the following instruction, which a 64-bit immediate load
    /// needs.
    pub fn text(self, next: Option<Insn>) -> String {
        let known = match self.class() {
            class::ALU | class::ALU64 => self.alu(),
            class::JMP | class::JMP32 => self.jump(),
            class::LDX => self.load(),
            class::ST => (self.code & 0xe0 == 0x60)
                .then(|| format!("*({} *){} = {}", self.unsigned(), self.place(self.dst), self.imm)),
            class::STX => self.store(),
            _ => self.special(next),
        };
        known.unwrap_or_else(|| format!("unknown instruction {:02x}", self.code))
    }

    fn is_register_form(self) -> bool {
        self.code & 8 != 0
    }

    fn alu(self) -> Option<String> {
        let wide = self.class() == class::ALU64;
        let register = if wide { 'r' } else { 'w' };
        let dst = format!("{register}{}", self.dst);
        let operand = if self.is_register_form() { format!("{register}{}", self.src) } else { self.imm.to_string() };
        let operator = match (self.code & 0xf0, self.off) {
            (0x00, 0) => "+=",
            (0x10, 0) => "-=",
            (0x20, 0) => "*=",
            (0x30, 0) => "/=",
            (0x30, 1) => "s/=",
            (0x40, 0) => "|=",
            (0x50, 0) => "&=",
            (0x60, 0) => "<<=",
            (0x70, 0) => ">>=",
            (0x80, 0) => return Some(format!("{dst} = -{dst}")),
            (0x90, 0) => "%=",
            (0x90, 1) => "s%=",
            (0xa0, 0) => "^=",
            (0xb0, 0) => "=",
            (0xb0, 8 | 16 | 32) if self.is_register_form() => {
                return Some(format!("{dst} = (s{}){operand}", self.off));
            }
            (0xb0, 1) if wide && self.is_register_form() => {
                return Some(format!("{dst} = addr_space_cast({operand}, {}, {})", self.imm >> 16, self.imm & 0xffff));
            }
            (0xc0, 0) => "s>>=",
            (0xd0, 0) => {
                let order = match (wide, self.is_register_form()) {
                    (true, _) => "bswap",
                    (false, true) => "be",
                    (false, false) => "le",
                };
                return Some(format!("r{0} = {order}{1} r{0}", self.dst, self.imm));
            }
            _ => return None,
        };
        Some(format!("{dst} {operator} {operand}"))
    }

    fn jump(self) -> Option<String> {
        let narrow = self.class() == class::JMP32;
        let comparison = match self.code & 0xf0 {
            0x00 if self.is_gotox() => return Some(format!("gotox r{}", self.dst)),
            0x00 if narrow => return Some(format!("gotol pc{:+}", self.imm)),
            0x00 => return Some(format!("goto pc{:+}", self.off)),
            0x80 if !narrow => return Some(self.call()),
            0x90 if !narrow => return Some("exit".to_owned()),
            0xe0 if !narrow && self.src == 0 => return Some(format!("may_goto pc{:+}", self.off)),
            0x10 => "==",
            0x20 => ">",
            0x30 => ">=",
            0x40 => "&",
            0x50 => "!=",
            0x60 => "s>",
            0x70 => "s>=",
            0xa0 => "<",
            0xb0 => "<=",
            0xc0 => "s<",
            0xd0 => "s<=",
            _ => return None,
        };
        let register = if narrow { 'w' } else { 'r' };
        let operand =
            if self.is_register_form() { format!("{register}{}", self.src) } else { format!("{:#x}", self.imm) };
        Some(format!("if {register}{} {comparison} {operand} goto pc{:+}", self.dst, self.off))
    }

    fn call(self) -> String {
        match self.src {
            PSEUDO_CALL => format!("call pc{:+}", self.imm),
            PSEUDO_KFUNC_CALL => "call kernel-function".to_owned(),
            _ if self == Insn::POISON => format!("call unknown#{} (poisoned)", self.imm),
            _ => format!("call {}#{}", helpers::name(self.imm).unwrap_or("unknown"), self.imm),
        }
    }

    fn unsigned(self) -> &'static str {
        match self.memory_size() {
            1 => "u8",
            2 => "u16",
            4 => "u32",
            _ => "u64",
        }
    }

    fn place(self, register: u8) -> String {
        format!("(r{register} {:+})", self.off)
    }

    fn load(self) -> Option<String> {
        let place = self.place(self.src);
        match self.code & 0xe0 {
            0x60 => Some(format!("r{} = *({} *){place}", self.dst, self.unsigned())),
            0x80 if self.memory_size() < 8 => Some(format!("r{} = *(s{} *){place}", self.dst, self.memory_size() * 8)),
            _ => None,
        }
    }

    fn store(self) -> Option<String> {
        let (size, place) = (self.unsigned(), self.place(self.dst));
        if self.code & 0xe0 == 0x60 {
            return Some(format!("*({size} *){place} = r{}", self.src));
        }
        let width = match (self.code & 0xe0, self.memory_size()) {
            (0xc0, 4) => "",
            (0xc0, 8) => "64",
            (0xc0, _) if matches!(self.imm, 0x100 | 0x110) => "",
            _ => return None,
        };
        let (src, call) = (self.src, format!("(({size} *){place}"));
        Some(match self.imm {
            0x00 => format!("lock *({size} *){place} += r{src}"),
            0x40 => format!("lock *({size} *){place} |= r{src}"),
            0x50 => format!("lock *({size} *){place} &= r{src}"),
            0xa0 => format!("lock *({size} *){place} ^= r{src}"),
            0x01 => format!("r{src} = atomic{width}_fetch_add{call}, r{src})"),
            0x41 => format!("r{src} = atomic{width}_fetch_or{call}, r{src})"),
            0x51 => format!("r{src} = atomic{width}_fetch_and{call}, r{src})"),
            0xa1 => format!("r{src} = atomic{width}_fetch_xor{call}, r{src})"),
            0xe1 => format!("r{src} = atomic{width}_xchg{call}, r{src})"),
            0xf1 => format!("r0 = atomic{width}_cmpxchg{call}, r0, r{src})"),
            0x100 => format!("r{} = load_acquire(({size} *)(r{src} {:+}))", self.dst, self.off),
            0x110 => format!("store_release{call}, r{src})"),
            _ => return None,
        })
    }

    fn special(self, next: Option<Insn>) -> Option<String> {
        match self.code & 0xe0 {
            0x00 if self.is_ldimm64() => Some(match next {
                Some(next) if self.src == 0 => format!("r{} = {:#x}", self.dst, self.imm64(next)),
                _ => format!("r{} = {:#x} (pseudo {})", self.dst, self.imm as u32, self.src),
            }),
            0x20 => Some(format!("r0 = *({} *)skb[{}]", self.unsigned(), self.imm)),
            0x40 => Some(format!("r0 = *({} *)skb[r{} + {}]", self.unsigned(), self.src, self.imm)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: [u8; 8]) -> String {
        let next = Insn::decode([0, 0, 0, 0, 1, 0, 0, 0], false);
        Insn::decode(bytes, false).text(Some(next))
    }

    #[test]
    fn reads_as_the_verifier_writes() {
        // Texts from the verifier's log and `bpftool prog dump xlated`, without the opcode in front.
        assert_eq!(text([0x61, 0x21, 16, 0, 0, 0, 0, 0]), "r1 = *(u32 *)(r2 +16)");
        assert_eq!(text([0x79, 0xa1, 0xf8, 0xff, 0, 0, 0, 0]), "r1 = *(u64 *)(r10 -8)");
        assert_eq!(text([0x91, 0x21, 1, 0, 0, 0, 0, 0]), "r1 = *(s8 *)(r2 +1)");
        assert_eq!(text([0x6b, 0x1a, 0xf0, 0xff, 0, 0, 0, 0]), "*(u16 *)(r10 -16) = r1");
        assert_eq!(text([0x72, 0x0a, 0xff, 0xff, 7, 0, 0, 0]), "*(u8 *)(r10 -1) = 7");
        assert_eq!(text([0xb7, 0x06, 0, 0, 0xff, 0xff, 0xff, 0xff]), "r6 = -1");
        assert_eq!(text([0xb4, 0x06, 0, 0, 1, 0, 0, 0]), "w6 = 1");
        assert_eq!(text([0x0f, 0x12, 0, 0, 0, 0, 0, 0]), "r2 += r1");
        assert_eq!(text([0x87, 0x02, 0, 0, 0, 0, 0, 0]), "r2 = -r2");
        assert_eq!(text([0xdc, 0x02, 0, 0, 16, 0, 0, 0]), "r2 = be16 r2");
        assert_eq!(text([0xbf, 0x12, 8, 0, 0, 0, 0, 0]), "r2 = (s8)r1");
        assert_eq!(text([0x18, 0x01, 0, 0, 2, 0, 0, 0]), "r1 = 0x100000002");
        assert_eq!(text([0x55, 0x01, 5, 0, 2, 0, 0, 0]), "if r1 != 0x2 goto pc+5");
        assert_eq!(text([0x6e, 0x21, 0xfd, 0xff, 0, 0, 0, 0]), "if w1 s> w2 goto pc-3");
        assert_eq!(text([0x05, 0, 0xff, 0xff, 0, 0, 0, 0]), "goto pc-1");
        assert_eq!(text([0x85, 0, 0, 0, 1, 0, 0, 0]), "call bpf_map_lookup_elem#1");
        assert_eq!(text([0x85, 0x10, 0, 0, 9, 0, 0, 0]), "call pc+9");
        assert_eq!(text([0x95, 0, 0, 0, 0, 0, 0, 0]), "exit");
        assert_eq!(text([0xdb, 0x21, 8, 0, 0, 0, 0, 0]), "lock *(u64 *)(r1 +8) += r2");
        assert_eq!(text([0xdb, 0x21, 8, 0, 0xf1, 0, 0, 0]), "r0 = atomic64_cmpxchg((u64 *)(r1 +8), r0, r2)");
        assert_eq!(Insn::POISON.text(None), "call unknown#195896080 (poisoned)");
    }

    #[test]
    fn every_code_has_a_text_and_survives_the_round_trip() {
        for big_endian in [false, true] {
            for code in 0..=255 {
                for (regs, off, imm) in [(0x12, 0, 0), (0xff, 0x80, 0xff), (0x0a, 1, 0xf1)] {
                    let bytes = [code, regs, off, off, imm, 0, 0, imm];
                    let insn = Insn::decode(bytes, big_endian);
                    assert_eq!(insn.encode(big_endian), bytes);
                    assert!(!insn.text(None).is_empty());
                }
            }
        }
    }
}
