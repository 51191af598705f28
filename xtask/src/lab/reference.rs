//! The same guests on QEMU's own devices, directly on this machine: tells whether a case itself is right.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::cmd::Cmd;
use crate::error::{Context, Error, Result, write};
use crate::lab::cases::{Boots, Case, Outcome, Run};
use crate::lab::kernel::{Kernel, Series};
use crate::lab::machine::{Limit, empty_folder, folder, wait};
use crate::lab::parts::Parts;
use crate::lab::{Options, Verdict};

/// Emulated without KVM, the clock of the processor runs at 1 GHz. The guest has no clock to measure that with but a
/// timer that is late when this machine is busy, and it does not start if it fails.
const CLOCK: &str = "tsc_early_khz=1000000";

/// Runs the cases and checks what they left.
pub(crate) fn run(runs: &[Run], options: &Options) -> Result<Vec<Verdict>> {
    let parts = Parts::obtain(&folder().join("packages"), options.kernels())?;
    let place = folder().join("reference");
    empty_folder(&place)?;
    let ramdisk = |series: Series| place.join(format!("guest-{}.cpio", series.name()));
    for (series, kernel) in &parts.guests {
        write(&ramdisk(*series), parts.guest(kernel)?)?;
    }
    let mut verdicts = Vec::new();
    for run in runs {
        let case = run.case;
        let about_our_vmm = case.host.is_some() && case.reference.is_empty();
        if about_our_vmm || case.boots == Boots::OwnGuest {
            println!("reference {run:<16} has none: it is about our VMM");
            continue;
        }
        let Some((_, kernel)) = parts.guests.iter().find(|(series, _)| *series == run.kernel) else {
            continue;
        };
        let folder = place.join(run.to_string());
        let outcome = Outcome { before: folder.join("before"), after: folder.join("after") };
        fs::create_dir_all(&outcome.before).context(outcome.before.display())?;
        (case.prepare)(&parts, &outcome.before).context(format_args!("preparing {run}"))?;
        Cmd::new("cp").args(["-r", "--sparse=always"]).args([&outcome.before, &outcome.after]).quiet()?;
        let clock = Instant::now();
        let mut console = String::new();
        let verdict = one(case, kernel, &ramdisk(run.kernel), &outcome, &mut console)
            .and_then(|()| (case.check)(&outcome));
        println!(
            "reference {run:<16} {} in {:.1} s",
            if verdict.is_ok() { "ok" } else { "FAILED" },
            clock.elapsed().as_secs_f64()
        );
        verdicts.push(Verdict { run: *run, outcome: verdict, console, crashed: false });
    }
    Ok(verdicts)
}

fn one(case: &Case, kernel: &Kernel, ramdisk: &Path, outcome: &Outcome, console: &mut String) -> Result<()> {
    count(&outcome.after, "before.txt")?;
    let mut command = Cmd::new("qemu-system-x86_64")
        .args(["-M", "microvm,isa-serial=on,rtc=on"])
        .args(["-accel", "tcg", "-cpu", "max", "-m", "256", "-smp"])
        .arg(case.processors.to_string())
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .args(["-serial", "stdio"])
        .args(["-monitor", "unix:monitor,server=on,wait=off"])
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(ramdisk)
        .args(["-append", &format!("{} {CLOCK}", case.words())])
        .args(case.reference)
        .folder(&outcome.after)
        .into_inner();
    command.stdin(File::open("/dev/null")?);
    let limit = Limit::Total(Duration::from_secs(u64::from(case.limit)));
    let mut said = Ok(());
    let status = wait(
        command,
        limit,
        Some(&mut |line| {
            console.push_str(line);
            console.push('\n');
            if line.contains("ready to be")
                && let Some(order) = case.command
            {
                said = tell(&outcome.after.join("monitor"), order);
            }
        }),
    )?;
    said?;
    count(&outcome.after, "after.txt")?;
    // The device makes (code << 1) | 1 of the guest's code; what the guest printed tells it from a QEMU that failed.
    let ended = console.contains(&format!("{} ends with {}", case.name, case.code));
    if ended && status.code() == Some((case.code << 1) | 1) {
        Ok(())
    } else {
        Err(Error::new(format!("QEMU ended with {status}; the guest should end with {}", case.code)))
    }
}

/// Lists the images as the lab machine's host does: name, size, blocks.
fn count(folder: &Path, list: &str) -> Result<()> {
    let mut text = String::new();
    for entry in fs::read_dir(folder).context(folder.display())? {
        let entry = entry?;
        let data = entry.metadata()?;
        let name = entry.file_name();
        let _ = writeln!(text, "{} {} {}", name.to_string_lossy(), data.len(), data.blocks());
    }
    write(&folder.join(list), text)
}

/// Says a line to QEMU's monitor.
fn tell(socket: &Path, order: &str) -> Result<()> {
    let mut monitor = UnixStream::connect(socket).context("QEMU's monitor")?;
    monitor.set_read_timeout(Some(Duration::from_secs(5)))?;
    monitor.write_all(format!("{order}\n").as_bytes())?;
    // Its greeting and the echo: the order has been read once something came back.
    let mut answer = [0; 512];
    let _ = monitor.read(&mut answer)?;
    let _ = monitor.read(&mut answer);
    Ok(())
}
