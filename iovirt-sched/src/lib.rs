//! I/O schedulers for iovirt as pure algorithms over an injected clock, and the stage that runs them.
//!
//! | scheduler | who goes next |
//! |---|---|
//! | [`Fifo`] | whoever asked first, with a limit on how many are under way |
//! | [`Sfq`] | whoever got least for its weight, with a limit on how many are under way |
//!
//! A scheduler [grants](iovirt_core::scheduler): a flow asks for leave to submit a request, is granted it, and tells when the
//! request completed. The request itself never passes through here, so a scheduler is generic over nothing and is tested
//! without a device.
//!
//! ```
//! use iovirt_core::scheduler::{FlowId, Grant, IoScheduler};
//! use iovirt_core::{Cost, Time};
//! use iovirt_sched::Fifo;
//! use std::num::NonZeroUsize;
//!
//! let mut fifo = Fifo::new(NonZeroUsize::new(1).unwrap());
//! let (flow, cost, now) = (FlowId(0), Cost { ops: 1, bytes: 4096 }, Time::ZERO);
//! fifo.ask(flow, cost, 10, now);
//! fifo.ask(flow, cost, 11, now);
//!
//! let mut granted = Vec::new();
//! fifo.dispatch(now, 8, &mut granted);
//! assert_eq!(granted, [Grant { flow, token: 10 }]);
//! fifo.complete(flow, cost, now);
//! fifo.dispatch(now, 8, &mut granted);
//! assert_eq!(granted[1].token, 11);
//! ```
//!
//! [`scheduled`] is the stage: pipelines that share something join a [group](scheduled::Group) with one scheduler.

#![forbid(unsafe_code)]

mod cost;
mod fifo;
pub mod scheduled;
mod sfq;
#[cfg(test)]
mod tests;

pub use cost::CostModel;
pub use fifo::Fifo;
pub use sfq::{Sfq, SfqConfig};
