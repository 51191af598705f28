//! Ways to write a stage, and the machinery that every stage needs so that none writes its own.
//!
//! | tier | for | write |
//! |---|---|---|
//! | hook | stats, throttle, firewall, capture, fault injection | [`HookStage`] and [`Hook`] |
//! | async | what takes several steps, over a network say | [`AsyncStage`](async_stage::AsyncStage) and [`Handler`](async_stage::Handler) |
//! | fan-out | mirror, stripe, quorum, several ways to one disk | [`FanOutStage`] and [`FanOut`] |
//! | presence | copy-on-write, cache, redo log | [`Presence`] |
//! | full | what no tier fits | [`Backend`](crate::Backend), [`Queue`](crate::Queue), [`Interposer`](crate::Interposer) |
//!
//! Machinery: [`SlotTable`] (what a stage knows of each request in flight, by tag), [`TagPool`] (tags for a client that
//! chooses its own), [`RangeLocks`] (who may change which bytes) and [`Parked`] (the
//! requests that wait for their bytes), [`Client`] (the submitting side of a queue, as every front-end needs it).

pub mod async_stage;
mod client;
pub mod fanout;
mod fua;
mod hook;
#[cfg(all(test, loom))]
mod model;
mod parked;
pub mod presence;
mod ranges;
mod slots;

pub use client::{Client, Finished};
pub use fanout::{Child, Children, FanOut, FanOutStage, FannedOut};
pub use fua::{EmulateFua, open_with_fua};
pub use hook::{Flow, Held, Hook, HookLayer, HookStage, Hooked, HookedQueue, Return};
pub use parked::Parked;
pub use presence::{Layer, Layered, LayeredFan, Presence};
pub use ranges::{Hold, RangeClient, RangeLocks, RangeTable, RangeTicket};
pub use slots::{SlotTable, TagPool};
