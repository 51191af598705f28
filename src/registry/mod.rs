//! The stages that a description can name: one table, which checks descriptions, builds pipelines, and prints itself.
//!
//! [`Registry::standard`] has the stages of this build; an embedder adds its own as [`StageRow`]s.
//!
//! ```
//! use iovirt::core::pipeline::BoxBackend;
//! use iovirt::describe::{Chain, DescribeError};
//! use iovirt::registry::{Family, KeyInfo, Maturity, Registry, StageInfo, StageRow, ValueKind};
//! use iovirt::backends::block::null::{NullBackend, NullConfig};
//!
//! const RULER: StageInfo = StageInfo {
//!     name: "ruler",
//!     family: Family::Block,
//!     maturity: Maturity::Experimental,
//!     help: "A null disk measured in sectors",
//!     keys: &[KeyInfo::required("sectors", ValueKind::Integer { min: 1, max: 1 << 32 }, "how many")],
//! };
//! let mut registry = Registry::standard();
//! registry.add(StageRow::block_backend(RULER, |options| {
//!     let size = options.required::<u64>("sectors")? * 512;
//!     let null = NullBackend::new(&NullConfig { size, fill: true }).map_err(|error| options.refused(error))?;
//!     Ok(BoxBackend::new(null))
//! }))?;
//!
//! let chain: Chain = "stats -> ruler,sectors=8".parse()?;
//! let disk = registry.build_block(&chain)?;
//! assert_eq!(iovirt::core::Backend::caps(&disk).capacity, 4096);
//!
//! let typo: Chain = "stats -> ruler,sector=8".parse()?;
//! assert_eq!(
//!     registry.build_block(&typo).unwrap_err().to_string(),
//!     "column 16: `ruler` has no key `sector`; did you mean `sectors`? (allowed: sectors)",
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod builtin;
mod list;
mod options;
mod row;
#[cfg(test)]
mod tests;

pub use builtin::TypedStage;
pub use options::{OptionValue, Options};
pub use row::{Family, KeyInfo, Maturity, Need, StageInfo, StageKind, StageRow, ValueKind};

use crate::describe::{
    Chain, DescribeError, DescribeErrorKind, Description, MAX_DEPTH, Node, Place, StageSpec,
};
use iovirt_core::pipeline::{BoxBackend, Pipeline};
use iovirt_core::request::block::BlockRequest;
use iovirt_core::request::net::NetRequest;
use iovirt_frontends::virtio::VirtioDevice;
use iovirt_frontends::virtio::blk::{BlkConfig, VirtioBlk};
use iovirt_frontends::virtio::net::{NetConfig, VirtioNet};
use iovirt_sched::scheduled::Groups;
use row::{Build, Buildable, Make};
use std::sync::Arc;
use thiserror::Error;

/// The stages that a description can name; see the [module](self).
#[derive(Debug)]
pub struct Registry {
    rows: Vec<StageRow>,
    groups: Groups,
}

/// A stage of that name is in the registry already.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a stage called `{0}` is in the registry already")]
pub struct NameTaken(pub &'static str);

impl Registry {
    /// No stage at all.
    pub fn empty() -> Self {
        Self { rows: Vec::new(), groups: Groups::new() }
    }

    /// The stages of this build.
    pub fn standard() -> Self {
        let groups = Groups::new();
        Self { rows: builtin::rows(&groups), groups }
    }

    /// The groups that the `scheduled` stages of this registry's pipelines join, by name: to read them, or to
    /// [add](Groups::add) one with a scheduler of its own. Pipelines of two registries share nothing.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Adds a stage.
    ///
    /// # Errors
    /// Where its name is taken.
    pub fn add(&mut self, row: StageRow) -> Result<(), NameTaken> {
        if self.row(row.info().name).is_some() {
            return Err(NameTaken(row.info().name));
        }
        self.rows.push(row);
        Ok(())
    }

    /// The stages in the order in which they were added.
    pub fn rows(&self) -> impl Iterator<Item = &StageRow> {
        self.rows.iter()
    }

    /// The stage of that name.
    pub fn row(&self, name: &str) -> Option<&StageRow> {
        self.rows.iter().find(|row| row.info().name == name)
    }

    /// Parses a description and checks it: every stage is known and where it belongs, every key and value is one that
    /// its stage has. Nothing is opened.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(&self, text: &str) -> Result<Description, DescribeError> {
        let description: Description = text.parse()?;
        self.check(&description)?;
        Ok(description)
    }

    /// Checks a description, as [`Registry::parse`] does.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, description: &Description) -> Result<(), DescribeError> {
        let frontend = &description.frontend;
        let row = self.expect(frontend, StageKind::FrontEnd, None)?;
        Options::check(row.info(), frontend)?;
        self.check_chain(&description.below, row.info().family)
    }

    /// The options of a front-end, checked: what the code that makes the device takes them from.
    ///
    /// # Errors
    /// Where it is no front-end, or a key or a value is none that it has.
    pub fn frontend_options<'a>(&'a self, spec: &'a StageSpec) -> Result<Options<'a>, DescribeError> {
        Options::check(self.expect(spec, StageKind::FrontEnd, None)?.info(), spec)
    }

    /// Builds a virtio device and what is below it, for any transport.
    ///
    /// # Errors
    /// As [`Registry::build_block`], and where the front-end is not a virtio device of this build or refuses its options.
    pub fn build_virtio(&self, description: &Description) -> Result<Arc<dyn VirtioDevice>, DescribeError> {
        self.check(description)?;
        let (spec, below) = (&description.frontend, &description.below);
        let options = self.frontend_options(spec)?;
        if spec.name() == BlkConfig::INFO.name {
            let disk = VirtioBlk::new(BlkConfig::from_options(&options)?, self.build_block(below)?);
            return Ok(Arc::new(disk.map_err(|error| options.refused(error))?));
        }
        if spec.name() == NetConfig::INFO.name {
            let card = VirtioNet::new(NetConfig::from_options(&options)?, self.build_net(below)?);
            return Ok(Arc::new(card.map_err(|error| options.refused(error))?));
        }
        let kind = DescribeErrorKind::Unavailable { stage: spec.name().into() };
        Err(DescribeError::new(spec.place(), kind))
    }

    /// The family of requests that a front-end makes.
    ///
    /// # Errors
    /// Where it is no front-end.
    pub fn family(&self, frontend: &StageSpec) -> Result<Family, DescribeError> {
        Ok(self.expect(frontend, StageKind::FrontEnd, None)?.info().family)
    }

    /// Builds what is below a block device, through [`Pipeline::boxed`].
    ///
    /// # Errors
    /// Where the chain does not pass the [check](Registry::check), or a stage refuses its options or what is below it.
    pub fn build_block(&self, chain: &Chain) -> Result<BoxBackend<BlockRequest>, DescribeError> {
        self.build(chain)
    }

    /// Builds what is below a network card, through [`Pipeline::boxed`].
    ///
    /// # Errors
    /// As [`Registry::build_block`].
    pub fn build_net(&self, chain: &Chain) -> Result<BoxBackend<NetRequest>, DescribeError> {
        self.build(chain)
    }

    fn build<R: Buildable>(&self, chain: &Chain) -> Result<BoxBackend<R>, DescribeError> {
        self.check_chain(chain, R::OF)?;
        self.build_checked(chain)
    }

    /// Builds what has passed the check. The depth of the recursion is that of the brackets, which the check bounds.
    fn build_checked<R: Buildable>(&self, chain: &Chain) -> Result<BoxBackend<R>, DescribeError> {
        let Node { stage, branches } = &chain.backend;
        let branches: Vec<_> =
            branches.iter().map(|branch| self.build_checked(branch)).collect::<Result<_, _>>()?;
        let backend = self.make(stage, |build, options| R::make_backend(build, options, branches))?;
        let interposer =
            |spec| self.make(spec, |build, options| R::interposer(build).map(|make: &Make<_>| make(options)));
        let stages = chain.stages.iter().map(interposer).collect::<Result<_, _>>()?;
        Ok(Pipeline::boxed(stages, backend)?)
    }

    /// Has a stage built by what fits of its row's builder.
    fn make<T>(
        &self,
        spec: &StageSpec,
        make: impl FnOnce(&Build, &Options<'_>) -> Option<Result<T, DescribeError>>,
    ) -> Result<T, DescribeError> {
        let row = self.row(spec.name()).ok_or_else(|| self.unknown(spec, None, None))?;
        let options = Options::check(row.info(), spec)?;
        let made = make(row.build(), &options).unwrap_or_else(|| {
            let stage = spec.name().into();
            Err(DescribeError::new(Place::default(), DescribeErrorKind::Unavailable { stage }))
        });
        made.map_err(|error| error.or_at(spec.place()))
    }

    fn check_chain(&self, chain: &Chain, family: Family) -> Result<(), DescribeError> {
        self.check_nested(chain, family, MAX_DEPTH)
    }

    /// Checks a chain in which brackets may be nested so deep.
    fn check_nested(&self, chain: &Chain, family: Family, depth: usize) -> Result<(), DescribeError> {
        for stage in &chain.stages {
            self.check_stage(stage, StageKind::Interposer, family)?;
        }
        let Node { stage, branches } = &chain.backend;
        let row = self.check_stage(stage, StageKind::BackEnd, family)?;
        let given = branches.len();
        let kind = match row.branches() {
            None if given == 0 => return Ok(()),
            None => DescribeErrorKind::NoBranches { stage: stage.name().into() },
            Some(allowed) if !allowed.contains(&given) => {
                let (stage, allowed) = (stage.name().into(), allowed.clone());
                DescribeErrorKind::BranchCount { stage, given, allowed }
            }
            Some(_) if depth == 0 => {
                DescribeErrorKind::TooMuch { what: "levels of brackets", limit: MAX_DEPTH }
            }
            Some(_) => {
                return branches.iter().try_for_each(|branch| self.check_nested(branch, family, depth - 1));
            }
        };
        Err(DescribeError::new(stage.place(), kind))
    }

    fn check_stage(
        &self,
        spec: &StageSpec,
        kind: StageKind,
        family: Family,
    ) -> Result<&StageRow, DescribeError> {
        let row = self.expect(spec, kind, Some(family))?;
        let own = row.info().family;
        if own != family && own != Family::Any {
            let (is, wanted) = (own.name(), family.name());
            let kind = DescribeErrorKind::WrongFamily { stage: spec.name().into(), is, wanted };
            return Err(DescribeError::new(spec.place(), kind));
        }
        Options::check(row.info(), spec)?;
        Ok(row)
    }

    /// The row of a stage that is to be of that kind, in a pipeline of that family. A fan-out stands where
    /// a back-end does.
    fn expect(
        &self,
        spec: &StageSpec,
        kind: StageKind,
        family: Option<Family>,
    ) -> Result<&StageRow, DescribeError> {
        let row = self.row(spec.name()).ok_or_else(|| self.unknown(spec, Some(kind), family))?;
        if row.kind().stands_for(kind) {
            return Ok(row);
        }
        let (is, wanted) = (row.kind().with_article(), kind.with_article());
        let kind = DescribeErrorKind::WrongPlace { stage: spec.name().into(), is, wanted };
        Err(DescribeError::new(spec.place(), kind))
    }

    /// There is no such stage; those that fit the place are what is allowed.
    fn unknown(&self, spec: &StageSpec, kind: Option<StageKind>, family: Option<Family>) -> DescribeError {
        let fits = |row: &&StageRow| {
            let own = row.info().family;
            kind.is_none_or(|kind| row.kind().stands_for(kind))
                && family.is_none_or(|family| own == family || own == Family::Any)
        };
        let allowed = self.rows().filter(fits).map(|row| row.info().name.into()).collect();
        let kind = DescribeErrorKind::UnknownStage { name: spec.name().into(), allowed };
        DescribeError::new(spec.place(), kind)
    }
}
