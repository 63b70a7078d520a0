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
    /// This build of the crate holds no CUDA kernels.
    #[error(
        "cuda: no kernels in this build, because no nvcc was found or NVCC=off was set: build with NVCC=<path> \
         (the feature `require-kernels` makes a build without fail)"
    )]
    KernelsNotBuilt,
    /// The CUDA driver's library is not installed.
    #[error("cuda: no driver, none of these loads: {searched}")]
    DriverMissing {
        /// File names that were tried.
        searched: String,
    },
    /// A call of the CUDA driver failed.
    #[error("cuda: {call} failed with code {code}")]
    Driver {
        /// The driver's function, or the first of those that the step makes.
        call: &'static str,
        /// The driver's `CUresult`.
        code: u32,
    },
    /// The build holds no kernels for this device.
    #[error("cuda: {device} has compute capability {capability}, kernels are built for {built}")]
    DeviceUnsupported {
        /// Name of the device.
        device: String,
        /// Its compute capability.
        capability: String,
        /// Architectures with machine code; PTX of the lowest.
        built: String,
    },
    /// Host and device disagree about the parameters of the kernels.
    #[error("cuda: {what} is {host:#x} on the host, {device:#x} on the device")]
    AbiMismatch {
        /// What differs.
        what: &'static str,
        /// The host's value.
        host: u32,
        /// The device's value.
        device: u32,
    },
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
