//! Requests that are finished and wait for `poll`, and where their queue stands.

use iovirt_core::request::net::{NetError, NetOutput, NetRequest};
use iovirt_core::{Completion, Completions, Depth, Mode};

/// Finished requests, and whether the queue is asked to come to rest.
#[derive(Debug)]
pub(super) struct Finished {
    list: Vec<Completion<NetRequest>>,
    draining: bool,
}

impl Finished {
    pub(super) fn new(depth: Depth) -> Self {
        Self { list: Vec::with_capacity(depth.get()), draining: false }
    }

    #[inline]
    pub(super) fn push(&mut self, request: NetRequest, result: Result<(), NetError>) {
        let output = match result {
            Ok(()) => NetOutput::Done,
            Err(error) => NetOutput::Failed(error),
        };
        self.list.push(Completion { request, output });
    }

    #[inline]
    pub(super) fn bring_up(&mut self, done: &mut Completions<NetRequest>) {
        done.append(&mut self.list);
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    #[inline]
    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    pub(super) fn resume(&mut self) {
        self.draining = false;
    }

    /// Where a queue stands that has so many requests in flight.
    pub(super) fn mode(&self, in_flight: usize) -> Mode {
        match (self.draining, in_flight) {
            (false, _) => Mode::Running,
            (true, 0) => Mode::Quiesced,
            (true, _) => Mode::Draining,
        }
    }
}
