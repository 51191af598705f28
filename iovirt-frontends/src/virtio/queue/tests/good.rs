//! What a driver may do.

use std::sync::Arc;

use iovirt_core::dma::{DmaSpace, MemoryMap, PageLog, PageTable, Region};

use super::*;
use crate::virtio::queue::{ConfigError, QueueState, RingArea};

/// A disk read: 16 bytes to read, 4096 and 1 to write.
fn disk_read(rig: &Rig, at: u16) {
    rig.desc(at, desc(BUFFERS, 16, NEXT, at + 1));
    rig.desc(at + 1, desc(BUFFERS + 0x1000, 4096, NEXT | WRITE, at + 2));
    rig.desc(at + 2, desc(BUFFERS + 16, 1, WRITE, 0));
}

#[test]
fn a_chain_goes_there_and_back() {
    let mut rig = Rig::new(8, ALL);
    assert_eq!(rig.pop(), Ok(None));
    disk_read(&rig, 2);
    rig.offer(2);
    let head = rig.pop().unwrap().unwrap();
    assert_eq!(head.index(), 2);
    assert_eq!(segments(rig.chain.readable()), [(BUFFERS, 16)]);
    assert_eq!(segments(rig.chain.writable()), [(BUFFERS + 0x1000, 4096), (BUFFERS + 16, 1)]);
    assert!(rig.chain.readable().is_read_only() && !rig.chain.writable().is_read_only());
    assert_eq!(rig.pop(), Ok(None));
    rig.chain.writable_mut().clear();
    rig.queue.push_used(head, 4097);
    assert_eq!(rig.used_idx(), 0, "buffered");
    rig.queue.publish();
    assert_eq!((rig.used_idx(), rig.used(0)), (1, (2, 4097)));
    assert!(rig.queue.needs_interrupt());
    assert!(!rig.queue.needs_interrupt(), "asked once per batch");
}

#[test]
fn rings_and_indices_wrap() {
    let space = space();
    let state = QueueState { config: config(4), next_avail: u16::MAX - 1, next_used: u16::MAX - 1 };
    let view = space.view();
    let mut queue = SplitQueue::restore(&state, PLAIN, &view).unwrap();
    assert!(queue.needs_interrupt(), "nobody knows what the driver saw before");
    let mut rig = Rig::over(space, 4, PLAIN);
    rig.offered = u16::MAX - 1;
    for at in 0..4 {
        rig.desc(at, desc(BUFFERS, 4, 0, 0));
        rig.offer(at);
    }
    for at in 0..4 {
        let head = queue.pop(&view, &mut rig.chain).unwrap().unwrap();
        assert_eq!(head.index(), at);
        queue.push_used(head, u32::from(at));
    }
    assert_eq!(queue.state(), QueueState { config: config(4), next_avail: 2, next_used: 2 });
    assert_eq!(rig.used_idx(), 2);
    assert_eq!([2, 3, 0, 1].map(|slot| rig.used(slot).0), [0, 1, 2, 3]);
}

#[test]
fn indirect_tables_alone_and_behind_direct_descriptors() {
    let mut rig = Rig::new(4, ALL);
    let table = [desc(BUFFERS, 8, NEXT, 2), desc(0, 0, INDIRECT, 0), desc(BUFFERS + 64, 9, WRITE, 1)];
    rig.view.write(TABLES + 4, &table.concat()).unwrap();
    // The write flag of a descriptor that refers to a table is ignored.
    rig.desc(0, desc(TABLES + 4, 48, INDIRECT | WRITE, 0));
    rig.desc(1, desc(BUFFERS + 128, 4, NEXT, 0));
    rig.offer(0);
    rig.offer(1);
    for first in [vec![], vec![(BUFFERS + 128, 4)]] {
        rig.pop().unwrap().unwrap();
        assert_eq!(segments(rig.chain.readable()), [first, vec![(BUFFERS, 8)]].concat());
        assert_eq!(segments(rig.chain.writable()), [(BUFFERS + 64, 9)]);
    }
}

#[test]
fn an_indirect_table_may_be_longer_than_the_queue() {
    let mut rig = Rig::new(2, ALL);
    let table: Vec<_> =
        (1..=100).map(|next| desc(BUFFERS, 1, if next == 100 { 0 } else { NEXT }, next)).collect();
    rig.view.write(TABLES, &table.concat()).unwrap();
    rig.desc(0, desc(TABLES, 1600, INDIRECT, 0));
    rig.offer(0);
    rig.pop().unwrap().unwrap();
    assert_eq!(rig.chain.readable().len(), 100);
}

#[test]
fn long_chains_weigh_more() {
    let mut rig = Rig::new(2, ALL);
    for (entries, weight) in [(1, 1), (254, 1), (255, 2), (1000, 4)] {
        // Buffers of no bytes make work too.
        let entry = |next: u16| desc(0, 0, if next == entries { 0 } else { NEXT }, next);
        let table: Vec<_> = (1..=entries).map(entry).collect();
        rig.view.write(TABLES, &table.concat()).unwrap();
        rig.desc(0, desc(TABLES, 16 * u32::from(entries), INDIRECT, 0));
        rig.offer(0);
        rig.pop().unwrap().unwrap();
        assert_eq!(rig.chain.weight(), weight, "{entries} entries and the one that refers to them");
    }
    rig.desc(0, desc(BUFFERS, 1, NEXT, 1));
    rig.desc(1, desc(BUFFERS, 1, 0, 0));
    rig.offer(0);
    rig.pop().unwrap().unwrap();
    assert_eq!(rig.chain.weight(), 1);
}

#[test]
fn a_chain_as_long_as_the_queue_and_an_empty_buffer() {
    let mut rig = Rig::new(4, PLAIN);
    rig.desc(0, desc(BUFFERS, 1, NEXT, 3));
    rig.desc(3, desc(u64::MAX, 0, NEXT, 1));
    rig.desc(1, desc(END - 8, 8, NEXT | WRITE, 2));
    rig.desc(2, desc(FAR, 8, WRITE, 0));
    rig.offer(0);
    rig.pop().unwrap().unwrap();
    assert_eq!((segments(rig.chain.readable()), rig.chain.writable().len()), (vec![(BUFFERS, 1)], 16));
}

#[test]
fn notifications_by_flag() {
    let mut rig = Rig::new(4, PLAIN);
    rig.queue.disable_notifications();
    assert_eq!(rig.load(USED), 1);
    rig.desc(0, desc(BUFFERS, 1, 0, 0));
    rig.offer(0);
    assert!(rig.queue.enable_notifications(), "one came in meanwhile");
    assert_eq!(rig.load(USED), 0);
    let head = rig.pop().unwrap().unwrap();
    assert!(!rig.queue.enable_notifications());
    rig.queue.push_used(head, 0);
    assert!(!rig.queue.needs_interrupt(), "not published");
    rig.store(AVAIL, 1);
    rig.queue.publish();
    assert!(!rig.queue.needs_interrupt());
    rig.store(AVAIL, 0);
    rig.queue.push_used(head, 0);
    rig.queue.publish();
    assert!(rig.queue.needs_interrupt());
}

#[test]
fn notifications_by_index() {
    let mut rig = Rig::new(4, ALL);
    let (used_event, avail_event) = (AVAIL + 4 + 8, USED + 4 + 32);
    rig.desc(0, desc(BUFFERS, 1, 0, 0));
    rig.queue.disable_notifications();
    assert_eq!(rig.load(USED), 0, "the flag is not used");
    rig.store(used_event, 2);
    for round in 0..6 {
        rig.offer(0);
        assert!(rig.queue.enable_notifications());
        assert_eq!(rig.load(avail_event), round);
        let head = rig.pop().unwrap().unwrap();
        assert!(!rig.queue.enable_notifications());
        assert_eq!(rig.load(avail_event), round + 1);
        rig.queue.push_used(head, 0);
        rig.queue.publish();
        assert_eq!(rig.queue.needs_interrupt(), round == 2, "after the third");
    }
}

#[test]
fn popped_chains_can_be_put_back() {
    let mut rig = Rig::new(4, PLAIN);
    for at in 0..3 {
        rig.desc(at, desc(BUFFERS, 1, 0, 0));
        rig.offer(at);
    }
    let heads: Vec<_> = (0..3).map(|_| rig.pop().unwrap().unwrap()).collect();
    rig.queue.undo_pop(2);
    assert_eq!([rig.pop(), rig.pop()], [Ok(Some(heads[1])), Ok(Some(heads[2]))]);
    assert_eq!(rig.pop(), Ok(None));
}

#[test]
fn a_saved_chain_is_read_again() {
    let mut rig = Rig::new(8, ALL);
    disk_read(&rig, 2);
    rig.offer(2);
    let head = rig.pop().unwrap().unwrap();
    let state = rig.queue.state();
    assert_eq!((state.next_avail, state.next_used), (1, 0));
    let mut queue = SplitQueue::restore(&state, ALL, &rig.view).unwrap();
    let mut chain = Chain::new();
    queue.reread(&rig.view, Head::from_saved(head.index()), &mut chain).unwrap();
    assert_eq!((chain.readable().len(), chain.writable().len()), (16, 4097));
    assert_eq!(queue.pop(&rig.view, &mut chain), Ok(None));
    let error = RingError::HeadOutOfRange { head: 8, size: 8 };
    assert_eq!(queue.reread(&rig.view, Head::from_saved(8), &mut chain), Err(error));
}

#[test]
fn a_new_memory_map_is_taken_up() {
    let mut rig = Rig::new(4, PLAIN);
    rig.desc(0, desc(BUFFERS, 1, 0, 0));
    rig.offer(0);
    rig.pop().unwrap().unwrap();
    rig.space.replace(MemoryMap::new(vec![Region::anonymous(0, END).unwrap()]).unwrap());
    assert!(rig.view.refresh());
    rig.desc(1, desc(BUFFERS, 1, 0, 0));
    rig.store(AVAIL + 4 + 2, 1);
    rig.store(AVAIL + 2, 2);
    assert_eq!(rig.pop().unwrap().unwrap().index(), 1);
    rig.space.replace(MemoryMap::empty());
    rig.view.refresh();
    let error = rig.queue.refresh(&rig.view).unwrap_err();
    assert!(matches!(error, RingError::Config(ConfigError::Area { area: RingArea::Descriptors, .. })));
    assert_eq!(rig.pop(), Err(error));
}

#[test]
fn rings_behind_an_iommu() {
    let table = Arc::new(PageTable::new());
    let at = 0x7000_0000_0000;
    for page in 1..16 {
        table.map(at + (page << 12), page << 12, iovirt_core::dma::Access::Write);
    }
    let physical = space();
    let mut rig = Rig::over(physical.clone(), 4, PLAIN);
    rig.desc(0, desc(at + BUFFERS + 0xff8, 16, WRITE, 0));
    rig.offer(0);
    table.map(at + BUFFERS + 0x1000, BUFFERS + 0x3000, iovirt_core::dma::Access::Write);
    let mut view = physical.with_translate(table.clone()).view();
    let config = QueueConfig { desc: at + DESC, avail: at + AVAIL, used: at + USED, ..config(4) };
    let mut queue = SplitQueue::new(config, PLAIN, &view).unwrap();
    let head = queue.pop(&view, &mut rig.chain).unwrap().unwrap();
    assert_eq!(segments(rig.chain.writable()), [(BUFFERS + 0xff8, 8), (BUFFERS + 0x3000, 8)]);
    queue.push_used(head, 16);
    queue.publish();
    assert_eq!((rig.used_idx(), rig.used(0)), (1, (0, 16)));
    table.unmap(at + USED);
    assert!(view.refresh());
    assert!(matches!(
        queue.refresh(&view),
        Err(RingError::Config(ConfigError::Area { area: RingArea::Used, .. }))
    ));
}

/// Pages of the used ring that are dirty after `count` chains from `start` were returned to a ring of `size`.
fn dirty_pages(size: u16, start: u16, count: u16) -> Vec<u64> {
    let log = Arc::new(PageLog::new(0x20_0000));
    let region = Region::anonymous(0, 0x20_0000).unwrap().with_dirty_log(log.clone());
    let view = DmaSpace::from_regions(vec![region]).unwrap().view();
    let config =
        QueueConfig { size, max_size: size, desc: 0, avail: 0x10_0000, used: 0x18_0000 - 4, ready: true };
    let state = QueueState { config, next_avail: start, next_used: start };
    let mut queue = SplitQueue::restore(&state, ALL, &view).unwrap();
    (0..count).for_each(|_| queue.push_used(Head::from_saved(0), 0));
    queue.publish();
    let mut pages = Vec::new();
    log.take(|offset| pages.push(offset));
    pages
}

#[test]
fn used_rings_are_logged() {
    let page = |number: u64| 0x18_0000 + 0x1000 * number - 0x1000;
    assert_eq!(dirty_pages(256, 7, 1), [page(0), page(1)], "a small ring as a whole");
    assert!(dirty_pages(4096, 0, 0).is_empty());
    assert_eq!(dirty_pages(4096, 0, 1), [page(0), page(1)]);
    assert_eq!(dirty_pages(4096, 1024, 2), [page(0), page(3)]);
    assert_eq!(dirty_pages(4096, 1023, 2), [page(0), page(2), page(3)]);
    assert_eq!(dirty_pages(4096, 4095, 2), [page(0), page(1), page(8)]);
    assert_eq!(dirty_pages(4096, 5, 4096), (0..9).map(page).collect::<Vec<_>>());
}

#[test]
fn notification_fields_are_logged() {
    let log = Arc::new(PageLog::new(END));
    let region = Region::anonymous(0, END).unwrap().with_dirty_log(log.clone());
    let mut rig = Rig::over(DmaSpace::from_regions(vec![region]).unwrap(), 4, PLAIN);
    rig.queue.disable_notifications();
    assert!(log.is_dirty(USED));
    log.take(|_| ());
    assert!(!rig.queue.enable_notifications());
    assert!(log.is_dirty(USED));
}

#[test]
fn features_come_from_the_negotiated_bits() {
    assert_eq!(RingFeatures::from_negotiated(1 << 28), RingFeatures { event_idx: false, indirect: true });
    assert_eq!(RingFeatures::from_negotiated(1 << 29), RingFeatures { event_idx: true, indirect: false });
}

#[cfg(feature = "virtio-queue")]
#[test]
fn a_queue_is_handed_over_and_back() {
    let state = QueueState { config: config(16), next_avail: 7, next_used: 5 };
    let theirs = virtio_queue::Queue::try_from(state.to_virtio_queue(ALL)).unwrap();
    assert_eq!(QueueState::from(&theirs), state);
}
