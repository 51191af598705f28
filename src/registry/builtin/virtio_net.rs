//! `virtio-net`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_core::request::net::{MacAddr, Offloads};
use iovirt_frontends::virtio::net::NetConfig;

pub(super) fn row() -> StageRow {
    StageRow::front_end(NetConfig::INFO)
}

const OFFLOADS: [(&str, Offloads); 2] = [("on", Offloads::all()), ("off", Offloads::empty())];

/// A description knows all or none.
fn word(offloads: Offloads) -> &'static str {
    if offloads.is_empty() { "off" } else { "on" }
}

impl TypedStage for NetConfig {
    const INFO: StageInfo = StageInfo {
        name: "virtio-net",
        family: Family::Net,
        maturity: Maturity::Experimental,
        help: "A virtio network card",
        keys: &[
            KeyInfo::optional(
                "mac",
                ValueKind::Text,
                "the guest's address, as in 52:54:00:12:34:56; else what the network hints at, or a random one",
            ),
            KeyInfo::default("queues", ValueKind::Integer { min: 1, max: 32 }, "1", "pairs of queues"),
            KeyInfo::default(
                "queue-size",
                ValueKind::Integer { min: 2, max: 32768 },
                "256",
                "largest size of each queue in descriptors, a power of two",
            ),
            KeyInfo::default(
                "offloads",
                ValueKind::Switch,
                "on",
                "let the guest leave checksums and cutting to the network, and the other way round",
            ),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        let mac: Option<String> = options.optional("mac")?;
        let mac = mac.map(|text| text.parse::<MacAddr>()).transpose();
        let config = Self {
            mac: mac.map_err(|_| options.bad_value("mac", "it takes six bytes, as in 52:54:00:12:34:56"))?,
            pairs: options.required("queues")?,
            queue_size: options.required("queue-size")?,
            offloads: options.choice("offloads", &OFFLOADS)?,
        };
        config.check().map_err(|error| options.refused(error))?;
        Ok(config)
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::default();
        Spec::new(&Self::INFO)
            .with("mac", &self.mac, &default.mac, |mac| mac.unwrap_or_default().to_string())
            .with("queues", &self.pairs, &default.pairs, ToString::to_string)
            .with("queue-size", &self.queue_size, &default.queue_size, ToString::to_string)
            .with("offloads", &self.offloads, &default.offloads, |offloads| word(*offloads).into())
            .spec
    }
}
