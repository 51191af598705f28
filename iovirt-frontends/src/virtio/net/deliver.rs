//! Frames into the guest's buffers: the only place where the guest's memory is written.

use super::counters::{NetCounters, Tally};
use super::filter::{CachedMode, SharedMode};
use super::packet::{HEADER_LEN, receive_header};
use crate::virtio::QueueError;
use crate::virtio::queue::{Chain, Head};
use crate::virtio::ring::Ring;
use iovirt_core::dma::{DmaView, SgList};
use iovirt_core::request::net::{ETHERNET_HEADER, MacAddr, Offload, Offloads};

/// Most buffers that one frame is spread over. The longest frame fits into them if each has 1 KiB.
const MAX_BUFFERS: usize = 64;

const IMPOSSIBLE: QueueError = QueueError::Request("a receive buffer cannot be written");

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    /// It is in the guest's buffers, or was dropped for good.
    Done,
    /// The guest has no buffer.
    NoBuffer,
    /// The guest has buffers, but not enough of them.
    TooFew,
}

/// Writes frames into the guest's buffers.
pub(super) struct Deliverer {
    mode: CachedMode,
    pub(super) mergeable: bool,
    /// What the guest takes frames with.
    pub(super) accepts: Offloads,
    /// The buffers of the frame at hand; grows to what one frame needs.
    chains: Vec<Chain>,
    heads: Vec<Head>,
    /// Chains returned since they were asked for.
    returned: u64,
    received: Tally,
    filtered: Tally,
    no_fit: Tally,
    not_taken: Tally,
}

impl Deliverer {
    pub(super) fn new(mode: &SharedMode) -> Self {
        Self {
            mode: mode.cached(),
            mergeable: false,
            accepts: Offloads::empty(),
            chains: vec![Chain::new()],
            heads: Vec::with_capacity(MAX_BUFFERS),
            returned: 0,
            received: Tally::default(),
            filtered: Tally::default(),
            no_fit: Tally::default(),
            not_taken: Tally::default(),
        }
    }

    /// Lets go of a memory map that is not the view's any more.
    pub(super) fn rehome(&mut self, view: &DmaView) {
        self.chains.iter_mut().for_each(|chain| chain.rehome(view));
    }

    /// Takes up the receive mode: once per turn.
    pub(super) fn refresh(&mut self, mode: &SharedMode) {
        mode.refresh(&mut self.mode);
    }

    /// Adds what was counted since the last call.
    pub(super) fn report(&mut self, counters: &NetCounters) {
        self.received.add_to(&counters.received);
        self.filtered.add_to(&counters.filtered);
        self.no_fit.add_to(&counters.no_fit);
        self.not_taken.add_to(&counters.not_taken);
    }

    /// How many chains were returned since the last call.
    pub(super) fn take_returned(&mut self) -> u64 {
        std::mem::take(&mut self.returned)
    }

    /// Drops a frame that does not fit.
    pub(super) fn drop_unfit(&mut self) {
        self.no_fit.count();
    }

    /// Whether the guest takes a frame to which that is left to be done; one that it does not take is counted. A stack keeps to
    /// what its tokens accept, but the guest may have changed its mind since they went down.
    #[cold]
    #[inline(never)]
    pub(super) fn takes(&mut self, len: u64, offload: Offload) -> bool {
        // Also to be told that a checksum is right is an offload.
        let taken = offload.check(len).is_ok_and(|needed| self.accepts.contains(needed | Offloads::CSUM));
        if !taken {
            self.not_taken.count();
        }
        taken
    }

    /// Whether the driver wants that frame; one that it does not want is counted.
    #[inline]
    pub(super) fn wants(&mut self, frame: &SgList) -> bool {
        let mut to = MacAddr::default();
        let mode = &*self.mode.mode;
        let wanted = frame.len() >= u64::from(ETHERNET_HEADER)
            && (mode.promiscuous || (frame.copy_to(0, &mut to.0).is_ok() && mode.wants(to)));
        if !wanted {
            self.filtered.count();
        }
        wanted
    }

    /// Puts a frame that waited, or of which something is said, into the guest's next buffers.
    ///
    /// # Errors
    /// As [`Deliverer::deliver`].
    #[cold]
    #[inline(never)]
    pub(super) fn deliver_unfinished(
        &mut self,
        ring: &mut Ring,
        frame: &SgList,
        offload: Offload,
    ) -> Result<Delivery, QueueError> {
        self.deliver(ring, frame, Some(&offload))
    }

    /// Puts a frame into the guest's next buffers.
    ///
    /// # Errors
    /// Where the ring is broken, or a buffer cannot even hold a header.
    #[expect(
        clippy::inline_always,
        reason = "with two callers it is not, and costs a plain frame 40 instructions"
    )]
    #[inline(always)]
    pub(super) fn deliver(
        &mut self,
        ring: &mut Ring,
        frame: &SgList,
        offload: Option<&Offload>,
    ) -> Result<Delivery, QueueError> {
        let need = HEADER_LEN as u64 + frame.len();
        let chain = &mut self.chains[0];
        let Some(head) = ring.pop(chain)? else { return Ok(Delivery::NoBuffer) };
        let room = chain.writable().len();
        if room < need {
            return self.spread(ring, (frame, offload), need, head);
        }
        write(ring, (chain, head), Some(receive_header(1, offload)), frame, 0).ok_or(IMPOSSIBLE)?;
        self.returned += 1;
        self.received.count();
        Ok(Delivery::Done)
    }

    /// Puts a frame into several buffers, of which the first was taken already.
    #[inline(never)]
    fn spread(
        &mut self,
        ring: &mut Ring,
        (frame, offload): (&SgList, Option<&Offload>),
        need: u64,
        first: Head,
    ) -> Result<Delivery, QueueError> {
        self.heads.clear();
        let mut room = self.note(first)?;
        while room < need {
            if !self.mergeable || self.heads.len() == MAX_BUFFERS {
                self.put_back(ring);
                self.no_fit.count();
                return Ok(Delivery::Done);
            }
            let Some(len) = self.take(ring)? else {
                // The doorbell is to ring for the buffer behind those that are here, so it is asked for before they go back.
                if ring.enable_notifications() {
                    continue;
                }
                self.put_back(ring);
                return Ok(Delivery::TooFew);
            };
            room += len;
        }
        let count = self.heads.len() as u16;
        let mut done = 0;
        for (at, (chain, &head)) in self.chains.iter_mut().zip(&self.heads).enumerate() {
            let header = (at == 0).then(|| receive_header(count, offload));
            done += write(ring, (chain, head), header, frame, done).ok_or(IMPOSSIBLE)?;
        }
        self.returned += u64::from(count);
        self.received.count();
        Ok(Delivery::Done)
    }

    /// Takes one more buffer and says how long it is.
    fn take(&mut self, ring: &mut Ring) -> Result<Option<u64>, QueueError> {
        let at = self.heads.len();
        if at == self.chains.len() {
            self.chains.push(Chain::new());
        }
        let Some(head) = ring.pop(&mut self.chains[at])? else { return Ok(None) };
        self.note(head).map(Some)
    }

    /// Notes that the next chain was taken, and says how long its buffer is.
    fn note(&mut self, head: Head) -> Result<u64, QueueError> {
        let len = self.chains[self.heads.len()].writable().len();
        self.heads.push(head);
        if len < HEADER_LEN as u64 {
            return Err(QueueError::Request("a receive buffer has no room for a header"));
        }
        Ok(len)
    }

    fn put_back(&mut self, ring: &mut Ring) {
        ring.undo_pop(&self.heads);
        self.heads.clear();
    }
}

/// Copies the frame from `done` into a buffer, as much as fits, and returns the buffer; says how much that was. The first of
/// a frame's buffers begins with a header that tells their number. `None` where the buffer cannot be written, though it is
/// of the list that the ring engine resolved for that.
#[inline]
fn write(
    ring: &mut Ring,
    (chain, head): (&mut Chain, Head),
    header: Option<[u8; HEADER_LEN]>,
    frame: &SgList,
    done: u64,
) -> Option<u64> {
    let buffer = chain.writable_mut();
    let mut start = 0;
    if let Some(header) = header {
        buffer.copy_from(0, &header).ok()?;
        start = HEADER_LEN as u64;
    }
    let part = (buffer.len() - start).min(frame.len() - done);
    buffer.copy_sg(start, frame, done, part).ok()?;
    buffer.mark_dirty(ring.view(), start + part);
    // A chain's length fits 32 bits: the ring engine checks that.
    ring.push_used(head, (start + part) as u32);
    Some(part)
}
