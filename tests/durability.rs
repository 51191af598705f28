//! Power cuts under a whole disk: the guest's driver above, a disk with a volatile cache below, and in every cache mode what
//! the guest was told is durable must be found.

mod common;

use common::{ALL, Rig};
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::Durability;
use iovirt_core::test_utils::oracle::{FlushToken, Oracle, WriteToken};
use iovirt_core::test_utils::power_loss::{Pace, PowerLossConfig, PowerLossDisk, PowerLossHandle, Sabotage};
use iovirt_core::test_utils::rng::{Rng, seed_or};
use iovirt_core::test_utils::stamp::{Content, stamped};
use iovirt_core::test_utils::virtio::{BlkDriver, BlkOp, BlkStatus, Pump, Unplugged};
use iovirt_frontends::virtio::blk::BlkConfig;
use std::collections::HashMap;
use std::sync::Arc;

const SECTORS: u64 = 64;
/// Requests between two cuts, at most.
const LOAD: u64 = 60;
const ROUNDS: u64 = 700;
/// `VIRTIO_BLK_F_FLUSH`
const FLUSH: u64 = 1 << 9;

/// How the guest uses the disk.
#[derive(Clone, Copy, Debug)]
enum Guest {
    /// Flushes when it wants to be sure.
    Flushes,
    /// Has switched the write cache off.
    SwitchedOff,
    /// Knows nothing of caches: takes a completed write for durable.
    Unaware,
}

impl Guest {
    /// What it may rely on.
    fn promise(self, disk: Durability) -> Durability {
        match self {
            Self::Flushes => disk,
            Self::SwitchedOff | Self::Unaware => Durability::WriteThrough,
        }
    }

    fn connect(self, rig: &Rig) -> BlkDriver {
        let wanted = if matches!(self, Self::Unaware) { ALL & !(FLUSH | 1 << 11) } else { ALL };
        let mut driver = rig.driver(wanted, 8 * 512);
        if matches!(self, Self::SwitchedOff) {
            driver.set_writeback(false);
            assert!(!driver.writeback());
        }
        driver
    }
}

enum Pending {
    Write(WriteToken),
    Flush(FlushToken),
}

struct Load {
    rng: Rng,
    oracle: Oracle,
    pending: HashMap<usize, Pending>,
}

impl Load {
    /// Submits one request, if nothing in flight is in its way.
    fn submit(&mut self, driver: &mut BlkDriver, guest: Guest) {
        if matches!(guest, Guest::Flushes) && self.rng.one_in(6) {
            let token = self.oracle.begin_flush();
            let slot = driver.submit(BlkOp::Flush, 0, &[]).unwrap();
            self.pending.insert(slot, Pending::Flush(token));
            return;
        }
        let first = self.rng.below(SECTORS);
        let end = (first + self.rng.between(1, 8)).min(SECTORS);
        let busy = self.pending.values().any(|pending| match pending {
            Pending::Write(token) => token.sectors().start < end && first < token.sectors().end,
            Pending::Flush(_) => false,
        });
        if busy {
            return;
        }
        let version = self.oracle.next_version();
        let token = self.oracle.begin_write(first..end, Content::Version(version));
        let slot = driver.submit(BlkOp::Out, first, &stamped(first, end - first, version)).unwrap();
        self.pending.insert(slot, Pending::Write(token));
    }

    fn reap(&mut self, driver: &mut BlkDriver) {
        let Self { oracle, pending, .. } = self;
        driver
            .poll(|slot, status, _| {
                let done = status == BlkStatus::Ok;
                match pending.remove(&slot).expect("a request that was submitted") {
                    Pending::Write(token) => oracle.end_write(&token, done, false),
                    Pending::Flush(token) => oracle.end_flush(token, done),
                }
            })
            .unwrap();
    }
}

/// Runs a load over a disk and cuts the power; gives the disk that is found afterwards.
fn round(
    (disk, handle): (PowerLossDisk, &PowerLossHandle),
    guest: Guest,
    load: &mut Load,
) -> (PowerLossDisk, PowerLossHandle) {
    let rig = Rig::new(BlkConfig::default(), BoxBackend::new(disk));
    let mut driver = guest.connect(&rig);
    for _ in 0..load.rng.between(1, LOAD) {
        if driver.idle() > 60 {
            load.submit(&mut driver, guest);
        }
        if load.rng.one_in(3) {
            driver.ring();
        }
        if load.rng.one_in(2) {
            rig.worker.borrow_mut().run().unwrap();
        }
        if load.rng.one_in(3) {
            load.reap(&mut driver);
        }
    }
    load.reap(&mut driver);
    let found = handle.cut(load.rng.next_u64());
    drop(rig);
    driver.transport().replace_frontend(Arc::new(Unplugged), Pump::threads());
    load.pending.clear();
    found
}

/// Cuts the power again and again; gives the number of cuts survived, or what was lost.
fn cut(config: &PowerLossConfig, guest: Guest, rounds: u64) -> Result<u64, String> {
    let seed = seed_or(0x10_57_d1_5c);
    let promise = guest.promise(config.caps.durability);
    let oracle = Oracle::new(SECTORS, promise);
    let mut load = Load { rng: Rng::new(seed), oracle, pending: HashMap::new() };
    let (mut disk, mut handle) = PowerLossDisk::new(config.clone());
    for at in 0..rounds {
        (disk, handle) = round((disk, &handle), guest, &mut load);
        let lost = load.oracle.check_after_cut(0, &handle.content());
        lost.map_err(|lost| format!("seed {seed:#x}, cut {at}, {guest:?} over {config:?}: {lost}"))?;
    }
    Ok(rounds)
}

fn config() -> PowerLossConfig {
    PowerLossConfig::new(SECTORS * 512).pace(Pace::Random)
}

#[test]
fn what_the_guest_was_promised_survives() {
    let mut cuts = 0;
    for durability in [Durability::WriteBack, Durability::WriteThrough] {
        for fua in [true, false] {
            for guest in [Guest::Flushes, Guest::SwitchedOff, Guest::Unaware] {
                let config = config().durability(durability).fua(fua);
                cuts += cut(&config, guest, ROUNDS).unwrap();
            }
        }
    }
    println!("{cuts} power cuts survived");
}

#[test]
fn a_disk_that_lies_is_caught() {
    for (sabotage, guest) in [
        (Sabotage::FlushDoesNothing, Guest::Flushes),
        (Sabotage::FlushMissesOne, Guest::Flushes),
        (Sabotage::IgnoresFua, Guest::SwitchedOff),
        (Sabotage::IgnoresFua, Guest::Unaware),
    ] {
        let config = config().durability(Durability::WriteBack).sabotage(sabotage);
        let caught = cut(&config, guest, ROUNDS);
        println!("{sabotage:?}: {caught:?}");
        assert!(caught.is_err(), "{sabotage:?} went unnoticed");
    }
}
