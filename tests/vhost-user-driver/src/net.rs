//! The driver of a network interface (virtio 1.2, section 5.1): pairs of queues, frames in buffers of their own.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::options::Options;
use crate::queue::{Queue, Wait};
use crate::ring::{Access, Segment};
use crate::session::Session;
use crate::{Error, Result};

/// Bytes before each frame.
pub const HEADER: usize = 12;
/// Where the header says how many buffers a frame took.
const BUFFERS: usize = 10;

/// What receives: all its buffers are with the device.
#[derive(Debug)]
pub struct Receiver {
    queue: Queue,
}

/// What sends.
#[derive(Debug)]
pub struct Sender {
    queue: Queue,
    free: Vec<u16>,
}

impl Receiver {
    /// Gives the device all buffers.
    fn new(mut queue: Queue) -> Result<Self> {
        for slot in 0..queue.ring().slots() {
            if !queue.ring().is_in_flight(slot) {
                offer(&mut queue, slot, Access::DeviceWrites, None);
            }
        }
        queue.publish()?;
        Ok(Self { queue })
    }

    /// The queue below.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The next frame, if there is one, without its header; its buffer goes back to the device, which sees it with the next
    /// [`Receiver::publish`]. Gives the frame's length; what `frame` has no room for is lost.
    ///
    /// # Errors
    /// [`Error::Broken`], also for a frame in several buffers, which this driver does not ask for.
    pub fn receive(&mut self, frame: &mut [u8]) -> Result<Option<usize>> {
        let Some((slot, written)) = self.queue.take_used()? else { return Ok(None) };
        let written = written as usize;
        if written < HEADER || written > self.queue.layout().buffer() {
            let what = format!("a frame and its header in {written} bytes");
            return Err(Error::Broken { queue: self.queue.number(), what });
        }
        let place = self.queue.buffer(slot);
        let mut buffers = [0; 2];
        self.queue.memory().read(place + BUFFERS, &mut buffers);
        // One with `VERSION_1`, but servers are seen that leave the field alone without `MRG_RXBUF`.
        if u16::from_le_bytes(buffers) > 1 {
            let what = "a frame in several buffers".to_owned();
            return Err(Error::Broken { queue: self.queue.number(), what });
        }
        let len = written - HEADER;
        let copied = len.min(frame.len());
        self.queue.memory().read(place + HEADER, &mut frame[..copied]);
        offer(&mut self.queue, slot, Access::DeviceWrites, None);
        Ok(Some(len))
    }

    /// Lets the device see the buffers that came back to it.
    ///
    /// # Errors
    /// Where the host refuses to ring the doorbell.
    pub fn publish(&mut self) -> Result<()> {
        self.queue.publish()
    }

    /// Sleeps until a frame is there.
    ///
    /// # Errors
    /// Where the host refuses to wait.
    pub fn wait(&mut self, timeout: Duration) -> Result<Wait> {
        self.queue.wait(timeout)
    }

    /// Waits for the next frame, as [`Receiver::receive`], and publishes its buffer.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Gone`], [`Error::Broken`].
    pub fn next(&mut self, frame: &mut [u8], timeout: Duration) -> Result<usize> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(len) = self.receive(frame)? {
                self.publish()?;
                return Ok(len);
            }
            match self.wait(deadline.saturating_duration_since(Instant::now()))? {
                Wait::Ready => {}
                Wait::Gone => return Err(Error::Gone),
                Wait::TimedOut => return Err(Error::TimedOut),
            }
        }
    }
}

impl Sender {
    fn new(queue: Queue) -> Self {
        let free = (0..queue.ring().slots()).filter(|slot| !queue.ring().is_in_flight(*slot)).collect();
        Self { queue, free }
    }

    /// The queue below.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// Hands a frame to the device, which sees it with the next [`Sender::publish`]; `false` if all buffers are in flight.
    ///
    /// # Errors
    /// [`Error::Broken`].
    ///
    /// # Panics
    /// If the frame and its header are longer than a buffer.
    pub fn send(&mut self, frame: &[u8]) -> Result<bool> {
        self.reclaim()?;
        let Some(slot) = self.free.pop() else { return Ok(false) };
        assert!(HEADER + frame.len() <= self.queue.layout().buffer(), "a frame of {} bytes", frame.len());
        let place = self.queue.buffer(slot);
        self.queue.memory().fill(place, HEADER, 0);
        self.queue.memory().write(place + HEADER, frame);
        offer(&mut self.queue, slot, Access::DeviceReads, Some(HEADER + frame.len()));
        Ok(true)
    }

    /// Lets the device see the frames.
    ///
    /// # Errors
    /// Where the host refuses to ring the doorbell.
    pub fn publish(&mut self) -> Result<()> {
        self.queue.publish()
    }

    /// Takes back the buffers of frames that are sent; gives how many frames are not.
    ///
    /// # Errors
    /// [`Error::Broken`].
    pub fn reclaim(&mut self) -> Result<u16> {
        while let Some((slot, _)) = self.queue.take_used()? {
            self.free.push(slot);
        }
        Ok(self.queue.ring().in_flight())
    }
}

/// Offers a slot's whole buffer, or as much of it.
fn offer(queue: &mut Queue, slot: u16, access: Access, len: Option<usize>) {
    let len = len.unwrap_or(queue.layout().buffer()) as u32;
    let address = queue.layout().guest_address(queue.buffer(slot));
    queue.offer(slot, &[Segment { address, len, access }]);
}

/// A network interface: the connection and its pairs of queues.
#[derive(Debug)]
pub struct NetDriver {
    /// The connection.
    pub session: Session,
    /// The pairs.
    pub pairs: Vec<(Receiver, Sender)>,
}

impl NetDriver {
    /// Connects to the server at `path`, waiting until it listens, starts the queues and gives the device all receive buffers.
    ///
    /// # Errors
    /// As for [`Session::connect`].
    pub fn connect(path: &Path, options: &Options) -> Result<Self> {
        if !options.queues.is_multiple_of(2) {
            return Err(Error::Options(format!("{} queues, which are not pairs", options.queues)));
        }
        let (session, queues) = Session::connect(path, options, 1)?;
        Ok(Self { session, pairs: pairs(queues)? })
    }

    /// Connects to a server that came back; see [`Session::reconnect`].
    ///
    /// # Errors
    /// As for [`Session::reconnect`].
    pub fn reconnect(&mut self, path: &Path) -> Result<()> {
        let mut queues: Vec<Queue> =
            self.pairs.drain(..).flat_map(|(receiver, sender)| [receiver.queue, sender.queue]).collect();
        let outcome = self.session.reconnect(path, &mut queues);
        self.pairs = pairs(queues)?;
        outcome
    }
}

fn pairs(queues: Vec<Queue>) -> Result<Vec<(Receiver, Sender)>> {
    let mut pairs = Vec::new();
    let mut queues = queues.into_iter();
    while let (Some(receiver), Some(sender)) = (queues.next(), queues.next()) {
        pairs.push((Receiver::new(receiver)?, Sender::new(sender)));
    }
    Ok(pairs)
}
