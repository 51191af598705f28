//! What a driver may not do. The same, at random, is in `oracle`.

use iovirt_core::dma::DmaError;

use super::*;
use crate::virtio::queue::{ConfigError, RingArea};

fn refused(change: impl FnOnce(&mut QueueConfig)) -> RingError {
    let mut config = config(8);
    change(&mut config);
    SplitQueue::new(config, ALL, &space().view()).unwrap_err()
}

#[test]
fn configurations_are_checked() {
    let config = RingError::Config;
    assert_eq!(refused(|c| c.ready = false), config(ConfigError::NotReady));
    assert_eq!(refused(|c| c.size = 0), config(ConfigError::SizeNotPowerOfTwo { size: 0 }));
    assert_eq!(refused(|c| c.size = 24), config(ConfigError::SizeNotPowerOfTwo { size: 24 }));
    assert_eq!(refused(|c| c.size = 512), config(ConfigError::SizeTooLarge { size: 512, max: 256 }));
    for (area, align, change) in [
        (RingArea::Descriptors, 16, (|c| c.desc += 8) as fn(&mut QueueConfig)),
        (RingArea::Available, 2, |c| c.avail += 1),
        (RingArea::Used, 4, |c| c.used += 2),
    ] {
        let RingError::Config(ConfigError::Misaligned { area: found, align: to, .. }) = refused(change)
        else {
            panic!("{area} misaligned");
        };
        assert_eq!((found, to), (area, align));
    }
    for addr in [END - 16, END, u64::MAX - 15] {
        assert!(matches!(
            refused(|c| c.desc = addr),
            RingError::Config(ConfigError::Area { area: RingArea::Descriptors, .. })
        ));
    }
    assert_eq!(
        refused(|c| c.size = 24).to_string(),
        "queue size 24 is not a power of two",
        "one clear sentence"
    );
}

/// The error for a ring of 4 with these descriptors, whose first is offered.
fn error(descriptors: &[[u8; 16]]) -> RingError {
    let mut rig = Rig::new(4, ALL);
    for (index, &bytes) in descriptors.iter().enumerate() {
        rig.desc(index as u16, bytes);
    }
    rig.offer(0);
    rig.error()
}

#[test]
fn the_available_index_is_checked() {
    for index in [5, 0x8000, u16::MAX] {
        let mut rig = Rig::new(4, ALL);
        rig.store(AVAIL + 2, index);
        assert_eq!(rig.error(), RingError::AvailIndexJump { index, next: 0, size: 4 });
    }
    let mut rig = Rig::new(4, ALL);
    rig.offer(4);
    assert_eq!(rig.error(), RingError::HeadOutOfRange { head: 4, size: 4 });
}

#[test]
fn chains_are_checked() {
    assert_eq!(error(&[desc(BUFFERS, 1, NEXT, 4)]), RingError::NextOutOfRange { next: 4, size: 4 });
    assert_eq!(error(&[desc(BUFFERS, 1, NEXT, 0)]), RingError::Loop { head: 0 });
    let swapped = [desc(BUFFERS, 1, NEXT | WRITE, 1), desc(BUFFERS, 1, 0, 0)];
    assert_eq!(error(&swapped), RingError::ReadableAfterWritable { head: 0 });
    let unmapped = DmaError::Unmapped { addr: END, len: 1 };
    assert_eq!(error(&[desc(END - 1, 2, WRITE, 0)]), RingError::Memory(unmapped));
    let overflow = DmaError::Overflow { addr: u64::MAX, len: 2 };
    assert_eq!(error(&[desc(u64::MAX, 2, 0, 0)]), RingError::Memory(overflow));
}

#[test]
fn a_chain_of_more_than_32_bits_is_refused() {
    let space = DmaSpace::anonymous(&[(0, 1 << 32)]).unwrap();
    let mut rig = Rig::over(space, 4, ALL);
    rig.desc(0, desc(0, u32::MAX, NEXT, 1));
    rig.desc(1, desc(0, 1, WRITE, 0));
    rig.offer(0);
    assert_eq!(rig.error(), RingError::TooLong { head: 0, len: 1 << 32 });
}

#[test]
fn indirect_tables_are_checked() {
    let indirect = |len, flags| error(&[desc(TABLES, len, INDIRECT | flags, 0)]);
    for len in [0, 8, 24, 16 * 1025, u32::MAX - 15] {
        assert_eq!(indirect(len, 0), RingError::IndirectTableSize { len });
    }
    assert_eq!(indirect(16, NEXT), RingError::IndirectWithNext);
    let unmapped = DmaError::Unmapped { addr: END, len: 16 };
    assert_eq!(error(&[desc(END - 16, 32, INDIRECT, 0)]), RingError::Memory(unmapped));

    let mut rig = Rig::new(4, PLAIN);
    rig.desc(0, desc(TABLES, 16, INDIRECT, 0));
    rig.offer(0);
    assert_eq!(rig.error(), RingError::IndirectNotNegotiated);

    for (entry, expected) in [
        (desc(TABLES, 16, INDIRECT, 0), RingError::IndirectNested),
        (desc(BUFFERS, 1, NEXT, 0), RingError::Loop { head: 0 }),
        (desc(BUFFERS, 1, NEXT, 2), RingError::NextOutOfRange { next: 2, size: 2 }),
    ] {
        let mut rig = Rig::new(4, ALL);
        rig.view.write(TABLES, &entry).unwrap();
        rig.desc(0, desc(TABLES, 32, INDIRECT, 0));
        rig.offer(0);
        assert_eq!(rig.error(), expected);
    }
}

#[test]
fn what_is_in_flight_can_be_returned_after_a_failure() {
    let mut rig = Rig::new(4, ALL);
    rig.desc(0, desc(BUFFERS, 1, 0, 0));
    rig.offer(0);
    let head = rig.pop().unwrap().unwrap();
    rig.offer(9);
    rig.error();
    rig.queue.push_used(head, 0);
    rig.queue.publish();
    rig.queue.undo_pop(1);
    assert_eq!(rig.used_idx(), 1);
    assert!(rig.pop().is_err());
}
