//! The data plane: what a queue does for an exchange, and what it does with requests meanwhile.

use super::{Phase, Shared};
use crate::backend::{Backend, Mode, Queue};
use crate::pipeline::{BoxBackend, BoxQueue, Event};
use crate::request::{Completion, Completions, Depth, Request};
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::worker::WorkerContext;
use std::fmt;

/// The data plane of a [`Swappable`](super::Swappable).
pub struct SwappableQueue<R: Request> {
    depth: Depth,
    below: BoxQueue<R>,
    /// Of the stack that `below` belongs to.
    generation: u64,
    /// The newcomer's queue, until the exchange is over, and the generation that it is of then.
    opened: Option<(u64, BoxQueue<R>)>,
    part: Part,
    /// The step that this queue knows of.
    seen: u64,
    parked: Vec<R>,
    draining: bool,
    // Behind the queues: with this one gone, no exchange waits for it, and then it holds no stack either.
    member: Membership<R>,
}

/// A queue's place among those that take part in exchanges.
pub(super) struct Membership<R: Request> {
    pub(super) shared: Arc<Shared<R>>,
    pub(super) id: u64,
}

/// What a queue does for the exchange under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Nothing: it serves.
    Serving,
    /// It comes to rest.
    Resting,
    /// It has done its part and waits for the others.
    Waiting,
}

/// What a step asks of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// To serve.
    Serve,
    /// To come to rest, and to do its part then.
    Rest,
    /// To serve, and to tell that it holds the old stack no more.
    Leave,
}

impl<R: Request> SwappableQueue<R> {
    pub(super) fn new(member: Membership<R>, depth: Depth, below: BoxQueue<R>, generation: u64) -> Self {
        Self {
            depth,
            below,
            generation,
            opened: None,
            part: Part::Serving,
            seen: u64::MAX,
            parked: Vec::with_capacity(depth.get()),
            draining: false,
            member,
        }
    }

    fn shared(&self) -> &Arc<Shared<R>> {
        &self.member.shared
    }

    /// This queue has done its part of the step that it knows of.
    fn done(&self) {
        self.shared().done(self.member.id, self.seen);
    }

    /// Takes up the step that the coordinator has announced.
    #[cold]
    fn look(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        let (generation, asked) = {
            let state = self.member.shared.state();
            self.seen = self.member.shared.step.load(Ordering::SeqCst);
            let asked = match state.phase {
                Phase::Idle => Asked::Serve,
                Phase::Draining { .. } | Phase::Opening { .. } => Asked::Rest,
                Phase::Closing { .. } => Asked::Leave,
            };
            (state.generation, asked)
        };
        self.catch_up(generation);
        match asked {
            Asked::Rest => {
                if self.below.mode() != Mode::Quiesced {
                    self.below.drain(cx);
                }
                self.part = Part::Resting;
            }
            Asked::Serve => self.serve(cx, done),
            Asked::Leave => {
                self.serve(cx, done);
                self.done();
            }
        }
    }

    /// Puts the newcomer's queue in place, where its exchange came to its end; another may have begun since. A newcomer whose
    /// exchange was given up goes.
    fn catch_up(&mut self, generation: u64) {
        if let Some((of, queue)) = self.opened.take()
            && of == generation
        {
            self.generation = generation;
            self.below = queue;
            // Once for each queue: a late or doubled event does no harm.
            self.shared().listeners.announce(Event::CapsChanged);
        }
    }

    /// What is below is at rest: does this queue's part of the step.
    fn at_rest(&mut self, cx: &mut WorkerContext<'_>) {
        let newcomer = {
            let state = self.shared().state();
            if self.shared().step.load(Ordering::SeqCst) != self.seen {
                // The step is over; the next poll looks.
                return;
            }
            match &state.phase {
                Phase::Opening { newcomer, .. } => Some((state.generation + 1, newcomer.stack.clone())),
                Phase::Draining { .. } | Phase::Closing { .. } | Phase::Idle => None,
            }
        };
        self.part = Part::Waiting;
        match newcomer {
            Some((generation, newcomer)) => self.open_newcomer(cx, generation, &newcomer),
            None => self.done(),
        }
        // Where this queue was the last one, the next step is there.
        cx.run_again();
    }

    fn open_newcomer(&mut self, cx: &mut WorkerContext<'_>, generation: u64, newcomer: &BoxBackend<R>) {
        match newcomer.open(cx, self.depth) {
            Ok(queue) => {
                self.opened = Some((generation, queue));
                self.done();
            }
            Err(error) => {
                tracing::warn!(%error, "a stack could not be put in the place of another; the other goes on");
                self.shared().refuse(self.seen);
            }
        }
    }

    /// The exchange is over, one way or the other: goes on with the stack in place.
    fn serve(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        if self.part == Part::Serving {
            return;
        }
        // Where the exchange was given up half way, tokens of the old stack may be on their way up.
        self.bring_up(cx, done);
        self.part = Part::Serving;
        if self.below.mode() != Mode::Running {
            self.below.resume(cx);
        }
        for request in self.parked.drain(..) {
            self.below.submit(cx, request);
        }
        self.below.kick(cx);
        if self.draining {
            self.below.drain(cx);
        }
        cx.run_again();
    }

    /// Brings completions up while an exchange is under way. Tokens that came back since the old stack comes to rest are
    /// parked, for the client has not asked for that; where it has, those that are parked come home.
    fn bring_up(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        let mark = done.len();
        self.below.poll(cx, done);
        let Self { parked, draining, .. } = self;
        if *draining {
            for token in parked.extract_if(.., |request| request.is_token()) {
                done.push(token, R::aborted());
            }
        } else {
            let keep = |Completion { request, output }: &mut Completion<R>| !request.renew_token(output);
            done.retain_since(mark, keep, |token| parked.push(token));
        }
    }
}

impl<R: Request> Queue<R> for SwappableQueue<R> {
    #[inline]
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: R) {
        if self.part == Part::Serving {
            self.below.submit(cx, request);
        } else {
            self.parked.push(request);
        }
    }

    #[inline]
    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        if self.part == Part::Serving {
            self.below.kick(cx);
        }
    }

    #[inline]
    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        if self.shared().step.load(Ordering::Relaxed) != self.seen {
            self.look(cx, done);
        }
        if self.part == Part::Serving {
            self.below.poll(cx, done);
            return;
        }
        self.bring_up(cx, done);
        if self.part == Part::Resting && self.below.mode() == Mode::Quiesced {
            self.at_rest(cx);
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = true;
        if self.part == Part::Serving {
            self.below.drain(cx);
        } else {
            // Parked tokens come home.
            cx.run_again();
        }
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = false;
        if self.part == Part::Serving {
            self.below.resume(cx);
        }
    }

    fn mode(&self) -> Mode {
        match (self.part, self.draining) {
            (Part::Serving, _) => self.below.mode(),
            (_, false) => Mode::Running,
            (_, true) => Mode::Draining,
        }
    }

    fn in_flight(&self) -> usize {
        self.below.in_flight() + self.parked.len()
    }
}

impl<R: Request> Drop for Membership<R> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.queues.retain(|member| member.id != self.id);
        self.shared.advance(&mut state);
    }
}

impl<R: Request> fmt::Debug for SwappableQueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwappableQueue")
            .field("part", &self.part)
            .field("parked", &self.parked.len())
            .finish_non_exhaustive()
    }
}
