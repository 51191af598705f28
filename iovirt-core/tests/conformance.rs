//! The suite passes on honest stacks, and fails under the right rule on each broken one.
#![cfg(feature = "test-utils")]

use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::request::block::{BlockRequest, Durability};
use iovirt_core::stage::{EmulateFua, HookLayer};
use iovirt_core::test_utils::conformance::{self, Profile, Report};
use iovirt_core::test_utils::power_loss::Pace;
use iovirt_core::test_utils::{PowerLossConfig, PowerLossDisk, Sabotage};
use std::collections::BTreeSet;
use std::time::Duration;

const CAPACITY: u64 = 1 << 20;

fn honest(name: &str, config: &PowerLossConfig) {
    let factory = || PowerLossDisk::boxed(config.clone());
    conformance::run(&factory, &Profile::new(name)).assert_passed();
}

#[test]
fn honest_disks_pass() {
    for durability in [Durability::WriteThrough, Durability::WriteBack, Durability::Unsafe] {
        for pace in [Pace::Random, Pace::InOrder] {
            let config = PowerLossConfig::new(CAPACITY).durability(durability).pace(pace);
            honest(&format!("{durability:?}, {pace:?}"), &config);
        }
    }
}

#[test]
fn disks_of_other_shapes_pass() {
    let mut large_blocks = PowerLossConfig::new(CAPACITY);
    large_blocks.caps.logical_block = 4096;
    large_blocks.caps.physical_block = 4096;
    honest("blocks of 4096", &large_blocks);

    let mut plain = PowerLossConfig::new(CAPACITY);
    plain.caps.discard = None;
    plain.caps.write_zeroes = None;
    honest("reads, writes and flushes only", &plain);

    let mut read_only = PowerLossConfig::new(CAPACITY);
    read_only.caps.read_only = true;
    honest("read-only", &read_only);

    honest("one block", &PowerLossConfig::new(512));

    let mut zeroing = PowerLossConfig::new(CAPACITY);
    zeroing.caps.discard.as_mut().unwrap().reads_zero = true;
    honest("discards to zeroes", &zeroing);
}

fn emulated(disk: BoxBackend<BlockRequest>) -> BoxBackend<BlockRequest> {
    BoxBackend::new(Pipeline::top().stage(HookLayer::new(EmulateFua)).backend(disk).unwrap())
}

#[test]
fn a_stage_of_the_contract_passes() {
    let factory = || emulated(PowerLossDisk::boxed(PowerLossConfig::new(CAPACITY).fua(false)));
    conformance::run(&factory, &Profile::new("emulate-fua")).assert_passed();
    let bare = || PowerLossDisk::boxed(PowerLossConfig::new(CAPACITY));
    let above = || emulated(bare());
    conformance::transparency(&above, &bare, &Profile::new("emulate-fua over FUA")).assert_passed();
}

#[test]
fn transparency_notices_what_differs() {
    let bare = || PowerLossDisk::boxed(PowerLossConfig::new(CAPACITY).fua(false));
    let report = conformance::transparency(&|| emulated(bare()), &bare, &Profile::new("caps differ"));
    assert!(report.has_failed("transparency/caps"), "{report}");
    let broken =
        || PowerLossDisk::boxed(PowerLossConfig::new(CAPACITY).fua(false).sabotage(Sabotage::ReadsShort));
    let report = conformance::transparency(&broken, &bare, &Profile::new("reads short"));
    assert!(report.has_failed("transparency/results"), "{report}");
}

/// A broken disk as its promise needs it to be broken.
fn broken(sabotage: Sabotage) -> PowerLossConfig {
    let mut config = PowerLossConfig::new(CAPACITY).sabotage(sabotage);
    config.caps.read_only = sabotage == Sabotage::WritesReadOnly;
    if sabotage == Sabotage::AcceptsUnsupported {
        config.caps.discard = None;
    }
    config
}

#[test]
fn each_broken_disk_is_reported_under_its_rule() {
    for &sabotage in Sabotage::ALL {
        let config = broken(sabotage);
        let factory = || PowerLossDisk::boxed(config.clone());
        let (name, rule) = (format!("{sabotage:?}"), sabotage.caught_by());
        if rule.starts_with("durability/") {
            // It shows after a loss of power only.
            conformance::run(&factory, &Profile::new(name)).assert_passed();
            let report = durability_of(sabotage);
            assert!(report.has_failed(rule), "{rule} did not notice {sabotage:?}\n{report}");
        } else {
            // Some of them are noticed by nothing happening any more.
            let profile = Profile::new(name).patience(Duration::from_millis(50));
            let report = conformance::run(&factory, &profile);
            assert!(report.has_failed(rule), "{rule} did not notice {sabotage:?}\n{report}");
            let failed: Vec<_> = report.failures().map(|failure| failure.rule).collect();
            println!("{sabotage:?}: {failed:?}");
        }
    }
}

/// Rules of stages, which no disk can break: each with the test below that breaks it.
const BROKEN_BY_STAGES: [&str; 3] = ["durability/honest", "transparency/caps", "transparency/results"];

#[test]
fn every_rule_is_broken_by_something() {
    let broken: BTreeSet<_> = Sabotage::ALL.iter().map(|sabotage| sabotage.caught_by()).collect();
    let broken = &broken | &BROKEN_BY_STAGES.into();
    let rules: BTreeSet<_> = conformance::rule_names().into_iter().collect();
    assert_eq!(broken, rules, "what is broken, and what the suite asks");
}

fn bare(disk: BoxBackend<BlockRequest>) -> BoxBackend<BlockRequest> {
    disk
}

#[test]
fn thousands_of_cuts_lose_nothing_that_was_promised() {
    conformance::durability(&bare, &Profile::new("disk").rounds(1000)).assert_passed();
    conformance::durability(&emulated, &Profile::new("emulate-fua").rounds(400)).assert_passed();
}

fn durability_of(sabotage: Sabotage) -> Report {
    let profile = Profile::new(format!("{sabotage:?}")).rounds(300).patience(Duration::from_millis(200));
    conformance::durability::run_sabotaged(&bare, &profile, sabotage)
}

#[test]
fn each_disk_that_forgets_is_reported() {
    for (sabotage, rules) in [
        (Sabotage::FlushDoesNothing, ["durability/write-back", "durability/write-back-no-fua"].as_slice()),
        (Sabotage::FlushMissesOne, &["durability/write-back", "durability/write-back-no-fua"]),
        (Sabotage::IgnoresFua, &["durability/write-back"]),
        (Sabotage::CachesWrites, &["durability/write-through"]),
    ] {
        let report = durability_of(sabotage);
        let failed: Vec<_> = report.failures().map(|failure| failure.rule).collect();
        assert_eq!(failed, rules, "{report}");
    }
}

#[test]
fn a_stack_that_promises_too_much_is_reported() {
    use iovirt_core::prelude::*;
    use iovirt_core::request::block::{BlockCaps, BlockOp, BlockOutput};
    use iovirt_core::stage::{Flow, Hook, HookStage};

    /// Answers flushes itself.
    #[derive(Debug)]
    struct Swallow;
    impl HookStage<BlockRequest> for Swallow {
        type Hook = Swallow;
        fn name(&self) -> &'static str {
            "swallow"
        }
        fn caps(&self, below: &BlockCaps) -> Result<BlockCaps, AttachError> {
            Ok(BlockCaps { durability: Durability::WriteBack, ..below.clone() })
        }
        fn hook(&self, _: &mut WorkerContext<'_>, _: Depth) -> Swallow {
            Swallow
        }
    }
    impl Hook<BlockRequest> for Swallow {
        fn on_submit(&mut self, _: &mut WorkerContext<'_>, request: &mut BlockRequest) -> Flow<BlockOutput> {
            if request.op() == BlockOp::Flush { Flow::Complete(BlockOutput::Done) } else { Flow::Pass }
        }
    }

    let stack = |disk| BoxBackend::new(Pipeline::top().stage(HookLayer::new(Swallow)).backend(disk).unwrap());
    let report = conformance::durability(&stack, &Profile::new("swallow").rounds(200));
    for rule in ["durability/honest", "durability/write-back", "durability/write-back-no-fua"] {
        assert!(report.has_failed(rule), "{report}");
    }
}

#[test]
fn a_stack_that_panics_is_reported() {
    let factory = || -> BoxBackend<BlockRequest> { panic!("out of cheese") };
    let report = conformance::run(&factory, &Profile::new("panics"));
    assert_eq!(report.failures().count(), conformance::rules().len());
    assert!(report.failures().all(|failure| failure.message.contains("panicked: out of cheese")), "{report}");
}

#[test]
fn a_report_says_what_brings_a_failure_back() {
    let report = durability_of(Sabotage::FlushDoesNothing);
    let words = report.to_string();
    for part in ["IOVIRT_SEED=0x", "IOVIRT_ROUNDS=", "durability/write-back", "FAILED", "it may hold"] {
        assert!(words.contains(part), "{part} is missing from\n{words}");
    }
    let again = durability_of(Sabotage::FlushDoesNothing);
    assert_eq!(words, again.to_string(), "the same seed brings the same failure");
}

#[test]
fn a_rule_can_be_left_out_with_a_reason() {
    let factory = || PowerLossDisk::boxed(PowerLossConfig::new(CAPACITY).sabotage(Sabotage::ReadsShort));
    let profile = Profile::new("null").discards_data().rounds(5).skip("drain/idle", "for the test's sake");
    let report = conformance::run(&factory, &profile);
    report.assert_passed();
    assert!(report.to_string().contains("skipped: for the test's sake"));
}
