//! Scatter-gather lists, by hand and against a plain vector of bytes.

use std::sync::Arc;

use proptest::prelude::*;

use super::{dirty, logged, view};
use crate::dma::{Access, DmaError, DmaSpace, DmaView, HostBuffer, MemoryMap, Region, SgLimits, SgList};

fn bytes(list: &SgList) -> Vec<u8> {
    let mut bytes = vec![0; list.len() as usize];
    list.copy_to(0, &mut bytes).unwrap();
    bytes
}

fn guest(view: &DmaView, pieces: &[(u64, u64)], access: Access) -> SgList {
    let mut list = SgList::new();
    for &(addr, len) in pieces {
        list.push(view, addr, len, access).unwrap();
    }
    list
}

#[test]
fn segments_follow_regions() {
    let view = view();
    let list = guest(&view, &[(0x1ff0, 0x20), (0x10000, 0), (0x10000, 8)], Access::Write);
    let segments: Vec<_> = list.segments().map(|s| (s.guest_addr().unwrap(), s.len())).collect();
    assert_eq!(segments, [(0x1ff0, 0x10), (0x2000, 0x10), (0x10000, 8)]);
    assert_eq!(list.len(), 0x28);
    assert!(list.is_aligned(8, 8) && list.is_aligned(0, 0) && !list.is_aligned(512, 8));
}

#[test]
fn limits_hold_and_leave_the_list_alone() {
    let view = view();
    let mut list = SgList::with_limits(SgLimits { segments: 2, host_bytes: 5000 });
    list.push(&view, 0x10000, 8, Access::Write).unwrap();
    let full = Err(DmaError::TooManySegments { max: 2 });
    assert_eq!(list.push(&view, 0x1ff0, 0x20, Access::Write), full);
    assert_eq!((list.len(), list.as_iovecs().len()), (8, 1));
    list.push(&view, 0, 6000, Access::Write).unwrap();
    assert_eq!(list.push(&view, 0, 1, Access::Write), full);
    let large = Err(DmaError::BufferTooLarge { max: 5000 });
    assert_eq!(list.make_stable(), large);
    assert!(!list.is_stable());
    assert_eq!(list.push_host(5001), large);
    assert_eq!(list.push_host(usize::MAX), large);
    let mut small = SgList::with_limits(SgLimits { segments: 1, host_bytes: 0 });
    assert_eq!(list.slice_into(4, 8, &mut small), Err(DmaError::TooManySegments { max: 1 }));
    assert_eq!(small.len(), 0);
}

#[test]
fn ranges_are_checked() {
    let view = view();
    let mut list = guest(&view, &[(0, 16)], Access::Write);
    for (offset, len) in [(0u64, 17u64), (16, 1), (17, 0), (u64::MAX, 1), (1, u64::MAX)] {
        let out = DmaError::OutOfRange { offset, len };
        assert_eq!(list.fill(offset, len, 0), Err(out));
        assert_eq!(list.slice_into(offset, len, &mut SgList::new()), Err(out));
    }
    assert_eq!(list.copy_to(16, &mut []), Ok(()));
    assert_eq!(list.copy_from(15, &[0; 2]), Err(DmaError::OutOfRange { offset: 15, len: 2 }));
}

#[test]
fn a_push_that_fails_does_not_make_a_list_read_only() {
    let view = view();
    let mut list = SgList::with_limits(SgLimits { segments: 2, host_bytes: 0 });
    list.push(&view, 0x10000, 8, Access::Write).unwrap();
    // Half way: the first of two regions is there, the second is not.
    list.push(&view, 0x3000 - 4, 8, Access::Read).unwrap_err();
    assert!(!list.is_read_only());
    list.push(&view, 0, 8, Access::Write).unwrap();
    list.push(&view, 0, 8, Access::Read).unwrap_err();
    assert!(!list.is_read_only());
    assert_eq!(list.copy_from(0, &[1; 16]), Ok(()));
}

#[test]
fn what_the_device_may_only_read_is_not_written() {
    let view = view();
    let mut list = guest(&view, &[(0x20, 16)], Access::Read);
    let refused = Err(DmaError::ReadOnly { addr: 0x20, len: 1 });
    assert_eq!(list.copy_from(0, &[1]), refused);
    assert_eq!(list.fill(0, 1, 1), refused);
    let mut slice = SgList::new();
    list.slice_into(4, 4, &mut slice).unwrap();
    assert!(slice.is_read_only());
    list.make_stable().unwrap();
    list.copy_from(0, &[1]).unwrap();
    assert_eq!(view.read_array(0x20).unwrap(), [0], "a stable copy is not the guest's memory");
    list.clear();
    list.push(&view, 0, 1, Access::Write).unwrap();
    assert!(!list.is_read_only());
}

#[test]
fn a_stable_copy_is_made_once() {
    let view = view();
    view.write(0x1ff8, &[1; 16]).unwrap();
    let mut list = guest(&view, &[(0x1ff8, 16)], Access::Read);
    list.make_stable().unwrap();
    let first = list.as_iovecs()[0].as_ptr();
    view.write(0x1ff8, &[2; 16]).unwrap();
    list.make_stable().unwrap();
    assert_eq!((list.as_iovecs().len(), list.as_iovecs()[0].as_ptr()), (1, first));
    assert_eq!(bytes(&list), [1; 16]);
    list.host_bytes().unwrap()[3] = 9;
    assert_eq!(bytes(&list)[3], 9);
    assert!(list.is_stable() && list.is_aligned(4096, 16));

    let mut slice = SgList::new();
    list.slice_into(2, 4, &mut slice).unwrap();
    assert!(list.host_bytes().is_none(), "shared with a slice");
    assert!(slice.host_bytes().is_none(), "somebody else's buffer");
    list.clear();
    drop(list);
    assert_eq!(bytes(&slice), [1, 9, 1, 1], "a slice keeps the buffer");
}

#[test]
fn the_buffer_is_reused_unless_a_slice_holds_it() {
    let view = view();
    let mut list = guest(&view, &[(0, 16)], Access::Read);
    list.make_stable().unwrap();
    let first = list.as_iovecs()[0].as_ptr();
    list.clear();
    list.push_host(100).unwrap();
    assert_eq!(list.as_iovecs()[0].as_ptr(), first);
    let mut slice = SgList::new();
    list.slice_into(0, 100, &mut slice).unwrap();
    list.clear();
    list.push_host(100).unwrap();
    assert_ne!(list.as_iovecs()[0].as_ptr(), first);
}

#[test]
fn a_copy_lies_in_host_memory_of_its_own() {
    let view = view();
    view.write(0x1ff8, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).unwrap();
    for pieces in [&[(0x1ff8, 4)][..], &[(0x1ffa, 3), (0x1ffe, 4)], &[]] {
        let from = guest(&view, pieces, Access::Read);
        let mut list = SgList::with_limits(SgLimits { segments: 3, host_bytes: 0x5000 });
        list.push_copy(&from).unwrap();
        list.push_host(0x2000).unwrap();
        list.push_copy(&from).unwrap();
        let (len, all) = (from.len() as usize, bytes(&list));
        assert_eq!((&all[..len], &all[len + 0x2000..]), (&bytes(&from)[..], &bytes(&from)[..]));
        assert!(list.is_stable() && !list.is_read_only());
        list.fill(len as u64, 0x2000, 0xff).unwrap();
        assert_eq!(bytes(&list)[..len], bytes(&from), "what follows lies elsewhere");
    }
    let mut small = SgList::with_limits(SgLimits { segments: 1, host_bytes: 3 });
    let from = guest(&view, &[(0x1ff8, 4)], Access::Read);
    assert_eq!(small.push_copy(&from), Err(DmaError::BufferTooLarge { max: 3 }));
    assert!(small.is_empty());
}

#[test]
fn a_checked_header_and_a_payload_without_a_copy() {
    let view = view();
    view.write(0x1000, &[7; 8]).unwrap();
    let mut list = SgList::new();
    list.push_host(4).unwrap();
    list.copy_from(0, &[1, 2, 3, 4]).unwrap();
    list.push(&view, 0x1000, 8, Access::Write).unwrap();
    list.push_host(5000).unwrap();
    list.push_buffer(&Arc::new(HostBuffer::new(10)), 4, 2).unwrap();
    assert_eq!(bytes(&list)[..12], [1, 2, 3, 4, 7, 7, 7, 7, 7, 7, 7, 7]);
    let kinds: Vec<_> = list.segments().map(|s| s.guest_addr()).collect();
    assert_eq!(kinds, [None, Some(0x1000), None, None]);
    let before = bytes(&list);
    list.make_stable().unwrap();
    assert_eq!((bytes(&list), list.as_iovecs().len()), (before, 4));
    let out = Err(DmaError::OutOfRange { offset: 4090, len: 7 });
    assert_eq!(list.push_buffer(&Arc::new(HostBuffer::new(10)), 4090, 7), out);
}

#[test]
fn a_list_holds_the_maps_of_its_segments() {
    let space = DmaSpace::anonymous(&[(0, 0x1000)]).unwrap();
    let mut view = space.view();
    view.write(0, &[1; 4]).unwrap();
    let old = Arc::downgrade(view.map());
    let mut list = guest(&view, &[(0, 4)], Access::Write);
    space.replace(MemoryMap::new(vec![Region::anonymous(0, 0x1000).unwrap()]).unwrap());
    view.refresh();
    list.push(&view, 0, 4, Access::Write).unwrap();
    assert_eq!(bytes(&list), [1, 1, 1, 1, 0, 0, 0, 0]);
    let mut slice = SgList::new();
    list.slice_into(2, 4, &mut slice).unwrap();
    drop(list);
    assert!(old.upgrade().is_some());
    assert_eq!(bytes(&slice), [1, 1, 0, 0]);
    slice.clear();
    slice.push(&view, 0, 4, Access::Write).unwrap();
    drop(slice);
    assert!(old.upgrade().is_none());
}

#[test]
fn a_log_that_starts_in_flight_gets_its_pages() {
    let region = Region::anonymous(0, 0x4000).unwrap();
    let space = DmaSpace::from_regions(vec![region.clone()]).unwrap();
    let mut view = space.view();
    let list = guest(&view, &[(0x1ffc, 8), (0x3000, 8)], Access::Write);
    let log = Arc::new(crate::dma::PageLog::new(0x4000));
    space.replace(MemoryMap::new(vec![region.with_dirty_log(log.clone())]).unwrap());
    view.refresh();
    list.mark_dirty(&view, 8);
    assert_eq!(dirty(&log), [0x1000, 0x2000]);
    list.mark_dirty(&view, u64::MAX);
    assert_eq!(dirty(&log), [0x1000, 0x2000, 0x3000]);
}

#[test]
fn only_guest_memory_is_marked() {
    let (region, log) = logged(0, 0x4000);
    let view = DmaSpace::from_regions(vec![region]).unwrap().view();
    let mut list = guest(&view, &[(0x1000, 8)], Access::Write);
    list.copy_from(0, &[1; 8]).unwrap();
    assert!(dirty(&log).is_empty(), "marking is apart");
    list.push_host(8).unwrap();
    list.mark_dirty(&view, 16);
    assert_eq!(dirty(&log), [0x1000]);
}

#[test]
fn lists_exchange_what_they_hold() {
    let view = view();
    let mut chain = guest(&view, &[(0x1ff0, 0x20)], Access::Read);
    let mut request = SgList::with_limits(SgLimits { segments: 2, host_bytes: 100 });
    request.arm(3);
    request.push_host(10).unwrap();
    request.fill(0, 10, 5).unwrap();
    request.swap_segments(&mut chain).unwrap();
    assert_eq!((request.len(), request.is_read_only(), request.disarm()), (0x20, true, Some(3)));
    assert_eq!((bytes(&chain), chain.disarm()), (vec![5; 10], None));
    let mut small = SgList::with_limits(SgLimits { segments: 1, host_bytes: 0 });
    assert_eq!(small.swap_segments(&mut request), Err(DmaError::TooManySegments { max: 1 }));
    assert_eq!((small.len(), request.len()), (0, 0x20));
}

#[test]
fn a_slice_of_one_segment_is_as_any_other() {
    let (here, elsewhere) = (view(), view());
    for (view, access) in [(&here, Access::Read), (&here, Access::Write), (&elsewhere, Access::Read)] {
        let from = guest(view, &[(0x100, 64)], access);
        // Of the same map, of another one, and of none.
        for mut to in [guest(&here, &[(0, 4)], Access::Write), SgList::with_limits(SgLimits::default())] {
            let before = to.len();
            from.slice_into(12, 52, &mut to).unwrap();
            let last = to.segments().last().unwrap();
            assert_eq!((last.guest_addr(), last.len(), to.len()), (Some(0x10c), 52, before + 52));
            assert_eq!(last.iovec().as_ptr(), from.as_iovecs()[0].as_ptr().wrapping_add(12));
            assert_eq!(to.is_read_only(), access == Access::Read);
        }
    }
    let from = guest(&here, &[(0x100, 64)], Access::Read);
    let mut full = SgList::with_limits(SgLimits { segments: 1, host_bytes: 0 });
    full.push(&here, 0, 4, Access::Write).unwrap();
    assert_eq!(from.slice_into(0, 64, &mut full), Err(DmaError::TooManySegments { max: 1 }));
    assert_eq!(from.slice_into(60, 5, &mut full), Err(DmaError::OutOfRange { offset: 60, len: 5 }));
    assert!(!full.is_read_only() && full.len() == 4);
}

#[test]
fn zeroes_are_seen() {
    let view = view();
    let mut list = guest(&view, &[(0x100, 0x1000), (0x2000, 100)], Access::Write);
    assert!(list.is_zero() && SgList::new().is_zero());
    list.fill(list.len() - 1, 1, 1).unwrap();
    assert!(!list.is_zero());
}

/// A list of 1 to 8 segments of guest and host memory, none of which overlap, with distinct contents.
fn any_list() -> impl Strategy<Value = (DmaView, SgList, Vec<u8>)> {
    let piece = (any::<bool>(), 0u64..300, 1u64..400);
    (proptest::collection::vec(piece, 1..8), any::<u8>()).prop_map(|(pieces, seed)| {
        let view = DmaSpace::anonymous(&[(0x40, 0x400), (0x440, 0x3000)]).unwrap().view();
        let (mut list, mut addr) = (SgList::new(), 0x40);
        for (host, gap, len) in pieces {
            if host {
                list.push_host(len as usize).unwrap();
            } else {
                list.push(&view, addr + gap, len, Access::Write).unwrap();
                addr += gap + len;
            }
        }
        let model: Vec<u8> = (0..list.len()).map(|at| (at as u8).wrapping_mul(31) ^ seed).collect();
        list.copy_from(0, &model).unwrap();
        (view, list, model)
    })
}

#[derive(Debug, Clone)]
enum Step {
    Front(u64),
    Back(u64),
    Write(u16, Vec<u8>),
    Fill(u16, u16, u8),
    Slice(u16, u16),
    Stable,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0u64..500).prop_map(Step::Front),
        (0u64..500).prop_map(Step::Back),
        (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..600)).prop_map(|(at, b)| Step::Write(at, b)),
        (any::<u16>(), any::<u16>(), any::<u8>()).prop_map(|(at, len, byte)| Step::Fill(at, len, byte)),
        (any::<u16>(), any::<u16>()).prop_map(|(at, len)| Step::Slice(at, len)),
        Just(Step::Stable),
    ]
}

/// Brings (offset, length) into a list of `size` bytes.
fn fit(at: u16, len: usize, size: usize) -> (usize, usize) {
    let at = usize::from(at) % (size + 1);
    (at, len.min(size - at))
}

proptest! {
    #[test]
    fn lists_agree_with_a_vector((_view, mut list, mut model) in any_list(), steps in proptest::collection::vec(any_step(), 0..12)) {
        for step in steps {
            match step {
                Step::Front(count) => {
                    list.trim_front(count);
                    model.drain(..model.len().min(count as usize));
                }
                Step::Back(count) => {
                    list.trim_back(count);
                    model.truncate(model.len().saturating_sub(count as usize));
                }
                Step::Write(at, data) => {
                    let (at, len) = fit(at, data.len(), model.len());
                    list.copy_from(at as u64, &data[..len]).unwrap();
                    model[at..at + len].copy_from_slice(&data[..len]);
                }
                Step::Fill(at, len, byte) => {
                    let (at, len) = fit(at, usize::from(len), model.len());
                    list.fill(at as u64, len as u64, byte).unwrap();
                    model[at..at + len].fill(byte);
                }
                Step::Slice(at, len) => {
                    let (at, len) = fit(at, usize::from(len), model.len());
                    let mut slice = SgList::new();
                    slice.push_host(3).unwrap();
                    slice.fill(0, 3, 0xee).unwrap();
                    list.slice_into(at as u64, len as u64, &mut slice).unwrap();
                    prop_assert_eq!(&bytes(&slice)[3..], &model[at..at + len]);
                }
                Step::Stable => {
                    list.make_stable().unwrap();
                    prop_assert!(list.is_stable());
                }
            }
            prop_assert_eq!(&bytes(&list), &model);
            prop_assert_eq!(list.segments().map(|s| s.len()).sum::<u64>(), list.len());
            prop_assert!(list.segments().all(|s| !s.is_empty()));
        }
    }

    #[test]
    fn copies_between_lists_agree_with_vectors(
        (_a, mut to, mut to_model) in any_list(),
        (_b, from, from_model) in any_list(),
        (at, from_at, len) in any::<(u16, u16, u16)>(),
    ) {
        let (at, len) = fit(at, usize::from(len) % 2000, to_model.len());
        let (from_at, len) = fit(from_at, len, from_model.len());
        to.copy_sg(at as u64, &from, from_at as u64, len as u64).unwrap();
        to_model[at..at + len].copy_from_slice(&from_model[from_at..from_at + len]);
        prop_assert_eq!(bytes(&to), to_model);
    }

    /// Guest addresses stay right through trims: what they name is what the list holds.
    #[test]
    fn addresses_follow_trims((view, mut list, _) in any_list(), front in 0u64..1000, back in 0u64..1000) {
        list.trim_front(front);
        list.trim_back(back);
        let mut offset = 0;
        for segment in list.segments() {
            let (mut here, mut there) = (vec![0; segment.len() as usize], vec![0; segment.len() as usize]);
            list.copy_to(offset, &mut here).unwrap();
            offset += segment.len();
            if let Some(addr) = segment.guest_addr() {
                view.read(addr, &mut there).unwrap();
                prop_assert_eq!(here, there);
            }
        }
    }
}

#[test]
fn the_room_of_a_long_chain_does_not_wander() {
    let view = view();
    let mut chain = SgList::with_limits(SgLimits { segments: 1 << 16, host_bytes: 0 });
    for index in 0..4000 {
        chain.push(&view, 0x10000 + index % 4096, 1, Access::Write).unwrap();
    }
    let mut request = SgList::with_limits(SgLimits { segments: 20, host_bytes: 0 });
    assert!(request.swap_segments(&mut chain).is_err());
    chain.clear();
    chain.push(&view, 0x10000, 16, Access::Read).unwrap();
    chain.push(&view, 0x1ff0, 0x20, Access::Read).unwrap();
    request.swap_segments(&mut chain).unwrap();
    assert!(chain.is_empty() && request.is_read_only());
    let segments: Vec<_> = request.segments().map(|s| (s.guest_addr().unwrap(), s.len())).collect();
    assert_eq!(segments, [(0x10000, 16), (0x1ff0, 0x10), (0x2000, 0x10)]);
    assert!(request.room() <= 20, "room for {} segments", request.room());
}
