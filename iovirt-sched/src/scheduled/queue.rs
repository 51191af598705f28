//! The data plane: requests wait in their slots until the group says that they may go.

use super::group::Pace;
use super::seat::Seat;
use iovirt_core::stage::SlotTable;
use iovirt_core::{Completion, Completions, Cost, Depth, Mode, Queue, Request, Tag, WorkerContext};

/// The data plane of a [`Scheduled`](super::Scheduled) stage.
#[derive(Debug)]
pub struct ScheduledQueue<R: Request, Q> {
    below: Q,
    seat: Seat,
    /// Requests that wait for their turn.
    waiting: SlotTable<R>,
    out: Out,
    /// Tokens that are below: they take no turn, for they wait for what comes, and would hold their places for ever.
    tokens: SlotTable<()>,
    granted: Vec<Tag>,
    ready: Vec<Completion<R>>,
    draining: bool,
}

/// Requests that are below, by what they cost; and how many of them the stages below have lost, which tell nobody.
#[derive(Debug)]
struct Out {
    costs: SlotTable<Cost>,
    /// Of these, how many the group was told are over, though nobody knows which.
    written_off: usize,
}

impl Out {
    /// What is below as far as the group knows.
    fn count(&self) -> usize {
        self.costs.len() - self.written_off
    }

    /// A request is over; its cost, where the group has yet to be told.
    fn end(&mut self, tag: Tag) -> Option<Cost> {
        let cost = self.costs.take(tag)?;
        if self.written_off > self.costs.len() {
            self.written_off -= 1;
            return None;
        }
        Some(cost)
    }

    /// The tag is given anew while its request is below: that request was lost. Whether the group has yet to be told.
    fn replace(&mut self, tag: Tag) -> bool {
        if self.costs.take(tag).is_none() {
            return false;
        }
        let told = self.written_off > 0;
        self.written_off -= usize::from(told);
        !told
    }

    /// What is below has fewer requests than it was given: the others were lost. How many the group has yet to be told of.
    fn write_off(&mut self, below: usize) -> usize {
        let lost = self.count().saturating_sub(below);
        self.written_off += lost;
        lost
    }
}

impl<R: Request, Q: Queue<R>> ScheduledQueue<R, Q> {
    pub(super) fn new(below: Q, seat: Seat, depth: Depth) -> Self {
        Self {
            below,
            seat,
            waiting: SlotTable::new(depth),
            out: Out { costs: SlotTable::new(depth), written_off: 0 },
            tokens: SlotTable::new(depth),
            granted: Vec::with_capacity(depth.get()),
            ready: Vec::new(),
            draining: false,
        }
    }

    /// Talks with the group and submits what it granted; whether there was any.
    fn exchange(&mut self, cx: &mut WorkerContext<'_>) -> bool {
        let pace = if self.draining { Pace::AtOnce } else { Pace::InTurn };
        self.seat.exchange(cx.now(), pace, &mut self.granted);
        let any = !self.granted.is_empty();
        for tag in self.granted.drain(..) {
            let Some(request) = self.waiting.take(tag) else {
                // Nothing asks twice for a request; were it so, the turn is given back.
                self.seat.news.completed.push(Cost::default());
                cx.run_again();
                continue;
            };
            self.out.costs.insert(tag, request.cost());
            self.below.submit(cx, request);
        }
        any
    }
}

impl<R: Request, Q: Queue<R>> Queue<R> for ScheduledQueue<R, Q> {
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: R) {
        if request.is_token() {
            self.tokens.insert(request.tag(), ());
            self.below.submit(cx, request);
            return;
        }
        let (tag, cost) = (request.tag(), request.cost());
        if self.out.replace(tag) {
            self.seat.news.lost += 1;
        }
        match self.waiting.insert(tag, request) {
            None => self.seat.news.asks.push((tag, cost)),
            Some(twin) => {
                // A client used a tag twice. The first request is not lost, it comes home as given up; the second goes when the
                // first would have.
                self.ready.push(Completion { request: twin, output: R::aborted() });
                cx.run_again();
            }
        }
    }

    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        if self.seat.has_business(cx.now()) {
            self.exchange(cx);
        }
        self.below.kick(cx);
    }

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        let mark = done.len();
        self.below.poll(cx, done);
        for completion in done.since(mark) {
            let tag = completion.request.tag();
            if completion.request.is_token() {
                self.tokens.take(tag);
            } else {
                self.seat.news.completed.extend(self.out.end(tag));
            }
        }
        if self.out.count() > 0 {
            let below = self.below.in_flight().saturating_sub(self.tokens.len());
            self.seat.news.lost += self.out.write_off(below) as u64;
        }
        if self.seat.has_business(cx.now()) && self.exchange(cx) {
            self.below.kick(cx);
            // What is below may have done it at once.
            cx.run_again();
        }
        if !self.waiting.is_empty()
            && let Some(deadline) = self.seat.deadline()
        {
            cx.wake_at(deadline);
        }
        if !self.ready.is_empty() {
            done.append(&mut self.ready);
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = true;
        if self.exchange(cx) {
            self.below.kick(cx);
        }
        self.below.drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = false;
        self.below.resume(cx);
    }

    fn mode(&self) -> Mode {
        match self.below.mode() {
            Mode::Quiesced if !self.waiting.is_empty() || !self.ready.is_empty() => Mode::Draining,
            mode => mode,
        }
    }

    fn in_flight(&self) -> usize {
        self.below.in_flight() + self.waiting.len() + self.ready.len()
    }
}
