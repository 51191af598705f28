//! `loopback`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::net::loopback::{LoopbackBackend, LoopbackConfig};
use iovirt_core::pipeline::BoxBackend;

pub(super) fn row() -> StageRow {
    StageRow::net_backend(LoopbackConfig::INFO, |options| {
        let config = LoopbackConfig::from_options(options)?;
        let backend = LoopbackBackend::new(&config).map_err(|error| options.refused(error))?;
        Ok(BoxBackend::new(backend))
    })
}

impl TypedStage for LoopbackConfig {
    const INFO: StageInfo = StageInfo {
        name: "loopback",
        family: Family::Net,
        maturity: Maturity::Experimental,
        help: "A network on which every frame comes back to its sender",
        keys: &[
            KeyInfo::default(
                "mtu",
                ValueKind::Integer { min: 68, max: 65535 },
                "1500",
                "largest payload of a frame in bytes",
            ),
            KeyInfo::default(
                "queues",
                ValueKind::Integer { min: 1, max: 32 },
                "32",
                "pairs of queues that are served",
            ),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        Ok(Self { mtu: options.required("mtu")?, pairs: options.required("queues")? })
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::default();
        Spec::new(&Self::INFO)
            .with("mtu", &self.mtu, &default.mtu, ToString::to_string)
            .with("queues", &self.pairs, &default.pairs, ToString::to_string)
            .spec
    }
}
