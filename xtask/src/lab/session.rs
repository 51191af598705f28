//! All cases in one start of the lab machine.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result, read, write};
use crate::lab::cases::{Boots, Case, Outcome};
use crate::lab::filesystem;
use crate::lab::machine::{Machine, Screen};
use crate::lab::work::Work;
use crate::lab::{Options, Verdict};

const SCRIPT: &[u8] = include_bytes!("../../lab/host-cases.sh");
/// What the lab machine may take beyond its cases.
const START: Duration = Duration::from_secs(90);

/// Runs the cases one after another and checks what they left.
pub(crate) fn run(cases: &[&'static Case], options: &Options) -> Result<Vec<Verdict>> {
    let clock = Instant::now();
    let work = Work::new()?;
    work.add_programs(options)?;
    let mut order = String::new();
    let mut limit = START;
    for case in cases {
        work.add_case(case)?;
        let _ = writeln!(order, "{} {}", case.name, case.limit);
        limit += Duration::from_secs(u64::from(case.limit));
    }
    write(&work.tree.join("order"), order)?;
    write(&work.tree.join("run.sh"), SCRIPT)?;
    let disk = work.disk()?;
    let machine = Machine {
        kernel: &work.parts.kernel.elf,
        ramdisk: &work.run.join("host.cpio"),
        work: &disk,
        console: work.run.join("console.log"),
        screen: Screen::Lines,
        limit,
    };
    println!(
        "lab: Debian's kernel {} as host and guest; prepared in {:.1} s",
        work.parts.kernel.release,
        clock.elapsed().as_secs_f64()
    );

    let clock = Instant::now();
    let mut times = BTreeMap::new();
    let mut begun = None;
    let ended = machine.run(&mut |line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["@lab", "begin", name] => {
                if times.is_empty() && begun.is_none() {
                    println!("lab: host is up after {:.1} s", clock.elapsed().as_secs_f64());
                }
                begun = Some((name.to_owned(), Instant::now()));
            }
            ["@lab", "end", name, code] => {
                let took = begun.take().map_or(0.0, |(_, start)| start.elapsed().as_secs_f64());
                println!("lab: {name} ended with {code} after {took:.1} s");
                times.insert(name.to_owned(), took);
            }
            _ => println!("{line}"),
        }
    });
    println!("lab: host is gone after {:.1} s", clock.elapsed().as_secs_f64());
    if let Err(error) = ended {
        let during = begun.map_or(String::new(), |(name, _)| format!("during case {name}: "));
        return Err(Error::new(format!("{during}{error}")));
    }
    filesystem::copy_out(&disk, "/cases", &work.run.join("after"))?;
    let verdicts = cases.iter().map(|case| judge(case, &work)).collect();
    for folder in ["tree", "after"] {
        drop_images(&work.run.join(folder))?;
    }
    fs::remove_file(&disk).context(disk.display())?;
    Ok(verdicts)
}

fn judge(case: &'static Case, work: &Work) -> Verdict {
    let outcome =
        Outcome { before: work.case_before(case), after: work.run.join("after/cases").join(case.name) };
    let log = |name: &str| {
        let bytes = read(&outcome.after.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    };
    let mut console = log("console.log");
    let errors = log("errors.log");
    // A guest without a console leaves the VMM's report there.
    let report = if case.boots == Boots::OwnGuest { console.clone() } else { String::new() };
    if !errors.trim().is_empty() {
        console.push_str("\n--- what the VMM said\n");
        console.push_str(&errors);
    }
    let verdict = code(&outcome.after, case).and_then(|()| (case.check)(&outcome));
    println!("case {:<12} {}", case.name, if verdict.is_ok() { "ok" } else { "FAILED" });
    // Doorbells and interrupts per request, as the VMM counted them under this guest's own driver.
    for line in errors.lines().chain(report.lines()).filter(|line| line.contains(" per request")) {
        println!("  {}", line.trim());
    }
    Verdict { case, outcome: verdict, console }
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
