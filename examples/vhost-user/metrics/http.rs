//! As much of HTTP/1.1 (RFC 9112) as it takes to be asked for one page: each connection is one request and is closed then.
//!
//! Whoever asks is not trusted: a request is read up to a limit and for a limited time, a few at once.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::Address;
use super::text::CONTENT_TYPE;
use crate::common::socket::Socket;

/// The longest request line and headers in bytes.
const LONGEST_HEAD: usize = 8 << 10;
/// How long a client may take to send its request, and to accept each part of the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many clients are served at once.
const MOST_CLIENTS: usize = 4;

/// What makes a page.
pub(super) type Content = Arc<dyn Fn() -> String + Send + Sync>;

/// The listening end; a Unix socket is gone with this value.
#[derive(Debug)]
pub(super) struct Server {
    address: Address,
    listener: Listener,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(Socket),
}

/// A connection.
trait Connection: Read + Write + Send + 'static {
    fn limit_reading(&self, time: Duration) -> io::Result<()>;
    fn limit_writing(&self, time: Duration) -> io::Result<()>;
    fn finish(&self) -> io::Result<()>;
}

macro_rules! connection {
    ($type:ty) => {
        impl Connection for $type {
            fn limit_reading(&self, time: Duration) -> io::Result<()> {
                self.set_read_timeout(Some(time))
            }

            fn limit_writing(&self, time: Duration) -> io::Result<()> {
                self.set_write_timeout(Some(time))
            }

            fn finish(&self) -> io::Result<()> {
                self.shutdown(Shutdown::Write)
            }
        }
    };
}

connection!(TcpStream);
connection!(UnixStream);

impl Server {
    /// Listens, and answers nobody yet.
    pub(super) fn bind(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(wanted) => {
                let listener = TcpListener::bind(wanted)?;
                let address = Address::Tcp(listener.local_addr()?);
                Ok(Self { address, listener: Listener::Tcp(listener) })
            }
            Address::Unix(path) => {
                Ok(Self { address: address.clone(), listener: Listener::Unix(Socket::bind(path)?) })
            }
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Answers from now on, on threads that end with the process.
    pub(super) fn serve(&self, content: Content) -> io::Result<()> {
        match &self.listener {
            Listener::Tcp(listener) => {
                let listener = listener.try_clone()?;
                accept(move || listener.accept().map(|(stream, _)| stream), content)
            }
            Listener::Unix(socket) => {
                let listener = socket.listener()?;
                accept(move || listener.accept().map(|(stream, _)| stream), content)
            }
        }
    }
}

/// Accepts for ever.
fn accept<C: Connection>(
    next: impl Fn() -> io::Result<C> + Send + 'static,
    content: Content,
) -> io::Result<()> {
    let clients = Arc::new(AtomicUsize::new(0));
    let accepting = move || loop {
        match next() {
            Ok(connection) => admit(connection, &content, &clients),
            // Too many open files, say: not again and again at full speed.
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    };
    thread::Builder::new().name("metrics".into()).spawn(accepting)?;
    Ok(())
}

/// A client's place among those that are served.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Serves a client on a thread of its own, unless there are too many.
fn admit<C: Connection>(mut connection: C, content: &Content, clients: &Arc<AtomicUsize>) {
    let place = Place(clients.clone());
    let _ = connection.limit_writing(PATIENCE);
    if place.0.fetch_add(1, Ordering::SeqCst) >= MOST_CLIENTS {
        let refusal = Answer::refusal(Status::TOO_MANY);
        let _ = connection.write_all(&refusal.bytes(Part::Whole));
        return;
    }
    let content = content.clone();
    let serving = move || {
        let _place = place;
        // A client that vanishes is nobody's trouble.
        let _ = converse(connection, &content);
    };
    // Where there is no thread for it, the client finds the connection closed.
    let _ = thread::Builder::new().name("metrics-client".into()).spawn(serving);
}

fn converse<C: Connection>(mut connection: C, content: &Content) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let (answer, part) = match read_head(&mut connection, deadline)? {
        Head::Closed => return Ok(()),
        Head::TooLong => (Answer::refusal(Status::TOO_LONG), Part::Whole),
        Head::TooSlow => (Answer::refusal(Status::TOO_SLOW), Part::Whole),
        Head::Read(head) => match Request::parse(&head) {
            Ok(Request { part }) => (Answer::page(content()), part),
            Err(status) => (Answer::refusal(status), Part::Whole),
        },
    };
    connection.write_all(&answer.bytes(part))?;
    connection.finish()?;
    // What a client still sends would have its answer thrown away with the connection.
    let mut rest = [0; 4096];
    for _ in 0..16 {
        connection.limit_reading(left(deadline))?;
        if connection.read(&mut rest)? == 0 {
            break;
        }
    }
    Ok(())
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    Read(Vec<u8>),
    Closed,
    TooLong,
    TooSlow,
}

/// Reads up to the empty line behind the headers.
fn read_head<C: Connection>(connection: &mut C, deadline: Instant) -> io::Result<Head> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    loop {
        if Instant::now() >= deadline {
            return Ok(Head::TooSlow);
        }
        connection.limit_reading(left(deadline))?;
        let count = match connection.read(&mut part) {
            Ok(0) => return Ok(Head::Closed),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        // The end may lie across two parts.
        let from = head.len().saturating_sub(3);
        head.extend_from_slice(&part[..count]);
        if let Some(end) = head[from..].windows(4).position(|window| window == b"\r\n\r\n") {
            head.truncate(from + end);
            return Ok(if head.len() > LONGEST_HEAD { Head::TooLong } else { Head::Read(head) });
        }
        if head.len() > LONGEST_HEAD {
            return Ok(Head::TooLong);
        }
    }
}

/// A timeout of zero would be none.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// Status codes (RFC 9110, section 15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Status(u16, &'static str);

impl Status {
    const OK: Self = Self(200, "OK");
    const BAD: Self = Self(400, "Bad Request");
    const NOT_FOUND: Self = Self(404, "Not Found");
    const NOT_ALLOWED: Self = Self(405, "Method Not Allowed");
    const TOO_SLOW: Self = Self(408, "Request Timeout");
    const BODY: Self = Self(413, "Content Too Large");
    const TOO_LONG: Self = Self(431, "Request Header Fields Too Large");
    const TOO_MANY: Self = Self(503, "Service Unavailable");
    const VERSION: Self = Self(505, "HTTP Version Not Supported");
}

/// How much of an answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    /// To a `HEAD`.
    Headers,
}

/// A request for the page.
#[derive(Debug, PartialEq, Eq)]
struct Request {
    part: Part,
}

impl Request {
    /// Reads a request line and headers, without the empty line behind them.
    fn parse(head: &[u8]) -> Result<Self, Status> {
        let text = std::str::from_utf8(head).map_err(|_| Status::BAD)?;
        let mut lines = text.split("\r\n");
        let mut words = lines.next().ok_or(Status::BAD)?.split(' ');
        let [Some(method), Some(target), Some(version), None] =
            [words.next(), words.next(), words.next(), words.next()]
        else {
            return Err(Status::BAD);
        };
        if !is_token(method) || target.is_empty() || target.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err(Status::BAD);
        }
        let needs_host = match version {
            "HTTP/1.1" => true,
            "HTTP/1.0" => false,
            other if other.starts_with("HTTP/") => return Err(Status::VERSION),
            _ => return Err(Status::BAD),
        };
        let hosts = check_headers(lines)?;
        if hosts > 1 || (needs_host && hosts == 0) {
            return Err(Status::BAD);
        }
        let path = target.split_once('?').map_or(target, |(path, _)| path);
        if path != "/metrics" {
            return Err(Status::NOT_FOUND);
        }
        match method {
            "GET" => Ok(Self { part: Part::Whole }),
            "HEAD" => Ok(Self { part: Part::Headers }),
            _ => Err(Status::NOT_ALLOWED),
        }
    }
}

/// Checks each header, refuses a body, and counts the hosts that are named.
fn check_headers<'a>(lines: impl Iterator<Item = &'a str>) -> Result<usize, Status> {
    let mut hosts = 0;
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(Status::BAD)?;
        if !is_token(name) || value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            return Err(Status::BAD);
        }
        let named = |other: &str| name.eq_ignore_ascii_case(other);
        if named("host") {
            hosts += 1;
        } else if named("transfer-encoding") || (named("content-length") && value.trim() != "0") {
            return Err(Status::BODY);
        }
    }
    Ok(hosts)
}

/// A token (RFC 9110, section 5.6.2).
fn is_token(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: Status,
    content_type: &'static str,
    body: String,
}

impl Answer {
    fn page(body: String) -> Self {
        Self { status: Status::OK, content_type: CONTENT_TYPE, body }
    }

    fn refusal(status: Status) -> Self {
        let body = format!("{} {}: GET /metrics is served here\n", status.0, status.1);
        Self { status, content_type: "text/plain; charset=utf-8", body }
    }

    fn bytes(&self, part: Part) -> Vec<u8> {
        let Status(code, reason) = self.status;
        let allow = if self.status == Status::NOT_ALLOWED { "Allow: GET, HEAD\r\n" } else { "" };
        let mut bytes = format!(
            "HTTP/1.1 {code} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
            self.content_type,
            self.body.len()
        )
        .into_bytes();
        if part == Part::Whole {
            bytes.extend_from_slice(self.body.as_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests;
