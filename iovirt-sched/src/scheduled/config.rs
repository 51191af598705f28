//! How the stage is set up.

use iovirt_core::scheduler::Weight;
use std::num::NonZeroUsize;

/// How a [`Scheduled`](super::Scheduled) stage is set up from a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScheduledConfig {
    /// The group that the pipeline joins; made where there is none of that name.
    pub group: String,
    /// The pipeline's share, in proportion to the others of the group.
    pub weight: Weight,
    /// Requests of the whole group that are below at once. Where nobody says, [`SfqConfig`](crate::SfqConfig) has a default;
    /// whoever says must say the same.
    pub depth: Option<NonZeroUsize>,
}
