//! A front-end that shortens the files behind the memory that it shares.

use super::raw::{LOG_ALL, Raw, code, longs, words};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::raw::duplicate;

/// What each file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shared {
    Ring,
    /// A request's header and status.
    Headers,
    Data,
    DirtyLog,
    ChainsInFlight,
}

impl Shared {
    pub(crate) const ALL: [Self; 5] =
        [Self::Ring, Self::Headers, Self::Data, Self::DirtyLog, Self::ChainsInFlight];
}

const GUEST: u64 = 0x10_0000;
const LEN: u64 = 0x1_0000;
const SIZE: u16 = 64;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

/// It sits on files that are not sealed, and touches them by calls only: a bus error would be its own.
pub(crate) struct Cutter {
    raw: Raw,
    files: [File; 5],
    kick: EventFd,
    offered: u16,
}

impl Cutter {
    /// A driver of a disk whose one ring runs; all that it writes is logged and noted.
    pub(crate) fn connect(path: &Path) -> Self {
        let raw = Raw::connect(path);
        raw.negotiate(1 << 32 | 1 << 30 | LOG_ALL);
        let files = [LEN, LEN, LEN, 4096, LEN].map(|len| {
            let file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
            file.set_len(len).unwrap();
            file
        });
        let cutter = Self { raw, files, kick: EventFd::new(EFD_NONBLOCK).unwrap(), offered: 0 };
        cutter.set_up();
        cutter
    }

    fn set_up(&self) {
        let [ring, headers, data, log, record] = &self.files;
        let raw = &self.raw;
        let regions = [0, 1, 2].map(|file| GUEST + file * LEN).map(|base| longs(&[base, LEN, base, 0]));
        let table = [words(&[3, 0]), regions.concat()].concat();
        let fds = [ring.as_fd(), headers.as_fd(), data.as_fd()];
        assert_eq!(raw.tell_with(code::SET_MEM_TABLE, &table, &fds), 0);
        raw.ask_with(code::SET_LOG_BASE, &longs(&[4096, 0]), &[log.as_fd()]);
        let [one, size] = [1_u16, SIZE].map(u16::to_le_bytes);
        let spec = [longs(&[LEN, 0]), one.to_vec(), size.to_vec()].concat();
        assert_eq!(raw.tell_with(code::SET_INFLIGHT_FD, &spec, &[record.as_fd()]), 0);
        assert_eq!(raw.tell(code::SET_VRING_NUM, &words(&[0, SIZE.into()])), 0);
        let addresses = [words(&[0, 0]), longs(&[GUEST, GUEST + USED, GUEST + AVAIL, 0])].concat();
        assert_eq!(raw.tell(code::SET_VRING_ADDR, &addresses), 0);
        assert_eq!(raw.tell_with(code::SET_VRING_KICK, &longs(&[0]), &[duplicate(&self.kick).as_fd()]), 0);
        assert_eq!(raw.tell(code::SET_VRING_ENABLE, &words(&[0, 1])), 0);
    }

    fn file(&self, shared: Shared) -> &File {
        &self.files[shared as usize]
    }

    /// Makes a read of the disk available, without the doorbell.
    pub(crate) fn offer(&mut self) {
        self.offered += 1;
        let ring = self.file(Shared::Ring);
        let [header, data] = [1, 2].map(|file| GUEST + file * LEN);
        let descriptor = |address: u64, len: u32, flags: u16, next: u16| {
            [longs(&[address]), words(&[len, u32::from(flags) | u32::from(next) << 16])].concat()
        };
        let table = [
            descriptor(header, 16, 1, 1),
            descriptor(data, 4096, 3, 2),
            descriptor(header + 0x1000, 1, 2, 0),
        ];
        ring.write_all_at(&table.concat(), 0).unwrap();
        self.file(Shared::Headers).write_all_at(&[0; 16], 0).unwrap();
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
