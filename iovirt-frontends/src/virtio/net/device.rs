//! The device: features and configuration space, derived from what the stack below can do.

use super::config::{ConfigError, NetConfig, Role};
use super::counters::NetCounters;
use super::ctrl::{ControlQueue, EitherQueue};
use super::filter::{ReceiveMode, SharedMode};
use super::rx::ReceiveQueue;
use super::state::NetState;
use super::tx::TransmitQueue;
use crate::virtio::device::CapsListener;
use crate::virtio::{ConfigListener, QueueFactory, VirtioDevice};
use iovirt_core::pipeline::{BoxBackend, Stages};
use iovirt_core::request::net::{MacAddr, NetRequest, Offloads};
use iovirt_core::state::{SavedState, StageStates, StateError};
use iovirt_core::worker::LaneWaker;
use iovirt_core::{Backend, BackendError, Depth};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// VIRTIO 1.2, section 5: network card.
const DEVICE_ID: u32 = 1;

/// A virtio network card above a network stack.
#[derive(Debug)]
pub struct VirtioNet {
    config: NetConfig,
    mac: MacAddr,
    features: u64,
    queue_sizes: Vec<u16>,
    shared: Arc<NetShared>,
    listener: Arc<CapsListener>,
}

/// What all queues of one device share.
#[derive(Debug)]
pub(super) struct NetShared {
    pub(super) backend: BoxBackend<NetRequest>,
    pub(super) mode: SharedMode,
    pub(super) pairs: u16,
    /// Pairs that the driver uses: those from 0.
    pub(super) active_pairs: AtomicU16,
    /// What the driver lets be left to be done to frames for it, within what was negotiated: the bits of [`Offloads`].
    guest_offloads: AtomicU8,
    pub(super) counters: Arc<NetCounters>,
    receivers: Mutex<Vec<LaneWaker>>,
}

impl NetShared {
    /// One more lane that wants to know which pairs are used, and which offloads.
    pub(super) fn add_receiver(&self, waker: LaneWaker) {
        self.receivers.lock().unwrap_or_else(PoisonError::into_inner).push(waker);
    }

    pub(super) fn set_active_pairs(&self, pairs: u16) {
        self.active_pairs.store(pairs, Ordering::SeqCst);
        self.wake_receivers();
    }

    pub(super) fn guest_offloads(&self) -> Offloads {
        Offloads::from_bits_truncate(self.guest_offloads.load(Ordering::SeqCst))
    }

    pub(super) fn set_guest_offloads(&self, offloads: Offloads) {
        self.guest_offloads.store(offloads.bits(), Ordering::SeqCst);
        self.wake_receivers();
    }

    fn wake_receivers(&self) {
        self.receivers.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(LaneWaker::wake);
    }
}

impl VirtioNet {
    /// A network card above that stack.
    ///
    /// # Errors
    /// Where an option is not possible, at all or above that stack.
    pub fn new(config: NetConfig, backend: BoxBackend<NetRequest>) -> Result<Self, ConfigError> {
        config.check()?;
        let caps = backend.caps();
        if config.pairs > caps.pairs {
            return Err(ConfigError::PairsBelow { wanted: config.pairs, there: caps.pairs });
        }
        let listener = CapsListener::of(&backend);
        let mac = config.mac.or(caps.mac).unwrap_or_else(random_address);
        let shared = Arc::new(NetShared {
            backend,
            mode: SharedMode::new(ReceiveMode::new(mac)),
            pairs: config.pairs,
            active_pairs: AtomicU16::new(1),
            guest_offloads: AtomicU8::new(Offloads::all().bits()),
            counters: Arc::default(),
            receivers: Mutex::default(),
        });
        let queue_sizes = vec![config.queue_size; usize::from(config.pairs) * 2 + 1];
        // The features stay while the stack below may change; a frame that it no longer takes fails.
        let features = config.features(&caps);
        Ok(Self { config, mac, features, queue_sizes, shared, listener })
    }

    /// What became of frames: to be kept by whoever reads it, before the device goes behind its transport.
    pub fn counters(&self) -> Arc<NetCounters> {
        self.shared.counters.clone()
    }
}

/// An address of nobody's: locally administered, one station's.
fn random_address() -> MacAddr {
    let mut bytes = [0x52; 6];
    bytes[1..].copy_from_slice(&RandomState::new().hash_one(DEVICE_ID).to_le_bytes()[..5]);
    MacAddr(bytes)
}

impl VirtioDevice for VirtioNet {
    fn name(&self) -> &'static str {
        "virtio-net"
    }

    fn device_id(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn features_that_remember(&self) -> u64 {
        // What its control queue sets is lost too; but over vhost-user that queue is the front-end's, and a card that was told nothing takes
        // all frames.
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, _: u64, offset: u64, data: &mut [u8]) {
        let space = self.config.space(&self.shared.backend.caps(), self.shared.mode.get().mac);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, byte) in data.iter_mut().enumerate() {
            *byte = from.checked_add(at).and_then(|at| space.get(at)).copied().unwrap_or(0);
        }
    }

    fn write_config(&self, _: u64, _: u64, _: &[u8]) {
        // Everything is read-only since version 1: the address is set by the control queue (section 5.1.4).
    }

    fn set_config_listener(&self, listener: Arc<dyn ConfigListener>) {
        self.listener.set_transport(listener);
    }

    fn queue_factory(&self, index: u16) -> QueueFactory {
        let shared = self.shared.clone();
        let size = self.queue_sizes.get(usize::from(index)).copied().unwrap_or(0);
        let role = Role::of(index, self.config.pairs);
        Box::new(move |cx| {
            let depth = Depth::new(size.into())
                .ok_or_else(|| BackendError::config(format!("virtio-net has no queue {index}")))?;
            Ok(match role {
                Role::Receive(pair) => Box::new(ReceiveQueue::open(shared, pair, cx, depth)?),
                Role::Transmit(pair) => Box::new(TransmitQueue::open(shared, pair, cx, depth)?),
                Role::Control => Box::new(ControlQueue::new(shared)),
                Role::SecondReceiveOrControl => Box::new(EitherQueue {
                    receive: ReceiveQueue::open(shared.clone(), 1, cx, depth)?,
                    control: ControlQueue::new(shared),
                    is_control: false,
                }),
            })
        })
    }

    fn resubmits(&self) -> bool {
        // A frame that was sent may not be sent again, and a buffer that was filled has been seen by nobody.
        false
    }

    fn use_queues(&self, count: u16) {
        self.shared.set_active_pairs(count.div_ceil(2).clamp(1, self.config.pairs));
    }

    fn reset(&self) {
        self.shared.mode.change(|mode| *mode = ReceiveMode::new(self.mac));
        self.shared.set_guest_offloads(Offloads::all());
        self.shared.set_active_pairs(1);
    }

    fn stages(&self) -> Stages {
        self.shared.backend.list_stages()
    }

    fn save(&self, stages: &mut StageStates) -> Result<Vec<u8>, StateError> {
        self.shared.backend.save(stages)?;
        let mode = ReceiveMode::clone(&self.shared.mode.get());
        let active_pairs = self.shared.active_pairs.load(Ordering::SeqCst);
        let guest_offloads = self.shared.guest_offloads().bits();
        Ok(NetState { mode, active_pairs, guest_offloads }.to_envelope())
    }

    fn restore(&self, saved: &[u8], stages: &mut StageStates) -> Result<(), StateError> {
        let state = NetState::from_envelope(saved)?;
        let mismatch = |reason: String| StateError::Mismatch { kind: "virtio-net".into(), reason };
        if state.active_pairs == 0 || state.active_pairs > self.config.pairs {
            let (used, there) = (state.active_pairs, self.config.pairs);
            return Err(mismatch(format!("the driver uses {used} pairs of queues, this device has {there}")));
        }
        if !state.mode.is_sound() {
            return Err(mismatch("its receive mode is none that a driver can set".into()));
        }
        let offloads = Offloads::from_bits(state.guest_offloads);
        let offloads = offloads.ok_or_else(|| mismatch("it has offloads that are not known".into()))?;
        self.shared.backend.restore(stages)?;
        self.shared.set_guest_offloads(offloads);
        self.shared.mode.change(|mode| *mode = state.mode);
        self.shared.set_active_pairs(state.active_pairs);
        Ok(())
    }
}
