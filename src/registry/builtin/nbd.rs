//! `nbd`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec, format_switch};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::block::nbd::{NbdAccess, NbdAddress, NbdBackend, NbdConfig, WithoutFlush};
use iovirt_core::pipeline::BoxBackend;
use std::path::PathBuf;

pub(super) fn row() -> StageRow {
    StageRow::block_backend(NbdConfig::INFO, |options| {
        let config = NbdConfig::from_options(options)?;
        let backend = NbdBackend::connect(config).map_err(|error| options.refused(error))?;
        Ok(BoxBackend::new(backend))
    })
}

fn address(options: &Options<'_>) -> Result<NbdAddress, DescribeError> {
    let host = options.optional::<String>("host")?;
    match (options.optional::<PathBuf>("socket")?, host, options.optional::<u16>("port")?) {
        (Some(path), None, None) => Ok(NbdAddress::Unix(path)),
        (None, Some(host), port) => Ok(NbdAddress::Tcp { host, port: port.unwrap_or(NbdAddress::PORT) }),
        (Some(_), ..) => Err(options.refused("socket= stands alone, without host= and port=")),
        (None, None, _) => Err(options.refused("socket= or host= says where the server listens")),
    }
}

impl TypedStage for NbdConfig {
    const INFO: StageInfo = StageInfo {
        name: "nbd",
        family: Family::Block,
        maturity: Maturity::Experimental,
        help: "A disk on an NBD server",
        keys: &[
            KeyInfo::optional("socket", ValueKind::Path, "the server's Unix socket"),
            KeyInfo::optional("host", ValueKind::Text, "the server's name or address, in place of socket"),
            KeyInfo::optional("port", ValueKind::Integer { min: 1, max: 65535 }, "with host; 10809 without"),
            KeyInfo::default(
                "export",
                ValueKind::Text,
                "",
                "the export's name; the server's default without",
            ),
            KeyInfo::default(
                "connections",
                ValueKind::Integer { min: 1, max: 256 },
                "16",
                "most connections, one for each queue; a server that does not share its disk gets one",
            ),
            KeyInfo::default("readonly", ValueKind::Switch, "off", "refuse what changes the disk"),
            KeyInfo::default(
                "unsafe-assume-write-through",
                ValueKind::Switch,
                "off",
                "take a server that can neither flush nor FUA for one that makes each write durable at once",
            ),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        let on = |key| options.required::<bool>(key);
        Ok(Self {
            address: address(options)?,
            export: options.required("export")?,
            connections: options.required("connections")?,
            access: if on("readonly")? { NbdAccess::ReadOnly } else { NbdAccess::ReadWrite },
            without_flush: if on("unsafe-assume-write-through")? {
                WithoutFlush::AssumeWriteThrough
            } else {
                WithoutFlush::Unsafe
            },
        })
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::new(self.address.clone());
        let mut spec = Spec::new(&Self::INFO);
        spec.spec = match &self.address {
            NbdAddress::Unix(path) => spec.spec.with("socket", path.to_string_lossy()),
            NbdAddress::Tcp { host, port: NbdAddress::PORT } => spec.spec.with("host", host),
            NbdAddress::Tcp { host, port } => spec.spec.with("host", host).with("port", port.to_string()),
        };
        spec.with("export", &self.export, &default.export, Clone::clone)
            .with("connections", &self.connections, &default.connections, ToString::to_string)
            .with("readonly", &self.access, &default.access, |_| format_switch(true).into())
            .with("unsafe-assume-write-through", &self.without_flush, &default.without_flush, |_| {
                format_switch(true).into()
            })
            .spec
    }
}
