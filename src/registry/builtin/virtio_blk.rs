//! `virtio-blk`. What makes the device takes its options from
//! [`Registry::frontend_options`](crate::registry::Registry::frontend_options).

use crate::registry::{Family, KeyInfo, Maturity, StageInfo, StageRow, ValueKind};

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

pub(super) fn row() -> StageRow {
    StageRow::front_end(INFO)
}
