//! How the stage is set up.

/// How a [`Mirror`](super::Mirror) is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorConfig {
    /// What the stage is called in the list of a stack's stages.
    pub name: String,
    /// On how many replicas a write must succeed: 1 or more; `None` for all that there are.
    pub write_quorum: Option<usize>,
    /// Where reads go.
    pub read: ReadPolicy,
}

/// Where reads go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadPolicy {
    /// To the first replica that has not failed.
    #[default]
    First,
    /// To each replica in turn.
    RoundRobin,
}

impl Default for MirrorConfig {
    /// Called `mirror`; writes must succeed everywhere, reads go to the first replica.
    fn default() -> Self {
        Self { name: "mirror".into(), write_quorum: None, read: ReadPolicy::First }
    }
}
