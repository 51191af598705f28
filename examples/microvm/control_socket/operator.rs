//! Carries out what clients ask for.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use iovirt::core::frontend::{Outcome, Ticket};
use iovirt::registry::Registry;
use serde_json::{Value, json};

use super::request::{Request, Then};
use crate::common::control_socket::request::{Deadline, Size};
use crate::common::control_socket::{Reply, Serve};
use crate::common::pipeline::{self, Exchange, Piped};
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
        pipeline::pick(&self.devices, number)
    }

    fn list(&self) -> Value {
        self.devices.iter().enumerate().map(|(number, device)| pipeline::describe(number, device)).collect()
    }

    fn stats(&self) -> Result<Value, String> {
        let device = |device: &Device| {
            let mut report = serde_json::to_value(device.report())?;
            report["state"] = pipeline::state_of_stages(&device.stages())?;
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
        pipeline::exchange(&self.registry, (number, device), stage, exchange, limit)
    }

    fn resize(&self, number: usize, Size(bytes): Size) -> Result<Value, String> {
        pipeline::resize(self.device(number)?, bytes).map(|()| json!(bytes))
    }
}

impl Serve for Operator {
    type Request = Request;
    type End = Stop;

    fn serve(&self, request: Request) -> Reply<Stop> {
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
                Exchange::swap(&to).and_then(|exchange| self.exchange(device, &stage, &exchange, deadline.0))
            }
            Request::Add { device, stage, to, deadline } => {
                Exchange::add(&to).and_then(|exchange| self.exchange(device, &stage, &exchange, deadline.0))
            }
            Request::Remove { device, stage, deadline } => {
                self.exchange(device, &stage, &Exchange::Remove, deadline.0)
            }
            Request::Set { device, to } => {
                self.device(device).and_then(|found| pipeline::set((device, found), &to))
            }
            Request::Release { device, stage } => {
                self.device(device).and_then(|found| pipeline::release((device, found), &stage))
            }
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

#[cfg(test)]
mod tests;
