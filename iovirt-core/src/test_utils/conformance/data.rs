//! What was written is read.

use super::{Bench, Rule, ensure, words};
use crate::test_utils::driver::MAX_IO;
use crate::test_utils::guest::Shape;
use crate::test_utils::io::BlockIo;
use crate::test_utils::workload::{Workload, WorkloadConfig};

/// The rules of this module.
pub const RULES: &[Rule] =
    &[("data/model", model), ("data/under-load", under_load), ("data/another-queue", another_queue)];

/// Bytes at the beginning of the disk that the model covers.
const WINDOW: u64 = 128 << 10;

/// One request at a time against a plain vector, with memory in every shape.
fn model(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (mut rng, profile) = (bench.rng.fork(), bench.profile);
    let (driver, _, caps) = bench.open(1)?;
    if caps.read_only || !profile.keeps_data {
        return Ok(0);
    }
    let block = u64::from(caps.logical_block);
    let blocks = WINDOW.min(caps.capacity) / block;
    let mut disk = vec![0; (blocks * block) as usize];
    for case in 0..profile.rounds * 8 {
        driver.set_shape([Shape::Whole, Shape::Pieces, Shape::Mixed][rng.index(3)]);
        let longest = blocks.min(MAX_IO / block).min(1 << rng.below(8));
        let len = rng.between(1, longest);
        let first = rng.below(blocks - len + 1) * block;
        let range = first as usize..(first + len * block) as usize;
        if rng.one_in(2) {
            rng.fill(&mut disk[range.clone()]);
            driver.write(first, &disk[range]).map_err(words)?;
        } else {
            let found = driver.read(first, len * block).map_err(words)?;
            let wrong = found.iter().zip(&disk[range]).position(|(found, wanted)| found != wanted);
            if let Some(at) = wrong {
                return Err(format!("case {case}: {} bytes at {first}: byte {at} is wrong", len * block));
            }
        }
    }
    Ok(profile.rounds * 8)
}

/// Many requests at once, of sectors that say who wrote them.
fn under_load(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (seed, profile) = (bench.rng.next_u64(), bench.profile);
    let (driver, _, caps) = bench.open(profile.depth)?;
    if caps.read_only || caps.capacity == 0 {
        return Ok(0);
    }
    driver.set_shape(Shape::Mixed);
    let config = WorkloadConfig { keeps_data: profile.keeps_data, ..WorkloadConfig::new(&caps, 1024) };
    let mut load = Workload::new(config, &caps, seed);
    load.run(driver, profile.rounds * 16).map_err(words)?;
    load.finish(driver).map_err(words)?;
    if profile.keeps_data {
        load.verify(driver).map_err(words)?;
    }
    Ok(load.finished())
}

/// What one queue wrote another reads.
fn another_queue(bench: &mut Bench<'_>) -> Result<u64, String> {
    let profile = bench.profile;
    let (driver, backend, caps) = bench.open(4)?;
    if caps.read_only || !profile.keeps_data || caps.capacity == 0 {
        return Ok(0);
    }
    let data = vec![0xc3; caps.logical_block as usize];
    driver.write(0, &data).map_err(words)?;
    driver.quiesce().map_err(words)?;
    let driver = bench.reopen(&backend, 4)?;
    let found = driver.run(BlockIo::read(0, data.len() as u64)).map_err(words)?;
    ensure!(found.data == data, "a queue opened later does not find what was written before");
    Ok(1)
}
