//! Our daemon, `examples/vhost-user`.

use std::path::Path;
use std::time::Instant;

use super::Place;
use super::process::Process;
use crate::cmd::Cmd;
use crate::error::{Context, Error, Result};

/// A device and the socket on which it is served.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    /// The pipeline.
    pub pipeline: String,
    /// The socket's name in the folder of the case.
    pub socket: &'static str,
}

/// A device on a socket.
pub(crate) fn serve(socket: &'static str, pipeline: impl Into<String>) -> Served {
    Served { pipeline: pipeline.into(), socket }
}

/// The daemon at work. It is killed with this value.
#[derive(Debug)]
pub(crate) struct Daemon<'a> {
    place: &'a Place,
    name: &'static str,
    devices: Vec<Served>,
    process: Process,
}

impl<'a> Daemon<'a> {
    /// Starts it and waits until it listens. The name tells daemons of a case apart.
    pub(crate) fn start(place: &'a Place, name: &'static str, devices: &[Served]) -> Result<Self> {
        let process = start(place, name, devices)?;
        Ok(Self { place, name, devices: devices.to_vec(), process })
    }

    /// The process.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Kills it and starts it anew at once. Gives back how long nobody listened.
    pub(crate) fn kill_and_start(&mut self) -> Result<std::time::Duration> {
        if !self.process.is_alive()? {
            return Err(Error::new("the daemon ended by itself"));
        }
        let clock = Instant::now();
        self.process.kill()?;
        self.process = start(self.place, self.name, &self.devices)?;
        Ok(clock.elapsed())
    }

    /// Tells it something by its control socket.
    pub(crate) fn tell(&self, request: &str) -> Result<String> {
        Cmd::new(&self.place.daemon)
            .folder(&self.place.folder)
            .args(["--tell", &control(self.name), request])
            .text()
            .context(request)
    }

    /// Ends it as a service manager does. It must end well; gives back its report.
    pub(crate) fn end(mut self) -> Result<String> {
        if !self.process.is_alive()? {
            return Err(Error::new("the daemon ended by itself"));
        }
        self.process.ask_to_end()?;
        let status = self.process.wait()?;
        if !status.success() {
            return Err(Error::new(format!("the daemon ended with {status}")));
        }
        let left = |path: &Path| path.exists().then(|| path.display().to_string());
        if let Some(socket) =
            self.devices.iter().find_map(|device| left(&self.place.folder.join(device.socket)))
        {
            return Err(Error::new(format!("the daemon left {socket} behind")));
        }
        let report = self.process.said().last().cloned().unwrap_or_default();
        if report.contains("\"devices\"") {
            Ok(report)
        } else {
            Err(Error::new(format!("the daemon gave no report, but '{report}'")))
        }
    }
}

fn control(name: &str) -> String {
    format!("{name}.control")
}

fn start(place: &Place, name: &str, devices: &[Served]) -> Result<Process> {
    let mut command = Cmd::new(&place.daemon).args(["--json", "--control", &control(name)]);
    for device in devices {
        command = command.args(["--socket", device.socket, "--device", &device.pipeline]);
    }
    let mut process = Process::start(command.into_inner(), &place.folder, name, place.deadline)?;
    process.wait_for("\"ready\"").context(format_args!("see {name}.err"))?;
    Ok(process)
}

/// The requests of each queue of each device, out of a daemon's report.
pub(crate) fn requests_by_queue(report: &str) -> Vec<Vec<u64>> {
    let queues = |device: &str| {
        let list = device.split(']').next().unwrap_or_default();
        list.split("\"requests\":").skip(1).filter_map(leading_number).collect()
    };
    report.split("\"queues\":[").skip(1).map(queues).collect()
}

fn leading_number(text: &str) -> Option<u64> {
    let end = text.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_found_in_a_report() {
        let report = r#"{"end":"x","devices":[{"queues":[{"requests":7,"doorbells":1},{"requests":12}],"stages":[{"requests":99}]},
            {"queues":[{"requests":3}],"stages":[]}]}"#;
        assert_eq!(requests_by_queue(report), [vec![7, 12], vec![3]]);
    }
}
