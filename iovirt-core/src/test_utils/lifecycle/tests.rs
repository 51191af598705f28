use super::*;
use crate::pipeline::Pipeline;
use crate::request::block::{BlockCaps, BlockOp, BlockOutput};
use crate::stage::{Flow, Held, Hook, HookLayer, HookStage};
use crate::test_utils::rng::{rounds_or, seed_or};
use crate::test_utils::{PowerLossConfig, PowerLossDisk};
use crate::{AttachError, Depth, Request, Tag, Time, WorkerContext};
use std::time::Duration;

pub(super) fn disk() -> Stack {
    PowerLossDisk::boxed(PowerLossConfig::new(1 << 20))
}

pub(super) fn seeds(count: u64) -> Range<u64> {
    let first = seed_or(1);
    first..first + rounds_or(count)
}

/// Holds writes for a while, to send several at once.
#[derive(Clone, Copy, Debug)]
struct Batching {
    mistake: Mistake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// It waits for the time once, though every turn forgets what was waited for.
    WaitsOnce,
    /// A batch that is complete in the very turn in which its time has come is sent without its first write.
    LosesFirst,
}

const WAIT: Duration = Duration::from_micros(50);

#[derive(Debug)]
struct BatchingHook {
    mistake: Mistake,
    deadline: Option<Time>,
    first: Option<Tag>,
}

impl HookStage<BlockRequest> for Batching {
    type Hook = BatchingHook;

    fn name(&self) -> &str {
        "batching"
    }

    fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
        Ok(below.clone())
    }

    fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> BatchingHook {
        BatchingHook { mistake: self.mistake, deadline: None, first: None }
    }
}

impl Hook<BlockRequest> for BatchingHook {
    fn on_submit(&mut self, cx: &mut WorkerContext<'_>, request: &mut BlockRequest) -> Flow<BlockOutput> {
        if request.op() != BlockOp::Write {
            return Flow::Pass;
        }
        if self.deadline.is_none() {
            self.deadline = Some(cx.now() + WAIT);
            self.first = Some(request.tag());
            if self.mistake == Mistake::WaitsOnce {
                cx.wake_at(cx.now() + WAIT);
            }
        }
        Flow::Hold
    }

    fn on_poll(&mut self, cx: &mut WorkerContext<'_>, held: &mut Held<'_, BlockRequest>) {
        let Some(deadline) = self.deadline else { return };
        let due = deadline <= cx.now();
        if held.is_empty() {
            self.deadline = None;
        } else if due || held.len() >= 4 {
            self.deadline = None;
            let races = self.mistake == Mistake::LosesFirst && due && held.len() >= 4;
            if let Some(first) = self.first.take().filter(|_| races) {
                held.complete(first, BlockOutput::Done);
            }
            held.release_all();
        } else if self.mistake != Mistake::WaitsOnce {
            cx.wake_at(deadline);
        }
    }
}

fn batching(mistake: Mistake) -> impl Fn(Stack) -> Stack {
    move |below| {
        let layer = HookLayer::new(Batching { mistake });
        BoxBackend::new(Pipeline::top().stage(layer).backend(below).unwrap())
    }
}

#[test]
fn an_honest_stage_lives_through_it() {
    for above in [&batching(Mistake::None) as &dyn Fn(Stack) -> Stack, &|below| below] {
        let run =
            run(&Case::new("honest", &disk, above), seeds(40)).unwrap_or_else(|failure| panic!("{failure}"));
        println!("{run}");
        assert!(run.drains > 0 && run.ways_back > 0 && run.resets > 0 && run.restores > 0, "{run}");
        assert!(run.stalls > 0 && run.resizes > 0 && run.requests > 1000, "{run}");
    }
}

#[test]
fn planted_races_are_found_within_a_thousand_seeds() {
    for mistake in [Mistake::WaitsOnce, Mistake::LosesFirst] {
        let above = batching(mistake);
        let found =
            run(&Case::new("planted", &disk, &above), seeds(1000)).expect_err("the race went unnoticed");
        println!("{mistake:?}: {found}");
        let again = run_one(&Case::new("planted", &disk, &above), found.seed);
        assert_eq!(again.unwrap_err(), found, "the seed brings it back");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let above = batching(Mistake::None);
    let case = Case::new("twice", &disk, &above);
    let mut traces = std::collections::BTreeSet::new();
    for seed in seeds(20) {
        let first = run_one(&case, seed).unwrap();
        assert_eq!(first, run_one(&case, seed).unwrap());
        traces.insert(first.trace);
    }
    assert!(traces.len() as u64 >= rounds_or(20), "different seeds are different runs");
}
