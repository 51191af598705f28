//! The system calls of the `nbd` back-end, each behind a safe function.
//!
//! Data goes through an [`SgList`], which keeps what its pieces point to mapped, so no caller can hand the kernel a pointer
//! into nothing.

use iovirt_core::dma::SgList;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::Duration;

/// What [`wait`] waits for.
pub(super) type Events = libc::c_short;
pub(super) const READABLE: Events = libc::POLLIN;
pub(super) const WRITABLE: Events = libc::POLLOUT;

/// Pieces of one system call: what is left goes in the next.
const PIECES: usize = 64;

const NO_PIECE: libc::iovec = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };

fn check_count(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Bytes `from .. from + len` of a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    pub(super) sg: &'a SgList,
    pub(super) from: u64,
    pub(super) len: u64,
}

/// Pieces for one call, on the stack.
struct Pieces {
    list: [libc::iovec; PIECES],
    count: usize,
}

impl Pieces {
    fn new() -> Self {
        Self { list: [NO_PIECE; PIECES], count: 0 }
    }

    fn push(&mut self, piece: libc::iovec) {
        self.list[self.count] = piece;
        self.count += 1;
    }

    /// The pieces of a part, as many as fit beside one more; whether those were all.
    fn push_part(&mut self, part: Part<'_>) -> bool {
        let (mut skip, mut left) = (part.from, part.len);
        for iovec in part.sg.as_iovecs() {
            let len = iovec.len() as u64;
            if skip >= len {
                skip -= len;
                continue;
            }
            if left == 0 || self.count == PIECES - 1 {
                break;
            }
            let piece = iovec.slice(skip as usize, left.min(len - skip) as usize);
            self.push(libc::iovec { iov_base: piece.as_ptr().cast(), iov_len: piece.len() });
            left -= piece.len() as u64;
            skip = 0;
        }
        left == 0
    }

    fn message(&mut self) -> libc::msghdr {
        // SAFETY: all-zero bytes are a message header without address, pieces and control data.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.list.as_mut_ptr();
        message.msg_iovlen = self.count;
        message
    }
}

/// `sendmsg(2)` of bytes and then of a part of a list, without blocking and without a signal where the peer is gone.
pub(super) fn send(socket: &impl AsRawFd, head: &[u8], part: Option<Part<'_>>) -> io::Result<usize> {
    let mut pieces = Pieces::new();
    if !head.is_empty() {
        pieces.push(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
    }
    if let Some(part) = part {
        pieces.push_part(part);
    }
    let message = pieces.message();
    with_memory(part, || {
        // SAFETY: the kernel only reads the pieces: `head` is borrowed for the call, and the list keeps its pieces mapped.
        check_count(unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        })
    })
}

/// Makes a call, and once more where memory of the list turned out to be gone: there are zeroes in its place then, and the stream stays what
/// the peer takes it for. The connection is not one guest's alone.
fn with_memory(part: Option<Part<'_>>, mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    match (call(), part) {
        (Err(error), Some(part)) if error.raw_os_error() == Some(libc::EFAULT) => {
            part.sg.notice_shrunk();
            call()
        }
        (result, _) => result,
    }
}

/// `recvmsg(2)` into a part of a list and then into `tail`, without blocking. Zero is the end of the stream.
pub(super) fn receive(socket: &impl AsRawFd, part: Option<Part<'_>>, tail: &mut [u8]) -> io::Result<usize> {
    let mut pieces = Pieces::new();
    let whole = part.is_none_or(|part| {
        assert!(!part.sg.is_read_only(), "received into a read-only list");
        pieces.push_part(part)
    });
    if whole {
        pieces.push(libc::iovec { iov_base: tail.as_mut_ptr().cast(), iov_len: tail.len() });
    }
    let mut message = pieces.message();
    with_memory(part, || {
        // SAFETY: the list keeps its pieces mapped and may be written, as it is not read-only, and no reference to that memory
        // exists; `tail` is borrowed exclusively for the call.
        check_count(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })
    })
}

/// Whether a connection has neither ended nor anything to read.
pub(super) fn is_quiet(socket: &impl AsRawFd) -> bool {
    let mut byte = 0u8;
    // SAFETY: one byte is there to be written.
    let result = unsafe {
        libc::recv(socket.as_raw_fd(), (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT)
    };
    result < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
}

/// Ends both directions of a connection, which wakes whoever waits for it.
pub(super) fn shutdown(socket: &impl AsRawFd) {
    // SAFETY: a number is all that the call takes; a connection that has ended is an error without consequence.
    unsafe { libc::shutdown(socket.as_raw_fd(), libc::SHUT_RDWR) };
}

/// Connects to a Unix domain socket, waiting at most that long for a server that does not accept.
pub(super) fn connect_unix(path: &Path, limit: Duration) -> io::Result<OwnedFd> {
    let bytes = path.as_os_str().as_bytes();
    // SAFETY: all-zero bytes are an address without family and path.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() || bytes.contains(&0) {
        let most = address.sun_path.len() - 1;
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a socket's path has 1 to {most} bytes, and none of them is zero"),
        ));
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = (*from).cast_signed();
    }
    // SAFETY: numbers are all that the call takes.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just made this descriptor and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let limit = libc::timeval {
        tv_sec: limit.as_secs().max(1) as libc::time_t,
        tv_usec: limit.subsec_micros() as libc::suseconds_t,
    };
    // SAFETY: the value lives through the call, and its length is given. `connect` of a Unix socket waits no longer than
    // this for room in the server's backlog.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDTIMEO,
            (&raw const limit).cast(),
            size_of_val(&limit) as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the address lives through the call, and its length is given.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// Waits at most that long for a descriptor to be readable or writable. Returns early for no reason at times.
pub(super) fn wait(socket: &impl AsRawFd, events: Events, limit: Duration) {
    let mut entry = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
    let millis = i32::try_from(limit.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX);
    // SAFETY: one entry is there and lives through the call. What it says is found out by trying.
    unsafe { libc::poll(&raw mut entry, 1, millis) };
}
