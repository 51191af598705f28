//! The built-in guest: a driver of our own that needs no kernel, and runs on every KVM that runs unpaged 32-bit code.
//!
//! `program.s` is the guest, `program` brings it in, `layout` is what both sides agree on, `records` what it tells.

mod layout;
mod program;
mod records;

use std::sync::Arc;
use std::time::Duration;

use iovirt::describe::{Chain, Description};
use iovirt::frontends::pci::PciAddress;
use iovirt::registry::Registry;
use vm_memory::{Bytes, GuestAddress};

use crate::control::Stop;
use crate::devices::{AttachDeviceError, Device, DeviceReport, Place};
use crate::entry::{self, Entry};
use crate::error::MachineError;
use crate::guest::layout::{CODE, CODE_BAD, DEBUG_PORT, DeviceEntry, FLAG_VERIFY};
use crate::guest::records::DebugPort;
use crate::images::{self, Images};
use crate::layout::{PCI_GSIS, Slot};
use crate::machine::Machine;
use crate::report::Report;

pub(crate) use layout::Phase;
pub(crate) use records::{GuestDevice, PhaseReport};

/// What is run where no pipeline was asked for.
pub(crate) const DEFAULT_PIPELINES: [&str; 2] =
    ["virtio-blk -> stats -> file,path=disk.img", "virtio-net -> stats -> loopback"];

/// Blocks of a disk that are written and read, and frames that are sent.
const ITEMS: u32 = 1024;
/// Requests or frames of one batch.
const DEPTH: u32 = 32;
/// Requests or frames that have the device for themselves.
const ALONE: u32 = 32;
/// The longest frame, a multiple of four bytes.
const FRAME: u32 = 1512;
/// The header of a frame.
const ETHERNET: u32 = 14;
/// How long the guest may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Why the guest did not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    #[error(transparent)]
    Attach(#[from] AttachDeviceError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("a temporary image: {0}")]
    Image(#[from] std::io::Error),
    /// It did not come as far as its first words.
    #[error("this KVM cannot run the built-in guest: {0}")]
    CannotRun(String),
}

/// A device of the guest, and the images in place of its files.
struct Part {
    description: Description,
    device: Device,
    found: Found,
    images: Images,
}

/// Runs the guest. Files in the pipelines are replaced by temporary images.
pub(crate) fn run(
    registry: &Registry,
    descriptions: Vec<(Place, Description)>,
    machine: Machine,
) -> Result<Report, GuestError> {
    run_expecting(gives_back, registry, descriptions, machine)
}

/// The same; `comes_back` says of what is below a device whether it gives back what is written or sent.
fn run_expecting(
    comes_back: fn(&Chain) -> bool,
    registry: &Registry,
    descriptions: Vec<(Place, Description)>,
    mut machine: Machine,
) -> Result<Report, GuestError> {
    let attach = |(place, description)| attach(registry, place, description, &mut machine);
    let parts = descriptions.into_iter().map(attach).collect::<Result<Vec<_>, _>>()?;
    let entries: Vec<_> = parts.iter().map(|part| part.entry(comes_back)).collect();
    let port = Arc::new(DebugPort::default());
    machine.ports.insert(DEBUG_PORT.into(), 4, "debug", port.clone())?;
    let entry = Entry::Pvh(CODE.into());
    let memory = machine.vm.memory();
    memory
        .write_slice(program::bytes(), GuestAddress(CODE.into()))
        .map_err(MachineError::guest_write("the built-in guest"))?;
    layout::write_table(memory, &entries)?;
    entry::write_tables(memory, entry)?;

    let outcome = machine.run_code(entry, LIMIT)?;
    let records = port.records();
    if !records::said_hello(&records) && !matches!(outcome.stop, Stop::Quit | Stop::Signal(_)) {
        return Err(GuestError::CannotRun(outcome.stop.describe()));
    }
    let seen = records::by_device(&records, parts.len());
    // What a device does at its end is not the guest's.
    let reports: Vec<_> = parts.iter().map(|part| part.device.report()).collect();
    let mut devices = Vec::new();
    for ((part, report), seen) in parts.iter().zip(reports).zip(seen) {
        part.device.finish();
        devices.push(DeviceReport { guest: Some(part.examined(seen)?), ..report });
    }
    let (end, code) = verdict(&outcome.stop, records::said_end(&records), &devices);
    Ok(Report {
        driven_by: "KVM, built-in guest",
        end,
        code,
        seconds: outcome.ran.as_secs_f64(),
        devices,
        exits: Some(outcome.exits),
    })
}

/// Where the guest finds a device.
#[derive(Clone, Copy, Debug)]
enum Found {
    Slot(Slot),
    Function(PciAddress),
}

fn attach(
    registry: &Registry,
    place: Place,
    mut description: Description,
    machine: &mut Machine,
) -> Result<Part, GuestError> {
    let images = Images::in_place_of_files(&mut description)?;
    let device = Device::attach(registry, description.clone(), place, machine)?;
    let newest = match place {
        Place::Mmio => machine.slots.taken().last().copied().map(Found::Slot),
        Place::Pci => machine.pci()?.functions().last().map(|(address, _)| Found::Function(*address)),
    };
    let found = newest.ok_or(MachineError::NoSlot(0))?;
    Ok(Part { description, device, found, images })
}

impl Part {
    /// What the guest is told about the device.
    fn entry(&self, comes_back: fn(&Chain) -> bool) -> DeviceEntry {
        let frame = mtu(&self.description.below).map_or(FRAME, |mtu| FRAME.min((mtu + ETHERNET) & !3));
        let (window, function, gsi) = match self.found {
            Found::Slot(slot) => (slot.address as u32, 0, slot.gsi),
            Found::Function(address) => (0, 1 << 31 | u32::from(address.device()) << 11, pin(address)),
        };
        DeviceEntry {
            window,
            function,
            gsi,
            flags: if comes_back(&self.description.below) { FLAG_VERIFY } else { 0 },
            items: ITEMS,
            depth: DEPTH,
            alone: ALONE,
            frame,
        }
    }

    /// What the guest saw, and what this process finds in the image.
    fn examined(&self, mut seen: GuestDevice) -> Result<GuestDevice, GuestError> {
        let wrote = seen.phases.iter().any(|phase| phase.phase == Phase::Write);
        if let Some(image) = self.images.of_whole_disk(&self.description).filter(|_| wrote) {
            let wrong =
                images::first_wrong(image, seen.extent.into(), |block| layout::content(block as u32))?;
            seen.image_is_right = Some(wrong.is_none());
            if let Some(block) = wrong {
                let wrong = format!("block {block} of the image is not what the guest wrote");
                seen.trouble.get_or_insert(wrong);
            }
        }
        Ok(seen)
    }
}

/// The line of a function that is driven by its pin: every second one. The others, 0, send messages.
fn pin(address: PciAddress) -> u32 {
    let device = usize::from(address.device());
    if device.is_multiple_of(2) { PCI_GSIS[device % PCI_GSIS.len()] } else { 0 }
}

/// Whether what is written can be read again, and what is sent comes back.
fn gives_back(chain: &Chain) -> bool {
    !["null", "tap"].contains(&chain.backend.stage.name())
}

/// The longest payload, where the back-end was told one.
fn mtu(chain: &Chain) -> Option<u32> {
    chain.backend.stage.get("mtu")?.parse().ok()
}

/// How it ended, for people, and the exit code of the process.
fn verdict(stop: &Stop, said_end: bool, devices: &[DeviceReport]) -> (String, u8) {
    let guests = || devices.iter().filter_map(|device| device.guest.as_ref());
    let troubles: Vec<&str> = guests().filter_map(|guest| guest.trouble.as_deref()).collect();
    let code = match (stop.exit_code(), troubles.is_empty()) {
        (0, false) => CODE_BAD,
        (code, _) => code,
    };
    if !troubles.is_empty() {
        return (format!("WRONG: {}", troubles.join("; ")), code);
    }
    if code != 0 || !said_end {
        return (stop.describe(), code);
    }
    let verified: u64 = guests().flat_map(|guest| &guest.phases).map(|phase| u64::from(phase.verified)).sum();
    let what = match verified >> 10 {
        0 => "all requests were answered; there was nothing to compare with".to_owned(),
        kib => format!("all is well: {kib} KiB came back as they were written or sent"),
    };
    (what, code)
}

#[cfg(test)]
mod tests;
