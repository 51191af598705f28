//! Frames of TCP over IPv4 as a driver of a card with offloads makes them: with a virtio header, and without checksums.

use std::net::Ipv4Addr;

pub(crate) const CSUM: u64 = 1;
pub(crate) const GUEST_CSUM: u64 = 1 << 1;
pub(crate) const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
pub(crate) const GUEST_TSO4: u64 = 1 << 7;
pub(crate) const HOST_TSO4: u64 = 1 << 11;

/// Length of a virtio header in bytes.
pub(crate) const HEADER: usize = 12;
/// Length of the headers of a frame without options in bytes.
pub(crate) const HEADERS: usize = 54;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) mac: [u8; 6],
    pub(crate) address: Ipv4Addr,
    pub(crate) port: u16,
}

/// What a segment says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Segment<'a> {
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
    pub(crate) flags: u8,
    pub(crate) payload: &'a [u8],
}

/// The one's complement sum of words, folded.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let mut bytes = parts.concat();
    bytes.resize(bytes.len().next_multiple_of(2), 0);
    let sum: u32 = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The sum of the pseudo header of a frame that is as long as that (RFC 9293).
fn pseudo(frame: &[u8]) -> u16 {
    sum(&[&frame[26..34], &[0, 6], &((frame.len() - 34) as u16).to_be_bytes()])
}

/// A frame with the sum of its pseudo header in place of its checksum.
pub(crate) fn frame(from: End, to: End, segment: Segment<'_>) -> Vec<u8> {
    let mut frame = [&to.mac[..], &from.mac, &[8, 0]].concat();
    let total = (40 + segment.payload.len()) as u16;
    let mut ip = [0x45, 0, 0, 0, 0, 9, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip[12..16].copy_from_slice(&from.address.octets());
    ip[16..].copy_from_slice(&to.address.octets());
    let check = !sum(&[&ip]);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    frame.extend(ip);
    frame.extend([from.port.to_be_bytes(), to.port.to_be_bytes()].concat());
    frame.extend([segment.sequence.to_be_bytes(), segment.acknowledged.to_be_bytes()].concat());
    frame.extend([0x50, segment.flags, 0xff, 0xff, 0, 0, 0, 0]);
    frame.extend(segment.payload);
    let pseudo = pseudo(&frame);
    frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
    frame
}

/// The virtio header that leaves the checksum of such a frame to be done.
pub(crate) fn unsummed() -> [u8; HEADER] {
    [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]
}

/// The one that leaves it to be cut too.
pub(crate) fn uncut(size: u16) -> [u8; HEADER] {
    let [low, high] = size.to_le_bytes();
    [1, 1, HEADERS as u8, 0, low, high, 34, 0, 16, 0, 0, 0]
}

/// What a frame of TCP over IPv4 says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) sequence: u32,
    pub(crate) acknowledged: u32,
    pub(crate) flags: u8,
    pub(crate) payload: Vec<u8>,
}

/// Reads a frame to that port, and holds it to its checksums: that of TCP is made, or left to be done; `None` for any other.
pub(crate) fn read(frame: &[u8], to_port: u16, is_summed: bool) -> Option<Said> {
    let is_ours = frame.get(12..14)? == [8, 0] && frame.get(23)? == &6;
    if !is_ours || frame.get(36..38)? != to_port.to_be_bytes() {
        return None;
    }
    assert_eq!(sum(&[&frame[14..34]]), 0xffff, "the checksum of the IPv4 header");
    let len = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    let frame = &frame[..len];
    if is_summed {
        let parts: [&[u8]; 2] = [&pseudo(frame).to_be_bytes(), &frame[34..]];
        assert_eq!(sum(&parts), 0xffff, "the checksum of TCP");
    } else {
        assert_eq!(frame[50..52], pseudo(frame).to_be_bytes(), "the sum of the pseudo header");
    }
    let word = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
    let payload = 34 + usize::from(frame[46] >> 4) * 4;
    Some(Said {
        sequence: word(38),
        acknowledged: word(42),
        flags: frame[47],
        payload: frame[payload..].to_vec(),
    })
}

/// Bytes of which no two stretches are alike.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    iovirt_core::test_utils::Rng::new(seed).fill(&mut bytes);
    bytes
}
