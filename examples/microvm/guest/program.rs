//! The guest's code, assembled with the rest of this program and copied into the guest.

use std::arch::global_asm;
use std::mem::offset_of;

use super::layout::{
    AVAILABLE, BLOCK, CODE, CODE_BAD, CODE_EXCEPTION, DATA, DEBUG_PORT, DEVICES, DeviceEntry, FLAG_VERIFY,
    FRAME_ROOM, HEADERS, IDT, KIND_DEVICE, KIND_END, KIND_HELLO, KIND_PHASE, KIND_TROUBLE, KNOCK_PATIENCE,
    KNOCKS, Phase, QUEUE_SIZE, QueueState, RECEIVED, RECORD, RINGS, RINGS_LEN, SCRAMBLE, SENT, STACK,
    STATUSES, TEMPLATE, TROUBLE_EXCEPTION, TROUBLE_NO_DEVICE, TROUBLE_REFUSED, TROUBLE_SILENT,
    TROUBLE_SMALL_QUEUE, USED, VECTOR, WORDS, Word, variable,
};
use crate::layout::{IO_APIC, LOCAL_APIC};
use crate::power::EXIT_PORT;

const FEATURE_EVENT_INDEX: u32 = 1 << 29;
const BLK_READ_ONLY: u32 = 1 << 5;
const BLK_FLUSH: u32 = 1 << 9;
const NET_MAC: u32 = 1 << 5;
/// The code segment in the table of descriptors that the machine starts with.
const CODE_SELECTOR: u32 = 0x10;

global_asm!(
    include_str!("program.s"),
    include_str!("pci.s"),
    ".global iovirt_microvm_guest_end",
    ".hidden iovirt_microvm_guest_end",
    "iovirt_microvm_guest_end:",
    ".code64",
    ".popsection",
    code = const CODE,
    code_selector = const CODE_SELECTOR,
    stack = const STACK,
    idt = const IDT,
    idt_pointer = const variable!(idt_pointer),
    vector = const VECTOR,
    apic = const LOCAL_APIC,
    io_apic = const IO_APIC,
    debug_port = const DEBUG_PORT,
    exit_port = const EXIT_PORT,
    code_bad = const CODE_BAD,
    code_exception = const CODE_EXCEPTION,

    devices = const DEVICES,
    d_window = const offset_of!(DeviceEntry, window),
    d_function = const offset_of!(DeviceEntry, function),
    d_gsi = const offset_of!(DeviceEntry, gsi),
    d_flags = const offset_of!(DeviceEntry, flags),
    d_items = const offset_of!(DeviceEntry, items),
    d_depth = const offset_of!(DeviceEntry, depth),
    d_alone = const offset_of!(DeviceEntry, alone),
    d_frame = const offset_of!(DeviceEntry, frame),
    d_size = const size_of::<DeviceEntry>(),
    flag_verify = const FLAG_VERIFY,

    bad = const variable!(bad),
    function = const variable!(function),
    config = const variable!(config),
    structures = const variable!(structures),
    multiplier = const variable!(multiplier),
    taken = const variable!(taken),
    depth = const variable!(depth),
    items = const variable!(items),
    batch = const variable!(batch),
    item = const variable!(item),
    in_batch = const variable!(in_batch),
    slot = const variable!(slot),
    blocks = const variable!(blocks),
    request = const variable!(request),
    rang = const variable!(rang),

    queue_0 = const variable!(queues),
    queue_1 = const variable!(queues) + size_of::<QueueState>() as u32,
    q_index = const offset_of!(QueueState, index),
    q_rings = const offset_of!(QueueState, rings),
    q_mask = const offset_of!(QueueState, mask),
    q_next = const offset_of!(QueueState, next),
    q_seen = const offset_of!(QueueState, seen),
    q_doorbell = const offset_of!(QueueState, doorbell),
    queue_size = const QUEUE_SIZE,
    rings_0 = const RINGS[0],
    rings_1 = const RINGS[1],
    rings_len = const RINGS_LEN,
    available = const AVAILABLE,
    used = const USED,

    template = const TEMPLATE,
    scramble = const SCRAMBLE,
    block = const BLOCK,
    headers = const HEADERS,
    statuses = const STATUSES,
    data = const DATA,
    sent = const SENT,
    received = const RECEIVED,
    frame_room = const FRAME_ROOM,
    knocks = const KNOCKS,
    knock_patience = const KNOCK_PATIENCE,
    disk_features = const BLK_FLUSH | BLK_READ_ONLY | FEATURE_EVENT_INDEX,
    network_features = const NET_MAC | FEATURE_EVENT_INDEX,
    f_flush = const BLK_FLUSH,
    f_read_only = const BLK_READ_ONLY,

    record = const RECORD,
    record_words = const WORDS,
    kind = const Word::Kind.address(),
    offset = const Word::Offset.address(),
    what = const Word::What.address(),
    value = const Word::Value.address(),
    requests = const Word::Requests.address(),
    bytes = const Word::Bytes.address(),
    verified = const Word::Verified.address(),
    mismatches = const Word::Mismatches.address(),
    failures = const Word::Failures.address(),
    first_bad = const Word::FirstBad.address(),
    doorbells = const Word::Doorbells.address(),
    interrupts = const Word::Interrupts.address(),
    halts = const Word::Halts.address(),
    features = const Word::Features.address(),
    size = const Word::Size.address(),
    start = const Word::Start.address(),
    end = const Word::End.address(),
    wait = const Word::Wait.address(),
    wait_min = const Word::WaitMin.address(),
    wait_max = const Word::WaitMax.address(),
    kind_hello = const KIND_HELLO,
    kind_device = const KIND_DEVICE,
    kind_phase = const KIND_PHASE,
    kind_trouble = const KIND_TROUBLE,
    kind_end = const KIND_END,
    trouble_no_device = const TROUBLE_NO_DEVICE,
    trouble_refused = const TROUBLE_REFUSED,
    trouble_small_queue = const TROUBLE_SMALL_QUEUE,
    trouble_silent = const TROUBLE_SILENT,
    trouble_exception = const TROUBLE_EXCEPTION,
    phase_write = const Phase::Write as u32,
    phase_flush = const Phase::Flush as u32,
    phase_read = const Phase::Read as u32,
    phase_read_alone = const Phase::ReadAlone as u32,
    phase_frames = const Phase::Frames as u32,
    phase_frames_alone = const Phase::FramesAlone as u32,
);

unsafe extern "C" {
    #[link_name = "iovirt_microvm_guest_start"]
    static START: u8;
    #[link_name = "iovirt_microvm_guest_end"]
    static END: u8;
}

/// The code, to be copied to [`CODE`].
pub(super) fn bytes() -> &'static [u8] {
    let (start, end) = (&raw const START, &raw const END);
    // SAFETY: the two symbols enclose one section of this program's own read-only data, which is never written, and lives as
    // long as the program.
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_and_knows_its_handlers() {
        let code = bytes();
        assert!((1000..(DEVICES - CODE) as usize).contains(&code.len()), "{}", code.len());
        // A short jump over the addresses of two handlers, which are in the code.
        assert_eq!(code[..2], [0xeb, 14]);
        for address in code[8..16].chunks_exact(4) {
            let address = u32::from_le_bytes(address.try_into().unwrap());
            assert!((CODE..CODE + code.len() as u32).contains(&address), "{address:#x}");
        }
    }
}
