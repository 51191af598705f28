//! Devices whose queues make a mistake in the middle of their life.

use iovirt::core::Mode;
use iovirt::core::dma::DmaView;
use iovirt::core::pipeline::Stages;
use iovirt::core::state::{StageStates, StateError};
use iovirt::core::worker::{Turn, WorkerContext};
use iovirt::frontends::virtio::{ConfigListener, QueueError, QueueFactory, QueueWork, Ring, VirtioDevice};
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    /// Does not look at its ring when it goes on.
    ForgetsRing,
    /// Does not serve again what was in flight when it was saved.
    ForgetsHeads,
}

/// A device whose queues make that mistake.
#[derive(Debug)]
struct Mistaken {
    inner: Arc<dyn VirtioDevice>,
    mistake: Mistake,
}

struct MistakenWork {
    inner: Box<dyn QueueWork>,
    mistake: Mistake,
    /// Goes on with its next turn without a look.
    blind: bool,
}

impl VirtioDevice for Mistaken {
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
        let (make, mistake) = (self.inner.queue_factory(index), self.mistake);
        Box::new(move |cx| Ok(Box::new(MistakenWork { inner: make(cx)?, mistake, blind: false })))
    }

    fn resubmits(&self) -> bool {
        self.inner.resubmits()
    }

    fn use_queues(&self, count: u16) {
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

impl QueueWork for MistakenWork {
    fn start(&mut self, features: u64) {
        self.inner.start(features);
    }

    fn memory_changed(&mut self, view: &DmaView) {
        self.inner.memory_changed(view);
    }

    fn serve(&mut self, cx: &mut WorkerContext<'_>, ring: &mut Ring) -> Result<Turn, QueueError> {
        if std::mem::take(&mut self.blind) {
            // It asks for doorbells, and takes it that there was none.
            ring.enable_notifications();
            return Ok(Turn::Idle);
        }
        self.inner.serve(cx, ring)
    }

    fn settle(&mut self, cx: &mut WorkerContext<'_>, ring: Option<&mut Ring>) -> Result<(), QueueError> {
        self.inner.settle(cx, ring)
    }

    fn resubmit(
        &mut self,
        cx: &mut WorkerContext<'_>,
        ring: &mut Ring,
        heads: &[u16],
    ) -> Result<usize, QueueError> {
        if self.mistake == Mistake::ForgetsHeads {
            Ok(heads.len())
        } else {
            self.inner.resubmit(cx, ring, heads)
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.inner.drain(cx);
    }

    fn resume(&mut self, cx: &mut WorkerContext<'_>) {
        if self.mistake == Mistake::ForgetsRing {
            self.blind = true;
        }
        self.inner.resume(cx);
    }

    fn mode(&self) -> Mode {
        self.inner.mode()
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight()
    }

    fn heads_in_flight(&self) -> Vec<u16> {
        self.inner.heads_in_flight()
    }
}

pub(crate) fn forgets_ring(inner: Arc<dyn VirtioDevice>) -> Arc<dyn VirtioDevice> {
    Arc::new(Mistaken { inner, mistake: Mistake::ForgetsRing })
}

pub(crate) fn forgets_heads(inner: Arc<dyn VirtioDevice>) -> Arc<dyn VirtioDevice> {
    Arc::new(Mistaken { inner, mistake: Mistake::ForgetsHeads })
}
