use super::queue::Layout;
use super::*;
use crate::block::memory::{MemoryBackend, MemoryConfig};
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::{BlockCaps, BlockError, BlockOutput, BlockRequest};
use iovirt_core::test_utils::conformance::{self, Profile};
use iovirt_core::test_utils::power_loss::{PowerLossHandle, Sabotage};
use iovirt_core::test_utils::{
    BlockIo, Driver, ManualBackend, PowerLossConfig, PowerLossDisk, Rng, Workload, WorkloadConfig, rounds_or,
    seed_or,
};
use iovirt_core::{Backend, Tag};
use proptest::prelude::*;

type Boxed = BoxBackend<BlockRequest>;

fn stripe(chunk: u64, branches: Vec<Boxed>) -> Boxed {
    let config = StripeConfig { chunk, ..StripeConfig::default() };
    BoxBackend::new(Stripe::over(&config, branches).unwrap())
}

fn memory(size: u64) -> Boxed {
    BoxBackend::new(MemoryBackend::new(&MemoryConfig { size, ..MemoryConfig::default() }).unwrap())
}

fn power_loss(count: u64, seed: u64) -> (Vec<Boxed>, Vec<PowerLossHandle>) {
    let disk = |at| PowerLossDisk::new(PowerLossConfig::new(64 << 10).seed(seed ^ at));
    (0..count).map(disk).map(|(disk, handle)| (BoxBackend::new(disk), handle)).unzip()
}

#[test]
fn it_keeps_the_contract() {
    for (count, chunk) in [(1, 4096), (2, 1024), (3, 1536)] {
        let factory = || stripe(chunk, power_loss(count, 7).0);
        conformance::run(&factory, &Profile::new("stripe").rounds(20)).assert_passed();
    }
    let factory = || stripe(8192, vec![memory(1 << 20), memory(2 << 20)]);
    conformance::run(&factory, &Profile::new("stripe over memory").rounds(20)).assert_passed();
}

#[test]
fn a_disk_below_that_loses_power_is_told_of_honestly() {
    let alone = |disk: Boxed| stripe(512, vec![disk]);
    conformance::durability(&alone, &Profile::new("stripe of one").rounds(100)).assert_passed();
}

fn cuts(sabotage: Option<Sabotage>) -> Result<(), String> {
    let seed = seed_or(0x2718_2818);
    let mut rng = Rng::new(seed);
    for round in 0..rounds_or(150) {
        let (mut disks, mut handles) = power_loss(2, rng.next_u64());
        let mut config = PowerLossConfig::new(64 << 10).seed(rng.next_u64());
        config.sabotage = sabotage;
        let (odd, handle) = PowerLossDisk::new(config);
        disks.push(BoxBackend::new(odd));
        handles.push(handle);
        let stack = stripe(1024, disks);
        let caps = stack.caps();
        let mut load = Workload::new(WorkloadConfig::new(&caps, 24), &caps, rng.next_u64());
        let mut driver = Driver::new(rng.next_u64()).unwrap();
        driver.open_with_fua(&stack, 8).unwrap();
        load.run(&mut driver, rng.between(1, 60)).map_err(|violation| violation.to_string())?;
        driver.close();
        let survivors = handles.iter().map(|handle| BoxBackend::new(handle.cut(rng.next_u64()).0)).collect();
        driver.open_with_fua(&stripe(1024, survivors), 8).unwrap();
        load.verify_after_cut(&mut driver)
            .map_err(|violation| format!("IOVIRT_SEED={seed:#x}, round {round}: {violation}"))?;
    }
    Ok(())
}

#[test]
fn what_was_flushed_survives_a_cut_under_all_branches() {
    cuts(None).unwrap();
    // One of three disks that ignores its flushes is noticed.
    assert!(cuts(Some(Sabotage::FlushDoesNothing)).is_err());
}

#[test]
fn a_branch_gets_one_request_however_many_chunks_there_are() {
    let made = (0..2).map(|_| ManualBackend::<BlockRequest>::new(BlockCaps::new(1 << 20)));
    let (backends, handles): (Vec<_>, Vec<_>) =
        made.map(|(disk, handle)| (BoxBackend::new(disk), handle)).unzip();
    let stack = stripe(512, backends);
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    driver.submit(BlockIo::write(512, vec![1; 5 * 512]));
    driver.turn();
    let bytes: Vec<_> = handles.iter().map(|handle| handle.in_flight()[0].cost.bytes).collect();
    assert_eq!(bytes, [1024, 1536]);
    assert_eq!((handles[0].in_flight().len(), handles[1].in_flight().len()), (1, 1));
    handles[0].complete(Tag::new(0), BlockOutput::Failed(BlockError::NoSpace));
    assert!(driver.turn().is_empty(), "its memory is still in use");
    handles[1].complete(Tag::new(0), BlockOutput::Done);
    assert_eq!(driver.turn()[0].output, BlockOutput::Failed(BlockError::NoSpace));
}

/// More pieces than a list may have: the rest follows when the first part is done.
#[test]
fn a_request_of_very_many_chunks_is_done_in_turns() {
    use iovirt_core::dma::{SgLimits, SgPool};
    use iovirt_core::{Completions, Depth, Queue, Worker, WorkerConfig};
    let stack = stripe(512, vec![memory(4 << 20), memory(4 << 20)]);
    let mut worker = Worker::new(WorkerConfig::default()).unwrap();
    let depth = Depth::new(1).unwrap();
    let mut queue = worker.with_context(|cx| stack.open(cx, depth)).unwrap();
    let mut pool = SgPool::new(1, SgLimits::default());
    let mut done = Completions::with_depth(depth);
    let data: Vec<u8> = (0..2_u32 << 20).map(|at| (at / 512 % 251) as u8).collect();
    for op in [iovirt_core::request::block::BlockOp::Write, iovirt_core::request::block::BlockOp::Read] {
        let mut sg = pool.take();
        sg.push_host(data.len()).unwrap();
        if op == iovirt_core::request::block::BlockOp::Write {
            sg.copy_from(0, &data).unwrap();
        }
        let request = BlockRequest::transfer(op, Tag::new(0), 512, sg).unwrap();
        worker.with_context(|cx| {
            queue.submit(cx, request);
            for _ in 0..8 {
                queue.kick(cx);
                queue.poll(cx, &mut done);
            }
        });
        let completion = done.drain().next().expect("it comes home");
        assert_eq!(completion.output, BlockOutput::Done);
        let mut back = vec![0; data.len()];
        completion.request.sg().copy_to(0, &mut back).unwrap();
        assert!(back == data);
        pool.put(completion.request.into_sg());
    }
}

#[test]
fn chunks_that_cannot_be_are_refused() {
    let refused = |chunk, size| {
        let config = StripeConfig { chunk, ..StripeConfig::default() };
        Stripe::over(&config, vec![memory(size)]).unwrap_err().to_string()
    };
    let allowed = "multiples of 512 from 512 to 1G are";
    assert_eq!(refused(0, 4096), format!("stripe: chunk=0 is not allowed: {allowed}"));
    assert_eq!(refused(1000, 4096), format!("stripe: chunk=1000 is not allowed: {allowed}"));
    assert!(refused(8192, 4096).contains("make no disk"));
}

#[derive(Clone, Debug)]
enum Step {
    Read,
    Write(u8),
    Discard,
    WriteZeroes,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Read),
        any::<u8>().prop_map(Step::Write),
        Just(Step::Discard),
        Just(Step::WriteZeroes)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn it_is_a_vector_of_bytes(
        sectors in 1..9_u64, branches in 1..5_u64, rows in 1..5_u64,
        steps in prop::collection::vec((step(), 0..96_u64, 0..40_u64), 1..30),
    ) {
        let chunk = sectors * 512;
        let disks = (0..branches).map(|_| memory(rows * chunk + 512 * (sectors - 1))).collect();
        let stack = stripe(chunk, disks);
        let size = stack.caps().capacity;
        prop_assert_eq!(size, (rows * chunk + 512 * (sectors - 1)) / chunk * chunk * branches);
        let mut model = vec![0_u8; size as usize];
        let mut driver = Driver::new(1).unwrap();
        driver.open(&stack, 2).unwrap();
        for (step, sector, count) in steps {
            let (offset, len) = (sector * 512, count * 512);
            let inside = offset + len <= size;
            let range = offset as usize..(offset + len) as usize;
            let (io, byte) = match step {
                Step::Read => (BlockIo::read(offset, len), None),
                Step::Write(byte) => (BlockIo::write(offset, vec![byte; len as usize]), Some(byte)),
                Step::Discard => (BlockIo::discard(offset, len), Some(0)),
                Step::WriteZeroes => (BlockIo::write_zeroes(offset, len), Some(0)),
            };
            let done = driver.run(io).unwrap();
            let expected = if inside { BlockOutput::Done } else { BlockOutput::Failed(BlockError::OutOfRange) };
            prop_assert_eq!(done.output, expected);
            match byte {
                Some(byte) if inside => model[range].fill(byte),
                None if inside => prop_assert_eq!(&done.data, &model[range]),
                _ => {}
            }
        }
    }

    #[test]
    fn every_byte_has_one_place(chunk in 1..2000_u64, branches in 1..9_u64, start in 0..1_000_000_u64, len in 1..50_000_u64) {
        let layout = Layout { chunk, branches };
        let parts: Vec<_> = (0..branches).map(|branch| layout.on_branch(&(start..start + len), branch)).collect();
        prop_assert_eq!(parts.iter().map(|part| part.end - part.start).sum::<u64>(), len);
        for (branch, part) in parts.iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            for at in [part.start, part.end - 1] {
                let on_disk = layout.on_disk(branch as u64, at);
                prop_assert!((start..start + len).contains(&on_disk));
                prop_assert_eq!(layout.on_branch(&(on_disk..on_disk + 1), branch as u64), at..at + 1);
            }
        }
    }
}
