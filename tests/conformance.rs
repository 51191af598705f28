//! The conformance suite over the matrix: every interposer over every back-end, built from descriptions, as users build them.

mod common;

use common::stacks::{BACKENDS, TRANSPARENT, build};
use iovirt_core::test_utils::conformance::{self, Profile, transparency};

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
