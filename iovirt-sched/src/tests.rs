use super::*;
use iovirt_core::scheduler::{FlowId, Grant, IoScheduler};
use iovirt_core::{Cost, Time};
use proptest::prelude::*;
use std::num::NonZeroUsize;

const COST: Cost = Cost { ops: 1, bytes: 512 };
const NOW: Time = Time::ZERO;

fn fifo(limit: usize) -> Fifo {
    Fifo::new(NonZeroUsize::new(limit).unwrap())
}

fn dispatch(fifo: &mut Fifo, budget: usize) -> Vec<u64> {
    let mut granted = Vec::new();
    fifo.dispatch(NOW, budget, &mut granted);
    granted.iter().map(|grant| grant.token).collect()
}

#[test]
fn limit_and_budget_hold() {
    let mut fifo = fifo(3);
    (0..9).for_each(|token| fifo.ask(FlowId(token as u32 % 2), COST, token, NOW));
    assert_eq!(dispatch(&mut fifo, 2), [0, 1]);
    assert_eq!(dispatch(&mut fifo, 9), [2]);
    assert!(dispatch(&mut fifo, 9).is_empty());
    fifo.complete(FlowId(1), COST, NOW);
    assert_eq!(dispatch(&mut fifo, 9), [3]);
    assert_eq!((fifo.waiting(), fifo.under_way(), fifo.next_deadline()), (5, 3, None));
}

#[test]
fn a_flow_that_leaves_takes_all_of_its_own_with_it() {
    let mut fifo = fifo(3);
    (0..8).for_each(|token| fifo.ask(FlowId(token as u32 % 2), COST, token, NOW));
    assert_eq!(dispatch(&mut fifo, 9), [0, 1, 2]);
    fifo.leave(FlowId(0));
    assert_eq!((fifo.waiting(), fifo.under_way()), (3, 1));
    fifo.complete(FlowId(0), COST, NOW);
    assert_eq!(fifo.under_way(), 1, "what left has completed already");
    assert_eq!(dispatch(&mut fifo, 9), [3, 5]);
}

#[derive(Clone, Debug)]
enum Step {
    Ask(u32),
    Dispatch(usize),
    Complete,
    Leave(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..4_u32).prop_map(Step::Ask),
        3 => (0..6_usize).prop_map(Step::Dispatch),
        3 => Just(Step::Complete),
        1 => (0..4_u32).prop_map(Step::Leave),
    ]
}

proptest! {
    #[test]
    fn every_ask_is_granted_once_in_order_within_the_limit(
        limit in 1..6_usize,
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut fifo = fifo(limit);
        let (mut waiting, mut out): (Vec<Grant>, Vec<Grant>) = Default::default();
        for (token, step) in steps.into_iter().enumerate() {
            match step {
                Step::Ask(flow) => {
                    let ask = Grant { flow: FlowId(flow), token: token as u64 };
                    fifo.ask(ask.flow, COST, ask.token, NOW);
                    waiting.push(ask);
                }
                Step::Dispatch(budget) => {
                    let expected = waiting.len().min(budget).min(limit - out.len());
                    let mut granted = Vec::new();
                    fifo.dispatch(NOW, budget, &mut granted);
                    prop_assert_eq!(&granted, &waiting.drain(..expected).collect::<Vec<_>>());
                    out.append(&mut granted);
                }
                Step::Complete => {
                    if let Some(grant) = out.pop() {
                        fifo.complete(grant.flow, COST, NOW);
                    }
                }
                Step::Leave(flow) => {
                    fifo.leave(FlowId(flow));
                    waiting.retain(|ask| ask.flow != FlowId(flow));
                    out.retain(|grant| grant.flow != FlowId(flow));
                }
            }
            prop_assert_eq!((fifo.waiting(), fifo.under_way()), (waiting.len(), out.len()));
        }
    }
}
