//! `file`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec, format_switch};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::block::file::{
    Cache, Direct, Discard, Engine, FileAccess, FileBackend, FileConfig, Inline, Lock,
};
use iovirt_core::pipeline::BoxBackend;
use std::path::PathBuf;

const CACHES: [(&str, Cache); 3] = [
    ("write-through", Cache::WriteThrough),
    ("write-back", Cache::WriteBack),
    ("unsafe-ignore-flush", Cache::UnsafeIgnoreFlush),
];
const ENGINES: [(&str, Engine); 3] =
    [("auto", Engine::Auto), ("uring", Engine::Uring), ("threads", Engine::Threads)];
const INLINES: [(&str, Inline); 3] = [("auto", Inline::Auto), ("on", Inline::On), ("off", Inline::Off)];

pub(super) fn row() -> StageRow {
    StageRow::block_backend(FileConfig::INFO, |options| {
        let config = FileConfig::from_options(options)?;
        let backend = FileBackend::open(config).map_err(|error| options.refused(error))?;
        Ok(BoxBackend::new(backend))
    })
}

impl TypedStage for FileConfig {
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
            KeyInfo::default(
                "threads",
                ValueKind::Integer { min: 1, max: 256 },
                "4",
                "most threads of the pool",
            ),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        let on = |key| options.required::<bool>(key);
        Ok(Self {
            path: options.required::<PathBuf>("path")?,
            access: if on("readonly")? { FileAccess::ReadOnly } else { FileAccess::ReadWrite },
            direct: if on("direct")? { Direct::On } else { Direct::Off },
            cache: options.choice("cache", &CACHES)?,
            engine: options.choice("engine", &ENGINES)?,
            inline: options.choice("inline", &INLINES)?,
            lock: if on("lock")? { Lock::On } else { Lock::Off },
            discard: if on("discard")? { Discard::On } else { Discard::Off },
            threads: options.required("threads")?,
        })
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::new(&self.path);
        let mut spec = Spec::new(&Self::INFO);
        spec.spec = spec.spec.with("path", self.path.to_string_lossy());
        spec.with("readonly", &self.access, &default.access, |_| format_switch(true).into())
            .with("direct", &self.direct, &default.direct, |_| format_switch(true).into())
            .with("cache", &self.cache, &default.cache, |cache| word(&CACHES, *cache))
            .with("engine", &self.engine, &default.engine, |engine| word(&ENGINES, *engine))
            .with("inline", &self.inline, &default.inline, |inline| word(&INLINES, *inline))
            .with("lock", &self.lock, &default.lock, |_| format_switch(false).into())
            .with("discard", &self.discard, &default.discard, |_| format_switch(false).into())
            .with("threads", &self.threads, &default.threads, ToString::to_string)
            .spec
    }
}

/// The word of a meaning: every meaning has one.
fn word<T: PartialEq + Copy>(words: &[(&str, T)], meaning: T) -> String {
    words.iter().find(|(_, known)| *known == meaning).map_or_else(String::new, |(word, _)| (*word).into())
}
