//! The `align` stage: smaller blocks above a back-end that only takes larger, aligned ones.
//!
//! A 512-byte disk above direct I/O on a device with 4096-byte blocks, or above a network protocol that moves whole
//! blocks. What is aligned already passes as it is, without a copy. Otherwise:
//!
//! | request | what is done |
//! |---|---|
//! | read, with memory that is not aligned or not of whole blocks | the blocks are read into aligned host memory and copied |
//! | write of whole blocks from memory that is not aligned | copied into aligned host memory, and written |
//! | write of parts of blocks | the blocks at its edges are read, changed and written (read-modify-write) |
//! | write-zeroes of parts of blocks | the same at its edges; what lies between is passed on |
//! | discard of parts of blocks | only the whole blocks within are passed on |
//!
//! # Data that is not asked for
//!
//! A read-modify-write also writes what it does not mean to change. So that nobody's data is lost by that, such a request
//! excludes every other one that changes the same blocks, of all queues of the back-end, from before it reads until it has
//! written: whoever comes later waits, without holding up its worker. Where the blocks above and below have the same size
//! there is no read-modify-write, and nothing waits.
//!
//! A loss of power may tear a read-modify-write like any other write of one block, no worse.
//!
//! # Cost
//!
//! Aligned memory of up to [`AlignConfig::bounce_bytes`] for each request in flight that needs it, kept for the next one:
//! a longer request is done in several steps. Where there can be read-modify-writes, one lock per batch of writes, shared
//! by the queues of the back-end.
//!
//! ```
//! use iovirt_backends::block::align::{AlignConfig, AlignLayer};
//! use iovirt_core::pipeline::{BoxBackend, Pipeline};
//! use iovirt_core::request::block::BlockRequest;
//!
//! # fn example(device: BoxBackend<BlockRequest>) -> Result<(), iovirt_core::AttachError> {
//! // A back-end with blocks of 4096 bytes, which a guest sees as 512 (and is told of, as the physical block size).
//! let align = AlignConfig { logical_block: 512, memory: 4096, ..AlignConfig::default() };
//! let stack = Pipeline::top().stage(AlignLayer::new(align)).backend(device)?;
//! # Ok(())
//! # }
//! ```

mod parent;
mod queue;

#[cfg(test)]
mod tests;

pub use queue::AlignedQueue;

use iovirt_core::pipeline::{Event, EventListener, Stages};
use iovirt_core::request::block::{BlockCaps, BlockRequest, SECTOR};
use iovirt_core::stage::RangeLocks;
use iovirt_core::state::{StageStates, StateError};
use iovirt_core::{AttachError, Backend, BackendError, Depth, Interposer, WorkerContext};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the stage shows above, and what it keeps to below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AlignConfig {
    /// The logical block size above, in bytes: a power of two, 512 or more, at most the one below.
    pub logical_block: u32,
    /// What addresses of memory must be multiples of below, in bytes: a power of two, at most 4096. 1 where any address
    /// will do; the lengths of pieces must then still be whole blocks.
    pub memory: u32,
    /// Most aligned host memory for one request, in bytes: a multiple of the block size below, two blocks or more.
    pub bounce_bytes: usize,
}

impl Default for AlignConfig {
    fn default() -> Self {
        Self { logical_block: SECTOR as u32, memory: 1, bounce_bytes: 256 << 10 }
    }
}

/// The `align` stage as a layer of a [`Pipeline`](iovirt_core::pipeline::Pipeline).
#[derive(Clone, Copy, Debug)]
pub struct AlignLayer {
    config: AlignConfig,
}

impl AlignLayer {
    /// The stage with that configuration.
    pub fn new(config: AlignConfig) -> Self {
        Self { config }
    }
}

impl<B: Backend<BlockRequest>> Interposer<BlockRequest, B> for AlignLayer {
    type Stacked = Aligned<B>;

    fn attach(self, below: B) -> Result<Aligned<B>, AttachError> {
        let AlignConfig { logical_block, memory, bounce_bytes } = self.config;
        let block = below.caps().logical_block;
        let refuse = |reason: String| Err(AttachError::new("align", reason));
        if !logical_block.is_power_of_two() || logical_block < SECTOR as u32 || logical_block > block {
            return refuse(format!(
                "logical-block={logical_block} is not allowed: powers of two from 512 to the {block} below are"
            ));
        }
        if !memory.is_power_of_two() || memory > 4096 {
            return refuse(format!("memory={memory} is not allowed: powers of two up to 4096 are"));
        }
        if bounce_bytes < 2 * block as usize || !bounce_bytes.is_multiple_of(block as usize) {
            return refuse(format!(
                "bounce-bytes={bounce_bytes} is not allowed: multiples of {block}, twice that or more, are"
            ));
        }
        Ok(Aligned::new(self.config, block, below))
    }
}

/// The `align` stage above a back-end.
#[derive(Debug)]
pub struct Aligned<B> {
    shared: Arc<Shared<B>>,
}

/// What all queues share.
pub(crate) struct Shared<B> {
    config: AlignConfig,
    /// Block size below, in bytes.
    block: u64,
    below: B,
    locks: Arc<RangeLocks>,
    changes: Arc<Changes>,
}

/// Counts what happened to the capabilities below.
#[derive(Debug, Default)]
struct Changes {
    count: AtomicU64,
}

impl EventListener for Changes {
    fn event(&self, _: Event) {
        self.count.fetch_add(1, Ordering::Release);
    }
}

impl<B: Backend<BlockRequest>> Aligned<B> {
    fn new(config: AlignConfig, block: u32, below: B) -> Self {
        let changes = Arc::new(Changes::default());
        let listener: Arc<dyn EventListener> = changes.clone();
        below.subscribe(&listener);
        let locks = Arc::default();
        let shared = Shared { config, block: u64::from(block), below, locks, changes };
        Self { shared: Arc::new(shared) }
    }

    /// What is below.
    pub fn below(&self) -> &B {
        &self.shared.below
    }
}

impl<B: Backend<BlockRequest>> Shared<B> {
    fn caps(&self) -> BlockCaps {
        let below = self.below.caps();
        let mut caps = BlockCaps {
            logical_block: self.config.logical_block,
            physical_block: below.physical_block.max(self.block as u32),
            ..(*below).clone()
        };
        if let Some(discard) = &mut caps.discard {
            discard.alignment = discard.alignment.max(self.block as u32);
        }
        caps
    }

    /// Changes whenever the capabilities may have.
    fn generation(&self) -> u64 {
        self.changes.count.load(Ordering::Acquire)
    }
}

impl<B: Backend<BlockRequest>> Backend<BlockRequest> for Aligned<B> {
    type Queue = AlignedQueue<B>;

    fn caps(&self) -> Arc<BlockCaps> {
        Arc::new(self.shared.caps())
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<AlignedQueue<B>, BackendError> {
        let below = self.shared.below.open(cx, depth)?;
        Ok(AlignedQueue::new(&self.shared, below, cx.waker(), depth))
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push("align");
        self.shared.below.stages(stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        // The stage hears of a change before those above it do: it was there first.
        self.shared.below.subscribe(listener);
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.shared.below.save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.shared.below.restore(states)
    }
}

impl<B: std::fmt::Debug> std::fmt::Debug for Shared<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("config", &self.config)
            .field("block", &self.block)
            .field("below", &self.below)
            .finish_non_exhaustive()
    }
}
