//! The guest on this machine's own KVM, where there is one that runs it.

use super::*;

/// Runs the guest on these pipelines, if this machine can.
fn run_guest(comes_back: fn(&Chain) -> bool, pipelines: &[&str]) -> Option<Report> {
    run_at(Place::Mmio, comes_back, pipelines)
}

fn run_at(place: Place, comes_back: fn(&Chain) -> bool, pipelines: &[&str]) -> Option<Report> {
    // No use of the helper for skipped tests: it is no fault of whoever runs them that a machine has no KVM.
    let machine = match Machine::for_own_code(32 << 20) {
        Ok(machine) => machine,
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    let registry = Registry::standard();
    let descriptions = pipelines.iter().map(|text| (place, registry.parse(text).unwrap())).collect();
    match run_expecting(comes_back, &registry, descriptions, machine) {
        Err(GuestError::CannotRun(reason)) => {
            eprintln!("skipped: {reason}");
            None
        }
        report => Some(report.unwrap()),
    }
}

fn guest(report: &Report, device: usize) -> &GuestDevice {
    report.devices[device].guest.as_ref().unwrap()
}

fn phase(guest: &GuestDevice, phase: Phase) -> &PhaseReport {
    guest.phases.iter().find(|report| report.phase == phase).unwrap()
}

#[test]
fn the_default_pipelines_give_everything_back() {
    let Some(report) = run_guest(gives_back, &DEFAULT_PIPELINES) else { return };
    assert_eq!((report.code, report.driven_by), (0, "KVM, built-in guest"), "{}", report.text());
    let (disk, network) = (guest(&report, 0), guest(&report, 1));
    assert_eq!(disk.image_is_right, Some(true));
    let read = phase(disk, Phase::Read);
    assert_eq!((read.requests, read.verified), (ITEMS, ITEMS * layout::BLOCK));
    assert_eq!(read.doorbells, ITEMS / DEPTH);
    assert!(read.interrupts <= read.doorbells + 1);
    assert_eq!(phase(disk, Phase::ReadAlone).doorbells, ALONE);
    let frames = phase(network, Phase::Frames);
    assert_eq!((frames.requests, frames.verified), (ITEMS, ITEMS * FRAME));
    // Doorbells are no exits: registers are accessed to set the device up, and twice for each interrupt.
    let [requests, doorbells, interrupts] = report.devices[0].totals();
    let window = &report.exits.as_ref().unwrap().mmio[0];
    assert!(window.reads + window.writes <= 2 * interrupts + 50, "{window:?}");
    assert_eq!(requests, u64::from(2 * ITEMS + 1 + ALONE));
    assert_eq!(doorbells, u64::from(2 * ITEMS / DEPTH + 1 + ALONE));
    let text = report.text();
    for part in ["all is well", "virtio-blk", "loopback", "p99", "per request", "holds the same bytes"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn the_same_on_the_pci_bus_by_messages_and_by_pin() {
    let Some(report) = run_at(Place::Pci, gives_back, &DEFAULT_PIPELINES) else { return };
    assert_eq!(report.code, 0, "{}", report.text());
    let (disk, network) = (guest(&report, 0), guest(&report, 1));
    assert_eq!(disk.image_is_right, Some(true));
    assert_eq!(phase(disk, Phase::Read).verified, ITEMS * layout::BLOCK);
    assert_eq!(phase(network, Phase::Frames).verified, ITEMS * FRAME);
    let windows = &report.exits.as_ref().unwrap().mmio;
    let memory = windows.iter().find(|window| window.name == "pci memory").unwrap();
    // The disk is the first function, whose messages take no access; the network's pin takes a read for each interrupt.
    let interrupts = |guest: &GuestDevice| guest.phases.iter().map(|phase| u64::from(phase.interrupts)).sum();
    let (by_message, by_pin): (u64, u64) = (interrupts(disk), interrupts(network));
    assert!(by_message > 0 && by_pin > 0, "{by_message} messages, {by_pin} by pin");
    assert!(memory.writes < 80, "{memory:?}");
    assert!((by_pin..by_pin + 100).contains(&memory.reads), "{by_pin} by pin, {memory:?}");
}

#[test]
fn what_comes_back_wrong_is_told() {
    // A null disk takes everything and reads as zeroes.
    let pipelines =
        ["virtio-blk -> null,size=1M", "virtio-blk -> fault,fail=write,every=100 -> memory,size=8M"];
    let Some(report) = run_guest(|_| true, &pipelines) else { return };
    assert_eq!(report.code, CODE_BAD);
    let null = guest(&report, 0);
    let read = phase(null, Phase::Read);
    assert_eq!((read.requests, read.mismatches, read.verified), (256, 256, 0));
    assert!(null.trouble.as_ref().unwrap().contains("256 did not hold what was written"));
    let fault = guest(&report, 1);
    let write = phase(fault, Phase::Write);
    assert_eq!((write.failures, write.first_bad), (10, Some(99)));
    assert_eq!(phase(fault, Phase::Read).mismatches, 10, "what was not written is not there");
    assert!(report.text().contains("WRONG"), "{}", report.text());
}

#[test]
fn a_network_that_swallows_frames_is_told() {
    let Some(report) = run_guest(gives_back, &["virtio-net -> filter,drop=receive -> loopback"]) else {
        return;
    };
    assert_eq!(report.code, CODE_BAD);
    assert!(guest(&report, 0).trouble.as_ref().unwrap().contains("did not come back"));
}

#[test]
fn odd_devices_are_driven_as_far_as_they_go() {
    let pipelines = [
        "virtio-blk,queue-size=2 -> memory,size=1M",
        "virtio-blk,queue-size=16,queues=4 -> memory,size=1M",
        "virtio-blk -> memory,size=1M,readonly=on",
        "virtio-blk -> null,size=1M",
        "virtio-net,queue-size=16,queues=2 -> stats -> loopback,mtu=100",
    ];
    let Some(report) = run_guest(gives_back, &pipelines) else { return };
    assert_eq!(report.code, CODE_BAD);
    assert!(guest(&report, 0).trouble.as_ref().unwrap().contains("queue of 2 entries"));
    let few = phase(guest(&report, 1), Phase::Read);
    assert_eq!((few.doorbells, few.verified), (256_u32.div_ceil(5), 1 << 20), "five at a time");
    let read_only = guest(&report, 2);
    assert!(read_only.phases.iter().all(|report| report.phase != Phase::Write && report.verified == 0));
    assert_eq!(phase(guest(&report, 3), Phase::Read).mismatches, 0, "a null disk keeps no promise");
    let frames = phase(guest(&report, 4), Phase::Frames);
    assert_eq!((frames.verified, frames.requests), (ITEMS * 112, ITEMS));
    assert!((1..5).all(|device| guest(&report, device).trouble.is_none()), "{}", report.text());
}
