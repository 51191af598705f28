//! Network requests: frames sent, and tokens for frames to come.
//!
//! # Sending
//!
//! A [`NetOp::Transmit`] carries one Ethernet frame, without its frame check sequence, as segments of guest or host
//! memory. It completes when nobody reads that memory any more. [`NetOutput::Done`] says that the frame was given to the
//! network, not that anybody received it: a network may lose frames, and each stage that loses one counts it.
//!
//! # Receiving
//!
//! A [`NetOp::Receive`] is a token without guest memory: it goes down with an empty list and comes home once, with a frame
//! in host memory ([`SgList::push_host`]; the list's length is the frame's), or as failed. Stages judge the frame on its
//! way up, before any guest can see it; one that drops it sends the token down again
//! ([`Return::Again`](crate::stage::Return::Again)). Only the front-end writes the guest's memory.
//!
//! A token waits for as long as no frame comes, so a queue that **drains** does not wait for it: it completes every token
//! as [`NetError::Aborted`], also those that are submitted while it drains. A client that gets a token back as failed while
//! its queue runs waits before it submits the next.
//!
//! # Pairs and order
//!
//! A device has pairs of queues, one each way, and each queue has a data plane of its own, maybe on another worker. Each
//! request says which [pair](NetRequest::pair) it belongs to; all requests of one data plane name the same. A back-end may
//! allow one data plane per pair to receive.
//!
//! Frames of one data plane stay in order: they are transmitted as they were submitted, and receives complete in the order
//! in which the frames came. Which token gets which frame is open. So transmits may complete in any order, and a stage that
//! passes completions up keeps their order.

use super::{Cost, Request, Tag};
use crate::dma::SgList;
use bitflags::bitflags;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Length of an Ethernet header in bytes: no frame is shorter.
pub const ETHERNET_HEADER: u32 = 14;
/// Length of an 802.1Q tag in bytes: it counts neither as header nor for the MTU.
pub const VLAN_TAG: u32 = 4;

/// What a network request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum NetOp {
    /// Send the frame in the list.
    Transmit,
    /// Put the next frame that comes into the list.
    Receive,
}

/// What a frame's sender left to be done, or its receiver need not do: the fields of `struct virtio_net_hdr` (VIRTIO 1.2,
/// section 5.1.6), which the host's tap devices have too. The default is a frame as it goes over the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Offload {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`; 0 for a frame that is not to be cut.
    pub gso_type: u8,
    /// Length of the headers that every segment repeats, in bytes.
    pub hdr_len: u16,
    /// Payload of each segment in bytes.
    pub gso_size: u16,
    /// Where the checksum starts, in bytes.
    pub csum_start: u16,
    /// Where the checksum is to be put, in bytes from there.
    pub csum_offset: u16,
}

impl Offload {
    /// Length of the fields in a virtio header in bytes.
    pub const LEN: usize = 10;

    /// The fields as they stand in a virtio header.
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// The fields as they stand in a virtio header.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, word) in [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset].iter().enumerate()
        {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The note of a frame with nothing left to be done to it.
    const PLAIN_NOTE: [u64; 2] = [0; 2];

    /// The fields as the note at a list: those of a virtio header, and zeroes.
    #[inline]
    fn to_note(self) -> [u64; 2] {
        let words = [self.hdr_len, self.gso_size, self.csum_start].map(u64::from);
        let first = u64::from(self.flags) | u64::from(self.gso_type) << 8;
        [first | words[0] << 16 | words[1] << 32 | words[2] << 48, u64::from(self.csum_offset)]
    }

    #[inline]
    fn from_note([first, second]: [u64; 2]) -> Self {
        Self {
            flags: first as u8,
            gso_type: (first >> 8) as u8,
            hdr_len: (first >> 16) as u16,
            gso_size: (first >> 32) as u16,
            csum_start: (first >> 48) as u16,
            csum_offset: second as u16,
        }
    }

    /// Whether there is nothing left to be done to the frame.
    #[inline]
    pub const fn is_plain(self) -> bool {
        /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
        const NEEDS_CSUM: u8 = 1;
        self.gso_type == 0 && self.flags & NEEDS_CSUM == 0
    }
}

/// One network request: 16 bytes, with its memory behind a pooled handle. See the [module](self).
///
/// Two words, so that it travels in registers: a larger one goes through memory at each call, and is read there in wider
/// pieces than it was just written in, for which a processor waits. What does not fit, the offload, is a note at the list.
pub struct NetRequest {
    sg: Box<SgList>,
    /// From the lowest bit: tag (32), pair (16), operation (1).
    word: u64,
}

impl NetRequest {
    const PAIR: u32 = 32;
    const OP: u32 = 48;

    #[inline]
    fn new(tag: Tag, pair: u16, op: NetOp, mut sg: Box<SgList>) -> Self {
        sg.set_note(Offload::PLAIN_NOTE);
        let word = u64::from(tag.get()) | u64::from(pair) << Self::PAIR | (op as u64) << Self::OP;
        Self { sg, word }
    }

    /// A frame to be sent: the whole list.
    #[inline]
    pub fn transmit(tag: Tag, pair: u16, sg: Box<SgList>) -> Self {
        Self::new(tag, pair, NetOp::Transmit, sg)
    }

    /// A token for a frame to come. The list is emptied.
    #[inline]
    pub fn receive(tag: Tag, pair: u16, mut sg: Box<SgList>) -> Self {
        if !sg.is_empty() {
            sg.clear();
        }
        Self::new(tag, pair, NetOp::Receive, sg)
    }

    /// The request with this metadata.
    #[must_use]
    pub fn with_offload(mut self, offload: Offload) -> Self {
        self.set_offload(offload);
        self
    }

    /// What is asked for.
    #[inline]
    pub fn op(&self) -> NetOp {
        if self.word >> Self::OP == NetOp::Transmit as u64 { NetOp::Transmit } else { NetOp::Receive }
    }

    /// The pair of queues it belongs to.
    #[inline]
    pub fn pair(&self) -> u16 {
        (self.word >> Self::PAIR) as u16
    }

    /// What is left to be done to the frame.
    #[inline]
    pub fn offload(&self) -> Offload {
        Offload::from_note(self.sg.note())
    }

    /// Says what is left to be done to the frame: for a back-end that received it, or a stage that did it.
    #[inline]
    pub fn set_offload(&mut self, offload: Offload) {
        self.sg.set_note(offload.to_note());
    }

    /// The frame.
    #[inline]
    pub fn sg(&self) -> &SgList {
        &self.sg
    }

    /// The frame.
    #[inline]
    pub fn sg_mut(&mut self) -> &mut SgList {
        &mut self.sg
    }

    /// Gives up the request for its list.
    #[inline]
    pub fn into_sg(self) -> Box<SgList> {
        self.sg
    }

    /// Makes a token as it was when it was submitted, so that it can go down again.
    pub fn renew(&mut self) {
        self.sg.clear();
        self.set_offload(Offload::default());
    }
}

#[expect(clippy::missing_fields_in_debug, reason = "the word is shown by what it is made of")]
impl fmt::Debug for NetRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetRequest")
            .field("op", &self.op())
            .field("tag", &self.tag())
            .field("pair", &self.pair())
            .field("offload", &self.offload())
            .field("sg", &self.sg)
            .finish()
    }
}

/// Why a network request failed. No guest is told; counters and the host's log have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum NetError {
    /// The host failed, or what the frames went to is gone.
    #[error("input/output error")]
    Io,
    /// The host has no room for the frame now.
    #[error("the host has no room for the frame")]
    NoRoom,
    /// The frame is shorter than an Ethernet header or longer than the network takes.
    #[error("the frame has a length that the network does not take")]
    BadLength,
    /// The stack cannot do what the request asks for: an offload, a pair that there is not.
    #[error("the operation is not supported")]
    Unsupported,
    /// Given up: dropped by a stage, or taken back as the queue came to rest.
    #[error("aborted")]
    Aborted,
}

/// What became of a network request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetOutput {
    /// The frame was given to the network, or came from it.
    Done,
    /// It was not.
    Failed(NetError),
}

impl Request for NetRequest {
    type Output = NetOutput;
    type Caps = NetCaps;
    const KINDS: &'static [&'static str] = &["transmit", "receive"];
    const FAMILY: &'static str = "net";
    const IN_ORDER: bool = true;

    #[inline]
    fn tag(&self) -> Tag {
        Tag::new(self.word as u32)
    }

    #[inline]
    fn kind(&self) -> usize {
        self.op() as usize
    }

    /// The bytes of a receive are known once it completed.
    #[inline]
    fn cost(&self) -> Cost {
        Cost { ops: 1, bytes: self.sg.len() }
    }

    #[inline]
    fn into_memory(self) -> Option<Box<SgList>> {
        Some(self.sg)
    }

    fn aborted() -> NetOutput {
        NetOutput::Failed(NetError::Aborted)
    }

    /// The cable is out.
    fn vacant(told: &NetCaps) -> NetCaps {
        NetCaps { link: Link::Down, ..told.clone() }
    }

    #[inline]
    fn is_failure(output: &NetOutput) -> bool {
        *output != NetOutput::Done
    }

    #[inline]
    fn is_token(&self) -> bool {
        self.op() == NetOp::Receive
    }

    fn renew_token(&mut self, output: &NetOutput) -> bool {
        let recalled = self.op() == NetOp::Receive && *output == Self::aborted();
        if recalled {
            self.renew();
        }
        recalled
    }
}

/// A MAC address.
///
/// ```
/// use iovirt_core::request::net::MacAddr;
///
/// let mac: MacAddr = "52:54:00:12:34:56".parse()?;
/// assert_eq!(mac.0, [0x52, 0x54, 0, 0x12, 0x34, 0x56]);
/// assert_eq!(mac.to_string(), "52:54:00:12:34:56");
/// assert!(mac.is_unicast() && !MacAddr::BROADCAST.is_unicast());
/// # Ok::<(), iovirt_core::request::net::BadMac>(())
/// ```
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Everybody.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether it is one station's, not a group's (IEEE 802: the lowest bit of the first byte).
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if at == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

/// A text that is no MAC address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no MAC address: six bytes as in 52:54:00:12:34:56 are allowed")]
pub struct BadMac(pub String);

impl FromStr for MacAddr {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac(text.chars().take(32).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

/// Whether the network is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Frames flow.
    Up,
    /// The cable is out.
    Down,
}

bitflags! {
    /// What a stack does to frames on behalf of their sender. None is known yet.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Offloads: u32 {}
}

/// What a network stack can do. A stage states how it changes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetCaps {
    /// The largest payload of a frame in bytes: 68 (IPv4's least) to 65535.
    pub mtu: u16,
    /// The longest frame in bytes, with its header and a VLAN tag, without its check sequence. A longer one fails with
    /// [`NetError::BadLength`].
    pub max_frame: u32,
    /// The address that the network would like the guest to have.
    pub mac: Option<MacAddr>,
    /// Whether the network is there.
    pub link: Link,
    /// Pairs of queues that the network serves at once: those from 0.
    pub pairs: u16,
    /// What the stack does to frames.
    pub offloads: Offloads,
}

impl NetCaps {
    /// The least MTU.
    pub const MIN_MTU: u16 = 68;

    /// A network that is there, with frames of that MTU and a VLAN tag, and no offloads.
    pub fn new(mtu: u16, pairs: u16) -> Self {
        Self {
            mtu,
            max_frame: u32::from(mtu) + ETHERNET_HEADER + VLAN_TAG,
            mac: None,
            link: Link::Up,
            pairs,
            offloads: Offloads::empty(),
        }
    }

    /// Whether a stack may take the place of one whose capabilities a guest has been told: the argument of
    /// [`SwapLayer::new`](crate::pipeline::SwapLayer::new). The MTU must stay (VIRTIO 1.2, section 5.1.4.1: a device does not
    /// change it), and what the guest may use must still be there: frames as long, as many pairs of queues, offloads. The
    /// link may differ, which is an event; so may the address, as it is a hint for a guest that comes.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn may_replace(told: &Self, new: &Self) -> Result<(), String> {
        let refuse = |what: String| Err(format!("the stack cannot take the place of the one in use: {what}"));
        if new.mtu != told.mtu {
            return refuse(format!("its MTU is {} bytes, not {}", new.mtu, told.mtu));
        }
        if new.max_frame < told.max_frame {
            let (new, told) = (new.max_frame, told.max_frame);
            return refuse(format!("its longest frame has {new} bytes, fewer than {told}"));
        }
        if new.pairs < told.pairs {
            return refuse(format!("it has {} pairs of queues, fewer than {}", new.pairs, told.pairs));
        }
        if !new.offloads.contains(told.offloads) {
            return refuse(format!("it lacks the offloads {:?}", told.offloads - new.offloads));
        }
        Ok(())
    }

    /// Checks a transmit against these capabilities, as a back-end does at the time of I/O.
    ///
    /// # Errors
    /// [`NetError::BadLength`]; [`NetError::Unsupported`] for an offload, or a pair that the network does not have.
    #[inline]
    pub fn check(&self, request: &NetRequest) -> Result<(), NetError> {
        let transmit = request.op() == NetOp::Transmit;
        if request.pair() >= self.pairs || (transmit && !request.offload().is_plain()) {
            return Err(NetError::Unsupported);
        }
        let lengths = u64::from(ETHERNET_HEADER)..=u64::from(self.max_frame);
        if transmit && !lengths.contains(&request.sg.len()) {
            return Err(NetError::BadLength);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{SgLimits, SgPool};

    #[test]
    fn a_request_is_small() {
        assert_eq!(size_of::<NetRequest>(), 16);
        assert_eq!(size_of::<Option<NetRequest>>(), 16);
        assert!(size_of::<super::super::Completion<NetRequest>>() <= 24);
    }

    #[test]
    fn a_request_keeps_what_it_was_made_of() {
        let mut pool = SgPool::new(1, SgLimits::default());
        let offload = Offload { gso_type: 4, csum_offset: 16, ..Offload::default() };
        let request = NetRequest::transmit(Tag::new(u32::MAX), u16::MAX, pool.take()).with_offload(offload);
        assert_eq!((request.tag(), request.pair()), (Tag::new(u32::MAX), u16::MAX));
        assert_eq!((request.op(), request.offload()), (NetOp::Transmit, offload));
        // The list is used again, and its note is not.
        let mut request = NetRequest::receive(Tag::new(3), 5, request.into_sg());
        assert_eq!((request.tag(), request.pair(), request.op()), (Tag::new(3), 5, NetOp::Receive));
        assert!(request.offload().is_plain());
        request.set_offload(offload);
        request.renew();
        assert_eq!((request.offload(), request.kind()), (Offload::default(), 1));
    }

    #[test]
    fn metadata_stands_as_in_a_virtio_header() {
        let bytes = [1, 4, 54, 0, 0xb4, 5, 34, 0, 16, 0];
        let offload = Offload::from_bytes(bytes);
        assert_eq!(
            offload,
            Offload { flags: 1, gso_type: 4, hdr_len: 54, gso_size: 1460, csum_start: 34, csum_offset: 16 }
        );
        assert_eq!(offload.to_bytes(), bytes);
        assert_eq!(Offload::from_note(offload.to_note()), offload);
        assert_eq!(Offload::default().to_note(), Offload::PLAIN_NOTE);
        assert!(!offload.is_plain() && Offload::default().is_plain());
    }

    #[test]
    fn only_mac_addresses_are_mac_addresses() {
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52:54:00:12:34:5",
            "5z:54:00:12:34:56",
            "+1:54:00:12:34:56",
        ] {
            assert!(bad.parse::<MacAddr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn caps_check_each_rule() {
        let mut pool = SgPool::new(1, SgLimits::default());
        let caps = NetCaps::new(1500, 2);
        let mut check = |len: usize, pair, offload| {
            let mut sg = pool.take();
            sg.push_host(len).unwrap();
            caps.check(&NetRequest::transmit(Tag::new(0), pair, sg).with_offload(offload))
        };
        let plain = Offload::default();
        assert_eq!(check(14, 0, plain), Ok(()));
        assert_eq!(check(1518, 1, plain), Ok(()));
        assert_eq!(check(13, 0, plain), Err(NetError::BadLength));
        assert_eq!(check(1519, 0, plain), Err(NetError::BadLength));
        assert_eq!(check(60, 2, plain), Err(NetError::Unsupported));
        assert_eq!(check(60, 0, Offload { gso_type: 1, ..plain }), Err(NetError::Unsupported));
        let mut filled = pool.take();
        filled.push_host(5).unwrap();
        let receive = NetRequest::receive(Tag::new(0), 0, filled);
        assert_eq!((receive.sg().len(), caps.check(&receive)), (0, Ok(())));
    }
}
