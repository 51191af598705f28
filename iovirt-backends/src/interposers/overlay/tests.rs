use super::*;
use crate::block::memory::{MemoryBackend, MemoryConfig};
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::{BlockCaps, BlockError, BlockOutput, BlockRequest, Durability};
use iovirt_core::stage::fanout::{Child, Children, FanOut, FanOutStage};
use iovirt_core::stage::{FannedOut, Layer, Layered, LayeredFan, Presence, presence::Walk};
use iovirt_core::state::StageStates;
use iovirt_core::test_utils::conformance::{self, Profile};
use iovirt_core::test_utils::{
    BlockIo, Driver, ManualBackend, PowerLossConfig, PowerLossDisk, Rng, rounds_or, seed_or,
};
use iovirt_core::{AttachError, Backend, Depth, Tag, WorkerContext};
use proptest::prelude::*;
use std::ops::Range;
use std::sync::Arc;

type Boxed = BoxBackend<BlockRequest>;

const CLUSTER: u64 = 4096;
const SIZE: u64 = 16 * CLUSTER + 1024;

fn config() -> OverlayConfig {
    OverlayConfig { cluster: CLUSTER, ..OverlayConfig::default() }
}

fn memory(size: u64) -> Boxed {
    BoxBackend::new(MemoryBackend::new(&MemoryConfig { size, ..MemoryConfig::default() }).unwrap())
}

/// A base that is not zero, and which refuses to be written.
fn base() -> (Boxed, Vec<u8>) {
    let disk =
        MemoryBackend::new(&MemoryConfig { size: SIZE, read_only: true, ..MemoryConfig::default() }).unwrap();
    let content: Vec<u8> = (0..SIZE).map(|at| (at / 512 % 199) as u8 + 1).collect();
    disk.write(0, &content).unwrap();
    (BoxBackend::new(disk), content)
}

fn overlay(upper: Boxed, base: Boxed) -> Boxed {
    BoxBackend::new(Overlay::over(&config(), upper, base).unwrap())
}

fn control(stack: &Boxed) -> Arc<OverlayControl> {
    stack.list_stages().control("overlay").unwrap()
}

#[test]
fn it_keeps_the_contract() {
    let factory = || overlay(memory(1 << 20), memory((1 << 20) - 512));
    conformance::run(&factory, &Profile::new("overlay over memory").rounds(20)).assert_passed();
    let factory = || {
        let disk = |seed| PowerLossDisk::boxed(PowerLossConfig::new(256 << 10).seed(seed));
        overlay(disk(1), disk(2))
    };
    conformance::run(&factory, &Profile::new("overlay").rounds(20)).assert_passed();
    assert_eq!(factory().caps().durability, Durability::Unsafe, "the bitmap is gone with the power");
}

#[test]
fn layers_that_do_not_fit_are_refused() {
    let refused = |cluster, upper, lower| {
        let config = OverlayConfig { cluster, ..config() };
        Overlay::over(&config, memory(upper), memory(lower)).unwrap_err().to_string()
    };
    assert_eq!(
        refused(5000, 4096, 4096),
        "overlay: cluster=5000 is not allowed: powers of two from 4K to 1M are"
    );
    assert_eq!(
        refused(4096, 4096, 8192),
        "overlay: the upper layer has 4096 bytes: it needs the 8192 of the lower"
    );
    assert!(Overlay::new(&config(), 1 << 62).unwrap_err().reason.contains("at most 1073741824"));
}

#[test]
fn a_write_of_a_part_copies_the_rest_up_first() {
    let (upper, up) = ManualBackend::<BlockRequest>::new(BlockCaps::new(1 << 20));
    let (lower, low) = ManualBackend::<BlockRequest>::new(BlockCaps::new(1 << 20));
    let stack = overlay(BoxBackend::new(upper), BoxBackend::new(lower));
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    let first = driver.submit(BlockIo::write(512, vec![7; 512])).unwrap();
    let second = driver.submit(BlockIo::write(1024, vec![8; 512])).unwrap();
    driver.turn();
    assert_eq!(low.in_flight().len(), 1, "the second waits for the first");
    assert_eq!(low.in_flight()[0].cost.bytes, CLUSTER);
    let id = low.in_flight()[0].id;
    low.with_request(id, |request| request.sg_mut().fill(0, CLUSTER, 1).unwrap());
    low.complete(id, BlockOutput::Done);
    driver.turn();
    let copied = up.with_request(id, |request| {
        let mut bytes = vec![0; CLUSTER as usize];
        request.sg().copy_to(0, &mut bytes).unwrap();
        bytes
    });
    let copied = copied.expect("the whole cluster is on its way up");
    assert_eq!((copied[0], copied[512], copied[1024]), (1, 7, 1));
    assert_eq!(control(&stack).allocated(), 0, "not before it is there");
    up.complete(id, BlockOutput::Done);
    let done = driver.turn();
    assert_eq!(done.iter().map(|done| done.id).collect::<Vec<_>>(), [first]);
    driver.turn();
    assert_eq!(control(&stack).allocated(), 1);
    assert!(low.in_flight().is_empty(), "the second finds the cluster above");
    assert_eq!(up.in_flight()[0].cost.bytes, 512);
    up.complete_all(BlockOutput::Done);
    assert_eq!(driver.wait_all().unwrap()[0].id, second);
}

#[test]
fn a_write_that_fails_leaves_the_base_in_view() {
    let (upper, up) = ManualBackend::<BlockRequest>::new(BlockCaps::new(SIZE));
    let (base, content) = base();
    let stack = overlay(BoxBackend::new(upper), base);
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    driver.submit(BlockIo::write(0, vec![9; 8192]));
    driver.turn();
    up.complete(Tag::new(0), BlockOutput::Failed(BlockError::NoSpace));
    assert_eq!(driver.turn()[0].output, BlockOutput::Failed(BlockError::NoSpace));
    assert_eq!(control(&stack).allocated(), 0);
    assert_eq!(driver.read(0, 8192).unwrap(), content[..8192]);
    // The lock went with it.
    driver.submit(BlockIo::write(0, vec![9; 8192]));
    driver.turn();
    assert_eq!(up.complete_all(BlockOutput::Done), 1);
    assert_eq!(driver.wait_all().unwrap()[0].output, BlockOutput::Done);
    assert_eq!(control(&stack).allocated(), 2);
}

/// A queue goes while its cluster is on the way up: nobody else writes that cluster before the host has let go.
#[test]
fn a_cluster_stays_locked_until_the_host_lets_go() {
    let (upper, up) = ManualBackend::<BlockRequest>::new(BlockCaps::new(SIZE));
    let stack = overlay(BoxBackend::new(upper), base().0);
    let mut first = Driver::new(1).unwrap();
    let mut second = Driver::new(2).unwrap();
    first.open(&stack, 4).unwrap();
    second.open(&stack, 4).unwrap();
    first.submit(BlockIo::write(0, vec![1; 512]));
    first.turn();
    first.turn();
    assert_eq!(up.in_flight().len(), 1);
    second.submit(BlockIo::write(512, vec![2; 512]));
    second.turn();
    assert_eq!(up.in_flight().len(), 1, "it waits");
    // The host goes on with the write of the queue that goes.
    let hosts = up.with_request(up.in_flight()[0].id, |request| {
        std::mem::replace(request, BlockRequest::flush(Tag::new(0), Box::default()))
    });
    first.close();
    second.turn();
    second.turn();
    assert!(up.in_flight().is_empty(), "it still waits");
    drop(hosts);
    second.turn();
    second.turn();
    assert_eq!(up.in_flight()[0].id.queue, 1);
    up.complete_all(BlockOutput::Done);
    assert_eq!(second.wait_all().unwrap().len(), 1);
}

#[test]
fn the_bitmap_is_saved_and_restored() {
    let upper = memory(SIZE);
    let (base, mut content) = base();
    let stack = overlay(upper.clone(), base.clone());
    let mut driver = Driver::new(1).unwrap();
    driver.open(&stack, 4).unwrap();
    driver.write(512, &[3; 1024]).unwrap();
    driver.quiesce().unwrap();
    content[512..1536].fill(3);
    let mut states = StageStates::default();
    stack.save(&mut states).unwrap();
    let again = overlay(upper.clone(), base.clone());
    driver.open(&again, 4).unwrap();
    assert_ne!(driver.read(0, 4096).unwrap(), content[..4096], "without its bitmap it shows the base");
    again.restore(&mut states.clone()).unwrap();
    assert_eq!(driver.read(0, SIZE).unwrap(), content);
    let coarser = OverlayConfig { cluster: 8192, ..config() };
    let other = BoxBackend::new(Overlay::over(&coarser, upper, base).unwrap());
    assert!(other.restore(&mut states).is_err());
}

#[derive(Clone, Debug)]
enum Step {
    Read,
    Write(u8),
    Discard,
    WriteZeroes,
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<(Step, u64, u64)>> {
    let step = prop_oneof![
        3 => Just(Step::Read),
        3 => any::<u8>().prop_map(Step::Write),
        1 => Just(Step::Discard),
        1 => Just(Step::WriteZeroes),
        1 => Just(Step::Flush),
    ];
    prop::collection::vec((step, 0..SIZE / 512, 0..40_u64), 1..40)
}

/// Compares a stack with a vector; what was discarded may be anything from then on.
fn compare(stack: &Boxed, mut model: Vec<Option<u8>>, steps: Vec<(Step, u64, u64)>) -> Result<(), String> {
    let mut driver = Driver::new(1).unwrap();
    driver.open(stack, 2).unwrap();
    let check = |data: &[u8], model: &[Option<u8>], name: &str| match data
        .iter()
        .zip(model)
        .position(|(found, wanted)| wanted.is_some_and(|wanted| wanted != *found))
    {
        None => Ok(()),
        Some(at) => Err(format!("{name}: byte {at} is {} instead of {:?}", data[at], model[at])),
    };
    for (number, (step, sector, count)) in steps.into_iter().enumerate() {
        let offset = sector * 512;
        let len = (count * 512).min(SIZE - offset);
        let range = offset as usize..(offset + len) as usize;
        let io = match step {
            Step::Read => BlockIo::read(offset, len),
            Step::Write(byte) => BlockIo::write(offset, vec![byte; len as usize]),
            Step::Discard => BlockIo::discard(offset, len),
            Step::WriteZeroes => BlockIo::write_zeroes(offset, len),
            Step::Flush => BlockIo::flush(),
        };
        let done = driver.run(io).map_err(|stuck| stuck.to_string())?;
        if done.output != BlockOutput::Done {
            return Err(format!("step {number} gave {:?}", done.output));
        }
        match step {
            Step::Read => check(&done.data, &model[range], &format!("step {number}"))?,
            Step::Write(byte) => model[range].fill(Some(byte)),
            Step::WriteZeroes => model[range].fill(Some(0)),
            Step::Discard => model[range].fill(None),
            Step::Flush => {}
        }
    }
    let data = driver.read(0, SIZE).map_err(|error| error.to_string())?;
    check(&data, &model, "at the end")
}

/// Knowledge with a mistake in it.
#[derive(Debug)]
struct Broken {
    inner: Overlay,
    mistake: Mistake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    /// Notes only the first of several clusters.
    NotesOne,
    /// Takes the cluster behind for written too.
    NotesOneMore,
    /// Says that a run goes on to the end.
    RunsOn,
}

impl Presence for Broken {
    fn name(&self) -> &str {
        "broken"
    }
    fn capacity(&self) -> u64 {
        self.inner.capacity()
    }
    fn cluster(&self) -> u64 {
        self.inner.cluster()
    }
    fn durability(&self) -> Durability {
        self.inner.durability()
    }
    fn lookup(&self, range: Range<u64>) -> (Layer, u64) {
        let (layer, end) = self.inner.lookup(range.clone());
        if self.mistake == Mistake::RunsOn && layer == Layer::Lower {
            (layer, range.end)
        } else {
            (layer, end)
        }
    }
    fn allocate(&self, range: Range<u64>) {
        let end = match self.mistake {
            Mistake::NotesOne => range.end.min(range.start + CLUSTER),
            Mistake::NotesOneMore => (range.end + CLUSTER).min(SIZE),
            Mistake::RunsOn => range.end,
        };
        self.inner.allocate(range.start..end);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_is_a_vector_of_bytes(steps in steps()) {
        let (base, content) = base();
        let stack = overlay(memory(SIZE), base.clone());
        let model = content.iter().map(|&byte| Some(byte)).collect();
        prop_assert_eq!(compare(&stack, model, steps), Ok(()));
        let mut driver = Driver::new(1).unwrap();
        driver.open(&base, 1).unwrap();
        prop_assert_eq!(driver.read(0, SIZE).unwrap(), content, "the base changed");
    }

    #[test]
    fn the_bitmap_is_a_set(ranges in prop::collection::vec((0..300_u64, 1..130_u64), 0..12), probe in 0..300_u64) {
        let overlay = Overlay::new(&config(), 300 * CLUSTER - 512).unwrap();
        let mut model = [false; 300];
        for (first, count) in ranges {
            let end = (first + count).min(300);
            overlay.allocate(first * CLUSTER..(end * CLUSTER).min(overlay.capacity()));
            model[first as usize..end as usize].fill(true);
        }
        let (layer, end) = overlay.lookup(probe * CLUSTER..overlay.capacity());
        let held = model[probe as usize];
        prop_assert_eq!(layer == Layer::Upper, held);
        let run = model[probe as usize..].iter().take_while(|bit| **bit == held).count() as u64;
        prop_assert_eq!(end, ((probe + run) * CLUSTER).min(overlay.capacity()));
        let count = OverlayControl::new(overlay.map_for_test()).allocated();
        prop_assert_eq!(count, model.iter().filter(|bit| **bit).count() as u64);
    }
}

#[test]
fn the_comparison_notices_mistakes() {
    let script =
        vec![(Step::Write(200), 0, 24), (Step::Read, 0, 40), (Step::Write(201), 60, 3), (Step::Read, 40, 40)];
    for mistake in [Mistake::NotesOne, Mistake::NotesOneMore, Mistake::RunsOn] {
        let (base, content) = base();
        let broken = Broken { inner: Overlay::new(&config(), SIZE).unwrap(), mistake };
        let stack = BoxBackend::new(Layered::over(broken, memory(SIZE), base).unwrap());
        let model = content.iter().map(|&byte| Some(byte)).collect();
        assert!(compare(&stack, model, script.clone()).is_err(), "{mistake:?}");
    }
}

/// An overlay whose copies do not keep others out.
#[derive(Debug)]
struct Unlocked(Layered<Overlay>);
struct UnlockedFan(LayeredFan<Overlay>);

impl FanOutStage<BlockRequest> for Unlocked {
    type FanOut = UnlockedFan;
    fn name(&self) -> &str {
        "unlocked"
    }
    fn caps(&self, layers: &[Arc<BlockCaps>]) -> Result<BlockCaps, AttachError> {
        self.0.caps(layers)
    }
    fn fan_out(&self, cx: &mut WorkerContext<'_>, depth: Depth) -> UnlockedFan {
        UnlockedFan(self.0.fan_out(cx, depth))
    }
}

impl FanOut<BlockRequest> for UnlockedFan {
    type Parent = Walk;
    fn on_submit(
        &mut self,
        cx: &mut WorkerContext<'_>,
        request: &mut BlockRequest,
        children: &mut Children<'_, BlockRequest>,
    ) -> Result<Walk, BlockOutput> {
        self.0.on_submit(cx, request, children)
    }
    fn on_child(
        &mut self,
        cx: &mut WorkerContext<'_>,
        parent: &mut Walk,
        request: &mut BlockRequest,
        child: Child<'_, BlockRequest>,
        children: &mut Children<'_, BlockRequest>,
    ) {
        self.0.on_child(cx, parent, request, child, children);
    }
    fn finish(&mut self, parent: Walk, request: &mut BlockRequest) -> BlockOutput {
        self.0.finish(parent, request)
    }
}

/// Single sectors of few clusters are written all at once, over layers that do requests in any order; then each sector
/// holds its last write. Says whether one was lost.
fn loses_writes(stack: impl Fn(Boxed, Boxed) -> Boxed) -> bool {
    let mut rng = Rng::new(seed_or(0x0ea5));
    (0..rounds_or(40)).any(|_| {
        let mut disk = || PowerLossDisk::boxed(PowerLossConfig::new(4 * CLUSTER).seed(rng.next_u64()));
        let stack = stack(disk(), disk());
        let mut drivers = [Driver::new(1).unwrap(), Driver::new(2).unwrap()];
        for driver in &mut drivers {
            driver.open(&stack, 32).unwrap();
        }
        let mut sectors: Vec<u64> = (0..32).collect();
        rng.shuffle(&mut sectors);
        for &sector in &sectors {
            let io = BlockIo::write(sector * 512, vec![sector as u8 + 1; 512]);
            drivers[rng.index(2)].submit(io).unwrap();
        }
        while drivers.iter().any(|driver| driver.in_flight() > 0) {
            for driver in &mut drivers {
                driver.turn();
            }
        }
        let data = drivers[0].read(0, 4 * CLUSTER).unwrap();
        (0..32_usize).any(|sector| data[sector * 512] != sector as u8 + 1)
    })
}

#[test]
fn writes_of_parts_of_one_cluster_all_survive() {
    assert!(!loses_writes(overlay));
    let unlocked = |upper: Boxed, lower: Boxed| {
        let stage = Unlocked(Layered::new(Overlay::new(&config(), lower.caps().capacity).unwrap()));
        BoxBackend::new(FannedOut::new(stage, vec![upper, lower]).unwrap())
    };
    assert!(loses_writes(unlocked), "the test would not notice");
}
