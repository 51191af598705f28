//! The driver's side of a split ring (virtio 1.2, section 2.7).
//!
//! Requests have a *slot* each, whose descriptors are its own for good: one that points to the slot's table where indirect
//! descriptors were negotiated, otherwise [`MOST_SEGMENTS`] in a row. So there is no list of free descriptors.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::layout::{self, Layout, QueuePlaces};
use crate::memory::SharedMemory;
use crate::options::{MOST_SEGMENTS, Options, feature};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT` and `VIRTQ_USED_F_NO_NOTIFY`.
const NO_NOTIFICATION: u16 = 1;
/// How far ahead the event index is put so that it is not met.
const FAR_AHEAD: u16 = 0x8000;

/// Which way a segment goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The device reads it.
    DeviceReads,
    /// The device writes it.
    DeviceWrites,
}

/// A piece of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The guest's address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Which way it goes.
    pub access: Access,
}

/// The driver's side of one ring.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<SharedMemory>,
    places: QueuePlaces,
    /// Guest address of the slots' tables, if they are used.
    indirect: Option<u64>,
    event_idx: bool,
    size: u16,
    slots: u16,
    /// Descriptors in the ring from one slot to the next.
    stride: u16,
    /// Which slots the device has.
    in_flight: Vec<bool>,
    flying: u16,
    next_available: u16,
    published: u16,
    last_used: u16,
    /// The used index as last read.
    seen_used: u16,
    /// Where the device was last asked to interrupt, or told not to.
    asked: u16,
}

impl Ring {
    /// A ring for one of the layout's queues, with the negotiated `features`, for chains of up to `segments` descriptors.
    ///
    /// There are as many slots as the options ask for, or as have room in the ring.
    ///
    /// # Panics
    /// With more segments than [`MOST_SEGMENTS`], or a queue that the layout does not have.
    pub fn new(
        memory: &Arc<SharedMemory>,
        layout: &Layout,
        queue: u16,
        options: &Options,
        features: u64,
        segments: u16,
    ) -> Self {
        assert!(segments <= MOST_SEGMENTS, "{segments} segments");
        let places = layout.queues()[usize::from(queue)];
        let indirect = (features & feature::INDIRECT_DESC != 0 && segments > 1)
            .then(|| layout.guest_address(layout::table(&places, 0)));
        let stride = if indirect.is_some() { 1 } else { segments };
        let slots = options.slots.min(options.queue_size / stride);
        Self {
            memory: Arc::clone(memory),
            places,
            indirect,
            event_idx: features & feature::EVENT_IDX != 0,
            size: options.queue_size,
            slots,
            stride,
            in_flight: vec![false; usize::from(slots)],
            flying: 0,
            next_available: 0,
            published: 0,
            last_used: 0,
            seen_used: 0,
            asked: 0,
        }
    }

    /// Requests that can be in flight.
    pub fn slots(&self) -> u16 {
        self.slots
    }

    /// Requests that the device has.
    pub fn in_flight(&self) -> u16 {
        self.flying
    }

    /// Whether the device has this slot's request.
    pub fn is_in_flight(&self, slot: u16) -> bool {
        self.in_flight[usize::from(slot)]
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where its parts are.
    pub fn places(&self) -> &QueuePlaces {
        &self.places
    }

    /// Hands a slot's request to the device, which sees it with the next [`Ring::publish`].
    ///
    /// # Panics
    /// If the device has the slot already.
    #[inline]
    pub fn offer(&mut self, slot: u16, segments: &[Segment]) {
        assert!(!self.in_flight[usize::from(slot)], "slot {slot} is in flight");
        let head = slot * self.stride;
        match self.indirect {
            Some(_) => {
                let place = layout::table(&self.places, slot);
                self.describe(place, 0, segments);
                let address = self.table_address(slot, place);
                self.descriptor(
                    self.places.descriptors + 16 * usize::from(head),
                    address,
                    16 * segments.len() as u32,
                    INDIRECT,
                    0,
                );
            }
            None => self.describe(self.places.descriptors + 16 * usize::from(head), head, segments),
        }
        self.in_flight[usize::from(slot)] = true;
        self.flying += 1;
        self.make_available(head);
    }

    /// Writes the chain of these segments at `place`, where the first descriptor has the number `first`.
    #[inline]
    fn describe(&self, place: usize, first: u16, segments: &[Segment]) {
        let last = segments.len() - 1;
        for (number, segment) in segments.iter().enumerate() {
            let more = if number < last { NEXT } else { 0 };
            let write = if segment.access == Access::DeviceWrites { WRITE } else { 0 };
            let next = if number < last { first + number as u16 + 1 } else { 0 };
            self.descriptor(place + 16 * number, segment.address, segment.len, more | write, next);
        }
    }

    #[inline]
    fn descriptor(&self, place: usize, address: u64, len: u32, flags: u16, next: u16) {
        self.memory.store_u64(place, address);
        self.memory.store_u64(place + 8, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48);
    }

    #[inline]
    fn table_address(&self, slot: u16, place: usize) -> u64 {
        debug_assert!(slot < self.slots);
        self.indirect.unwrap_or_default() + (place - layout::table(&self.places, 0)) as u64
    }

    #[inline]
    fn make_available(&mut self, head: u16) {
        let entry = self.next_available & (self.size - 1);
        self.memory.store_u16(self.places.available + 4 + 2 * usize::from(entry), head, Ordering::Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
    }

    /// Lets the device see all that was offered; tells whether it wants to be notified of it.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_available);
        if old == new {
            return false;
        }
        self.memory.store_u16(self.places.available + 2, new, Ordering::Release);
        self.published = new;
        // The device asks for notifications and then looks for requests again; we publish and then look for its wish.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let place = self.places.used + 4 + 8 * usize::from(self.size);
            is_passed(self.memory.load_u16(place, Ordering::Relaxed), new, old)
        } else {
            self.memory.load_u16(self.places.used, Ordering::Relaxed) & NO_NOTIFICATION == 0
        }
    }

    /// Whether something was returned that has not been taken.
    #[inline]
    pub fn has_used(&mut self) -> bool {
        if self.seen_used == self.last_used {
            self.seen_used = self.memory.load_u16(self.places.used + 2, Ordering::Acquire);
        }
        self.seen_used != self.last_used
    }

    /// Takes the next returned slot, with the number of bytes that the device says it wrote.
    ///
    /// # Errors
    /// What the device did that the standard does not allow: it returned what it does not have.
    #[inline]
    pub fn take_used(&mut self) -> Result<Option<(u16, u32)>, String> {
        if !self.has_used() {
            return Ok(None);
        }
        if self.seen_used.wrapping_sub(self.last_used) > self.flying {
            return Err(format!(
                "used index {} behind {}, with {} in flight",
                self.seen_used, self.last_used, self.flying
            ));
        }
        let entry = usize::from(self.last_used & (self.size - 1));
        let place = self.places.used + 4 + 8 * entry;
        let (id, written) = (self.memory.load_u32(place), self.memory.load_u32(place + 4));
        let slot = id / u32::from(self.stride);
        if !id.is_multiple_of(u32::from(self.stride))
            || slot >= u32::from(self.slots)
            || !self.in_flight[slot as usize]
        {
            return Err(format!("descriptor {id} returned, which the device does not have"));
        }
        self.in_flight[slot as usize] = false;
        self.flying -= 1;
        self.last_used = self.last_used.wrapping_add(1);
        Ok(Some((slot as u16, written)))
    }

    /// Asks for an interrupt with the next returned request. Whoever sleeps then looks once more: it may be there already.
    #[inline]
    pub fn ask_for_interrupt(&mut self) {
        if self.event_idx {
            let place = self.places.available + 4 + 2 * usize::from(self.size);
            self.memory.store_u16(place, self.last_used, Ordering::Relaxed);
        } else {
            self.memory.store_u16(self.places.available, 0, Ordering::Relaxed);
        }
        self.asked = self.last_used;
        fence(Ordering::SeqCst);
    }

    /// Tells the device that nobody waits for interrupts. With the event index they are only far ahead, so a driver that
    /// polls says it again now and then.
    #[inline]
    pub fn refuse_interrupts(&mut self) {
        if !self.event_idx {
            self.memory.store_u16(self.places.available, NO_NOTIFICATION, Ordering::Relaxed);
        } else if self.asked.wrapping_sub(self.last_used) < FAR_AHEAD / 2
            || self.asked.wrapping_sub(self.last_used) > FAR_AHEAD
        {
            self.asked = self.last_used.wrapping_add(FAR_AHEAD);
            let place = self.places.available + 4 + 2 * usize::from(self.size);
            self.memory.store_u16(place, self.asked, Ordering::Relaxed);
        }
    }

    /// The used index that the device wrote last: where a server begins that knows nothing else.
    pub fn used_index(&self) -> u16 {
        self.memory.load_u16(self.places.used + 2, Ordering::Acquire)
    }

    /// Checks that the chains behind the used index in the available ring are those that the device has: one that goes on there takes
    /// each of them, and none that it returned. The device must not be at work.
    ///
    /// # Errors
    /// Which chain would be lost, or returned twice.
    pub fn check_in_turn(&self) -> Result<(), String> {
        let mut held = self.in_flight.clone();
        let entry = |index: u16| usize::from(index & (self.size - 1));
        let slot = |head: u32| (head / u32::from(self.stride)) as usize;
        let mut index = self.last_used;
        while index != self.used_index() {
            let id = self.memory.load_u32(self.places.used + 4 + 8 * entry(index));
            // What the device does not have is found where it is taken.
            if let Some(held) = held.get_mut(slot(id)) {
                *held = false;
            }
            index = index.wrapping_add(1);
        }
        while index != self.next_available {
            let place = self.places.available + 4 + 2 * entry(index);
            let head = self.memory.load_u16(place, Ordering::Relaxed);
            if !std::mem::take(&mut held[slot(head.into())]) {
                return Err(format!("descriptor {head} is returned, and would be again"));
            }
            index = index.wrapping_add(1);
        }
        match held.iter().position(|held| *held) {
            Some(lost) => Err(format!("descriptor {} would be lost", lost * usize::from(self.stride))),
            None => Ok(()),
        }
    }

    /// Begins anew at index zero, and makes available again what the device has: for a server that came back and knows
    /// nothing of it. The rings must be stopped, and the requests such that they can be done twice.
    pub fn begin_again(&mut self) {
        self.memory.store_u16(self.places.used + 2, 0, Ordering::Relaxed);
        self.memory.store_u16(self.places.used, 0, Ordering::Relaxed);
        // What the last server waited for is no index of the next one, which may write its own only once it took a request.
        let event = self.places.used + 4 + 8 * usize::from(self.size);
        self.memory.store_u16(event, 0, Ordering::Relaxed);
        (self.next_available, self.published, self.last_used, self.seen_used, self.asked) = (0, 0, 0, 0, 0);
        for slot in 0..self.slots {
            if self.in_flight[usize::from(slot)] {
                self.make_available(slot * self.stride);
            }
        }
        self.published = self.next_available;
        self.memory.store_u16(self.places.available + 2, self.published, Ordering::Release);
    }
}

/// Whether an index that went from `old` to `new` passed `event` (virtio 1.2, section 2.7.10).
#[inline]
pub fn is_passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(features: u64, slots: u16) -> (Arc<SharedMemory>, Layout, Ring) {
        let options = Options { queue_size: 8, slots, buffer: 4096, ..Options::blk() };
        let layout = Layout::new(&options);
        let memory = Arc::new(SharedMemory::new(layout.len()).unwrap());
        let ring = Ring::new(&memory, &layout, 0, &options, features, 3);
        (memory, layout, ring)
    }

    fn segments(layout: &Layout) -> [Segment; 2] {
        let at = |offset, len, access| Segment { address: layout.guest_address(offset), len, access };
        [at(0, 16, Access::DeviceReads), at(4096, 512, Access::DeviceWrites)]
    }

    /// The device's side: returns a descriptor.
    fn give_back(memory: &SharedMemory, ring: &Ring, id: u32, written: u32) {
        let used = ring.places.used;
        let index = memory.load_u16(used + 2, Ordering::Relaxed);
        let place = used + 4 + 8 * usize::from(index % ring.size);
        memory.store_u32(place, id);
        memory.store_u32(place + 4, written);
        memory.store_u16(used + 2, index.wrapping_add(1), Ordering::Release);
    }

    #[test]
    fn chains_go_out_and_come_back_through_many_wraps() {
        for (features, stride) in [(0, 3), (feature::INDIRECT_DESC | feature::EVENT_IDX, 1)] {
            let (memory, layout, mut ring) = ring(features, 2);
            assert_eq!(ring.slots(), 2);
            for round in 0..70_000u32 {
                ring.offer(1, &segments(&layout));
                assert!(!ring.has_used());
                ring.publish();
                let entry = ring.places.available + 4 + 2 * (round as usize % 8);
                assert_eq!(memory.load_u16(entry, Ordering::Relaxed), stride);
                give_back(&memory, &ring, u32::from(stride), round);
                assert_eq!(ring.take_used(), Ok(Some((1, round))));
                assert_eq!(ring.take_used(), Ok(None));
            }
        }
    }

    #[test]
    fn descriptors_are_as_the_standard_has_them() {
        let (memory, layout, mut ring) = ring(0, 2);
        ring.offer(1, &segments(&layout));
        let descriptor = |number: usize| {
            let place = ring.places.descriptors + 16 * number;
            (memory.load_u64(place), memory.load_u64(place + 8))
        };
        assert_eq!(descriptor(3), (layout.guest_address(0), 16 | 1 << 32 | 4 << 48));
        assert_eq!(descriptor(4), (layout.guest_address(4096), 512 | 2 << 32));
    }

    #[test]
    fn what_the_device_does_not_have_it_cannot_return() {
        for id in [0, 1, 4, 6, u32::MAX] {
            let (memory, layout, mut ring) = ring(0, 2);
            ring.offer(1, &segments(&layout));
            ring.publish();
            give_back(&memory, &ring, id, 0);
            assert!(ring.take_used().is_err(), "{id}");
        }
        let (memory, _, mut ring) = ring(0, 2);
        memory.store_u16(ring.places.used + 2, 1, Ordering::Release);
        assert!(ring.take_used().unwrap_err().contains("0 in flight"));
    }

    #[test]
    fn notifications_follow_the_wish_of_the_other_side() {
        let (memory, layout, mut with_index) = ring(feature::EVENT_IDX, 2);
        with_index.offer(0, &segments(&layout));
        assert!(with_index.publish(), "the device waits for index 0");
        with_index.offer(1, &segments(&layout));
        assert!(!with_index.publish(), "it still waits for index 0 only");
        assert!(!with_index.publish(), "nothing new");
        with_index.ask_for_interrupt();
        let event = with_index.places.available + 4 + 16;
        assert_eq!(memory.load_u16(event, Ordering::Relaxed), 0);
        with_index.refuse_interrupts();
        assert!(!is_passed(memory.load_u16(event, Ordering::Relaxed), 2, 0));

        let (memory, layout, mut without) = ring(0, 2);
        memory.store_u16(without.places.used, NO_NOTIFICATION, Ordering::Relaxed);
        without.offer(0, &segments(&layout));
        assert!(!without.publish());
        without.refuse_interrupts();
        assert_eq!(memory.load_u16(without.places.available, Ordering::Relaxed), NO_NOTIFICATION);
        without.ask_for_interrupt();
        assert_eq!(memory.load_u16(without.places.available, Ordering::Relaxed), 0);
    }

    #[test]
    fn a_ring_begun_again_offers_what_is_in_flight() {
        let (memory, layout, mut ring) = ring(0, 2);
        for slot in [1, 0] {
            ring.offer(slot, &segments(&layout));
        }
        ring.publish();
        give_back(&memory, &ring, 0, 7);
        assert_eq!(ring.take_used(), Ok(Some((0, 7))));
        let event = ring.places.used + 4 + 8 * 8;
        memory.store_u16(event, 77, Ordering::Relaxed);
        ring.begin_again();
        assert_eq!(memory.load_u16(event, Ordering::Relaxed), 0);
        assert_eq!((ring.used_index(), ring.in_flight()), (0, 1));
        assert_eq!(memory.load_u16(ring.places.available + 2, Ordering::Relaxed), 1);
        assert_eq!(memory.load_u16(ring.places.available + 4, Ordering::Relaxed), 3);
        give_back(&memory, &ring, 3, 9);
        assert_eq!(ring.take_used(), Ok(Some((1, 9))));
    }

    #[test]
    fn a_ring_goes_on_where_chains_came_home_in_turn_and_not_where_one_overtook() {
        for returned in [&[0, 3][..], &[3]] {
            let (memory, layout, mut ring) = ring(0, 2);
            for slot in [0, 1] {
                ring.offer(slot, &segments(&layout));
            }
            ring.publish();
            for id in returned {
                give_back(&memory, &ring, *id, 0);
            }
            let outcome = ring.check_in_turn();
            assert_eq!(outcome.is_ok(), returned.len() == 2, "{outcome:?}");
            // Seen by the driver or not.
            while ring.take_used().unwrap().is_some() {}
            assert_eq!(ring.check_in_turn(), outcome);
        }
    }
}
