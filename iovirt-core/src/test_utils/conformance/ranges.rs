//! What is and is not within the disk: checked by the back-end at the time of I/O, whatever was checked above.

use super::{Bench, Rule, ensure, words};
use crate::request::block::{BlockCaps, BlockError, BlockOp, BlockOutput};
use crate::test_utils::io::BlockIo;

/// The rules of this module.
pub const RULES: &[Rule] = &[
    ("ranges/beyond-the-end", beyond_the_end),
    ("ranges/misaligned", misaligned),
    ("ranges/boundary", boundary),
    ("ranges/zero-length", zero_length),
];

/// Every operation that has a range and that the stack can do.
fn ops(caps: &BlockCaps) -> Vec<BlockOp> {
    let mut ops = vec![BlockOp::Read];
    if !caps.read_only {
        ops.push(BlockOp::Write);
        ops.extend(caps.discard.map(|_| BlockOp::Discard));
        ops.extend(caps.write_zeroes.map(|_| BlockOp::WriteZeroes));
    }
    ops
}

fn request(op: BlockOp, offset: u64, len: u64) -> BlockIo {
    match op {
        BlockOp::Write => BlockIo::write(offset, vec![0xa5; len as usize]),
        op => BlockIo { op, ..BlockIo::read(offset, len) },
    }
}

fn beyond_the_end(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (driver, _, caps) = bench.open(1)?;
    let (block, end) = (u64::from(caps.logical_block), caps.capacity);
    let last_offset = (i64::MAX as u64 - 4 * block) / block * block;
    let mut cases = 0;
    for op in ops(&caps) {
        let ranges = [
            (end, block),
            (end.saturating_sub(block), 2 * block),
            (end + block, block),
            (last_offset, 2 * block),
        ];
        for (offset, len) in ranges.into_iter().filter(|(offset, len)| offset + len > end) {
            let output = driver.run(request(op, offset, len)).map_err(words)?.output;
            let refused = BlockOutput::Failed(BlockError::OutOfRange);
            ensure!(output == refused, "{op:?} of {len} bytes at {offset} of {end} gave {output:?}");
            cases += 1;
        }
    }
    Ok(cases)
}

fn misaligned(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (driver, _, caps) = bench.open(1)?;
    let block = u64::from(caps.logical_block);
    if caps.capacity < 4 * block {
        return Ok(0);
    }
    let mut cases = 0;
    for op in ops(&caps) {
        for (offset, len) in [(1, block), (0, block - 1), (block / 2, block / 2), (block + 1, 1), (0, 1)] {
            let output = driver.run(request(op, offset, len)).map_err(words)?.output;
            let refused = BlockOutput::Failed(BlockError::Misaligned);
            ensure!(
                output == refused,
                "{op:?} of {len} bytes at {offset} in blocks of {block} gave {output:?}"
            );
            cases += 1;
        }
    }
    Ok(cases)
}

fn boundary(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (driver, _, caps) = bench.open(1)?;
    let (block, end) = (u64::from(caps.logical_block), caps.capacity);
    let mut cases = 0;
    for op in ops(&caps) {
        for blocks in [1, 2] {
            let Some(offset) = end.checked_sub(blocks * block) else { continue };
            let output = driver.run(request(op, offset, blocks * block)).map_err(words)?.output;
            ensure!(output == BlockOutput::Done, "{op:?} of the last {blocks} blocks gave {output:?}");
            cases += 1;
        }
    }
    Ok(cases)
}

fn zero_length(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (driver, _, caps) = bench.open(1)?;
    let mut cases = 0;
    for op in ops(&caps) {
        for offset in [0, caps.capacity] {
            let output = driver.run(request(op, offset, 0)).map_err(words)?.output;
            ensure!(output == BlockOutput::Done, "{op:?} of nothing at {offset} gave {output:?}");
            cases += 1;
        }
        let beyond = caps.capacity + u64::from(caps.logical_block);
        let output = driver.run(request(op, beyond, 0)).map_err(words)?.output;
        let refused = BlockOutput::Failed(BlockError::OutOfRange);
        ensure!(output == refused, "{op:?} of nothing at {beyond}, beyond the end, gave {output:?}");
        cases += 1;
    }
    Ok(cases)
}
