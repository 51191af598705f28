//! `file`.

use crate::registry::{Family, KeyInfo, Maturity, StageInfo, StageKind, StageRow, ValueKind};

const INFO: StageInfo = StageInfo {
    name: "file",
    family: Family::Block,
    maturity: Maturity::Experimental,
    help: "A disk in a file or a block device of the host",
    keys: &[
        KeyInfo::required("path", ValueKind::Path, "the file, or the block device"),
        KeyInfo::default("readonly", ValueKind::Switch, "off", "refuse what changes the disk"),
        KeyInfo::default("direct", ValueKind::Switch, "off", "bypass the host's page cache"),
        KeyInfo::default(
            "cache",
            ValueKind::Choice(&["write-through", "write-back", "unsafe-ignore-flush"]),
            "write-through",
            "when a write is durable: before it completes, once flushed, or never",
        ),
        KeyInfo::default(
            "engine",
            ValueKind::Choice(&["auto", "uring", "threads"]),
            "auto",
            "who does the system calls: the worker's io_uring or a pool of threads",
        ),
        KeyInfo::default(
            "inline",
            ValueKind::Choice(&["auto", "on", "off"]),
            "auto",
            "whether the worker reads and writes by itself; auto does where the file lies in memory",
        ),
        KeyInfo::default("lock", ValueKind::Switch, "on", "keep others from opening the file"),
        KeyInfo::default("discard", ValueKind::Switch, "on", "let the guest give space back"),
        KeyInfo::default("threads", ValueKind::Integer { min: 1, max: 256 }, "4", "most threads of the pool"),
    ],
};

pub(super) fn row() -> StageRow {
    StageRow::absent(INFO, StageKind::BackEnd)
}
