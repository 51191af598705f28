//! `virtio-blk`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec, format_size};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_frontends::virtio::blk::BlkConfig;

pub(super) fn row() -> StageRow {
    StageRow::front_end(BlkConfig::INFO)
}

impl TypedStage for BlkConfig {
    const INFO: StageInfo = StageInfo {
        name: "virtio-blk",
        family: Family::Block,
        maturity: Maturity::Experimental,
        help: "A virtio block device",
        keys: &[
            KeyInfo::default("queues", ValueKind::Integer { min: 1, max: 64 }, "1", "request queues"),
            KeyInfo::default(
                "queue-size",
                ValueKind::Integer { min: 2, max: 32768 },
                "256",
                "largest size of each queue in descriptors, a power of two",
            ),
            KeyInfo::default(
                "seg-max",
                ValueKind::Integer { min: 1, max: 1022 },
                "254",
                "most data segments of one request",
            ),
            KeyInfo::optional("size-max", ValueKind::Size, "most bytes of one data segment, 4K or more"),
            KeyInfo::default(
                "serial",
                ValueKind::Text,
                "iovirt",
                "serial number, up to 20 printable ASCII characters",
            ),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        let config = Self {
            queues: options.required("queues")?,
            queue_size: options.required("queue-size")?,
            seg_max: options.required("seg-max")?,
            size_max: options.optional("size-max")?,
            serial: options.required("serial")?,
        };
        config.check().map_err(|error| options.refused(error))?;
        Ok(config)
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::default();
        Spec::new(&Self::INFO)
            .with("queues", &self.queues, &default.queues, ToString::to_string)
            .with("queue-size", &self.queue_size, &default.queue_size, ToString::to_string)
            .with("seg-max", &self.seg_max, &default.seg_max, ToString::to_string)
            .with("size-max", &self.size_max, &default.size_max, |size| format_size(size.unwrap_or(0).into()))
            .with("serial", &self.serial, &default.serial, Clone::clone)
            .spec
    }
}
