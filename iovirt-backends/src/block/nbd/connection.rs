//! The data plane: one connection, its requests sent one after the other and answered in any order.
#![forbid(unsafe_code)]

use super::backend::Shared;
use super::proto::{self, Command, Message, REPLY_LEN, REQUEST_LEN};
use super::sys::{self, Part};
use iovirt_core::Depth;
use iovirt_core::request::block::{BlockError, BlockFlags, BlockOp, BlockOutput, BlockRequest};
use iovirt_core::stage::async_stage::{Handler, Interest, Io, Mailbox, Semaphore, Source};
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

type Link = Rc<Source<BlockRequest, OwnedFd>>;

/// Bytes that are read at once where only replies without data can come.
const READ_AHEAD: usize = 16 * REPLY_LEN;

/// The handler of one queue.
///
/// A request is sent by its own slot: short ones are collected and go out together, data is sent where it lies. Task 0 reads
/// replies and hands the connection to the slot whose data comes next, which puts it where it belongs.
#[derive(Debug)]
pub(super) struct Connection {
    shared: Arc<Shared>,
    socket: RefCell<Option<OwnedFd>>,
    link: RefCell<Option<Link>>,
    lost: Cell<bool>,
    sender: Semaphore,
    /// Requests without data that wait to be sent; those up to number `sent` were taken.
    outbox: RefCell<Vec<u8>>,
    queued: Cell<u64>,
    sent: Cell<u64>,
    /// What is being sent, by whoever holds the permit of `sender`.
    sending: RefCell<Vec<u8>>,
    /// By slot: what is asked of the server, and what it answered.
    asked: Vec<Asked>,
    sequence: Cell<u32>,
    /// Reads that the server has not answered: data may come.
    reads: Cell<usize>,
    inbound: RefCell<Inbound>,
    /// A slot has taken its data, and replies can be read again.
    taken: Mailbox<()>,
    written: Cell<u64>,
    flushed: Cell<u64>,
}

#[derive(Debug, Default)]
struct Asked {
    expected: Cell<Option<Expected>>,
    answer: Mailbox<Answer>,
}

#[derive(Clone, Copy, Debug)]
struct Expected {
    cookie: u64,
    data: bool,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Done(Result<(), BlockError>),
    /// The data is the next thing to be received.
    Data,
}

/// What was received and not looked at.
#[derive(Debug)]
struct Inbound {
    bytes: [u8; READ_AHEAD],
    start: usize,
    end: usize,
}

impl Inbound {
    fn take_reply(&mut self) -> Option<[u8; REPLY_LEN]> {
        let reply = *self.bytes[self.start..self.end].first_chunk()?;
        self.start += REPLY_LEN;
        Some(reply)
    }

    /// Room for more behind what is there.
    fn room(&mut self, ahead: bool) -> &mut [u8] {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let end = if ahead { READ_AHEAD } else { REPLY_LEN.max(self.end) };
        &mut self.bytes[self.end..end]
    }
}

/// One exchange with the server.
#[derive(Clone, Copy)]
struct Ask<'a> {
    slot: usize,
    command: Command,
    flags: u16,
    offset: u64,
    len: u64,
    /// The data of a read or a write.
    data: Option<Part<'a>>,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, socket: OwnedFd, depth: Depth) -> Self {
        let slots = depth.get() + 1;
        let room = slots * REQUEST_LEN;
        Self {
            shared,
            socket: RefCell::new(Some(socket)),
            link: RefCell::new(None),
            lost: Cell::new(false),
            sender: Semaphore::new(1),
            outbox: RefCell::new(Vec::with_capacity(room)),
            queued: Cell::new(0),
            sent: Cell::new(0),
            sending: RefCell::new(Vec::with_capacity(room + REQUEST_LEN)),
            asked: (0..slots).map(|_| Asked::default()).collect(),
            sequence: Cell::new(0),
            reads: Cell::new(0),
            inbound: RefCell::new(Inbound { bytes: [0; READ_AHEAD], start: 0, end: 0 }),
            taken: Mailbox::new(),
            written: Cell::new(0),
            flushed: Cell::new(0),
        }
    }

    /// The connection, where it is not lost. A connection that is made anew later would be put in place here.
    fn link(&self, io: &Io<BlockRequest>) -> Result<Link, BlockError> {
        if self.lost.get() {
            return Err(BlockError::Io);
        }
        if let Some(socket) = self.socket.take() {
            *self.link.borrow_mut() = Some(Rc::new(io.source(socket)));
        }
        self.link.borrow().clone().ok_or(BlockError::Io)
    }

    /// Gives the connection up: everything in flight and everything later fails.
    fn lose(&self, why: &str) {
        if self.lost.replace(true) {
            return;
        }
        let (address, export) = (&self.shared.config.address, &self.shared.config.export);
        if let Some(suppressed) = self.shared.log.admit() {
            tracing::error!(%address, export, why, suppressed, "an NBD connection is lost; its queue fails every request");
        }
        if let Some(link) = self.link.borrow().as_ref() {
            sys::shutdown(link.get_ref());
        }
        for asked in &self.asked {
            if asked.expected.take().is_some() {
                asked.answer.put(Answer::Done(Err(BlockError::Io)));
            }
        }
        self.taken.put(());
    }

    fn lose_by(&self, error: &io::Error) -> BlockError {
        self.lose(&error.to_string());
        BlockError::Io
    }

    async fn exchange(&self, io: &Io<BlockRequest>, ask: Ask<'_>) -> Result<(), BlockError> {
        let link = self.link(io)?;
        let asked = &self.asked[ask.slot];
        asked.answer.try_take();
        self.sequence.set(self.sequence.get().wrapping_add(1));
        let cookie = u64::from(self.sequence.get()) << 32 | ask.slot as u64;
        let reads = ask.command == Command::Read;
        asked.expected.set(Some(Expected { cookie, data: reads }));
        self.reads.set(self.reads.get() + usize::from(reads));
        let message = Message {
            command: ask.command,
            flags: ask.flags,
            cookie,
            offset: ask.offset,
            len: ask.len as u32,
        };
        let outcome = self.send_and_wait(io, &link, &message, ask).await;
        self.reads.set(self.reads.get() - usize::from(reads));
        asked.expected.set(None);
        outcome
    }

    async fn send_and_wait(
        &self,
        io: &Io<BlockRequest>,
        link: &Link,
        message: &Message,
        ask: Ask<'_>,
    ) -> Result<(), BlockError> {
        match (message.command, ask.data) {
            (Command::Write, Some(data)) => self.send_data(link, message, data).await,
            _ => self.send_short(io, link, message).await,
        }
        .map_err(|error| self.lose_by(&error))?;
        match (self.asked[ask.slot].answer.take().await, ask.data) {
            (Answer::Done(result), _) => result,
            (Answer::Data, Some(data)) => {
                let received = self.receive_data(link, data).await;
                let received = received.map_err(|error| self.lose_by(&error));
                self.taken.put(());
                received
            }
            (Answer::Data, None) => Err(BlockError::Io),
        }
    }

    /// Sends a request without data, with all others that wait.
    async fn send_short(&self, io: &Io<BlockRequest>, link: &Link, message: &Message) -> io::Result<()> {
        self.outbox.borrow_mut().extend_from_slice(&message.bytes());
        self.queued.set(self.queued.get() + 1);
        let mine = self.queued.get();
        // The other slots of this batch add theirs.
        io.yield_now().await;
        if self.sent.get() >= mine {
            return Ok(());
        }
        let _permit = self.sender.acquire().await;
        if self.sent.get() >= mine {
            return Ok(());
        }
        self.take_outbox();
        self.send_all(link, None).await
    }

    /// Sends a request and its data, behind all that waits.
    async fn send_data(&self, link: &Link, message: &Message, data: Part<'_>) -> io::Result<()> {
        let _permit = self.sender.acquire().await;
        self.take_outbox();
        self.sending.borrow_mut().extend_from_slice(&message.bytes());
        self.send_all(link, Some(data)).await
    }

    fn take_outbox(&self) {
        let mut sending = self.sending.borrow_mut();
        sending.clear();
        std::mem::swap(&mut *sending, &mut *self.outbox.borrow_mut());
        self.sent.set(self.queued.get());
    }

    async fn send_all(&self, link: &Link, data: Option<Part<'_>>) -> io::Result<()> {
        let head = self.sending.borrow().len() as u64;
        let total = head + data.map_or(0, |data| data.len);
        let mut sent = 0;
        while sent < total {
            if self.lost.get() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            sent += link
                .when(Interest::Writable, |socket| {
                    let behind = sent.saturating_sub(head);
                    let part =
                        data.map(|data| Part { from: data.from + behind, len: data.len - behind, ..data });
                    sys::send(socket, &self.sending.borrow()[sent.min(head) as usize..], part)
                })
                .await? as u64;
        }
        self.sending.borrow_mut().clear();
        Ok(())
    }

    /// Receives the data of a read where it belongs, and the beginning of the next reply with it where it is there.
    async fn receive_data(&self, link: &Link, data: Part<'_>) -> io::Result<()> {
        if self.inbound.borrow().start != self.inbound.borrow().end {
            return Err(io::Error::other("data came that nobody had asked for"));
        }
        let mut received = 0;
        while received < data.len {
            let count = link
                .when(Interest::Readable, |socket| {
                    let part = Part { from: data.from + received, len: data.len - received, ..data };
                    sys::receive(socket, Some(part), self.inbound.borrow_mut().room(false))
                })
                .await? as u64;
            if count == 0 {
                return Err(io::Error::other("the server closed the connection in the middle of data"));
            }
            let left = data.len - received;
            received += count.min(left);
            self.inbound.borrow_mut().end += count.saturating_sub(left) as usize;
        }
        Ok(())
    }

    /// Reads replies for as long as the connection lives: why it ended.
    async fn read_replies(&self, io: &Io<BlockRequest>) -> io::Result<()> {
        let Ok(link) = self.link(io) else { return Ok(()) };
        while !self.lost.get() {
            let reply = self.inbound.borrow_mut().take_reply();
            let Some(reply) = reply else {
                let count = link
                    .when(Interest::Readable, |socket| {
                        sys::receive(socket, None, self.inbound.borrow_mut().room(self.reads.get() == 0))
                    })
                    .await?;
                if count == 0 {
                    return Err(io::Error::other("the server closed the connection"));
                }
                self.inbound.borrow_mut().end += count;
                continue;
            };
            let reply = proto::parse_reply(&reply)
                .ok_or_else(|| io::Error::other("the server sent something that is no reply"))?;
            let asked = self.asked.get(reply.cookie as u32 as usize);
            let expected = asked.and_then(|asked| asked.expected.get());
            let (Some(asked), Some(expected)) = (asked, expected) else {
                return Err(io::Error::other("the server answered what it was not asked"));
            };
            if expected.cookie != reply.cookie {
                return Err(io::Error::other("the server answered what it was not asked"));
            }
            asked.expected.set(None);
            if expected.data && reply.result.is_ok() {
                self.taken.try_take();
                asked.answer.put(Answer::Data);
                self.taken.take().await;
            } else {
                asked.answer.put(Answer::Done(reply.result));
            }
        }
        Ok(())
    }

    /// A read, a write, a trim or a write-zeroes, in as many steps as the server's limits make of it.
    async fn do_range(
        &self,
        io: &Io<BlockRequest>,
        request: &BlockRequest,
        command: Command,
    ) -> Result<(), BlockError> {
        let facts = &self.shared.facts;
        let has_data = matches!(command, Command::Read | Command::Write);
        let step = if has_data { facts.payload } else { facts.range };
        let durable = request.flags().contains(BlockFlags::FUA) && command != Command::Read;
        let mut flags = 0;
        if command != Command::Read && (facts.always_fua || durable && facts.fua) {
            flags |= proto::CMD_FLAG_FUA;
        }
        if command == Command::WriteZeroes && !request.flags().contains(BlockFlags::UNMAP) {
            flags |= proto::CMD_FLAG_NO_HOLE;
        }
        let mut at = 0;
        while at < request.len() {
            let len = step.min(request.len() - at);
            let data = has_data.then_some(Part { sg: request.sg(), from: at, len });
            let slot = iovirt_core::Request::tag(request).index();
            self.exchange(io, Ask { slot, command, flags, offset: request.offset() + at, len, data }).await?;
            at += len;
        }
        if command != Command::Read {
            self.written.set(self.written.get() + 1);
        }
        if durable && !facts.fua && facts.flush {
            self.flush(io, iovirt_core::Request::tag(request).index()).await?;
        }
        Ok(())
    }

    async fn flush(&self, io: &Io<BlockRequest>, slot: usize) -> Result<(), BlockError> {
        if !self.shared.facts.flush || self.shared.facts.caps.read_only {
            // Nothing is left to do, or nothing was promised; but nothing is well where the connection is not.
            return self.link(io).map(|_| ());
        }
        let covered = self.written.get();
        let ask = Ask { slot, command: Command::Flush, flags: 0, offset: 0, len: 0, data: None };
        self.exchange(io, ask).await?;
        self.flushed.set(self.flushed.get().max(covered));
        Ok(())
    }
}

impl Handler<BlockRequest> for Connection {
    const TASKS: usize = 1;

    async fn handle(&self, io: &Io<BlockRequest>, request: &mut BlockRequest) -> BlockOutput {
        let result = match self.shared.facts.caps.check(request) {
            Err(error) => Err(error),
            Ok(()) => match request.op() {
                BlockOp::Read => self.do_range(io, request, Command::Read).await,
                BlockOp::Write => self.do_range(io, request, Command::Write).await,
                BlockOp::Flush => self.flush(io, iovirt_core::Request::tag(request).index()).await,
                BlockOp::Discard => self.do_range(io, request, Command::Trim).await,
                BlockOp::WriteZeroes => self.do_range(io, request, Command::WriteZeroes).await,
            },
        };
        match result {
            Ok(()) => BlockOutput::Done,
            Err(error) => BlockOutput::Failed(error),
        }
    }

    async fn task(&self, io: &Io<BlockRequest>, _: usize) {
        if let Err(error) = self.read_replies(io).await {
            self.lose_by(&error);
        }
    }

    async fn rest(&self, io: &Io<BlockRequest>) -> bool {
        let covered = !self.shared.facts.flush || self.flushed.get() == self.written.get();
        covered || self.flush(io, self.asked.len() - 1).await.is_ok()
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.open.fetch_sub(1, Ordering::SeqCst);
        let message = Message { command: Command::Disconnect, flags: 0, cookie: 0, offset: 0, len: 0 };
        // "Terminating the transmission phase": the polite way, where no request was cut short. Nobody waits for it to leave.
        let whole = !self.lost.get() && self.sending.get_mut().is_empty();
        if let (Some(link), true) = (self.link.get_mut(), whole) {
            let _ = sys::send(link.get_ref(), &message.bytes(), None);
        }
    }
}
