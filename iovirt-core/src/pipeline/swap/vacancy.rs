//! What stands in a place from which the stack was taken: requests fail, tokens wait.

use crate::backend::{Backend, Mode, Queue};
use crate::error::BackendError;
use crate::pipeline::{EventListener, Stages};
use crate::request::{Completions, Depth, Request};
use crate::state::{StageStates, StateError};
use crate::sync::Arc;
use crate::worker::WorkerContext;
use std::fmt;

/// Nothing, with the capabilities that the guest was told of what was there.
pub(super) struct Vacancy<R: Request> {
    caps: Arc<R::Caps>,
}

impl<R: Request> Vacancy<R> {
    /// Where a stack with these capabilities was.
    pub(super) fn of(told: &R::Caps) -> Self {
        Self { caps: Arc::new(R::vacant(told)) }
    }
}

impl<R: Request> Backend<R> for Vacancy<R> {
    type Queue = VacancyQueue<R>;

    fn caps(&self) -> Arc<R::Caps> {
        self.caps.clone()
    }

    fn open(&self, _: &mut WorkerContext<'_>, depth: Depth) -> Result<VacancyQueue<R>, BackendError> {
        Ok(VacancyQueue {
            refused: Vec::with_capacity(depth.get()),
            waiting: Vec::with_capacity(depth.get()),
            draining: false,
        })
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push("vacant");
    }

    fn subscribe(&self, _: &Arc<dyn EventListener>) {
        // Nothing about it ever changes.
    }

    fn save(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }

    fn restore(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }
}

impl<R: Request> fmt::Debug for Vacancy<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vacancy").field("caps", &self.caps).finish()
    }
}

/// The data plane of a [`Vacancy`].
pub(super) struct VacancyQueue<R: Request> {
    /// What was submitted since the last poll.
    refused: Vec<R>,
    /// Tokens, for which nothing comes.
    waiting: Vec<R>,
    draining: bool,
}

impl<R: Request> Queue<R> for VacancyQueue<R> {
    fn submit(&mut self, cx: &mut WorkerContext<'_>, request: R) {
        if request.is_token() {
            self.waiting.push(request);
            if self.draining {
                cx.run_again();
            }
        } else {
            self.refused.push(request);
        }
    }

    fn kick(&mut self, _: &mut WorkerContext<'_>) {
        // The poll that follows brings them home.
    }

    fn poll(&mut self, _: &mut WorkerContext<'_>, done: &mut Completions<R>) {
        self.refused.drain(..).for_each(|request| done.push(request, R::failed()));
        if self.draining {
            self.waiting.drain(..).for_each(|token| done.push(token, R::aborted()));
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = true;
        cx.run_again();
    }

    fn resume(&mut self, _: &mut WorkerContext<'_>) {
        self.draining = false;
    }

    fn mode(&self) -> Mode {
        match (self.draining, self.in_flight()) {
            (false, _) => Mode::Running,
            (true, 0) => Mode::Quiesced,
            (true, _) => Mode::Draining,
        }
    }

    fn in_flight(&self) -> usize {
        self.refused.len() + self.waiting.len()
    }
}
