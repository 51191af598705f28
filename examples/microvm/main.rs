//! A small KVM machine that boots Linux with virtual devices described on the command line.
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
mod control;
mod cpuid;
mod entry;
mod error;
mod exits;
mod layout;
mod machine;
mod power;
mod probe;
mod report;
mod rtc;
mod serial;
mod terminal;
mod vcpu;
mod vm;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::boot::BootSource;
use crate::error::MachineError;
use crate::machine::{Machine, Outcome};

/// Boots Linux in a small KVM machine.
#[derive(Debug, Parser)]
struct Options {
    /// The kernel: a bzImage or an ELF file
    #[arg(long, required_unless_present = "list_stages")]
    kernel: Option<PathBuf>,
    /// The initial file system
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, default_value = "console=ttyS0 panic=-1")]
    cmdline: String,
    /// Guest memory, with suffix K, M or G
    #[arg(long, default_value = "512M", value_parser = parse_size)]
    memory: u64,
    /// Number of virtual processors
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// A device: its pipeline from the guest to the hardware; repeatable
    #[arg(long = "device", value_name = "PIPELINE")]
    devices: Vec<String>,
    /// Print the report at the end as a line of JSON on standard error
    #[arg(long)]
    json: bool,
    /// Print all stages with their keys
    #[arg(long)]
    list_stages: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.list_stages {
        return ExitCode::SUCCESS;
    }
    match run(&options) {
        Ok(outcome) => {
            let line = if options.json {
                report::json(&outcome)
            } else {
                format!("microvm: {}", report::text(&outcome))
            };
            eprintln!("{line}");
            ExitCode::from(outcome.stop.exit_code())
        }
        Err(error) => {
            eprintln!("microvm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<Outcome, MachineError> {
    let mut machine = Machine::new(options.memory, options.vcpus)?;
    for _ in &options.devices {
        machine.slots.take()?;
    }
    let source = BootSource {
        kernel: options.kernel.clone().unwrap_or_default(),
        initrd: options.initrd.clone(),
        command_line: options.cmdline.clone(),
    };
    machine.run(&source)
}

/// A number of bytes: digits, and one of the suffixes K, M, G.
fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size; write a number with suffix K, M or G, such as 512M");
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M' | 'm')) => (&text[..at], 20),
        Some((at, 'G' | 'g')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("3g"), Ok(3 << 30));
        assert_eq!(parse_size("4096"), Ok(4096));
        for wrong in ["", "M", "1T", "-1M", "1.5G", "99999999999G", "1é"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
