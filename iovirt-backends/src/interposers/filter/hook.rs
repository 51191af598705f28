//! The data plane.

use super::control::Predicate;
use super::{Direction, FilterControl, Frame, Verdict};
use iovirt_core::request::net::{NetOp, NetOutput, NetRequest};
use iovirt_core::stage::{Flow, Held, Hook, Return};
use iovirt_core::{Completion, WorkerContext};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The data plane of a [`Filter`](super::Filter).
pub struct FilterHook {
    control: Arc<FilterControl>,
    predicate: Arc<Predicate>,
    seen: u64,
    /// A frame that does not lie in one piece, put together.
    whole: Vec<u8>,
    from_guest: Tally,
    to_guest: Tally,
}

/// What was said in this turn, added to the shared counters once.
#[derive(Default)]
struct Tally {
    passed: u64,
    dropped: u64,
}

impl Tally {
    fn count(&mut self, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Pass => self.passed += 1,
            Verdict::Drop => self.dropped += 1,
        }
        verdict
    }

    fn add_to(&mut self, passed: &AtomicU64, dropped: &AtomicU64) {
        let Self { passed: more_passed, dropped: more_dropped } = std::mem::take(self);
        if more_passed > 0 {
            passed.fetch_add(more_passed, Ordering::Relaxed);
        }
        if more_dropped > 0 {
            dropped.fetch_add(more_dropped, Ordering::Relaxed);
        }
    }
}

impl FilterHook {
    pub(super) fn new(control: Arc<FilterControl>) -> Self {
        let predicate = control.current();
        let (from_guest, to_guest) = (Tally::default(), Tally::default());
        Self { control, predicate, seen: 0, whole: Vec::new(), from_guest, to_guest }
    }

    /// Judges a frame that lies in host memory.
    fn judge(&mut self, direction: Direction, request: &mut NetRequest) -> Verdict {
        if let Some(predicate) = self.control.changed(&mut self.seen) {
            self.predicate = predicate;
        }
        let Self { predicate, whole, .. } = self;
        let (pair, offload, sg) = (request.pair(), request.offload(), request.sg_mut());
        if let Some(bytes) = sg.host_bytes() {
            return predicate(&Frame { direction, pair, bytes, offload });
        }
        whole.resize(sg.len() as usize, 0);
        match sg.copy_to(0, whole) {
            Ok(()) => predicate(&Frame { direction, pair, bytes: whole, offload }),
            Err(_) => Verdict::Drop,
        }
    }

    fn report(&mut self) {
        let counters = &self.control.counters;
        self.from_guest.add_to(&counters.passed_from_guest, &counters.dropped_from_guest);
        self.to_guest.add_to(&counters.passed_to_guest, &counters.dropped_to_guest);
    }
}

impl Hook<NetRequest> for FilterHook {
    fn on_submit(&mut self, _: &mut WorkerContext<'_>, request: &mut NetRequest) -> Flow<NetOutput> {
        if request.op() == NetOp::Receive {
            return Flow::Pass;
        }
        // What is judged must be what is sent, and the guest may write its memory at any time. A frame that is too long to
        // be copied is not judged, and so not sent either.
        let verdict = match request.sg_mut().make_stable() {
            Ok(()) => self.judge(Direction::FromGuest, request),
            Err(_) => Verdict::Drop,
        };
        match self.from_guest.count(verdict) {
            Verdict::Pass => Flow::Pass,
            Verdict::Drop => Flow::Complete(NetOutput::Done),
        }
    }

    fn on_complete(&mut self, _: &mut WorkerContext<'_>, completion: &mut Completion<NetRequest>) -> Return {
        let Completion { request, output } = completion;
        if request.op() == NetOp::Transmit || *output != NetOutput::Done {
            return Return::Pass;
        }
        let verdict = self.judge(Direction::ToGuest, request);
        match self.to_guest.count(verdict) {
            Verdict::Pass => Return::Pass,
            Verdict::Drop => {
                request.renew();
                Return::Again
            }
        }
    }

    fn on_poll(&mut self, _: &mut WorkerContext<'_>, _: &mut Held<'_, NetRequest>) {
        self.report();
    }
}

impl Drop for FilterHook {
    fn drop(&mut self) {
        self.report();
    }
}

impl fmt::Debug for FilterHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilterHook").field("control", &self.control).finish_non_exhaustive()
    }
}
