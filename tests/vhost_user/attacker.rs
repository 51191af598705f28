//! A seeded generator of messages: good ones, nearly good ones, and bytes.

use super::raw::{ALL_PROTOCOL, LOG_ALL, NEED_REPLY, Raw, code, config, longs, memory, words};
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

/// Where the attacker's memory is for the guest and for itself, and its length.
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7f00_0000_0000;
const LEN: u64 = 0x10_0000;
/// Places in it, by offset: the ring of queue 0, and that of queue 1.
const RINGS: [u64; 2] = [0, 0x2_0000];
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x1_0000;

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
    odd: &'a Odd,
    rng: &'a mut Rng,
    memory: OwnedFd,
    /// The log and the record, where there are some.
    more: Vec<File>,
    kick: EventFd,
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
    pub(crate) fn new(path: &Path, odd: &'a Odd, rng: &'a mut Rng) -> Self {
        let raw = Raw::connect(path);
        raw.stream.set_nonblocking(true).unwrap();
        let memory = OwnedFd::from(unsealed(LEN));
        let listens = if rng.one_in(8) { Listens::Never } else { Listens::Always };
        Self {
            raw,
            odd,
            rng,
            memory,
            more: Vec::new(),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
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
            let sent = match self.rng.below(13) {
                0 => self.bytes(),
                1 => self.requests(),
                2 => self.resize(),
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
        self.send(code::SET_PROTOCOL_FEATURES, &longs(&[ALL_PROTOCOL]), &[]);
        let features = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | if self.rng.one_in(2) { LOG_ALL } else { 0 };
        self.send(code::SET_FEATURES, &longs(&[features]), &[]);
        let memory = self.memory.try_clone().unwrap();
        let table = [words(&[1, 0]), longs(&[GUEST, LEN, USER, 0])].concat();
        self.send(code::SET_MEM_TABLE, &table, &[memory.as_fd()]);
        if self.rng.one_in(3) {
            let log = unsealed(4096);
            self.send(code::SET_LOG_BASE, &longs(&[4096, 0]), &[log.as_fd()]);
            self.more.push(log);
        }
        if self.rng.one_in(3) {
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
        let kick = duplicate(&self.kick);
        for (index, ring) in (0u32..).zip(RINGS) {
            let at = USER + ring;
            let addresses = [words(&[index, 0]), longs(&[at, at + USED, at + AVAIL, 0])].concat();
            self.send(code::SET_VRING_NUM, &words(&[index, 64]), &[]);
            self.send(code::SET_VRING_BASE, &words(&[index, 0]), &[]);
            self.send(code::SET_VRING_ADDR, &addresses, &[]);
            self.send(code::SET_VRING_KICK, &longs(&[index.into()]), &[kick.as_fd()]);
            self.send(code::SET_VRING_ENABLE, &words(&[index, 1]), &[]);
        }
        self.requests();
    }

    /// Reads of the disk on both rings, or rings of garbage; and the doorbell.
    fn requests(&mut self) -> bool {
        let file = File::from(self.memory.try_clone().unwrap());
        for ring in RINGS {
            if self.rng.one_in(4) {
                let mut garbage = [0; 1024];
                self.rng.fill(&mut garbage);
                let at = ring + self.rng.below(USED + 512);
                file.write_all_at(&garbage, at).unwrap();
                continue;
            }
            let guest = |offset: u64| GUEST + ring + offset;
            let descriptor = |address: u64, len: u32, flags: u16, next: u16| {
                [longs(&[address]), words(&[len, u32::from(flags) | u32::from(next) << 16])].concat()
            };
            let table = [
                descriptor(guest(BUFFERS), 16, 1, 1),
                descriptor(guest(BUFFERS + 0x1000), 4096, 3, 2),
                descriptor(guest(BUFFERS + 0x800), 1, 2, 0),
            ];
            file.write_all_at(&table.concat(), ring).unwrap();
            file.write_all_at(&longs(&[0, self.rng.below(1000)]), ring + BUFFERS).unwrap();
            file.write_all_at(&[0; 128], ring + AVAIL + 4).unwrap();
            let index = self.rng.below(64) as u16;
            file.write_all_at(&index.to_le_bytes(), ring + AVAIL + 2).unwrap();
        }
        self.kick.write(1).is_ok()
    }

    /// Shortens a file that is shared, or brings it back to its length.
    fn resize(&mut self) -> bool {
        let memory = File::from(self.memory.try_clone().unwrap());
        let files: Vec<(&File, u64)> =
            [(&memory, LEN)].into_iter().chain(self.more.iter().map(|file| (file, 65536))).collect();
        let (file, len) = files[self.rng.index(files.len())];
        let len = if self.rng.one_in(3) { len } else { self.rng.below(len / 4096) * 4096 };
        file.set_len(len).unwrap();
        self.kick.write(1).is_ok()
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
        let kick = duplicate(&self.kick);
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
            _ => self.rng.below(3) as u32,
        }
    }

    fn payload(&mut self, code: u32) -> Vec<u8> {
        match code {
            2 => {
                let bits = [1 << 32, 1 << 30, LOG_ALL, 1 << 29, 1 << 9];
                longs(&[bits.iter().filter(|_| !self.rng.one_in(3)).sum()])
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
            16 => longs(&[if self.rng.one_in(2) { ALL_PROTOCOL } else { self.long() }]),
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
