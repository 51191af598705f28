use super::*;
use crate::rig::Rig;
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::{BlockError, BlockOp, BlockOutput};
use iovirt_core::{Backend, BackendErrorKind, Mode};
use proptest::prelude::*;

const SIZE: u64 = 64 << 10;

fn disk(size: u64) -> MemoryBackend {
    MemoryBackend::new(&MemoryConfig { size, ..MemoryConfig::default() }).unwrap()
}

fn rig(size: u64) -> Rig {
    Rig::new(&BoxBackend::new(disk(size)))
}

#[derive(Clone, Debug)]
enum Step {
    Read,
    Write(u8),
    Discard,
    WriteZeroes,
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Read),
        any::<u8>().prop_map(Step::Write),
        Just(Step::Discard),
        Just(Step::WriteZeroes),
        Just(Step::Flush),
    ]
}

proptest! {
    #[test]
    fn it_is_a_vector_of_bytes(
        steps in prop::collection::vec((step(), 0..140_u64, 0..70_u64, prop::sample::select(vec![0, 1])), 1..40),
    ) {
        let mut model = vec![0_u8; SIZE as usize];
        let mut rig = rig(SIZE);
        for (step, sector, sectors, stray) in steps {
            let (offset, len) = (sector * 512 + stray, sectors * 512);
            let expected = if stray != 0 {
                BlockOutput::Failed(BlockError::Misaligned)
            } else if offset + len > SIZE {
                BlockOutput::Failed(BlockError::OutOfRange)
            } else {
                BlockOutput::Done
            };
            let range = offset as usize..(offset + len) as usize;
            let done = expected == BlockOutput::Done;
            match step {
                Step::Read => match rig.read_into(offset, &vec![0xee; len as usize]) {
                    Ok(data) => prop_assert_eq!(&data, &model[range]),
                    Err(error) => prop_assert_eq!(BlockOutput::Failed(error), expected),
                },
                Step::Write(byte) => {
                    let data: Vec<u8> = (0..len).map(|at| byte.wrapping_add(at as u8)).collect();
                    prop_assert_eq!(rig.write(offset, &data), expected);
                    if done {
                        model[range].copy_from_slice(&data);
                    }
                }
                Step::Discard | Step::WriteZeroes => {
                    let op =
                        if matches!(step, Step::Discard) { BlockOp::Discard } else { BlockOp::WriteZeroes };
                    prop_assert_eq!(rig.range(op, offset, len), expected);
                    if done {
                        model[range].fill(0);
                    }
                }
                Step::Flush => prop_assert_eq!(rig.range(BlockOp::Flush, 0, 0), BlockOutput::Done),
            }
        }
        prop_assert_eq!(rig.read_into(0, &vec![1; SIZE as usize]), Ok(model));
    }
}

#[test]
fn a_disk_that_is_no_multiple_of_a_page_ends_where_it_says() {
    let mut rig = rig(4096 + 512);
    assert_eq!(rig.write(4096, &[3; 512]), BlockOutput::Done);
    assert_eq!(rig.range(BlockOp::Discard, 0, 4096 + 512), BlockOutput::Done);
    assert_eq!(rig.read_into(4096, &[9; 512]), Ok(vec![0; 512]));
    assert_eq!(rig.read_into(4096, &[9; 1024]), Err(BlockError::OutOfRange));
}

#[test]
fn a_huge_disk_takes_no_memory_until_it_is_written() {
    let mut rig = rig(1 << 40);
    assert_eq!(rig.write((1 << 40) - 512, &[5; 512]), BlockOutput::Done);
    assert_eq!(rig.read_into((1 << 40) - 512, &[0; 512]), Ok(vec![5; 512]));
    assert_eq!(rig.range(BlockOp::Discard, 0, MAX_RANGE), BlockOutput::Done);
    let longer = rig.range(BlockOp::Discard, 0, MAX_RANGE + 512);
    assert_eq!(longer, BlockOutput::Failed(BlockError::TooLong));
}

#[test]
fn a_read_only_disk_can_be_given_content() {
    let config = MemoryConfig { size: SIZE, read_only: true, physical_block: 4096 };
    let backend = MemoryBackend::new(&config).unwrap();
    assert_eq!((backend.caps().read_only, backend.caps().physical_block), (true, 4096));
    backend.write(512, b"content").unwrap();
    assert_eq!(backend.write(SIZE - 1, b"ab"), Err(BlockError::OutOfRange));
    let mut back = [0; 7];
    backend.read(512, &mut back).unwrap();
    assert_eq!(&back, b"content");
    assert_eq!(backend.read(u64::MAX, &mut back), Err(BlockError::OutOfRange));

    let mut rig = Rig::new(&BoxBackend::new(backend));
    assert_eq!(rig.read_into(512, &[0; 512]).unwrap()[..7], *b"content");
    for op in [BlockOp::Discard, BlockOp::WriteZeroes] {
        assert_eq!(rig.range(op, 0, 512), BlockOutput::Failed(BlockError::ReadOnly));
    }
    assert_eq!(rig.write(0, &[1; 512]), BlockOutput::Failed(BlockError::ReadOnly));
}

#[test]
fn a_configuration_that_no_disk_can_have_is_refused() {
    let sizes = [0, 513, u64::MAX].map(|size| MemoryConfig { size, ..MemoryConfig::default() });
    let blocks = [0, 256, 1000, 2 << 20]
        .map(|physical_block| MemoryConfig { physical_block, ..MemoryConfig::default() });
    for config in sizes.iter().chain(&blocks) {
        assert_eq!(MemoryBackend::new(config).unwrap_err().kind(), BackendErrorKind::Config, "{config:?}");
    }
    let too_large = MemoryConfig { size: 1 << 62, ..MemoryConfig::default() };
    assert_eq!(MemoryBackend::new(&too_large).unwrap_err().kind(), BackendErrorKind::Host);
}

#[test]
fn a_drain_ends_once_all_came_home() {
    let mut rig = rig(SIZE);
    rig.submit(BlockOp::Write, 0, 512);
    rig.drain();
    assert_eq!((rig.mode(), rig.in_flight()), (Mode::Draining, 1));
    rig.poll();
    assert_eq!(rig.mode(), Mode::Quiesced);
    rig.resume();
    assert_eq!(rig.write(0, &[1; 512]), BlockOutput::Done);
}

/// Workers read, write and discard the same pages: each byte that is read is one that somebody wrote, or zero.
#[test]
fn workers_share_the_disk() {
    let backend = BoxBackend::new(disk(SIZE));
    std::thread::scope(|scope| {
        for id in 1..=3_u8 {
            let backend = backend.clone();
            scope.spawn(move || {
                let mut rig = Rig::new(&backend);
                for round in 0..300_u64 {
                    let offset = round * 7919 % 16 * 4096;
                    assert_eq!(rig.write(offset, &[id; 4096]), BlockOutput::Done);
                    let data = rig.read_into(offset, &[0xee; 4096]).unwrap();
                    assert!(data.iter().all(|byte| *byte <= 3), "a byte that nobody wrote");
                    assert_eq!(rig.range(BlockOp::Discard, offset / 2 / 512 * 512, 4096), BlockOutput::Done);
                }
            });
        }
    });
}
