//! Messages as bytes. Their layouts are the `vhost` crate's.

use vhost::vhost_user::message::{FrontendReq, VhostUserMsgValidator};
use vm_memory::ByteValued;

/// Length of a message's header: request, flags and size of the payload, 32 bits each.
pub(super) const HEADER_LEN: usize = 12;
/// The longest payload that is taken. The longest that the protocol has is a table of memory.
pub(super) const MAX_PAYLOAD: usize = 4096;

const VERSION_MASK: u32 = 0b11;
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// Bits of the 64-bit payload that names a ring and comes with its descriptor.
const INDEX_MASK: u64 = 0xff;
const NO_FD: u64 = 1 << 8;

/// A message's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) request: u32,
    flags: u32,
    pub(super) size: usize,
}

impl Header {
    /// Reads a header; `None` for one of another version, or with a payload that no message has.
    pub(super) fn parse(bytes: [u8; HEADER_LEN]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let header = Self { request: word(0), flags: word(4), size: word(8) as usize };
        (header.flags & VERSION_MASK == VERSION && header.size <= MAX_PAYLOAD).then_some(header)
    }

    /// What is asked for; `None` for a request that does not exist.
    pub(super) fn code(&self) -> Option<FrontendReq> {
        FrontendReq::try_from(self.request).ok()
    }

    /// Whether the front-end waits for an answer that the request by itself does not have.
    pub(super) fn needs_reply(&self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// A request of ours, or an answer to one of the front-end's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Request,
    Reply,
}

/// A whole message as bytes.
pub(super) fn encode(request: u32, direction: Direction, payload: &[u8]) -> Vec<u8> {
    let flags = if direction == Direction::Reply { VERSION | REPLY } else { VERSION };
    let words = [request, flags, payload.len() as u32];
    words.iter().flat_map(|word| word.to_le_bytes()).chain(payload.iter().copied()).collect()
}

/// The payload as that structure; `None` where it has another length, or a value that is not allowed.
pub(super) fn body<T: ByteValued + Default + VhostUserMsgValidator>(payload: &[u8]) -> Option<T> {
    let mut body = T::default();
    if payload.len() != size_of::<T>() {
        return None;
    }
    body.as_mut_slice().copy_from_slice(payload);
    body.is_valid().then_some(body)
}

/// The payload as a number.
pub(super) fn number(payload: &[u8]) -> Option<u64> {
    payload.try_into().ok().map(u64::from_le_bytes)
}

/// Which ring a descriptor is for, and whether there is one.
pub(super) fn ring_and_fd(payload: &[u8]) -> Option<(u32, FdPresence)> {
    let value = number(payload).filter(|value| value & !(INDEX_MASK | NO_FD) == 0)?;
    let presence = if value & NO_FD == 0 { FdPresence::Attached } else { FdPresence::None };
    Some(((value & INDEX_MASK) as u32, presence))
}

/// Whether a descriptor comes with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FdPresence {
    Attached,
    None,
}
