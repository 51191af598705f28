//! A stage that says it changes nothing changes nothing.

use super::{Factory, Profile, Report, ensure, new_driver, words};
use crate::backend::Backend;
use crate::request::block::BlockCaps;
use crate::test_utils::io::BlockIo;
use crate::test_utils::rng::Rng;

/// The rules of this module.
pub const RULES: [&str; 2] = ["transparency/caps", "transparency/results"];

/// Compares a stack with what is below its stage: the same capabilities, and for the same requests, good and bad, the
/// same outputs and the same data. Both factories make fresh stacks over the same back-end.
pub fn run(stack: &Factory<'_>, bare: &Factory<'_>, profile: &Profile) -> Report {
    let profile = profile.resolved();
    let mut report = Report::new(&profile);
    report.add(&profile, RULES[0], || {
        let (stack, bare) = (stack().caps(), bare().caps());
        ensure!(stack == bare, "the stack's capabilities are {stack:?}, those below are {bare:?}");
        Ok(1)
    });
    report.add(&profile, RULES[1], || results(stack, bare, &profile));
    report
}

fn results(stack: &Factory<'_>, bare: &Factory<'_>, profile: &Profile) -> Result<u64, String> {
    let (stack, bare) = (stack(), bare());
    let caps = bare.caps();
    let (mut upper, mut lower) = (new_driver(profile.seed, profile)?, new_driver(profile.seed, profile)?);
    upper.open(&stack, 1).map_err(words)?;
    lower.open(&bare, 1).map_err(words)?;
    let mut rng = Rng::new(profile.seed);
    for case in 0..profile.rounds * 16 {
        let io = choose(&mut rng, &caps);
        let name = format!("case {case}: {:?} of {} bytes at {}", io.op, io.len, io.offset);
        let one = upper.run(io.clone()).map_err(|stuck| format!("{name}: {stuck}"))?;
        let two = lower.run(io).map_err(|stuck| format!("{name}, without the stage: {stuck}"))?;
        ensure!(one.output == two.output, "{name} gave {:?}; without the stage {:?}", one.output, two.output);
        ensure!(one.mangled.is_none(), "{name}: {}", one.mangled.unwrap_or_default());
        ensure!(!one.lost, "{name} was dropped");
        ensure!(one.data == two.data, "{name} brought other data than without the stage");
    }
    Ok(profile.rounds * 16)
}

/// A request, in one of eight cases a bad one.
fn choose(rng: &mut Rng, caps: &BlockCaps) -> BlockIo {
    let block = u64::from(caps.logical_block);
    let blocks = (caps.capacity / block).min(256);
    let len = rng.between(1, 8);
    let (mut offset, mut bytes) = (rng.below(blocks.saturating_sub(len) + 1) * block, len * block);
    match rng.below(24) {
        0 => offset = caps.capacity,
        1 => offset += 1,
        2 => bytes -= 1,
        _ => {}
    }
    match rng.below(8) {
        0 => BlockIo::flush(),
        1 => BlockIo::write_zeroes(offset, bytes),
        2 => BlockIo::discard(offset, bytes),
        3..=5 => {
            let mut data = vec![0; bytes as usize];
            rng.fill(&mut data);
            BlockIo::write(offset, data)
        }
        _ => BlockIo::read(offset, bytes),
    }
}
