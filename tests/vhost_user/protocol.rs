//! Every feature of the protocol, one by one.

use super::raw::{ALL_PROTOCOL, NEED_REPLY, Raw, code, config, duplicate, longs, memory, number, words};
use super::rig::{DISK, PATIENCE, Served, small, wait_until, within_limit};
use iovirt_backends::block::file::FileControl;
use iovirt_core::test_utils::{Rng, rounds_or, seed_or};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vhost_user_driver::exercise;
use vhost_user_driver::options::feature;
use vhost_user_driver::session::Begin;
use vhost_user_driver::{BlkQueue, BlkRequest, Error, Operation, Options};
use vmm_sys_util::eventfd::EventFd;

/// A file that can be resized, and a disk on it.
fn on_a_file() -> (tempfile::NamedTempFile, Served) {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    let text =
        format!("virtio-blk,queue-size=64 -> file,path={},cache=write-back,lock=off", file.path().display());
    (file, Served::new(&text, 1, Duration::ZERO))
}

/// Reads and writes its blocks until it is told to end; every answer must be right.
pub(super) fn load(queue: &mut BlkQueue, number: u64, ended: &AtomicBool) -> u64 {
    let (mut round, base) = (0, number * 64);
    while !ended.load(Ordering::Relaxed) {
        let data = exercise::pattern(base, round as u8, 4096);
        queue.write(base, &data).unwrap();
        let mut back = vec![0; 4096];
        queue.read(base, &mut back).unwrap();
        assert!(back == data, "queue {number} in round {round}");
        round += 1;
    }
    round
}

/// What is refused: what it is, its number, its payload, and its descriptors.
type Refused<'a> = (&'static str, u32, Vec<u8>, Vec<&'a OwnedFd>);

/// What a device of two rings of which the first is started must refuse; with a file of a page and an eventfd.
fn refusals<'a>(fd: &'a OwnedFd, event: &'a OwnedFd) -> Vec<Refused<'a>> {
    let region = longs(&[0, 0x9000_0000, 4096, 0x9000_0000, 0]);
    vec![
        ("features that are not offered", code::SET_FEATURES, longs(&[u64::MAX]), vec![]),
        ("features while a ring is started", code::SET_FEATURES, longs(&[1 << 32]), vec![]),
        ("protocol features that are not offered", code::SET_PROTOCOL_FEATURES, longs(&[u64::MAX]), vec![]),
        ("a size of a started ring", code::SET_VRING_NUM, words(&[0, 32]), vec![]),
        ("a base of a started ring", code::SET_VRING_BASE, words(&[0, 7]), vec![]),
        (
            "addresses of a started ring",
            code::SET_VRING_ADDR,
            [words(&[0, 0]), longs(&[0, 4096, 8192, 0])].concat(),
            vec![],
        ),
        ("a size that is no power of two", code::SET_VRING_NUM, words(&[1, 3]), vec![]),
        ("a size that is too large", code::SET_VRING_NUM, words(&[1, 0x1_0000]), vec![]),
        ("a size of zero", code::SET_VRING_NUM, words(&[1, 0]), vec![]),
        ("a base of 17 bits", code::SET_VRING_BASE, words(&[1, 0x1_0000]), vec![]),
        ("a ring that is not there", code::SET_VRING_NUM, words(&[2, 64]), vec![]),
        ("a doorbell of a ring that is not there", code::SET_VRING_KICK, longs(&[2]), vec![event]),
        ("a ring outside of memory", code::SET_VRING_KICK, longs(&[1]), vec![event]),
        ("a ring without a doorbell", code::SET_VRING_KICK, longs(&[1 | 1 << 8]), vec![]),
        ("a doorbell that does not come", code::SET_VRING_KICK, longs(&[1]), vec![]),
        ("two doorbells", code::SET_VRING_KICK, longs(&[1]), vec![event, event]),
        ("a call with a flag that is not known", code::SET_VRING_CALL, longs(&[1 | 1 << 9]), vec![event]),
        ("a payload that is too short", code::SET_VRING_NUM, words(&[1]), vec![]),
        ("a payload that is too long", code::SET_VRING_NUM, words(&[1, 64, 0]), vec![]),
        ("a table of more regions than came", code::SET_MEM_TABLE, words(&[2, 0]), vec![]),
        ("a region without a descriptor", code::ADD_MEM_REG, region.clone(), vec![]),
        ("a region twice", code::ADD_MEM_REG, longs(&[0, 0x4000_0000, 4096, 0x1000, 0]), vec![fd]),
        (
            "a region beyond the file's end",
            code::ADD_MEM_REG,
            longs(&[0, 0x9000_0000, 8192, 0x9000_0000, 0]),
            vec![fd],
        ),
        ("a region of nothing", code::ADD_MEM_REG, longs(&[0, 0x9000_0000, 0, 0x9000_0000, 0]), vec![fd]),
        (
            "a region that overflows",
            code::ADD_MEM_REG,
            longs(&[0, u64::MAX - 100, 4096, 0x9000_0000, 0]),
            vec![fd],
        ),
        ("a region that is no memory", code::ADD_MEM_REG, region.clone(), vec![event]),
        ("a region that is not there", code::REM_MEM_REG, region, vec![]),
        ("a channel without a descriptor", code::SET_BACKEND_REQ_FD, vec![], vec![]),
        ("a configuration of another length", code::SET_CONFIG, words(&[0, 8, 0]), vec![]),
        ("a status of 64 bits", code::SET_STATUS, longs(&[256]), vec![]),
        (
            "a record for queues that are not there",
            code::SET_INFLIGHT_FD,
            [longs(&[4096, 0]), vec![9, 0, 64, 0]].concat(),
            vec![fd],
        ),
        (
            "a record without memory",
            code::SET_INFLIGHT_FD,
            [longs(&[4096, 0]), vec![2, 0, 64, 0]].concat(),
            vec![],
        ),
        (
            "a record at an odd place of a file that ends",
            code::SET_INFLIGHT_FD,
            [longs(&[4096, 3]), vec![2, 0, 64, 0]].concat(),
            vec![fd],
        ),
        ("a request of a feature that is not offered", 22, longs(&[0; 5]), vec![]),
    ]
}

#[test]
fn refusals_are_answered_and_the_session_goes_on() {
    let served = Served::new(DISK, 1, Duration::ZERO);
    let mut driver = served.connect(&small(1));
    let raw = Raw::of(&mut driver);
    let (fd, event) = (memory(4096), duplicate(&EventFd::new(0).unwrap()));
    raw.take_protocol(ALL_PROTOCOL);
    for (what, code, payload, fds) in refusals(&fd, &event) {
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        assert_ne!(raw.tell_with(code, &payload, &fds), 0, "{what} was taken");
        exercise::requests(&mut driver.queues[0], exercise::SECTORS, 3);
    }
    assert_eq!(served.device().connections(), 1);
}

/// A front-end that does not wait for an answer must not believe that it was obeyed: its session ends. The next one is served.
#[test]
fn refusals_without_an_answer_end_the_session() {
    within_limit("refusals", || {
        let served = Served::new(DISK, 1, Duration::ZERO);
        let (fd, event) = (memory(4096), duplicate(&EventFd::new(0).unwrap()));
        let refusals = refusals(&fd, &event);
        for (what, code, payload, fds) in &refusals {
            let mut driver = served.connect(&small(1));
            let raw = Raw::of(&mut driver);
            raw.take_protocol(ALL_PROTOCOL);
            driver.queues[0].write(0, &[5; 512]).unwrap();
            let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            raw.send_as((*code, 1, payload.len() as u32), payload, &fds).unwrap();
            let ended = raw.answer().map(|_| ()).map_err(|error| error.kind());
            assert_eq!(ended, Err(ErrorKind::UnexpectedEof), "{what}");
            let gone = driver.queues[0].next(PATIENCE);
            assert!(matches!(gone, Err(Error::Gone)), "{what}: {gone:?}");
            exercise::requests(&mut served.connect(&small(1)).queues[0], exercise::SECTORS, 3);
        }
        assert_eq!(served.device().connections(), 2 * refusals.len() as u64);
    });
}

/// A request that is not known, or that cannot be refused, ends the session; the next front-end is served.
#[test]
fn what_cannot_be_answered_ends_the_session() {
    let served = Served::new(DISK, 1, Duration::ZERO);
    for (code, payload) in
        [(99, vec![]), (code::SET_FEATURES, longs(&[u64::MAX])), (code::GET_VRING_BASE, words(&[7, 0]))]
    {
        let raw = served.raw();
        raw.negotiate(feature::VERSION_1);
        raw.send_as((code, 1, payload.len() as u32), &payload, &[]).unwrap();
        assert!(raw.answer().is_err(), "{code}");
    }
    exercise::requests(&mut served.connect(&small(1)).queues[0], exercise::SECTORS, 1);
}

#[test]
fn the_configuration_is_read_and_stays_as_it_is() {
    const WRITEBACK: u32 = 32;
    let (_file, served) = on_a_file();
    // A daemon that was killed and started anew would not know the driver's choice.
    let wce = 1 << 11;
    let mut driver = served.connect(&Options { features: Options::blk().features | wce, ..small(1) });
    assert_eq!(driver.session.features() & wce, 0);
    assert_eq!(driver.capacity().unwrap(), 2048);
    let raw = Raw::of(&mut driver);
    let cache = || raw.ask(code::GET_CONFIG, &config(WRITEBACK, &[0]))[12];
    assert_eq!(cache(), 1);
    assert_eq!(raw.tell(code::SET_CONFIG, &config(WRITEBACK, &[0])), 0);
    assert_eq!(cache(), 1);
    driver.queues[0].write(0, &[7; 512]).unwrap();
    // What is read-only stays, and what lies beyond the end is zero.
    assert_eq!(raw.tell(code::SET_CONFIG, &config(0, &[0xff; 8])), 0);
    assert_eq!(driver.capacity().unwrap(), 2048);
    assert_eq!(raw.ask(code::GET_CONFIG, &config(4000, &[1; 8]))[12..], [0; 8]);
    // The whole space at once, as a VMM reads it; and ranges that no message can have, which are answered with nothing.
    assert_eq!(raw.ask(code::GET_CONFIG, &config(0, &[0; 256])).len(), 12 + 256);
    for wrong in
        [config(u32::MAX, &[0; 8]), config(4096, &[0; 8]), words(&[0, 8, 0]), words(&[0, 0, 0]), vec![]]
    {
        assert!(raw.ask(code::GET_CONFIG, &wrong).is_empty(), "{wrong:?}");
    }
    driver.queues[0].write(0, &[8; 512]).unwrap();
}

#[test]
fn memory_comes_and_goes_while_requests_run() {
    within_limit("memory", || {
        let served = Served::new(DISK, 2, Duration::ZERO);
        let mut driver = served.connect(&small(2));
        let raw = Raw::of(&mut driver);
        assert!(number(&raw.ask(code::GET_MAX_MEM_SLOTS, &[])) >= 8);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(&mut driver.queues)
                .map(|(number, queue)| {
                    scope.spawn({
                        let ended = &ended;
                        move || load(queue, number, ended)
                    })
                })
                .collect();
            let mut rng = Rng::new(seed_or(3));
            let mut there: Vec<Vec<u8>> = Vec::new();
            for round in 0..rounds_or(500) {
                if there.len() == 40 || (rng.one_in(2) && !there.is_empty()) {
                    let region = there.swap_remove(rng.index(there.len()));
                    assert_eq!(raw.tell(code::REM_MEM_REG, &region), 0);
                    assert_ne!(raw.tell(code::REM_MEM_REG, &region), 0, "it is gone");
                } else {
                    let (guest, user) =
                        (0x10_0000_0000 + round * 0x1_0000, 0x7000_0000_0000 + round * 0x1_0000);
                    let region = longs(&[0, guest, 0x8000, user, 0x1000]);
                    let fd = memory(0x9000);
                    assert_eq!(raw.tell_with(code::ADD_MEM_REG, &region, &[fd.as_fd()]), 0);
                    there.push(region);
                }
            }
            ended.store(true, Ordering::Relaxed);
            assert!(threads.into_iter().all(|thread| thread.join().unwrap() > 0));
        });
    });
}

/// A region that holds the buffers goes while the ring uses it: requests to it fail the ring, and a reset mends that.
#[test]
fn memory_that_a_ring_needs_goes() {
    within_limit("memory", || {
        let served = Served::new(DISK, 1, Duration::ZERO);
        let options = Options { memory_map: vhost_user_driver::MemoryMap::TwoRegions, ..small(1) };
        let mut driver = served.connect(&options);
        let raw = Raw::of(&mut driver);
        raw.take_protocol(ALL_PROTOCOL);
        driver.queues[0].write(0, &[3; 512]).unwrap();
        let region = driver.session.layout().regions()[1];
        let user = driver.session.memory().user_address() + region.offset as u64;
        assert_eq!(raw.tell(code::REM_MEM_REG, &longs(&[0, region.guest, region.len as u64, user, 0])), 0);
        let queue = &mut driver.queues[0];
        queue.submit(0, BlkRequest { operation: Operation::Read, sector: 0, len: 512 });
        queue.publish().unwrap();
        wait_until("the ring is broken", || number(&raw.ask(code::GET_STATUS, &[])) & 64 != 0);
        wait_until("it is told", || driver.queues[0].queue().has_failed());
        assert_eq!(raw.tell(code::RESET_DEVICE, &[]), 0);
        assert_eq!(number(&raw.ask(code::GET_STATUS, &[])), 0);
    });
}

#[test]
fn the_status_is_kept_and_a_reset_stops_the_rings() {
    let served = Served::new(DISK, 1, Duration::ZERO);
    let mut driver = served.connect(&small(2));
    let raw = Raw::of(&mut driver);
    raw.take_protocol(ALL_PROTOCOL);
    let status = || number(&raw.ask(code::GET_STATUS, &[]));
    assert_eq!(status(), 0);
    assert_eq!(raw.tell_number(code::SET_STATUS, 0xf), 0);
    assert_eq!(status(), 0xf);
    driver.queues[0].write(0, &[9; 512]).unwrap();
    for reset in [code::RESET_DEVICE, code::SET_STATUS, code::RESET_OWNER] {
        let payload = if reset == code::SET_STATUS { longs(&[0]) } else { vec![] };
        assert_eq!(raw.tell(reset, &payload), 0);
        assert_eq!(status(), 0);
        // A ring that was reset takes nothing.
        let queue = &mut driver.queues[0];
        queue.submit(0, BlkRequest { operation: Operation::Read, sector: 0, len: 512 });
        queue.queue_mut().ring_doorbell().unwrap();
        let nothing = queue.next(Duration::from_millis(30));
        assert!(matches!(nothing, Err(Error::TimedOut)), "{nothing:?}");
        queue.queue_mut().ring_mut().begin_again();
        let queues: Vec<_> = driver.queues.drain(..).map(BlkQueue::into_queue).collect();
        driver.session.start(&queues, &[Begin::At(0); 2]).unwrap();
        driver.queues = queues.into_iter().map(BlkQueue::new).collect();
        let queue = &mut driver.queues[0];
        queue.queue_mut().ring_doorbell().unwrap();
        assert_eq!(queue.next(PATIENCE).unwrap().status, 0);
        queue.write(0, &[9; 512]).unwrap();
    }
}

#[test]
fn a_disk_that_grows_says_so() {
    let (file, served) = on_a_file();
    let mut driver = served.connect(&small(1));
    let raw = Raw::of(&mut driver);
    raw.take_protocol(ALL_PROTOCOL);
    let (ours, theirs) = UnixStream::pair().unwrap();
    assert_eq!(raw.tell_with(code::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()]), 0);
    drop(theirs);
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let (_, control) = served
        .device()
        .stages()
        .controls::<FileControl>()
        .next()
        .map(|(name, c)| (name.to_owned(), c))
        .unwrap();
    for sectors in [4096u64, 8192] {
        file.as_file().set_len(sectors * 512).unwrap();
        control.resize(sectors * 512).unwrap();
        let mut message = [0; 12];
        (&ours).read_exact(&mut message).unwrap();
        assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "a change of the configuration");
        assert_eq!(driver.capacity().unwrap(), sectors);
        driver.queues[0].write(sectors - 1, &[1; 512]).unwrap();
    }
    // A channel that nobody reads, and one whose other end is gone, hold nobody up.
    for _ in 0..20_000 {
        control.resize(file.as_file().metadata().unwrap().len()).unwrap();
        control.resize(512 * 4096).unwrap();
    }
    drop(ours);
    control.resize(512 * 8192).unwrap();
    driver.queues[0].write(0, &[1; 512]).unwrap();
}

#[test]
fn rings_stop_under_load_and_go_on_where_they_stood() {
    within_limit("a stop", || {
        for poll in [Duration::ZERO, super::rig::POLL] {
            let served = Served::new(
                "virtio-blk,queues=2,queue-size=64 -> delay,time=30us -> memory,size=1M",
                2,
                poll,
            );
            let mut driver = served.connect(&small(2));
            let mut rng = Rng::new(seed_or(5));
            let mut sent = 0u64;
            let mut done = 0u64;
            for _ in 0..rounds_or(200) {
                for queue in &mut driver.queues {
                    for slot in 0..queue.slots() {
                        if rng.one_in(2) && !queue.queue().ring().is_in_flight(slot) {
                            queue.submit(
                                slot,
                                BlkRequest {
                                    operation: Operation::Write,
                                    sector: u64::from(slot) * 8,
                                    len: 512,
                                },
                            );
                            sent += 1;
                        }
                    }
                    queue.publish().unwrap();
                }
                let stopped = driver.restart().unwrap();
                assert_eq!(stopped.len(), 2);
                for queue in &mut driver.queues {
                    // A doorbell that was rung before is not rung again: the device looks when the ring starts.
                    while queue.queue().ring().in_flight() > 0 {
                        assert_eq!(queue.next(PATIENCE).unwrap().status, 0);
                        done += 1;
                    }
                }
            }
            assert_eq!(sent, done);
        }
    });
}

/// The doorbell, the interrupt and the whole ring are set again in the middle of requests.
#[test]
fn doorbells_are_replaced_while_a_ring_runs() {
    within_limit("a doorbell", || {
        let served = Served::new(DISK, 1, Duration::ZERO);
        let mut driver = served.connect(&small(1));
        let raw = Raw::of(&mut driver);
        let queue = driver.queues[0].queue();
        let (kick, call) = (duplicate(queue.kick_fd()), duplicate(queue.call_fd()));
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let queue = &mut driver.queues[0];
            let running = scope.spawn(|| load(queue, 0, &ended));
            for round in 0..rounds_or(300) {
                match round % 4 {
                    0 => assert_eq!(raw.tell_with(code::SET_VRING_KICK, &longs(&[0]), &[kick.as_fd()]), 0),
                    1 => assert_eq!(raw.tell_with(code::SET_VRING_CALL, &longs(&[0]), &[call.as_fd()]), 0),
                    2 => {
                        assert_eq!(raw.tell(code::SET_VRING_ENABLE, &words(&[0, 0])), 0);
                        assert_eq!(raw.tell(code::SET_VRING_ENABLE, &words(&[0, 1])), 0);
                    }
                    _ => assert_eq!(raw.tell(code::SET_VRING_ENABLE, &words(&[0, 1])), 0),
                }
            }
            ended.store(true, Ordering::Relaxed);
            assert!(running.join().unwrap() > 0);
        });
    });
}

/// Commands to a device whose workers are gone are answered, and the server can be stopped.
#[test]
fn a_device_without_workers_hangs_nobody() {
    within_limit("a device without workers", || {
        let mut served = Served::new(DISK, 1, Duration::ZERO);
        let mut driver = served.connect(&small(1));
        let raw = Raw::of(&mut driver);
        served.lose_workers();
        raw.send_as((code::GET_VRING_BASE, NEED_REPLY, 8), &words(&[0, 0]), &[]).unwrap();
        assert!(raw.answer().is_err(), "there is no base to tell");
        assert!(served.stop() < PATIENCE);
    });
}

/// Without protocol features a ring is enabled from its start.
#[test]
fn a_front_end_of_the_first_version_is_served() {
    let served = Served::new(DISK, 1, Duration::ZERO);
    let mut driver = served.connect(&Options { protocol_features: 0, ..small(1) });
    exercise::requests(&mut driver.queues[0], exercise::SECTORS, 1);
}
