use super::*;
use crate::rig::Rig;
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::{BlockError, BlockOp, BlockOutput, Durability};
use iovirt_core::{Backend, BackendErrorKind, Mode};

fn rig(config: &NullConfig) -> Rig {
    Rig::new(&BoxBackend::new(NullBackend::new(config).unwrap()))
}

#[test]
fn reads_give_zeroes_unless_told_otherwise() {
    let mut rig = rig(&NullConfig::default());
    assert_eq!(rig.write(0, &[7; 512]), BlockOutput::Done);
    assert_eq!(rig.read_into(0, &[9; 1024]), Ok(vec![0; 1024]));

    let mut path_only = self::rig(&NullConfig { fill: false, ..NullConfig::default() });
    assert_eq!(path_only.read_into(0, &[9; 1024]), Ok(vec![9; 1024]));
}

#[test]
fn every_operation_is_served_within_the_disk() {
    let mut rig = rig(&NullConfig { size: 4096, fill: true });
    for op in [BlockOp::Flush, BlockOp::Discard, BlockOp::WriteZeroes] {
        assert_eq!(rig.range(op, 0, 4096), BlockOutput::Done, "{op:?}");
    }
    assert_eq!(rig.read_into(4096, &[0; 512]), Err(BlockError::OutOfRange));
    assert_eq!(rig.write(1, &[0; 512]), BlockOutput::Failed(BlockError::Misaligned));
}

#[test]
fn capabilities_promise_nothing_that_is_not_so() {
    let caps = NullBackend::new(&NullConfig { size: 4096, fill: false }).unwrap().caps();
    assert_eq!(caps.durability, Durability::Unsafe);
    assert!(!caps.discard.unwrap().reads_zero);
}

#[test]
fn a_drain_ends_once_all_came_home() {
    let mut rig = rig(&NullConfig::default());
    rig.submit(BlockOp::Flush, 0, 0);
    rig.drain();
    assert_eq!((rig.mode(), rig.in_flight()), (Mode::Draining, 1));
    rig.poll();
    assert_eq!((rig.mode(), rig.in_flight()), (Mode::Quiesced, 0));
    rig.resume();
    assert_eq!(rig.mode(), Mode::Running);
}

#[test]
fn a_disk_needs_a_size() {
    for size in [0, 100, 513, u64::MAX] {
        let error = NullBackend::new(&NullConfig { size, fill: true }).unwrap_err();
        assert_eq!(error.kind(), BackendErrorKind::Config, "{size}");
    }
}
