//! The data plane of the `align` stage.

use super::Shared;
use super::parent::{Parent, Step, cover, head, hold, tail};
use iovirt_core::dma::{DmaError, SgLimits, SgList, SgPool};
use iovirt_core::request::block::{BlockCaps, BlockError, BlockFlags, BlockOp, BlockOutput, BlockRequest};
use iovirt_core::stage::{Hold, Parked, RangeLocks, RangeTicket, SlotTable};
use iovirt_core::sync::{Arc, Mutex, PoisonError};
use iovirt_core::worker::LaneWaker;
use iovirt_core::{Backend, Completion, Completions, Depth, Mode, Queue, Request, Tag, WorkerContext};
use std::fmt;
use std::ops::Range;

/// The data plane of the `align` stage on one worker.
///
/// A request that is done in several steps has one of them below at a time, under its own tag.
pub struct AlignedQueue<B: Backend<BlockRequest>> {
    below: B::Queue,
    state: State<B>,
}

struct State<B> {
    shared: Arc<Shared<B>>,
    caps: BlockCaps,
    generation: u64,
    depth: Depth,
    /// Whether requests that change parts of blocks have to be kept apart from others.
    serialise: bool,
    /// Requests that wait for their range.
    parked: Parked<BlockRequest>,
    /// Ranges of requests that went down whole.
    held: SlotTable<RangeTicket>,
    parents: SlotTable<Parent>,
    returned: Vec<BlockRequest>,
    lost: Vec<u32>,
    ready: Vec<Completion<BlockRequest>>,
    pool: SgPool,
    in_flight: usize,
    submitted: bool,
}

impl<B: Backend<BlockRequest>> AlignedQueue<B> {
    pub(super) fn new(shared: &Arc<Shared<B>>, below: B::Queue, waker: LaneWaker, depth: Depth) -> Self {
        let room = depth.get();
        let limits = SgLimits { segments: 16, host_bytes: shared.config.bounce_bytes };
        // A copy, and a part of it that travels.
        let mut pool = SgPool::new(room * 2, limits);
        let lost = waker.clone();
        pool.set_lost_waker(Some(Arc::new(move || lost.wake())));
        let state = State {
            // Counted before it is asked for, so that a change in between is noticed.
            generation: shared.generation(),
            caps: shared.caps(),
            depth,
            serialise: shared.block > u64::from(shared.config.logical_block),
            parked: Parked::new(&shared.locks, waker, depth),
            held: SlotTable::new(depth),
            parents: SlotTable::new(depth),
            returned: Vec::with_capacity(room),
            lost: Vec::new(),
            ready: Vec::with_capacity(room),
            pool,
            in_flight: 0,
            submitted: false,
            shared: shared.clone(),
        };
        Self { below, state }
    }

    /// Starts a request whose range is its own.
    fn begin(&mut self, cx: &mut WorkerContext<'_>, request: BlockRequest, ticket: Option<RangeTicket>) {
        let tag = request.tag();
        if self.state.passes(&request) {
            if let Some(ticket) = ticket {
                self.state.held.insert(tag, ticket);
            }
            self.state.submitted = true;
            return self.below.submit(cx, request);
        }
        let ticket = ticket.map(|ticket| (ticket, hold(&request, self.state.shared.block)));
        self.state.parents.insert(tag, Parent::new(request, ticket));
        self.go_on(cx, tag);
    }

    /// Starts the next step of a request, or ends it.
    fn go_on(&mut self, cx: &mut WorkerContext<'_>, tag: Tag) {
        match self.state.next_child(tag) {
            Ok(Some(child)) => {
                self.state.submitted = true;
                self.below.submit(cx, child);
            }
            Ok(None) => self.state.end(tag, BlockOutput::Done),
            Err(error) => self.state.end(tag, BlockOutput::Failed(error)),
        }
    }

    fn start_granted(&mut self, cx: &mut WorkerContext<'_>) {
        while let Some((request, ticket)) = self.state.parked.next_granted() {
            self.begin(cx, request, ticket);
        }
    }

    /// Takes what came back from below: steps of requests go on, the rest goes up.
    fn pass_up(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
        let mark = done.len();
        self.below.poll(cx, done);
        let State { parents, held, parked, returned, .. } = &mut self.state;
        if parents.is_empty() && held.is_empty() {
            self.state.in_flight -= done.len() - mark;
            return;
        }
        done.retain_since(
            mark,
            |completion| {
                let tag = completion.request.tag();
                if let Some(parent) = parents.get_mut(tag) {
                    parent.outcome = completion.output;
                    return false;
                }
                if let Some(ticket) = held.take(tag) {
                    parked.release(ticket);
                }
                true
            },
            |child| returned.push(child),
        );
        self.state.in_flight -= done.len() - mark;
        let mut returned = std::mem::take(&mut self.state.returned);
        for child in returned.drain(..) {
            let tag = child.tag();
            match self.state.take_child(child) {
                Ok(()) => self.go_on(cx, tag),
                Err(error) => self.state.end(tag, BlockOutput::Failed(error)),
            }
        }
        self.state.returned = returned;
    }
}

impl<B: Backend<BlockRequest>> State<B> {
    #[inline]
    fn refresh(&mut self) {
        let generation = self.shared.generation();
        if generation != self.generation {
            self.generation = generation;
            self.caps = self.shared.caps();
        }
    }

    /// Whether the request can go down as it is.
    #[inline]
    fn passes(&self, request: &BlockRequest) -> bool {
        let block = self.shared.block;
        let whole = (request.offset() | request.len()) & (block - 1) == 0;
        match request.op() {
            BlockOp::Flush => true,
            BlockOp::Discard | BlockOp::WriteZeroes => whole,
            BlockOp::Read | BlockOp::Write => {
                whole && request.sg().is_aligned(self.shared.config.memory as usize, block as usize)
            }
        }
    }

    /// The request for a parent's next step; `None` where all is done.
    fn next_child(&mut self, tag: Tag) -> Result<Option<BlockRequest>, BlockError> {
        let Self { parents, pool, shared, .. } = self;
        let (block, bounce_bytes) = (shared.block, shared.config.bounce_bytes as u64);
        let Some(parent) = parents.get_mut(tag) else { return Ok(None) };
        if parent.step == Step::Choose {
            if !parent.choose(block, bounce_bytes) {
                return Ok(None);
            }
            if let Step::ReadHead(range)
            | Step::ReadTail(range)
            | Step::WriteBody(range)
            | Step::ReadBody(range) = &parent.step
            {
                let cover = cover(range, block);
                let bounce = parent.bounce.insert(pool.take());
                bounce.push_host((cover.end - cover.start) as usize).map_err(out_of_memory)?;
            }
        }
        let flags = parent.request.flags();
        let (op, at, sg, flags) = match parent.step.clone() {
            Step::Choose => return Ok(None),
            Step::ReadHead(range) => {
                let at = head(&range, block);
                let sg = part_of(parent.bounce.as_deref(), pool, cover(&range, block).start, &at)?;
                (BlockOp::Read, at, sg, BlockFlags::empty())
            }
            Step::ReadTail(range) => {
                let at = tail(&range, block);
                let sg = part_of(parent.bounce.as_deref(), pool, cover(&range, block).start, &at)?;
                (BlockOp::Read, at, sg, BlockFlags::empty())
            }
            Step::WriteBody(range) => {
                let at = cover(&range, block);
                let mut bounce = parent.bounce.take().ok_or(BlockError::Io)?;
                fill(&mut bounce, &parent.request, &range, at.start).map_err(out_of_memory)?;
                (BlockOp::Write, at, bounce, flags & BlockFlags::FUA)
            }
            Step::ReadBody(range) => {
                let bounce = parent.bounce.take().ok_or(BlockError::Io)?;
                (BlockOp::Read, cover(&range, block), bounce, BlockFlags::empty())
            }
            Step::Whole(range) => (parent.request.op(), range, pool.take(), flags),
        };
        let mut sg = sg;
        sg.arm(tag.get());
        match BlockRequest::ranged(op, tag, at.start, at.end - at.start, sg) {
            Ok(child) => Ok(Some(child.with_flags(flags))),
            Err(refused) => {
                pool.put(refused.sg);
                Err(BlockError::OutOfRange)
            }
        }
    }

    /// Takes a step that came back.
    fn take_child(&mut self, child: BlockRequest) -> Result<(), BlockError> {
        let Self { parents, pool, shared, .. } = self;
        let outcome = match parents.get_mut(child.tag()) {
            None => Ok(()),
            Some(parent) => match parent.outcome {
                BlockOutput::Failed(error) => Err(error),
                BlockOutput::Done => {
                    let copied = match &parent.step {
                        Step::ReadBody(range) => {
                            let (to, from) =
                                (range.start - parent.request.offset(), range.start - child.offset());
                            let len = range.end - range.start;
                            parent
                                .request
                                .sg_mut()
                                .copy_sg(to, child.sg(), from, len)
                                .map_err(|_| BlockError::Io)
                        }
                        _ => Ok(()),
                    };
                    parent.step_done(shared.block);
                    copied
                }
            },
        };
        pool.put(child.into_sg());
        outcome
    }

    /// Ends a request that was done in steps.
    fn end(&mut self, tag: Tag, output: BlockOutput) {
        let Some(parent) = self.parents.take(tag) else { return };
        if let Some(bounce) = parent.bounce {
            self.pool.put(bounce);
        }
        if let Some((ticket, _)) = parent.ticket {
            self.parked.release(ticket);
        }
        self.ready.push(Completion { request: parent.request, output });
    }

    /// Ends requests of which a stage below dropped a step.
    #[cold]
    fn end_lost(&mut self) {
        let mut lost = std::mem::take(&mut self.lost);
        for tag in lost.drain(..) {
            self.end(Tag::new(tag), BlockRequest::aborted());
        }
        self.lost = lost;
    }

    /// Whether that tag may be used for one more request.
    fn is_free(&mut self, tag: Tag) -> bool {
        if tag.index() >= self.depth.get() || self.parked.holds(tag) || self.parents.get(tag).is_some() {
            return false;
        }
        if let Some(ticket) = self.held.take(tag) {
            // A stage below dropped the former request of that name, as its owner knows already.
            self.parked.release(ticket);
            self.in_flight -= 1;
        }
        true
    }
}

/// A list of the part of the copy that shows `at`, of a copy that begins at `start`.
fn part_of(
    bounce: Option<&SgList>,
    pool: &mut SgPool,
    start: u64,
    at: &Range<u64>,
) -> Result<Box<SgList>, BlockError> {
    let mut part = pool.take();
    let bounce = bounce.ok_or(BlockError::Io)?;
    bounce.slice_into(at.start - start, at.end - at.start, &mut part).map_err(out_of_memory)?;
    Ok(part)
}

/// Puts what the request changes into the copy, which begins at `start`.
fn fill(bounce: &mut SgList, request: &BlockRequest, range: &Range<u64>, start: u64) -> Result<(), DmaError> {
    let (at, len) = (range.start - start, range.end - range.start);
    match request.op() {
        BlockOp::Write => bounce.copy_sg(at, request.sg(), range.start - request.offset(), len),
        _ => bounce.fill(at, len, 0),
    }
}

/// The copy is as large as its limit, so this does not happen.
fn out_of_memory(error: DmaError) -> BlockError {
    tracing::error!(%error, "the aligned copy of a request failed");
    BlockError::Io
}

impl<B: Backend<BlockRequest>> Queue<BlockRequest> for AlignedQueue<B> {
    #[inline]
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: BlockRequest) {
        let state = &mut self.state;
        state.refresh();
        state.in_flight += 1;
        let tag = request.tag();
        let refused = match state.caps.check(&request) {
            Err(error) => Some(error),
            Ok(()) if !state.is_free(tag) => {
                debug_assert!(false, "tag {tag:?} is in use or beyond the depth");
                Some(BlockError::Io)
            }
            Ok(())
                if request.sg().len() != request.len()
                    && matches!(request.op(), BlockOp::Read | BlockOp::Write) =>
            {
                Some(BlockError::Io)
            }
            Ok(()) => None,
        };
        if let Some(error) = refused {
            state.ready.push(Completion { request, output: BlockOutput::Failed(error) });
            return;
        }
        let changes = !matches!(request.op(), BlockOp::Read | BlockOp::Flush);
        if changes && state.serialise {
            state.parked.park(request);
        } else {
            self.begin(cx, request, None);
        }
    }

    #[inline]
    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        let block = self.state.shared.block;
        let range = |request: &BlockRequest| cover(&(request.offset()..request.end()), block);
        if self.state.parked.ask(|request| (range(request), hold(request, block))) {
            self.start_granted(cx);
        }
        self.state.submitted = false;
        self.below.kick(cx);
    }

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
        self.pass_up(cx, done);
        if self.state.pool.take_lost(&mut self.state.lost) > 0 {
            self.state.end_lost();
        }
        if self.state.parked.exchange() {
            self.start_granted(cx);
        }
        let state = &mut self.state;
        state.in_flight -= state.ready.len();
        done.append(&mut state.ready);
        if std::mem::take(&mut state.submitted) {
            self.below.kick(cx);
            cx.run_again();
        }
        if self.state.parked.has_releases() {
            cx.run_again();
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.below.drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.below.resume(cx);
    }

    fn mode(&self) -> Mode {
        match self.below.mode() {
            Mode::Quiesced if self.state.in_flight > 0 => Mode::Draining,
            mode => mode,
        }
    }

    fn in_flight(&self) -> usize {
        self.state.in_flight
    }
}

impl<B: Backend<BlockRequest>> Drop for AlignedQueue<B> {
    fn drop(&mut self) {
        let state = &mut self.state;
        state.held.drain().for_each(|(_, ticket)| state.parked.release(ticket));
        let mut orphans = Vec::new();
        for (tag, parent) in state.parents.drain() {
            match (parent.ticket, parent.step) {
                (Some((ticket, Hold::Exclusive)), Step::WriteBody(_)) => orphans.push((tag.get(), ticket)),
                (Some((ticket, _)), _) => state.parked.release(ticket),
                (None, _) => {}
            }
        }
        state.parked.close();
        if !orphans.is_empty() {
            let pool = std::mem::replace(&mut state.pool, SgPool::new(0, SgLimits::default()));
            Orphans::keep(pool, orphans, state.parked.locks().clone());
        }
    }
}

/// Read-modify-writes of a queue that is gone, which the host may still carry out: their ranges stay theirs until the host
/// has let go of their memory.
struct Orphans {
    pool: SgPool,
    held: Vec<(u32, RangeTicket)>,
    locks: Arc<RangeLocks>,
}

impl Orphans {
    fn keep(pool: SgPool, held: Vec<(u32, RangeTicket)>, locks: Arc<RangeLocks>) {
        let orphans = Arc::new(Mutex::new(Self { pool, held, locks }));
        let waked = orphans.clone();
        let waker = move || waked.lock().unwrap_or_else(PoisonError::into_inner).let_go();
        orphans
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pool
            // The pool then holds what holds it, until `let_go` ends that.
            .set_lost_waker(Some(Arc::new(waker)));
        // One that was lost before is not reported again.
        orphans.lock().unwrap_or_else(PoisonError::into_inner).let_go();
    }

    fn let_go(&mut self) {
        let mut lost = Vec::new();
        self.pool.take_lost(&mut lost);
        let locks = &self.locks;
        self.held.retain(|&(tag, ticket)| {
            let gone = lost.contains(&tag);
            if gone {
                locks.release(ticket);
            }
            !gone
        });
        if self.held.is_empty() {
            self.pool.set_lost_waker(None);
        }
    }
}

impl<B: Backend<BlockRequest>> fmt::Debug for AlignedQueue<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedQueue")
            .field("in_flight", &self.state.in_flight)
            .field("parked", &self.state.parked.len())
            .field("in_steps", &self.state.parents.len())
            .finish_non_exhaustive()
    }
}
