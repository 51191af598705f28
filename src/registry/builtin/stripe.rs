//! `stripe`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec, format_size};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::interposers::stripe::{Stripe, StripeConfig};
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::stage::fanout::MAX_BRANCHES;

pub(super) fn row() -> StageRow {
    StageRow::block_fanout(StripeConfig::INFO, 1..=MAX_BRANCHES, |options, branches| {
        let config = StripeConfig::from_options(options)?;
        let stripe = Stripe::over(&config, branches).map_err(|error| options.refused(error.reason))?;
        Ok(BoxBackend::new(stripe))
    })
}

impl TypedStage for StripeConfig {
    const INFO: StageInfo = StageInfo {
        name: "stripe",
        family: Family::Block,
        maturity: Maturity::Experimental,
        help: "One disk out of several, its data spread over them in chunks",
        keys: &[
            KeyInfo::default("name", ValueKind::Text, "stripe", "what the stage is called"),
            KeyInfo::default(
                "chunk",
                ValueKind::Size,
                "64K",
                "how much goes to one back-end before the next: a multiple of the block size, at most 1G",
            ),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        Ok(Self { name: options.required("name")?, chunk: options.required("chunk")? })
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::default();
        Spec::new(&Self::INFO)
            .with("name", &self.name, &default.name, String::clone)
            .with("chunk", &self.chunk, &default.chunk, |chunk| format_size(*chunk))
            .spec
    }
}
