//! The bound on the work for one object. Types, functions and relocations can refer to each other in so many ways that following
//! all references would never end.

use std::cell::Cell;

/// The steps that are spent on one object: some tenths of a second. xctl's own object takes 24,000 of them with the types of Linux
/// 6.18, and each of the 161 objects of `make test-corpus` takes less than 4,000.
pub const MOST_STEPS: usize = 500_000;

/// Bytes of text that one step reads or writes.
const TEXT: usize = 16;

/// The reason why the work on an object ends.
pub const TOO_COMPLEX: &str = "the object is too complex to decide";

/// The steps that are left. A step is one look at a thing: a relocation, a type, a member, a constant, a call, or 16 bytes of a
/// name.
#[derive(Debug)]
pub struct Steps {
    /// None if more were wanted than there were.
    left: Cell<Option<usize>>,
}

impl Default for Steps {
    fn default() -> Self {
        Steps { left: Cell::new(Some(MOST_STEPS)) }
    }
}

impl Steps {
    /// Takes this many steps.
    ///
    /// # Errors
    /// [`TOO_COMPLEX`]: fewer are left. From then on, none are.
    pub fn take(&self, steps: usize) -> Result<(), String> {
        self.left.set(self.left.get().and_then(|left| left.checked_sub(steps)));
        if self.is_spent() { Err(TOO_COMPLEX.to_owned()) } else { Ok(()) }
    }

    /// Takes the steps for a look at a text of so many bytes.
    ///
    /// # Errors
    /// As [`Steps::take`].
    pub fn text(&self, bytes: usize) -> Result<(), String> {
        self.take(1 + bytes / TEXT)
    }

    /// The steps that were taken; [`MOST_STEPS`] if more were wanted than there were.
    #[must_use]
    pub fn taken(&self) -> usize {
        MOST_STEPS - self.left.get().unwrap_or(0)
    }

    /// Whether more steps were wanted than there were.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.left.get().is_none()
    }
}
