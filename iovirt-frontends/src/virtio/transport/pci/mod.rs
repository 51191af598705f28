//! virtio-pci, modern: a device behind a PCI function, with message-signalled interrupts (VIRTIO 1.2, section 4.1).
//!
//! | file | holds |
//! |---|---|
//! | `registers.rs` | structures and offsets |
//! | `config_space.rs` | the function's configuration space and capabilities |
//! | `device.rs` | [`PciDevice`], the [`PciFunction`](crate::pci::PciFunction) |
//! | `common_registers.rs` | the common structure |
//! | `notify.rs` | vectors, interrupt status, the line |
//! | `state.rs` | what is saved |
//!
//! Region 0 (BAR 0) has the registers, a page for each structure: common, interrupt status, device, doorbells. Region 1 (BAR 2)
//! has the MSI-X table. The doorbell of queue n is at offset `0x3000 + 4 n` of region 0, for writes of any value.
//!
//! A device reaches memory and sends messages only while the guest has set bus master enable: without, its queues come to rest,
//! and the access that cleared the bit is [`Deferred`](iovirt_core::Access::Deferred) until they have.

mod common_registers;
mod config_space;
mod device;
mod notify;
mod registers;
mod state;

pub use device::PciDevice;
