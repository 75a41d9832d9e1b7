//! The verdict on an object: how its relocations came out, and the problems that keep it from running.

use std::collections::BTreeMap;

use anyhow::anyhow;
use serde::Serialize;

/// The most problems that are listed, since a hostile file can have any number.
const MOST_PROBLEMS: usize = 100;

/// How the relocations came out, and what follows.
#[derive(Debug, Default, Serialize)]
pub(super) struct Verdict {
    pub(super) relocations_total: usize,
    pub(super) applied: usize,
    pub(super) poisoned: usize,
    pub(super) refused: usize,
    pub(super) skipped: usize,
    /// Relocations that were not looked at, because the report ended early.
    pub(super) not_looked_at: usize,
    /// The reason why the report ended early: the object is too complex to decide. Null if the report did not end early.
    pub(super) ended: Option<String>,
    /// Why the object, or a program in it, would not load.
    pub(super) problems: Vec<String>,
    /// Instructions that would not run with this BTF alone: a module of the kernel may have what they need.
    pub(super) undecided: Vec<String>,
    /// The number of undecided instructions that `undecided` does not list.
    pub(super) more_undecided: usize,
    /// The number of problems that `problems` does not list.
    pub(super) more_problems: usize,
    /// Notes that do not keep the object from loading: addresses in variables that libbpf does not relocate.
    pub(super) notes: Vec<String>,
    /// The number of notes that `notes` does not list.
    pub(super) more_notes: usize,
    /// Whether the whole object would load, as far as its relocations decide that. Null without a BTF, if not all relocations
    /// were looked at, or if something is undecided.
    pub(super) runs: Option<bool>,
    /// Programs that would fail to load, by their number, and the first reason of each as far as problems are listed.
    #[serde(skip)]
    pub(super) failing: BTreeMap<usize, Option<String>>,
    /// A problem keeps libbpf from opening the object, whatever the BTF.
    #[serde(skip)]
    pub(super) is_refused: bool,
}

impl Verdict {
    /// A problem that keeps the program of that number from being loaded.
    pub(super) fn program_problem(&mut self, program: Option<usize>, what: impl FnOnce() -> String) {
        let listed = self.problems.len();
        self.problem(what);
        if let Some(program) = program {
            self.failing.entry(program).or_insert_with(|| self.problems.get(listed).cloned());
        }
    }

    /// A problem that keeps libbpf from opening the object.
    pub(super) fn refused_for(&mut self, why: String) {
        self.problem(|| why);
        (self.is_refused, self.runs) = (true, Some(false));
    }

    /// The part that was read. A part that could not be read keeps libbpf from opening the object.
    pub(super) fn or_refused<T: Default>(&mut self, part: Result<T, String>) -> T {
        part.unwrap_or_else(|why| {
            self.refused_for(why);
            T::default()
        })
    }

    /// The first problem, and how many more there are.
    pub(super) fn refusal(&self) -> anyhow::Error {
        let first = self.problems.first().map_or("", String::as_str);
        match self.problems.len().saturating_sub(1) + self.more_problems {
            0 => anyhow!("{first}"),
            more => anyhow!("{first} (and {more} more)"),
        }
    }

    pub(super) fn problem(&mut self, what: impl FnOnce() -> String) {
        match self.problems.len() < MOST_PROBLEMS {
            true => self.problems.push(what()),
            false => self.more_problems += 1,
        }
    }

    pub(super) fn note(&mut self, what: String) {
        match self.notes.len() < MOST_PROBLEMS {
            true => self.notes.push(what),
            false => self.more_notes += 1,
        }
    }

    /// An instruction that runs only if a module has the type that it needs.
    pub(super) fn undecided(&mut self, what: impl FnOnce() -> String) {
        match self.undecided.len() < MOST_PROBLEMS {
            true => self.undecided.push(what()),
            false => self.more_undecided += 1,
        }
    }
}
