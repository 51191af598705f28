//! The record of chains in flight: a front-end that comes back finds each of its requests done, once.

use super::raw::{ALL_PROTOCOL, NEED_REPLY, Raw, code, longs, memory, number, words};
use super::rig::{PATIENCE, Served, small, wait_until, within_limit};
use iovirt_core::frontend::Outcome;
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
use iovirt_core::test_utils::{ManualBackend, ManualHandle};
use iovirt_frontends::virtio::blk::{BlkConfig, VirtioBlk};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vhost_user_driver::session::Begin;
use vhost_user_driver::{BlkDriver, BlkQueue, BlkRequest, Operation};

/// A disk whose requests wait for the test's word.
pub(super) fn manual(queues: u16) -> (Served, ManualHandle<BlockRequest>) {
    manual_with_room(64, queues)
}

/// The same with room for so many on each queue.
fn manual_with_room(queue_size: u16, queues: u16) -> (Served, ManualHandle<BlockRequest>) {
    let (backend, handle) = ManualBackend::<BlockRequest>::new(BlockCaps::new(1 << 20));
    let config = BlkConfig { queues, queue_size, ..BlkConfig::default() };
    let disk = VirtioBlk::new(config, BoxBackend::new(backend)).unwrap();
    (Served::of(Arc::new(disk), 1, Duration::ZERO), handle)
}

#[test]
fn a_front_end_that_comes_back_finds_each_request_done_once() {
    within_limit("a front-end that comes back", || {
        let (served, handle) = manual(2);
        let mut driver = served.connect(&small(2));
        assert!(driver.session.tracks_inflight());
        for round in 0..20u16 {
            let mut sent = 0;
            for queue in &mut driver.queues {
                for slot in 0..queue.slots() {
                    let sector = u64::from(slot) * 8;
                    queue.submit(slot, BlkRequest { operation: Operation::Write, sector, len: 512 });
                    sent += 1;
                }
                queue.publish().unwrap();
            }
            wait_until("the requests arrive", || handle.in_flight().len() == sent);
            // Some are done before the front-end goes, and seen or not; the others are done when nobody is there, and once more.
            let ids: Vec<_> = handle.in_flight().iter().map(|request| request.id).collect();
            let early = usize::from(round) % 7;
            for id in &ids[..early] {
                assert!(handle.complete(*id, BlockOutput::Done));
            }
            if round % 2 == 0 {
                wait_until("they are counted", || handle.in_flight().len() == sent - early);
            }
            Raw::of(&mut driver).hang_up();
            let ended = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !ended.load(Ordering::Relaxed) {
                        handle.complete_all(BlockOutput::Done);
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
                driver.reconnect(&served.socket()).unwrap();
                let mut done = 0;
                for queue in &mut driver.queues {
                    while queue.queue().ring().in_flight() > 0 {
                        assert_eq!(queue.next(PATIENCE).unwrap().status, 0);
                        done += 1;
                    }
                    assert!(queue.complete().unwrap().is_none(), "one was done twice");
                }
                assert_eq!(done, sent, "round {round}");
                ended.store(true, Ordering::Relaxed);
            });
            assert!(handle.in_flight().is_empty());
        }
        assert_eq!(served.device().connections(), 21);
    });
}

/// A driver whose server is gone, with a record of 16 chains in flight, and what had them.
fn with_record() -> (BlkDriver, (Served, ManualHandle<BlockRequest>)) {
    let (mut served, handle) = manual(1);
    let mut driver = served.connect(&small(1));
    for slot in 0..16 {
        let sector = u64::from(slot) * 8;
        driver.queues[0].submit(slot, BlkRequest { operation: Operation::Write, sector, len: 512 });
    }
    driver.queues[0].publish().unwrap();
    wait_until("the requests arrive", || handle.in_flight().len() == 16);
    served.stop();
    (driver, (served, handle))
}

/// All that is in flight comes home at once, so that nothing is left to wake the queue but itself; and the driver rings no doorbell.
#[test]
fn a_device_with_little_room_serves_a_record_in_turns() {
    within_limit("a record", || {
        let (mut driver, (_first, stuck)) = with_record();
        let (second, handle) = manual_with_room(4, 1);
        driver.reconnect(&second.socket()).unwrap();
        for _ in 0..4 {
            wait_until("four of them arrive again", || handle.in_flight().len() == 4);
            assert_eq!(handle.complete_all(BlockOutput::Done), 4);
        }
        for _ in 0..16 {
            assert_eq!(driver.queues[0].next(PATIENCE).unwrap().status, 0);
        }
        stuck.complete_all(BlockOutput::Done);
    });
}

/// A drain waits until all of a record is served. Memory without the ring breaks it meanwhile: nothing of the record can be served any more, and
/// the drain ends with what is in flight.
#[test]
fn memory_without_the_ring_ends_a_drain_that_waits_for_a_record() {
    within_limit("a drain", || {
        let (mut driver, (_first, stuck)) = with_record();
        let (second, handle) = manual_with_room(4, 1);
        driver.reconnect(&second.socket()).unwrap();
        wait_until("four of them arrive again", || handle.in_flight().len() == 4);
        let drained = second.device().drain();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(handle.complete_all(BlockOutput::Done), 4);
        wait_until("the next four arrive though it is drained", || handle.in_flight().len() == 4);

        let raw = Raw::of(&mut driver);
        let elsewhere = memory(4096);
        let table = [words(&[1, 0]), longs(&[1 << 40, 4096, 1 << 40, 0])].concat();
        assert_eq!(raw.tell_with(code::SET_MEM_TABLE, &table, &[elsewhere.as_fd()]), 0);
        assert!(!drained.is_done(), "four are in flight");
        handle.complete_all(BlockOutput::Done);
        assert_eq!(drained.wait(PATIENCE), Some(Outcome::Done));
        assert!(handle.in_flight().is_empty(), "nothing can be read from the ring any more");

        raw.hang_up();
        stuck.complete_all(BlockOutput::Done);
        wait_until("it is let go of", || !second.device().is_connected());
        assert_eq!(second.device().resume().wait(PATIENCE), Some(Outcome::Done));
        let mut next = second.connect(&small(1));
        next.queues[0].submit(0, BlkRequest { operation: Operation::Write, sector: 8, len: 512 });
        next.queues[0].publish().unwrap();
        wait_until("the next one is served", || handle.complete_all(BlockOutput::Done) == 1);
        assert_eq!(next.queues[0].next(PATIENCE).unwrap().status, 0);
    });
}

/// A server that is stopped while a back-end is stuck ends after its patience, and a front-end that leaves meanwhile is not forgotten.
#[test]
fn a_stuck_back_end_does_not_keep_the_server_from_stopping() {
    within_limit("a stop", || {
        let (mut served, handle) = manual(1);
        let mut driver = served.connect(&small(1));
        let raw = Raw::of(&mut driver);
        raw.take_protocol(ALL_PROTOCOL);
        let queue = &mut driver.queues[0];
        queue.submit(0, BlkRequest { operation: Operation::Write, sector: 0, len: 512 });
        queue.publish().unwrap();
        wait_until("the request arrives", || handle.in_flight().len() == 1);
        raw.hang_up();
        std::thread::sleep(Duration::from_millis(50));
        assert!(served.device().is_connected(), "its request is in flight");
        assert!(served.stop() < PATIENCE);
        handle.complete_all(BlockOutput::Done);
    });
}

/// What was in flight when the device was reset is forgotten: the driver begins anew, and none of its old requests is made.
#[test]
fn a_reset_forgets_what_was_in_flight() {
    within_limit("a reset", || {
        let (served, handle) = manual(1);
        let mut driver = served.connect(&small(1));
        let raw = Raw::of(&mut driver);
        for slot in [2, 5, 7] {
            let request = BlkRequest { operation: Operation::Write, sector: 8, len: 512 };
            driver.queues[0].submit(slot, request);
        }
        driver.queues[0].publish().unwrap();
        wait_until("the requests arrive", || handle.in_flight().len() == 3);
        raw.send_as((code::RESET_DEVICE, NEED_REPLY, 0), &[], &[]).unwrap();
        // The reset waits for them, and throws their completions away.
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(handle.complete_all(BlockOutput::Done), 3);
        assert_eq!(number(&raw.answer().unwrap().0), 0);
        let mut queues: Vec<_> = driver.queues.drain(..).map(BlkQueue::into_queue).collect();
        // As a driver that begins: the ring is empty.
        let memory = queues[0].memory().clone();
        let places = *queues[0].ring().places();
        memory.fill(places.available, 6 + 2 * 64, 0);
        memory.fill(places.used, 6 + 8 * 64, 0);
        driver.session.start(&queues, &[Begin::At(0)]).unwrap();
        queues[0].ring_doorbell().unwrap();
        std::thread::sleep(Duration::from_millis(50));
        assert!(handle.in_flight().is_empty(), "{:?}", handle.in_flight());
        let status = number(&raw.ask(code::GET_STATUS, &[]));
        assert_eq!(status & 64, 0, "the ring is broken");
    });
}
