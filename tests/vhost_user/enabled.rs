//! Which queues a device takes for used: those that are enabled, not all that a front-end started.

use super::raw::{Raw, code, words};
use super::rig::{PATIENCE, Served, small, within_limit};
use iovirt::registry::Registry;
use iovirt_core::frontend::Outcome;
use iovirt_core::pipeline::Stages;
use iovirt_core::state::{StageStates, StateError};
use iovirt_frontends::virtio::{ConfigListener, QueueFactory, VirtioDevice};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A device that notes how many of its queues are used.
#[derive(Debug)]
struct Noting {
    inner: Arc<dyn VirtioDevice>,
    used: Arc<Mutex<Vec<u16>>>,
}

impl VirtioDevice for Noting {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn device_id(&self) -> u32 {
        self.inner.device_id()
    }

    fn features(&self) -> u64 {
        self.inner.features()
    }

    fn features_that_remember(&self) -> u64 {
        self.inner.features_that_remember()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        self.inner.queue_max_sizes()
    }

    fn read_config(&self, negotiated: u64, offset: u64, data: &mut [u8]) {
        self.inner.read_config(negotiated, offset, data);
    }

    fn write_config(&self, negotiated: u64, offset: u64, data: &[u8]) {
        self.inner.write_config(negotiated, offset, data);
    }

    fn set_config_listener(&self, listener: Arc<dyn ConfigListener>) {
        self.inner.set_config_listener(listener);
    }

    fn queue_factory(&self, index: u16) -> QueueFactory {
        self.inner.queue_factory(index)
    }

    fn resubmits(&self) -> bool {
        self.inner.resubmits()
    }

    fn use_queues(&self, count: u16) {
        self.used.lock().unwrap().push(count);
        self.inner.use_queues(count);
    }

    fn reset(&self) {
        self.inner.reset();
    }

    fn stages(&self) -> Stages {
        self.inner.stages()
    }

    fn save(&self, stages: &mut StageStates) -> Result<Vec<u8>, StateError> {
        self.inner.save(stages)
    }

    fn restore(&self, saved: &[u8], stages: &mut StageStates) -> Result<(), StateError> {
        self.inner.restore(saved, stages)
    }
}

#[test]
fn queues_that_are_started_and_disabled_are_not_used() {
    within_limit("a front-end", || {
        let text = "virtio-blk,queues=4,queue-size=64 -> memory,size=1M".parse().unwrap();
        let inner = Registry::standard().build_virtio(&text).unwrap();
        let used = Arc::<Mutex<Vec<u16>>>::default();
        let served = Served::of(Arc::new(Noting { inner, used: used.clone() }), 1, Duration::ZERO);
        let now = || used.lock().unwrap().last().copied();
        let mut driver = served.connect(&small(4));
        let raw = Raw::of(&mut driver);
        assert_eq!(now(), Some(4));
        let enable =
            |ring: u32, on: u32| assert_eq!(raw.tell(code::SET_VRING_ENABLE, &words(&[ring, on])), 0);
        // As QEMU has it for a guest that uses one pair of two.
        enable(2, 0);
        enable(3, 0);
        assert_eq!(now(), Some(2));
        // Whether the embedder holds the device at rest does not matter.
        assert_eq!(served.device().drain().wait(PATIENCE), Some(Outcome::Done));
        enable(3, 1);
        assert_eq!(now(), Some(4));
        enable(3, 0);
        assert_eq!(served.device().resume().wait(PATIENCE), Some(Outcome::Done));
        assert_eq!(now(), Some(2));
        driver.queues[0].write(0, &[1; 512]).unwrap();
    });
}
