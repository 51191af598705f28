//! The step `instructions`: what a request costs, in instructions. They are the same in every run, so a table says how many there may be.

use std::fs;

use crate::cmd::{self, Cmd};
use crate::error::{Context, Error, Result};
use crate::setup::{self, Tool};

/// What it needs.
pub(crate) const TOOLS: [Tool; 2] = [setup::CC, setup::VALGRIND];

/// A device, what is below it, and its instructions for a chain, for a request, or for a frame that goes out and comes back.
#[derive(Debug)]
struct Path {
    device: &'static str,
    below: &'static str,
    instructions: f64,
}

const fn disk(below: &'static str, instructions: f64) -> Path {
    Path { device: "virtio-blk", below, instructions }
}

/// The same in a guest whose memory logs what the device writes.
const fn logged(below: &'static str, instructions: f64) -> Path {
    Path { device: "virtio-blk, logged", below, instructions }
}

/// The ring engine with nothing below: chains popped, walked and returned.
const fn ring(device: &'static str, instructions: f64) -> Path {
    Path { device, below: "", instructions }
}

/// A disk over vhost-user, plain or with a record of the chains in flight, and its driver.
const fn over_vhost_user(device: &'static str, instructions: f64) -> Path {
    Path { device, below: "null,fill=off", instructions }
}

const fn card(below: &'static str, instructions: f64) -> Path {
    Path { device: "virtio-net", below, instructions }
}

/// The paths, by Rust 1.95. Whoever makes one longer on purpose changes its line, and says why.
#[rustfmt::skip]
const PATHS: [Path; 24] = [
    ring("split ring", 313.0),
    ring("split ring, logged", 317.0),
    disk("null,fill=off", 1188.0),
    disk("stats -> null,fill=off", 1273.0),
    disk("fault -> null,fill=off", 1264.0),
    disk("swappable -> null,fill=off", 1219.0),
    disk("mirror [null,fill=off | null,fill=off]", 2057.0),
    disk("stripe [null,fill=off | null,fill=off]", 2199.0),
    disk("overlay [memory,size=1M | null,size=1M]", 6313.0),
    disk("scheduled,group=a -> null,fill=off", 1718.0),
    disk("delay,time=0us -> null,fill=off", 1253.0),
    disk("memory,size=64M", 1699.0),
    disk("file,path=IMAGE", 1764.0),
    logged("null,fill=off", 1553.0),
    logged("memory,size=64M", 2064.0),
    over_vhost_user("vhost-user", 1714.0),
    over_vhost_user("vhost-user, in flight", 1759.0),
    card("loopback", 1404.0),
    card("stats -> loopback", 1548.0),
    card("filter -> loopback", 1869.0),
    card("swappable -> loopback", 1451.0),
    card("fault -> loopback", 1540.0),
    card("delay,time=0us -> loopback", 1559.0),
    card("scheduled,group=a -> loopback", 1883.0),
];

/// How many times what the table says is let pass: compilers and C libraries differ.
const TOLERANCE: f64 = 1.1;
/// Batches of the two runs of a path; the difference has nothing of the set-up.
const BATCHES: [u32; 2] = [100, 600];
/// Requests of a batch, as the program makes them.
const BATCH: u32 = 32;

/// Counts; an error where a path has become longer.
pub(crate) fn run() -> Result<()> {
    setup::ensure(&TOOLS)?;
    let program = program()?;
    let mut longer = Vec::new();
    for path in &PATHS {
        let counts = BATCHES.map(|batches| count(&program, path, batches));
        let [few, many] = counts;
        let requests = f64::from((BATCHES[1] - BATCHES[0]) * BATCH);
        let found = (many? - few?) / requests;
        let share = found / path.instructions;
        println!(
            "{:<21} {:<42} {found:>7.0} instructions, {share:.2} of the table's {:.0}",
            path.device, path.below, path.instructions
        );
        if share > TOLERANCE {
            longer.push(format!("{} -> {}: {found:.0}", path.device, path.below));
        }
    }
    if longer.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!(
        "more than {TOLERANCE} times the instructions of the table: {}",
        longer.join("; ")
    )))
}

/// The program, built as users build theirs.
fn program() -> Result<String> {
    let said = Cmd::cargo()
        .args([
            "build",
            "--release",
            "--bench",
            "instructions",
            "--message-format",
            "json-render-diagnostics",
        ])
        .text()?;
    executable(&said).ok_or_else(|| Error::new("cargo named no program"))
}

/// The last program that cargo names.
fn executable(said: &str) -> Option<String> {
    let (_, rest) = said.rsplit_once("\"executable\":\"")?;
    rest.split('"').next().map(str::to_owned)
}

/// All instructions of a run.
fn count(program: &str, path: &Path, batches: u32) -> Result<f64> {
    let log = cmd::target().join("instructions.log");
    Cmd::new("valgrind")
        .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
        .arg(format!("--log-file={}", log.display()))
        .args([program, path.device, path.below, &batches.to_string()])
        .quiet()?;
    let said = fs::read_to_string(&log).context(log.display())?;
    refs(&said).ok_or_else(|| Error::new(format!("valgrind counted nothing:\n{said}")))
}

/// The number in `I   refs:      1,234`.
fn refs(said: &str) -> Option<f64> {
    let (_, rest) = said.lines().find_map(|line| line.split_once("refs:"))?;
    rest.trim().replace(',', "").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_programs_are_found() {
        assert_eq!(refs("==7== \n==7== I   refs:      1,234,567\n"), Some(1_234_567.0));
        assert_eq!(refs("==7== killed"), None);
        let said = r#"{"executable":null}{"executable":"/x/instructions-1"}{"reason":"build-finished"}"#;
        assert_eq!(executable(said).as_deref(), Some("/x/instructions-1"));
    }
}
