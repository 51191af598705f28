//! The guest: drivers for virtio-mmio (VIRTIO 1.2, section 4.2), as small as they go. They know the registers, the rings and
//! their interrupt, and nothing of iovirt.

pub mod disk;
pub mod net;
pub mod ring;

use crate::Error;
use crate::machine::{Memory, Window};
use ring::Ring;
use std::sync::Arc;

/// `VIRTIO_F_VERSION_1`
const VERSION_1: u64 = 1 << 32;
/// Entries of each ring.
const RING_SIZE: u16 = 64;
/// Guest memory of one ring in bytes.
const RING_BYTES: u64 = 0x4000;

const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
const CONFIG: u64 = 0x100;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;

/// Brings a device to life (section 3.1.1): resets it, negotiates `wanted` as far as it is on offer, and sets up `queues`
/// rings from `base` on. Gives the rings and the features.
fn start(
    window: &Window,
    memory: &Arc<Memory>,
    wanted: u64,
    queues: u16,
    base: u64,
) -> Result<(Vec<Ring>, u64), Error> {
    if (window.read(0), window.read(4)) != (0x7472_6976, 2) {
        return Err("there is no virtio-mmio device of version 2".into());
    }
    window.write(STATUS, 0)?;
    window.write(STATUS, ACKNOWLEDGE | DRIVER)?;
    let mut features = 0;
    for half in 0..2u32 {
        window.write(DEVICE_FEATURES_SEL, half)?;
        let offered = u64::from(window.read(DEVICE_FEATURES)) << (32 * half);
        let taken = offered & (wanted | VERSION_1);
        window.write(DRIVER_FEATURES_SEL, half)?;
        window.write(DRIVER_FEATURES, (taken >> (32 * half)) as u32)?;
        features |= taken;
    }
    window.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK)?;
    if window.read(STATUS) & FEATURES_OK == 0 {
        return Err("the device does not accept the features".into());
    }
    let mut rings = Vec::new();
    for index in 0..queues {
        let ring = Ring::new(memory, base + u64::from(index) * RING_BYTES, RING_SIZE)?;
        window.write(QUEUE_SEL, index.into())?;
        window.write(QUEUE_NUM, RING_SIZE.into())?;
        for (register, address) in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE].into_iter().zip(ring.addresses())
        {
            window.write(register, address as u32)?;
            window.write(register + 4, (address >> 32) as u32)?;
        }
        window.write(QUEUE_READY, 1)?;
        rings.push(ring);
    }
    window.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)?;
    Ok((rings, features))
}

/// Says what an interrupt handler says: seen.
fn acknowledge(window: &Window) -> Result<(), Error> {
    window.write(INTERRUPT_ACK, window.read(INTERRUPT_STATUS))
}
