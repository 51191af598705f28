//! What the stack says of itself, and what it then does.

use super::{Bench, Rule, ensure, words};
use crate::backend::Backend;
use crate::request::block::{BlockCaps, BlockError, BlockFlags, BlockOutput, SECTOR};
use crate::test_utils::io::BlockIo;

/// The rules of this module.
pub const RULES: &[Rule] = &[
    ("caps/well-formed", well_formed),
    ("caps/stable", stable),
    ("caps/named", named),
    ("caps/flush-and-fua", flush_and_fua),
    ("caps/unsupported", unsupported),
    ("caps/read-only", read_only),
];

fn well_formed(bench: &mut Bench<'_>) -> Result<u64, String> {
    let caps = bench.backend().caps();
    let logical = u64::from(caps.logical_block);
    ensure!(logical.is_power_of_two() && logical >= SECTOR, "a logical block of {logical} bytes");
    ensure!(
        caps.capacity.is_multiple_of(logical),
        "the capacity of {} is no multiple of {logical}",
        caps.capacity
    );
    let physical = u64::from(caps.physical_block);
    ensure!(physical.is_power_of_two() && physical >= logical, "a physical block of {physical} bytes");
    ensure!(u64::from(caps.optimal_io).is_multiple_of(logical), "optimal I/O of {} bytes", caps.optimal_io);
    if let Some(limits) = caps.discard {
        ensure!(limits.max_bytes >= logical, "discards of at most {} bytes", limits.max_bytes);
        ensure!(limits.alignment > 0, "discards aligned to nothing");
    }
    if let Some(limits) = caps.write_zeroes {
        ensure!(limits.max_bytes >= logical, "write-zeroes of at most {} bytes", limits.max_bytes);
    }
    Ok(1)
}

fn stable(bench: &mut Bench<'_>) -> Result<u64, String> {
    let backend = bench.backend();
    let before = backend.caps();
    let driver = bench.reopen(&backend, 1)?;
    driver.flush().map_err(words)?;
    let after = backend.caps();
    ensure!(before == after, "the capabilities changed from {before:?} to {after:?} without a reason");
    let again = bench.backend().caps();
    ensure!(before == again, "two fresh stacks differ: {before:?} and {again:?}");
    Ok(2)
}

fn named(bench: &mut Bench<'_>) -> Result<u64, String> {
    let stages = bench.backend().list_stages();
    ensure!(stages.iter().next().is_some(), "the stack names no stage");
    for stage in stages.iter() {
        let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
        let good = !stage.name.is_empty() && stage.name.chars().all(plain);
        ensure!(good, "{:?} is no name that a description could have", stage.name);
    }
    Ok(stages.iter().count() as u64)
}

fn flush_and_fua(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (driver, _, caps) = bench.open(2)?;
    driver.flush().map_err(|error| format!("flush: {error}"))?;
    if caps.read_only || caps.capacity == 0 {
        return Ok(1);
    }
    // Without the capability the flag is ignored, not refused: who sends it all the same emulates it.
    let data = vec![0x5a; caps.logical_block as usize];
    driver.write_fua(0, &data).map_err(|error| format!("a write with FUA: {error}"))?;
    driver.flush().map_err(|error| format!("flush: {error}"))?;
    Ok(3)
}

/// The requests that caps decide on, for the first block.
fn asked(caps: &BlockCaps) -> [(BlockIo, bool); 3] {
    let len = u64::from(caps.logical_block);
    [
        (BlockIo::write(0, vec![1; len as usize]), true),
        (BlockIo::discard(0, len), caps.discard.is_some()),
        (BlockIo::write_zeroes(0, len), caps.write_zeroes.is_some()),
    ]
}

fn unsupported(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (driver, _, caps) = bench.open(1)?;
    if caps.read_only || caps.capacity == 0 {
        return Ok(0);
    }
    let mut cases = 0;
    for (io, supported) in asked(&caps) {
        let op = io.op;
        let output = driver.run(io).map_err(words)?.output;
        let wanted = if supported { BlockOutput::Done } else { BlockOutput::Failed(BlockError::Unsupported) };
        ensure!(output == wanted, "{op:?} gave {output:?} where {wanted:?} follows from the capabilities");
        cases += 1;
    }
    if caps.write_zeroes.is_some_and(|limits| limits.may_unmap) {
        let io = BlockIo::write_zeroes(0, u64::from(caps.logical_block)).with_flags(BlockFlags::UNMAP);
        let output = driver.run(io).map_err(words)?.output;
        ensure!(output == BlockOutput::Done, "write-zeroes that may unmap gave {output:?}");
        cases += 1;
    }
    Ok(cases)
}

fn read_only(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (driver, _, caps) = bench.open(1)?;
    if !caps.read_only || caps.capacity == 0 {
        return Ok(0);
    }
    let before = driver.read(0, u64::from(caps.logical_block)).map_err(words)?;
    for (io, _) in asked(&caps) {
        let op = io.op;
        let output = driver.run(io).map_err(words)?.output;
        let refused = BlockOutput::Failed(BlockError::ReadOnly);
        ensure!(output == refused, "{op:?} on a read-only disk gave {output:?}");
    }
    let after = driver.read(0, u64::from(caps.logical_block)).map_err(words)?;
    ensure!(before == after, "a read-only disk changed");
    Ok(4)
}
