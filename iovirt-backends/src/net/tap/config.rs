//! How a tap is set up.

use crate::net::check;
use iovirt_core::BackendError;

/// The longest name of an interface in bytes: `IFNAMSIZ` without its end.
const MAX_NAME: usize = 15;

/// How a [`TapBackend`](super::TapBackend) is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    /// The tap device.
    pub name: String,
    /// Pairs of queues: 1 to [`MAX_PAIRS`](crate::net::MAX_PAIRS).
    pub pairs: u16,
}

impl TapConfig {
    /// A tap with one pair of queues.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), pairs: 1 }
    }

    pub(super) fn check(&self) -> Result<(), BackendError> {
        let name = &self.name;
        // A percent sign is a pattern to the host, which would make a device of another name.
        let odd = |character: char| !character.is_ascii_graphic() || "/%:".contains(character);
        if name.is_empty()
            || name.len() > MAX_NAME
            || name.chars().any(odd)
            || [".", ".."].contains(&name.as_str())
        {
            return Err(BackendError::config(format!(
                "a tap cannot be called {name:?}: 1 to {MAX_NAME} printable characters other than `/`, `%`, `:` are allowed"
            )));
        }
        check(1500, self.pairs)
    }
}
