//! A device that is not there.

use crate::doorbell::DoorbellSpec;
use crate::frontend::{Access, Frontend, RegionSpec, Ticket};
use crate::pipeline::Stages;
use crate::state::StateError;

/// What a driver finds once its device is gone: registers that read as zeroes and take no notice. Put it in the place of a
/// device whose worker was dropped, so that the driver can go without waiting for it.
#[derive(Clone, Copy, Debug)]
pub struct Unplugged;

impl Unplugged {
    fn refuse(self) -> StateError {
        StateError::NotNow { kind: self.name().into(), reason: "there is no device".into() }
    }
}

impl Frontend for Unplugged {
    fn name(&self) -> &'static str {
        "unplugged"
    }

    fn regions(&self) -> Vec<RegionSpec> {
        Vec::new()
    }

    fn read(&self, _: usize, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: usize, _: u64, _: &[u8]) -> Access {
        Access::Done
    }

    fn doorbells(&self) -> Vec<DoorbellSpec> {
        Vec::new()
    }

    fn drain(&self) -> Ticket {
        Ticket::done()
    }

    fn resume(&self) -> Ticket {
        Ticket::done()
    }

    fn reset(&self) -> Ticket {
        Ticket::done()
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        Err(self.refuse())
    }

    fn restore(&self, _: &[u8]) -> Result<(), StateError> {
        Err(self.refuse())
    }

    fn stages(&self) -> Stages {
        Stages::default()
    }
}
