//! The verifier's statistics of its work, from the end of its log (kernel/bpf/verifier.c, `print_verification_stats`).

use serde::Serialize;

/// The work of verifying one program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Statistics {
    /// The duration of verification, in microseconds.
    pub time_us: Option<u64>,
    /// Bytes of stack, of the program and of each function that the program calls.
    pub stack_depth: Vec<u32>,
    /// Instructions that the verifier processed; an instruction counts every time that the verifier visits it.
    pub insns_processed: u64,
    /// The largest number of states that the verifier kept for one instruction.
    pub max_states_per_insn: Option<u64>,
    /// States that the verifier kept, in total.
    pub total_states: Option<u64>,
    /// The largest number of states that the verifier kept at one time.
    pub peak_states: Option<u64>,
}

impl Statistics {
    /// Parse the log; none if the log has no such line.
    pub fn parse(log: &str) -> Option<Self> {
        // verification time 1234 usec
        // stack depth 120+8, on newer kernels: stack depth 120+8 max 128
        // processed 3912 insns (limit 1000000) max_states_per_insn 4 total_states 134 peak_states 134 mark_read 23
        let after = |word: &str| log.lines().rev().find_map(|line| line.strip_prefix(word));
        let processed = after("processed ")?;
        let mut words = processed.split_whitespace();
        let insns_processed = words.next()?.parse().ok()?;
        let words: Vec<&str> = words.collect();
        let number = |name: &str| {
            let place = words.iter().position(|word| *word == name)?;
            words.get(place + 1)?.parse().ok()
        };
        let depths = after("stack depth ").unwrap_or_default().split('+');
        Some(Self {
            time_us: after("verification time ").and_then(|rest| rest.split(' ').next()?.parse().ok()),
            stack_depth: depths.filter_map(|depth| depth.split(' ').next()?.parse().ok()).collect(),
            insns_processed,
            max_states_per_insn: number("max_states_per_insn"),
            total_states: number("total_states"),
            peak_states: number("peak_states"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_log_is_read() {
        let log = "func#0 @0\nverification time 812 usec\nstack depth 344+16\nprocessed 1412 insns (limit 1000000) \
                   max_states_per_insn 3 total_states 61 peak_states 60 mark_read 17\n";
        let expected = Statistics {
            time_us: Some(812),
            stack_depth: vec![344, 16],
            insns_processed: 1412,
            max_states_per_insn: Some(3),
            total_states: Some(61),
            peak_states: Some(60),
        };
        assert_eq!(Statistics::parse(log).as_ref(), Some(&expected));
        assert_eq!(Statistics::parse(&log.replace("+16\n", "+16 max 376\n")), Some(expected));
        assert_eq!(
            Statistics::parse("processed 2 insns"),
            Some(Statistics { insns_processed: 2, ..Default::default() })
        );
        for none in ["", "invalid bpf_context access\n", "processed no insns"] {
            assert_eq!(Statistics::parse(none), None, "{none}");
        }
    }
}
