//! `swappable`.

use crate::registry::{Family, Maturity, StageInfo, StageRow};
use iovirt_core::pipeline::{BoxInterposer, SwapLayer};
use iovirt_core::request::block::BlockCaps;
use iovirt_core::request::net::NetCaps;

const INFO: StageInfo = StageInfo {
    name: "swappable",
    family: Family::Any,
    maturity: Maturity::Experimental,
    help: "A place where the stack below can be exchanged under a running device",
    keys: &[],
};

pub(super) fn row() -> StageRow {
    StageRow::any_interposer(
        INFO,
        |_| Ok(BoxInterposer::new(SwapLayer::new(BlockCaps::may_replace))),
        |_| Ok(BoxInterposer::new(SwapLayer::new(NetCaps::may_replace))),
    )
}
