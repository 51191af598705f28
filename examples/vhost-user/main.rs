//! Serves virtual devices to virtual machine monitors over vhost-user: QEMU, Cloud Hypervisor, crosvm, Firecracker.
//!
//! ```text
//! vhost-user --socket disk.sock --device 'virtio-blk -> stats -> file,path=disk.img'
//! ```
//!
//! It says on standard output when all sockets are listened on, gives up what it does not need any more (`sandbox`), and serves until
//! a signal or the control socket ends it: then devices come to rest, what is in flight is made durable, and a report is printed.
//!
//! The exit code is 0 after that, 1 when it could not serve or a device did not come to rest, 2 when the command line is wrong, and
//! 128 + n after a second signal n.

#[path = "../common/mod.rs"]
mod common;
mod control;
mod cpu;
mod daemon;
mod devices;
mod error;
mod events;
mod metrics;
mod options;
mod report;
mod sandbox;

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use crate::common::control_socket;
use crate::options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list_stages {
        say(iovirt::list_stages().trim_end());
        return ExitCode::SUCCESS;
    }
    if let Some([socket, request]) = options.tell.as_deref() {
        return tell(socket.as_ref(), request);
    }
    log_to_standard_error();
    match daemon::run(&options) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("vhost-user: {failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Prints a daemon's reply; the exit code says whether it did what it was told.
fn tell(path: &Path, request: &str) -> ExitCode {
    match control_socket::tell(path, request) {
        Ok(reply) => {
            say(&reply);
            if reply.starts_with("{\"ok\"") { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("vhost-user: cannot talk to {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

/// Prints lines on standard output, at once. Whoever closed it does not want to hear them.
fn say(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{text}").and_then(|()| output.flush());
}

/// Warnings of the library, a line each, on standard error.
fn log_to_standard_error() {
    let level = tracing_subscriber::filter::LevelFilter::WARN;
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).without_time().init();
}
