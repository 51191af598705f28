//! The conformance suite over the matrix: every interposer over every back-end, built from descriptions, as users build them.

mod common;

use common::stacks::{BACKENDS, TRANSPARENT, build};
use iovirt::describe::Chain;
use iovirt::registry::{Family, Registry, StageKind};
use iovirt_core::test_utils::conformance::{self, Profile, transparency};
use iovirt_core::test_utils::net;

fn profile(name: String) -> Profile {
    let profile = Profile::new(name).rounds(8);
    if profile.name.contains("null") { profile.discards_data() } else { profile }
}

fn run(text: &str, folder: &str) -> u64 {
    // Images live as long as the suite: a back-end may outlive the closure that made it.
    let images = std::cell::RefCell::new(Vec::new());
    let factory = || {
        let (stack, image) = build(text, folder);
        images.borrow_mut().extend(image);
        stack
    };
    let report = conformance::run(&factory, &profile(format!("{text} {folder}")));
    report.assert_passed();
    report.cases()
}

#[test]
fn every_back_end_alone() {
    let cases: u64 = BACKENDS.iter().map(|(backend, folder)| run(backend, folder)).sum();
    println!("{cases} cases over {} back-ends", BACKENDS.len());
    assert!(cases > 0);
}

#[test]
fn every_stage_over_every_back_end() {
    let mut cases = 0;
    for stage in TRANSPARENT {
        for (backend, folder) in BACKENDS {
            cases += run(&format!("{stage} -> {backend}"), folder);
        }
    }
    println!("{cases} cases over {} stacks", TRANSPARENT.len() * BACKENDS.len());
    assert!(cases > 0);
}

#[test]
fn a_transparent_stage_changes_nothing() {
    for stage in TRANSPARENT {
        let bare = || build("memory,size=1M", "").0;
        let stacked = || build(&format!("{stage} -> memory,size=1M"), "").0;
        transparency(&stacked, &bare, &profile((*stage).into())).assert_passed();
    }
}

#[test]
fn every_stage_over_a_network() {
    let registry = Registry::standard();
    let rows = registry.rows().filter(|row| row.kind() == StageKind::Interposer && row.is_available());
    let rows = rows.filter(|row| matches!(row.info().family, Family::Any | Family::Net));
    let mut stages: Vec<String> = rows.map(|row| described(row.info().name)).collect();
    stages.push("stats -> filter -> delay,time=20us -> scheduled,group=g,depth=2 -> fault".into());
    let mut cases = 0;
    for stage in &stages {
        let chain: Chain = format!("{stage} -> loopback").parse().unwrap();
        let factory = || registry.build_net(&chain).unwrap_or_else(|error| panic!("{stage}: {error}"));
        let report = net::run(&factory, &Profile::new(format!("{stage} -> loopback")).rounds(20));
        report.assert_passed();
        cases += report.cases();
    }
    println!("{cases} cases over {} stacks", stages.len());
}

/// An interposer in a description, with what it needs.
fn described(name: &str) -> String {
    match name {
        "delay" => "delay,time=20us,jitter=50us".into(),
        "scheduled" => "scheduled,group=g,depth=4".into(),
        name => name.into(),
    }
}
