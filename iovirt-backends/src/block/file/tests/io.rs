//! Reads, writes and what changes ranges, through every engine.

use super::*;
use iovirt_core::request::block::{BlockError, Durability};
use std::os::unix::fs::MetadataExt;

const SIZE: u64 = 8 << 20;

fn each_engine(mut test: impl FnMut(&Path, &mut Rig)) {
    for folder in [Some(folder()), memory_folder()].into_iter().flatten() {
        for cache in [Cache::WriteThrough, Cache::WriteBack, Cache::UnsafeIgnoreFlush] {
            for (engine, inline, uring) in engines() {
                let path = image(&folder, SIZE);
                let config = FileConfig { engine, inline, cache, ..FileConfig::new(&path) };
                let backend = FileBackend::open(config).expect("a back-end");
                test(&path, &mut Rig::with_policy(&backend, uring).expect("a queue"));
            }
        }
    }
}

#[test]
fn what_is_written_is_read() {
    each_engine(|path, rig| {
        for (index, (offset, len, skew, pieces)) in [
            (0, 512, 0, 1),
            (512, 4096, 3, 2),
            (1 << 20, 1 << 20, 100, 7),
            (SIZE - 512, 512, 1, 1),
            (4096, 3 << 20, 0, 1500),
        ]
        .into_iter()
        .enumerate()
        {
            let data = pattern(index, len);
            // More pieces than one list takes by default are tried elsewhere.
            let pieces = pieces.min(1024);
            assert_eq!(rig.write_skewed(offset, &data, skew, pieces), BlockOutput::Done);
            assert_eq!(rig.read_skewed(offset, len, skew + 1, pieces), (BlockOutput::Done, data.clone()));
            let file = std::fs::read(path).expect("the image");
            assert!(file[offset as usize..offset as usize + len] == data, "as the host sees it");
            assert_eq!(rig.flush(), BlockOutput::Done);
        }
        assert_eq!(rig.write_flagged(0, &pattern(9, 512), 0, 1, BlockFlags::FUA), BlockOutput::Done);
    });
}

#[test]
fn more_pieces_than_the_host_takes_at_once() {
    each_engine(|_, rig| {
        let data = pattern(5, 3000 * 512);
        let mut lists = Vec::new();
        for op in [BlockOp::Write, BlockOp::Read] {
            let mut sg = Box::new(SgList::with_limits(SgLimits { segments: 4096, host_bytes: 64 << 20 }));
            let mut whole = SgList::new();
            whole.push_host(data.len()).expect("room");
            if op == BlockOp::Write {
                whole.copy_from(0, &data).expect("room");
            }
            // In an order of its own, so that neighbours are not neighbours in memory.
            for piece in 0..3000 {
                whole.slice_into((piece ^ 1) * 512, 512, &mut sg).expect("room");
            }
            let tag = rig.tag();
            let (output, request) = rig.run(BlockRequest::transfer(op, tag, 0, sg).expect("a range"));
            assert_eq!(output, BlockOutput::Done);
            lists.push((whole, request));
        }
        let mut read = vec![0; data.len()];
        lists[1].0.copy_to(0, &mut read).expect("room");
        assert!(read == data);
    });
}

#[test]
fn ranges_are_zeroed_and_discarded() {
    each_engine(|path, rig| {
        let data = pattern(1, 1 << 20);
        assert_eq!(rig.write(0, &data), BlockOutput::Done);
        assert_eq!(rig.flush(), BlockOutput::Done);
        let zeroed = [(512, 1024), (8192, 65536), (300 * 512, 70_000 / 512 * 512)];
        let mut expected = data;
        for (index, (offset, len)) in zeroed.into_iter().enumerate() {
            let flags =
                if index % 2 == 0 { BlockFlags::empty() } else { BlockFlags::UNMAP | BlockFlags::FUA };
            assert_eq!(rig.ranged(BlockOp::WriteZeroes, offset, len, flags), BlockOutput::Done);
            expected[offset as usize..(offset + len) as usize].fill(0);
            assert!(rig.read(0, expected.len()) == expected);
        }
        // To the very end, and all of it.
        assert_eq!(
            rig.ranged(BlockOp::WriteZeroes, 4 << 20, SIZE - (4 << 20), BlockFlags::empty()),
            BlockOutput::Done
        );
        let before = std::fs::metadata(path).expect("the image").blocks();
        assert_eq!(rig.ranged(BlockOp::Discard, 0, SIZE, BlockFlags::empty()), BlockOutput::Done);
        let after = std::fs::metadata(path).expect("the image");
        assert!(after.blocks() < before, "space comes back: {} blocks of {before}", after.blocks());
        assert_eq!(after.len(), SIZE);
        assert!(rig.read(0, 1 << 20).iter().all(|&byte| byte == 0));
    });
}

#[test]
fn many_requests_at_once_on_two_queues() {
    for folder in [Some(folder()), memory_folder()].into_iter().flatten() {
        for (engine, inline, uring) in engines() {
            let path = image(&folder, SIZE);
            let backend = FileBackend::open(FileConfig { engine, inline, ..FileConfig::new(&path) })
                .expect("a back-end");
            let mut rigs = [0, 1].map(|_| Rig::with_policy(&backend, uring).expect("a queue"));
            for round in 0..4u64 {
                for (which, rig) in rigs.iter_mut().enumerate() {
                    for tag in 0..DEPTH {
                        let offset =
                            (round * u64::from(DEPTH) * 2 + u64::from(tag) * 2 + which as u64) * 8192;
                        let mut sg = rig.memory(8192, 8, 2);
                        sg.copy_from(0, &pattern(offset as usize, 8192)).expect("fits");
                        let request = BlockRequest::transfer(BlockOp::Write, Tag::new(tag), offset, sg)
                            .expect("a range");
                        rig.submit(request);
                    }
                    rig.turn();
                }
                for rig in &mut rigs {
                    rig.finish();
                    let mut tags: Vec<_> = Vec::new();
                    for completion in rig.done.drain() {
                        assert_eq!(completion.output, BlockOutput::Done);
                        tags.push(completion.request.tag().get());
                        rig.pool.put(completion.request.into_sg());
                    }
                    tags.sort_unstable();
                    assert_eq!(tags, (0..DEPTH).collect::<Vec<_>>(), "each comes home once");
                }
            }
            let file = std::fs::read(&path).expect("the image");
            for offset in (0..4 * DEPTH as usize * 2).map(|index| index * 8192) {
                assert!(file[offset..offset + 8192] == pattern(offset, 8192), "at {offset}");
            }
        }
    }
}

#[test]
fn a_request_that_is_not_allowed_does_nothing() {
    each_engine(|path, rig| {
        let before = std::fs::read(path).expect("the image");
        let failed = BlockOutput::Failed;
        assert_eq!(rig.write(SIZE, &[1; 512]), failed(BlockError::OutOfRange));
        assert_eq!(rig.write(SIZE - 512, &[1; 1024]), failed(BlockError::OutOfRange));
        assert_eq!(rig.write(1, &[1; 512]), failed(BlockError::Misaligned));
        assert_eq!(rig.write(0, &[1; 100]), failed(BlockError::Misaligned));
        assert_eq!(rig.read_skewed(i64::MAX as u64 - 1023, 512, 0, 1).0, failed(BlockError::OutOfRange));
        assert!(std::fs::read(path).expect("the image") == before);
        assert_eq!(std::fs::metadata(path).expect("the image").len(), SIZE);
    });
}

#[test]
fn a_read_only_disk_is_not_written() {
    let folder = folder();
    let path = image(&folder, SIZE);
    let config = FileConfig { access: FileAccess::ReadOnly, ..FileConfig::new(&path) };
    let backend = FileBackend::open(config).expect("a back-end");
    let caps = backend.caps();
    assert!(caps.read_only && caps.discard.is_none() && caps.write_zeroes.is_none());
    let mut rig = Rig::new(&backend);
    assert_eq!(rig.write(0, &[1; 512]), BlockOutput::Failed(BlockError::ReadOnly));
    assert_eq!(
        rig.ranged(BlockOp::Discard, 0, 512, BlockFlags::empty()),
        BlockOutput::Failed(BlockError::ReadOnly)
    );
    assert_eq!(rig.flush(), BlockOutput::Done);
    assert_eq!(rig.read(0, 512), vec![0; 512]);
}

#[test]
fn capabilities_say_what_is_configured() {
    let folder = folder();
    let path = image(&folder, SIZE + 511);
    let caps = open(&path).caps();
    assert_eq!((caps.capacity, caps.logical_block, caps.physical_block), (SIZE, 512, 4096));
    assert_eq!((caps.durability, caps.fua, caps.read_only), (Durability::WriteThrough, true, false));
    assert!(caps.discard.is_some_and(|discard| discard.reads_zero));
    assert!(caps.write_zeroes.is_some_and(|zeroes| zeroes.may_unmap));
    let config = FileConfig { discard: Discard::Off, cache: Cache::WriteBack, ..FileConfig::new(&path) };
    let caps = FileBackend::open(config).expect("a back-end").caps();
    assert_eq!(caps.durability, Durability::WriteBack);
    assert!(caps.discard.is_none());
    assert!(caps.write_zeroes.is_some_and(|zeroes| !zeroes.may_unmap));
    let config = FileConfig { cache: Cache::UnsafeIgnoreFlush, ..FileConfig::new(&path) };
    assert_eq!(FileBackend::open(config).expect("a back-end").caps().durability, Durability::Unsafe);
}

#[test]
fn a_disk_through_an_engine_that_is_not_there() {
    let folder = folder();
    let path = image(&folder, SIZE);
    let backend = FileBackend::open(FileConfig { engine: Engine::Uring, ..FileConfig::new(&path) })
        .expect("a back-end");
    let error = Rig::with_policy(&backend, UringPolicy::Off).err().expect("no ring").to_string();
    assert!(error.contains("engine=uring") && error.contains("engine=auto"), "{error}");
}
