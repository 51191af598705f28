//! The one erasure point: any back-end as a [`BoxBackend`], any stage as a [`BoxInterposer`].

use super::{EventListener, Stages};
use crate::backend::{Backend, Queue};
use crate::error::{AttachError, BackendError};
use crate::interposer::Interposer;
use crate::request::{Depth, Request};
use crate::state::{StageStates, StateError};
use crate::worker::WorkerContext;
use std::fmt;
use std::sync::Arc;

/// A boxed data plane.
pub type BoxQueue<R> = Box<dyn Queue<R>>;

/// The object-safe twin of [`Backend`]; like it, it has no default bodies.
trait DynBackend<R: Request>: Send + Sync {
    fn caps(&self) -> Arc<R::Caps>;
    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<BoxQueue<R>, BackendError>;
    fn stages(&self, stages: &mut Stages);
    fn subscribe(&self, listener: &Arc<dyn EventListener>);
    fn save(&self, states: &mut StageStates) -> Result<(), StateError>;
    fn restore(&self, states: &mut StageStates) -> Result<(), StateError>;
}

impl<R: Request, B: Backend<R>> DynBackend<R> for B {
    fn caps(&self) -> Arc<R::Caps> {
        Backend::caps(self)
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<BoxQueue<R>, BackendError> {
        Ok(Box::new(Backend::open(self, cx, depth)?))
    }

    fn stages(&self, stages: &mut Stages) {
        Backend::stages(self, stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        Backend::subscribe(self, listener);
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        Backend::save(self, states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        Backend::restore(self, states)
    }
}

/// Any back-end of a family behind one type; cloning it shares the back-end.
pub struct BoxBackend<R: Request> {
    inner: Arc<dyn DynBackend<R>>,
}

impl<R: Request> BoxBackend<R> {
    /// That back-end, erased.
    pub fn new(backend: impl Backend<R>) -> Self {
        Self { inner: Arc::new(backend) }
    }

    /// The stages from the top down.
    pub fn list_stages(&self) -> Stages {
        let mut stages = Stages::default();
        self.inner.stages(&mut stages);
        stages
    }
}

impl<R: Request> Clone for BoxBackend<R> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<R: Request> fmt::Debug for BoxBackend<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list_stages().iter().map(|stage| &stage.name)).finish()
    }
}

impl<R: Request> Backend<R> for BoxBackend<R> {
    type Queue = BoxQueue<R>;

    fn caps(&self) -> Arc<R::Caps> {
        self.inner.caps()
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<BoxQueue<R>, BackendError> {
        self.inner.open(cx, depth)
    }

    fn stages(&self, stages: &mut Stages) {
        self.inner.stages(stages);
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.inner.subscribe(listener);
    }

    fn save(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.inner.save(states)
    }

    fn restore(&self, states: &mut StageStates) -> Result<(), StateError> {
        self.inner.restore(states)
    }
}

/// A stage that waits to be put above a boxed stack: what a description's parser collects.
pub struct BoxInterposer<R: Request> {
    #[expect(clippy::type_complexity, reason = "the type stands here once")]
    attach: Box<dyn FnOnce(BoxBackend<R>) -> Result<BoxBackend<R>, AttachError>>,
}

impl<R: Request> BoxInterposer<R> {
    /// That stage, erased.
    pub fn new(stage: impl Interposer<R, BoxBackend<R>> + 'static) -> Self {
        Self { attach: Box::new(|below| Ok(BoxBackend::new(stage.attach(below)?))) }
    }
}

impl<R: Request> Interposer<R, BoxBackend<R>> for BoxInterposer<R> {
    type Stacked = BoxBackend<R>;

    fn attach(self, below: BoxBackend<R>) -> Result<BoxBackend<R>, AttachError> {
        (self.attach)(below)
    }
}

impl<R: Request> fmt::Debug for BoxInterposer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BoxInterposer")
    }
}
