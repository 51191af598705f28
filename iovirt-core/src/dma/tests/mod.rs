//! Tests of guest memory.

mod area;
mod list;
mod map;
mod pool;
mod translate;

use super::{DmaSpace, DmaView, PageLog, Region};
use std::sync::Arc;

/// Three regions: two that touch, one apart.
pub(super) fn view() -> DmaView {
    DmaSpace::anonymous(&[(0, 0x2000), (0x2000, 0x1000), (0x10000, 0x1000)]).unwrap().view()
}

/// A region with a log.
pub(super) fn logged(base: u64, len: u64) -> (Region, Arc<PageLog>) {
    let log = Arc::new(PageLog::new(len));
    (Region::anonymous(base, len).unwrap().with_dirty_log(log.clone()), log)
}

/// The offsets of a log's dirty pages; leaves it clean.
pub(super) fn dirty(log: &PageLog) -> Vec<u64> {
    let mut pages = Vec::new();
    log.take(|offset| pages.push(offset));
    pages
}
