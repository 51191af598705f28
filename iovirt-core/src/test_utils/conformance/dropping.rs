//! A queue that goes with requests in flight.

use super::{Bench, Rule, ensure, new_driver, words};
use crate::backend::Backend;
use crate::test_utils::io::BlockIo;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The rules of this module.
pub const RULES: &[Rule] = &[("dropping/in-flight", in_flight), ("dropping/memory", memory)];

/// What goes with a queue does not disturb the next one.
fn in_flight(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (mut rng, profile) = (bench.rng.fork(), bench.profile);
    let (_, backend, caps) = bench.open(16)?;
    let block = u64::from(caps.logical_block);
    for round in 0..profile.rounds {
        let driver = bench.reopen(&backend, 16)?;
        for _ in 0..rng.between(1, 16) {
            driver.submit(BlockIo::read(0, block));
        }
        if rng.one_in(2) {
            driver.turn();
        }
        driver.close();
        let driver = bench.reopen(&backend, 4)?;
        driver.read(0, block).map_err(|error| format!("round {round}: the next queue: {error}"))?;
        driver.flush().map_err(|error| format!("round {round}: the next queue: {error}"))?;
    }
    Ok(profile.rounds)
}

/// The memory of what was in flight is let go once the worker is gone, and not before the host is done with it.
fn memory(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (backend, patience) = (bench.backend(), bench.profile.patience);
    let block = u64::from(backend.caps().logical_block);
    let mut driver = new_driver(bench.rng.next_u64(), bench.profile)?;
    driver.open(&backend, 8).map_err(words)?;
    let owner = Arc::downgrade(driver.space().map().regions()[0].owner());
    for _ in 0..8 {
        driver.submit(BlockIo::read(0, block));
    }
    driver.turn();
    // Some may be home by now; those that come after are neither kicked nor polled for.
    while driver.submit(BlockIo::read(0, block)).is_some() {}
    ensure!(owner.strong_count() > 0, "the guest's memory went while the driver holds it");
    drop(driver);
    // A back-end's own threads may still be at work, and then they hold the memory with every right.
    let since = Instant::now();
    while owner.strong_count() > 0 {
        let waited = since.elapsed();
        ensure!(
            waited < patience,
            "guest memory is still held, {waited:?} after the queue and its worker went"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(1)
}
