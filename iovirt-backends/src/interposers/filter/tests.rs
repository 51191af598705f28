use super::*;
use crate::net::loopback::{LoopbackBackend, LoopbackConfig};
use crate::net::rig::{frame, rig};
use iovirt_core::Mode;
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::request::net::{NetError, NetOp, NetOutput, NetRequest};
use iovirt_core::test_utils::conformance::Profile;
use iovirt_core::test_utils::net::{self, Verdicts};
use std::sync::Arc;

fn filtered(drops: Drops) -> (BoxBackend<NetRequest>, Arc<FilterControl>) {
    let filter = Filter::new(&FilterConfig { drops, ..FilterConfig::default() });
    let control = filter.handle();
    let network = LoopbackBackend::new(&LoopbackConfig::default()).unwrap();
    (BoxBackend::new(Pipeline::top().stage(filter.layer()).backend(network).unwrap()), control)
}

/// Drops frames with an odd number.
fn odd(frame: &Frame<'_>) -> Verdict {
    if frame.bytes[17] % 2 == 1 { Verdict::Drop } else { Verdict::Pass }
}

#[test]
fn what_is_dropped_on_the_way_up_makes_no_hole_and_no_disorder() {
    let (stack, control) = filtered(Drops::Nothing);
    control.set(|frame| if frame.direction == Direction::ToGuest { odd(frame) } else { Verdict::Pass });
    let (mut sender, mut receiver) = (rig(&stack, 0), rig(&stack, 0));
    receiver.post(8);
    let mut came = Vec::new();
    for number in 0..100 {
        sender.send([frame(number, 60 + number as usize).as_slice()]);
        assert_eq!(sender.poll().len(), 1);
        let new = receiver.received();
        receiver.post(new.len());
        came.extend(new);
    }
    let wanted: Vec<_> = (0..100).step_by(2).map(|number| frame(number, 60 + number as usize)).collect();
    assert_eq!(came, wanted);
    assert_eq!(receiver.in_flight(), 8, "the tokens of dropped frames are below again");
    receiver.poll();
    let counted = control.snapshot();
    assert_eq!((counted.passed_from_guest, counted.dropped_to_guest, counted.passed_to_guest), (100, 50, 50));
}

#[test]
fn a_batch_keeps_its_order_around_dropped_frames() {
    let (stack, control) = filtered(Drops::Nothing);
    control.set(|frame| if frame.direction == Direction::ToGuest { odd(frame) } else { Verdict::Pass });
    let (mut sender, mut receiver) = (rig(&stack, 0), rig(&stack, 0));
    receiver.post(8);
    let batch: Vec<_> = [1, 2, 4, 3, 6, 5, 7, 8].map(|number| frame(number, 60)).into();
    sender.send(batch.iter().map(Vec::as_slice));
    assert_eq!(receiver.received(), [2, 4, 6, 8].map(|number| frame(number, 60)));
}

#[test]
fn what_the_guest_sends_is_dropped_as_if_it_were_sent() {
    let (stack, control) = filtered(Drops::Transmit);
    let mut rig = rig(&stack, 0);
    rig.post(2);
    rig.send([frame(1, 60).as_slice()]);
    let home = rig.poll();
    assert_eq!(home, [(NetOp::Transmit, NetOutput::Done, frame(1, 60))]);
    control.set_drops(Drops::Nothing);
    rig.send([frame(2, 60).as_slice()]);
    assert_eq!(rig.received(), [frame(2, 60)]);
    rig.poll();
    assert_eq!(
        control.snapshot(),
        FilterSnapshot {
            passed_from_guest: 1,
            dropped_from_guest: 1,
            passed_to_guest: 1,
            dropped_to_guest: 0
        }
    );
}

#[test]
fn a_drain_ends_though_every_frame_is_dropped() {
    let (stack, _) = filtered(Drops::Receive);
    let (mut sender, mut receiver) = (rig(&stack, 0), rig(&stack, 0));
    receiver.post(3);
    sender.send([frame(1, 60).as_slice()]);
    receiver.drain();
    let mut home = receiver.poll();
    home.extend(receiver.poll());
    let aborted = (NetOp::Receive, NetOutput::Failed(NetError::Aborted), Vec::new());
    assert_eq!(home, [aborted.clone(), aborted.clone(), aborted]);
    assert_eq!(receiver.mode(), Mode::Quiesced);
}

#[test]
fn it_passes_the_suite_for_networks_and_that_for_judges() {
    net::run(&|| filtered(Drops::Nothing).0, &Profile::new("filter")).assert_passed();
    let judge = |verdicts: Verdicts, network| {
        let filter = Filter::new(&FilterConfig::default());
        filter.handle().set(move |frame| if verdicts(frame.bytes) { Verdict::Pass } else { Verdict::Drop });
        BoxBackend::new(Pipeline::top().stage(filter.layer()).backend(network).unwrap())
    };
    net::judge(&judge, &Profile::new("filter")).assert_passed();
}
