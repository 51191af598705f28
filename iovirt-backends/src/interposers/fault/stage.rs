//! The control plane.

use super::{FaultConfig, FaultControl, FaultHook};
use iovirt_core::stage::{HookLayer, HookStage};
use iovirt_core::{AttachError, BackendError, Depth, Request, WorkerContext};
use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// Strikes requests by rule and by chance; see the [module](super).
pub struct Fault<R: Request> {
    control: Arc<FaultControl>,
    family: PhantomData<fn() -> R>,
}

impl<R: Request> Fault<R> {
    /// A stage of these settings.
    ///
    /// # Errors
    /// Where a kind of request is none of the family's, or a probability is above 1000 per mille.
    pub fn new(config: &FaultConfig) -> Result<Self, BackendError> {
        Ok(Self { control: Arc::new(FaultControl::new::<R>(config)?), family: PhantomData })
    }

    /// The stage as a layer of a pipeline.
    pub fn layer(self) -> HookLayer<Self> {
        HookLayer::new(self)
    }

    /// What controls the stage: the same handle that the stack lists under `fault`.
    pub fn handle(&self) -> Arc<FaultControl> {
        self.control.clone()
    }
}

impl<R: Request> HookStage<R> for Fault<R> {
    type Hook = FaultHook;

    fn name(&self) -> &str {
        "fault"
    }

    fn caps(&self, below: &R::Caps) -> Result<R::Caps, AttachError> {
        Ok(below.clone())
    }

    fn hook(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> FaultHook {
        FaultHook::new(self.control.clone(), cx, depth)
    }

    fn control(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(self.control.clone())
    }
}

impl<R: Request> fmt::Debug for Fault<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault").field("config", &self.control.config()).finish_non_exhaustive()
    }
}
