//! The driver's side of a virtio device in this process: the `virtio-drivers` crate, talking to any
//! [`Frontend`](crate::Frontend) by register accesses and to its rings by shared memory.
//!
//! | type | what it is |
//! |---|---|
//! | [`Arena`] | the guest's memory: one for the process, as `virtio-drivers` has one HAL for the process |
//! | [`RegisterTransport`] | `virtio_drivers::Transport` over the registers of a virtio-mmio device |
//! | [`BlkDriver`] | a disk driver with many requests in flight, on `virtio_drivers::queue::VirtQueue` |
//!
//! `virtio_drivers::device::blk::VirtIOBlk<ArenaHal, RegisterTransport>` works as well; it does one request at a time.

mod arena;
mod blk;
mod transport;
mod unplugged;

pub use arena::{Arena, ArenaHal};
pub use blk::{BlkDriver, BlkOp, BlkStatus, DriverError};
pub use transport::{Pump, RegisterTransport};
pub use unplugged::Unplugged;

pub use virtio_drivers;
