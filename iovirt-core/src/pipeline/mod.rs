//! Putting stages together: [`Pipeline`] in reading order, static or boxed; what a stack says of itself
//! ([`Stages`]), and what happens to it ([`Event`]).
//!
//! ```text
//! Pipeline::top().stage(Stats::new()).stage(Delay::new(ms)).backend(File::open(path)?)?
//!           │                                               │
//!           guest's side                                    hardware's side
//! ```

mod builder;
mod erase;
mod event;
#[cfg(all(test, loom))]
mod model;
mod stages;
mod swap;

pub use builder::{Identity, Pipeline, Stack};
pub use erase::{BoxBackend, BoxInterposer, BoxQueue};
pub use event::{Event, EventListener, Listeners};
pub use stages::{StageInfo, Stages};
pub use swap::{Compatible, SwapControl, SwapError, SwapLayer, Swappable, SwappableQueue};
