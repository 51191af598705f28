use super::*;
use crate::block::memory::{MemoryBackend, MemoryConfig};
use crate::interposers::Kinds;
use iovirt_core::Mode;
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::request::block::{BlockCaps, BlockError, BlockOutput, BlockRequest};
use iovirt_core::test_utils::conformance::{self, Profile};
use iovirt_core::test_utils::{BlockIo, Driver, ManualBackend};
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

const SIZE: u64 = 1 << 20;
const FAILED: BlockOutput = BlockOutput::Failed(BlockError::Io);

fn memory() -> BoxBackend<BlockRequest> {
    BoxBackend::new(MemoryBackend::new(&MemoryConfig { size: SIZE, ..MemoryConfig::default() }).unwrap())
}

fn above(
    config: &FaultConfig,
    below: BoxBackend<BlockRequest>,
) -> (BoxBackend<BlockRequest>, Arc<FaultControl>) {
    let fault = Fault::new(config).unwrap();
    let control = fault.handle();
    (BoxBackend::new(Pipeline::top().stage(fault.layer()).backend(below).unwrap()), control)
}

fn kinds(text: &str) -> Kinds {
    text.parse().unwrap()
}

fn open(config: &FaultConfig) -> (Driver, Arc<FaultControl>) {
    let (stack, control) = above(config, memory());
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 8).unwrap();
    (driver, control)
}

fn submit(driver: &mut Driver, count: u32, io: &BlockIo) {
    for _ in 0..count {
        driver.submit(io.clone()).expect("the queue is full");
    }
}

#[test]
fn switched_off_it_changes_nothing() {
    let factory = || above(&FaultConfig::default(), memory()).0;
    conformance::run(&factory, &Profile::new("fault").rounds(20)).assert_passed();
    conformance::transparency(&factory, &memory, &Profile::new("fault")).assert_passed();
}

/// Rules that have the queue drain hold; those that wait for requests without it do not.
#[test]
fn stalled_requests_keep_the_rules_of_drain() {
    let config = FaultConfig { kind: FaultKind::Stall, permille: 500, ..FaultConfig::default() };
    let factory = || above(&config, memory()).0;
    let report =
        conformance::run(&factory, &Profile::new("stall").rounds(10).patience(Duration::from_millis(50)));
    for rule in ["wakes/rest", "drain/serves-meanwhile", "drain/serves-at-rest", "drain/way-back"] {
        assert!(!report.has_failed(rule), "{report}");
    }
    assert!(report.has_failed("wakes/completions"), "nothing was stalled: {report}");
}

#[test]
fn every_so_many_of_a_kind_fail_and_never_reach_the_disk() {
    let config = FaultConfig { fail: kinds("write"), every: 3, ..FaultConfig::default() };
    let (mut driver, control) = open(&config);
    for round in 1..=9_u8 {
        let done = driver.run(BlockIo::write(0, vec![round; 512])).unwrap();
        assert_eq!(done.output == FAILED, round % 3 == 0, "{round}");
        let expected = if round % 3 == 0 { round - 1 } else { round };
        assert_eq!(driver.read(0, 512).unwrap(), vec![expected; 512]);
    }
    assert_eq!(control.snapshot(), FaultSnapshot { errors: 3, ..FaultSnapshot::default() });
    control.set(&FaultConfig { fail: kinds("flush"), every: 1, ..FaultConfig::default() }).unwrap();
    assert!(driver.flush().is_err());
    assert!(driver.write(0, &[1; 512]).is_ok());
    control.set(&FaultConfig::default()).unwrap();
    assert!(driver.flush().is_ok());
}

#[test]
fn the_stalled_wait_for_the_control_handle_or_a_drain() {
    let config =
        FaultConfig { fail: kinds("read"), every: 2, kind: FaultKind::Stall, ..FaultConfig::default() };
    let (mut driver, control) = open(&config);
    let reads = BlockIo::read(0, 512);
    submit(&mut driver, 4, &reads);
    assert_eq!(driver.turn().len(), 2);
    assert!(driver.turn().is_empty());
    control.release();
    assert_eq!(driver.wait_all().unwrap().len(), 2);
    submit(&mut driver, 4, &reads);
    assert_eq!(driver.turn().len(), 2);
    assert_eq!(driver.quiesce().unwrap().len(), 2);
    submit(&mut driver, 4, &reads);
    assert_eq!(driver.wait_all().unwrap().len(), 4, "nothing is stalled while the queue drains");
    driver.resume();
    assert_eq!((driver.mode(), control.snapshot().stalls), (Mode::Running, 6));
}

#[test]
fn what_hangs_keeps_a_queue_from_rest_until_the_control_handle_lets_it_go() {
    let config =
        FaultConfig { fail: kinds("read"), every: 2, kind: FaultKind::Hang, ..FaultConfig::default() };
    let (mut driver, control) = open(&config);
    let reads = BlockIo::read(0, 512);
    submit(&mut driver, 4, &reads);
    assert_eq!(driver.turn().len(), 2);
    driver.drain();
    // Also what comes while it drains.
    submit(&mut driver, 2, &reads);
    for _ in 0..10 {
        driver.turn();
    }
    let in_flight = driver.with_queue(|queue, _| queue.in_flight());
    assert_eq!((driver.mode(), in_flight, control.snapshot().hangs), (Mode::Draining, 3, 3));
    // The way back is open, and what is asked for meanwhile is done.
    driver.resume();
    assert_eq!(driver.run(BlockIo::flush()).unwrap().output, BlockOutput::Done);
    driver.drain();
    control.release();
    driver.quiesce().unwrap();
    assert_eq!((driver.mode(), driver.in_flight()), (Mode::Quiesced, 0));
}

#[test]
fn the_dropped_are_noticed_by_their_client() {
    let config = FaultConfig { every: 2, kind: FaultKind::Drop, ..FaultConfig::default() };
    let (mut driver, control) = open(&config);
    submit(&mut driver, 4, &BlockIo::flush());
    let done = driver.wait_all().unwrap();
    assert_eq!(done.iter().filter(|done| done.lost).count(), 2);
    assert_eq!((driver.with_queue(|queue, _| queue.in_flight()), control.snapshot().drops), (0, 2));
}

#[test]
fn what_is_wrong_is_told() {
    let refusal = |config: &FaultConfig| Fault::<BlockRequest>::new(config).unwrap_err().to_string();
    assert_eq!(
        refusal(&FaultConfig { fail: kinds("reed"), ..FaultConfig::default() }),
        "fail=reed: there is no block request called `reed` (allowed: all, or some of read, write, flush, discard, \
         write-zeroes, with + between them)"
    );
    assert_eq!(
        refusal(&FaultConfig { permille: 1001, ..FaultConfig::default() }),
        "permille=1001 is not allowed: 0 to 1000 is"
    );
}

/// Which of `count` flushes fail on each of two queues.
fn struck(config: &FaultConfig, count: usize) -> Vec<Vec<bool>> {
    let (backend, manual) = ManualBackend::new(BlockCaps::new(SIZE));
    let (stack, _) = above(config, BoxBackend::new(backend));
    let queue = || {
        let mut driver = Driver::new(1).unwrap();
        driver.open(&stack, 1).unwrap();
        (0..count)
            .map(|_| {
                driver.submit(BlockIo::flush());
                let mut failed = false;
                driver
                    .turn_until(|_, done| {
                        manual.complete_all(BlockOutput::Done);
                        failed |= done.iter().any(|done| done.output == FAILED);
                        !done.is_empty()
                    })
                    .unwrap();
                failed
            })
            .collect()
    };
    vec![queue(), queue()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_same_seed_strikes_the_same_requests(seed in any::<u64>(), every in 0..8_u64, permille in 0..=1000_u32) {
        let config = FaultConfig { every, permille, seed, ..FaultConfig::default() };
        let first = struck(&config, 120);
        prop_assert_eq!(&first, &struck(&config, 120));
        for queue in &first {
            let count = queue.iter().filter(|struck| **struck).count();
            if let Some(counted) = 120_usize.checked_div(every as usize) {
                prop_assert!(count >= counted);
            }
            match permille {
                0 => prop_assert_eq!(count, 120_usize.checked_div(every as usize).unwrap_or(0)),
                1000 => prop_assert_eq!(count, 120),
                // Ten standard deviations of 120 draws.
                _ if every == 0 => prop_assert!((count as i64 - 120 * i64::from(permille) / 1000).abs() <= 56),
                _ => {}
            }
        }
        if every == 0 && (300..700).contains(&permille) {
            prop_assert_ne!(&first[0], &first[1], "each queue has its own chance");
        }
    }
}
