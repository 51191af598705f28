//! What happens to a device in its life.

use super::world::{Busy, World};
use crate::frontend::Outcome;
use crate::worker::Clock;
use std::time::Duration;

/// How long a drain may take before it is taken back.
const DEADLINE: Duration = Duration::from_millis(20);

impl World<'_> {
    /// One operation, of a kind that the seed chooses.
    pub(super) fn operation(&mut self) -> Result<(), String> {
        let choice = self.rng.below(8);
        self.note(choice);
        match choice {
            0 | 1 => self.drain_and_resume(),
            2 => self.reset(),
            3 => self.save_and_restore(),
            4 | 5 => self.stall(),
            6 => self.change(),
            _ => self.swap(),
        }
    }

    fn drain_and_resume(&mut self) -> Result<(), String> {
        self.at.1 = "draining";
        let ticket = self.guest.device().drain();
        self.a_while(6, Busy::Working)?;
        if self.rng.one_in(3) {
            self.at.1 = "taking a drain back";
            let back = self.guest.device().resume();
            self.a_while(4, Busy::Working)?;
            self.run.ways_back += 1;
            return self.settle_for(&back);
        }
        self.settle_for(&ticket)?;
        if ticket.outcome() != Some(Outcome::Done) {
            return Err("a drain that nobody took back was not done".into());
        }
        self.a_while(4, Busy::Working)?;
        let back = self.guest.device().resume();
        self.run.drains += 1;
        self.settle_for(&back)
    }

    fn reset(&mut self) -> Result<(), String> {
        self.at.1 = "resetting";
        let ticket = self.guest.begin_reset();
        self.settle_for(&ticket)?;
        self.after_reset()
    }

    /// A device that was reset is silent; then the driver finds it again.
    fn after_reset(&mut self) -> Result<(), String> {
        if self.guest.status() != 0 {
            return Err(format!("the status after a reset is {:#x}", self.guest.status()));
        }
        self.guest.lose_interrupts();
        self.load.forget();
        let before = self.guest.snapshot();
        self.quiet()?;
        if self.guest.snapshot() != before {
            return Err("a device that was reset wrote to memory".into());
        }
        self.run.resets += 1;
        self.set_up()
    }

    fn save_and_restore(&mut self) -> Result<(), String> {
        self.at.1 = "saving";
        let ticket = self.guest.device().drain();
        self.a_while(6, Busy::Working)?;
        self.settle_for(&ticket)?;
        // What is offered now, the device has not seen when it is saved.
        self.a_while(4, Busy::Working)?;
        self.move_on()
    }

    /// Saves the device as it is, and goes on with another.
    fn move_on(&mut self) -> Result<(), String> {
        let saved = self.guest.device().save().map_err(|error| format!("save failed: {error}"))?;
        self.at.1 = "restoring";
        // The doorbells and the interrupts of the old one go with it.
        self.guest.lose_interrupts();
        self.make_device()?;
        self.guest.device().restore(&saved).map_err(|error| format!("restore failed: {error}"))?;
        self.a_while(4, Busy::Waiting)?;
        let mut ticket = self.guest.device().resume();
        if self.rng.one_in(4) {
            // Perhaps before it has served again what was in flight when it was saved.
            self.at.1 = "draining what was restored";
            let rest = self.guest.device().drain();
            self.settle_for(&rest)?;
            ticket = self.guest.device().resume();
        }
        self.a_while(4, Busy::Working)?;
        self.run.restores += 1;
        self.settle_for(&ticket)?;
        self.at.1 = "after a restore";
        // Without any further doing of the guest.
        self.settle(|world| !world.load.awaits())
    }

    /// What is below answers nothing: a drain passes its deadline, and three ways are open.
    fn stall(&mut self) -> Result<(), String> {
        self.at.1 = "stalled";
        self.made().brake.stall();
        self.load.submit(&mut self.guest, &mut self.rng);
        self.a_while(6, Busy::Working)?;
        let deadline = self.clock.now() + DEADLINE;
        if self.rng.one_in(3) {
            self.at.1 = "resetting what is stalled";
            let ticket = self.guest.begin_reset();
            self.settle_until(Some(deadline), |_| ticket.is_done())?;
            self.made().brake.go_on();
            self.settle_for(&ticket)?;
            self.run.stalls += 1;
            return self.after_reset();
        }
        let ticket = self.guest.device().drain();
        self.settle_until(Some(deadline), |_| ticket.is_done())?;
        self.run.stalls += 1;
        if self.rng.one_in(2) {
            self.at.1 = "saving what is stalled";
            return self.move_on();
        }
        let back = self.guest.device().resume();
        self.a_while(4, Busy::Working)?;
        self.made().brake.go_on();
        self.at.1 = "after a stall";
        self.settle_for(&back)?;
        self.settle(|world| !world.load.awaits())
    }

    /// Something changes below that the guest is told of.
    fn change(&mut self) -> Result<(), String> {
        self.at.1 = "telling the guest of a change";
        self.interrupt()?;
        let heard = self.guest.config_changes;
        let choice = self.rng.below(8);
        self.made().brake.change(choice);
        self.settle(|world| world.guest.config_changes > heard)?;
        self.run.resizes += 1;
        Ok(())
    }

    /// Where the stack has a place for it, what is below is exchanged for another way to the same.
    fn swap(&mut self) -> Result<(), String> {
        let stages = self.guest.device().stages();
        let Some((ticket, cancel)) = (self.case.kind.swap)(&stages) else { return Ok(()) };
        self.at.1 = "swapping";
        let ticket = ticket.map_err(|error| format!("no exchange: {error}"))?;
        self.a_while(6, Busy::Working)?;
        if self.rng.one_in(4) {
            cancel();
        }
        self.settle_for(&ticket)?;
        self.run.swaps += 1;
        Ok(())
    }
}
