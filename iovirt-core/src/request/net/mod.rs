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
//! # Offloads
//!
//! A sender may leave work to be done to a frame, as far as the stack below says that it does it
//! ([`NetCaps::tx_offloads`]): its checksum, or cutting it into segments. What is left, the frame's [`Offload`] says, and with
//! it a frame may be longer than the network's longest ([`MAX_GSO_FRAME`]). Each token says what its receiver takes in turn
//! ([`NetRequest::accepts`]); to a frame in it nothing else is left to be done. Only the tokens tell: a receiver that changes
//! its mind recalls those that are out. A stage passes both on as they are, and one that cannot judge or keep a frame with
//! something left to be done takes the offload out of the capabilities.
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

mod finish;
mod offload;
#[cfg(test)]
mod tests;

pub use finish::{Segments, add_checksum};
pub use offload::{BadOffload, MAX_GSO_FRAME, MIN_GSO_SIZE, Offload, Offloads};

use super::{Cost, Request, Tag};
use crate::dma::SgList;
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

/// One network request: 16 bytes, with its memory behind a pooled handle. See the [module](self).
///
/// Two words, so that it travels in registers: a larger one goes through memory at each call, and is read there in wider
/// pieces than it was just written in, for which a processor waits. What does not fit, the offload, is a note at the list.
pub struct NetRequest {
    sg: Box<SgList>,
    /// From the lowest bit: tag (32), pair (16), operation (8), accepted offloads (8).
    word: u64,
}

impl NetRequest {
    const PAIR: u32 = 32;
    const OP: u32 = 48;
    const ACCEPTS: u32 = 56;

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

    /// The token for a receiver that takes frames to which this is left to be done. Without it, every frame comes as it goes
    /// over the wire.
    #[must_use]
    #[inline]
    pub fn accepting(mut self, offloads: Offloads) -> Self {
        self.word = self.word & !(0xff << Self::ACCEPTS) | u64::from(offloads.bits()) << Self::ACCEPTS;
        self
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
        if self.word >> Self::OP & 1 == NetOp::Transmit as u64 { NetOp::Transmit } else { NetOp::Receive }
    }

    /// What may be left to be done to the frame that a token brings home.
    #[inline]
    pub fn accepts(&self) -> Offloads {
        Offloads::from_bits_truncate((self.word >> Self::ACCEPTS) as u8)
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

    /// Whether nothing is left to be done to the frame, as by [`Offload::is_plain`]: one look at the note.
    #[inline]
    pub fn is_plain(&self) -> bool {
        let [first, _] = self.sg.note();
        first & Offload::NOT_PLAIN == 0
    }

    /// Whether nothing at all is said of the frame: not even that its checksum was looked at.
    #[inline]
    pub fn is_bare(&self) -> bool {
        let [first, second] = self.sg.note();
        first | second == 0
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
            .field("accepts", &self.accepts())
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
    /// The stack cannot do what the request asks for: an offload, or one that does not describe its frame; a pair that there
    /// is not.
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
    /// What may be left to be done to frames that are sent. A frame with anything else to be done fails with
    /// [`NetError::Unsupported`].
    pub tx_offloads: Offloads,
    /// What the stack can leave to be done to frames that are received, where a token [accepts](NetRequest::accepts) it.
    pub rx_offloads: Offloads,
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
            tx_offloads: Offloads::empty(),
            rx_offloads: Offloads::empty(),
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
        for (way, told, new) in [
            ("frames that are sent", told.tx_offloads, new.tx_offloads),
            ("frames that are received", told.rx_offloads, new.rx_offloads),
        ] {
            let lacking: Vec<_> = (told - new).iter_names().map(|(name, _)| name).collect();
            if !lacking.is_empty() {
                return refuse(format!("it lacks offloads of {way}: {}", lacking.join(", ")));
            }
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
        if request.pair() >= self.pairs {
            return Err(NetError::Unsupported);
        }
        if transmit && !request.is_plain() {
            return self.check_offload(request.offload(), request.sg.len());
        }
        let lengths = u64::from(ETHERNET_HEADER)..=u64::from(self.max_frame);
        if transmit && !lengths.contains(&request.sg.len()) {
            return Err(NetError::BadLength);
        }
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn check_offload(&self, offload: Offload, len: u64) -> Result<(), NetError> {
        let longest = if offload.is_gso() { MAX_GSO_FRAME } else { self.max_frame };
        if !(u64::from(ETHERNET_HEADER)..=u64::from(longest)).contains(&len) {
            return Err(NetError::BadLength);
        }
        match offload.check(len) {
            Ok(needed) if self.tx_offloads.contains(needed) && offload.fits(self.mtu) => Ok(()),
            _ => Err(NetError::Unsupported),
        }
    }
}
