use super::*;
use crate::worker::Time;
use proptest::prelude::*;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn range(iova: u64, len: u64) -> IovaRange {
    IovaRange::new(iova, len).unwrap()
}

fn spans(ranges: &[(u64, u64)]) -> IovaSpans {
    let mut spans = IovaSpans::EMPTY;
    for &(iova, len) in ranges {
        spans.add(range(iova, len));
    }
    spans
}

fn is_done(ticket: &mut InvalidateTicket) -> bool {
    ticket.poll(Time::ZERO) == InvalidateStatus::Done
}

/// A queue that holds these in slot 0, between two turns.
fn pinned(board: &Arc<PinBoard>, held: &IovaSpans) -> PinTable {
    let mut pins = PinTable::new(board, 4);
    pins.enter();
    pins.pin(0, held);
    pins.leave();
    pins
}

fn unpin(pins: &mut PinTable, slot: usize) {
    pins.enter();
    pins.unpin(slot);
    pins.leave();
}

#[test]
fn ranges_reach_the_ends_of_the_space() {
    assert_eq!(IovaRange::new(7, 0), None);
    assert_eq!(IovaRange::new(u64::MAX, 2), None);
    let last = range(u64::MAX, 1);
    assert!(last.overlaps(IovaRange::ALL) && IovaRange::ALL.overlaps(range(0, 1)));
    assert!(!last.overlaps(range(0, 1)) && !last.touches(range(0, 1)));
    assert!(range(0, 4096).touches(range(4096, 1)) && !range(0, 4096).overlaps(range(4096, 1)));
}

proptest! {
    #[test]
    fn spans_hold_all_and_four_exactly(ranges in prop::collection::vec((0..64_u64, 1..8_u64), 0..10)) {
        let spans = spans(&ranges);
        let covered = |at: u64, ranges: &[IovaRange]| ranges.iter().any(|held| held.overlaps(range(at, 1)));
        let exact: Vec<_> = ranges.iter().map(|&(iova, len)| range(iova, len)).collect();
        for at in 0..80 {
            prop_assert!(!covered(at, &exact) || covered(at, spans.ranges()));
            if ranges.len() <= IovaSpans::MAX {
                prop_assert_eq!(covered(at, &exact), covered(at, spans.ranges()));
            }
        }
    }
}

#[test]
fn many_pieces_that_adjoin_are_held_exactly() {
    // A table, a header, data in eight pages of two places, and a status behind the header.
    let mut ranges = vec![(0x10_0000, 64), (0x20_0000, 16)];
    ranges.extend((0..8).map(|page| (0x30_0000 + page % 2 * 0x10_0000 + page / 2 * 0x1000, 0x1000)));
    ranges.push((0x20_0010, 1));
    let spans = spans(&ranges);
    let held: u64 = spans.ranges().iter().map(|range| range.last() - range.first() + 1).sum();
    assert_eq!(held, 64 + 17 + 8 * 0x1000, "{spans:?}");
    for (iova, len) in ranges {
        let whole = |held: &IovaRange| held.first() <= iova && iova + len - 1 <= held.last();
        assert!(spans.ranges().iter().any(whole));
    }
}

#[test]
fn an_invalidation_waits_for_overlapping_pins_only() {
    let board = PinBoard::new();
    let mut pins = pinned(&board, &spans(&[(0x1000, 0x1000), (0x8000, 0x10)]));
    assert!(is_done(&mut board.invalidate(range(0x2000, 0x6000))), "between what is held");
    let mut ticket = board.invalidate(range(0x800f, 1));
    let mut all = board.invalidate(IovaRange::ALL);
    assert!(!is_done(&mut ticket) && !is_done(&mut all));
    // A later request at the same place was translated later.
    pins.enter();
    pins.pin(1, &spans(&[(0x8000, 0x1000)]));
    pins.leave();
    unpin(&mut pins, 0);
    assert!(is_done(&mut ticket) && is_done(&mut all));
    let mut ticket = board.invalidate(range(0x8000, 1));
    assert!(!is_done(&mut ticket));
    unpin(&mut pins, 1);
    assert!(is_done(&mut ticket));
}

#[test]
fn an_invalidation_waits_for_the_turn_under_way_and_no_other() {
    let board = PinBoard::new();
    let mut pins = PinTable::new(&board, 1);
    pins.enter();
    let mut ticket = board.invalidate(range(0, 1));
    assert!(!is_done(&mut ticket));
    pins.leave();
    pins.enter();
    assert!(is_done(&mut ticket), "this is another turn");
    pins.leave();
}

#[test]
fn a_queue_that_is_gone_holds_what_was_in_flight_and_nothing_else() {
    let board = PinBoard::new();
    let mut pins = PinTable::new(&board, 2);
    pins.enter();
    let mut turn = board.invalidate(IovaRange::ALL);
    drop(pins);
    assert!(is_done(&mut turn));
    drop(pinned(&board, &spans(&[(0x1000, 0x1000)])));
    assert!(is_done(&mut board.invalidate(range(0x2000, 1))));
    assert!(!is_done(&mut board.invalidate(range(0x1000, 1))), "somebody may still write there");
}

#[test]
fn a_slot_that_is_used_twice_holds_both_until_both_are_released() {
    let board = PinBoard::new();
    let mut pins = pinned(&board, &spans(&[(0x1000, 0x1000)]));
    pins.enter();
    pins.pin(0, &spans(&[(0x4000, 0x1000)]));
    pins.leave();
    let mut first = board.invalidate(range(0x1000, 1));
    let mut second = board.invalidate(range(0x4fff, 1));
    unpin(&mut pins, 0);
    assert!(!is_done(&mut first) && !is_done(&mut second));
    unpin(&mut pins, 0);
    assert!(is_done(&mut first) && is_done(&mut second));
    unpin(&mut pins, 0);
    assert_eq!(pins.held(), 0);
}

#[test]
fn a_lease_is_waited_for() {
    let board = PinBoard::new();
    let lease = board.lease(range(0x1000, 0x1000));
    assert!(is_done(&mut board.invalidate(range(0x2000, 1))));
    let mut ticket = board.invalidate(range(0x1fff, 1));
    let _later = board.lease(range(0x1000, 0x1000));
    assert!(!is_done(&mut ticket));
    drop(lease);
    assert!(is_done(&mut ticket));
}

#[test]
fn the_waker_tells_when_to_poll() {
    let board = PinBoard::new();
    let mut pins = pinned(&board, &spans(&[(0, 1)]));
    let woken = Arc::new(AtomicU32::new(0));
    let count = woken.clone();
    let waker: PinWaker = Arc::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let mut ticket = board.invalidate(range(0, 1));
    ticket.set_waker(&waker);
    assert!(!is_done(&mut ticket));
    unpin(&mut pins, 0);
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    assert!(is_done(&mut ticket));
    pins.enter();
    pins.leave();
    assert_eq!(woken.load(Ordering::Relaxed), 1, "nobody waits any more");
}

#[test]
fn a_device_that_does_not_let_go_is_reported_once_and_waited_for() {
    let board = PinBoard::new();
    board.set_stuck_policy(StuckPolicy::ReportAfter(Duration::from_secs(2)));
    let reports = Arc::new(Mutex::new(Vec::new()));
    let seen = reports.clone();
    board.on_stuck(Arc::new(move |report| seen.lock().unwrap().push(*report)));
    let mut pins = pinned(&board, &spans(&[(0x1000, 0x1000)]));
    let at = |seconds: u64| Time::ZERO + Duration::from_secs(seconds);
    let mut ticket = board.invalidate(range(0x1000, 0x10));
    assert_eq!(ticket.deadline(), None);
    assert_eq!(ticket.poll(at(10)), InvalidateStatus::Waiting);
    assert_eq!(ticket.deadline(), Some(at(12)));
    assert_eq!(ticket.poll(at(11)), InvalidateStatus::Waiting);
    assert_eq!(ticket.poll(at(13)), InvalidateStatus::Stuck);
    assert_eq!(ticket.poll(at(99)), InvalidateStatus::Stuck);
    assert_eq!(ticket.deadline(), None);
    let report = StuckReport { range: range(0x1000, 0x10), waited: Duration::from_secs(3), requests: 1 };
    assert_eq!(*reports.lock().unwrap(), [report]);
    unpin(&mut pins, 0);
    assert_eq!(ticket.poll(at(100)), InvalidateStatus::Done);

    board.set_stuck_policy(StuckPolicy::WaitForever);
    let _pins = pinned(&board, &spans(&[(0x1000, 0x1000)]));
    let mut ticket = board.invalidate(IovaRange::ALL);
    assert_eq!(ticket.poll(at(0)), InvalidateStatus::Waiting);
    assert_eq!(ticket.poll(at(u64::from(u32::MAX))), InvalidateStatus::Waiting);
    assert_eq!(reports.lock().unwrap().len(), 1);
}
