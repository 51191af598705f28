//! `cargo xtask bench-peers`: our vhost-user daemon beside QEMU's, and the floor below both.
//!
//! One client of ours, a driver over vhost-user, asks every server for the same, in turns: load by load, and round by round with fresh
//! server processes, the server on one processor and the client on another. The floor is a device in a thread that
//! only turns the ring around, or only does `pread` and `pwrite`.

mod bare;
mod client;
mod files;
mod floor;
mod histogram;
mod machine;
mod plot;
mod points;
mod queues;
mod servers;
mod table;

use std::env;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Args;
use vhost_user_driver::{Options as DriverOptions, sys};

use crate::cmd::{self, Cmd};
use crate::error::{Context, Error, Result, read, write};
use crate::setup;
use client::Span;
use files::Files;
use points::{Access, Client, Load, Results, Sample, Target};
use servers::{Family, Place, Running, Server};

/// The page with the results, and the picture beside it.
const PAGE: &str = "docs/performance.md";
const PICTURE: &str = "docs/performance-peers.svg";
/// What the picture shows, for those who do not see it.
const PICTURE_TEXT: &str =
    "requests per second and the 99th percentile of the latency, by requests in flight";
/// The example that is our daemon.
const DAEMON: &str = "vhost-user";
const DEPTHS: [u16; 4] = [1, 8, 32, 128];
const QUICK_DEPTHS: [u16; 2] = [1, 32];
const QUICK_ACCESSES: [Access; 2] = [Access::RandomRead, Access::RandomWrite];
/// How long a server without work is watched, after it had time to settle.
const SETTLES: Duration = Duration::from_millis(300);
const IDLES: Duration = Duration::from_secs(1);
/// As root, servers and client come before other processes of the machine.
const NICE: &str = "-10";

/// Options of `cargo xtask bench-peers`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only these servers, with commas between them.
    #[arg(long, value_delimiter = ',', default_values_t = [Family::Qsd, Family::Iovirt, Family::Floor])]
    servers: Vec<Family>,

    /// Only these targets, with commas between them.
    #[arg(long, value_delimiter = ',', default_values_t = Target::ALL)]
    only: Vec<Target>,

    /// Only these parts, with commas between them.
    #[arg(long, value_delimiter = ',', default_values_t = Part::ALL)]
    parts: Vec<Part>,

    /// How long each point is measured, in seconds, after a sixth of that to warm up.
    #[arg(long, default_value_t = 0.6)]
    seconds: f64,

    /// How often each point is measured.
    #[arg(long, default_value_t = 3)]
    rounds: u32,

    /// Few and short points on a small disk: whether it works, not how fast.
    #[arg(long)]
    quick: bool,

    /// The server's processor.
    #[arg(long, default_value_t = 0)]
    server_cpu: usize,

    /// The client's processor.
    #[arg(long, default_value_t = 1)]
    client_cpu: usize,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// One queue, the client on a processor of its own.
    Loads,
    /// Several queues on one processor and on two.
    Queues,
}

impl Part {
    const ALL: [Self; 2] = [Self::Loads, Self::Queues];
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Loads => "loads",
            Self::Queues => "queues",
        })
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Qsd => "qsd",
            Self::Iovirt => "iovirt",
            Self::Floor => "floor",
        })
    }
}

/// What is measured, and how long.
struct Plan {
    targets: Vec<Target>,
    families: Vec<Family>,
    loads: Vec<Load>,
    span: Span,
    rounds: u32,
    disk: u64,
    server_cpu: usize,
}

/// Runs `cargo xtask bench-peers`.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    if cfg!(debug_assertions) {
        // The client of a measurement is built as the servers are.
        let again = Cmd::cargo().args(["run", "--release", "--quiet", "--package", "xtask", "--"]);
        return again.args(env::args_os().skip(1)).show().map(|()| ExitCode::SUCCESS);
    }
    let plan = plan(options)?;
    setup::ensure(&[setup::STORAGE_DAEMON])?;
    if plan.families.contains(&Family::Iovirt) {
        Cmd::cargo().args(["build", "--release", "--example", DAEMON]).show()?;
    }
    come_first()?;
    let folder = files::folder()?;
    let place = Place {
        server_cpu: options.server_cpu,
        prefix: prefix(&[options.server_cpu]),
        daemon: cmd::target().join("release/examples").join(DAEMON),
        folder: folder.clone(),
    };
    sys::pin_this_thread(options.client_cpu).context(format_args!("processor {}", options.client_cpu))?;
    let files = Files::new(&plan.targets, plan.disk, &folder)?;
    let busy = machine::busyness();
    let mut results = Results::default();
    if options.parts.contains(&Part::Loads) {
        measure(&plan, &place, &files, &mut results)?;
    }
    if options.parts.contains(&Part::Queues) {
        let processors = [options.server_cpu, options.client_cpu];
        results.queues = queues::measure(&plan, &place, &files, processors)?;
    }

    let facts = format!("{}; load average before the run {busy}", machine::facts()?);
    let section = table::section(&results, &facts, &how(&plan));
    let picture = plot::svg(&results);
    write(&folder.join("table.md"), &section)?;
    write(&folder.join("plot.svg"), &picture)?;
    println!("\n{section}");
    let whole = !options.quick
        && plan.targets.len() == Target::ALL.len()
        && plan.families.len() == 3
        && options.parts.len() == Part::ALL.len();
    if whole {
        publish(cmd::root(), &section, &picture)?;
        println!("written: {PAGE}, {PICTURE}");
    } else {
        println!(
            "not all was measured: {PAGE} stays as it is; written: bench-peers/ in the target directory"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn plan(options: &Options) -> Result<Plan> {
    if options.rounds == 0 || !(0.01..=60.0).contains(&options.seconds) {
        return Err(Error::new("--rounds from 1, --seconds from 0.01 to 60"));
    }
    if options.server_cpu == options.client_cpu {
        return Err(Error::new("--server-cpu and --client-cpu must differ"));
    }
    let (depths, accesses) = if options.quick {
        (QUICK_DEPTHS.to_vec(), QUICK_ACCESSES.to_vec())
    } else {
        (DEPTHS.to_vec(), Access::ALL.to_vec())
    };
    let mut loads = Vec::new();
    for client in Client::ALL {
        for access in &accesses {
            loads.extend(depths.iter().map(|depth| Load { client, access: *access, depth: *depth }));
        }
    }
    let seconds = if options.quick { options.seconds.min(0.1) } else { options.seconds };
    let measured = Duration::from_secs_f64(seconds);
    let mut families = options.servers.clone();
    let mut targets = options.only.clone();
    families.dedup();
    targets.sort_unstable();
    targets.dedup();
    Ok(Plan {
        targets,
        families,
        loads,
        span: Span { warm_up: measured / 6, measured },
        rounds: if options.quick { 1 } else { options.rounds },
        disk: if options.quick { 64 << 20 } else { 1 << 30 },
        server_cpu: options.server_cpu,
    })
}

/// As root, servers and we come before other processes: they take after this thread.
fn come_first() -> Result<()> {
    if setup::is_root() {
        Cmd::new("renice").args(["-n", NICE, "-p", &std::process::id().to_string()]).quiet()?;
    }
    Ok(())
}

/// What command lines begin with: servers run on these processors.
fn prefix(processors: &[usize]) -> Vec<String> {
    let list: Vec<String> = processors.iter().map(ToString::to_string).collect();
    ["taskset", "-c", &list.join(",")].map(str::to_owned).to_vec()
}

fn measure(plan: &Plan, place: &Place, files: &Files, results: &mut Results) -> Result<()> {
    for round in 1..=plan.rounds {
        for target in &plan.targets {
            let head = format!("round {round}/{}, {target}", plan.rounds);
            one_target(&head, *target, (plan, place, files), results)?;
        }
    }
    Ok(())
}

/// All loads, each on every server before the next one, so that what is compared was measured within seconds: a host that moves
/// virtual processors about does so to all of them alike. Then none.
fn one_target(
    head: &str,
    target: Target,
    (plan, place, files): (&Plan, &Place, &Files),
    results: &mut Results,
) -> Result<()> {
    let start = |server: &Server| server.start(place, files, &DriverOptions::blk());
    let mut servers = Vec::new();
    for server in servers::of(target, &plan.families) {
        results.add_server(target, server.label);
        let running = if server.rests() { Some(start(&server)?) } else { None };
        servers.push((server, running));
    }
    for load in &plan.loads {
        for (server, running) in &mut servers {
            let mut own = None;
            let running = match running {
                Some(running) => running,
                None => own.insert(start(server)?),
            };
            let sample = {
                let (queues, cpu) = running.parts();
                client::measure(&mut queues[0], *load, files.bytes(), plan.span, &cpu)
            };
            let sample = sample
                .map_err(|error| running.explain(&error))
                .context(format_args!("{head}, {}", server.label))?;
            progress(head, server.label, *load, &sample);
            results.points.entry((target, server.label, *load)).or_default().push(sample);
            own.map_or(Ok(()), Running::stop)?;
        }
        if plan.families.contains(&Family::Floor) && precedes_bare_call(*load) {
            bare_call(head, (target, load.access), (plan, files), results)?;
        }
    }
    for (server, running) in servers {
        let running = running.map_or_else(|| start(&server), Ok)?;
        let idle = idleness(&running)?;
        println!("{head}, {}: idle {:.2} % of a processor", server.label, idle * 100.0);
        results.idle.entry((target, server.label)).or_default().push(idle);
        running.stop()?;
    }
    Ok(())
}

/// The share of a processor that a server uses without work.
fn idleness(running: &Running) -> Result<f64> {
    thread::sleep(SETTLES);
    let before = running.cpu()?;
    thread::sleep(IDLES);
    Ok((running.cpu()?.saturating_sub(before)).as_secs_f64() / IDLES.as_secs_f64())
}

/// Whether the bare call is made behind that load: beside the client that polls with 32 in flight, where it says most.
fn precedes_bare_call(load: Load) -> bool {
    load.client == Client::Polling && load.depth == 32
}

fn progress(head: &str, label: &str, load: Load, sample: &Sample) {
    println!(
        "{head}, {label}: {}, {} client, {} in flight: {:.1} k/s, p50 {:.1} us, p99 {:.1} us, server {:.2} us, {:.3} kicks, \
         {:.3} calls each",
        load.access,
        load.client,
        load.depth,
        sample.iops / 1e3,
        sample.p50 / 1e3,
        sample.p99 / 1e3,
        sample.cpu / 1e3,
        sample.kicks,
        sample.calls
    );
}

fn bare_call(
    head: &str,
    (target, access): (Target, Access),
    (plan, files): (&Plan, &Files),
    results: &mut Results,
) -> Result<()> {
    if let Some(bare) = bare::measure(target, access, files, plan.server_cpu, plan.span.measured)? {
        println!(
            "{head}, bare {access}: {:.2} us, {:.2} us of them processor",
            bare.wall / 1e3,
            bare.cpu / 1e3
        );
        results.bare.entry((target, access)).or_default().push(bare);
    }
    Ok(())
}

/// How the figures were taken, as sentences.
fn how(plan: &Plan) -> String {
    format!(
        "One client and one server at a time, each on a processor of its own, one queue of 256, a disk of {} MiB; {} s for each \
         point after {:.2} s to warm up. Each point on all servers in turn before the next one, {}, with fresh processes each time.",
        plan.disk >> 20,
        plan.span.measured.as_secs_f64(),
        plan.span.warm_up.as_secs_f64(),
        if plan.rounds == 1 { "in one round".to_owned() } else { format!("in {} rounds", plan.rounds) },
    )
}

/// Writes the section of the page, and the picture.
fn publish(root: &Path, section: &str, picture: &str) -> Result<()> {
    let page = root.join(PAGE);
    let text = String::from_utf8(read(&page)?).context(page.display())?;
    let file = PICTURE.rsplit('/').next().unwrap_or(PICTURE);
    let section = format!("![{PICTURE_TEXT}]({file})\n\n{section}");
    write(&page, table::replace(&text, &section)?)?;
    write(&root.join(PICTURE), picture)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::fs;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn planned(arguments: &[&str]) -> Result<Plan> {
        plan(&Line::parse_from([&["x"], arguments].concat()).options)
    }

    #[test]
    fn a_plan_is_what_was_asked_for() {
        let all = planned(&[]).unwrap();
        assert_eq!((all.targets.len(), all.families.len(), all.loads.len()), (3, 3, 32));
        let some = planned(&["--quick", "--servers", "qsd,floor", "--only", "tmpfs"]).unwrap();
        assert_eq!((some.targets, some.rounds, some.loads.len()), (vec![Target::Tmpfs], 1, 8));
        assert!(planned(&["--server-cpu", "1"]).is_err() && planned(&["--rounds", "0"]).is_err());
        assert!(planned(&["--seconds", "inf"]).is_err() && planned(&["--seconds", "nan"]).is_err());
    }

    #[test]
    fn the_page_has_a_place_for_the_results() {
        let page = fs::read_to_string(cmd::root().join(PAGE)).unwrap();
        assert!(table::replace(&page, "new").unwrap().contains("\n\nnew\n\n"));
    }
}
