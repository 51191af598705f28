//! Everything that can go wrong before and around serving, one sentence each.

use std::io;
use std::path::PathBuf;

use iovirt::describe::DescribeError;

use crate::options::OptionsError;

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error("--device '{text}': {error}")]
    Build { text: String, error: DescribeError },
    #[error("--device '{text}': {reason}")]
    Host { text: String, reason: String },
    #[error("--socket {}: {error}", path.display())]
    Socket { path: PathBuf, error: io::Error },
    #[error("--control {}: {error}", path.display())]
    Control { path: PathBuf, error: io::Error },
    #[error("--metrics {address}: {error}")]
    Metrics { address: String, error: io::Error },
    #[error("--allow {}: {reason}", path.display())]
    Allow { path: PathBuf, reason: String },
    #[error("the sandbox cannot be set up: {0}")]
    Sandbox(String),
    #[error("cannot {what}: {error}")]
    Process { what: &'static str, error: io::Error },
}

impl Failure {
    /// The exit code of the process: 2 where the command line is wrong, 1 where the host refuses what it asks for.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Options(_) => 2,
            _ => 1,
        }
    }

    /// Wraps an error of the host's operating system.
    pub(crate) fn process(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Process { what, error }
    }
}
