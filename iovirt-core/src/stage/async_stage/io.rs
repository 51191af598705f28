//! What a future may ask of its queue: the time, timers, descriptors, and what is below.

use super::StandIn;
use super::calls::Call;
use super::child::Child;
use super::shared::Shared;
use super::source::Source;
use super::timers::{NEVER, TimerId};
use crate::request::{Completion, Request, Tag};
use crate::worker::Time;
use std::fmt;
use std::future::Future;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// The handle by which a future of an async stage reaches its queue; each slot has its own.
pub struct Io<R: Request> {
    shared: Rc<Shared<R>>,
    slot: usize,
}

/// How a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slept {
    /// The time has come.
    Through,
    /// The queue is coming to rest and nobody holds requests any longer.
    LetGo,
}

impl<R: Request> Io<R> {
    pub(super) fn new(shared: Rc<Shared<R>>, slot: usize) -> Self {
        Self { shared, slot }
    }

    pub(super) fn shared(&self) -> &Rc<Shared<R>> {
        &self.shared
    }

    /// The time, as the worker read it at the beginning of its turn.
    pub fn now(&self) -> Time {
        self.shared.now.get()
    }

    /// Waits until `deadline`, or until the queue is to come to rest: for holding a request back.
    pub fn sleep_until(&self, deadline: Time) -> Sleep<R> {
        Sleep { shared: self.shared.clone(), deadline, timer: None, drains: true }
    }

    /// The same for a time from now on.
    pub fn sleep(&self, duration: Duration) -> Sleep<R> {
        self.sleep_until(self.now() + duration)
    }

    /// Waits until `deadline`, also while the queue comes to rest: for time-outs.
    pub async fn deadline(&self, deadline: Time) {
        Sleep { shared: self.shared.clone(), deadline, timer: None, drains: false }.await;
    }

    /// Waits until the queue is to come to rest.
    pub async fn draining(&self) {
        self.sleep_until(NEVER).await;
    }

    /// Whether the queue is to come to rest, or is there.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.get()
    }

    /// Lets the others of this queue go first.
    pub async fn yield_now(&self) {
        yield_now().await;
    }

    /// Waits for a descriptor that was set not to block.
    pub fn source<S: AsRawFd>(&self, descriptor: S) -> Source<R, S> {
        Source::new(self, descriptor)
    }
}

impl<R: StandIn> Io<R> {
    /// Sends the handler's request down as it is and waits for it to come home: what became of it below. Meanwhile, and
    /// for ever where the future is dropped or a stage below loses the request, a stand-in without memory is in its place.
    ///
    /// In a back-end there is nothing below, and it comes home as given up.
    pub fn forward<'a>(&'a self, request: &'a mut R) -> Forward<'a, R> {
        Forward { io: self, request, sent: false }
    }

    /// Tag and empty memory for a request of the stage's own to what is below; `None` where this slot has as many as
    /// [`Handler::CHILDREN`](super::Handler::CHILDREN) under way or at hand.
    pub fn child(&self) -> Option<Child<R>> {
        let (tag, sg) = self.shared.calls.borrow_mut().child(self.slot)?;
        Some(Child::new(self.shared.clone(), tag, sg))
    }

    /// Waits for the slot's next request. Only the slot's own loop does, which the queue wakes.
    pub(super) fn next(&self) -> impl Future<Output = R> + '_ {
        std::future::poll_fn(|_| match self.shared.incoming.borrow_mut()[self.slot].take() {
            Some(request) => Poll::Ready(request),
            None => Poll::Pending,
        })
    }

    /// Waits until nothing of this slot is below: until then the request has to keep its memory.
    pub(super) fn settled(&self) -> impl Future<Output = ()> + '_ {
        std::future::poll_fn(|_| {
            let settled = self.shared.calls.borrow().is_settled(self.slot);
            if settled { Poll::Ready(()) } else { Poll::Pending }
        })
    }

    /// Completes what the handler has handled: the request, or the one that a stand-in was left for.
    pub(super) fn complete(&self, request: R, output: R::Output) {
        self.shared.release(self.slot);
        let forwarded = self.shared.calls.borrow_mut().take_forwarded(self.slot);
        let request = match forwarded {
            Call::Home(completion) => {
                self.shared.calls.borrow_mut().put_stand_in(self.slot, request);
                completion.request
            }
            Call::Lost => {
                // Its client has heard of it by its memory.
                self.shared.calls.borrow_mut().put_stand_in(self.slot, request);
                self.shared.in_flight.set(self.shared.in_flight.get() - 1);
                return;
            }
            Call::None | Call::Waiting(_) | Call::Abandoned => request,
        };
        self.shared.done.borrow_mut().push(Completion { request, output });
    }
}

impl<R: Request> fmt::Debug for Io<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Io").field("slot", &self.slot).field("now", &self.now()).finish_non_exhaustive()
    }
}

/// Lets others go first.
pub(super) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The future of [`Io::sleep_until`].
pub struct Sleep<R: Request> {
    shared: Rc<Shared<R>>,
    deadline: Time,
    timer: Option<TimerId>,
    drains: bool,
}

impl<R: Request> Future for Sleep<R> {
    type Output = Slept;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Slept> {
        if self.deadline != NEVER && self.shared.now.get() >= self.deadline {
            return Poll::Ready(Slept::Through);
        }
        if self.drains && self.shared.draining.get() {
            return Poll::Ready(Slept::LetGo);
        }
        let timer = {
            let mut timers = self.shared.timers.borrow_mut();
            match self.timer {
                Some(timer) => {
                    timers.set_waker(timer, cx.waker());
                    timer
                }
                None => timers.insert(self.deadline, cx.waker()),
            }
        };
        self.timer = Some(timer);
        Poll::Pending
    }
}

impl<R: Request> Drop for Sleep<R> {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.shared.timers.borrow_mut().remove(timer);
        }
    }
}

impl<R: Request> fmt::Debug for Sleep<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

/// The future of [`Io::forward`].
#[derive(Debug)]
pub struct Forward<'a, R: StandIn> {
    io: &'a Io<R>,
    request: &'a mut R,
    sent: bool,
}

impl<R: StandIn> Future for Forward<'_, R> {
    type Output = R::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<R::Output> {
        let (io, tag) = (self.io, Tag::new(self.io.slot as u32));
        let mut calls = io.shared.calls.borrow_mut();
        if !self.sent {
            // Without a stand-in the request is one itself: it was forwarded before and never came back here.
            let Some(stand_in) = calls.take_stand_in(io.slot) else { return Poll::Ready(R::aborted()) };
            let request = std::mem::replace(self.request, stand_in);
            if request.tag() == tag {
                calls.submit(request, cx.waker());
                drop(calls);
                self.sent = true;
                return Poll::Pending;
            }
            // The handler put another request in its place, which has no business below.
            calls.put_stand_in(io.slot, std::mem::replace(self.request, request));
            return Poll::Ready(R::aborted());
        }
        match calls.ask(tag, cx.waker()) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(completion)) => {
                let stand_in = std::mem::replace(self.request, completion.request);
                calls.put_stand_in(io.slot, stand_in);
                drop(calls);
                self.sent = false;
                Poll::Ready(completion.output)
            }
            Poll::Ready(None) => {
                // Lost below: the slot has to know when it completes.
                calls.mark_lost(io.slot);
                drop(calls);
                self.sent = false;
                Poll::Ready(R::aborted())
            }
        }
    }
}

impl<R: StandIn> Drop for Forward<'_, R> {
    fn drop(&mut self) {
        if self.sent {
            self.io.shared.calls.borrow_mut().abandon(Tag::new(self.io.slot as u32));
        }
    }
}
