//! The split virtqueue, device side (VIRTIO 1.2, section 2.7).
//!
//! A [`SplitQueue`] resolves its three areas to host memory once, takes chains from the available ring into a
//! reusable [`Chain`] whose buffers are resolved and checked, and returns them through the used ring:
//!
//! ```
//! # use iovirt_core::dma::DmaView;
//! # use iovirt_frontends::virtio::queue::{Chain, RingError, SplitQueue};
//! # fn turn(queue: &mut SplitQueue, view: &DmaView, chain: &mut Chain) -> Result<bool, RingError> {
//! queue.refresh(view)?;
//! loop {
//!     queue.disable_notifications();
//!     while let Some(head) = queue.pop(view, chain)? {
//!         // Read the request from `chain.readable()`, write the answer to `chain.writable()`.
//!         chain.writable().mark_dirty(view, 1);
//!         queue.push_used(head, 1);
//!     }
//!     if !queue.enable_notifications() {
//!         break;
//!     }
//! }
//! queue.publish();
//! Ok(queue.needs_interrupt())
//! # }
//! ```
//!
//! # When the driver breaks the rules
//!
//! Any [`RingError`] is final: the queue stays failed, every later [`SplitQueue::pop`] returns the same error, and
//! the device raises `DEVICE_NEEDS_RESET` (2.1.2). Nothing that a driver writes panics, loops or allocates
//! without bound. What is refused, and what is let pass, is listed at [`RingError`] and [`Chain`].
//!
//! # Who owns what
//!
//! The queue forgets a chain once it is popped. The device keeps the [`Head`]s of what is in flight, and
//! returns each exactly once.

mod chain;
mod config;
mod error;
mod layout;
mod split;
mod state;

#[cfg(test)]
mod tests;

pub use chain::Chain;
pub use config::{QueueConfig, RingFeatures};
pub use error::{ConfigError, RingArea, RingError};
pub use split::{Head, SplitQueue};
pub use state::QueueState;
