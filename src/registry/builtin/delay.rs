//! `delay`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec, format_time};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::interposers::Kinds;
use iovirt_backends::interposers::delay::{Delay, DelayConfig};
use iovirt_core::Request;
use iovirt_core::pipeline::BoxInterposer;
use iovirt_core::request::block::BlockRequest;
use iovirt_core::request::net::NetRequest;
use std::time::Duration;

pub(super) fn row() -> StageRow {
    StageRow::any_interposer(DelayConfig::INFO, build::<BlockRequest>, build::<NetRequest>)
}

fn build<R: Request>(options: &Options<'_>) -> Result<BoxInterposer<R>, DescribeError> {
    let config = DelayConfig::from_options(options)?;
    let delay = Delay::<R>::new(&config).map_err(|error| options.refused(error))?;
    Ok(BoxInterposer::new(delay.layer()))
}

impl TypedStage for DelayConfig {
    const INFO: StageInfo = StageInfo {
        name: "delay",
        family: Family::Any,
        maturity: Maturity::Experimental,
        help: "Holds requests for a time before they go on",
        keys: &[
            KeyInfo::default("time", ValueKind::Time, "1ms", "how long a request is held at least"),
            KeyInfo::default("jitter", ValueKind::Time, "0s", "how much longer at most, by chance"),
            super::kinds("kinds", "the kinds of request that it holds: all, or names with + between them"),
            super::SEED,
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        Ok(Self {
            time: options.required("time")?,
            jitter: options.required("jitter")?,
            kinds: options.required::<Kinds>("kinds")?,
            seed: options.required("seed")?,
        })
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::default();
        let format = |time: &Duration| format_time(*time);
        Spec::new(&Self::INFO)
            .with("time", &self.time, &default.time, format)
            .with("jitter", &self.jitter, &default.jitter, format)
            .with("kinds", &self.kinds, &default.kinds, Kinds::to_string)
            .with("seed", &self.seed, &default.seed, u64::to_string)
            .spec
    }
}
