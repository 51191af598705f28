//! The hostile-driver suite's attacks by rings and chains, over rings that a front-end set up.

use super::mmio::{Memory, over};
use super::rig::{POLL, Served};
use iovirt_core::test_utils::hostile::{self, Exchange, Layout, Profile, Target};
use std::time::Duration;

const BASE: u64 = 0x10_0000;
/// What the suite does to rings and chains. Not its registers, which are the front-end's, and not saved state.
const CASES: &[&str] = &[
    "chain-loops",
    "chain-to-nowhere",
    "chain-memory-to-nowhere",
    "chain-wrong-direction",
    "chain-readable-after-writable",
    "chain-zero-lengths",
    "chain-index-jumps",
    "chain-offered-again",
    "indirect-not-negotiated",
    "indirect-flags",
    "indirect-sizes",
    "indirect-nowhere",
    "indirect-inside",
    "indirect-many-buffers",
    "split-anywhere",
    "work-is-bounded",
    "memory-changes",
    "reset-in-the-middle-of-load",
    "reset-by-the-thousand",
];

fn target(poll: Duration) -> Target {
    let memory = Memory::new(&[(0, 0x1000), (BASE, Layout::LEN)]);
    let served = Served::new("virtio-blk,queues=2,queue-size=1024 -> memory,size=4M", 1, poll);
    Target {
        frontend: over(served, &memory, 1024),
        space: memory.space,
        base: BASE,
        queue: 1,
        step: Box::new(|| std::thread::sleep(Duration::from_micros(50))),
        lanes: None,
    }
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn exchanges() -> Vec<Exchange> {
    let pattern: Vec<u8> = (0..1024_u32).map(|at| (at * 7 + at / 251) as u8).collect();
    let status = |wanted: u8| {
        move |bytes: &[u8]| match bytes.last() {
            Some(found) if *found == wanted => Ok(()),
            found => Err(format!("the status is {found:?}, not {wanted}")),
        }
    };
    vec![
        Exchange::new("get id", header(8, 0), 21, status(0)),
        Exchange::new("read", header(0, 0), 513, status(0)),
        Exchange::new("write", [header(1, 8), pattern.clone()].concat(), 1, status(0)),
        Exchange::new("flush", header(4, 0), 1, status(0)),
        Exchange::new("read behind the end", header(0, u64::MAX), 513, status(1)),
        Exchange::new("unknown with data", [header(77, 1), pattern].concat(), 700, status(2)),
    ]
}

#[test]
fn attacks_by_rings() {
    for poll in [Duration::ZERO, POLL] {
        let name = format!("virtio-blk over vhost-user, {poll:?}");
        let profile = Profile {
            // A worker with a thread of its own answers when it is scheduled.
            idle_steps: 400,
            rounds: 12,
            only: CASES.to_vec(),
            ..Profile::new(name, exchanges())
        };
        let report = hostile::run(&|| target(poll), &profile);
        report.assert_passed();
        println!("{} cases, {} tries", report.results().len(), report.tries());
        assert_eq!(report.results().len(), CASES.len(), "a case has another name");
    }
}
