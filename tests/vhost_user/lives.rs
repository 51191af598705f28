//! A card whose server comes back in this process, over stages that hold frames, drop them and let them fail.

use super::card::{number, outlives_servers};
use super::frames::{frame, options};
use super::raw::{Raw, code, duplicate, longs, words};
use super::rig::{POLL, Served, wait_until, within_limit};
use iovirt_backends::interposers::filter::{FilterControl, Verdict};
use iovirt_core::test_utils::rounds_or;
use std::os::fd::AsFd;
use vhost_user_driver::net::NetDriver;

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
        control
            .set(|frame| if number(frame.bytes).is_multiple_of(3) { Verdict::Drop } else { Verdict::Pass });
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

/// Its used index is that of a ring that begins, and yet its driver may wait for an interrupt that a dead server did not send.
#[test]
fn a_ring_whose_index_came_round_to_zero_is_interrupted() {
    const TX: usize = 1;
    within_limit("a ring that came round", || {
        let served = card("loopback");
        let mut driver = NetDriver::connect(&served.socket(), &options(2)).unwrap();
        let raw = Raw::on(duplicate(driver.session.frontend()).into());
        let (_, sender) = &mut driver.pairs[0];
        for _ in 0..256 {
            for number in 0..256 {
                assert!(sender.send(&frame(0, number)).unwrap());
            }
            sender.publish().unwrap();
            wait_until("the frames are sent", || sender.reclaim().unwrap() == 0);
        }
        assert_eq!(sender.queue().ring().used_index(), 0);
        let base = raw.ask(code::GET_VRING_BASE, &words(&[TX as u32, 0]));
        assert_eq!(base, words(&[TX as u32, 0]));
        let before = served.device().counters()[TX].interrupts;
        let doorbell = duplicate(sender.queue().kick_fd());
        // It is enabled still, so it runs at once.
        assert_eq!(raw.tell_with(code::SET_VRING_KICK, &longs(&[TX as u64]), &[doorbell.as_fd()]), 0);
        wait_until("an interrupt", || served.device().counters()[TX].interrupts == before + 1);
    });
}
