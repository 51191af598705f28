//! The data plane of a disk that does its work within `submit`.

use iovirt_core::request::block::{BlockError, BlockOutput, BlockRequest};
use iovirt_core::{Completion, Completions, Depth, Mode, Queue, WorkerContext};
use std::fmt;

/// Does a request at once.
pub trait Serve: fmt::Debug + 'static {
    /// Whether the work takes time that whoever measures above should see.
    const TAKES_TIME: bool;

    /// Does the request.
    ///
    /// # Errors
    /// What its client is told.
    fn serve(&mut self, request: &mut BlockRequest) -> Result<(), BlockError>;
}

/// The data plane of a disk that [serves](Serve) within `submit`: what is done waits for `poll`, and nothing else is ever in
/// flight.
#[derive(Debug)]
pub struct AtOnceQueue<S> {
    disk: S,
    finished: Vec<Completion<BlockRequest>>,
    draining: bool,
}

impl<S: Serve> AtOnceQueue<S> {
    pub(super) fn new(disk: S, depth: Depth) -> Self {
        Self { disk, finished: Vec::with_capacity(depth.get()), draining: false }
    }
}

impl<S: Serve> Queue<BlockRequest> for AtOnceQueue<S> {
    #[inline]
    fn submit(&mut self, _: &mut WorkerContext<'_>, mut request: BlockRequest) {
        let output = match self.disk.serve(&mut request) {
            Ok(()) => BlockOutput::Done,
            Err(error) => BlockOutput::Failed(error),
        };
        self.finished.push(Completion { request, output });
    }

    #[inline]
    fn kick(&mut self, cx: &mut WorkerContext<'_>) {
        if S::TAKES_TIME && !self.finished.is_empty() {
            cx.tick();
        }
    }

    #[inline]
    fn poll(&mut self, _: &mut WorkerContext<'_>, done: &mut Completions<BlockRequest>) {
        done.append(&mut self.finished);
    }

    fn drain(&mut self, _: &mut WorkerContext<'_>) {
        self.draining = true;
    }

    fn resume(&mut self, _: &mut WorkerContext<'_>) {
        self.draining = false;
    }

    fn mode(&self) -> Mode {
        match (self.draining, self.finished.is_empty()) {
            (false, _) => Mode::Running,
            (true, false) => Mode::Draining,
            (true, true) => Mode::Quiesced,
        }
    }

    fn in_flight(&self) -> usize {
        self.finished.len()
    }
}
