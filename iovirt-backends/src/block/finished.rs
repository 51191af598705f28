//! The requests of a queue that does its work within `submit`: finished, and waiting for `poll`.

use iovirt_core::request::block::{BlockError, BlockOutput, BlockRequest};
use iovirt_core::{Completion, Completions, Depth, Mode};

/// Finished requests, and whether the queue is asked to come to rest.
#[derive(Debug)]
pub(super) struct Finished {
    list: Vec<Completion<BlockRequest>>,
    draining: bool,
}

impl Finished {
    pub(super) fn new(depth: Depth) -> Self {
        Self { list: Vec::with_capacity(depth.get()), draining: false }
    }

    #[inline]
    pub(super) fn push(&mut self, request: BlockRequest, result: Result<(), BlockError>) {
        let output = match result {
            Ok(()) => BlockOutput::Done,
            Err(error) => BlockOutput::Failed(error),
        };
        self.list.push(Completion { request, output });
    }

    #[inline]
    pub(super) fn bring_up(&mut self, done: &mut Completions<BlockRequest>) {
        done.append(&mut self.list);
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    pub(super) fn resume(&mut self) {
        self.draining = false;
    }

    pub(super) fn mode(&self) -> Mode {
        match (self.draining, self.list.is_empty()) {
            (false, _) => Mode::Running,
            (true, false) => Mode::Draining,
            (true, true) => Mode::Quiesced,
        }
    }
}
