//! The engine: taking chains, returning them, and notifications both ways.

use std::sync::atomic::{Ordering, fence};

use iovirt_core::dma::{Access, DmaView, MappedArea};

use super::chain::Table;
use super::layout::{self, RING_ELEMENTS, RING_FLAGS, RING_IDX};
use super::{Chain, ConfigError, QueueConfig, QueueState, RingArea, RingError, RingFeatures};

/// A chain that the device took and owes back: the index of its first descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Head(u16);

impl Head {
    /// The head of a chain that was in flight when the device was saved.
    pub const fn from_saved(index: u16) -> Self {
        Self(index)
    }

    /// Index of the chain's first descriptor.
    #[inline]
    pub const fn index(self) -> u16 {
        self.0
    }
}

/// The device side of a split virtqueue (2.7).
#[derive(Debug)]
pub struct SplitQueue {
    config: QueueConfig,
    features: RingFeatures,
    areas: Areas,
    /// Generation of the view that the areas were resolved with.
    generation: (u64, u64),
    /// The next available entry to take, and how far the driver was known to be.
    next_avail: u16,
    avail_idx: u16,
    /// The next used entry to write, how far the driver was told, and at the last interrupt decision.
    next_used: u16,
    published: u16,
    decided: u16,
    /// An interrupt is due whatever the driver asked for: after a restore nobody knows what it saw.
    interrupt_due: bool,
    failed: Option<RingError>,
}

#[derive(Debug)]
struct Areas {
    table: Table,
    avail: MappedArea<{ layout::AVAIL_ALIGN }>,
    used: MappedArea<{ layout::USED_ALIGN }>,
}

impl Areas {
    fn resolve(config: &QueueConfig, features: RingFeatures, view: &DmaView) -> Result<Self, ConfigError> {
        let refused = |area| move |error| ConfigError::Area { area, error };
        let (size, read, write) = (config.size, Access::Read, Access::Write);
        let desc = view.map_area(config.desc, layout::desc_len(size), read);
        let avail = view.map_area(config.avail, layout::avail_len(size), read);
        let used = view.map_area(config.used, layout::used_len(size), write);
        Ok(Self {
            table: Table { area: desc.map_err(refused(RingArea::Descriptors))?, size, features },
            avail: avail.map_err(refused(RingArea::Available))?,
            used: used.map_err(refused(RingArea::Used))?,
        })
    }
}

impl SplitQueue {
    /// A fresh queue: nothing taken, nothing returned.
    ///
    /// # Errors
    ///
    /// [`RingError::Config`] if the driver's set-up is not valid or not in memory that the device can reach.
    pub fn new(config: QueueConfig, features: RingFeatures, view: &DmaView) -> Result<Self, RingError> {
        Self::at(config, features, view, 0, 0)
    }

    /// A queue that goes on where a saved one stood. The chains that were in flight are the device's to return.
    ///
    /// # Errors
    ///
    /// As for [`SplitQueue::new`].
    pub fn restore(state: &QueueState, features: RingFeatures, view: &DmaView) -> Result<Self, RingError> {
        let mut queue = Self::at(state.config, features, view, state.next_avail, state.next_used)?;
        queue.owe_interrupt();
        Ok(queue)
    }

    /// The driver is interrupted at the next decision, whatever it asked for.
    pub fn owe_interrupt(&mut self) {
        self.interrupt_due = true;
    }

    fn at(
        config: QueueConfig,
        features: RingFeatures,
        view: &DmaView,
        next_avail: u16,
        next_used: u16,
    ) -> Result<Self, RingError> {
        config.validate()?;
        Ok(Self {
            config,
            features,
            areas: Areas::resolve(&config, features, view)?,
            generation: view.generation(),
            next_avail,
            avail_idx: next_avail,
            next_used,
            published: next_used,
            decided: next_used,
            interrupt_due: false,
            failed: None,
        })
    }

    /// How the driver set the queue up.
    pub fn config(&self) -> &QueueConfig {
        &self.config
    }

    /// The negotiated features.
    pub fn features(&self) -> RingFeatures {
        self.features
    }

    /// What the driver did wrong, if it did.
    pub fn error(&self) -> Option<RingError> {
        self.failed
    }

    /// What must be saved to go on elsewhere. Publishes what was returned.
    pub fn state(&mut self) -> QueueState {
        self.publish();
        QueueState { config: self.config, next_avail: self.next_avail, next_used: self.next_used }
    }

    /// Resolves the areas again if the view's map or translation changed. Call it after
    /// [`DmaView::refresh`]; it costs a comparison when nothing changed.
    ///
    /// # Errors
    ///
    /// [`RingError::Config`] if an area is no longer there, after which the queue has failed; or why it failed
    /// before.
    #[inline]
    pub fn refresh(&mut self, view: &DmaView) -> Result<(), RingError> {
        if self.generation == view.generation() && self.failed.is_none() {
            return Ok(());
        }
        self.resolve_again(view)
    }

    #[cold]
    fn resolve_again(&mut self, view: &DmaView) -> Result<(), RingError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        match Areas::resolve(&self.config, self.features, view) {
            Ok(areas) => self.areas = areas,
            Err(error) => return Err(self.fail(error.into())),
        }
        self.generation = view.generation();
        Ok(())
    }

    /// Takes the next chain, if there is one, into `chain`. The available index is read when what was known of
    /// it is used up: once per batch.
    ///
    /// # Errors
    ///
    /// [`RingError`] if the driver broke the rules, now or before. The queue has failed then.
    #[inline]
    pub fn pop(&mut self, view: &DmaView, chain: &mut Chain) -> Result<Option<Head>, RingError> {
        if self.next_avail == self.avail_idx && !self.load_avail_idx(view)? {
            return Ok(None);
        }
        let size = self.config.size;
        let slot = usize::from(self.next_avail & (size - 1));
        let head = self.areas.avail.load_u16(RING_ELEMENTS + layout::AVAIL_ELEMENT * slot, Ordering::Relaxed);
        if let Err(error) = chain.fill(&self.areas.table, head, view) {
            return Err(self.fail(error));
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(Head(head)))
    }

    /// Takes a chain once more that was taken and not returned before the queue was saved.
    ///
    /// # Errors
    ///
    /// As for [`SplitQueue::pop`].
    pub fn reread(&mut self, view: &DmaView, head: Head, chain: &mut Chain) -> Result<(), RingError> {
        self.refresh(view)?;
        let filled = chain.fill(&self.areas.table, head.0, view);
        filled.map_err(|error| self.fail(error))
    }

    /// Reads how far the driver is. True if there is something to take.
    #[inline(never)]
    fn load_avail_idx(&mut self, view: &DmaView) -> Result<bool, RingError> {
        self.refresh(view)?;
        // Acquire: the entries and descriptors were written before the index (2.7.13.3.1).
        let index = self.areas.avail.load_u16(RING_IDX, Ordering::Acquire);
        let size = self.config.size;
        if index.wrapping_sub(self.next_avail) > size {
            return Err(self.fail(RingError::AvailIndexJump { index, next: self.next_avail, size }));
        }
        self.avail_idx = index;
        Ok(index != self.next_avail)
    }

    /// Remembers the first error, and that there is nothing more to take.
    #[cold]
    fn fail(&mut self, error: RingError) -> RingError {
        self.avail_idx = self.next_avail;
        *self.failed.get_or_insert(error)
    }

    /// Puts the last `count` chains that were popped back, so that they are popped again. None of them may
    /// have been returned. For a device that finds too few buffers for what it has, such as a network device.
    pub fn undo_pop(&mut self, count: u16) {
        if self.failed.is_none() {
            self.next_avail = self.next_avail.wrapping_sub(count);
        }
    }

    /// Returns a chain, into which the device wrote `len` bytes from its start (2.7.8.2). The driver sees it
    /// after [`publish`](SplitQueue::publish).
    #[inline]
    pub fn push_used(&mut self, head: Head, len: u32) {
        let slot = usize::from(self.next_used & (self.config.size - 1));
        let offset = RING_ELEMENTS + layout::USED_ELEMENT * slot;
        self.areas.used.store_u32_pair(offset, [u32::from(head.0), len]);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Tells the driver of all chains returned since the last call: once per batch.
    #[inline]
    pub fn publish(&mut self) {
        if self.published == self.next_used {
            return;
        }
        // Release: the elements are visible before the index (2.7.8.2).
        self.areas.used.store_u16(RING_IDX, self.next_used, Ordering::Release);
        if self.areas.used.logs_dirty() {
            self.log_published();
        }
        self.published = self.next_used;
    }

    /// Marks what [`publish`](SplitQueue::publish) made visible as dirty.
    #[inline(never)]
    fn log_published(&self) {
        /// Up to this many bytes, marking the whole ring at once costs no more than its parts.
        const WHOLE: usize = 4096;
        let used = &self.areas.used;
        if used.len() <= WHOLE {
            return used.mark_dirty(0, used.len());
        }
        let size = usize::from(self.config.size);
        let start = usize::from(self.published) & (size - 1);
        let count = usize::from(self.next_used.wrapping_sub(self.published)).min(size);
        let first = count.min(size - start);
        used.mark_dirty(RING_ELEMENTS + layout::USED_ELEMENT * start, layout::USED_ELEMENT * first);
        // The rest wraps to the start, where the index is too.
        used.mark_dirty(0, RING_ELEMENTS + layout::USED_ELEMENT * (count - first));
    }

    /// The used index as the driver sees it.
    #[inline]
    pub fn used_idx(&self) -> u16 {
        self.published
    }

    /// Whether the driver wants an interrupt for what was published since this was last asked (2.7.7.2). Ask
    /// after [`publish`](SplitQueue::publish), once per batch.
    #[inline]
    #[must_use]
    pub fn needs_interrupt(&mut self) -> bool {
        let (old, new) = (self.decided, self.published);
        self.decided = new;
        if std::mem::take(&mut self.interrupt_due) {
            return true;
        }
        if old == new {
            return false;
        }
        // The used index must be visible before the driver's wish is read, and the driver does the reverse
        // (2.7.7.2): a store followed by a load takes a full fence.
        fence(Ordering::SeqCst);
        let avail = &self.areas.avail;
        if self.features.event_idx {
            let event = avail.load_u16(layout::used_event(self.config.size), Ordering::Relaxed);
            crosses(event, new, old)
        } else {
            avail.load_u16(RING_FLAGS, Ordering::Relaxed) & layout::AVAIL_NO_INTERRUPT == 0
        }
    }

    /// Tells the driver that it need not notify: the device polls (2.7.10). Only a hint, so notifications may
    /// still come; with `VIRTIO_F_EVENT_IDX` the old event index simply goes stale.
    #[inline]
    pub fn disable_notifications(&mut self) {
        if !self.features.event_idx {
            self.store_used_u16(RING_FLAGS, layout::USED_NO_NOTIFY);
        }
    }

    /// Asks the driver to notify of the next chain (2.7.10). True if chains came in meanwhile, for which no
    /// notification will come: pop again.
    #[must_use]
    pub fn enable_notifications(&mut self) -> bool {
        if self.failed.is_some() {
            return false;
        }
        if self.features.event_idx {
            self.store_used_u16(layout::avail_event(self.config.size), self.next_avail);
        } else {
            self.store_used_u16(RING_FLAGS, 0);
        }
        // The wish must be visible before the index is read: as in `needs_interrupt`, from the other side.
        fence(Ordering::SeqCst);
        self.areas.avail.load_u16(RING_IDX, Ordering::Relaxed) != self.next_avail
    }

    #[inline]
    fn store_used_u16(&self, offset: usize, value: u16) {
        self.areas.used.store_u16(offset, value, Ordering::Relaxed);
        self.areas.used.mark_dirty(offset, 2);
    }
}

/// Whether an index that moved from `old` to `new` went past `event`: the specification's
/// `vring_need_event` (2.7.7.2).
#[inline]
fn crosses(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
