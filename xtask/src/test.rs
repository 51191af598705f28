//! `cargo xtask test`: every check of the project, as a table of steps.

mod steps;

use std::process::ExitCode;
use std::time::Instant;

use clap::Args;

use crate::error::{Error, Result};
use crate::setup;
use steps::{STEPS, Step};

/// Options of `cargo xtask test`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these steps, with commas between them.
    #[arg(long, value_delimiter = ',', value_name = "STEP")]
    only: Vec<String>,

    /// All but these steps.
    #[arg(long, value_delimiter = ',', value_name = "STEP")]
    except: Vec<String>,

    /// List the steps.
    #[arg(long)]
    list: bool,
}

/// How a step ended.
#[derive(Debug)]
enum Ending {
    Passed,
    Failed(Error),
    Left(&'static str),
}

/// Runs `cargo xtask test`: all steps, also after one that failed.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    for name in options.only.iter().chain(&options.except) {
        if !STEPS.iter().any(|step| step.name == name) {
            let known: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
            return Err(Error::new(format!("no step {name}; there are {}", known.join(", "))));
        }
    }
    if options.list {
        for step in STEPS {
            println!("{:<12} {}", step.name, step.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut results = Vec::new();
    for step in STEPS {
        let clock = Instant::now();
        let ending = if let Some(reason) = left_out(step, options) {
            Ending::Left(reason)
        } else {
            println!("\n=== {}: {}", step.name, step.about);
            match setup::ensure(step.tools).and_then(|()| (step.run)()) {
                Ok(()) => Ending::Passed,
                Err(error) => Ending::Failed(error),
            }
        };
        let seconds = clock.elapsed().as_secs_f64();
        let line = match &ending {
            Ending::Passed => format!("{:<12} ok       {seconds:6.1} s", step.name),
            Ending::Failed(error) => {
                println!("error: {error}");
                format!("{:<12} FAILED   {seconds:6.1} s", step.name)
            }
            Ending::Left(reason) => format!("{:<12} skipped  {reason}", step.name),
        };
        println!("=== {line}");
        results.push((ending, line));
    }
    println!("\nall steps:");
    for (_, line) in &results {
        println!("  {line}");
    }
    let count = |wanted: fn(&Ending) -> bool| results.iter().filter(|(ending, _)| wanted(ending)).count();
    let failed = count(|ending| matches!(ending, Ending::Failed(_)));
    println!(
        "steps: {} passed, {failed} failed, {} skipped",
        count(|ending| matches!(ending, Ending::Passed)),
        count(|ending| matches!(ending, Ending::Left(_))),
    );
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn left_out(step: &Step, options: &Options) -> Option<&'static str> {
    let named = |names: &[String]| names.iter().any(|name| name == step.name);
    if !options.only.is_empty() && !named(&options.only) {
        Some("--only names others")
    } else if named(&options.except) {
        Some("--except names it")
    } else {
        None
    }
}
