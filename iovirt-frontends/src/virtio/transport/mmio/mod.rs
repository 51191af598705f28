//! virtio-mmio, version 2: a device behind one page of memory-mapped registers (VIRTIO 1.2, section 4.2).
//!
//! | file | holds |
//! |---|---|
//! | `registers.rs` | offsets |
//! | `device.rs` | [`MmioDevice`], the [`Frontend`](iovirt_core::Frontend) |
//! | `notify.rs` | interrupt status and configuration generation |
//! | `state.rs` | what is saved |
//!
//! The embedder maps [`REGION_SIZE`] bytes, forwards accesses, registers the doorbells as ioeventfds (32-bit writes of the
//! queue's number to offset 0x50) and supplies an interrupt. A write of zero to the status register, and a queue that is
//! taken back, are [`Deferred`](iovirt_core::Access::Deferred) while requests are in flight.

mod device;
mod notify;
mod registers;
mod state;
#[cfg(test)]
mod tests;

pub use device::MmioDevice;
pub use registers::REGION_SIZE;
