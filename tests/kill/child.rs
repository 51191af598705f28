//! The process that is killed: a disk and its guest, under a load that never ends, telling on standard error what it is about
//! to do and what it was told is done.

use crate::common::raw::{BUFFERS, Piece, RawDriver};
use crate::hoard;
use iovirt::registry::Registry;
use iovirt_core::test_utils::rng::Rng;
use iovirt_core::test_utils::stamp::stamped;
use iovirt_core::{Frontend, WorkerConfig, WorkerThread};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::ops::Range;
use std::time::Duration;

/// Sectors of the disk.
pub(crate) const SECTORS: u64 = 1024;
/// Sectors of one write at most.
const LONGEST: u64 = 8;
/// Names the plan of a child.
pub(crate) const PLAN: &str = "IOVIRT_KILL_PLAN";

const FLUSH: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;
/// Where the cache mode stands among the registers: 0x100, and 32 into the configuration.
const WRITEBACK: u64 = 0x120;

/// Requests in flight at most.
const SLOTS: usize = 16;
/// Chains of a queue from the oldest in flight to the newest at most, so that the driver, which goes round the table of
/// descriptors without looking, meets none that is in use.
const WINDOW: u64 = 20;
const SLOT_BYTES: u64 = 0x2000;

/// How the guest uses the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Guest {
    /// Flushes when it wants to be sure.
    Flushes,
    /// Has switched the write cache off: each of its writes becomes one with FUA where the disk has a cache.
    SwitchedOff,
    /// Knows nothing of caches.
    Unaware,
}

/// What a child is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The pipeline.
    pub(crate) line: String,
    pub(crate) guest: Guest,
    pub(crate) queues: u16,
    pub(crate) seed: u64,
    /// Its first write; those before it are of children that are dead.
    pub(crate) version: u64,
}

/// What the child says. Whoever reads it sees the beginning of a request before any trace of it can be on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// The device is set up.
    Ready,
    /// A write of that version to these sectors is about to be submitted.
    Write(u64, Range<u64>),
    /// It was acknowledged.
    WriteDone(u64),
    /// A flush is about to be submitted: it covers the writes acknowledged before this.
    Flush(u64),
    /// It was acknowledged.
    FlushDone(u64),
}

impl Said {
    fn tell(&self, lines: &mut String) {
        // Writing to a string does not fail.
        let _ = match self {
            Self::Ready => writeln!(lines, "R"),
            Self::Write(version, sectors) => writeln!(lines, "W {version} {} {}", sectors.start, sectors.end),
            Self::WriteDone(version) => writeln!(lines, "D {version}"),
            Self::Flush(number) => writeln!(lines, "f {number}"),
            Self::FlushDone(number) => writeln!(lines, "F {number}"),
        };
    }

    /// Reads a line; `None` where it is none of these: a last line that was cut, or a panic's.
    pub(crate) fn read(line: &str) -> Option<Self> {
        let line = line.strip_suffix('\n')?;
        let (kind, rest) = line.split_at_checked(1)?;
        let numbers: Vec<u64> =
            rest.split_ascii_whitespace().map(|word| word.parse().ok()).collect::<Option<_>>()?;
        match (kind, numbers.as_slice()) {
            ("R", []) => Some(Self::Ready),
            ("W", &[version, start, end]) if start < end && end <= SECTORS => {
                Some(Self::Write(version, start..end))
            }
            ("D", &[version]) => Some(Self::WriteDone(version)),
            ("f", &[number]) => Some(Self::Flush(number)),
            ("F", &[number]) => Some(Self::FlushDone(number)),
            _ => None,
        }
    }
}

/// Started by the tests of `kill.rs`, to be killed.
#[test]
#[ignore = "a process that the other tests start in order to kill it"]
fn to_be_killed() {
    let Ok(plan) = std::env::var(PLAN) else { return };
    let plan: Plan = serde_json::from_str(&plan).expect("a plan");
    let mut registry = Registry::standard();
    for row in hoard::rows() {
        registry.add(row).expect("a name of its own");
    }
    let description = registry.parse(&plan.line).expect("a good line");
    let device = registry.build_virtio(&description).unwrap_or_else(|error| panic!("{error}"));
    let wanted = if plan.guest == Guest::Unaware { 0 } else { FLUSH | CONFIG_WCE };
    let workers: Vec<_> = match plan.queues {
        1 => Vec::new(),
        queues => (0..queues)
            .map(|_| WorkerThread::spawn("killed", WorkerConfig::default()).expect("a thread"))
            .collect(),
    };
    let handles: Vec<_> = workers.iter().map(|worker| worker.handle().clone()).collect();
    let driver = RawDriver::on_workers(device, wanted, &handles);
    if plan.guest == Guest::SwitchedOff {
        let _ = driver.device.write(0, WRITEBACK, &[0]);
    }
    let mut load = Load {
        driver,
        rng: Rng::new(plan.seed),
        version: plan.version,
        in_flight: Vec::new(),
        idle: (0..SLOTS).collect(),
        offered: vec![0; plan.queues.into()],
        lines: String::new(),
        plan,
    };
    load.say(&Said::Ready);
    loop {
        load.turn();
    }
}

struct Load {
    plan: Plan,
    driver: RawDriver,
    rng: Rng,
    version: u64,
    in_flight: Vec<InFlight>,
    idle: Vec<usize>,
    /// Chains offered on each queue so far.
    offered: Vec<u64>,
    lines: String,
}

/// A request under way.
struct InFlight {
    what: Said,
    slot: usize,
    queue: u16,
    /// Its number on its queue.
    number: u64,
    head: u16,
}

fn slot_at(slot: usize) -> u64 {
    BUFFERS + slot as u64 * SLOT_BYTES
}

impl Load {
    fn say(&mut self, what: &Said) {
        what.tell(&mut self.lines);
        self.speak();
    }

    /// In one system call, so that a kill cuts at most the last line. With nobody listening the parent is gone.
    fn speak(&mut self) {
        if io::stderr().write_all(self.lines.as_bytes()).is_err() {
            std::process::exit(1);
        }
        self.lines.clear();
    }

    fn turn(&mut self) {
        let wanted: Vec<_> = (0..self.rng.between(1, 6)).filter_map(|_| self.choose()).collect();
        for request in &wanted {
            request.what.tell(&mut self.lines);
        }
        self.speak();
        let mut rung = vec![false; self.offered.len()];
        for mut request in wanted {
            request.head = self.offer(&request);
            rung[usize::from(request.queue)] = true;
            let place = self.in_flight.iter_mut().find(|known| known.slot == request.slot);
            place.expect("it was noted when it was chosen").head = request.head;
        }
        for (queue, _) in (0..).zip(rung).filter(|(_, rung)| *rung) {
            self.driver.ring(queue);
        }
        if self.plan.queues == 1 {
            self.driver.worker.run_within(Duration::from_millis(1)).expect("a turn");
        } else {
            std::thread::sleep(Duration::from_micros(50));
        }
        self.reap();
    }

    /// The next request, if there is room for one and nothing is in its way.
    fn choose(&mut self) -> Option<InFlight> {
        let queue = self.rng.below(self.plan.queues.into()) as u16;
        let number = self.offered[usize::from(queue)];
        let oldest =
            self.in_flight.iter().filter(|known| known.queue == queue).map(|known| known.number).min();
        let flush = self.plan.guest == Guest::Flushes && self.rng.one_in(8);
        let first = self.rng.below(SECTORS);
        let sectors = first..(first + self.rng.between(1, LONGEST)).min(SECTORS);
        let busy = self.in_flight.iter().any(|known| match &known.what {
            Said::Write(_, busy) => busy.start < sectors.end && sectors.start < busy.end,
            _ => false,
        });
        if (busy && !flush) || oldest.is_some_and(|oldest| oldest + WINDOW <= number) {
            return None;
        }
        let slot = self.idle.pop()?;
        let what = if flush { Said::Flush(self.version) } else { Said::Write(self.version, sectors) };
        self.version += 1;
        self.offered[usize::from(queue)] += 1;
        let request = |what| InFlight { what, slot, queue, number, head: u16::MAX };
        self.in_flight.push(request(what.clone()));
        Some(request(what))
    }

    fn offer(&mut self, request: &InFlight) -> u16 {
        let at = slot_at(request.slot);
        let mut header = [0; 17];
        header[16] = 0xff;
        let mut pieces = vec![Piece::Driver(at, 16)];
        match &request.what {
            Said::Write(version, sectors) => {
                header[0] = 1;
                header[8..16].copy_from_slice(&sectors.start.to_le_bytes());
                let bytes = stamped(sectors.start, sectors.end - sectors.start, *version);
                self.driver.write(at + 0x1000, &bytes);
                pieces.push(Piece::Driver(at + 0x1000, bytes.len() as u32));
            }
            _ => header[0] = 4,
        }
        pieces.push(Piece::Device(at + 16, 1));
        self.driver.write(at, &header);
        self.driver.offer(request.queue, &pieces)
    }

    fn reap(&mut self) {
        for queue in 0..self.plan.queues {
            for (head, _) in self.driver.used(queue) {
                let of = |known: &InFlight| (known.queue, known.head) == (queue, head);
                let at = self.in_flight.iter().position(of).expect("a request that was submitted");
                let InFlight { what, slot, .. } = self.in_flight.swap_remove(at);
                let status = self.driver.read(slot_at(slot) + 16, 1)[0];
                assert_eq!(status, 0, "{what:?} failed");
                self.idle.push(slot);
                let done = match what {
                    Said::Flush(number) => Said::FlushDone(number),
                    Said::Write(version, _) => Said::WriteDone(version),
                    other => other,
                };
                done.tell(&mut self.lines);
            }
        }
        self.speak();
    }
}
