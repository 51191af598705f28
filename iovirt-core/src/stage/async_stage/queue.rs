//! The queue that polls a handler's futures.

use super::calls::Calls;
use super::handler::{Handler, StandIn};
use super::io::Io;
use super::ready::ReadySet;
use super::shared::{Rest, Shared};
use crate::backend::{Mode, Queue};
use crate::error::BackendError;
use crate::request::{Completion, Completions, Depth, Request};
use crate::worker::WorkerContext;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

/// Rounds over the futures that are ready, in one call; what is left then goes on in the lane's next turn.
const ROUNDS: usize = 16;

/// Presents the futures of a [`Handler`] as a [`Queue`]: one long-lived future for each request that may be in flight, made
/// when the queue is opened.
pub struct AsyncQueue<R: StandIn, Q: Queue<R> = Nothing<R>> {
    // The futures go first: what they hold is put back into what they share.
    futures: Vec<Slot>,
    shared: Rc<Shared<R>>,
    below: Q,
    completions: Completions<R>,
    depth: usize,
}

struct Slot {
    /// `None` once it returned, as tasks may.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
    waker: Waker,
}

async fn serve<R: StandIn>(handler: Rc<impl Handler<R>>, io: Io<R>) {
    loop {
        let mut request = io.next().await;
        let output = handler.handle(&io, &mut request).await;
        io.settled().await;
        io.complete(request, output);
    }
}

async fn come_to_rest<R: StandIn>(handler: Rc<impl Handler<R>>, io: Io<R>) {
    loop {
        let rest = &io.shared().rest;
        std::future::poll_fn(|_| match rest.get() {
            Rest::Wanted => std::task::Poll::Ready(()),
            _ => std::task::Poll::Pending,
        })
        .await;
        rest.set(Rest::Under);
        let reached = handler.rest(&io).await;
        rest.set(match (rest.get(), reached) {
            (Rest::Stale, _) => Rest::Idle,
            (_, true) => Rest::Reached,
            (_, false) => Rest::Failed,
        });
    }
}

impl<R: StandIn> AsyncQueue<R> {
    /// The queue of a back-end: what its handler does is done by other means than requests.
    pub fn new(cx: &WorkerContext<'_>, handler: impl Handler<R>, depth: Depth) -> Self {
        let below = Nothing { submitted: Vec::with_capacity(depth.get()), draining: false };
        Self::with_below(cx, handler, depth, 0, below)
    }
}

impl<R: StandIn, Q: Queue<R>> AsyncQueue<R, Q> {
    /// The queue of a stage above what `open` opens, which is told the depth that it takes.
    ///
    /// # Errors
    /// Those of `open`, and where the handler's children make the queue below too deep.
    ///
    /// # Panics
    /// Where the handler has more than 64 children.
    pub fn above<H: Handler<R>>(
        cx: &mut WorkerContext<'_>,
        handler: H,
        depth: Depth,
        open: impl FnOnce(&mut WorkerContext<'_>, Depth) -> Result<Q, BackendError>,
    ) -> Result<Self, BackendError> {
        assert!(H::CHILDREN <= 64, "a future has at most 64 requests of its own below");
        let slots = depth.get() + H::TASKS + 1;
        let total = depth.get() + slots * H::CHILDREN as usize;
        let Some(total) = u32::try_from(total).ok().and_then(Depth::new) else {
            return Err(BackendError::config(format!(
                "a queue of {} requests needs one of {total} below; {} is the most",
                depth.get(),
                Depth::MAX
            )));
        };
        let below = open(cx, total)?;
        Ok(Self::with_below(cx, handler, depth, H::CHILDREN, below))
    }

    fn with_below<H: Handler<R>>(
        cx: &WorkerContext<'_>,
        handler: H,
        depth: Depth,
        children: u32,
        below: Q,
    ) -> Self {
        let depth = depth.get();
        let slots = depth + H::TASKS + 1;
        let ready = ReadySet::new(slots, cx.waker());
        let calls = Calls::new(depth, slots, children, ready.clone(), cx.waker());
        let shared = Rc::new(Shared::new(ready, calls, depth, cx.now()));
        let handler = Rc::new(handler);
        let future = |slot: usize| -> Pin<Box<dyn Future<Output = ()>>> {
            let (handler, io) = (handler.clone(), Io::new(shared.clone(), slot));
            match slot.checked_sub(depth) {
                None => Box::pin(serve(handler, io)),
                Some(task) if task < H::TASKS => Box::pin(async move { handler.task(&io, task).await }),
                Some(_) => Box::pin(come_to_rest(handler, io)),
            }
        };
        let slot = |slot| Slot { future: Some(future(slot)), waker: shared.ready.waker(slot) };
        let futures = (0..slots).map(slot).collect();
        // Tasks begin with the first poll; the others wait for something to do.
        (depth..slots).for_each(|slot| shared.ready.insert(slot));
        cx.waker().wake();
        let total = depth + slots * children as usize;
        let completions =
            Completions::with_depth(Depth::new(total as u32).unwrap_or(const { Depth::new(1).unwrap() }));
        Self { futures, shared, below, completions, depth }
    }

    /// Polls what is ready; what that sends down is submitted. Whether anything was.
    fn run(&mut self, cx: &mut WorkerContext<'_>) -> bool {
        let Self { futures, shared, .. } = self;
        shared.ready.sweep(|slot| {
            let Slot { future, waker } = &mut futures[slot];
            if let Some(running) = future
                && running.as_mut().poll(&mut Context::from_waker(waker)).is_ready()
            {
                *future = None;
            }
        });
        shared.sources.borrow_mut().arm(cx);
        let mut submissions = shared.calls.borrow_mut().take_submissions();
        let any = !submissions.is_empty();
        for request in submissions.drain(..) {
            self.below.submit(cx, request);
        }
        shared.calls.borrow_mut().put_submissions(submissions);
        any
    }

    /// Brings home what is done below.
    fn collect(&mut self, cx: &mut WorkerContext<'_>) {
        self.below.poll(cx, &mut self.completions);
        let mut calls = self.shared.calls.borrow_mut();
        self.completions.drain().for_each(|completion| calls.came_home(completion));
        calls.collect_lost();
        if self.shared.draining.get() && self.shared.in_flight.get() > 0 && self.below.in_flight() == 0 {
            calls.lose_all_forwarded();
        }
    }

    /// Asks the handler to come to rest once nothing is in flight.
    fn want_rest(&self) {
        let Shared { draining, in_flight, rest, ready, .. } = &*self.shared;
        if draining.get() && in_flight.get() == 0 && rest.get() == Rest::Idle {
            rest.set(Rest::Wanted);
            ready.insert(self.futures.len() - 1);
        }
    }

    /// A request whose slot is not free: its client used a tag twice, or heard from its memory that the former one is lost.
    #[cold]
    fn refuse_or_replace(&mut self, request: R) {
        let slot = request.tag().index();
        let mut calls = self.shared.calls.borrow_mut();
        let waits = self.shared.incoming.borrow().get(slot).is_none_or(Option::is_some);
        if waits || !calls.is_forwarded(slot) {
            self.shared.done.borrow_mut().push(Completion { request, output: R::aborted() });
            return;
        }
        calls.lose_forwarded(slot);
        self.shared.incoming.borrow_mut()[slot] = Some(request);
    }
}

impl<R: StandIn, Q: Queue<R>> Queue<R> for AsyncQueue<R, Q> {
    #[inline]
    fn submit(&mut self, _: &mut WorkerContext<'_>, request: R) {
        let slot = request.tag().index();
        self.shared.in_flight.set(self.shared.in_flight.get() + 1);
        self.shared.stir();
        if slot < self.depth && self.shared.is_free(slot) {
            self.shared.give(slot, request);
        } else {
            self.refuse_or_replace(request);
        }
    }

    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        self.shared.now.set(cx.now());
        self.shared.ready.wake_up();
        self.run(cx);
        self.below.kick(cx);
        if !self.shared.ready.go_to_rest() {
            cx.run_again();
        }
    }

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        self.shared.now.set(cx.now());
        self.shared.refill();
        self.shared.ready.wake_up();
        self.shared.sources.borrow_mut().wake();
        self.shared.timers.borrow_mut().expire(cx.now());
        let mut more = true;
        for _ in 0..ROUNDS {
            self.collect(cx);
            self.want_rest();
            more = self.run(cx);
            if more {
                self.below.kick(cx);
            } else if self.shared.ready.is_empty() {
                break;
            }
        }
        let ended = self.shared.done.borrow().len();
        self.shared.in_flight.set(self.shared.in_flight.get() - ended);
        done.append(&mut self.shared.done.borrow_mut());
        self.want_rest();
        if let Some(deadline) = self.shared.timers.borrow().next() {
            cx.wake_at(deadline);
        }
        if !self.shared.ready.go_to_rest() || more {
            cx.run_again();
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.shared.draining.set(true);
        self.shared.stir();
        self.shared.timers.borrow().nudge();
        self.below.drain(cx);
        cx.run_again();
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.shared.draining.set(false);
        self.shared.stir();
        self.below.resume(cx);
    }

    fn mode(&self) -> Mode {
        match self.shared.draining.get() {
            false => Mode::Running,
            true if self.shared.in_flight.get() > 0 || self.shared.rest.get() != Rest::Reached => {
                Mode::Draining
            }
            true => self.below.mode(),
        }
    }

    fn in_flight(&self) -> usize {
        self.shared.in_flight.get()
    }
}

impl<R: StandIn, Q: Queue<R>> fmt::Debug for AsyncQueue<R, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncQueue")
            .field("mode", &self.mode())
            .field("in_flight", &self.in_flight())
            .field("depth", &self.depth)
            .finish_non_exhaustive()
    }
}

/// What is below a back-end: requests that its handler forwards come home as given up.
#[derive(Debug)]
pub struct Nothing<R: Request> {
    submitted: Vec<R>,
    draining: bool,
}

impl<R: Request> Queue<R> for Nothing<R> {
    fn submit(&mut self, _: &mut WorkerContext<'_>, request: R) {
        self.submitted.push(request);
    }

    fn kick(&mut self, _: &mut WorkerContext<'_>) {}

    fn poll(&mut self, _: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        self.submitted.drain(..).for_each(|request| done.push(request, R::aborted()));
    }

    fn drain(&mut self, _: &mut WorkerContext<'_>) {
        self.draining = true;
    }

    fn resume(&mut self, _: &mut WorkerContext<'_>) {
        self.draining = false;
    }

    fn mode(&self) -> Mode {
        match (self.draining, self.submitted.is_empty()) {
            (false, _) => Mode::Running,
            (true, false) => Mode::Draining,
            (true, true) => Mode::Quiesced,
        }
    }

    fn in_flight(&self) -> usize {
        self.submitted.len()
    }
}
