//! The control plane around a handler.

use super::handler::{AsyncStage, StandIn};
use super::queue::AsyncQueue;
use crate::backend::Backend;
use crate::error::{AttachError, BackendError};
use crate::interposer::Interposer;
use crate::pipeline::{EventListener, Stages};
use crate::request::Depth;
use crate::state::{StageStates, StateError};
use crate::worker::WorkerContext;
use std::sync::Arc;

/// Makes an [`AsyncStage`] an [`Interposer`].
#[derive(Clone, Debug)]
pub struct AsyncLayer<S> {
    stage: S,
}

impl<S> AsyncLayer<S> {
    /// The stage as a layer of a [`Pipeline`](crate::pipeline::Pipeline).
    pub fn new(stage: S) -> Self {
        Self { stage }
    }
}

impl<R: StandIn, B: Backend<R>, S: AsyncStage<R>> Interposer<R, B> for AsyncLayer<S> {
    type Stacked = Asynced<S, B>;

    fn attach(self, below: B) -> Result<Asynced<S, B>, AttachError> {
        self.stage.caps(&below.caps())?;
        Ok(Asynced { stage: self.stage, below })
    }
}

/// An async stage above a back-end.
#[derive(Debug)]
pub struct Asynced<S, B> {
    stage: S,
    below: B,
}

impl<R: StandIn, B: Backend<R>, S: AsyncStage<R>> Backend<R> for Asynced<S, B> {
    type Queue = AsyncQueue<R, B::Queue>;

    fn caps(&self) -> Arc<R::Caps> {
        let below = self.below.caps();
        match self.stage.caps(&below) {
            Ok(caps) if caps == *below => below,
            Ok(caps) => Arc::new(caps),
            Err(error) => {
                // The stack was acceptable when it was put together and has changed since.
                tracing::warn!(%error, "a stage no longer accepts what is below it");
                below
            }
        }
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<Self::Queue, BackendError> {
        let handler = self.stage.handler(cx, depth)?;
        AsyncQueue::above(cx, handler, depth, |cx, depth| self.below.open(cx, depth))
    }

    fn stages(&self, stages: &mut Stages) {
        match self.stage.control() {
            Some(control) => stages.push_controlled(self.stage.name(), control),
            None => stages.push(self.stage.name()),
        }
        self.below.stages(stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.below.subscribe(listener);
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.stage.save(states)?;
        self.below.save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.stage.restore(states)?;
        self.below.restore(states)
    }
}
