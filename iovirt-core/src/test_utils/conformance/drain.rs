//! Coming to rest, and the way back.

use super::{Bench, Rule, ensure, words};
use crate::backend::{Mode, Queue};
use crate::request::block::BlockOutput;
use crate::test_utils::driver::Driver;
use crate::test_utils::io::{BlockIo, IoDone};

/// The rules of this module.
pub const RULES: &[Rule] = &[
    ("drain/idle", idle),
    ("drain/under-load", under_load),
    ("drain/serves-meanwhile", serves_meanwhile),
    ("drain/serves-at-rest", serves_at_rest),
    ("drain/way-back", way_back),
];

/// How many requests a rule keeps in flight.
const LOAD: u32 = 16;

/// What must hold at any time: a queue that says it rests has nothing in flight, by its own count and by ours.
fn check_rest(driver: &mut Driver) -> Result<(), String> {
    if driver.mode() != Mode::Quiesced {
        return Ok(());
    }
    let (theirs, ours) = (driver.with_queue(|queue, _| queue.in_flight()), driver.in_flight());
    ensure!(
        theirs == 0 && ours == 0,
        "the queue says it rests with {ours} requests in flight ({theirs} by its count)"
    );
    Ok(())
}

/// Turns until the queue rests, and checks what must hold all the way.
fn come_to_rest(driver: &mut Driver, load: &mut Vec<IoDone>) -> Result<(), String> {
    let mut broken = Ok(());
    check_rest(driver)?;
    driver
        .turn_until(|driver, mut done| {
            load.append(&mut done);
            broken = check_rest(driver);
            broken.is_err() || driver.mode() == Mode::Quiesced
        })
        .map_err(|stuck| format!("the queue does not come to rest: {stuck}"))?;
    broken
}

/// Fills the queue with reads (which every disk can do) and, where it may, with writes.
fn fill(driver: &mut Driver, writes: bool, block: u64, count: u32) -> usize {
    let io = |at: u32| match at % 3 {
        0 if writes => BlockIo::write(0, vec![0x77; block as usize]),
        1 => BlockIo::flush(),
        _ => BlockIo::read(0, block),
    };
    (0..count).filter(|&at| driver.submit(io(at)).is_some()).count()
}

fn check_done(done: &[IoDone], count: usize) -> Result<(), String> {
    ensure!(done.len() == count, "{} of {count} requests came home", done.len());
    match done.iter().find(|done| done.output != BlockOutput::Done) {
        Some(failed) => Err(format!("a request failed while the queue drained: {failed:?}")),
        None => Ok(()),
    }
}

fn idle(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (driver, _, _) = bench.open(LOAD)?;
    ensure!(driver.mode() == Mode::Running, "a fresh queue is {:?}", driver.mode());
    driver.drain();
    come_to_rest(driver, &mut Vec::new())?;
    // Asked twice is asked once.
    driver.drain();
    come_to_rest(driver, &mut Vec::new())?;
    driver.resume();
    ensure!(driver.mode() == Mode::Running, "a resumed queue is {:?}", driver.mode());
    driver.flush().map_err(|error| format!("after the way back: {error}"))?;
    Ok(1)
}

fn under_load(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (mut rng, profile) = (bench.rng.fork(), bench.profile);
    let (driver, _, caps) = bench.open(LOAD)?;
    let block = u64::from(caps.logical_block);
    for round in 0..profile.rounds {
        let count = fill(driver, !caps.read_only, block, rng.between(1, u64::from(LOAD)) as u32);
        let mut done = Vec::new();
        for _ in 0..rng.below(3) {
            done.append(&mut driver.turn());
        }
        driver.drain();
        come_to_rest(driver, &mut done)?;
        check_done(&done, count).map_err(|error| format!("round {round}: {error}"))?;
        driver.resume();
        ensure!(driver.mode() == Mode::Running, "a resumed queue is {:?}", driver.mode());
        driver.read(0, block).map_err(|error| format!("round {round}: after the way back: {error}"))?;
    }
    Ok(profile.rounds)
}

fn serves_meanwhile(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (mut rng, profile) = (bench.rng.fork(), bench.profile);
    let (driver, _, caps) = bench.open(LOAD)?;
    let block = u64::from(caps.logical_block);
    for round in 0..profile.rounds {
        let mut count = fill(driver, !caps.read_only, block, LOAD / 2);
        driver.drain();
        let mut done = Vec::new();
        for _ in 0..rng.below(4) {
            count += fill(driver, !caps.read_only, block, 2);
            done.append(&mut driver.turn());
        }
        come_to_rest(driver, &mut done)?;
        check_done(&done, count).map_err(|error| format!("round {round}: {error}"))?;
        driver.resume();
    }
    Ok(profile.rounds)
}

/// A stage above may do a request in two steps, and what is below came to rest between them.
fn serves_at_rest(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (driver, _, caps) = bench.open(LOAD)?;
    let block = u64::from(caps.logical_block);
    driver.drain();
    come_to_rest(driver, &mut Vec::new())?;
    for round in 0..8 {
        let count = fill(driver, !caps.read_only, block, 1 + round);
        check_rest(driver).map_err(|error| format!("given a request at rest: {error}"))?;
        let mut done = Vec::new();
        driver
            .turn_until(|driver, mut more| {
                done.append(&mut more);
                driver.in_flight() == 0
            })
            .map_err(|stuck| format!("given a request at rest: {stuck}"))?;
        check_done(&done, count)?;
        come_to_rest(driver, &mut Vec::new())?;
    }
    Ok(8)
}

fn way_back(bench: &mut Bench<'_>) -> Result<u64, String> {
    let profile = bench.profile;
    let (driver, _, caps) = bench.open(LOAD)?;
    let block = u64::from(caps.logical_block);
    for round in 0..profile.rounds {
        let count = fill(driver, !caps.read_only, block, LOAD);
        driver.drain();
        driver.resume();
        ensure!(driver.mode() == Mode::Running, "taken back at once, the queue is {:?}", driver.mode());
        let done = driver.wait_all().map_err(words)?;
        check_done(&done, count).map_err(|error| format!("round {round}: {error}"))?;
    }
    Ok(profile.rounds)
}
