//! Looks at both sides of a queue: whether its client uses it, and whether it behaves, as the contract says.

use crate::backend::{Backend, Mode, Queue};
use crate::error::BackendError;
use crate::pipeline::{BoxBackend, BoxQueue, EventListener, Stages};
use crate::request::{Completions, Depth, Request};
use crate::state::{StageStates, StateError};
use crate::worker::WorkerContext;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Stands above a stack and notes the first rule that is broken: each request comes home once; at most the depth is in
/// flight, and the queue's own count of it is right; it rests only with nothing in flight, and serves when it was resumed; a
/// token is given back undone only where that was asked for.
pub struct Watch<R: Request> {
    below: BoxBackend<R>,
    handle: WatchHandle,
}

/// The test's end of a [`Watch`].
#[derive(Clone, Debug, Default)]
pub struct WatchHandle {
    violation: Arc<Mutex<Option<String>>>,
}

impl WatchHandle {
    /// The first rule that was broken, in words.
    pub fn violation(&self) -> Option<String> {
        self.violation.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, words: impl FnOnce() -> String) {
        self.violation.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(words);
    }
}

impl<R: Request> Watch<R> {
    /// That stack, watched.
    pub fn above(below: BoxBackend<R>) -> (BoxBackend<R>, WatchHandle) {
        let handle = WatchHandle::default();
        (BoxBackend::new(Self { below, handle: handle.clone() }), handle)
    }
}

impl<R: Request> Backend<R> for Watch<R> {
    type Queue = WatchQueue<R>;

    fn caps(&self) -> Arc<R::Caps> {
        self.below.caps()
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<WatchQueue<R>, BackendError> {
        let below = self.below.open(cx, depth)?;
        Ok(WatchQueue {
            below,
            handle: self.handle.clone(),
            out: vec![false; depth.get()],
            in_flight: 0,
            asked: Asked::Run,
        })
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push("watch");
        self.below.stages(stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.below.subscribe(listener);
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.below.save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.below.restore(states)
    }
}

/// What the client asked for last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Run,
    /// It was asked to drain before, and has not been polled since.
    RunAgain,
    Drain,
}

/// The data plane of a [`Watch`].
pub struct WatchQueue<R: Request> {
    below: BoxQueue<R>,
    handle: WatchHandle,
    /// By tag.
    out: Vec<bool>,
    in_flight: usize,
    asked: Asked,
}

impl<R: Request> WatchQueue<R> {
    fn check(&self) {
        let (count, mode) = (self.below.in_flight(), self.below.mode());
        if count != self.in_flight {
            self.handle.note(|| {
                format!(
                    "a queue has {} requests that did not come home, and says {count} ({mode:?})",
                    self.in_flight
                )
            });
        }
        match (self.asked, mode) {
            (Asked::Drain, Mode::Quiesced) if self.in_flight > 0 => {
                self.handle.note(|| format!("a queue rests with {} requests in flight", self.in_flight));
            }
            (Asked::Drain, Mode::Running) => {
                self.handle.note(|| "a queue was asked to drain and says it runs".into());
            }
            (Asked::Run | Asked::RunAgain, Mode::Draining | Mode::Quiesced) => {
                self.handle.note(|| format!("a queue was not asked to drain and is {mode:?}"));
            }
            _ => {}
        }
    }
}

impl<R: Request> Queue<R> for WatchQueue<R> {
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: R) {
        match self.out.get_mut(request.tag().index()) {
            Some(out) if !*out => *out = true,
            _ => self.handle.note(|| format!("a tag is used twice, or beyond the depth: {request:?}")),
        }
        self.in_flight += 1;
        self.below.submit(cx, request);
        self.check();
    }

    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        self.below.kick(cx);
        self.check();
    }

    fn poll(&mut self, cx: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        let mark = done.len();
        self.below.poll(cx, done);
        for completion in done.since(mark) {
            let request = &completion.request;
            match self.out.get_mut(request.tag().index()) {
                Some(out) if *out => *out = false,
                _ => self.handle.note(|| format!("came home and was not out: {request:?}")),
            }
            self.in_flight = self.in_flight.saturating_sub(1);
            if self.asked == Asked::Run && request.is_token() && R::is_failure(&completion.output) {
                self.handle.note(|| format!("a queue that runs gave a token back: {request:?}"));
            }
        }
        if self.asked == Asked::RunAgain {
            self.asked = Asked::Run;
        }
        self.check();
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.asked = Asked::Drain;
        self.below.drain(cx);
        self.check();
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        self.asked = Asked::RunAgain;
        self.below.resume(cx);
        self.check();
    }

    fn mode(&self) -> Mode {
        self.below.mode()
    }

    fn in_flight(&self) -> usize {
        self.below.in_flight()
    }
}

impl<R: Request> fmt::Debug for Watch<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("below", &self.below).field("handle", &self.handle).finish()
    }
}

impl<R: Request> fmt::Debug for WatchQueue<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchQueue")
            .field("in_flight", &self.in_flight)
            .field("asked", &self.asked)
            .finish_non_exhaustive()
    }
}
