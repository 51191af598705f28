//! Guest memory: the only way for a device to reach it, and the lists that requests carry.
//!
//! | type | what it is | who holds it |
//! |---|---|---|
//! | [`DmaSpace`] | a cheap handle to a guest's memory as one device sees it | everybody |
//! | [`MemoryMap`] | an immutable table of [`Region`]s; replaced, never changed | whoever may still touch it |
//! | [`DmaView`] | a worker's cached map, refreshed once per turn | one worker |
//! | [`MappedArea`] | a piece resolved once, for rings | one queue |
//! | [`SgList`] | the scatter-gather list of one request; owns what its segments point to | one request |
//! | [`SgPool`] | where lists rest between requests | one queue |
//! | [`Translate`] | an IOMMU as a device sees it | the space it was given to |
//! | [`ShrinkWatch`] | hears that a file behind regions was shortened | whoever took the file from another process |
//! | [`PinTable`], [`InvalidateTicket`] | what requests hold of a translation, and the wait for them | one queue; whoever unmaps |
//!
//! # How memory stays valid
//!
//! A [`Region`] keeps its host mapping alive, a [`MemoryMap`] its regions, and everything that holds a host
//! pointer holds the map it came from. [`DmaSpace::replace`] therefore unmaps nothing: the old map goes when the
//! last list, area and view that used it let go of it.
//!
//! # How memory that changes under us is accessed
//!
//! The guest, other devices and other processes write guest memory at any time. No reference (`&[u8]`,
//! `&mut [u8]`) to it is ever made: ring fields are atomics ([`MappedArea`]), data is copied through raw pointers
//! into or out of private memory, and a compiler fence after each copy keeps the compiler from reading the
//! source a second time. What was copied may be torn; it is never read twice.
//!
//! What Rust calls a data race is nevertheless possible here in safe code: two threads that copy through lists or views of the
//! same memory at the same time, as two devices or two queues of one do when their driver tells them to. The bytes that result
//! are unspecified, as on hardware; nothing but bytes is ever kept in such memory, so no invariant of a program hangs on
//! them.
//!
//! # Addresses
//!
//! A device's address is guest physical, or an I/O virtual address where the space has a [`Translate`]. Lists
//! and dirty logs always hold guest physical addresses. All lengths and offsets are in bytes.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("guest memory is mapped whole, which takes a 64-bit host");

mod area;
mod buffer;
mod dirty;
mod error;
#[cfg(feature = "vm-memory")]
mod guest_memory;
mod lost;
mod map;
#[cfg(all(test, loom))]
mod model;
pub mod pin;
mod pool;
mod raw;
mod region;
mod sglist;
mod shrink;
mod space;
mod store;
mod translate;
mod view;

#[cfg(test)]
mod tests;

pub use area::MappedArea;
pub use buffer::HostBuffer;
pub use dirty::{DirtyLog, PageLog};
pub use error::{DmaError, MapError};
pub use lost::{LostTags, LostWaker};
pub use map::MemoryMap;
pub use pin::{
    InvalidateStatus, InvalidateTicket, IovaRange, IovaSpans, Lease, PinBoard, PinTable, PinWaker,
    StuckListener, StuckPolicy, StuckReport,
};
pub use pool::SgPool;
pub use raw::IoVec;
pub use region::{Protection, Region, shared_memory};
pub use sglist::{Segment, SgLimits, SgList};
pub use shrink::ShrinkWatch;
pub use space::DmaSpace;
pub use translate::{DmaFault, FaultReason, PageTable, Translate, Translation};
pub use view::DmaView;

/// What the **device** does to guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// The device reads what the driver wrote (data of a disk write, a request header).
    Read,
    /// The device writes what the driver will read (data of a disk read, a status byte).
    Write,
}
