//! Accesses that were refused.

use iovirt_core::dma::DmaFault;
use iovirt_core::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::collections::VecDeque;
use std::fmt;

/// A device's number, which its faults carry: of a PCI device its requester id, of a virtio-iommu its endpoint id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

/// An access that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRecord {
    /// Who made it.
    pub device: DeviceId,
    /// What was wanted, where, and why it was refused.
    pub fault: DmaFault,
}

/// What has been recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounters {
    /// All faults.
    pub faults: u64,
    /// Those that found the queue full and left no record.
    pub overflowed: u64,
}

/// Called after a record was queued. On the worker whose device made the access; it must not block.
pub type FaultListener = Arc<dyn Fn() + Send + Sync>;

/// A bounded queue of faults, for any number of devices. Where it is full, the records that are there stay, as in VT-d: the
/// first fault tells more than the thousandth.
pub struct FaultQueue {
    capacity: usize,
    inner: Mutex<Inner>,
}

struct Inner {
    records: VecDeque<FaultRecord>,
    counters: FaultCounters,
    listener: Option<FaultListener>,
}

impl FaultQueue {
    /// A queue of at most `capacity` records; none are kept where that is zero.
    pub fn new(capacity: usize) -> Arc<Self> {
        let inner = Inner { records: VecDeque::new(), counters: FaultCounters::default(), listener: None };
        Arc::new(Self { capacity, inner: Mutex::new(inner) })
    }

    /// Takes the oldest record.
    pub fn pop(&self) -> Option<FaultRecord> {
        self.lock().records.pop_front()
    }

    /// How many faults there were.
    pub fn counters(&self) -> FaultCounters {
        self.lock().counters
    }

    /// Sets who is called when there is a record to take.
    pub fn set_listener(&self, listener: Option<FaultListener>) {
        self.lock().listener = listener;
    }

    #[cold]
    pub(crate) fn record(&self, record: FaultRecord) {
        let listener = {
            let mut inner = self.lock();
            inner.counters.faults += 1;
            if inner.records.len() >= self.capacity {
                inner.counters.overflowed += 1;
                return;
            }
            inner.records.push_back(record);
            inner.listener.clone()
        };
        if let Some(tell) = listener {
            tell();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for FaultQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("FaultQueue")
            .field("capacity", &self.capacity)
            .field("queued", &inner.records.len())
            .field("counters", &inner.counters)
            .finish_non_exhaustive()
    }
}
