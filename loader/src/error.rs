//! Errors and their meaning. The class of an error decides the exit code. If the host lacks something, the error names the lack
//! and the remedy.

use std::{fmt, io};

/// A class of failure with an exit code of its own; attach it to an error with `anyhow`'s `context`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Wrong usage that clap cannot see.
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

/// An obstacle on this host, and its remedy. `xctl doctor` and `xctl trace` get the same value from the same function. Attach it
/// to an error with `anyhow`'s `context`, or make it one by [`Blocked::by_host`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// What was found instead of what is needed.
    pub found: String,
    /// What to do.
    pub remedy: String,
}

impl Blocked {
    /// Both as text.
    pub fn new(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { found: found.into(), remedy: remedy.into() }
    }

    /// An error with this obstacle and the class [`Exit::Host`]: this host cannot run xctl.
    #[must_use]
    pub fn by_host(self) -> anyhow::Error {
        anyhow::Error::new(self).context(Exit::Host)
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.found, self.remedy)
    }
}

impl std::error::Error for Blocked {}

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

/// Whether an error only says that nobody reads our output any more (`xctl | head`). That is no reason to complain.
#[must_use]
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
