//! A small KVM machine that boots Linux with virtual devices described on the command line.
//!
//! Without `--kernel` a small guest of its own drives them. Where `/dev/kvm` is missing, or cannot run the guest, the same
//! pipelines are driven by the `virtio-drivers` crate in this process, through the same registers, on temporary images.
//!
//! ```text
//! microvm --kernel bzImage --initrd initrd --device 'virtio-blk -> file,path=disk.img'
//! ```
//!
//! The exit code is 0 when the guest switches off (or the user leaves with Ctrl-A x), the byte that the guest writes to
//! port 0xf4, 64 when it asks for a reset (`reboot`, or a panic with `panic=-1`), 65 after a triple fault, 66 when a
//! vCPU fails, 128 + n for signal n, 1 when the machine cannot be built and 2 when the command line is wrong.

mod acpi;
mod boot;
mod bus;
#[path = "../common/mod.rs"]
mod common;
mod control;
mod control_socket;
mod cpuid;
mod devices;
mod entry;
mod error;
mod exits;
mod gate;
mod guest;
mod images;
mod in_process;
mod layout;
mod machine;
mod network;
mod pci;
mod picture;
mod plot;
mod power;
mod probe;
mod report;
mod rtc;
mod schedule;
mod serial;
mod snapshot;
mod terminal;
mod vcpu;
mod view;
mod vm;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use iovirt::describe::{Description, parse_size};
use iovirt::registry::Registry;

use crate::boot::BootSource;
use crate::common::control_socket::{self as socket, ControlSocket};
use crate::control::Stop;
use crate::control_socket::Operator;
use crate::devices::{AttachDeviceError, Device, Place};
use crate::error::MachineError;
use crate::machine::{Begin, Machine};
use crate::report::Report;
use crate::schedule::Appointment;
use crate::snapshot::Snapshot;

/// Boots Linux in a small KVM machine with virtual devices; without a kernel, a small guest of its own drives them; where KVM
/// cannot run the guest, this process does.
#[derive(Debug, Parser)]
#[command(name = "microvm")]
struct Options {
    /// The kernel: a bzImage or an ELF file
    #[arg(long, group = "origin")]
    kernel: Option<PathBuf>,
    /// The initial file system
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, default_value = "console=ttyS0 panic=-1")]
    cmdline: String,
    /// Guest memory, with suffix K, M or G
    #[arg(long, default_value = "512M", value_parser = size)]
    memory: u64,
    /// Number of virtual processors
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// A device: its pipeline from the guest to the hardware; repeatable
    #[arg(long = "device", value_name = "PIPELINE")]
    devices: Vec<String>,
    /// A device on the PCI bus; repeatable
    #[arg(long = "pci-device", value_name = "PIPELINE")]
    pci_devices: Vec<String>,
    /// Go on with a machine that was saved in this file; devices are those of the file unless others are given
    #[arg(long, value_name = "FILE", group = "origin", conflicts_with_all = ["initrd", "cmdline", "memory", "vcpus"])]
    restore: Option<PathBuf>,
    /// Something to do while the guest runs, such as '6s resize 0 128M'; repeatable
    #[arg(long = "at", value_name = "TIME ACTION")]
    appointments: Vec<Appointment>,
    /// Take requests, lines of JSON, on a Unix socket made here
    #[arg(long, value_name = "SOCKET", requires = "origin")]
    control: Option<PathBuf>,
    /// Send a request to a machine's control socket and print the reply
    #[arg(long, num_args = 2, value_names = ["SOCKET", "REQUEST"])]
    tell: Option<Vec<String>>,
    /// A network card on a tap of the host, which is made where there is none: short for --device
    /// 'virtio-net -> stats -> tap,name=NAME'; repeatable
    #[arg(long = "tap", value_name = "NAME")]
    taps: Vec<String>,
    /// Show rates on standard error while the guest runs: as one line that is written over where that is a terminal, as its
    /// title where the guest's console is there too, else as a line each second
    #[arg(long)]
    view: bool,
    /// Draw latencies and exits per request into this SVG file at the end
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print the report at the end as a line of JSON
    #[arg(long)]
    json: bool,
    /// Print all stages with their keys
    #[arg(long)]
    list_stages: bool,
}

/// Prints a machine's reply; the exit code says whether it did what it was told.
fn tell(path: &Path, request: &str) -> ExitCode {
    match socket::tell(path, request) {
        Ok(reply) => {
            println!("{reply}");
            if reply.starts_with("{\"ok\"") { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("microvm: cannot talk to {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

/// What to do next.
const HINT: &str = "\
Put other stages in between:  --device 'virtio-blk -> delay,time=2ms -> stats -> memory,size=64M'
All stages and their options: --list-stages
A real kernel on top:         --kernel bzImage --initrd initrd";

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("--device '{text}': {error}")]
    Description { text: String, error: iovirt::describe::DescribeError },
    #[error(transparent)]
    Device(#[from] devices::DeviceError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("--control {}: {error}", path.display())]
    ControlSocket { path: PathBuf, error: std::io::Error },
    #[error(transparent)]
    Guest(#[from] guest::GuestError),
    #[error("{pipeline}: {error}")]
    InProcess { pipeline: String, error: in_process::RunError },
}

impl From<AttachDeviceError> for Failure {
    fn from(error: AttachDeviceError) -> Self {
        match error {
            AttachDeviceError::Device(error) => error.into(),
            AttachDeviceError::Machine(error) => error.into(),
        }
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list_stages {
        print!("{}", iovirt::list_stages());
        return ExitCode::SUCCESS;
    }
    if let Some([socket, request]) = options.tell.as_deref() {
        return tell(socket.as_ref(), request);
    }
    log_to_standard_error();
    match run(&options) {
        Ok(report) => {
            // Standard output is the console of a guest that has one.
            let text = if options.json { report.json() } else { report.text() };
            let with_console = options.kernel.is_some() || options.restore.is_some();
            if with_console && report.exits.is_some() {
                eprintln!("\n{text}")
            } else {
                println!("{text}");
                if options.devices.is_empty()
                    && options.pci_devices.is_empty()
                    && options.taps.is_empty()
                    && !options.json
                {
                    println!("{HINT}");
                }
            }
            match options.plot.as_ref().map(|path| (path, std::fs::write(path, plot::svg(&report)))) {
                Some((path, Err(error))) => {
                    eprintln!("microvm: the plot {}: {error}", path.display());
                    ExitCode::FAILURE
                }
                _ => ExitCode::from(report.code),
            }
        }
        Err(failure) => {
            eprintln!("microvm: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<Report, Failure> {
    let registry = Arc::new(Registry::standard());
    let parse = |(place, text): (Place, &String)| match registry.parse(text) {
        Ok(description) => Ok((place, description)),
        Err(error) => Err(Failure::Description { text: text.clone(), error }),
    };
    let mmio = options.devices.iter().map(|text| (Place::Mmio, text));
    let pci = options.pci_devices.iter().map(|text| (Place::Pci, text));
    let taps = options.taps.iter().map(|name| network::on_tap(&registry, name));
    let descriptions = mmio.chain(pci).map(parse).chain(taps).collect::<Result<Vec<_>, _>>()?;
    if let Some(file) = &options.restore {
        return restore(&registry, descriptions, options, file);
    }
    let Some(kernel) = &options.kernel else {
        return run_built_in(&registry, descriptions, options.memory);
    };
    // Before anything else, so that a wrong path is told also where there is no KVM.
    let readable = std::fs::File::open(kernel);
    readable.map_err(|source| MachineError::Read { path: kernel.clone(), source })?;
    match Machine::new(options.memory, options.vcpus) {
        Ok(machine) => {
            let (initrd, command_line) = (options.initrd.clone(), options.cmdline.clone());
            let source = BootSource { kernel: kernel.clone(), initrd, command_line };
            run_guest(&registry, descriptions, machine, options, Origin::Boot(&source))
        }
        Err(error @ (MachineError::OpenKvm(_) | MachineError::No64Bit(_) | MachineError::KvmLacks(_))) => {
            run_in_process(&registry, descriptions, &error.to_string())
        }
        Err(error) => Err(error.into()),
    }
}

fn run_guest(
    registry: &Arc<Registry>,
    descriptions: Vec<(Place, Description)>,
    mut machine: Machine,
    options: &Options,
    origin: Origin<'_>,
) -> Result<Report, Failure> {
    let attach = |(place, description)| Device::attach(registry, description, place, &mut machine);
    let devices = Arc::new(descriptions.into_iter().map(attach).collect::<Result<Vec<_>, _>>()?);
    let bind = |path: &PathBuf| {
        ControlSocket::bind(path).map_err(|error| Failure::ControlSocket { path: path.clone(), error })
    };
    // Until the end of the run.
    let socket = options.control.as_ref().map(bind).transpose()?;
    let (control, fixed) = (machine.control.clone(), machine.fixed());
    let begin = match origin {
        Origin::Boot(source) => Begin::Boot(source),
        Origin::Saved(snapshot) => Begin::Restore(snapshot, &devices),
    };
    // Not before, as a device that is being restored would forget what happened to it.
    let running = || {
        schedule::keep(options.appointments.clone(), devices.clone(), control.clone());
        let operator = Operator::new(registry.clone(), devices.clone(), control.clone(), Some(fixed));
        if let Some(Err(error)) = socket.as_ref().map(|socket| socket.serve(Arc::new(operator))) {
            eprintln!("microvm: the control socket is not served: {error}");
        }
    };
    if options.view {
        view::start(devices.clone(), machine.exit_counters.clone(), machine.control.clone());
    }
    let outcome = machine.run(&begin, running)?;
    // What a saved machine has in flight is the business of whoever goes on with it.
    if outcome.stop != Stop::Saved {
        devices.iter().for_each(Device::finish);
    }
    Ok(Report {
        driven_by: "KVM",
        end: outcome.stop.describe(),
        code: outcome.stop.exit_code(),
        seconds: outcome.ran.as_secs_f64(),
        devices: devices.iter().map(Device::report).collect(),
        exits: Some(outcome.exits),
    })
}

/// Where a guest comes from.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Boot(&'a BootSource),
    Saved(&'a Snapshot),
}

/// Goes on with a machine that was saved.
fn restore(
    registry: &Arc<Registry>,
    given: Vec<(Place, Description)>,
    options: &Options,
    file: &Path,
) -> Result<Report, Failure> {
    let snapshot = Snapshot::open(file).map_err(MachineError::Snapshot)?;
    let saved = |(place, text): (Place, &str)| match registry.parse(text) {
        Ok(description) => Ok((place, description)),
        Err(error) => Err(Failure::Description { text: text.to_owned(), error }),
    };
    let descriptions =
        if given.is_empty() { snapshot.devices().map(saved).collect::<Result<_, _>>()? } else { given };
    let places: Vec<Place> = descriptions.iter().map(|(place, _)| *place).collect();
    snapshot.check_places(&places).map_err(MachineError::Snapshot)?;
    let machine = Machine::new(snapshot.memory_size(), snapshot.vcpu_count())?;
    run_guest(registry, descriptions, machine, options, Origin::Saved(&snapshot))
}

/// Without a kernel: the built-in guest, or where it cannot run, the in-process driver.
fn run_built_in(
    registry: &Registry,
    mut descriptions: Vec<(Place, Description)>,
    memory: u64,
) -> Result<Report, Failure> {
    if descriptions.is_empty() {
        for text in guest::DEFAULT_PIPELINES {
            let default = registry.parse(text);
            let default = default.map_err(|error| Failure::Description { text: text.to_owned(), error })?;
            descriptions.push((Place::Mmio, default));
        }
    }
    let ran = match Machine::for_own_code(memory) {
        Ok(machine) => guest::run(registry, descriptions.clone(), machine),
        Err(error @ MachineError::MemoryTooSmall(_)) => Err(error.into()),
        Err(error) => Err(guest::GuestError::CannotRun(error.to_string())),
    };
    match ran {
        Err(error @ guest::GuestError::CannotRun(_)) => {
            run_in_process(registry, descriptions, &error.to_string())
        }
        Err(guest::GuestError::Attach(error)) => Err(error.into()),
        ran => Ok(ran?),
    }
}

fn run_in_process(
    registry: &Registry,
    mut descriptions: Vec<(Place, Description)>,
    reason: &str,
) -> Result<Report, Failure> {
    eprintln!("microvm: {reason}: the in-process driver takes the guest's place, on a temporary image");
    descriptions.retain(|(_, description)| {
        let disk = description.frontend.name() == "virtio-blk";
        if !disk {
            eprintln!("microvm: {description}: left out, the in-process driver is one for disks only");
        }
        disk
    });
    if descriptions.is_empty() {
        let text = in_process::DEFAULT_PIPELINE.to_owned();
        let default = registry.parse(&text).map_err(|error| Failure::Description { text, error })?;
        descriptions.push((Place::Mmio, default));
    }
    let mut devices = Vec::new();
    let mut ends = Vec::new();
    let mut seconds = 0.0;
    for (_, description) in &descriptions {
        let run = in_process::run(registry, description)
            .map_err(|error| Failure::InProcess { pipeline: description.to_string(), error })?;
        seconds += run.ran.as_secs_f64();
        ends.push(run.checked);
        devices.push(run.report);
    }
    Ok(Report {
        driven_by: "in-process driver, no guest",
        end: ends.join("; "),
        code: 0,
        seconds,
        devices,
        exits: None,
    })
}

/// Warnings of the library, a line each, on standard error.
fn log_to_standard_error() {
    let level = tracing_subscriber::filter::LevelFilter::WARN;
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).without_time().init();
}

/// A number of bytes: digits, and one of the suffixes K, M, G.
fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size; write a number with suffix K, M or G, such as 512M");
    parse_size(text).ok_or_else(wrong)
}
