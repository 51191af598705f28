//! Where vCPUs wait while the machine is paused.
//!
//! A vCPU comes here only between two instructions of its guest: an access to a device that took it out of the guest has
//! been finished first, so that its registers tell all there is to tell.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often a vCPU that has not come yet is kicked, and one that waits looks whether the machine stops.
const TURN: Duration = Duration::from_millis(5);

/// Stops all vCPUs, and lets them go on.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    closed: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Counts orders to tell what a vCPU's state is.
    order: u64,
    /// How many vCPUs there are, also those whose threads have not come so far.
    count: usize,
    members: Vec<Member>,
}

/// A vCPU whose thread runs.
#[derive(Debug)]
struct Member {
    index: u32,
    thread: libc::pthread_t,
    waits: bool,
    /// The last order that it obeyed, and what it told.
    told: (u64, Result<Vec<u8>, String>),
}

/// While this lives, the thread that made it is one that the gate stops.
#[derive(Debug)]
pub(crate) struct Seat<'a> {
    gate: &'a Gate,
    index: u32,
}

/// These vCPUs did not stop in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StillRunning(pub(crate) Vec<u32>);

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, TURN).unwrap_or_else(PoisonError::into_inner).0
    }

    /// Whether vCPUs are to come and wait.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// There will be so many vCPUs.
    pub(crate) fn expect(&self, count: usize) {
        self.state().count = count;
    }

    /// This thread runs vCPU `index`.
    pub(crate) fn enter(&self, index: u32) -> Seat<'_> {
        // SAFETY: the call has no precondition and cannot fail.
        let thread = unsafe { libc::pthread_self() };
        self.state().members.push(Member { index, thread, waits: false, told: (0, Ok(Vec::new())) });
        Seat { gate: self, index }
    }

    /// Stops all vCPUs, which `kick` makes leave the guest. Where one does not come in time, all go on.
    pub(crate) fn close(&self, limit: Duration, kick: impl Fn(libc::pthread_t)) -> Result<(), StillRunning> {
        let end = Instant::now() + limit;
        let mut state = self.state();
        self.closed.store(true, Ordering::SeqCst);
        loop {
            let running: Vec<u32> =
                state.members.iter().filter(|member| !member.waits).map(|member| member.index).collect();
            if running.is_empty() && state.members.len() >= state.count {
                return Ok(());
            }
            if Instant::now() >= end {
                drop(state);
                self.open();
                return Err(StillRunning(running));
            }
            // Under the lock, so that none of these threads has ended.
            state.members.iter().filter(|member| !member.waits).for_each(|member| kick(member.thread));
            state = self.wait(state);
        }
    }

    /// Lets the vCPUs go on.
    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Has every vCPU that waits tell its state; in the order of their numbers.
    pub(crate) fn ask(&self, limit: Duration) -> Result<Vec<Vec<u8>>, String> {
        let end = Instant::now() + limit;
        let mut state = self.state();
        state.order += 1;
        let order = state.order;
        self.changed.notify_all();
        loop {
            if !self.is_closed() {
                return Err("the vCPUs are running".into());
            }
            if let Some(member) = state.members.iter().find(|member| member.told.0 != order) {
                if Instant::now() >= end {
                    return Err(format!("vCPU {} does not tell its state", member.index));
                }
                state = self.wait(state);
                continue;
            }
            state.members.sort_by_key(|member| member.index);
            return state.members.iter().map(|member| member.told.1.clone()).collect();
        }
    }
}

impl Seat<'_> {
    /// Waits while the gate is closed and the machine does not stop; `tell` gives the vCPU's state when it is asked for.
    pub(crate) fn wait(&self, stopping: impl Fn() -> bool, tell: impl Fn() -> Result<Vec<u8>, String>) {
        let mut state = self.gate.state();
        self.member(&mut state).waits = true;
        self.gate.changed.notify_all();
        while self.gate.is_closed() && !stopping() {
            let order = state.order;
            if order != 0 && self.member(&mut state).told.0 != order {
                drop(state);
                let told = tell();
                state = self.gate.state();
                self.member(&mut state).told = (order, told);
                self.gate.changed.notify_all();
                continue;
            }
            state = self.gate.wait(state);
        }
        self.member(&mut state).waits = false;
    }

    fn member<'a>(&self, state: &'a mut MutexGuard<'_, State>) -> &'a mut Member {
        let at = state.members.iter().position(|member| member.index == self.index);
        // A seat is a member until it is dropped.
        &mut state.members[at.unwrap_or_default()]
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.state();
        state.members.retain(|member| member.index != self.index);
        state.count = state.count.saturating_sub(1);
        drop(state);
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[derive(Debug, Default)]
    struct Machine {
        gate: Gate,
        stop: AtomicBool,
        steps: [AtomicU64; 3],
    }

    fn run(machine: &Machine, index: u32) {
        let seat = machine.gate.enter(index);
        let stopping = || machine.stop.load(Ordering::SeqCst);
        while !stopping() {
            machine.steps[index as usize].fetch_add(1, Ordering::SeqCst);
            if machine.gate.is_closed() {
                seat.wait(stopping, || Ok(vec![index as u8]));
            }
        }
    }

    #[test]
    fn vcpus_stop_tell_and_go_on() {
        let machine = Arc::new(Machine::default());
        let threads: Vec<_> = (0..3)
            .map(|index| {
                let machine = machine.clone();
                thread::spawn(move || run(&machine, index))
            })
            .collect();
        let steps = || machine.steps.each_ref().map(|steps| steps.load(Ordering::SeqCst));
        for _ in 0..50 {
            let before = steps();
            while steps().iter().zip(before).any(|(now, before)| *now == before) {
                thread::yield_now();
            }
            machine.gate.close(LONG, |_| ()).unwrap();
            let stopped = steps();
            assert_eq!(machine.gate.ask(LONG), Ok(vec![vec![0], vec![1], vec![2]]));
            assert_eq!(steps(), stopped);
            machine.gate.open();
        }
        assert!(machine.gate.ask(LONG).is_err());
        // A machine that stops does not wait for a gate that is closed.
        machine.gate.close(LONG, |_| ()).unwrap();
        machine.stop.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(machine.gate.close(Duration::ZERO, |_| ()), Ok(()));
    }

    #[test]
    fn a_vcpu_that_does_not_come_is_named_and_all_go_on() {
        let gate = Gate::default();
        gate.expect(1);
        // One whose thread has not come is no number to tell, and no reason to go on.
        assert_eq!(gate.close(Duration::ZERO, |_| ()), Err(StillRunning(vec![])));
        let _seat = gate.enter(7);
        assert_eq!(gate.close(Duration::ZERO, |_| ()), Err(StillRunning(vec![7])));
        assert!(!gate.is_closed());
    }
}
