//! Against the text of the papers: tags as they define them, and the bounds that they prove.

use super::*;
use proptest::prelude::*;

const NOW: Time = Time::ZERO;

fn sfq(depth: usize, cost: CostModel) -> Sfq {
    Sfq::new(SfqConfig { depth: NonZeroUsize::new(depth).unwrap(), cost })
}

fn bytes(bytes: u64) -> Cost {
    Cost { ops: 1, bytes }
}

const BYTES: CostModel = CostModel { per_op: 0, per_byte: 1 };

fn dispatch(sfq: &mut Sfq, budget: usize) -> Vec<Grant> {
    let mut granted = Vec::new();
    sfq.dispatch(NOW, budget, &mut granted);
    granted
}

fn weight(weight: u32) -> Weight {
    Weight::new(weight).unwrap()
}

fn range(token: u64) -> Range<u64> {
    token..token + 1
}

#[test]
fn weights_share_what_there_is() {
    let mut sfq = sfq(4, CostModel::OPS);
    let weights = [100, 200, 400];
    for (flow, &of) in (0..).map(FlowId).zip(&weights) {
        sfq.set_weight(flow, weight(of));
        (0..5000).for_each(|token| sfq.ask(flow, bytes(512), token, NOW));
    }
    let mut got = [0; 3];
    for _ in 0..7000 {
        for Grant { flow, .. } in dispatch(&mut sfq, 1) {
            got[flow.0 as usize] += 1;
            sfq.complete(flow, bytes(512), NOW);
        }
    }
    assert_eq!(got, [1000, 2000, 4000]);
}

#[test]
fn large_requests_count_for_more() {
    let mut sfq = sfq(1, BYTES);
    for token in 0..1000 {
        sfq.ask(FlowId(0), bytes(512), token, NOW);
        sfq.ask(FlowId(1), bytes(4096), token, NOW);
    }
    let mut got = [0; 2];
    for _ in 0..900 {
        let grant = dispatch(&mut sfq, 1)[0];
        got[grant.flow.0 as usize] += 1;
        sfq.complete(grant.flow, Cost::default(), NOW);
    }
    assert_eq!(got, [800, 100]);
}

#[test]
fn who_was_idle_has_saved_up_nothing_and_owes_nothing() {
    let mut sfq = sfq(1, CostModel::OPS);
    (0..2000).for_each(|token| sfq.ask(FlowId(0), bytes(0), token, NOW));
    for _ in 0..1000 {
        let grant = dispatch(&mut sfq, 1)[0];
        sfq.complete(grant.flow, Cost::default(), NOW);
    }
    (0..2000).for_each(|token| sfq.ask(FlowId(1), bytes(0), token, NOW));
    let mut got = [0_i32; 2];
    for _ in 0..100 {
        let grant = dispatch(&mut sfq, 1)[0];
        got[grant.flow.0 as usize] += 1;
        sfq.complete(grant.flow, Cost::default(), NOW);
        assert!((got[0] - got[1]).abs() <= 2, "{got:?}");
    }
}

#[test]
fn a_weight_changes_under_those_that_wait() {
    let mut sfq = sfq(1, CostModel::OPS);
    for token in 0..1000 {
        sfq.ask(FlowId(0), bytes(0), token, NOW);
        sfq.ask(FlowId(1), bytes(0), token, NOW);
    }
    let run = |sfq: &mut Sfq, count| {
        let mut got = [0; 2];
        for _ in 0..count {
            let grant = dispatch(sfq, 1)[0];
            got[grant.flow.0 as usize] += 1;
            sfq.complete(grant.flow, Cost::default(), NOW);
        }
        got
    };
    assert_eq!(run(&mut sfq, 100), [50, 50]);
    sfq.set_weight(FlowId(1), weight(300));
    let got = run(&mut sfq, 400);
    assert!((99..=101).contains(&got[0]), "{got:?}");
}

#[test]
fn a_released_queue_goes_past_the_depth_and_pays() {
    let mut sfq = sfq(1, CostModel::OPS);
    for token in 0..10 {
        sfq.ask(FlowId(0), bytes(0), token, NOW);
        sfq.ask(FlowId(0), bytes(0), 100 + token, NOW);
        sfq.ask(FlowId(1), bytes(0), token, NOW);
    }
    let mut granted = Vec::new();
    sfq.release(FlowId(0), 100..200, NOW, &mut granted);
    assert_eq!(granted.iter().map(|grant| grant.token).collect::<Vec<_>>(), (100..110).collect::<Vec<_>>());
    assert_eq!((sfq.waiting(), sfq.under_way()), (20, 10));
    assert!(dispatch(&mut sfq, 9).is_empty(), "the depth is taken");
    (0..10).for_each(|_| sfq.complete(FlowId(0), Cost::default(), NOW));
    let mut order = Vec::new();
    while sfq.waiting() > 0 {
        let grant = dispatch(&mut sfq, 1)[0];
        order.push(grant.flow.0);
        sfq.complete(grant.flow, Cost::default(), NOW);
    }
    assert_eq!(order[..10], [1; 10], "what went out of turn is made up for");
}

#[test]
fn who_is_gone_leaves_room() {
    let mut sfq = sfq(2, CostModel::OPS);
    for token in 0..5 {
        sfq.ask(FlowId(0), bytes(0), token, NOW);
        sfq.ask(FlowId(7), bytes(0), token, NOW);
    }
    assert_eq!(dispatch(&mut sfq, 9).len(), 2);
    sfq.leave(FlowId(0));
    assert_eq!((sfq.waiting(), sfq.under_way()), (4, 1));
    sfq.complete(FlowId(0), Cost::default(), NOW);
    assert_eq!(sfq.under_way(), 1, "what left has completed already");
    sfq.withdraw(FlowId(7), 2..4);
    assert_eq!(sfq.waiting(), 2);
    assert_eq!(dispatch(&mut sfq, 9).len(), 1);
    sfq.withdraw(FlowId(7), 0..9);
    sfq.complete(FlowId(7), Cost::default(), NOW);
    sfq.complete(FlowId(7), Cost::default(), NOW);
    assert_eq!((sfq.waiting(), sfq.under_way()), (0, 0));
}

/// Flows that come, ask once and go leave nothing behind.
#[test]
fn flows_that_come_and_go_take_no_memory() {
    let mut sfq = sfq(1, CostModel::OPS);
    sfq.ask(FlowId(0), bytes(0), 0, NOW);
    assert_eq!(dispatch(&mut sfq, 1).len(), 1);
    for _ in 0..10_000 {
        sfq.ask(FlowId(1), bytes(0), 0, NOW);
        sfq.leave(FlowId(1));
    }
    assert!(sfq.heads.len() <= 16, "{}", sfq.heads.len());
}

/// SFQ(D) as it is defined, with a list for everything.
#[derive(Default)]
struct Definition {
    virtual_time: Tag,
    /// By flow: the finish tag of the request that was asked for last.
    finish: [Tag; FLOWS],
    /// Flow, token, start tag, finish tag.
    waiting: Vec<(u32, u64, Tag, Tag)>,
    under_way: Vec<(u32, u64)>,
    finished: Tag,
}

const FLOWS: usize = 5;

impl Definition {
    fn ask(&mut self, flow: u32, token: u64, length: Tag) {
        let start = self.virtual_time.max(self.finish[flow as usize]);
        self.finish[flow as usize] = start + length;
        self.waiting.push((flow, token, start, start + length));
    }

    /// Checks that a grant is one that the definition allows.
    fn granted(&mut self, grant: Grant) -> Result<(), String> {
        let least = self.waiting.iter().map(|ask| ask.2).min().ok_or("nobody waits")?;
        let at = self.waiting.iter().position(|ask| (ask.0, ask.1) == (grant.flow.0, grant.token));
        let (flow, token, start, finish) = self.waiting.remove(at.ok_or("granted what was not asked for")?);
        if start != least {
            return Err(format!("{grant:?} starts at {start}, and the least is {least}"));
        }
        if self.waiting.iter().any(|ask| ask.0 == flow && ask.1 < token) {
            return Err(format!("{grant:?} overtook one of its own flow"));
        }
        self.virtual_time = start;
        self.finished = self.finished.max(finish);
        self.under_way.push((flow, token));
        Ok(())
    }

    fn complete(&mut self, at: usize) -> u32 {
        let (flow, _) = self.under_way.remove(at);
        if self.under_way.is_empty() && self.waiting.is_empty() {
            self.virtual_time = self.finished;
        }
        flow
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ask(u32, u64),
    Dispatch(usize),
    Complete(prop::sample::Index),
}

fn step_of() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..FLOWS as u32, 1..5000_u64).prop_map(|(flow, cost)| Step::Ask(flow, cost)),
        2 => (0..6_usize).prop_map(Step::Dispatch),
        4 => any::<prop::sample::Index>().prop_map(Step::Complete),
    ]
}

proptest! {
    #[test]
    fn tags_are_those_of_the_definition(
        depth in 1..6_usize,
        weights in prop::array::uniform5(1..=Weight::MAX),
        steps in prop::collection::vec(step_of(), 0..200),
    ) {
        let mut sfq = sfq(depth, BYTES);
        let mut definition = Definition::default();
        (0..).zip(weights).for_each(|(flow, of)| sfq.set_weight(FlowId(flow), weight(of)));
        for (token, step_now) in (0..).zip(steps) {
            match step_now {
                Step::Ask(flow, cost) => {
                    sfq.ask(FlowId(flow), bytes(cost), token, NOW);
                    let length = u128::from(cost) * u128::from(step(weight(weights[flow as usize])));
                    definition.ask(flow, token, length);
                }
                Step::Dispatch(budget) => {
                    let granted = dispatch(&mut sfq, budget);
                    let room = depth - definition.under_way.len();
                    // Nobody waits where there is room: work is conserved.
                    prop_assert_eq!(granted.len(), room.min(budget).min(definition.waiting.len()));
                    for grant in granted {
                        definition.granted(grant).map_err(TestCaseError::fail)?;
                    }
                }
                Step::Complete(at) if !definition.under_way.is_empty() => {
                    let flow = definition.complete(at.index(definition.under_way.len()));
                    sfq.complete(FlowId(flow), Cost::default(), NOW);
                }
                Step::Complete(_) => {}
            }
            prop_assert_eq!((sfq.waiting(), sfq.under_way()), (definition.waiting.len(), definition.under_way.len()));
        }
    }

    /// Between any two points of time between which two flows wait all the time, whatever others do.
    #[test]
    fn shares_are_within_the_bounds_that_were_proved(
        depth in 1..9_usize,
        weights in prop::array::uniform5(1..=Weight::MAX),
        largest in prop::array::uniform5(1..20_000_u64),
        // Which flows fall idle when they have nothing left, in bits; the others are filled up at once.
        idle in 0..32_u32,
        choices in prop::collection::vec(any::<u64>(), 50..400),
    ) {
        let mut sfq = sfq(depth, BYTES);
        let mut load = Load::new(largest);
        (0..).zip(weights).for_each(|(flow, of)| sfq.set_weight(FlowId(flow), weight(of)));
        for choice in choices {
            load.fill(&mut sfq, idle, choice);
            for grant in dispatch(&mut sfq, usize::MAX) {
                load.granted(grant);
            }
            prop_assert!(sfq.under_way() == depth || sfq.waiting() == 0, "work was not conserved");
            load.complete(&mut sfq, choice);
            load.check(&weights, depth).map_err(TestCaseError::fail)?;
        }
    }

    /// Whatever is released, withdrawn or left: every ask is granted once or taken back, and counts stay right.
    #[test]
    fn nothing_is_stranded(
        depth in 1..5_usize,
        steps in prop::collection::vec((0..7_u8, 0..4_u32, any::<u64>()), 0..150),
    ) {
        let mut sfq = sfq(depth, CostModel::default());
        let (mut waiting, mut out): (Vec<Grant>, Vec<Grant>) = Default::default();
        for (token, (what, flow, choice)) in (0..).zip(steps) {
            let flow = FlowId(flow);
            let mut granted = Vec::new();
            match what {
                0..=2 => {
                    sfq.ask(flow, bytes(choice), token, NOW);
                    waiting.push(Grant { flow, token });
                }
                3 => sfq.dispatch(NOW, (choice % 4) as usize, &mut granted),
                4 => {
                    if !out.is_empty() {
                        let grant = out.swap_remove((choice % out.len() as u64) as usize);
                        sfq.complete(grant.flow, Cost::default(), NOW);
                    }
                }
                5 => {
                    let tokens = choice % 100..choice % 100 + 30;
                    let mine = |ask: &Grant| ask.flow == flow && tokens.contains(&ask.token);
                    if choice.is_multiple_of(2) {
                        sfq.release(flow, tokens.clone(), NOW, &mut granted);
                        let expected: Vec<_> = waiting.iter().copied().filter(mine).collect();
                        prop_assert_eq!(&granted, &expected);
                    } else {
                        sfq.withdraw(flow, tokens.clone());
                        waiting.retain(|ask| !mine(ask));
                    }
                }
                _ => {
                    sfq.leave(flow);
                    waiting.retain(|ask| ask.flow != flow);
                    out.retain(|grant| grant.flow != flow);
                }
            }
            for grant in granted {
                let at = waiting.iter().position(|ask| *ask == grant);
                prop_assert!(at.is_some(), "{:?} was not waiting", grant);
                waiting.remove(at.unwrap());
                out.push(grant);
            }
            prop_assert_eq!((sfq.waiting(), sfq.under_way()), (waiting.len(), out.len()));
        }
        // All that is left comes home.
        while !waiting.is_empty() || !out.is_empty() {
            for grant in dispatch(&mut sfq, usize::MAX) {
                waiting.retain(|ask| *ask != grant);
                out.push(grant);
            }
            let grant = out.pop().expect("somebody waits and nobody is granted anything");
            sfq.complete(grant.flow, Cost::default(), NOW);
        }
        prop_assert_eq!((sfq.waiting(), sfq.under_way()), (0, 0));
        prop_assert!(dispatch(&mut sfq, 1).is_empty());
        sfq.withdraw(FlowId(9), range(0));
    }
}

type Pair = ((usize, usize), Option<[u64; 4]>);

/// A load that measures what each two flows got since both began to wait.
struct Load {
    largest: [u64; FLOWS],
    costs: Vec<u64>,
    waiting: [usize; FLOWS],
    under_way: Vec<Grant>,
    /// Of each pair: what each of both was granted, and what of it completed.
    pairs: Vec<Pair>,
}

impl Load {
    fn new(largest: [u64; FLOWS]) -> Self {
        let pairs = (0..FLOWS).flat_map(|one| (one + 1..FLOWS).map(move |two| ((one, two), None)));
        Self {
            largest,
            costs: Vec::new(),
            waiting: [0; FLOWS],
            under_way: Vec::new(),
            pairs: pairs.collect(),
        }
    }

    fn fill(&mut self, sfq: &mut Sfq, idle: u32, choice: u64) {
        for flow in 0..FLOWS {
            let waits = self.waiting[flow] > 0;
            let comes = idle >> flow & 1 == 0 || (choice >> (8 + flow)).is_multiple_of(8);
            if waits || !comes {
                continue;
            }
            for _ in 0..1 + (choice >> 20) % 5 + 8 {
                let cost = 1 + choice.rotate_left(self.costs.len() as u32) % self.largest[flow];
                sfq.ask(FlowId(flow as u32), bytes(cost), self.costs.len() as u64, NOW);
                self.costs.push(cost);
                self.waiting[flow] += 1;
            }
        }
        self.begin_and_end();
    }

    /// A pair is measured as long as both wait.
    fn begin_and_end(&mut self) {
        for ((one, two), measured) in &mut self.pairs {
            match (self.waiting[*one] > 0 && self.waiting[*two] > 0, &measured) {
                (true, None) => *measured = Some([0; 4]),
                (false, Some(_)) => *measured = None,
                _ => {}
            }
        }
    }

    fn count(&mut self, grant: Grant, offset: usize) {
        let (flow, cost) = (grant.flow.0 as usize, self.costs[grant.token as usize]);
        for ((one, two), measured) in &mut self.pairs {
            if let Some(measured) = measured {
                measured[offset] += if flow == *one { cost } else { 0 };
                measured[offset + 1] += if flow == *two { cost } else { 0 };
            }
        }
    }

    fn granted(&mut self, grant: Grant) {
        self.count(grant, 0);
        self.waiting[grant.flow.0 as usize] -= 1;
        self.under_way.push(grant);
        self.begin_and_end();
    }

    fn complete(&mut self, sfq: &mut Sfq, choice: u64) {
        for _ in 0..=choice % 3 {
            if self.under_way.is_empty() {
                return;
            }
            let grant = self.under_way.swap_remove((choice >> 3) as usize % self.under_way.len());
            self.count(grant, 2);
            sfq.complete(grant.flow, Cost::default(), NOW);
        }
    }

    fn check(&self, weights: &[u32; FLOWS], depth: usize) -> Result<(), String> {
        for ((one, two), measured) in &self.pairs {
            let Some(measured) = measured else { continue };
            let share = |cost: u64, flow: usize| cost as f64 / f64::from(weights[flow]);
            let bound = share(self.largest[*one], *one) + share(self.largest[*two], *two);
            for (what, offset, bound) in
                [("granted", 0, bound), ("completed", 2, bound * (depth as f64 + 1.0))]
            {
                let apart = (share(measured[offset], *one) - share(measured[offset + 1], *two)).abs();
                // Weights are rounded to a part in 2^18.
                let rounding = share(measured[offset], *one) / 100_000.0;
                if apart > bound + rounding {
                    return Err(format!(
                        "flows {one} and {two} are {apart} apart in what was {what}, and the bound is {bound}: {measured:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}
