//! Port and memory-mapped I/O: which device answers at which address.
//!
//! A bus is filled while the machine is built and never changes afterwards, so that vCPU threads look addresses up
//! without a lock.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::MachineError;

/// What answers accesses to a range of addresses. Offsets count from the start of the range.
pub(crate) trait BusDevice: Send + Sync {
    /// Fills `data`, which holds all ones when the call is made.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest wrote.
    fn write(&self, offset: u64, data: &[u8]);
}

/// How often a guest left for one range of a bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RangeExits {
    pub(crate) name: String,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
}

struct Range {
    base: u64,
    last: u64,
    name: String,
    device: Arc<dyn BusDevice>,
    reads: AtomicU64,
    writes: AtomicU64,
}

/// One address space.
#[derive(Default)]
pub(crate) struct Bus {
    /// Sorted by address, without overlaps.
    ranges: Vec<Range>,
    unclaimed_reads: AtomicU64,
    unclaimed_writes: AtomicU64,
}

impl Bus {
    /// Gives the addresses `base..base + len` to `device`.
    pub(crate) fn insert(
        &mut self,
        base: u64,
        len: u64,
        name: &str,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), MachineError> {
        let overlap =
            |with: &str| MachineError::Overlap { what: name.to_owned(), base, len, with: with.to_owned() };
        let last = len
            .checked_sub(1)
            .and_then(|rest| base.checked_add(rest))
            .ok_or_else(|| overlap("the end of the address space"))?;
        let at = self.ranges.partition_point(|range| range.last < base);
        if let Some(next) = self.ranges.get(at)
            && next.base <= last
        {
            return Err(overlap(&next.name));
        }
        let (reads, writes) = (AtomicU64::new(0), AtomicU64::new(0));
        self.ranges.insert(at, Range { base, last, name: name.to_owned(), device, reads, writes });
        Ok(())
    }

    /// Reads; what nobody claims reads as all ones, as on a bus without a device.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(range) = self.find(address, data.len()) {
            range.reads.fetch_add(1, Relaxed);
            range.device.read(address - range.base, data);
        } else {
            self.unclaimed_reads.fetch_add(1, Relaxed);
        }
    }

    /// Writes; what nobody claims is lost.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some(range) = self.find(address, data.len()) {
            range.writes.fetch_add(1, Relaxed);
            range.device.write(address - range.base, data);
        } else {
            self.unclaimed_writes.fetch_add(1, Relaxed);
        }
    }

    /// Accesses by range; unclaimed ones come last.
    pub(crate) fn exits(&self) -> Vec<RangeExits> {
        let named = |name: &str, reads: &AtomicU64, writes: &AtomicU64| RangeExits {
            name: name.to_owned(),
            reads: reads.load(Relaxed),
            writes: writes.load(Relaxed),
        };
        let mut exits: Vec<_> =
            self.ranges.iter().map(|range| named(&range.name, &range.reads, &range.writes)).collect();
        exits.push(named("unclaimed", &self.unclaimed_reads, &self.unclaimed_writes));
        exits
    }

    /// The range that holds the whole access. One that only begins in a range reaches no device.
    fn find(&self, address: u64, len: usize) -> Option<&Range> {
        let at = self.ranges.partition_point(|range| range.last < address);
        let range = self.ranges.get(at)?;
        let last = address.checked_add((len as u64).saturating_sub(1))?;
        (range.base <= address && last <= range.last).then_some(range)
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.ranges.iter().map(|range| (&range.name, range.base..=range.last));
        f.debug_map().entries(ranges).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with its own number plus the offset.
    struct Numbered(u8);

    impl BusDevice for Numbered {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    fn bus() -> Bus {
        let mut bus = Bus::default();
        bus.insert(0x2000, 0x1000, "second", Arc::new(Numbered(100))).unwrap();
        bus.insert(0x1000, 0x100, "first", Arc::new(Numbered(1))).unwrap();
        bus
    }

    fn read(bus: &Bus, address: u64) -> u8 {
        let mut data = [0];
        bus.read(address, &mut data);
        data[0]
    }

    #[test]
    fn finds_by_address() {
        let bus = bus();
        let values: Vec<u8> =
            [0xfff, 0x1000, 0x100f, 0x1100, 0x2003, 0x3000].iter().map(|at| read(&bus, *at)).collect();
        assert_eq!(values, [0xff, 1, 0x10, 0xff, 103, 0xff]);
    }

    #[test]
    fn an_access_across_the_end_reaches_nobody() {
        let bus = bus();
        let mut data = [0; 4];
        bus.read(0x10fe, &mut data);
        assert_eq!(data, [0xff; 4]);
        assert_eq!(bus.exits().last().unwrap().reads, 1);
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = bus();
        for (base, len) in
            [(0x10ff, 1), (0xfff, 2), (0x0, 0x10000), (0x2fff, 0x10), (u64::MAX, 2), (0x5000, 0)]
        {
            assert!(bus.insert(base, len, "third", Arc::new(Numbered(0))).is_err(), "{base:#x}");
        }
        bus.insert(0x1100, 0xf00, "third", Arc::new(Numbered(0))).unwrap();
    }
}
