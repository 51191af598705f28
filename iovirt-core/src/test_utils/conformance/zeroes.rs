//! Write-zeroes and discard: what they do to their range, and that they do nothing to its neighbours.

use super::{Bench, Rule, ensure, words};
use crate::backend::Backend;
use crate::request::block::{BlockFlags, BlockOutput, SECTOR};
use crate::test_utils::io::BlockIo;
use crate::test_utils::stamp::stamped;

/// The rules of this module.
pub const RULES: &[Rule] = &[("zeroes/write-zeroes", write_zeroes), ("zeroes/discard", discard)];

/// Blocks that are written before, of which those in the middle are zeroed.
const BLOCKS: u64 = 64;

fn write_zeroes(bench: &mut Bench<'_>) -> Result<u64, String> {
    let caps = bench.backend().caps();
    let Some(limits) = caps.write_zeroes else { return Ok(0) };
    let mut cases = 0;
    for flags in [BlockFlags::empty(), BlockFlags::FUA, BlockFlags::UNMAP] {
        if flags != BlockFlags::UNMAP || limits.may_unmap {
            cases += range(bench, limits.max_bytes, true, |offset, len| {
                BlockIo::write_zeroes(offset, len).with_flags(flags)
            })?;
        }
    }
    Ok(cases)
}

fn discard(bench: &mut Bench<'_>) -> Result<u64, String> {
    let caps = bench.backend().caps();
    let Some(limits) = caps.discard else { return Ok(0) };
    let reads_zero = limits.reads_zero && limits.alignment <= caps.logical_block;
    range(bench, limits.max_bytes, reads_zero, BlockIo::discard)
}

/// Writes everything, asks for a range in the middle, and reads everything back.
fn range(
    bench: &mut Bench<'_>,
    max_bytes: u64,
    becomes_zero: bool,
    ask: impl Fn(u64, u64) -> BlockIo,
) -> Result<u64, String> {
    let (mut rng, profile) = (bench.rng.fork(), bench.profile);
    let (driver, _, caps) = bench.open(2)?;
    let block = u64::from(caps.logical_block);
    let blocks = BLOCKS.min(caps.capacity / block);
    if caps.read_only || blocks < 3 {
        return Ok(0);
    }
    let rounds = profile.rounds.div_ceil(4);
    for round in 1..=rounds {
        let before = stamped(0, blocks * block / SECTOR, round);
        driver.write(0, &before).map_err(words)?;
        let len = rng.between(1, (blocks - 2).min(max_bytes / block).max(1));
        let first = rng.between(1, blocks - 1 - len);
        let io = ask(first * block, len * block);
        let name = format!("{:?} {:?} of {} bytes at {}", io.op, io.flags, io.len, io.offset);
        let output = driver.run(io).map_err(words)?.output;
        ensure!(output == BlockOutput::Done, "{name} gave {output:?}");
        if !profile.keeps_data {
            continue;
        }
        let after = driver.read(0, blocks * block).map_err(words)?;
        let (from, to) = ((first * block) as usize, ((first + len) * block) as usize);
        ensure!(after[..from] == before[..from], "{name} changed what lies before it");
        ensure!(after[to..] == before[to..], "{name} changed what lies behind it");
        let zero = after[from..to].iter().all(|&byte| byte == 0);
        ensure!(!becomes_zero || zero, "{name} left something else than zeroes");
    }
    Ok(rounds)
}
