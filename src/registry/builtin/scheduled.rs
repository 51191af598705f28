//! `scheduled`.

use super::{Spec, TypedStage};
use crate::describe::{DescribeError, StageSpec};
use crate::registry::{Family, KeyInfo, Maturity, Options, StageInfo, StageRow, ValueKind};
use iovirt_core::pipeline::BoxInterposer;
use iovirt_core::scheduler::Weight;
use iovirt_sched::scheduled::{Groups, Scheduled, ScheduledConfig};
use std::num::NonZeroUsize;

/// The stages that it builds join these groups.
pub(super) fn row(groups: Groups) -> StageRow {
    let others = groups.clone();
    StageRow::any_interposer(
        ScheduledConfig::INFO,
        move |options| stage(options, &groups).map(BoxInterposer::new),
        move |options| stage(options, &others).map(BoxInterposer::new),
    )
}

fn stage(options: &Options<'_>, groups: &Groups) -> Result<Scheduled, DescribeError> {
    let config = ScheduledConfig::from_options(options)?;
    Scheduled::from_config(&config, groups).map_err(|error| options.refused(error))
}

impl TypedStage for ScheduledConfig {
    const INFO: StageInfo = StageInfo {
        name: "scheduled",
        family: Family::Any,
        maturity: Maturity::Experimental,
        help: "Takes turns with the other pipelines of a group, in proportion to weights",
        keys: &[
            KeyInfo::required("group", ValueKind::Text, "the group that the pipeline joins"),
            KeyInfo::default(
                "weight",
                ValueKind::Integer { min: 1, max: Weight::MAX as u64 },
                "100",
                "its share, in proportion to the others of the group",
            ),
            KeyInfo::optional(
                "depth",
                ValueKind::Integer { min: 1, max: 1 << 20 },
                "requests of the whole group that are below at once; 32 where no pipeline of it says",
            ),
        ],
    };

    fn from_options(options: &Options<'_>) -> Result<Self, DescribeError> {
        let beyond = |key| options.bad_value(key, "that is beyond what the stage can hold");
        let weight = Weight::new(options.required("weight")?).ok_or_else(|| beyond("weight"))?;
        let depth = options.optional::<usize>("depth")?;
        let depth = depth.map(|depth| NonZeroUsize::new(depth).ok_or_else(|| beyond("depth"))).transpose()?;
        Ok(Self { group: options.required("group")?, weight, depth })
    }

    fn to_spec(&self) -> StageSpec {
        let spec = Spec::new(&Self::INFO).spec.with("group", self.group.clone());
        Spec { spec }
            .with("weight", &self.weight, &Weight::DEFAULT, |weight| weight.get().to_string())
            .with("depth", &self.depth, &None, |depth| {
                depth.map(|depth| depth.to_string()).unwrap_or_default()
            })
            .spec
    }
}
