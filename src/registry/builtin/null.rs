//! `null`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec, format_size, format_switch};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::block::null::{NullBackend, NullConfig};
use iovirt_core::pipeline::BoxBackend;

pub(super) fn row() -> StageRow {
    StageRow::block_backend(NullConfig::INFO, |options| {
        let config = NullConfig::from_options(options)?;
        let backend = NullBackend::new(&config).map_err(|error| options.refused(error))?;
        Ok(BoxBackend::new(backend))
    })
}

impl TypedStage for NullConfig {
    const INFO: StageInfo = StageInfo {
        name: "null",
        family: Family::Block,
        maturity: Maturity::Experimental,
        help: "A disk that keeps nothing and answers at once, for measuring what is above it",
        keys: &[
            KeyInfo::default("size", ValueKind::Size, "1G", "size of the disk, a multiple of 512 bytes"),
            KeyInfo::default(
                "fill",
                ValueKind::Switch,
                "on",
                "reads give zeroes; off leaves memory as it is, which measures the path alone",
            ),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        Ok(Self { size: options.required("size")?, fill: options.required("fill")? })
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::default();
        Spec::new(&Self::INFO)
            .with("size", &self.size, &default.size, |size| format_size(*size))
            .with("fill", &self.fill, &default.fill, |fill| format_switch(*fill).into())
            .spec
    }
}
