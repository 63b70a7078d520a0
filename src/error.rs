//! The crate's one error type.

use std::path::PathBuf;

/// Result of every fallible call of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong: the argument or place, what was expected of it and what was given.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument has the wrong size or value.
    #[error("`{argument}`: expected {expected}, got {given}")]
    Argument {
        /// Name of the argument as the public signature spells it.
        argument: String,
        /// What the call accepts.
        expected: String,
        /// What was passed.
        given: String,
    },
    /// The operation has no per-sample gradient, or cannot be done rightly.
    #[error("{what} is refused: {reason}")]
    Refused {
        /// The operation, layer or combination.
        what: String,
        /// Why, and what to do instead.
        reason: String,
    },
    /// A policy does not hold together, by itself or with the model it is compiled for.
    #[error("policy, {place}: {problem}")]
    Policy {
        /// Where in the policy, e.g. `region "script"` or `profile "style/serif"`.
        place: String,
        /// What is wrong there.
        problem: String,
    },
    /// A ledger cannot be read or extended as asked.
    #[error("ledger {}: {problem}", path.display())]
    Ledger {
        /// The file or directory concerned.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file concerned.
        path: PathBuf,
        /// The system's own error.
        source: std::io::Error,
    },
    /// The CUDA driver or the crate's kernels are not to be had.
    #[error("cuda: {0}")]
    Cuda(String),
}

impl Error {
    /// An [`Error::Argument`], from anything that can be shown.
    pub(crate) fn argument(
        argument: impl Into<String>,
        expected: impl Into<String>,
        given: impl ToString,
    ) -> Self {
        Self::Argument {
            argument: argument.into(),
            expected: expected.into(),
            given: given.to_string(),
        }
    }
}

/// Checks a length and names the argument when it is wrong.
pub(crate) fn expect_len(argument: &str, expected: usize, given: usize) -> Result<()> {
    if expected == given {
        return Ok(());
    }
    Err(Error::argument(argument, format!("{expected} elements"), given))
}
