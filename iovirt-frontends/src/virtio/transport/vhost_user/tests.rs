//! Messages and tables; whole sessions are in the root package's `tests/vhost_user`.

use super::inflight::InflightSpec;
use super::memory::{MAX_REGIONS, MemoryError, MemoryTable};
use super::message::{Direction, FdPresence, HEADER_LEN, Header, MAX_PAYLOAD, encode, number, ring_and_fd};
use iovirt_core::dma::{MapError, ShrinkWatch, shared_memory};
use std::os::fd::OwnedFd;
use vhost::vhost_user::message::VhostUserMemoryRegion;

fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER_LEN] {
    let bytes: Vec<u8> = [request, flags, size].iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.try_into().unwrap()
}

#[test]
fn headers_of_another_version_and_of_endless_messages_are_none() {
    for flags in [0, 2, 3, 0xffff_fffe] {
        assert_eq!(Header::parse(header(1, flags, 0)), None, "{flags:#x}");
    }
    assert_eq!(Header::parse(header(1, 1, MAX_PAYLOAD as u32 + 1)), None);
    assert_eq!(Header::parse(header(1, 1, u32::MAX)), None);
    let longest = Header::parse(header(1, 1, MAX_PAYLOAD as u32)).unwrap();
    assert!(longest.code().is_some() && !longest.needs_reply());
    assert!(Header::parse(header(1, 9, 0)).unwrap().needs_reply());
    for unknown in [0, 99, u32::MAX] {
        assert!(Header::parse(header(unknown, 1, 0)).unwrap().code().is_none(), "{unknown}");
    }
}

#[test]
fn what_is_encoded_is_a_header_and_its_payload() {
    let bytes = encode(11, Direction::Reply, &[7; 8]);
    assert_eq!(bytes, [&header(11, 5, 8)[..], &[7; 8]].concat());
    assert_eq!(encode(2, Direction::Request, &[]), header(2, 1, 0));
    assert_eq!(number(&bytes[12..]), Some(0x0707_0707_0707_0707));
    assert_eq!(number(&bytes[..7]), None);
    assert_eq!(number(&bytes[..9]), None);
}

#[test]
fn a_ring_and_its_descriptor_are_in_nine_bits() {
    let payload = |value: u64| ring_and_fd(&value.to_le_bytes());
    assert_eq!(payload(0xff), Some((0xff, FdPresence::Attached)));
    assert_eq!(payload(0x103), Some((3, FdPresence::None)));
    assert_eq!(payload(0x200), None);
    assert_eq!(payload(1 << 63), None);
    assert_eq!(ring_and_fd(&[0; 4]), None);
}

fn region(guest: u64, len: u64, user: u64) -> VhostUserMemoryRegion {
    VhostUserMemoryRegion::new(guest, len, user, 0)
}

#[test]
fn addresses_of_the_front_end_are_found_to_the_last_byte() {
    let file = OwnedFd::from(shared_memory(0x3000).unwrap());
    let mut memory = MemoryTable::new(ShrinkWatch::new().unwrap());
    memory.add(&region(0x1000, 0x2000, 0x7000_0000), &file).unwrap();
    memory.add(&region(0x8000, 0x1000, 0x6fff_f000), &file).unwrap();
    assert_eq!(memory.physical(0x7000_0000), Some(0x1000));
    assert_eq!(memory.physical(0x7000_1fff), Some(0x2fff));
    assert_eq!(memory.physical(0x7000_2000), None);
    assert_eq!(memory.physical(0x6fff_ffff), Some(0x8fff));
    assert_eq!(memory.physical(0x6fff_efff), None);
    assert!(memory.map(None).is_ok());
    // Another length, another place: another region.
    for other in [region(0x1000, 0x1000, 0x7000_0000), region(0x1000, 0x2000, 0x7000_1000)] {
        assert_eq!(memory.remove(&other).unwrap_err(), MemoryError::NoSuchRegion);
    }
    memory.remove(&region(0x1000, 0x2000, 0x7000_0000)).unwrap();
    assert_eq!(memory.physical(0x7000_0000), None);
}

#[test]
fn regions_that_cannot_be_are_refused() {
    let file = OwnedFd::from(shared_memory(0x3000).unwrap());
    let mut memory = MemoryTable::new(ShrinkWatch::new().unwrap());
    memory.add(&region(0x1000, 0x1000, 0x5000), &file).unwrap();
    let cases = [
        (region(0x10_0000, 0x1000, 0x5fff), MemoryError::UserOverlap(0x5fff)),
        (region(0x10_0000, 0x2000, 0x4000), MemoryError::UserOverlap(0x5000)),
        (
            region(0x10_0000, 0x1000, u64::MAX - 5),
            MapError::Overflow { base: u64::MAX - 5, len: 0x1000 }.into(),
        ),
        (
            region(u64::MAX - 5, 0x1000, 0x10_0000),
            MapError::Overflow { base: u64::MAX - 5, len: 0x1000 }.into(),
        ),
        (region(0x10_0000, 0, 0x10_0000), MapError::EmptyRegion { base: 0x10_0000 }.into()),
        (
            region(0x10_0000, 0x3001, 0x10_0000),
            MapError::BeyondFile { base: 0x10_0000, file_len: 0x3000 }.into(),
        ),
    ];
    for (region, error) in cases {
        assert_eq!(memory.add(&region, &file).unwrap_err(), error);
    }
    // Those that overlap for the guest are found when the map is made.
    memory.add(&region(0x1800, 0x1000, 0x10_0000), &file).unwrap();
    assert!(memory.map(None).is_err());
}

#[test]
fn there_is_an_end_of_regions() {
    let file = OwnedFd::from(shared_memory(0x1000).unwrap());
    let mut memory = MemoryTable::new(ShrinkWatch::new().unwrap());
    let nth = |at: usize| region(at as u64 * 0x1000, 0x1000, at as u64 * 0x1000);
    (0..MAX_REGIONS).for_each(|at| memory.add(&nth(at), &file).unwrap());
    assert_eq!(memory.add(&nth(MAX_REGIONS), &file).unwrap_err(), MemoryError::TooMany);
}

#[test]
fn a_record_of_chains_in_flight_has_queues_of_a_size() {
    let spec = InflightSpec { mmap_size: 4096, mmap_offset: 64, queues: 2, queue_size: 128 };
    let bytes = spec.encode();
    assert_eq!(InflightSpec::parse(&bytes), Some(spec));
    assert_eq!(InflightSpec::parse(&bytes[..20]), Some(spec));
    for len in [0, 19, 21, 23] {
        assert_eq!(InflightSpec::parse(&bytes[..len]), None);
    }
    for wrong in [(0, 128), (1, 0), (1, 32769)] {
        let spec = InflightSpec { queues: wrong.0, queue_size: wrong.1, ..spec };
        assert_eq!(InflightSpec::parse(&spec.encode()), None, "{wrong:?}");
    }
}
