//! virtio-net: a network card (VIRTIO 1.2, section 5.1).
//!
//! | file | holds |
//! |---|---|
//! | `config.rs` | options, feature bits, the configuration space |
//! | `packet.rs` | the header in front of a frame |
//! | `device.rs` | the device: features and configuration, derived from what the stack below can do |
//! | `rx.rs`, `deliver.rs` | the receive queue: tokens below, and frames into the guest's buffers |
//! | `tx.rs`, `turns.rs` | the transmit queue: chains into requests, and home in order |
//! | `ctrl.rs` | the control queue: receive mode, address, pairs in use, offloads |
//! | `filter.rs` | the receive mode as a filter of frames |
//! | `counters.rs` | what became of frames |
//! | `state.rs` | what is saved |
//!
//! Supported: MAC, STATUS, MTU, MRG_RXBUF, CTRL_VQ, CTRL_RX, CTRL_MAC_ADDR, MQ; CSUM, HOST_TSO4, HOST_TSO6, HOST_ECN,
//! GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN and CTRL_GUEST_OFFLOADS, each where the stack below has the offload. Any other
//! control command is answered with `VIRTIO_NET_ERR`.
//!
//! # How a frame is received
//!
//! The device keeps as many tokens ([`NetOp::Receive`](iovirt_core::request::net::NetOp)) in the stack below as its queue
//! has entries. A frame that comes home in one is judged by the receive mode, and then copied into the guest's buffers,
//! which are taken from the ring at that moment: the guest's memory is touched here and nowhere else. Where the guest has no
//! buffer, frames wait here and their tokens are not renewed, so that the stack below sees the congestion.

mod config;
mod counters;
mod ctrl;
mod deliver;
mod device;
mod filter;
mod packet;
mod rx;
mod state;
mod turns;
mod tx;

pub use config::{ConfigError, MAX_PAIRS, NetConfig};
pub use counters::{NetCounters, NetSnapshot};
pub use device::VirtioNet;
