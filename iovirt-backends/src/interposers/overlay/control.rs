//! The control handle.

use super::ClusterMap;
use std::sync::Arc;

/// Shows how much of a disk an [`Overlay`](super::Overlay) has moved up, from any thread.
#[derive(Debug)]
pub struct OverlayControl {
    map: Arc<ClusterMap>,
}

impl OverlayControl {
    pub(super) fn new(map: Arc<ClusterMap>) -> Self {
        Self { map }
    }

    /// The size of a cluster in bytes.
    pub fn cluster(&self) -> u64 {
        self.map.cluster()
    }

    /// How many clusters the disk has.
    pub fn clusters(&self) -> u64 {
        self.map.clusters()
    }

    /// How many of them the upper layer holds; counted now, at the cost of a look at the whole bitmap.
    pub fn allocated(&self) -> u64 {
        self.map.allocated()
    }
}
