//! "Did you mean": the names closest to one that was not found.

/// Longer names are not compared. Nobody mistypes such a name, and the time for a comparison is the product of both lengths.
const LONGEST: usize = 64;

/// The numbers of edits that turn nothing into the first bytes of a name: as many as there are bytes.
const FIRST_ROW: [u8; LONGEST + 1] = {
    let mut row = [0; LONGEST + 1];
    let mut at = 0;
    while at <= LONGEST {
        row[at] = at as u8;
        at += 1;
    }
    row
};

/// The number of edits (insert, remove, replace a byte) that turn `a` into `b`; `None` if there are more than `most`, or if a
/// name is longer than [`LONGEST`].
fn distance(a: &[u8], b: &[u8], most: usize) -> Option<usize> {
    if a.len() > LONGEST {
        return None;
    }
    // Nothing is allocated: names are compared by the hundred thousand.
    let mut row = FIRST_ROW;
    let row = row.get_mut(..=b.len())?;
    for (i, x) in (0_u8..).zip(a) {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut least = left;
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let here = (diagonal + u8::from(x != y)).min(left + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = here;
            left = here;
            least = least.min(here);
        }
        // No row has a smaller minimum than the one before it.
        if usize::from(least) > most {
            return None;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().map(usize::from).filter(|far| *far <= most)
}

/// Up to three of `names` that look like `wanted`. First the names that contain `wanted`: when a member is split or renamed,
/// the new names often contain the old one (`i_atime`, `i_atime_sec`). Then the closest names; equally close names by
/// alphabet.
pub fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut best: Vec<(bool, usize, &str)> = Vec::new();
    let limit = wanted.len().div_ceil(3).min(4);
    if wanted.is_empty() || wanted.len() > LONGEST {
        return Vec::new();
    }
    for name in names {
        if name.is_empty() || name.len() > LONGEST || name == wanted {
            continue;
        }
        let contains = wanted.len() >= 3 && name.len() >= 3 && (name.contains(wanted) || wanted.contains(name));
        let gap = name.len().abs_diff(wanted.len());
        if gap > limit && !contains {
            continue;
        }
        let most = if contains { usize::MAX } else { limit };
        let Some(far) = distance(wanted.as_bytes(), name.as_bytes(), most) else { continue };
        let entry = (!(contains && name.contains(wanted)), far, name);
        if best.contains(&entry) {
            continue;
        }
        let place = best.partition_point(|other| *other < entry);
        if place < 3 {
            best.insert(place, entry);
            best.truncate(3);
        }
    }
    best.into_iter().map(|(.., name)| name).collect()
}

/// The end of a sentence for the names of [`nearest`]: `"; did you mean a, b?"`, or nothing.
pub fn hint(candidates: &[&str]) -> String {
    if candidates.is_empty() { String::new() } else { format!("; did you mean {}?", candidates.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        assert_eq!(distance(b"kitten", b"sitting", 3), Some(3));
        assert_eq!(distance(b"kitten", b"sitting", 2), None);
        assert_eq!(distance(b"", b"abc", 9), Some(3));
        assert_eq!(distance(b"abc", b"", 9), Some(3));
        assert_eq!(distance(b"same", b"same", 0), Some(0));
    }

    #[test]
    fn closest_first_and_at_most_three() {
        let names = ["skc_daddr", "skc_dport", "skc_num", "skc_rcv_saddr", "sock", "skc_daddr"];
        assert_eq!(nearest("skc_dadr", names.into_iter()), ["skc_daddr", "skc_dport"]);
        assert_eq!(nearest("skc_", names.into_iter()), ["skc_num", "skc_daddr", "skc_dport"]);
        assert!(nearest("unrelated", names.into_iter()).is_empty());
    }

    #[test]
    fn names_that_contain_it_come_before_names_that_are_closer() {
        // The names are members of struct inode in Linux 6.12.
        let names = ["i_rdev", "i_size", "i_atime_sec", "i_mtime_sec", "i_atime_nsec", "i_wb", "i_data", "i_mode"];
        assert_eq!(nearest("i_atime", names.into_iter())[..2], ["i_atime_sec", "i_atime_nsec"]);
        assert_eq!(nearest("i_atime_s", names.into_iter())[0], "i_atime_sec");
    }

    #[test]
    fn long_names_cost_nothing() {
        let long = "x".repeat(1 << 20);
        assert!(nearest(&long, [long.as_str()].into_iter()).is_empty());
        assert!(nearest("x", [long.as_str()].into_iter()).is_empty());
    }
}
