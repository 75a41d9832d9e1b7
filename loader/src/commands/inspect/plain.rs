//! Text of an untrusted file, made safe for a terminal.

use std::fmt::{self, Display};

/// Text of an untrusted file, without characters that would control a terminal.
pub(super) struct Plain<'t>(pub(super) &'t str);

impl Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut pieces = self.0.split(char::is_control);
        f.write_str(pieces.next().unwrap_or_default())?;
        pieces.try_for_each(|piece| write!(f, "\u{fffd}{piece}"))
    }
}

/// Names of an untrusted file, with commas between them.
pub(super) struct Names<'n, T>(pub(super) &'n [T]);

impl<T: AsRef<str>> Display for Names<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, name) in self.0.iter().enumerate() {
            write!(f, "{}{}", if number == 0 { "" } else { ", " }, Plain(name.as_ref()))?;
        }
        Ok(())
    }
}
