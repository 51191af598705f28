//! vhost-user: the device in one process, its guest's monitor in another ("Vhost-user Protocol", QEMU's `docs/interop/vhost-user.rst`).
//!
//! ```text
//!  QEMU, Cloud Hypervisor, crosvm, Firecracker …      front-end: registers, guest memory, vCPUs
//!      │ Unix socket: memory, rings, eventfds            │ doorbells       ▲ interrupts
//!  ┌───▼──────────────┐                                  │ (kick)          │ (call)
//!  │ VhostUserServer  │  one front-end after the other   │                 │
//!  │ session          │  messages, in a thread           │                 │
//!  └───┬──────────────┘                                  │                 │
//!  ┌───▼──────────────┐                                  │                 │
//!  │ VhostUserDevice  │  lanes on workers ◄──────────────┘─────────────────┘
//!  └───┬──────────────┘
//!      ▼ the same devices and stacks as behind every transport
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `server.rs` | [`VhostUserServer`]: the socket, and who is next |
//! | `device.rs` | [`VhostUserDevice`]: the device's lanes |
//! | `session.rs` | one connection: messages and what they do |
//! | `vring.rs` | what the front-end said of a ring |
//! | `memory.rs`, `log.rs`, `inflight.rs` | the front-end's memory, its dirty log, and the record of chains in flight |
//! | `connection.rs`, `message.rs` | messages as bytes and descriptors |
//! | `notify.rs` | the way to the driver |
//!
//! # What is supported
//!
//! Split rings with `VIRTIO_F_VERSION_1`, several queues, and the protocol features MQ, REPLY_ACK, CONFIG, CONFIGURE_MEM_SLOTS,
//! INFLIGHT_SHMFD (disks), STATUS, RESET_DEVICE, LOG_SHMFD and BACKEND_REQ. Not: legacy drivers, an IOMMU of the front-end's (IOTLB),
//! in-band notifications, postcopy migration, rings without a doorbell, and pipes in the place of the eventfds that are signalled for
//! used buffers and errors.
//!
//! A network card's control queue is usually served by the front-end itself. The device then takes all frames and uses the pairs of queues
//! that the front-end enables.
//!
//! # Trust
//!
//! Every byte that comes over the socket or lies in the front-end's memory is checked. A front-end that shortens a file behind its
//! memory is disconnected as soon as somebody touches what is gone; the first session installs a handler for bus errors for that
//! (see [`ShrinkWatch`](iovirt_core::dma::ShrinkWatch)). Two things are trusted. A bus error for another reason ends this process: memory on
//! a file system that is full or fails, and such a one a front-end can bring. And a front-end that makes its eventfds blocking after it
//! gave them away, and fills them, holds the worker up that writes them, for the mode is common to all who have the descriptor. Give
//! each front-end that you do not trust a process of its own.

mod connection;
mod device;
mod inflight;
mod log;
mod memory;
mod message;
mod notify;
mod server;
mod session;
mod vring;

#[cfg(test)]
mod tests;

pub use connection::ConnectionError;
pub use device::VhostUserDevice;
pub use server::{Stopper, VhostUserServer};
pub use session::{SessionEnd, SessionError};
