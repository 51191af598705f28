//! A vhost-user front-end that sends anything: messages, descriptors of a few kinds, and rings in the memory that it shares.
//!
//! The first byte says how much of an honest beginning there is; then come steps: messages, nearly good or not, and what the memory
//! holds. All of it lies in the socket before the server begins, and the front-end has left by then, so that an input does the same
//! each time, as far as threads can. In the end an honest front-end connects to the same device, and its request must be served.

use crate::input::Input;
use iovirt::registry::Registry;
use iovirt_core::dma::{DmaSpace, Region, shared_memory};
use iovirt_core::doorbell::Doorbell;
use iovirt_core::socket::send_now;
use iovirt_core::worker::UringPolicy;
use iovirt_core::{WorkerConfig, WorkerThread};
use iovirt_frontends::virtio::transport::vhost_user::{Stopper, VhostUserDevice};
use std::cell::RefCell;
use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// Where the front-end's memory is for the guest and for itself, and its length.
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000;
const LEN: u64 = 0x2_0000;
/// Entries of a ring, and offsets of its parts; the second ring lies behind the first.
const SIZE: u32 = 16;
const AVAIL: u64 = 0x400;
const USED: u64 = 0x600;
const RING: u64 = 0x1000;
/// Offset of the header, the data and the status of the honest request.
const HEADER: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STATUS: u64 = 0xa000;
/// Messages of one input: the answers must fit into a socket that nobody reads.
const MESSAGES: usize = 40;
/// How long anything may take.
const HANG: Duration = Duration::from_secs(20);

const PROTOCOL: u64 = 1 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 16;
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28;
const LOG_ALL: u64 = 1 << 26;

/// Numbers of requests ("Front-end message types").
const SET_FEATURES: u8 = 2;
const SET_MEM_TABLE: u8 = 5;
const SET_LOG_BASE: u8 = 6;
const SET_VRING_NUM: u8 = 8;
const SET_VRING_ADDR: u8 = 9;
const SET_VRING_BASE: u8 = 10;
const GET_VRING_BASE: u8 = 11;
const SET_VRING_KICK: u8 = 12;
const SET_PROTOCOL_FEATURES: u8 = 16;
const SET_VRING_ENABLE: u8 = 18;
const SET_INFLIGHT_FD: u8 = 32;

/// The device, its server in a thread, and what front-ends share with it.
struct Rig {
    streams: Sender<UnixStream>,
    ends: Receiver<()>,
    memory: OwnedFd,
    view: DmaSpace,
    fds: Vec<OwnedFd>,
    rounds: u64,
    held: usize,
    _worker: WorkerThread,
}

thread_local! {
    static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
}

/// Plays an input.
///
/// # Panics
/// Where the server does, hangs, or does not serve the next front-end.
pub fn run(data: &[u8]) {
    RIG.with_borrow_mut(|rig| {
        let rig = rig.get_or_insert_with(Rig::new);
        rig.attack(&mut Input::new(data));
        rig.must_serve();
        rig.must_hold_nothing();
    });
}

impl Rig {
    fn new() -> Self {
        let config = WorkerConfig { uring: UringPolicy::Off, ..WorkerConfig::default() };
        let worker = WorkerThread::spawn("fuzz", config).expect("a worker");
        let disk = "virtio-blk,queues=2,queue-size=64 -> memory,size=64K".parse().expect("a description");
        let disk = Registry::standard().build_virtio(&disk).expect("a disk");
        let device = VhostUserDevice::new(disk, &[worker.handle().clone()]).expect("a device");
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
        let memory = OwnedFd::from(shared_memory(LEN).expect("memory"));
        let region = Region::from_file(0, LEN, memory.as_fd(), 0).expect("memory");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let (one, _) = UnixStream::pair().expect("a pair of sockets");
        let eventfd = Doorbell::new().expect("an eventfd");
        let fds = vec![
            eventfd.as_fd().try_clone_to_owned().expect("a descriptor"),
            shared_memory(0x3000).expect("memory").into(),
            reader.into(),
            writer.into(),
            one.into(),
            File::open("/dev/null").expect("it is everywhere").into(),
            File::open("/").expect("it is everywhere").into(),
        ];
        let view = DmaSpace::from_regions(vec![region]).expect("memory");
        Self { streams, ends, memory, view, fds, rounds: 0, held: 0, _worker: worker }
    }

    fn fd(&self, kind: u8) -> BorrowedFd<'_> {
        match self.fds.get(usize::from(kind) % (self.fds.len() + 2)) {
            Some(fd) => fd.as_fd(),
            None => self.memory.as_fd(),
        }
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        // What reaches beyond the end is left out.
        let _ = self.view.view().write(offset, bytes);
    }

    fn attack(&self, input: &mut Input<'_>) {
        self.put(0, &[0; 0x4000]);
        let mut session = FrontEnd { rig: self, socket: connect(), sent: 0 };
        let server = session.socket.1.take().expect("it is fresh");
        session.begin(input.u8());
        while !input.is_empty() && session.sent < MESSAGES {
            session.step(input);
        }
        let _ = session.socket.0.shutdown(Shutdown::Write);
        self.streams.send(server).expect("the server is there");
        self.ends.recv_timeout(HANG).expect("the session ends");
    }

    /// An honest front-end reads the first sector.
    fn must_serve(&self) {
        self.put(0, &[0; 0x2000]);
        self.put(HEADER, &[0; 16]);
        self.put(STATUS, &[0xff]);
        let descriptor = |address: u64, len: u32, flags: u16, next: u16| {
            [
                longs(&[address]),
                len.to_le_bytes().to_vec(),
                flags.to_le_bytes().to_vec(),
                next.to_le_bytes().to_vec(),
            ]
            .concat()
        };
        let chain = [
            descriptor(GUEST + HEADER, 16, 1, 1),
            descriptor(GUEST + DATA, 512, 3, 2),
            descriptor(GUEST + STATUS, 1, 2, 0),
        ];
        self.put(0, &chain.concat());
        self.put(AVAIL, &[0, 0, 1, 0, 0, 0]);
        let mut session = FrontEnd { rig: self, socket: connect(), sent: 0 };
        self.streams.send(session.socket.1.take().expect("it is fresh")).expect("the server is there");
        session.begin(0b11);
        let begun = Instant::now();
        let mut used = [0; 2];
        while used != [1, 0] {
            assert!(begun.elapsed() < HANG, "an honest request is not served");
            std::thread::yield_now();
            self.view.view().read(USED + 2, &mut used).expect("it is mapped");
        }
        let mut status = [0];
        self.view.view().read(STATUS, &mut status).expect("it is mapped");
        assert_eq!(status, [0], "an honest request fails");
        drop(session);
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

/// Both ends of a connection; the server's is taken.
fn connect() -> (UnixStream, Option<UnixStream>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    (ours, Some(theirs))
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
    socket: (UnixStream, Option<UnixStream>),
    sent: usize,
}

impl FrontEnd<'_> {
    fn send(&mut self, code: u8, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) {
        self.sent += 1;
        let message = [words(&[code.into(), flags, payload.len() as u32]), payload.to_vec()].concat();
        // What does not fit is lost.
        let _ = send_now(&self.socket.0, &message, fds);
    }

    /// Bit 0: features and memory. Bit 1: the first ring. Bit 2: the second. Bit 3: a log. Bit 4: a record of chains in flight.
    fn begin(&mut self, how: u8) {
        let rig = self.rig;
        if how & 1 == 0 {
            return;
        }
        let features = if how & 8 == 0 { FEATURES } else { FEATURES | LOG_ALL };
        self.send(SET_PROTOCOL_FEATURES, 1, &longs(&[PROTOCOL]), &[]);
        self.send(SET_FEATURES, 1, &longs(&[features]), &[]);
        let table = [words(&[1, 0]), longs(&[GUEST, LEN, USER, 0])].concat();
        self.send(SET_MEM_TABLE, 1, &table, &[rig.memory.as_fd()]);
        if how & 8 != 0 {
            self.send(SET_LOG_BASE, 1, &longs(&[64, 0x100]), &[rig.fds[1].as_fd()]);
        }
        if how & 16 != 0 {
            // In the memory that the input fills, behind the rings.
            let spec = [longs(&[0x1000, 0x2000]), vec![2, 0, SIZE as u8, 0]].concat();
            self.send(SET_INFLIGHT_FD, 1, &spec, &[rig.memory.as_fd()]);
        }
        for ring in 0..2u32 {
            if how & (2 << ring) != 0 {
                self.start(ring);
            }
        }
    }

    fn start(&mut self, ring: u32) {
        let rig = self.rig;
        let at = USER + u64::from(ring) * RING;
        self.send(SET_VRING_NUM, 1, &words(&[ring, SIZE]), &[]);
        self.send(SET_VRING_BASE, 1, &words(&[ring, 0]), &[]);
        let addresses = [words(&[ring, 0]), longs(&[at, at + USED, at + AVAIL, 0])].concat();
        self.send(SET_VRING_ADDR, 1, &addresses, &[]);
        self.send(SET_VRING_KICK, 1, &longs(&[ring.into()]), &[rig.fds[0].as_fd()]);
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
        match input.u8() % 8 {
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
                let ring = u32::from(input.u8() % 3);
                let addresses: [u64; 4] = std::array::from_fn(|_| Self::long(input));
                self.send(SET_VRING_ADDR, flags, &[words(&[ring, 0]), longs(&addresses)].concat(), &[]);
            }
            3 => {
                let (code, ring, kind) = (SET_VRING_KICK + input.u8() % 3, input.u8() % 3, input.u8());
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
                let (offset, len) = (u64::from(input.u16() % 0x3800), usize::from(input.u8()));
                rig.put(offset, input.bytes(len));
            }
            6 => self.start(u32::from(input.u8() % 2)),
            _ => {
                let len = usize::from(input.u8());
                self.sent += 1;
                let _ = send_now(&self.socket.0, input.bytes(len), &[]);
            }
        }
    }
}

/// Honest lives, a ring with a request in flight in its record, rings that are taken back and moved, odd memory.
pub fn seeds() -> Vec<Vec<u8>> {
    let write = |offset: u16, bytes: &[u8]| {
        [&[0, 5][..], &offset.to_le_bytes(), &[bytes.len() as u8], bytes].concat()
    };
    let descriptor = |address: u64, len: u32, flags: u16, next: u16| {
        [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    let chain = [
        descriptor(GUEST + HEADER, 16, 1, 1),
        descriptor(GUEST + DATA, 512, 3, 2),
        descriptor(GUEST + STATUS, 1, 2, 0),
    ];
    let offered = [write(0, &chain.concat()), write(AVAIL as u16, &[0, 0, 1, 0, 0, 0])].concat();
    let record = [write(0x2008, &[1, 0, 16, 0]), write(0x2010, &[1])].concat();
    let stop = [1, 1, 2, 0, 0, 0];
    let region = |code: u8, kind: u8, places: [(u8, u16); 4]| {
        let places = places.iter().flat_map(|(base, offset)| [&[*base][..], &offset.to_le_bytes()].concat());
        [1, 4, code, kind].into_iter().chain(places).collect::<Vec<u8>>()
    };
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
    ]
}
