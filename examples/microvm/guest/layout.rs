//! What the guest and its host agree on: where things lie in the guest's memory, its parameters, and what it reports.

use std::mem::offset_of;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::MachineError;

/// The guest's code, and its first instruction.
pub(super) const CODE: u32 = 0x10_0000;
/// The table of devices, written by the host. The code ends below it.
pub(super) const DEVICES: u32 = 0x11_0000;
/// The guest's variables.
const VARIABLES: u32 = 0x11_1000;
pub(super) const RECORD: u32 = VARIABLES + offset_of!(Variables, record) as u32;
pub(super) const IDT: u32 = 0x11_2000;
/// The stack ends here.
pub(super) const STACK: u32 = 0x11_4000;
pub(super) const TEMPLATE: u32 = 0x11_5000;
pub(super) const HEADERS: u32 = 0x11_6000;
pub(super) const STATUSES: u32 = 0x11_7000;
/// Rings of the two queues: descriptors, and at these offsets the ring of available and that of used ones.
pub(super) const RINGS: [u32; 2] = [0x12_0000, 0x12_4000];
pub(super) const RINGS_LEN: u32 = 0x3000;
pub(super) const AVAILABLE: u32 = 0x1000;
pub(super) const USED: u32 = 0x2000;
/// Most entries of a queue.
pub(super) const QUEUE_SIZE: u32 = 128;
/// Buffers of requests, of sent frames and of received ones.
pub(super) const DATA: u32 = 0x20_0000;
pub(super) const SENT: u32 = 0x30_0000;
pub(super) const RECEIVED: u32 = 0x38_0000;
/// Bytes of a buffer for a frame and its header of 12 bytes.
pub(super) const FRAME_ROOM: u32 = 2048;
/// Bytes of a request.
pub(crate) const BLOCK: u32 = 4096;

/// The vector of all devices.
pub(super) const VECTOR: u32 = 0x40;
/// Word `i` of a block holds `i` times this, but for the first of each sector, which holds the sector's number.
pub(super) const SCRAMBLE: u32 = 0x9e37_79b1;

/// The port that takes the guest's records, four bytes at a time.
pub(super) const DEBUG_PORT: u16 = 0x510;
/// Exit codes of the guest: something was not right, and an exception.
pub(crate) const CODE_BAD: u8 = 3;
pub(super) const CODE_EXCEPTION: u8 = 4;

/// How often the first frame is sent until it comes back, and how long each time, in cycles of the processor's clock.
pub(super) const KNOCKS: u32 = 20;
pub(super) const KNOCK_PATIENCE: u32 = 1 << 28;

/// One device in the table; one without a window and a function ends it.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct DeviceEntry {
    /// The address of its registers, where it is not on the PCI bus.
    pub(super) window: u32,
    /// The address of its configuration space for the port 0xcf8, where it is.
    pub(super) function: u32,
    /// Its line of the I/O APIC; 0 on the PCI bus where it sends messages.
    pub(super) gsi: u32,
    /// [`FLAG_VERIFY`].
    pub(super) flags: u32,
    /// How many blocks or frames to move.
    pub(super) items: u32,
    /// How many at a time, at most.
    pub(super) depth: u32,
    /// How many of them one by one, afterwards.
    pub(super) alone: u32,
    /// Bytes of a frame, a multiple of 4, at most [`FRAME_ROOM`] less its header.
    pub(super) frame: u32,
}

/// What is written, or sent, must come back.
pub(super) const FLAG_VERIFY: u32 = 1;

/// Writes the table of devices.
pub(super) fn write_table(memory: &GuestMemoryMmap, entries: &[DeviceEntry]) -> Result<(), MachineError> {
    let end = DeviceEntry::default();
    let words = entries.iter().chain([&end]).flat_map(|entry| {
        [
            entry.window,
            entry.function,
            entry.gsi,
            entry.flags,
            entry.items,
            entry.depth,
            entry.alone,
            entry.frame,
        ]
    });
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    memory
        .write_slice(&bytes, GuestAddress(u64::from(DEVICES)))
        .map_err(MachineError::guest_write("the guest's parameters"))
}

/// One queue as the guest keeps it.
#[repr(C)]
pub(super) struct QueueState {
    pub(super) index: u32,
    pub(super) rings: u32,
    /// Its size less 1.
    pub(super) mask: u32,
    /// How many chains were made available, and how many used ones were taken.
    pub(super) next: u32,
    pub(super) seen: u32,
    /// The address to write to.
    pub(super) doorbell: u32,
}

/// The guest's variables.
#[repr(C)]
pub(super) struct Variables {
    record: [u32; WORDS],
    pub(super) queues: [QueueState; 2],
    pub(super) idt_pointer: [u32; 2],
    /// How many things were not right, over all devices.
    pub(super) bad: u32,
    /// Of the device at hand, as in its entry.
    pub(super) function: u32,
    /// The address of its configuration.
    pub(super) config: u32,
    /// On PCI: the addresses of virtio's structures by their numbers, and the distance of two doorbells.
    pub(super) structures: [u32; 8],
    pub(super) multiplier: u32,
    /// The features in use, lower half.
    pub(super) taken: u32,
    pub(super) depth: u32,
    /// Items of the current phase, how many at a time, the first one of the current batch, and how many are in it.
    pub(super) items: u32,
    pub(super) batch: u32,
    pub(super) item: u32,
    pub(super) in_batch: u32,
    /// The item of the batch that is at hand.
    pub(super) slot: u32,
    /// The size of the disk in blocks, as far as it is used.
    pub(super) blocks: u32,
    /// The type of the current requests: 0 in, 1 out.
    pub(super) request: u32,
    /// When the doorbell was rung.
    pub(super) rang: [u32; 2],
}

/// The address of a variable.
macro_rules! variable {
    ($($field:tt)+) => {
        $crate::guest::layout::VARIABLES_BASE + std::mem::offset_of!($crate::guest::layout::Variables, $($field)+) as u32
    };
}
pub(super) use variable;
pub(super) const VARIABLES_BASE: u32 = VARIABLES;

/// Words of a record.
pub(super) const WORDS: usize = 24;

/// What stands where in a record. Numbers of two words have their lower half first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Word {
    /// What the record is about: one of the `KIND_` constants.
    Kind,
    /// Of the device's entry in the table.
    Offset,
    /// The phase, the device's type, or the reason of the trouble.
    What,
    /// What explains it.
    Value,
    Requests,
    Bytes,
    Verified,
    Mismatches,
    Failures,
    FirstBad,
    Doorbells,
    Interrupts,
    Halts,
    Features,
    Size,
    /// Of the processor's clock, two words.
    Start,
    End = 17,
    /// The sum over all batches of the time from the doorbell to the last answer, two words.
    Wait = 19,
    WaitMin = 21,
    WaitMax,
}

impl Word {
    /// Its address in the guest.
    pub(super) const fn address(self) -> u32 {
        RECORD + 4 * self as u32
    }
}

/// The guest runs.
pub(super) const KIND_HELLO: u32 = 1;
/// A device was found and set up.
pub(super) const KIND_DEVICE: u32 = 2;
/// A phase is over.
pub(super) const KIND_PHASE: u32 = 3;
/// A device cannot be driven.
pub(super) const KIND_TROUBLE: u32 = 4;
/// The guest is done.
pub(super) const KIND_END: u32 = 5;

/// There is no device of version 2 there, or none that the guest knows; the value is what it read.
pub(super) const TROUBLE_NO_DEVICE: u32 = 1;
/// The device does not take the features.
pub(super) const TROUBLE_REFUSED: u32 = 2;
/// The queue, of that many entries, has no room for a single request.
pub(super) const TROUBLE_SMALL_QUEUE: u32 = 3;
/// No frame comes back.
pub(super) const TROUBLE_SILENT: u32 = 4;
/// An exception, or an unexpected interrupt; the value is where, or the error code.
pub(super) const TROUBLE_EXCEPTION: u32 = 5;

/// What the guest does with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u32)]
pub(crate) enum Phase {
    Write = 1,
    Flush,
    Read,
    ReadAlone,
    Frames,
    FramesAlone,
}

impl Phase {
    /// All, in the order in which they run.
    pub(super) const ALL: [Self; 6] =
        [Self::Write, Self::Flush, Self::Read, Self::ReadAlone, Self::Frames, Self::FramesAlone];
}

/// What the guest leaves in a block: what it writes, and expects to read.
pub(super) fn content(block: u32) -> [u8; BLOCK as usize] {
    let mut bytes = [0; BLOCK as usize];
    for (index, word) in (0u32..).zip(bytes.chunks_exact_mut(4)) {
        let sector = index / 128;
        let value = if index % 128 == 0 { block * 8 + sector } else { index.wrapping_mul(SCRAMBLE) };
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}
