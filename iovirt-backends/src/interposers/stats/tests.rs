use super::histogram::{BUCKETS, bucket, upper_bound};
use super::*;
use crate::block::memory::{MemoryBackend, MemoryConfig};
use crate::block::null::{NullBackend, NullConfig};
use crate::rig::Rig;
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::request::block::{BlockOp, BlockOutput, BlockRequest};
use iovirt_core::{Clock, Time, WorkerConfig};
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A clock that goes on by one microsecond with each look at it.
#[derive(Debug, Default)]
struct StepClock(AtomicU64);

impl Clock for StepClock {
    fn now(&self) -> Time {
        Time::from_nanos(self.0.fetch_add(1000, Ordering::Relaxed))
    }
}

fn stack(name: &str) -> BoxBackend<BlockRequest> {
    let stats = Stats::new(&StatsConfig { name: name.into() }).layer();
    let null = NullBackend::new(&NullConfig { size: 1 << 20, fill: false }).unwrap();
    BoxBackend::new(Pipeline::top().stage(stats).backend(null).unwrap())
}

fn control(stack: &BoxBackend<BlockRequest>, name: &str) -> Arc<StatsControl> {
    stack.list_stages().control(name).unwrap()
}

#[test]
fn each_kind_is_counted_for_itself() {
    let stack = stack("stats");
    let control = control(&stack, "stats");
    let mut rig = Rig::new(&stack);
    assert_eq!(rig.write(0, &[1; 1024]), BlockOutput::Done);
    assert_eq!(rig.write(512, &[1; 512]), BlockOutput::Done);
    assert!(rig.read_into(1 << 20, &[0; 512]).is_err());
    rig.range(BlockOp::Flush, 0, 0);
    rig.range(BlockOp::Discard, 0, 4096);
    let snapshot = control.snapshot();
    let seen: Vec<_> = snapshot.kinds.iter().map(|k| (k.name, k.ops, k.bytes, k.failures)).collect();
    let expected = [
        ("read", 1, 0, 1),
        ("write", 2, 1536, 0),
        ("flush", 1, 0, 0),
        ("discard", 1, 0, 0),
        ("write-zeroes", 0, 0, 0),
    ];
    assert_eq!(seen, expected);
    assert_eq!((snapshot.in_flight, snapshot.lost), (0, 0));
    assert!(snapshot.kinds.iter().all(|kind| kind.latency.count() == kind.ops));
}

#[test]
fn latency_is_the_time_between_submission_and_completion() {
    let stack = stack("stats");
    let config = WorkerConfig { clock: Arc::<StepClock>::default(), ..WorkerConfig::default() };
    let mut rig = Rig::with_worker(&stack, config);
    rig.submit(BlockOp::Flush, 0, 0);
    assert_eq!(control(&stack, "stats").snapshot().in_flight, 1);
    rig.poll();
    let flush = &control(&stack, "stats").snapshot().kinds[2];
    assert_eq!(flush.latency.mean(), Some(Duration::from_micros(1)));
    let p99 = flush.latency.percentile(99.0).unwrap();
    assert!((1000..1032).contains(&p99.as_nanos()), "{p99:?}");
}

/// The memory disk copies within one turn, and the time that took is seen.
#[test]
fn work_within_a_turn_takes_time() {
    let memory = MemoryBackend::new(&MemoryConfig::default()).unwrap();
    let stats = Stats::<BlockRequest>::new(&StatsConfig::default());
    let control = stats.handle();
    let stack = BoxBackend::new(Pipeline::top().stage(stats.layer()).backend(memory).unwrap());
    let config = WorkerConfig { clock: Arc::<StepClock>::default(), ..WorkerConfig::default() };
    let mut rig = Rig::with_worker(&stack, config);
    assert_eq!(rig.write(0, &[1; 512]), BlockOutput::Done);
    // One look at the clock when the copy was done, another when the rig polled.
    assert_eq!(control.snapshot().kinds[1].latency.mean(), Some(Duration::from_micros(2)));
}

/// What an exporter of histograms adds up.
#[test]
fn buckets_and_their_sum_are_all_requests() {
    let stack = stack("stats");
    let config = WorkerConfig { clock: Arc::<StepClock>::default(), ..WorkerConfig::default() };
    let mut rig = Rig::with_worker(&stack, config);
    for _ in 0..5 {
        rig.range(BlockOp::Flush, 0, 0);
    }
    let latency = &control(&stack, "stats").snapshot().kinds[2].latency;
    assert_eq!(latency.buckets().map(|(_, count)| count).sum::<u64>(), 5);
    let bounds: Vec<_> = latency.buckets().map(|(bound, _)| bound).collect();
    assert!(bounds.is_sorted() && bounds[0] >= Duration::from_micros(1), "{bounds:?}");
    assert_eq!(latency.sum(), latency.mean().unwrap() * 5);
    for power in 0..38 {
        assert!((0..BUCKETS).any(|bucket| upper_bound(bucket) + 1 == 1 << power), "{power}");
    }
}

#[test]
fn a_reset_counts_from_there_and_leaves_what_is_in_flight() {
    let stack = stack("stats");
    let control = control(&stack, "stats");
    let mut rig = Rig::new(&stack);
    rig.write(0, &[1; 512]);
    rig.submit(BlockOp::Flush, 0, 0);
    control.reset();
    let snapshot = control.snapshot();
    assert_eq!((snapshot.kinds[1].ops, snapshot.kinds[1].bytes, snapshot.in_flight), (0, 0, 1));
    assert_eq!(snapshot.kinds[1].latency, Latency::default());
    rig.poll();
    let snapshot = control.snapshot();
    assert_eq!((snapshot.kinds[2].ops, snapshot.in_flight), (1, 0));
}

#[test]
fn what_came_between_two_snapshots_can_be_told() {
    let stack = stack("stats");
    let control = control(&stack, "stats");
    let mut rig = Rig::new(&stack);
    rig.write(0, &[1; 512]);
    let earlier = control.snapshot();
    rig.write(0, &[1; 1024]);
    rig.submit(BlockOp::Flush, 0, 0);
    let since = control.snapshot().since(&earlier);
    assert_eq!((since.kinds[1].ops, since.kinds[1].bytes, since.in_flight), (1, 1024, 1));
    assert_eq!(since.kinds[1].latency.count(), 1);
    let same = control.snapshot();
    assert_eq!(same.since(&same).kinds[1].latency, Latency::default());
}

#[test]
fn closed_queues_still_count_and_cost_no_memory() {
    let stack = stack("stats");
    let control = control(&stack, "stats");
    for round in 1..=5 {
        let mut rig = Rig::new(&stack);
        rig.write(0, &[1; 512]);
        rig.submit(BlockOp::Flush, 0, 0);
        drop(rig);
        let snapshot = control.snapshot();
        assert_eq!((snapshot.kinds[1].ops, snapshot.in_flight), (round, 0));
        assert_eq!(control.shards(), 1, "what is closed is folded when the next opens");
    }
}

#[test]
fn several_stages_are_told_apart_by_name() {
    let below = stack("below");
    let stats = Stats::<BlockRequest>::new(&StatsConfig { name: "above".into() }).layer();
    let stack = BoxBackend::new(Pipeline::top().stage(stats).backend(below).unwrap());
    Rig::new(&stack).write(0, &[1; 512]);
    for name in ["above", "below"] {
        assert_eq!(control(&stack, name).snapshot().kinds[1].ops, 1, "{name}");
    }
}

#[test]
fn a_snapshot_serialises_with_its_percentiles() {
    let stack = stack("stats");
    Rig::new(&stack).write(0, &[1; 512]);
    let json = serde_json::to_value(control(&stack, "stats").snapshot()).unwrap();
    assert_eq!(json["kinds"][1]["name"], "write");
    assert_eq!(json["kinds"][1]["latency"]["count"], 1);
    assert!(json["kinds"][1]["latency"]["p99_ns"].is_u64());
    assert!(json["kinds"][0]["latency"]["p99_ns"].is_null());
}

#[test]
fn buckets_are_in_order_and_without_gaps() {
    assert_eq!(bucket(0), 0);
    assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    for index in 0..BUCKETS {
        let upper = upper_bound(index);
        assert_eq!(bucket(upper), index);
        assert_eq!(bucket(upper + 1), (index + 1).min(BUCKETS - 1));
    }
}

proptest! {
    #[test]
    fn percentiles_are_those_of_a_sorted_list(
        mut values in prop::collection::vec((0..37_u32, any::<u64>()).prop_map(|(bits, v)| v % (1 << bits)), 1..200),
        percent in 0.0..=100.0_f64,
    ) {
        let mut latency = Latency::default();
        for &value in &values {
            latency.counts[bucket(value)] += 1;
            latency.sum += value;
        }
        values.sort_unstable();
        let rank = (percent / 100.0 * f64::from(values.len() as u32)).ceil() as usize;
        let exact = values[rank.max(1) - 1];
        let answer = latency.percentile(percent).unwrap().as_nanos() as u64;
        prop_assert!(answer >= exact && answer - exact <= exact / 32, "{} for {}", answer, exact);
        let mean = latency.mean().unwrap().as_nanos() as u64;
        prop_assert_eq!(mean, values.iter().sum::<u64>() / values.len() as u64);
    }
}
