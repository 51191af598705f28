//! `stats`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::interposers::stats::{Stats, StatsConfig};
use iovirt_core::Request;
use iovirt_core::pipeline::BoxInterposer;
use iovirt_core::request::block::BlockRequest;
use iovirt_core::request::net::NetRequest;

pub(super) fn row() -> StageRow {
    StageRow::any_interposer(StatsConfig::INFO, build::<BlockRequest>, build::<NetRequest>)
}

fn build<R: Request>(options: &Options<'_>) -> Result<BoxInterposer<R>, DescribeError> {
    let config = StatsConfig::from_options(options)?;
    Ok(BoxInterposer::new(Stats::<R>::new(&config).layer()))
}

impl TypedStage for StatsConfig {
    const INFO: StageInfo = StageInfo {
        name: "stats",
        family: Family::Any,
        maturity: Maturity::Experimental,
        help: "Counts requests, bytes and failures, and measures latency below it",
        keys: &[KeyInfo::default(
            "name",
            ValueKind::Text,
            "stats",
            "what its control handle is found by, where there are several",
        )],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        Ok(Self { name: options.required("name")? })
    }

    fn to_spec(&self) -> StageSpec {
        Spec::new(&Self::INFO).with("name", &self.name, &Self::default().name, String::clone).spec
    }
}
