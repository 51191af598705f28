//! A queue that has something to tell gives its lane a turn: nobody polls it otherwise.
//!
//! The other rules poll again and again; these run the queue as a front-end does, in a lane that sleeps.

use super::{Bench, Rule, ensure, words};
use crate::backend::{Backend, Mode, Queue};
use crate::dma::SgLimits;
use crate::pipeline::BoxBackend;
use crate::request::Depth;
use crate::request::block::{BlockOp, BlockRequest};
use crate::stage::Client;
use crate::worker::{Lane, Turn, Worker, WorkerConfig, WorkerContext};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The rules of this module.
pub const RULES: &[Rule] = &[("wakes/completions", completions), ("wakes/rest", rest)];

const DEPTH: u32 = 8;

/// What the lane and the rule share.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    turns: u64,
    finished: u64,
    /// Requests to be finished in all.
    target: u64,
    /// Drains with requests in flight, and is done when the queue rests.
    drains: bool,
    error: Option<String>,
    done: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A front-end as small as can be.
struct Sleeper {
    client: Client<BlockRequest, ()>,
    shared: Arc<Shared>,
    block: u64,
    submitted: u64,
    drained: bool,
}

impl Sleeper {
    fn submit(&mut self, cx: &mut WorkerContext<'_>) {
        let Some((tag, mut sg)) = self.client.begin() else { return };
        // Host memory of the list's own: nothing of a guest is needed here.
        if self.submitted.is_multiple_of(4) || sg.push_host(self.block as usize).is_err() {
            self.client.submit(cx, BlockRequest::flush(tag, sg), ());
        } else {
            match BlockRequest::transfer(BlockOp::Read, tag, 0, sg) {
                Ok(request) => self.client.submit(cx, request, ()),
                Err(refused) => self.client.abandon(tag, refused.sg),
            }
        }
        self.submitted += 1;
    }
}

impl Lane for Sleeper {
    fn turn(&mut self, cx: &mut WorkerContext<'_>) -> Turn {
        let (target, drains) = {
            let mut state = self.shared.lock();
            state.turns += 1;
            (state.target, state.drains)
        };
        while self.submitted < target && self.client.in_flight() < DEPTH as usize {
            self.submit(cx);
        }
        self.client.kick(cx);
        if drains && !self.drained && self.submitted == target {
            self.drained = true;
            self.client.queue().drain(cx);
        }
        let finished = self.client.poll(cx, |_, _| ()) as u64;
        let mut state = self.shared.lock();
        state.finished += finished;
        let at_rest = !drains || self.client.mode() == Mode::Quiesced;
        if state.finished == target && at_rest {
            state.done = true;
            return Turn::Finished;
        }
        // What came home made room, which is this lane's own business; for all else the queue has to wake it.
        if finished > 0 && self.submitted < target { Turn::Again } else { Turn::Idle }
    }
}

fn sleep_through(bench: &Bench<'_>, backend: BoxBackend<BlockRequest>, state: State) -> Result<(), String> {
    let shared = Arc::new(Shared { state: Mutex::new(state) });
    let mut worker = Worker::new(WorkerConfig::default()).map_err(words)?;
    let given = shared.clone();
    worker.handle().add_lane(move |cx| {
        let depth = Depth::new(DEPTH)?;
        let block = u64::from(backend.caps().logical_block);
        match backend.open(cx, depth) {
            Ok(queue) => {
                let client = Client::new(cx, queue, depth, SgLimits::default());
                Some(Box::new(Sleeper { client, shared: given, block, submitted: 0, drained: false }))
            }
            Err(error) => {
                given.lock().error = Some(format!("open failed: {error}"));
                None
            }
        }
    });
    let (mut turns, mut since) = (0, Instant::now());
    loop {
        worker.run_within(bench.profile.patience).map_err(words)?;
        let state = shared.lock();
        if state.done {
            return Ok(());
        }
        if let Some(error) = &state.error {
            return Err(error.clone());
        }
        if state.turns > turns {
            (turns, since) = (state.turns, Instant::now());
        }
        let State { finished, target, .. } = *state;
        ensure!(
            since.elapsed() < bench.profile.patience,
            "the queue's lane was not woken: {finished} of {target} requests came home in {turns} turns"
        );
    }
}

fn completions(bench: &mut Bench<'_>) -> Result<u64, String> {
    let target = bench.profile.rounds * 4;
    sleep_through(bench, bench.backend(), State { target, ..State::default() })?;
    Ok(target)
}

fn rest(bench: &mut Bench<'_>) -> Result<u64, String> {
    let rounds = bench.profile.rounds.div_ceil(4);
    for round in 0..rounds {
        let target = round % u64::from(DEPTH);
        let state = State { target, drains: true, ..State::default() };
        sleep_through(bench, bench.backend(), state).map_err(|error| format!("round {round}: {error}"))?;
    }
    Ok(rounds)
}
