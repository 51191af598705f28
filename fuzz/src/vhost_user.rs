//! A vhost-user front-end that sends anything: messages, descriptors of a few kinds, and rings in the memory that it shares.
//!
//! The first byte says whether it is a disk or a card, and how much of an honest beginning there is; then come steps: messages, nearly good
//! or not, what the memory holds, and files that are cut. All of it lies in the socket before the server begins, and the front-end has left
//! by then, so that an input does the same each time, as far as threads can; but a file can only be cut under a server that has it, so
//! from there on the server is at work. In the end an honest front-end connects to the same device, and its request must be served, or
//! its frame come back.
//!
//! The fuzzer touches the files by calls: a bus error would be its own.

mod honest;
mod seeds;

pub use seeds::seeds;

use crate::device;
use crate::input::Input;
use iovirt::registry::Registry;
use iovirt_core::doorbell::Doorbell;
use iovirt_core::socket::send_now;
use iovirt_core::worker::UringPolicy;
use iovirt_core::{WorkerConfig, WorkerThread};
use iovirt_frontends::virtio::transport::vhost_user::{Stopper, VhostUserDevice};
use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Where the front-end's memory is for the guest and for itself, and its length.
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000;
const LEN: u64 = 0x2_0000;
/// Length of the log.
const LOG_LEN: u64 = 0x3000;
/// Entries of a ring, and offsets of its parts; the next ring lies behind it.
const SIZE: u32 = 16;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x600;
const RING: u64 = 0x1000;
/// Behind the last ring of a card.
const RINGS_END: u64 = 5 * RING;
/// Offset of the header, the data and the status of the honest request.
const HEADER: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STATUS: u64 = 0xa000;
/// Messages of one input: the answers must fit into a socket that nobody reads.
const MESSAGES: usize = 60;
/// Files that an input cuts, and how long it waits for a server that waits itself, for the rest of a message.
const CUTS: usize = 3;
const HEARD: Duration = Duration::from_millis(20);
/// How long anything may take.
const HANG: Duration = Duration::from_secs(20);

const PROTOCOL: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 16;
/// A record of chains in flight, which a card does not have.
const INFLIGHT: u64 = 1 << 12;
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
const LOG_ALL: u64 = 1 << 26;
/// Of a card: several pairs; frames in several buffers, offloads, the queue for control and what it sets.
const PAIRS: u64 = 1 << 22;
const CARD: u64 =
    1 | 1 << 1 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 11 | 1 << 12 | 1 << 15 | 1 << 17 | 1 << 18 | 1 << 23;

/// Numbers of requests ("Front-end message types").
const SET_FEATURES: u8 = 2;
const SET_MEM_TABLE: u8 = 5;
const SET_LOG_BASE: u8 = 6;
const SET_LOG_FD: u8 = 7;
const SET_VRING_NUM: u8 = 8;
const SET_VRING_ADDR: u8 = 9;
const SET_VRING_BASE: u8 = 10;
const GET_VRING_BASE: u8 = 11;
const SET_VRING_KICK: u8 = 12;
const SET_PROTOCOL_FEATURES: u8 = 16;
const SET_VRING_ENABLE: u8 = 18;
const SET_INFLIGHT_FD: u8 = 32;

/// What front-ends connect to. The next bits of the first byte mean something for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Disk,
    Card,
}

impl Victim {
    fn of(data: &[u8]) -> Self {
        if data.first().is_some_and(|how| how & 0x20 != 0) { Self::Card } else { Self::Disk }
    }

    fn description(self) -> &'static str {
        match self {
            Self::Disk => device::DISK,
            Self::Card => device::CARD,
        }
    }

    fn rings(self) -> u8 {
        match self {
            Self::Disk => 2,
            Self::Card => 5,
        }
    }

    fn protocol(self) -> u64 {
        match self {
            Self::Disk => PROTOCOL | INFLIGHT,
            Self::Card => PROTOCOL,
        }
    }

    /// Of a card, bit 6: no several pairs, so that the third ring is for control. Bit 7: nothing but those.
    fn features(self, how: u8) -> u64 {
        let own = match self {
            Self::Disk => 0,
            Self::Card => (if how & 0x40 == 0 { PAIRS } else { 0 }) | if how & 0x80 == 0 { CARD } else { 0 },
        };
        own | FEATURES | if how & 8 == 0 { 0 } else { LOG_ALL }
    }
}

/// The device, its server in a thread, and what front-ends share with it.
struct Rig {
    victim: Victim,
    streams: Sender<UnixStream>,
    ends: Receiver<()>,
    memory: File,
    log: File,
    doorbells: Vec<Doorbell>,
    fds: Vec<OwnedFd>,
    rounds: u64,
    held: usize,
    _worker: WorkerThread,
}

thread_local! {
    static RIGS: RefCell<Option<[Rig; 2]>> = const { RefCell::new(None) };
}

/// Plays an input.
///
/// # Panics
/// Where the server does, hangs, or does not serve the next front-end.
pub fn run(data: &[u8]) {
    RIGS.with_borrow_mut(|rigs| {
        // Both at once: descriptors are counted.
        let rigs = rigs.get_or_insert_with(|| [Victim::Disk, Victim::Card].map(Rig::new));
        let rig = &mut rigs[Victim::of(data) as usize];
        rig.attack(&mut Input::new(data));
        rig.must_serve();
        rig.must_hold_nothing();
    });
}

impl Rig {
    fn new(victim: Victim) -> Self {
        let config = WorkerConfig { uring: UringPolicy::Off, ..WorkerConfig::default() };
        let worker = WorkerThread::spawn("fuzz", config).expect("a worker");
        let description = victim.description().parse().expect("a description");
        let device = Registry::standard().build_virtio(&description).expect("a device");
        let device = VhostUserDevice::new(device, &[worker.handle().clone()]).expect("a device");
        let (streams, incoming) = channel::<UnixStream>();
        let (ended, ends) = channel();
        std::thread::spawn(move || {
            let stopper = Stopper::new(Duration::from_secs(1)).expect("a descriptor");
            for stream in incoming {
                // How it ends is up to the input.
                let _ = device.serve(stream, &stopper);
                if ended.send(()).is_err() {
                    break;
                }
            }
        });
        let (memory, log) = (unsealed(LEN), unsealed(LOG_LEN));
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let (one, _) = UnixStream::pair().expect("a pair of sockets");
        let doorbells: Vec<_> = (0..=victim.rings()).map(|_| Doorbell::new().expect("an eventfd")).collect();
        let duplicate = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().expect("a descriptor");
        let fds = vec![
            duplicate(doorbells[usize::from(victim.rings())].as_fd()),
            duplicate(log.as_fd()),
            reader.into(),
            writer.into(),
            one.into(),
            File::open("/dev/null").expect("it is everywhere").into(),
            File::open("/").expect("it is everywhere").into(),
        ];
        Self { victim, streams, ends, memory, log, doorbells, fds, rounds: 0, held: 0, _worker: worker }
    }

    fn fd(&self, kind: u8) -> BorrowedFd<'_> {
        match self.fds.get(usize::from(kind) % (self.fds.len() + 2)) {
            Some(fd) => fd.as_fd(),
            None => self.memory.as_fd(),
        }
    }

    /// Files of their whole length again, and no rings in them.
    fn refresh(&self) {
        self.memory.set_len(LEN).expect("memory");
        self.log.set_len(LOG_LEN).expect("memory");
        self.put(0, &[0; RINGS_END as usize]);
    }

    /// A file that was cut is long enough again for this.
    fn put(&self, offset: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, offset).expect("memory");
    }

    fn attack(&self, input: &mut Input<'_>) {
        self.refresh();
        let mut session = FrontEnd::new(self);
        session.begin(input.u8());
        while !input.is_empty() && session.sent < MESSAGES {
            session.step(input);
        }
        let _ = session.socket.shutdown(Shutdown::Write);
        session.let_serve();
        self.ends.recv_timeout(HANG).expect("the session ends");
    }

    /// Looks now and then whether descriptors pile up.
    fn must_hold_nothing(&mut self) {
        self.rounds += 1;
        if self.rounds.is_multiple_of(512) {
            let now = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
            // The fuzzer opens a few files itself.
            assert!(self.held == 0 || now < self.held + 32, "{now} descriptors, not {}", self.held);
            self.held = if self.held == 0 { now } else { self.held };
        }
    }
}

/// A file in memory that can be cut.
fn unsealed(len: u64) -> File {
    let file = tempfile::tempfile_in("/dev/shm").expect("memory");
    file.set_len(len).expect("memory");
    file
}

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// One connection.
struct FrontEnd<'a> {
    rig: &'a Rig,
    socket: UnixStream,
    /// The other end, for as long as nobody serves it.
    server: Option<UnixStream>,
    sent: usize,
    cuts: usize,
}

impl<'a> FrontEnd<'a> {
    fn new(rig: &'a Rig) -> Self {
        let (socket, server) = UnixStream::pair().expect("a pair of sockets");
        Self { rig, socket, server: Some(server), sent: 0, cuts: 0 }
    }

    /// Whatever was sent is served from now on.
    fn let_serve(&mut self) {
        if let Some(server) = self.server.take() {
            self.rig.streams.send(server).expect("the server is there");
        }
    }

    /// Waits until the server has obeyed all that was sent, or is gone: either way it lets go of a descriptor that came last.
    fn wait_until_heard(&mut self) {
        let (mut probe, last) = UnixStream::pair().expect("a pair of sockets");
        self.send(SET_LOG_FD, 1, &[], &[last.as_fd()]);
        drop(last);
        probe.set_read_timeout(Some(HEARD)).expect("it is a socket");
        // What waits for the rest of a message is not waited for.
        let _ = probe.read(&mut [0]);
    }

    /// Cuts a file under the server, and rings the doorbells.
    fn cut(&mut self, input: &mut Input<'_>) {
        let (which, pages) = (input.u8(), u64::from(input.u8()));
        if self.cuts == CUTS {
            return;
        }
        self.cuts += 1;
        self.let_serve();
        self.wait_until_heard();
        let (file, len) = if which & 1 == 0 { (&self.rig.memory, LEN) } else { (&self.rig.log, LOG_LEN) };
        file.set_len(pages * 0x1000 % (len + 0x1000)).expect("memory");
        self.rig.doorbells.iter().for_each(Doorbell::ring);
    }

    fn send(&mut self, code: u8, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.sent += 1;
        let message = [words(&[code.into(), flags, payload.len() as u32]), payload.to_vec()].concat();
        // What does not fit is lost.
        let _ = send_now(&self.socket, &message, fds);
    }

    /// Bit 0: features and memory. Bit 1: the first ring. Bit 2: the second. Bit 3: a log. Bit 4: a disk's record of chains in flight, or a
    /// card's other rings. Bit 5: it is a card.
    fn begin(&mut self, how: u8) {
        let rig = self.rig;
        let victim = rig.victim;
        if how & 1 == 0 {
            return;
        }
        self.send(SET_PROTOCOL_FEATURES, 1, &longs(&[victim.protocol()]), &[]);
        self.send(SET_FEATURES, 1, &longs(&[victim.features(how)]), &[]);
        let table = [words(&[1, 0]), longs(&[GUEST, LEN, USER, 0])].concat();
        self.send(SET_MEM_TABLE, 1, &table, &[rig.memory.as_fd()]);
        if how & 8 != 0 {
            self.send(SET_LOG_BASE, 1, &longs(&[64, 0x100]), &[rig.log.as_fd()]);
        }
        if how & 16 != 0 && victim == Victim::Disk {
            // In the memory that the input fills, behind the rings.
            let spec = [longs(&[0x1000, 0x2000]), vec![2, 0, SIZE as u8, 0]].concat();
            self.send(SET_INFLIGHT_FD, 1, &spec, &[rig.memory.as_fd()]);
        }
        for ring in 0..2u32 {
            if how & (2 << ring) != 0 {
                self.start(ring);
            }
        }
        if how & 16 != 0 {
            (2..victim.rings().into()).for_each(|ring| self.start(ring));
        }
    }

    fn start(&mut self, ring: u32) {
        let rig = self.rig;
        let at = USER + u64::from(ring) * RING;
        self.send(SET_VRING_NUM, 1, &words(&[ring, SIZE]), &[]);
        self.send(SET_VRING_BASE, 1, &words(&[ring, 0]), &[]);
        let addresses = [words(&[ring, 0]), longs(&[at, at + USED, at + AVAIL, 0])].concat();
        self.send(SET_VRING_ADDR, 1, &addresses, &[]);
        self.send(SET_VRING_KICK, 1, &longs(&[ring.into()]), &[rig.doorbells[ring as usize].as_fd()]);
        self.send(SET_VRING_ENABLE, 1, &words(&[ring, 1]), &[]);
    }

    /// A number that may mean something.
    fn long(input: &mut Input<'_>) -> u64 {
        let (base, offset) = (input.u8(), u64::from(input.u16()));
        let base = match base % 8 {
            0 => 0,
            1 => GUEST,
            2 => USER,
            3 => LEN,
            4 => u64::MAX,
            5 => 1 << (base >> 2),
            6 => USER + LEN,
            _ => 1 << 32,
        };
        base.wrapping_add(offset).wrapping_sub(0x8000)
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let rig = self.rig;
        let flags = 1 | u32::from(input.u8() & 1) << 3;
        let rings = rig.victim.rings();
        match input.u8() % 9 {
            0 => {
                let (code, len, count) = (input.u8() % 44, usize::from(input.u8()), input.u8() % 4);
                let kinds: Vec<u8> = (0..count).map(|_| input.u8()).collect();
                let fds: Vec<_> = kinds.iter().map(|kind| rig.fd(*kind)).collect();
                let payload = input.bytes(len).to_vec();
                self.send(code, flags, &payload, &fds);
            }
            1 => {
                let codes = [SET_VRING_NUM, SET_VRING_BASE, GET_VRING_BASE, SET_VRING_ENABLE];
                let (code, ring) = (codes[usize::from(input.u8() % 4)], u32::from(input.u8() % 3));
                let value = u32::from(input.u16());
                self.send(code, flags, &words(&[ring, value]), &[]);
            }
            2 => {
                let ring = u32::from(input.u8() % (rings + 1));
                let addresses: [u64; 4] = std::array::from_fn(|_| Self::long(input));
                self.send(SET_VRING_ADDR, flags, &[words(&[ring, 0]), longs(&addresses)].concat(), &[]);
            }
            3 => {
                let (code, ring, kind) =
                    (SET_VRING_KICK + input.u8() % 3, input.u8() % (rings + 1), input.u8());
                let fds = [rig.fd(kind)];
                self.send(code, flags, &longs(&[ring.into()]), if kind & 0x80 == 0 { &fds } else { &[] });
            }
            4 => {
                // A region more, or one less, or another table; all of a log; all of a record.
                let codes = [37, 38, SET_MEM_TABLE, SET_LOG_BASE, SET_INFLIGHT_FD];
                let (code, fds) = (codes[usize::from(input.u8() % 5)], [rig.fd(input.u8())]);
                let place: [u64; 4] = std::array::from_fn(|_| Self::long(input));
                let payload = match code {
                    37 | 38 => [longs(&[0]), longs(&place)].concat(),
                    SET_MEM_TABLE => [words(&[1, 0]), longs(&place)].concat(),
                    SET_LOG_BASE => longs(&place[..2]),
                    _ => [longs(&place[..2]), vec![2, 0, SIZE as u8, 0]].concat(),
                };
                self.send(code, flags, &payload, if code == 38 { &[] } else { &fds });
            }
            5 => {
                let (offset, len) = (u64::from(input.u16() % 0xb800), usize::from(input.u8()));
                rig.put(offset, input.bytes(len));
            }
            6 => self.start(u32::from(input.u8() % rings)),
            7 => {
                let len = usize::from(input.u8());
                self.sent += 1;
                let _ = send_now(&self.socket, input.bytes(len), &[]);
            }
            _ => self.cut(input),
        }
    }
}
