//! Saved state that was changed on the way.

use super::{Bench, Case, ensure};

pub(super) const CASES: &[Case] = &[
    ("saved-state-flipped", flipped),
    ("saved-state-mended", mended),
    ("saved-state-restored-twice", twice),
];

/// Saves the device at rest, before and after it has served.
fn save(bench: &mut Bench<'_>, served: bool) -> Result<Vec<u8>, String> {
    bench.start()?;
    if served {
        bench.serve_now()?;
    }
    let ticket = bench.driver.frontend().drain();
    bench.driver.wait_for(&ticket);
    bench.driver.frontend().save().map_err(|error| error.to_string())
}

/// Cut short, or with any bit the other way: refused, and the device is as before.
fn flipped(bench: &mut Bench<'_>) -> Result<u64, String> {
    let good = save(bench, true)?;
    bench.renew();
    for cut in 0..good.len() {
        ensure!(bench.driver.frontend().restore(&good[..cut]).is_err(), "cut at {cut}: restored");
    }
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        ensure!(bench.driver.frontend().restore(&bad).is_err(), "bit {bit}: restored");
    }
    Ok((good.len() * 9) as u64)
}

/// The same with a checksum that fits: it may be restored, and then the device may need a reset, but nothing worse.
fn mended(bench: &mut Bench<'_>) -> Result<u64, String> {
    let mut count = 0;
    for served in [false, true] {
        let good = save(bench, served)?;
        let payload = payload_at(&good);
        bench.renew();
        for at in payload..good.len() {
            for flip in [0x01, 0x10, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                mend(&mut bad, payload);
                if bench.driver.frontend().restore(&bad).is_ok() {
                    go_on(bench).map_err(|error| format!("byte {at} ^ {flip:#x}: {error}"))?;
                    bench.renew();
                }
                count += 1;
            }
        }
    }
    Ok(count)
}

/// Where the payload of an envelope begins; see [`state`](crate::state).
fn payload_at(envelope: &[u8]) -> usize {
    4 + 1 + usize::from(envelope[4]) + 2 + 4 + 4
}

fn mend(envelope: &mut [u8], payload: usize) {
    let crc = crc32fast::hash(&envelope[payload..]);
    envelope[payload - 4..payload].copy_from_slice(&crc.to_le_bytes());
}

/// Resumes what was restored, rings its doorbell, and sees that it still can be drained, saved and reset.
fn go_on(bench: &mut Bench<'_>) -> Result<(), String> {
    resume(bench);
    for queue in 0..3 {
        bench.driver.notify(queue);
        bench.driver.step();
    }
    let ticket = bench.driver.frontend().drain();
    bench.driver.wait_for(&ticket);
    let saved = bench.driver.frontend().save();
    saved.map_err(|error| format!("it cannot be saved again: {error}"))?;
    resume(bench);
    bench.must_serve()
}

/// Only the embedder can lift its own hold; a driver's reset does not.
fn resume(bench: &mut Bench<'_>) {
    let ticket = bench.driver.frontend().resume();
    bench.driver.wait_for(&ticket);
}

/// Only a device that is not in use can be restored.
fn twice(bench: &mut Bench<'_>) -> Result<u64, String> {
    let good = save(bench, false)?;
    ensure!(bench.driver.frontend().restore(&good).is_err(), "restored into a device in use");
    resume(bench);
    bench.serve_now()?;
    bench.renew();
    bench.driver.frontend().restore(&good).map_err(|error| error.to_string())?;
    ensure!(bench.driver.frontend().restore(&good).is_err(), "restored a second time");
    let again = bench.driver.frontend().save().map_err(|error| error.to_string())?;
    ensure!(again == good, "what was restored is not what was saved");
    resume(bench);
    Ok(3)
}
