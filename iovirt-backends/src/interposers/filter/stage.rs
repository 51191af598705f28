//! The control plane.

use super::{FilterConfig, FilterControl, FilterHook};
use iovirt_core::request::net::{NetCaps, NetRequest};
use iovirt_core::stage::{HookLayer, HookStage};
use iovirt_core::{AttachError, Depth, WorkerContext};
use std::any::Any;
use std::sync::Arc;

/// Lets frames pass or drops them; see the [module](super).
#[derive(Debug)]
pub struct Filter {
    name: String,
    control: Arc<FilterControl>,
}

impl Filter {
    /// A filter that has seen nothing.
    pub fn new(config: &FilterConfig) -> Self {
        Self { name: config.name.clone(), control: Arc::new(FilterControl::new(config.drops)) }
    }

    /// The stage as a layer of a pipeline.
    pub fn layer(self) -> HookLayer<Self> {
        HookLayer::new(self)
    }

    /// What controls it: the same handle that the stack lists under the stage's name.
    pub fn handle(&self) -> Arc<FilterControl> {
        self.control.clone()
    }
}

impl HookStage<NetRequest> for Filter {
    type Hook = FilterHook;

    fn name(&self) -> &str {
        &self.name
    }

    fn caps(&self, below: &NetCaps) -> Result<NetCaps, AttachError> {
        Ok(below.clone())
    }

    fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> FilterHook {
        FilterHook::new(self.control.clone())
    }

    fn control(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(self.control.clone())
    }
}
