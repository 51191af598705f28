//! Several queues on one processor and on two: whether what a request costs stays the same, and what a second processor gives.
//!
//! Clients and workers share the processors here: the thread of each queue's client is bound to the processor on which our worker serves that
//! queue. QEMU has one I/O thread for all queues, which may run on any of the processors.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use vhost_user_driver::{BlkQueue, Options as DriverOptions, sys};

use super::client::{self, Span};
use super::files::Files;
use super::points::{Access, Client, Load, Sample, Summary, Target};
use super::servers::{self, Place, Running, Server};
use super::table::short;
use super::{Plan, prefix};
use crate::cmd::Cmd;
use crate::error::{Context, Error, Result};

/// How many queues, on how many processors.
pub(crate) type Layout = (u16, usize);

/// The first is what the others are compared with.
const LAYOUTS: [Layout; 4] = [(1, 1), (4, 1), (2, 2), (4, 2)];
/// Requests in flight for each processor.
const IN_FLIGHT: u16 = 32;
/// What our daemon calls its workers.
const WORKER: &str = "io-worker";

/// What all queues of a server did together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Total {
    /// Requests per second.
    iops: f64,
    /// Processor time of the server for each request, in nanoseconds.
    cpu: f64,
}

/// The runs of each server and layout.
pub(crate) type Queues = BTreeMap<(Target, &'static str, Layout), Vec<Total>>;

/// Measures all layouts round by round, with a fresh process each time.
pub(crate) fn measure(plan: &Plan, place: &Place, files: &Files, processors: [usize; 2]) -> Result<Queues> {
    let mut results = Queues::new();
    for round in 1..=plan.rounds {
        // A disk would be the limit of all.
        for target in plan.targets.iter().filter(|target| **target != Target::Direct) {
            for server in servers::with_queues(*target, &plan.families) {
                for layout in LAYOUTS {
                    let head = format!(
                        "round {round}/{}, {target}, {}, {}",
                        plan.rounds,
                        server.label,
                        name(layout)
                    );
                    let total = one(&server, layout, place, files, plan.span, &processors[..layout.1])
                        .context(&head)?;
                    println!("{head}: {:.1} k/s, server {:.2} us", total.iops / 1e3, total.cpu / 1e3);
                    results.entry((*target, server.label, layout)).or_default().push(total);
                }
            }
        }
    }
    Ok(results)
}

fn name((queues, processors): Layout) -> String {
    let queues = if queues == 1 { "1 queue".to_owned() } else { format!("{queues} queues") };
    let processors =
        if processors == 1 { "1 processor".to_owned() } else { format!("{processors} processors") };
    format!("{queues} on {processors}")
}

fn one(
    server: &Server,
    layout: Layout,
    place: &Place,
    files: &Files,
    span: Span,
    processors: &[usize],
) -> Result<Total> {
    let (count, _) = layout;
    let place = Place {
        server_cpu: place.server_cpu,
        prefix: prefix(processors),
        daemon: place.daemon.clone(),
        folder: place.folder.clone(),
    };
    let mut running =
        server.start(&place, files, &DriverOptions { queues: count, ..DriverOptions::blk() })?;
    bind_workers(&running, processors)?;
    let depth = IN_FLIGHT * processors.len() as u16 / count;
    let load = Load { client: Client::Sleeping, access: Access::RandomRead, depth };
    let samples = {
        let (queues, cpu) = running.parts();
        together(queues, load, files.bytes(), span, processors, &cpu)
    };
    let samples = samples.map_err(|error| running.explain(&error))?;
    running.stop()?;
    Ok(total(&samples))
}

/// Our workers each have a processor; a queue is served by the worker of its number, and so on around.
fn bind_workers(running: &Running, processors: &[usize]) -> Result<()> {
    let Some(process) = running.process() else { return Ok(()) };
    for (worker, processor) in workers(process)?.into_iter().zip(processors.iter().cycle()) {
        Cmd::new("taskset").args(["-p", "-c", &processor.to_string(), &worker.to_string()]).quiet()?;
    }
    Ok(())
}

/// The threads of a process that are workers of ours, in the order in which they began.
fn workers(process: u32) -> Result<Vec<u32>> {
    let folder = PathBuf::from(format!("/proc/{process}/task"));
    let mut workers = Vec::new();
    for entry in fs::read_dir(&folder).context(folder.display())? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with(WORKER) {
            workers.extend(entry.file_name().to_str().and_then(|number| number.parse::<u32>().ok()));
        }
    }
    workers.sort_unstable();
    Ok(workers)
}

/// The same load on all queues at once, each from a thread of its own.
fn together(
    queues: &mut [BlkQueue],
    load: Load,
    disk: u64,
    span: Span,
    processors: &[usize],
    cpu: &(dyn Fn() -> Result<Duration> + Sync),
) -> Result<Vec<Sample>> {
    thread::scope(|scope| {
        let threads: Vec<_> = queues
            .iter_mut()
            .zip(processors.iter().cycle())
            .map(|(queue, processor)| {
                scope.spawn(move || {
                    sys::pin_this_thread(*processor).context(format_args!("processor {processor}"))?;
                    client::measure(queue, load, disk, span, cpu)
                })
            })
            .collect();
        let ended =
            threads.into_iter().map(|thread| thread.join().map_err(|_| Error::new("a client panicked"))?);
        ended.collect()
    })
}

/// The queues were measured at the same time, each with the whole server's processor time for its own requests.
fn total(samples: &[Sample]) -> Total {
    Total {
        iops: samples.iter().map(|sample| sample.iops).sum(),
        cpu: 1.0 / samples.iter().map(|sample| 1.0 / sample.cpu).sum::<f64>(),
    }
}

/// The table.
pub(crate) fn table(text: &mut String, results: &Queues) {
    let mut servers: Vec<_> = results.keys().map(|(target, server, _)| (*target, *server)).collect();
    servers.dedup();
    if servers.is_empty() {
        return;
    }
    let _ = writeln!(
        text,
        "Several queues: 4 KiB random read, sleeping clients, {IN_FLIGHT} in flight for each processor. Clients and servers share the \
         processors, one client for each queue. A cell is: thousands of requests per second, and how many times those of one queue on \
         one processor; processor time of the server for each request, in µs. Medians.\n"
    );
    let heads: Vec<String> = LAYOUTS.into_iter().map(name).collect();
    let _ = writeln!(
        text,
        "| target | server | {} |\n|---|---|{}",
        heads.join(" | "),
        "---|".repeat(heads.len())
    );
    for (target, server) in servers {
        let median = |layout, figure: fn(&Total) -> f64| {
            Summary::of(results.get(&(target, server, layout))?.iter().map(figure))
                .map(|summary| summary.median)
        };
        let single = median(LAYOUTS[0], |total| total.iops).unwrap_or(f64::NAN);
        let cells: Vec<String> = LAYOUTS
            .into_iter()
            .filter_map(|layout| {
                let (iops, cpu) = (median(layout, |total| total.iops)?, median(layout, |total| total.cpu)?);
                Some(format!("{}, **{:.2}**; {}", short(iops / 1e3), iops / single, short(cpu / 1e3)))
            })
            .collect();
        let _ = writeln!(text, "| {target} | {server} | {} |", cells.join(" | "));
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_requests_and_share_the_servers_time() {
        let sample = |iops, cpu| Sample { iops, p50: 0.0, p99: 0.0, cpu, kicks: 0.0, calls: 0.0 };
        // The server took 600 µs, for 300 requests of one queue and for 100 of the other.
        let total = total(&[sample(300.0, 2000.0), sample(100.0, 6000.0)]);
        assert_eq!((total.iops, total.cpu.round()), (400.0, 1500.0));
    }

    #[test]
    fn the_table_compares_with_one_queue_on_one_processor() {
        let mut results = Queues::new();
        for (layout, iops) in LAYOUTS.into_iter().zip([100e3, 90e3, 190e3, 180e3]) {
            results.insert((Target::Null, "iovirt", layout), vec![Total { iops, cpu: 500.0 }]);
        }
        let mut text = String::new();
        table(&mut text, &results);
        assert!(
            text.contains(
                "| null | iovirt | 100, **1.00**; 0.50 | 90.0, **0.90**; 0.50 | 190, **1.90**; 0.50 |"
            ),
            "{text}"
        );
        assert!(text.contains("| 4 queues on 1 processor | 2 queues on 2 processors |"));
    }
}
