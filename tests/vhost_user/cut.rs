//! A front-end by hand: what it says, one thing after the other, and the files behind the memory that it shares, which it may shorten.

use super::raw::{ALL_PROTOCOL, LOG_ALL, Raw, code, longs, words};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::raw::duplicate;
use super::victim::Victim;

/// What each file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shared {
    Ring,
    /// Data that the device writes into.
    Buffers,
    /// A disk's headers and status, and the frames that a card sends.
    Headers,
    DirtyLog,
    ChainsInFlight,
}

impl Shared {
    /// Those that the device touches.
    pub(crate) fn of(victim: Victim) -> &'static [Self] {
        match victim {
            Victim::Disk => &[Self::Ring, Self::Buffers, Self::Headers, Self::DirtyLog, Self::ChainsInFlight],
            Victim::Card => &[Self::Ring, Self::Buffers, Self::Headers, Self::DirtyLog],
        }
    }
}

/// What a front-end says of a device and one of its rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Protocol,
    Features,
    Memory,
    Log,
    Record,
    Size,
    Addresses,
    Kick,
    Enable,
}

impl Step {
    /// In the order in which all is well.
    pub(crate) const USUAL: [Self; 9] = [
        Self::Protocol,
        Self::Features,
        Self::Memory,
        Self::Log,
        Self::Record,
        Self::Size,
        Self::Addresses,
        Self::Kick,
        Self::Enable,
    ];

    fn is_of_a_ring(self) -> bool {
        matches!(self, Self::Size | Self::Addresses | Self::Kick | Self::Enable)
    }
}

const GUEST: u64 = 0x10_0000;
const LEN: u64 = 0x1_0000;
const SIZE: u16 = 64;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

/// Distance of two rings in their file.
const RING: u64 = 0x4000;
/// Where the file of buffers, and that of headers, is for the guest.
const BUFFERS: u64 = GUEST + LEN;
const HEADERS: u64 = GUEST + 2 * LEN;

/// It sits on files that are not sealed, and touches them by calls only: a bus error would be its own.
pub(crate) struct Cutter {
    raw: Raw,
    victim: Victim,
    files: [File; 5],
    kick: EventFd,
    offered: u16,
}

impl Cutter {
    /// A driver of a disk whose one ring runs, or of a card with a pair of them; all that it writes is logged, and noted where that can be.
    pub(crate) fn connect(path: &Path, victim: Victim) -> Self {
        let cutter = Self::silent(path, victim);
        let rings = match victim {
            Victim::Disk => 0..1,
            Victim::Card => 0..2,
        };
        let (of_rings, of_all): (Vec<Step>, Vec<Step>) =
            Step::USUAL.into_iter().partition(|step| step.is_of_a_ring());
        let of_all = of_all.into_iter().filter(|step| *step != Step::Record || victim.keeps_record());
        for step in of_all {
            assert_eq!(cutter.tell(step), 0, "{step:?}");
        }
        for (ring, &step) in rings.flat_map(|ring| of_rings.iter().map(move |step| (ring, step))) {
            assert_eq!(cutter.tell_of(step, ring), 0, "{step:?} of ring {ring}");
        }
        cutter
    }

    /// One that has said nothing yet.
    pub(crate) fn silent(path: &Path, victim: Victim) -> Self {
        let files = [LEN, LEN, LEN, 4096, LEN].map(|len| {
            let file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
            file.set_len(len).unwrap();
            file
        });
        Self { raw: Raw::connect(path), victim, files, kick: EventFd::new(EFD_NONBLOCK).unwrap(), offered: 0 }
    }

    /// Says it, of the first ring, and gives what became of it: zero for success. Protocol features are never answered.
    pub(crate) fn tell(&self, step: Step) -> u64 {
        self.tell_of(step, 0)
    }

    fn tell_of(&self, step: Step, ring: u32) -> u64 {
        if step == Step::Protocol {
            self.say(step);
            return 0;
        }
        let (code, payload, fds) = self.message(step, ring);
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(OwnedFd::as_fd).collect();
        self.raw.tell_with(code, &payload, &fds)
    }

    /// Says it, of the first ring, without a wish for an answer.
    pub(crate) fn say(&self, step: Step) {
        let (code, payload, fds) = self.message(step, 0);
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(OwnedFd::as_fd).collect();
        let head = (code, 1, payload.len() as u32);
        self.raw.send_as(head, &payload, &fds).expect("it listens");
    }

    /// Asks for what is always answered.
    pub(crate) fn ask(&self) {
        self.raw.ask(code::GET_FEATURES, &[]);
    }

    /// The answer to a message that has one of its own.
    pub(crate) fn skip_answer(&self) {
        self.raw.answer().expect("an answer");
    }

    fn message(&self, step: Step, ring: u32) -> (u32, Vec<u8>, Vec<OwnedFd>) {
        let [rings, buffers, headers, log, record] = &self.files;
        let copies = |files: &[&File]| files.iter().map(|file| file.try_clone().unwrap().into()).collect();
        match step {
            Step::Protocol => {
                (code::SET_PROTOCOL_FEATURES, longs(&[ALL_PROTOCOL & self.victim.protocol()]), vec![])
            }
            Step::Features => (code::SET_FEATURES, longs(&[1 << 32 | 1 << 30 | LOG_ALL]), vec![]),
            Step::Memory => {
                let region = |at: u64| longs(&[at, LEN, at, 0]);
                let table = [words(&[3, 0]), region(GUEST), region(BUFFERS), region(HEADERS)].concat();
                (code::SET_MEM_TABLE, table, copies(&[rings, buffers, headers]))
            }
            Step::Log => (code::SET_LOG_BASE, longs(&[4096, 0]), copies(&[log])),
            Step::Record => {
                let [one, size] = [1_u16, SIZE].map(u16::to_le_bytes);
                let spec = [longs(&[LEN, 0]), one.to_vec(), size.to_vec()].concat();
                (code::SET_INFLIGHT_FD, spec, copies(&[record]))
            }
            Step::Size => (code::SET_VRING_NUM, words(&[ring, SIZE.into()]), vec![]),
            Step::Addresses => {
                let at = GUEST + u64::from(ring) * RING;
                let addresses = longs(&[at, at + USED, at + AVAIL, 0]);
                (code::SET_VRING_ADDR, [words(&[ring, 0]), addresses].concat(), vec![])
            }
            Step::Kick => (code::SET_VRING_KICK, longs(&[ring.into()]), vec![duplicate(&self.kick)]),
            Step::Enable => (code::SET_VRING_ENABLE, words(&[ring, 1]), vec![]),
        }
    }

    fn file(&self, shared: Shared) -> &File {
        &self.files[shared as usize]
    }

    /// Writes the next chains, which the device does not see yet: a read of the disk, or a buffer and a frame that comes back into it.
    fn prepare(&self) {
        let descriptor = |address: u64, len: u32, flags: u16, next: u16| {
            [longs(&[address]), words(&[len, u32::from(flags) | u32::from(next) << 16])].concat()
        };
        let ring = self.file(Shared::Ring);
        match self.victim {
            Victim::Disk => {
                let table = [
                    descriptor(HEADERS, 16, 1, 1),
                    descriptor(BUFFERS, 4096, 3, 2),
                    descriptor(HEADERS + 0x1000, 1, 2, 0),
                ];
                ring.write_all_at(&table.concat(), 0).unwrap();
                self.file(Shared::Headers).write_all_at(&[0; 16], 0).unwrap();
            }
            Victim::Card => {
                ring.write_all_at(&descriptor(BUFFERS, 4096, 2, 0), 0).unwrap();
                ring.write_all_at(&descriptor(HEADERS, 12 + 60, 0, 0), RING).unwrap();
            }
        }
    }

    /// Makes them available, without the doorbell.
    pub(crate) fn offer(&mut self) {
        self.prepare();
        self.publish();
    }

    fn publish(&mut self) {
        self.offered += 1;
        let ring = self.file(Shared::Ring);
        ring.write_all_at(&self.offered.to_le_bytes(), AVAIL + 2).unwrap();
        if self.victim == Victim::Card {
            ring.write_all_at(&self.offered.to_le_bytes(), RING + AVAIL + 2).unwrap();
        }
    }

    pub(crate) fn ring_doorbell(&self) {
        self.kick.write(1).unwrap();
    }

    /// Whether the device serves what is offered: more is, until it does, because a frame that comes before there is anything to receive into
    /// is lost.
    pub(crate) fn is_served(&mut self) -> bool {
        self.offer();
        self.ring_doorbell();
        (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            self.used() != 0
        })
    }

    /// How many chains of the first ring were returned.
    pub(crate) fn used(&self) -> u16 {
        let mut index = [0; 2];
        self.file(Shared::Ring).read_exact_at(&mut index, USED + 2).unwrap();
        u16::from_le_bytes(index)
    }

    /// The status of the last request of a disk; zero for a card, which has none.
    pub(crate) fn status(&self) -> u8 {
        let mut status = [0];
        if self.victim == Victim::Disk {
            self.file(Shared::Headers).read_exact_at(&mut status, 0x1000).unwrap();
        }
        status[0]
    }

    /// Takes the whole file away from under what the device sees only then.
    pub(crate) fn cut(&mut self, shared: Shared) {
        self.prepare();
        self.file(shared).set_len(0).unwrap();
        if shared != Shared::Ring {
            // It would be long enough again.
            self.publish();
        }
        self.ring_doorbell();
    }

    /// Whether the server has ended the connection; waits for that.
    pub(crate) fn is_disconnected(&self) -> bool {
        let ends = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
        self.raw.answer().is_err_and(|error| ends.contains(&error.kind()))
    }
}
