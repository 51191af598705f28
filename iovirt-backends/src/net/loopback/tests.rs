use super::*;
use crate::interposers::stats::{Stats, StatsConfig, StatsControl};
use crate::net::rig::{frame, rig};
use iovirt_core::pipeline::{BoxBackend, BoxQueue, Pipeline, SwapControl, SwapLayer};
use iovirt_core::request::net::{NetCaps, NetError, NetOp, NetOutput, NetRequest, Offload};
use iovirt_core::test_utils::conformance::Profile;
use iovirt_core::test_utils::net;
use iovirt_core::worker::{Lane, Turn};
use iovirt_core::{Backend, Depth, Mode, Queue, Tag, Worker, WorkerConfig, WorkerContext};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn loopback() -> (BoxBackend<NetRequest>, Arc<LoopbackControl>) {
    let backend = BoxBackend::new(LoopbackBackend::new(&LoopbackConfig::default()).unwrap());
    let control = backend.list_stages().control("loopback").unwrap();
    (backend, control)
}

fn frames(numbers: std::ops::Range<u32>) -> Vec<Vec<u8>> {
    numbers.map(|number| frame(number, 20 + number as usize * 37 % 1400)).collect()
}

fn slices(frames: &[Vec<u8>]) -> impl Iterator<Item = &[u8]> {
    frames.iter().map(Vec::as_slice)
}

#[test]
fn what_is_sent_comes_back_in_order_across_workers() {
    let (backend, control) = loopback();
    let (mut sender, mut receiver) = (rig(&backend, 3), rig(&backend, 3));
    let mut number = 0;
    for round in 0..50 {
        let batch = frames(number..number + 1 + round % 7);
        number += batch.len() as u32;
        receiver.post(batch.len());
        assert_eq!(receiver.poll(), []);
        sender.send(slices(&batch));
        assert!(
            sender.poll().iter().all(|(op, output, _)| (*op, *output) == (NetOp::Transmit, NetOutput::Done))
        );
        assert_eq!(receiver.received(), batch);
    }
    assert_eq!(control.snapshot(), LoopbackSnapshot { carried: number.into(), dropped: 0 });
}

/// Counts its turns, and has one token.
struct Waiting {
    queue: BoxQueue<NetRequest>,
    turns: Arc<AtomicUsize>,
}

impl Lane for Waiting {
    fn turn(&mut self, _: &mut WorkerContext<'_>) -> Turn {
        let _ = self.queue.in_flight();
        self.turns.fetch_add(1, Ordering::Relaxed);
        Turn::Idle
    }
}

#[test]
fn the_lane_that_receives_is_woken() {
    let (backend, _) = loopback();
    let mut sender = rig(&backend, 0);
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let turns = Arc::<AtomicUsize>::default();
    let counted = turns.clone();
    worker.handle().add_lane(move |cx| {
        let mut queue = backend.open(cx, Depth::new(1).unwrap()).unwrap();
        queue.submit(cx, NetRequest::receive(Tag::new(0), 0, Box::default()));
        queue.kick(cx);
        Some(Box::new(Waiting { queue, turns: counted }))
    });
    worker.run().unwrap();
    worker.run().unwrap();
    let before = turns.load(Ordering::Relaxed);
    sender.send([frame(1, 60).as_slice()]);
    worker.run().unwrap();
    assert_eq!(turns.load(Ordering::Relaxed), before + 1, "a frame must wake the lane that has the token");
}

#[test]
fn without_a_token_a_frame_is_dropped_and_counted() {
    let (backend, control) = loopback();
    let (mut sender, mut receiver) = (rig(&backend, 0), rig(&backend, 0));
    let batch = frames(0..5);
    sender.send(slices(&batch));
    assert_eq!(sender.poll().len(), 5);
    receiver.post(2);
    sender.send(slices(&batch));
    sender.poll();
    assert_eq!(receiver.received(), batch[..2]);
    assert_eq!(control.snapshot(), LoopbackSnapshot { carried: 2, dropped: 8 });
}

#[test]
fn pairs_are_apart_and_one_plane_of_each_receives() {
    let (backend, _) = loopback();
    let (mut first, mut other) = (rig(&backend, 0), rig(&backend, 1));
    let mut second = rig(&backend, 0);
    first.post(1);
    other.post(1);
    second.post(1);
    assert_eq!(second.poll(), [(NetOp::Receive, NetOutput::Failed(NetError::Unsupported), Vec::new())]);
    second.send([frame(7, 60).as_slice()]);
    assert_eq!(other.poll(), []);
    assert_eq!(first.received(), [frame(7, 60)]);
    drop(first);
    second.post(1);
    second.send([frame(8, 60).as_slice()]);
    assert_eq!(second.received(), [frame(8, 60)], "once the first is gone, another may receive");
}

#[test]
fn a_drain_gives_tokens_back_and_frames_before_them() {
    let (backend, control) = loopback();
    let (mut sender, mut receiver) = (rig(&backend, 0), rig(&backend, 0));
    receiver.post(3);
    sender.send([frame(1, 60).as_slice()]);
    receiver.drain();
    assert_eq!((receiver.mode(), receiver.in_flight()), (Mode::Draining, 3));
    let aborted = (NetOp::Receive, NetOutput::Failed(NetError::Aborted), Vec::new());
    assert_eq!(
        receiver.poll(),
        [(NetOp::Receive, NetOutput::Done, frame(1, 60)), aborted.clone(), aborted.clone()]
    );
    assert_eq!(receiver.mode(), Mode::Quiesced);
    receiver.post(1);
    assert_eq!(receiver.poll(), [aborted]);
    sender.send([frame(2, 60).as_slice()]);
    receiver.resume();
    receiver.post(1);
    sender.send([frame(3, 60).as_slice()]);
    assert_eq!(receiver.received(), [frame(3, 60)]);
    assert_eq!(control.snapshot(), LoopbackSnapshot { carried: 2, dropped: 1 });
}

#[test]
fn what_the_network_does_not_take_fails() {
    let (backend, _) = loopback();
    let mut rig = rig(&backend, 0);
    let mut sent = |len: usize| {
        rig.send([vec![0x5a; len].as_slice()]);
        rig.poll().pop().unwrap().1
    };
    assert_eq!(sent(13), NetOutput::Failed(NetError::BadLength));
    assert_eq!(sent(14), NetOutput::Done);
    assert_eq!(sent(1518), NetOutput::Done);
    assert_eq!(sent(1519), NetOutput::Failed(NetError::BadLength));
    rig.send_offloaded(&frame(1, 60), Offload { gso_type: 1, ..Offload::default() });
    assert_eq!(rig.poll().pop().unwrap().1, NetOutput::Failed(NetError::Unsupported));
    crate::net::rig::rig(&backend, 99).post(1);
    for (mtu, pairs) in [(67, 1), (1500, 0), (1500, 33)] {
        assert!(LoopbackBackend::new(&LoopbackConfig { mtu, pairs }).is_err());
    }
}

#[test]
fn stats_count_frames_each_way() {
    let loopback = LoopbackBackend::new(&LoopbackConfig::default()).unwrap();
    let stats = Stats::<NetRequest>::new(&StatsConfig::default()).layer();
    let stack = BoxBackend::new(Pipeline::top().stage(stats).backend(loopback).unwrap());
    let mut rig = rig(&stack, 0);
    rig.post(4);
    rig.send(slices(&[frame(1, 60), frame(2, 1000)]));
    rig.poll();
    rig.drain();
    rig.poll();
    let snapshot = stack.list_stages().control::<StatsControl>("stats").unwrap().snapshot();
    let seen: Vec<_> =
        snapshot.kinds.iter().map(|kind| (kind.name, kind.ops, kind.bytes, kind.failures)).collect();
    assert_eq!(seen, [("transmit", 2, 1060, 0), ("receive", 4, 1060, 2)]);
    assert_eq!(snapshot.in_flight, 0);
}

#[test]
fn it_passes_the_suite_for_networks() {
    let factory = || loopback().0;
    net::run(&factory, &Profile::new("loopback")).assert_passed();
}

#[test]
fn tokens_wait_through_an_exchange_unless_their_client_drains() {
    let place = SwapLayer::new(NetCaps::may_replace);
    let stack = BoxBackend::new(Pipeline::top().stage(place).backend(loopback().0).unwrap());
    let control: Arc<SwapControl<NetRequest>> = stack.list_stages().control("swappable").unwrap();
    let (mut receiver, mut idle) = (rig(&stack, 0), rig(&stack, 1));
    assert_eq!((receiver.poll(), idle.poll()), (vec![], vec![]));
    receiver.post(3);
    for _ in 0..2 {
        // The other queue takes no turn, so the exchange gets stuck half way.
        let ticket = control.swap(loopback().0).unwrap();
        assert_eq!((receiver.poll(), receiver.in_flight(), receiver.mode()), (vec![], 3, Mode::Running));
        control.cancel();
        assert_eq!((receiver.poll(), receiver.in_flight()), (vec![], 3));
        assert!(ticket.is_done());
    }
    receiver.send([frame(1, 60).as_slice()]);
    assert_eq!(receiver.poll().len(), 2, "what was sent, and a token with it");
    let ticket = control.swap(loopback().0).unwrap();
    assert_eq!(receiver.poll(), []);
    receiver.post(1);
    receiver.drain();
    let aborted = (NetOp::Receive, NetOutput::Failed(NetError::Aborted), vec![]);
    assert_eq!(receiver.poll(), vec![aborted; 3]);
    assert_eq!((receiver.in_flight(), receiver.mode()), (0, Mode::Draining));
    while !ticket.is_done() {
        assert_eq!((receiver.poll(), idle.poll()), (vec![], vec![]));
    }
    assert_eq!((receiver.poll(), receiver.mode()), (vec![], Mode::Quiesced));
    receiver.resume();
    receiver.post(1);
    receiver.send([frame(2, 60).as_slice()]);
    assert_eq!(receiver.received(), [frame(2, 60)]);
}
