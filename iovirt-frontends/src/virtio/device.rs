//! What a virtio device is to its transport, and its queues to their lanes.

use super::queue::RingError;
use super::ring::Ring;
use iovirt_core::dma::DmaView;
use iovirt_core::log::LogLimiter;
use iovirt_core::pipeline::{BoxBackend, Event, EventListener, Stages};
use iovirt_core::state::{StageStates, StateError};
use iovirt_core::sync::{Arc, Mutex, PoisonError};
use iovirt_core::worker::{Turn, WorkerContext};
use iovirt_core::{Backend, BackendError, Mode, Request};
use std::fmt;

/// A virtio device without its transport: features, configuration space, and queues to be opened.
///
/// The same object stands behind every transport. Its methods are called on any thread; its queues live on workers, as
/// [`QueueWork`].
pub trait VirtioDevice: Send + Sync + fmt::Debug {
    /// The name, as in a pipeline's description.
    fn name(&self) -> &str;

    /// The device's number (VIRTIO 1.2, section 5).
    fn device_id(&self) -> u32;

    /// The features on offer now, without those of the transport.
    fn features(&self) -> u64;

    /// Those of them by which a driver sets what nobody but this device knows. A transport whose driver may find another device behind its
    /// rings, one that was told nothing, must not offer them: over vhost-user a daemon can be killed and started anew under a
    /// driver that goes on.
    fn features_that_remember(&self) -> u64;

    /// The largest size of each queue.
    fn queue_max_sizes(&self) -> &[u16];

    /// Reads the configuration space. Bytes beyond its end read as zeroes.
    fn read_config(&self, negotiated: u64, offset: u64, data: &mut [u8]);

    /// Writes the configuration space. Writes to what is read-only are ignored.
    fn write_config(&self, negotiated: u64, offset: u64, data: &[u8]);

    /// Whoever wants to hear of changes of the configuration space.
    fn set_config_listener(&self, listener: Arc<dyn ConfigListener>);

    /// What to run for a queue: called once for each, on the worker that will own it.
    fn queue_factory(&self, index: u16) -> QueueFactory;

    /// Whether chains in flight can be served again, from their heads alone, by a process that knows nothing else of them.
    fn resubmits(&self) -> bool;

    /// The driver uses the queues below `count`: for a transport whose other side serves the control queue itself, so that the device is
    /// not told there.
    fn use_queues(&self, count: u16);

    /// Back to the state after power-on, once no queue has a request in flight.
    fn reset(&self);

    /// The stages below, with their control handles.
    fn stages(&self) -> Stages;

    /// Saves what the transport does not know, and the state of the stages below.
    ///
    /// # Errors
    /// Where a stage cannot be saved now.
    fn save(&self, stages: &mut StageStates) -> Result<Vec<u8>, StateError>;

    /// Takes back what [`VirtioDevice::save`] gave.
    ///
    /// # Errors
    /// Where it does not fit this device.
    fn restore(&self, saved: &[u8], stages: &mut StageStates) -> Result<(), StateError>;
}

/// Hears that the configuration space changed.
pub trait ConfigListener: Send + Sync {
    /// It changed; the driver is to be told.
    fn config_changed(&self);
}

/// Passes a stack's events on to the transport, once there is one.
#[derive(Default)]
pub(super) struct CapsListener {
    transport: Mutex<Option<Arc<dyn ConfigListener>>>,
}

impl CapsListener {
    /// A listener that hears of `backend`'s events for as long as it lives.
    pub(super) fn of<R: Request>(backend: &BoxBackend<R>) -> Arc<Self> {
        let listener = Arc::new(Self::default());
        let subscription: Arc<dyn EventListener> = listener.clone();
        backend.subscribe(&subscription);
        listener
    }

    pub(super) fn set_transport(&self, transport: Arc<dyn ConfigListener>) {
        *self.transport.lock().unwrap_or_else(PoisonError::into_inner) = Some(transport);
    }
}

impl EventListener for CapsListener {
    fn event(&self, _: Event) {
        let transport = self.transport.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(transport) = transport {
            transport.config_changed();
        }
    }
}

impl fmt::Debug for CapsListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CapsListener")
    }
}

/// Makes the device's side of a queue, on its worker.
pub type QueueFactory =
    Box<dyn FnOnce(&mut WorkerContext<'_>) -> Result<Box<dyn QueueWork>, BackendError> + Send>;

/// The device's side of one queue, on its worker.
pub trait QueueWork {
    /// The driver is ready; these features were negotiated.
    fn start(&mut self, features: u64);

    /// Guest memory has a new map: lets go of the old one where it is only kept in store.
    fn memory_changed(&mut self, view: &DmaView);

    /// Serves the ring: brings completions home, takes new chains, does a bounded amount of work.
    ///
    /// # Errors
    /// Where the ring or a chain on it is broken beyond an answer: the device then needs a reset.
    fn serve(&mut self, cx: &mut WorkerContext<'_>, ring: &mut Ring) -> Result<Turn, QueueError>;

    /// Brings completions home without taking new chains. Without a ring they are thrown away.
    ///
    /// # Errors
    /// As [`QueueWork::serve`].
    fn settle(&mut self, cx: &mut WorkerContext<'_>, ring: Option<&mut Ring>) -> Result<(), QueueError>;

    /// Serves chains again that were in flight when the device was saved: the first of them, as many as there is room for, and says
    /// how many.
    ///
    /// # Errors
    /// As [`QueueWork::serve`].
    fn resubmit(
        &mut self,
        cx: &mut WorkerContext<'_>,
        ring: &mut Ring,
        heads: &[u16],
    ) -> Result<usize, QueueError>;

    /// Asks what is below to come to rest.
    fn drain(&mut self, cx: &mut WorkerContext<'_>);

    /// The way back.
    fn resume(&mut self, cx: &mut WorkerContext<'_>);

    /// Where it stands.
    fn mode(&self) -> Mode;

    /// Requests that have not come home: a reset waits for them. Not each has a chain; a network card's tokens have none.
    fn in_flight(&self) -> usize;

    /// The heads of the chains taken and not returned, in the order in which they are to be served again where the device keeps
    /// an order.
    fn heads_in_flight(&self) -> Vec<u16>;
}

/// Why a queue cannot go on until the device is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The ring or a chain on it is broken.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// A request that cannot even be answered; says what is wrong with it.
    #[error("{0}")]
    Request(&'static str),
    /// Saved state with requests in flight on a queue that never has any.
    #[error("requests were in flight on a queue that never has any")]
    NoneInFlight,
}

/// How the device reaches the driver: what a transport supplies.
pub trait VirtioNotify: Send + Sync + fmt::Debug {
    /// A queue has used buffers that the driver wants to hear of.
    fn used(&self, queue: u16);

    /// The configuration space changed, or the device needs a reset.
    fn config(&self);

    /// The device was reset: nothing is pending any more.
    fn reset(&self);
}

/// What all queues of a device share.
#[derive(Debug)]
pub(crate) struct DeviceShared {
    pub(crate) notify: Arc<dyn VirtioNotify>,
    needs_reset: std::sync::atomic::AtomicBool,
    /// A driver breaks its rings as often as it likes.
    log: LogLimiter,
}

impl DeviceShared {
    pub(crate) fn new(notify: Arc<dyn VirtioNotify>) -> Self {
        Self { notify, needs_reset: false.into(), log: LogLimiter::default() }
    }

    /// Whether a line about the driver may be logged; if so, how many were not since the last one.
    pub(crate) fn admit_line(&self) -> Option<u64> {
        self.log.admit()
    }

    /// The device is broken until the driver resets it (section 2.1.2).
    pub(crate) fn break_down(&self) {
        if !self.needs_reset.swap(true, std::sync::atomic::Ordering::SeqCst) {
            self.notify.config();
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.needs_reset.load(std::sync::atomic::Ordering::SeqCst)
    }

    pub(crate) fn mend(&self) {
        self.needs_reset.store(false, std::sync::atomic::Ordering::SeqCst);
    }
}
