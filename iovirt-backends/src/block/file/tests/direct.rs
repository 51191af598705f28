//! Direct I/O, and block devices.

use super::*;
use iovirt_core::request::block::BlockError;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

const SIZE: u64 = 1 << 20;

fn direct(path: &Path) -> FileConfig {
    FileConfig { direct: Direct::On, ..FileConfig::new(path) }
}

/// Without a page cache the disk has each request while the round that makes them goes on.
#[test]
fn a_direct_write_reaches_the_disk_before_the_round_ends() {
    let folder = folder();
    let path = image(&folder, 1 << 16);
    let backend =
        FileBackend::open(FileConfig { engine: Engine::Uring, ..direct(&path) }).expect("a back-end");
    let mut rig = Rig::new(&backend);
    let mut sg = rig.memory(4096, 0, 1);
    sg.copy_from(0, &[7; 4096]).expect("fits");
    let request = BlockRequest::transfer(BlockOp::Write, rig.tag(), 4096, sg).expect("a range");
    let Rig { worker, queue, .. } = &mut rig;
    worker.with_context(|cx| {
        queue.submit(cx, request);
        queue.kick(cx);
        let end = Instant::now() + LIMIT;
        while std::fs::read(&path).expect("read")[4096] != 7 {
            assert!(Instant::now() < end, "the write waits for the end of the round");
        }
    });
    rig.finish();
    assert_eq!(rig.done.drain().next().map(|completion| completion.output), Some(BlockOutput::Done));
}

/// What a guest does to a disk.
#[derive(Clone, Debug)]
enum Op {
    Write { sector: u64, sectors: u64, skew: usize, pieces: usize, fua: bool },
    Read { sector: u64, sectors: u64, skew: usize, pieces: usize },
    Zero { sector: u64, sectors: u64, unmap: bool },
    Flush,
}

fn op(size: u64) -> impl Strategy<Value = Op> {
    let range =
        (0..size / 512).prop_flat_map(move |sector| (Just(sector), 1..=(size / 512 - sector).min(600)));
    let memory = (prop_oneof![Just(0usize), Just(512), 0..64usize], 1..5usize);
    prop_oneof![
        4 => (range.clone(), memory.clone(), any::<bool>()).prop_map(
            |((sector, sectors), (skew, pieces), fua)| Op::Write { sector, sectors, skew, pieces, fua }),
        4 => (range.clone(), memory).prop_map(
            |((sector, sectors), (skew, pieces))| Op::Read { sector, sectors, skew, pieces }),
        1 => (range, any::<bool>()).prop_map(|((sector, sectors), unmap)| Op::Zero { sector, sectors, unmap }),
        1 => Just(Op::Flush),
    ]
}

/// Does to a disk and to a vector the same.
fn compare(rig: &mut Rig, model: &mut [u8], ops: &[Op]) {
    for (seed, op) in ops.iter().enumerate() {
        let place = |sector: u64, sectors: u64| (sector * 512) as usize..((sector + sectors) * 512) as usize;
        match *op {
            Op::Write { sector, sectors, skew, pieces, fua } => {
                let data = pattern(seed, sectors as usize * 512);
                let flags = if fua { BlockFlags::FUA } else { BlockFlags::empty() };
                assert_eq!(rig.write_flagged(sector * 512, &data, skew, pieces, flags), BlockOutput::Done);
                model[place(sector, sectors)].copy_from_slice(&data);
            }
            Op::Read { sector, sectors, skew, pieces } => {
                let (output, read) = rig.read_skewed(sector * 512, sectors as usize * 512, skew, pieces);
                assert_eq!(output, BlockOutput::Done);
                assert!(read == model[place(sector, sectors)], "{op:?}");
            }
            Op::Zero { sector, sectors, unmap } => {
                let flags = if unmap { BlockFlags::UNMAP } else { BlockFlags::empty() };
                assert_eq!(
                    rig.ranged(BlockOp::WriteZeroes, sector * 512, sectors * 512, flags),
                    BlockOutput::Done
                );
                model[place(sector, sectors)].fill(0);
            }
            Op::Flush => assert_eq!(rig.flush(), BlockOutput::Done),
        }
    }
    let read = rig.read(0, model.len());
    assert!(read == model, "all of it, at the end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_direct_file_is_a_vector(ops in prop::collection::vec(op(SIZE), 1..40), threads in any::<bool>()) {
        let folder = folder();
        let path = image(&folder, SIZE);
        let engine = if threads { Engine::Threads } else { Engine::Auto };
        let backend = FileBackend::open(FileConfig { engine, ..direct(&path) }).expect("a back-end");
        compare(&mut Rig::new(&backend), &mut vec![0; SIZE as usize], &ops);
    }
}

#[test]
fn random_operations_on_devices_of_both_block_sizes() {
    for block in [512, 4096] {
        let folder = folder();
        let path = image(&folder, SIZE);
        let Some(device) = Loop::new(&path, block) else { return };
        for direct in [Direct::Off, Direct::On] {
            for (engine, inline, uring) in engines() {
                let config = FileConfig {
                    direct,
                    engine,
                    inline,
                    cache: Cache::WriteBack,
                    ..FileConfig::new(&device.path)
                };
                let backend = FileBackend::open(config).expect("a back-end");
                let caps = backend.caps();
                assert_eq!((caps.capacity, caps.logical_block), (SIZE, 512));
                assert!(caps.physical_block >= block);
                let mut rig = Rig::with_policy(&backend, uring).expect("a queue");
                let mut runner = proptest::test_runner::TestRunner::deterministic();
                let mut model = rig.read(0, SIZE as usize);
                let ops = prop::collection::vec(op(SIZE), 60);
                let ops = ops.new_tree(&mut runner).expect("operations").current();
                compare(&mut rig, &mut model, &ops);
                rig.drain();
            }
        }
    }
}

#[test]
fn a_device_discards() {
    let folder = folder();
    let path = image(&folder, SIZE);
    for block in [512, 4096] {
        let Some(device) = Loop::new(&path, block) else { return };
        for direct in [Direct::Off, Direct::On] {
            let backend = FileBackend::open(FileConfig { direct, ..FileConfig::new(&device.path) })
                .expect("a back-end");
            assert!(backend.caps().discard.is_some(), "{:?}", backend.caps());
            let mut rig = Rig::new(&backend);
            let data = pattern(3, SIZE as usize);
            assert_eq!(rig.write(0, &data), BlockOutput::Done);
            assert_eq!(rig.ranged(BlockOp::Discard, 512, 1024, BlockFlags::empty()), BlockOutput::Done);
            assert_eq!(
                rig.ranged(BlockOp::Discard, 8192 - 512, 65536, BlockFlags::empty()),
                BlockOutput::Done
            );
            assert!(rig.read(0, 512) == data[..512]);
            assert!(rig.read(65536 + 8192, 4096) == data[65536 + 8192..][..4096]);
        }
    }
}

#[test]
fn overlapping_parts_of_blocks_on_two_queues_lose_nothing() {
    let folder = folder();
    let path = image(&folder, SIZE);
    let Some(device) = Loop::new(&path, 4096) else { return };
    let backend = FileBackend::open(FileConfig { cache: Cache::WriteBack, ..direct(&device.path) })
        .expect("a back-end");
    assert_eq!(backend.caps().logical_block, 512);
    std::thread::scope(|scope| {
        for half in 0..2u64 {
            let backend = &backend;
            scope.spawn(move || {
                let mut rig = Rig::new(backend);
                // Each queue writes the even or the odd sectors of the same few blocks, many at once.
                for round in 0..100u64 {
                    for slot in 0..u64::from(DEPTH) {
                        let offset = (slot * 2 + half) * 512;
                        let mut sg = rig.memory(512, 0, 1);
                        sg.copy_from(0, &pattern((round * 1000 + offset) as usize, 512)).expect("fits");
                        let tag = Tag::new(slot as u32);
                        rig.submit(BlockRequest::transfer(BlockOp::Write, tag, offset, sg).expect("a range"));
                    }
                    rig.finish();
                    for completion in rig.done.drain() {
                        assert_eq!(completion.output, BlockOutput::Done);
                        rig.pool.put(completion.request.into_sg());
                    }
                    for slot in 0..u64::from(DEPTH) {
                        let offset = (slot * 2 + half) * 512;
                        let read = rig.read(offset, 512);
                        assert!(
                            read == pattern((round * 1000 + offset) as usize, 512),
                            "round {round} at {offset}"
                        );
                    }
                }
            });
        }
    });
}

#[test]
fn a_queue_that_goes_leaves_its_ranges_free() {
    let folder = folder();
    let path = image(&folder, SIZE);
    let Some(device) = Loop::new(&path, 4096) else { return };
    let backend = FileBackend::open(direct(&device.path)).expect("a back-end");
    for _ in 0..20 {
        let mut gone = Rig::new(&backend);
        for tag in 0..DEPTH {
            let sg = gone.memory(512, 0, 1);
            gone.submit(
                BlockRequest::transfer(BlockOp::Write, Tag::new(tag), 512 * u64::from(tag), sg)
                    .expect("a range"),
            );
        }
        gone.turn();
        gone.worker.run_within(Duration::from_millis(1)).expect("run");
        gone.turn();
        drop(gone);
        let mut rig = Rig::new(&backend);
        assert_eq!(rig.write(512, &[7; 512]), BlockOutput::Done);
    }
}

#[test]
fn direct_io_that_is_not_possible_is_refused() {
    let folder = folder();
    let path = image(&folder, 8192 + 512);
    if let Some(device) = Loop::new(&path, 512) {
        // Only whole sectors of the device are seen: no tail is left.
        assert_eq!(FileBackend::open(direct(&device.path)).expect("a back-end").caps().capacity, 8192 + 512);
    }
    if let Some(memory) = memory_folder() {
        let path = image(&memory, SIZE);
        match FileBackend::open(direct(&path)) {
            Ok(backend) => {
                // Since Linux 6.6 files in memory take the flag.
                let mut rig = Rig::new(&backend);
                assert_eq!(rig.write_skewed(512, &pattern(1, 5000 / 512 * 512), 5, 2), BlockOutput::Done);
            }
            Err(error) => assert!(error.to_string().contains("direct=off"), "{error}"),
        }
    }
}

#[test]
fn a_tail_that_direct_io_does_not_reach_is_refused() {
    if !is_root() {
        skipped("a file system on 4096-byte sectors takes root");
        return;
    }
    let folder = folder();
    let path = image(&folder, 64 << 20);
    let Some(device) = Loop::new(&path, 4096) else { return };
    let device = device.path.to_string_lossy().into_owned();
    let Some((true, _)) = tool("mkfs.ext4", &["-q", "-b", "4096", &device]) else {
        skipped("no mkfs.ext4");
        return;
    };
    let mount = folder.path().join("mount");
    std::fs::create_dir(&mount).expect("a folder");
    let mounted = tool("mount", &[&device, &mount.to_string_lossy()]);
    let Some((true, _)) = mounted else {
        skipped(format_args!("no mount: {mounted:?}"));
        return;
    };
    let result = std::panic::catch_unwind(|| {
        let file = mount.join("disk.img");
        std::fs::File::create(&file).expect("an image").set_len(SIZE + 512).expect("a size");
        let error = FileBackend::open(direct(&file)).err().map(|error| error.to_string());
        // A file system that states no more than 512 takes the tail.
        if let Some(error) = error {
            assert!(error.contains("4096") && error.contains("direct=off"), "{error}");
        }
        std::fs::OpenOptions::new().write(true).open(&file).expect("an image").set_len(SIZE).expect("a size");
        let backend = FileBackend::open(direct(&file)).expect("a back-end");
        let mut rig = Rig::new(&backend);
        let data = pattern(4, 4096 + 1024);
        assert_eq!(rig.write_skewed(512, &data, 1, 2), BlockOutput::Done);
        assert!(rig.read(512, data.len()) == data);
        assert_eq!(rig.write(SIZE, &[0; 512]), BlockOutput::Failed(BlockError::OutOfRange));
        assert!(backend.control().resize(SIZE + 512).is_err(), "keeps to whole blocks");
        assert_eq!(backend.control().resize(SIZE * 2).expect("grows"), SIZE * 2);
        assert_eq!(rig.write(SIZE + 512, &[5; 512]), BlockOutput::Done);
    });
    let _ = tool("umount", &[&mount.to_string_lossy()]);
    assert!(result.is_ok());
}
