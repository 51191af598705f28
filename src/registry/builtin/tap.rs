//! `tap`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::net::tap::{TapBackend, TapConfig};
use iovirt_core::pipeline::BoxBackend;

pub(super) fn row() -> StageRow {
    StageRow::net_backend(TapConfig::INFO, |options| {
        let config = TapConfig::from_options(options)?;
        let backend = TapBackend::open(&config).map_err(|error| options.refused(error))?;
        Ok(BoxBackend::new(backend))
    })
}

impl TypedStage for TapConfig {
    const INFO: StageInfo = StageInfo {
        name: "tap",
        family: Family::Net,
        maturity: Maturity::Experimental,
        help: "A tap device of the host",
        keys: &[
            KeyInfo::required("name", ValueKind::Text, "the tap device; made where there is none"),
            KeyInfo::default(
                "queues",
                ValueKind::Integer { min: 1, max: 32 },
                "1",
                "pairs of queues; above 1 the tap is opened as a multi-queue one",
            ),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        Ok(Self { name: options.required("name")?, pairs: options.required("queues")? })
    }

    fn to_spec(&self) -> StageSpec {
        let mut spec = Spec::new(&Self::INFO);
        spec.spec = spec.spec.with("name", self.name.clone());
        spec.with("queues", &self.pairs, &1, ToString::to_string).spec
    }
}
