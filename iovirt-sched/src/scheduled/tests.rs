use super::*;
use crate::{CostModel, Fifo, Sfq, SfqConfig};
use iovirt_core::dma::{SgLimits, SgPool};
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
use iovirt_core::request::net::{NetCaps, NetOutput, NetRequest};
use iovirt_core::scheduler::{FlowId, Grant, IoScheduler, Weight};
use iovirt_core::test_utils::conformance::{self, Profile};
use iovirt_core::test_utils::lifecycle::{self, Case, Run};
use iovirt_core::test_utils::net::{self, Wire, WireConfig};
use iovirt_core::test_utils::{
    BlockIo, Driver, ManualBackend, ManualHandle, PowerLossConfig, PowerLossDisk, Rng, VirtualClock,
    Workload, WorkloadConfig, rounds_or, seed_or,
};
use iovirt_core::worker::UringPolicy;
use iovirt_core::{Backend, Clock, Completions, Cost, Depth, Mode, Queue, Tag, Time, Worker, WorkerConfig};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SIZE: u64 = 1 << 20;

fn depth(depth: usize) -> NonZeroUsize {
    NonZeroUsize::new(depth).unwrap()
}

fn weight(weight: u32) -> Weight {
    Weight::new(weight).unwrap()
}

fn group(of: usize) -> Arc<Group> {
    Group::new("test", Box::new(Sfq::new(SfqConfig { depth: depth(of), cost: CostModel::OPS })))
}

fn disk() -> BoxBackend<BlockRequest> {
    PowerLossDisk::boxed(PowerLossConfig::new(SIZE))
}

fn above(group: &Arc<Group>, of: u32, below: BoxBackend<BlockRequest>) -> BoxBackend<BlockRequest> {
    let stage = Scheduled::new(group, weight(of));
    BoxBackend::new(Pipeline::top().stage(stage).backend(below).unwrap())
}

/// A pipeline of a group over a disk under the test's command.
struct Rig {
    driver: Driver,
    manual: ManualHandle<BlockRequest>,
    stack: BoxBackend<BlockRequest>,
}

impl Rig {
    fn new(group: &Arc<Group>, of: u32) -> Self {
        Self::with(group, of, WorkerConfig::default())
    }

    fn with(group: &Arc<Group>, of: u32, config: WorkerConfig) -> Self {
        let (backend, manual) = ManualBackend::new(BlockCaps::new(SIZE));
        let stack = above(group, of, BoxBackend::new(backend));
        let mut driver = Driver::with_config(1, config).unwrap();
        driver.open(&stack, 16).unwrap();
        Self { driver, manual, stack }
    }

    fn submit(&mut self, count: usize) {
        for _ in 0..count {
            self.driver.submit(BlockIo::flush()).expect("the queue is full");
        }
        self.driver.turn();
    }

    fn below(&self) -> usize {
        self.manual.in_flight().len()
    }

    fn complete_one(&mut self) -> bool {
        let Some(first) = self.manual.in_flight().first().map(|request| request.id) else { return false };
        self.manual.complete(first, BlockOutput::Done)
    }

    fn flow(&self) -> FlowSnapshot {
        self.stack.list_stages().control::<ScheduledControl>("scheduled").unwrap().snapshot().unwrap()
    }
}

fn idle(group: &Group) -> bool {
    group.snapshot().iter().all(|flow| flow.waiting == 0 && flow.under_way == 0)
}

#[test]
fn the_suite_in_a_group_of_its_own_and_in_one_that_is_busy() {
    for of in [1, 4, 1000] {
        let group = group(of);
        let factory = || above(&group, 100, disk());
        conformance::run(&factory, &Profile::new(format!("scheduled, depth {of}")).rounds(20))
            .assert_passed();
        assert!(idle(&group), "{group:?}");
    }
    let group = group(2);
    let factory = || above(&group, 100, disk());
    let above = |below| above(&group, 100, below);
    conformance::transparency(&factory, &disk, &Profile::new("scheduled")).assert_passed();
    conformance::durability(&above, &Profile::new("scheduled")).assert_passed();
}

#[test]
fn no_more_are_below_than_the_depth_and_all_get_their_share() {
    let group = group(4);
    let mut rigs = [Rig::new(&group, 100), Rig::new(&group, 300)];
    let mut rng = Rng::new(seed_or(5));
    let mut got = [0_u64; 2];
    for rig in &mut rigs {
        rig.submit(16);
    }
    while got[0] < 1000 {
        assert_eq!(rigs.iter().map(Rig::below).sum::<usize>(), 4);
        let one = rng.index(2);
        rigs[one].complete_one();
        // Whoever is woken takes a turn, and always has sixteen in flight.
        for (rig, got) in rigs.iter_mut().zip(&mut got) {
            let done = rig.driver.turn().len();
            *got += done as u64;
            rig.submit(done);
        }
        // The first may have been granted something by what the second told the group.
        rigs[0].driver.turn();
    }
    // The bound of SFQ(D): five times one request of each, by weight.
    let bound = 5.0 * (1.0 / 100.0 + 1.0 / 300.0);
    assert!((got[0] as f64 / 100.0 - got[1] as f64 / 300.0).abs() <= bound, "{got:?}");
    let flows = group.snapshot();
    assert_eq!((flows[0].ops, flows[1].ops, flows[1].weight), (got[0], got[1], 300));
}

#[test]
fn a_weight_changes_while_it_runs() {
    let group = group(1);
    let mut rigs = [Rig::new(&group, 100), Rig::new(&group, 100)];
    rigs[0].stack.list_stages().control::<ScheduledControl>("scheduled").unwrap().set_weight(weight(700));
    let mut got = [0; 2];
    for rig in &mut rigs {
        rig.submit(16);
    }
    for _ in 0..800 {
        for (rig, got) in rigs.iter_mut().zip(&mut got) {
            rig.complete_one();
            let done = rig.driver.turn().len();
            *got += done;
            rig.submit(done);
        }
    }
    assert!(got[0] + got[1] >= 700 && got[0].abs_diff(7 * got[1]) <= 16, "{got:?}");
}

#[test]
fn a_drain_goes_past_the_depth_and_the_way_back_waits_again() {
    let group = group(2);
    let (mut one, mut two) = (Rig::new(&group, 100), Rig::new(&group, 100));
    one.submit(2);
    two.submit(5);
    assert_eq!((one.below(), two.below(), two.flow().waiting), (2, 0, 5));
    two.driver.drain();
    assert_eq!((two.below(), two.flow().waiting, two.driver.mode()), (5, 0, Mode::Draining));
    two.submit(1);
    assert_eq!(two.below(), 6, "nothing waits while the queue drains");
    two.manual.complete_all(BlockOutput::Done);
    two.driver.quiesce().unwrap();
    two.driver.resume();
    two.submit(1);
    assert_eq!((two.below(), two.flow().waiting), (0, 1));
    one.complete_one();
    one.driver.turn();
    two.driver.turn();
    assert_eq!(two.below(), 1);
}

#[test]
fn a_queue_that_is_dropped_strands_nobody() {
    let group = group(2);
    let (mut one, mut two, mut three) = (Rig::new(&group, 100), Rig::new(&group, 100), Rig::new(&group, 100));
    one.submit(4);
    two.submit(4);
    three.submit(4);
    assert_eq!((one.below(), two.below(), three.below()), (2, 0, 0));
    // The second has mail that it never fetches.
    one.manual.complete_all(BlockOutput::Done);
    one.driver.turn();
    let flows = group.snapshot();
    assert_eq!(flows.iter().map(|flow| flow.under_way).collect::<Vec<_>>(), [0, 1, 1]);
    two.driver.close();
    one.driver.close();
    three.driver.turn();
    three.driver.turn();
    assert_eq!((three.below(), three.flow().under_way), (2, 2));
    drop((one, two));
    assert_eq!(group.snapshot().len(), 1, "who is gone is forgotten");
}

#[test]
fn a_lost_request_gives_its_turn_back() {
    let group = group(1);
    let (mut one, mut two) = (Rig::new(&group, 100), Rig::new(&group, 100));
    one.submit(1);
    two.submit(1);
    assert_eq!((one.below(), two.below()), (1, 0));
    let id = one.manual.in_flight()[0].id;
    one.manual.lose(id);
    one.driver.turn();
    two.driver.turn();
    assert_eq!((two.below(), one.flow().lost, one.flow().under_way), (1, 1, 0));
    // The tag of the lost one is used again, which is no second loss.
    one.submit(1);
    assert_eq!((one.flow().lost, one.flow().waiting), (1, 1));
    two.complete_one();
    two.driver.turn();
    one.driver.turn();
    assert_eq!((one.below(), one.flow().under_way), (1, 1));
    one.complete_one();
    one.driver.turn();
    assert!(idle(&group), "{group:?}");
}

#[test]
fn groups_are_found_by_name_and_agree_on_their_depth() {
    let groups = Groups::new();
    let group = groups.open("a", Some(depth(8))).unwrap();
    assert!(Arc::ptr_eq(&group, &groups.open("a", None).unwrap()));
    assert!(Arc::ptr_eq(&group, &groups.get("a").unwrap()));
    assert_eq!(
        groups.open("a", Some(depth(9))).unwrap_err().to_string(),
        "depth=9 is not allowed: the group `a` has a depth of 8"
    );
    assert_eq!(groups.add(&group).unwrap_err().to_string(), "there is a group called `a` already");
    drop(group);
    assert!(groups.get("a").is_none(), "a group goes with its last member");
    let own = Group::new("own", Box::new(Fifo::new(depth(1))));
    groups.add(&own).unwrap();
    assert!(groups.open("own", Some(depth(1))).is_err());
    let config = ScheduledConfig { group: "own".into(), weight: weight(5), depth: None };
    let stage = Scheduled::from_config(&config, &groups).unwrap();
    assert_eq!(own.snapshot()[0].weight, 5);
    drop(stage);
}

#[test]
fn a_pipeline_joins_a_group_once() {
    let (one, two) = (group(1), Group::new("other", Box::new(Fifo::new(depth(1)))));
    let stack = above(&two, 100, above(&one, 100, disk()));
    let refused = Pipeline::top().stage(Scheduled::new(&one, weight(1))).backend(stack).map(drop);
    assert_eq!(
        refused.unwrap_err().to_string(),
        "scheduled: a stage below is in the group `test` already; a pipeline joins a group once"
    );
}

/// A scheduler with something amiss or something more, above an honest one.
struct Wrapped<F> {
    inner: Sfq,
    /// Sees what is granted.
    grants: F,
    deadline: Arc<AtomicU64>,
}

impl<F: FnMut(Time, &mut Vec<Grant>) -> usize + Send> IoScheduler for Wrapped<F> {
    fn set_weight(&mut self, flow: FlowId, weight: Weight) {
        self.inner.set_weight(flow, weight);
    }

    fn ask(&mut self, flow: FlowId, cost: Cost, token: u64, now: Time) {
        self.inner.ask(flow, cost, token, now);
    }

    fn dispatch(&mut self, now: Time, budget: usize, granted: &mut Vec<Grant>) {
        let budget = budget.min((self.grants)(now, granted));
        self.inner.dispatch(now, budget, granted);
        (self.grants)(now, granted);
    }

    fn release(&mut self, flow: FlowId, tokens: Range<u64>, now: Time, granted: &mut Vec<Grant>) {
        self.inner.release(flow, tokens, now, granted);
    }

    fn withdraw(&mut self, flow: FlowId, tokens: Range<u64>) {
        self.inner.withdraw(flow, tokens);
    }

    fn complete(&mut self, flow: FlowId, cost: Cost, now: Time) {
        self.inner.complete(flow, cost, now);
    }

    fn leave(&mut self, flow: FlowId) {
        self.inner.leave(flow);
    }

    fn next_deadline(&self) -> Option<Time> {
        let at = self.deadline.load(Ordering::Relaxed);
        (self.inner.waiting() > 0).then(|| Time::from_nanos(at))
    }
}

/// A scheduler that waits for a time: one request every millisecond.
#[test]
fn a_scheduler_that_waits_for_a_time_gets_its_turn() {
    const PACE: u64 = 1_000_000;
    let deadline = Arc::new(AtomicU64::new(0));
    let next = deadline.clone();
    let mut before = 0;
    let paced = Wrapped {
        inner: Sfq::new(SfqConfig { depth: depth(8), cost: CostModel::OPS }),
        grants: move |now: Time, granted: &mut Vec<Grant>| {
            if granted.len() > before {
                next.store(now.as_nanos() + PACE, Ordering::Relaxed);
            }
            before = granted.len();
            usize::from(now.as_nanos() >= next.load(Ordering::Relaxed))
        },
        deadline,
    };
    let group = Group::new("paced", Box::new(paced));
    let clock = VirtualClock::new();
    let config =
        WorkerConfig { clock: Arc::new(clock.clone()), uring: UringPolicy::Off, ..WorkerConfig::default() };
    let mut rig = Rig::with(&group, 100, config);
    rig.submit(4);
    for count in 1..=4 {
        assert_eq!(rig.below(), count);
        let Some(at) = rig.driver.worker().next_deadline().filter(|_| count < 4) else { break };
        assert_eq!(at, clock.now() + Duration::from_nanos(PACE));
        clock.set(at);
        rig.driver.turn();
    }
    assert_eq!(rig.below(), 4);
}

/// One worker's part in a crowd: load with drains, drops and new queues in the middle.
fn member(group: &Arc<Group>, seed: u64, rounds: u64) -> Result<u64, String> {
    let mut rng = Rng::new(seed);
    let words = |error: &dyn std::fmt::Display| format!("seed {seed:#x}: {error}");
    let stack = above(group, rng.between(1, 1000) as u32, disk());
    let mut driver = Driver::new(seed).map_err(|error| words(&error))?;
    driver.set_patience(Duration::from_secs(5));
    let mut load = Workload::new(WorkloadConfig::new(&stack.caps(), 512), &stack.caps(), seed);
    driver.open(&stack, 16).map_err(|error| words(&error))?;
    for _ in 0..rounds {
        load.run(&mut driver, rng.between(1, 60)).map_err(|error| words(&error))?;
        match rng.below(6) {
            0 => {
                let done = driver.quiesce().map_err(|error| words(&error))?;
                load.take(done).map_err(|error| words(&error))?;
                driver.resume();
            }
            1 => {
                driver.drain();
                driver.resume();
            }
            2 => {
                // What reads leave in flight may be forgotten; what writes do is known to the load only when it ends.
                load.finish(&mut driver).map_err(|error| words(&error))?;
                for _ in 0..rng.below(16) {
                    driver.submit(BlockIo::read(0, 512));
                }
                if rng.one_in(2) {
                    driver.turn();
                }
                driver.open(&stack, 16).map_err(|error| words(&error))?;
            }
            3 => {
                let control = stack.list_stages().control::<ScheduledControl>("scheduled");
                control.ok_or("no control")?.set_weight(weight(rng.between(1, 1000) as u32));
            }
            _ => {}
        }
    }
    load.finish(&mut driver).map_err(|error| words(&error))?;
    load.verify(&mut driver).map_err(|error| words(&error))?;
    Ok(load.finished())
}

/// Several workers on threads of their own in one group; how many requests they did.
fn crowd(group: &Arc<Group>, seed: u64, rounds: u64) -> Result<u64, String> {
    std::thread::scope(|scope| {
        let members: Vec<_> =
            (0..6).map(|at| scope.spawn(move || member(group, seed + at, rounds))).collect();
        members.into_iter().map(|member| member.join().map_err(|_| "a worker panicked")?).sum()
    })
}

#[test]
fn many_workers_in_one_group_strand_nothing() {
    let mut requests = 0;
    for of in [1, 3, 16] {
        let group = group(of);
        requests += crowd(&group, seed_or(0x5f9), rounds_or(25)).unwrap();
        assert!(group.snapshot().is_empty(), "all have left: {group:?}");
    }
    println!("{requests} requests came home");
}

#[test]
fn a_grant_that_is_lost_is_caught() {
    let (mut seen, mut left) = (0, 3);
    let losing = Wrapped {
        inner: Sfq::new(SfqConfig { depth: depth(3), cost: CostModel::OPS }),
        grants: move |_: Time, granted: &mut Vec<Grant>| {
            seen += granted.len();
            if seen > 500 && left > 0 && granted.pop().is_some() {
                left -= 1;
            }
            usize::MAX
        },
        deadline: Arc::new(AtomicU64::new(0)),
    };
    let group = Group::new("losing", Box::new(losing));
    let mut rig = Rig::new(&group, 100);
    rig.driver.set_patience(Duration::from_millis(20));
    let mut load = Workload::new(WorkloadConfig::new(&rig.stack.caps(), 64), &rig.stack.caps(), 1);
    let stack = above(&group, 100, disk());
    rig.driver.open(&stack, 16).unwrap();
    let error = load.run(&mut rig.driver, 5000).unwrap_err().to_string();
    assert!(error.starts_with("stuck"), "{error}");
}

/// A network has more tokens below than the group has places, and sends all the same.
#[test]
fn tokens_take_no_place() {
    let factory = || {
        let group = group(2);
        let stage = Scheduled::new(&group, weight(100));
        BoxBackend::new(Pipeline::top().stage(stage).backend(Wire::new(WireConfig::default())).unwrap())
    };
    net::run(&factory, &Profile::new("scheduled over a wire").rounds(20)).assert_passed();
}

type Stack = BoxBackend<BlockRequest>;

/// The life cycle of a stack in a group of that scheduler: three queues in deterministic simulation.
fn live(scheduler: &dyn Fn() -> Box<dyn IoScheduler>, seed: u64) -> Result<Run, lifecycle::Failure> {
    let stack = |below: Stack| above(&Group::new("simulated", scheduler()), 100, below);
    lifecycle::run_one(&Case::new("scheduled", &disk, &stack), seed)
}

fn sfq(of: usize) -> Sfq {
    Sfq::new(SfqConfig { depth: depth(of), cost: CostModel::OPS })
}

#[test]
fn the_same_seed_is_the_same_run() {
    let mut traces = std::collections::BTreeSet::new();
    let first = seed_or(3);
    for seed in first..first + rounds_or(10) {
        let run = live(&|| Box::new(sfq(3)), seed).unwrap_or_else(|failure| panic!("{failure}"));
        assert_eq!(live(&|| Box::new(sfq(3)), seed), Ok(run));
        traces.insert(run.trace);
    }
    assert!(traces.len() as u64 >= rounds_or(10), "different seeds are different runs");
}

/// A scheduler that forgets a grant where it is asked again at the very time at which it has just granted several.
fn racy() -> Box<dyn IoScheduler> {
    let mut last = None;
    Box::new(Wrapped {
        inner: sfq(3),
        grants: move |now: Time, granted: &mut Vec<Grant>| {
            if granted.len() > 1 && last == Some(now) {
                granted.pop();
            }
            last = (granted.len() > 1).then_some(now).or(last);
            usize::MAX
        },
        deadline: Arc::new(AtomicU64::new(u64::MAX)),
    })
}

#[test]
fn a_planted_race_is_found_within_a_thousand_seeds() {
    let first = seed_or(1);
    let found = (first..first + rounds_or(1000)).find_map(|seed| live(&racy, seed).err());
    let found = found.expect("the race went unnoticed");
    println!("{found}");
    assert_eq!(live(&racy, found.seed), Err(found), "the seed brings it back");
}

#[test]
fn tokens_of_a_network_hold_no_places() {
    let (manual, handle) = ManualBackend::<NetRequest>::new(NetCaps::new(1500, 1));
    let stage = Scheduled::new(&group(2), weight(100));
    let stack = BoxBackend::new(Pipeline::top().stage(stage).backend(manual).unwrap());
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let of = Depth::new(16).unwrap();
    let (mut pool, mut done) = (SgPool::new(16, SgLimits::default()), Completions::with_depth(of));
    let mut queue = worker.with_context(|cx| stack.open(cx, of)).unwrap();
    for tag in 0..8 {
        let token = NetRequest::receive(Tag::new(tag), 0, pool.take());
        worker.with_context(|cx| queue.submit(cx, token));
    }
    for tag in 8..13 {
        let frame = NetRequest::transmit(Tag::new(tag), 0, pool.take());
        worker.with_context(|cx| queue.submit(cx, frame));
    }
    let mut counts = Vec::new();
    for _ in 0..5 {
        worker.with_context(|cx| {
            queue.kick(cx);
            queue.poll(cx, &mut done);
            queue.poll(cx, &mut done);
        });
        let waiting = handle.in_flight();
        let (frames, tokens): (Vec<_>, Vec<_>) =
            waiting.iter().partition(|request| request.name == "transmit");
        counts.push((tokens.len(), frames.len(), queue.in_flight()));
        handle.complete(frames[0].id, NetOutput::Done);
    }
    assert_eq!(counts, [(8, 2, 13), (8, 2, 12), (8, 2, 11), (8, 2, 10), (8, 1, 9)]);
}
