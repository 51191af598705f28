//! Devices that are broken on purpose: the suite must notice.

use iovirt_core::dma::DmaSpace;
use iovirt_core::frontend::{Access, Frontend, RegionSpec, Ticket};
use iovirt_core::pipeline::Stages;
use iovirt_core::state::StateError;
use iovirt_core::test_utils::hostile::{self, Layout, Profile, Target, register, status};
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sabotage {
    /// Never says that it needs a reset.
    HidesNeedsReset,
    /// Accepts whatever features a driver chooses.
    AcceptsAllFeatures,
    /// Says that a reset is over, and goes on serving until the driver comes back.
    PretendsReset,
    /// Reads registers of any width.
    AnyWidth,
    /// Forgets to clear the interrupt status.
    InterruptStays,
    /// Restores any state without looking at it.
    RestoresAnything,
    /// Goes on serving while it is drained.
    NeverRests,
    /// Takes a buffer of no bytes for a broken chain.
    DislikesNothing,
    /// Does not look at a ring that has the same chain twice.
    MissesRepeats,
    /// Takes no chain of more than 16 buffers.
    FewBuffers,
    /// Panics where the areas of a queue overlap.
    PanicsOnOverlap,
    /// Forgets a queue whose addresses are written while it is ready.
    FollowsRewrites,
    /// Has every queue that it is asked for.
    EndlessQueues,
    /// Makes the first queue ready itself.
    ReadiesQueues,
    /// Panics where a doorbell comes too early.
    PanicsOnEarlyDoorbell,
    /// Takes a narrow write for a whole one.
    WidensWrites,
    /// Panics where the configuration is written.
    PanicsOnConfig,
    /// Panics where a status has bits that there are not.
    PanicsOnStatus,
    /// A status that is written during a reset holds after it.
    RemembersStatus,
    /// Keeps a descriptor for every eighth reset.
    KeepsDescriptors,
    /// Does not let go of a queue.
    KeepsQueues,
    /// Forgets a reset that comes while a queue is taken back.
    ForgetsReset,
    /// Writes a line for each doorbell.
    LogsDoorbells,
    /// Works as long as there is work.
    WorksOn,
    /// Panics where a descriptor leads out of the ring.
    TrustsDescriptors,
    /// Panics where a saved state that is whole does not fit.
    PanicsOnRestore,
}

use Sabotage as S;

/// The cases that must notice each; others may as well.
const CAUGHT_BY: &[(Sabotage, &[&str])] = &[
    (
        S::HidesNeedsReset,
        &[
            "chain-loops",
            "chain-to-nowhere",
            "chain-memory-to-nowhere",
            "chain-wrong-direction",
            "chain-readable-after-writable",
            "chain-index-jumps",
            "indirect-not-negotiated",
            "indirect-flags",
            "indirect-sizes",
            "indirect-nowhere",
            "indirect-inside",
            "driver-ok-without-features-ok",
            "queue-sizes",
            "queue-addresses",
            "drain-of-a-broken-device",
            "memory-map-without-the-ring",
        ],
    ),
    (S::AcceptsAllFeatures, &["features-unknown", "features-without-version-1"]),
    (S::PretendsReset, &["reset-in-the-middle-of-load"]),
    (S::AnyWidth, &["registers-read", "registers-far-away"]),
    (S::InterruptStays, &["driver-ok-twice"]),
    (S::RestoresAnything, &["saved-state-flipped", "saved-state-restored-twice"]),
    (S::NeverRests, &["drain-and-resume"]),
    (S::DislikesNothing, &["chain-zero-lengths"]),
    (S::MissesRepeats, &["chain-offered-again"]),
    (S::FewBuffers, &["indirect-many-buffers", "split-anywhere"]),
    (S::PanicsOnOverlap, &["queue-areas-overlap"]),
    (S::FollowsRewrites, &["queue-rewritten-while-live"]),
    (S::EndlessQueues, &["queue-that-does-not-exist"]),
    (S::ReadiesQueues, &["queue-not-ready"]),
    (S::PanicsOnEarlyDoorbell, &["doorbell-before-driver-ok"]),
    (S::WidensWrites, &["registers-odd-writes"]),
    (S::PanicsOnConfig, &["registers-config-writes"]),
    (S::PanicsOnStatus, &["registers-any-write"]),
    (S::RemembersStatus, &["reset-not-waited-for"]),
    (S::KeepsDescriptors, &["reset-by-the-thousand"]),
    (S::KeepsQueues, &["queue-taken-back-under-load", "queue-taken-back-not-waited-for"]),
    (S::ForgetsReset, &["queue-taken-back-then-reset"]),
    (S::LogsDoorbells, &["log-flood"]),
    (S::WorksOn, &["work-is-bounded"]),
    (S::TrustsDescriptors, &["memory-changes"]),
    (S::PanicsOnRestore, &["saved-state-mended"]),
];

#[derive(Debug)]
struct Broken {
    inner: Arc<dyn Frontend>,
    space: DmaSpace,
    layout: Layout,
    how: Sabotage,
    memory: Mutex<Memory>,
}

/// What a broken device remembers.
#[derive(Debug, Default)]
struct Memory {
    /// The driver was told that a reset is over, and it is not.
    pretending: bool,
    /// It says that it needs a reset.
    broken: bool,
    /// The driver is ready.
    ready: bool,
    /// A queue was taken back since the last reset.
    taken_back: bool,
    /// A reset had to wait, and the status that was written since then.
    resetting: bool,
    late: u8,
    /// The addresses of the queue that was set up last.
    areas: [u32; 3],
    resets: u32,
    descriptors: Vec<File>,
}

fn is_write(region: usize, offset: u64, data: &[u8], register: u64, value: u32) -> bool {
    region == 0 && offset == register && *data == value.to_le_bytes()
}

impl Broken {
    fn new(target: &Target, how: Sabotage) -> Self {
        let layout = Layout::new(target.queue, target.base);
        let (inner, space) = (target.frontend.clone(), target.space.clone());
        Self { inner, space, layout, how, memory: Mutex::default() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn load<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.space.view().read(addr, &mut bytes).unwrap();
        bytes
    }

    /// The descriptors of the driver's table: length, flags, next.
    fn descriptors(&self, table: u64, count: u64) -> impl Iterator<Item = (u32, u16, u16)> + '_ {
        (0..count).map(move |at| {
            let word = u64::from_le_bytes(self.load(table + at * 16 + 8));
            (word as u32, (word >> 32) as u16, (word >> 48) as u16)
        })
    }

    /// A doorbell; false where a broken device does not hear it.
    fn doorbell(&self) -> bool {
        let desc = self.layout.desc;
        match self.how {
            Sabotage::DislikesNothing => {
                self.memory().broken |=
                    self.descriptors(desc, 8).any(|(len, flags, _)| len == 0 && flags != 0);
            }
            Sabotage::MissesRepeats => {
                let [a, b] = self.load(self.layout.avail + 2);
                let end = u16::from_le_bytes([a, b]);
                let entry = |at: u16| self.load::<2>(self.layout.avail + 4 + 2 * u64::from(at % 16));
                return end < 2 || entry(end.wrapping_sub(1)) != entry(end.wrapping_sub(2));
            }
            Sabotage::FewBuffers => {
                let direct =
                    self.descriptors(desc, 64).take_while(|(len, flags, _)| *len > 0 && flags & 1 != 0);
                let indirect =
                    self.descriptors(desc, 1).any(|(len, flags, _)| flags & 4 != 0 && len > 16 * 16);
                self.memory().broken |= direct.count() >= 16 || indirect;
            }
            Sabotage::PanicsOnEarlyDoorbell => assert!(self.memory().ready, "a doorbell that is too early"),
            Sabotage::LogsDoorbells => tracing::info!("a doorbell"),
            Sabotage::TrustsDescriptors => {
                let sound = self.descriptors(desc, 16).all(|(_, flags, next)| flags & 1 == 0 || next < 1024);
                assert!(sound, "a descriptor that leads out of the ring");
            }
            _ => {}
        }
        true
    }

    fn set_up(&self, offset: u64, value: u32) {
        let area = [register::QUEUE_DESC, register::QUEUE_DRIVER, register::QUEUE_DEVICE];
        if let Some(at) = area.iter().position(|register| *register == offset) {
            self.memory().areas[at] = value;
            if self.how == Sabotage::FollowsRewrites && self.read_register(register::QUEUE_READY) == 1 {
                let _ = self.inner.write(0, register::QUEUE_READY, &0_u32.to_le_bytes());
            }
        }
        let [desc, avail, used] = self.memory().areas;
        let overlap =
            offset == register::QUEUE_READY && value == 1 && (desc == used || desc == avail || avail == used);
        assert!(self.how != Sabotage::PanicsOnOverlap || !overlap, "areas overlap");
    }

    fn read_register(&self, offset: u64) -> u32 {
        let mut value = [0; 4];
        self.inner.read(0, offset, &mut value);
        u32::from_le_bytes(value)
    }

    /// A write of the status; where it is decided already, the answer.
    fn status(&self, value: u32) -> Option<Access> {
        let mut memory = self.memory();
        memory.ready = value & status::DRIVER_OK != 0;
        assert!(self.how != Sabotage::PanicsOnStatus || value <= 0xff, "a status of {value:#x}");
        match self.how {
            Sabotage::PretendsReset if value == 0 => {
                memory.pretending = true;
                return Some(Access::Done);
            }
            Sabotage::PretendsReset if std::mem::take(&mut memory.pretending) => {
                // Too late: the driver may have seen what came in between.
                let _ = self.inner.write(0, register::STATUS, &[0; 4]);
            }
            Sabotage::ForgetsReset if value == 0 && std::mem::take(&mut memory.taken_back) => {
                return Some(Access::Done);
            }
            Sabotage::RemembersStatus if memory.resetting && value != 0 => memory.late = value as u8,
            Sabotage::ReadiesQueues if memory.ready => {
                let _ = self.inner.write(0, register::QUEUE_SEL, &[0; 4]);
                let _ = self.inner.write(0, register::QUEUE_READY, &1_u32.to_le_bytes());
            }
            Sabotage::KeepsDescriptors if value == 0 => {
                // Not for each, or this process would have none left.
                memory.resets += 1;
                let eighth = memory.resets.is_multiple_of(8);
                memory.descriptors.extend(eighth.then(|| File::open("/dev/null").ok()).flatten());
            }
            _ => {}
        }
        memory.broken = memory.broken && value != 0;
        None
    }
}

impl Frontend for Broken {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn regions(&self) -> Vec<RegionSpec> {
        self.inner.regions()
    }

    fn read(&self, region: usize, offset: u64, data: &mut [u8]) {
        self.inner.read(region, offset, data);
        match self.how {
            Sabotage::HidesNeedsReset if offset == register::STATUS => {
                data[0] &= !(status::NEEDS_RESET as u8)
            }
            Sabotage::AcceptsAllFeatures if offset == register::STATUS && data[0] != 0 => {
                data[0] |= status::FEATURES_OK as u8;
            }
            Sabotage::PretendsReset if offset == register::STATUS && self.memory().pretending => data.fill(0),
            Sabotage::DislikesNothing | Sabotage::FewBuffers
                if offset == register::STATUS && self.memory().broken =>
            {
                data[0] |= status::NEEDS_RESET as u8;
            }
            Sabotage::RemembersStatus if offset == register::STATUS && data[0] == 0 => {
                data[0] = self.memory().late;
            }
            Sabotage::EndlessQueues if offset == register::QUEUE_NUM_MAX => {
                data.copy_from_slice(&1024_u32.to_le_bytes());
            }
            Sabotage::AnyWidth if offset == 0 => data.fill(0x76),
            Sabotage::InterruptStays if offset == register::INTERRUPT_STATUS => data[0] |= 1,
            _ => {}
        }
    }

    fn write(&self, region: usize, offset: u64, data: &[u8]) -> Access {
        if self.how == Sabotage::WidensWrites && offset < register::CONFIG && data.len() < 4 && region == 0 {
            let mut whole = [0; 4];
            whole[..data.len()].copy_from_slice(data);
            return self.inner.write(0, offset & !3, &whole);
        }
        assert!(
            self.how != Sabotage::PanicsOnConfig || !(register::CONFIG..0x1000).contains(&offset),
            "the configuration is written"
        );
        let Ok(value) = <[u8; 4]>::try_from(data).map(u32::from_le_bytes) else {
            return self.inner.write(region, offset, data);
        };
        if region == 0 {
            self.set_up(offset, value);
        }
        if region == 0
            && offset == register::STATUS
            && let Some(access) = self.status(value)
        {
            return access;
        }
        if region == 0 && offset == register::QUEUE_NOTIFY && !self.doorbell() {
            return Access::Done;
        }
        let takes_back = is_write(region, offset, data, register::QUEUE_READY, 0);
        if takes_back && self.how == Sabotage::KeepsQueues {
            return Access::Done;
        }
        let access = self.inner.write(region, offset, data);
        let deferred = matches!(access, Access::Deferred(_));
        let mut memory = self.memory();
        memory.taken_back |= takes_back && deferred;
        memory.resetting |= deferred && is_write(region, offset, data, register::STATUS, 0);
        access
    }

    fn doorbells(&self) -> Vec<iovirt_core::doorbell::DoorbellSpec> {
        self.inner.doorbells()
    }

    fn drain(&self) -> Ticket {
        if self.how == Sabotage::NeverRests { Ticket::done() } else { self.inner.drain() }
    }

    fn resume(&self) -> Ticket {
        self.inner.resume()
    }

    fn reset(&self) -> Ticket {
        self.inner.reset()
    }

    fn save(&self) -> Result<Vec<u8>, StateError> {
        self.inner.save()
    }

    fn restore(&self, saved: &[u8]) -> Result<(), StateError> {
        match (self.how, self.inner.restore(saved)) {
            (Sabotage::RestoresAnything, _) => Ok(()),
            (Sabotage::PanicsOnRestore, Err(error @ StateError::Mismatch { .. })) => panic!("{error}"),
            (_, restored) => restored,
        }
    }

    fn stages(&self) -> Stages {
        self.inner.stages()
    }
}

#[test]
fn the_suite_notices() {
    let description = "virtio-blk,queue-size=1024 -> memory,size=4M".parse().unwrap();
    for (how, only) in CAUGHT_BY {
        let factory = || {
            let mut target = super::target(&description, 0);
            let broken = Arc::new(Broken::new(&target, *how));
            if *how == Sabotage::WorksOn {
                let mut step = target.step;
                target.step = Box::new(move || (0..4).for_each(|_| step()));
            }
            Target { frontend: broken, ..target }
        };
        let profile = Profile::new(format!("{how:?}"), super::exchanges());
        let hang = Duration::from_millis(200);
        let profile =
            Profile { only: only.to_vec(), step_bound: Some(super::TURN), hang, rounds: 20, ..profile };
        let report = hostile::run(&factory, &profile);
        println!("{report}");
        assert_eq!(report.failures().count(), only.len(), "{how:?} was not noticed:\n{report}");
    }
}

#[test]
fn every_case_notices_something() {
    let broken: BTreeSet<_> = CAUGHT_BY.iter().flat_map(|(_, cases)| *cases).copied().collect();
    let cases: BTreeSet<_> = hostile::cases().into_iter().map(|(name, _)| name).collect();
    assert_eq!(broken, cases, "what is broken, and what the suite tries");
}
