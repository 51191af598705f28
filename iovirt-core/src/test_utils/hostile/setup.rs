//! Features, status, queue sizes and addresses.

use super::{Answer, Bench, Case, Layout, QueueSetup, RawDriver, Split, ensure, feature, register, status};

pub(super) const CASES: &[Case] = &[
    ("features-unknown", unknown_features),
    ("features-without-version-1", without_version_1),
    ("driver-ok-without-features-ok", without_features_ok),
    ("queue-sizes", sizes),
    ("queue-addresses", addresses),
    ("queue-areas-overlap", overlap),
    ("queue-rewritten-while-live", rewritten),
    ("queue-that-does-not-exist", no_such_queue),
    ("queue-not-ready", not_ready),
    ("driver-ok-twice", twice),
    ("doorbell-before-driver-ok", early_doorbell),
];

/// The status after that choice of features.
fn try_features(driver: &mut RawDriver, features: u64) -> Result<u32, String> {
    driver.reset()?;
    driver.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    driver.choose_features(features);
    driver.write(register::STATUS, status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    Ok(driver.status())
}

fn unknown_features(bench: &mut Bench<'_>) -> Result<u64, String> {
    let offered = bench.driver.offered_features();
    let mut count = 0;
    for bit in (0..64).filter(|bit| offered >> bit & 1 == 0) {
        let found = try_features(&mut bench.driver, offered | 1 << bit)?;
        ensure!(found & status::FEATURES_OK == 0, "feature {bit}, which was not offered, was accepted");
        count += 1;
    }
    // Bits that no register holds are not there.
    bench.driver.write(register::DEVICE_FEATURES_SEL, 2);
    ensure!(bench.driver.read(register::DEVICE_FEATURES) == 0, "features beyond bit 63");
    Ok(count)
}

fn without_version_1(bench: &mut Bench<'_>) -> Result<u64, String> {
    let offered = bench.driver.offered_features();
    for features in [0, offered & !feature::VERSION_1] {
        let found = try_features(&mut bench.driver, features)?;
        ensure!(found & status::FEATURES_OK == 0, "features {features:#x} were accepted");
    }
    let found = try_features(&mut bench.driver, feature::VERSION_1)?;
    ensure!(found & status::FEATURES_OK != 0, "version 1 alone was refused");
    Ok(3)
}

fn without_features_ok(bench: &mut Bench<'_>) -> Result<u64, String> {
    let layout = bench.driver.layout();
    for before in [0, status::ACKNOWLEDGE, status::ACKNOWLEDGE | status::DRIVER] {
        bench.driver.reset()?;
        bench.driver.write(register::STATUS, before);
        bench.driver.set_queue(&QueueSetup::good(&layout, 16));
        bench.driver.write(register::STATUS, before | status::DRIVER_OK);
        bench.driver.lay_out(&bench.profile.exchanges[0], &Split::whole(), 0);
        bench.driver.offer(0);
        bench.driver.kick();
        bench.expect(&format!("DRIVER_OK after {before:#x}"), Answer::NeedsReset)?;
    }
    Ok(3)
}

/// Sets the queue up like that; the answer to a request on it.
fn attempt(bench: &mut Bench<'_>, setup: &QueueSetup) -> Result<Answer, String> {
    bench.driver.start(feature::ALL, setup)?;
    bench.driver.lay_out(&bench.profile.exchanges[0], &Split { indirect: true, ..Split::whole() }, 0);
    bench.driver.offer(0);
    bench.driver.kick();
    Ok(bench.driver.answer())
}

fn sizes(bench: &mut Bench<'_>) -> Result<u64, String> {
    let layout = bench.driver.layout();
    bench.driver.write(register::QUEUE_SEL, bench.driver.layout().queue);
    let max = bench.driver.read(register::QUEUE_NUM_MAX);
    let bad = [0, 3, 5, 15, max - 1, max + 1, max * 2, 0x8001, 65535, 65536, 65552, 1 << 31, u32::MAX];
    for size in bad {
        let answer = attempt(bench, &QueueSetup::good(&layout, size))?;
        ensure!(answer == Answer::NeedsReset, "a queue of {size}: the answer was {answer:?}");
    }
    for size in [1, 2, max.min(1024)] {
        let answer = attempt(bench, &QueueSetup::good(&layout, size))?;
        ensure!(answer == Answer::Returned(0), "a queue of {size}: the answer was {answer:?}");
    }
    Ok(bad.len() as u64 + 3)
}

fn addresses(bench: &mut Bench<'_>) -> Result<u64, String> {
    let layout = bench.driver.layout();
    let mut count = 0;
    for (area, align) in [(0, 16_u64), (1, 2), (2, 4)] {
        let good = [layout.desc, layout.avail, layout.used][area];
        let mut bad = vec![good + 1, good + align / 2, u64::MAX, u64::MAX - align + 1, 1 << 63, 1 << 47];
        bad.extend([(u64::MAX - 0x20) & !(align - 1), !0xfff]);
        for addr in bad {
            let mut setup = QueueSetup::good(&layout, 16);
            *[&mut setup.desc, &mut setup.avail, &mut setup.used][area] = addr;
            let answer = attempt(bench, &setup)?;
            ensure!(answer == Answer::NeedsReset, "area {area} at {addr:#x}: the answer was {answer:?}");
            count += 1;
        }
    }
    Ok(count)
}

/// Areas on top of one another break the driver's own data, not the device.
fn overlap(bench: &mut Bench<'_>) -> Result<u64, String> {
    let layout = bench.driver.layout();
    let Layout { desc, avail, used, buffers, .. } = layout;
    let setups = [(desc, avail, desc), (desc, avail, avail & !3), (used, used, used), (desc, avail, buffers)];
    for (desc, avail, used) in setups {
        attempt(bench, &QueueSetup { desc, avail, used, ..QueueSetup::good(&layout, 16) })?;
        bench.must_serve()?;
    }
    Ok(setups.len() as u64)
}

/// Registers of a queue that is ready are what they were.
fn rewritten(bench: &mut Bench<'_>) -> Result<u64, String> {
    bench.start()?;
    bench.serve_now()?;
    let values = [0, 1, 7, 0x8000, 0x1_0000, 0xffff_fff0, u32::MAX];
    for value in values {
        for offset in
            [register::QUEUE_NUM, register::QUEUE_DESC, register::QUEUE_DRIVER, register::QUEUE_DEVICE]
        {
            bench.driver.write(register::QUEUE_SEL, bench.driver.layout().queue);
            bench.driver.write(offset, value);
            bench.driver.write(offset + 4, value & !1);
        }
        bench.driver.write(register::QUEUE_READY, 1);
        bench.serve_now().map_err(|error| format!("after writing {value:#x}: {error}"))?;
    }
    Ok(values.len() as u64)
}

fn no_such_queue(bench: &mut Bench<'_>) -> Result<u64, String> {
    let layout = bench.driver.layout();
    let queues = [64, 65, 0x100, 0xffff, 0x1_0000, 0x8000_0000, u32::MAX];
    bench.start()?;
    for queue in queues {
        bench.driver.write(register::QUEUE_SEL, queue);
        ensure!(bench.driver.read(register::QUEUE_NUM_MAX) == 0, "there is a queue {queue}");
        bench.driver.place_queue(&QueueSetup { queue, ..QueueSetup::good(&layout, 16) });
        bench.driver.write(register::QUEUE_READY, 1);
        ensure!(bench.driver.read(register::QUEUE_READY) == 0, "queue {queue} is ready");
        bench.driver.write(register::QUEUE_READY, 0);
        bench.driver.notify(queue);
        let answer = bench.driver.answer();
        ensure!(answer == Answer::Ignored, "queue {queue}: the answer was {answer:?}");
        bench.serve_now()?;
    }
    Ok(queues.len() as u64)
}

fn not_ready(bench: &mut Bench<'_>) -> Result<u64, String> {
    let layout = bench.driver.layout();
    bench.driver.negotiate(feature::ALL)?;
    bench.driver.place_queue(&QueueSetup::good(&layout, 16));
    bench.driver.forget_rings(16);
    bench.driver.driver_ok();
    bench.driver.lay_out(&bench.profile.exchanges[0], &Split::whole(), 0);
    bench.driver.offer(0);
    bench.driver.kick();
    let answer = bench.driver.answer();
    ensure!(answer == Answer::Ignored, "a queue that is not ready: the answer was {answer:?}");
    // Made ready late, it works.
    bench.driver.write(register::QUEUE_READY, 1);
    bench.driver.kick();
    bench.expect("a queue made ready late", Answer::Returned(0))?;
    Ok(2)
}

fn twice(bench: &mut Bench<'_>) -> Result<u64, String> {
    bench.start()?;
    for _ in 0..10 {
        bench.driver.driver_ok();
        bench.serve_now()?;
        // Bits can only be added.
        bench.driver.write(register::STATUS, status::ACKNOWLEDGE);
        bench.serve_now()?;
    }
    Ok(20)
}

/// Chains that were there before the driver was ready are served once it is.
fn early_doorbell(bench: &mut Bench<'_>) -> Result<u64, String> {
    let layout = bench.driver.layout();
    bench.driver.negotiate(feature::ALL)?;
    bench.driver.set_queue(&QueueSetup::good(&layout, 16));
    bench.driver.lay_out(&bench.profile.exchanges[0], &Split::whole(), 0);
    bench.driver.offer(0);
    bench.driver.kick();
    let answer = bench.driver.answer();
    ensure!(answer == Answer::Ignored, "before DRIVER_OK: the answer was {answer:?}");
    bench.driver.driver_ok();
    bench.expect("after DRIVER_OK", Answer::Returned(0))?;
    Ok(1)
}
