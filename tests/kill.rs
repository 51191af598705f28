//! A process killed in the middle of its work, again and again over one file: what it was told is durable must be there.
//!
//! ```text
//!   child: guest ── virtio-blk ── stats ── file          parent
//!     │ "about to write 17", "17 done", "flush done"        │
//!     └──────────────── pipe ──────────────────────────────►│ notes it, kills when its plan says so,
//!                                                           │ reads the file, starts the next child on it
//! ```
//!
//! Each sector says which write put it there (`test_utils::stamp`), so that a torn sector, one at a wrong place, or an old one is
//! seen for what it is; `test_utils::oracle` says which write it may be of.
//!
//! # What this proves, and what not
//!
//! A kill ends the process and leaves the host's page cache. So this shows that nothing is acknowledged that is still
//! in the memory of the process (in a stage, in a ring that was not submitted, in a queue of threads); that a flush and a write
//! with FUA are acknowledged after what they stand for and not before; that in-flight requests damage nothing but
//! their own sectors, and those sector by sector; and that a file, its lock included, is taken over by the next process.
//! It does **not** show that anything reaches the medium: a back-end that never calls `fdatasync` passes. What a loss of power
//! leaves is the matter of the disk that loses power (`tests/durability.rs`, and the conformance suite under every stage).
//!
//! As to the file, more holds here than over a loss of power: a write that completed is in the page cache at least, flushed or
//! not. [`Case::promise`] therefore asks for all completed writes where nothing but files is below, and for no more
//! than the contract does where a stage keeps a cache. `overlay` is not among the cases: who holds what goes with its process,
//! and it promises nothing.
//!
//! A seed brings back the load and the plan of the kills, not the scheduling of the host.

mod common;

#[path = "kill/child.rs"]
mod child;
#[path = "kill/hoard.rs"]
mod hoard;

use child::{Guest, PLAN, Plan, SECTORS, Said};
use iovirt::backends::block::file::{Direct, Engine, FileBackend, FileConfig};
use iovirt_core::request::block::Durability;
use iovirt_core::test_utils::oracle::{FlushToken, Oracle, WriteToken};
use iovirt_core::test_utils::rng::{Rng, Seed, rounds_or, seed_or};
use iovirt_core::test_utils::skipped;
use iovirt_core::test_utils::stamp::Content;
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Kills of each case.
const ROUNDS: u64 = 45;

/// A pipeline and its guest.
#[derive(Clone, Copy, Debug)]
struct Case {
    /// What is below the device; `A` and `B` stand for files.
    below: &'static str,
    queues: u16,
    guest: Guest,
    /// What the file must hold after a kill.
    promise: Durability,
}

const fn case(below: &'static str, queues: u16, guest: Guest) -> Case {
    Case { below, queues, guest, promise: Durability::WriteThrough }
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    kills: u64,
    /// Before the device was ready.
    at_start: u64,
    /// With a flush in flight.
    in_flush: u64,
    writes: u64,
    flushes: u64,
}

/// When the child is killed.
#[derive(Clone, Copy, Debug)]
enum Trigger {
    /// So long after its start.
    Start(Duration),
    /// So long after it has said so many things.
    Said(u64, Duration),
    /// So long after the beginning of a flush, the how manieth.
    Flush(u64, Duration),
}

impl Trigger {
    fn choose(rng: &mut Rng) -> Self {
        match rng.below(6) {
            // Rather sooner than later: a process is ready within milliseconds.
            0 => {
                let most = rng.between(1, 30_000);
                Self::Start(Duration::from_micros(rng.below(most)))
            }
            1 | 2 => Self::Flush(rng.between(1, 12), Duration::from_micros(rng.below(800))),
            _ => Self::Said(rng.below(600), Duration::from_micros(rng.below(1500))),
        }
    }
}

/// One file, and what it may hold.
struct Image {
    path: PathBuf,
    oracle: Oracle,
}

struct Campaign {
    case: Case,
    rng: Rng,
    images: Vec<Image>,
    version: u64,
    tally: Tally,
    _folder: TempDir,
}

impl Campaign {
    fn new(case: Case, seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let image = |name: &str| {
            let path = folder.path().join(name);
            fs::File::create(&path).and_then(|file| file.set_len(SECTORS * 512)).expect("an image");
            Image { path, oracle: Oracle::new(SECTORS, case.promise) }
        };
        let images = ["A", "B"].iter().filter(|name| case.below.contains(**name)).map(|name| image(name));
        let images = images.collect();
        Self { case, rng: Rng::new(seed), images, version: 1, tally: Tally::default(), _folder: folder }
    }

    fn line(&self) -> String {
        let (case, mut below) = (self.case, self.case.below.to_owned());
        for (name, image) in ["path=A", "path=B"].iter().zip(&self.images) {
            below = below.replace(name, &format!("path={}", image.path.display()));
        }
        format!("virtio-blk,queues={} -> stats -> {below}", case.queues)
    }

    fn spawn(&mut self) -> Child {
        let plan = Plan {
            line: self.line(),
            guest: self.case.guest,
            queues: self.case.queues,
            seed: self.rng.next_u64(),
            version: self.version,
        };
        Command::new(std::env::current_exe().expect("the test itself"))
            .args(["--exact", "child::to_be_killed", "--ignored", "--nocapture", "--test-threads=1"])
            .env(PLAN, serde_json::to_string(&plan).expect("a plan"))
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process")
    }

    /// One child's life.
    fn round(&mut self) -> Result<(), String> {
        let trigger = Trigger::choose(&mut self.rng);
        let mut child = self.spawn();
        let said = listen_and_kill(&mut child, trigger)?;
        self.note(&said);
        for image in &mut self.images {
            // At once, as whoever starts the machine again does. What the host had begun for the dead is over when this returns.
            let next = FileBackend::open(FileConfig::new(&image.path));
            drop(
                next.map_err(|error| {
                    format!("killed at {trigger:?}: the file cannot be taken over: {error}")
                })?,
            );
            let bytes = fs::read(&image.path).map_err(|error| error.to_string())?;
            let found = image.oracle.check_after_cut(0, &bytes);
            found.map_err(|lost| format!("killed at {trigger:?}: {}: {lost}", image.path.display()))?;
        }
        Ok(())
    }

    /// Brings what a child said to the oracles, in its order.
    fn note(&mut self, said: &[Said]) {
        let mut open = 0;
        for Image { oracle, .. } in &mut self.images {
            let mut writes: HashMap<u64, WriteToken> = HashMap::new();
            let mut flushes: HashMap<u64, FlushToken> = HashMap::new();
            for what in said {
                match what {
                    Said::Ready => {}
                    Said::Write(version, sectors) => {
                        let token = oracle.begin_write(sectors.clone(), Content::Version(*version));
                        writes.insert(*version, token);
                    }
                    Said::WriteDone(version) => {
                        let token = writes.remove(version).expect("a write that was begun");
                        oracle.end_write(&token, true, self.case.guest == Guest::SwitchedOff);
                    }
                    Said::Flush(number) => {
                        flushes.insert(*number, oracle.begin_flush());
                    }
                    Said::FlushDone(number) => {
                        oracle.end_flush(flushes.remove(number).expect("a flush that was begun"), true);
                    }
                }
            }
            open = flushes.len();
        }
        let numbers = said.iter().filter_map(|what| match what {
            Said::Write(number, _) | Said::Flush(number) => Some(*number + 1),
            _ => None,
        });
        self.version = numbers.max().unwrap_or(0).max(self.version);
        let count = |wanted: fn(&Said) -> bool| said.iter().filter(|what| wanted(what)).count() as u64;
        self.tally.kills += 1;
        self.tally.at_start += u64::from(said.is_empty());
        self.tally.in_flush += u64::from(open > 0);
        self.tally.writes += count(|what| matches!(what, Said::WriteDone(_)));
        self.tally.flushes += count(|what| matches!(what, Said::FlushDone(_)));
    }
}

/// Listens to a child, kills it when it is time, and listens on to what it still had to say.
fn listen_and_kill(child: &mut Child, trigger: Trigger) -> Result<Vec<Said>, String> {
    let mut pipe = BufReader::new(child.stderr.take().expect("a pipe"));
    let (mut said, mut words) = (Vec::new(), String::new());
    let (mut flushes, mut living) = (0, true);
    let kill = |child: &mut Child, after: Duration| {
        pause(after);
        child.kill().map_err(|error| format!("a process that cannot be killed: {error}"))
    };
    if let Trigger::Start(after) = trigger {
        kill(child, after)?;
        living = false;
    }
    let mut line = String::new();
    loop {
        line.clear();
        if pipe.read_line(&mut line).map_err(|error| error.to_string())? == 0 {
            break;
        }
        match Said::read(&line) {
            Some(what) => said.push(what),
            // The last words of one that was killed may be cut.
            None if !line.ends_with('\n') => {}
            None => words.push_str(&line),
        }
        flushes += u64::from(matches!(said.last(), Some(Said::Flush(_))));
        let due = match trigger {
            Trigger::Start(_) => None,
            Trigger::Said(count, after) => (said.len() as u64 > count).then_some(after),
            // A guest that does not flush is killed some time or other.
            Trigger::Flush(count, after) => (flushes >= count || said.len() as u64 > 1000).then_some(after),
        };
        if living && let Some(after) = due {
            kill(child, after)?;
            living = false;
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if living || !words.is_empty() {
        return Err(format!("the child ended by itself ({status}) and said: {words}"));
    }
    Ok(said)
}

/// Shorter than what a sleep can do, where it is short.
fn pause(duration: Duration) {
    let start = Instant::now();
    if duration > Duration::from_millis(2) {
        thread::sleep(duration);
    }
    while start.elapsed() < duration {
        std::hint::spin_loop();
    }
}

/// Kills that many children over the same files.
fn kill_again_and_again(case: Case, rounds: u64) -> Result<Tally, String> {
    let seed = seed_or(0x51_6b_11_11);
    let mut campaign = Campaign::new(case, seed);
    for at in 0..rounds {
        campaign.round().map_err(|why| format!("{}, kill {at} of {case:?}: {why}", Seed(seed)))?;
    }
    Ok(campaign.tally)
}

/// Runs cases whole; skips one that this host has no engine or no file system for.
fn survive(cases: &[Case]) {
    let mut all = 0;
    for case in cases {
        if let Err(error) = available(case) {
            skipped(format_args!("{}: {error}", case.below));
            continue;
        }
        let tally = kill_again_and_again(*case, rounds_or(ROUNDS)).unwrap_or_else(|why| panic!("{why}"));
        println!("{}, queues={}, {:?}: {tally:?}", case.below, case.queues, case.guest);
        assert!(tally.writes > 0, "nothing was written, so nothing was tested");
        assert!(case.guest != Guest::Flushes || tally.flushes > 0, "nothing was flushed");
        all += tally.kills;
    }
    println!("{all} kills survived");
}

fn available(case: &Case) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let path = folder.path().join("probe");
    fs::File::create(&path).and_then(|file| file.set_len(1 << 20)).map_err(|error| error.to_string())?;
    let mut config = FileConfig::new(&path);
    if case.below.contains("direct=on") {
        config.direct = Direct::On;
    }
    if case.below.contains("engine=uring") {
        config.engine = Engine::Uring;
    }
    FileBackend::open(config).map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn files_with_a_cache_and_a_guest_that_flushes() {
    survive(&[
        case("file,path=A,cache=write-back,engine=uring", 1, Guest::Flushes),
        case("file,path=A,cache=write-back,engine=threads", 2, Guest::Flushes),
        case("file,path=A,cache=write-back,engine=uring,direct=on", 2, Guest::Flushes),
        case("file,path=A,cache=write-back,inline=on", 1, Guest::Flushes),
    ]);
}

#[test]
fn files_whose_guest_does_not_flush() {
    survive(&[
        case("file,path=A,engine=uring", 1, Guest::Unaware),
        case("file,path=A,cache=write-back,engine=uring", 2, Guest::SwitchedOff),
        case("file,path=A,cache=write-back,engine=threads,direct=on", 1, Guest::SwitchedOff),
    ]);
}

#[test]
fn stacks_over_files() {
    let kept = Case {
        promise: Durability::WriteBack,
        ..case("hoard -> file,path=A,cache=write-back", 1, Guest::Flushes)
    };
    survive(&[
        case("mirror [file,path=A,cache=write-back | file,path=B,cache=write-back]", 2, Guest::Flushes),
        kept,
        Case { guest: Guest::SwitchedOff, ..kept },
    ]);
}

/// Every way to lie is caught: a stage that acknowledges writes, flushes, or writes with FUA before it passes them on, and one
/// that writes to the wrong place.
#[test]
fn a_stack_that_lies_is_caught() {
    let cached = |below, guest| Case { promise: Durability::WriteBack, ..case(below, 1, guest) };
    for case in [
        case("hoard -> file,path=A", 1, Guest::Unaware),
        case("hoard -> file,path=A,cache=write-back", 1, Guest::Flushes),
        cached("hoard,flush=lies -> file,path=A,cache=write-back", Guest::Flushes),
        cached("hoard,fua=lies -> file,path=A,cache=write-back", Guest::SwitchedOff),
        case("astray -> file,path=A,cache=write-back", 1, Guest::Flushes),
    ] {
        let caught = kill_again_and_again(case, 100);
        println!("{}: {caught:?}", case.below);
        let why = caught.expect_err("it went unnoticed");
        assert!(why.contains("it may hold"), "caught for another reason: {why}");
    }
}
