//! The table of steps. A new step is a line in it.

use crate::blocks;
use crate::cmd::{self, Cmd};
use crate::error::{Error, Result};
use crate::fuzz;
use crate::instructions;
use crate::lab;
use crate::setup::{self, Tool};

/// One check.
#[derive(Debug)]
pub(crate) struct Step {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// The programs it needs beside cargo; set up before it runs.
    pub tools: &'static [Tool],
    /// Does it.
    pub run: fn() -> Result<()>,
}

/// All steps, in the order in which they run: what fails fast comes first.
#[rustfmt::skip]
pub(crate) const STEPS: &[Step] = &[
    Step { name: "format", about: "rustfmt changes nothing", tools: &[], run: format },
    Step { name: "blocks", about: "docs/blocks.md is what the table of proofs says", tools: &[], run: blocks::check },
    Step { name: "clippy", about: "no warning in any target", tools: &[setup::CC], run: clippy },
    Step { name: "alone", about: "each library alone, without default features", tools: &[setup::CC], run: alone },
    Step { name: "unit", about: "unit and integration tests", tools: &UNIT_TOOLS, run: unit },
    Step { name: "embedder", about: "an embedder outside, by the public API alone", tools: &[setup::CC], run: embedder },
    Step { name: "loom", about: "what threads share, in every order of events, by a model checker", tools: &[setup::CC], run: loom },
    Step { name: "doc", about: "the examples in the documentation", tools: &[setup::CC], run: doc },
    Step { name: "fuzz", about: "every fuzz target for a few seconds", tools: &[setup::CXX], run: fuzz::run },
    Step { name: "instructions", about: "no path of a request has become longer", tools: &instructions::TOOLS, run: instructions::run },
    Step { name: "lab", about: "our devices under KVM with a stock Linux guest", tools: &lab::TOOLS, run: the_lab },
];

/// What tests talk to and make their devices with. Where something is missing, and cargo runs the tests without this
/// program, they say `SKIPPED`; run by this program they fail instead.
const UNIT_TOOLS: [Tool; 8] = [
    setup::CC,
    setup::NBDKIT,
    setup::QEMU_NBD,
    setup::STORAGE_DAEMON,
    setup::MKFS,
    setup::IP,
    setup::UNSHARE,
    setup::LOSETUP,
];

/// Makes a skipped test a failed one (`iovirt_core::test_utils::skip`): what is green here has run.
const NO_SKIP: &str = "IOVIRT_NO_SKIP";

/// The crates that others build on.
const LIBRARIES: [&str; 6] =
    ["iovirt-core", "iovirt-frontends", "iovirt-backends", "iovirt-iommu", "iovirt-sched", "iovirt"];

fn format() -> Result<()> {
    Cmd::cargo().args(["fmt", "--all", "--check"]).show()
}

fn clippy() -> Result<()> {
    let arguments = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    Cmd::cargo().args(arguments).show()
}

fn alone() -> Result<()> {
    for library in LIBRARIES {
        let arguments = ["check", "--no-default-features", "--package", library];
        Cmd::cargo().args(arguments).show()?;
    }
    Ok(())
}

fn unit() -> Result<()> {
    if cmd::find("cargo-nextest").is_some() {
        let arguments = ["nextest", "run", "--workspace", "--no-fail-fast"];
        return Cmd::cargo().args(arguments).env(NO_SKIP, "1").show();
    }
    println!("cargo-nextest is not installed: the tests run with cargo test");
    let arguments = ["test", "--workspace", "--all-targets", "--no-fail-fast"];
    Cmd::cargo().args(arguments).env(NO_SKIP, "1").show()
}

/// A workspace of its own, so nothing that the other steps build is of use to it, nor does it disturb them: its own target
/// directory.
fn embedder() -> Result<()> {
    let folder = cmd::root().join("tests/embedder");
    let target = cmd::target().join("embedder").display().to_string();
    let cargo = || Cmd::cargo().folder(&folder).env("CARGO_TARGET_DIR", &target);
    cargo().args(["fmt", "--check"]).show()?;
    cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]).show()?;
    cargo().args(["test", "--no-fail-fast"]).show()
}

/// Its own target directory, since all that is built for it is built with another flag; and a quick build, since the models
/// themselves take no time.
fn loom() -> Result<()> {
    Cmd::cargo()
        .args([
            "test",
            "--lib",
            "--release",
            "-p",
            "iovirt-core",
            "-p",
            "iovirt-frontends",
            "-p",
            "iovirt-backends",
        ])
        .args(["loom_", "--target-dir"])
        .arg(cmd::target().join("loom"))
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
        .show()
}

fn doc() -> Result<()> {
    Cmd::cargo().args(["test", "--doc", "--workspace"]).show()
}

fn the_lab() -> Result<()> {
    if lab::run_all()? { Ok(()) } else { Err(Error::new("not every case passed")) }
}
