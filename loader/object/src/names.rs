//! Names that several functions of an object have, and the words that tell these functions apart. A linker joins files that
//! each have a static function of the same name.

use crate::sort;
use std::borrow::Cow;
use std::collections::HashMap;

use super::elf::Program;

/// The functions' names that do not tell which function is meant.
#[derive(Clone, Debug, Default)]
pub struct Names<'a> {
    /// Names of several functions. The value is true if two of these functions are in one section.
    shared: HashMap<&'a str, bool>,
}

impl<'a> Names<'a> {
    /// Finds the names that several of these functions have.
    pub fn new<'p>(functions: impl IntoIterator<Item = &'p Program<'a>>) -> Self
    where
        'a: 'p,
    {
        let mut names: Vec<_> = functions.into_iter().map(|one| (one.name, one.section_index)).collect();
        sort::ascending(&mut names);
        let mut shared: HashMap<&str, bool> = HashMap::new();
        for pair in names.windows(2) {
            if let [one, next] = pair
                && one.0 == next.0
            {
                *shared.entry(one.0).or_default() |= one.1 == next.1;
            }
        }
        Names { shared }
    }

    /// The function's name. If other functions have the same name, the section follows, and the place in the section where
    /// the section does not tell: `f`, `f (section .text)`, `f (section .text, byte 64)`.
    #[must_use]
    pub fn shown(&self, function: &Program<'a>) -> Cow<'a, str> {
        self.label(function).map_or(Cow::Borrowed(function.name), Cow::Owned)
    }

    /// The same; `None` if the name alone tells which function is meant.
    #[must_use]
    pub fn label(&self, function: &Program<'a>) -> Option<String> {
        let Program { name, section, offset, .. } = function;
        Some(match self.shared.get(name)? {
            false => format!("{name} (section {section})"),
            true => format!("{name} (section {section}, byte {offset})"),
        })
    }
}
