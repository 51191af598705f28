//! `fault`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::interposers::Kinds;
use iovirt_backends::interposers::fault::{Fault, FaultConfig, FaultKind};
use iovirt_core::Request;
use iovirt_core::pipeline::BoxInterposer;
use iovirt_core::request::block::BlockRequest;
use iovirt_core::request::net::NetRequest;

const KINDS: [(&str, FaultKind); 4] = [
    ("error", FaultKind::Error),
    ("stall", FaultKind::Stall),
    ("hang", FaultKind::Hang),
    ("drop", FaultKind::Drop),
];

pub(super) fn row() -> StageRow {
    StageRow::any_interposer(FaultConfig::INFO, build::<BlockRequest>, build::<NetRequest>)
}

fn build<R: Request>(options: &Options<'_>) -> Result<BoxInterposer<R>, DescribeError> {
    let config = FaultConfig::from_options(options)?;
    let fault = Fault::<R>::new(&config).map_err(|error| options.refused(error))?;
    Ok(BoxInterposer::new(fault.layer()))
}

impl TypedStage for FaultConfig {
    const INFO: StageInfo = StageInfo {
        name: "fault",
        family: Family::Any,
        maturity: Maturity::Experimental,
        help: "Fails requests, or leaves them unanswered, by rule and by chance",
        keys: &[
            super::kinds(
                "fail",
                "the kinds of request that it may strike: all, or names with + between them",
            ),
            KeyInfo::default(
                "kind",
                ValueKind::Choice(&["error", "stall", "hang", "drop"]),
                "error",
                "what becomes of a request that is struck; drop breaks the contract and is for tests",
            ),
            KeyInfo::default(
                "every",
                ValueKind::Integer { min: 0, max: u64::MAX },
                "0",
                "strikes every so-many-th of these requests on each queue; 0 for none",
            ),
            KeyInfo::default(
                "permille",
                ValueKind::Integer { min: 0, max: 1000 },
                "0",
                "strikes each of these requests with this probability in thousandths",
            ),
            super::SEED,
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        Ok(Self {
            fail: options.required::<Kinds>("fail")?,
            kind: options.choice("kind", &KINDS)?,
            every: options.required("every")?,
            permille: options.required("permille")?,
            seed: options.required("seed")?,
        })
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::default();
        let kind_name = |kind: &FaultKind| match kind {
            FaultKind::Error => "error".into(),
            FaultKind::Stall => "stall".into(),
            FaultKind::Hang => "hang".into(),
            FaultKind::Drop => "drop".into(),
        };
        Spec::new(&Self::INFO)
            .with("fail", &self.fail, &default.fail, Kinds::to_string)
            .with("kind", &self.kind, &default.kind, kind_name)
            .with("every", &self.every, &default.every, u64::to_string)
            .with("permille", &self.permille, &default.permille, u32::to_string)
            .with("seed", &self.seed, &default.seed, u64::to_string)
            .spec
    }
}
