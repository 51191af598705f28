//! Coming to rest without waiting for frames that may never come, and the way back.

use super::{Bench, DEPTH, Line, NetDriver, NetHome, Rule, ensure, frame};
use crate::backend::Mode;
use crate::request::net::{NetError, NetOp, NetOutput};
use std::time::{Duration, Instant};

pub(super) const RULES: &[Rule] =
    &[("net/drain", drain), ("net/drain-meanwhile", meanwhile), ("net/way-back", way_back)];

/// Turns until the queue rests; gives what came home.
fn come_to_rest(driver: &mut NetDriver, patience: Duration) -> Result<Vec<NetHome>, String> {
    let (mut home, since) = (Vec::new(), Instant::now());
    driver.check()?;
    while driver.mode() != Mode::Quiesced {
        home.extend(Line::settle(driver, patience)?);
        let left = driver.awaited();
        ensure!(
            since.elapsed() < patience,
            "the queue does not come to rest, with {left} requests in flight"
        );
    }
    driver.check()?;
    Ok(home)
}

fn aborted(home: &[NetHome]) -> usize {
    let aborted = NetOutput::Failed(NetError::Aborted);
    home.iter().filter(|(op, output, _)| (*op, *output) == (NetOp::Receive, aborted)).count()
}

/// Tokens come home as aborted, behind the frames that are there already.
fn drain(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    for round in 0..bench.profile.rounds {
        let tokens = bench.rng.between(1, u64::from(DEPTH)) as usize;
        line.receiver.post(tokens);
        Line::settle(&mut line.receiver, line.patience)?;
        let frames: Vec<_> = (0..bench.rng.below(tokens as u64 + 1)).map(|at| frame(at as u32, 60)).collect();
        line.sender.send(frames.iter().map(Vec::as_slice));
        line.all_sent()?;
        line.receiver.drain();
        let mut home = come_to_rest(&mut line.receiver, line.patience)?;
        let given_up = home.split_off(frames.len().min(home.len()));
        let came: Vec<_> = home.into_iter().map(|(_, _, frame)| frame).collect();
        ensure!(
            came == frames,
            "round {round}: of {} frames that had come {} came up",
            frames.len(),
            came.len()
        );
        let (wanted, found) = (tokens - frames.len(), aborted(&given_up));
        ensure!(
            found == wanted && given_up.len() == wanted,
            "round {round}: {found} of {wanted} tokens aborted"
        );
        line.receiver.resume();
    }
    Ok(bench.profile.rounds)
}

/// What is submitted while a queue drains, or rests: tokens come home as aborted, frames are sent.
fn meanwhile(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    line.receiver.post(4);
    Line::settle(&mut line.receiver, line.patience)?;
    line.receiver.drain();
    line.receiver.post(3);
    let home = come_to_rest(&mut line.receiver, line.patience)?;
    ensure!(aborted(&home) == 7, "{} of 7 tokens aborted", aborted(&home));
    line.receiver.post(2);
    let home = come_to_rest(&mut line.receiver, line.patience)?;
    let home = if home.is_empty() { Line::settle(&mut line.receiver, line.patience)? } else { home };
    ensure!(aborted(&home) == 2, "{} of 2 tokens that came at rest aborted", aborted(&home));
    line.sender.drain();
    line.sender.send([frame(1, 60).as_slice()]);
    let home = line.all_sent()?;
    ensure!(home.len() == 1 && home[0].1 == NetOutput::Done, "sent while draining: {:?}", home[0].1);
    come_to_rest(&mut line.sender, line.patience)?;
    Ok(10)
}

fn way_back(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    for round in 0..bench.profile.rounds.div_ceil(2) {
        line.receiver.post(4);
        line.receiver.drain();
        if round % 2 == 0 {
            come_to_rest(&mut line.receiver, line.patience)?;
        }
        line.receiver.resume();
        let mode = line.receiver.mode();
        ensure!(mode == Mode::Running, "a resumed queue is {mode:?}");
        // Tokens may have come home as aborted, or not.
        Line::settle(&mut line.receiver, line.patience)?;
        line.carry(&[frame(1, 60), frame(2, 60)]).map_err(|error| format!("after the way back: {error}"))?;
    }
    Ok(bench.profile.rounds.div_ceil(2))
}
