//! A stack taken away from under a running disk, and put back.

mod common;

use common::{ALL, Rig};
use iovirt_backends::block::file::{FileBackend, FileConfig};
use iovirt_backends::block::memory::{MemoryBackend, MemoryConfig};
use iovirt_core::frontend::{Frontend, Outcome, Ticket};
use iovirt_core::pipeline::{BoxBackend, Pipeline, SwapControl, SwapError, SwapLayer};
use iovirt_core::request::block::{BlockCaps, BlockError, BlockOutput, BlockRequest, Durability};
use iovirt_core::test_utils::virtio::{BlkOp, BlkStatus};
use iovirt_core::test_utils::{BlockIo, Driver, IoDone, ManualBackend, Rng, seed_or};
use iovirt_core::{Backend, Mode};
use iovirt_frontends::virtio::blk::BlkConfig;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const SIZE: u64 = 1 << 20;
const FAILED: BlockOutput = BlockOutput::Failed(BlockError::Io);

fn memory(size: u64) -> BoxBackend<BlockRequest> {
    BoxBackend::new(MemoryBackend::new(&MemoryConfig { size, ..MemoryConfig::default() }).unwrap())
}

fn swappable(below: BoxBackend<BlockRequest>) -> (BoxBackend<BlockRequest>, Arc<SwapControl<BlockRequest>>) {
    let layer = SwapLayer::new(BlockCaps::may_replace);
    let stack = BoxBackend::new(Pipeline::top().stage(layer).backend(below).unwrap());
    let control = stack.list_stages().control("swappable").expect("the stage's handle");
    (stack, control)
}

/// Turns of each driver in turn until the exchange is over; what came home.
fn finish(ticket: &Ticket, drivers: &mut [Driver]) -> Vec<IoDone> {
    let mut home = Vec::new();
    // Files are synchronized by other threads.
    let end = Instant::now() + Duration::from_secs(60);
    while !ticket.is_done() {
        assert!(Instant::now() < end, "the exchange does not get on");
        for driver in drivers.iter_mut() {
            home.extend(driver.turn());
        }
    }
    home
}

#[test]
fn what_is_in_flight_finishes_first_and_what_comes_later_fails() {
    let (manual, handle) = ManualBackend::<BlockRequest>::new(BlockCaps::new(SIZE));
    let (stack, control) = swappable(BoxBackend::new(manual));
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 8).unwrap();
    let early = driver.submit(BlockIo::flush()).unwrap();
    driver.turn();
    let ticket = control.remove().unwrap();
    driver.turn();
    let late = driver.submit(BlockIo::flush()).unwrap();
    for _ in 0..10 {
        assert!(driver.turn().is_empty());
    }
    assert_eq!((ticket.outcome(), control.is_vacant(), handle.in_flight().len()), (None, false, 1));
    handle.complete_all(BlockOutput::Done);
    let mut drivers = [driver];
    let mut home = finish(&ticket, &mut drivers);
    let [mut driver] = drivers;
    home.extend(driver.wait_all().unwrap());
    let came: Vec<_> = home.iter().map(|done| (done.id, done.output, done.lost)).collect();
    assert_eq!(came, [(early, BlockOutput::Done, false), (late, FAILED, false)]);
    assert_eq!((ticket.outcome(), control.is_vacant()), (Some(Outcome::Done), true));
    assert_eq!(handle.open_queues(), 0);
    // From now on at once, each once, and the queue can rest and go on.
    for _ in 0..3 {
        for _ in 0..8 {
            driver.submit(BlockIo::flush()).unwrap();
        }
        let home = driver.wait_all().unwrap();
        assert_eq!((home.len(), home.iter().filter(|done| done.output == FAILED).count()), (8, 8));
        driver.quiesce().unwrap();
        assert_eq!(driver.mode(), Mode::Quiesced);
        driver.resume();
    }
}

#[test]
fn what_the_guest_was_told_stays_and_decides_who_may_come() {
    let caps = BlockCaps { durability: Durability::WriteBack, fua: true, ..BlockCaps::new(SIZE) };
    let manual = |caps: &BlockCaps| BoxBackend::new(ManualBackend::<BlockRequest>::new(caps.clone()).0);
    let (stack, control) = swappable(manual(&caps));
    assert_eq!(control.insert(manual(&caps)).unwrap_err(), SwapError::Occupied);
    // No queue is open: it is over at once.
    assert_eq!(control.remove().unwrap().outcome(), Some(Outcome::Done));
    assert_eq!(*stack.caps(), caps);
    assert!(stack.list_stages().iter().any(|stage| stage.name == "vacant"));
    assert_eq!(control.remove().unwrap_err(), SwapError::Vacant);
    assert_eq!(control.swap(manual(&caps)).unwrap_err(), SwapError::Vacant);
    for (newcomer, why) in [
        (BlockCaps { capacity: SIZE / 2, ..caps.clone() }, "it has 524288 bytes, fewer than 1048576"),
        (BlockCaps { read_only: true, ..caps.clone() }, "it is read-only"),
        (
            BlockCaps { durability: Durability::Unsafe, ..caps.clone() },
            "it promises Unsafe, less than WriteBack",
        ),
        (
            BlockCaps { fua: false, ..caps.clone() },
            "it cannot force a single write to the medium, and the one in use can",
        ),
    ] {
        let error = control.insert(manual(&newcomer)).unwrap_err().to_string();
        assert_eq!(error, format!("the stack cannot take the place of the one in use: {why}"));
        assert!(control.is_vacant());
    }
    let larger = BlockCaps { capacity: 2 * SIZE, ..caps };
    assert_eq!(control.insert(manual(&larger)).unwrap().outcome(), Some(Outcome::Done));
    assert_eq!((stack.caps().capacity, control.is_vacant()), (2 * SIZE, false));
}

#[test]
fn a_removal_that_is_given_up_leaves_the_stack_and_an_insertion_the_vacancy() {
    let (manual, handle) = ManualBackend::<BlockRequest>::new(BlockCaps::new(SIZE));
    let (stack, control) = swappable(BoxBackend::new(manual));
    let mut driver = Driver::new(2).unwrap();
    driver.open(&stack, 8).unwrap();
    driver.submit(BlockIo::flush()).unwrap();
    driver.turn();
    let ticket = control.remove().unwrap();
    assert_eq!(control.remove().unwrap_err(), SwapError::Busy);
    driver.turn();
    control.cancel();
    driver.turn();
    assert_eq!((ticket.outcome(), control.is_vacant()), (Some(Outcome::Cancelled), false));
    handle.complete_all(BlockOutput::Done);
    assert_eq!(driver.wait_all().unwrap()[0].output, BlockOutput::Done);

    let mut drivers = [driver];
    finish(&control.remove().unwrap(), &mut drivers);
    let (newcomer, newcomers_handle) = ManualBackend::<BlockRequest>::new(BlockCaps::new(SIZE));
    newcomers_handle.refuse_open(true);
    let ticket = control.insert(BoxBackend::new(newcomer)).unwrap();
    finish(&ticket, &mut drivers);
    assert_eq!((ticket.outcome(), control.is_vacant()), (Some(Outcome::Cancelled), true));
    let [driver] = &mut drivers;
    assert_eq!(driver.run(BlockIo::flush()).unwrap().output, FAILED);
}

fn file(path: &Path) -> Result<BoxBackend<BlockRequest>, iovirt_core::BackendError> {
    FileBackend::open(FileConfig::new(path)).map(BoxBackend::new)
}

/// Not some time later: when the ticket is done.
#[test]
fn a_file_is_free_for_others_once_its_stack_was_taken_away() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(SIZE).unwrap();
    let (stack, control) = swappable(file(image.path()).unwrap());
    let mut drivers = [Driver::new(3).unwrap(), Driver::new(4).unwrap(), Driver::new(5).unwrap()];
    for driver in &mut drivers {
        driver.open(&stack, 8).unwrap();
    }
    for round in 0..20u8 {
        drivers[usize::from(round) % 3].write(u64::from(round) * 4096, &[round; 4096]).unwrap();
        assert!(file(image.path()).is_err(), "the file is locked by its user");
        let ticket = control.remove().unwrap();
        for driver in &mut drivers {
            driver.submit(BlockIo::flush()).unwrap();
        }
        finish(&ticket, &mut drivers);
        let newcomer = file(image.path()).expect("the file is free");
        let ticket = control.insert(newcomer).unwrap();
        finish(&ticket, &mut drivers);
        for driver in &mut drivers {
            driver.wait_all().unwrap();
        }
        for at in 0..=round {
            let read = drivers[usize::from(at) % 3].read(u64::from(at) * 4096, 4096).unwrap();
            assert_eq!(read, [at; 4096]);
        }
    }
    // A queue that goes in the middle of it holds nothing back.
    let ticket = control.remove().unwrap();
    let [mut first, second, third] = drivers;
    drop((second, third));
    finish(&ticket, std::slice::from_mut(&mut first));
    file(image.path()).expect("the file is free");
}

#[test]
fn taken_away_and_put_back_again_and_again_under_load() {
    let seed = seed_or(0x7aca);
    let mut rng = Rng::new(seed);
    let disk = memory(SIZE);
    let (stack, control) = swappable(disk.clone());
    let mut drivers = [Driver::new(rng.next_u64()).unwrap(), Driver::new(rng.next_u64()).unwrap()];
    for driver in &mut drivers {
        driver.open(&stack, 16).unwrap();
    }
    let (mut submitted, mut done, mut failed) = (0, 0, 0);
    for _ in 0..300 {
        let begun = if control.is_vacant() { control.insert(disk.clone()) } else { control.remove() };
        let ticket = begun.unwrap();
        let mut cancel = rng.one_in(5);
        let mut more = rng.below(8);
        while !ticket.is_done() || more > 0 {
            more = more.saturating_sub(1);
            let driver = &mut drivers[rng.below(2) as usize];
            for _ in 0..rng.below(4) {
                submitted += usize::from(driver.submit(BlockIo::flush()).is_some());
            }
            for home in driver.turn() {
                assert!(!home.lost);
                match home.output {
                    BlockOutput::Done => done += 1,
                    FAILED => failed += 1,
                    other @ BlockOutput::Failed(_) => panic!("{other:?}"),
                }
            }
            if std::mem::take(&mut cancel) && rng.one_in(2) {
                control.cancel();
            }
        }
    }
    for driver in &mut drivers {
        for home in driver.wait_all().unwrap() {
            done += usize::from(home.output == BlockOutput::Done);
            failed += usize::from(home.output == FAILED);
        }
    }
    assert_eq!(done + failed, submitted, "each request comes home once");
    assert!(done > 100 && failed > 100, "{done} done, {failed} failed");
    println!("seed {seed:#x}: {done} done, {failed} failed");
}

/// Taken away, and what is asked of the disk meanwhile: an error in the guest, and the same disk as before for it.
#[test]
fn under_a_whole_device_and_saved_while_vacant() {
    let disk = memory(SIZE);
    let (stack, control) = swappable(disk.clone());
    let rig = Rig::new(BlkConfig::default(), stack);
    let mut driver = rig.driver(ALL, 4096);
    let until_done = |rig: &Rig, ticket: &Ticket| {
        while !ticket.is_done() {
            rig.worker.borrow_mut().run().unwrap();
        }
        ticket.outcome()
    };
    assert_eq!(driver.run(BlkOp::Out, 8, &mut [7; 4096]), Ok(BlkStatus::Ok));
    assert_eq!(until_done(&rig, &control.remove().unwrap()), Some(Outcome::Done));
    for op in [BlkOp::In, BlkOp::Out] {
        assert_eq!(driver.run(op, 8, &mut [9; 4096]), Ok(BlkStatus::IoError));
    }
    assert_eq!(driver.capacity(), SIZE / 512);

    // Saved so, it goes on above a stack.
    let ticket = rig.device.drain();
    assert_eq!(until_done(&rig, &ticket), Some(Outcome::Done));
    let saved = rig.device.save().unwrap();
    let (stack, control) = swappable(disk.clone());
    let second = Rig::new(BlkConfig::default(), stack);
    second.device.restore(&saved).unwrap();
    driver.transport().replace_frontend(second.device.clone(), second.pump());
    assert_eq!(until_done(&second, &second.device.resume()), Some(Outcome::Done));
    let mut read = [0; 4096];
    assert_eq!(driver.run(BlkOp::In, 8, &mut read), Ok(BlkStatus::Ok));
    assert_eq!((read, control.is_vacant()), ([7; 4096], false));

    // Or above a vacancy again, which is made before it goes on.
    let ticket = second.device.drain();
    assert_eq!(until_done(&second, &ticket), Some(Outcome::Done));
    let (stack, control) = swappable(disk.clone());
    let third = Rig::new(BlkConfig::default(), stack);
    third.device.restore(&second.device.save().unwrap()).unwrap();
    assert_eq!(until_done(&third, &control.remove().unwrap()), Some(Outcome::Done));
    driver.transport().replace_frontend(third.device.clone(), third.pump());
    assert_eq!(until_done(&third, &third.device.resume()), Some(Outcome::Done));
    assert_eq!(driver.run(BlkOp::In, 8, &mut read), Ok(BlkStatus::IoError));
    assert_eq!(until_done(&third, &control.insert(disk).unwrap()), Some(Outcome::Done));
    assert_eq!(driver.run(BlkOp::In, 8, &mut read), Ok(BlkStatus::Ok));
}
