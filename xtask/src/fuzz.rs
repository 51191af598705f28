//! The fuzz targets: built by cargo-fuzz, each run for a few seconds from its seeds.

use std::fs;

use crate::cmd::{self, Cmd};
use crate::error::{Context, Error, Result};

/// How long each target runs, in seconds.
const SECONDS: u32 = 5;

/// Builds all targets and runs each of them for a few seconds. What a run finds on its way is kept below the target
/// folder, so that the next one begins there.
pub(crate) fn run() -> Result<()> {
    if cmd::find("cargo-fuzz").is_none() {
        println!("cargo-fuzz is not installed: it is built now");
        Cmd::cargo().args(["install", "cargo-fuzz", "--locked"]).show()?;
    }
    let folder = cmd::root().join("fuzz");
    // The seeds are those that the code makes, and every one passes.
    Cmd::cargo().args(["test", "--lib"]).folder(&folder).show()?;
    // Without a sanitizer the stable compiler will do.
    Cmd::cargo().args(["fuzz", "build", "--sanitizer", "none"]).folder(&folder).show()?;
    let targets = Cmd::cargo().args(["fuzz", "list"]).folder(&folder).text()?;
    let mut failed = Vec::new();
    for target in targets.lines() {
        let corpus = cmd::target().join("fuzz-corpus").join(target);
        fs::create_dir_all(&corpus).context(corpus.display().to_string())?;
        let run = Cmd::cargo()
            .args(["fuzz", "run", "--sanitizer", "none", target])
            .arg(&corpus)
            .arg(format!("seeds/{target}"))
            .args(["--", &format!("-max_total_time={SECONDS}"), "-verbosity=0", "-print_final_stats=1"])
            .folder(&folder);
        if let Err(error) = run.show() {
            println!("error: {error}");
            failed.push(target);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!("found something: {}; the inputs are in fuzz/artifacts", failed.join(", "))))
}
