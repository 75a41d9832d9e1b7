//! The kernel's hash of a program: the instructions that the kernel was given, without the file descriptors of maps,
//! which differ from run to run. The tag is the first 8 bytes of SHA-1, or since 6.18 of SHA-256 (kernel/bpf/core.c,
//! `bpf_prog_calc_tag`).

use crate::object::elf::INSN_SIZE;
use crate::object::insn::LDIMM64;

/// Values of `src` in a 64-bit load whose number stands for a map, or for a place in a map.
pub(super) const PSEUDO_MAP_FD: u8 = 1;
pub(super) const PSEUDO_MAP_VALUE: u8 = 2;

/// The kind of hash that a tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hash {
    /// SHA-1, before Linux 6.18.
    Sha1,
    /// SHA-256, since Linux 6.18.
    Sha256,
}

/// The kind of hash of these instructions that the tag is; none if the tag belongs to other instructions.
#[must_use]
pub fn of(insns: &[u8], tag: [u8; 8]) -> Option<Hash> {
    let hashed = without_maps(insns);
    if hmac_sha256::Hash::hash(&hashed).starts_with(&tag) {
        return Some(Hash::Sha256);
    }
    sha1(&hashed).starts_with(&tag).then_some(Hash::Sha1)
}

/// The instructions as they are hashed. Where a load stands for a map, both halves of its number are zero.
fn without_maps(insns: &[u8]) -> Vec<u8> {
    let mut bytes = insns.to_vec();
    let mut of_map = false;
    for insn in bytes.chunks_exact_mut(INSN_SIZE as usize) {
        let [code, registers, _, _, number @ ..] = insn else { continue };
        let second = std::mem::take(&mut of_map) && *code == 0;
        let source = if cfg!(target_endian = "little") { *registers >> 4 } else { *registers & 15 };
        of_map = !second && *code == LDIMM64 && matches!(source, PSEUDO_MAP_FD | PSEUDO_MAP_VALUE);
        if of_map || second {
            number.fill(0);
        }
    }
    bytes
}

/// SHA-1 (FIPS 180-4). SHA-1 is broken as a protection against forgery; it is used here only because the kernel
/// computes it.
fn sha1(bytes: &[u8]) -> [u8; 20] {
    let mut state: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut message = bytes.to_vec();
    message.push(0x80);
    message.resize((message.len() + 8).next_multiple_of(64) - 8, 0);
    message.extend_from_slice(&(bytes.len() as u64 * 8).to_be_bytes());
    for block in message.chunks_exact(64) {
        let mut words = [0u32; 80];
        for (word, four) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = four.iter().fold(0, |word, &byte| (word << 8) | u32::from(byte));
        }
        for at in 16..80 {
            words[at] = (words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = state;
        for (round, word) in words.into_iter().enumerate() {
            let (mix, constant) = match round / 20 {
                0 => ((b & c) | (!b & d), 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6),
            };
            let next = a.rotate_left(5).wrapping_add(mix).wrapping_add(e).wrapping_add(constant).wrapping_add(word);
            (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
        }
        for (sum, part) in state.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(part);
        }
    }
    let mut digest = [0; 20];
    for (four, word) in digest.chunks_exact_mut(4).zip(state) {
        four.copy_from_slice(&word.to_be_bytes());
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::facts::hex;

    #[test]
    fn sha1_is_that_of_the_standard() {
        for (message, digest) in [
            (&b"abc"[..], "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (b"", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
            (b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", "84983e441c3bd26ebaae4aa1f95129e5e54670f1"),
        ] {
            assert_eq!(hex(&sha1(message)), digest);
        }
        assert_eq!(hex(&sha1(&vec![b'a'; 1_000_000])), "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
    }

    #[test]
    fn the_tag_covers_everything_but_file_descriptors() {
        let load = |source: u8, fd: u8, offset: u8| {
            let mut bytes = vec![0x18, (source << 4) | 1, 0, 0, fd, 0, 0, 0];
            bytes.extend([0, 0, 0, 0, offset, 0, 0, 0]);
            bytes.extend([0x95, 0, 0, 0, 0, 0, 0, 0]);
            bytes
        };
        let tag: [u8; 8] = sha1(&load(1, 0, 0))[..8].try_into().unwrap();
        assert_eq!(of(&load(1, 5, 0), tag), Some(Hash::Sha1));
        assert_eq!(of(&load(1, 7, 9), tag), Some(Hash::Sha1));
        assert_eq!(of(&load(2, 7, 9), tag), None);
        assert_eq!(of(&load(0, 5, 0), tag), None);
        let tag: [u8; 8] = hmac_sha256::Hash::hash(&load(0, 5, 1))[..8].try_into().unwrap();
        assert_eq!(of(&load(0, 5, 1), tag), Some(Hash::Sha256));
        assert_eq!(of(&load(0, 5, 2), tag), None);
    }
}
