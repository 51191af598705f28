//! A network for tests: what is sent on a pair is received on it, at once.

use super::NetSabotage;
use crate::backend::{Backend, Mode, Queue};
use crate::dma::{Access, DmaSpace, SgList};
use crate::error::BackendError;
use crate::pipeline::{BoxBackend, EventListener, Listeners, Stages};
use crate::request::net::{
    MacAddr, NetCaps, NetError, NetOp, NetOutput, NetRequest, Offload, Offloads, Segments, add_checksum,
};
use crate::request::{Completion, Completions, Depth, Request};
use crate::state::{StageStates, StateError};
use crate::worker::{LaneWaker, WorkerContext};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Of how many requests a [`NetSabotage`] that hits some hits one.
const SOME: u64 = 10;

/// How a [`Wire`] is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireConfig {
    /// The largest payload of a frame in bytes.
    pub mtu: u16,
    /// Pairs of queues.
    pub pairs: u16,
    /// The promise to break.
    pub sabotage: Option<NetSabotage>,
}

impl Default for WireConfig {
    fn default() -> Self {
        Self { mtu: 1500, pairs: 2, sabotage: None }
    }
}

/// A network that gives back what it is sent, honest or broken. A frame that finds no token is lost.
#[derive(Debug)]
pub struct Wire {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: WireConfig,
    caps: NetCaps,
    state: Mutex<State>,
    listeners: Listeners,
    /// Where a broken wire puts frames.
    elsewhere: DmaSpace,
}

#[derive(Debug, Default)]
struct State {
    pairs: Vec<Pair>,
    planes: u64,
    /// How often it was asked for its capabilities.
    asked: u8,
    /// The frame before, as a broken wire keeps it.
    before: Vec<u8>,
    /// Requests of data planes that are gone, as a broken wire keeps them.
    kept: Vec<NetRequest>,
}

#[derive(Debug, Default)]
struct Pair {
    receiver: Option<(u64, LaneWaker)>,
    tokens: VecDeque<NetRequest>,
    arrived: Vec<NetRequest>,
}

impl Wire {
    /// A wire.
    ///
    /// # Panics
    /// Where the host has no page of memory left.
    pub fn new(config: WireConfig) -> Self {
        let pairs = (0..config.pairs).map(|_| Pair::default()).collect();
        let elsewhere = DmaSpace::anonymous(&[(0, 1 << 17)]).expect("a little memory");
        Self {
            shared: Arc::new(Shared {
                config,
                caps: NetCaps {
                    tx_offloads: Offloads::all(),
                    rx_offloads: Offloads::all(),
                    ..NetCaps::new(config.mtu, config.pairs)
                },
                state: Mutex::new(State { pairs, ..State::default() }),
                listeners: Listeners::default(),
                elsewhere,
            }),
        }
    }

    /// The wire as a boxed back-end.
    pub fn boxed(config: WireConfig) -> BoxBackend<NetRequest> {
        BoxBackend::new(Self::new(config))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has(&self, sabotage: NetSabotage) -> bool {
        self.config.sabotage == Some(sabotage)
    }
}

impl Backend<NetRequest> for Wire {
    type Queue = WireQueue;

    fn caps(&self) -> Arc<NetCaps> {
        let mut caps = self.shared.caps.clone();
        if self.shared.has(NetSabotage::ImpossibleMtu) {
            caps.mtu = NetCaps::MIN_MTU - 1;
        }
        if self.shared.has(NetSabotage::ChangesItsMind) {
            let mut state = self.shared.lock();
            state.asked = state.asked.wrapping_add(1);
            caps.mac = Some(MacAddr([2, 0, 0, 0, 0, state.asked]));
        }
        Arc::new(caps)
    }

    fn open(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> Result<WireQueue, BackendError> {
        let mut state = self.shared.lock();
        state.planes += 1;
        Ok(WireQueue {
            shared: self.shared.clone(),
            me: state.planes,
            waker: cx.waker(),
            depth,
            pair: None,
            lent: 0,
            done: Vec::new(),
            draining: false,
            drained: false,
            unseen: false,
            submitted: 0,
        })
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push(if self.shared.has(NetSabotage::NamesItselfBadly) { "The Wire" } else { "wire" });
    }

    fn subscribe(&self, listener: &Arc<dyn EventListener>) {
        self.shared.listeners.add(listener);
    }

    fn save(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }

    fn restore(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }
}

/// The data plane of a [`Wire`].
#[derive(Debug)]
pub struct WireQueue {
    shared: Arc<Shared>,
    me: u64,
    waker: LaneWaker,
    depth: Depth,
    pair: Option<u16>,
    /// Tokens that the pair has.
    lent: usize,
    done: Vec<Completion<NetRequest>>,
    draining: bool,
    drained: bool,
    /// It rests, and a broken wire will see so at its next poll.
    unseen: bool,
    submitted: u64,
}

impl WireQueue {
    fn has(&self, sabotage: NetSabotage) -> bool {
        self.shared.has(sabotage)
    }

    fn finish(&mut self, request: NetRequest, result: Result<(), NetError>) {
        let output = result.map_or_else(NetOutput::Failed, |()| NetOutput::Done);
        self.done.push(Completion { request, output });
    }

    fn check(&self, request: &NetRequest) -> Result<(), NetError> {
        let caps = &self.shared.caps;
        let longest = request.sg().len() == u64::from(caps.max_frame);
        match caps.check(request) {
            _ if self.pair.is_some_and(|pair| pair != request.pair()) => Err(NetError::Unsupported),
            Ok(()) if longest && self.has(NetSabotage::RefusesLongest) => Err(NetError::BadLength),
            result => result,
        }
    }

    /// Whether a broken wire completes the request all the same.
    fn forgives(&self, error: NetError) -> bool {
        match error {
            NetError::BadLength => self.has(NetSabotage::TakesAnyLength),
            NetError::Unsupported => self.has(NetSabotage::AcceptsUnsupported),
            _ => false,
        }
    }

    fn post(&mut self, token: NetRequest) {
        let deaf = self.drained && self.has(NetSabotage::DeafAfterDrain);
        if self.draining && !self.has(NetSabotage::KeepsNewTokens) {
            return self.finish(token, Err(NetError::Aborted));
        }
        if self.has(NetSabotage::CompletesEmptyTokens) {
            return self.finish(token, Ok(()));
        }
        let mut state = self.shared.lock();
        let Pair { receiver, tokens, .. } = &mut state.pairs[usize::from(token.pair())];
        let (receiver, _) = receiver.get_or_insert_with(|| (self.me, self.waker.clone()));
        let taken = *receiver != self.me;
        if taken {
            drop(state);
            return self.finish(token, Err(NetError::Unsupported));
        }
        // A token that is out of reach waits for ever.
        if deaf {
            state.kept.push(token);
        } else {
            tokens.push_back(token);
        }
        self.lent += 1;
    }

    fn carry(&mut self, request: &NetRequest) {
        let mut frame = vec![0; request.sg().len() as usize];
        // The buffer is as long as the list, so nothing is out of range.
        let _ = request.sg().copy_to(0, &mut frame);
        let mut state = self.shared.lock();
        self.spoil(&mut state, &mut frame);
        let pair = if self.has(NetSabotage::MixesPairs) { 0 } else { usize::from(request.pair()) };
        let pair = &mut state.pairs[pair];
        let Some(token) = pair.tokens.front() else { return };
        let offload = request.offload();
        let accepted = if self.has(NetSabotage::LeavesToAnybody) { Offloads::all() } else { token.accepts() };
        if offload.check(frame.len() as u64).is_ok_and(|needed| accepted.contains(needed)) {
            let left = if self.has(NetSabotage::ForgetsOffloads) { Offload::default() } else { offload };
            return self.give(pair, &frame, left);
        }
        for frame in finished(frame, offload) {
            self.give(pair, &frame, Offload::default());
        }
    }

    /// Gives a frame to the next token.
    fn give(&self, pair: &mut Pair, frame: &[u8], left: Offload) {
        let Pair { receiver, tokens, arrived } = pair;
        let Some(mut token) = tokens.pop_front() else { return };
        token.set_offload(left);
        let sg = token.sg_mut();
        let filled = if self.has(NetSabotage::GivesGuestMemory) {
            sg.push(&self.shared.elsewhere.view(), 0, frame.len() as u64, Access::Write)
        } else {
            sg.push_host(frame.len())
        };
        if filled.and_then(|()| sg.copy_from(0, frame)).is_err() {
            // The token's list is smaller than the longest frame: the frame is lost, the token is not.
            token.renew();
            return tokens.push_front(token);
        }
        arrived.push(token);
        if let [.., one, two] = arrived.as_mut_slice()
            && self.has(NetSabotage::ReordersFrames)
        {
            std::mem::swap(one, two);
        }
        if let Some((_, waker)) = receiver.as_ref().filter(|_| !self.has(NetSabotage::ForgetsToWake)) {
            waker.wake();
        }
    }

    fn spoil(&self, state: &mut State, frame: &mut Vec<u8>) {
        match self.shared.config.sabotage {
            Some(NetSabotage::CutsFrames) => frame.truncate(frame.len() - 1),
            Some(NetSabotage::ForgetsSegments) => {
                let second = frame.len() / 2;
                let before = std::mem::replace(&mut state.before, frame.clone());
                let common = frame.len().min(before.len()).max(second);
                if before.len() >= common {
                    frame[second..common].copy_from_slice(&before[second..common]);
                }
            }
            _ => {}
        }
    }

    /// Brings home what came, and on the way to rest the tokens for which nothing came.
    fn collect(&mut self) {
        let Some(pair) = self.pair.map(usize::from) else { return };
        let Self { shared, done, lent, draining, .. } = self;
        let mut state = shared.lock();
        let Pair { receiver, tokens, arrived } = &mut state.pairs[pair];
        if receiver.as_ref().is_none_or(|(receiver, _)| *receiver != self.me) {
            return;
        }
        let mark = done.len();
        let dropped = *draining && shared.has(NetSabotage::DropsArrived);
        done.extend(arrived.drain(..).map(|mut request| {
            let output = if dropped { NetRequest::aborted() } else { NetOutput::Done };
            if dropped {
                request.renew();
            }
            Completion { request, output }
        }));
        let waits = [NetSabotage::KeepsTokens, NetSabotage::KeepsNewTokens, NetSabotage::RestsEarly];
        let kept = waits.iter().any(|&sabotage| shared.has(sabotage));
        let first = shared.has(NetSabotage::KeepsNewTokens) && !self.drained;
        if *draining && (!kept || first) {
            let given_up = |request| Completion { request, output: NetRequest::aborted() };
            done.extend(tokens.drain(..).map(given_up));
        }
        *lent -= done.len() - mark;
    }

    fn break_completions(&mut self) {
        if self.has(NetSabotage::CompletesTwice)
            && self.submitted.is_multiple_of(3)
            && let Some(Completion { request, output }) = self.done.last()
        {
            let forged = NetRequest::transmit(request.tag(), request.pair(), Box::<SgList>::default());
            let output = *output;
            self.done.push(Completion { request: forged, output });
        }
        let swaps = self.has(NetSabotage::SwapsTags);
        if let [.., one, two] = self.done.as_mut_slice()
            && swaps
            && one.request.op() != two.request.op()
        {
            let retag = |of: &mut Completion<NetRequest>, tag| {
                let nothing = NetRequest::receive(tag, of.request.pair(), Box::default());
                let (op, pair) = (of.request.op(), of.request.pair());
                let sg = std::mem::replace(&mut of.request, nothing).into_sg();
                if op == NetOp::Transmit {
                    of.request = NetRequest::transmit(tag, pair, sg);
                }
            };
            let tags = (one.request.tag(), two.request.tag());
            retag(one, tags.1);
            retag(two, tags.0);
        }
    }
}

/// The frames that a frame becomes as it goes over the wire; none where it is not what its offload says.
fn finished(mut frame: Vec<u8>, offload: Offload) -> Vec<Vec<u8>> {
    if !offload.is_gso() {
        return add_checksum(&mut frame, offload).map(|()| vec![frame]).unwrap_or_default();
    }
    let Ok(segments) = Segments::of(&frame, offload) else { return Vec::new() };
    let segment = |index| {
        let mut segment = Vec::new();
        segments.write(index, &mut segment);
        segment
    };
    (0..segments.count()).map(segment).collect()
}

impl Queue<NetRequest> for WireQueue {
    fn submit(&mut self, _: &mut WorkerContext<'_>, request: NetRequest) {
        assert!(
            self.lent + self.done.len() < self.depth.get(),
            "more requests than the queue was opened for"
        );
        self.submitted += 1;
        if self.submitted.is_multiple_of(SOME) && self.has(NetSabotage::LosesRequests) {
            return;
        }
        if let Err(error) = self.check(&request) {
            let result = if self.forgives(error) { Ok(()) } else { Err(error) };
            return self.finish(request, result);
        }
        self.pair = Some(request.pair());
        match request.op() {
            NetOp::Receive => self.post(request),
            NetOp::Transmit => {
                self.carry(&request);
                self.finish(request, Ok(()));
            }
        }
    }

    fn kick(&mut self, _: &mut WorkerContext<'_>) {}

    fn poll(&mut self, _: &mut WorkerContext<'_>, done: &mut Completions<NetRequest>) {
        // A broken wire sees that it rests one poll late.
        self.unseen &= self.lent + self.done.len() > 0;
        self.collect();
        self.break_completions();
        done.append(&mut self.done);
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = true;
        self.collect();
        self.drained = true;
        self.unseen = self.has(NetSabotage::ForgetsToWakeAtRest);
        if !self.unseen {
            cx.run_again();
        }
    }

    fn resume(&mut self, _: &mut WorkerContext<'_>) {
        (self.draining, self.unseen) = (false, false);
    }

    fn mode(&self) -> Mode {
        match self.draining {
            false => Mode::Running,
            true if self.unseen => Mode::Draining,
            true if self.has(NetSabotage::RestsEarly) || self.lent + self.done.len() == 0 => Mode::Quiesced,
            true => Mode::Draining,
        }
    }

    fn in_flight(&self) -> usize {
        let count = self.lent + self.done.len();
        if self.has(NetSabotage::CountsWrong) { count.saturating_sub(1) } else { count }
    }
}

impl Drop for WireQueue {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if self.has(NetSabotage::KeepsMemory) {
            state.kept.extend(self.done.drain(..).map(|completion| completion.request));
        }
        let mine =
            |pair: &&mut Pair| pair.receiver.as_ref().is_some_and(|(receiver, _)| *receiver == self.me);
        if let Some(pair) =
            state.pairs.iter_mut().find(mine).filter(|_| !self.has(NetSabotage::KeepsReceiver))
        {
            *pair = Pair::default();
        }
    }
}
