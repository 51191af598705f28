//! The bitmap, and the stage.

use super::{OverlayConfig, OverlayControl};
use iovirt_core::request::block::{BlockRequest, Durability};
use iovirt_core::stage::{FannedOut, Layer, Layered, Presence};
use iovirt_core::state::{SavedState, StageStates, StateError};
use iovirt_core::{AttachError, Backend};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Most clusters of a disk.
const MAX_CLUSTERS: u64 = 1 << 30;

/// Copy-on-write by a bitmap; see the [module](super).
#[derive(Debug)]
pub struct Overlay {
    name: String,
    map: Arc<ClusterMap>,
}

/// One bit for each cluster of a disk: whether the upper layer holds it.
#[derive(Debug)]
pub struct ClusterMap {
    shift: u32,
    capacity: u64,
    words: Box<[AtomicU64]>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OverlayState {
    cluster: u64,
    capacity: u64,
    map: Vec<u8>,
}

impl SavedState for OverlayState {
    const KIND: &'static str = "overlay";
    const VERSION: u16 = 1;
}

impl Overlay {
    /// An overlay of a base of that many bytes, of which nothing was written.
    ///
    /// # Errors
    /// Where the cluster is not one that can be, or so small that there would be more than 2^30.
    pub fn new(config: &OverlayConfig, capacity: u64) -> Result<Self, AttachError> {
        let refuse = |reason: String| Err(AttachError::new(&config.name, reason));
        let cluster = config.cluster;
        let allowed = OverlayConfig::MIN_CLUSTER..=OverlayConfig::MAX_CLUSTER;
        if !cluster.is_power_of_two() || !allowed.contains(&cluster) {
            return refuse(format!("cluster={cluster} is not allowed: powers of two from 4K to 1M are"));
        }
        let clusters = capacity.div_ceil(cluster);
        if clusters > MAX_CLUSTERS {
            return refuse(format!(
                "a base of {capacity} bytes has {clusters} clusters of {cluster}: at most {MAX_CLUSTERS} are allowed"
            ));
        }
        let words = (0..clusters.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let map = ClusterMap { shift: cluster.trailing_zeros(), capacity, words };
        Ok(Self { name: config.name.clone(), map: Arc::new(map) })
    }

    /// That upper layer over that base.
    ///
    /// # Errors
    /// As [`Overlay::new`], and where the upper layer is smaller than the base.
    pub fn over<B: Backend<BlockRequest>>(
        config: &OverlayConfig,
        upper: B,
        base: B,
    ) -> Result<FannedOut<BlockRequest, Layered<Self>, B>, AttachError> {
        let overlay = Self::new(config, base.caps().capacity)?;
        Layered::over(overlay, upper, base)
    }
}

#[cfg(test)]
impl Overlay {
    pub(super) fn map_for_test(&self) -> Arc<ClusterMap> {
        self.map.clone()
    }
}

impl ClusterMap {
    /// The size of a cluster in bytes.
    pub fn cluster(&self) -> u64 {
        1 << self.shift
    }

    pub(super) fn clusters(&self) -> u64 {
        self.capacity.div_ceil(self.cluster())
    }

    pub(super) fn allocated(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum()
    }

    fn word(&self, cluster: u64) -> u64 {
        self.words.get((cluster / 64) as usize).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// The first cluster from `from` on, up to `end`, whose bit is not `bit`.
    fn run_end(&self, from: u64, end: u64, bit: bool) -> u64 {
        let mut at = from;
        while at < end {
            let word = self.word(at);
            // The bits from `at` on that end the run.
            let other = if bit { !word } else { word } >> (at % 64);
            if other != 0 {
                return end.min(at + u64::from(other.trailing_zeros()));
            }
            at = (at / 64 + 1) * 64;
        }
        end
    }

    fn lookup(&self, range: &Range<u64>) -> (Layer, u64) {
        let first = range.start >> self.shift;
        let end = ((range.end - 1) >> self.shift) + 1;
        let bit = self.word(first) >> (first % 64) & 1 != 0;
        let run = self.run_end(first, end, bit);
        let layer = if bit { Layer::Upper } else { Layer::Lower };
        (layer, range.end.min(run << self.shift))
    }

    fn allocate(&self, range: &Range<u64>) {
        let (mut at, end) = (range.start >> self.shift, range.end.div_ceil(self.cluster()));
        while at < end {
            let next = end.min((at / 64 + 1) * 64);
            let bits = (u64::MAX >> (64 - (next - at))) << (at % 64);
            if let Some(word) = self.words.get((at / 64) as usize) {
                word.fetch_or(bits, Ordering::AcqRel);
            }
            at = next;
        }
    }
}

impl Presence for Overlay {
    fn name(&self) -> &str {
        &self.name
    }

    fn capacity(&self) -> u64 {
        self.map.capacity
    }

    fn cluster(&self) -> u64 {
        self.map.cluster()
    }

    fn durability(&self) -> Durability {
        Durability::Unsafe
    }

    fn lookup(&self, range: Range<u64>) -> (Layer, u64) {
        self.map.lookup(&range)
    }

    fn allocate(&self, range: Range<u64>) {
        self.map.allocate(&range);
    }

    fn control(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::new(OverlayControl::new(self.map.clone())))
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        let map = self.map.words.iter().flat_map(|word| word.load(Ordering::Acquire).to_le_bytes()).collect();
        states.push(&OverlayState { cluster: self.map.cluster(), capacity: self.map.capacity, map });
        Ok(())
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        let OverlayState { cluster, capacity, map } = states.pop()?;
        let own = (self.map.cluster(), self.map.capacity, self.map.words.len() * 8);
        if (cluster, capacity, map.len()) != own {
            let reason = format!(
                "it is of {capacity} bytes in clusters of {cluster}; here are {} in clusters of {}",
                own.1, own.0
            );
            return Err(StateError::Mismatch { kind: OverlayState::KIND.into(), reason });
        }
        for (word, bytes) in self.map.words.iter().zip(map.chunks_exact(8)) {
            let bits = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
            word.store(bits, Ordering::Release);
        }
        Ok(())
    }
}
