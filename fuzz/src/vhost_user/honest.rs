//! The honest front-end that comes last.

use super::{AVAIL, DATA, FrontEnd, GUEST, HANG, HEADER, RING, Rig, SIZE, STATUS, USED, Victim};
use iovirt_core::doorbell::Doorbell;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Length of the header before a frame, and of the frame.
const NET_HEADER: usize = 12;
const FRAME: usize = 60;
/// After that a frame counts as lost: it came before there was anything to receive into.
const LOST: Duration = Duration::from_millis(50);

/// A descriptor of a ring.
pub(super) fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> Vec<u8> {
    [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
}

/// A read of a disk's first sector.
pub(super) fn read_chain() -> Vec<u8> {
    let chain = [
        descriptor(GUEST + HEADER, 16, 1, 1),
        descriptor(GUEST + DATA, 512, 3, 2),
        descriptor(GUEST + STATUS, 1, 2, 0),
    ];
    chain.concat()
}

/// A frame to another station than the card, which takes it where it was told nothing, and the header before it.
pub(super) fn frame() -> [u8; NET_HEADER + FRAME] {
    let mut bytes = [0; NET_HEADER + FRAME];
    bytes[NET_HEADER..].fill(7);
    bytes[NET_HEADER..NET_HEADER + 6].copy_from_slice(&[2, 0, 0, 0, 1, 0]);
    bytes
}

impl Rig {
    pub(super) fn must_serve(&self) {
        self.refresh();
        match self.victim {
            Victim::Disk => self.must_read(),
            Victim::Card => self.must_carry(),
        }
        self.ends.recv_timeout(HANG).expect("the session ends");
    }

    fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_exact_at(&mut bytes, offset).expect("memory");
        bytes
    }

    /// How many chains were returned.
    fn used(&self, ring: u64) -> u16 {
        u16::from_le_bytes(self.get(ring * RING + USED + 2))
    }

    /// Makes the ring's first chain available, for the so-manieth time.
    fn offer(&self, ring: u64, count: u16) {
        self.put(ring * RING + AVAIL + 2, &count.to_le_bytes());
    }

    fn must_read(&self) {
        self.put(HEADER, &[0; 16]);
        self.put(STATUS, &[0xff]);
        self.put(0, &read_chain());
        self.offer(0, 1);
        let mut session = FrontEnd::new(self);
        session.let_serve();
        session.begin(0b11);
        let begun = Instant::now();
        while self.used(0) != 1 {
            assert!(begun.elapsed() < HANG, "an honest request is not served");
            std::thread::yield_now();
        }
        assert_eq!(self.get(STATUS), [0], "an honest request fails");
    }

    fn must_carry(&self) {
        self.put(HEADER, &frame());
        self.put(DATA, &[0xff; NET_HEADER + FRAME]);
        self.put(0, &descriptor(GUEST + DATA, 0x600, 2, 0));
        self.put(RING, &descriptor(GUEST + HEADER, (NET_HEADER + FRAME) as u32, 0, 0));
        let mut sent = 1;
        self.offer(0, 1);
        self.offer(1, sent);
        let mut session = FrontEnd::new(self);
        session.let_serve();
        session.begin(0b10_0111);
        let (begun, mut looked) = (Instant::now(), Instant::now());
        while self.used(0) != 1 {
            assert!(begun.elapsed() < HANG, "an honest frame does not come back");
            if looked.elapsed() > LOST && self.used(1) == sent && sent < SIZE as u16 {
                sent += 1;
                self.offer(1, sent);
                self.doorbells.iter().for_each(Doorbell::ring);
                looked = Instant::now();
            }
            std::thread::yield_now();
        }
        let mut whole = frame();
        // It says how many buffers the frame is in.
        whole[10] = 1;
        assert_eq!(self.get(DATA), whole, "another frame comes back");
    }
}
