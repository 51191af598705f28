//! Devices that are broken on purpose: the suite must notice.

use iovirt_core::frontend::{Access, Frontend, RegionSpec, Ticket};
use iovirt_core::pipeline::Stages;
use iovirt_core::state::StateError;
use iovirt_core::test_utils::hostile::{self, Profile, Target, register, status};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
}

#[derive(Debug)]
struct Broken {
    inner: Arc<dyn Frontend>,
    how: Sabotage,
    pretending: AtomicBool,
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
            Sabotage::PretendsReset
                if offset == register::STATUS && self.pretending.load(Ordering::Relaxed) =>
            {
                data.fill(0);
            }
            Sabotage::AnyWidth if offset == 0 => data.fill(0x76),
            Sabotage::InterruptStays if offset == register::INTERRUPT_STATUS => data[0] |= 1,
            _ => {}
        }
    }

    fn write(&self, region: usize, offset: u64, data: &[u8]) -> Access {
        if self.how == Sabotage::PretendsReset && offset == register::STATUS && region == 0 {
            if data == [0; 4] {
                self.pretending.store(true, Ordering::Relaxed);
                return Access::Done;
            }
            if self.pretending.swap(false, Ordering::Relaxed) {
                // Too late: the driver may have seen what came in between.
                let _ = self.inner.write(0, register::STATUS, &[0; 4]);
            }
        }
        self.inner.write(region, offset, data)
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
        if self.how == Sabotage::RestoresAnything { Ok(()) } else { self.inner.restore(saved) }
    }

    fn stages(&self) -> Stages {
        self.inner.stages()
    }
}

#[test]
fn the_suite_notices() {
    let tries = [
        (
            Sabotage::HidesNeedsReset,
            vec!["chain-loops", "indirect-flags", "queue-sizes", "features-unknown"],
            3,
        ),
        (Sabotage::AcceptsAllFeatures, vec!["features-unknown", "features-without-version-1"], 2),
        (Sabotage::PretendsReset, vec!["reset-in-the-middle-of-load"], 1),
        (Sabotage::AnyWidth, vec!["registers-read", "registers-far-away"], 2),
        (Sabotage::InterruptStays, vec!["driver-ok-twice"], 1),
        (Sabotage::RestoresAnything, vec!["saved-state-flipped", "saved-state-restored-twice"], 2),
        (Sabotage::NeverRests, vec!["drain-and-resume"], 1),
    ];
    let description = "virtio-blk,queue-size=1024 -> memory,size=4M".parse().unwrap();
    for (how, only, failures) in tries {
        let factory = || {
            let target = super::target(&description, 0);
            let pretending = AtomicBool::new(false);
            let frontend = Arc::new(Broken { inner: target.frontend, how, pretending });
            Target { frontend, ..target }
        };
        let profile = Profile { only, ..Profile::new(format!("{how:?}"), super::exchanges()) };
        let report = hostile::run(&factory, &profile);
        println!("{report}");
        assert_eq!(report.failures().count(), failures, "{how:?} was not noticed:\n{report}");
    }
}
