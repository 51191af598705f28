//! Whole messages in and out.

use super::message::{Direction, HEADER_LEN, Header, encode};
use super::server::{Ready, Waiter};
use iovirt_core::socket::{MAX_FDS, receive, send};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long a front-end may take over the rest of a message that it began, all of it, and to accept an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one attempt to answer takes before the stop is looked at.
const ATTEMPT: Duration = Duration::from_millis(50);

/// Why a connection is of no more use.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The front-end is gone.
    #[error("the front-end closed the connection")]
    Closed,
    /// It went, or fell silent, in the middle of a message.
    #[error("a message was cut off after {0} bytes")]
    CutOff(usize),
    /// What came is no message of this protocol.
    #[error("what came is no vhost-user message of version 1")]
    NoMessage,
    /// Pieces of one message brought more descriptors than any message has.
    #[error("more than {MAX_FDS} descriptors came with one message")]
    TooManyFds,
    /// It does not read its answers.
    #[error("the front-end does not read its answers")]
    NoReader,
    /// It shortened a file behind memory that it shares.
    #[error("the front-end shortened a file behind its memory")]
    MemoryShrunk,
    /// The server was stopped in the middle of a message.
    #[error("the server was stopped")]
    Stopped,
    /// The host failed.
    #[error("the socket failed: {0}")]
    Host(#[from] io::Error),
}

/// A message with the descriptors that came along.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// A connected front-end.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(ATTEMPT))?;
        Ok(Self { stream })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads the next message, whose first byte has come.
    pub(super) fn receive(&self, waiter: &Waiter) -> Result<Message, ConnectionError> {
        let deadline = Instant::now() + PATIENCE;
        let (mut bytes, mut fds) = ([0; HEADER_LEN], Vec::new());
        match self.fill(&mut bytes, &mut fds, (waiter, deadline)) {
            Err(ConnectionError::CutOff(0)) => return Err(ConnectionError::Closed),
            filled => filled?,
        }
        let header = Header::parse(bytes).ok_or(ConnectionError::NoMessage)?;
        let mut payload = vec![0; header.size];
        self.fill(&mut payload, &mut fds, (waiter, deadline)).map_err(|error| match error {
            ConnectionError::CutOff(count) => ConnectionError::CutOff(HEADER_LEN + count),
            other => other,
        })?;
        Ok(Message { header, payload, fds })
    }

    fn fill(
        &self,
        bytes: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        (waiter, deadline): (&Waiter, Instant),
    ) -> Result<(), ConnectionError> {
        let mut done = 0;
        while done < bytes.len() {
            match waiter.wait(Some(deadline.saturating_duration_since(Instant::now())))? {
                Ready::Stop => return Err(ConnectionError::Stopped),
                Ready::Shrunk => return Err(ConnectionError::MemoryShrunk),
                Ready::Nothing => return Err(ConnectionError::CutOff(done)),
                Ready::Socket | Ready::Hangup => {}
            }
            match receive(&self.stream, &mut bytes[done..], fds) {
                Ok(0) => return Err(ConnectionError::CutOff(done)),
                Ok(_) if fds.len() > MAX_FDS => return Err(ConnectionError::TooManyFds),
                Ok(count) => done += count,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return Err(ConnectionError::CutOff(done)),
                    io::ErrorKind::ConnectionReset if done == 0 => return Err(ConnectionError::Closed),
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(())
    }

    /// Answers a request.
    pub(super) fn reply(
        &self,
        header: &Header,
        (payload, fd): (&[u8], Option<BorrowedFd<'_>>),
        waiter: &Waiter,
    ) -> Result<(), ConnectionError> {
        let deadline = Instant::now() + PATIENCE;
        let bytes = encode(header.request, Direction::Reply, payload);
        let mut done = 0;
        while done < bytes.len() {
            let fds = if done == 0 { fd.as_slice() } else { &[] };
            match send(&self.stream, &bytes[done..], fds) {
                Ok(count) => done += count,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock if waiter.wait(Some(Duration::ZERO))? == Ready::Stop => {
                        return Err(ConnectionError::Stopped);
                    }
                    io::ErrorKind::WouldBlock if Instant::now() >= deadline => {
                        return Err(ConnectionError::NoReader);
                    }
                    io::ErrorKind::WouldBlock => {}
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                        return Err(ConnectionError::Closed);
                    }
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(())
    }
}
