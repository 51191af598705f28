//! Structures and offsets (VIRTIO 1.2, section 4.1.4).

/// Bytes of the window with the registers.
pub(super) const REGION_SIZE: u64 = 0x4000;

// Where each structure is in the window: a page each, so that an embedder can give doorbells to a guest apart.
pub(super) const COMMON: u64 = 0x0000;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const STRUCTURE_LEN: u64 = 0x1000;
/// Bytes of the common structure (section 4.1.4.3).
pub(super) const COMMON_LEN: usize = 0x3c;
/// Bytes between the doorbells of two queues.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;

// Kinds of structures.
pub(super) const CAP_COMMON: u8 = 1;
pub(super) const CAP_NOTIFY: u8 = 2;
pub(super) const CAP_ISR: u8 = 3;
pub(super) const CAP_DEVICE: u8 = 4;
pub(super) const CAP_PCI: u8 = 5;
/// The vendor's own capability (PCI Local Bus 3.0, appendix H).
pub(super) const CAP_VENDOR: u8 = 9;
/// Where a capability has BAR, offset and length, and the data of the access by configuration space.
pub(super) const CAP_BAR: usize = 4;
pub(super) const CAP_OFFSET: usize = 8;
pub(super) const CAP_LENGTH: usize = 12;
pub(super) const CAP_DATA: usize = 16;

// Registers of the common structure.
pub(super) const DEVICE_FEATURES_SEL: u64 = 0x00;
pub(super) const DEVICE_FEATURES: u64 = 0x04;
pub(super) const DRIVER_FEATURES_SEL: u64 = 0x08;
pub(super) const DRIVER_FEATURES: u64 = 0x0c;
pub(super) const CONFIG_VECTOR: u64 = 0x10;
pub(super) const NUM_QUEUES: u64 = 0x12;
pub(super) const STATUS: u64 = 0x14;
pub(super) const CONFIG_GENERATION: u64 = 0x15;
pub(super) const QUEUE_SEL: u64 = 0x16;
pub(super) const QUEUE_SIZE: u64 = 0x18;
pub(super) const QUEUE_VECTOR: u64 = 0x1a;
pub(super) const QUEUE_ENABLE: u64 = 0x1c;
pub(super) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
pub(super) const QUEUE_DESC: u64 = 0x20;
pub(super) const QUEUE_DRIVER: u64 = 0x28;
pub(super) const QUEUE_DEVICE: u64 = 0x30;
/// What a driver writes to the doorbell: the queue's number.
pub(super) const QUEUE_NOTIFY_DATA: u64 = 0x38;
pub(super) const QUEUE_RESET: u64 = 0x3a;

/// Stands for no vector.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Bit of the interrupt status: used buffers.
pub(super) const INT_USED: u8 = 1;
/// Bit of the interrupt status: configuration change.
pub(super) const INT_CONFIG: u8 = 2;

/// The vendor's number and the first number of modern devices (section 4.1.2).
pub(super) const VENDOR: u16 = 0x1af4;
pub(super) const FIRST_DEVICE: u16 = 0x1040;
/// Of a device without a transitional past (section 4.1.2.1).
pub(super) const REVISION: u8 = 1;

/// What guests show in lists of devices; drivers do not look at it.
pub(super) fn class_of(device_id: u32) -> u32 {
    match device_id {
        // Ethernet controller.
        1 => 0x02_00_00,
        // Mass storage controller of another kind.
        2 => 0x01_80_00,
        // Other.
        _ => 0xff_00_00,
    }
}
