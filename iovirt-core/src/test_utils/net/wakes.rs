//! A queue that has something to tell gives its lane a turn: nobody polls it otherwise.

use super::{Bench, NetDriver, Rule, ensure, frame};
use crate::backend::{Backend, Mode, Queue};
use crate::dma::SgLimits;
use crate::request::Depth;
use crate::request::net::{NetOutput, NetRequest};
use crate::stage::Client;
use crate::worker::{Lane, Turn, Worker, WorkerConfig, WorkerContext};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub(super) const RULES: &[Rule] = &[("net/wakes-frames", frames), ("net/wakes-rest", rest)];

const TOKENS: u32 = 8;

/// What the lane and the rule share.
#[derive(Debug, Default)]
struct Shared {
    received: AtomicU64,
    drains: AtomicBool,
    rests: AtomicBool,
    refused: AtomicBool,
}

/// A receiving front-end as small as can be: it keeps tokens below, and sleeps.
struct Sleeper {
    client: Client<NetRequest, ()>,
    shared: Arc<Shared>,
    drained: bool,
}

impl Sleeper {
    fn post(&mut self, cx: &mut WorkerContext<'_>) {
        while let Some((tag, sg)) = self.client.begin() {
            self.client.submit(cx, NetRequest::receive(tag, 0, sg), ());
        }
        self.client.kick(cx);
    }
}

impl Lane for Sleeper {
    fn turn(&mut self, cx: &mut WorkerContext<'_>) -> Turn {
        let drains = self.shared.drains.load(Ordering::SeqCst);
        if drains && !self.drained {
            self.drained = true;
            self.client.queue().drain(cx);
        }
        let mut received = 0;
        self.client.poll(cx, |_, finished| received += u64::from(finished.output == NetOutput::Done));
        self.shared.received.fetch_add(received, Ordering::SeqCst);
        if !drains {
            self.post(cx);
        }
        if self.drained && self.client.mode() == Mode::Quiesced {
            self.shared.rests.store(true, Ordering::SeqCst);
            return Turn::Finished;
        }
        Turn::Idle
    }
}

/// A sleeper on a worker of its own, its tokens below; and what wakes its lane from outside.
fn sleeper(bench: &Bench<'_>) -> Result<(Worker, Arc<Shared>, NetDriver), String> {
    let backend = bench.backend();
    let sender = NetDriver::new(&backend, 0, TOKENS)?;
    let mut worker = Worker::new(WorkerConfig::default()).map_err(|error| error.to_string())?;
    let shared = Arc::<Shared>::default();
    let given = shared.clone();
    worker.handle().add_lane(move |cx| {
        let depth = Depth::new(TOKENS)?;
        let Ok(queue) = backend.open(cx, depth) else {
            given.refused.store(true, Ordering::SeqCst);
            return None;
        };
        let client = Client::new(cx, queue, depth, SgLimits::default());
        let mut sleeper = Sleeper { client, shared: given, drained: false };
        sleeper.post(cx);
        Some(Box::new(sleeper))
    });
    // The lane's first turns, and the time that a stage takes for the tokens.
    let since = Instant::now();
    for turn in 0.. {
        worker.run().map_err(|error| error.to_string())?;
        if turn > 4 && worker.next_deadline().is_none() {
            break;
        }
        ensure!(since.elapsed() < bench.profile.patience, "a stage goes on and on, with nothing sent");
    }
    ensure!(!shared.refused.load(Ordering::SeqCst), "open failed");
    Ok((worker, shared, sender))
}

fn frames(bench: &mut Bench<'_>) -> Result<u64, String> {
    let (mut worker, shared, mut sender) = sleeper(bench)?;
    for round in 0..bench.profile.rounds {
        let (before, since) = (shared.received.load(Ordering::SeqCst), Instant::now());
        sender.send([frame(round as u32, 60).as_slice()]);
        while shared.received.load(Ordering::SeqCst) == before || sender.awaited() > 0 {
            sender.poll();
            sender.worker().run().map_err(|error| error.to_string())?;
            worker.run_within(Duration::from_millis(1)).map_err(|error| error.to_string())?;
            ensure!(
                since.elapsed() < bench.profile.patience,
                "round {round}: a frame came, and the lane that has the tokens was not woken"
            );
        }
    }
    Ok(bench.profile.rounds)
}

fn rest(bench: &mut Bench<'_>) -> Result<u64, String> {
    for _ in 0..bench.profile.rounds.div_ceil(8) {
        let (mut worker, shared, mut sender) = sleeper(bench)?;
        shared.drains.store(true, Ordering::SeqCst);
        // A frame is what wakes the lane so that it hears of the drain; from there on it has to be woken by its queue.
        sender.send([frame(0, 60).as_slice()]);
        let since = Instant::now();
        while !shared.rests.load(Ordering::SeqCst) {
            sender.poll();
            sender.worker().run().map_err(|error| error.to_string())?;
            worker.run_within(Duration::from_millis(1)).map_err(|error| error.to_string())?;
            ensure!(
                since.elapsed() < bench.profile.patience,
                "the queue was drained, and its lane was not woken when it rested"
            );
        }
    }
    Ok(bench.profile.rounds.div_ceil(8))
}
