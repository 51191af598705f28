//! The life of the process: make, shut in, serve, come to rest.

use std::collections::BTreeSet;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use iovirt::registry::Registry;
use rustix::process::{Resource, Rlimit};

use crate::common::control_socket::ControlSocket;
use crate::common::pipeline::Piped;
use crate::common::signals::EndingSignals;
use crate::control::{Operator, Reach};
use crate::devices::{Built, Device};
use crate::error::Failure;
use crate::events::{Event, Events};
use crate::metrics::{Address, Metrics, Source};
use crate::options::{Options, Place, Switch};
use crate::report::{Ready, Report, json};
use crate::sandbox::{self, Extent, Policy};
use crate::say;
use iovirt::frontends::virtio::transport::vhost_user::{Stopper, VhostUserServer};

/// How long devices may take to come to rest at the end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sockets on which somebody other than a front-end is served.
#[derive(Debug)]
struct Sides {
    control: Option<ControlSocket>,
    metrics: Option<Metrics>,
}

/// Serves until it is told to end, or cannot go on.
pub(crate) fn run(options: &Options) -> Result<ExitCode, Failure> {
    // Before there is any other thread, so that none of them takes a signal.
    let signals = EndingSignals::block().map_err(Failure::process("watch for signals"))?;
    if let Err(error) = raise_descriptor_limit() {
        // A host may forbid it where it allows all else.
        tracing::warn!(%error, "the limit of open descriptors stays as it is");
    }
    let registry = Registry::standard();
    let places = options.places(&registry)?;
    // The sandbox hides what says so.
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let policy = policy(options, &places);
    let built =
        places.into_iter().map(|place| Built::build(&registry, place)).collect::<Result<Vec<_>, _>>()?;
    let sides = Sides::bind(options)?;
    let extent = match options.sandbox {
        Switch::On => Some(sandbox::close_files(&policy)?),
        Switch::Off => None,
    };
    let devices = built
        .into_iter()
        .map(|built| built.start(processors, options.poll()))
        .collect::<Result<Vec<_>, _>>()?;
    let servers = devices.iter().map(bind).collect::<Result<Vec<_>, _>>()?;
    if options.sandbox == Switch::On {
        sandbox::close_calls(&policy)?;
    }
    let devices = Arc::new(devices);
    let events = Arc::new(Events::new().map_err(Failure::process("make an event"))?);
    let reach = Reach { sandbox: options.sandbox, allowed: options.allowed.clone() };
    let operator = Operator::new(registry, devices.clone(), events.clone(), reach);
    sides.serve(operator, &devices)?;
    let stoppers = serve(servers, &events)?;
    announce(options, &devices, &sides, extent.as_ref());
    let serving =
        Serving { devices, stoppers, events, signals, began: Instant::now(), ended: BTreeSet::new() };
    Ok(serving.until_the_end(options))
}

/// As many descriptors as this process may have: each region of a front-end's memory holds one, and one front-end must not leave
/// the others without.
fn raise_descriptor_limit() -> io::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    Ok(rustix::process::setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

/// What is still needed once the files are open.
fn policy(options: &Options, places: &[Place]) -> Policy {
    let metrics = options.metrics.as_ref().and_then(|address| match address {
        Address::Unix(path) => Some(path.as_path()),
        Address::Tcp(_) => None,
    });
    let own = options.control.as_deref().into_iter().chain(metrics);
    Policy::of(places, own, &options.allowed)
}

impl Sides {
    fn bind(options: &Options) -> Result<Self, Failure> {
        let control = options.control.as_ref().map(|path| {
            ControlSocket::bind(path).map_err(|error| Failure::Control { path: path.clone(), error })
        });
        let metrics = options.metrics.as_ref().map(|address| {
            Metrics::bind(address).map_err(|error| Failure::Metrics { address: address.to_string(), error })
        });
        Ok(Self { control: control.transpose()?, metrics: metrics.transpose()? })
    }

    fn serve(&self, operator: Operator, devices: &Arc<Vec<Device>>) -> Result<(), Failure> {
        let thread = Failure::process("start a thread");
        let started = (|| {
            if let Some(socket) = &self.control {
                socket.serve(Arc::new(operator))?;
            }
            if let Some(metrics) = &self.metrics {
                metrics.serve(Arc::new(Source::new(devices.clone())))?;
            }
            Ok(())
        })();
        started.map_err(thread)
    }
}

fn bind(device: &Device) -> Result<VhostUserServer, Failure> {
    // Longer than ours, so that it does not return before its device is at rest.
    let patience = 2 * PATIENCE;
    let bound = VhostUserServer::with_patience(device.socket(), device.vhost_user().clone(), patience);
    bound.map_err(|error| Failure::Socket { path: device.socket().clone(), error })
}

/// Serves each device on a thread of its own, which removes the socket at its end.
fn serve(servers: Vec<VhostUserServer>, events: &Arc<Events>) -> Result<Vec<Stopper>, Failure> {
    let mut stoppers = Vec::new();
    for (number, server) in servers.into_iter().enumerate() {
        stoppers.push(server.stopper());
        let events = events.clone();
        let serving = move || {
            let result = server.run();
            drop(server);
            events.push(Event::Ended(number, result));
        };
        let thread = thread::Builder::new().name(format!("front-end-{number}")).spawn(serving);
        thread.map_err(Failure::process("start a thread"))?;
    }
    Ok(stoppers)
}

fn announce(options: &Options, devices: &[Device], sides: &Sides, extent: Option<&Extent>) {
    if let Some(Extent::Partial(missing)) = extent {
        eprintln!("vhost-user: the sandbox is not complete: {missing}");
    }
    let sandbox = match extent {
        Some(Extent::Full) => "on",
        Some(Extent::Partial(_)) => "partial",
        None => "off",
    };
    let mut ready = Ready::new(devices, sandbox);
    ready.metrics = sides.metrics.as_ref().map(|metrics| metrics.address().to_string());
    ready.control.clone_from(&options.control);
    say(&if options.json { json(&ready) } else { ready.text() });
}

/// What is going on.
struct Serving {
    devices: Arc<Vec<Device>>,
    stoppers: Vec<Stopper>,
    events: Arc<Events>,
    signals: EndingSignals,
    began: Instant,
    /// Devices that are served no more.
    ended: BTreeSet<usize>,
}

/// Why it ends.
enum End {
    Signal(i32),
    Told,
    Failed,
}

impl Serving {
    fn until_the_end(mut self, options: &Options) -> ExitCode {
        let end = self.wait();
        let seconds = self.began.elapsed().as_secs_f64();
        let at_rest = self.come_to_rest();
        let devices = self.devices.iter().map(Device::report).collect();
        let report = Report { end: describe(&end), seconds, devices };
        say(&if options.json { json(&report) } else { report.text() });
        if at_rest && !matches!(end, End::Failed) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Returns when it is to end.
    fn wait(&mut self) -> End {
        loop {
            if let Some(signal) = self.signals.wait(&*self.events, None) {
                return End::Signal(signal);
            }
            let mut end = None;
            for event in self.events.take() {
                match event {
                    Event::Quit => end = end.or(Some(End::Told)),
                    Event::Ended(number, result) => {
                        self.note(number, result);
                        end = Some(End::Failed);
                    }
                }
            }
            if let Some(end) = end {
                return end;
            }
        }
    }

    /// A device is served no more.
    fn note(&mut self, number: usize, result: io::Result<()>) {
        self.ended.insert(number);
        if let Err(error) = result {
            let device = &self.devices[number];
            eprintln!("vhost-user: {}: {error}", device.socket().display());
        }
    }

    /// Has all devices come to rest, and says which do not. A signal meanwhile ends the process.
    fn come_to_rest(&mut self) -> bool {
        self.stoppers.iter().for_each(Stopper::stop);
        let end = Instant::now() + PATIENCE;
        while self.ended.len() < self.devices.len() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            if let Some(signal) = self.signals.wait(&*self.events, Some(left)) {
                std::process::exit(128 + signal);
            }
            for event in self.events.take() {
                if let Event::Ended(number, result) = event {
                    self.note(number, result);
                }
            }
        }
        let late: Vec<_> =
            (0..).zip(self.devices.iter()).filter(|(number, _)| !self.ended.contains(number)).collect();
        for (number, device) in &late {
            let pipeline = device.description();
            eprintln!(
                "vhost-user: device {number}, {pipeline}, did not come to rest within {PATIENCE:?}: requests are still in flight"
            );
            // Its thread, which would do it, is still at work.
            let _ = std::fs::remove_file(device.socket());
        }
        late.is_empty()
    }
}

fn describe(end: &End) -> String {
    match end {
        End::Signal(libc::SIGINT) => "ended by SIGINT".to_owned(),
        End::Signal(libc::SIGTERM) => "ended by SIGTERM".to_owned(),
        End::Signal(libc::SIGHUP) => "ended by SIGHUP".to_owned(),
        End::Signal(libc::SIGQUIT) => "ended by SIGQUIT".to_owned(),
        End::Signal(number) => format!("ended by signal {number}"),
        End::Told => "ended over the control socket".to_owned(),
        End::Failed => "ended as a device could not be served any more".to_owned(),
    }
}
