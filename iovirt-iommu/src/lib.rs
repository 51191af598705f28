//! DMA remapping for iovirt: implementations of the translation contract.
//!
//! [`IntervalTable`] is an address space as an IOMMU gives it to a device: ranges of I/O virtual addresses, each with where
//! it lies in guest physical memory and what the device may do there.
//!
//! ```
//! use iovirt_core::dma::DmaSpace;
//! use iovirt_iommu::{IntervalTable, Permissions};
//! use std::sync::Arc;
//!
//! let table = Arc::new(IntervalTable::new(1024));
//! table.map(0x10_0000, 0x2000, 0x4000, Permissions::ReadWrite)?;
//!
//! let memory = DmaSpace::anonymous(&[(0, 0x1_0000)])?;
//! let mut view = memory.with_translate(table.clone()).view();
//! view.write(0x10_0800, b"hello")?;
//! assert_eq!(&memory.view().read_array::<5>(0x4800)?, b"hello");
//!
//! table.unmap(0x10_0000, 0x2000)?;
//! view.refresh();
//! assert!(view.read_array::<5>(0x10_0800).is_err());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Limits
//! A table waits for nobody: requests that were translated before an unmap go on with what they have. Whoever unmaps for a
//! guest answers it once those have completed. There are no faults but the error of an access, and no nested tables.

#![forbid(unsafe_code)]

mod table;
#[cfg(test)]
mod tests;

pub use table::{IntervalTable, MapRefused, Permissions, UnmapRefused};
