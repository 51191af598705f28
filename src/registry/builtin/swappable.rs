//! `swappable`.

use crate::registry::{Family, Maturity, StageInfo, StageRow};
use iovirt_core::pipeline::{BoxInterposer, SwapLayer};
use iovirt_core::request::block::BlockCaps;

const INFO: StageInfo = StageInfo {
    name: "swappable",
    family: Family::Block,
    maturity: Maturity::Experimental,
    help: "A place where the stack below can be exchanged under a running device",
    keys: &[],
};

pub(super) fn row() -> StageRow {
    StageRow::block_interposer(INFO, |_| Ok(BoxInterposer::new(SwapLayer::new(BlockCaps::may_replace))))
}
