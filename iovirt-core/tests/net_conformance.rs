//! The suite for networks passes on an honest wire, and fails under the right rule on each broken one.
#![cfg(feature = "test-utils")]

use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::request::net::{NetCaps, NetOp, NetOutput, NetRequest};
use iovirt_core::stage::{Flow, Hook, HookLayer, HookStage, Return};
use iovirt_core::test_utils::conformance::Profile;
use iovirt_core::test_utils::net::{self, NetSabotage, Verdicts, Wire, WireConfig};
use iovirt_core::{AttachError, Completion, Depth, Request, WorkerContext};
use std::collections::BTreeSet;
use std::time::Duration;

#[test]
fn an_honest_wire_passes() {
    for (mtu, pairs) in [(1500, 2), (68, 1), (65_000, 4)] {
        let factory = || Wire::boxed(WireConfig { mtu, pairs, sabotage: None });
        net::run(&factory, &Profile::new(format!("a wire of {mtu} bytes and {pairs} pairs"))).assert_passed();
    }
}

#[test]
fn each_broken_wire_is_reported_under_its_rule() {
    for &sabotage in NetSabotage::ALL {
        let factory = || Wire::boxed(WireConfig { sabotage: Some(sabotage), ..WireConfig::default() });
        // Some of them are noticed by nothing happening any more.
        let profile = Profile::new(format!("{sabotage:?}")).patience(Duration::from_millis(50));
        let report = net::run(&factory, &profile);
        let failed: Vec<_> = report.failures().map(|failure| failure.rule).collect();
        println!("{sabotage:?}: {failed:?}");
        assert!(failed.contains(&sabotage.caught_by()), "{sabotage:?} was not noticed\n{report}");
    }
}

#[test]
fn every_rule_is_broken_by_something() {
    let broken: BTreeSet<_> = NetSabotage::ALL.iter().map(|sabotage| sabotage.caught_by()).collect();
    let rules: BTreeSet<_> = net::rules().into_iter().map(|(name, _)| name).collect();
    assert_eq!(broken, rules, "what is broken, and what the suite asks");
}

/// What is wrong with a judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// Shows a frame and asks afterwards.
    ShowsFirst,
    /// Gives up the token of a frame that it drops.
    KeepsNoToken,
    /// Judges what lies in the guest's memory, and sends what lies there later.
    TrustsTheGuest,
}

struct Judge {
    mistake: Mistake,
    verdicts: Verdicts,
}

struct JudgeHook {
    mistake: Mistake,
    verdicts: Verdicts,
}

impl std::fmt::Debug for Judge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Judge").field("mistake", &self.mistake).finish_non_exhaustive()
    }
}

impl HookStage<NetRequest> for Judge {
    type Hook = JudgeHook;

    fn name(&self) -> &'static str {
        "judge"
    }

    fn caps(&self, below: &NetCaps) -> Result<NetCaps, AttachError> {
        Ok(below.clone())
    }

    fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> JudgeHook {
        JudgeHook { mistake: self.mistake, verdicts: self.verdicts.clone() }
    }
}

impl JudgeHook {
    fn passes(&self, request: &NetRequest) -> bool {
        let mut frame = vec![0; request.sg().len() as usize];
        request.sg().copy_to(0, &mut frame).unwrap();
        (self.verdicts)(&frame)
    }
}

impl Hook<NetRequest> for JudgeHook {
    fn on_submit(&mut self, _: &mut WorkerContext<'_>, request: &mut NetRequest) -> Flow<NetOutput> {
        if request.op() == NetOp::Receive {
            return Flow::Pass;
        }
        if self.mistake != Mistake::TrustsTheGuest {
            request.sg_mut().make_stable().unwrap();
        }
        if self.passes(request) { Flow::Pass } else { Flow::Complete(NetOutput::Done) }
    }

    fn on_complete(&mut self, _: &mut WorkerContext<'_>, done: &mut Completion<NetRequest>) -> Return {
        let Completion { request, output } = done;
        if request.op() == NetOp::Transmit || *output != NetOutput::Done || self.passes(request) {
            return Return::Pass;
        }
        match self.mistake {
            Mistake::ShowsFirst => Return::Pass,
            Mistake::KeepsNoToken => {
                request.renew();
                *output = NetRequest::aborted();
                Return::Pass
            }
            _ => {
                request.renew();
                Return::Again
            }
        }
    }
}

#[test]
fn each_broken_judge_is_reported_under_its_rule() {
    for (mistake, rule) in [
        (Mistake::None, None),
        (Mistake::ShowsFirst, Some("judge/unseen")),
        (Mistake::KeepsNoToken, Some("judge/token-again")),
        (Mistake::TrustsTheGuest, Some("judge/stable")),
    ] {
        let judge = |verdicts, network| {
            let stage = HookLayer::new(Judge { mistake, verdicts });
            BoxBackend::new(Pipeline::top().stage(stage).backend(network).unwrap())
        };
        let report =
            net::judge(&judge, &Profile::new(format!("{mistake:?}")).patience(Duration::from_millis(200)));
        match rule {
            None => report.assert_passed(),
            Some(rule) => assert!(report.has_failed(rule), "{rule} did not notice {mistake:?}\n{report}"),
        }
    }
    assert_eq!(
        net::JUDGE_RULES,
        ["judge/unseen", "judge/token-again", "judge/stable"],
        "each is broken above"
    );
}
