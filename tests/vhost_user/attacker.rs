//! A seeded generator of messages: good ones, nearly good ones, and bytes.

use super::raw::{ALL_PROTOCOL, INFLIGHT, LOG_ALL, NEED_REPLY, Raw, code, config, longs, memory, words};
use iovirt_core::test_utils::Rng;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use vmm_sys_util::epoll::Epoll;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::raw::duplicate;
use super::victim::{AVAIL, RING, Ring, SIZE, USED, Victim};

/// Where the attacker's memory is for the guest and for itself, and its length.
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7f00_0000_0000;
const LEN: u64 = 0x10_0000;

/// Descriptors of every kind.
pub(crate) struct Odd {
    fds: Vec<OwnedFd>,
    _ends: Vec<OwnedFd>,
}

impl Odd {
    pub(crate) fn new() -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        let (closed_reader, _) = std::io::pipe().unwrap();
        let (_, closed_writer) = std::io::pipe().unwrap();
        let (one, two) = UnixStream::pair().unwrap();
        let (lonely, _) = UnixStream::pair().unwrap();
        let full = EventFd::new(0).unwrap();
        full.write(u64::MAX - 1).unwrap();
        let (full_reader, full_writer) = std::io::pipe().unwrap();
        fill(&full_writer);
        let shared = memory(4096);
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&shared));
        let device =
            |path: &str| OwnedFd::from(OpenOptions::new().read(true).write(true).open(path).unwrap());
        let fds = vec![
            OwnedFd::from(reader),
            writer.into(),
            closed_reader.into(),
            closed_writer.into(),
            one.into(),
            lonely.into(),
            duplicate(&full),
            full_writer.into(),
            duplicate(&EventFd::new(EFD_NONBLOCK).unwrap()),
            duplicate(&Epoll::new().unwrap()),
            File::open("/").unwrap().into(),
            File::open("/proc/self/maps").unwrap().into(),
            device("/dev/null"),
            device("/dev/zero"),
            File::open("/dev/zero").unwrap().into(),
            File::open(path).unwrap().into(),
            tempfile::tempfile().unwrap().into(),
            shared,
        ];
        Self { fds, _ends: vec![two.into(), full_reader.into()] }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.fds.iter().map(AsFd::as_fd)
    }
}

/// A file in memory that can be shortened.
fn unsealed(len: u64) -> File {
    let file = tempfile::tempfile_in("/dev/shm").expect("a file in memory");
    file.set_len(len).unwrap();
    file
}

/// Fills a pipe, whose writer blocks from then on.
fn fill(pipe: &std::io::PipeWriter) {
    use std::io::Write;
    // Its size, as pipe(7) has it; a host may have made it smaller, so whoever fills it waits for nobody.
    let writer = duplicate(pipe);
    let stream = File::from(writer);
    let thread = std::thread::spawn(move || (&stream).write_all(&vec![0; 65536]));
    let begun = std::time::Instant::now();
    while !thread.is_finished() && begun.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One hostile front-end.
pub(crate) struct Attacker<'a> {
    raw: Raw,
    victim: Victim,
    odd: &'a Odd,
    rng: &'a mut Rng,
    memory: OwnedFd,
    /// The log and the record, where there are some.
    more: Vec<File>,
    /// Each ring's doorbell, and how many chains were made available there.
    kicks: Vec<EventFd>,
    offered: Vec<u16>,
    listens: Listens,
    sent: u64,
}

/// Whether it reads what it is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listens {
    Always,
    Never,
}

impl<'a> Attacker<'a> {
    pub(crate) fn new(path: &Path, victim: Victim, odd: &'a Odd, rng: &'a mut Rng) -> Self {
        let raw = Raw::connect(path);
        raw.stream.set_nonblocking(true).unwrap();
        let memory = OwnedFd::from(unsealed(LEN));
        let listens = if rng.one_in(8) { Listens::Never } else { Listens::Always };
        let rings = victim.roles();
        Self {
            raw,
            victim,
            odd,
            rng,
            memory,
            more: Vec::new(),
            kicks: rings.iter().map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect(),
            offered: vec![0; rings.len()],
            listens,
            sent: 0,
        }
    }

    /// Attacks until it has enough or is thrown out; gives how many messages that took.
    pub(crate) fn attack(mut self) -> u64 {
        if !self.rng.one_in(4) {
            self.begin_well();
        }
        for _ in 0..self.rng.between(1, 60) {
            let sent = match self.rng.below(15) {
                0 => self.bytes(),
                1 | 2 => self.requests(),
                3 => self.resize(),
                4 => self.move_memory(),
                _ => self.message(),
            };
            if !sent {
                break;
            }
        }
        if self.rng.one_in(4) {
            // Leaves in the middle of a message.
            let cut = self.rng.index(12);
            let _ = std::io::Write::write(&mut &self.raw.stream, &words(&[5, 1, 100])[..cut]);
        }
        self.sent
    }

    fn send(&mut self, code: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let flags = if self.rng.one_in(2) { NEED_REPLY } else { 1 };
        self.send_as((code, flags, payload.len() as u32), payload, fds)
    }

    fn send_as(&mut self, header: (u32, u32, u32), payload: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        self.sent += 1;
        let sent = self.raw.send_as(header, payload, fds).is_ok();
        if self.listens == Listens::Always {
            // Whatever is there; the server is not waited for.
            let mut answers = [0; 4096];
            let _ = iovirt_core::socket::receive(&self.raw.stream, &mut answers, &mut Vec::new());
        }
        sent
    }

    /// What an honest front-end does, up to rings that run.
    fn begin_well(&mut self) {
        let protocol = self.protocol();
        self.send(code::SET_PROTOCOL_FEATURES, &longs(&[protocol]), &[]);
        let log = if self.rng.one_in(2) { LOG_ALL } else { 0 };
        let own = self.own_features();
        self.send(code::SET_FEATURES, &longs(&[1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | log | own]), &[]);
        let memory = self.memory.try_clone().unwrap();
        let table = [words(&[1, 0]), longs(&[GUEST, LEN, USER, 0])].concat();
        self.send(code::SET_MEM_TABLE, &table, &[memory.as_fd()]);
        if self.rng.one_in(3) {
            let log = unsealed(4096);
            self.send(code::SET_LOG_BASE, &longs(&[4096, 0]), &[log.as_fd()]);
            self.more.push(log);
        }
        if self.victim.keeps_record() && self.rng.one_in(3) {
            let file = unsealed(65536);
            if self.rng.one_in(2) {
                let mut garbage = [0; 8192];
                self.rng.fill(&mut garbage);
                file.write_all_at(&garbage, 0).unwrap();
                file.write_all_at(&[1, 0, 64, 0], 8).unwrap();
            }
            let spec = [longs(&[65536, 0]), vec![2, 0, 64, 0]].concat();
            self.send(code::SET_INFLIGHT_FD, &spec, &[file.as_fd()]);
            self.more.push(file);
        }
        for index in 0..self.offered.len() as u32 {
            // One or the other is missing now and then.
            if !self.rng.one_in(8) {
                self.start(index);
            }
        }
        self.requests();
    }

    /// All that the device offers, of which front-ends take all.
    fn protocol(&self) -> u64 {
        if self.victim.keeps_record() { ALL_PROTOCOL } else { ALL_PROTOCOL & !INFLIGHT }
    }

    /// Most features that only this device has.
    fn own_features(&mut self) -> u64 {
        self.victim.feature_bits().iter().filter(|_| !self.rng.one_in(4)).map(|bit| 1 << bit).sum()
    }

    fn start(&mut self, index: u32) {
        let kick = duplicate(&self.kicks[index as usize]);
        let at = USER + u64::from(index) * RING;
        let addresses = [words(&[index, 0]), longs(&[at, at + USED, at + AVAIL, 0])].concat();
        self.send(code::SET_VRING_NUM, &words(&[index, SIZE.into()]), &[]);
        self.send(code::SET_VRING_BASE, &words(&[index, 0]), &[]);
        self.send(code::SET_VRING_ADDR, &addresses, &[]);
        self.send(code::SET_VRING_KICK, &longs(&[index.into()]), &[kick.as_fd()]);
        self.send(code::SET_VRING_ENABLE, &words(&[index, 1]), &[]);
    }

    /// What a driver has in the rings, or rings of garbage; and the doorbells.
    fn requests(&mut self) -> bool {
        let file = File::from(self.memory.try_clone().unwrap());
        for (index, &role) in self.victim.roles().iter().enumerate() {
            let at = index as u64 * RING;
            if self.rng.one_in(8) {
                let mut garbage = [0; 1024];
                self.rng.fill(&mut garbage);
                file.write_all_at(&garbage, at + self.rng.below(USED + 512)).unwrap();
                continue;
            }
            let ring = Ring { file: &file, guest: GUEST, at };
            self.offered[index] = ring.offer(role, self.offered[index], self.rng);
        }
        self.ring_doorbells()
    }

    fn ring_doorbells(&self) -> bool {
        self.kicks.iter().all(|kick| kick.write(1).is_ok())
    }

    /// Other memory under rings that run and buffers that were offered: the same in other pieces, some of it, or a piece more or less.
    fn move_memory(&mut self) -> bool {
        let memory = self.memory.try_clone().unwrap();
        let region = |(at, len, offset): (u64, u64, u64)| longs(&[GUEST + at, len, USER + at, offset]);
        let at = [RING, 2 * RING, 4 * RING][self.rng.index(3)];
        let (all, some, rest, more) = ((0, LEN, 0), (0, at, 0), (at, LEN - at, at), (LEN, LEN, 0));
        let one_more = if self.rng.one_in(2) { rest } else { more };
        let (code, regions) = match self.rng.below(5) {
            0 => (code::SET_MEM_TABLE, vec![all]),
            1 => (code::SET_MEM_TABLE, vec![some, rest]),
            2 => (code::SET_MEM_TABLE, vec![some]),
            3 => (code::ADD_MEM_REG, vec![one_more]),
            _ => (code::REM_MEM_REG, vec![one_more]),
        };
        let head = if code == code::SET_MEM_TABLE { words(&[regions.len() as u32, 0]) } else { longs(&[0]) };
        let fds = vec![memory.as_fd(); if code == code::REM_MEM_REG { 0 } else { regions.len() }];
        let payload: Vec<u8> = head.into_iter().chain(regions.into_iter().flat_map(region)).collect();
        let sent = self.send(code, &payload, &fds);
        sent && self.requests()
    }

    /// Shortens a file that is shared, or brings it back to its length.
    fn resize(&mut self) -> bool {
        let memory = File::from(self.memory.try_clone().unwrap());
        let files: Vec<(&File, u64)> =
            [(&memory, LEN)].into_iter().chain(self.more.iter().map(|file| (file, 65536))).collect();
        let (file, len) = files[self.rng.index(files.len())];
        let len = if self.rng.one_in(3) { len } else { self.rng.below(len / 4096) * 4096 };
        file.set_len(len).unwrap();
        self.ring_doorbells()
    }

    /// Bytes, in pieces.
    fn bytes(&mut self) -> bool {
        let mut bytes = vec![0; self.rng.between(1, 300) as usize];
        self.rng.fill(&mut bytes);
        if self.rng.one_in(2) {
            // A header that is one, and a length that may not be.
            let size = [0, 8, 40, 4096, 4097, u32::MAX][self.rng.index(6)];
            let head = words(&[self.rng.below(45) as u32, 1 + self.rng.below(2) as u32 * 8, size]);
            bytes.splice(0..0, head);
        }
        self.sent += 1;
        let cut = self.rng.index(bytes.len());
        [&bytes[..cut], &bytes[cut..]].iter().all(|part| {
            let fds: Vec<_> = self.odd.all().take(2).collect();
            part.is_empty() || iovirt_core::socket::send(&self.raw.stream, part, &fds).is_ok()
        })
    }

    /// A message that means something, or nearly.
    fn message(&mut self) -> bool {
        let codes = [
            1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 21, 22, 24, 25, 31, 32, 34,
            36, 37, 38, 39, 40, 41,
        ];
        let code = codes[self.rng.index(codes.len())];
        let mut payload = self.payload(code);
        if self.rng.one_in(12) {
            let len = self.rng.index(payload.len() + 20);
            payload.resize(len, 0);
        }
        let memory = self.memory.try_clone().unwrap();
        let kick = duplicate(&self.kicks[self.rng.index(self.kicks.len())]);
        let own = [memory.as_fd(), kick.as_fd()];
        let odd = self.odd;
        let odd: Vec<_> = odd.all().collect();
        let mut fds = Vec::new();
        let wanted = match code {
            5 | 6 | 12 | 13 | 14 | 21 | 32 | 37 if !self.rng.one_in(8) => 1,
            _ if self.rng.one_in(16) => self.rng.between(1, 32),
            _ => 0,
        };
        for _ in 0..wanted {
            let good = own[usize::from(matches!(code, 12..=14))];
            fds.push(if self.rng.one_in(2) { good } else { odd[self.rng.index(odd.len())] });
        }
        if self.rng.one_in(60) {
            let header = (code, self.rng.next_u64() as u32, payload.len() as u32);
            return self.send_as(header, &payload, &fds);
        }
        self.send(code, &payload, &fds)
    }

    /// A number that is likely to mean something.
    fn long(&mut self) -> u64 {
        let near = self.rng.below(3) * 0x1000;
        match self.rng.below(12) {
            0 => self.rng.next_u64(),
            1 => u64::MAX - near,
            2 => 0,
            3 => LEN - near,
            4 => GUEST + LEN - near / 2,
            5 => USER + LEN - 1 - near,
            6 => 1 << self.rng.below(64),
            7 => GUEST,
            8 => USER + near,
            _ => 0x1000 + near,
        }
    }

    fn word(&mut self) -> u32 {
        match self.rng.below(6) {
            0 => self.long() as u32,
            1 => 1 << self.rng.below(17),
            _ => self.rng.below(self.offered.len() as u64 + 1) as u32,
        }
    }

    fn payload(&mut self, code: u32) -> Vec<u8> {
        match code {
            2 => {
                let bits = [1 << 32, 1 << 30, LOG_ALL, 1 << 29, 1 << 9];
                let own = self.own_features();
                longs(&[own + bits.iter().filter(|_| !self.rng.one_in(3)).sum::<u64>()])
            }
            5 => {
                let count = self.rng.between(0, 4) as u32;
                let regions: Vec<u64> = (0..count * 4).map(|_| self.long()).collect();
                [words(&[count, 0]), longs(&regions)].concat()
            }
            6 => longs(&[self.long(), self.long()]),
            8 | 10 | 11 | 18 => words(&[self.word(), self.word()]),
            9 => {
                let addresses: Vec<u64> = (0..4).map(|_| self.long()).collect();
                [words(&[self.word(), 0]), longs(&addresses)].concat()
            }
            12..=14 => longs(&[u64::from(self.word())]),
            16 => longs(&[if self.rng.one_in(2) { self.protocol() } else { self.long() }]),
            24 | 25 => {
                let data = vec![7; self.rng.index(300)];
                let offset = self.word();
                config(offset, &data)
            }
            31 | 32 => {
                let spec = longs(&[self.long(), self.long()]);
                [spec, vec![self.rng.below(4) as u8, 0, self.rng.next_u64() as u8, self.rng.below(3) as u8]]
                    .concat()
            }
            37 | 38 => {
                let region: Vec<u64> = (0..4).map(|_| self.long()).collect();
                longs(&[0, region[0], region[1], region[2], region[3]])
            }
            19..=22 | 39 => longs(&[self.long()]),
            _ => Vec::new(),
        }
    }
}
