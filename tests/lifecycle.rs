//! The life cycle over every block stage and every block back-end of the registry: drain, reset, save and restore, stall, resize
//! and swap in the middle of load, in deterministic simulation.
//!
//! `file` reads and writes inline on a file system in memory, and syncs on threads: its runs are not repeated step by step.

use iovirt::core::pipeline::BoxBackend;
use iovirt::core::request::block::BlockRequest;
use iovirt::core::test_utils::lifecycle::{self, Case, Run};
use iovirt::core::test_utils::{PowerLossConfig, PowerLossDisk, rounds_or, seed_or};
use iovirt::describe::Chain;
use iovirt::registry::{Family, Maturity, Registry, StageInfo, StageKind, StageRow};
use std::collections::BTreeSet;
use std::ops::Range;

type Stack = BoxBackend<BlockRequest>;

/// Seeds of each case.
const SEEDS: u64 = 8;

fn seeds(count: u64) -> Range<u64> {
    let first = seed_or(0x11fe);
    first..first + rounds_or(count)
}

fn build(text: &str) -> Stack {
    let chain: Chain = text.parse().unwrap();
    Registry::standard().build_block(&chain).unwrap_or_else(|error| panic!("{text}: {error}"))
}

/// The stages of a description above that stack.
fn above(stages: &str, below: Stack) -> Stack {
    const BELOW: StageInfo = StageInfo {
        name: "below",
        family: Family::Block,
        maturity: Maturity::Stable,
        help: "What is below",
        keys: &[],
    };
    let mut registry = Registry::standard();
    registry.add(StageRow::block_backend(BELOW, move |_| Ok(below.clone()))).unwrap();
    let chain: Chain = format!("{stages} -> below").parse().unwrap();
    registry.build_block(&chain).unwrap_or_else(|error| panic!("{stages}: {error}"))
}

/// An interposer in a description, with what it needs.
fn described(name: &str) -> String {
    match name {
        "delay" => "delay,time=30us,jitter=100us".into(),
        "scheduled" => "scheduled,group=g,depth=4".into(),
        name => name.into(),
    }
}

fn interposers() -> Vec<String> {
    let registry = Registry::standard();
    let rows = registry.rows().filter(|row| row.kind() == StageKind::Interposer && row.is_available());
    let block = rows.filter(|row| matches!(row.info().family, Family::Any | Family::Block));
    block.map(|row| described(row.info().name)).collect()
}

fn live(name: &str, disk: &dyn Fn() -> Stack, stages: Option<&str>, count: u64) -> Run {
    let stack = |below| match stages {
        Some(stages) => above(stages, below),
        None => below,
    };
    let name = format!("{} over {name}", stages.unwrap_or("nothing"));
    let case = Case::new(&name, disk, &stack);
    let case = if name.contains("over null") { case.discards_data() } else { case };
    let case = if name.contains("over file") { case.on_the_host() } else { case };
    let run = lifecycle::run(&case, seeds(count)).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{name}: {run}");
    run
}

/// A file on a file system in memory.
fn file(options: &str) -> Stack {
    let image = tempfile::Builder::new().prefix("iovirt-").tempfile_in("/dev/shm").unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    // Open files outlive their names.
    build(&format!("file,path={}{options}", image.path().display()))
}

/// A disk by name, and what makes a fresh one.
type Disk = (&'static str, Box<dyn Fn() -> Stack>);

fn disks() -> Vec<Disk> {
    vec![
        ("memory", Box::new(|| build("memory,size=1M"))),
        ("null", Box::new(|| build("null,size=1M"))),
        ("mirror", Box::new(|| build("mirror [memory,size=1M | memory,size=1M]"))),
        ("stripe", Box::new(|| build("stripe [memory,size=1M | memory,size=1M]"))),
        ("overlay", Box::new(|| build("overlay [memory,size=1M | null,size=1M]"))),
        ("file", Box::new(|| file(""))),
        ("file, write-back", Box::new(|| file(",cache=write-back"))),
        ("mirror", Box::new(|| build("mirror,read=round-robin [memory,size=1M | memory,size=1M]"))),
        ("stripe", Box::new(|| build("stripe,chunk=1536 [memory,size=1M | memory,size=1M]"))),
        ("overlay", Box::new(|| build("overlay,cluster=4K [memory,size=1M | memory,size=1M]"))),
        ("a simulated disk", Box::new(|| PowerLossDisk::boxed(PowerLossConfig::new(1 << 20)))),
    ]
}

#[test]
fn every_stage_over_every_back_end() {
    let (mut total, mut cases) = (Run::default(), 0);
    for (name, disk) in disks() {
        total += live(name, &disk, None, SEEDS);
        cases += 1;
        for stages in interposers() {
            total += live(name, &disk, Some(&stages), SEEDS);
            cases += 1;
        }
    }
    println!("{cases} stacks: {total}");
    assert!(
        total.drains > 0 && total.resets > 0 && total.restores > 0 && total.stalls > 0 && total.swaps > 0
    );
}

#[test]
fn stages_above_one_another() {
    let mut total = Run::default();
    for stages in [
        "stats -> scheduled,group=g,depth=2 -> delay,time=20us -> swappable -> fault",
        "swappable -> delay,time=50us,jitter=50us -> scheduled,group=g,depth=1 -> stats",
        "scheduled,group=g,depth=3 -> swappable -> scheduled,group=h,depth=1",
    ] {
        let disk = || build("memory,size=1M");
        total += live("memory", &disk, Some(stages), SEEDS * 3);
    }
    println!("{total}");
}

#[test]
fn the_same_seed_is_the_same_run() {
    let disk = || build("memory,size=1M");
    let mut traces = BTreeSet::new();
    for stages in interposers() {
        let stack = |below| above(&stages, below);
        let case = Case::new(&stages, &disk, &stack);
        for seed in seeds(2) {
            let run = lifecycle::run_one(&case, seed).unwrap_or_else(|failure| panic!("{failure}"));
            assert_eq!(Ok(run), lifecycle::run_one(&case, seed), "{stages}");
            traces.insert(run.trace);
        }
    }
    assert!(traces.len() > 1);
}

#[test]
fn a_stage_that_drops_requests_is_found() {
    let disk = || build("memory,size=1M");
    let stack = |below| above("fault,kind=drop,permille=5", below);
    let failure = lifecycle::run(&Case::new("drop", &disk, &stack), seeds(20)).unwrap_err();
    assert!(failure.message.contains("dropped instead of completed"), "{failure}");
    println!("{failure}");
}
