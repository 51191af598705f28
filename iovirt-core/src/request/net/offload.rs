//! What a frame's sender left to be done to it.

use super::{ETHERNET_HEADER, VLAN_TAG};
use bitflags::bitflags;
use thiserror::Error;

/// The longest frame that is to be cut, in bytes: what a buffer for such frames holds (VIRTIO 1.2, section 5.1.6.3.1), and a
/// VLAN tag.
pub const MAX_GSO_FRAME: u32 = 65_536 + ETHERNET_HEADER + VLAN_TAG;
/// The least payload of a segment in bytes: the least segment of TCP, 48 bytes, less 40 of options. A smaller one would make
/// thousands of frames of one.
pub const MIN_GSO_SIZE: u16 = 8;

/// Length of an IPv4 header without options in bytes.
const IPV4_HEADER: u32 = 20;
/// Length of an IPv6 header in bytes.
const IPV6_HEADER: u32 = 40;
/// Length of a TCP header without options in bytes.
const TCP_HEADER: u32 = 20;
/// Where the checksum is in a TCP header, in bytes.
const TCP_CHECKSUM: u16 = 16;

bitflags! {
    /// What may be left to be done to frames: by whoever sends them, where the stack below does it
    /// ([`NetCaps::tx_offloads`](super::NetCaps::tx_offloads)); by the stack below, where the receiver does it or need not
    /// ([`NetRequest::accepts`](super::NetRequest::accepts)).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Offloads: u8 {
        /// The checksum of TCP or UDP.
        const CSUM = 1 << 0;
        /// Cutting TCP over IPv4 into segments. Goes with [`Offloads::CSUM`] only.
        const TSO4 = 1 << 1;
        /// Cutting TCP over IPv6 into segments. Goes with [`Offloads::CSUM`] only.
        const TSO6 = 1 << 2;
        /// Cutting TCP with the CWR bit of explicit congestion notification. Goes with one of the two above only.
        const ECN = 1 << 3;
    }
}

impl Offloads {
    /// Both ways of cutting TCP.
    pub const TSO: Self = Self::TSO4.union(Self::TSO6);

    /// Without those that lack what they go with (VIRTIO 1.2, section 5.1.3.1).
    #[must_use]
    pub const fn sound(self) -> Self {
        if !self.contains(Self::CSUM) {
            return Self::empty();
        }
        if self.intersects(Self::TSO) { self } else { self.difference(Self::ECN) }
    }
}

/// What a frame's sender left to be done, or its receiver need not do: the fields of `struct virtio_net_hdr` (VIRTIO 1.2,
/// section 5.1.6), which the host's tap devices have too. The default is a frame as it goes over the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Offload {
    /// `VIRTIO_NET_HDR_F_*`.
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_*`; 0 for a frame that is not to be cut.
    pub gso_type: u8,
    /// Length of the headers that every segment repeats, in bytes. Only a hint: nothing may rely on it.
    pub hdr_len: u16,
    /// Payload of each segment in bytes.
    pub gso_size: u16,
    /// Where the checksum starts, in bytes.
    pub csum_start: u16,
    /// Where the checksum is to be put, in bytes from there.
    pub csum_offset: u16,
}

/// Fields of a virtio header that do not describe the frame behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadOffload {
    /// A way of cutting that is not known: IPv4 fragments and UDP are not cut.
    #[error("a frame cannot be cut as gso_type {0}: 1 and 4 are possible, each with 0x80")]
    Type(u8),
    /// A frame is to be cut, but not to be summed up, which cannot be.
    #[error("a frame is to be cut whose checksum is not left to be done")]
    NoChecksum,
    /// No segment can have that payload.
    #[error(
        "segments cannot have a payload of {0} bytes: {MIN_GSO_SIZE} are the least, and they must fit the MTU"
    )]
    Size(u16),
    /// The checksum is not within the frame, or not where its protocol has it.
    #[error("the checksum cannot start at {start} and stand {offset} bytes behind, in a frame of {len}")]
    Checksum {
        /// Where it starts, in bytes.
        start: u16,
        /// Where it is put, in bytes from there.
        offset: u16,
        /// Length of the frame in bytes.
        len: u64,
    },
    /// The frame's own headers are others than those that it is to be cut by, or not whole.
    #[error("the headers of the frame are not those that it is to be cut by")]
    Headers,
}

impl Offload {
    /// Length of the fields in a virtio header in bytes.
    pub const LEN: usize = 10;
    /// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the checksum is left to be done.
    pub const NEEDS_CSUM: u8 = 1;
    /// `VIRTIO_NET_HDR_F_DATA_VALID`: the checksum was looked at already; only on frames that are received.
    pub const DATA_VALID: u8 = 2;
    /// `VIRTIO_NET_HDR_GSO_TCPV4`.
    pub const GSO_TCPV4: u8 = 1;
    /// `VIRTIO_NET_HDR_GSO_TCPV6`.
    pub const GSO_TCPV6: u8 = 4;
    /// `VIRTIO_NET_HDR_GSO_ECN`, beside one of the above.
    pub const GSO_ECN: u8 = 0x80;

    /// The fields as they stand in a virtio header.
    #[inline]
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
    #[inline]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, word) in [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset].iter().enumerate()
        {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The note of a frame with nothing left to be done to it.
    pub(super) const PLAIN_NOTE: [u64; 2] = [0; 2];

    /// The bits of a note's first word that are zero where a frame is [plain](Offload::is_plain).
    pub(super) const NOT_PLAIN: u64 = 0xff00 | Self::NEEDS_CSUM as u64;

    /// The fields as the note at a list: those of a virtio header, and zeroes.
    #[inline]
    pub(super) fn to_note(self) -> [u64; 2] {
        let words = [self.hdr_len, self.gso_size, self.csum_start].map(u64::from);
        let first = u64::from(self.flags) | u64::from(self.gso_type) << 8;
        [first | words[0] << 16 | words[1] << 32 | words[2] << 48, u64::from(self.csum_offset)]
    }

    #[inline]
    pub(super) fn from_note([first, second]: [u64; 2]) -> Self {
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
        self.gso_type == 0 && self.flags & Self::NEEDS_CSUM == 0
    }

    /// Whether nothing at all is said of the frame: it is plain, and nobody looked at its checksum.
    #[inline]
    pub fn is_bare(self) -> bool {
        self == Self::default()
    }

    /// Whether the frame is to be cut.
    #[inline]
    pub const fn is_gso(self) -> bool {
        self.gso_type != 0
    }

    /// Checks the fields for a frame of `len` bytes, and says which offloads it takes to send or receive it. What the frame
    /// holds is not looked at: its sender may change it at any time.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(self, len: u64) -> Result<Offloads, BadOffload> {
        if self.is_plain() {
            return Ok(Offloads::empty());
        }
        let (start, offset) = (self.csum_start, self.csum_offset);
        let misplaced = Err(BadOffload::Checksum { start, offset, len });
        if self.flags & Self::NEEDS_CSUM == 0 {
            return Err(BadOffload::NoChecksum);
        }
        if u32::from(start) < ETHERNET_HEADER || u64::from(start) + u64::from(offset) + 2 > len {
            return misplaced;
        }
        if !self.is_gso() {
            return Ok(Offloads::CSUM);
        }
        let (cuts, ip_header) = match self.gso_type & !Self::GSO_ECN {
            Self::GSO_TCPV4 => (Offloads::TSO4, IPV4_HEADER),
            Self::GSO_TCPV6 => (Offloads::TSO6, IPV6_HEADER),
            _ => return Err(BadOffload::Type(self.gso_type)),
        };
        let headers_fit = u32::from(start) >= ETHERNET_HEADER + ip_header
            && u64::from(start) + u64::from(TCP_HEADER) <= len
            && offset == TCP_CHECKSUM;
        if !headers_fit {
            return misplaced;
        }
        if self.gso_size < MIN_GSO_SIZE {
            return Err(BadOffload::Size(self.gso_size));
        }
        let ecn = if self.gso_type & Self::GSO_ECN == 0 { Offloads::empty() } else { Offloads::ECN };
        Ok(Offloads::CSUM | cuts | ecn)
    }

    /// Whether segments as these fields want them fit an MTU.
    pub(super) fn fits(self, mtu: u16) -> bool {
        let headers = IPV4_HEADER + TCP_HEADER;
        !self.is_gso() || u32::from(self.gso_size) + headers <= u32::from(mtu)
    }

    /// What a sender may say of a frame of `len` bytes: without flags of the receiving direction and unknown ones, which are
    /// to be ignored, and with a hint that is not beyond the frame.
    #[must_use]
    pub fn as_sent(self, len: u64) -> Self {
        let hdr_len = u16::try_from(len).map_or(self.hdr_len, |len| self.hdr_len.min(len));
        Self { flags: self.flags & Self::NEEDS_CSUM, hdr_len, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP4: Offload =
        Offload { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1460, csum_start: 34, csum_offset: 16 };

    #[test]
    fn metadata_stands_as_in_a_virtio_header() {
        let bytes = [1, 4, 54, 0, 0xb4, 5, 34, 0, 16, 0];
        let offload = Offload::from_bytes(bytes);
        assert_eq!(offload, Offload { gso_type: 4, ..TCP4 });
        assert_eq!(offload.to_bytes(), bytes);
        assert_eq!(Offload::from_note(offload.to_note()), offload);
        assert_eq!(Offload::default().to_note(), Offload::PLAIN_NOTE);
        assert!(!offload.is_plain() && Offload::default().is_plain());
        for (flags, gso_type) in [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (0, 0x80), (2, 4), (0xfe, 0)] {
            let offload = Offload { flags, gso_type, ..TCP4 };
            assert_eq!(offload.to_note()[0] & Offload::NOT_PLAIN == 0, offload.is_plain());
        }
    }

    #[test]
    fn what_describes_a_frame_is_sound() {
        let all = Offloads::CSUM | Offloads::TSO4;
        assert_eq!(Offload::default().check(0), Ok(Offloads::empty()));
        assert_eq!(Offload { flags: 6, ..Offload::default() }.check(60), Ok(Offloads::empty()));
        assert_eq!(TCP4.check(64_000), Ok(all));
        assert_eq!(Offload { gso_type: 0x81, ..TCP4 }.check(64_000), Ok(all | Offloads::ECN));
        let six = Offload { gso_type: 4, csum_start: 54, ..TCP4 };
        assert_eq!(six.check(64_000), Ok(Offloads::CSUM | Offloads::TSO6));
        let udp = Offload { flags: 1, csum_start: 34, csum_offset: 6, ..Offload::default() };
        assert_eq!((udp.check(42), udp.check(41).is_err()), (Ok(Offloads::CSUM), true));
        // The end of the headers is the end of the frame.
        assert_eq!((TCP4.check(54), TCP4.check(53).is_err()), (Ok(all), true));
    }

    #[test]
    fn what_describes_no_frame_is_not() {
        let bad = |offload: Offload| offload.check(1000).unwrap_err();
        assert_eq!(bad(Offload { flags: 0, ..TCP4 }), BadOffload::NoChecksum);
        assert_eq!(bad(Offload { flags: 2, ..TCP4 }), BadOffload::NoChecksum);
        for gso_type in [2, 3, 5, 0x80, 0x83, 0xff] {
            assert_eq!(bad(Offload { gso_type, ..TCP4 }), BadOffload::Type(gso_type));
        }
        for gso_size in [0, MIN_GSO_SIZE - 1] {
            assert_eq!(bad(Offload { gso_size, ..TCP4 }), BadOffload::Size(gso_size));
        }
        for (csum_start, csum_offset) in
            [(0, 16), (13, 16), (33, 16), (34, 15), (34, 6), (981, 16), (u16::MAX, 16), (34, u16::MAX)]
        {
            let error = bad(Offload { csum_start, csum_offset, ..TCP4 });
            assert!(matches!(error, BadOffload::Checksum { .. }), "{csum_start}, {csum_offset}: {error}");
        }
        let six = Offload { gso_type: 4, csum_start: 53, ..TCP4 };
        assert!(six.check(1000).is_err(), "an IPv6 header is longer");
    }

    #[test]
    fn offloads_that_lack_what_they_go_with_are_none() {
        assert_eq!((Offloads::TSO | Offloads::ECN).sound(), Offloads::empty());
        assert_eq!((Offloads::CSUM | Offloads::ECN).sound(), Offloads::CSUM);
        assert_eq!(Offloads::all().sound(), Offloads::all());
    }

    #[test]
    fn a_sender_says_only_what_is_its_to_say() {
        let said = Offload { flags: 0xff, hdr_len: 500, ..TCP4 };
        assert_eq!(said.as_sent(100), Offload { flags: 1, hdr_len: 100, ..TCP4 });
        assert_eq!(said.as_sent(70_000), Offload { flags: 1, hdr_len: 500, ..TCP4 });
    }
}
