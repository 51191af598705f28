//! DMA remapping for iovirt: address spaces for devices, and the faults of those that leave theirs.
//!
//! | type | what it is |
//! |---|---|
//! | [`Domain`] | an address space: map, unmap |
//! | [`Endpoint`] | a device in front of one: attach, detach; implements [`Translate`](iovirt_core::dma::Translate) |
//! | [`FaultQueue`] | a bounded queue of what was refused |
//! | `EndpointIommu` | an endpoint as `vm_memory::Iommu`, with the feature `vm-memory` |
//!
//! ```
//! use iovirt_core::Time;
//! use iovirt_core::dma::{DmaSpace, InvalidateStatus};
//! use iovirt_iommu::{DeviceId, Domain, Endpoint, FaultQueue, Permissions};
//!
//! let faults = FaultQueue::new(64);
//! let disk = Endpoint::new(DeviceId(8), &faults);
//! let domain = Domain::new(1024);
//! assert_eq!(disk.attach(&domain).poll(Time::ZERO), InvalidateStatus::Done);
//! domain.map(0x10_0000, 0x2000, 0x4000, Permissions::ReadWrite)?;
//!
//! let memory = DmaSpace::anonymous(&[(0, 0x1_0000)])?;
//! let mut view = memory.with_translate(disk.clone()).view();
//! view.write(0x10_0800, b"hello")?;
//! assert_eq!(&memory.view().read_array::<5>(0x4800)?, b"hello");
//!
//! let mut ticket = domain.unmap(0x10_0000, 0x2000)?;
//! assert!(view.read_array::<5>(0x10_0800).is_err());
//! assert_eq!(faults.pop().map(|record| (record.device, record.fault.iova)), Some((DeviceId(8), 0x10_0800)));
//! // The device used none of it: the memory is free at once. Otherwise poll again when the waker says so.
//! assert_eq!(ticket.poll(Time::ZERO), InvalidateStatus::Done);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What an unmap waits for
//! Requests in flight that hold part of what was unmapped, and nothing else; see [`iovirt_core::dma::pin`]. It is strict:
//! there is no cache of translations that could be flushed later.
//!
//! # Limits
//! Mappings are not split: an unmap covers whole ones. No nested tables, no page requests.

#![forbid(unsafe_code)]

mod domain;
mod endpoint;
mod fault;
#[cfg(feature = "vm-memory")]
mod guest_memory;
mod table;
#[cfg(test)]
mod tests;

pub use domain::Domain;
pub use endpoint::Endpoint;
pub use fault::{DeviceId, FaultCounters, FaultListener, FaultQueue, FaultRecord};
#[cfg(feature = "vm-memory")]
pub use guest_memory::{EndpointIommu, HeldMappings};
pub use table::{MapRefused, Permissions, UnmapRefused};
