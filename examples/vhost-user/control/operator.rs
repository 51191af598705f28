//! Carries out what clients ask for.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use iovirt::core::frontend::{Outcome, Ticket};
use iovirt::registry::Registry;
use serde_json::{Value, json};

use super::request::Request;
use crate::common::control_socket::request::{Deadline, Size};
use crate::common::control_socket::{Reply, Serve};
use crate::common::pipeline::{self, Exchange, Piped};
use crate::devices::Device;
use crate::events::{Event, Events};
use crate::options::Switch;

/// How long a device may take to go on.
const RESUME: Duration = Duration::from_secs(10);

/// What it says where something else is being changed.
const BUSY: &str = "another request that changes a device is being carried out";

/// Carries out requests on the devices.
#[derive(Debug)]
pub(crate) struct Operator {
    registry: Registry,
    devices: Arc<Vec<Device>>,
    events: Arc<Events>,
    /// What a new stack may open.
    reach: Reach,
    /// The devices that pause. Held by whatever changes a device, one thing at a time.
    paused: Mutex<BTreeSet<usize>>,
}

/// What files a new stack may open.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    pub(crate) sandbox: Switch,
    pub(crate) allowed: Vec<PathBuf>,
}

impl Reach {
    /// Says why the kernel refused, where it may have been the sandbox.
    fn explain(&self, error: String) -> String {
        let refused = ["Permission denied", "Operation not permitted"];
        if self.sandbox == Switch::Off || !refused.iter().any(|refusal| error.contains(refusal)) {
            return error;
        }
        let allowed: Vec<String> =
            self.allowed.iter().map(|path| format!(" --allow {}", path.display())).collect();
        if allowed.is_empty() {
            return format!(
                "{error}; the sandbox lets this process open no further file or connection (--allow DIR: files beneath it)"
            );
        }
        format!("{error}; the sandbox lets this process open nothing but files beneath{}", allowed.join(","))
    }
}

impl Operator {
    /// One for these devices.
    pub(crate) fn new(
        registry: Registry,
        devices: Arc<Vec<Device>>,
        events: Arc<Events>,
        reach: Reach,
    ) -> Self {
        Self { registry, devices, events, reach, paused: Mutex::default() }
    }

    fn change(&self) -> Result<MutexGuard<'_, BTreeSet<usize>>, String> {
        match self.paused.try_lock() {
            Ok(paused) => Ok(paused),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => Err(BUSY.into()),
        }
    }

    fn device(&self, number: usize) -> Result<&Device, String> {
        pipeline::pick(&self.devices, number)
    }

    /// One device, or all.
    fn devices(&self, number: Option<usize>) -> Result<Vec<(usize, &Device)>, String> {
        match number {
            Some(number) => Ok(vec![(number, self.device(number)?)]),
            None => Ok(self.devices.iter().enumerate().collect()),
        }
    }

    fn list(&self) -> Value {
        let describe = |(number, device): (usize, &Device)| {
            let mut value = pipeline::describe(number, device);
            value["socket"] = json!(device.socket());
            value["connected"] = json!(device.vhost_user().is_connected());
            value
        };
        self.devices.iter().enumerate().map(describe).collect()
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

    /// Drains devices. Where one does not come to rest in time, those that were not paused before go on.
    fn pause(&self, number: Option<usize>, Deadline(limit): Deadline) -> Result<Value, String> {
        let mut paused = self.change()?;
        let devices = self.devices(number)?;
        let running: Vec<_> = devices.into_iter().filter(|(number, _)| !paused.contains(number)).collect();
        if running.is_empty() {
            return Err("that pauses already".into());
        }
        let end = Instant::now() + limit;
        let tickets: Vec<(usize, Ticket)> =
            running.iter().map(|(number, device)| (*number, device.vhost_user().drain())).collect();
        let rests = |ticket: &Ticket| {
            ticket.wait(end.saturating_duration_since(Instant::now())) == Some(Outcome::Done)
        };
        if let Some((stuck, _)) = tickets.iter().find(|(_, ticket)| !rests(ticket)) {
            go_on(&running)?;
            return Err(format!(
                "device {stuck} did not come to rest within {limit:?}: requests are in flight; the devices go on"
            ));
        }
        paused.extend(tickets.iter().map(|(number, _)| *number));
        Ok(json!("paused"))
    }

    fn resume(&self, number: Option<usize>) -> Result<Value, String> {
        let mut paused = self.change()?;
        let devices = self.devices(number)?;
        let resting: Vec<_> = devices.into_iter().filter(|(number, _)| paused.contains(number)).collect();
        if resting.is_empty() {
            return Err("that does not pause".into());
        }
        go_on(&resting)?;
        for (number, _) in &resting {
            paused.remove(number);
        }
        Ok(json!("running"))
    }

    fn exchange(
        &self,
        number: usize,
        stage: &str,
        exchange: &Exchange,
        limit: Duration,
    ) -> Result<Value, String> {
        let _one = self.change()?;
        let device = self.device(number)?;
        let exchanged = pipeline::exchange(&self.registry, (number, device), stage, exchange, limit);
        exchanged.map_err(|error| self.reach.explain(error))
    }

    fn resize(&self, number: usize, Size(bytes): Size) -> Result<Value, String> {
        pipeline::resize(self.device(number)?, bytes).map(|()| json!(bytes))
    }
}

fn go_on(devices: &[(usize, &Device)]) -> Result<(), String> {
    let tickets: Vec<_> =
        devices.iter().map(|(number, device)| (number, device.vhost_user().resume())).collect();
    match tickets.iter().find(|(_, ticket)| ticket.wait(RESUME) != Some(Outcome::Done)) {
        Some((slow, _)) => Err(format!("device {slow} did not go on within {RESUME:?}")),
        None => Ok(()),
    }
}

impl Serve for Operator {
    type Request = Request;
    type End = Event;

    fn serve(&self, request: Request) -> Reply<Event> {
        match request {
            Request::Devices {} => Ok(self.list()),
            Request::Stats {} => self.stats(),
            Request::Resize { device, size } => self.resize(device, size),
            Request::Pause { device, deadline } => self.pause(device, deadline),
            Request::Resume { device } => self.resume(device),
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
                return Reply { result: Ok(json!("the daemon ends")), end: Some(Event::Quit) };
            }
        }
        .into()
    }

    fn end(&self, cause: Event) {
        self.events.push(cause);
    }
}

#[cfg(test)]
mod tests;
