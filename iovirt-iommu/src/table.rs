//! A table of disjoint ranges.

use arc_swap::ArcSwap;
use iovirt_core::dma::{Access, DmaFault, FaultReason, IovaRange, Translation};
use std::sync::Arc;
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

/// Disjoint ranges, each with where it lies and what is allowed.
///
/// Translation takes no lock: it searches an immutable table, in time logarithmic in the number of mappings. A change copies
/// the table (32 bytes a mapping); the owner sees to it that one thread at a time makes one.
#[derive(Debug)]
pub(crate) struct IntervalTable {
    current: ArcSwap<Vec<Mapping>>,
    limit: usize,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapping {
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
    pub(crate) fn new(limit: usize) -> Self {
        Self { current: ArcSwap::default(), limit }
    }

    pub(crate) fn map(
        &self,
        iova: u64,
        len: u64,
        addr: u64,
        permissions: Permissions,
    ) -> Result<(), MapRefused> {
        let end = iova.checked_add(len).filter(|_| len > 0 && addr.checked_add(len).is_some());
        let end = end.ok_or(MapRefused::Range { iova, len })?;
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
        self.current.store(Arc::new(changed));
        Ok(())
    }

    /// Removes all mappings within a range and says from where to where they reached; `None` where there were none.
    pub(crate) fn unmap(&self, iova: u64, len: u64) -> Result<Option<IovaRange>, UnmapRefused> {
        let end = iova.checked_add(len).filter(|_| len > 0);
        let end = end.ok_or(UnmapRefused::Range { iova, len })?;
        let table = self.current.load();
        let first = table.partition_point(|mapping| mapping.end() <= iova);
        let last = table.partition_point(|mapping| mapping.iova < end);
        let removed = &table[first..last];
        if removed.iter().any(|mapping| mapping.iova < iova || mapping.end() > end) {
            return Err(UnmapRefused::Split { iova, len });
        }
        let reach = removed.first().zip(removed.last());
        let reach = reach.and_then(|(first, last)| IovaRange::new(first.iova, last.end() - first.iova));
        if reach.is_some() {
            self.current.store(Arc::new([&table[..first], &table[last..]].concat()));
        }
        Ok(reach)
    }

    /// Removes all mappings.
    pub(crate) fn clear(&self) {
        self.current.store(Arc::default());
    }

    pub(crate) fn len(&self) -> usize {
        self.current.load().len()
    }

    pub(crate) fn translate(&self, iova: u64, access: Access) -> Result<Translation, DmaFault> {
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
