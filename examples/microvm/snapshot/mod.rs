//! A machine in a file: saved by one process, and gone on with in another.
//!
//! `file` is the file, `vcpu` what a vCPU knows, `fixed` the devices that every machine has; the devices of descriptions save
//! themselves.

mod file;
mod fixed;
#[cfg(test)]
mod tests;
mod vcpu;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use iovirt::core::state::{SavedState, StateError};
use serde::{Deserialize, Serialize};
use vm_memory::GuestMemoryMmap;

pub(crate) use fixed::Fixed;
use fixed::FixedState;
pub(crate) use vcpu::{MsrNumbers, VcpuState, check_host};

use crate::common::pipeline::Piped;
use crate::control::Control;
use crate::devices::{Device, Place};

/// How long a vCPU that waits may take to tell its state.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a machine is written again because a device that is not at rest had something come home meanwhile.
const ATTEMPTS: u32 = 20;

/// Why a machine cannot be saved or restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} cannot be restored: {what}", path.display())]
    Damaged { path: PathBuf, what: &'static str },
    #[error("the file has version {found}, and this program knows version {known}")]
    Version { found: u32, known: u32 },
    #[error("the saved machine contradicts itself: {0}")]
    Content(&'static str),
    #[error(transparent)]
    State(StateError),
    #[error("{0}")]
    Device(StateError),
    #[error("cannot {what}: {source}")]
    Kvm { what: &'static str, source: io::Error },
    #[error("a vCPU runs a hypervisor, and the state of its guests is not saved")]
    Hypervisor,
    #[error("the processors of this host have more extended state than is saved")]
    ExtendedState,
    #[error("the processors of this host lack features that the saved ones have (CPUID leaf {leaf:#x})")]
    Processor { leaf: u32 },
    #[error("KVM refuses {value:#x} for model-specific register {index:#x}, which the saved vCPU has")]
    Register { index: u32, value: u64 },
    #[error("the saved machine has {saved} devices, and {given} are given")]
    DeviceCount { saved: usize, given: usize },
    #[error("device {device} of the saved machine is {saved}, and {given} is given")]
    DevicePlace { device: usize, saved: &'static str, given: &'static str },
    #[error("device {device}: {error}")]
    DeviceState { device: usize, error: StateError },
    #[error("device {0} had requests come home again and again while the machine was written")]
    Restless(usize),
    #[error("{0}")]
    Vcpus(String),
}

impl SnapshotError {
    fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { what, source: io::Error::from_raw_os_error(error.errno()) }
    }
}

/// What the machine is: the head of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MachineState {
    /// The program that saved it.
    program: String,
    /// Bytes of guest memory.
    pub(crate) memory: u64,
    /// An envelope each.
    vcpus: Vec<Vec<u8>>,
    devices: Vec<DeviceState>,
    fixed: FixedState,
}

impl SavedState for MachineState {
    const KIND: &'static str = "microvm";
    const VERSION: u16 = 1;
}

/// A device of a description.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct DeviceState {
    pci: bool,
    pipeline: String,
    saved: Vec<u8>,
}

/// Saves a machine whose vCPUs wait.
#[derive(Debug)]
pub(crate) struct Saver {
    pub(crate) fixed: Fixed,
    pub(crate) devices: Arc<Vec<Device>>,
    pub(crate) control: Arc<Control>,
}

impl Saver {
    /// Writes the file; the number of bytes of guest memory in it.
    ///
    /// A device that is not at rest is saved with the requests that it has not done, and is not to go on here.
    pub(crate) fn save(&self, path: &Path) -> Result<u64, SnapshotError> {
        let memory = self.fixed.vm.memory();
        let vcpus = self.control.gate.ask(PATIENCE).map_err(SnapshotError::Vcpus)?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let devices = self.save_devices()?;
            let state = MachineState {
                program: format!("microvm {}", env!("CARGO_PKG_VERSION")),
                memory: self.fixed.vm.memory_size(),
                vcpus: vcpus.clone(),
                devices: devices.clone(),
                fixed: self.fixed.save()?,
            };
            // What comes home from a device that is stuck changes the guest's memory: then it is written again.
            let still_true = || match self.changed_since(&devices)? {
                Some(device) => Err(SnapshotError::Restless(device)),
                None => Ok(()),
            };
            match file::write(path, memory, &state.to_envelope(), still_true) {
                Err(SnapshotError::Restless(_)) if attempt < ATTEMPTS => {}
                done => return done,
            }
        }
    }

    fn save_devices(&self) -> Result<Vec<DeviceState>, SnapshotError> {
        let save = |(number, device): (usize, &Device)| {
            let saved = device.frontend().save();
            Ok(DeviceState {
                pci: device.place() == Place::Pci,
                pipeline: device.description().to_string(),
                saved: saved.map_err(|error| SnapshotError::DeviceState { device: number, error })?,
            })
        };
        self.devices.iter().enumerate().map(save).collect()
    }

    fn changed_since(&self, before: &[DeviceState]) -> Result<Option<usize>, SnapshotError> {
        let now = self.save_devices()?;
        Ok(now.iter().zip(before).position(|(now, before)| now.saved != before.saved))
    }
}

/// A saved machine that was read and found whole.
#[derive(Debug)]
pub(crate) struct Snapshot {
    saved: file::Saved,
    state: MachineState,
    vcpus: Vec<VcpuState>,
}

impl Snapshot {
    /// Reads a file. Nothing of the machine is made yet.
    pub(crate) fn open(path: &Path) -> Result<Self, SnapshotError> {
        let saved = file::Saved::open(path)?;
        let state = MachineState::from_envelope(&saved.head).map_err(SnapshotError::State)?;
        let vcpus = state.vcpus.iter().map(|bytes| VcpuState::from_envelope(bytes)).collect::<Result<_, _>>();
        Ok(Self { saved, vcpus: vcpus.map_err(SnapshotError::State)?, state })
    }

    /// Bytes of guest memory.
    pub(crate) fn memory_size(&self) -> u64 {
        self.state.memory
    }

    /// How many vCPUs it has.
    pub(crate) fn vcpu_count(&self) -> u32 {
        self.vcpus.len() as u32
    }

    /// Where its devices are and what they are made of.
    pub(crate) fn devices(&self) -> impl Iterator<Item = (Place, &str)> {
        self.state.devices.iter().map(|device| (device.place(), device.pipeline.as_str()))
    }

    /// The vCPUs.
    pub(crate) fn vcpus(&self) -> &[VcpuState] {
        &self.vcpus
    }

    /// Whether these are places for its devices.
    pub(crate) fn check_places(&self, given: &[Place]) -> Result<(), SnapshotError> {
        let saved = &self.state.devices;
        if saved.len() != given.len() {
            return Err(SnapshotError::DeviceCount { saved: saved.len(), given: given.len() });
        }
        let differs = saved.iter().zip(given).position(|(saved, given)| saved.place() != *given);
        differs.map_or(Ok(()), |device| {
            let (saved, given) = (saved[device].place().describe(), given[device].describe());
            Err(SnapshotError::DevicePlace { device, saved, given })
        })
    }

    /// Fills a machine's memory, before there are vCPUs.
    pub(crate) fn load(&self, memory: &GuestMemoryMmap) -> Result<(), SnapshotError> {
        self.saved.load(memory)
    }

    /// Gives a machine all else, once its vCPUs have their state; its devices run when this returns.
    pub(crate) fn restore(&self, fixed: &Fixed, devices: &[Device]) -> Result<(), SnapshotError> {
        fixed.restore(&self.state.fixed)?;
        for (number, (device, saved)) in devices.iter().zip(&self.state.devices).enumerate() {
            let restored = device.frontend().restore(&saved.saved);
            restored.map_err(|error| SnapshotError::DeviceState { device: number, error })?;
        }
        fixed.find_windows();
        let tickets: Vec<_> = devices.iter().map(|device| device.frontend().resume()).collect();
        // One that takes longer goes on by itself.
        for ticket in tickets {
            let _ = ticket.wait(PATIENCE);
        }
        Ok(())
    }
}

impl DeviceState {
    fn place(&self) -> Place {
        if self.pci { Place::Pci } else { Place::Mmio }
    }
}
