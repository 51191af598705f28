//! A driver for virtio-blk (VIRTIO 1.2, section 5.2) with several requests in flight.

use super::ring::{Piece, Ring};
use super::{CONFIG, QUEUE_NOTIFY, RING_BYTES, acknowledge, start};
use crate::Error;
use crate::machine::{Memory, Window};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

/// Requests in flight at most: three descriptors each.
pub const DEPTH: usize = 16;
/// Most bytes of one request.
pub const LONGEST: usize = 64 << 10;
/// `VIRTIO_BLK_F_FLUSH`
const FLUSH: u64 = 1 << 9;
/// Guest memory of one request in bytes: header, status, and from half of it on the data.
const SLOT_BYTES: u64 = 2 * LONGEST as u64;
/// The guest's own mark of a request without an answer.
const NO_ANSWER: u8 = 0xff;

/// What a request does (section 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `VIRTIO_BLK_T_IN`
    Read = 0,
    /// `VIRTIO_BLK_T_OUT`
    Write = 1,
    /// `VIRTIO_BLK_T_FLUSH`
    Flush = 4,
}

/// A request that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Which one: the number that [`Disk::submit`] gave.
    pub slot: usize,
    /// `VIRTIO_BLK_S_OK` is 0.
    pub status: u8,
    /// What was read, or sent.
    pub data: Vec<u8>,
}

/// A disk as its driver sees it. It can be cloned since it is only the guest's state: of two clones one is forgotten, as in a
/// migration.
#[derive(Clone, Debug)]
pub struct Disk {
    ring: Ring,
    base: u64,
    features: u64,
    idle: Vec<usize>,
    /// Head and length of each request in flight.
    busy: [Option<(u16, u32)>; DEPTH],
}

impl Disk {
    /// Brings a disk to life, with guest memory from `base` on.
    pub fn start(window: &Window, memory: &Arc<Memory>, base: u64) -> Result<Self, Error> {
        let (mut rings, features) = start(window, memory, FLUSH, 1, base)?;
        let ring = rings.pop().ok_or("a disk has a queue")?;
        Ok(Self { ring, base, features, idle: (0..DEPTH).rev().collect(), busy: [None; DEPTH] })
    }

    /// Capacity in sectors of 512 bytes.
    pub fn capacity(window: &Window) -> u64 {
        u64::from(window.read(CONFIG)) | u64::from(window.read(CONFIG + 4)) << 32
    }

    /// Whether the disk says that it has a cache to flush.
    pub fn can_flush(&self) -> bool {
        self.features & FLUSH != 0
    }

    /// Requests that can be submitted now.
    pub fn idle(&self) -> usize {
        self.idle.len()
    }

    fn header(&self, slot: usize) -> u64 {
        self.base + RING_BYTES + slot as u64 * SLOT_BYTES
    }

    /// Where the data of a request are in guest memory.
    pub fn data_at(&self, slot: usize) -> u64 {
        self.header(slot) + SLOT_BYTES / 2
    }

    /// Makes a request available and gives its number; [`Disk::ring`] tells the device. `data` is what is sent, or room for
    /// what is read.
    pub fn submit(&mut self, memory: &Memory, op: Op, sector: u64, data: &[u8]) -> Result<usize, Error> {
        if data.len() > LONGEST {
            return Err(format!("a request has at most {LONGEST} bytes").into());
        }
        let slot = self.idle.pop().ok_or("all requests are in flight")?;
        let (header, data_at) = (self.header(slot), self.data_at(slot));
        let mut bytes = [0; 17];
        bytes[..4].copy_from_slice(&(op as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&sector.to_le_bytes());
        bytes[16] = NO_ANSWER;
        memory.write_slice(&bytes, GuestAddress(header))?;
        memory.write_slice(data, GuestAddress(data_at))?;
        let (first, last) = (Piece::Out(header, 16), Piece::In(header + 16, 1));
        let len = data.len() as u32;
        let head = match op {
            Op::Read => self.ring.offer(memory, &[first, Piece::In(data_at, len), last])?,
            Op::Write => self.ring.offer(memory, &[first, Piece::Out(data_at, len), last])?,
            Op::Flush => self.ring.offer(memory, &[first, last])?,
        };
        self.busy[slot] = Some((head, len));
        Ok(slot)
    }

    /// Rings the doorbell.
    pub fn ring(&self, window: &Window) -> Result<(), Error> {
        window.write(QUEUE_NOTIFY, 0)
    }

    /// Takes back what is finished.
    pub fn reap(&mut self, memory: &Memory) -> Result<Vec<Finished>, Error> {
        let mut finished = Vec::new();
        while let Some((head, _)) = self.ring.take(memory)? {
            let of_head = |busy: &Option<(u16, u32)>| busy.is_some_and(|(known, _)| known == head);
            let slot = self.busy.iter().position(of_head).ok_or("a chain of no request came back")?;
            let len = self.busy[slot].take().map_or(0, |(_, len)| len);
            let mut data = vec![0; len as usize];
            memory.read_slice(&mut data, GuestAddress(self.data_at(slot)))?;
            let status = memory.read_obj(GuestAddress(self.header(slot) + 16))?;
            self.idle.push(slot);
            finished.push(Finished { slot, status, data });
        }
        Ok(finished)
    }

    /// Sleeps until something is finished, and takes it back.
    pub fn wait(&mut self, window: &Window, memory: &Memory) -> Result<Vec<Finished>, Error> {
        loop {
            let seen = window.line().delivered();
            acknowledge(window)?;
            let finished = self.reap(memory)?;
            if !finished.is_empty() {
                return Ok(finished);
            }
            window.line().wait_beyond(seen)?;
        }
    }

    /// Waits until nothing is in flight; gives what came back.
    pub fn finish(&mut self, window: &Window, memory: &Memory) -> Result<Vec<Finished>, Error> {
        let mut all = Vec::new();
        while self.idle() < DEPTH {
            all.extend(self.wait(window, memory)?);
        }
        Ok(all)
    }

    /// Does one request and waits for it, with nothing else in flight; gives its data.
    pub fn run(
        &mut self,
        window: &Window,
        memory: &Memory,
        (op, sector): (Op, u64),
        data: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.submit(memory, op, sector, data)?;
        self.ring(window)?;
        match self.wait(window, memory)?.pop() {
            Some(Finished { status: 0, data, .. }) => Ok(data),
            other => Err(format!("{op:?} at sector {sector}: {other:?}").into()),
        }
    }
}
