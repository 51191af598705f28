//! Doing in software what a frame's sender left to be done: for a network whose receiver does not do it.
//!
//! All of it works on bytes that nobody else can change, and trusts none of them.

use super::offload::{BadOffload, Offload};

const ETHERTYPE: usize = 12;
const IPV4: [u8; 2] = [8, 0];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// Of a VLAN tag, and of the outer one of two.
const TAGS: [[u8; 2]; 2] = [[0x81, 0], [0x88, 0xa8]];
const TCP: u8 = 6;

const FIN_OR_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// The one's complement sum of big-endian words (RFC 1071), folded to 16 bits. An odd byte counts as the upper half of a word.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2);
    let odd = words.remainder().first().map_or(0, |byte| u64::from(*byte) << 8);
    fold(words.fold(odd, |sum, word| sum + u64::from(u16::from_be_bytes([word[0], word[1]]))))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum of what sums up to that. Zero stands for "no checksum" in UDP, and is the same as this in all others.
fn complement(sum: u16) -> [u8; 2] {
    let value = !sum;
    (if value == 0 { 0xffff } else { value }).to_be_bytes()
}

fn word(bytes: &[u8], at: usize) -> Option<[u8; 2]> {
    bytes.get(at..at + 2)?.try_into().ok()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Puts the checksum into a frame that was left without. Its place holds the sum of the pseudo header, as the sender put it
/// there.
///
/// # Errors
/// Where the fields do not describe the frame; it is unchanged then.
pub fn add_checksum(frame: &mut [u8], offload: Offload) -> Result<(), BadOffload> {
    offload.check(frame.len() as u64)?;
    if !offload.is_plain() {
        let start = usize::from(offload.csum_start);
        let sum = sum(frame.get(start..).ok_or(BadOffload::Headers)?);
        put(frame, start + usize::from(offload.csum_offset), &complement(sum));
    }
    Ok(())
}

/// A frame of TCP and the segments that it is to be cut into, as they go over the wire.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    frame: &'a [u8],
    /// Where the IP header begins.
    network: usize,
    /// Where the TCP header begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    /// Payload of each segment.
    size: usize,
    is_ipv4: bool,
}

impl<'a> Segments<'a> {
    /// The segments of a frame.
    ///
    /// # Errors
    /// Where the fields do not describe the frame.
    pub fn of(frame: &'a [u8], offload: Offload) -> Result<Self, BadOffload> {
        offload.check(frame.len() as u64)?;
        if !offload.is_gso() {
            return Err(BadOffload::Type(0));
        }
        Self::parse(frame, offload).ok_or(BadOffload::Headers)
    }

    fn parse(frame: &'a [u8], offload: Offload) -> Option<Self> {
        let mut at = ETHERTYPE;
        let mut ethertype = word(frame, at)?;
        for _ in TAGS {
            if TAGS.contains(&ethertype) {
                at += 4;
                ethertype = word(frame, at)?;
            }
        }
        let (network, transport) = (at + 2, usize::from(offload.csum_start));
        let is_ipv4 = offload.gso_type & !Offload::GSO_ECN == Offload::GSO_TCPV4;
        let sound = if is_ipv4 {
            let first = frame.get(network)?;
            ethertype == IPV4
                && first >> 4 == 4
                && network + usize::from(first & 15) * 4 == transport
                && frame.get(network + 9) == Some(&TCP)
        } else {
            // What is between the header and TCP, each segment repeats as it is.
            ethertype == IPV6 && frame.get(network)? >> 4 == 6 && transport >= network + 40
        };
        let tcp_header = usize::from(frame.get(transport + 12)? >> 4) * 4;
        let payload = transport + tcp_header;
        let whole = tcp_header >= 20 && payload <= frame.len();
        let size = usize::from(offload.gso_size);
        (sound && whole).then_some(Self { frame, network, transport, payload, size, is_ipv4 })
    }

    /// How many there are: one at least.
    pub fn count(&self) -> usize {
        (self.frame.len() - self.payload).div_ceil(self.size).max(1)
    }

    /// Length of the longest in bytes.
    pub fn longest(&self) -> usize {
        self.frame.len().min(self.payload + self.size)
    }

    /// Writes segment `index`, below [`Segments::count`], in place of what `to` held.
    pub fn write(&self, index: usize, to: &mut Vec<u8>) {
        let start = (self.payload + index * self.size).min(self.frame.len());
        let end = (start + self.size).min(self.frame.len());
        to.clear();
        to.extend_from_slice(&self.frame[..self.payload]);
        to.extend_from_slice(&self.frame[start..end]);
        self.set_network(index, to);
        self.set_transport(index, end == self.frame.len(), to);
    }

    fn set_network(&self, index: usize, segment: &mut [u8]) {
        let Self { network, transport, .. } = *self;
        let length = segment.len() - network;
        if !self.is_ipv4 {
            return put(segment, network + 4, &(length.saturating_sub(40) as u16).to_be_bytes());
        }
        put(segment, network + 2, &(length as u16).to_be_bytes());
        // Each segment is a packet of its own, and has a number of its own.
        let number = word(segment, network + 4).map_or(0, u16::from_be_bytes).wrapping_add(index as u16);
        put(segment, network + 4, &number.to_be_bytes());
        put(segment, network + 10, &[0, 0]);
        let header = sum(&segment[network..transport]);
        put(segment, network + 10, &(!header).to_be_bytes());
    }

    fn set_transport(&self, index: usize, is_last: bool, segment: &mut [u8]) {
        let at = self.transport;
        let place = at + 16;
        // The sum of the pseudo header counts the length of the whole frame; this one's is to stand there.
        let [whole, length] = [self.frame.len() - at, segment.len() - at].map(|len| fold(len as u64));
        let pseudo = word(segment, place).map_or(0, u16::from_be_bytes);
        let pseudo = fold(u64::from(pseudo) + u64::from(!whole) + u64::from(length));
        put(segment, place, &pseudo.to_be_bytes());
        let bytes = segment.get(at + 4..at + 8).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; 4]);
        let sequence = u32::from_be_bytes(bytes).wrapping_add((index * self.size) as u32);
        put(segment, at + 4, &sequence.to_be_bytes());
        let mut flags = segment[at + 13];
        if !is_last {
            flags &= !FIN_OR_PSH;
        }
        if index > 0 {
            flags &= !CWR;
        }
        segment[at + 13] = flags;
        let sum = sum(&segment[at..]);
        put(segment, place, &complement(sum));
    }
}
