//! `overlay`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec, format_size};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::interposers::overlay::{Overlay, OverlayConfig};
use iovirt_core::pipeline::BoxBackend;

pub(super) fn row() -> StageRow {
    StageRow::block_fanout(OverlayConfig::INFO, 2..=2, |options, layers| {
        let config = OverlayConfig::from_options(options)?;
        let [upper, base] = <[_; 2]>::try_from(layers)
            .map_err(|layers| options.refused(format!("{} layers are not allowed: 2 are", layers.len())))?;
        let overlay = Overlay::over(&config, upper, base).map_err(|error| options.refused(error.reason))?;
        Ok(BoxBackend::new(overlay))
    })
}

impl TypedStage for OverlayConfig {
    const INFO: StageInfo = StageInfo {
        name: "overlay",
        family: Family::Block,
        maturity: Maturity::Experimental,
        help: "Copy-on-write: what is written goes to the first, over the second, which is only read",
        keys: &[
            KeyInfo::default("name", ValueKind::Text, "overlay", "what its control handle is found by"),
            KeyInfo::default(
                "cluster",
                ValueKind::Size,
                "64K",
                "the unit in which data moves up, a power of two from 4K to 1M",
            ),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        Ok(Self { name: options.required("name")?, cluster: options.required("cluster")? })
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::default();
        Spec::new(&Self::INFO)
            .with("name", &self.name, &default.name, String::clone)
            .with("cluster", &self.cluster, &default.cluster, |cluster| format_size(*cluster))
            .spec
    }
}
