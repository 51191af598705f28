//! A driver for virtio-net (VIRTIO 1.2, section 5.1): one pair of queues, no offloads.

use super::ring::{Piece, Ring};
use super::{QUEUE_NOTIFY, RING_BYTES, RING_SIZE, acknowledge, start};
use crate::Error;
use crate::machine::{Memory, Window};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

/// The header before each frame, of version 1.
const HEADER: usize = 12;
/// Guest memory of one frame in bytes.
const BUFFER: u64 = 2048;
/// Buffers that wait for frames, and frames that are sent at a time.
const BUFFERS: u64 = 32;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// A network card as its driver sees it.
#[derive(Debug)]
pub struct Card {
    receive: Ring,
    transmit: Ring,
    /// Which buffer each head has.
    received_at: [u64; 64],
    base: u64,
    sent: u64,
}

impl Card {
    /// Brings a card to life, with guest memory from `base` on, and offers its buffers.
    pub fn start(window: &Window, memory: &Arc<Memory>, base: u64) -> Result<Self, Error> {
        let (rings, _) = start(window, memory, 0, 2, base)?;
        let [receive, transmit] = <[Ring; 2]>::try_from(rings).map_err(|_| "a card has two queues")?;
        let mut card = Self { receive, transmit, received_at: [0; 64], base, sent: 0 };
        for buffer in 0..BUFFERS {
            card.give(memory, card.buffer(buffer))?;
        }
        window.write(QUEUE_NOTIFY, RECEIVE.into())?;
        Ok(card)
    }

    fn buffer(&self, index: u64) -> u64 {
        self.base + 2 * RING_BYTES + index * BUFFER
    }

    fn give(&mut self, memory: &Memory, address: u64) -> Result<(), Error> {
        let head = self.receive.offer(memory, &[Piece::In(address, BUFFER as u32)])?;
        self.received_at[usize::from(head)] = address;
        Ok(())
    }

    /// Sends frames, as many as there is room for; says how many.
    pub fn send(&mut self, window: &Window, memory: &Memory, frames: &[Vec<u8>]) -> Result<usize, Error> {
        self.reclaim(memory)?;
        let mut count = 0;
        for frame in frames.iter().take(self.transmit.room().min(BUFFERS as usize)) {
            let address = self.buffer(BUFFERS + self.sent % (2 * BUFFERS));
            memory.write_slice(&[&[0; HEADER], frame.as_slice()].concat(), GuestAddress(address))?;
            self.transmit.offer(memory, &[Piece::Out(address, (HEADER + frame.len()) as u32)])?;
            self.sent += 1;
            count += 1;
        }
        window.write(QUEUE_NOTIFY, TRANSMIT.into())?;
        Ok(count)
    }

    /// Takes buffers back that the device is done with; says whether all of them are.
    fn reclaim(&mut self, memory: &Memory) -> Result<bool, Error> {
        while self.transmit.take(memory)?.is_some() {}
        Ok(self.transmit.room() == usize::from(RING_SIZE))
    }

    /// Sleeps until the device is done with what was sent: it is on its way, or was dropped.
    pub fn wait_for_sent(&mut self, window: &Window, memory: &Memory) -> Result<(), Error> {
        loop {
            let seen = window.line().delivered();
            acknowledge(window)?;
            if self.reclaim(memory)? {
                return Ok(());
            }
            window.line().wait_beyond(seen)?;
        }
    }

    /// Takes the frames that came, and gives their buffers back.
    pub fn receive(&mut self, window: &Window, memory: &Memory) -> Result<Vec<Vec<u8>>, Error> {
        let mut frames = Vec::new();
        while let Some((head, len)) = self.receive.take(memory)? {
            let address = self.received_at[usize::from(head)];
            let mut bytes = vec![0; len as usize];
            memory.read_slice(&mut bytes, GuestAddress(address))?;
            frames.push(bytes.split_off(HEADER.min(bytes.len())));
            self.give(memory, address)?;
        }
        if !frames.is_empty() {
            window.write(QUEUE_NOTIFY, RECEIVE.into())?;
        }
        Ok(frames)
    }

    /// Sleeps until frames come.
    pub fn wait(&mut self, window: &Window, memory: &Memory) -> Result<Vec<Vec<u8>>, Error> {
        loop {
            let seen = window.line().delivered();
            acknowledge(window)?;
            let frames = self.receive(window, memory)?;
            if !frames.is_empty() {
                return Ok(frames);
            }
            window.line().wait_beyond(seen)?;
        }
    }
}
