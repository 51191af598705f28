//! The life cycle over `nbd` and a server that we did not write, with real sockets: seeded, but not repeated step by step.
//!
//! Without the server these tests say that they were skipped.

use iovirt::backends::block::nbd::{NbdAddress, NbdBackend, NbdConfig};
use iovirt::core::pipeline::BoxBackend;
use iovirt::core::request::block::BlockRequest;
use iovirt::core::test_utils::lifecycle::{self, Case, Run};
use iovirt::core::test_utils::{rounds_or, seed_or};
use iovirt::registry::{Family, Maturity, Registry, StageInfo, StageRow};
use std::cell::RefCell;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

type Stack = BoxBackend<BlockRequest>;

/// Seeds of each case.
const SEEDS: u64 = 6;
/// Bytes of the disk.
const SIZE: u64 = 1 << 20;

fn seeds(count: u64) -> Range<u64> {
    let first = seed_or(0x0bd);
    first..first + rounds_or(count)
}

/// A server of its own for each disk; it goes with the next one.
struct Server {
    child: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Serves a disk of zeroes; `None` where there is no such program.
    fn start(program: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (socket, image) = (folder.path().join("s"), folder.path().join("disk.img"));
        std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
        let child = Command::new(program)
            .args(arguments(program, &socket, &image))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let server = Self { child, socket, _folder: folder };
        let since = Instant::now();
        while UnixStream::connect(&server.socket).is_err() {
            assert!(since.elapsed() < Duration::from_secs(20), "{program} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(server)
    }

    fn connect(&self) -> Stack {
        let config = NbdConfig::new(NbdAddress::Unix(self.socket.clone()));
        BoxBackend::new(NbdBackend::connect(config).expect("a connection"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn arguments(program: &str, socket: &Path, image: &Path) -> Vec<String> {
    let (socket, image) = (socket.to_str().unwrap(), image.to_str().unwrap());
    let words: &[&str] = match program {
        "qemu-nbd" => &["-f", "raw", "-t", "--discard=unmap", "--shared=32", "-k", socket, image],
        _ => &["-f", "-U", socket, "file", image],
    };
    words.iter().map(|word| (*word).to_owned()).collect()
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
    if stages.is_empty() {
        return below;
    }
    let mut registry = Registry::standard();
    registry.add(StageRow::block_backend(BELOW, move |_| Ok(below.clone()))).unwrap();
    registry.build_block(&format!("{stages} -> below").parse().unwrap()).unwrap()
}

/// Runs the case over fresh servers; `None` where there is no such program.
fn live(program: &str, stages: &str, count: u64) -> Option<Result<Run, lifecycle::Failure>> {
    if Server::start(program).is_none() {
        iovirt::core::test_utils::skipped(format_args!("{program} is not installed"));
        return None;
    }
    let server = RefCell::new(None);
    let disk = || {
        let fresh = Server::start(program).expect("installed, as above");
        let stack = fresh.connect();
        server.replace(Some(fresh));
        stack
    };
    let name = format!("{stages} over nbd, {program}");
    let stack = |below| above(stages, below);
    Some(lifecycle::run(&Case::new(&name, &disk, &stack).on_the_host(), seeds(count)))
}

#[test]
fn over_real_servers() {
    let (mut total, mut cases) = (Run::default(), 0);
    for program in ["qemu-nbd", "nbdkit"] {
        for stages in ["", "stats -> swappable", "swappable -> delay,time=30us,jitter=100us"] {
            let Some(run) = live(program, stages, SEEDS) else { continue };
            let run = run.unwrap_or_else(|failure| panic!("{failure}"));
            println!("{stages} over nbd, {program}: {run}");
            total += run;
            cases += 1;
        }
    }
    println!("{cases} stacks: {total}");
    if cases > 0 {
        assert!(total.drains > 0 && total.resets > 0 && total.restores > 0, "{total}");
        assert!(total.stalls > 0 && total.swaps > 0, "{total}");
    }
}

#[test]
fn a_stage_that_drops_requests_is_found() {
    if let Some(run) = live("qemu-nbd", "fault,kind=drop,permille=5", 20) {
        let failure = run.expect_err("it went unnoticed");
        println!("{failure}");
        assert!(failure.message.contains("dropped instead of completed"), "{failure}");
    }
}
