//! The lab: our VMM under a real KVM, against the drivers of a stock Linux kernel.
//!
//! Not every machine that builds the project has a usable KVM. QEMU can emulate a processor with virtualization in
//! software, so the lab boots Debian's kernel in it (the *host*), whose own `kvm-amd` runs our VMM, which boots the same
//! kernel again (the *guest*) with our devices. Slow, and real in every line: it proves that things are right, not how
//! fast they are.
//!
//! `kernel`, `parts` and `filesystem` make what the machines need, `machine` starts QEMU, `cases` says what to run,
//! `session`, `shell` and `reference` run it.

mod cases;
mod cpio;
mod filesystem;
mod kernel;
mod machine;
mod parts;
mod reference;
mod session;
mod shell;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::error::{Error, Result};
use crate::lab::cases::{ALL, Case};
use crate::setup::{self, Tool};

/// What the lab needs.
pub(crate) const TOOLS: [Tool; 10] = [
    setup::CC,
    setup::QEMU,
    setup::MKFS,
    setup::E2FSCK,
    setup::DEBUGFS,
    setup::DPKG,
    setup::LZ4,
    setup::ZSTD,
    setup::XZ,
    setup::LDD,
];

/// Options of `cargo xtask lab`.
#[derive(Debug, Default, Args)]
#[command(after_long_help = WHERE_THINGS_ARE)]
pub(crate) struct Options {
    /// The cases to run; all of them if none is named.
    #[arg(value_name = "CASE")]
    cases: Vec<String>,

    /// List the cases.
    #[arg(long)]
    list: bool,

    /// Run the guests on QEMU's own virtio devices instead of ours, without KVM. A case that fails there too is wrong
    /// itself.
    #[arg(long)]
    reference: bool,

    /// Show everything the guests print, not only what failed.
    #[arg(long)]
    verbose: bool,

    /// Use this program as our VMM instead of building `examples/microvm`.
    #[arg(long, value_name = "FILE")]
    vmm: Option<PathBuf>,

    /// Put this file (or program, with its libraries) into /lab/files.
    #[arg(long, value_name = "FILE")]
    add: Vec<PathBuf>,

    /// Seconds that a command may take when no terminal is attached.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,

    /// Run this in the lab machine instead of the cases, with the terminal if there is one.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

const WHERE_THINGS_ARE: &str = "\
In the lab machine:
  /lab/microvm        our VMM (it is in the PATH too)
  /lab/bzImage        the guest's kernel, compressed; /lab/vmlinux is the same uncompressed
  /lab/guest.cpio     the guest's initial RAM disk; lab.case=NAME on the kernel's command line picks what it runs
  /lab/guest.img      an ext4 root file system for the guest; root=/dev/vda lab.case=shell gives a shell in it
  /lab/cases/NAME/    the images of a case; `sh run.sh` in it runs the case
  /lab/files/         what --add brought
An argument of COMMAND that names a file of this machine is brought along in the same way, and replaced by its place
there. /lab is an ext4 file system: O_DIRECT and hole punching work. It is made anew for each run.

Examples:
  cargo xtask lab                          every case
  cargo xtask lab rootfs discard           two of them
  cargo xtask lab -- sh                    look around (Ctrl-A X ends the machine)
  cargo xtask lab -- microvm --help
  cargo xtask lab -- target/debug/deps/iovirt_core-0123 --nocapture

Downloads and results are kept in target/lab; the logs of the last run are in target/lab/run.";

/// Runs `cargo xtask lab`.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        for case in ALL {
            println!("{:<12} {}", case.name, case.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !options.command.is_empty() {
        if options.reference || !options.cases.is_empty() {
            return Err(Error::new("a command or cases, not both"));
        }
        setup::ensure(&TOOLS)?;
        return shell::run(options);
    }
    let passed = run_cases(&named(&options.cases)?, options)?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Sets up what is needed and runs the cases; tells whether all passed.
fn run_cases(cases: &[&'static Case], options: &Options) -> Result<bool> {
    setup::ensure(&TOOLS)?;
    let verdicts = if options.reference { reference::run(cases)? } else { session::run(cases, options)? };
    let mut failed = 0;
    for verdict in &verdicts {
        let mut show = options.verbose;
        if let Err(error) = &verdict.outcome {
            failed += 1;
            show = true;
            println!("\ncase {}: {error}", verdict.case.name);
        }
        if show {
            println!("--- what the guest of {} printed", verdict.case.name);
            println!("{}", verdict.console);
            println!("--- end of {}", verdict.case.name);
        }
    }
    println!("cases: {} passed, {failed} failed", verdicts.len() - failed);
    Ok(failed == 0)
}

/// Runs every case; tells whether all passed.
pub(crate) fn run_all() -> Result<bool> {
    run_cases(&ALL, &Options::default())
}

/// How a case went.
#[derive(Debug)]
struct Verdict {
    case: &'static Case,
    outcome: Result<()>,
    console: String,
}

fn named(names: &[String]) -> Result<Vec<&'static Case>> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    names
        .iter()
        .map(|name| {
            ALL.into_iter().find(|case| case.name == name).ok_or_else(|| {
                let known: Vec<&str> = ALL.iter().map(|case| case.name).collect();
                Error::new(format!("no case {name}; there are {}", known.join(", ")))
            })
        })
        .collect()
}
