//! The answers that a reader wants first: whether the object would run, which programs would not, and which facts the
//! verdict does not judge.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use bpf_object::sort;
use serde::Serialize;

use super::Verdict;
use crate::object::facts::{Facts, FunctionFacts};

/// Facts that the verdict does not judge.
const NOT_JUDGED: &[&str] = &[
    "the verifier's other rules",
    "whether hooks can be attached",
    "configuration (.kconfig)",
    "types of kernel symbols that the object takes by name",
];

/// The member `summary` of the JSON document, and the first screen of the text.
#[derive(Debug, Serialize)]
pub(super) struct Summary<'h> {
    /// The same value as in the document itself.
    runs: Option<bool>,
    not_judged: &'static [&'static str],
    /// Programs by type and hook, the most frequent first.
    pub(super) hooks: Vec<HookCount<'h>>,
    /// Programs that would fail to load, in the order of the file.
    pub(super) failing: Vec<Failing<'h>>,
    /// Programs whose hook has a target that the BTF lacks.
    pub(super) absent: Vec<Absent<'h>>,
}

/// The number of programs with the same type and kind of hook.
#[derive(Debug, Serialize)]
pub(super) struct HookCount<'h> {
    /// The type's name in bpftool; null if libbpf knows no type for the hook.
    #[serde(rename = "type")]
    pub(super) program_type: Option<&'static str>,
    /// The kind of hook, such as `kprobe`.
    pub(super) hook: &'h str,
    pub(super) programs: usize,
    /// The number of these programs that are not loaded by default.
    pub(super) not_loaded: usize,
    /// The number of these programs that would fail to load.
    pub(super) failing: usize,
}

/// A program that would fail to load.
#[derive(Debug, Serialize)]
pub(super) struct Failing<'h> {
    program: &'h str,
    section: &'h str,
    /// The first reason; null if there are more reasons than the report lists.
    why: Option<String>,
}

/// A program whose hook has a target that the BTF lacks.
#[derive(Debug, Serialize)]
pub(super) struct Absent<'h> {
    pub(super) program: &'h str,
    pub(super) hook: &'h str,
    pub(super) target: &'h str,
    pub(super) autoload: bool,
}

/// A program's kind of hook. If libbpf knows no hook for a section, the section's name is used.
fn hook_of<'h>(program: &'h FunctionFacts<'_>) -> &'h str {
    program.hook.unwrap_or(program.section)
}

impl<'h> Summary<'h> {
    /// A summary of the facts about an object, and of the verdict.
    pub(super) fn of(facts: &'h Facts<'_>, verdict: &Verdict) -> Self {
        let mut hooks: BTreeMap<(Option<&str>, &str), HookCount<'_>> = BTreeMap::new();
        for (number, program) in facts.programs.iter().enumerate() {
            let (program_type, hook) = (program.program_type, hook_of(program));
            let none = HookCount { program_type, hook, programs: 0, not_loaded: 0, failing: 0 };
            let count = hooks.entry((program_type, hook)).or_insert(none);
            count.programs += 1;
            count.not_loaded += usize::from(!program.autoload);
            count.failing += usize::from(verdict.failing.contains_key(&number));
        }
        let mut hooks: Vec<_> = hooks.into_values().collect();
        sort::by_key(&mut hooks, |count| (Reverse(count.programs), count.program_type, count.hook));
        let failing = verdict.failing.iter().filter_map(|(number, why)| {
            let program = facts.programs.get(*number)?;
            Some(Failing { program: program.name, section: program.section, why: why.clone() })
        });
        let absent = facts.programs.iter().filter(|program| program.target_in_btf == Some(false)).map(|program| {
            let (hook, target) = (hook_of(program), program.target.unwrap_or_default());
            Absent { program: program.name, hook, target, autoload: program.autoload }
        });
        Summary {
            runs: verdict.runs,
            not_judged: NOT_JUDGED,
            hooks,
            failing: failing.collect(),
            absent: absent.collect(),
        }
    }

    /// The facts that the verdict does not judge, as a list in a sentence.
    pub(super) fn not_judged(&self) -> String {
        self.not_judged.join(", ")
    }
}
