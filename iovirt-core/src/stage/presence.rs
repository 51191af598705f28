//! The presence tier: two block layers, of which it is known who holds which bytes. Copy-on-write, caches, redo logs.
//!
//! Reads are split between the layers; what changes the disk goes to the upper one. An author says which layer holds a
//! range and takes note of what the upper one got ([`Presence`]); [`Layered`] does the rest, as a
//! [fan-out](super::fanout) of two branches.
//!
//! | request | what is done |
//! |---|---|
//! | read | each run from the layer that holds it |
//! | write, write-zeroes of what the upper layer holds, or of whole clusters | goes to the upper layer as it is |
//! | the same of parts of clusters that the lower layer holds | these are copied up first: read from the lower layer, changed, and written to the upper one as a whole |
//! | discard | what the upper layer holds is discarded there, but stays its own: the lower layer's content never comes back |
//! | flush | the upper layer |
//!
//! # Who waits for whom
//!
//! A request that moves clusters up has them for itself, over all queues, until it comes home. So two writes of different
//! parts of one cluster both survive. A request that finds all of its clusters above waits for nobody and takes no lock;
//! nor does a read. The upper layer holds a cluster only once it was written there: a write that fails leaves it below.
//!
//! # Cost
//!
//! Host memory of two clusters at most for each request in flight, kept for the next one. No allocation per request.
//!
//! # Example
//!
//! ```
//! use iovirt_core::request::block::Durability;
//! use iovirt_core::stage::{Layer, Presence};
//! use std::ops::Range;
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! /// The upper layer is filled from the front: it holds what lies below a mark.
//! #[derive(Debug, Default)]
//! struct Prefix { mark: AtomicU64 }
//!
//! impl Presence for Prefix {
//!     fn name(&self) -> &str { "prefix" }
//!     fn capacity(&self) -> u64 { 1 << 20 }
//!     fn cluster(&self) -> u64 { 1 << 20 } // the first write moves all of it
//!     fn durability(&self) -> Durability { Durability::Unsafe } // the mark is in memory only
//!     fn lookup(&self, range: Range<u64>) -> (Layer, u64) {
//!         let mark = self.mark.load(Ordering::Acquire);
//!         if range.start < mark { (Layer::Upper, range.end.min(mark)) } else { (Layer::Lower, range.end) }
//!     }
//!     fn allocate(&self, range: Range<u64>) { self.mark.fetch_max(range.end, Ordering::AcqRel); }
//! }
//! ```

use super::fanout::{Child, Children, FanOut, FanOutStage, FannedOut, admit};
use crate::backend::Backend;
use crate::error::AttachError;
use crate::request::Depth;
use crate::request::block::{
    BlockCaps, BlockError, BlockFlags, BlockOp, BlockOutput, BlockRequest, DiscardLimits, Durability,
    WriteZeroesLimits,
};
use crate::state::{StageStates, StateError};
use crate::worker::WorkerContext;
use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// The branch of the upper layer.
const UPPER: usize = 0;
/// The branch of the lower layer.
const LOWER: usize = 1;

/// Longest discard or write-zeroes in bytes: so that looking up who holds a range takes a bounded time.
pub const MAX_RANGE: u64 = 1 << 30;

/// Which layer holds a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The one that is written.
    Upper,
    /// The one below it, which is only read.
    Lower,
}

/// Who holds which bytes of a disk. Shared by all queues; takes no lock that is held for long.
pub trait Presence: Send + Sync + fmt::Debug + 'static {
    /// The stage's name, as in a description.
    fn name(&self) -> &str;

    /// How many bytes it knows of; the disk is no larger.
    fn capacity(&self) -> u64;

    /// The unit in which bytes move up, in bytes: a power of two. The last cluster of a disk may be shorter.
    fn cluster(&self) -> u64;

    /// What of the knowledge itself survives a loss of power; the disk promises no more.
    fn durability(&self) -> Durability;

    /// Which layer holds the first byte of a range that is not empty and lies within the disk, and up to where that layer
    /// holds all of it: behind the first byte, and not behind the range. What the upper layer holds stays with it.
    fn lookup(&self, range: Range<u64>) -> (Layer, u64);

    /// The upper layer holds these clusters from now on; the range begins and ends with clusters, or with the disk.
    fn allocate(&self, range: Range<u64>);

    /// The stage's control handle.
    fn control(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// Saves what must outlive the process.
    ///
    /// # Errors
    /// Where it cannot be saved now.
    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        let _ = states;
        Ok(())
    }

    /// Takes back what [`Presence::save`] pushed.
    ///
    /// # Errors
    /// Where the state does not fit.
    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        let _ = states;
        Ok(())
    }
}

/// Two layers, of which a [`Presence`] knows who holds what: the stage.
#[derive(Debug)]
pub struct Layered<P> {
    presence: Arc<P>,
}

impl<P: Presence> Layered<P> {
    /// A stage that asks this.
    pub fn new(presence: P) -> Self {
        Self { presence: Arc::new(presence) }
    }

    /// The layers as one disk, of the size of the lower one.
    ///
    /// # Errors
    /// Where the upper layer is smaller, or the cluster is not a power of two or smaller than the layers' blocks.
    pub fn over<B: Backend<BlockRequest>>(
        presence: P,
        upper: B,
        lower: B,
    ) -> Result<FannedOut<BlockRequest, Self, B>, AttachError> {
        FannedOut::new(Self::new(presence), vec![upper, lower])
    }
}

impl<P: Presence> FanOutStage<BlockRequest> for Layered<P> {
    type FanOut = LayeredFan<P>;

    fn name(&self) -> &str {
        self.presence.name()
    }

    fn caps(&self, layers: &[Arc<BlockCaps>]) -> Result<BlockCaps, AttachError> {
        let refuse = |reason: String| Err(AttachError::new(self.presence.name(), reason));
        let [upper, lower] = layers else {
            return refuse(format!(
                "{} layers are not allowed: 2 are, the upper and the lower",
                layers.len()
            ));
        };
        let logical_block = upper.logical_block.max(lower.logical_block);
        let block = u64::from(logical_block);
        let cluster = self.presence.cluster();
        if !cluster.is_power_of_two() || cluster < block {
            return refuse(format!(
                "clusters of {cluster} bytes are not allowed: powers of two from {block} are"
            ));
        }
        let capacity = lower.capacity.min(self.presence.capacity());
        let capacity = capacity - capacity % block;
        if upper.capacity < capacity {
            let has = upper.capacity;
            return refuse(format!("the upper layer has {has} bytes: it needs the {capacity} of the lower"));
        }
        let limit = |bytes: u64| {
            let bytes = bytes.min(MAX_RANGE);
            bytes - bytes % block
        };
        let discard = upper.discard.map(|limits| DiscardLimits {
            max_bytes: limit(limits.max_bytes),
            reads_zero: false,
            ..limits
        });
        let zeroes = upper
            .write_zeroes
            .map(|limits| WriteZeroesLimits { max_bytes: limit(limits.max_bytes), ..limits });
        let durability = match (upper.durability, self.presence.durability()) {
            (Durability::Unsafe, _) | (_, Durability::Unsafe) => Durability::Unsafe,
            (Durability::WriteThrough, Durability::WriteThrough) => Durability::WriteThrough,
            _ => Durability::WriteBack,
        };
        Ok(BlockCaps {
            capacity,
            logical_block,
            physical_block: upper.physical_block.max(lower.physical_block).max(logical_block),
            optimal_io: if upper.optimal_io.is_multiple_of(logical_block) { upper.optimal_io } else { 0 },
            read_only: upper.read_only,
            durability,
            fua: upper.fua,
            discard: discard.filter(|limits| limits.max_bytes > 0),
            write_zeroes: zeroes.filter(|limits| limits.max_bytes > 0),
        })
    }

    fn fan_out(&self, _: &mut WorkerContext<'_>, _: Depth) -> LayeredFan<P> {
        LayeredFan { presence: self.presence.clone(), cluster: self.presence.cluster() }
    }

    fn control(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.presence.control()
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.presence.save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.presence.restore(states)
    }
}

/// The data plane of [`Layered`].
#[derive(Debug)]
pub struct LayeredFan<P> {
    presence: Arc<P>,
    cluster: u64,
}

/// How far a request is.
#[derive(Debug)]
pub struct Walk {
    /// What lies before this, as an offset of the disk, is done or under way.
    at: u64,
    step: Step,
    failed: Option<BlockError>,
}

/// What of a write is under way.
#[derive(Debug)]
enum Step {
    /// Nothing, or something that changes nothing about who holds what.
    Pass,
    /// These clusters, or what the request changes of them, to the upper layer.
    Write(Range<u64>),
    /// This cluster from the lower layer.
    CopyRead(Range<u64>),
}

impl<P: Presence> LayeredFan<P> {
    /// The clusters that hold a range of a disk.
    fn cover(&self, range: &Range<u64>, capacity: u64) -> Range<u64> {
        // The range lies within the disk, so nothing overflows.
        let end = (range.end + (self.cluster - 1)) & !(self.cluster - 1);
        range.start & !(self.cluster - 1)..end.min(capacity.max(range.end))
    }

    fn is_above(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.presence.lookup(range.clone()) == (Layer::Upper, range.end)
    }

    /// Starts reads of the next runs; runs alternate, so both layers are busy.
    fn read(
        &self,
        walk: &mut Walk,
        request: &BlockRequest,
        children: &mut Children<'_, BlockRequest>,
    ) -> Result<(), BlockError> {
        while walk.at < request.end() {
            let (layer, end) = self.presence.lookup(walk.at..request.end());
            let branch = if layer == Layer::Upper { UPPER } else { LOWER };
            if children.is_busy(branch) {
                break;
            }
            let part = walk.at - request.offset()..end - request.offset();
            children.start_part(branch, request, part, walk.at)?;
            walk.at = end;
        }
        Ok(())
    }

    /// Starts the discard of the next run that the upper layer holds.
    fn discard(
        &self,
        walk: &mut Walk,
        request: &BlockRequest,
        children: &mut Children<'_, BlockRequest>,
    ) -> Result<(), BlockError> {
        while walk.at < request.end() {
            let (layer, end) = self.presence.lookup(walk.at..request.end());
            let at = std::mem::replace(&mut walk.at, end);
            if layer == Layer::Upper {
                return children.start_part(
                    UPPER,
                    request,
                    at - request.offset()..end - request.offset(),
                    at,
                );
            }
        }
        Ok(())
    }

    /// Starts the next part of a write or a write-zeroes.
    fn write(
        &self,
        walk: &mut Walk,
        request: &BlockRequest,
        children: &mut Children<'_, BlockRequest>,
    ) -> Result<(), BlockError> {
        let (at, end) = (walk.at, request.end());
        if at >= end {
            return Ok(());
        }
        let capacity = children.caps().capacity;
        let first = self.cover(&(at..at + 1), capacity);
        if self.must_copy(&first, request) {
            walk.step = Step::CopyRead(first.clone());
            let len = (first.end - first.start) as usize;
            let fill = |list: &mut crate::dma::SgList| list.push_host(len);
            return children.start_block(LOWER, BlockOp::Read, BlockFlags::empty(), first, fill);
        }
        let last = self.cover(&(end - 1..end), capacity);
        let end = if last != first && self.must_copy(&last, request) { last.start } else { end };
        walk.step = Step::Write(self.cover(&(at..end), capacity));
        walk.at = end;
        children.start_part(UPPER, request, at - request.offset()..end - request.offset(), at)
    }

    /// Whether a cluster has to be copied up before the request can change it.
    fn must_copy(&self, cluster: &Range<u64>, request: &BlockRequest) -> bool {
        let whole = request.offset() <= cluster.start && cluster.end <= request.end();
        !whole && !self.is_above(cluster)
    }

    /// Goes on after a child has succeeded.
    fn go_on(
        &self,
        walk: &mut Walk,
        request: &BlockRequest,
        child: Option<&mut BlockRequest>,
        children: &mut Children<'_, BlockRequest>,
    ) -> Result<(), BlockError> {
        match request.op() {
            BlockOp::Flush => Ok(()),
            BlockOp::Read => self.read(walk, request, children),
            BlockOp::Discard => self.discard(walk, request, children),
            BlockOp::Write | BlockOp::WriteZeroes => {
                match (std::mem::replace(&mut walk.step, Step::Pass), child) {
                    (Step::CopyRead(cluster), Some(copy)) => {
                        return copy_up(walk, cluster, request, copy, children);
                    }
                    (Step::Write(clusters), _) if !self.is_above(&clusters) => {
                        self.presence.allocate(clusters);
                    }
                    _ => {}
                }
                self.write(walk, request, children)
            }
        }
    }
}

/// A cluster was read from below: changes it and writes it above.
fn copy_up(
    walk: &mut Walk,
    cluster: Range<u64>,
    request: &BlockRequest,
    copy: &mut BlockRequest,
    children: &mut Children<'_, BlockRequest>,
) -> Result<(), BlockError> {
    let part = cluster.start.max(request.offset())..cluster.end.min(request.end());
    let (at, len) = (part.start - cluster.start, part.end - part.start);
    let changed = match request.op() {
        BlockOp::Write => copy.sg_mut().copy_sg(at, request.sg(), part.start - request.offset(), len),
        _ => copy.sg_mut().fill(at, len, 0),
    };
    changed.map_err(|_| BlockError::Io)?;
    walk.step = Step::Write(cluster.clone());
    walk.at = part.end;
    let flags = request.flags() & BlockFlags::FUA;
    children.start_block(UPPER, BlockOp::Write, flags, cluster, |list| list.swap_segments(copy.sg_mut()))
}

impl<P: Presence> FanOut<BlockRequest> for LayeredFan<P> {
    type Parent = Walk;

    /// Clusters that are to move up.
    fn excludes(&self, caps: &BlockCaps, request: &BlockRequest) -> Option<Range<u64>> {
        let writes = matches!(request.op(), BlockOp::Write | BlockOp::WriteZeroes);
        if !writes || request.is_empty() || admit(caps, request).is_err() {
            return None;
        }
        let cover = self.cover(&(request.offset()..request.end()), caps.capacity);
        (!self.is_above(&cover)).then_some(cover)
    }

    fn on_submit(
        &mut self,
        _: &mut WorkerContext<'_>,
        request: &mut BlockRequest,
        children: &mut Children<'_, BlockRequest>,
    ) -> Result<Walk, BlockOutput> {
        let mut walk = Walk { at: request.offset(), step: Step::Pass, failed: None };
        let started = admit(children.caps(), request).and_then(|()| match request.op() {
            BlockOp::Flush => children.start_same(UPPER, request),
            _ => self.go_on(&mut walk, request, None, children),
        });
        started.map(|()| walk).map_err(BlockOutput::Failed)
    }

    fn on_child(
        &mut self,
        _: &mut WorkerContext<'_>,
        walk: &mut Walk,
        request: &mut BlockRequest,
        child: Child<'_, BlockRequest>,
        children: &mut Children<'_, BlockRequest>,
    ) {
        let outcome = match (child.output, walk.failed) {
            (BlockOutput::Failed(error), _) => Err(error),
            (BlockOutput::Done, Some(_)) => Ok(()),
            (BlockOutput::Done, None) => self.go_on(walk, request, child.request, children),
        };
        if let Err(error) = outcome {
            walk.failed.get_or_insert(error);
        }
    }

    fn finish(&mut self, walk: Walk, _: &mut BlockRequest) -> BlockOutput {
        walk.failed.map_or(BlockOutput::Done, BlockOutput::Failed)
    }
}
