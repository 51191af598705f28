//! The device: features and configuration space, derived from what the stack below can do.

use super::config::{BlkConfig, ConfigError, F_CONFIG_WCE, WRITEBACK, Writeback};
use super::queue::{BlkQueue, BlkShared, needs_fua};
use super::state::BlkState;
use crate::virtio::device::CapsListener;
use crate::virtio::{ConfigListener, QueueFactory, VirtioDevice};
use iovirt_core::dma::SgLimits;
use iovirt_core::pipeline::{BoxBackend, Stages};
use iovirt_core::request::block::BlockRequest;
use iovirt_core::state::{SavedState, StageStates, StateError};
use iovirt_core::{Backend, BackendError, Depth};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// VIRTIO 1.2, section 5: block device.
const DEVICE_ID: u32 = 2;
/// Data segments of a request, and one more for each end that shares a descriptor with header or status.
const SPARE_SEGMENTS: usize = 2;

/// A virtio disk above a block stack.
#[derive(Debug)]
pub struct VirtioBlk {
    config: BlkConfig,
    queue_sizes: Vec<u16>,
    shared: Arc<BlkShared>,
    listener: Arc<CapsListener>,
}

impl VirtioBlk {
    /// A disk above that stack.
    ///
    /// # Errors
    /// Where an option is not possible.
    pub fn new(config: BlkConfig, backend: BoxBackend<BlockRequest>) -> Result<Self, ConfigError> {
        config.check()?;
        let listener = CapsListener::of(&backend);
        let shared = Arc::new(BlkShared { backend, id: config.id(), force_fua: AtomicBool::new(false) });
        let queue_sizes = vec![config.queue_size; config.queues.into()];
        Ok(Self { config, queue_sizes, shared, listener })
    }

    fn writeback(&self) -> Writeback {
        let caps = self.shared.backend.caps();
        if needs_fua(&caps) && self.shared.force_fua.load(Ordering::Relaxed) {
            return Writeback::Off;
        }
        Writeback::of(&caps)
    }

    fn set_writeback(&self, on: bool) {
        let caps = self.shared.backend.caps();
        self.shared.force_fua.store(!on && needs_fua(&caps), Ordering::Relaxed);
    }
}

impl VirtioDevice for VirtioBlk {
    fn name(&self) -> &'static str {
        "virtio-blk"
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.config.features(&self.shared.backend.caps())
    }

    fn features_that_remember(&self) -> u64 {
        F_CONFIG_WCE
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, _: u64, offset: u64, data: &mut [u8]) {
        let space = self.config.space(&self.shared.backend.caps(), self.writeback());
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = from.checked_add(at).and_then(|at| space.get(at)).copied().unwrap_or(0);
        }
    }

    fn write_config(&self, negotiated: u64, offset: u64, data: &[u8]) {
        // The cache mode is the only field that a driver may write (section 5.2.5.1).
        if let [mode] = data
            && offset == WRITEBACK as u64
            && negotiated & F_CONFIG_WCE != 0
        {
            self.set_writeback(*mode & 1 != 0);
        }
    }

    fn set_config_listener(&self, listener: Arc<dyn ConfigListener>) {
        self.listener.set_transport(listener);
    }

    fn queue_factory(&self, index: u16) -> QueueFactory {
        let shared = self.shared.clone();
        let size = self.queue_sizes.get(usize::from(index)).copied().unwrap_or(0);
        let segments = self.config.seg_max as usize + SPARE_SEGMENTS;
        Box::new(move |cx| {
            let depth = Depth::new(size.into())
                .ok_or_else(|| BackendError::config(format!("virtio-blk has no queue {index}")))?;
            let limits = SgLimits { segments, ..SgLimits::default() };
            Ok(Box::new(BlkQueue::open(shared, cx, depth, limits)?))
        })
    }

    fn resubmits(&self) -> bool {
        true
    }

    fn use_queues(&self, _: u16) {
        // A disk has no control queue: it serves whatever queue is started.
    }

    fn reset(&self) {
        self.shared.force_fua.store(false, Ordering::Relaxed);
    }

    fn stages(&self) -> Stages {
        self.shared.backend.list_stages()
    }

    fn save(&self, stages: &mut StageStates) -> Result<Vec<u8>, StateError> {
        self.shared.backend.save(stages)?;
        Ok(BlkState { writeback: self.writeback() == Writeback::On }.to_envelope())
    }

    fn restore(&self, saved: &[u8], stages: &mut StageStates) -> Result<(), StateError> {
        let state = BlkState::from_envelope(saved)?;
        self.shared.backend.restore(stages)?;
        self.set_writeback(state.writeback);
        Ok(())
    }
}
