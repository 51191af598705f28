//! virtio-blk behind an IOMMU: with the driver of `virtio-drivers`, and with one that makes mistakes.

mod common;

use common::{ALL, Rig};
use iovirt_backends::block::memory::{MemoryBackend, MemoryConfig};
use iovirt_core::dma::{
    Access, DmaFault, DmaSpace, FaultReason, InvalidateStatus, InvalidateTicket, StuckPolicy, Translate,
};
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::{BlockCaps, BlockOutput, BlockRequest};
use iovirt_core::test_utils::virtio::{Arena, BlkOp, BlkStatus};
use iovirt_core::test_utils::{ManualBackend, ManualHandle};
use iovirt_core::{Frontend, Time};
use iovirt_frontends::virtio::blk::BlkConfig;
use iovirt_frontends::virtio::{feature, status};
use iovirt_iommu::{DeviceId, Domain, Endpoint, FaultQueue, FaultRecord, Permissions};
use std::sync::Arc;
use std::time::Duration;

const PAGE: u64 = 0x1000;
/// Where the device finds the guest's pages: nowhere near where they are.
const AT: u64 = 0x7000_0000_0000;
const PAGES: u64 = 64;
const RING: u16 = 16;
// Pages of the device's address space.
const DESC: u64 = AT;
const AVAIL: u64 = AT + PAGE;
const USED: u64 = AT + 2 * PAGE;
const HEADERS: u64 = AT + 3 * PAGE;
const DATA: u64 = AT + 8 * PAGE;
const READ_ONLY: u64 = AT + 60 * PAGE;
/// Mapped by nobody, as all that follows.
const HOLE: u64 = AT + PAGES * PAGE;

const IN: u32 = 0;
const OUT: u32 = 1;

fn memory() -> BoxBackend<BlockRequest> {
    let config = MemoryConfig { size: 1 << 20, ..MemoryConfig::default() };
    BoxBackend::new(MemoryBackend::new(&config).unwrap())
}

fn manual() -> (BoxBackend<BlockRequest>, ManualHandle<BlockRequest>) {
    let (backend, handle) = ManualBackend::new(BlockCaps::new(1 << 20));
    (BoxBackend::new(backend), handle)
}

fn is_done(ticket: &mut InvalidateTicket) -> bool {
    ticket.poll(Time::ZERO) == InvalidateStatus::Done
}

/// Where a page of the device's address space lies in the guest.
fn physical(iova: u64) -> u64 {
    let page = (iova - AT) / PAGE;
    (page * 37 + 11) % PAGES * PAGE + iova % PAGE
}

/// A guest with a disk behind an IOMMU and a driver that says what the test wants.
struct Guest {
    space: DmaSpace,
    domain: Arc<Domain>,
    endpoint: Arc<Endpoint>,
    faults: Arc<FaultQueue>,
    rig: Rig,
    offered: u16,
}

impl Guest {
    fn new(stack: BoxBackend<BlockRequest>) -> Self {
        let space = DmaSpace::anonymous(&[(0, PAGES * PAGE)]).unwrap();
        let faults = FaultQueue::new(16);
        let endpoint = Endpoint::new(DeviceId(5), &faults);
        let domain = Domain::new(256);
        assert!(is_done(&mut endpoint.attach(&domain)));
        for page in 0..PAGES {
            let iova = AT + page * PAGE;
            let permissions = if iova == READ_ONLY { Permissions::ReadOnly } else { Permissions::ReadWrite };
            domain.map(iova, PAGE, physical(iova), permissions).unwrap();
        }
        let translated = space.with_translate(endpoint.clone());
        let rig = Rig::new_in(&translated, BlkConfig::default(), stack);
        let mut guest = Self { space, domain, endpoint, faults, rig, offered: 0 };
        guest.set_up(feature::VERSION_1 | feature::ACCESS_PLATFORM);
        guest
    }

    fn set_up(&mut self, features: u64) {
        self.offered = 0;
        self.store(AVAIL, &[0; 4]);
        self.store(USED, &[0; 4]);
        for (offset, value) in
            [(0x24, 0), (0x20, features as u32), (0x24, 1), (0x20, (features >> 32) as u32)]
        {
            self.register(offset, value);
        }
        self.register(0x70, u32::from(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK));
        for (offset, area) in [(0x80, DESC), (0x90, AVAIL), (0xa0, USED)] {
            self.register(offset, area as u32);
            self.register(offset + 4, (area >> 32) as u32);
        }
        self.register(0x38, RING.into());
        self.register(0x44, 1);
        self.register(0x70, u32::from(status::DRIVER_OK));
        self.run();
    }

    fn register(&self, offset: u64, value: u32) {
        self.rig.device.write(0, offset, &value.to_le_bytes());
    }

    fn status(&self) -> u8 {
        let mut word = [0; 4];
        self.rig.device.read(0, 0x70, &mut word);
        word[0]
    }

    fn needs_reset(&self) -> bool {
        self.status() & status::NEEDS_RESET != 0
    }

    fn run(&self) {
        for _ in 0..4 {
            self.rig.worker.borrow_mut().run_within(Duration::ZERO).unwrap();
        }
    }

    fn reset(&mut self) {
        self.register(0x70, 0);
        self.run();
        assert_eq!(self.status(), 0);
        self.set_up(feature::VERSION_1 | feature::ACCESS_PLATFORM);
        assert!(!self.needs_reset());
    }

    /// Writes within a page, as the guest's processor does.
    fn store(&self, iova: u64, bytes: &[u8]) {
        self.space.view().write(physical(iova), bytes).unwrap();
    }

    fn load<const N: usize>(&self, iova: u64) -> [u8; N] {
        self.space.view().read_array(physical(iova)).unwrap()
    }

    /// Offers a disk request with one piece of data, in slot 0 to 4.
    fn offer(&mut self, slot: u16, kind: u32, sector: u64, (data, len): (u64, u32)) {
        let header = HEADERS + u64::from(slot) * 32;
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&sector.to_le_bytes());
        bytes[16] = 0xff;
        self.store(header, &bytes);
        let write = if kind == IN { 2 } else { 0 };
        for (part, (addr, len, flags)) in
            (0u16..).zip([(header, 16, 1), (data, len, 1 | write), (header + 16, 1, 2u16)])
        {
            let index = slot * 3 + part;
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&addr.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&(index + 1).to_le_bytes());
            self.store(DESC + u64::from(index) * 16, &bytes);
        }
        self.store(AVAIL + 4 + u64::from(self.offered % RING) * 2, &(slot * 3).to_le_bytes());
        self.offered += 1;
        self.store(AVAIL + 2, &self.offered.to_le_bytes());
        self.register(0x50, 0);
        self.run();
    }

    fn answer(&self, slot: u16) -> u8 {
        self.load::<1>(HEADERS + u64::from(slot) * 32 + 16)[0]
    }

    fn used(&self) -> u16 {
        u16::from_le_bytes(self.load(USED + 2))
    }

    /// All of its memory but the used ring.
    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; (PAGES * PAGE) as usize];
        self.space.view().read(0, &mut bytes).unwrap();
        let used = physical(USED) as usize;
        bytes[used..used + PAGE as usize].fill(0);
        bytes
    }

    /// Maps a page again where it was.
    fn map(&self, iova: u64) {
        self.domain.map(iova, PAGE, physical(iova), Permissions::ReadWrite).unwrap();
    }
}

#[test]
fn a_real_driver_works_page_by_page() {
    let domain = Domain::new(4096);
    let faults = FaultQueue::new(4);
    let endpoint = Endpoint::new(DeviceId(1), &faults);
    drop(endpoint.attach(&domain));
    let base = Arena::get().space().map().regions()[0].base();
    for page in 0..2048 {
        let at = base + page * PAGE;
        domain.map(at, PAGE, at, Permissions::ReadWrite).unwrap();
    }
    let space = Arena::get().space().with_translate(endpoint);
    let rig = Rig::new_in(&space, BlkConfig::default(), memory());
    let mut driver = rig.driver(ALL | feature::ACCESS_PLATFORM, 16 << 10);
    assert_ne!(driver.features() & feature::ACCESS_PLATFORM, 0);
    for round in 0..200u64 {
        let data: Vec<u8> = (0..16 << 10).map(|at: u64| ((at * 31 + round * 7) >> 3) as u8).collect();
        assert_eq!(driver.run(BlkOp::Out, round * 8, &mut data.clone()), Ok(BlkStatus::Ok));
        let mut read = vec![0; data.len()];
        assert_eq!(driver.run(BlkOp::In, round * 8, &mut read), Ok(BlkStatus::Ok));
        assert!(read == data, "round {round}");
    }
    assert_eq!(faults.counters().faults, 0);
    drop(driver);
    assert!(is_done(&mut domain.clear()), "a queue that was taken back holds nothing");
}

#[test]
fn a_driver_must_know_that_addresses_are_translated() {
    let mut guest = Guest::new(memory());
    let mut high = [0; 4];
    guest.register(0x14, 1);
    guest.rig.device.read(0, 0x10, &mut high);
    assert_eq!(u32::from_le_bytes(high) & 2, 2, "VIRTIO_F_ACCESS_PLATFORM is on offer");
    guest.register(0x70, 0);
    guest.run();
    guest.set_up(feature::VERSION_1);
    assert_eq!(guest.status() & status::FEATURES_OK, 0);
}

#[test]
fn a_wrong_access_is_blocked_and_recorded_and_changes_nothing() {
    let mut guest = Guest::new(memory());
    guest.store(DATA, &[7; 512]);
    guest.offer(0, OUT, 0, (DATA, 512));
    assert_eq!((guest.answer(0), guest.used()), (0, 1));
    let end = HOLE - 256;
    let wrong = [
        (IN, HOLE + 64, HOLE + 64, Access::Write, FaultReason::NotMapped),
        (OUT, HOLE, HOLE, Access::Read, FaultReason::NotMapped),
        (IN, READ_ONLY, READ_ONLY, Access::Write, FaultReason::Denied),
        (IN, end, HOLE, Access::Write, FaultReason::NotMapped),
        (OUT, end, HOLE, Access::Read, FaultReason::NotMapped),
        (IN, 0x2000, 0x2000, Access::Write, FaultReason::NotMapped),
        (IN, u64::MAX - 600, u64::MAX - 600, Access::Write, FaultReason::NotMapped),
    ];
    for (kind, data, iova, access, reason) in wrong {
        let used = guest.used();
        // The driver stores what it offers; the device, nothing.
        guest.rig.device.drain();
        guest.run();
        guest.offer(1, kind, 0, (data, 512));
        let before = guest.snapshot();
        guest.rig.device.resume();
        guest.run();
        assert!(guest.snapshot() == before, "{kind} at {data:#x} changed memory");
        assert!(guest.needs_reset());
        assert_eq!(guest.used(), used, "a chain that cannot be read is not returned");
        let fault = DmaFault { iova, access, reason };
        assert_eq!(guest.faults.pop(), Some(FaultRecord { device: DeviceId(5), fault }));
        assert_eq!(guest.faults.pop(), None);
        guest.reset();
        guest.offer(0, IN, 0, (DATA + PAGE, 512));
        assert_eq!((guest.answer(0), guest.load::<4>(DATA + PAGE)), (0, [7; 4]));
    }
    // Reading what may only be read is no fault.
    guest.offer(0, OUT, 0, (READ_ONLY, 512));
    assert_eq!((guest.answer(0), guest.faults.counters().faults), (0, wrong.len() as u64));
}

#[test]
fn a_stalled_request_delays_the_unmap_of_its_memory_and_nothing_else() {
    let (stack, manual) = manual();
    let mut guest = Guest::new(stack);
    guest.offer(0, IN, 0, (DATA, 512));
    let stuck = manual.in_flight()[0].id;
    assert!(manual.stall(stuck));
    let mut ticket = guest.domain.unmap(DATA, PAGE).unwrap();
    assert!(!is_done(&mut ticket));
    for round in 1..50u16 {
        let page = DATA + u64::from(round % 4 + 1) * PAGE;
        guest.offer(1, IN, 8, (page, 512));
        let other = manual.in_flight()[1].id;
        let mut wait = guest.domain.unmap(page, PAGE).unwrap();
        assert!(!is_done(&mut wait));
        manual.with_request(other, |request| request.sg_mut().fill(0, 512, round as u8).unwrap());
        assert_eq!(manual.complete_all(BlockOutput::Done), 1);
        guest.run();
        assert!(is_done(&mut wait), "round {round}");
        assert_eq!((guest.answer(1), guest.load::<2>(page)), (0, [round as u8; 2]));
        assert!(!is_done(&mut ticket));
        guest.map(page);
    }
    // The page is the device's until it lets go of it.
    manual.with_request(stuck, |request| request.sg_mut().fill(0, 512, 0xee).unwrap());
    assert_eq!(guest.load::<2>(DATA), [0xee; 2]);
    assert!(manual.complete(stuck, BlockOutput::Done));
    assert!(!is_done(&mut ticket), "its worker has not seen it yet");
    guest.run();
    assert!(is_done(&mut ticket));
    assert_eq!((guest.answer(0), guest.used()), (0, 50));
    // Whoever uses that address now, faults.
    guest.offer(0, IN, 0, (DATA, 512));
    assert!(guest.needs_reset());
}

#[test]
fn the_status_byte_is_held_as_long_as_the_data() {
    let (stack, manual) = manual();
    let mut guest = Guest::new(stack);
    guest.offer(0, OUT, 0, (DATA, 512));
    let mut ticket = guest.domain.unmap(HEADERS, PAGE).unwrap();
    assert!(!is_done(&mut ticket));
    manual.complete_all(BlockOutput::Done);
    guest.run();
    assert_eq!(guest.answer(0), 0);
    assert!(is_done(&mut ticket));
}

#[test]
fn a_device_that_does_not_let_go_needs_a_reset() {
    let (stack, manual) = manual();
    let mut guest = Guest::new(stack);
    let limit = Duration::from_secs(3);
    guest.endpoint.pins().set_stuck_policy(StuckPolicy::ReportAfter(limit));
    guest.offer(0, IN, 0, (DATA, 512));
    guest.offer(1, IN, 0, (DATA + PAGE, 512));
    let stuck = manual.in_flight()[0].id;
    let mut ticket = guest.domain.unmap(DATA, PAGE).unwrap();
    assert_eq!(ticket.poll(Time::ZERO), InvalidateStatus::Waiting);
    assert!(!guest.needs_reset());
    assert_eq!(ticket.poll(Time::ZERO + limit), InvalidateStatus::Stuck);
    assert!(guest.needs_reset());
    // The driver resets it, which takes until the request is home. The other request's memory is free before.
    guest.register(0x70, 0);
    let mut other = guest.domain.unmap(DATA + PAGE, PAGE).unwrap();
    manual.stall(stuck);
    manual.complete_all(BlockOutput::Done);
    guest.run();
    assert!(is_done(&mut other) && !is_done(&mut ticket));
    manual.complete(stuck, BlockOutput::Done);
    guest.run();
    assert!(is_done(&mut ticket));
    assert_eq!(guest.status(), 0);
}

#[test]
fn a_broken_device_holds_only_what_is_in_flight() {
    let (stack, manual) = manual();
    let mut guest = Guest::new(stack);
    guest.offer(0, IN, 0, (DATA, 512));
    guest.offer(1, IN, 0, (HOLE, 512));
    assert!(guest.needs_reset());
    let mut ticket = guest.domain.unmap(DATA, PAGE).unwrap();
    assert!(!is_done(&mut ticket));
    manual.complete_all(BlockOutput::Done);
    guest.run();
    assert!(is_done(&mut ticket), "no reset is needed for that");
    assert!(is_done(&mut guest.domain.clear()));
}

#[test]
fn rings_follow_their_mapping() {
    let mut guest = Guest::new(memory());
    let spare = AT + 50 * PAGE;
    for ring in [DESC, AVAIL, USED] {
        // The guest moves the ring to another page while the device looks away.
        let mut ticket = guest.domain.unmap(ring, PAGE).unwrap();
        assert!(is_done(&mut ticket), "a ring is held inside turns only");
        let page: [u8; PAGE as usize] = guest.load(ring);
        guest.store(spare, &page);
        guest.domain.map(ring, PAGE, physical(spare), Permissions::ReadWrite).unwrap();
        guest.store(ring, &[0xdb; PAGE as usize]);
        guest.run();
        assert!(!guest.needs_reset());
        // And back.
        assert!(is_done(&mut guest.domain.unmap(ring, PAGE).unwrap()));
        let moved: [u8; PAGE as usize] = guest.load(spare);
        guest.store(ring, &moved);
        guest.map(ring);
        guest.offer(2, IN, 0, (DATA, 512));
        assert_eq!(guest.answer(2), 0);
    }
    assert_eq!(guest.used(), 3);
}

#[test]
fn a_ring_that_vanishes_ends_the_device_and_no_byte_is_written() {
    for ring in [DESC, AVAIL, USED] {
        let (stack, manual) = manual();
        let mut guest = Guest::new(stack);
        guest.offer(0, IN, 0, (DATA, 512));
        assert!(is_done(&mut guest.domain.unmap(ring, PAGE).unwrap()));
        let before = guest.snapshot();
        let used = guest.load::<{ PAGE as usize }>(USED);
        manual.complete_all(BlockOutput::Done);
        guest.run();
        assert!(guest.needs_reset());
        assert!(guest.snapshot() == before && guest.load::<{ PAGE as usize }>(USED) == used);
        guest.register(0x70, 0);
        guest.run();
        guest.map(ring);
        guest.set_up(feature::VERSION_1 | feature::ACCESS_PLATFORM);
        guest.offer(0, IN, 0, (DATA, 512));
        manual.complete_all(BlockOutput::Done);
        guest.run();
        assert_eq!((guest.answer(0), guest.used()), (0, 1));
    }
}

#[test]
fn a_detached_device_reaches_nothing() {
    let mut guest = Guest::new(memory());
    assert!(is_done(&mut guest.endpoint.detach()));
    let before = guest.snapshot();
    guest.register(0x50, 0);
    guest.run();
    assert!(guest.needs_reset());
    assert!(guest.snapshot() == before);
    assert_eq!(guest.faults.pop().map(|record| record.fault.reason), Some(FaultReason::NoDomain));
    // In another domain, where only the rings are mapped, and elsewhere.
    let other = Domain::new(8);
    drop(guest.endpoint.attach(&other));
    for page in [DESC, AVAIL, USED, HEADERS, DATA] {
        other.map(page, PAGE, physical(page), Permissions::ReadWrite).unwrap();
    }
    guest.reset();
    guest.offer(0, IN, 0, (DATA, 512));
    assert_eq!(guest.answer(0), 0);
    guest.offer(0, IN, 0, (DATA + PAGE, 512));
    assert!(guest.needs_reset());
}
