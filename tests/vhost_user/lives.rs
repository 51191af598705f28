//! A card whose server comes back in this process, over stages that hold frames, drop them and let them fail.

use super::card::{number, outlives_servers};
use super::rig::{POLL, Served, within_limit};
use iovirt_backends::interposers::filter::{FilterControl, Verdict};
use iovirt_core::test_utils::rounds_or;

/// The lives of a server.
const LIVES: u64 = 200;

/// A card above those stages.
fn card(stages: &str) -> Served {
    Served::new(&format!("virtio-net,queues=2,queue-size=256 -> {stages}"), 2, POLL)
}

fn outlives(stages: &'static str, prepare: fn(&Served)) {
    within_limit(stages, move || {
        outlives_servers(rounds_or(LIVES), || {
            let served = card(stages);
            prepare(&served);
            (served.socket(), served)
        });
    });
}

#[test]
fn a_card_outlives_servers_of_a_bare_network() {
    outlives("loopback", |_| {});
}

#[test]
fn a_card_outlives_servers_whose_frames_wait() {
    outlives("stats -> delay,time=50us,jitter=300us -> loopback", |_| {});
}

#[test]
fn a_card_outlives_servers_whose_frames_take_turns() {
    outlives("scheduled,group=link,depth=4 -> delay,time=50us,jitter=300us -> stats -> loopback", |_| {});
}

/// A frame that is dropped, or fails, comes home before those that wait below.
#[test]
fn a_card_outlives_servers_that_drop_frames_above_others_that_wait() {
    outlives("filter -> delay,time=50us,jitter=300us -> loopback", |served| {
        let control = served.device().stages().control::<FilterControl>("filter").unwrap();
        control.set(|frame| if number(frame.bytes) % 3 == 0 { Verdict::Drop } else { Verdict::Pass });
    });
}

#[test]
fn a_card_outlives_servers_whose_frames_fail_or_are_lost() {
    for kind in ["error", "drop"] {
        let stages =
            format!("fault,fail=transmit,every=3,kind={kind} -> delay,time=50us,jitter=300us -> loopback");
        outlives(stages.leak(), |_| {});
    }
}
