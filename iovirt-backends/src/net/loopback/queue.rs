//! The data plane.

use super::pair::{Pair, Receiver};
use crate::net::finished::Finished;
use iovirt_core::request::net::{NetCaps, NetError, NetOp, NetOutput, NetRequest};
use iovirt_core::worker::LaneWaker;
use iovirt_core::{Completions, Depth, Mode, Queue, WorkerContext};
use std::sync::Arc;

/// The data plane of a [`LoopbackBackend`](super::LoopbackBackend): for sending, receiving or both.
#[derive(Debug)]
pub struct LoopbackQueue {
    caps: Arc<NetCaps>,
    pairs: Arc<[Pair]>,
    me: Arc<Receiver>,
    /// The pair of the first request.
    pair: Option<u16>,
    /// Submitted since the last kick.
    tokens: Vec<NetRequest>,
    frames: Vec<NetRequest>,
    /// Frames that were copied, or lost, and wait for the next poll.
    sent: Vec<NetRequest>,
    /// Tokens that the pair has.
    lent: usize,
    finished: Finished,
}

impl LoopbackQueue {
    pub(super) fn new(caps: Arc<NetCaps>, pairs: Arc<[Pair]>, waker: LaneWaker, depth: Depth) -> Self {
        let requests = || Vec::with_capacity(depth.get());
        Self {
            caps,
            pairs,
            me: Receiver::new(waker),
            pair: None,
            tokens: requests(),
            frames: requests(),
            sent: requests(),
            lent: 0,
            finished: Finished::new(depth),
        }
    }

    fn refusal(&self, request: &NetRequest) -> Option<NetError> {
        if self.pair.is_some_and(|pair| pair != request.pair()) {
            return Some(NetError::Unsupported);
        }
        if request.op() == NetOp::Receive && self.finished.is_draining() {
            return Some(NetError::Aborted);
        }
        self.caps.check(request).err()
    }

    #[cold]
    #[inline(never)]
    fn refuse(&mut self, request: NetRequest, error: NetError) {
        self.finished.push(request, Err(error));
    }

    /// The pair of this data plane, once it had a request.
    fn pair(&self) -> Option<&Pair> {
        self.pairs.get(usize::from(self.pair?))
    }
}

impl Queue<NetRequest> for LoopbackQueue {
    #[inline]
    fn submit(&mut self, _: &mut WorkerContext<'_>, request: NetRequest) {
        if let Some(error) = self.refusal(&request) {
            self.refuse(request, error);
            return;
        }
        self.pair = Some(request.pair());
        match request.op() {
            NetOp::Transmit => self.frames.push(request),
            NetOp::Receive => self.tokens.push(request),
        }
    }

    #[inline]
    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        let Some(pair) = self.pair.and_then(|pair| self.pairs.get(usize::from(pair))) else { return };
        let tokens = self.tokens.len();
        if tokens + self.frames.len() == 0 {
            return;
        }
        pair.exchange(cx, &self.me, &mut self.tokens, (&self.frames, self.caps.max_frame));
        self.lent += tokens - self.tokens.len();
        for refused in self.tokens.drain(..) {
            self.finished.push(refused, Err(NetError::Unsupported));
        }
        if !self.frames.is_empty() {
            if self.sent.is_empty() {
                std::mem::swap(&mut self.frames, &mut self.sent);
            } else {
                self.sent.append(&mut self.frames);
            }
            // The copies took their time inside this turn; whoever measures above sees it.
            cx.tick();
        }
    }

    #[inline]
    fn poll(&mut self, _: &mut WorkerContext<'_>, done: &mut Completions<NetRequest>) {
        self.finished.bring_up(done);
        for sent in self.sent.drain(..) {
            done.push(sent, NetOutput::Done);
        }
        if self.lent > 0
            && let Some(pair) = self.pair.and_then(|pair| self.pairs.get(usize::from(pair)))
        {
            self.lent -= pair.take(&self.me, |request| done.push(request, NetOutput::Done));
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.finished.drain();
        for token in self.tokens.drain(..) {
            self.finished.push(token, Err(NetError::Aborted));
        }
        if let Some(pair) = self.pair.and_then(|pair| self.pairs.get(usize::from(pair))) {
            let Self { me, finished, lent, .. } = self;
            // Frames that are here already come before the tokens that got none.
            *lent -= pair.take(me, |request| finished.push(request, Ok(())));
            *lent -= pair.recall(me, |request| finished.push(request, Err(NetError::Aborted)));
        }
        cx.run_again();
    }

    fn resume(&mut self, _: &mut WorkerContext<'_>) {
        self.finished.resume();
    }

    fn mode(&self) -> Mode {
        self.finished.mode(self.in_flight())
    }

    fn in_flight(&self) -> usize {
        self.tokens.len() + self.frames.len() + self.sent.len() + self.lent + self.finished.len()
    }
}

impl Drop for LoopbackQueue {
    fn drop(&mut self) {
        if let Some(pair) = self.pair() {
            pair.leave(&self.me);
        }
    }
}
