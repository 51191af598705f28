//! One row of the table: what a stage is, which keys it has, and what builds it.

use super::Options;
use crate::describe::{DescribeError, parse_number, parse_size, parse_switch, parse_time};
use iovirt_core::Request;
use iovirt_core::pipeline::{BoxBackend, BoxInterposer};
use iovirt_core::request::block::BlockRequest;
use iovirt_core::request::net::NetRequest;
use std::fmt::{self, Display, Formatter};
use std::ops::RangeInclusive;

/// What the table says of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageInfo {
    /// Its name in descriptions.
    pub name: &'static str,
    /// The requests it is for.
    pub family: Family,
    /// How far it is.
    pub maturity: Maturity,
    /// One line about it, without a full stop.
    pub help: &'static str,
    /// Its keys.
    pub keys: &'static [KeyInfo],
}

/// What the table says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// Its name.
    pub name: &'static str,
    /// What its value can be.
    pub value: ValueKind,
    /// Whether it must be given, and what holds where it is not.
    pub need: Need,
    /// One line about it, without a full stop.
    pub help: &'static str,
}

/// Whether a key must be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It must.
    Required,
    /// Without it, it counts as given with this value.
    Default(&'static str),
    /// Without it there is no value.
    Optional,
}

/// What a value can be; how each is written stands in [`describe`](crate::describe).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ValueKind {
    /// A size in bytes.
    Size,
    /// A duration.
    Time,
    /// `on` or `off`.
    Switch,
    /// A whole number between bounds, both included.
    Integer {
        /// The least.
        min: u64,
        /// The greatest.
        max: u64,
    },
    /// Anything.
    Text,
    /// A path of the host.
    Path,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// What a stage is in a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageKind {
    /// The emulated device.
    FrontEnd,
    /// What stands between.
    Interposer,
    /// What spreads requests over the pipelines in its brackets.
    FanOut,
    /// What does the work.
    BackEnd,
}

/// The requests that a stage is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// Any.
    Any,
    /// Block requests.
    Block,
    /// Network requests.
    Net,
}

/// How far a stage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maturity {
    /// It works and is tested; its options may still change.
    Experimental,
    /// Its options stay, and saved state of it can be restored by later versions.
    Stable,
}

pub(super) type Make<T> = Box<dyn Fn(&Options<'_>) -> Result<T, DescribeError> + Send + Sync>;

pub(super) type MakeFanOut = Box<
    dyn Fn(&Options<'_>, Vec<BoxBackend<BlockRequest>>) -> Result<BoxBackend<BlockRequest>, DescribeError>
        + Send
        + Sync,
>;

/// What builds a stage.
pub(super) enum Build {
    /// Whoever makes the device: the table only checks its options.
    FrontEnd,
    BlockInterposer(Make<BoxInterposer<BlockRequest>>),
    BlockBackend(Make<BoxBackend<BlockRequest>>),
    NetInterposer(Make<BoxInterposer<NetRequest>>),
    NetBackend(Make<BoxBackend<NetRequest>>),
    /// Stands above any family.
    AnyInterposer(Make<BoxInterposer<BlockRequest>>, Make<BoxInterposer<NetRequest>>),
    /// With the number of branches that it takes.
    BlockFanOut(RangeInclusive<usize>, MakeFanOut),
    /// Nothing in this build.
    Absent(StageKind),
}

/// One row of the table: what a stage is, and what builds it.
pub struct StageRow {
    info: StageInfo,
    build: Build,
}

impl StageRow {
    /// A front-end. Its options are checked; whoever makes the device takes them from
    /// [`Registry::frontend_options`](super::Registry::frontend_options).
    pub fn front_end(info: StageInfo) -> Self {
        Self { info, build: Build::FrontEnd }
    }

    /// A back-end for block requests.
    pub fn block_backend(
        info: StageInfo,
        make: impl Fn(&Options<'_>) -> Result<BoxBackend<BlockRequest>, DescribeError> + Send + Sync + 'static,
    ) -> Self {
        Self { info, build: Build::BlockBackend(Box::new(make)) }
    }

    /// An interposer for block requests.
    pub fn block_interposer(
        info: StageInfo,
        make: impl Fn(&Options<'_>) -> Result<BoxInterposer<BlockRequest>, DescribeError> + Send + Sync + 'static,
    ) -> Self {
        Self { info, build: Build::BlockInterposer(Box::new(make)) }
    }

    /// A back-end for network requests.
    pub fn net_backend(
        info: StageInfo,
        make: impl Fn(&Options<'_>) -> Result<BoxBackend<NetRequest>, DescribeError> + Send + Sync + 'static,
    ) -> Self {
        Self { info, build: Build::NetBackend(Box::new(make)) }
    }

    /// An interposer for network requests.
    pub fn net_interposer(
        info: StageInfo,
        make: impl Fn(&Options<'_>) -> Result<BoxInterposer<NetRequest>, DescribeError> + Send + Sync + 'static,
    ) -> Self {
        Self { info, build: Build::NetInterposer(Box::new(make)) }
    }

    /// An interposer for requests of any family: one builder for each.
    pub fn any_interposer(
        info: StageInfo,
        block: impl Fn(&Options<'_>) -> Result<BoxInterposer<BlockRequest>, DescribeError> + Send + Sync + 'static,
        net: impl Fn(&Options<'_>) -> Result<BoxInterposer<NetRequest>, DescribeError> + Send + Sync + 'static,
    ) -> Self {
        Self { info, build: Build::AnyInterposer(Box::new(block), Box::new(net)) }
    }

    /// A stage that spreads block requests over several back-ends: the pipelines in its brackets, of which it takes as many
    /// as `branches` says, in their order.
    pub fn block_fanout(
        info: StageInfo,
        branches: RangeInclusive<usize>,
        make: impl Fn(
            &Options<'_>,
            Vec<BoxBackend<BlockRequest>>,
        ) -> Result<BoxBackend<BlockRequest>, DescribeError>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        Self { info, build: Build::BlockFanOut(branches, Box::new(make)) }
    }

    /// A stage that descriptions may name and that this build lacks: it is listed and checked, and building it says so.
    pub fn absent(info: StageInfo, kind: StageKind) -> Self {
        Self { info, build: Build::Absent(kind) }
    }

    /// What the table says of the stage.
    pub fn info(&self) -> &StageInfo {
        &self.info
    }

    /// What the stage is in a pipeline.
    pub fn kind(&self) -> StageKind {
        match self.build {
            Build::FrontEnd => StageKind::FrontEnd,
            Build::BlockInterposer(_) | Build::NetInterposer(_) | Build::AnyInterposer(..) => {
                StageKind::Interposer
            }
            Build::BlockBackend(_) | Build::NetBackend(_) => StageKind::BackEnd,
            Build::BlockFanOut(..) => StageKind::FanOut,
            Build::Absent(kind) => kind,
        }
    }

    /// How many pipelines the stage takes in its brackets; `None` where it takes none.
    pub fn branches(&self) -> Option<&RangeInclusive<usize>> {
        match &self.build {
            Build::BlockFanOut(branches, _) => Some(branches),
            _ => None,
        }
    }

    /// Whether this build has the stage.
    pub fn is_available(&self) -> bool {
        !matches!(self.build, Build::Absent(_))
    }

    pub(super) fn build(&self) -> &Build {
        &self.build
    }
}

impl fmt::Debug for StageRow {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("StageRow")
            .field("info", &self.info)
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
}

impl KeyInfo {
    /// A key that must be given.
    pub const fn required(name: &'static str, value: ValueKind, help: &'static str) -> Self {
        Self { name, value, need: Need::Required, help }
    }

    /// A key that has a default, written as in a description.
    pub const fn default(
        name: &'static str,
        value: ValueKind,
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { name, value, need: Need::Default(default), help }
    }

    /// A key that may be left out.
    pub const fn optional(name: &'static str, value: ValueKind, help: &'static str) -> Self {
        Self { name, value, need: Need::Optional, help }
    }
}

impl ValueKind {
    /// Whether a text is such a value.
    pub fn accepts(&self, text: &str) -> bool {
        match self {
            Self::Size => parse_size(text).is_some(),
            Self::Time => parse_time(text).is_some(),
            Self::Switch => parse_switch(text).is_some(),
            Self::Integer { min, max } => parse_number(text).is_some_and(|n| (*min..=*max).contains(&n)),
            Self::Text => true,
            Self::Path => !text.is_empty() && !text.contains('\0'),
            Self::Choice(words) => words.contains(&text),
        }
    }
}

/// What is allowed, as messages and lists say it.
impl Display for ValueKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size => f.write_str("a size like 512, 64K, 10M, 1G or 2T"),
            Self::Time => f.write_str("a time like 500ns, 20us, 5ms or 1s"),
            Self::Switch => f.write_str("on or off"),
            Self::Integer { min, max: u64::MAX } => write!(f, "a number, {min} or more"),
            Self::Integer { min, max } => write!(f, "a number from {min} to {max}"),
            Self::Text => f.write_str("a text"),
            Self::Path => f.write_str("a path"),
            Self::Choice(words) => write!(f, "one of {}", words.join(", ")),
        }
    }
}

impl StageKind {
    /// Whether it may stand where `place` belongs.
    pub(super) fn stands_for(self, place: Self) -> bool {
        self == place || (self == Self::FanOut && place == Self::BackEnd)
    }

    pub(super) fn with_article(self) -> &'static str {
        match self {
            Self::FrontEnd => "a front-end",
            Self::Interposer => "an interposer",
            Self::FanOut => "a fan-out",
            Self::BackEnd => "a back-end",
        }
    }
}

impl Family {
    /// The family's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Block => "block",
            Self::Net => "net",
        }
    }
}

impl Display for Maturity {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Experimental => "experimental",
            Self::Stable => "stable",
        })
    }
}

/// A family of requests that pipelines can be built for.
pub(super) trait Buildable: Request {
    /// The family in the table.
    const OF: Family;

    /// Builds a back-end of this family above what is in its brackets; `None` where the row has none.
    fn make_backend(
        build: &Build,
        options: &Options<'_>,
        branches: Vec<BoxBackend<Self>>,
    ) -> Option<Result<BoxBackend<Self>, DescribeError>>;

    /// The builder of an interposer for this family.
    fn interposer(build: &Build) -> Option<&Make<BoxInterposer<Self>>>;
}

impl Buildable for BlockRequest {
    const OF: Family = Family::Block;

    fn make_backend(
        build: &Build,
        options: &Options<'_>,
        branches: Vec<BoxBackend<Self>>,
    ) -> Option<Result<BoxBackend<Self>, DescribeError>> {
        match build {
            Build::BlockBackend(make) => Some(make(options)),
            Build::BlockFanOut(_, make) => Some(make(options, branches)),
            _ => None,
        }
    }

    fn interposer(build: &Build) -> Option<&Make<BoxInterposer<Self>>> {
        match build {
            Build::BlockInterposer(make) | Build::AnyInterposer(make, _) => Some(make),
            _ => None,
        }
    }
}

impl Buildable for NetRequest {
    const OF: Family = Family::Net;

    fn make_backend(
        build: &Build,
        options: &Options<'_>,
        _: Vec<BoxBackend<Self>>,
    ) -> Option<Result<BoxBackend<Self>, DescribeError>> {
        if let Build::NetBackend(make) = build { Some(make(options)) } else { None }
    }

    fn interposer(build: &Build) -> Option<&Make<BoxInterposer<Self>>> {
        match build {
            Build::NetInterposer(make) | Build::AnyInterposer(_, make) => Some(make),
            _ => None,
        }
    }
}
