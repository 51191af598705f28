//! Cases in which our daemon, `examples/vhost-user`, serves devices to QEMU, whose guest is a stock kernel. QEMU emulates that guest's
//! processors right on this machine, so these cases need no lab machine and take seconds.
//!
//! `process`, `daemon`, `qemu` and `qmp` are the programs of a case, `load` what several guests do, `stream` the host's ends of TCP streams;
//! the other files are the cases.

mod blk;
mod card;
mod daemon;
mod debian;
mod kill;
mod left;
mod load;
mod memory;
mod migrate;
mod net;
mod process;
mod qemu;
mod qmp;
mod stream;

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::cmd::{self, Cmd, tail};
use crate::error::{Context, Error, Result, read, write};
use crate::lab::Options;
use crate::lab::kernel::Series;
use crate::lab::machine::{empty_folder, folder};
use crate::lab::parts::Parts;
use crate::setup;

/// Every case, in the order in which they run.
pub(crate) const ALL: [&Case; 9] = [
    &blk::CASE,
    &card::CASE,
    &debian::CASE,
    &kill::CASE,
    &left::CASE,
    &memory::CASE,
    &migrate::CASE,
    &net::CASE,
    &net::QUEUES,
];

/// A case.
#[derive(Debug)]
pub(crate) struct Case {
    /// Its name.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// The kernels on which it runs where none is named.
    kernels: &'static [Series],
    network: Network,
    /// Makes the image that it starts from and keeps it in a folder, before the case's time begins.
    image: Option<fn(&Path) -> Result<PathBuf>>,
    /// Runs it in the folder of a place; gives back a few words on what was seen.
    run: fn(&Place) -> Result<String>,
}

/// The network that a case uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Network {
    /// None.
    Unused,
    /// A namespace of its own.
    Own,
}

/// No case may take longer.
const LIMIT: Duration = Duration::from_secs(60);

/// Where a case runs, and with what.
#[derive(Debug)]
pub(crate) struct Place {
    /// The case's folder.
    pub folder: PathBuf,
    /// The guest's kernel.
    pub kernel: PathBuf,
    /// Its RAM disk.
    pub ramdisk: PathBuf,
    /// Our daemon.
    pub daemon: PathBuf,
    /// What it starts from, if it is that kind of case.
    pub image: Option<PathBuf>,
    /// For tools that this system need not have.
    pub busybox: PathBuf,
    /// When the case must have ended.
    pub deadline: Instant,
}

/// A case on a kernel.
#[derive(Debug, Clone, Copy)]
struct Run {
    case: &'static Case,
    kernel: Series,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}-{}", self.case.name, self.kernel.name()))
    }
}

/// How cases ended.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// How many passed.
    pub passed: usize,
    /// Those that did not, each in one line: a log may be long, and is read from its end.
    pub failures: Vec<String>,
}

impl Tally {
    /// Counts a case.
    pub(crate) fn add(&mut self, run: &impl fmt::Display, outcome: &Result<()>) {
        match outcome {
            Ok(()) => self.passed += 1,
            Err(error) => {
                let why = error.to_string();
                self.failures.push(format!("{run} FAILED: {}", why.lines().next().unwrap_or_default()));
            }
        }
    }
}

/// The case of that name.
pub(crate) fn find(name: &str) -> Option<&'static Case> {
    ALL.into_iter().find(|case| case.name == name)
}

/// Runs cases.
pub(crate) fn run(cases: &[&'static Case], options: &Options) -> Result<Tally> {
    if cases.is_empty() {
        return Ok(Tally::default());
    }
    setup::ensure(&[setup::IP, setup::UNSHARE])?;
    let parts = Parts::obtain(&packages(), options.kernels())?;
    let place = folder().join("vhost-user");
    fs::create_dir_all(&place).context(place.display())?;
    let daemon = daemon(options)?;
    let mut tally = Tally::default();
    for case in cases {
        for kernel in options.kernels() {
            if options.kernel.is_none() && !case.kernels.contains(kernel) {
                continue;
            }
            let run = Run { case, kernel: *kernel };
            let outcome = if case.network == Network::Own && !is_inside() {
                run_in_namespace(run, &daemon)?
            } else {
                run_here(run, &parts, &daemon)?
            };
            tally.add(&run, &outcome);
        }
    }
    Ok(tally)
}

/// Where what was fetched is kept.
fn packages() -> PathBuf {
    folder().join("packages")
}

/// Our daemon, built unless the options name one.
fn daemon(options: &Options) -> Result<PathBuf> {
    if let Some(file) = &options.daemon {
        return fs::canonicalize(file).context(file.display());
    }
    Cmd::cargo().args(["build", "--release", "--example", "vhost-user"]).show()?;
    Ok(cmd::target().join("release/examples/vhost-user"))
}

/// Says that this process is in a network namespace of its own.
const INSIDE: &str = "IOVIRT_LAB_IN_NAMESPACE";

/// Whether this process runs one case for another one.
pub(crate) fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

/// Runs this program again in a network namespace of its own, for one case; the outer result is whether that could be done.
fn run_in_namespace(run: Run, daemon: &Path) -> Result<Result<()>> {
    let user: &[&str] = if setup::is_root() { &[] } else { &["--map-root-user"] };
    let status = Cmd::new("unshare")
        .arg("--net")
        .args(user)
        .arg(env::current_exe()?)
        .args(["lab", run.case.name, "--kernel", run.kernel.name(), "--daemon"])
        .arg(daemon)
        .env(INSIDE, "1")
        .into_inner()
        .status()
        .context("unshare")?;
    Ok(if status.success() { Ok(()) } else { Err(Error::new(format!("in its namespace, {status}"))) })
}

fn run_here(run: Run, parts: &Parts, daemon: &Path) -> Result<Result<()>> {
    let Some((_, kernel)) = parts.guests.iter().find(|(series, _)| *series == run.kernel) else {
        return Err(Error::new(format!("no kernel for {run}")));
    };
    let place = folder().join("vhost-user").join(run.to_string());
    empty_folder(&place)?;
    let ramdisk = place.join("guest.cpio");
    write(&ramdisk, parts.guest(kernel)?)?;
    let image = match run.case.image.map(|make| make(&packages())).transpose() {
        Ok(image) => image,
        Err(error) => {
            println!("case {run:<22} FAILED before it began: {error}");
            return Ok(Err(error));
        }
    };
    let clock = Instant::now();
    let place = Place {
        folder: place,
        kernel: kernel.elf.clone(),
        ramdisk,
        daemon: daemon.to_owned(),
        image,
        busybox: parts.busybox_file.clone(),
        deadline: clock + LIMIT,
    };
    let outcome = (run.case.run)(&place);
    let seconds = clock.elapsed().as_secs_f64();
    match &outcome {
        Ok(seen) => println!("case {run:<22} ok in {seconds:.1} s: {seen}"),
        Err(error) => {
            println!("case {run:<22} FAILED after {seconds:.1} s: {error}");
            show_logs(&place.folder)?;
        }
    }
    drop_large(&place.folder)?;
    Ok(outcome.map(drop))
}

/// The ends of what programs said.
fn show_logs(folder: &Path) -> Result<()> {
    for path in files(folder)? {
        if path.extension().is_some_and(|end| end == "out" || end == "err") {
            let text = read(&path)?;
            println!("--- the end of {}", path.display());
            println!("{}", tail(&String::from_utf8_lossy(&text), 40));
        }
    }
    println!("---");
    Ok(())
}

/// Images are large and can be made again; logs stay.
fn drop_large(folder: &Path) -> Result<()> {
    for path in files(folder)? {
        if path.is_dir() {
            fs::remove_dir_all(&path).context(path.display())?;
        } else if path.extension().is_some_and(|end| end == "img" || end == "cpio") {
            fs::remove_file(&path).context(path.display())?;
        }
    }
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).context(folder.display())? {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}
