use super::*;
use iovirt_core::pipeline::{BoxBackend, Event, EventListener};
use iovirt_core::request::block::{BlockCaps, BlockError, BlockOutput, BlockRequest};
use iovirt_core::state::StageStates;
use iovirt_core::test_utils::conformance::{self, Profile};
use iovirt_core::test_utils::power_loss::PowerLossHandle;
use iovirt_core::test_utils::{
    BlockIo, Driver, ManualBackend, ManualHandle, PowerLossConfig, PowerLossDisk, Rng, Shape, Workload,
    WorkloadConfig, rounds_or, seed_or,
};
use iovirt_core::{Backend, Tag};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// A mirror with a promise broken, to show that the tests notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in super::super) enum Sabotage {
    #[default]
    None,
    /// Each replica reads the guest's memory for itself.
    WritesGuestMemory,
    /// Overlapping writes are in flight at once.
    KeepsNoOrder,
}

type Boxed = BoxBackend<BlockRequest>;

fn config(quorum: usize, read: ReadPolicy) -> MirrorConfig {
    MirrorConfig { write_quorum: Some(quorum), read, ..MirrorConfig::default() }
}

fn mirror(config: &MirrorConfig, replicas: Vec<Boxed>) -> Boxed {
    BoxBackend::new(Mirror::over(config, replicas).unwrap())
}

fn control(stack: &Boxed) -> Arc<MirrorControl> {
    stack.list_stages().control("mirror").unwrap()
}

fn manual(count: usize) -> (Vec<Boxed>, Vec<ManualHandle<BlockRequest>>) {
    let made = (0..count).map(|_| ManualBackend::new(BlockCaps::new(1 << 20)));
    made.map(|(backend, handle)| (BoxBackend::new(backend), handle)).unzip()
}

fn failed(stack: &Boxed) -> Vec<bool> {
    control(stack).replicas().iter().map(|replica| replica.failed).collect()
}

const FIRST: Tag = Tag::new(0);
const IO: BlockOutput = BlockOutput::Failed(BlockError::Io);
const DONE: BlockOutput = BlockOutput::Done;

#[test]
fn it_keeps_the_contract() {
    for read in [ReadPolicy::First, ReadPolicy::RoundRobin] {
        let factory = || {
            let disks = (0..3).map(|seed| PowerLossDisk::boxed(PowerLossConfig::new(1 << 20).seed(seed)));
            mirror(&config(2, read), disks.collect())
        };
        conformance::run(&factory, &Profile::new("mirror").rounds(20)).assert_passed();
    }
    let memory = || {
        let disk = || {
            let config = crate::block::memory::MemoryConfig { size: 1 << 20, ..Default::default() };
            BoxBackend::new(crate::block::memory::MemoryBackend::new(&config).unwrap())
        };
        mirror(&MirrorConfig::default(), vec![disk(), disk()])
    };
    conformance::run(&memory, &Profile::new("mirror over memory").rounds(20)).assert_passed();
}

#[test]
fn a_disk_below_that_loses_power_is_told_of_honestly() {
    let alone = |disk: Boxed| mirror(&MirrorConfig::default(), vec![disk]);
    conformance::durability(&alone, &Profile::new("mirror of one").rounds(100)).assert_passed();
}

/// The power goes under all replicas at once; each keeps its own choice of what was not durable.
#[test]
fn what_was_flushed_is_on_every_replica() {
    let seed = seed_or(0x3141_5926);
    let mut rng = Rng::new(seed);
    for round in 0..rounds_or(150) {
        let settings = config(2, ReadPolicy::First);
        let life = rng.next_u64();
        let disks = || -> (Vec<Boxed>, Vec<PowerLossHandle>) {
            let disk = |at| PowerLossDisk::new(PowerLossConfig::new(64 << 10).seed(life ^ at));
            (0..2).map(disk).map(|(disk, handle)| (BoxBackend::new(disk), handle)).unzip()
        };
        let (replicas, handles) = disks();
        let stack = mirror(&settings, replicas);
        let caps = stack.caps();
        let mut load = Workload::new(WorkloadConfig::new(&caps, 16), &caps, rng.next_u64());
        let mut driver = Driver::new(rng.next_u64()).unwrap();
        driver.open_with_fua(&stack, 8).unwrap();
        load.run(&mut driver, rng.between(1, 60)).unwrap();
        driver.close();
        let survivors: Vec<_> = handles.iter().map(|handle| handle.cut(rng.next_u64()).0).collect();
        // Each of them alone has what was promised.
        let chosen = rng.index(survivors.len());
        let alone = survivors.into_iter().nth(chosen).unwrap();
        driver.open_with_fua(&BoxBackend::new(alone), 8).unwrap();
        if let Err(violation) = load.verify_after_cut(&mut driver) {
            panic!("IOVIRT_SEED={seed:#x}, round {round}, replica {chosen}: {violation}");
        }
    }
}

#[test]
fn a_write_waits_for_all_and_needs_the_quorum() {
    let (replicas, handles) = manual(3);
    let stack = mirror(&config(2, ReadPolicy::First), replicas);
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    driver.submit(BlockIo::write(0, vec![7; 512]));
    driver.turn();
    assert!(handles.iter().all(|handle| handle.in_flight().len() == 1 && handle.in_flight()[0].kicked));
    handles[0].complete(FIRST, DONE);
    handles[1].complete(FIRST, DONE);
    assert!(driver.turn().is_empty(), "its memory is still in use");
    assert_eq!(driver.with_queue(|queue, _| queue.in_flight()), 1);
    handles[2].complete(FIRST, IO);
    assert_eq!(driver.turn()[0].output, DONE, "two of three did it");
    assert_eq!(failed(&stack), [false, false, true]);

    // The one that failed is used no more; with it gone, one more failure is too many.
    driver.submit(BlockIo::write(512, vec![8; 512]));
    driver.turn();
    assert!(handles[2].in_flight().is_empty());
    handles[0].complete(FIRST, IO);
    handles[1].complete(FIRST, DONE);
    assert_eq!(driver.turn()[0].output, IO);
    assert_eq!(failed(&stack), [true, false, true]);
    assert!(stack.caps().read_only, "too few are left to write");
    let refused = driver.run(BlockIo::write(0, vec![1; 512])).unwrap();
    assert_eq!(refused.output, BlockOutput::Failed(BlockError::ReadOnly));
    driver.submit(BlockIo::read(0, 512));
    driver.turn();
    assert_eq!(handles[1].complete_all(DONE), 1);
    assert_eq!(driver.wait_all().unwrap()[0].output, DONE);
}

#[test]
fn a_write_that_fails_everywhere_makes_no_replica_worse_than_another() {
    let (replicas, handles) = manual(2);
    let stack = mirror(&config(1, ReadPolicy::First), replicas);
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    driver.submit(BlockIo::write(0, vec![7; 512]));
    driver.turn();
    for handle in &handles {
        assert!(handle.complete(FIRST, BlockOutput::Failed(BlockError::NoSpace)));
    }
    assert_eq!(driver.turn()[0].output, BlockOutput::Failed(BlockError::NoSpace));
    assert_eq!(failed(&stack), [false, false]);
}

/// Two writes at once, of which each fails on another replica: one replica stays.
#[test]
fn the_last_replica_never_fails() {
    let (replicas, handles) = manual(2);
    let stack = mirror(&config(1, ReadPolicy::First), replicas);
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    let ids: Vec<_> =
        [0, 512].map(|offset| driver.submit(BlockIo::write(offset, vec![7; 512])).unwrap()).into();
    driver.turn();
    for (number, handle) in handles.iter().enumerate() {
        for waiting in handle.in_flight() {
            let fails = waiting.id.tag.index() == number;
            assert!(handle.complete(waiting.id, if fails { IO } else { DONE }));
        }
    }
    let done = driver.wait_all().unwrap();
    assert_eq!(done.iter().filter(|done| done.output == DONE).count(), 1, "{ids:?}: {done:?}");
    assert_eq!(failed(&stack).iter().filter(|failed| **failed).count(), 1);
}

#[test]
fn a_read_goes_on_to_the_next_replica() {
    let (replicas, handles) = manual(3);
    let stack = mirror(&config(3, ReadPolicy::First), replicas);
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    driver.submit(BlockIo::read(0, 512));
    driver.turn();
    handles[0].complete(FIRST, IO);
    assert!(driver.turn().is_empty());
    assert!(handles[1].in_flight()[0].kicked, "whoever sends again kicks");
    handles[1].lose(FIRST);
    assert!(driver.turn().is_empty(), "dropped is failed");
    handles[2].with_request(FIRST, |request| request.sg_mut().fill(0, 512, 9).unwrap());
    handles[2].complete(FIRST, DONE);
    let done = driver.turn();
    assert_eq!((done[0].output, &done[0].data[..]), (DONE, &[9; 512][..]));
    assert_eq!(failed(&stack), [false; 3], "a read makes none fail");
    let errors: Vec<_> = control(&stack).replicas().iter().map(|replica| replica.read_errors).collect();
    assert_eq!(errors, [1, 1, 0]);

    driver.submit(BlockIo::read(0, 512));
    driver.turn();
    for handle in &handles {
        handle.complete(FIRST, IO);
        driver.turn();
    }
    assert_eq!(driver.in_flight(), 0);
}

#[test]
fn reads_go_to_each_in_turn() {
    let (replicas, handles) = manual(3);
    let stack = mirror(&config(3, ReadPolicy::RoundRobin), replicas);
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 8).unwrap();
    for _ in 0..6 {
        driver.submit(BlockIo::read(0, 512));
    }
    driver.turn();
    assert!(handles.iter().all(|handle| handle.in_flight().len() == 2));
}

#[test]
fn a_stalled_replica_holds_up_what_went_to_it_and_nothing_else() {
    let (replicas, handles) = manual(2);
    let stack = mirror(&config(1, ReadPolicy::First), replicas);
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    let write = driver.submit(BlockIo::write(0, vec![1; 512])).unwrap();
    driver.turn();
    handles[1].stall(FIRST);
    handles[0].complete_all(DONE);
    assert!(driver.turn().is_empty());
    driver.submit(BlockIo::read(512, 512));
    driver.turn();
    handles[0].complete_all(DONE);
    assert_eq!(driver.turn().len(), 1);
    driver.drain();
    driver.turn();
    assert_eq!(driver.mode(), iovirt_core::Mode::Draining);
    handles[1].lose(FIRST);
    let done = driver.quiesce().unwrap();
    assert_eq!((done[0].id, done[0].output), (write, DONE), "given up on one, done on the other");
    assert_eq!(failed(&stack), [false, true]);
}

#[derive(Debug, Default)]
struct Heard(AtomicUsize);

impl EventListener for Heard {
    fn event(&self, event: Event) {
        assert_eq!(event, Event::CapsChanged);
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_failed_replica_is_told_of_and_saved() {
    let (replicas, handles) = manual(2);
    let stack = mirror(&config(1, ReadPolicy::First), replicas);
    let heard = Arc::new(Heard::default());
    let listener: Arc<dyn EventListener> = heard.clone();
    stack.subscribe(&listener);
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    driver.submit(BlockIo::flush());
    driver.turn();
    handles[0].complete(FIRST, IO);
    handles[1].complete(FIRST, DONE);
    driver.wait_all().unwrap();
    assert_eq!(heard.0.load(Ordering::SeqCst), 1);
    let mut states = StageStates::default();
    stack.save(&mut states).unwrap();
    let other = mirror(&config(1, ReadPolicy::First), manual(2).0);
    other.restore(&mut states.clone()).unwrap();
    assert_eq!(failed(&other), [true, false]);
    let larger = mirror(&config(1, ReadPolicy::First), manual(3).0);
    assert!(larger.restore(&mut states).is_err());
}

#[test]
fn a_quorum_that_cannot_be_is_refused() {
    for quorum in [0, 3] {
        let error = Mirror::over(&config(quorum, ReadPolicy::First), manual(2).0).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("mirror: write-quorum={quorum} is not allowed with 2 replicas: 1 to 2 is")
        );
    }
}

fn broken(sabotage: Sabotage, replicas: Vec<Boxed>) -> Boxed {
    let mut stage = Mirror::new(&MirrorConfig::default(), replicas.len()).unwrap();
    stage.sabotage = sabotage;
    BoxBackend::new(iovirt_core::stage::FannedOut::new(stage, replicas).unwrap())
}

/// A guest scribbles on a page while it is being written, in so many writes. Says whether the replicas differ after one.
fn differs_under_a_scribbling_guest(sabotage: Sabotage, writes: u32) -> bool {
    let disks = (0..2).map(|seed| PowerLossDisk::new(PowerLossConfig::new(256 << 10).seed(seed)));
    let (replicas, handles): (Vec<Boxed>, Vec<PowerLossHandle>) =
        disks.map(|(disk, handle)| (BoxBackend::new(disk), handle)).unzip();
    let stack = broken(sabotage, replicas);
    let mut driver = Driver::new(7).unwrap();
    driver.set_shape(Shape::Whole);
    driver.open(&stack, 4).unwrap();
    let space = driver.space().clone();
    let stop = AtomicBool::new(false);
    let round = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let view = space.view();
            let mut byte = 0_u8;
            while !stop.load(Ordering::Relaxed) {
                byte = byte.wrapping_add(1);
                for region in view.map().regions() {
                    // The driver has one request in flight: in the first slot of one of its regions.
                    view.write(region.base(), &[byte; 4096]).unwrap();
                }
                round.fetch_add(1, Ordering::Relaxed);
            }
        });
        let differs = (0..writes).any(|_| {
            driver.submit(BlockIo::write(0, vec![0xa5; 4096]));
            let since = round.load(Ordering::Relaxed);
            driver.with_queue(|queue, cx| queue.kick(cx));
            while round.load(Ordering::Relaxed) < since + 2 {
                std::thread::yield_now();
            }
            driver.wait_all().unwrap();
            handles[0].content() != handles[1].content()
        });
        stop.store(true, Ordering::Relaxed);
        differs
    })
}

#[test]
fn a_guest_that_scribbles_on_its_pages_does_not_make_replicas_differ() {
    assert!(!differs_under_a_scribbling_guest(Sabotage::None, 200));
    // On a busy host the guest's thread may sleep through hundreds of writes; it cannot sleep through all of these.
    assert!(
        differs_under_a_scribbling_guest(Sabotage::WritesGuestMemory, 100_000),
        "the test would not notice"
    );
}

/// Overlapping writes at once, over replicas that do requests in orders of their own.
fn differs_under_overlapping_writes(sabotage: Sabotage) -> bool {
    let mut rng = Rng::new(seed_or(5));
    (0..30).any(|_| {
        let disks = (0..2).map(|_| PowerLossDisk::new(PowerLossConfig::new(16 << 10).seed(rng.next_u64())));
        let (replicas, handles): (Vec<Boxed>, Vec<PowerLossHandle>) = disks
            .collect::<Vec<_>>()
            .into_iter()
            .map(|(disk, handle)| (BoxBackend::new(disk), handle))
            .unzip();
        let stack = broken(sabotage, replicas);
        let mut driver = Driver::new(rng.next_u64()).unwrap();
        driver.open(&stack, 16).unwrap();
        for byte in 0..48 {
            let (offset, len) = (rng.below(8) * 512, rng.between(1, 8) as usize * 512);
            while driver.submit(BlockIo::write(offset, vec![byte; len])).is_none() {
                driver.turn();
            }
        }
        driver.wait_all().unwrap();
        handles[0].content() != handles[1].content()
    })
}

#[test]
fn overlapping_writes_leave_all_replicas_with_the_same() {
    assert!(!differs_under_overlapping_writes(Sabotage::None));
    assert!(differs_under_overlapping_writes(Sabotage::KeepsNoOrder), "the test would not notice");
}

/// One replica in memory, and one that does what it is told: it fails, drops, or does requests in any order.
#[test]
fn random_operations_with_a_failing_replica() {
    const SIZE: u64 = 32 * 512;
    let seed = seed_or(0x00c0_ffee);
    let mut rng = Rng::new(seed);
    for round in 0..rounds_or(60) {
        let (shaky, handle) = ManualBackend::<BlockRequest>::new(BlockCaps::new(SIZE));
        let (good, power) = PowerLossDisk::new(PowerLossConfig::new(SIZE).seed(rng.next_u64()));
        let read = if rng.one_in(2) { ReadPolicy::First } else { ReadPolicy::RoundRobin };
        let stack = mirror(&config(1, read), vec![BoxBackend::new(shaky), BoxBackend::new(good)]);
        let mut driver = Driver::new(rng.next_u64()).unwrap();
        driver.open(&stack, 8).unwrap();
        let (mut model, mut replica) = (vec![0_u8; SIZE as usize], vec![0_u8; SIZE as usize]);
        for step in 0..40 {
            let (first, count) = (rng.below(28) as usize, rng.between(1, 4) as usize);
            let range = first * 512..(first + count) * 512;
            let write = rng.one_in(2);
            let io = if write {
                BlockIo::write(range.start as u64, vec![step + 1; range.len()])
            } else {
                BlockIo::read(range.start as u64, range.len() as u64)
            };
            driver.submit(io).unwrap();
            let mut done = driver.turn();
            let fate = rng.below(8);
            for waiting in handle.in_flight() {
                match fate {
                    0 => assert!(handle.complete(waiting.id, IO)),
                    1 => assert!(handle.lose(waiting.id)),
                    _ => {
                        handle.with_request(waiting.id, |request| {
                            if write {
                                request.sg().copy_to(0, &mut replica[range.clone()]).unwrap();
                            } else {
                                request.sg_mut().copy_from(0, &replica[range.clone()]).unwrap();
                            }
                        });
                        assert!(handle.complete(waiting.id, DONE));
                    }
                }
            }
            done.append(&mut driver.wait_all().unwrap());
            let name = format!("IOVIRT_SEED={seed:#x}, round {round}, step {step}");
            assert_eq!((done.len(), done[0].output), (1, DONE), "{name}");
            if write {
                model[range].fill(step + 1);
            } else {
                assert!(done[0].data == model[range], "{name}: a read found something else");
            }
            assert!(!failed(&stack)[1], "{name}: the good one");
            assert!(failed(&stack)[0] || replica == model, "{name}: it missed a write and did not fail");
        }
        driver.wait_all().unwrap();
        assert!(power.content() == model);
    }
}
