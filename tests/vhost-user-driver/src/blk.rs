//! The driver of a disk (virtio 1.2, section 5.2).

use std::path::Path;
use std::time::{Duration, Instant};

use crate::options::Options;
use crate::queue::{Queue, Wait};
use crate::ring::{Access, Segment};
use crate::session::{Session, Unrecorded};
use crate::{Error, Result};

/// Bytes of a sector, the unit of addresses.
pub const SECTOR: u64 = 512;
/// Descriptors of a request: header, data, status.
const SEGMENTS: u16 = 3;
const HEADER: usize = 16;
/// Where a slot's status is, behind its header.
const STATUS: usize = HEADER;
/// What a status is before the device writes it; no status of the standard.
const NO_STATUS: u8 = 0xff;
/// Bytes of the answer to [`Operation::GetId`].
pub const ID_BYTES: usize = 20;
/// How long the operations that wait do so.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// To read into the slot's buffer.
    Read,
    /// To write from it.
    Write,
    /// To make durable what was written.
    Flush,
    /// The device's name, into the slot's buffer.
    GetId,
    /// To forget ranges, which the slot's buffer names.
    Discard,
    /// To write zeroes to ranges, which the slot's buffer names.
    WriteZeroes,
    /// A type of this number, with data for the device to read: for devices that must refuse it.
    Other(u32),
}

impl Operation {
    fn number(self) -> u32 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush => 4,
            Self::GetId => 8,
            Self::Discard => 11,
            Self::WriteZeroes => 13,
            Self::Other(number) => number,
        }
    }

    fn access(self) -> Access {
        match self {
            Self::Read | Self::GetId => Access::DeviceWrites,
            _ => Access::DeviceReads,
        }
    }
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlkRequest {
    /// What it asks for.
    pub operation: Operation,
    /// The first sector.
    pub sector: u64,
    /// Bytes of data, from the beginning of the slot's buffer.
    pub len: u32,
}

/// A request that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlkCompletion {
    /// Its slot, which is free again.
    pub slot: u16,
    /// The device's answer; zero if all is well.
    pub status: u8,
    /// Bytes that the device says it wrote, with the status.
    pub written: u32,
}

/// One queue of a disk. Each request in flight has a slot, and each slot a buffer.
#[derive(Debug)]
pub struct BlkQueue {
    queue: Queue,
    /// Guest addresses of slot 0's header and buffer.
    headers: u64,
    buffers: u64,
}

impl BlkQueue {
    /// A disk's driver on this queue.
    pub fn new(queue: Queue) -> Self {
        let layout = queue.layout();
        let (headers, buffers) =
            (layout.guest_address(queue.header(0)), layout.guest_address(queue.buffer(0)));
        Self { queue, headers, buffers }
    }

    /// Requests that can be in flight.
    pub fn slots(&self) -> u16 {
        self.queue.ring().slots()
    }

    /// The queue below.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The queue below, for what is not usual.
    pub fn queue_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }

    /// Gives the queue below back.
    pub fn into_queue(self) -> Queue {
        self.queue
    }

    /// Hands a request to the device, which sees it with the next [`BlkQueue::publish`].
    ///
    /// # Panics
    /// If the slot is in flight, or the data is longer than its buffer.
    #[inline]
    pub fn submit(&mut self, slot: u16, request: BlkRequest) {
        let queue = &mut self.queue;
        let header = queue.header(slot);
        assert!(request.len as usize <= queue.layout().buffer(), "{} bytes of data", request.len);
        let memory = queue.memory();
        memory.store_u64(header, u64::from(request.operation.number()));
        memory.store_u64(header + 8, request.sector);
        memory.write(header + STATUS, &[NO_STATUS]);
        let address = self.headers + (header - queue.header(0)) as u64;
        let data = self.buffers + (queue.buffer(slot) - queue.buffer(0)) as u64;
        let header = Segment { address, len: HEADER as u32, access: Access::DeviceReads };
        let status = Segment { address: address + STATUS as u64, len: 1, access: Access::DeviceWrites };
        if request.len == 0 {
            return queue.offer(slot, &[header, status]);
        }
        let data = Segment { address: data, len: request.len, access: request.operation.access() };
        queue.offer(slot, &[header, data, status]);
    }

    /// Lets the device see what was submitted, and rings the doorbell if it wants that.
    ///
    /// # Errors
    /// Where the host refuses to write the eventfd.
    #[inline]
    pub fn publish(&mut self) -> Result<()> {
        self.queue.publish()
    }

    /// Whether something is done.
    #[inline]
    pub fn has_completions(&mut self) -> bool {
        self.queue.ring_mut().has_used()
    }

    /// Takes the next request that is done.
    ///
    /// # Errors
    /// [`Error::Broken`].
    #[inline]
    pub fn complete(&mut self) -> Result<Option<BlkCompletion>> {
        let Some((slot, written)) = self.queue.take_used()? else { return Ok(None) };
        let mut status = [0];
        self.queue.memory().read(self.queue.header(slot) + STATUS, &mut status);
        Ok(Some(BlkCompletion { slot, status: status[0], written }))
    }

    /// Asks for an interrupt, and sleeps until it comes or something is done.
    ///
    /// # Errors
    /// Where the host refuses to wait.
    pub fn wait(&mut self, timeout: Duration) -> Result<Wait> {
        self.queue.wait(timeout)
    }

    /// Copies into a slot's buffer.
    ///
    /// # Panics
    /// If it is longer than the buffer.
    pub fn fill(&mut self, slot: u16, data: &[u8]) {
        assert!(data.len() <= self.queue.layout().buffer(), "{} bytes of data", data.len());
        self.queue.memory().write(self.queue.buffer(slot), data);
    }

    /// Copies out of a slot's buffer.
    ///
    /// # Panics
    /// If more is asked for than the buffer holds.
    pub fn copy_out(&self, slot: u16, data: &mut [u8]) {
        assert!(data.len() <= self.queue.layout().buffer(), "{} bytes of data", data.len());
        self.queue.memory().read(self.queue.buffer(slot), data);
    }

    /// Waits for the next request that is done.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Gone`], [`Error::Broken`].
    pub fn next(&mut self, timeout: Duration) -> Result<BlkCompletion> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(completion) = self.complete()? {
                return Ok(completion);
            }
            match self.wait(deadline.saturating_duration_since(Instant::now()))? {
                Wait::Ready => {}
                Wait::Gone => return Err(Error::Gone),
                Wait::TimedOut => return Err(Error::TimedOut),
            }
        }
    }

    /// Does one request in slot 0, with nothing else in flight, and waits for it.
    ///
    /// # Errors
    /// As for [`BlkQueue::next`]; [`Error::Status`] where the device refuses it.
    ///
    /// # Panics
    /// If something is in flight.
    pub fn request(&mut self, request: BlkRequest) -> Result<()> {
        assert_eq!(self.queue.ring().in_flight(), 0, "requests in flight");
        self.submit(0, request);
        self.publish()?;
        let completion = self.next(PATIENCE)?;
        if completion.status == 0 { Ok(()) } else { Err(Error::Status(completion.status)) }
    }

    /// Reads, and waits for it.
    ///
    /// # Errors
    /// As for [`BlkQueue::request`].
    pub fn read(&mut self, sector: u64, data: &mut [u8]) -> Result<()> {
        self.request(BlkRequest { operation: Operation::Read, sector, len: data.len() as u32 })?;
        self.copy_out(0, data);
        Ok(())
    }

    /// Writes, and waits for it.
    ///
    /// # Errors
    /// As for [`BlkQueue::request`].
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Result<()> {
        self.fill(0, data);
        self.request(BlkRequest { operation: Operation::Write, sector, len: data.len() as u32 })
    }

    /// Flushes, and waits for it.
    ///
    /// # Errors
    /// As for [`BlkQueue::request`].
    pub fn flush(&mut self) -> Result<()> {
        self.request(BlkRequest { operation: Operation::Flush, sector: 0, len: 0 })
    }

    /// Asks for the device's name, and waits for it.
    ///
    /// # Errors
    /// As for [`BlkQueue::request`].
    pub fn id(&mut self) -> Result<String> {
        self.fill(0, &[0; ID_BYTES]);
        self.request(BlkRequest { operation: Operation::GetId, sector: 0, len: ID_BYTES as u32 })?;
        let mut name = [0; ID_BYTES];
        self.copy_out(0, &mut name);
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(ID_BYTES);
        Ok(String::from_utf8_lossy(&name[..end]).into_owned())
    }

    /// Forgets `sectors` sectors (`discard`), or makes them zeroes, and waits for it.
    ///
    /// # Errors
    /// As for [`BlkQueue::request`].
    pub fn range(&mut self, operation: Operation, sector: u64, sectors: u32) -> Result<()> {
        let mut range = [0; 16];
        range[..8].copy_from_slice(&sector.to_le_bytes());
        range[8..12].copy_from_slice(&sectors.to_le_bytes());
        self.fill(0, &range);
        self.request(BlkRequest { operation, sector: 0, len: range.len() as u32 })
    }
}

/// A disk: the connection and its queues.
#[derive(Debug)]
pub struct BlkDriver {
    /// The connection.
    pub session: Session,
    /// The queues; they can be moved to the threads that drive them.
    pub queues: Vec<BlkQueue>,
}

impl BlkDriver {
    /// Connects to the server at `path`, waiting until it listens, and starts the queues.
    ///
    /// # Errors
    /// As for [`Session::connect`].
    pub fn connect(path: &Path, options: &Options) -> Result<Self> {
        let (session, queues) = Session::connect(path, options, SEGMENTS)?;
        Ok(Self { session, queues: queues.into_iter().map(BlkQueue::new).collect() })
    }

    /// The size of the disk, in sectors.
    ///
    /// # Errors
    /// As for [`Session::config`].
    pub fn capacity(&mut self) -> Result<u64> {
        let bytes = self.session.config(0, 8)?;
        let bytes = <[u8; 8]>::try_from(bytes).map_err(|_| Error::NotOffered("a capacity".to_owned()))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Stops the rings and starts them again where they were.
    ///
    /// # Errors
    /// Where the server refuses.
    pub fn restart(&mut self) -> Result<Vec<u16>> {
        let queues: Vec<Queue> = self.queues.drain(..).map(BlkQueue::into_queue).collect();
        let outcome = self.session.stop(&queues).and_then(|stopped| {
            let begin: Vec<_> = stopped.iter().map(|index| crate::session::Begin::At(*index)).collect();
            self.session.start(&queues, &begin)?;
            Ok(stopped)
        });
        self.queues = queues.into_iter().map(BlkQueue::new).collect();
        outcome
    }

    /// Connects to a server that came back; see [`Session::reconnect`].
    ///
    /// # Errors
    /// As for [`Session::reconnect`].
    pub fn reconnect(&mut self, path: &Path) -> Result<()> {
        let mut queues: Vec<Queue> = self.queues.drain(..).map(BlkQueue::into_queue).collect();
        let outcome = self.session.reconnect(path, &mut queues, Unrecorded::Again);
        self.queues = queues.into_iter().map(BlkQueue::new).collect();
        outcome
    }
}
