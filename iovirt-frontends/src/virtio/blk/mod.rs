//! virtio-blk: a disk (VIRTIO 1.2, section 5.2).
//!
//! | file | holds |
//! |---|---|
//! | `config.rs` | options, feature bits, the configuration space |
//! | `request.rs` | what a chain asks for |
//! | `device.rs` | the device: features and configuration, derived from what the stack below can do |
//! | `queue.rs` | the data path: chains into requests, completions into used buffers |
//! | `state.rs` | what is saved |
//!
//! Supported: IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES (with unmap); SIZE_MAX, SEG_MAX, BLK_SIZE, TOPOLOGY,
//! CONFIG_WCE, MQ, RO; live resize. Any other request type is answered with `VIRTIO_BLK_S_UNSUPP`. Header, data and
//! status may be split over descriptors in any way, as the standard requires.

mod config;
mod device;
mod queue;
mod request;
mod state;
#[cfg(test)]
mod tests;

pub use config::{BlkConfig, ConfigError, MAX_QUEUES, SERIAL_LEN};
pub use device::VirtioBlk;
pub use request::{ParseError, Parsed, parse};
