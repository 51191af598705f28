//! A network card: frames go round over each pair of queues, also over a front-end that comes and goes.

use super::frames::{frame, options, round_trips};
use super::raw::{Raw, code, duplicate, longs, words};
use super::rig::{POLL, Served, within_limit};
use std::os::fd::AsFd;
use std::time::Duration;
use vhost_user_driver::net::NetDriver;

const CARD: &str = "virtio-net,mac=52:54:00:12:34:56,queues=2,queue-size=256 -> loopback";

#[test]
fn frames_go_round_over_two_pairs() {
    for poll in [Duration::ZERO, POLL] {
        within_limit("frames", move || {
            let served = Served::new(CARD, 2, poll);
            let mut driver = NetDriver::connect(&served.socket(), &options(4)).unwrap();
            round_trips(&mut driver, 2000);
        });
    }
}

#[test]
fn front_ends_of_a_card_come_and_go_with_frames_in_flight() {
    within_limit("front-ends of a card", || {
        let served = Served::new(CARD, 2, POLL);
        for round in 0..30 {
            // One pair, or both.
            let mut driver = NetDriver::connect(&served.socket(), &options(2 + 2 * (round % 2))).unwrap();
            round_trips(&mut driver, 20);
            for (_, sender) in &mut driver.pairs {
                while sender.send(&frame(0, 7)).unwrap() {}
                sender.publish().unwrap();
            }
            drop(driver);
        }
        assert_eq!(served.device().connections(), 30);
    });
}

/// Saved by its base and started at it again, as a VMM pauses its guest.
#[test]
fn a_card_stops_and_goes_on() {
    within_limit("a card that stops", || {
        let served = Served::new(CARD, 1, Duration::ZERO);
        let mut driver = NetDriver::connect(&served.socket(), &options(4)).unwrap();
        let raw = Raw::on(duplicate(driver.session.frontend()).into());
        for _ in 0..50 {
            round_trips(&mut driver, 10);
            for queue in 0..4u32 {
                let base = raw.ask(code::GET_VRING_BASE, &words(&[queue, 0]));
                assert_eq!(raw.tell(code::SET_VRING_BASE, &base), 0);
            }
            for (pair, (receiver, sender)) in (0u64..).zip(&driver.pairs) {
                for (queue, fd) in
                    [(pair * 2, receiver.queue().kick_fd()), (pair * 2 + 1, sender.queue().kick_fd())]
                {
                    let fd = duplicate(fd);
                    let payload = longs(&[queue]);
                    let fds = [fd.as_fd()];
                    assert_eq!(raw.tell_with(code::SET_VRING_KICK, &payload, &fds), 0);
                }
            }
        }
    });
}
