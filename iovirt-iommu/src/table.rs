//! A table of disjoint ranges.

use arc_swap::ArcSwap;
use iovirt_core::dma::{Access, DmaFault, FaultReason, Translate, Translation};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// What a device may do to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permissions {
    /// Read it.
    ReadOnly,
    /// Write it.
    WriteOnly,
    /// Both.
    ReadWrite,
}

impl Permissions {
    fn allows(self, access: Access) -> bool {
        match self {
            Self::ReadWrite => true,
            Self::ReadOnly => access == Access::Read,
            Self::WriteOnly => access == Access::Write,
        }
    }
}

/// Why a range was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MapRefused {
    /// It is empty, or it or where it lies ends beyond 64 bits.
    #[error("the range of {len:#x} bytes at {iova:#x} is empty or overflows")]
    Range {
        /// First I/O virtual address.
        iova: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Part of it is mapped already.
    #[error("the range of {len:#x} bytes at {iova:#x} overlaps one that is mapped")]
    Overlap {
        /// First I/O virtual address.
        iova: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The table is full.
    #[error("more than {limit} mappings")]
    Full {
        /// How many it takes.
        limit: usize,
    },
}

/// Why nothing was unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnmapRefused {
    /// The range is empty or ends beyond 64 bits.
    #[error("the range of {len:#x} bytes at {iova:#x} is empty or overflows")]
    Range {
        /// First I/O virtual address.
        iova: u64,
        /// Length in bytes.
        len: u64,
    },
    /// It would cut a mapping in two.
    #[error("the range of {len:#x} bytes at {iova:#x} covers a mapping in part")]
    Split {
        /// First I/O virtual address.
        iova: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// An I/O address space: disjoint ranges, each with where it lies and what is allowed.
///
/// Translation takes no lock: it searches an immutable table, in time logarithmic in the number of mappings. A change copies
/// the table (32 bytes a mapping) and is made by one thread at a time.
#[derive(Debug)]
pub struct IntervalTable {
    current: ArcSwap<Vec<Mapping>>,
    changing: Mutex<()>,
    generation: AtomicU64,
    limit: usize,
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    iova: u64,
    /// Not zero; `iova + len` and `addr + len` fit 64 bits.
    len: u64,
    addr: u64,
    permissions: Permissions,
}

impl Mapping {
    fn end(&self) -> u64 {
        self.iova + self.len
    }
}

impl IntervalTable {
    /// A table that maps nothing, and takes at most `limit` mappings.
    pub fn new(limit: usize) -> Self {
        Self { current: ArcSwap::default(), changing: Mutex::default(), generation: AtomicU64::new(0), limit }
    }

    /// Maps `len` bytes from the I/O virtual address `iova` to guest physical `addr`. In any unit: whatever granule the
    /// guest is told to keep to is for the front-end to check.
    ///
    /// # Errors
    /// Where the range cannot be, overlaps a mapping, or is one too many; nothing has changed then.
    pub fn map(&self, iova: u64, len: u64, addr: u64, permissions: Permissions) -> Result<(), MapRefused> {
        let end = iova.checked_add(len).filter(|_| len > 0 && addr.checked_add(len).is_some());
        let end = end.ok_or(MapRefused::Range { iova, len })?;
        let _changing = self.lock();
        let table = self.current.load();
        // Ranges are disjoint, so their ends are in the order of their beginnings.
        let at = table.partition_point(|mapping| mapping.end() <= iova);
        if table.get(at).is_some_and(|next| next.iova < end) {
            return Err(MapRefused::Overlap { iova, len });
        }
        if table.len() >= self.limit {
            return Err(MapRefused::Full { limit: self.limit });
        }
        let mut changed = Vec::with_capacity(table.len() + 1);
        changed.extend_from_slice(&table[..at]);
        changed.push(Mapping { iova, len, addr, permissions });
        changed.extend_from_slice(&table[at..]);
        // What did not translate before does now: nobody holds anything that is out of date.
        self.current.store(Arc::new(changed));
        Ok(())
    }

    /// Removes all mappings within a range and says how many there were.
    ///
    /// # Errors
    /// Where the range cannot be, or covers a mapping in part; nothing has changed then.
    pub fn unmap(&self, iova: u64, len: u64) -> Result<usize, UnmapRefused> {
        let end = iova.checked_add(len).filter(|_| len > 0);
        let end = end.ok_or(UnmapRefused::Range { iova, len })?;
        let _changing = self.lock();
        let table = self.current.load();
        let first = table.partition_point(|mapping| mapping.end() <= iova);
        let last = table.partition_point(|mapping| mapping.iova < end);
        let removed = &table[first..last];
        if removed.iter().any(|mapping| mapping.iova < iova || mapping.end() > end) {
            return Err(UnmapRefused::Split { iova, len });
        }
        if !removed.is_empty() {
            self.replace([&table[..first], &table[last..]].concat());
        }
        Ok(last - first)
    }

    /// Removes all mappings.
    pub fn clear(&self) {
        let _changing = self.lock();
        self.replace(Vec::new());
    }

    /// How many mappings there are.
    pub fn len(&self) -> usize {
        self.current.load().len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes up a table that lacks mappings, under the lock. Whoever sees the new generation sees the new table.
    fn replace(&self, table: Vec<Mapping>) {
        self.current.store(Arc::new(table));
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Translate for IntervalTable {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn translate(&self, iova: u64, _: u64, access: Access) -> Result<Translation, DmaFault> {
        let table = self.current.load();
        let at = table.partition_point(|mapping| mapping.end() <= iova);
        let fault = |reason| DmaFault { iova, access, reason };
        let mapping =
            table.get(at).filter(|mapping| mapping.iova <= iova).ok_or(fault(FaultReason::NotMapped))?;
        if !mapping.permissions.allows(access) {
            return Err(fault(FaultReason::Denied));
        }
        let offset = iova - mapping.iova;
        Ok(Translation { addr: mapping.addr + offset, len: mapping.len - offset })
    }
}
