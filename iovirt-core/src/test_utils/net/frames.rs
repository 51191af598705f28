//! What is sent is what comes: whole, in order, on its own pair, and in host memory.

use super::{Bench, DEPTH, NetDriver, Rule, ensure, frame};
use crate::request::net::ETHERNET_HEADER;

pub(super) const RULES: &[Rule] =
    &[("net/frames", frames), ("net/order", order), ("net/host-memory", host_memory), ("net/pairs", pairs)];

/// Frames of every length, one at a time.
fn frames(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    let most = u64::from(line.caps.max_frame);
    for number in 0..bench.profile.rounds {
        let len = match bench.rng.below(4) {
            0 => most - bench.rng.below(4),
            1 => bench.rng.between(u64::from(ETHERNET_HEADER) + 4, 80),
            _ => bench.rng.between(64, most),
        };
        let sent = frame(number as u32, len as usize);
        line.carry(&[sent]).map_err(|error| format!("frame {number} of {len} bytes: {error}"))?;
    }
    Ok(bench.profile.rounds)
}

/// Batches of any size.
fn order(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    let (mut number, longest) = (0, u64::from(line.caps.max_frame).min(200));
    for round in 0..bench.profile.rounds {
        let batch: Vec<_> = (0..bench.rng.between(1, u64::from(DEPTH)))
            .map(|_| {
                number += 1;
                frame(number, bench.rng.between(20, longest) as usize)
            })
            .collect();
        line.carry(&batch).map_err(|error| format!("round {round}: {error}"))?;
    }
    Ok(number.into())
}

/// A token comes home with a frame in host memory: a guest's is for the front-end to write.
fn host_memory(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    line.carry(&[frame(1, 60), frame(2, 80)])?;
    ensure!(!line.receiver.saw_guest_memory(), "a frame came in the memory of a guest");
    Ok(2)
}

fn pairs(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut line = bench.open()?;
    if line.caps.pairs < 2 {
        return Ok(0);
    }
    let mut other = NetDriver::new(&line.backend, 1, DEPTH)?;
    line.receiver.post(2);
    other.post(2);
    std::mem::swap(&mut line.receiver, &mut other);
    super::Line::settle(&mut other, line.patience)?;
    line.sender = NetDriver::new(&line.backend, 1, DEPTH)?;
    line.carry(&[frame(3, 60)])?;
    let astray = super::Line::settle(&mut other, line.patience)?;
    ensure!(astray.is_empty(), "what was sent on pair 1 came on pair 0");
    Ok(1)
}
