use super::table::IntervalTable;
use super::*;
use iovirt_core::Time;
use iovirt_core::dma::{
    Access, DmaFault, DmaSpace, FaultReason, InvalidateStatus, InvalidateTicket, IovaRange, IovaSpans,
    PinTable, Translate, Translation,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

fn reason(table: &IntervalTable, iova: u64, access: Access) -> FaultReason {
    table.translate(iova, access).unwrap_err().reason
}

#[test]
fn permissions_hold() {
    let table = IntervalTable::new(8);
    table.map(0x1000, 0x1000, 0x8000, Permissions::ReadOnly).unwrap();
    table.map(0x2000, 0x1000, 0x1000, Permissions::WriteOnly).unwrap();
    assert_eq!(table.translate(0x1fff, Access::Read), Ok(Translation { addr: 0x8fff, len: 1 }));
    assert_eq!(reason(&table, 0x1000, Access::Write), FaultReason::Denied);
    assert_eq!(table.translate(0x2000, Access::Write), Ok(Translation { addr: 0x1000, len: 0x1000 }));
    assert_eq!(reason(&table, 0x2000, Access::Read), FaultReason::Denied);
    for iova in [0, 0xfff, 0x3000, u64::MAX] {
        assert_eq!(reason(&table, iova, Access::Read), FaultReason::NotMapped, "{iova:#x}");
    }
}

#[test]
fn what_is_refused_changes_nothing() {
    let table = IntervalTable::new(2);
    let map = |iova, len| table.map(iova, len, 0, Permissions::ReadWrite);
    map(0x1000, 0x1000).unwrap();
    assert!(matches!(map(0, 0), Err(MapRefused::Range { .. })));
    assert!(matches!(map(u64::MAX, 2), Err(MapRefused::Range { .. })));
    assert!(matches!(table.map(0, 2, u64::MAX, Permissions::ReadWrite), Err(MapRefused::Range { .. })));
    for (iova, len) in [(0x1000, 1), (0, 0x1001), (0x1fff, 1), (0, 0x10000)] {
        assert!(matches!(map(iova, len), Err(MapRefused::Overlap { .. })), "{iova:#x}");
    }
    map(0x2000, 1).unwrap();
    assert_eq!(map(0x8000, 1), Err(MapRefused::Full { limit: 2 }));
    assert!(matches!(table.unmap(0, 0), Err(UnmapRefused::Range { .. })));
    assert!(matches!(table.unmap(u64::MAX, 2), Err(UnmapRefused::Range { .. })));
    for (iova, len) in [(0x1000, 0xfff), (0x1001, 0x10000)] {
        assert!(matches!(table.unmap(iova, len), Err(UnmapRefused::Split { .. })), "{iova:#x}");
    }
    assert_eq!(table.len(), 2);
}

fn is_done(ticket: &mut InvalidateTicket) -> bool {
    ticket.poll(Time::ZERO) == InvalidateStatus::Done
}

/// Two devices in one domain that maps 64 KiB to themselves.
fn two_devices() -> (Arc<FaultQueue>, Arc<Domain>, [Arc<Endpoint>; 2]) {
    let faults = FaultQueue::new(2);
    let domain = Domain::new(64);
    let devices = [1, 2].map(|id| Endpoint::new(DeviceId(id), &faults));
    for device in &devices {
        assert!(is_done(&mut device.attach(&domain)));
    }
    for page in 0..16 {
        domain.map(page << 12, 0x1000, page << 12, Permissions::ReadWrite).unwrap();
    }
    (faults, domain, devices)
}

/// A queue that holds `len` bytes at `iova` in slot 0.
fn pinned(device: &Endpoint, iova: u64, len: u64) -> PinTable {
    let mut spans = IovaSpans::EMPTY;
    spans.add(IovaRange::new(iova, len).unwrap());
    let mut pins = PinTable::new(device.pins(), 4);
    pins.enter();
    pins.pin(0, &spans);
    pins.leave();
    pins
}

fn release(pins: &mut PinTable) {
    pins.enter();
    pins.unpin(0);
    pins.leave();
}

#[test]
fn the_generation_tells_of_removals_only() {
    let (_, domain, [device, _other]) = two_devices();
    let before = device.pins().generation();
    domain.map(0x10_0000, 0x1000, 0, Permissions::ReadWrite).unwrap();
    assert!(is_done(&mut domain.unmap(0x20_0000, 0x1000).unwrap()));
    assert_eq!(device.pins().generation(), before);
    assert!(is_done(&mut domain.unmap(0x10_0000, 0x1000).unwrap()));
    assert_ne!(device.pins().generation(), before);
    assert!(is_done(&mut domain.clear()));
    assert!(domain.is_empty());
}

#[test]
fn an_unmap_waits_for_every_device_that_uses_it() {
    let (_, domain, [first, second]) = two_devices();
    let (mut a, mut b) = (pinned(&first, 0x1800, 0x1000), pinned(&second, 0x2000, 8));
    let mut other = domain.unmap(0x4000, 0x4000).unwrap();
    assert!(is_done(&mut other), "nobody uses that");
    let mut ticket = domain.unmap(0x2000, 0x1000).unwrap();
    assert_eq!(reason_at(&first, 0x2000), FaultReason::NotMapped, "gone at once for whoever comes");
    assert!(!is_done(&mut ticket));
    release(&mut a);
    assert!(!is_done(&mut ticket));
    // The same addresses, mapped to something else: who uses that is not waited for.
    domain.map(0x2000, 0x1000, 0x9000, Permissions::ReadWrite).unwrap();
    let _later = pinned(&first, 0x2000, 0x1000);
    release(&mut b);
    assert!(is_done(&mut ticket));
}

#[test]
fn who_has_left_is_waited_for_while_it_holds_memory() {
    let (_, domain, [first, _second]) = two_devices();
    let mut pins = pinned(&first, 0x3000, 0x1000);
    let elsewhere = Domain::new(4);
    let mut left = first.attach(&elsewhere);
    for _ in 0..100 {
        drop(first.attach(&domain));
        drop(first.attach(&elsewhere));
    }
    assert_eq!((domain.devices(), elsewhere.devices()), (1, 1));
    assert_eq!(reason_at(&first, 0x3000), FaultReason::NotMapped);
    let mut ticket = domain.unmap(0x3000, 0x1000).unwrap();
    assert!(!is_done(&mut left) && !is_done(&mut ticket));
    release(&mut pins);
    assert!(is_done(&mut left) && is_done(&mut ticket));
    assert!(is_done(&mut first.detach()));
    assert_eq!(reason_at(&first, 0x3000), FaultReason::NoDomain);
}

fn reason_at(device: &Endpoint, iova: u64) -> FaultReason {
    device.translate(iova, 1, Access::Read).unwrap_err().reason
}

#[test]
fn faults_are_recorded_and_bounded() {
    let (faults, domain, [first, second]) = two_devices();
    let memory = DmaSpace::anonymous(&[(0, 0x1_0000)]).unwrap();
    let view = memory.with_translate(second.clone()).view();
    domain.map(0x10_0000, 0x1000, 0, Permissions::ReadOnly).unwrap();
    assert!(view.write(0x10_0008, b"no").is_err());
    assert!(view.read_array::<16>(0xfff8).is_err());
    assert!(first.translate(u64::MAX, 1, Access::Read).is_err());
    let fault =
        |iova, access, reason| FaultRecord { device: DeviceId(2), fault: DmaFault { iova, access, reason } };
    assert_eq!(faults.pop(), Some(fault(0x10_0008, Access::Write, FaultReason::Denied)));
    assert_eq!(faults.pop(), Some(fault(0x1_0000, Access::Read, FaultReason::NotMapped)));
    assert_eq!(faults.pop(), None);
    assert_eq!(faults.counters(), FaultCounters { faults: 3, overflowed: 1 });
}

#[cfg(feature = "vm-memory")]
#[test]
fn a_device_of_others_copies_behind_a_domain() {
    use vm_memory::iommu::{Iommu, IommuMemory};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, Permissions as Theirs};

    let (faults, domain, [device, _other]) = two_devices();
    domain.unmap(0, 0x1_0000).map(drop).unwrap();
    domain.map(0x10_0000, 0x1000, 0x3000, Permissions::ReadWrite).unwrap();
    domain.map(0x10_1000, 0x1000, 0x1000, Permissions::ReadOnly).unwrap();
    let backend: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
    let iommu = EndpointIommu(device);
    let memory = IommuMemory::new(backend.clone(), iommu.clone(), true, ());
    memory.write_slice(b"over", GuestAddress(0x10_0ffc)).unwrap();
    backend.write_slice(b"page", GuestAddress(0x1000)).unwrap();
    let mut both = [0; 8];
    memory.read_slice(&mut both, GuestAddress(0x10_0ffc)).unwrap();
    assert_eq!(&both, b"overpage");
    assert!(memory.write_slice(b"no", GuestAddress(0x10_1000)).is_err());
    assert!(memory.read_slice(&mut both, GuestAddress(0x10_1ffc)).is_err());
    assert!(iommu.translate(GuestAddress(u64::MAX), 2, Theirs::Read).is_err());
    assert!(iommu.translate(GuestAddress(0x10_0000), 0, Theirs::Read).is_ok());
    assert_eq!(faults.counters().faults, 2);

    let copy = iommu.translate(GuestAddress(0x10_0000), 8, Theirs::ReadWrite).unwrap();
    assert!(is_done(&mut domain.unmap(0x10_1000, 0x1000).unwrap()), "the copy is elsewhere");
    let mut ticket = domain.unmap(0x10_0000, 0x1000).unwrap();
    assert!(!is_done(&mut ticket));
    drop(copy);
    assert!(is_done(&mut ticket));
}

proptest! {
    /// Against a model that keeps every single address.
    #[test]
    fn it_is_a_table_of_addresses(
        steps in prop::collection::vec((any::<bool>(), 0..60_u64, 0..12_u64, 0..1000_u64), 1..60),
    ) {
        let table = IntervalTable::new(1000);
        // For each address the target, and the number of the mapping it belongs to.
        let mut model: BTreeMap<u64, (u64, usize)> = BTreeMap::new();
        for (step, (map, iova, len, addr)) in steps.into_iter().enumerate() {
            let range = iova..iova + len;
            if map {
                let free = len > 0 && model.range(range.clone()).next().is_none();
                prop_assert_eq!(table.map(iova, len, addr, Permissions::ReadWrite).is_ok(), free);
                if free {
                    model.extend(range.map(|at| (at, (addr + at - iova, step))));
                }
            } else {
                let inside: Vec<usize> = model.range(range.clone()).map(|(_, (_, id))| *id).collect();
                let outside = model.iter().filter(|(at, _)| !range.contains(at));
                let whole = outside.clone().all(|(_, (_, id))| !inside.contains(id));
                prop_assert_eq!(table.unmap(iova, len).is_ok(), len > 0 && whole);
                if whole {
                    model = outside.map(|(at, held)| (*at, *held)).collect();
                }
            }
        }
        for iova in 0..80 {
            let found = table.translate(iova, Access::Write).ok().map(|translation| translation.addr);
            prop_assert_eq!(found, model.get(&iova).map(|(addr, _)| *addr));
        }
    }
}
