//! How the stage is set up.

/// How a [`Stats`](super::Stats) stage is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatsConfig {
    /// What the stage is called in the list of a stack's stages: tells several apart.
    pub name: String,
}

impl Default for StatsConfig {
    /// Called `stats`.
    fn default() -> Self {
        Self { name: "stats".into() }
    }
}
