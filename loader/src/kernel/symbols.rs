//! The kernel's information about its own functions. Safe code.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

use anyhow::{Context, Result};

use super::file::read;

const KALLSYMS: &str = "/proc/kallsyms";

/// A line of kallsyms, such as `0000000000000000 T tcp_sendmsg`.
struct Symbol<'l> {
    address: &'l str,
    kind: &'l str,
    name: &'l str,
}

impl<'l> Symbol<'l> {
    fn parse(line: &'l [u8]) -> Option<Self> {
        // A module's name in brackets may follow.
        let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
        Some(Self { address: words.next()?, kind: words.next()?, name: words.next()? })
    }

    fn is_code(&self) -> bool {
        matches!(self.kind, "t" | "T" | "w" | "W")
    }
}

/// Read line by line, since there are more than 100,000 lines.
fn for_each(mut kallsyms: impl BufRead, mut each: impl FnMut(Symbol<'_>)) -> io::Result<()> {
    let mut line = Vec::new();
    while kallsyms.read_until(b'\n', &mut line)? > 0 {
        Symbol::parse(&line).into_iter().for_each(&mut each);
        line.clear();
    }
    Ok(())
}

/// The number of functions with each of these names in the kernel. A kprobe can only be attached to a name that exists
/// once.
///
/// # Errors
/// If /proc/kallsyms cannot be read.
pub fn count<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<HashMap<&'a str, usize>> {
    let mut counts: HashMap<_, _> = names.into_iter().map(|name| (name, 0)).collect();
    let read = File::open(KALLSYMS).and_then(|file| {
        for_each(BufReader::new(file), |symbol| {
            if let Some(count) = counts.get_mut(symbol.name).filter(|_| symbol.is_code()) {
                *count += 1;
            }
        })
    });
    read.with_context(|| format!("cannot read {KALLSYMS}"))?;
    Ok(counts)
}

/// The addresses of these symbols. The result lacks a symbol if the kernel hides its address from this process, or if
/// several symbols have its name.
#[must_use]
pub fn addresses(names: &[String]) -> HashMap<String, u64> {
    File::open(KALLSYMS).map(|file| find(names, BufReader::new(file))).unwrap_or_default()
}

fn find(names: &[String], kallsyms: impl BufRead) -> HashMap<String, u64> {
    let mut found: HashMap<String, Vec<u64>> = HashMap::new();
    // If the file cannot be read to its end, the rest counts as hidden.
    let _ = for_each(kallsyms, |symbol| {
        if names.iter().any(|name| name == symbol.name)
            && let Ok(address) = u64::from_str_radix(symbol.address, 16)
        {
            found.entry(symbol.name.to_owned()).or_default().push(address);
        }
    });
    let only = |(name, addresses): (String, Vec<u64>)| match addresses.as_slice() {
        [address] if *address != 0 => Some((name, *address)),
        _ => None,
    };
    found.into_iter().filter_map(only).collect()
}

/// Where each of these functions begins and ends: its address and the next higher one of another symbol; none: it does not exist. A
/// name that the compiler has lengthened counts (`tcp_ack.isra.0`), except for the cold part of a function. None: the kernel hides
/// addresses from this process, or a function exists twice.
#[must_use]
pub fn ranges<const N: usize>(names: [&str; N]) -> Option<[Option<(u64, u64)>; N]> {
    find_ranges(names, BufReader::new(File::open(KALLSYMS).ok()?))
}

fn find_ranges<const N: usize>(names: [&str; N], kallsyms: impl BufRead) -> Option<[Option<(u64, u64)>; N]> {
    let (mut found, mut is_clear) = ([None; N], true);
    // The kernel's own symbols come in the order of their addresses.
    let read = for_each(kallsyms, |symbol| {
        let address = u64::from_str_radix(symbol.address, 16).unwrap_or(0);
        for (from, to) in found.iter_mut().flatten() {
            if *to == 0 && address > *from {
                *to = address;
            }
        }
        let mut parts = symbol.name.split('.');
        let name = parts.next().unwrap_or_default();
        if let Some(place) = names.iter().position(|own| *own == name)
            && symbol.is_code()
            && !parts.any(|part| part == "cold")
        {
            is_clear &= found[place].is_none() && address != 0;
            found[place] = Some((address, 0));
        }
    });
    (read.is_ok() && is_clear && found.iter().flatten().all(|(_, to)| *to != 0)).then_some(found)
}

/// The functions that may not be probed; none if debugfs does not tell.
#[must_use]
pub fn blacklist() -> Option<Vec<String>> {
    let text = read("/sys/kernel/debug/kprobes/blacklist").ok()?;
    // A line is `0xffffffff81001234-0xffffffff81001278	name`.
    Some(text.lines().filter_map(|line| line.split_ascii_whitespace().nth(1)).map(str::to_string).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_symbols_of_code_are_functions() {
        let function = |line| Symbol::parse(line).filter(Symbol::is_code).map(|symbol| symbol.name);
        assert_eq!(function(b"ffffffff81a0 T tcp_sendmsg\n"), Some("tcp_sendmsg"));
        assert_eq!(function(b"0000000000000000 t x\t[module]\n"), Some("x"));
        assert_eq!(function(b"0000000000000000 D tcp_prot\n"), None);
        assert_eq!(function(b"odd"), None);
    }

    #[test]
    fn hidden_and_ambiguous_addresses_are_unknown() {
        let kallsyms = b"ffffffff81000000 T tcp_sendmsg\n0000000000000000 T hidden\nffffffff81000010 t twice\n\
                         ffffffff81000020 t twice\nffffffffc0000000 T other\t[module]\n";
        let wanted = ["tcp_sendmsg", "hidden", "twice", "absent"].map(str::to_owned);
        let found = find(&wanted, &kallsyms[..]);
        assert_eq!(found, HashMap::from([("tcp_sendmsg".to_owned(), 0xffff_ffff_8100_0000)]));
    }

    #[test]
    fn a_function_ends_where_the_next_symbol_begins() {
        let kallsyms =
            b"10 T a\n10 T alias\n20 t b.isra.0\n2c t b.cold\n2e t b.cold.7\n30 T next\n0 T none\n40 t twice\n50 t twice\n60 T end\n";
        let found = Some([Some((0x20, 0x2c)), Some((0x10, 0x20)), None]);
        assert_eq!(find_ranges(["b", "a", "absent"], &kallsyms[..]), found);
        for odd in ["none", "twice", "end"] {
            assert_eq!(find_ranges(["a", odd], &kallsyms[..]), None, "{odd}");
        }
    }

    #[test]
    fn this_kernel_has_one_tcp_sendmsg() {
        let counts = count(["tcp_sendmsg", "no_such_function"]).unwrap();
        assert_eq!(counts["no_such_function"], 0);
        assert!(counts["tcp_sendmsg"] >= 1);
    }
}
