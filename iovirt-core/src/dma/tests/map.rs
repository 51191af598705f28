//! Maps, spaces, views.

use proptest::prelude::*;

use super::{dirty, logged, view};
use crate::dma::{Access, DmaError, DmaSpace, MapError, MemoryMap, PageLog, Region, shared_memory};

#[test]
fn regions_are_checked() {
    let region = |base, len| Region::anonymous(base, len);
    assert_eq!(region(0x1000, 0).unwrap_err(), MapError::EmptyRegion { base: 0x1000 });
    let top = u64::MAX - 0xfff;
    assert_eq!(region(top, 0x1000).unwrap_err(), MapError::Overflow { base: top, len: 0x1000 });
    assert_eq!(region(0, 1 << 63).unwrap_err(), MapError::Overflow { base: 0, len: 1 << 63 });
    let overlap = DmaSpace::anonymous(&[(0x2000, 0x1000), (0x1000, 0x1001)]).unwrap_err();
    assert_eq!(overlap, MapError::Overlap { first: 0x1000, second: 0x2000 });
    assert!(DmaSpace::anonymous(&[(0x2000, 0x1000), (0x1000, 0x1000)]).is_ok());
}

#[test]
fn the_last_addresses_work() {
    let base = u64::MAX - 0x1000;
    let view = DmaSpace::anonymous(&[(base, 0x1000)]).unwrap().view();
    view.write(u64::MAX - 4, &[1, 2, 3, 4]).unwrap();
    assert_eq!(view.read_array(u64::MAX - 4).unwrap(), [1, 2, 3, 4]);
    assert_eq!(view.read_array::<1>(u64::MAX), Err(DmaError::Overflow { addr: u64::MAX, len: 1 }));
    let over = DmaError::Overflow { addr: u64::MAX - 3, len: 5 };
    assert_eq!(view.read_array::<5>(u64::MAX - 3), Err(over));
    assert_eq!(view.write(base - 1, &[0; 2]), Err(DmaError::Unmapped { addr: base - 1, len: 2 }));
    assert_eq!(view.resolve(base, u64::MAX, Access::Read, &mut |_| ()).ok(), None);
}

#[test]
fn reads_and_writes_cross_regions() {
    let view = view();
    let bytes: Vec<u8> = (0..100).collect();
    view.write(0x2000 - 50, &bytes).unwrap();
    assert_eq!(view.read_array::<100>(0x2000 - 50).unwrap().to_vec(), bytes);
    assert_eq!(view.write(0x3000 - 4, &[9; 8]), Err(DmaError::Unmapped { addr: 0x3000, len: 4 }));
    assert_eq!(view.read_array(0x3000 - 4).unwrap(), [0; 4], "a failed write writes nothing");
}

#[test]
fn read_only_regions_refuse_devices() {
    let rom = Region::anonymous(0, 0x1000).unwrap().read_only();
    let view = DmaSpace::from_regions(vec![rom]).unwrap().view();
    assert_eq!(view.read_array(0).unwrap(), [0; 4]);
    assert_eq!(view.write(8, &[1; 4]), Err(DmaError::ReadOnly { addr: 8, len: 4 }));
    // Again, now that the view has used the region.
    assert_eq!(view.resolve(8, 4, Access::Write, &mut |_| ()), Err(DmaError::ReadOnly { addr: 8, len: 4 }));
}

#[test]
fn replace_is_seen_at_the_next_refresh() {
    let space = DmaSpace::anonymous(&[(0, 0x1000)]).unwrap();
    let mut view = space.clone().view();
    view.write(0, &[7]).unwrap();
    assert!(!view.refresh());
    let old = view.map().clone();
    space.replace(MemoryMap::new(vec![Region::anonymous(0x1000, 0x1000).unwrap()]).unwrap());
    assert_eq!(view.read_array(0).unwrap(), [7], "the old map serves until then");
    assert!(view.refresh());
    assert!(!view.refresh());
    assert_eq!(view.read_array::<1>(0), Err(DmaError::Unmapped { addr: 0, len: 1 }));
    assert_eq!(view.read_array(0x1000).unwrap(), [0]);
    assert_eq!(std::sync::Arc::strong_count(&old), 1, "nobody but us holds the old map");
}

#[test]
fn writes_are_logged_by_page() {
    let (region, log) = logged(0x1000, 0x4000);
    let view = DmaSpace::from_regions(vec![region]).unwrap().view();
    view.read_array::<64>(0x1000).unwrap();
    assert!(dirty(&log).is_empty());
    view.write(0x2fff, &[1, 2]).unwrap();
    assert_eq!(dirty(&log), [0x1000, 0x2000]);
    view.mark_dirty(0x4fff, u64::MAX);
    assert_eq!(dirty(&log), [0x3000]);
}

/// A request in flight may span what a new map has a hole in.
#[test]
fn marking_goes_on_behind_a_hole() {
    let ((low, low_log), (high, high_log)) = (logged(0x1000, 0x1000), logged(0x4000, 0x1000));
    let view = DmaSpace::from_regions(vec![low, high]).unwrap().view();
    view.mark_dirty(0, 0x4001);
    assert_eq!((dirty(&low_log), dirty(&high_log)), (vec![0], vec![0]));
    view.mark_dirty(0x1fff, 0x2001);
    assert_eq!((dirty(&low_log), dirty(&high_log)), (vec![0], vec![]));
}

#[test]
fn a_log_ignores_what_is_beyond_it() {
    use crate::dma::DirtyLog;
    let log = PageLog::new(0x1001);
    log.mark_dirty(0, 0);
    log.mark_dirty(0x2000, 1);
    log.mark_dirty(u64::MAX, u64::MAX);
    assert!(dirty(&log).is_empty());
    log.mark_dirty(0x1000, u64::MAX);
    assert!(log.is_dirty(0x1fff) && !log.is_dirty(0xfff) && !log.is_dirty(u64::MAX));
}

#[cfg(feature = "vm-memory")]
#[test]
fn guest_memory_of_an_embedder() {
    use vm_memory::bitmap::{AtomicBitmap, Bitmap};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

    let memory = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&[
        (GuestAddress(0), 0x4000),
        (GuestAddress(0x10000), 0x4000),
    ])
    .unwrap();
    let view = DmaSpace::from_guest_memory(&memory).unwrap().view();
    view.write(0x11ff8, &[5; 16]).unwrap();
    assert_eq!(memory.read_obj::<u64>(GuestAddress(0x12000)).unwrap(), 0x0505_0505_0505_0505);
    let region = memory.find_region(GuestAddress(0x10000)).unwrap();
    let pages: Vec<_> = (0..4).map(|page| region.bitmap().dirty_at(page * 0x1000)).collect();
    assert_eq!(pages, [false, true, true, false]);
    drop(memory);
    assert_eq!(view.read_array(0x11ff8).unwrap(), [5; 16]);

    let plain = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    assert!(!DmaSpace::from_guest_memory(&plain).unwrap().map().dirty_logging());
}

proptest! {
    /// Resolving yields exactly the mapped bytes in order, or an error if any is missing.
    #[test]
    fn resolve_agrees_with_a_byte_model(addr in 0u64..0x12000, len in 0u64..0x4000) {
        let view = view();
        let mapped = |at: u64| at < 0x3000 || (0x10000..0x11000).contains(&at);
        for _ in 0..2 {
            let mut at = addr;
            let result = view.resolve(addr, len, Access::Write, &mut |segment| {
                assert_eq!(segment.guest_addr(), Some(at));
                at += segment.len();
            });
            match (addr..addr + len).find(|&at| !mapped(at)) {
                None => prop_assert_eq!((result, at), (Ok(()), addr + len)),
                Some(hole) => prop_assert_eq!(result, Err(DmaError::Unmapped { addr: hole, len: addr + len - hole })),
            }
        }
    }
}

#[cfg(feature = "vm-memory")]
#[test]
fn guest_memory_that_cannot_be_read_is_refused() {
    use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let mapping = MmapRegion::<()>::build(None, 0x1000, libc::PROT_NONE, flags).unwrap();
    let region = GuestRegionMmap::new(mapping, GuestAddress(0x1000)).unwrap();
    let memory = GuestMemoryMmap::from_regions(vec![region]).unwrap();
    assert_eq!(DmaSpace::from_guest_memory(&memory).unwrap_err(), MapError::NotReadable { base: 0x1000 });
}

#[test]
fn a_region_of_a_file_shows_the_file() {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    let file = shared_memory(0x5000).unwrap();
    let region = Region::from_file(0x10_0000, 0x2800, file.as_fd(), 0x1800).unwrap();
    let view = DmaSpace::from_regions(vec![region]).unwrap().view();
    file.write_all_at(b"from the file", 0x1800).unwrap();
    assert_eq!(&view.read_array::<13>(0x10_0000).unwrap(), b"from the file");
    view.write(0x10_27ff, b"!").unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0x3fff).unwrap();
    assert_eq!(&byte, b"!");

    let beyond = Region::from_file(0, 0x2000, file.as_fd(), 0x3001).unwrap_err();
    assert_eq!(beyond, MapError::BeyondFile { base: 0, file_len: 0x5000 });
    let overflow = Region::from_file(0, 0x2000, file.as_fd(), u64::MAX).unwrap_err();
    assert_eq!(overflow, MapError::Overflow { base: 0, len: 0x2000 });
    let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(Region::from_file(0, 0x1000, socket.as_fd(), 0).is_err());
    assert!(file.set_len(0).is_err(), "nobody can shorten it");
}

#[test]
fn bits_are_set_beside_each_other() {
    use std::sync::atomic::Ordering;

    let view = DmaSpace::anonymous(&[(0, 0x1000)]).unwrap().view();
    let area = view.map_area::<1>(3, 9, Access::Write).unwrap();
    area.set_bits(8, 0b101, Ordering::SeqCst);
    area.set_bits(8, 0b10, Ordering::SeqCst);
    assert_eq!(area.load_u8(8, Ordering::SeqCst), 0b111);
    assert_eq!(view.read_array::<3>(10).unwrap(), [0, 0b111, 0]);
}
