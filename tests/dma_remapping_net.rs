//! virtio-net behind an IOMMU: frames through translated addresses, and what happens where there is none.

mod common;

use common::raw::{BUFFERS, MEMORY, Piece, RINGS, RawDriver, SIZE};
use iovirt::backends::net::loopback::{LoopbackBackend, LoopbackConfig, LoopbackControl};
use iovirt::core::dma::{
    Access, DmaFault, DmaSpace, FaultReason, InvalidateStatus, InvalidateTicket, StuckPolicy, Translate,
};
use iovirt::core::pipeline::BoxBackend;
use iovirt::core::request::net::{MacAddr, NetCaps, NetOutput, NetRequest};
use iovirt::core::{Frontend, Time};
use iovirt::frontends::virtio::net::{NetConfig, NetCounters, VirtioNet};
use iovirt::frontends::virtio::{feature, status};
use iovirt::iommu::{DeviceId, Domain, Endpoint, FaultQueue, FaultRecord, Permissions};
use iovirt_core::test_utils::{ManualBackend, ManualHandle, Rng, seed_or};
use std::sync::Arc;
use std::time::Duration;

const PAGE: u64 = 0x1000;
const HEADER: usize = 12;
const MRG_RXBUF: u64 = 1 << 15;
const CTRL: u64 = 1 << 17 | 1 << 18;
const RX: u16 = 0;
const TX: u16 = 1;
const CONTROL: u16 = 2;
const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Where the device finds the rings: so far behind where they are.
const RINGS_AT: u64 = 0x7000_0000_0000;
/// Where the device finds buffers: pages in another order.
const DATA: u64 = 0x5000_0000_0000;
const PAGES: u64 = 64;
/// A page that may only be read.
const READ_ONLY: u64 = DATA + (PAGES - 1) * PAGE;
/// Mapped by nobody, as all that follows.
const HOLE: u64 = DATA + PAGES * PAGE;

type Net = BoxBackend<NetRequest>;

fn is_done(ticket: &mut InvalidateTicket) -> bool {
    ticket.poll(Time::ZERO) == InvalidateStatus::Done
}

/// Where an address of the device's lies in the guest: neighbours lie apart.
fn physical(iova: u64) -> u64 {
    let page = (iova - DATA) / PAGE;
    BUFFERS + (page * 37 + 11) % PAGES * PAGE + iova % PAGE
}

fn loopback() -> Net {
    BoxBackend::new(LoopbackBackend::new(&LoopbackConfig { mtu: 9000, pairs: 1 }).unwrap())
}

fn manual() -> (Net, ManualHandle<NetRequest>) {
    let (backend, handle) = ManualBackend::new(NetCaps::new(1500, 1));
    (BoxBackend::new(backend), handle)
}

/// A guest with a card behind an IOMMU.
struct Guest {
    driver: RawDriver,
    domain: Arc<Domain>,
    endpoint: Arc<Endpoint>,
    faults: Arc<FaultQueue>,
    counters: Arc<NetCounters>,
    features: u64,
}

impl Guest {
    fn new(stack: Net, features: u64) -> Self {
        let space = DmaSpace::anonymous(&[(0, MEMORY)]).unwrap();
        let faults = FaultQueue::new(16);
        let endpoint = Endpoint::new(DeviceId(7), &faults);
        let domain = Domain::new(256);
        assert!(is_done(&mut endpoint.attach(&domain)));
        domain.map(RINGS_AT + RINGS, 0xc000, RINGS, Permissions::ReadWrite).unwrap();
        for page in 0..PAGES {
            let iova = DATA + page * PAGE;
            let allowed = if iova == READ_ONLY { Permissions::ReadOnly } else { Permissions::ReadWrite };
            domain.map(iova, PAGE, physical(iova), allowed).unwrap();
        }
        let config =
            NetConfig { mac: Some(MacAddr(GUEST)), pairs: 1, queue_size: SIZE, ..NetConfig::default() };
        let card = VirtioNet::new(config, stack).unwrap();
        let counters = card.counters();
        let features = features | feature::ACCESS_PLATFORM;
        let translated = space.with_translate(endpoint.clone());
        let driver = RawDriver::behind(Arc::new(card), features, (space, &translated, RINGS_AT));
        Self { driver, domain, endpoint, faults, counters, features }
    }

    fn needs_reset(&self) -> bool {
        self.driver.status() & u32::from(status::NEEDS_RESET) != 0
    }

    fn reset(&mut self) {
        self.driver.reset();
        self.driver.set_up(self.features);
        assert!(!self.needs_reset());
    }

    /// Writes as the guest's processor does, to where the device finds it at `iova`.
    fn store(&self, iova: u64, bytes: &[u8]) {
        for (at, byte) in (iova..).zip(bytes) {
            self.driver.write(physical(at), &[*byte]);
        }
    }

    fn load(&self, iova: u64, len: usize) -> Vec<u8> {
        (iova..).take(len).map(|at| self.driver.read(physical(at), 1)[0]).collect()
    }

    /// Puts a frame there, behind its header, and offers it.
    fn send(&mut self, iova: u64, frame: &[u8]) {
        self.store(iova, &[&[0; HEADER], frame].concat());
        self.driver.offer(TX, &[Piece::Driver(iova, (HEADER + frame.len()) as u32)]);
        self.driver.ring(TX);
    }

    /// All memory, but for the used rings.
    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = self.driver.read(0, MEMORY as usize);
        for queue in 0..3 {
            let used = (RINGS + queue * 0x4000 + 0x2000) as usize;
            bytes[used..used + PAGE as usize].fill(0);
        }
        bytes
    }

    fn map(&self, iova: u64) {
        self.domain.map(iova, PAGE, physical(iova), Permissions::ReadWrite).unwrap();
    }

    /// The card works: a frame comes back.
    fn works(&mut self) {
        self.driver.offer(RX, &[Piece::Device(DATA + 40 * PAGE, 2048)]);
        self.driver.ring(RX);
        self.send(DATA + 41 * PAGE, &frame(200, 60));
        assert_eq!((self.driver.used(TX).len(), self.driver.used(RX).len()), (1, 1));
        assert_eq!(self.load(DATA + 40 * PAGE + HEADER as u64, 60), frame(200, 60));
    }

    fn expect_fault(&self, iova: u64, access: Access, reason: FaultReason) {
        let fault = DmaFault { iova, access, reason };
        assert_eq!(self.faults.pop(), Some(FaultRecord { device: DeviceId(7), fault }));
        assert_eq!(self.faults.pop(), None);
    }
}

fn frame(number: u8, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(7) ^ number).collect();
    frame[..6].copy_from_slice(&GUEST);
    frame
}

#[test]
fn frames_go_there_and_back_through_scattered_pages() {
    let seed = seed_or(0x10d);
    let mut rng = Rng::new(seed);
    for features in [0, MRG_RXBUF] {
        let mut guest = Guest::new(loopback(), features);
        for number in 0..200u8 {
            let sent = frame(number, 14 + rng.below(4000) as usize);
            // Both lie across pages that are not neighbours in the guest.
            let from = DATA + rng.below(PAGE * 8);
            let mut to = Vec::new();
            let mut room = 0;
            while room < sent.len() + HEADER {
                let len = if features == 0 { 4100 } else { 100 + rng.below(3000) as usize };
                let iova = DATA + (16 + to.len() as u64 * 2) * PAGE + rng.below(PAGE);
                let head = guest.driver.offer(RX, &[Piece::Device(iova, len as u32)]);
                to.push((head, iova));
                room += len;
                if to.len() == 20 {
                    break;
                }
            }
            guest.driver.ring(RX);
            guest.send(from, &sent);
            assert_eq!(guest.driver.used(TX).len(), 1);
            let used = guest.driver.used(RX);
            assert_eq!(used.len(), to.len(), "frame {number}, seed {seed:#x}");
            let mut came = Vec::new();
            for ((head, len), (offered, iova)) in used.into_iter().zip(to) {
                assert_eq!(head, offered);
                came.extend(guest.load(iova, len as usize));
            }
            assert_eq!(came[HEADER..], sent, "frame {number}, seed {seed:#x}");
        }
        assert_eq!((guest.faults.counters().faults, guest.counters.snapshot().received), (0, 200));
        // At rest it holds nothing: neither tokens nor buffers on offer are of its memory.
        guest.driver.offer(RX, &[Piece::Device(DATA, 2048)]);
        guest.driver.ring(RX);
        assert!(is_done(&mut guest.domain.clear()));
    }
}

#[test]
fn a_receive_buffer_that_is_not_there_takes_no_byte() {
    let wrong = [
        (HOLE, 2048, HOLE, FaultReason::NotMapped),
        (HOLE - PAGE - 64, 2048, READ_ONLY, FaultReason::Denied),
        (READ_ONLY, 2048, READ_ONLY, FaultReason::Denied),
        (BUFFERS, 2048, BUFFERS, FaultReason::NotMapped),
        (u64::MAX - 4000, 2048, u64::MAX - 4000, FaultReason::NotMapped),
    ];
    let mut guest = Guest::new(loopback(), 0);
    for (at, len, iova, reason) in wrong {
        guest.driver.offer(RX, &[Piece::Device(at, len)]);
        guest.driver.ring(RX);
        assert!(!guest.needs_reset(), "a buffer is looked at when there is a frame for it");
        guest.send(DATA, &frame(1, 100));
        // It was sent; what came back has no place.
        assert_eq!((guest.driver.used(TX).len(), guest.driver.used(RX)), (1, vec![]));
        assert!(guest.needs_reset());
        guest.expect_fault(iova, Access::Write, reason);
        guest.reset();
        guest.works();
    }
    // Once more, with an eye on every byte.
    for features in [0, MRG_RXBUF] {
        let mut guest = Guest::new(loopback(), features);
        let sent = frame(2, 1000);
        guest.store(DATA, &[&[0; HEADER], sent.as_slice()].concat());
        guest.driver.offer(TX, &[Piece::Driver(DATA, (HEADER + sent.len()) as u32)]);
        if features == MRG_RXBUF {
            // The first of two is there, and has to stay as it is all the same.
            guest.driver.offer(RX, &[Piece::Device(DATA + 8 * PAGE, 512)]);
        }
        guest.driver.offer(RX, &[Piece::Device(HOLE - PAGE - 100, 2048)]);
        let before = guest.snapshot();
        guest.driver.ring(TX);
        assert!(guest.needs_reset());
        assert!(guest.snapshot() == before, "memory was written, features {features:#x}");
        guest.expect_fault(READ_ONLY, Access::Write, FaultReason::Denied);
    }
}

#[test]
fn nothing_is_sent_of_memory_that_is_not_there() {
    let wrong = [
        (HOLE, 100, HOLE),
        (HOLE - 40, 100, HOLE),
        // Nor where only the header is.
        (HOLE - HEADER as u64, 100, HOLE),
        (BUFFERS, 100, BUFFERS),
    ];
    let mut guest = Guest::new(loopback(), 0);
    let network: Arc<LoopbackControl> = guest.driver.device.stages().control("loopback").unwrap();
    for (at, len, iova) in wrong {
        let (carried, before) = (network.snapshot(), guest.counters.snapshot());
        guest.driver.offer(RX, &[Piece::Device(DATA, 2048)]);
        guest.driver.offer(TX, &[Piece::Driver(at, len)]);
        guest.driver.ring(TX);
        assert!(guest.needs_reset(), "{at:#x}");
        assert_eq!((guest.driver.used(TX), guest.driver.used(RX)), (vec![], vec![]));
        assert_eq!((network.snapshot(), guest.counters.snapshot().sent), (carried, before.sent));
        guest.expect_fault(iova, Access::Read, FaultReason::NotMapped);
        guest.reset();
        guest.works();
    }
    // To send what may only be read is no fault.
    guest.driver.offer(TX, &[Piece::Driver(READ_ONLY, 100)]);
    guest.driver.ring(TX);
    assert_eq!((guest.driver.used(TX).len(), guest.faults.counters().faults), (1, wrong.len() as u64));
}

#[test]
fn a_command_that_is_not_there_is_not_obeyed() {
    let mut guest = Guest::new(loopback(), CTRL);
    // Promiscuous mode; the answer's place is not mapped.
    guest.store(DATA, &[0, 0, 1]);
    guest.driver.offer(CONTROL, &[Piece::Driver(DATA, 3), Piece::Device(HOLE, 1)]);
    guest.driver.ring(CONTROL);
    assert!(guest.needs_reset());
    guest.expect_fault(HOLE, Access::Write, FaultReason::NotMapped);
    guest.reset();
    guest.works();
}

#[test]
fn a_frame_that_is_being_sent_delays_the_unmap_of_its_memory_and_nothing_else() {
    let (stack, manual) = manual();
    let mut guest = Guest::new(stack, 0);
    let of = |name: &str| {
        let waiting = manual.in_flight();
        waiting
            .into_iter()
            .filter(|request| request.name == name)
            .map(|request| request.id)
            .collect::<Vec<_>>()
    };
    assert_eq!(of("receive").len(), usize::from(SIZE));
    guest.send(DATA, &frame(1, 100));
    let stuck = of("transmit")[0];
    let mut ticket = guest.domain.unmap(DATA, PAGE).unwrap();
    assert!(!is_done(&mut ticket));
    for round in 1..50u8 {
        // Sending from other pages, and receiving, goes on, and so does their unmap.
        let page = DATA + u64::from(round % 4 + 1) * PAGE;
        guest.send(page, &frame(round, 100));
        let mut wait = guest.domain.unmap(page, PAGE).unwrap();
        assert!(!is_done(&mut wait), "round {round}");
        manual.complete(of("transmit")[1], NetOutput::Done);
        guest.driver.run();
        assert!(is_done(&mut wait), "round {round}");
        assert_eq!(guest.driver.used(TX).len(), 1);
        guest.map(page);

        let buffer = DATA + u64::from(round % 4 + 10) * PAGE;
        guest.driver.offer(RX, &[Piece::Device(buffer, 2048)]);
        guest.driver.ring(RX);
        let token = of("receive")[0];
        manual.with_request(token, |token| {
            token.sg_mut().push_host(100).unwrap();
            token.sg_mut().copy_from(0, &frame(round, 100)).unwrap();
        });
        manual.complete(token, NetOutput::Done);
        guest.driver.run();
        assert_eq!(guest.driver.used(RX).len(), 1);
        assert_eq!(guest.load(buffer + HEADER as u64, 100), frame(round, 100));
        assert!(is_done(&mut guest.domain.unmap(buffer, PAGE).unwrap()), "the frame is delivered");
        guest.map(buffer);
        assert!(!is_done(&mut ticket));
    }
    // Until then the page is the device's, and what is sent is what the guest put there.
    let sent = manual.with_request(stuck, |request| {
        let mut bytes = vec![0; request.sg().len() as usize];
        request.sg().copy_to(0, &mut bytes).unwrap();
        bytes
    });
    assert_eq!(sent, Some(frame(1, 100)));
    manual.complete(stuck, NetOutput::Done);
    assert!(!is_done(&mut ticket), "its worker has not seen it yet");
    guest.driver.run();
    assert!(is_done(&mut ticket));
    assert_eq!((guest.driver.used(TX).len(), guest.needs_reset()), (1, false));
}

#[test]
fn a_buffer_on_offer_may_go_before_its_frame_comes() {
    let mut guest = Guest::new(loopback(), 0);
    guest.driver.offer(RX, &[Piece::Device(DATA, 2048)]);
    guest.driver.ring(RX);
    // No chain was taken, and a token has no memory of the guest's: nothing to wait for.
    assert!(is_done(&mut guest.domain.unmap(DATA, PAGE).unwrap()));
    let before = guest.load(DATA, PAGE as usize);
    guest.send(DATA + 4 * PAGE, &frame(3, 100));
    assert!(guest.needs_reset(), "the driver let the device have what it had taken away");
    guest.expect_fault(DATA, Access::Write, FaultReason::NotMapped);
    assert_eq!(guest.load(DATA, PAGE as usize), before);
    guest.map(DATA);
    guest.reset();
    guest.works();
}

#[test]
fn a_network_that_does_not_let_go_needs_a_reset() {
    let (stack, manual) = manual();
    let mut guest = Guest::new(stack, 0);
    let limit = Duration::from_secs(3);
    guest.endpoint.pins().set_stuck_policy(StuckPolicy::ReportAfter(limit));
    guest.send(DATA, &frame(1, 100));
    let mut ticket = guest.domain.unmap(DATA, PAGE).unwrap();
    assert_eq!(ticket.poll(Time::ZERO), InvalidateStatus::Waiting);
    assert_eq!(ticket.poll(Time::ZERO + limit), InvalidateStatus::Stuck);
    assert!(guest.needs_reset());
    // The reset waits for it, and so does the unmap.
    let _ = guest.driver.register(0x070, 0);
    guest.driver.run();
    assert!(!is_done(&mut ticket));
    manual.complete_all(NetOutput::Done);
    guest.driver.run();
    assert!(is_done(&mut ticket));
    assert_eq!(guest.driver.status(), 0);
}
