//! Resets, queues taken back, drains, and a memory map without the ring.

use super::{Answer, Bench, Case, QueueSetup, Split, ensure, feature, register, status};
use crate::dma::{MemoryMap, Region};
use crate::frontend::Access;

pub(super) const CASES: &[Case] = &[
    ("reset-in-the-middle-of-load", reset_under_load),
    ("reset-not-waited-for", reset_not_waited_for),
    ("reset-by-the-thousand", thousand_resets),
    ("queue-taken-back-under-load", taken_back),
    ("queue-taken-back-not-waited-for", taken_back_not_waited_for),
    ("queue-taken-back-then-reset", taken_back_then_reset),
    ("drain-and-resume", drain_and_resume),
    ("drain-of-a-broken-device", drain_broken),
    ("memory-map-without-the-ring", map_without_ring),
];

/// Starts the device and offers `count` requests in one batch, some of which it may take up.
fn load(bench: &mut Bench<'_>, count: u16) -> Result<(), String> {
    bench.start()?;
    bench.driver.lay_out(&bench.profile.exchanges[0], &Split { indirect: true, ..Split::whole() }, 0);
    for _ in 0..count {
        bench.driver.offer(0);
    }
    bench.driver.kick();
    for _ in 0..bench.rng.below(3) {
        bench.driver.step();
    }
    Ok(())
}

/// Whether the device leaves the driver's memory alone.
fn must_be_quiet(bench: &mut Bench<'_>) -> Result<(), String> {
    let layout = bench.driver.layout();
    let len = (layout.end - layout.desc) as usize;
    let before = bench.driver.get(layout.desc, len);
    bench.driver.kick();
    for _ in 0..bench.profile.idle_steps {
        bench.driver.step();
    }
    ensure!(bench.driver.get(layout.desc, len) == before, "the device wrote memory that it had given back");
    let pending = bench.driver.read(register::INTERRUPT_STATUS);
    ensure!(pending == 0, "an interrupt ({pending:#x}) after it was over");
    Ok(())
}

fn reset_under_load(bench: &mut Bench<'_>) -> Result<u64, String> {
    for _ in 0..bench.profile.rounds {
        let count = bench.rng.between(1, 16) as u16;
        load(bench, count)?;
        bench.driver.reset()?;
        must_be_quiet(bench)?;
    }
    Ok(bench.profile.rounds)
}

/// A driver that goes on at once: nothing it writes before the reset is over has any effect, and no ticket is left.
fn reset_not_waited_for(bench: &mut Bench<'_>) -> Result<u64, String> {
    for _ in 0..bench.profile.rounds {
        load(bench, 16)?;
        let mut tickets = Vec::new();
        for value in [0, status::ACKNOWLEDGE, 0, status::DRIVER | status::FEATURES_OK, status::DRIVER_OK, 0] {
            if let Access::Deferred(ticket) = bench.driver.write_only(register::STATUS, value) {
                tickets.push(ticket);
            }
        }
        for ticket in &tickets {
            bench.driver.wait_for(ticket);
        }
        // The last write may have found the reset over, and begun another.
        bench.driver.wait(|driver| driver.status() == 0)?;
        must_be_quiet(bench)?;
    }
    Ok(bench.profile.rounds)
}

/// Kilobytes of memory in use, and open descriptors.
fn usage() -> (u64, usize) {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident = pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    let descriptors = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    (resident * 4, descriptors)
}

/// Nothing grows: no memory, no descriptors, no lanes.
fn thousand_resets(bench: &mut Bench<'_>) -> Result<u64, String> {
    let cycle = |bench: &mut Bench<'_>| {
        load(bench, 16)?;
        if bench.rng.one_in(4) {
            bench.driver.desc(0, (u64::MAX, 16), 0, 0);
        }
        bench.driver.reset()
    };
    for _ in 0..500 {
        cycle(bench)?;
    }
    let lanes = |bench: &mut Bench<'_>| bench.driver.target().lanes.as_ref().map(|lanes| lanes());
    let (before, lanes_before) = (usage(), lanes(bench));
    for _ in 0..3000 {
        cycle(bench)?;
    }
    let (after, lanes_after) = (usage(), lanes(bench));
    ensure!(lanes_after == lanes_before, "lanes: {lanes_before:?} before, {lanes_after:?} after");
    // Other tests run in the same process; what is left behind by each reset would be more.
    ensure!(after.0 < before.0 + 3000, "memory: {} KiB before, {} KiB after", before.0, after.0);
    ensure!(after.1 < before.1 + 100, "descriptors: {} before, {} after", before.1, after.1);
    Ok(3000)
}

/// Makes the queue ready again, with fresh rings.
fn give_back(bench: &mut Bench<'_>) {
    let layout = bench.driver.layout();
    bench.driver.set_queue(&QueueSetup::good(&layout, 16));
}

fn taken_back(bench: &mut Bench<'_>) -> Result<u64, String> {
    for _ in 0..bench.profile.rounds {
        load(bench, 16)?;
        bench.driver.write(register::QUEUE_READY, 0);
        ensure!(bench.driver.read(register::QUEUE_READY) == 0, "the queue is still ready");
        bench.driver.write(register::INTERRUPT_ACK, 3);
        must_be_quiet(bench)?;
        give_back(bench);
        bench.serve_now().map_err(|error| format!("on the queue that was given back: {error}"))?;
    }
    Ok(bench.profile.rounds)
}

/// The queue is set up again before the device has let go of it.
fn taken_back_not_waited_for(bench: &mut Bench<'_>) -> Result<u64, String> {
    for _ in 0..bench.profile.rounds {
        load(bench, 16)?;
        for _ in 0..bench.rng.between(1, 3) {
            let _ = bench.driver.write_only(register::QUEUE_READY, 0);
            let _ = bench.driver.write_only(register::QUEUE_READY, 1);
        }
        let ticket = bench.driver.write_only(register::QUEUE_READY, 0);
        if let Access::Deferred(ticket) = ticket {
            bench.driver.wait_for(&ticket);
        }
        bench.driver.write(register::INTERRUPT_ACK, 3);
        must_be_quiet(bench)?;
        give_back(bench);
        bench.serve_now()?;
    }
    Ok(bench.profile.rounds)
}

fn taken_back_then_reset(bench: &mut Bench<'_>) -> Result<u64, String> {
    for _ in 0..bench.profile.rounds {
        load(bench, 16)?;
        let _ = bench.driver.write_only(register::QUEUE_READY, 0);
        bench.driver.reset()?;
        must_be_quiet(bench)?;
    }
    Ok(bench.profile.rounds)
}

fn drain_and_resume(bench: &mut Bench<'_>) -> Result<u64, String> {
    bench.start()?;
    for _ in 0..10 {
        let ticket = bench.driver.frontend().drain();
        bench.driver.wait_for(&ticket);
        bench.driver.lay_out(&bench.profile.exchanges[0], &Split::whole(), 0);
        bench.driver.offer(0);
        bench.driver.kick();
        let answer = bench.driver.answer();
        ensure!(answer == Answer::Ignored, "at rest: the answer was {answer:?}");
        // A guest does not repeat its doorbell.
        let ticket = bench.driver.frontend().resume();
        bench.driver.wait_for(&ticket);
        let answer = bench.driver.answer();
        ensure!(answer == Answer::Returned(0), "resumed: the answer was {answer:?}");
    }
    // A reset of a device at rest, and one that is overtaken by the way back.
    let _ = bench.driver.frontend().drain();
    bench.driver.reset()?;
    let ticket = bench.driver.frontend().resume();
    bench.driver.wait_for(&ticket);
    Ok(11)
}

fn drain_broken(bench: &mut Bench<'_>) -> Result<u64, String> {
    for _ in 0..10 {
        load(bench, 16)?;
        bench.driver.store(bench.driver.layout().avail + 2, 0x8000);
        bench.driver.kick();
        bench.driver.wait(|driver| driver.status() & status::NEEDS_RESET != 0)?;
        let ticket = bench.driver.frontend().drain();
        bench.driver.wait_for(&ticket);
        bench.driver.frontend().save().map_err(|error| format!("a broken device at rest: {error}"))?;
        let ticket = bench.driver.frontend().resume();
        bench.driver.wait_for(&ticket);
    }
    Ok(10)
}

fn map_without_ring(bench: &mut Bench<'_>) -> Result<u64, String> {
    let words = |error: crate::dma::MapError| error.to_string();
    let space = bench.driver.target().space.clone();
    for round in 0..10 {
        load(bench, if round % 2 == 0 { 0 } else { 16 })?;
        let good = space.map();
        let elsewhere = Region::anonymous(bench.driver.layout().end + (1 << 40), 4096).map_err(words)?;
        space.replace(MemoryMap::new(vec![elsewhere]).map_err(words)?);
        bench.driver.kick();
        bench.driver.wait(|driver| driver.status() & status::NEEDS_RESET != 0)?;
        // Set up where nothing is: refused as well.
        let layout = bench.driver.layout();
        bench.driver.start(feature::ALL, &QueueSetup::good(&layout, 16))?;
        bench.driver.wait(|driver| driver.status() & status::NEEDS_RESET != 0)?;
        space.replace(MemoryMap::new(good.regions().to_vec()).map_err(words)?);
        bench.driver.refresh();
        bench.must_serve()?;
    }
    Ok(10)
}
