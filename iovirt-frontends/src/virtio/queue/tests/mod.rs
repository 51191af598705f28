//! Tests of the split virtqueue.

mod good;
mod hostile;
mod oracle;

use iovirt_core::dma::{DmaSpace, DmaView, SgList};

use super::{Chain, Head, QueueConfig, RingError, RingFeatures, SplitQueue};

pub(super) const DESC: u64 = 0x1000;
pub(super) const AVAIL: u64 = 0x2000;
pub(super) const USED: u64 = 0x3000;
/// Indirect tables.
pub(super) const TABLES: u64 = 0x4000;
/// Buffers, to the end of the first region; the second region has more.
pub(super) const BUFFERS: u64 = 0x8000;
pub(super) const END: u64 = 0x1_0000;
pub(super) const FAR: u64 = 0x2_0000;

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

pub(super) const ALL: RingFeatures = RingFeatures { event_idx: true, indirect: true };
pub(super) const PLAIN: RingFeatures = RingFeatures { event_idx: false, indirect: false };

pub(super) fn space() -> DmaSpace {
    DmaSpace::anonymous(&[(0, END), (FAR, 0x4000)]).unwrap()
}

pub(super) fn config(size: u16) -> QueueConfig {
    QueueConfig { size, max_size: size.max(256), desc: DESC, avail: AVAIL, used: USED, ready: true }
}

/// A descriptor as the driver writes it.
pub(super) fn desc(addr: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
    (u128::from(addr) | u128::from(rest) << 64).to_le_bytes()
}

/// A device and the driver's side of its queue.
pub(super) struct Rig {
    pub(super) space: DmaSpace,
    pub(super) view: DmaView,
    pub(super) queue: SplitQueue,
    pub(super) chain: Chain,
    size: u16,
    offered: u16,
}

impl Rig {
    pub(super) fn new(size: u16, features: RingFeatures) -> Self {
        Self::over(space(), size, features)
    }

    pub(super) fn over(space: DmaSpace, size: u16, features: RingFeatures) -> Self {
        let view = space.view();
        let queue = SplitQueue::new(config(size), features, &view).unwrap();
        Self { space, view, queue, chain: Chain::new(), size, offered: 0 }
    }

    pub(super) fn desc(&self, index: u16, bytes: [u8; 16]) {
        self.view.write(DESC + 16 * u64::from(index), &bytes).unwrap();
    }

    pub(super) fn store(&self, addr: u64, value: u16) {
        self.view.write(addr, &value.to_le_bytes()).unwrap();
    }

    pub(super) fn load(&self, addr: u64) -> u16 {
        u16::from_le_bytes(self.view.read_array(addr).unwrap())
    }

    /// Makes a chain available.
    pub(super) fn offer(&mut self, head: u16) {
        self.store(AVAIL + 4 + 2 * u64::from(self.offered % self.size), head);
        self.offered = self.offered.wrapping_add(1);
        self.store(AVAIL + 2, self.offered);
    }

    pub(super) fn pop(&mut self) -> Result<Option<Head>, RingError> {
        self.queue.pop(&self.view, &mut self.chain)
    }

    /// The error that popping ends in, which must stay.
    pub(super) fn error(&mut self) -> RingError {
        let error = self.pop().unwrap_err();
        assert_eq!(self.queue.error(), Some(error));
        assert_eq!(self.pop(), Err(error), "a failed queue stays failed");
        assert_eq!(self.queue.refresh(&self.view), Err(error));
        assert!(!self.queue.enable_notifications());
        error
    }

    pub(super) fn used_idx(&self) -> u16 {
        self.load(USED + 2)
    }

    pub(super) fn used(&self, slot: u16) -> (u32, u32) {
        let element = u64::from_le_bytes(self.view.read_array(USED + 4 + 8 * u64::from(slot)).unwrap());
        (element as u32, (element >> 32) as u32)
    }
}

/// (guest address, length) of every segment.
pub(super) fn segments(list: &SgList) -> Vec<(u64, u64)> {
    list.segments().map(|segment| (segment.guest_addr().unwrap(), segment.len())).collect()
}
