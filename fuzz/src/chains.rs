//! Chains of any buffers with any content, out of an input.
//!
//! First a byte: buffers less one in its lower four bits, then whether they stand in an indirect table (16), and whether they
//! stay in the order in which they come (32) or those to be written come last. Then each buffer: place and length, of 16 bits
//! each. In the end what the first one holds, behind its length in a byte.

use crate::input::Input;
use iovirt_core::test_utils::hostile::{Buffer, RawDriver};

/// Offers the next chain of an input, with its descriptors from `first` on; gives its buffers.
pub fn offer(driver: &mut RawDriver, input: &mut Input<'_>, first: u16) -> Vec<Buffer> {
    let buffers_at = driver.layout().buffers;
    let shape = input.u8();
    let mut buffers = Vec::new();
    for _ in 0..=shape & 15 {
        let place = input.u16();
        let len = input.u16();
        let far = (u64::from(place & 1) * u64::from(place)) << 20;
        buffers.push(Buffer {
            addr: buffers_at + u64::from(place >> 2) + far,
            len: if len >= 0xfff0 { u32::MAX } else { u32::from(len & 0x3fff) },
            writable: place & 2 != 0,
        });
    }
    if shape & 0x20 == 0 {
        buffers.sort_by_key(|buffer| buffer.writable);
    }
    let content = usize::from(input.u8());
    if let Some(first) = buffers.first() {
        driver.put(first.addr, input.bytes(content));
    }
    driver.chain(&buffers, shape & 0x10 != 0, first);
    driver.offer(first);
    buffers
}

/// The bytes of a buffer, for seeds.
pub fn buffer(offset: u16, writable: bool, len: u16) -> [u8; 4] {
    let place = (offset << 2) | u16::from(writable) << 1;
    let [low, high] = place.to_le_bytes();
    let [short, long] = len.to_le_bytes();
    [low, high, short, long]
}
