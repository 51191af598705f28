//! `filter`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_backends::interposers::filter::{Drops, Filter, FilterConfig};
use iovirt_core::pipeline::BoxInterposer;

const DROPS: [(&str, Drops); 4] = [
    ("none", Drops::Nothing),
    ("transmit", Drops::Transmit),
    ("receive", Drops::Receive),
    ("all", Drops::All),
];

pub(super) fn row() -> StageRow {
    StageRow::net_interposer(FilterConfig::INFO, |options| {
        Ok(BoxInterposer::new(Filter::new(&FilterConfig::from_options(options)?).layer()))
    })
}

impl TypedStage for FilterConfig {
    const INFO: StageInfo = StageInfo {
        name: "filter",
        family: Family::Net,
        maturity: Maturity::Experimental,
        help: "Lets frames pass or drops them, as a predicate set by its control handle says, and counts both",
        keys: &[
            KeyInfo::default(
                "name",
                ValueKind::Text,
                "filter",
                "what its control handle is found by, where there are several",
            ),
            KeyInfo::default(
                "drop",
                ValueKind::Choice(&["none", "transmit", "receive", "all"]),
                "none",
                "what it drops until its control handle says otherwise",
            ),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        Ok(Self { name: options.required("name")?, drops: options.choice("drop", &DROPS)? })
    }

    fn to_spec(&self) -> StageSpec {
        let default = Self::default();
        let word = |drops: &Drops| {
            DROPS
                .iter()
                .find(|(_, known)| known == drops)
                .map_or_else(String::new, |(word, _)| (*word).into())
        };
        Spec::new(&Self::INFO)
            .with("name", &self.name, &default.name, String::clone)
            .with("drop", &self.drops, &default.drops, word)
            .spec
    }
}
