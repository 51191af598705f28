//! Inputs to start from.

use super::honest::{descriptor, frame, read_chain};
use super::{AVAIL, DATA, GUEST, HEADER, RING};

/// Of a disk and of a card.
pub fn seeds() -> Vec<Vec<u8>> {
    [of_a_disk(), of_a_card()].concat()
}

/// A step that fills memory.
fn write(offset: u64, bytes: &[u8]) -> Vec<u8> {
    [&[0, 5][..], &(offset as u16).to_le_bytes(), &[bytes.len() as u8], bytes].concat()
}

/// A step that cuts the memory, or the log, to so many pages.
fn cut(which: u8, pages: u8) -> [u8; 4] {
    [0, 8, which, pages]
}

/// A step with a region more or less.
fn region(code: u8, kind: u8, places: [(u8, u16); 4]) -> Vec<u8> {
    let places = places.iter().flat_map(|(base, offset)| [&[*base][..], &offset.to_le_bytes()].concat());
    [1, 4, code, kind].into_iter().chain(places).collect()
}

/// Honest lives, a ring with a request in flight in its record, rings that are taken back and moved, odd memory, files that are cut.
fn of_a_disk() -> Vec<Vec<u8>> {
    let offered = [write(0, &read_chain()), write(AVAIL, &[0, 0, 1, 0, 0, 0])].concat();
    let record = [write(0x2008, &[1, 0, 16, 0]), write(0x2010, &[1])].concat();
    let stop = [1, 1, 2, 0, 0, 0];
    let more = region(0, 1, [(7, 0x8000), (0, 0xb000), (7, 0x9000), (0, 0x8000)]);
    let less = region(1, 1, [(7, 0x8000), (0, 0xb000), (7, 0x9000), (0, 0x8000)]);
    vec![
        [&[3][..], &offered].concat(),
        [&[0b1111][..], &offered, &stop, &[0, 6, 0], &stop].concat(),
        [&[0b10011][..], &offered, &record, &stop].concat(),
        [&[3][..], &offered, &more, &less, &more].concat(),
        [
            &[1][..],
            &[1, 3, 0, 0, 2],
            &[1, 2, 0],
            &[2, 0, 0x80, 2, 0, 0x90, 2, 0, 0xa0, 0, 0, 0x80],
            &[0, 6, 0],
        ]
        .concat(),
        [&[3][..], &offered, &[0, 0, 34, 0, 0], &[0, 6, 1], &[0, 0, 24, 20, 0], &[0, 0, 0, 0, 8, 0, 0, 0]]
            .concat(),
        [&[0][..], &[0, 7, 12, 5, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0, 0]].concat(),
        [&[3][..], &offered, &cut(0, 0), &[0, 6, 0]].concat(),
        [&[3][..], &offered, &cut(0, 8), &cut(0, 0x20), &[0, 6, 0]].concat(),
        [&[0b1111][..], &offered, &cut(1, 0), &[0, 6, 1]].concat(),
    ]
}

/// Frames there and back, with several buffers, without any, and with bytes for a header; commands; pairs and memory that come and go under
/// buffers that were offered; files that are cut.
fn of_a_card() -> Vec<Vec<u8>> {
    let frame = frame();
    let buffer = write(0, &descriptor(GUEST + DATA, 0x600, 2, 0));
    let pieces =
        write(0, &[descriptor(GUEST + DATA, 20, 2, 0), descriptor(GUEST + DATA + 20, 100, 2, 0)].concat());
    let offer = |ring: u64, heads: &[u16]| {
        let heads: Vec<u8> = heads.iter().flat_map(|head| head.to_le_bytes()).collect();
        write(ring * RING + AVAIL, &[&[0, 0, heads.len() as u8 / 2, 0], &heads[..]].concat())
    };
    let send = |frame: &[u8]| {
        let chain = descriptor(GUEST + HEADER, frame.len() as u32, 0, 0);
        [write(HEADER, frame), write(RING, &chain), offer(1, &[0])].concat()
    };
    let one = [buffer.clone(), offer(0, &[0]), send(&frame)].concat();
    let two = [pieces, offer(0, &[0, 1]), send(&frame)].concat();
    let mut garbage = frame;
    garbage[..12].copy_from_slice(&[1, 0x84, 9, 0, 1, 0, 200, 0, 0xff, 0xff, 3, 0]);
    let command = |ring: u64, bytes: &[u8]| {
        let at = GUEST + DATA + 0x800;
        let chain = [descriptor(at, bytes.len() as u32, 1, 1), descriptor(at + 0x100, 1, 2, 0)].concat();
        [write(DATA + 0x800, bytes), write(ring * RING, &chain), offer(ring, &[0])].concat()
    };
    let stop = |ring: u8| [1, 1, 2, ring, 0, 0];
    let more = region(0, 1, [(7, 0x8000), (0, 0xb000), (7, 0x9000), (0, 0x8000)]);
    let less = region(1, 1, [(7, 0x8000), (0, 0xb000), (7, 0x9000), (0, 0x8000)]);
    // The rings, and none of the buffers.
    let rings_only = region(2, 7, [(1, 0x8000), (0, 0xe000), (2, 0x8000), (0, 0x8000)]);
    vec![
        [&[0x27][..], &one].concat(),
        [&[0x27][..], &two].concat(),
        [&[0x2f][..], &send(&frame), &stop(0), &stop(1)].concat(),
        [&[0xa7][..], &buffer, &offer(0, &[0]), &send(&garbage)].concat(),
        [&[0x37][..], &one, &command(4, &[4, 0, 2, 0]), &[0, 6, 4], &stop(2), &stop(4)].concat(),
        [&[0x73][..], &command(2, &[0, 0, 0]), &[0, 6, 1], &one].concat(),
        [&[0x37][..], &one, &more, &rings_only, &[0, 6, 1], &less, &[0, 0, 34, 0, 0]].concat(),
        // Either queue of the pair alone.
        [&[0x23][..], &one].concat(),
        [&[0x25][..], &one].concat(),
        [&[0x27][..], &one, &cut(0, 0), &[0, 6, 1]].concat(),
        [&[0x2f][..], &cut(0, 8), &one, &cut(1, 0), &[0, 6, 1]].concat(),
    ]
}
