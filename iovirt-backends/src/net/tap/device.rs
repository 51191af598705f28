//! The tap as all its queues see it.

use super::TapConfig;
use super::sys::{self, Attachment, Queues};
use iovirt_core::BackendError;
use iovirt_core::pipeline::{Event, Listeners};
use iovirt_core::request::net::{Link, MacAddr, NetCaps, Offloads};
use iovirt_core::sync::{Arc, Mutex, PoisonError};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// The tap, open once for each pair.
#[derive(Debug)]
pub(super) struct Tap {
    pub(super) name: String,
    pub(super) pairs: Vec<TapPair>,
    pub(super) max_frame: u32,
    caps: Mutex<Arc<NetCaps>>,
    pub(super) listeners: Listeners,
    gone: AtomicBool,
    pub(super) too_long: AtomicU64,
    pub(super) unfinished: AtomicU64,
    /// What the host leaves to be done to frames that it gives: the bits of [`Offloads`].
    left: AtomicU8,
}

/// One queue of the host's end.
#[derive(Debug)]
pub(super) struct TapPair {
    pub(super) file: File,
    /// Whether the host gives it frames; taken by whoever changes that, which is not the way of frames.
    attached: Mutex<bool>,
    switchable: bool,
    /// A data plane receives.
    receiving: AtomicBool,
}

impl Tap {
    pub(super) fn open(config: &TapConfig) -> Result<Self, BackendError> {
        config.check()?;
        let name = &config.name;
        let queues = if config.pairs > 1 { Queues::Several } else { Queues::One };
        let refused = |what: &str| {
            let text = format!("the tap {name} {what}");
            move |error: io::Error| BackendError::host(text, error)
        };
        let pair = |index| -> Result<TapPair, BackendError> {
            let file = sys::open(name, queues).map_err(refused("could not be opened"))?;
            let switchable = queues == Queues::Several && index > 0;
            let pair =
                TapPair { file, attached: Mutex::new(true), switchable, receiving: AtomicBool::new(false) };
            // The guest uses the first pair until it says otherwise.
            pair.switch(Attachment::Detached).map_err(refused("cannot leave a queue without frames"))?;
            Ok(pair)
        };
        let pairs = (0..config.pairs).map(pair).collect::<Result<Vec<_>, _>>()?;
        let mtu = sys::mtu(name).map_err(refused("does not tell its MTU"))?;
        let mtu = u16::try_from(mtu).ok().filter(|mtu| *mtu >= NetCaps::MIN_MTU).ok_or_else(|| {
            BackendError::config(format!(
                "the tap {name} has an MTU of {mtu} bytes: {} to 65535 are possible",
                NetCaps::MIN_MTU
            ))
        })?;
        let own = sys::address(name).map_err(refused("does not tell its address"))?;
        // A kernel that has queues of a tap has all of these.
        let offloads = Offloads::all();
        let caps = NetCaps {
            mac: Some(other_end(own)),
            tx_offloads: offloads,
            rx_offloads: offloads,
            ..NetCaps::new(mtu, config.pairs)
        };
        Ok(Self {
            name: name.clone(),
            pairs,
            max_frame: caps.max_frame,
            caps: Mutex::new(Arc::new(caps)),
            listeners: Listeners::default(),
            gone: AtomicBool::new(false),
            too_long: AtomicU64::new(0),
            unfinished: AtomicU64::new(0),
            left: AtomicU8::new(0),
        })
    }

    pub(super) fn caps(&self) -> Arc<NetCaps> {
        self.caps.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Whether the host leaves to be done what a receiver accepts, and no more.
    #[inline]
    pub(super) fn leaves(&self, accepted: Offloads) -> bool {
        self.left.load(Ordering::Relaxed) == accepted.bits()
    }

    /// Has the host leave to be done what the receiver accepts. All queues of a tap have one receiver, so its last word
    /// counts.
    #[cold]
    pub(super) fn leave(&self, pair: &TapPair, accepted: Offloads) -> io::Result<()> {
        sys::leave(pair.file.as_fd(), accepted)?;
        self.left.store(accepted.bits(), Ordering::Relaxed);
        Ok(())
    }

    /// The host has no such device any more.
    #[cold]
    pub(super) fn vanish(&self) {
        if self.gone.swap(true, Ordering::SeqCst) {
            return;
        }
        tracing::warn!(tap = self.name, "the tap is gone; its link is down for good");
        {
            let mut caps = self.caps.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::make_mut(&mut caps).link = Link::Down;
        }
        self.listeners.announce(Event::CapsChanged);
    }
}

impl TapPair {
    /// Lets the host give frames to this queue, or not. Says whether that changed.
    pub(super) fn switch(&self, to: Attachment) -> io::Result<bool> {
        if !self.switchable {
            return Ok(false);
        }
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if *attached == (to == Attachment::Attached) {
            return Ok(false);
        }
        sys::attach(self.file.as_fd(), to)?;
        *attached = to == Attachment::Attached;
        Ok(true)
    }

    /// Whether the caller may receive: one data plane does.
    pub(super) fn claim(&self) -> bool {
        !self.receiving.swap(true, Ordering::SeqCst)
    }

    pub(super) fn release(&self) {
        self.receiving.store(false, Ordering::SeqCst);
    }
}

/// An address for the other end of a link: locally administered, and not the same.
fn other_end(own: [u8; 6]) -> MacAddr {
    let mut other = own;
    other[0] = other[0] & !1 | 2;
    other[5] ^= 1;
    MacAddr(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_is_a_station_of_its_own() {
        let other = other_end([0xfe, 0x54, 0, 1, 2, 3]);
        assert_eq!(other, MacAddr([0xfe, 0x54, 0, 1, 2, 2]));
        assert!(other_end([0xff; 6]).is_unicast());
    }

    #[test]
    fn names_are_checked() {
        for name in ["", "sixteen-letters-", "tap%d", "a/b", "a b", ".", "..", "töp"] {
            let error = Tap::open(&TapConfig::new(name)).unwrap_err().to_string();
            assert!(error.contains("1 to 15 printable characters"), "{name}: {error}");
        }
        let error = Tap::open(&TapConfig { pairs: 0, ..TapConfig::new("tap0") }).unwrap_err().to_string();
        assert!(error.contains("1 to 32"), "{error}");
    }
}
