//! What the two sides of a pair share: tokens that wait, and tokens that have a frame.

use iovirt_core::request::net::{NetRequest, Offload, Segments, add_checksum};
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
    cutting: Cutting,
}

/// Room to cut a frame in.
#[derive(Debug, Default)]
struct Cutting {
    frame: Vec<u8>,
    segment: Vec<u8>,
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
    /// they are if another one receives on this pair. Segments longer than `max_frame` are lost.
    pub(super) fn exchange(
        &self,
        cx: &WorkerContext<'_>,
        me: &Arc<Receiver>,
        tokens: &mut Vec<NetRequest>,
        (frames, max_frame): (&[NetRequest], u32),
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
                let carried = state.carry(frames, max_frame);
                self.count(carried, frames.len() as u64 - carried);
                // Of a frame that was cut, some segments may have found a token and others not.
                if !state.filled.is_empty() {
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
    fn carry(&mut self, frames: &[NetRequest], max_frame: u32) -> u64 {
        let mut carried = 0;
        for frame in frames {
            if !frame.is_plain() {
                carried += u64::from(self.carry_unfinished(frame, max_frame));
                continue;
            }
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

    /// Carries a frame to which something is left to be done, and does it where the next token does not accept it; says whether
    /// all of it was carried.
    #[cold]
    #[inline(never)]
    fn carry_unfinished(&mut self, frame: &NetRequest, max_frame: u32) -> bool {
        let (offload, len) = (frame.offload(), frame.sg().len());
        let Ok(needed) = offload.check(len) else { return false };
        let Some(accepted) = self.tokens.last().map(NetRequest::accepts) else { return false };
        let is_accepted = accepted.contains(needed);
        if offload.is_gso() && !is_accepted {
            return self.cut(frame, max_frame).is_some();
        }
        let Some(mut token) = self.tokens.pop() else { return false };
        // Not by the call that plain frames are copied by: that is to stay within their loop.
        let sg = token.sg_mut();
        let is_copied = sg.push_host(len as usize).and_then(|()| sg.copy_sg(0, frame.sg(), 0, len)).is_ok();
        let is_carried = is_copied && (is_accepted || sum_up(&mut token, offload));
        if !is_carried {
            self.keep(token);
            return false;
        }
        if is_accepted {
            token.set_offload(offload.as_sent(len));
        }
        self.filled.push(token);
        true
    }

    /// Cuts a frame into a token for each segment, as far as there are any. `None` where it cannot be cut, or not all of it was
    /// carried.
    fn cut(&mut self, frame: &NetRequest, max_frame: u32) -> Option<()> {
        let Self { tokens, filled, cutting: Cutting { frame: whole, segment }, .. } = self;
        // Nobody changes the copy.
        whole.resize(usize::try_from(frame.sg().len()).ok()?, 0);
        frame.sg().copy_to(0, whole).ok()?;
        let segments = Segments::of(whole, frame.offload()).ok()?;
        if segments.longest() > max_frame as usize {
            return None;
        }
        for index in 0..segments.count() {
            segments.write(index, segment);
            let mut token = tokens.pop()?;
            let sg = token.sg_mut();
            if sg.push_host(segment.len()).and_then(|()| sg.copy_from(0, segment)).is_err() {
                token.renew();
                tokens.push(token);
                return None;
            }
            filled.push(token);
        }
        Some(())
    }
}

/// Puts the checksum into a frame in host memory; false where that is not possible.
fn sum_up(token: &mut NetRequest, offload: Offload) -> bool {
    token.sg_mut().host_bytes().is_some_and(|bytes| add_checksum(bytes, offload).is_ok())
}
