//! A front-end that shortens the files behind the memory that it shares.

use super::raw::{LOG_ALL, Raw, code, longs, words};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
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
        let raw = Raw::connect(path);
        raw.negotiate(1 << 32 | 1 << 30 | LOG_ALL);
        let files = [LEN, LEN, LEN, 4096, LEN].map(|len| {
            let file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
            file.set_len(len).unwrap();
            file
        });
        let cutter = Self { raw, victim, files, kick: EventFd::new(EFD_NONBLOCK).unwrap(), offered: 0 };
        cutter.set_up();
        cutter
    }

    fn set_up(&self) {
        let [ring, buffers, headers, log, record] = &self.files;
        let raw = &self.raw;
        let region = |at: u64| longs(&[at, LEN, at, 0]);
        let table = [words(&[3, 0]), region(GUEST), region(BUFFERS), region(HEADERS)].concat();
        let fds = [ring.as_fd(), buffers.as_fd(), headers.as_fd()];
        assert_eq!(raw.tell_with(code::SET_MEM_TABLE, &table, &fds), 0);
        raw.ask_with(code::SET_LOG_BASE, &longs(&[4096, 0]), &[log.as_fd()]);
        if self.victim.keeps_record() {
            let [one, size] = [1_u16, SIZE].map(u16::to_le_bytes);
            let spec = [longs(&[LEN, 0]), one.to_vec(), size.to_vec()].concat();
            assert_eq!(raw.tell_with(code::SET_INFLIGHT_FD, &spec, &[record.as_fd()]), 0);
        }
        let rings = match self.victim {
            Victim::Disk => 0..1,
            Victim::Card => 0..2,
        };
        rings.for_each(|ring| self.start(ring));
    }

    fn start(&self, ring: u32) {
        let (raw, at) = (&self.raw, GUEST + u64::from(ring) * RING);
        assert_eq!(raw.tell(code::SET_VRING_NUM, &words(&[ring, SIZE.into()])), 0);
        let addresses = [words(&[ring, 0]), longs(&[at, at + USED, at + AVAIL, 0])].concat();
        assert_eq!(raw.tell(code::SET_VRING_ADDR, &addresses), 0);
        let kick = duplicate(&self.kick);
        assert_eq!(raw.tell_with(code::SET_VRING_KICK, &longs(&[ring.into()]), &[kick.as_fd()]), 0);
        assert_eq!(raw.tell(code::SET_VRING_ENABLE, &words(&[ring, 1])), 0);
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

    fn publish(&mut self) {
        self.offered += 1;
        let ring = self.file(Shared::Ring);
        ring.write_all_at(&self.offered.to_le_bytes(), AVAIL + 2).unwrap();
        if self.victim == Victim::Card {
            ring.write_all_at(&self.offered.to_le_bytes(), RING + AVAIL + 2).unwrap();
        }
    }

    fn ring_doorbell(&self) {
        self.kick.write(1).unwrap();
    }

    /// Whether the device serves what is offered: more is, until it does, because a frame that comes before there is anything to receive into
    /// is lost.
    pub(crate) fn is_served(&mut self) -> bool {
        self.prepare();
        self.publish();
        self.ring_doorbell();
        let used = |ring: &File| {
            let mut index = [0; 2];
            ring.read_exact_at(&mut index, USED + 2).unwrap();
            index != [0; 2]
        };
        (0..100).any(|_| {
            std::thread::sleep(Duration::from_millis(1));
            used(self.file(Shared::Ring))
        })
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
