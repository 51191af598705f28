//! The same devices over vhost-user: drained by their embedder or stopped by their front-end, reset by a message, and saved as the bases
//! of their rings and a record of chains in flight, to be restored in another session. And connections that are broken on purpose.

use super::mistaken::{forgets_heads, forgets_ring};
use super::monitor::Monitor;
use super::raw::code;
use super::sabotage::found;
use super::talk::{HONEST, Wire};
use super::{
    Behind, DeviceCase, Surroundings, Transport, all, card, disk, disk_with_room, live, seeds, stacks,
};
use iovirt::core::test_utils::lifecycle::{Run, device};
use iovirt::frontends::virtio::VirtioDevice;
use iovirt::registry::Family;
use std::collections::BTreeSet;
use std::sync::Arc;

fn over(wire: Wire, device: Arc<dyn VirtioDevice>, at: &Surroundings) -> Behind {
    let monitor = Monitor::new(device, at, wire);
    let wait = monitor.patience();
    (Arc::new(monitor), Box::new(wait))
}

fn vhost_user(device: Arc<dyn VirtioDevice>, at: &Surroundings) -> Behind {
    over(HONEST, device, at)
}

#[test]
fn a_disk_over_vhost_user() {
    let (mut total, mut cases) = (Run::default(), 0);
    for stages in stacks(Family::Block) {
        let name = format!("vhost-user -> virtio-blk -> {stages} -> memory");
        total += live(&DeviceCase::disk(&name, &disk(&stages, "memory,size=1M", vhost_user)), 8);
        cases += 1;
    }
    all(cases, &total);
}

/// Every other device has room for a few only of the chains that its predecessor had in flight.
#[test]
fn a_disk_over_vhost_user_with_less_room_than_its_rings() {
    let (mut total, mut cases) = (Run::default(), 0);
    for stages in stacks(Family::Block) {
        let name = format!("vhost-user -> virtio-blk with little room -> {stages} -> memory");
        let fresh = disk_with_room([32, 4], &stages, "memory,size=1M", vhost_user);
        total += live(&DeviceCase::disk(&name, &fresh), 8);
        cases += 1;
    }
    all(cases, &total);
}

#[test]
fn a_card_over_vhost_user() {
    let (mut total, mut cases) = (Run::default(), 0);
    for stages in stacks(Family::Net) {
        let name = format!("vhost-user -> virtio-net -> {stages} -> loopback");
        total += live(&DeviceCase::network(&name, &card(&stages, "loopback", vhost_user)), 8);
        cases += 1;
    }
    all(cases, &total);
}

/// Though a session has a thread of its own.
#[test]
fn the_same_seed_is_the_same_run_over_vhost_user() {
    let mut traces = BTreeSet::new();
    let disk = disk("swappable", "memory,size=1M", vhost_user);
    let card = card("swappable", "loopback", vhost_user);
    for case in [DeviceCase::disk("disk", &disk), DeviceCase::network("card", &card)] {
        for seed in seeds(4) {
            let run = device::run_one(&case, seed).unwrap_or_else(|failure| panic!("{failure}"));
            assert_eq!(Ok(run), device::run_one(&case, seed));
            traces.insert(run.trace);
        }
    }
    assert!(traces.len() > 1);
}

#[test]
fn a_ring_that_a_session_starts_and_nobody_looks_at_is_found() {
    let transport: Transport = |device, at| vhost_user(forgets_ring(device), at);
    let words = "nobody has a reason to do anything";
    found(&DeviceCase::disk("disk, forgets its ring", &disk("", "memory,size=1M", transport)), words);
    found(&DeviceCase::network("card, forgets its ring", &card("", "loopback", transport)), words);
}

#[test]
fn a_record_that_is_not_served_again_is_found() {
    let transport: Transport = |device, at| vhost_user(forgets_heads(device), at);
    let case = disk("", "memory,size=1M", transport);
    found(&DeviceCase::disk("disk, forgets heads", &case), "nobody has a reason to do anything");
}

/// Another message arrives in the place of a reset, and is obeyed.
const NO_RESET: Wire =
    Wire { there: |code| if code == code::RESET_DEVICE { code::SET_OWNER } else { code }, ..HONEST };

#[test]
fn a_reset_that_a_session_only_acknowledges_is_found() {
    let transport: Transport = |device, at| over(NO_RESET, device, at);
    // What it finds first depends on the seed.
    let words = "a device that was reset|came back twice|was refused";
    found(&DeviceCase::disk("disk, no reset", &disk("", "memory,size=1M", transport)), words);
    found(&DeviceCase::network("card, no reset", &card("", "loopback", transport)), words);
}

/// The base is told as one less.
const BASE_BEHIND: Wire = Wire {
    back: |code, answer| {
        if code == code::GET_VRING_BASE {
            answer[4] = answer[4].wrapping_sub(1);
        }
    },
    ..HONEST
};

#[test]
fn a_base_that_is_wrong_is_found() {
    let transport: Transport = |device, at| over(BASE_BEHIND, device, at);
    let words = "rests with chains that were not returned";
    found(&DeviceCase::disk("disk, wrong base", &disk("", "memory,size=1M", transport)), words);
    found(&DeviceCase::network("card, wrong base", &card("", "loopback", transport)), words);
}
