//! The control plane.

use super::{DelayConfig, DelayControl, DelayHook};
use iovirt_core::stage::{HookLayer, HookStage};
use iovirt_core::{AttachError, BackendError, Depth, Request, WorkerContext};
use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// Holds requests for a time; see the [module](super).
pub struct Delay<R: Request> {
    control: Arc<DelayControl>,
    family: PhantomData<fn() -> R>,
}

impl<R: Request> Delay<R> {
    /// A stage of these settings.
    ///
    /// # Errors
    /// Where a kind of request is none of the family's.
    pub fn new(config: &DelayConfig) -> Result<Self, BackendError> {
        Ok(Self { control: Arc::new(DelayControl::new::<R>(config)?), family: PhantomData })
    }

    /// The stage as a layer of a pipeline.
    pub fn layer(self) -> HookLayer<Self> {
        HookLayer::new(self)
    }

    /// What controls the stage: the same handle that the stack lists under `delay`.
    pub fn handle(&self) -> Arc<DelayControl> {
        self.control.clone()
    }
}

impl<R: Request> HookStage<R> for Delay<R> {
    type Hook = DelayHook;

    fn name(&self) -> &str {
        "delay"
    }

    fn caps(&self, below: &R::Caps) -> Result<R::Caps, AttachError> {
        Ok(below.clone())
    }

    fn hook(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> DelayHook {
        DelayHook::new::<R>(&self.control, cx, depth)
    }

    fn control(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(self.control.clone())
    }
}

impl<R: Request> fmt::Debug for Delay<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delay").field("config", &self.control.config()).finish_non_exhaustive()
    }
}
