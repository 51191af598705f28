//! Register accesses of every width everywhere.

use super::{Answer, Bench, Case, ensure, register};
use crate::frontend::Access;

pub(super) const CASES: &[Case] = &[
    ("registers-read", read),
    ("registers-odd-writes", odd_writes),
    ("registers-config-writes", config_writes),
    ("registers-far-away", far_away),
    ("registers-any-write", any_write),
];

/// Up to here accesses are tried: behind the region.
const END: u64 = 0x1100;
const WIDEST: usize = 16;

fn read(bench: &mut Bench<'_>) -> Result<u64, String> {
    bench.start()?;
    let generation = bench.driver.read(register::CONFIG_GENERATION);
    let mut count = 0;
    for offset in 0..END {
        for width in 0..=WIDEST {
            let mut bytes = [0xa5; WIDEST];
            bench.driver.frontend().read(0, offset, &mut bytes[..width]);
            ensure!(bytes[width..].iter().all(|&byte| byte == 0xa5), "a read wrote behind its end");
            let is_register = offset < register::CONFIG && width == 4 && offset.is_multiple_of(4);
            let is_zero = bytes[..width].iter().all(|&byte| byte == 0);
            let is_beyond = offset >= 0x1000;
            if (offset < register::CONFIG && !is_register) || is_beyond {
                ensure!(is_zero, "{width} bytes at {offset:#x} read as {bytes:x?}");
            }
            count += 1;
        }
    }
    ensure!(generation == bench.driver.read(register::CONFIG_GENERATION), "the configuration changed");
    // Nothing of that changed anything.
    bench.serve_now()?;
    Ok(count)
}

/// Writes to registers that are not aligned accesses of 32 bits.
fn odd_writes(bench: &mut Bench<'_>) -> Result<u64, String> {
    bench.start()?;
    let mut count = 0;
    for offset in 0..register::CONFIG {
        for width in 0..=WIDEST {
            if width == 4 && offset.is_multiple_of(4) {
                continue;
            }
            let mut bytes = [0; WIDEST];
            bench.rng.fill(&mut bytes);
            let access = bench.driver.frontend().write(0, offset, &bytes[..width]);
            ensure!(matches!(access, Access::Done), "{width} bytes at {offset:#x} were deferred");
            count += 1;
        }
    }
    bench.serve_now()?;
    Ok(count)
}

/// Writes to the configuration space: the device goes on, whatever it takes of them.
fn config_writes(bench: &mut Bench<'_>) -> Result<u64, String> {
    bench.start()?;
    let mut count = 0;
    for offset in register::CONFIG..END {
        for width in 0..=WIDEST {
            let mut bytes = [0; WIDEST];
            bench.rng.fill(&mut bytes);
            let access = bench.driver.frontend().write(0, offset, &bytes[..width]);
            ensure!(matches!(access, Access::Done), "{width} bytes at {offset:#x} were deferred");
            count += 1;
        }
    }
    bench.serve_now()?;
    Ok(count)
}

/// Offsets near the end of all numbers, and regions that do not exist: nothing is there.
fn far_away(bench: &mut Bench<'_>) -> Result<u64, String> {
    bench.start()?;
    let mut count = 0;
    for back in 0..64 {
        for region in [0, 1, usize::MAX] {
            let offset = if region == 0 { u64::MAX - back } else { back * 4 };
            let mut bytes = [0xa5; WIDEST];
            bench.driver.frontend().read(region, offset, &mut bytes);
            ensure!(bytes == [0; WIDEST], "region {region} at {offset:#x} reads as {bytes:x?}");
            let value = bench.rng.next_u64().to_le_bytes();
            for width in [1, 2, 4, 8] {
                let access = bench.driver.frontend().write(region, offset, &value[..width]);
                ensure!(matches!(access, Access::Done), "region {region}, offset {offset:#x}: deferred");
                count += 1;
            }
        }
    }
    bench.serve_now()?;
    Ok(count)
}

/// Any registers with any values: whatever becomes of it, a reset mends it.
fn any_write(bench: &mut Bench<'_>) -> Result<u64, String> {
    let rounds = bench.profile.rounds;
    for _ in 0..rounds {
        if bench.rng.one_in(2) {
            bench.start()?;
        }
        for _ in 0..200 {
            let offset = bench.rng.below(register::CONFIG / 4) * 4;
            let value = match bench.rng.below(4) {
                0 => bench.rng.below(4) as u32,
                1 => 1 << bench.rng.below(32),
                2 => bench.driver.layout().desc as u32 + bench.rng.below(0x4000) as u32,
                _ => bench.rng.next_u64() as u32,
            };
            // Not waited for: a guest with several processors does not either.
            let _ = bench.driver.write_only(offset, value);
            if bench.rng.one_in(8) {
                bench.driver.step();
            }
        }
        bench.must_serve()?;
        let quiet = bench.driver.answer();
        ensure!(quiet == Answer::Ignored, "an answer to nothing: {quiet:?}");
    }
    Ok(rounds * 200)
}
