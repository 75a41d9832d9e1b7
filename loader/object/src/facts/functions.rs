//! Functions: what each calls and touches, added up along the calls of a program.

use std::collections::BTreeSet;

use super::{FunctionFacts, MOST_FUNCTIONS};
use crate::elf::{ObjectFile, Program};
use crate::helpers;
use crate::hook::hook;
use crate::names::Names;
use crate::relo::Relocations;
use crate::sort;
use crate::steps::Steps;
use crate::uses::{Places, Uses, push};

/// Only files made by hand have functions that share instructions. The sizes of all functions together may be at most this
/// many times the file's size, so that reading each function does not take too long.
const MOST_OVERLAP: u64 = 2;

/// A function, and what it uses by itself.
struct Used<'o, 'a> {
    function: &'o Program<'a>,
    uses: Uses<'a>,
    /// The index in [`Functions::called`] of the function's first callee.
    first_called: usize,
    /// The function from which the last walk along calls began, by its number from 1.
    seen: usize,
}

/// The uses of every function by itself, to be added up along a program's calls. Programs come first, as in the object.
pub(super) struct Functions<'o, 'a> {
    all: Vec<Used<'o, 'a>>,
    /// For each function, the number of the first function at the same address. For an alias this is another function.
    firsts: Vec<u32>,
    /// The numbers of each function's callees, one function after the other.
    called: Vec<u32>,
    names: &'o Names<'a>,
    steps: &'o Steps,
    /// The numbers of the functions that the walk along one function's calls has still to look at.
    todo: Vec<usize>,
}

/// Where functions begin, in order: section, byte offset, number.
type Begins = Vec<(usize, u64, u32)>;

/// The number of the function that begins at a place: of several, the first.
fn function_at(begins: &Begins, (section, offset): (usize, u64)) -> Option<u32> {
    let at = begins.partition_point(|begin| *begin < (section, offset, 0));
    begins.get(at).filter(|begin| (begin.0, begin.1) == (section, offset)).map(|begin| begin.2)
}

impl<'o, 'a> Functions<'o, 'a> {
    pub(super) fn of(
        bytes: &[u8],
        object: &'o ObjectFile<'a>,
        places: &Places<'o, 'a>,
        code: &'o Relocations<'_, 'a>,
    ) -> Result<Self, String> {
        let functions = || object.programs.iter().chain(&object.subprograms);
        let total: u64 = functions().map(|function| function.size).fold(0, u64::saturating_add);
        if total > MOST_OVERLAP * bytes.len() as u64 {
            return Err("its functions overlap each other".to_owned());
        }
        // A file has fewer functions than a u32 counts.
        let begin = |(number, function): (u32, &Program<'_>)| (function.section_index, function.offset, number);
        let mut begins: Begins = (0..).zip(functions()).map(begin).collect();
        sort::ascending(&mut begins);
        let mut firsts = vec![0; begins.len()];
        for same in begins.chunk_by(|one, next| (one.0, one.1) == (next.0, next.1)) {
            for (.., number) in same {
                let first = same.first().map_or(0, |first| first.2);
                firsts.get_mut(*number as usize).into_iter().for_each(|place| *place = first);
            }
        }
        let mut all = Vec::with_capacity(begins.len());
        let mut called = Vec::new();
        for function in functions() {
            let (uses, first_called) = (places.of(function, code), called.len());
            code.steps().take(1 + uses.called_at.len())?;
            called.extend(uses.called_at.iter().filter_map(|(_, place)| function_at(&begins, *place)));
            all.push(Used { function, uses, first_called, seen: 0 });
        }
        Ok(Functions { all, firsts, called, names: code.names(), steps: code.steps(), todo: Vec::new() })
    }

    /// Makes the facts of these functions. `first` is the number of the first one.
    pub(super) fn facts(
        &mut self,
        first: usize,
        functions: &[Program<'a>],
        facts: &mut Vec<FunctionFacts<'a>>,
        refused: &mut Vec<String>,
    ) -> Result<(), String> {
        facts.reserve_exact(functions.len());
        for (number, function) in (first..).zip(functions) {
            facts.push(self.one(number, function, refused)?);
        }
        Ok(())
    }

    fn one(
        &mut self,
        number: usize,
        function: &Program<'a>,
        refused: &mut Vec<String>,
    ) -> Result<FunctionFacts<'a>, String> {
        let is_program = function.section != ".text";
        let hook = is_program.then(|| hook(function.section));
        let mut facts = FunctionFacts {
            name: function.name,
            section: function.section,
            label: self.names.label(function),
            hook: hook.map(|hook| hook.kind),
            target: hook.map(|hook| hook.target).filter(|target| !target.is_empty()),
            target_in_btf: None,
            program_type: hook.and_then(|hook| hook.program_type),
            sleepable: hook.is_some_and(|hook| hook.sleepable),
            autoload: hook.is_none_or(|hook| hook.autoload),
            named_by_map: false,
            insns: function.insns,
            insns_total: 0,
            helpers: Vec::new(),
            kfuncs: Vec::new(),
            calls: Vec::new(),
            maps: Vec::new(),
            variables: Vec::new(),
            externs: Vec::new(),
            provable: true,
        };
        let mut helpers = BTreeSet::new();
        let Functions { all, firsts, called: all_called, names, steps, todo } = self;
        let mut count = 0;
        todo.clear();
        todo.push(number);
        // A call of an alias of this function is a call of this function.
        let first = firsts.get(number).map(|first| *first as usize).filter(|first| *first != number);
        first.and_then(|first| all.get_mut(first)).into_iter().for_each(|first| first.seen = number + 1);
        while let Some(index) = todo.pop() {
            let next = all.get(index + 1).map_or(all_called.len(), |next| next.first_called);
            let Some(Used { function: called, uses, first_called, seen }) = all.get_mut(index) else { continue };
            if std::mem::replace(seen, number + 1) == number + 1 {
                continue;
            }
            steps.text(called.name.len())?;
            count += 1;
            if count > 1 {
                push(&mut facts.calls, names.shown(called));
                // A function's callees are listed with that function.
                if !is_program {
                    continue;
                }
            }
            if is_program && count == MOST_FUNCTIONS + 1 {
                let name = function.name;
                refused
                    .push(format!("program {name} calls {MOST_FUNCTIONS} functions or more, the kernel takes fewer"));
            }
            let names = [&uses.kfuncs, &uses.maps, &uses.variables, &uses.externs].into_iter().flatten();
            for name in names {
                steps.text(name.len())?;
            }
            steps.take(uses.helpers.len() + uses.called_at.len())?;
            facts.insns_total += called.insns;
            helpers.extend(&uses.helpers);
            facts.kfuncs.extend(&uses.kfuncs);
            facts.maps.extend(&uses.maps);
            facts.variables.extend(&uses.variables);
            facts.externs.extend(&uses.externs);
            todo.extend(all_called.get(*first_called..next).into_iter().flatten().map(|index| *index as usize));
        }
        let lists = [&mut facts.kfuncs, &mut facts.maps, &mut facts.variables, &mut facts.externs];
        lists.into_iter().for_each(each_once);
        each_once(&mut facts.calls);
        facts.provable = facts.kfuncs.is_empty() && facts.externs.is_empty();
        facts.helpers = helpers.iter().map(|number| helpers::shown(*number)).collect();
        Ok(facts)
    }
}

fn each_once<T: Ord>(list: &mut Vec<T>) {
    sort::ascending(list);
    list.dedup();
}
