//! What is said on standard output: that it is ready, and what it did.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;

use crate::common::pipeline::Piped;
use crate::common::report::device_text;
use crate::devices::{Device, DeviceReport, WorkerReport};

/// What is said once all sockets are listened on.
#[derive(Debug, Serialize)]
pub(crate) struct Ready {
    ready: Vec<ReadyDevice>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) metrics: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) control: Option<PathBuf>,
    /// `on`, `partial` or `off`.
    pub(crate) sandbox: &'static str,
}

#[derive(Debug, Serialize)]
struct ReadyDevice {
    pipeline: String,
    socket: PathBuf,
}

impl Ready {
    /// These devices can be connected to.
    pub(crate) fn new(devices: &[Device], sandbox: &'static str) -> Self {
        let device = |device: &Device| ReadyDevice {
            pipeline: device.description().to_string(),
            socket: device.socket().clone(),
        };
        Self { ready: devices.iter().map(device).collect(), metrics: None, control: None, sandbox }
    }

    /// One line for people.
    pub(crate) fn text(&self) -> String {
        let device = |device: &ReadyDevice| format!("{} on {}", device.pipeline, device.socket.display());
        let mut parts: Vec<String> = self.ready.iter().map(device).collect();
        parts.extend(self.metrics.as_ref().map(|address| format!("metrics on {address}")));
        parts.extend(self.control.as_ref().map(|path| format!("control on {}", path.display())));
        format!("ready: {}", parts.join("; "))
    }
}

/// What a run was like.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// How it ended, in a few words.
    pub(crate) end: String,
    /// How long it served, in seconds.
    pub(crate) seconds: f64,
    pub(crate) devices: Vec<DeviceReport>,
}

impl Report {
    /// A page for people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{} after {:.2} s\n", self.end, self.seconds);
        for device in &self.devices {
            text.push_str(&device_text(&device.pipeline, &device.queues, &device.stages));
            text.push_str(&workers_text(&device.workers));
            let _ = writeln!(text, "  {} connection(s) on {}", device.connections, device.socket.display());
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// What workers took of the processors, as a line.
fn workers_text(workers: &[WorkerReport]) -> String {
    let worker = |worker: &WorkerReport| match (worker.cpu_seconds, worker.cpu_share) {
        (Some(seconds), Some(share)) => format!("{seconds:.2} s ({:.1} %)", 100.0 * share),
        _ => "-".to_owned(),
    };
    let workers: Vec<String> = workers.iter().map(worker).collect();
    format!("  processor time by worker: {}\n", workers.join(", "))
}

/// One line of JSON.
pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
}
