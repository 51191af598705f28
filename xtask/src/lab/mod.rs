//! The lab: our VMM under a real KVM, against the drivers of a stock Linux kernel.
//!
//! Not every machine that builds the project has a usable KVM. QEMU can emulate a processor with virtualization in
//! software, so the lab boots Debian's kernel in it (the *host*), whose own `kvm-amd` runs our VMM, which boots Debian's
//! kernels again (the *guests*) with our devices. Slow, and real in every line: it proves that things are right, not how
//! fast they are.
//!
//! `kernel`, `parts`, `fio` and `filesystem` make what the machines need, `machine` starts QEMU, `cases` says what to run,
//! `session`, `shell` and `reference` run it. `vhost_user` is apart: its guests are QEMU's, on this machine.

mod cases;
mod cpio;
mod debian;
mod filesystem;
mod fio;
mod kernel;
mod machine;
mod parts;
mod reference;
mod session;
mod shell;
mod vhost_user;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::error::{Error, Result};
use crate::lab::cases::{ALL, Boots, Case, Run, Usual};
use crate::lab::kernel::Series;
use crate::lab::vhost_user::Tally;
use crate::setup::{self, Tool};

/// What the lab needs.
pub(crate) const TOOLS: [Tool; 11] = [
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
    setup::READELF,
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

    /// The kernel that the guests run; all of them if none is named.
    #[arg(long, value_name = "SERIES", value_enum)]
    kernel: Option<Series>,

    /// How many cases run at once.
    #[arg(long, value_name = "N", default_value_t = JOBS, value_parser = clap::value_parser!(u8).range(1..=6))]
    jobs: u8,

    /// Show everything the guests print, not only what failed.
    #[arg(long)]
    verbose: bool,

    /// Use this program as our VMM instead of building `examples/microvm`.
    #[arg(long, value_name = "FILE")]
    vmm: Option<PathBuf>,

    /// Use this program as our vhost-user daemon instead of building `examples/vhost-user`.
    #[arg(long, value_name = "FILE")]
    daemon: Option<PathBuf>,

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

/// With two at once guests crashed more often, see `session`.
const JOBS: u8 = 1;

impl Options {
    /// The kernels that guests run.
    fn kernels(&self) -> &[Series] {
        self.kernel.as_ref().map_or(&Series::ALL, std::slice::from_ref)
    }
}

const WHERE_THINGS_ARE: &str = "\
In the lab machine:
  /lab/microvm        our VMM (it is in the PATH too)
  /lab/kernels/SERIES/  a guest's kernel: bzImage, and vmlinux, which is the same uncompressed; its initial RAM disk
                      guest.cpio: lab.case=NAME on the kernel's command line picks what it runs. Those of the first
                      series are found in /lab too
  /lab/guest.img      an ext4 root file system for the guest; root=/dev/vda lab.case=shell gives a shell in it
  /lab/cases/NAME-SERIES/  the images of a case; `sh run.sh` in it runs the case
  /lab/files/         what --add brought
An argument of COMMAND that names a file of this machine is brought along in the same way, and replaced by its place
there. /lab is an ext4 file system: O_DIRECT and hole punching work. It is made anew for each run.

Examples:
  cargo xtask lab                          every case on every kernel
  cargo xtask lab pci --kernel 6.12        one case on one of them
  cargo xtask lab rootfs discard           two of them
  cargo xtask lab -- sh                    look around (Ctrl-A X ends the machine)
  cargo xtask lab -- microvm --help
  cargo xtask lab -- target/debug/deps/iovirt_core-0123 --nocapture

Downloads and results are kept in target/lab; the logs of the last run are in target/lab/run.";

/// Runs `cargo xtask lab`.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if options.list {
        list();
        return Ok(ExitCode::SUCCESS);
    }
    if !options.command.is_empty() {
        if options.reference || !options.cases.is_empty() {
            return Err(Error::new("a command or cases, not both"));
        }
        setup::ensure(&TOOLS)?;
        return shell::run(options);
    }
    let passed = run_named(&named(&options.cases, options.kernels())?, options)?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn list() {
    for case in ALL {
        println!("{:<18} {}", case.name, case.about);
    }
    for case in vhost_user::ALL {
        println!("{:<18} {}", case.name, case.about);
    }
    println!(
        "Each on kernels {}, or on one of them by --kernel. Where no case is named, {} run on the newer one only, {} not at all, \
         vhost-user-… on one or on both.",
        Series::ALL.map(Series::name).join(" and "),
        names(Usual::OneKernel),
        names(Usual::Never),
    );
}

/// The cases that run so where none is named.
fn names(usual: Usual) -> String {
    let names: Vec<&str> = ALL.iter().filter(|case| case.usual == usual).map(|case| case.name).collect();
    names.join(", ")
}

/// Each case on each kernel.
fn runs(cases: &[&'static Case], kernels: &[Series]) -> Vec<Run> {
    let of_case = |case: &&'static Case| {
        // Our own guest is the same beside every kernel.
        let kernels = if case.boots == Boots::OwnGuest { &kernels[..1] } else { kernels };
        let case = *case;
        kernels.iter().map(move |kernel| Run { case, kernel: *kernel })
    };
    cases.iter().flat_map(of_case).collect()
}

/// Sets up what is needed and runs the cases; tells whether all passed.
fn run_named(named: &Named, options: &Options) -> Result<bool> {
    setup::ensure(&TOOLS)?;
    let mut tally = Tally::default();
    if options.reference {
        named
            .vhost_user
            .iter()
            .for_each(|case| println!("reference {:<16} has none: it is about our daemon", case.name));
    } else {
        tally = vhost_user::run(&named.vhost_user, options)?;
    }
    run_cases(&named.lab, options, &mut tally)?;
    if !vhost_user::is_inside() {
        tally.failures.iter().for_each(|failure| println!("case {failure}"));
        println!("cases: {} passed, {} failed", tally.passed, tally.failures.len());
    }
    Ok(tally.failures.is_empty())
}

/// Runs cases of the lab machine.
fn run_cases(runs: &[Run], options: &Options, tally: &mut Tally) -> Result<()> {
    let verdicts =
        if options.reference { reference::run(runs, options)? } else { session::run(runs, options)? };
    for verdict in &verdicts {
        tally.add(&verdict.run, &verdict.outcome);
        if let Err(error) = &verdict.outcome {
            println!("\ncase {}: {error}", verdict.run);
        }
        if options.verbose || verdict.outcome.is_err() {
            println!("--- what the guest of {} printed", verdict.run);
            println!("{}", verdict.console);
            println!("--- end of {}", verdict.run);
        }
    }
    Ok(())
}

/// Runs every case; tells whether all passed.
pub(crate) fn run_all() -> Result<bool> {
    let options = Options { jobs: JOBS, ..Options::default() };
    run_named(&named(&[], options.kernels())?, &options)
}

/// How a case went.
#[derive(Debug)]
struct Verdict {
    run: Run,
    outcome: Result<()>,
    console: String,
    /// The guest ended with a triple fault.
    crashed: bool,
}

/// Every case, as it runs where none is named: some on the last of the kernels only.
fn usual(kernels: &[Series]) -> Vec<Run> {
    let last = kernels.last().copied();
    let is_usual = |run: &Run| match run.case.usual {
        Usual::EveryKernel => true,
        Usual::OneKernel => Some(run.kernel) == last,
        Usual::Never => false,
    };
    runs(&ALL, kernels).into_iter().filter(is_usual).collect()
}

/// Cases of both kinds.
#[derive(Debug, Default)]
struct Named {
    lab: Vec<Run>,
    vhost_user: Vec<&'static vhost_user::Case>,
}

fn named(names: &[String], kernels: &[Series]) -> Result<Named> {
    if names.is_empty() {
        return Ok(Named { lab: usual(kernels), vhost_user: vhost_user::ALL.to_vec() });
    }
    let mut named = Named::default();
    let mut lab = Vec::new();
    for name in names {
        if let Some(case) = ALL.into_iter().find(|case| case.name == name) {
            lab.push(case);
        } else if let Some(case) = vhost_user::find(name) {
            named.vhost_user.push(case);
        } else {
            let known = ALL.iter().map(|case| case.name).chain(vhost_user::ALL.iter().map(|case| case.name));
            let known: Vec<&str> = known.collect();
            return Err(Error::new(format!("no case {name}; there are {}", known.join(", "))));
        }
    }
    named.lab = runs(&lab, kernels);
    Ok(named)
}
