//! A front-end by hand: what it says, one thing after the other, and the files behind the memory that it shares, which it may shorten.

use super::raw::{ALL_PROTOCOL, LOG_ALL, Raw, code, longs, words};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::raw::duplicate;

/// What each file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shared {
    Ring,
    Buffers,
    DirtyLog,
    ChainsInFlight,
}

impl Shared {
    pub(crate) const ALL: [Self; 4] = [Self::Ring, Self::Buffers, Self::DirtyLog, Self::ChainsInFlight];
}

/// What a front-end says of a device with one ring.
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
}

const GUEST: u64 = 0x10_0000;
const LEN: u64 = 0x1_0000;
const SIZE: u16 = 64;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

/// It sits on files that are not sealed, and touches them by calls only: a bus error would be its own.
pub(crate) struct Cutter {
    raw: Raw,
    files: [File; 4],
    kick: EventFd,
    offered: u16,
}

impl Cutter {
    /// A driver of a disk whose one ring runs; all that it writes is logged and noted.
    pub(crate) fn connect(path: &Path) -> Self {
        let cutter = Self::silent(path);
        for step in Step::USUAL {
            assert_eq!(cutter.tell(step), 0, "{step:?}");
        }
        cutter
    }

    /// One that has said nothing yet.
    pub(crate) fn silent(path: &Path) -> Self {
        let files = [LEN, LEN, 4096, LEN].map(|len| {
            let file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
            file.set_len(len).unwrap();
            file
        });
        Self { raw: Raw::connect(path), files, kick: EventFd::new(EFD_NONBLOCK).unwrap(), offered: 0 }
    }

    /// Says it, and gives what became of it: zero for success. Protocol features are never answered.
    pub(crate) fn tell(&self, step: Step) -> u64 {
        if step == Step::Protocol {
            self.say(step);
            return 0;
        }
        let (code, payload, fds) = self.message(step);
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(OwnedFd::as_fd).collect();
        self.raw.tell_with(code, &payload, &fds)
    }

    /// Says it without a wish for an answer.
    pub(crate) fn say(&self, step: Step) {
        let (code, payload, fds) = self.message(step);
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

    fn message(&self, step: Step) -> (u32, Vec<u8>, Vec<OwnedFd>) {
        let [ring, buffers, log, record] = &self.files;
        let copies = |files: &[&File]| files.iter().map(|file| file.try_clone().unwrap().into()).collect();
        match step {
            Step::Protocol => (code::SET_PROTOCOL_FEATURES, longs(&[ALL_PROTOCOL]), vec![]),
            Step::Features => (code::SET_FEATURES, longs(&[1 << 32 | 1 << 30 | LOG_ALL]), vec![]),
            Step::Memory => {
                let table = [
                    words(&[2, 0]),
                    longs(&[GUEST, LEN, GUEST, 0]),
                    longs(&[GUEST + LEN, LEN, GUEST + LEN, 0]),
                ];
                (code::SET_MEM_TABLE, table.concat(), copies(&[ring, buffers]))
            }
            Step::Log => (code::SET_LOG_BASE, longs(&[4096, 0]), copies(&[log])),
            Step::Record => {
                let [one, size] = [1_u16, SIZE].map(u16::to_le_bytes);
                let spec = [longs(&[LEN, 0]), one.to_vec(), size.to_vec()].concat();
                (code::SET_INFLIGHT_FD, spec, copies(&[record]))
            }
            Step::Size => (code::SET_VRING_NUM, words(&[0, SIZE.into()]), vec![]),
            Step::Addresses => {
                let addresses = longs(&[GUEST, GUEST + USED, GUEST + AVAIL, 0]);
                (code::SET_VRING_ADDR, [words(&[0, 0]), addresses].concat(), vec![])
            }
            Step::Kick => (code::SET_VRING_KICK, longs(&[0]), vec![duplicate(&self.kick)]),
            Step::Enable => (code::SET_VRING_ENABLE, words(&[0, 1]), vec![]),
        }
    }

    fn file(&self, shared: Shared) -> &File {
        &self.files[shared as usize]
    }

    /// Makes a read of the disk available, into the buffers, without the doorbell.
    pub(crate) fn offer(&mut self) {
        self.offered += 1;
        let ring = self.file(Shared::Ring);
        let buffer = |offset: u64| GUEST + LEN + offset;
        let descriptor = |address: u64, len: u32, flags: u16, next: u16| {
            [longs(&[address]), words(&[len, u32::from(flags) | u32::from(next) << 16])].concat()
        };
        let table = [
            descriptor(buffer(0), 16, 1, 1),
            descriptor(buffer(0x2000), 4096, 3, 2),
            descriptor(buffer(0x1000), 1, 2, 0),
        ];
        ring.write_all_at(&table.concat(), 0).unwrap();
        self.file(Shared::Buffers).write_all_at(&[0; 16], 0).unwrap();
        ring.write_all_at(&self.offered.to_le_bytes(), AVAIL + 2).unwrap();
    }

    pub(crate) fn ring_doorbell(&self) {
        self.kick.write(1).unwrap();
    }

    /// How many were returned.
    pub(crate) fn used(&self) -> u16 {
        let mut index = [0; 2];
        self.file(Shared::Ring).read_exact_at(&mut index, USED + 2).unwrap();
        u16::from_le_bytes(index)
    }

    /// Takes the whole file away.
    pub(crate) fn cut(&self, shared: Shared) {
        self.file(shared).set_len(0).unwrap();
    }

    /// Whether the server has ended the connection; waits for that.
    pub(crate) fn is_disconnected(&self) -> bool {
        let ends = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset];
        self.raw.answer().is_err_and(|error| ends.contains(&error.kind()))
    }
}
