//! The dirty log: what the device writes is in it from the moment it was switched on, and nothing after it was switched off.

use super::inflight::manual;
use super::protocol::load;
use super::raw::{ALL_PROTOCOL, LOG_ALL, Raw, code, content, longs, memory};
use super::rig::{DISK, Served, small, wait_until, within_limit};
use iovirt_core::request::block::BlockOutput;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vhost_user_driver::{BlkDriver, BlkRequest, Operation};

/// One bit for each page up to there: the driver's memory begins at 1 GiB.
const LOG_LEN: usize = (0x4000_0000 + (64 << 20)) / 4096 / 8;

struct Log {
    raw: Raw,
    features: u64,
    bitmap: OwnedFd,
}

impl Log {
    fn of(driver: &mut BlkDriver) -> Self {
        let raw = Raw::of(driver);
        raw.take_protocol(ALL_PROTOCOL);
        let features = driver.session.features() | 1 << 30;
        Self { raw, features, bitmap: memory(LOG_LEN as u64) }
    }

    fn place(&self) {
        let answer =
            self.raw.ask_with(code::SET_LOG_BASE, &longs(&[LOG_LEN as u64, 0]), &[self.bitmap.as_fd()]);
        assert_eq!(answer, [0; 8]);
    }

    fn switch(&self, on: u64) {
        assert_eq!(self.raw.tell_number(code::SET_FEATURES, self.features | on), 0);
    }

    fn is_marked(&self, page: u64) -> bool {
        content(&self.bitmap, LOG_LEN)[(page / 8) as usize] >> (page % 8) & 1 == 1
    }

    fn marks(&self) -> u32 {
        content(&self.bitmap, LOG_LEN).iter().map(|byte| byte.count_ones()).sum()
    }

    fn clear(&self) {
        let file = std::fs::File::from(self.bitmap.try_clone().unwrap());
        file.write_all_at(&vec![0; LOG_LEN], 0).unwrap();
    }
}

/// Pages that a read into a slot writes: its buffer, its status, and the used ring.
fn pages(driver: &BlkDriver, queue: usize, slot: u16) -> [u64; 3] {
    let queue = driver.queues[queue].queue();
    let used = queue.ring().places().used;
    [queue.buffer(slot), queue.header(slot) + 16, used].map(|at| queue.layout().guest_address(at) / 4096)
}

#[test]
fn what_is_written_is_marked_from_the_answer_on_and_not_after_the_end() {
    let served = Served::new(DISK, 1, Duration::ZERO);
    let mut driver = served.connect(&small(1));
    let log = Log::of(&mut driver);
    let mut back = [0; 512];
    driver.queues[0].read(0, &mut back).unwrap();
    log.place();
    driver.queues[0].read(0, &mut back).unwrap();
    assert_eq!(log.marks(), 0, "it is not switched on");
    for _ in 0..20 {
        log.switch(LOG_ALL);
        driver.queues[0].read(0, &mut back).unwrap();
        let expected = pages(&driver, 0, 0);
        for page in expected {
            assert!(log.is_marked(page), "page {page:#x} of {expected:x?}");
        }
        let most = expected.iter().collect::<std::collections::BTreeSet<_>>().len();
        assert!(log.marks() as usize <= most, "{} pages are marked", log.marks());
        log.switch(0);
        // Whoever read the answer finds all that was marked.
        log.clear();
        driver.queues[0].read(0, &mut back).unwrap();
        assert_eq!(log.marks(), 0, "it was switched off");
    }
    // A write changes the status and the used ring only.
    log.switch(LOG_ALL);
    driver.queues[0].write(0, &[1; 512]).unwrap();
    let [data, status, used] = pages(&driver, 0, 0);
    assert!(!log.is_marked(data) && log.is_marked(status) && log.is_marked(used));
}

/// A request that is under way when the log is switched on, or exchanged for another, is written to memory afterwards.
#[test]
fn requests_in_flight_are_marked_where_they_come_home() {
    within_limit("a request in flight", || {
        let (served, handle) = manual(1);
        let mut driver = served.connect(&small(1));
        let mut log = Log::of(&mut driver);
        let read = |driver: &mut BlkDriver, slot: u16, waiting: usize| {
            let queue = &mut driver.queues[0];
            queue.submit(slot, BlkRequest { operation: Operation::Read, sector: 0, len: 512 });
            queue.publish().unwrap();
            wait_until("it arrives", || handle.in_flight().len() == waiting);
        };
        read(&mut driver, 3, 1);
        log.place();
        log.switch(LOG_ALL);
        let [data, ..] = pages(&driver, 0, 3);
        assert!(!log.is_marked(data), "page {data:#x} before its time");
        read(&mut driver, 4, 2);
        // Another log takes the place of the first, as where memory was added.
        let first = std::mem::replace(&mut log.bitmap, memory(LOG_LEN as u64));
        log.place();
        read(&mut driver, 5, 3);
        handle.complete_all(BlockOutput::Done);
        for _ in 0..3 {
            assert_eq!(driver.queues[0].next(super::rig::PATIENCE).unwrap().status, 0);
        }
        for slot in [3, 4, 5] {
            for page in pages(&driver, 0, slot) {
                assert!(log.is_marked(page), "slot {slot}, page {page:#x}");
            }
        }
        drop(first);
        // And none is marked that comes home after the end.
        read(&mut driver, 6, 1);
        log.switch(0);
        log.clear();
        handle.complete_all(BlockOutput::Done);
        driver.queues[0].next(super::rig::PATIENCE).unwrap();
        let [data, ..] = pages(&driver, 0, 6);
        assert!(!log.is_marked(data) || log.marks() <= 3);
    });
}

/// A front-end that migrates: it takes the log again and again while the device writes. Whatever changed is in one of the takes.
#[test]
fn nothing_is_missed_while_requests_run() {
    within_limit("a log under load", || {
        let served = Served::new(DISK, 2, super::rig::POLL);
        let mut driver = served.connect(&small(2));
        let log = Log::of(&mut driver);
        log.place();
        let (memory, ended) = (driver.session.memory().clone(), AtomicBool::new(false));
        let copy = |into: &mut Vec<u8>| {
            into.resize(memory.len(), 0);
            memory.read(0, into);
        };
        log.switch(LOG_ALL);
        let mut before = Vec::new();
        let mut taken = vec![0u8; LOG_LEN];
        copy(&mut before);
        let layout = driver.session.layout().clone();
        std::thread::scope(|scope| {
            for (number, queue) in (0..).zip(&mut driver.queues) {
                let ended = &ended;
                scope.spawn(move || load(queue, number, ended));
            }
            for _ in 0..200 {
                // Only bits are set, so a copy that is or'ed loses none; taking them away is the VMM's own atomic business.
                for (all, now) in taken.iter_mut().zip(content(&log.bitmap, LOG_LEN)) {
                    *all |= now;
                }
            }
            ended.store(true, Ordering::Relaxed);
        });
        for (all, now) in taken.iter_mut().zip(content(&log.bitmap, LOG_LEN)) {
            *all |= now;
        }
        let mut after = Vec::new();
        copy(&mut after);
        let written_by_device = |page: usize| {
            // The driver writes its own rings, headers and buffers too; the used rings are the device's alone.
            layout.queues().iter().any(|places| (places.used + 2) / 4096 == page)
        };
        let mut changed = 0;
        for page in 0..memory.len() / 4096 {
            let (from, to) = (page * 4096, (page + 1) * 4096);
            if before[from..to] != after[from..to] && written_by_device(page) {
                let guest = layout.guest_address(from) / 4096;
                assert!(taken[(guest / 8) as usize] >> (guest % 8) & 1 == 1, "page {guest:#x} changed");
                changed += 1;
            }
        }
        assert!(changed > 0);
    });
}

#[test]
fn a_log_that_is_too_small_takes_what_it_can() {
    let served = Served::new(DISK, 1, Duration::ZERO);
    let mut driver = served.connect(&small(1));
    let log = Log::of(&mut driver);
    let tiny = memory(1);
    assert_eq!(log.raw.ask_with(code::SET_LOG_BASE, &longs(&[1, 0]), &[tiny.as_fd()]), [0; 8]);
    log.switch(LOG_ALL);
    let mut back = [0; 512];
    driver.queues[0].read(0, &mut back).unwrap();
    assert_eq!(content(&tiny, 1), [0]);
}
