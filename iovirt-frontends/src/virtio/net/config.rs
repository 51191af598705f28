//! Options, feature bits and the configuration space (VIRTIO 1.2, sections 5.1.3 and 5.1.4).

use crate::virtio::feature;
use iovirt_core::request::net::{Link, MacAddr, NetCaps, Offloads};
use thiserror::Error;
use virtio_bindings::virtio_net as bindings;

/// The most pairs of queues of one device.
pub const MAX_PAIRS: u16 = 32;
/// The largest split ring (VIRTIO 1.2, section 2.7).
const MAX_QUEUE_SIZE: u16 = 32768;

pub(super) const F_CTRL_GUEST_OFFLOADS: u64 = 1 << bindings::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;
pub(super) const F_MTU: u64 = 1 << bindings::VIRTIO_NET_F_MTU;
pub(super) const F_MAC: u64 = 1 << bindings::VIRTIO_NET_F_MAC;
pub(super) const F_MRG_RXBUF: u64 = 1 << bindings::VIRTIO_NET_F_MRG_RXBUF;
pub(super) const F_STATUS: u64 = 1 << bindings::VIRTIO_NET_F_STATUS;
pub(super) const F_CTRL_VQ: u64 = 1 << bindings::VIRTIO_NET_F_CTRL_VQ;
pub(super) const F_CTRL_RX: u64 = 1 << bindings::VIRTIO_NET_F_CTRL_RX;
pub(super) const F_MQ: u64 = 1 << bindings::VIRTIO_NET_F_MQ;
pub(super) const F_CTRL_MAC_ADDR: u64 = 1 << bindings::VIRTIO_NET_F_CTRL_MAC_ADDR;

/// Which offload of what the guest sends, and of what it receives, each feature is. The latter are the bits of a control
/// command too.
const OFFLOADS: [(Offloads, u32, u32); 4] = [
    (Offloads::CSUM, bindings::VIRTIO_NET_F_CSUM, bindings::VIRTIO_NET_F_GUEST_CSUM),
    (Offloads::TSO4, bindings::VIRTIO_NET_F_HOST_TSO4, bindings::VIRTIO_NET_F_GUEST_TSO4),
    (Offloads::TSO6, bindings::VIRTIO_NET_F_HOST_TSO6, bindings::VIRTIO_NET_F_GUEST_TSO6),
    (Offloads::ECN, bindings::VIRTIO_NET_F_HOST_ECN, bindings::VIRTIO_NET_F_GUEST_ECN),
];

/// The features that stand for offloads of what the guest sends.
fn host_features(offloads: Offloads) -> u64 {
    OFFLOADS.iter().filter(|(offload, ..)| offloads.contains(*offload)).map(|(_, host, _)| 1 << host).sum()
}

/// The features that stand for offloads of what the guest receives.
pub(super) fn guest_features(offloads: Offloads) -> u64 {
    OFFLOADS.iter().filter(|(offload, ..)| offloads.contains(*offload)).map(|(.., guest)| 1 << guest).sum()
}

/// What the guest may leave to be done to frames, by the features that were negotiated.
pub(super) fn host_offloads(features: u64) -> Offloads {
    let known = OFFLOADS.iter().filter(|(_, host, _)| features >> host & 1 != 0);
    known.map(|(offload, ..)| *offload).collect::<Offloads>().sound()
}

/// What may be left to be done to frames for the guest, by features or by the bits of a control command.
pub(super) fn guest_offloads(features: u64) -> Offloads {
    let known = OFFLOADS.iter().filter(|(.., guest)| features >> guest & 1 != 0);
    known.map(|(offload, ..)| *offload).collect::<Offloads>().sound()
}

/// Size of the configuration space in bytes, up to and with the MTU.
pub(super) const SPACE_LEN: usize = 12;
/// The network is there.
const S_LINK_UP: u16 = 1;

/// Options of a virtio-net device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The guest's address; where none is given, the one that the network would like, or a random one.
    pub mac: Option<MacAddr>,
    /// Pairs of queues: 1 to [`MAX_PAIRS`].
    pub pairs: u16,
    /// Largest size of each queue in descriptors: a power of two up to 32768. Also how many tokens for frames to come each
    /// receive queue keeps in the stack below.
    pub queue_size: u16,
    /// Offloads that the guest may be offered, as far as the network below has them.
    pub offloads: Offloads,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self { mac: None, pairs: 1, queue_size: 256, offloads: Offloads::all() }
    }
}

/// What is wrong with a [`NetConfig`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// An address that no station can have.
    #[error("mac={0} is not possible: an address of one station is allowed, not all zeroes")]
    Mac(MacAddr),
    /// Too few or too many pairs.
    #[error("queues={0} is not possible: 1 to {MAX_PAIRS} are allowed")]
    Pairs(u16),
    /// More pairs than the network below serves.
    #[error("queues={wanted} is not possible: the network below has {there}")]
    PairsBelow {
        /// What the device is to have.
        wanted: u16,
        /// What the stack below has.
        there: u16,
    },
    /// Not a size that a split ring can have.
    #[error("queue-size={0} is not possible: a power of two from 2 to {MAX_QUEUE_SIZE} is allowed")]
    QueueSize(u16),
}

impl NetConfig {
    /// Checks the options.
    ///
    /// # Errors
    /// The first option that is not possible.
    pub fn check(&self) -> Result<(), ConfigError> {
        if let Some(mac) = self.mac
            && (!mac.is_unicast() || mac == MacAddr::default())
        {
            return Err(ConfigError::Mac(mac));
        }
        if self.pairs == 0 || self.pairs > MAX_PAIRS {
            return Err(ConfigError::Pairs(self.pairs));
        }
        if !self.queue_size.is_power_of_two() || !(2..=MAX_QUEUE_SIZE).contains(&self.queue_size) {
            return Err(ConfigError::QueueSize(self.queue_size));
        }
        Ok(())
    }

    /// The features on offer above a stack with these capabilities.
    pub(super) fn features(&self, caps: &NetCaps) -> u64 {
        let mq = if self.pairs > 1 { F_MQ } else { 0 };
        let sent = self.offloads.intersection(caps.tx_offloads).sound();
        let received = self.offloads.intersection(caps.rx_offloads).sound();
        let ctrl = if received.is_empty() { 0 } else { F_CTRL_GUEST_OFFLOADS };
        feature::INDIRECT_DESC
            | feature::EVENT_IDX
            | F_MAC
            | F_STATUS
            | F_MTU
            | F_MRG_RXBUF
            | F_CTRL_VQ
            | F_CTRL_RX
            | F_CTRL_MAC_ADDR
            | mq
            | ctrl
            | host_features(sent)
            | guest_features(received)
    }

    /// The configuration space above a stack with these capabilities.
    pub(super) fn space(&self, caps: &NetCaps, mac: MacAddr) -> [u8; SPACE_LEN] {
        let mut space = [0; SPACE_LEN];
        space[..6].copy_from_slice(&mac.0);
        let status = if caps.link == Link::Up { S_LINK_UP } else { 0 };
        space[6..8].copy_from_slice(&status.to_le_bytes());
        space[8..10].copy_from_slice(&self.pairs.to_le_bytes());
        space[10..12].copy_from_slice(&caps.mtu.to_le_bytes());
        space
    }
}

/// What a queue is for (VIRTIO 1.2, section 5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The receive queue of a pair.
    Receive(u16),
    /// The transmit queue of a pair.
    Transmit(u16),
    /// The control queue.
    Control,
    /// Receive queue of the second pair, or control queue where the driver does not know of several pairs.
    SecondReceiveOrControl,
}

impl Role {
    /// The role of queue `index` of a device with that many pairs.
    pub(super) fn of(index: u16, pairs: u16) -> Self {
        match (index / 2, index % 2) {
            (pair, _) if pair >= pairs => Self::Control,
            (1, 0) => Self::SecondReceiveOrControl,
            (pair, 0) => Self::Receive(pair),
            (pair, _) => Self::Transmit(pair),
        }
    }
}
