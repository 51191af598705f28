//! Errors of the control plane. On the data path an error is a completion's output.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong in a back-end's control plane, coarsely enough to act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendErrorKind {
    /// The host refused: a file is missing, a permission is lacking, a descriptor ran out.
    Host,
    /// The configuration cannot be met.
    Config,
    /// Somebody else holds what this back-end needs for itself.
    Busy,
    /// The back-end cannot do this.
    Unsupported,
    /// Saved state does not fit.
    State,
}

/// An error of a back-end's control plane: one sentence, and the cause where there is one.
pub struct BackendError {
    kind: BackendErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl BackendError {
    /// An error of that kind. The message is one sentence without a full stop that names what is wrong.
    pub fn new(kind: BackendErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// A refusal of the configuration.
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(BackendErrorKind::Config, message)
    }

    /// A refusal of the host, with what it said.
    pub fn host(message: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self { kind: BackendErrorKind::Host, message: message.into(), source: Some(source.into()) }
    }

    /// What to do about it.
    pub fn kind(&self) -> BackendErrorKind {
        self.kind
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl StdError for BackendError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        // The display already has the cause's words; the chain has the cause itself.
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// Why a stage refused to stand above the stack it was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{stage}: {reason}")]
pub struct AttachError {
    /// The stage that refused.
    pub stage: String,
    /// One sentence: what is wrong with the stack below, and what would do.
    pub reason: String,
}

impl AttachError {
    /// A refusal by that stage.
    pub fn new(stage: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { stage: stage.into(), reason: reason.into() }
    }
}
