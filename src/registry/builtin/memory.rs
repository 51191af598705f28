//! `memory`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec, format_size, format_switch};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::block::memory::{MemoryBackend, MemoryConfig};
use iovirt_core::pipeline::BoxBackend;

pub(super) fn row() -> StageRow {
    StageRow::block_backend(MemoryConfig::INFO, |options| {
        let config = MemoryConfig::from_options(options)?;
        let backend = MemoryBackend::new(&config).map_err(|error| options.refused(error))?;
        Ok(BoxBackend::new(backend))
    })
}

impl TypedStage for MemoryConfig {
    const INFO: StageInfo = StageInfo {
        name: "memory",
        family: Family::Block,
        maturity: Maturity::Experimental,
        help: "A sparse RAM disk; its content goes with the process",
        keys: &[
            KeyInfo::default("size", ValueKind::Size, "1G", "size of the disk, a multiple of 512 bytes"),
            KeyInfo::default(
                "physical-block",
                ValueKind::Size,
                "512",
                "the unit that the guest is told to write in, a power of two from 512 to 1M",
            ),
            KeyInfo::default("readonly", ValueKind::Switch, "off", "refuse what changes the disk"),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        Ok(Self {
            size: options.required("size")?,
            physical_block: options.required("physical-block")?,
            read_only: options.required("readonly")?,
        })
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::default();
        Spec::new(&Self::INFO)
            .with("size", &self.size, &default.size, |size| format_size(*size))
            .with("physical-block", &self.physical_block, &default.physical_block, |size| {
                format_size(u64::from(*size))
            })
            .with("readonly", &self.read_only, &default.read_only, |on| format_switch(*on).into())
            .spec
    }
}
