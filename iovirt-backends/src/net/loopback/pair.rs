//! What the two sides of a pair share: tokens that wait, and tokens that have a frame.

use iovirt_core::request::net::NetRequest;
use iovirt_core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use iovirt_core::sync::{Arc, Mutex, MutexGuard, PoisonError};
use iovirt_core::worker::{LaneWaker, WorkerContext};

/// One pair of queues.
#[derive(Debug, Default)]
pub(super) struct Pair {
    state: Mutex<PairState>,
    /// Whether tokens with frames wait for the receiver: what it looks at before it takes the lock.
    ready: AtomicBool,
    carried: AtomicU64,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct PairState {
    /// The one that came last is used next: its memory is still in the cache.
    tokens: Vec<NetRequest>,
    filled: Vec<NetRequest>,
    receiver: Option<Arc<Receiver>>,
}

/// The data plane that receives on a pair.
#[derive(Debug)]
pub(super) struct Receiver {
    waker: LaneWaker,
}

impl Receiver {
    pub(super) fn new(waker: LaneWaker) -> Arc<Self> {
        Arc::new(Self { waker })
    }
}

impl Pair {
    fn lock(&self) -> MutexGuard<'_, PairState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One batch of submissions: takes `tokens` of `me`, and copies `frames` into the tokens that wait. Tokens stay where
    /// they are if another one receives on this pair.
    pub(super) fn exchange(
        &self,
        cx: &WorkerContext<'_>,
        me: &Arc<Receiver>,
        tokens: &mut Vec<NetRequest>,
        frames: &[NetRequest],
    ) {
        let mut wake = None;
        {
            let mut state = self.lock();
            if !tokens.is_empty() {
                let receiver = state.receiver.get_or_insert_with(|| me.clone());
                if Arc::ptr_eq(receiver, me) {
                    state.tokens.append(tokens);
                }
            }
            if !frames.is_empty() {
                let carried = state.carry(frames);
                self.count(carried, frames.len() as u64 - carried);
                if carried > 0 {
                    self.ready.store(true, Ordering::SeqCst);
                    wake.clone_from(&state.receiver);
                }
            }
        }
        // Whoever sends to itself polls next in any case.
        if let Some(receiver) = wake.filter(|receiver| !Arc::ptr_eq(receiver, me)) {
            cx.wake(&receiver.waker);
        }
    }

    fn count(&self, carried: u64, dropped: u64) {
        self.carried.fetch_add(carried, Ordering::Relaxed);
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
    }

    /// Moves the tokens of `me` that have a frame to `to`, in the order of the frames, and says how many. No lock where there
    /// is none.
    #[inline]
    pub(super) fn take(&self, me: &Arc<Receiver>, to: impl FnMut(NetRequest)) -> usize {
        if !self.ready.load(Ordering::SeqCst) {
            return 0;
        }
        let mut state = self.lock();
        if !state.is_of(me) {
            return 0;
        }
        self.ready.store(false, Ordering::SeqCst);
        let count = state.filled.len();
        state.filled.drain(..).for_each(to);
        count
    }

    /// Gives back all tokens of `me` that wait, and says how many; frames sent from now on find none.
    pub(super) fn recall(&self, me: &Arc<Receiver>, to: impl FnMut(NetRequest)) -> usize {
        let mut state = self.lock();
        if !state.is_of(me) {
            return 0;
        }
        let count = state.tokens.len();
        state.tokens.drain(..).for_each(to);
        count
    }

    /// `me` is gone.
    pub(super) fn leave(&self, me: &Arc<Receiver>) {
        let mut state = self.lock();
        if state.is_of(me) {
            *state = PairState::default();
            self.ready.store(false, Ordering::SeqCst);
        }
    }

    pub(super) fn counts(&self) -> (u64, u64) {
        (self.carried.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }
}

impl PairState {
    fn is_of(&self, me: &Arc<Receiver>) -> bool {
        self.receiver.as_ref().is_some_and(|receiver| Arc::ptr_eq(receiver, me))
    }

    /// The token's list is smaller than the network's longest frame: the frame is lost, the token is not.
    #[cold]
    #[inline(never)]
    fn keep(&mut self, mut token: NetRequest) {
        token.renew();
        self.tokens.push(token);
    }

    /// Copies frames into tokens as far as there are any, and says how many.
    fn carry(&mut self, frames: &[NetRequest]) -> u64 {
        let mut carried = 0;
        for frame in frames {
            let Some(mut token) = self.tokens.pop() else { break };
            if token.sg_mut().push_copy(frame.sg()).is_err() {
                self.keep(token);
                continue;
            }
            self.filled.push(token);
            carried += 1;
        }
        carried
    }
}
