//! A stack on another worker than the device's: the conformance suite across threads, drain through, and a home that goes.

use iovirt_backends::block::memory::{MemoryBackend, MemoryConfig};
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
use iovirt_core::test_utils::conformance::{self, Profile};
use iovirt_core::test_utils::{BlockIo, Driver, ManualBackend, PowerLossConfig, PowerLossDisk};
use iovirt_core::worker::Bridge;
use iovirt_core::{Mode, WorkerConfig, WorkerThread};
use std::cell::RefCell;

fn home() -> WorkerThread {
    WorkerThread::spawn("home", WorkerConfig::default()).unwrap()
}

fn bridged(below: BoxBackend<BlockRequest>, home: &WorkerThread) -> BoxBackend<BlockRequest> {
    BoxBackend::new(Bridge::new(below, home.handle().clone()))
}

#[test]
fn a_bridge_keeps_every_rule() {
    let homes = RefCell::new(Vec::new());
    let make = |below: BoxBackend<BlockRequest>| {
        let home = home();
        let stack = bridged(below, &home);
        homes.borrow_mut().push(home);
        stack
    };
    let memory = || {
        let config = MemoryConfig { size: 1 << 20, ..MemoryConfig::default() };
        make(BoxBackend::new(MemoryBackend::new(&config).unwrap()))
    };
    let report = conformance::run(&memory, &Profile::new("bridge -> memory").rounds(10));
    report.assert_passed();
    let disk = || make(PowerLossDisk::boxed(PowerLossConfig::new(1 << 20)));
    conformance::run(&disk, &Profile::new("bridge -> power-loss").rounds(10)).assert_passed();
    println!("{} cases across threads", report.cases());
}

#[test]
fn drain_goes_through_to_what_is_slow() {
    let (manual, handle) = ManualBackend::<BlockRequest>::new(BlockCaps::new(1 << 20));
    let home = home();
    let mut driver = Driver::new(1).unwrap();
    driver.open(&bridged(BoxBackend::new(manual), &home), 8).unwrap();
    driver.submit(BlockIo::flush()).unwrap();
    driver.turn();
    while handle.in_flight().is_empty() {
        driver.turn();
    }
    for _ in 0..3 {
        driver.drain();
        for _ in 0..20 {
            driver.turn();
        }
        assert_eq!(driver.mode(), Mode::Draining);
        driver.resume();
        driver.turn();
        assert_eq!(driver.mode(), Mode::Running);
    }
    driver.drain();
    handle.complete_all(BlockOutput::Done);
    assert_eq!(driver.quiesce().unwrap().len(), 1);
    assert_eq!(driver.mode(), Mode::Quiesced);
}

#[test]
fn a_home_that_goes_loses_no_request() {
    let (manual, handle) = ManualBackend::<BlockRequest>::new(BlockCaps::new(1 << 20));
    let home = home();
    let mut driver = Driver::new(2).unwrap();
    driver.open(&bridged(BoxBackend::new(manual), &home), 8).unwrap();
    for _ in 0..4 {
        driver.submit(BlockIo::flush()).unwrap();
    }
    driver.turn();
    while handle.in_flight().len() < 4 {
        driver.turn();
    }
    drop(home);
    let done = driver.wait_all().unwrap();
    assert_eq!(done.len(), 4);
    let later = driver.run(BlockIo::flush()).unwrap();
    assert_ne!(later.output, BlockOutput::Done);
}
