//! The host bridge: a function without registers that guests expect at 00.0.

use super::{ConfigSpace, Identity, IntxPin, LineInput, PciFunction};
use iovirt_core::Frontend;
use iovirt_core::doorbell::DoorbellSpec;
use iovirt_core::frontend::{Access, RegionSpec, Ticket};
use iovirt_core::pipeline::Stages;
use iovirt_core::state::{SavedState, StateError};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};

const CLASS_HOST_BRIDGE: u32 = 0x06_00_00;

/// The bridge between the processors and the bus.
#[derive(Debug)]
pub struct HostBridge {
    space: Mutex<ConfigSpace>,
}

#[derive(Serialize, Deserialize)]
struct HostBridgeState {
    config: Vec<u8>,
}

impl SavedState for HostBridgeState {
    const KIND: &'static str = "pci-host-bridge";
    const VERSION: u16 = 1;
}

impl HostBridge {
    /// A bridge that says it is that vendor's device.
    pub fn new(vendor: u16, device: u16) -> Self {
        let identity =
            Identity { vendor, device, class: CLASS_HOST_BRIDGE, revision: 0, subsystem: (vendor, device) };
        Self { space: Mutex::new(ConfigSpace::new(&identity)) }
    }

    fn space(&self) -> MutexGuard<'_, ConfigSpace> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for HostBridge {
    /// The generic bridge of Red Hat's list of numbers, for which guests need no driver.
    fn default() -> Self {
        Self::new(0x1b36, 0x0008)
    }
}

impl Frontend for HostBridge {
    fn name(&self) -> &str {
        "pci-host-bridge"
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
        self.space().reset();
        Ticket::done()
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        Ok(HostBridgeState { config: self.space().save() }.to_envelope())
    }

    fn restore(&self, saved: &[u8]) -> Result<(), StateError> {
        let state = HostBridgeState::from_envelope(saved)?;
        self.space().restore(&state.config);
        Ok(())
    }

    fn stages(&self) -> Stages {
        Stages::default()
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.space().read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Access {
        self.space().write(offset, data);
        Access::Done
    }

    fn decoded(&self) -> Vec<Option<u64>> {
        Vec::new()
    }

    fn interrupt_pin(&self) -> Option<IntxPin> {
        None
    }

    fn connect_line(&self, _: LineInput) {}
}
