//! Connecting, and what is agreed on before the first request. Blocks, but no longer than a deadline.
#![forbid(unsafe_code)]

use super::config::{NbdAddress, NbdConfig};
use super::proto::{self, Export};
use super::sys;
use iovirt_core::{BackendError, BackendErrorKind};
use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long connecting and the handshake may take together; looking up a host's name is not in it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Most replies to one option.
const MAX_REPLIES: usize = 64;

/// A connection that is ready for requests.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) socket: OwnedFd,
    pub(super) export: Export,
}

/// Connects and agrees on the export.
pub(super) fn connect(config: &NbdConfig) -> Result<Connected, BackendError> {
    let deadline = Instant::now() + PATIENCE;
    let address = &config.address;
    let socket = match address {
        NbdAddress::Unix(path) => sys::connect_unix(path, PATIENCE),
        NbdAddress::Tcp { host, port } => connect_tcp(host, *port, deadline),
    };
    let socket = socket
        .map_err(|error| BackendError::host(format!("the NBD server at {address} is not reached"), error))?;
    agree(socket, config, deadline)
}

/// Agrees on the export with the server at the other end of `socket`.
pub(super) fn agree(
    socket: OwnedFd,
    config: &NbdConfig,
    deadline: Instant,
) -> Result<Connected, BackendError> {
    let address = &config.address;
    match shake_hands(&socket, &config.export, deadline) {
        Ok(export) => Ok(Connected { socket, export }),
        Err(Failed::Host(error)) => {
            Err(BackendError::host(format!("the NBD server at {address} broke off the handshake"), error))
        }
        Err(Failed::Refused(reason)) => Err(BackendError::new(
            BackendErrorKind::Unsupported,
            format!("the NBD server at {address} {reason}"),
        )),
    }
}

fn connect_tcp(host: &str, port: u16, deadline: Instant) -> io::Result<OwnedFd> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream.into());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("it took longer than {} seconds", PATIENCE.as_secs()),
        )),
        left => Ok(left),
    }
}

#[derive(Debug)]
enum Failed {
    Host(io::Error),
    /// What the server does, as the end of a sentence.
    Refused(String),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        Self::Refused(reason)
    }
}

/// "Newstyle negotiation" and "Fixed newstyle negotiation", with `NBD_OPT_GO`.
fn shake_hands(socket: &OwnedFd, export: &str, deadline: Instant) -> Result<Export, Failed> {
    let mut greeting = [0; 18];
    receive(socket, &mut greeting, deadline)?;
    if proto::u64_at(&greeting, 0) != Some(proto::NBD_MAGIC) {
        return Err("does not speak NBD".to_owned().into());
    }
    let flags = u16::from_be_bytes([greeting[16], greeting[17]]);
    if proto::u64_at(&greeting, 8) != Some(proto::OPTION_MAGIC) || flags & proto::FIXED_NEWSTYLE == 0 {
        return Err("negotiates in an old style: this client needs fixed newstyle".to_owned().into());
    }
    let mine = u32::from(flags & (proto::FIXED_NEWSTYLE | proto::NO_ZEROES));
    send(socket, &mine.to_be_bytes(), deadline)?;
    send(socket, &proto::option(proto::OPT_GO, &proto::go(export)), deadline)?;
    let agreed = collect_replies(socket, export, deadline);
    if matches!(agreed, Err(Failed::Refused(_))) {
        // "Termination of the session during option haggling": the polite way out, whether it arrives or not.
        let _ = send(socket, &proto::option(proto::OPT_ABORT, &[]), deadline);
    }
    agreed
}

fn collect_replies(socket: &OwnedFd, name: &str, deadline: Instant) -> Result<Export, Failed> {
    let mut export = Export::default();
    for _ in 0..MAX_REPLIES {
        let mut head = [0; proto::OPTION_REPLY_LEN];
        receive(socket, &mut head, deadline)?;
        let reply = proto::parse_option_reply(&head)?;
        if reply.option != proto::OPT_GO {
            return Err("answers an option that was not sent".to_owned().into());
        }
        let mut data = vec![0; reply.len];
        receive(socket, &mut data, deadline)?;
        match reply.kind {
            proto::REP_ACK => return Ok(export),
            proto::REP_INFO => export.learn(&data)?,
            kind if kind & proto::REP_ERROR != 0 => return Err(proto::refusal(kind, name, &data).into()),
            kind => return Err(format!("answers with the unknown kind {kind}").into()),
        }
    }
    Err(format!("says more than {MAX_REPLIES} things about the export").into())
}

fn receive(socket: &OwnedFd, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !buffer.is_empty() {
        match sys::receive(socket, None, buffer) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
            Ok(count) => buffer = &mut buffer[count..],
            Err(error) => wait_or_fail(socket, error, sys::READABLE, deadline)?,
        }
    }
    Ok(())
}

fn send(socket: &OwnedFd, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        match sys::send(socket, bytes, None) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) => wait_or_fail(socket, error, sys::WRITABLE, deadline)?,
        }
    }
    Ok(())
}

fn wait_or_fail(
    socket: &OwnedFd,
    error: io::Error,
    events: sys::Events,
    deadline: Instant,
) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock => sys::wait(socket, events, left(deadline)?),
        io::ErrorKind::Interrupted => {}
        _ => return Err(error),
    }
    Ok(())
}
