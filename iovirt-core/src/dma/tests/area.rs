//! Areas for rings.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::{dirty, logged, view};
use crate::dma::{Access, DmaError, DmaSpace, Region};

#[test]
fn fields_are_little_endian() {
    let view = view();
    let area = view.map_area::<16>(0x100, 0x20, Access::Write).unwrap();
    area.store_u16(2, 0x1234, Release);
    area.store_u32(4, 0x5678_9abc, Relaxed);
    area.store_u64(8, 0x0102_0304_0506_0708, Relaxed);
    assert_eq!(area.read_bytes(0), [0, 0, 0x34, 0x12, 0xbc, 0x9a, 0x78, 0x56, 8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!((area.load_u16(2, Acquire), area.load_u32(4, Relaxed)), (0x1234, 0x5678_9abc));
    area.write_bytes(30, &[0xaa, 0xbb]);
    assert_eq!(view.read_array(0x11e).unwrap(), [0xaa, 0xbb]);
    assert_eq!((area.len(), area.physical(), area.load_u16(30, Relaxed)), (0x20, 0x100, 0xbbaa));
}

#[test]
fn pairs_are_two_fields() {
    let view = view();
    let area = view.map_area::<8>(0x100, 0x20, Access::Write).unwrap();
    area.store_u32_pair(4, [1, 2]);
    area.store_u32_pair(0x18, [3, 4]);
    assert_eq!(area.load_u64_pair(0), Some([1 << 32, 2]));
    assert_eq!(area.load_u64_pair(0x10), Some([0, 3 | 4 << 32]));
    assert_eq!((area.load_u64_pair(0x18), area.load_u64_pair(usize::MAX - 7)), (None, None));
    for offset in [0x1c, 0x20, 0x1e, usize::MAX - 3] {
        let store = || area.store_u32_pair(offset, [0, 0]);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(store)).is_err());
    }
}

#[test]
fn an_area_must_be_in_one_piece() {
    let view = view();
    assert_eq!(
        view.map_area::<2>(0x101, 2, Access::Read).unwrap_err(),
        DmaError::Misaligned { addr: 0x101, align: 2 }
    );
    assert!(matches!(
        view.map_area::<2>(0x2ff0, 0x20, Access::Read),
        Err(DmaError::Unmapped { addr: 0x3000, .. })
    ));
    assert!(matches!(view.map_area::<2>(0x2000, 0, Access::Read), Err(DmaError::Unmapped { .. })));
    assert!(matches!(view.map_area::<2>(u64::MAX - 1, 4, Access::Read), Err(DmaError::Overflow { .. })));
    let rom = Region::anonymous(0, 0x1000).unwrap().read_only();
    let view = DmaSpace::from_regions(vec![rom]).unwrap().view();
    assert!(matches!(view.map_area::<2>(0, 4, Access::Write), Err(DmaError::ReadOnly { .. })));
}

#[test]
fn dirty_marks_are_relative_to_the_region() {
    let (region, log) = logged(0x10000, 0x4000);
    let view = DmaSpace::from_regions(vec![region, Region::anonymous(0, 0x1000).unwrap()]).unwrap().view();
    let area = view.map_area::<2>(0x11800, 0x1000, Access::Write).unwrap();
    area.mark_dirty(0, 4);
    assert_eq!(dirty(&log), [0x1000]);
    area.mark_dirty(0x7ff, 2);
    assert_eq!(dirty(&log), [0x1000, 0x2000]);
}

#[test]
#[should_panic(expected = "access beyond a mapped area")]
fn a_store_to_an_area_for_reading_is_a_bug() {
    view().map_area::<2>(0, 16, Access::Read).unwrap().store_u16(0, 1, Relaxed);
}

#[test]
#[should_panic(expected = "misaligned access")]
fn a_misaligned_load_is_a_bug() {
    view().map_area::<2>(0, 16, Access::Read).unwrap().load_u16(1, Relaxed);
}

#[test]
#[should_panic(expected = "access beyond a mapped area")]
fn a_load_across_the_end_is_a_bug() {
    view().map_area::<8>(0, 16, Access::Read).unwrap().load_u64(16, Relaxed);
}
