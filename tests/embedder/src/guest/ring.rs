//! The driver's side of a split ring (VIRTIO 1.2, section 2.7), without event index and indirect tables.

use crate::Error;
use crate::machine::Memory;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Where the rings stand behind the table of descriptors, in bytes.
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;

/// A piece of a chain: address and length in guest memory.
#[derive(Clone, Copy, Debug)]
pub enum Piece {
    /// The device reads it.
    Out(u64, u32),
    /// The device writes it.
    In(u64, u32),
}

/// One ring. It is the guest's state, and goes where the guest goes.
#[derive(Clone, Debug)]
pub struct Ring {
    base: u64,
    size: u16,
    free: Vec<u16>,
    /// The descriptors of each chain that is with the device, by its head.
    chains: Vec<Vec<u16>>,
    available: u16,
    used: u16,
}

impl Ring {
    /// An empty ring of `size` entries, a power of two of at most 256, in 16 KiB of memory at `base`.
    pub fn new(memory: &Arc<Memory>, base: u64, size: u16) -> Result<Self, Error> {
        memory.write_slice(&[0; 0x4000], GuestAddress(base))?;
        let chains = vec![Vec::new(); size.into()];
        Ok(Self { base, size, free: (0..size).rev().collect(), chains, available: 0, used: 0 })
    }

    /// Where the table, the available and the used ring are.
    pub fn addresses(&self) -> [u64; 3] {
        [self.base, self.base + AVAILABLE, self.base + USED]
    }

    /// Descriptors that are free.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Makes a chain available; gives its head.
    pub fn offer(&mut self, memory: &Memory, pieces: &[Piece]) -> Result<u16, Error> {
        if pieces.is_empty() || self.free.len() < pieces.len() {
            return Err("the ring is full".into());
        }
        let chain = self.free.split_off(self.free.len() - pieces.len());
        for (at, (&index, piece)) in chain.iter().zip(pieces).enumerate() {
            let (address, len, flags) = match *piece {
                Piece::Out(address, len) => (address, len, 0),
                Piece::In(address, len) => (address, len, WRITE),
            };
            let next = chain.get(at + 1).copied();
            let flags = flags | if next.is_some() { NEXT } else { 0 };
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&address.to_le_bytes());
            descriptor[8..12].copy_from_slice(&len.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&next.unwrap_or(0).to_le_bytes());
            memory.write_slice(&descriptor, GuestAddress(self.base + u64::from(index) * 16))?;
        }
        let head = chain[0];
        self.chains[usize::from(head)] = chain;
        let slot = self.base + AVAILABLE + 4 + u64::from(self.available % self.size) * 2;
        memory.write_slice(&head.to_le_bytes(), GuestAddress(slot))?;
        self.available = self.available.wrapping_add(1);
        // What was written above is seen before the index is.
        let index = GuestAddress(self.base + AVAILABLE + 2);
        memory.store(self.available.to_le(), index, Ordering::Release)?;
        Ok(head)
    }

    /// Takes back the next chain that the device has used: its head, and how many bytes were written.
    pub fn take(&mut self, memory: &Memory) -> Result<Option<(u16, u32)>, Error> {
        let index: u16 = memory.load(GuestAddress(self.base + USED + 2), Ordering::Acquire)?;
        if u16::from_le(index) == self.used {
            return Ok(None);
        }
        let mut entry = [0; 8];
        let slot = self.base + USED + 4 + u64::from(self.used % self.size) * 8;
        memory.read_slice(&mut entry, GuestAddress(slot))?;
        let [head, len] = [0, 4].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|byte| entry[at + byte])));
        self.used = self.used.wrapping_add(1);
        let chain = self.chains.get_mut(head as usize).map(std::mem::take).unwrap_or_default();
        if chain.is_empty() {
            return Err(format!("the device returned head {head}, which it does not have").into());
        }
        self.free.extend(chain);
        Ok(Some((head as u16, len)))
    }
}
