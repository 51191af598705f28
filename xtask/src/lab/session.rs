//! Cases in one start of the lab machine.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result, read, write};
use crate::lab::cases::{Boots, Case, Outcome, Run};
use crate::lab::filesystem;
use crate::lab::machine::{Limit, Machine, Screen};
use crate::lab::work::Work;
use crate::lab::{Options, Verdict};

const SCRIPT: &[u8] = include_bytes!("../../lab/host-cases.sh");
/// What the lab machine may take beyond its cases.
const START: Duration = Duration::from_secs(90);

/// What the VMM says of a guest that ended so.
const TRIPLE_FAULT: &str = "the guest crashed with a triple fault";

/// Seconds that a script around our VMM has to end after it.
const SCRIPT_ENDS: u32 = 15;

/// Cases of one start of the lab machine. It is emulated down to its virtualization, and now and then crashes as a whole, with a
/// triple fault of the emulated processor and no word from its kernel: then only so many cases have to be run again.
const BATCH: usize = 7;
/// How often a batch is begun at most. It is mostly under a card's load that the machine crashes, so each of these cases has a start
/// of its own.
const STARTS: u32 = 6;
/// How often a case is run again whose guest crashed.
const CRASHES: u32 = 8;

/// Runs the cases and checks what they left.
pub(crate) fn run(runs: &[Run], options: &Options) -> Result<Vec<Verdict>> {
    let (cards, others): (Vec<Run>, Vec<Run>) = runs.iter().copied().partition(|run| run.case.has_card());
    let mut verdicts = Vec::new();
    for batch in others.chunks(BATCH).chain(cards.chunks(1)) {
        let mut judged = run_to_its_end(batch, options)?;
        for _ in 0..CRASHES {
            judged = run_crashed_again(judged, options)?;
        }
        verdicts.extend(judged);
    }
    Ok(verdicts)
}

/// A batch, begun again where the lab machine crashed under it.
fn run_to_its_end(batch: &[Run], options: &Options) -> Result<Vec<Verdict>> {
    let mut starts = 1;
    loop {
        match run_batch(batch, options)? {
            Ended::Judged(judged) => return Ok(judged),
            Ended::Crashed(why) if starts == STARTS => {
                return Err(Error::new(format!("for the last time, {why}")));
            }
            Ended::Crashed(why) => {
                starts += 1;
                println!("lab: {why}");
                println!("lab: the lab machine itself crashed, not a guest in it: its cases are run again");
            }
        }
    }
}

/// The same emulation now and then crashes a guest, also before it has come to any device of ours: such a case is run again, and the
/// log says so. The last crash counts.
fn run_crashed_again(judged: Vec<Verdict>, options: &Options) -> Result<Vec<Verdict>> {
    let (crashed, mut verdicts): (Vec<_>, Vec<_>) = judged.into_iter().partition(|verdict| verdict.crashed);
    if crashed.is_empty() {
        return Ok(verdicts);
    }
    for verdict in &crashed {
        println!("lab: the guest of {} crashed with a triple fault; the case is run again", verdict.run);
        println!("{}", verdict.console);
    }
    let runs: Vec<Run> = crashed.iter().map(|verdict| verdict.run).collect();
    verdicts.extend(run_to_its_end(&runs, options)?);
    Ok(verdicts)
}

/// How a start of the lab machine ended.
enum Ended {
    Judged(Vec<Verdict>),
    /// The machine did not come to its end, and why.
    Crashed(String),
}

fn run_batch(runs: &[Run], options: &Options) -> Result<Ended> {
    let clock = Instant::now();
    let work = Work::new(options.kernels())?;
    work.add_programs(options)?;
    let mut order = String::new();
    // Every case says when it begins and ends: a machine that hangs is not waited for by all of them.
    let mut longest = 0;
    for run in runs {
        work.add_run(*run)?;
        let seconds = run.case.limit + if run.case.host.is_some() { SCRIPT_ENDS } else { 0 };
        let _ = writeln!(order, "{run} {seconds}");
        longest = longest.max(seconds);
    }
    write(&work.tree.join("jobs"), options.jobs.to_string())?;
    write(&work.tree.join("order"), order)?;
    write(&work.tree.join("run.sh"), SCRIPT)?;
    let disk = work.disk()?;
    let machine = Machine {
        kernel: &work.parts.host_kernel.elf,
        ramdisk: &work.run.join("host.cpio"),
        work: &disk,
        console: work.run.join("console.log"),
        screen: Screen::Lines,
        limit: Limit::Silence(START + Duration::from_secs(u64::from(longest))),
    };
    println!(
        "lab: Debian's kernel {} as host, {} in guests; {} at once; prepared in {:.1} s",
        work.parts.host_kernel.release,
        work.parts.guests.iter().map(|(_, kernel)| kernel.release.as_str()).collect::<Vec<_>>().join(" and "),
        options.jobs,
        clock.elapsed().as_secs_f64()
    );

    let clock = Instant::now();
    let mut begun: BTreeMap<String, Instant> = BTreeMap::new();
    let mut up = false;
    let ended = machine.run(&mut |line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["@lab", "begin", name] => {
                if !std::mem::replace(&mut up, true) {
                    println!("lab: host is up after {:.1} s", clock.elapsed().as_secs_f64());
                }
                begun.insert(name.to_owned(), Instant::now());
            }
            ["@lab", "end", name, code] => {
                let took = begun.remove(name).map_or(0.0, |start| start.elapsed().as_secs_f64());
                println!("lab: {name} ended with {code} after {took:.1} s");
            }
            _ => println!("{line}"),
        }
    });
    println!("lab: host is gone after {:.1} s", clock.elapsed().as_secs_f64());
    if let Err(error) = ended {
        let during: Vec<String> = begun.into_keys().collect();
        return Ok(Ended::Crashed(format!("during {}: {error}", during.join(", "))));
    }
    filesystem::copy_out(&disk, "/cases", &work.run.join("after"))?;
    let verdicts = runs.iter().map(|run| judge(*run, &work)).collect();
    for folder in ["tree", "after"] {
        drop_images(&work.run.join(folder))?;
    }
    fs::remove_file(&disk).context(disk.display())?;
    Ok(Ended::Judged(verdicts))
}

fn judge(run: Run, work: &Work) -> Verdict {
    let outcome =
        Outcome { before: work.before(run), after: work.run.join("after/cases").join(run.to_string()) };
    let log = |name: &str| {
        let bytes = read(&outcome.after.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    };
    let mut console = log("console.log");
    let errors = log("errors.log");
    // A guest without a console leaves the VMM's report there.
    let report = if run.case.boots == Boots::OwnGuest { console.clone() } else { String::new() };
    if !errors.trim().is_empty() {
        console.push_str("\n--- what the VMM said\n");
        console.push_str(&errors);
    }
    let verdict = code(&outcome.after, run.case).and_then(|()| (run.case.check)(&outcome));
    println!("case {run:<16} {}", if verdict.is_ok() { "ok" } else { "FAILED" });
    // Doorbells and interrupts per request, as the VMM counted them under this guest's own driver.
    for line in errors.lines().chain(report.lines()).filter(|line| line.contains(" per request")) {
        println!("  {}", line.trim());
    }
    let crashed = verdict.is_err() && errors.contains(TRIPLE_FAULT);
    Verdict { run, outcome: verdict, console, crashed }
}

/// The VMM must have ended with the right code.
fn code(after: &Path, case: &Case) -> Result<()> {
    let file = after.join("code");
    let text = fs::read_to_string(&file).context("the case did not run")?;
    match text.trim().parse::<i32>() {
        Ok(code) if code == case.code => Ok(()),
        Ok(137) => Err(Error::new(format!("was killed after its time limit of {} s", case.limit))),
        _ => Err(Error::new(format!("the VMM ended with {}, not {}", text.trim(), case.code))),
    }
}

/// Images are large and can be made again; logs stay.
fn drop_images(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).context(folder.display())? {
        let path = entry?.path();
        if path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            if path.extension().is_some_and(|extension| extension == "files") {
                fs::remove_dir_all(&path).context(path.display())?;
            } else {
                drop_images(&path)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "img") {
            fs::remove_file(&path).context(path.display())?;
        }
    }
    Ok(())
}
