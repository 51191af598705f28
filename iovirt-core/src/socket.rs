//! Descriptors over Unix sockets: how another process lends its memory, doorbells and interrupts.
//!
//! Standard sockets carry bytes only. These two calls add `SCM_RIGHTS` (unix(7)): what arrives is owned at once, closed on `exec`,
//! and limited in number whatever the peer sends.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

/// The most descriptors that one call carries.
pub const MAX_FDS: usize = 32;

/// Bytes of control data that hold [`MAX_FDS`] descriptors, with room for a second header.
const CONTROL_LEN: usize = 256;

/// Control data, aligned for its headers.
#[repr(align(8))]
struct Control([MaybeUninit<u8>; CONTROL_LEN]);

impl Control {
    const EMPTY: Self = Self([MaybeUninit::zeroed(); CONTROL_LEN]);
}

/// Reads at most `bytes.len()` bytes, and appends the descriptors that came with them to `fds`. Zero bytes are the end of the
/// stream.
///
/// # Errors
/// What the host says; `InvalidData` where more than [`MAX_FDS`] descriptors came with the bytes, all of which are closed then.
pub fn receive(socket: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut control = Control::EMPTY;
    let mut piece = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut message = message(&mut piece);
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_LEN;
    // SAFETY: the message points to one piece of memory and one buffer for control data, both live and ours.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    let before = fds.len();
    // SAFETY: the kernel has just filled the control data, and nobody has taken its descriptors yet.
    unsafe { take_fds(&message, fds) };
    if message.msg_flags & libc::MSG_CTRUNC != 0 || fds.len() - before > MAX_FDS {
        fds.truncate(before);
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("more than {MAX_FDS} descriptors came at once"),
        ));
    }
    Ok(count)
}

/// Writes at most `bytes.len()` bytes, at least one of which carries `fds`; says how many were taken.
///
/// # Errors
/// What the host says; `InvalidInput` for more than [`MAX_FDS`] descriptors, or for descriptors without a byte to go with.
pub fn send(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    send_with(socket, bytes, fds, 0)
}

/// The same without waiting, whatever mode the socket is in: for one that the peer made, which can change its mode at any time.
///
/// # Errors
/// As [`send`]; `WouldBlock` where there is no room.
pub fn send_now(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    send_with(socket, bytes, fds, libc::MSG_DONTWAIT)
}

fn send_with(
    socket: &UnixStream,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
    flags: libc::c_int,
) -> io::Result<usize> {
    if fds.len() > MAX_FDS || (bytes.is_empty() && !fds.is_empty()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut control = Control::EMPTY;
    let mut piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut message = message(&mut piece);
    if !fds.is_empty() {
        let len = (fds.len() * size_of::<RawFd>()) as u32;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: arithmetic only.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(len) } as usize;
        // SAFETY: the control buffer is longer than a header with `MAX_FDS` descriptors, and aligned for it.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(len) as usize;
            let mut data = libc::CMSG_DATA(header);
            for fd in fds {
                let fd = fd.as_raw_fd().to_ne_bytes();
                data.copy_from_nonoverlapping(fd.as_ptr(), fd.len());
                data = data.add(fd.len());
            }
        }
    }
    // SAFETY: the message points to bytes that are only read, and to control data that was filled above.
    let count = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | flags) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

fn message(piece: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: integers and pointers, for which zeroes are a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = piece;
    message.msg_iovlen = 1;
    message
}

/// # Safety
/// The message must have been filled by `recvmsg`, and its descriptors taken by nobody.
unsafe fn take_fds(message: &libc::msghdr, fds: &mut Vec<OwnedFd>) {
    // SAFETY: the kernel's headers lie within `msg_controllen` bytes, which these macros heed; descriptors in them are fresh and ours.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let count = ((*header).cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                let data = libc::CMSG_DATA(header).cast::<[u8; size_of::<RawFd>()]>();
                let fd = |index| RawFd::from_ne_bytes(data.add(index).read());
                fds.extend((0..count).map(|index| OwnedFd::from_raw_fd(fd(index))));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    fn file_with(text: &str) -> File {
        let mut file = vmm_sys_util::tempfile::TempFile::new().unwrap().into_file();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn descriptors_arrive_with_their_bytes_and_close_on_exec() {
        let (here, there) = UnixStream::pair().unwrap();
        let (one, two) = (file_with("one"), file_with("two"));
        assert_eq!(send(&here, b"plain", &[]).unwrap(), 5);
        assert_eq!(send(&here, b"abc", &[one.as_fd(), two.as_fd()]).unwrap(), 3);
        let (mut bytes, mut fds) = ([0; 16], Vec::new());
        assert_eq!(receive(&there, &mut bytes[..5], &mut fds).unwrap(), 5);
        assert!(fds.is_empty(), "descriptors come with the first byte that carries them");
        assert_eq!(receive(&there, &mut bytes[..2], &mut fds).unwrap(), 2);
        assert_eq!(fds.len(), 2);
        assert_eq!(receive(&there, &mut bytes, &mut fds).unwrap(), 1);
        assert_eq!(fds.len(), 2);
        for (fd, text) in fds.into_iter().zip(["one", "two"]) {
            // SAFETY: asks for flags.
            let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) };
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
            let mut file = File::from(fd);
            let mut read = String::new();
            std::io::Seek::rewind(&mut file).unwrap();
            file.read_to_string(&mut read).unwrap();
            assert_eq!(read, text);
        }
        drop(here);
        assert_eq!(receive(&there, &mut bytes, &mut Vec::new()).unwrap(), 0);
    }

    #[test]
    fn a_full_socket_holds_nobody_up() {
        let (here, _there) = UnixStream::pair().unwrap();
        let refused = (0..1 << 20).find_map(|_| send_now(&here, &[0; 4096], &[]).err());
        assert_eq!(refused.map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
    }

    #[test]
    fn too_many_descriptors_are_refused_and_closed() {
        let (here, there) = UnixStream::pair().unwrap();
        let file = file_with("");
        assert_eq!(
            send(&here, b"x", &[file.as_fd(); MAX_FDS + 1]).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
        assert_eq!(send(&here, b"", &[file.as_fd()]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        // As a peer with another library can: more than fit the receiver's control data.
        let raw = vec![file.as_raw_fd(); 100];
        vmm_sys_util::sock_ctrl_msg::ScmSocket::send_with_fds(&here, &[b"y".as_slice()], &raw).unwrap();
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let (before, mut fds) = (open(), Vec::new());
        let refused = receive(&there, &mut [0; 1], &mut fds).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
        assert!(fds.is_empty());
        // Other tests of this process open and close descriptors too.
        assert!(open() < before + 50, "descriptors that were refused stay open");
    }
}
