//! A ring as a device's queue works with it: the engine, the view of guest memory, and the way to the driver.
//!
//! Behind an IOMMU, the queue's lane puts each turn between `enter` and `leave`, and every chain is pinned from `pop` to
//! `push_used`: devices need not know. The slot of a chain is its head, which is below the queue's size and names one chain
//! at a time; where a driver offers a head twice, the slot holds both until both were returned.

use super::device::DeviceShared;
use super::inflight::InflightQueue;
use super::lane::{QueueLink, Start};
use super::queue::{Chain, Head, QueueState, RingError, RingFeatures, SplitQueue};
use iovirt_core::dma::{DmaSpace, DmaView, PinTable};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A ring as a device's queue works with it.
pub struct Ring {
    pub(super) queue: SplitQueue,
    view: DmaView,
    /// Where addresses are translated.
    pins: Option<PinTable>,
    /// Where another process reads which chains are held.
    inflight: Option<InflightQueue>,
    shared: Arc<DeviceShared>,
    link: Arc<QueueLink>,
    index: u16,
    order: ReturnOrder,
}

/// When a chain whose request is done is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReturnOrder {
    /// At once.
    AsDone,
    /// Behind those that were taken before it, where the device has no record of its chains: a process that takes the ring over from one that
    /// was killed goes on at the used index, and takes all before it for returned.
    AsTaken,
}

impl Ring {
    pub(super) fn open(
        index: u16,
        (state, start): (&QueueState, Start),
        features: RingFeatures,
        space: &DmaSpace,
        shared: Arc<DeviceShared>,
        link: Arc<QueueLink>,
    ) -> Result<Self, RingError> {
        let slots = state.config.size.into();
        let mut pins = space.translate().map(|translate| PinTable::new(translate.pins(), slots));
        if let Some(pins) = &mut pins {
            // The turn that opens the ring ends with `leave`. Nothing may be resolved before.
            pins.enter();
        }
        let view = space.view();
        // One that begins owes its driver nothing; one that goes on, at rest or not, may owe it an interrupt.
        let begins = start == Start::Running && (state.next_avail, state.next_used) == (0, 0);
        let queue = if begins {
            SplitQueue::new(state.config, features, &view)?
        } else {
            SplitQueue::restore(state, features, &view)?
        };
        let order = ReturnOrder::AsDone;
        Ok(Self { queue, view, pins, inflight: None, shared, link, index, order })
    }

    /// Has it written down from now on which chains are held. Those that are held already are written there.
    pub(super) fn track(&mut self, inflight: InflightQueue) {
        self.inflight = Some(inflight);
    }

    /// It may be one that a process which is gone has served, and may be taken over from this one. So its driver is interrupted once, whatever
    /// it asked for: at index zero too, for the index wraps.
    pub(super) fn take_over(&mut self) {
        self.queue.owe_interrupt();
        self.order = ReturnOrder::AsTaken;
    }

    /// When chains are to be returned.
    #[inline]
    pub(super) fn return_order(&self) -> ReturnOrder {
        self.order
    }

    /// Begins a turn: what was translated is not taken away before its end, or before chains were returned.
    #[inline]
    pub(super) fn enter(&mut self) {
        if let Some(pins) = &mut self.pins {
            pins.enter();
        }
    }

    /// Ends a turn.
    #[inline]
    pub(super) fn leave(&mut self) {
        if let Some(pins) = &mut self.pins {
            pins.leave();
        }
    }

    /// Lets go of all chains but these, whose requests are in flight: for a ring that will not return any more.
    pub(super) fn keep_pins_of(&mut self, in_flight: &[u16]) {
        if let Some(pins) = &mut self.pins {
            pins.retain(|head| in_flight.iter().any(|held| usize::from(*held) == head));
        }
    }

    /// Follows a new map of guest memory and new translations; whether there were any.
    pub(super) fn refresh(&mut self) -> Result<bool, RingError> {
        let changed = self.view.refresh();
        if changed {
            self.queue.refresh(&self.view)?;
        }
        Ok(changed)
    }

    /// Guest memory as this queue sees it.
    #[inline]
    pub fn view(&self) -> &DmaView {
        &self.view
    }

    /// Takes the next chain; `None` where there is none.
    ///
    /// # Errors
    /// Where the ring or the chain is broken.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Option<Head>, RingError> {
        let head = self.queue.pop(&self.view, chain)?;
        if let (Some(pins), Some(head)) = (&mut self.pins, head) {
            pins.pin(head.index().into(), chain.spans());
        }
        if let (Some(inflight), Some(head)) = (&mut self.inflight, head) {
            inflight.taken(head);
        }
        Ok(head)
    }

    /// Takes the chain with that head once more, which was taken before and not returned.
    ///
    /// # Errors
    /// Where the chain is broken.
    pub fn reread(&mut self, head: Head, chain: &mut Chain) -> Result<(), RingError> {
        self.queue.reread(&self.view, head, chain)?;
        if let Some(pins) = &mut self.pins {
            pins.pin(head.index().into(), chain.spans());
        }
        Ok(())
    }

    /// Puts back the chains that were taken last, so that they are taken again: all of `heads`, none of which may have been
    /// returned.
    pub fn undo_pop(&mut self, heads: &[Head]) {
        if let Some(pins) = &mut self.pins {
            for head in heads {
                pins.unpin(head.index().into());
            }
        }
        if let Some(inflight) = &mut self.inflight {
            for head in heads {
                inflight.put_back(*head);
            }
        }
        self.queue.undo_pop(heads.len() as u16);
    }

    /// Returns a chain with `written` bytes written into it; the driver sees it after [`Ring::publish`]. Its memory is not
    /// touched any more after this.
    #[inline]
    pub fn push_used(&mut self, head: Head, written: u32) {
        if let Some(pins) = &mut self.pins {
            pins.unpin(head.index().into());
        }
        self.queue.push_used(head, written);
        if let Some(inflight) = &mut self.inflight {
            inflight.returned(head);
        }
    }

    /// Shows the driver what was returned. One that does not look is told by the [`publish`](Ring::publish) that must follow.
    #[inline]
    pub fn show(&mut self) {
        self.queue.publish();
        if let Some(inflight) = &mut self.inflight {
            inflight.published(self.queue.used_idx());
        }
    }

    /// Shows the driver what was returned, and interrupts it where it wants that.
    #[inline]
    pub fn publish(&mut self) {
        self.show();
        if self.queue.needs_interrupt() {
            self.link.interrupts.fetch_add(1, Ordering::Relaxed);
            self.shared.notify.used(self.index);
        }
    }

    /// The driver need not ring the doorbell while the device looks at the ring anyway.
    #[inline]
    pub fn disable_notifications(&mut self) {
        self.queue.disable_notifications();
    }

    /// The driver is to ring the doorbell from now on. True where chains arrived meanwhile, for which it will not.
    #[inline]
    pub fn enable_notifications(&mut self) -> bool {
        self.queue.enable_notifications()
    }

    /// Counts chains taken.
    #[inline]
    pub fn count_chains(&self, chains: u64) {
        self.link.chains.fetch_add(chains, Ordering::Relaxed);
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("index", &self.index).field("queue", &self.queue).finish_non_exhaustive()
    }
}
