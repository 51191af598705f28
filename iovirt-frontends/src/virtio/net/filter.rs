//! The receive mode as a filter of frames (VIRTIO 1.2, sections 5.1.6.5.1 and 5.1.6.5.2).

use iovirt_core::request::net::MacAddr;
use iovirt_core::sync::{Arc, Mutex, MutexGuard, PoisonError};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// Most addresses of each table; a driver that sets more gets everything of that sort.
pub(super) const TABLE_LEN: usize = 64;

/// Which frames the driver wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ReceiveMode {
    pub(super) mac: MacAddr,
    pub(super) promiscuous: bool,
    pub(super) all_multicast: bool,
    pub(super) unicast: Table,
    pub(super) multicast: Table,
}

/// A table of addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Table {
    /// These, in ascending order.
    Only(Vec<MacAddr>),
    /// More than the device keeps: all.
    Overflow,
}

impl Table {
    pub(super) fn new(mut addresses: Vec<MacAddr>) -> Self {
        if addresses.len() > TABLE_LEN {
            return Self::Overflow;
        }
        addresses.sort_unstable();
        Self::Only(addresses)
    }

    fn is_sound(&self) -> bool {
        match self {
            Self::Only(addresses) => addresses.len() <= TABLE_LEN && addresses.is_sorted(),
            Self::Overflow => true,
        }
    }

    fn has(&self, address: MacAddr) -> bool {
        match self {
            Self::Only(addresses) => addresses.binary_search(&address).is_ok(),
            Self::Overflow => true,
        }
    }
}

impl ReceiveMode {
    /// The mode before a driver chose one: everything, as a driver without the control queue never will choose.
    pub(super) fn new(mac: MacAddr) -> Self {
        let none = || Table::Only(Vec::new());
        Self { mac, promiscuous: true, all_multicast: false, unicast: none(), multicast: none() }
    }

    /// Whether it is one that the control queue can make: for one that was saved.
    pub(super) fn is_sound(&self) -> bool {
        self.mac.is_unicast() && self.unicast.is_sound() && self.multicast.is_sound()
    }

    /// Whether the driver wants frames to that address.
    #[inline]
    pub(super) fn wants(&self, to: MacAddr) -> bool {
        if self.promiscuous || to == self.mac || to == MacAddr::BROADCAST {
            return true;
        }
        if to.is_unicast() { self.unicast.has(to) } else { self.all_multicast || self.multicast.has(to) }
    }
}

/// The receive mode of a device, and how often it changed, so that queues look at it only when it did.
#[derive(Debug)]
pub(super) struct SharedMode {
    mode: Mutex<Arc<ReceiveMode>>,
    generation: AtomicU64,
}

impl SharedMode {
    pub(super) fn new(mode: ReceiveMode) -> Self {
        Self { mode: Mutex::new(Arc::new(mode)), generation: AtomicU64::new(1) }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<ReceiveMode>> {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self) -> Arc<ReceiveMode> {
        self.lock().clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut ReceiveMode)) {
        let mut mode = self.lock();
        change(Arc::make_mut(&mut mode));
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Brings a queue's copy up to date: one load where nothing changed.
    #[inline]
    pub(super) fn refresh(&self, copy: &mut CachedMode) {
        let generation = self.generation.load(Ordering::SeqCst);
        if generation != copy.generation {
            *copy = CachedMode { mode: self.get(), generation };
        }
    }

    pub(super) fn cached(&self) -> CachedMode {
        CachedMode { mode: self.get(), generation: 0 }
    }
}

/// A queue's copy of the receive mode.
#[derive(Debug)]
pub(super) struct CachedMode {
    pub(super) mode: Arc<ReceiveMode>,
    generation: u64,
}
