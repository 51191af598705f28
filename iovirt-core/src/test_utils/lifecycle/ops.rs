//! What happens to a stack in its life.

use super::world::{LANES, World};
use crate::backend::{Backend, Mode};
use crate::frontend::Outcome;
use crate::pipeline::SwapControl;
use crate::request::block::BlockRequest;
use crate::state::StageStates;
use crate::worker::Clock;
use std::time::Duration;

/// Something that happens to a stack in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Queues come to rest and go on, or are called back before they rest.
    Drain,
    /// Queues go with what is in flight on them, and new ones come.
    Reset,
    /// The stack is saved, made anew and restored.
    Restore,
    /// The disk answers nothing for a while.
    Stall,
    /// The disk changes its size.
    Resize,
    /// What is below is exchanged, where the stack has a place for it.
    Swap,
}

impl Operation {
    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::Drain, Self::Reset, Self::Restore, Self::Stall, Self::Resize, Self::Swap];
}

/// How long a drain may take before it is taken back.
const DEADLINE: Duration = Duration::from_millis(20);

impl World<'_> {
    /// One operation, of a kind that the seed chooses.
    pub(super) fn operation(&mut self) -> Result<(), String> {
        if self.case.operations.is_empty() {
            return Ok(());
        }
        let choice = self.case.operations[self.rng.index(self.case.operations.len())];
        self.note(choice as u64);
        match choice {
            Operation::Drain => self.drain_and_resume(),
            Operation::Reset => self.reset(),
            Operation::Restore => self.save_and_restore(),
            Operation::Stall => self.stall(),
            Operation::Resize => self.resize(),
            Operation::Swap => self.swap(),
        }
    }

    /// Some of the lanes, at least one.
    fn some_lanes(&mut self) -> Vec<usize> {
        let mut lanes: Vec<_> = (0..LANES).collect();
        self.rng.shuffle(&mut lanes);
        lanes.truncate(1 + self.rng.index(LANES));
        lanes
    }

    /// A few steps of whoever comes, and some load.
    fn a_while(&mut self, steps: u64) -> Result<(), String> {
        for _ in 0..self.rng.below(steps + 1) {
            if self.rng.one_in(3) {
                self.submit();
            } else {
                let lane = self.rng.index(LANES);
                self.step(lane)?;
            }
        }
        Ok(())
    }

    fn drain(&mut self, lanes: &[usize]) -> Result<(), String> {
        for &at in lanes {
            let lane = &mut self.lanes[at];
            lane.driver.drain();
            (lane.draining, lane.touched) = (true, true);
            self.check(at)?;
            self.a_while(2)?;
        }
        Ok(())
    }

    fn resume(&mut self, lanes: &[usize]) -> Result<(), String> {
        for &at in lanes {
            let lane = &mut self.lanes[at];
            lane.driver.resume();
            (lane.draining, lane.touched) = (false, true);
            self.check(at)?;
        }
        Ok(())
    }

    fn rest(world: &Self, lanes: &[usize]) -> bool {
        lanes.iter().all(|&at| world.lanes[at].driver.mode() == Mode::Quiesced)
    }

    fn drain_and_resume(&mut self) -> Result<(), String> {
        self.at.1 = "draining";
        let lanes = self.some_lanes();
        self.drain(&lanes)?;
        self.a_while(6)?;
        if self.rng.one_in(3) {
            self.at.1 = "taking a drain back";
            self.run.ways_back += 1;
            return self.resume(&lanes);
        }
        self.settle(|world| Self::rest(world, &lanes))?;
        self.run.drains += 1;
        if self.rng.one_in(3) {
            // A queue at rest serves all the same.
            self.submit();
            self.a_while(3)?;
            self.settle(|world| Self::rest(world, &lanes))?;
        }
        self.resume(&lanes)
    }

    /// A queue goes with what is in flight on it, and a new one comes.
    fn reset(&mut self) -> Result<(), String> {
        self.at.1 = "resetting";
        for at in self.some_lanes() {
            if self.case.host_works {
                // What the host does for a queue that is gone may come after what the next queue does.
                self.settle(|world| world.lanes[at].driver.in_flight() == 0)?;
            }
            self.reopen(at)?;
            self.run.resets += 1;
            self.a_while(3)?;
        }
        Ok(())
    }

    fn reopen(&mut self, at: usize) -> Result<(), String> {
        let lane = &mut self.lanes[at];
        lane.driver.close();
        lane.load.forget_in_flight();
        self.open(at)
    }

    fn save_and_restore(&mut self) -> Result<(), String> {
        self.at.1 = "saving";
        let all: Vec<_> = (0..LANES).collect();
        self.drain(&all)?;
        self.settle(|world| Self::rest(world, &all))?;
        let mut states = StageStates::default();
        let before = self.stack().caps();
        self.stack().save(&mut states).map_err(|error| format!("save failed: {error}"))?;
        for lane in &mut self.lanes {
            lane.driver.close();
        }
        self.at.1 = "restoring";
        self.stack = None;
        let stack = self.rebuild();
        stack.restore(&mut states).map_err(|error| format!("restore failed: {error}"))?;
        if !states.is_empty() {
            return Err("a stage left saved state that it did not take back".into());
        }
        self.put_in_place(stack);
        let after = self.stack().caps();
        if after.capacity < before.capacity || after.durability != before.durability {
            return Err(format!("the restored stack is {after:?}; the saved one was {before:?}"));
        }
        self.run.restores += 1;
        all.iter().try_for_each(|&at| self.open(at))
    }

    /// The disk answers nothing: drains pass their deadline, and the way back is open.
    fn stall(&mut self) -> Result<(), String> {
        self.at.1 = "stalled";
        self.slow.stall();
        self.submit();
        self.a_while(4)?;
        let lanes = self.some_lanes();
        self.drain(&lanes)?;
        let deadline = self.clock.now() + DEADLINE;
        self.settle_until(Some(deadline), |world| Self::rest(world, &lanes))?;
        if self.rng.one_in(4) && !self.case.host_works {
            self.reopen(lanes[0])?;
            self.resume(&lanes[1..])?;
        } else {
            self.resume(&lanes)?;
        }
        self.a_while(4)?;
        self.slow.go_on();
        self.at.1 = "after a stall";
        self.settle(|world| world.lanes.iter().all(|lane| lane.driver.in_flight() == 0))?;
        self.run.stalls += 1;
        Ok(())
    }

    /// The disk becomes smaller beyond what the load uses, or larger again.
    fn resize(&mut self) -> Result<(), String> {
        self.at.1 = "resizing";
        let (heard, full) = (self.heard.count(), self.disk.caps().capacity);
        let block = u64::from(self.disk.caps().logical_block);
        let capacity = full - self.rng.below(8) * block;
        self.slow.resize(capacity);
        if self.heard.count() == heard {
            return Err("nobody above heard that the disk was resized".into());
        }
        self.run.resizes += 1;
        Ok(())
    }

    /// Where the stack has a place for it, what is below is exchanged for another way to the same disk.
    fn swap(&mut self) -> Result<(), String> {
        let stages = self.stack().list_stages();
        let Some((_, control)) = stages.controls::<SwapControl<BlockRequest>>().next() else {
            return Ok(());
        };
        self.at.1 = "swapping";
        let ticket = control.swap(control.current()).map_err(|error| format!("no exchange: {error}"))?;
        self.a_while(6)?;
        if self.rng.one_in(4) {
            control.cancel();
        }
        self.settle(|_| ticket.is_done())?;
        if !matches!(ticket.outcome(), Some(Outcome::Done | Outcome::Cancelled)) {
            return Err("an exchange ended without an outcome".into());
        }
        self.run.swaps += 1;
        Ok(())
    }
}
