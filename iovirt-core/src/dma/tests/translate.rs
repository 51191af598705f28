//! Memory behind an IOMMU.

use std::sync::Arc;

use crate::dma::{
    Access, DmaError, DmaFault, DmaSpace, FaultReason, PageTable, PinBoard, SgList, Translate, Translation,
};

fn space() -> (DmaSpace, Arc<PageTable>) {
    let table = Arc::new(PageTable::new());
    let space = DmaSpace::anonymous(&[(0, 0x10000)]).unwrap().with_translate(table.clone());
    (space, table)
}

#[test]
fn a_range_crosses_pages() {
    let (space, table) = space();
    table.map(0x10_0000, 0x5000, Access::Write);
    table.map(0x10_1000, 0x3000, Access::Write);
    let view = space.view();
    view.write(0x10_0ffe, &[1, 2, 3, 4]).unwrap();
    let physical = space.untranslated().view();
    assert_eq!(physical.read_array(0x5ffe).unwrap(), [1, 2]);
    assert_eq!(physical.read_array(0x3000).unwrap(), [3, 4]);

    let mut list = SgList::new();
    list.push(&view, 0x10_0ffe, 4, Access::Write).unwrap();
    let segments: Vec<_> = list.segments().map(|s| (s.guest_addr(), s.len())).collect();
    assert_eq!(segments, [(Some(0x5ffe), 2), (Some(0x3000), 2)]);
    let error = view.map_area::<2>(0x10_0000, 0x2000, Access::Read).unwrap_err();
    assert_eq!(error, DmaError::NotContiguous { addr: 0x10_0000, len: 0x2000 });
}

#[test]
fn faults_say_what_and_why() {
    let (space, table) = space();
    table.map(0x1000, 0x5000, Access::Read);
    let view = space.view();
    assert!(view.read_array::<8>(0x1ff8).is_ok());
    let denied = DmaFault { iova: 0x1000, access: Access::Write, reason: FaultReason::Denied };
    assert_eq!(view.write(0x1000, &[0]), Err(DmaError::Fault(denied)));
    let hole = DmaFault { iova: 0x2000, access: Access::Read, reason: FaultReason::NotMapped };
    assert_eq!(view.read_array::<16>(0x1ff8), Err(DmaError::Fault(hole)));
    let mut list = SgList::new();
    assert_eq!(list.push(&view, 0x1ff8, 16, Access::Read), Err(DmaError::Fault(hole)));
    assert_eq!((list.len(), list.as_iovecs().len()), (0, 0), "a failed push leaves nothing");
}

#[test]
fn an_unmap_is_a_new_generation() {
    let (space, table) = space();
    table.map(0x1000, 0x5000, Access::Write);
    let mut view = space.view();
    assert!(!view.refresh());
    table.map(0x2000, 0x6000, Access::Write);
    assert!(!view.refresh(), "an addition invalidates nothing");
    table.unmap(0x1000);
    assert!(view.refresh());
    assert!(view.read_array::<1>(0x1000).is_err());
}

/// A translation that breaks its contract or leads nowhere.
#[derive(Debug)]
struct Bad(Translation, Arc<PinBoard>);

impl Translate for Bad {
    fn pins(&self) -> &Arc<PinBoard> {
        &self.1
    }

    fn translate(&self, _: u64, _: u64, _: Access) -> Result<Translation, DmaFault> {
        Ok(self.0)
    }
}

#[test]
fn a_bad_translation_ends_in_an_error() {
    for (addr, len) in [(0, 0), (u64::MAX, 8), (0x10_0000, 8), (0xfffe, u64::MAX)] {
        let bad = Arc::new(Bad(Translation { addr, len }, PinBoard::new()));
        let view = DmaSpace::anonymous(&[(0, 0x10000)]).unwrap().with_translate(bad).view();
        assert!(view.read_array::<8>(0x1000).is_err());
    }
}
