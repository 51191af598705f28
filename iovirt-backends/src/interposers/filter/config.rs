//! How a filter is set up.

/// How a [`Filter`](super::Filter) is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterConfig {
    /// What the control handle is found by.
    pub name: String,
    /// What is dropped until the control handle says otherwise.
    pub drops: Drops,
}

/// What a filter drops before it has a predicate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drops {
    /// Nothing.
    #[default]
    Nothing,
    /// What the guest sends.
    Transmit,
    /// What comes for the guest.
    Receive,
    /// Everything.
    All,
}

impl Default for FilterConfig {
    /// Called `filter`, dropping nothing.
    fn default() -> Self {
        Self { name: "filter".into(), drops: Drops::Nothing }
    }
}
