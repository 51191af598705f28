//! The driver of a network interface (virtio 1.2, section 5.1): pairs of queues, frames in buffers of their own.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::options::Options;
use crate::queue::{Queue, Wait};
use crate::ring::{Access, Segment};
use crate::session::{Session, Unrecorded};
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

    /// Connects to a server that came back; see [`Session::reconnect`]. Cards have no record of chains in flight, as with QEMU: rings
    /// go on at the used index.
    ///
    /// # Errors
    /// As for [`Session::reconnect`].
    pub fn reconnect(&mut self, path: &Path) -> Result<()> {
        let mut queues: Vec<Queue> =
            self.pairs.drain(..).flat_map(|(receiver, sender)| [receiver.queue, sender.queue]).collect();
        let outcome = self.session.reconnect(path, &mut queues, Unrecorded::InTurn);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::memory::SharedMemory;
    use crate::options::feature;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    /// The device's side of one queue: where it is in the rings.
    struct Side {
        memory: Arc<SharedMemory>,
        layout: Arc<Layout>,
        places: crate::layout::QueuePlaces,
        size: usize,
        index: u16,
    }

    impl Side {
        fn of(queue: &Queue) -> Self {
            Self {
                memory: Arc::clone(queue.memory()),
                layout: Arc::clone(queue.layout()),
                places: *queue.ring().places(),
                size: usize::from(queue.ring().size()),
                index: 0,
            }
        }

        /// The next chain: its number, its place and its length.
        fn next(&self) -> Option<(u16, usize, usize)> {
            if self.memory.load_u16(self.places.available + 2, Ordering::Acquire) == self.index {
                return None;
            }
            let entry = usize::from(self.index) % self.size;
            let head = self.memory.load_u16(self.places.available + 4 + 2 * entry, Ordering::Relaxed);
            let descriptor = self.places.descriptors + 16 * usize::from(head);
            let place = self.layout.offset(self.memory.load_u64(descriptor));
            Some((head, place, self.memory.load_u32(descriptor + 8) as usize))
        }

        fn give_back(&mut self, head: u16, written: usize) {
            let place = self.places.used + 4 + 8 * (usize::from(self.index) % self.size);
            self.memory.store_u32(place, u32::from(head));
            self.memory.store_u32(place + 4, written as u32);
            self.index = self.index.wrapping_add(1);
            self.memory.store_u16(self.places.used + 2, self.index, Ordering::Release);
        }
    }

    /// Moves what was sent into receive buffers, header and all.
    fn wire(sent: &mut Side, received: &mut Side) {
        while let (Some((out, from, len)), Some((into, to, room))) = (sent.next(), received.next()) {
            assert!(len <= room);
            let mut bytes = vec![0; len];
            sent.memory.read(from, &mut bytes);
            received.memory.write(to, &bytes);
            sent.give_back(out, 0);
            received.give_back(into, len);
        }
    }

    fn pair() -> (Receiver, Sender, Side, Side) {
        let options = Options { queue_size: 8, slots: 8, ..Options::net() };
        let layout = Arc::new(Layout::new(&options));
        let memory = Arc::new(SharedMemory::new(layout.len()).unwrap());
        let features = feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC;
        let queues: Vec<Queue> = (0..2)
            .map(|number| Queue::new(&memory, &layout, number, &options, features, 1).unwrap())
            .collect();
        let (received, sent) = (Side::of(&queues[0]), Side::of(&queues[1]));
        let (receiver, sender) = pairs(queues).unwrap().remove(0);
        (receiver, sender, sent, received)
    }

    #[test]
    fn frames_go_round_more_often_than_there_are_buffers() {
        let (mut receiver, mut sender, mut sent, mut received) = pair();
        let mut frame = [0; 2000];
        for round in 0..1000usize {
            let len = 60 + round % 1400;
            for part in 0..3u8 {
                assert!(sender.send(&vec![round as u8 ^ part; len]).unwrap());
            }
            sender.publish().unwrap();
            wire(&mut sent, &mut received);
            for part in 0..3u8 {
                assert_eq!(receiver.next(&mut frame, Duration::from_secs(10)).unwrap(), len);
                assert!(frame[..len].iter().all(|byte| *byte == round as u8 ^ part));
            }
            assert_eq!(receiver.receive(&mut frame).unwrap(), None);
        }
        assert_eq!(sender.reclaim().unwrap(), 0);
    }

    #[test]
    fn a_sender_without_buffers_says_so_and_goes_on() {
        let (_receiver, mut sender, mut sent, mut received) = pair();
        for _ in 0..8 {
            assert!(sender.send(&[1; 60]).unwrap());
        }
        assert!(!sender.send(&[1; 60]).unwrap());
        sender.publish().unwrap();
        wire(&mut sent, &mut received);
        assert!(sender.send(&[1; 60]).unwrap());
        assert_eq!(sender.reclaim().unwrap(), 1);
    }

    #[test]
    fn a_frame_without_a_header_or_longer_than_its_buffer_is_an_error() {
        for written in [0, HEADER - 1, 4097] {
            let (mut receiver, _sender, _sent, mut received) = pair();
            let (head, ..) = received.next().unwrap();
            received.give_back(head, written);
            let outcome = receiver.receive(&mut [0; 64]);
            assert!(matches!(outcome, Err(Error::Broken { queue: 0, .. })), "{written}: {outcome:?}");
        }
        let (mut receiver, _sender, _sent, mut received) = pair();
        let (head, place, _) = received.next().unwrap();
        received.memory.write(place + BUFFERS, &[2, 0]);
        received.give_back(head, 100);
        assert!(receiver.receive(&mut [0; 64]).is_err());
    }
}
