//! Options, feature bits and the configuration space (VIRTIO 1.2, sections 5.2.3 and 5.2.4).

use crate::virtio::feature;
use iovirt_core::request::block::{BlockCaps, Durability, SECTOR};
use thiserror::Error;
use virtio_bindings::virtio_blk as bindings;

/// The longest serial number in bytes; the answer to GET_ID has that length, padded with zeroes.
pub const SERIAL_LEN: usize = 20;
/// The most queues of one device.
pub const MAX_QUEUES: u16 = 64;
/// The largest split ring (VIRTIO 1.2, section 2.7).
const MAX_QUEUE_SIZE: u16 = 32768;

pub(super) const F_SIZE_MAX: u64 = 1 << bindings::VIRTIO_BLK_F_SIZE_MAX;
pub(super) const F_SEG_MAX: u64 = 1 << bindings::VIRTIO_BLK_F_SEG_MAX;
pub(super) const F_RO: u64 = 1 << bindings::VIRTIO_BLK_F_RO;
pub(super) const F_BLK_SIZE: u64 = 1 << bindings::VIRTIO_BLK_F_BLK_SIZE;
pub(super) const F_FLUSH: u64 = 1 << bindings::VIRTIO_BLK_F_FLUSH;
pub(super) const F_TOPOLOGY: u64 = 1 << bindings::VIRTIO_BLK_F_TOPOLOGY;
pub(super) const F_CONFIG_WCE: u64 = 1 << bindings::VIRTIO_BLK_F_CONFIG_WCE;
pub(super) const F_MQ: u64 = 1 << bindings::VIRTIO_BLK_F_MQ;
pub(super) const F_DISCARD: u64 = 1 << bindings::VIRTIO_BLK_F_DISCARD;
pub(super) const F_WRITE_ZEROES: u64 = 1 << bindings::VIRTIO_BLK_F_WRITE_ZEROES;

/// Size of the configuration space in bytes, up to and with the write-zeroes fields.
pub(super) const SPACE_LEN: usize = 60;
/// Where the driver sets the cache mode.
pub(super) const WRITEBACK: usize = 32;

/// Options of a virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// Request queues: 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Largest size of each queue in descriptors: a power of two up to 32768.
    pub queue_size: u16,
    /// Most data segments of one request: 1 to 1022 (the host's vectored calls take 1024).
    pub seg_max: u32,
    /// Most bytes of one data segment: 4096 or more; no limit where none is given.
    pub size_max: Option<u32>,
    /// The serial number: up to [`SERIAL_LEN`] bytes of printable ASCII.
    pub serial: String,
}

impl Default for BlkConfig {
    fn default() -> Self {
        Self { queues: 1, queue_size: 256, seg_max: 254, size_max: None, serial: "iovirt".into() }
    }
}

/// What is wrong with a [`BlkConfig`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Too few or too many queues.
    #[error("queues={0} is not possible: 1 to {MAX_QUEUES} are allowed")]
    Queues(u16),
    /// Not a size that a split ring can have.
    #[error("queue-size={0} is not possible: a power of two from 2 to {MAX_QUEUE_SIZE} is allowed")]
    QueueSize(u16),
    /// Not a number of segments that a request can have.
    #[error("seg-max={0} is not possible: 1 to 1022 are allowed")]
    SegMax(u32),
    /// Segments that are too short.
    #[error("size-max={0} is not possible: 4096 or more is allowed")]
    SizeMax(u32),
    /// Not a serial number.
    #[error("serial={0:?} is not possible: up to {SERIAL_LEN} printable ASCII characters are allowed")]
    Serial(String),
}

impl BlkConfig {
    /// Checks the options.
    ///
    /// # Errors
    /// The first option that is not possible.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.queues == 0 || self.queues > MAX_QUEUES {
            return Err(ConfigError::Queues(self.queues));
        }
        if !self.queue_size.is_power_of_two() || !(2..=MAX_QUEUE_SIZE).contains(&self.queue_size) {
            return Err(ConfigError::QueueSize(self.queue_size));
        }
        if self.seg_max == 0 || self.seg_max > 1022 {
            return Err(ConfigError::SegMax(self.seg_max));
        }
        if let Some(size_max @ ..4096) = self.size_max {
            return Err(ConfigError::SizeMax(size_max));
        }
        if self.serial.len() > SERIAL_LEN || !self.serial.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Err(ConfigError::Serial(self.serial.clone()));
        }
        Ok(())
    }

    /// The answer to GET_ID.
    pub(super) fn id(&self) -> [u8; SERIAL_LEN] {
        let mut id = [0; SERIAL_LEN];
        let len = self.serial.len().min(SERIAL_LEN);
        id[..len].copy_from_slice(&self.serial.as_bytes()[..len]);
        id
    }

    /// The features on offer above a stack with these capabilities.
    pub(super) fn features(&self, caps: &BlockCaps) -> u64 {
        let mut features = feature::INDIRECT_DESC | feature::EVENT_IDX;
        features |= F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY | F_FLUSH;
        let mut offer = |bit: u64, on: bool| features |= if on { bit } else { 0 };
        offer(F_SIZE_MAX, self.size_max.is_some());
        offer(F_RO, caps.read_only);
        // Without a promise to keep there is no mode to choose.
        offer(F_CONFIG_WCE, !caps.read_only && caps.durability != Durability::Unsafe);
        offer(F_MQ, self.queues > 1);
        offer(F_DISCARD, caps.discard.is_some() && !caps.read_only);
        offer(F_WRITE_ZEROES, caps.write_zeroes.is_some() && !caps.read_only);
        features
    }

    /// The configuration space above a stack with these capabilities; `writeback` is the mode in force.
    pub(super) fn space(&self, caps: &BlockCaps, writeback: Writeback) -> [u8; SPACE_LEN] {
        let mut space = [0; SPACE_LEN];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        let blocks = |bytes: u32| bytes / caps.logical_block;
        put(0, &(caps.capacity / SECTOR).to_le_bytes());
        put(8, &self.size_max.unwrap_or(0).to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        put(20, &caps.logical_block.to_le_bytes());
        put(24, &[blocks(caps.physical_block).trailing_zeros() as u8, 0]);
        put(26, &(blocks(caps.physical_block) as u16).to_le_bytes());
        put(28, &blocks(caps.optimal_io).to_le_bytes());
        put(WRITEBACK, &[u8::from(writeback == Writeback::On)]);
        put(34, &self.queues.to_le_bytes());
        if let Some(discard) = &caps.discard {
            put(36, &sectors(discard.max_bytes).to_le_bytes());
            put(40, &1u32.to_le_bytes());
            put(44, &(discard.alignment / SECTOR as u32).max(1).to_le_bytes());
        }
        if let Some(zeroes) = &caps.write_zeroes {
            put(48, &sectors(zeroes.max_bytes).to_le_bytes());
            put(52, &1u32.to_le_bytes());
            put(56, &[u8::from(zeroes.may_unmap)]);
        }
        space
    }
}

fn sectors(bytes: u64) -> u32 {
    u32::try_from(bytes / SECTOR).unwrap_or(u32::MAX)
}

/// The cache mode as the driver sees it (VIRTIO 1.2, section 5.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writeback {
    /// Writes may complete before they are durable; the driver flushes.
    On,
    /// A completed write is durable.
    Off,
}

impl Writeback {
    /// The mode of a stack before a driver has chosen.
    pub(super) fn of(caps: &BlockCaps) -> Self {
        match caps.durability {
            Durability::WriteThrough => Self::Off,
            Durability::WriteBack | Durability::Unsafe => Self::On,
        }
    }
}
