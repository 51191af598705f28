//! The control plane.

use super::{StatsConfig, StatsControl, StatsHook};
use iovirt_core::stage::{HookLayer, HookStage};
use iovirt_core::{AttachError, Depth, Request, WorkerContext};
use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

/// Counts and measures what passes; see the [module](super).
pub struct Stats<R: Request> {
    name: String,
    control: Arc<StatsControl>,
    family: PhantomData<fn() -> R>,
}

impl<R: Request> Stats<R> {
    /// A stage that has counted nothing.
    pub fn new(config: &StatsConfig) -> Self {
        let control = Arc::new(StatsControl::new(R::KINDS));
        Self { name: config.name.clone(), control, family: PhantomData }
    }

    /// The stage as a layer of a pipeline.
    pub fn layer(self) -> HookLayer<Self> {
        HookLayer::new(self)
    }

    /// What reads the counters: the same handle that the stack lists under the stage's name.
    pub fn handle(&self) -> Arc<StatsControl> {
        self.control.clone()
    }
}

impl<R: Request> HookStage<R> for Stats<R> {
    type Hook = StatsHook;

    fn name(&self) -> &str {
        &self.name
    }

    fn caps(&self, below: &R::Caps) -> Result<R::Caps, AttachError> {
        Ok(below.clone())
    }

    fn hook(&self, _: &mut WorkerContext<'_>, depth: Depth) -> StatsHook {
        StatsHook::new(self.control.open_shard(), depth)
    }

    fn control(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(self.control.clone())
    }
}

impl<R: Request> fmt::Debug for Stats<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stats").field("name", &self.name).finish_non_exhaustive()
    }
}
