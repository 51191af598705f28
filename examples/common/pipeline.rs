//! What can be done to the pipeline of a running device, whatever is in front of it.

use std::time::Duration;

use iovirt::backends::block::file::FileControl;
use iovirt::backends::interposers::fault::{FaultConfig, FaultControl};
use iovirt::backends::interposers::filter::FilterControl;
use iovirt::backends::interposers::mirror::MirrorControl;
use iovirt::core::Request as Family;
use iovirt::core::frontend::Outcome;
use iovirt::core::pipeline::{BoxBackend, Stages, SwapControl, SwapError};
use iovirt::core::request::block::BlockRequest;
use iovirt::core::request::net::NetRequest;
use iovirt::describe::{Chain, DescribeError, Description};
use iovirt::registry::{Options, Registry, TypedStage};
use iovirt::sched::scheduled::ScheduledControl;
use serde_json::{Value, json};

/// How long a stack that is to stay may take to go on.
const GO_ON: Duration = Duration::from_secs(10);

/// A running device that was made from a description.
pub(crate) trait Piped {
    /// What it is made of now.
    fn description(&self) -> Description;
    /// Its stages as they are now.
    fn stages(&self) -> Stages;
    /// Below the topmost stage of that name there is another stack now.
    fn now_below(&self, stage: &str, chain: Chain);
}

/// The device of that number, counted from 0.
pub(crate) fn pick<D>(devices: &[D], number: usize) -> Result<&D, String> {
    devices.get(number).ok_or_else(|| match devices.len() {
        0 => "there is no device at all".into(),
        1 => format!("there is no device {number}; there is device 0 only"),
        many => format!("there is no device {number}; there are devices 0 to {}", many - 1),
    })
}

/// A device with its number, its pipeline and its stages from the top down.
pub(crate) fn describe(number: usize, device: &impl Piped) -> Value {
    let stages = device.stages();
    let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    json!({ "device": number, "pipeline": device.description().to_string(), "stages": names })
}

/// What becomes of the stack in a place.
#[derive(Clone, Debug)]
pub(crate) enum Exchange {
    /// This one takes its place.
    Swap(Chain),
    /// This one comes where there is none.
    Add(Chain),
    /// It is taken away.
    Remove,
}

impl Exchange {
    /// An exchange for the chain of that description.
    pub(crate) fn swap(to: &str) -> Result<Self, String> {
        chain_of(to).map(Self::Swap)
    }

    /// A newcomer of that description for a vacant place.
    pub(crate) fn add(to: &str) -> Result<Self, String> {
        chain_of(to).map(Self::Add)
    }
}

fn chain_of(text: &str) -> Result<Chain, String> {
    text.parse().map_err(|error: DescribeError| error.to_string())
}

/// Changes what is below a stage that makes a place for that. Whoever calls has it done once at a time.
pub(crate) fn exchange(
    registry: &Registry,
    (number, device): (usize, &impl Piped),
    stage: &str,
    exchange: &Exchange,
    limit: Duration,
) -> Result<Value, String> {
    let stages = device.stages();
    if let Some(control) = stages.control::<SwapControl<BlockRequest>>(stage) {
        carry_out(&control, exchange, |chain| registry.build_block(chain), limit)?;
    } else if let Some(control) = stages.control::<SwapControl<NetRequest>>(stage) {
        carry_out(&control, exchange, |chain| registry.build_net(chain), limit)?;
    } else {
        let reason = "nothing below it can be exchanged: a stage `swappable` makes a place for that";
        return Err(if stages.iter().any(|found| found.name == stage) {
            format!("`{stage}` of device {number} is no such place, and {reason}")
        } else {
            format!("device {number} has no stage `{stage}`, and {reason}")
        });
    }
    match exchange {
        Exchange::Swap(chain) | Exchange::Add(chain) => device.now_below(stage, chain.clone()),
        Exchange::Remove => device.now_below(stage, chain_of("vacant")?),
    }
    Ok(json!({ "pipeline": device.description().to_string() }))
}

/// Carries an exchange through, or goes back to what was there.
fn carry_out<R: Family>(
    control: &SwapControl<R>,
    exchange: &Exchange,
    build: impl Fn(&Chain) -> Result<BoxBackend<R>, DescribeError>,
    limit: Duration,
) -> Result<(), String> {
    let newcomer = |chain: &Chain| build(chain).map_err(|error| error.to_string());
    let begun = match exchange {
        Exchange::Swap(chain) => control.swap(newcomer(chain)?),
        // Known without opening a file, which may be the one in place.
        Exchange::Add(_) if !control.is_vacant() => Err(SwapError::Occupied),
        Exchange::Add(chain) => control.insert(newcomer(chain)?),
        Exchange::Remove => control.remove(),
    };
    let ticket = begun.map_err(|error| error.to_string())?;
    match ticket.wait(limit) {
        Some(Outcome::Done) => return Ok(()),
        Some(Outcome::Cancelled) => {}
        None => {
            control.cancel();
            // It may have come to its end in this very moment.
            match ticket.wait(GO_ON) {
                Some(Outcome::Done) => return Ok(()),
                _ => {
                    return Err(format!(
                        "the stack in place did not come to rest within {limit:?}; it stays"
                    ));
                }
            }
        }
    }
    Err("the newcomer could not be opened; what was in place stays".into())
}

/// Changes a stage's settings to those of a description.
pub(crate) fn set((number, device): (usize, &impl Piped), to: &str) -> Result<Value, String> {
    let stages = device.stages();
    // The stage of a chain whose end does not matter.
    let chain: Chain = format!("{to} -> null").parse().map_err(|error: DescribeError| error.to_string())?;
    let [spec] = &chain.stages[..] else { return Err("one stage with its settings is asked for".into()) };
    let missing = || format!("device {number} has no stage `{}`", spec.name());
    if spec.name() != FaultConfig::INFO.name {
        let there = stages.iter().any(|found| found.name == spec.name());
        return Err(if there {
            format!("`{}` cannot be changed while it runs: of the stages, `fault` can", spec.name())
        } else {
            missing()
        });
    }
    let options = Options::check(&FaultConfig::INFO, spec).map_err(|error| error.to_string())?;
    let config = FaultConfig::from_options(&options).map_err(|error| error.to_string())?;
    let control = stages.control::<FaultControl>("fault").ok_or_else(missing)?;
    control.set(&config).map_err(|error| error.to_string())?;
    Ok(json!(to))
}

/// Lets requests go on that a stage holds.
pub(crate) fn release((number, device): (usize, &impl Piped), stage: &str) -> Result<Value, String> {
    let stages = device.stages();
    let control = stages.control::<FaultControl>(stage);
    control.ok_or_else(|| format!("device {number} has no stage `{stage}` that holds requests"))?.release();
    Ok(json!("released"))
}

/// Changes the size of the disk at the end of the pipeline, in bytes.
pub(crate) fn resize(device: &impl Piped, bytes: u64) -> Result<(), String> {
    let stages = device.stages();
    let file = stages.control::<FileControl>("file").ok_or("no stage of its pipeline can be resized")?;
    file.resize(bytes).map(|_| ()).map_err(|error| error.to_string())
}

/// What stages other than `stats` tell of themselves.
pub(crate) fn state_of_stages(stages: &Stages) -> Result<Value, serde_json::Error> {
    let mut list = Vec::new();
    for stage in stages.iter() {
        let state = if let Some(control) = stage.control::<FaultControl>() {
            serde_json::to_value(control.snapshot())?
        } else if let Some(control) = stage.control::<FilterControl>() {
            serde_json::to_value(control.snapshot())?
        } else if let Some(control) = stage.control::<MirrorControl>() {
            json!({ "replicas": control.replicas(), "quorum": control.quorum(), "writable": control.is_writable() })
        } else if let Some(flow) = stage.control::<ScheduledControl>().and_then(|control| control.snapshot())
        {
            json!(format!("{flow:?}"))
        } else {
            continue;
        };
        list.push(json!({ "stage": stage.name, "state": state }));
    }
    Ok(list.into())
}

/// Puts a chain in the place of what is below the first stage of that name; gives it back where there is none.
pub(crate) fn put_below(chain: &mut Chain, stage: &str, newcomer: Chain) -> Option<Chain> {
    let Some(at) = chain.stages.iter().position(|spec| spec.name() == stage) else {
        let mut branches = chain.backend.branches.iter_mut();
        return branches.try_fold(newcomer, |newcomer, branch| put_below(branch, stage, newcomer));
    };
    chain.stages.truncate(at + 1);
    chain.stages.extend(newcomer.stages);
    chain.backend = newcomer.backend;
    None
}
