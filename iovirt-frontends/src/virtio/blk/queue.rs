//! The data path: chains into requests, completions into used buffers.

use super::config::F_FLUSH;
use super::request::{self, Parsed};
use crate::virtio::again::take_again;
use crate::virtio::queue::{Chain, Head};
use crate::virtio::ring::Ring;
use crate::virtio::{QueueError, QueueWork};
use iovirt_core::dma::{DmaView, SgLimits, SgList};
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::{
    BlockCaps, BlockError, BlockFlags, BlockOp, BlockOutput, BlockRequest, Durability, Refused,
};
use iovirt_core::stage::{Client, Finished, open_with_fua};
use iovirt_core::worker::{Turn, WorkerContext};
use iovirt_core::{Backend, BackendError, Depth, Mode, Queue, Request, Tag};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use virtio_bindings::virtio_blk as bindings;

/// Chains taken in one turn before other lanes have theirs: the bound on one doorbell's work.
const TURN_CHAINS: usize = 256;

/// Bytes of requests taken in one turn before other lanes have theirs: a driver may let every request of a batch point to
/// the same memory, gigabytes of it, and a back-end may copy all of that at once.
const TURN_BYTES: u64 = 64 << 20;
/// Chains after which a driver that looks at its ring is shown what has come home, while the rest of its batch is worked on.
const SHOWN_AT_ONCE: usize = 8;

/// What all queues of one device share.
#[derive(Debug)]
pub(super) struct BlkShared {
    pub(super) backend: BoxBackend<BlockRequest>,
    pub(super) id: [u8; super::SERIAL_LEN],
    /// The driver chose write-through above a stack that is write-back: every write is durable before it completes.
    pub(super) force_fua: AtomicBool,
}

/// The device's side of one queue.
pub(super) struct BlkQueue {
    shared: Arc<BlkShared>,
    client: Client<BlockRequest, Pending>,
    chain: Chain,
    /// The status byte of each request in flight, by tag.
    status: Vec<SgList>,
    /// Lists that were in flight when the memory map changed still hold the old one.
    holds_old_map: bool,
}

/// What is left of one turn's work.
#[derive(Clone, Copy, Debug)]
struct Budget {
    chains: usize,
    bytes: u64,
}

impl Budget {
    const TURN: Self = Self { chains: TURN_CHAINS, bytes: TURN_BYTES };

    #[inline]
    fn is_spent(self) -> bool {
        self.chains == 0 || self.bytes == 0
    }

    #[inline]
    fn spend(&mut self, chain: &Chain) {
        self.chains = self.chains.saturating_sub(chain.weight());
        self.bytes = self.bytes.saturating_sub(chain.readable().len() + chain.writable().len());
    }
}

/// What is known of a request in flight.
#[derive(Clone, Copy, Debug)]
struct Pending {
    head: Head,
    tag: Tag,
    /// Bytes of data that a success writes into guest memory.
    reads: u32,
}

impl BlkQueue {
    pub(super) fn open(
        shared: Arc<BlkShared>,
        cx: &mut WorkerContext<'_>,
        depth: Depth,
        limits: SgLimits,
    ) -> Result<Self, BackendError> {
        let queue = open_with_fua(&shared.backend, cx, depth)?;
        let client = Client::new(cx, queue, depth, limits);
        let mut status = Vec::new();
        let one_byte = || SgList::with_limits(SgLimits { segments: 1, host_bytes: 0 });
        status.resize_with(depth.get(), one_byte);
        Ok(Self { shared, client, chain: Chain::new(), status, holds_old_map: false })
    }

    /// Takes chains as far as the budget goes and says how many it took.
    #[inline]
    fn take_chains(
        &mut self,
        cx: &mut WorkerContext<'_>,
        ring: &mut Ring,
        budget: &mut Budget,
    ) -> Result<usize, QueueError> {
        let fua = self.shared.force_fua.load(Ordering::Relaxed);
        let mut taken = 0;
        while !budget.is_spent() {
            let Some((tag, sg)) = self.client.begin() else { return Ok(taken) };
            let head = match ring.pop(&mut self.chain) {
                Ok(Some(head)) => head,
                Ok(None) => {
                    self.client.abandon(tag, sg);
                    return Ok(taken);
                }
                Err(error) => {
                    self.client.abandon(tag, sg);
                    return Err(error.into());
                }
            };
            budget.spend(&self.chain);
            taken += 1;
            self.start(cx, ring, (head, tag, sg), fua)?;
            if taken % SHOWN_AT_ONCE == 0 && self.bring_home(cx, ring) > 0 {
                ring.show();
            }
        }
        Ok(taken)
    }

    /// Turns the chain at hand into a request, or answers it at once.
    #[inline]
    fn start(
        &mut self,
        cx: &mut WorkerContext<'_>,
        ring: &mut Ring,
        (head, tag, mut sg): (Head, Tag, Box<SgList>),
        fua: bool,
    ) -> Result<(), QueueError> {
        let parsed = match request::parse(&mut self.chain, &mut self.status[tag.index()]) {
            Ok(parsed) => parsed,
            Err(error) => {
                self.client.abandon(tag, sg);
                return Err(error.into());
            }
        };
        let request = match parsed {
            Parsed::Transfer { op, offset } => {
                let (readable, writable) = self.chain.parts_mut();
                let data = if op == BlockOp::Read { writable } else { readable };
                if sg.swap_segments(data).is_err() {
                    // More segments than the device said it takes.
                    self.client.abandon(tag, sg);
                    self.answer(ring, (head, tag), Parsed::Invalid);
                    return Ok(());
                }
                BlockRequest::transfer(op, tag, offset, sg)
            }
            Parsed::Flush => Ok(BlockRequest::flush(tag, sg)),
            Parsed::Range { op, offset, len, flags } => {
                BlockRequest::ranged(op, tag, offset, len, sg).map(|request| request.with_flags(flags))
            }
            Parsed::GetId | Parsed::Unsupported | Parsed::Invalid => {
                self.client.abandon(tag, sg);
                self.answer(ring, (head, tag), parsed);
                return Ok(());
            }
        };
        match request {
            Ok(request) => self.submit(cx, head, request, fua),
            Err(Refused { sg, .. }) => {
                self.client.abandon(tag, sg);
                self.answer(ring, (head, tag), Parsed::Invalid);
            }
        }
        Ok(())
    }

    #[inline]
    fn submit(&mut self, cx: &mut WorkerContext<'_>, head: Head, mut request: BlockRequest, fua: bool) {
        let tag = request.tag();
        let mut reads = 0;
        match request.op() {
            // A chain's length fits 32 bits: the ring engine checks that.
            BlockOp::Read => reads = request.len() as u32,
            BlockOp::Write | BlockOp::WriteZeroes if fua => {
                let flags = request.flags() | BlockFlags::FUA;
                request = request.with_flags(flags);
            }
            _ => {}
        }
        self.client.submit(cx, request, Pending { head, tag, reads });
    }

    /// Answers a chain without the help of what is below.
    #[cold]
    fn answer(&mut self, ring: &mut Ring, (head, tag): (Head, Tag), parsed: Parsed) {
        let mut written = 0;
        let status = match parsed {
            Parsed::GetId => {
                // The parser has seen to it that there is room.
                let writable = self.chain.writable_mut();
                match writable.copy_from(0, &self.shared.id) {
                    Ok(()) => {
                        writable.mark_dirty(ring.view(), self.shared.id.len() as u64);
                        written = self.shared.id.len() as u32;
                        bindings::VIRTIO_BLK_S_OK
                    }
                    Err(_) => bindings::VIRTIO_BLK_S_IOERR,
                }
            }
            Parsed::Unsupported => bindings::VIRTIO_BLK_S_UNSUPP,
            _ => bindings::VIRTIO_BLK_S_IOERR,
        };
        finish(ring, &mut self.status[tag.index()], head, written, status as u8);
    }

    #[inline]
    fn bring_home(&mut self, cx: &mut WorkerContext<'_>, ring: &mut Ring) -> usize {
        let count = self.finish_all(cx, ring);
        if self.holds_old_map && self.client.in_flight() == 0 {
            self.memory_changed(ring.view());
        }
        count
    }

    #[inline]
    fn finish_all(&mut self, cx: &mut WorkerContext<'_>, ring: &mut Ring) -> usize {
        let Self { client, status, .. } = self;
        client.poll(cx, |_, Finished { context, request, output }| {
            if context.reads != 0
                && let Some(request) = request
            {
                request.sg().mark_dirty(ring.view(), u64::from(context.reads));
            }
            finish(ring, &mut status[context.tag.index()], context.head, context.reads, status_byte(output));
        })
    }
}

/// Writes the status byte and returns the chain.
#[inline]
fn finish(ring: &mut Ring, status: &mut SgList, head: Head, written: u32, byte: u8) {
    // The status lies behind the data, so it counts with all of it, whatever became of the data.
    if status.copy_from(0, &[byte]).is_ok() {
        status.mark_dirty(ring.view(), 1);
    }
    status.clear();
    ring.push_used(head, written.saturating_add(1));
}

fn status_byte(output: BlockOutput) -> u8 {
    let status = match output {
        BlockOutput::Done => bindings::VIRTIO_BLK_S_OK,
        BlockOutput::Failed(BlockError::Unsupported) => bindings::VIRTIO_BLK_S_UNSUPP,
        BlockOutput::Failed(_) => bindings::VIRTIO_BLK_S_IOERR,
    };
    status as u8
}

/// Whether the device has to make writes durable that the stack would not.
pub(super) fn needs_fua(caps: &BlockCaps) -> bool {
    caps.durability == Durability::WriteBack
}

impl QueueWork for BlkQueue {
    fn start(&mut self, features: u64) {
        // A driver that cannot flush takes a completed write for durable (VIRTIO 1.2, section 5.2.6.2).
        if features & F_FLUSH == 0 && needs_fua(&self.shared.backend.caps()) {
            self.shared.force_fua.store(true, Ordering::Relaxed);
        }
    }

    fn memory_changed(&mut self, view: &DmaView) {
        self.holds_old_map = self.client.in_flight() > 0;
        self.client.refresh(view);
        self.chain.rehome(view);
        // Those in flight are not empty, and keep what they hold.
        self.status.iter_mut().for_each(|list| list.rehome(view.map()));
    }

    fn serve(&mut self, cx: &mut WorkerContext<'_>, ring: &mut Ring) -> Result<Turn, QueueError> {
        ring.disable_notifications();
        let (mut left, mut worked) = (Budget::TURN, false);
        loop {
            worked |= self.bring_home(cx, ring) > 0;
            let taken = match self.take_chains(cx, ring, &mut left) {
                Ok(taken) => taken,
                Err(error) => {
                    ring.publish();
                    return Err(error);
                }
            };
            if taken > 0 {
                worked = true;
                ring.count_chains(taken as u64);
                self.client.kick(cx);
                cx.tick();
                self.bring_home(cx, ring);
            }
            ring.publish();
            if left.is_spent() {
                return Ok(Turn::Again);
            }
            if taken == 0 && cx.polls() {
                // The driver need not ring its doorbell: the worker looks again by itself.
                return Ok(if worked { Turn::Again } else { Turn::Poll });
            }
            if taken == 0 && !ring.enable_notifications() {
                return Ok(Turn::Idle);
            }
            if taken == 0 {
                if self.client.is_full() {
                    // The next completion makes room and brings the next turn.
                    return Ok(Turn::Idle);
                }
                // An index that goes to and fro under our eyes must not hold us up for ever.
                left.chains -= 1;
            }
        }
    }

    fn settle(&mut self, cx: &mut WorkerContext<'_>, ring: Option<&mut Ring>) -> Result<(), QueueError> {
        self.client.kick(cx);
        match ring {
            Some(ring) => {
                self.bring_home(cx, ring);
                ring.publish();
            }
            None => {
                let Self { client, status, .. } = self;
                client.poll(cx, |_, finished| status[finished.context.tag.index()].clear());
            }
        }
        Ok(())
    }

    fn resubmit(
        &mut self,
        cx: &mut WorkerContext<'_>,
        ring: &mut Ring,
        heads: &[u16],
    ) -> Result<usize, QueueError> {
        let fua = self.shared.force_fua.load(Ordering::Relaxed);
        let mut taken = 0;
        for &head in heads {
            let Some(chain) = take_again(&mut self.client, ring, &mut self.chain, head)? else { break };
            self.start(cx, ring, chain, fua)?;
            taken += 1;
        }
        self.client.kick(cx);
        Ok(taken)
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.client.queue().drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.client.queue().resume(cx);
        cx.run_again();
    }

    fn mode(&self) -> Mode {
        self.client.mode()
    }

    fn in_flight(&self) -> usize {
        self.client.in_flight()
    }

    fn heads_in_flight(&self) -> Vec<u16> {
        self.client.contexts().map(|pending| pending.head.index()).collect()
    }
}
