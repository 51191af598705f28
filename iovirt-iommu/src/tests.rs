use super::*;
use iovirt_core::dma::{Access, FaultReason, Translate, Translation};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn reason(table: &IntervalTable, iova: u64, access: Access) -> FaultReason {
    table.translate(iova, 1, access).unwrap_err().reason
}

#[test]
fn permissions_hold() {
    let table = IntervalTable::new(8);
    table.map(0x1000, 0x1000, 0x8000, Permissions::ReadOnly).unwrap();
    table.map(0x2000, 0x1000, 0x1000, Permissions::WriteOnly).unwrap();
    assert_eq!(table.translate(0x1fff, 9, Access::Read), Ok(Translation { addr: 0x8fff, len: 1 }));
    assert_eq!(reason(&table, 0x1000, Access::Write), FaultReason::Denied);
    assert_eq!(table.translate(0x2000, 9, Access::Write), Ok(Translation { addr: 0x1000, len: 0x1000 }));
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
    assert_eq!((table.len(), table.generation()), (2, 0));
}

#[test]
fn the_generation_tells_of_removals_only() {
    let table = IntervalTable::new(8);
    table.map(0x1000, 0x1000, 0, Permissions::ReadWrite).unwrap();
    assert_eq!(table.unmap(0x4000, 0x1000), Ok(0));
    assert_eq!(table.generation(), 0);
    assert_eq!(table.unmap(0, 0x4000), Ok(1));
    assert_eq!(table.generation(), 1);
    table.clear();
    assert_eq!((table.generation(), table.is_empty()), (2, true));
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
            let found = table.translate(iova, 1, Access::Write).ok().map(|translation| translation.addr);
            prop_assert_eq!(found, model.get(&iova).map(|(addr, _)| *addr));
        }
    }
}
