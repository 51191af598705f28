//! Every order of events between a queue that sends and one that receives.
//!
//! Seen to fail where the receiver takes its flag back outside the lock.

use super::{LoopbackBackend, LoopbackConfig, LoopbackQueue};
use iovirt_core::Queue;
use iovirt_core::dma::{SgLimits, SgPool};
use iovirt_core::model::{Place, Sleeper, check, settle};
use iovirt_core::request::net::{NetOutput, NetRequest};
use iovirt_core::{Mode, Tag};
use loom::thread;

type NetPlace = Place<NetRequest, LoopbackQueue>;

fn token(tag: u32) -> NetRequest {
    NetRequest::receive(Tag::new(tag), 0, SgPool::new(1, SgLimits::default()).take())
}

fn frame() -> NetRequest {
    let mut sg = SgPool::new(1, SgLimits::default()).take();
    sg.push_host(60).unwrap();
    NetRequest::transmit(Tag::new(0), 0, sg)
}

fn backend() -> LoopbackBackend {
    LoopbackBackend::new(&LoopbackConfig { pairs: 1, ..LoopbackConfig::default() }).unwrap()
}

/// How many tokens came home with a frame.
fn received(place: &mut NetPlace) -> u64 {
    let got = |output: &NetOutput| *output == NetOutput::Done;
    place.done.since(0).iter().filter(|completion| got(&completion.output)).count() as u64
}

/// What the back-end counts as carried has come up.
#[test]
fn loom_every_frame_that_is_carried_is_received() {
    check(2, || {
        let backend = backend();
        let control = backend.control.clone();
        let (mut receiver, senders) = (Place::open(&backend), [(); 2].map(|()| Place::open(&backend)));
        let threads = senders.map(|mut sender: NetPlace| {
            thread::spawn(move || {
                sender.submit(frame());
                assert_eq!(sender.done.len(), 1, "a frame is sent or dropped at once");
            })
        });
        receiver.submit(token(0));
        receiver.submit(token(1));
        receiver.step();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        settle(&mut [&mut receiver]);
        let snapshot = control.snapshot();
        assert_eq!(received(&mut receiver), snapshot.carried, "a frame lies in a token that nobody fetches");
        assert_eq!(snapshot.carried + snapshot.dropped, 2);
    });
}

/// A drain that meets a frame: the token comes home once, with it or without.
#[test]
fn loom_a_drain_brings_every_token_home() {
    check(2, || {
        let backend = backend();
        let control = backend.control.clone();
        let (mut receiver, mut sender): (NetPlace, NetPlace) = (Place::open(&backend), Place::open(&backend));
        receiver.submit(token(0));
        let sending = thread::spawn(move || sender.submit(frame()));
        receiver.act(|queue, cx| queue.drain(cx));
        sending.join().unwrap();
        settle(&mut [&mut receiver]);
        assert_eq!((receiver.queue.mode(), receiver.done.len()), (Mode::Quiesced, 1));
        assert_eq!(received(&mut receiver), control.snapshot().carried);
    });
}

/// A receiver that goes takes its tokens along; the next one gets the frames.
#[test]
fn loom_a_receiver_that_goes_is_not_in_the_way() {
    check(2, || {
        let backend = backend();
        let control = backend.control.clone();
        let (mut gone, mut sender): (NetPlace, NetPlace) = (Place::open(&backend), Place::open(&backend));
        gone.submit(token(0));
        let sending = thread::spawn(move || sender.submit(frame()));
        drop(gone);
        let mut receiver: NetPlace = Place::open(&backend);
        receiver.submit(token(0));
        let before = control.snapshot().carried;
        sending.join().unwrap();
        settle(&mut [&mut receiver]);
        let after = control.snapshot().carried;
        assert!(received(&mut receiver) >= after - before && received(&mut receiver) <= after);
    });
}
