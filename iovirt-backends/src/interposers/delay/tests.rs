use super::hook::Waiting;
use super::*;
use crate::block::memory::{MemoryBackend, MemoryConfig};
use crate::interposers::Kinds;
use crate::net::loopback::{LoopbackBackend, LoopbackConfig};
use crate::net::rig::{frame, rig};
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::request::block::BlockRequest;
use iovirt_core::request::net::NetRequest;
use iovirt_core::test_utils::conformance::{self, Profile};
use iovirt_core::test_utils::net::{self, Wire, WireConfig};
use iovirt_core::test_utils::{BlockIo, Driver, IoId, VirtualClock};
use iovirt_core::worker::UringPolicy;
use iovirt_core::{Clock, Depth, Mode, Tag, Time, WorkerConfig};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const DEPTH: u32 = 8;
const MS: Duration = Duration::from_millis(1);

fn memory() -> BoxBackend<BlockRequest> {
    BoxBackend::new(MemoryBackend::new(&MemoryConfig { size: 1 << 20, ..MemoryConfig::default() }).unwrap())
}

fn above(config: &DelayConfig) -> (BoxBackend<BlockRequest>, Arc<DelayControl>) {
    let delay = Delay::new(config).unwrap();
    let control = delay.handle();
    (BoxBackend::new(Pipeline::top().stage(delay.layer()).backend(memory()).unwrap()), control)
}

fn config(time: Duration, jitter: Duration) -> DelayConfig {
    DelayConfig { time, jitter, ..DelayConfig::default() }
}

/// A driver in virtual time, and its clock.
fn open(config: &DelayConfig) -> (Driver, VirtualClock, Arc<DelayControl>) {
    let clock = VirtualClock::new();
    let (stack, control) = above(config);
    let worker =
        WorkerConfig { clock: Arc::new(clock.clone()), uring: UringPolicy::Off, ..WorkerConfig::default() };
    let mut driver = Driver::with_config(1, worker).unwrap();
    driver.open(&stack, DEPTH).unwrap();
    (driver, clock, control)
}

#[test]
fn the_suite_above_memory() {
    for (name, config) in [
        ("delay", config(Duration::from_micros(20), Duration::from_micros(50))),
        ("delay of nothing", config(Duration::ZERO, Duration::ZERO)),
    ] {
        let factory = || above(&config).0;
        conformance::run(&factory, &Profile::new(name).rounds(10)).assert_passed();
        conformance::transparency(&factory, &memory, &Profile::new(name).rounds(10)).assert_passed();
    }
}

#[test]
fn a_request_waits_for_its_time_and_no_longer() {
    let (mut driver, clock, _) = open(&config(2 * MS, Duration::ZERO));
    driver.submit(BlockIo::flush());
    assert!(driver.turn().is_empty());
    assert_eq!(driver.worker().next_deadline(), Some(Time::ZERO + 2 * MS));
    clock.advance(Duration::from_nanos(1_999_999));
    assert!(driver.turn().is_empty());
    clock.advance(Duration::from_nanos(1));
    assert_eq!(driver.turn().len(), 1);
}

#[test]
fn only_the_kinds_that_were_named_wait() {
    let named = DelayConfig { kinds: "read+flush".parse::<Kinds>().unwrap(), ..config(MS, Duration::ZERO) };
    let (mut driver, clock, control) = open(&named);
    driver.write(0, &[1; 512]).unwrap();
    driver.submit(BlockIo::read(0, 512));
    assert!(driver.turn().is_empty());
    control.set(&config(Duration::ZERO, Duration::ZERO)).unwrap();
    driver.submit(BlockIo::read(0, 512));
    assert_eq!(driver.turn().len(), 1, "what is submitted later goes by the new settings");
    assert_eq!(driver.in_flight(), 1, "what was held stays so");
    clock.advance(MS);
    assert_eq!(driver.turn().len(), 1);
    let wrong = DelayConfig { kinds: "reed".parse::<Kinds>().unwrap(), ..named };
    assert!(
        control.set(&wrong).unwrap_err().to_string().starts_with("kinds=reed: there is no block request")
    );
}

#[test]
fn a_drain_and_the_control_handle_let_go_at_once() {
    let hour = Duration::from_secs(3600);
    let (mut driver, _, control) = open(&config(hour, Duration::ZERO));
    for _ in 0..3 {
        for _ in 0..DEPTH {
            driver.submit(BlockIo::flush()).expect("the queue is full");
        }
        assert!(driver.turn().is_empty());
        assert_eq!(driver.quiesce().unwrap().len(), DEPTH as usize);
        driver.submit(BlockIo::flush());
        assert_eq!(driver.turn().len(), 1, "nothing is held while the queue drains");
        driver.resume();
        assert_eq!(driver.mode(), Mode::Running);
    }
    driver.submit(BlockIo::flush());
    assert!(driver.turn().is_empty());
    control.release();
    assert_eq!(driver.wait_all().unwrap().len(), 1);
}

/// Requests that a drain let go leave entries behind; those are forgotten before they take more memory.
#[test]
fn entries_left_behind_take_no_memory() {
    let mut waiting = Waiting::new(Depth::new(DEPTH).unwrap());
    let capacity = waiting.heap.capacity();
    for round in 0..10_000 {
        assert!(waiting.insert(Tag::new(round % DEPTH), Time::ZERO + MS));
        assert!(waiting.heap.len() <= 2 * DEPTH as usize);
    }
    assert_eq!(waiting.heap.capacity(), capacity);
    assert!(!waiting.insert(Tag::new(DEPTH), Time::ZERO), "a tag beyond the depth does not wait");
}

#[test]
fn drains_without_end_take_no_memory() {
    let (mut driver, clock, _) = open(&config(Duration::from_secs(3600), Duration::ZERO));
    for _ in 0..200 {
        driver.submit(BlockIo::flush());
        driver.submit(BlockIo::flush());
        driver.turn();
        driver.quiesce().unwrap();
        driver.resume();
    }
    driver.submit(BlockIo::flush());
    assert!(driver.turn().is_empty());
    clock.advance(Duration::from_secs(3600));
    assert_eq!(driver.turn().len(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Submit,
    Pass(u64),
    DrainAndResume,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => Just(Step::Submit),
        4 => (0..5000_u64).prop_map(Step::Pass),
        1 => Just(Step::DrainAndResume),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against a model of one line: a request comes home in its window of time, or by a drain.
    #[test]
    fn every_request_comes_home_in_its_window(
        time in 0..3000_u64, jitter in 0..3000_u64, seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let config = DelayConfig {
            seed, ..config(Duration::from_micros(time), Duration::from_micros(jitter))
        };
        let (mut driver, clock, _) = open(&config);
        let mut waiting: BTreeMap<IoId, Time> = BTreeMap::new();
        for step in steps {
            let mut drained = false;
            match step {
                Step::Submit => {
                    if let Some(id) = driver.submit(BlockIo::flush()) {
                        waiting.insert(id, clock.now());
                    }
                }
                Step::Pass(micros) => clock.advance(Duration::from_micros(micros)),
                Step::DrainAndResume => {
                    driver.drain();
                    drained = true;
                }
            }
            let now = clock.now();
            for done in driver.turn() {
                let since = waiting.remove(&done.id).expect("came home twice");
                prop_assert!(drained || now >= since + config.time, "too early");
            }
            for since in waiting.values() {
                let latest = *since + config.time + config.jitter;
                prop_assert!(now < latest, "too late");
            }
            if drained {
                prop_assert!(waiting.is_empty(), "a drain left requests behind");
                driver.resume();
            }
        }
    }
}

#[test]
fn frames_do_not_overtake_each_other() {
    let config = config(Duration::from_micros(20), Duration::from_micros(50));
    let factory = || {
        let delay = Delay::new(&config).unwrap();
        BoxBackend::new(
            Pipeline::top().stage(delay.layer()).backend(Wire::new(WireConfig::default())).unwrap(),
        )
    };
    net::run(&factory, &Profile::new("delay over a wire").rounds(20)).assert_passed();
}

/// Also where the settings change while some wait: those that come later have nothing to wait for but those before them.
#[test]
fn frames_do_not_overtake_each_other_when_the_delay_ends() {
    let delay = Delay::new(&config(MS, Duration::ZERO)).unwrap();
    let control = delay.handle();
    let wire = Wire::boxed(WireConfig::default());
    let stack = BoxBackend::new(Pipeline::top().stage(delay.layer()).backend(wire.clone()).unwrap());
    let (mut sender, mut receiver) = (rig(&stack, 0), rig(&wire, 0));
    receiver.post(8);
    sender.send([frame(1, 60).as_slice()]);
    control.set(&config(Duration::ZERO, Duration::ZERO)).unwrap();
    sender.send([frame(2, 60).as_slice()]);
    sender.drain();
    sender.poll();
    sender.resume();
    sender.send([frame(3, 60).as_slice()]);
    assert_eq!(receiver.received(), [frame(1, 60), frame(2, 60), frame(3, 60)]);
}

#[test]
fn frames_stay_in_order_where_only_what_is_sent_waits() {
    let config = DelayConfig { kinds: "transmit".parse().unwrap(), ..config(Duration::ZERO, 2 * MS) };
    let network = LoopbackBackend::new(&LoopbackConfig::default()).unwrap();
    let delay = Delay::<NetRequest>::new(&config).unwrap();
    let control = delay.handle();
    let stack = BoxBackend::new(Pipeline::top().stage(delay.layer()).backend(network).unwrap());
    let (mut receiver, mut sender) = (rig(&stack, 0), rig(&stack, 0));
    for round in 0..20 {
        receiver.post(7);
        let frames: Vec<_> = (round * 7..round * 7 + 7).map(|number| frame(number, 60)).collect();
        sender.send(frames[..5].iter().map(Vec::as_slice));
        if round % 2 == 0 {
            // Nor do those that need not wait any more.
            control.set(&DelayConfig { jitter: Duration::ZERO, ..config.clone() }).unwrap();
        }
        sender.send(frames[5..].iter().map(Vec::as_slice));
        let mut came = Vec::new();
        while came.len() < frames.len() {
            sender.poll();
            came.extend(receiver.received());
        }
        assert_eq!(came, frames, "round {round}");
        sender.poll();
        control.set(&config).unwrap();
    }
}
