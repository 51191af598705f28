//! The data plane.

use super::backend::Shared;
use super::children::Generations;
use super::orphans::{Orphan, Orphans};
use super::{Child, Children, FanOut, FanOutStage};
use crate::backend::{Backend, Mode, Queue};
use crate::dma::{SgLimits, SgPool};
use crate::log::LogLimiter;
use crate::request::{Completion, Completions, Depth, Request, Tag};
use crate::stage::parked::Parked;
use crate::stage::ranges::{Hold, RangeTicket};
use crate::stage::slots::SlotTable;
use crate::worker::WorkerContext;
use std::fmt;
use std::sync::Arc;

/// The data plane of a fan-out stage on one worker.
pub struct FanOutQueue<R: Request, S: FanOutStage<R>, B: Backend<R>> {
    fan: S::FanOut,
    queues: Vec<B::Queue>,
    /// What a branch brings up, while it is looked at.
    home: Completions<R>,
    state: State<R, <S::FanOut as FanOut<R>>::Parent>,
    shared: Arc<Shared<R, S, B>>,
    generation: u64,
    draining: bool,
}

struct State<R: Request, P> {
    caps: Arc<R::Caps>,
    slots: SlotTable<Slot<R, P>>,
    /// One for each branch.
    pools: Vec<SgPool>,
    generations: Generations,
    started: Vec<(usize, R)>,
    /// Branches that were given requests and no kick, by bit.
    unkicked: u64,
    lost: Vec<u32>,
    complaints: LogLimiter,
    /// Requests that wait for their range.
    parked: Parked<R>,
    ready: Vec<Completion<R>>,
    in_flight: usize,
    depth: Depth,
}

struct Slot<R, P> {
    request: R,
    parent: P,
    /// The branches with a child in flight, by bit.
    children: u64,
    ticket: Option<RangeTicket>,
}

impl<R: Request, S: FanOutStage<R>, B: Backend<R>> FanOutQueue<R, S, B> {
    pub(super) fn new(
        shared: &Arc<Shared<R, S, B>>,
        cx: &mut WorkerContext<'_>,
        queues: Vec<B::Queue>,
        depth: Depth,
    ) -> Self {
        let room = depth.get();
        let waker = cx.waker();
        let pool = |_: &B::Queue| {
            let waker = waker.clone();
            let mut pool = SgPool::new(room, SgLimits::default());
            pool.set_lost_waker(Some(Arc::new(move || waker.wake())));
            pool
        };
        // Counted before they are asked for, so that a change in between is noticed.
        let generation = shared.generation();
        let state = State {
            caps: shared.caps(),
            slots: SlotTable::new(depth),
            pools: queues.iter().map(pool).collect(),
            generations: Generations::new(queues.len(), depth),
            started: Vec::with_capacity(queues.len()),
            unkicked: 0,
            lost: Vec::new(),
            complaints: LogLimiter::default(),
            parked: Parked::new(&shared.locks, cx.waker(), depth),
            ready: Vec::with_capacity(room),
            in_flight: 0,
            depth,
        };
        Self {
            fan: shared.stage.fan_out(cx, depth),
            queues,
            home: Completions::with_depth(depth),
            state,
            shared: shared.clone(),
            generation,
            draining: false,
        }
    }

    #[inline]
    fn refresh(&mut self) {
        let generation = self.shared.generation();
        if generation != self.generation {
            self.generation = generation;
            self.state.caps = self.shared.caps();
        }
    }

    /// Starts a request whose range is its own.
    fn begin(&mut self, cx: &mut WorkerContext<'_>, mut request: R, ticket: Option<RangeTicket>) {
        let Self { fan, state, .. } = self;
        let tag = request.tag();
        let mut busy = 0;
        let mut children = Children {
            caps: &*state.caps,
            tag,
            busy: &mut busy,
            pools: &mut state.pools,
            generations: &mut state.generations,
            started: &mut state.started,
        };
        match fan.on_submit(cx, &mut request, &mut children) {
            Err(output) => {
                state.unstart();
                state.end(request, ticket, output);
            }
            Ok(parent) if busy == 0 => {
                let output = fan.finish(parent, &mut request);
                state.end(request, ticket, output);
            }
            Ok(parent) => {
                state.slots.insert(tag, Slot { request, parent, children: busy, ticket });
                self.send(cx);
            }
        }
    }

    /// Sends down what was started.
    #[inline]
    fn send(&mut self, cx: &mut WorkerContext<'_>) {
        for (branch, child) in self.state.started.drain(..) {
            self.state.unkicked |= 1 << branch;
            self.queues[branch].submit(cx, child);
        }
    }

    fn kick_branches(&mut self, cx: &mut WorkerContext<'_>) {
        let unkicked = std::mem::take(&mut self.state.unkicked);
        for (branch, queue) in self.queues.iter_mut().enumerate() {
            if unkicked & 1 << branch != 0 {
                queue.kick(cx);
            }
        }
    }

    fn start_granted(&mut self, cx: &mut WorkerContext<'_>) {
        while let Some((request, ticket)) = self.state.parked.next_granted() {
            self.begin(cx, request, ticket);
        }
    }

    /// Takes what a branch brings up.
    fn take_home(&mut self, cx: &mut WorkerContext<'_>, branch: usize) {
        self.queues[branch].poll(cx, &mut self.home);
        for Completion { request, output } in self.home.drain() {
            let tag = request.tag();
            self.state.child_home(&mut self.fan, cx, (branch, tag), Some(request), output);
        }
        if self.state.pools[branch].take_lost(&mut self.state.lost) > 0 {
            let mut lost = std::mem::take(&mut self.state.lost);
            for number in lost.drain(..) {
                let Some(tag) = self.state.generations.lost(branch, number) else { continue };
                if let Some(suppressed) = self.state.complaints.admit() {
                    tracing::warn!(
                        ?tag,
                        branch,
                        suppressed,
                        "a branch dropped a request; it counts as aborted"
                    );
                }
                self.state.child_home(&mut self.fan, cx, (branch, tag), None, R::aborted());
            }
            self.state.lost = lost;
        }
        self.send(cx);
    }
}

impl<R: Request, P> State<R, P> {
    fn child_home(
        &mut self,
        fan: &mut impl FanOut<R, Parent = P>,
        cx: &mut WorkerContext<'_>,
        (branch, tag): (usize, Tag),
        mut child: Option<R>,
        output: R::Output,
    ) {
        let Self { caps, slots, pools, generations, started, .. } = self;
        let bit = 1 << branch;
        let mut over = false;
        if let Some(slot) = slots.get_mut(tag).filter(|slot| slot.children & bit != 0) {
            let Slot { request, parent, children, .. } = slot;
            *children &= !bit;
            let mut more = Children { caps: &**caps, tag, busy: children, pools, generations, started };
            fan.on_child(cx, parent, request, Child { branch, request: child.as_mut(), output }, &mut more);
            over = *children == 0;
        }
        // Before the parent goes home: its memory is shared no more then.
        if let Some(list) = child.and_then(Request::into_memory) {
            pools[branch].put(list);
        }
        if over && let Some(Slot { mut request, parent, ticket, .. }) = slots.take(tag) {
            let output = fan.finish(parent, &mut request);
            self.end(request, ticket, output);
        }
    }

    fn end(&mut self, request: R, ticket: Option<RangeTicket>, output: R::Output) {
        if let Some(ticket) = ticket {
            self.parked.release(ticket);
        }
        self.ready.push(Completion { request, output });
    }

    /// Takes back what was started and not sent.
    fn unstart(&mut self) {
        for (branch, child) in self.started.drain(..) {
            if let Some(list) = child.into_memory() {
                self.pools[branch].put(list);
            }
        }
    }

    fn is_free(&self, tag: Tag) -> bool {
        tag.index() < self.depth.get() && self.slots.get(tag).is_none() && !self.parked.holds(tag)
    }
}

impl<R: Request, S: FanOutStage<R>, B: Backend<R>> Queue<R> for FanOutQueue<R, S, B> {
    #[inline]
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: R) {
        self.refresh();
        let state = &mut self.state;
        state.in_flight += 1;
        let tag = request.tag();
        if !state.is_free(tag) {
            debug_assert!(false, "tag {tag:?} is in use or beyond the depth");
            return state.end(request, None, R::aborted());
        }
        if self.fan.excludes(&state.caps, &request).is_some() {
            state.parked.park(request);
        } else {
            self.begin(cx, request, None);
        }
    }

    #[inline]
    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        let Self { fan, state, .. } = self;
        let range = |request: &R| fan.excludes(&state.caps, request).unwrap_or(0..0);
        if state.parked.ask(|request| (range(request), Hold::Exclusive)) {
            self.start_granted(cx);
        }
        self.kick_branches(cx);
    }

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        for branch in 0..self.queues.len() {
            self.take_home(cx, branch);
        }
        if self.state.parked.exchange() {
            self.start_granted(cx);
        }
        let state = &mut self.state;
        state.in_flight -= state.ready.len();
        done.append(&mut state.ready);
        if state.parked.has_releases() || state.unkicked != 0 {
            cx.run_again();
        }
        self.kick_branches(cx);
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = true;
        self.queues.iter_mut().for_each(|queue| queue.drain(cx));
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = false;
        self.queues.iter_mut().for_each(|queue| queue.resume(cx));
    }

    fn mode(&self) -> Mode {
        let at_rest =
            || self.state.in_flight == 0 && self.queues.iter().all(|queue| queue.mode() == Mode::Quiesced);
        match self.draining {
            false => Mode::Running,
            true if at_rest() => Mode::Quiesced,
            true => Mode::Draining,
        }
    }

    fn in_flight(&self) -> usize {
        self.state.in_flight
    }
}

impl<R: Request, S: FanOutStage<R>, B: Backend<R>> Drop for FanOutQueue<R, S, B> {
    fn drop(&mut self) {
        let state = &mut self.state;
        let orphan = |(tag, slot): (Tag, Slot<R, _>)| {
            let children = slot.children;
            slot.ticket.map(|ticket| Orphan { tag, children, ticket })
        };
        let orphans: Vec<_> = state.slots.drain().filter_map(orphan).collect();
        state.parked.close();
        if !orphans.is_empty() {
            let generations = std::mem::replace(&mut state.generations, Generations::new(0, state.depth));
            Orphans::keep(
                std::mem::take(&mut state.pools),
                generations,
                orphans,
                state.parked.locks().clone(),
            );
        }
    }
}

impl<R: Request, S: FanOutStage<R>, B: Backend<R>> fmt::Debug for FanOutQueue<R, S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FanOutQueue")
            .field("branches", &self.queues.len())
            .field("in_flight", &self.state.in_flight)
            .field("parked", &self.state.parked.len())
            .finish_non_exhaustive()
    }
}
