//! Our queue against `virtio-queue` over the same memory, in step: good rings and broken ones.
//!
//! Where ours refuses, theirs is more lenient in known ways: a broken chain shows as a short one that still
//! claims a next descriptor, or as no chain at all; indirect descriptors are followed without having been
//! negotiated, beside `NEXT`, and in tables of any size; the order of buffers and their addresses are not
//! looked at; and without `VIRTIO_F_EVENT_IDX` an interrupt is always due.

use iovirt_core::dma::{DmaSpace, DmaView};
use proptest::prelude::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::virtio::queue::QueueState;

/// A buffer: guest address, length, whether the device writes it.
type Buffer = (u64, u64, bool);

/// One chain of the driver: its buffers, and how many of them are in an indirect table.
#[derive(Debug, Clone)]
struct Spec {
    buffers: Vec<(u64, u32)>,
    writable: usize,
    indirect: Option<usize>,
}

fn any_spec(indirect: bool) -> impl Strategy<Value = Spec> {
    let near = (BUFFERS..END - 0x400, 0u32..0x400);
    let far = (FAR..FAR + 0x3c00, 0u32..0x400);
    // Mostly short, sometimes as long as the ring and longer.
    let count = prop_oneof![5 => 1usize..5, 1 => 10usize..20];
    let buffers = count.prop_flat_map(move |count| {
        let (near, far) = (near.clone(), far.clone());
        proptest::collection::vec(prop_oneof![3 => near, 1 => far], count)
    });
    let tail = if indirect { proptest::option::of(1usize..20).boxed() } else { Just(None).boxed() };
    (buffers, 0usize..20, tail).prop_map(|(buffers, writable, indirect)| Spec { buffers, writable, indirect })
}

#[derive(Debug, Clone)]
struct Round {
    chains: Vec<Spec>,
    /// In which order they are returned, and in batches of how many.
    order: u64,
    batch: usize,
    used_event: u16,
}

fn any_round(indirect: bool) -> impl Strategy<Value = Round> {
    (proptest::collection::vec(any_spec(indirect), 0..6), any::<u64>(), 1usize..4, 0u16..24)
        .prop_map(|(chains, order, batch, used_event)| Round { chains, order, batch, used_event })
}

/// A change to what the driver wrote: which 16-bit word of which area, and its new value.
#[derive(Debug, Clone)]
enum Damage {
    Desc(u64, u16),
    Table(u64, u16),
    Head(u64, u16),
    Index(u16),
}

fn any_damage() -> impl Strategy<Value = Damage> {
    let value = prop_oneof![0u16..20, any::<u16>(), Just(u16::MAX), Just(4), Just(3), Just(5), Just(48)];
    // Mostly flags, next and length.
    let word = prop_oneof![(0u64..16, 4u64..8).prop_map(|(index, word)| index * 8 + word), 0u64..128];
    prop_oneof![
        4 => (word.clone(), value.clone()).prop_map(|(word, value)| Damage::Desc(word, value)),
        3 => (word, value.clone()).prop_map(|(word, value)| Damage::Table(word, value)),
        1 => (0u64..16, value.clone()).prop_map(|(slot, value)| Damage::Head(slot, value)),
        1 => value.prop_map(Damage::Index),
    ]
}

const SIZE: u16 = 16;

/// Both queues, each over its own memory, written alike.
struct Pair {
    memories: [GuestMemoryMmap; 2],
    view: DmaView,
    ours: SplitQueue,
    chain: Chain,
    theirs: Queue,
    features: RingFeatures,
    offered: u16,
}

impl Pair {
    fn new(features: RingFeatures, start: u16) -> Self {
        let memory = || {
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), END as usize), (GuestAddress(FAR), 0x4000)])
                .unwrap()
        };
        let memories = [memory(), memory()];
        let view = DmaSpace::from_guest_memory(&memories[0]).unwrap().view();
        let state = virtio_queue::QueueState {
            max_size: SIZE,
            next_avail: start,
            next_used: start,
            event_idx_enabled: features.event_idx,
            size: SIZE,
            ready: true,
            desc_table: DESC,
            avail_ring: AVAIL,
            used_ring: USED,
        };
        let theirs = Queue::try_from(state).unwrap();
        let config = QueueConfig { max_size: SIZE, ..config(SIZE) };
        let state = QueueState { config, next_avail: start, next_used: start };
        let mut ours = SplitQueue::restore(&state, features, &view).unwrap();
        assert!(ours.needs_interrupt());
        let pair = Self { memories, view, ours, chain: Chain::new(), theirs, features, offered: start };
        pair.store(AVAIL + 2, start);
        pair.store(USED + 2, start);
        pair
    }

    fn write(&self, addr: u64, bytes: &[u8]) {
        self.memories.iter().for_each(|memory| memory.write_slice(bytes, GuestAddress(addr)).unwrap());
    }

    fn store(&self, addr: u64, value: u16) {
        self.write(addr, &value.to_le_bytes());
    }

    /// The driver writes a round's chains, as many as have room, and makes them available.
    fn offer(&mut self, round: &Round) {
        let (mut free, mut table) = (0, TABLES);
        for spec in &round.chains {
            let count = spec.buffers.len();
            let readable = count.saturating_sub(spec.writable);
            let inside = spec.indirect.map_or(0, |inside| inside.min(count));
            let direct = count - inside;
            if free + direct + usize::from(inside > 0) > usize::from(SIZE) {
                break;
            }
            let head = free as u16;
            for (at, &(addr, len)) in spec.buffers.iter().enumerate() {
                let mut flags = if at >= readable { WRITE } else { 0 };
                if at < direct {
                    flags |= if at + 1 < direct || inside > 0 { NEXT } else { 0 };
                    self.write(DESC + 16 * free as u64, &desc(addr, len, flags, free as u16 + 1));
                    free += 1;
                } else {
                    flags |= if at + 1 < count { NEXT } else { 0 };
                    let place = (at - direct) as u64;
                    self.write(table + 16 * place, &desc(addr, len, flags, place as u16 + 1));
                }
            }
            if inside > 0 {
                let len = 16 * inside as u32;
                self.write(DESC + 16 * free as u64, &desc(table, len, INDIRECT, 0));
                table += u64::from(len);
                free += 1;
            }
            self.store(AVAIL + 4 + 2 * u64::from(self.offered % SIZE), head);
            self.offered = self.offered.wrapping_add(1);
        }
        self.store(AVAIL + 4 + 2 * u64::from(SIZE), round.used_event);
        self.store(AVAIL + 2, self.offered);
    }

    fn damage(&self, damage: &Damage) {
        match *damage {
            Damage::Desc(word, value) => self.store(DESC + 2 * word, value),
            Damage::Table(word, value) => self.store(TABLES + 2 * word, value),
            Damage::Head(slot, value) => self.store(AVAIL + 4 + 2 * slot, value),
            Damage::Index(value) => self.store(AVAIL + 2, value),
        }
    }

    fn pop_ours(&mut self) -> Result<Option<(u16, Vec<Buffer>)>, RingError> {
        let head = self.ours.pop(&self.view, &mut self.chain)?;
        let list =
            |list: &SgList, write| segments(list).into_iter().map(move |(addr, len)| (addr, len, write));
        Ok(head.map(|head| {
            let buffers = list(self.chain.readable(), false).chain(list(self.chain.writable(), true));
            (head.index(), buffers.collect())
        }))
    }

    /// Their chain, and whether it ended as a chain should.
    fn pop_theirs(&mut self) -> Option<(u16, Vec<Buffer>, bool)> {
        let mut chain = self.theirs.pop_descriptor_chain(&self.memories[1])?;
        let (mut buffers, mut whole) = (Vec::new(), false);
        for descriptor in &mut chain {
            whole = !descriptor.has_next();
            let len = u64::from(descriptor.len());
            if len > 0 {
                buffers.push((descriptor.addr().0, len, descriptor.is_write_only()));
            }
        }
        Some((chain.head_index(), buffers, whole))
    }

    fn give_back(&mut self, head: u16, len: u32) {
        self.ours.push_used(Head::from_saved(head), len);
        self.theirs.add_used(&self.memories[1], head, len).unwrap();
    }

    /// Everything the devices wrote, side by side.
    fn same_used_rings(&self) -> bool {
        let ring = |memory: &GuestMemoryMmap| {
            let mut bytes = [0; 6 + 8 * SIZE as usize];
            memory.read_slice(&mut bytes, GuestAddress(USED)).unwrap();
            bytes
        };
        ring(&self.memories[0]) == ring(&self.memories[1])
    }

    /// Publishes and compares what the driver sees and whether it is interrupted.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        self.ours.publish();
        prop_assert!(self.same_used_rings());
        let interrupt = self.theirs.needs_notification(&self.memories[1]).unwrap();
        let wanted = self.ours.needs_interrupt();
        prop_assert!(wanted == interrupt || !self.features.event_idx);
        Ok(())
    }

    fn notifications(&mut self) -> Result<(), TestCaseError> {
        let more = self.theirs.enable_notification(&self.memories[1]).unwrap();
        prop_assert_eq!(self.ours.enable_notifications(), more);
        prop_assert!(self.same_used_rings());
        self.theirs.disable_notification(&self.memories[1]).unwrap();
        self.ours.disable_notifications();
        prop_assert!(self.same_used_rings());
        Ok(())
    }
}

/// Whether theirs accepts what ours refuses with this error.
fn theirs_is_lenient(error: RingError) -> bool {
    matches!(
        error,
        RingError::ReadableAfterWritable { .. }
            | RingError::IndirectNotNegotiated
            | RingError::IndirectWithNext
            | RingError::IndirectTableSize { .. }
            | RingError::Memory(_)
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn good_rings_are_read_and_answered_alike(
        event_idx: bool,
        start in prop_oneof![Just(0u16), 65500u16..=65535],
        rounds in proptest::collection::vec(any_round(true), 1..8),
    ) {
        let mut pair = Pair::new(RingFeatures { event_idx, indirect: true }, start);
        for round in &rounds {
            pair.offer(round);
            pair.notifications()?;
            let mut heads = Vec::new();
            while let Some((head, buffers)) = pair.pop_ours().unwrap() {
                let theirs = pair.pop_theirs();
                prop_assert_eq!(theirs, Some((head, buffers, true)));
                heads.push(head);
            }
            prop_assert_eq!(pair.pop_theirs(), None);
            heads.sort_by_key(|&head| round.order.rotate_left(u32::from(head) * 7) % 31);
            for batch in heads.chunks(round.batch) {
                for &head in batch {
                    pair.give_back(head, u32::from(head) * 3);
                }
                pair.settle()?;
            }
            pair.notifications()?;
        }
    }

    #[test]
    fn broken_rings_are_refused_where_theirs_stops_short(
        indirect: bool,
        round in any_round(true),
        damage in proptest::collection::vec(any_damage(), 1..4),
    ) {
        let mut pair = Pair::new(RingFeatures { event_idx: true, indirect }, 0);
        pair.offer(&round);
        for damage in &damage {
            pair.damage(damage);
        }
        loop {
            let ours = pair.pop_ours();
            let theirs = pair.pop_theirs();
            match ours {
                Ok(Some((head, buffers))) => prop_assert_eq!(theirs, Some((head, buffers, true))),
                Ok(None) => {
                    prop_assert_eq!(theirs, None);
                    break;
                }
                Err(error) => {
                    let whole = theirs.is_some_and(|(_, _, whole)| whole);
                    prop_assert!(!whole || theirs_is_lenient(error), "{error}");
                    prop_assert_eq!(pair.pop_ours(), Err(error));
                    break;
                }
            }
        }
    }
}
