//! What an author writes.

use super::io::Io;
use crate::dma::SgList;
use crate::error::{AttachError, BackendError};
use crate::request::block::BlockRequest;
use crate::request::{Depth, Request, Tag};
use crate::state::{StageStates, StateError};
use crate::worker::WorkerContext;
use std::any::Any;
use std::fmt;
use std::future::{Future, ready};
use std::sync::Arc;

/// A family of requests of which one can stand in for another while that is below.
pub trait StandIn: Request + Unpin {
    /// A request with that tag and that memory which asks for nothing.
    fn stand_in(tag: Tag, memory: Box<SgList>) -> Self;
}

impl StandIn for BlockRequest {
    fn stand_in(tag: Tag, memory: Box<SgList>) -> Self {
        Self::flush(tag, memory)
    }
}

/// The data plane of an async stage or back-end: one for each queue, on that queue's worker. See the [module](super) for the
/// rules.
pub trait Handler<R: StandIn>: 'static {
    /// How many requests of its own each future has below at most: 64 or fewer.
    const CHILDREN: u32 = 0;

    /// How many futures run beside those that handle requests; [`Handler::task`] makes them.
    const TASKS: usize = 0;

    /// Handles a request: what it returns completes it. Runs for as many requests at a time as the queue is deep. Written as
    /// `async fn`.
    fn handle(&self, io: &Io<R>, request: &mut R) -> impl Future<Output = R::Output>;

    /// What runs beside the requests for the queue's life: the reader of a connection, a cache's writer. Task `index` of
    /// [`Handler::TASKS`]; one that returns is over.
    fn task(&self, io: &Io<R>, index: usize) -> impl Future<Output = ()> {
        let _ = (io, index);
        ready(())
    }

    /// Makes durable what the contract covers, once a queue that is to come to rest has nothing in flight. False where that
    /// failed, and then the queue does not come to rest.
    fn rest(&self, io: &Io<R>) -> impl Future<Output = bool> {
        let _ = io;
        ready(true)
    }
}

/// The control plane of an async stage above another back-end; an [`AsyncLayer`](super::AsyncLayer) makes it an
/// [`Interposer`](crate::Interposer). A back-end implements [`Backend`](crate::Backend) itself and opens an
/// [`AsyncQueue`](super::AsyncQueue).
pub trait AsyncStage<R: StandIn>: Send + Sync + fmt::Debug + 'static {
    /// The data plane.
    type Handler: Handler<R>;

    /// The stage's name, as in a description.
    fn name(&self) -> &str;

    /// The capabilities of the stack with this stage on top; asked again whenever those below change.
    ///
    /// # Errors
    /// Where the stack below lacks what the stage needs.
    fn caps(&self, below: &R::Caps) -> Result<R::Caps, AttachError>;

    /// A data plane for one queue.
    ///
    /// # Errors
    /// Where the host or the configuration does not allow one more.
    fn handler(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<Self::Handler, BackendError>;

    /// The stage's control handle.
    fn control(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }

    /// Saves what must outlive the process.
    ///
    /// # Errors
    /// Where it cannot be saved now.
    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        let _ = states;
        Ok(())
    }

    /// Takes back what [`AsyncStage::save`] pushed.
    ///
    /// # Errors
    /// Where the state does not fit.
    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        let _ = states;
        Ok(())
    }
}
