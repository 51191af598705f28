//! Whole messages in and out.

use super::message::{Direction, HEADER_LEN, Header, encode};
use iovirt_core::socket::{receive, send};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use thiserror::Error;

/// How long a front-end may take over the rest of a message that it began, and to accept an answer.
const PATIENCE: Duration = Duration::from_secs(10);

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
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads the next message, whose first byte has come.
    pub(super) fn receive(&self) -> Result<Message, ConnectionError> {
        let (mut bytes, mut fds) = ([0; HEADER_LEN], Vec::new());
        match self.fill(&mut bytes, &mut fds) {
            Err(ConnectionError::CutOff(0)) => return Err(ConnectionError::Closed),
            filled => filled?,
        }
        let header = Header::parse(bytes).ok_or(ConnectionError::NoMessage)?;
        let mut payload = vec![0; header.size];
        self.fill(&mut payload, &mut fds).map_err(|error| match error {
            ConnectionError::CutOff(count) => ConnectionError::CutOff(HEADER_LEN + count),
            other => other,
        })?;
        Ok(Message { header, payload, fds })
    }

    fn fill(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<(), ConnectionError> {
        let mut done = 0;
        while done < bytes.len() {
            match receive(&self.stream, &mut bytes[done..], fds) {
                Ok(0) => return Err(ConnectionError::CutOff(done)),
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
        payload: &[u8],
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), ConnectionError> {
        let bytes = encode(header.request, Direction::Reply, payload);
        let mut done = send_some(&self.stream, &bytes, fd.as_slice())?;
        while done < bytes.len() {
            done += send_some(&self.stream, &bytes[done..], &[])?;
        }
        Ok(())
    }
}

fn send_some(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, ConnectionError> {
    loop {
        match send(stream, bytes, fds) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(ConnectionError::Closed),
            sent => return Ok(sent?),
        }
    }
}
