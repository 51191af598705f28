//! The system calls of the `tap` back-end, each behind a safe function.
//!
//! Data goes through an [`SgList`], which keeps what its pieces point to mapped, so no caller can hand the kernel a
//! pointer into nothing.

use iovirt_core::dma::{IoVec, SgList};
use iovirt_core::request::net::{Offload, Offloads};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;

/// Length of the header in front of each frame: `struct virtio_net_hdr_mrg_rxbuf`.
pub(super) const HEADER_LEN: usize = 12;

/// Whether a tap is opened once or several times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queues {
    One,
    Several,
}

/// Whether the host gives frames to a queue of a multi-queue tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attachment {
    Attached,
    Detached,
}

/// Room for the pieces of one call.
#[derive(Debug, Default)]
pub(super) struct Pieces(Vec<libc::iovec>);

impl Pieces {
    /// A header and the pieces of a list. The pointers are valid as long as both are.
    fn join(&mut self, header: *mut u8, sg: &SgList) -> &[libc::iovec] {
        self.0.clear();
        self.0.push(libc::iovec { iov_base: header.cast(), iov_len: HEADER_LEN });
        self.0.extend_from_slice(IoVec::as_libc(sg.as_iovecs()));
        &self.0
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check_count(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// An `ifreq` for that interface, whose name was checked to be short enough.
fn request(name: &str) -> libc::ifreq {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } }
}

/// Opens the clone device and makes the descriptor a queue of that tap, with a virtio header in front of each frame, whose
/// numbers are little-endian. Frames come without offloads until [`leave`] says otherwise.
pub(super) fn open(name: &str, queues: Queues) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let several = if queues == Queues::Several { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut ifr = request(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    ifr.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`, which lives on this stack.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut ifr) })?;
    let mut len = HEADER_LEN as libc::c_int;
    // SAFETY: the descriptor is open, and the kernel reads one `int`, which lives on this stack.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw mut len) })?;
    let mut little_endian: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the kernel reads one `int`, which lives on this stack.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETLE, &raw mut little_endian) })?;
    leave(file.as_fd(), Offloads::empty())?;
    Ok(file)
}

/// Says what the host may leave to be done to frames that it gives, over all queues of the tap.
pub(super) fn leave(fd: BorrowedFd<'_>, offloads: Offloads) -> io::Result<()> {
    let flag = |offload, flag| if offloads.contains(offload) { flag } else { 0 };
    let flags = flag(Offloads::CSUM, libc::TUN_F_CSUM)
        | flag(Offloads::TSO4, libc::TUN_F_TSO4)
        | flag(Offloads::TSO6, libc::TUN_F_TSO6)
        | flag(Offloads::ECN, libc::TUN_F_TSO_ECN);
    // SAFETY: the descriptor is open, and the argument is a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// Lets the host give frames to this queue of a multi-queue tap, or not.
pub(super) fn attach(fd: BorrowedFd<'_>, attachment: Attachment) -> io::Result<()> {
    let mut ifr = request("");
    let flags = match attachment {
        Attachment::Attached => libc::IFF_ATTACH_QUEUE,
        Attachment::Detached => libc::IFF_DETACH_QUEUE,
    };
    ifr.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel reads one `ifreq`, which lives on this stack.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE, &raw mut ifr) })
}

/// The MTU of an interface.
pub(super) fn mtu(name: &str) -> io::Result<i32> {
    let socket = UnixDatagram::unbound()?;
    let mut ifr = request(name);
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`, which lives on this stack.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut ifr) })?;
    // SAFETY: the call filled this member.
    Ok(unsafe { ifr.ifr_ifru.ifru_mtu })
}

/// The address of an interface.
pub(super) fn address(name: &str) -> io::Result<[u8; 6]> {
    let socket = UnixDatagram::unbound()?;
    let mut ifr = request(name);
    // SAFETY: the descriptor is open, and the kernel reads and writes one `ifreq`, which lives on this stack.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut ifr) })?;
    // SAFETY: the call filled this member.
    let address = unsafe { ifr.ifr_ifru.ifru_hwaddr };
    let mut bytes = [0; 6];
    for (to, from) in bytes.iter_mut().zip(address.sa_data) {
        *to = from as u8;
    }
    Ok(bytes)
}

/// Reads one frame into the list, which the device may write; says how long it was, as far as there was room, and what is left
/// to be done to it.
pub(super) fn read(fd: BorrowedFd<'_>, sg: &mut SgList, pieces: &mut Pieces) -> io::Result<(usize, Offload)> {
    assert!(!sg.is_read_only(), "read into a read-only list");
    let mut header = [0; HEADER_LEN];
    let iovecs = pieces.join(header.as_mut_ptr(), sg);
    // SAFETY: the list keeps every piece mapped for the length of the call, and the device may write all of them as it is
    // not read-only; the header lives on this stack. No reference to that memory exists.
    let count = unsafe { libc::readv(fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int) };
    let len = check_count(count)?.saturating_sub(HEADER_LEN);
    let mut fields = [0; Offload::LEN];
    fields.copy_from_slice(&header[..Offload::LEN]);
    Ok((len, Offload::from_bytes(fields)))
}

/// Writes the frame in the list, and what is left to be done to it.
pub(super) fn write(
    fd: BorrowedFd<'_>,
    sg: &SgList,
    offload: Offload,
    pieces: &mut Pieces,
) -> io::Result<()> {
    let mut header = [0; HEADER_LEN];
    header[..Offload::LEN].copy_from_slice(&offload.to_bytes());
    let iovecs = pieces.join(header.as_mut_ptr(), sg);
    // SAFETY: the list keeps every piece mapped for the length of the call, the header lives on this stack; the kernel only
    // reads them.
    let count = unsafe { libc::writev(fd.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as libc::c_int) };
    check_count(count).map(drop)
}
