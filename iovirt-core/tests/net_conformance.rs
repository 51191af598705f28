//! The suite for networks passes on an honest wire, and fails under the right rule on each broken one.
#![cfg(feature = "test-utils")]

use iovirt_core::test_utils::conformance::Profile;
use iovirt_core::test_utils::net::{self, NetSabotage, Wire, WireConfig};
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
