//! The command line.

use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use iovirt::describe::Description;
use iovirt::registry::Registry;

use crate::metrics::Address;

/// The usual value of `--poll-us`: about what a wake-up costs between two processors that sleep deeply.
const USUAL_POLL: u64 = 50;
/// The longest time that a worker may be told to spin, in microseconds.
const LONGEST_POLL: u64 = 1_000_000;

/// Serves virtual devices to virtual machine monitors over vhost-user: each --device on the --socket at the same position.
#[derive(Debug, Parser)]
#[command(name = "vhost-user")]
pub(crate) struct Options {
    /// The Unix socket on which a monitor finds a device; repeatable, one for each --device
    #[arg(long = "socket", value_name = "PATH")]
    pub(crate) sockets: Vec<PathBuf>,
    /// A device: its pipeline from the guest to the hardware; repeatable, one for each --socket
    #[arg(long = "device", value_name = "PIPELINE")]
    pub(crate) devices: Vec<String>,
    /// The number of queues (of a network card: pairs) of each device whose pipeline does not say it
    #[arg(long, value_name = "N")]
    pub(crate) queues: Option<NonZeroU16>,
    /// The longest time in microseconds that a worker looks for new requests before it sleeps; 0 for not at all
    #[arg(long, value_name = "N", default_value_t = USUAL_POLL, value_parser = clap::value_parser!(u64).range(..=LONGEST_POLL))]
    pub(crate) poll_us: u64,
    /// Tell counters in Prometheus' text format over HTTP at an address such as 127.0.0.1:9100, or on a Unix socket such as
    /// ./metrics.sock
    #[arg(long, value_name = "ADDRESS|PATH")]
    pub(crate) metrics: Option<Address>,
    /// Take requests, lines of JSON, on a Unix socket made here
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,
    /// Give up, before the first monitor can connect, whatever the devices do not need
    #[arg(long, value_name = "on|off", default_value = "on")]
    pub(crate) sandbox: Switch,
    /// Let the sandbox open what is beneath this directory, for requests that put another stack in place; repeatable
    #[arg(long = "allow", value_name = "DIR")]
    pub(crate) allowed: Vec<PathBuf>,
    /// Send a request to the control socket of a running daemon and print the reply
    #[arg(long, num_args = 2, value_names = ["SOCKET", "REQUEST"])]
    pub(crate) tell: Option<Vec<String>>,
    /// Say what is to be said on standard output as lines of JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Print all stages with their keys
    #[arg(long)]
    pub(crate) list_stages: bool,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

/// A device to be made, and where it is to be found.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) socket: PathBuf,
    pub(crate) description: Description,
}

/// Why a command line is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OptionsError {
    #[error("nothing to serve: --socket PATH --device 'PIPELINE' are needed, as often as there are devices")]
    Nothing,
    #[error(
        "{sockets} --socket and {devices} --device are given: each device needs the socket at its position"
    )]
    Counts { sockets: usize, devices: usize },
    #[error("--{option} {}: the same path is given twice", path.display())]
    Twice { option: &'static str, path: PathBuf },
    #[error("--device '{text}': {error}")]
    Description { text: String, error: iovirt::describe::DescribeError },
}

impl Options {
    /// The devices and their sockets.
    pub(crate) fn places(&self, registry: &Registry) -> Result<Vec<Place>, OptionsError> {
        let (sockets, devices) = (self.sockets.len(), self.devices.len());
        if sockets == 0 && devices == 0 {
            return Err(OptionsError::Nothing);
        }
        if sockets != devices {
            return Err(OptionsError::Counts { sockets, devices });
        }
        self.check_paths()?;
        let place = |(socket, text): (&PathBuf, &String)| {
            let description = self.describe(registry, text);
            let description =
                description.map_err(|error| OptionsError::Description { text: text.clone(), error })?;
            Ok(Place { socket: socket.clone(), description })
        };
        self.sockets.iter().zip(&self.devices).map(place).collect()
    }

    fn describe(
        &self,
        registry: &Registry,
        text: &str,
    ) -> Result<Description, iovirt::describe::DescribeError> {
        let mut description = registry.parse(text)?;
        if let (Some(queues), None) = (self.queues, description.frontend.get("queues")) {
            description.frontend = description.frontend.clone().with("queues", queues.to_string());
            registry.check(&description)?;
        }
        Ok(description)
    }

    /// A second socket at a path would find the first one there, in use by this process.
    fn check_paths(&self) -> Result<(), OptionsError> {
        let mut seen: Vec<&PathBuf> = Vec::new();
        let metrics = match &self.metrics {
            Some(Address::Unix(path)) => Some(path),
            _ => None,
        };
        let sockets = self.sockets.iter().map(|path| ("socket", path));
        let others = [("control", self.control.as_ref()), ("metrics", metrics)];
        let others = others.into_iter().filter_map(|(option, path)| Some((option, path?)));
        for (option, path) in sockets.chain(others) {
            if seen.contains(&path) {
                return Err(OptionsError::Twice { option, path: path.clone() });
            }
            seen.push(path);
        }
        Ok(())
    }

    /// The longest time that a worker spins.
    pub(crate) fn poll(&self) -> Duration {
        Duration::from_micros(self.poll_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(line: &[&str]) -> Result<Vec<Place>, String> {
        let options = Options::try_parse_from([&["vhost-user"], line].concat());
        let options = options.map_err(|error| error.to_string())?;
        options.places(&Registry::standard()).map_err(|error| error.to_string())
    }

    #[test]
    fn devices_and_sockets_go_by_position() {
        let places = places(&[
            "--socket",
            "a",
            "--device",
            "virtio-blk -> null",
            "--device",
            "virtio-net,queues=3 -> loopback",
            "--socket",
            "b",
            "--queues",
            "2",
        ]);
        let told: Vec<_> = places
            .unwrap()
            .iter()
            .map(|place| format!("{} {}", place.socket.display(), place.description))
            .collect();
        assert_eq!(told, ["a virtio-blk,queues=2 -> null", "b virtio-net,queues=3 -> loopback"]);
    }

    #[test]
    fn what_is_wrong_is_said_in_a_sentence() {
        for (line, says) in [
            (&[][..], "nothing to serve"),
            (&["--socket", "a"], "1 --socket and 0 --device are given"),
            (&["--socket", "a", "--device", "virtio-blk -> nul"], "--device 'virtio-blk -> nul': "),
            (&["--socket", "a", "--device", "virtio-blk -> null", "--queues", "65535"], "queues"),
            (&["--socket", "a", "--device", "virtio-blk -> null", "--control", "a"], "--control a: the same"),
            (&["--metrics", "9100"], "9100"),
            (&["--poll-us", "1000001"], "1000000"),
            (&["--sandbox", "maybe"], "maybe"),
        ] {
            let error = places(line).expect_err(&format!("{line:?}"));
            assert!(error.contains(says), "{line:?}: {error}");
        }
    }
}
