//! What an embedder sees of an emulated device.

use crate::doorbell::DoorbellSpec;
use crate::pipeline::Stages;
use crate::state::StateError;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Where a region of registers lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// Memory-mapped.
    Mmio,
    /// Port I/O.
    Pio,
}

/// A region of registers that the embedder places in the guest's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Where it lives.
    pub kind: RegionKind,
    /// Its size in bytes.
    pub size: u64,
}

/// What became of a register write.
#[derive(Debug)]
pub enum Access {
    /// It took effect.
    Done,
    /// It takes effect once requests in flight have finished; until then the vCPU that wrote waits: it may block in
    /// [`Ticket::wait`] or run something else until [`Ticket::is_done`].
    Deferred(Ticket),
}

/// An emulated device as its embedder sees it. All methods are callable from any thread; registers are behind a lock of
/// the device's own, rings belong to its worker.
///
/// Every operation of the life cycle returns at once, with a [`Ticket`] to wait on: none blocks inside.
pub trait Frontend: Send + Sync + fmt::Debug {
    /// The device's name, as in a pipeline's description: `virtio-blk`.
    fn name(&self) -> &str;

    /// The regions of registers, in the order in which `read` and `write` number them.
    fn regions(&self) -> Vec<RegionSpec>;

    /// A read by the guest of `data.len()` bytes. Reads of what is not there give zeroes. Never fails.
    fn read(&self, region: usize, offset: u64, data: &mut [u8]);

    /// A write by the guest. Writes to what is not there are ignored. Never fails.
    fn write(&self, region: usize, offset: u64, data: &[u8]) -> Access;

    /// The doorbells that the embedder may register as ioeventfds. A doorbell that is not registered works as a plain
    /// register write.
    fn doorbells(&self) -> Vec<DoorbellSpec>;

    /// Comes to rest: no request in flight, metadata durable. Before a save, a swap or the end of the process. The device
    /// stays at rest until [`Frontend::resume`] or [`Frontend::reset`], whatever its driver does: queues that the driver resets and
    /// sets up anew meanwhile begin at rest.
    fn drain(&self) -> Ticket;

    /// The way back from [`Frontend::drain`], also when it has not finished. Rings are scanned again, as a guest does not
    /// repeat its doorbell.
    fn resume(&self) -> Ticket;

    /// The device as after power-on. Waits for requests in flight and throws their completions away.
    fn reset(&self) -> Ticket;

    /// Saves registers, rings and the pipeline's state in one versioned envelope.
    ///
    /// Also possible while a drain is under way, for a back-end that is stuck: requests that it has not returned are saved
    /// as heads and served again after a restore. A device saved so must not be resumed, or they are served twice.
    ///
    /// # Errors
    /// Where the device is running, or a stage cannot be saved.
    fn save(&self) -> Result<Vec<u8>, StateError>;

    /// Takes back what [`Frontend::save`] gave, into a device made the same way. The device stays at rest until
    /// [`Frontend::resume`].
    ///
    /// # Errors
    /// Where the state is broken or does not fit this device.
    fn restore(&self, saved: &[u8]) -> Result<(), StateError>;

    /// The stages below, from the top down, with their control handles.
    fn stages(&self) -> Stages;
}

/// How an operation under way ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It was overtaken by a later operation, or the worker is gone.
    Cancelled,
}

/// An operation under way on a worker.
#[derive(Clone, Debug)]
pub struct Ticket {
    shared: Arc<TicketShared>,
}

#[derive(Debug, Default)]
struct TicketShared {
    state: Mutex<TicketState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct TicketState {
    participants: usize,
    cancelled: bool,
    outcome: Option<Outcome>,
}

impl TicketShared {
    fn state(&self) -> MutexGuard<'_, TicketState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// A ticket, and the end that completes it.
    pub fn new() -> (Self, Completer) {
        let shared = Arc::<TicketShared>::default();
        shared.state().participants = 1;
        (Self { shared: shared.clone() }, Completer { shared, finished: false })
    }

    /// A ticket that is done already.
    pub fn done() -> Self {
        let (ticket, completer) = Self::new();
        completer.done();
        ticket
    }

    /// How the operation ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.shared.state().outcome
    }

    /// Whether the operation has ended.
    pub fn is_done(&self) -> bool {
        self.outcome().is_some()
    }

    /// Blocks until the operation has ended, at most for `limit`; `None` where that passed first.
    pub fn wait(&self, limit: Duration) -> Option<Outcome> {
        let state = self.shared.state();
        self.shared
            .changed
            .wait_timeout_while(state, limit, |state| state.outcome.is_none())
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .outcome
    }
}

/// The end of a [`Ticket`] that completes it. Shared by all workers that take part: the ticket is done when the last of
/// them is, and cancelled where one was dropped without a word.
#[derive(Debug)]
pub struct Completer {
    shared: Arc<TicketShared>,
    finished: bool,
}

impl Completer {
    /// One more participant.
    #[must_use]
    pub fn share(&self) -> Self {
        self.shared.state().participants += 1;
        Self { shared: self.shared.clone(), finished: false }
    }

    /// This participant is done.
    pub fn done(mut self) {
        self.finished = true;
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.cancelled |= !self.finished;
        state.participants -= 1;
        if state.participants == 0 {
            state.outcome = Some(if state.cancelled { Outcome::Cancelled } else { Outcome::Done });
            self.shared.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_waits_for_every_participant() {
        let (ticket, first) = Ticket::new();
        let second = first.share();
        first.done();
        assert_eq!(ticket.outcome(), None);
        assert_eq!(ticket.wait(Duration::from_millis(1)), None);
        let waiter = ticket.clone();
        let waiting = std::thread::spawn(move || waiter.wait(Duration::from_secs(60)));
        second.done();
        assert_eq!(waiting.join().unwrap(), Some(Outcome::Done));
    }

    #[test]
    fn a_participant_that_vanishes_cancels() {
        let (ticket, first) = Ticket::new();
        drop(first.share());
        first.done();
        assert_eq!(ticket.outcome(), Some(Outcome::Cancelled));
    }
}
