//! A command, or a person, in the lab machine.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::error::{Context, Error, Result, read, write};
use crate::lab::cases::ALL;
use crate::lab::filesystem;
use crate::lab::machine::{Limit, Machine, Screen};
use crate::lab::work::{Work, quoted};
use crate::lab::{Options, runs};

/// Runs the command; its exit code is ours.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let kernels = options.kernels();
    let work = Work::new(kernels)?;
    work.add_programs(options)?;
    for run in runs(&ALL, kernels) {
        work.add_run(run)?;
    }
    add_root(&work)?;
    let mut words = Vec::new();
    for word in &options.command {
        let file = Path::new(word);
        words.push(if file.is_file() { work.add_file(file)? } else { word.clone() });
    }
    write(&work.tree.join("run.sh"), format!("exec {}\n", quoted(&words)))?;
    let disk = work.disk()?;
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let machine = Machine {
        kernel: &work.parts.host_kernel.elf,
        ramdisk: &work.run.join("host.cpio"),
        work: &disk,
        console: work.run.join("console.log"),
        screen: if terminal { Screen::Terminal } else { Screen::Output },
        limit: Limit::Total(Duration::from_secs(options.limit)),
    };
    machine.run(&mut |_| {})?;
    let results = work.run.join("after");
    filesystem::copy_out(&disk, "/code", &results)?;
    let code = String::from_utf8_lossy(&read(&results.join("code"))?).into_owned();
    let code: i32 = code.trim().parse().context("the exit code")?;
    u8::try_from(code).map(ExitCode::from).map_err(|_| Error::new(format!("the command ended with {code}")))
}

/// A root file system to play with.
fn add_root(work: &Work) -> Result<()> {
    let folder = work.run.join("root");
    work.parts.guest_tree(&folder)?;
    filesystem::make(&work.tree.join("guest.img"), 64 << 20, &folder)
}
