//! The data plane: when requests take effect, and how promises are broken.

use super::{Pace, Sabotage, Shared, State};
use crate::backend::{Mode, Queue};
use crate::dma::SgList;
use crate::request::block::{
    BlockCaps, BlockError, BlockFlags, BlockOp, BlockOutput, BlockRequest, Durability, SECTOR,
};
use crate::request::{Completions, Depth, Request};
use crate::test_utils::rng::Rng;
use crate::worker::WorkerContext;
use std::sync::{Arc, MutexGuard};

/// Of how many requests a [`Sabotage`] that hits some hits one.
const SOME: u64 = 10;

/// The data plane of a [`PowerLossDisk`](super::PowerLossDisk).
#[derive(Debug)]
pub struct PowerLossQueue {
    shared: Arc<Shared>,
    rng: Rng,
    depth: Depth,
    pending: Vec<Pending>,
    stalled: Vec<BlockRequest>,
    draining: bool,
    drained: bool,
    /// It rests, and a broken disk will see so at its next poll.
    unseen: bool,
    submitted: u64,
}

#[derive(Debug)]
struct Pending {
    request: BlockRequest,
    /// Of a flush: the last write that had taken effect, and so may have completed, when it was submitted.
    covers: u64,
}

impl PowerLossQueue {
    pub(super) fn new(shared: Arc<Shared>, rng: Rng, depth: Depth) -> Self {
        let (pending, stalled) = (Vec::with_capacity(depth.get()), Vec::new());
        Self {
            shared,
            rng,
            depth,
            pending,
            stalled,
            draining: false,
            drained: false,
            unseen: false,
            submitted: 0,
        }
    }

    fn has(&self, sabotage: Sabotage) -> bool {
        self.shared.config.sabotage == Some(sabotage)
    }

    /// Whether a broken disk leaves this request alone, maybe until the way back.
    fn is_deaf(&self) -> bool {
        let idle = self.pending.is_empty() && self.stalled.is_empty();
        match self.shared.config.sabotage {
            Some(Sabotage::StallsRequests) => self.submitted.is_multiple_of(SOME),
            Some(Sabotage::DeafAfterDrain) => self.drained,
            Some(Sabotage::DeafWhileDraining) => self.draining && !idle,
            Some(Sabotage::DeafAtRest) => self.draining && idle,
            Some(Sabotage::OneTooShallow) => self.pending.len() + 1 == self.depth.get() && !self.draining,
            Some(Sabotage::DiesWithAQueue) => self.shared.lock().broken.dead,
            _ => false,
        }
    }

    /// A write in flight has reached the disk in part.
    fn begin_write(&mut self, request: &BlockRequest) {
        let mut state = self.shared.lock();
        if state.caps.check(request).is_err() {
            return;
        }
        let block = state.caps.logical_block as usize;
        let data = bytes_of(request);
        let offset = request.offset() as usize;
        let through = state.caps.durability == Durability::WriteThrough;
        for at in (0..data.len()).step_by(block) {
            if self.rng.one_in(2) {
                state.medium.write(offset + at, &data[at..at + block]);
                if through {
                    state.medium.flush_range(offset + at, block);
                }
            }
        }
    }

    fn execute(&self, pending: &mut Pending) -> BlockOutput {
        let sabotage = self.shared.config.sabotage;
        if let Some(refusal) = sabotage.and_then(|sabotage| refusal(sabotage, &pending.request, &self.shared))
        {
            return BlockOutput::Failed(refusal);
        }
        let mut state = if self.has(Sabotage::SharesItsCursor) {
            self.seek(pending.request.offset() as usize)
        } else {
            self.shared.lock()
        };
        state.executed += 1;
        let beside_others = !self.pending.is_empty();
        match state.caps.check(&pending.request) {
            Ok(())
                if beside_others
                    && pending.request.op() == BlockOp::Write
                    && self.has(Sabotage::LosesConcurrentWrites) =>
            {
                BlockOutput::Done
            }
            Ok(()) => state.execute(pending, sabotage),
            Err(error) => forgive(error, sabotage, &mut state, pending),
        }
    }

    /// Moves the cursor that all queues share, and comes back to it a little later.
    fn seek(&self, offset: usize) -> MutexGuard<'_, State> {
        self.shared.lock().broken.cursor = offset;
        for _ in 0..16 {
            std::thread::yield_now();
            let state = self.shared.lock();
            if state.broken.cursor != offset {
                return state;
            }
        }
        self.shared.lock()
    }

    fn swap_tags(done: &mut Completions<BlockRequest>, mark: usize) {
        let [first, .., last] = done.since(mark) else { return };
        let (tags, memory) = ((first.request.tag(), last.request.tag()), SgList::new);
        let take = |completion: &mut crate::Completion<BlockRequest>| {
            std::mem::replace(&mut completion.request, BlockRequest::flush(tags.0, Box::new(memory())))
        };
        let (one, two) = (take(first), take(last));
        first.request = retag(one, tags.1);
        last.request = retag(two, tags.0);
    }
}

impl Queue<BlockRequest> for PowerLossQueue {
    fn submit(&mut self, _: &mut WorkerContext<'_>, request: BlockRequest) {
        assert!(self.pending.len() < self.depth.get(), "more requests than the queue was opened for");
        self.submitted += 1;
        let some = self.submitted.is_multiple_of(SOME);
        if some && self.has(Sabotage::LosesRequests) {
            return;
        }
        if self.is_deaf() {
            self.stalled.push(request);
            return;
        }
        if request.op() == BlockOp::Write && self.shared.config.pace == Pace::Random && self.rng.one_in(4) {
            self.begin_write(&request);
        }
        let covers = self.shared.lock().medium.written();
        self.pending.push(Pending { request, covers });
    }

    fn kick(&mut self, _: &mut WorkerContext<'_>) {}

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
        if !self.shared.lock().powered {
            return;
        }
        let mark = done.len();
        let was_empty = self.pending.is_empty();
        let count = match self.shared.config.pace {
            Pace::InOrder => self.pending.len(),
            Pace::Random => self.rng.below(self.pending.len() as u64 + 1) as usize,
        };
        for _ in 0..count {
            let mut pending = match self.shared.config.pace {
                Pace::InOrder => self.pending.remove(0),
                Pace::Random => self.pending.swap_remove(self.rng.index(self.pending.len())),
            };
            let output = self.execute(&mut pending);
            if self.has(Sabotage::CompletesTwice) && self.rng.one_in(SOME) {
                done.push(BlockRequest::flush(pending.request.tag(), Box::default()), output);
            }
            done.push(pending.request, output);
        }
        if self.has(Sabotage::SwapsTags) {
            Self::swap_tags(done, mark);
        }
        if !self.pending.is_empty() && !self.has(Sabotage::ForgetsToWake) {
            cx.run_again();
        }
        self.unseen &= !was_empty;
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = true;
        self.unseen = self.has(Sabotage::ForgetsToWakeAtRest);
        if !self.unseen {
            cx.run_again();
        }
        self.drained = true;
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        if self.has(Sabotage::NoWayBack) && self.mode() == Mode::Draining {
            return;
        }
        self.draining = false;
        if self.has(Sabotage::DeafWhileDraining) || self.has(Sabotage::DeafAtRest) {
            let covers = self.shared.lock().medium.written();
            let waiting = self.stalled.drain(..).map(|request| Pending { request, covers });
            self.pending.extend(waiting);
            cx.run_again();
        }
    }

    fn mode(&self) -> Mode {
        let at_rest = self.pending.is_empty() && self.stalled.is_empty();
        match self.draining {
            false => Mode::Running,
            true if self.has(Sabotage::NeverRests) || self.unseen => Mode::Draining,
            true if at_rest || self.has(Sabotage::RestsEarly) => Mode::Quiesced,
            true => Mode::Draining,
        }
    }

    fn in_flight(&self) -> usize {
        let count = self.pending.len() + self.stalled.len();
        if self.has(Sabotage::CountsWrong) { count.saturating_sub(1) } else { count }
    }
}

impl Drop for PowerLossQueue {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.broken.dead |= self.in_flight() > 0;
        if self.has(Sabotage::KeepsMemory) {
            let pending = self.pending.drain(..).map(|pending| pending.request);
            state.broken.kept.extend(pending.chain(self.stalled.drain(..)));
        }
    }
}

impl State {
    fn execute(&mut self, pending: &mut Pending, sabotage: Option<Sabotage>) -> BlockOutput {
        let request = &mut pending.request;
        let (mut offset, len) = (request.offset() as usize, request.len() as usize);
        if sabotage == Some(Sabotage::SharesItsCursor) {
            offset = self.broken.cursor.min(self.caps.capacity as usize - len);
        }
        match request.op() {
            BlockOp::Read => {
                let mut data = vec![0; len];
                self.medium.read(offset, &mut data);
                if sabotage == Some(Sabotage::ReadsShort) {
                    data.truncate(len.saturating_sub(SECTOR as usize));
                }
                // Fails where the client gave memory for writing: its mistake, and so its error.
                if request.sg_mut().copy_from(0, &data).is_err() {
                    return BlockOutput::Failed(BlockError::Io);
                }
            }
            BlockOp::Write => {
                let mut data = bytes_of(request);
                let first = request.sg().segments().next().map_or(0, |segment| segment.len() as usize);
                if sabotage == Some(Sabotage::RepeatsSegment) && first * 2 <= len {
                    data.copy_within(..first, first);
                }
                let beside = sabotage == Some(Sabotage::WritesBeside)
                    && request.end() + SECTOR <= self.caps.capacity
                    && len > 0;
                self.write(offset + usize::from(beside) * SECTOR as usize, &data, request.flags(), sabotage);
            }
            BlockOp::WriteZeroes => {
                if sabotage != Some(Sabotage::ZeroesNothing) {
                    self.write(offset, &vec![0; len], request.flags(), sabotage);
                }
            }
            BlockOp::Discard => {
                let beside = sabotage == Some(Sabotage::DiscardsBeside) && request.end() < self.caps.capacity;
                let len = len + usize::from(beside) * SECTOR as usize;
                let reads_zero = self.caps.discard.is_some_and(|limits| limits.reads_zero);
                // What a discarded sector reads as is of no interest, so it reads as something nobody wrote.
                let byte = if reads_zero { 0 } else { 0xdd };
                self.write(offset, &vec![byte; len], BlockFlags::empty(), sabotage);
            }
            BlockOp::Flush => self.flush(pending.covers, sabotage),
        }
        BlockOutput::Done
    }

    fn write(&mut self, offset: usize, data: &[u8], flags: BlockFlags, sabotage: Option<Sabotage>) {
        self.medium.write(offset, data);
        let forced = flags.contains(BlockFlags::FUA)
            && self.caps.fua
            && self.caps.durability == Durability::WriteBack
            && sabotage != Some(Sabotage::IgnoresFua);
        let through =
            self.caps.durability == Durability::WriteThrough && sabotage != Some(Sabotage::CachesWrites);
        if forced || through {
            self.medium.flush_range(offset, data.len());
        }
    }

    fn flush(&mut self, covers: u64, sabotage: Option<Sabotage>) {
        let except = match sabotage {
            Some(Sabotage::FlushDoesNothing) => return,
            Some(Sabotage::FlushMissesOne) => self.medium.newest_volatile(),
            _ => None,
        };
        if self.caps.durability == Durability::WriteBack {
            self.medium.flush(covers, except);
        }
    }
}

/// Why a broken disk refuses what it should do.
fn refusal(sabotage: Sabotage, request: &BlockRequest, shared: &Shared) -> Option<BlockError> {
    let ranged = request.op() != BlockOp::Flush;
    match sabotage {
        Sabotage::RefusesFua if request.flags().contains(BlockFlags::FUA) => Some(BlockError::Unsupported),
        Sabotage::RefusesNothing if ranged && request.is_empty() => Some(BlockError::Misaligned),
        Sabotage::RefusesLastBlock if ranged && request.end() == shared.lock().caps.capacity => {
            Some(BlockError::OutOfRange)
        }
        _ => None,
    }
}

/// The answer to a request that is against the rules, which a broken disk does not mind.
fn forgive(
    error: BlockError,
    sabotage: Option<Sabotage>,
    state: &mut State,
    pending: &mut Pending,
) -> BlockOutput {
    match (error, sabotage) {
        (BlockError::OutOfRange, Some(Sabotage::AcceptsOutOfRange))
        | (BlockError::Misaligned, Some(Sabotage::AcceptsMisaligned))
        | (BlockError::Unsupported, Some(Sabotage::AcceptsUnsupported)) => BlockOutput::Done,
        (BlockError::ReadOnly, Some(Sabotage::WritesReadOnly)) => {
            let writable = BlockCaps { read_only: false, ..(*state.caps).clone() };
            match writable.check(&pending.request) {
                Ok(()) => state.execute(pending, sabotage),
                Err(error) => BlockOutput::Failed(error),
            }
        }
        (error, _) => BlockOutput::Failed(error),
    }
}

fn bytes_of(request: &BlockRequest) -> Vec<u8> {
    let mut data = vec![0; request.sg().len() as usize];
    // The buffer is as long as the list, so nothing is out of range.
    let _ = request.sg().copy_to(0, &mut data);
    data
}

/// The same request under another tag, as no honest stage makes it.
fn retag(request: BlockRequest, tag: crate::Tag) -> BlockRequest {
    let (op, offset, len, flags) = (request.op(), request.offset(), request.len(), request.flags());
    let retagged = match BlockRequest::ranged(op, tag, offset, len, request.into_sg()) {
        Ok(request) => request,
        Err(refused) => BlockRequest::flush(tag, refused.sg),
    };
    retagged.with_flags(flags)
}
