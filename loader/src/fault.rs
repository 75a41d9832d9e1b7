//! What an error means for the exit code. Everything else about it is in its message.

use std::fmt;

/// A class of failure with an exit code of its own; attach it to an error with `anyhow`'s `context`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Wrong usage that the argument parser could not see.
    Usage,
    /// This host cannot run xctl.
    Host,
    /// The object file was refused.
    Object,
    /// `--verify` found a difference.
    Verify,
}

impl Exit {
    /// The exit code of an error: that of its class, or 1.
    #[must_use]
    pub fn code_of(error: &anyhow::Error) -> u8 {
        match error.downcast_ref() {
            None => 1,
            Some(Self::Usage) => 2,
            Some(Self::Host) => 3,
            Some(Self::Object) => 4,
            Some(Self::Verify) => 5,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Usage => "wrong usage",
            Self::Host => "this host cannot run it",
            Self::Object => "the object file was refused",
            Self::Verify => "--verify found a difference",
        })
    }
}
