//! Floods of log lines, of work, and memory that changes while the device looks at it.

use super::driver::flag::INDIRECT;
use super::{Answer, Bench, Case, QueueSetup, Split, ensure, feature, register, status};
use crate::test_utils::rng::Rng;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tracing::span;
use tracing::subscriber::{Interest, with_default};

pub(super) const CASES: &[Case] =
    &[("log-flood", log_flood), ("work-is-bounded", work_is_bounded), ("memory-changes", memory_changes)];

/// Counts events.
struct Lines(Arc<AtomicUsize>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }
    fn register_callsite(&self, _: &'static tracing::Metadata<'static>) -> Interest {
        Interest::sometimes()
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// A guest that breaks its ring again and again does not fill the host's log. Only seen where the device works in the
/// thread of the driver.
fn log_flood(bench: &mut Bench<'_>) -> Result<u64, String> {
    let lines = Arc::new(AtomicUsize::new(0));
    with_default(Lines(lines.clone()), || {
        for round in 0..500 {
            bench.start()?;
            match round % 4 {
                0 => bench.driver.store(bench.driver.layout().avail + 2, 0x8000),
                1 => bench.driver.offer(0xffff),
                2 => bench.driver.write(register::QUEUE_READY, 0),
                _ => {
                    bench.driver.reset()?;
                    bench.driver.write(register::STATUS, status::DRIVER_OK);
                    continue;
                }
            }
            for _ in 0..10 {
                bench.driver.kick();
                bench.driver.step();
            }
        }
        Ok::<(), String>(())
    })?;
    let lines = lines.load(Ordering::Relaxed);
    ensure!(lines <= bench.profile.log_lines, "{lines} lines in the log");
    Ok(lines as u64)
}

/// One turn takes so many requests and no more, however many there are; all are served in the end.
fn work_is_bounded(bench: &mut Bench<'_>) -> Result<u64, String> {
    let layout = bench.driver.layout();
    bench.driver.write(register::QUEUE_SEL, bench.driver.layout().queue);
    let size = bench.driver.read(register::QUEUE_NUM_MAX).min(1024);
    bench.driver.start(feature::ALL, &QueueSetup::good(&layout, size))?;
    let split = Split { indirect: true, ..Split::whole() };
    let buffers = bench.driver.lay_out(&bench.profile.exchanges[0], &split, 0);
    for _ in 0..5 {
        // A device with a thread of its own is at work with the first chain, or right after the doorbell.
        let mut before = bench.driver.used_index();
        for head in 0..size as u16 {
            bench.driver.desc(head, (layout.table, 16 * buffers.len() as u32), INDIRECT, 0);
            bench.driver.offer(head);
        }
        bench.driver.kick();
        let end = before.wrapping_add(size as u16);
        let bound = bench.profile.step_bound;
        let mut most = 0;
        bench.driver.wait(|driver| {
            let now = driver.used_index();
            most = most.max(now.wrapping_sub(before));
            before = now;
            now == end
        })?;
        ensure!(bound.is_none_or(|bound| most <= bound), "{most} requests in one step, not {bound:?}");
        while bench.driver.outstanding() > 0 {
            ensure!(bench.driver.take_used().is_some(), "a chain is missing");
        }
    }
    Ok(5 * u64::from(size))
}

/// Another processor of the guest writes headers, descriptors and rings while the device reads them.
fn memory_changes(bench: &mut Bench<'_>) -> Result<u64, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let (mut rng, ended, layout) = (bench.rng.fork(), stop.clone(), bench.driver.layout());
    let view = bench.driver.target().space.view();
    let scribbler = std::thread::spawn(move || {
        while !ended.load(Ordering::Relaxed) {
            let (addr, bytes) = scribble(&mut rng, &layout);
            // A driver's memory is mapped.
            let _ = view.write(addr, &bytes);
        }
    });
    let tried = under_scribbling(bench);
    stop.store(true, Ordering::Relaxed);
    scribbler.join().map_err(|_| "the scribbler panicked")?;
    let tried = tried?;
    bench.must_serve()?;
    Ok(tried)
}

fn scribble(rng: &mut Rng, layout: &super::Layout) -> (u64, Vec<u8>) {
    let (from, len) = match rng.below(8) {
        0 => (layout.avail, 64),
        1 => (layout.used, 64),
        2 | 3 => (layout.desc, 512),
        4 | 5 => (layout.table, 256),
        _ => (layout.buffers, 600),
    };
    let addr = from + rng.below(len);
    let bytes = match rng.below(4) {
        0 => (layout.buffers + rng.below(4096)).to_le_bytes().to_vec(),
        1 => vec![rng.below(8) as u8],
        2 => (rng.below(1024) as u32).to_le_bytes().to_vec(),
        _ => (rng.next_u64() as u16).to_le_bytes().to_vec(),
    };
    (addr, bytes)
}

fn under_scribbling(bench: &mut Bench<'_>) -> Result<u64, String> {
    let rounds = bench.profile.rounds * 50;
    for round in 0..rounds {
        let needs_reset = bench.driver.status() & status::NEEDS_RESET != 0;
        if round == 0 || needs_reset {
            bench.start()?;
        }
        let exchanges = &bench.profile.exchanges;
        let exchange = &exchanges[bench.rng.index(exchanges.len())];
        let indirect = bench.rng.one_in(2);
        bench.driver.lay_out(exchange, &Split { indirect, ..Split::whole() }, 0);
        for _ in 0..bench.rng.between(1, 4) {
            bench.driver.offer(0);
        }
        bench.driver.kick();
        bench.driver.step();
        let _: Option<Answer> = bench.driver.take_used().map(|_| Answer::Ignored);
    }
    Ok(rounds)
}
