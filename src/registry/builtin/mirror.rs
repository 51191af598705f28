//! `mirror`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::interposers::mirror::{Mirror, MirrorConfig, ReadPolicy};
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::stage::fanout::MAX_BRANCHES;

const READ: [(&str, ReadPolicy); 2] = [("first", ReadPolicy::First), ("round-robin", ReadPolicy::RoundRobin)];

pub(super) fn row() -> StageRow {
    StageRow::block_fanout(MirrorConfig::INFO, 1..=MAX_BRANCHES, |options, replicas| {
        let config = MirrorConfig::from_options(options)?;
        let mirror = Mirror::over(&config, replicas).map_err(|error| options.refused(error.reason))?;
        Ok(BoxBackend::new(mirror))
    })
}

impl TypedStage for MirrorConfig {
    const INFO: StageInfo = StageInfo {
        name: "mirror",
        family: Family::Block,
        maturity: Maturity::Experimental,
        help: "The same data on several back-ends",
        keys: &[
            KeyInfo::default("name", ValueKind::Text, "mirror", "what its control handle is found by"),
            KeyInfo::optional(
                "write-quorum",
                ValueKind::Integer { min: 1, max: MAX_BRANCHES as u64 },
                "on how many replicas a write must succeed; all, where it is not given",
            ),
            KeyInfo::default(
                "read",
                ValueKind::Choice(&["first", "round-robin"]),
                "first",
                "where reads go: to the first good replica, or to each in turn",
            ),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        Ok(Self {
            name: options.required("name")?,
            write_quorum: options.optional("write-quorum")?,
            read: options.choice("read", &READ)?,
        })
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::default();
        Spec::new(&Self::INFO)
            .with("name", &self.name, &default.name, String::clone)
            .with("write-quorum", &self.write_quorum, &None, |quorum| quorum.unwrap_or(1).to_string())
            .with("read", &self.read, &default.read, |read| {
                READ.iter().find(|(_, policy)| policy == read).map_or("", |(word, _)| word).into()
            })
            .spec
    }
}
