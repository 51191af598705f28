//! Stages of the embedder's own, and the table of stages that knows them by name.

pub mod flip;
pub mod valve;

use crate::Error;
use iovirt::registry::Registry;

/// The stages of iovirt and those of this embedder.
pub fn registry() -> Result<Registry, Error> {
    let mut registry = Registry::standard();
    registry.add(flip::row())?;
    registry.add(valve::row())?;
    Ok(registry)
}
