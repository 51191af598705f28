//! Carries out what clients ask for.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use iovirt::backends::interposers::fault::{FaultConfig, FaultControl};
use iovirt::backends::interposers::filter::FilterControl;
use iovirt::backends::interposers::mirror::MirrorControl;
use iovirt::core::Request as Family;
use iovirt::core::frontend::{Outcome, Ticket};
use iovirt::core::pipeline::{BoxBackend, SwapControl, SwapError};
use iovirt::core::request::block::BlockRequest;
use iovirt::core::request::net::NetRequest;
use iovirt::describe::{Chain, DescribeError};
use iovirt::registry::{Options, Registry, TypedStage};
use iovirt::sched::scheduled::ScheduledControl;
use serde_json::{Value, json};

use super::request::{Deadline, Request, Size, Then};
use super::{Reply, Serve};
use crate::control::{Control, Stop};
use crate::devices::Device;
use crate::gate::StillRunning;
use crate::snapshot::{Fixed, Saver};
use crate::vcpu;

/// How long a device may take to go on.
const RESUME: Duration = Duration::from_secs(10);

/// What it says where it cannot be told whether a machine pauses.
const BUSY: &str = "another request that changes the machine is being carried out";

/// Carries out requests on a machine.
#[derive(Debug)]
pub(crate) struct Operator {
    registry: Arc<Registry>,
    devices: Arc<Vec<Device>>,
    control: Arc<Control>,
    /// None where there is no guest.
    saver: Option<Saver>,
    /// Whether the machine pauses. Held by whatever changes the machine, one thing at a time.
    paused: Mutex<bool>,
}

impl Operator {
    /// One for these devices; without the rest of a machine, that cannot be saved.
    pub(crate) fn new(
        registry: Arc<Registry>,
        devices: Arc<Vec<Device>>,
        control: Arc<Control>,
        fixed: Option<Fixed>,
    ) -> Self {
        let saver = |fixed| Saver { fixed, devices: devices.clone(), control: control.clone() };
        let saver = fixed.map(saver);
        Self { registry, devices, control, saver, paused: Mutex::new(false) }
    }

    fn change(&self) -> Result<MutexGuard<'_, bool>, String> {
        match self.paused.try_lock() {
            Ok(paused) => Ok(paused),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(BUSY.into()),
        }
    }

    fn device(&self, number: usize) -> Result<&Device, String> {
        let many = self.devices.len();
        self.devices.get(number).ok_or_else(|| match many {
            0 => "this machine has no device".into(),
            1 => format!("there is no device {number}; there is device 0 only"),
            _ => format!("there is no device {number}; there are devices 0 to {}", many - 1),
        })
    }

    fn list(&self) -> Value {
        let device = |(number, device): (usize, &Device)| {
            let stages = device.frontend().stages();
            let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
            json!({ "device": number, "pipeline": device.description().to_string(), "stages": names })
        };
        self.devices.iter().enumerate().map(device).collect()
    }

    fn stats(&self) -> Result<Value, String> {
        let device = |device: &Device| {
            let mut report = serde_json::to_value(device.report())?;
            report["state"] = state_of_stages(device)?;
            Ok(report)
        };
        let reports: Result<Vec<_>, serde_json::Error> = self.devices.iter().map(device).collect();
        reports.map(Value::from).map_err(|error| error.to_string())
    }

    /// Stops the vCPUs and drains the devices. Where something does not come to rest in time, all go on.
    fn pause(&self, Deadline(limit): Deadline) -> Result<Value, String> {
        let mut paused = self.change()?;
        if *paused {
            return Err("the machine pauses already".into());
        }
        let end = Instant::now() + limit;
        self.stop_vcpus(limit)?;
        let stuck = self.drain(end);
        if let Some(device) = stuck.first() {
            self.go_on()?;
            return Err(format!(
                "device {device} did not come to rest within {limit:?}: requests are in flight; the machine goes on"
            ));
        }
        *paused = true;
        Ok(json!("paused"))
    }

    fn stop_vcpus(&self, limit: Duration) -> Result<(), String> {
        self.control.gate.close(limit, vcpu::kick).map_err(|StillRunning(vcpus)| match vcpus[..] {
            [] => format!("the vCPUs have not begun within {limit:?}"),
            _ => format!("vCPUs {vcpus:?} did not stop within {limit:?}; the machine goes on"),
        })
    }

    /// Drains all devices at once; the numbers of those that are not at rest at the end.
    fn drain(&self, end: Instant) -> Vec<usize> {
        let tickets: Vec<Ticket> = self.devices.iter().map(|device| device.frontend().drain()).collect();
        let rests = |ticket: &Ticket| {
            ticket.wait(end.saturating_duration_since(Instant::now())) == Some(Outcome::Done)
        };
        (0..).zip(&tickets).filter(|(_, ticket)| !rests(ticket)).map(|(number, _)| number).collect()
    }

    /// Devices first, so that a guest finds them at work.
    fn go_on(&self) -> Result<(), String> {
        let tickets: Vec<Ticket> = self.devices.iter().map(|device| device.frontend().resume()).collect();
        let slow = tickets.iter().position(|ticket| ticket.wait(RESUME) != Some(Outcome::Done));
        self.control.gate.open();
        slow.map_or(Ok(()), |device| Err(format!("device {device} did not go on within {RESUME:?}")))
    }

    fn resume(&self) -> Result<Value, String> {
        let mut paused = self.change()?;
        if !*paused {
            return Err("the machine does not pause".into());
        }
        self.go_on()?;
        *paused = false;
        Ok(json!("running"))
    }

    /// Pauses, writes the file, and goes on or ends. A device that is stuck can only be saved by a machine that ends, as its
    /// requests would be done twice otherwise.
    fn save(&self, path: &Path, then: Then, Deadline(limit): Deadline) -> Result<Value, String> {
        let mut paused = self.change()?;
        let saver = self.saver.as_ref().ok_or("there is no guest to be saved")?;
        if let Some(device) = self.devices.iter().position(Device::has_vacancy) {
            return Err(format!(
                "device {device} has a place without a stack, which no file of a machine can tell: add one first"
            ));
        }
        let end = Instant::now() + limit;
        let mut stuck = Vec::new();
        if !*paused {
            self.stop_vcpus(limit)?;
            stuck = self.drain(end);
        }
        let saved = match stuck.first() {
            Some(device) if then == Then::Resume => Err(format!(
                "device {device} did not come to rest within {limit:?}: it can only be saved by a machine that ends (\"then\":\"quit\")"
            )),
            _ => saver.save(path).map_err(|error| error.to_string()),
        };
        match saved {
            Ok(bytes) if then == Then::Quit => {
                Ok(json!({ "memory": bytes, "devices-with-requests-in-flight": stuck }))
            }
            Ok(bytes) => {
                self.go_on()?;
                *paused = false;
                Ok(json!({ "memory": bytes }))
            }
            // As it was before.
            Err(error) if *paused => Err(error),
            Err(error) => self.go_on().and(Err(error)),
        }
    }

    /// Changes what is below a stage that makes a place for that.
    fn exchange(
        &self,
        number: usize,
        stage: &str,
        exchange: &Exchange,
        limit: Duration,
    ) -> Result<Value, String> {
        let _one = self.change()?;
        let device = self.device(number)?;
        let stages = device.frontend().stages();
        if let Some(control) = stages.control::<SwapControl<BlockRequest>>(stage) {
            carry_out(&control, exchange, |chain| self.registry.build_block(chain), limit)?;
        } else if let Some(control) = stages.control::<SwapControl<NetRequest>>(stage) {
            carry_out(&control, exchange, |chain| self.registry.build_net(chain), limit)?;
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

    /// Changes a stage's settings to those of a description.
    fn set(&self, number: usize, to: &str) -> Result<Value, String> {
        let stages = self.device(number)?.frontend().stages();
        // The stage of a chain whose end does not matter.
        let chain: Chain =
            format!("{to} -> null").parse().map_err(|error: DescribeError| error.to_string())?;
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

    fn release(&self, number: usize, stage: &str) -> Result<Value, String> {
        let stages = self.device(number)?.frontend().stages();
        let control = stages.control::<FaultControl>(stage);
        control
            .ok_or_else(|| format!("device {number} has no stage `{stage}` that holds requests"))?
            .release();
        Ok(json!("released"))
    }

    fn resize(&self, number: usize, Size(bytes): Size) -> Result<Value, String> {
        self.device(number)?.resize(bytes).map(|()| json!(bytes))
    }
}

impl Serve for Operator {
    fn serve(&self, request: Request) -> Reply {
        match request {
            Request::Devices {} => Ok(self.list()),
            Request::Stats {} => self.stats(),
            Request::Resize { device, size } => self.resize(device, size),
            Request::Pause { deadline } => self.pause(deadline),
            Request::Resume {} => self.resume(),
            Request::Save { path, then, deadline } => {
                let result = self.save(&path, then, deadline);
                let end = (then == Then::Quit && result.is_ok()).then_some(Stop::Saved);
                return Reply { result, end };
            }
            Request::Swap { device, stage, to, deadline } => {
                chain_of(&to).and_then(|to| self.exchange(device, &stage, &Exchange::Swap(to), deadline.0))
            }
            Request::Add { device, stage, to, deadline } => {
                chain_of(&to).and_then(|to| self.exchange(device, &stage, &Exchange::Add(to), deadline.0))
            }
            Request::Remove { device, stage, deadline } => {
                self.exchange(device, &stage, &Exchange::Remove, deadline.0)
            }
            Request::Set { device, to } => self.set(device, &to),
            Request::Release { device, stage } => self.release(device, &stage),
            Request::Quit {} => {
                return Reply { result: Ok(json!("the machine ends")), end: Some(Stop::Told) };
            }
        }
        .into()
    }

    fn end(&self, cause: Stop) {
        self.control.stop(cause);
    }
}

/// What becomes of the stack in a place.
#[derive(Clone, Debug)]
enum Exchange {
    /// This one takes its place.
    Swap(Chain),
    /// This one comes where there is none.
    Add(Chain),
    /// It is taken away.
    Remove,
}

fn chain_of(text: &str) -> Result<Chain, String> {
    text.parse().map_err(|error: DescribeError| error.to_string())
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
            match ticket.wait(RESUME) {
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

/// What stages other than `stats` tell of themselves.
fn state_of_stages(device: &Device) -> Result<Value, serde_json::Error> {
    let mut list = Vec::new();
    for stage in device.frontend().stages().iter() {
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

#[cfg(test)]
mod tests;
