//! The rows of the stages in this build: one file each, with the way from options to the stage's configuration and back.

mod delay;
mod fault;
mod file;
mod filter;
mod loopback;
mod memory;
mod mirror;
mod nbd;
mod null;
mod overlay;
mod scheduled;
mod stats;
mod stripe;
mod swappable;
mod tap;
mod virtio_blk;
mod virtio_net;

use super::{KeyInfo, Options, StageInfo, StageRow, ValueKind};
use crate::describe::{DescribeError, StageSpec};
use iovirt_sched::scheduled::Groups;

/// The seed of a stage that leaves something to chance.
const SEED: KeyInfo =
    KeyInfo::default("seed", ValueKind::Integer { min: 0, max: u64::MAX }, "1", "where chance begins");

/// The kinds of request that a stage is about.
const fn kinds(name: &'static str, help: &'static str) -> KeyInfo {
    KeyInfo::default(name, ValueKind::Text, "all", help)
}

/// A stage's configuration that can be described: from options, and back as the shortest description of it.
///
/// ```
/// use iovirt::backends::block::memory::MemoryConfig;
/// use iovirt::registry::{Options, TypedStage};
///
/// let config = MemoryConfig { size: 10 << 20, ..MemoryConfig::default() };
/// let spec = config.to_spec();
/// assert_eq!(spec.to_string(), "memory,size=10M");
/// assert_eq!(MemoryConfig::from_options(&Options::check(&MemoryConfig::INFO, &spec)?)?, config);
/// # Ok::<(), iovirt::describe::DescribeError>(())
/// ```
pub trait TypedStage: Sized {
    /// The stage's row of the table.
    const INFO: StageInfo;

    /// The configuration that the options describe.
    ///
    /// # Errors
    /// Where an option is beyond what the configuration holds.
    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError>;

    /// The configuration as a description, without the options that have their default.
    fn to_spec(&self) -> StageSpec;
}

pub(super) fn rows(groups: &Groups) -> Vec<StageRow> {
    vec![
        virtio_blk::row(),
        virtio_net::row(),
        delay::row(),
        fault::row(),
        filter::row(),
        scheduled::row(groups.clone()),
        stats::row(),
        swappable::row(),
        mirror::row(),
        stripe::row(),
        overlay::row(),
        null::row(),
        memory::row(),
        file::row(),
        nbd::row(),
        loopback::row(),
        tap::row(),
    ]
}

/// A description of a stage in the making, without the options that have their default.
struct Spec {
    spec: StageSpec,
}

impl Spec {
    fn new(info: &StageInfo) -> Self {
        Self { spec: StageSpec::new(info.name) }
    }

    fn with<T: PartialEq>(
        self,
        key: &str,
        value: &T,
        default: &T,
        format: impl FnOnce(&T) -> String,
    ) -> Self {
        if value == default { self } else { Self { spec: self.spec.with(key, format(value)) } }
    }
}
