//! The client: keeps a number of requests in flight for a while, and counts.

use std::time::{Duration, Instant};

use vhost_user_driver::{BlkQueue, BlkRequest, Operation, Wait};

use super::histogram::Histogram;
use super::points::{Client, Load, Sample};
use crate::error::{Context, Error, Result};

/// A server that answers nothing for so long does not work.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a polling client looks before it looks at the clock.
const LOOKS: u32 = 64;

/// How long each point is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// Before the measurement.
    pub warm_up: Duration,
    /// The measurement itself.
    pub measured: Duration,
}

/// Places on the disk, at random or one behind the other.
#[derive(Debug)]
struct Places {
    random: bool,
    state: u64,
    count: u64,
    sectors: u64,
}

impl Places {
    fn new(load: Load, disk: u64) -> Self {
        let bytes = u64::from(load.access.bytes());
        Self {
            random: load.access.is_random(),
            state: 0x9e37_79b9_7f4a_7c15,
            count: disk / bytes,
            sectors: bytes / 512,
        }
    }

    /// The next sector.
    #[inline]
    fn next(&mut self) -> u64 {
        if self.random {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            // The upper half of a product spreads 64 random bits over the places.
            ((u128::from(self.state) * u128::from(self.count)) >> 64) as u64 * self.sectors
        } else {
            self.state = if self.state + 1 < self.count { self.state + 1 } else { 0 };
            self.state * self.sectors
        }
    }
}

/// One load at work.
struct Run<'a> {
    queue: &'a mut BlkQueue,
    load: Load,
    places: Places,
    clock: Instant,
    /// When each slot was published.
    sent: Vec<u64>,
    /// Slots to publish together.
    batch: Vec<u16>,
    latencies: Histogram,
}

/// Runs one load on a disk of so many bytes; `cpu` tells the server's processor time.
pub(crate) fn measure(
    queue: &mut BlkQueue,
    load: Load,
    disk: u64,
    span: Span,
    cpu: &dyn Fn() -> Result<Duration>,
) -> Result<Sample> {
    if queue.slots() < load.depth {
        return Err(Error::new(format!("{} requests in flight at most, not {}", queue.slots(), load.depth)));
    }
    let slots = usize::from(queue.slots());
    let mut run = Run {
        queue,
        load,
        places: Places::new(load, disk),
        clock: Instant::now(),
        sent: vec![0; slots],
        batch: Vec::with_capacity(slots),
        latencies: Histogram::new(),
    };
    for slot in 0..load.depth {
        run.submit(slot);
    }
    run.publish()?;
    run.until(span.warm_up)?;
    run.latencies.clear();
    let begin = (run.clock.elapsed(), cpu()?, run.queue.queue().notifications());
    run.until(begin.0 + span.measured)?;
    let end = (run.clock.elapsed(), cpu()?, run.queue.queue().notifications());
    let sample = {
        let requests = run.latencies.total().max(1) as f64;
        let each = |count: fn(&[u64; 2]) -> u64| (count(&end.2) - count(&begin.2)) as f64 / requests;
        Sample {
            iops: run.latencies.total() as f64 / end.0.saturating_sub(begin.0).as_secs_f64(),
            p50: run.latencies.quantile(0.5),
            p99: run.latencies.quantile(0.99),
            cpu: end.1.saturating_sub(begin.1).as_nanos() as f64 / requests,
            kicks: each(|[kicks, _]| *kicks),
            calls: each(|[_, calls]| *calls),
        }
    };
    run.finish()?;
    Ok(sample)
}

impl Run<'_> {
    #[inline]
    fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    #[inline]
    fn submit(&mut self, slot: u16) {
        let operation = if self.load.access.reads() { Operation::Read } else { Operation::Write };
        let sector = self.places.next();
        self.queue.submit(slot, BlkRequest { operation, sector, len: self.load.access.bytes() });
        self.batch.push(slot);
    }

    /// Lets the server see the batch.
    #[inline]
    fn publish(&mut self) -> Result<()> {
        let now = self.now();
        for slot in self.batch.drain(..) {
            self.sent[usize::from(slot)] = now;
        }
        self.queue.publish().context("the client")
    }

    /// Keeps the requests in flight until that time.
    fn until(&mut self, end: Duration) -> Result<()> {
        let end = end.as_nanos() as u64;
        loop {
            if !self.look()? {
                if self.now() >= end {
                    return Ok(());
                }
                continue;
            }
            let now = self.now();
            // No more than there are slots in one turn, so that what is new is published.
            for _ in 0..self.load.depth {
                let Some(slot) = self.complete()? else { break };
                self.latencies.add(now - self.sent[usize::from(slot)]);
                self.submit(slot);
            }
            self.publish()?;
            if now >= end {
                return Ok(());
            }
        }
    }

    /// Waits for a completion in the client's way, for a while if it polls.
    #[inline]
    fn look(&mut self) -> Result<bool> {
        if self.queue.has_completions() {
            return Ok(true);
        }
        match self.load.client {
            Client::Sleeping => match self.queue.wait(PATIENCE).context("the client")? {
                Wait::Ready => Ok(self.queue.has_completions()),
                Wait::Gone => Err(Error::new("the server is gone")),
                Wait::TimedOut => Err(Error::new("the server does not answer")),
            },
            Client::Polling => {
                self.queue.queue_mut().ring_mut().refuse_interrupts();
                for _ in 0..LOOKS {
                    if self.queue.has_completions() {
                        return Ok(true);
                    }
                    std::hint::spin_loop();
                }
                Ok(false)
            }
        }
    }

    #[inline]
    fn complete(&mut self) -> Result<Option<u16>> {
        match self.queue.complete().context("the client")? {
            Some(done) if done.status == 0 => Ok(Some(done.slot)),
            Some(done) => Err(Error::new(format!("the server answered with status {}", done.status))),
            None => Ok(None),
        }
    }

    /// Waits for what is in flight.
    fn finish(self) -> Result<()> {
        while self.queue.queue().ring().in_flight() > 0 {
            self.queue.next(PATIENCE).context("the last requests")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench_peers::points::Access;

    #[test]
    fn places_are_on_the_disk_and_sequential_ones_follow_each_other() {
        let load = |access| Load { client: Client::Polling, access, depth: 1 };
        let disk = 4 << 20;
        let mut random = Places::new(load(Access::RandomRead), disk);
        let mut seen = vec![false; 1024];
        for _ in 0..20_000 {
            let sector = random.next();
            assert_eq!(sector % 8, 0);
            seen[(sector / 8) as usize] = true;
        }
        assert!(seen.iter().all(|seen| *seen), "every place is met");
        let mut sequential = Places::new(load(Access::SequentialWrite), disk);
        let sectors: Vec<u64> = (0..40).map(|_| sequential.next()).collect();
        assert!(sectors.windows(2).all(|two| two[1] == (two[0] + 256) % 8192), "{sectors:?}");
    }
}
