//! Tokens and frames come home once each, and leave nothing behind.

use super::{Bench, DEPTH, Line, NetDriver, Rule, ensure, frame};
use crate::request::net::NetOp;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) const RULES: &[Rule] = &[
    ("net/once", once),
    ("net/tokens-wait", tokens_wait),
    ("net/dropping", dropping),
    ("net/dropping-memory", dropping_memory),
];

/// One data plane that sends and receives, kept as full as may be.
fn once(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    let driver = &mut line.sender;
    let (mut sent, mut home, since) = (0, 0, Instant::now());
    let wanted = bench.profile.rounds as usize * 8;
    while home < wanted {
        // Tokens wait for frames, so there is always room for one.
        let room = (DEPTH as usize).saturating_sub(driver.awaited() + 1);
        driver.post(bench.rng.index(room + 1));
        let room = DEPTH as usize - driver.awaited();
        let batch: Vec<_> = (0..bench.rng.index(room + 1)).map(|at| frame(at as u32, 60)).collect();
        sent += driver.send(batch.iter().map(Vec::as_slice));
        driver.check().map_err(|error| format!("after a submission: {error}"))?;
        let came = Line::settle(driver, bench.profile.patience)?;
        home += came.iter().filter(|(op, ..)| *op == NetOp::Transmit).count();
        ensure!(
            since.elapsed() < bench.profile.patience,
            "{} of {sent} frames that were sent did not come home",
            sent - home
        );
    }
    // What is left comes home as well, and nothing beside it.
    driver.drain();
    while driver.awaited() > 0 {
        Line::settle(driver, bench.profile.patience)?;
        let left = driver.awaited();
        ensure!(since.elapsed() < bench.profile.patience, "{left} requests did not come home");
    }
    let more = Line::settle(driver, bench.profile.patience)?;
    ensure!(more.is_empty(), "{} requests came home with nothing in flight", more.len());
    Ok(sent as u64)
}

/// A token does not come home while a queue runs, unless with a frame.
fn tokens_wait(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    line.receiver.post(DEPTH as usize);
    for _ in 0..4 {
        let early = Line::settle(&mut line.receiver, line.patience)?;
        ensure!(early.is_empty(), "{} tokens came home without a frame: {:?}", early.len(), early[0].1);
    }
    line.carry(&[frame(1, 60)])?;
    Ok(u64::from(DEPTH))
}

/// What goes with a data plane does not disturb the next one.
fn dropping(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    for round in 0..bench.profile.rounds.div_ceil(4) {
        line.receiver.post(bench.rng.between(1, u64::from(DEPTH)) as usize);
        if bench.rng.one_in(2) {
            Line::settle(&mut line.receiver, line.patience)?;
        }
        if bench.rng.one_in(2) {
            line.sender.send([frame(0, 60).as_slice()]);
            line.all_sent()?;
        }
        line.receiver = NetDriver::new(&line.backend, 0, 1)?;
        line.receiver = NetDriver::new(&line.backend, 0, DEPTH)?;
        line.carry(&[frame(round as u32, 60)]).map_err(|error| format!("the next data plane: {error}"))?;
    }
    Ok(bench.profile.rounds.div_ceil(4))
}

/// The memory of frames in flight is let go once the worker is gone.
fn dropping_memory(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    let owner = Arc::downgrade(line.sender.space().map().regions()[0].owner());
    line.sender.send([frame(0, 60).as_slice(), frame(1, 60).as_slice()]);
    line.sender = NetDriver::new(&line.backend, 0, 1)?;
    // A back-end's own threads may still be at work, and then they hold the memory with every right.
    let since = Instant::now();
    while owner.strong_count() > 0 {
        let waited = since.elapsed();
        ensure!(waited < line.patience, "guest memory is still held, {waited:?} after its data plane went");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(1)
}
