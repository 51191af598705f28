//! What the daemon takes of the processors while its guest is idle.

use super::Folder;
use super::process::{Daemon, tell};
use serde_json::Value;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};
use vhost_user_driver::{BlkDriver, Options, exercise};

const IDLE: Duration = Duration::from_secs(2);
/// The kernel counts processor time in ticks (proc(5)); there is no other number of them in a second that programs see.
const TICKS: f64 = 100.0;

/// How long all threads of that name have had a processor, in seconds.
fn processor_time(process: u32, name: &str) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).expect("threads");
    let stat = |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).expect("a thread");
    let stats: Vec<String> = tasks.map(|task| stat(task.expect("an entry"))).collect();
    let named: Vec<&str> =
        stats.iter().filter_map(|stat| Some(stat.split_once(&format!("({name}) "))?.1)).collect();
    assert!(!named.is_empty(), "no thread is called {name}: {stats:?}");
    // The fourteenth and fifteenth field, of which two are gone: in the program and in the kernel.
    let ticks = |stat: &&str| {
        stat.split(' ').skip(11).take(2).map(|field| field.parse::<f64>().expect("ticks")).sum::<f64>()
    };
    named.iter().map(ticks).sum::<f64>() / TICKS
}

/// The workers' processor time and their shares, as a report tells them.
fn told(device: &Value) -> (f64, Vec<f64>) {
    let workers = device["workers"].as_array().expect("workers");
    let number = |worker: &Value, name: &str| worker[name].as_f64().unwrap_or_else(|| panic!("{worker}"));
    let seconds = workers.iter().map(|worker| number(worker, "cpu_seconds")).sum();
    (seconds, workers.iter().map(|worker| number(worker, "cpu_share")).collect())
}

#[test]
fn an_idle_guest_costs_next_to_nothing_and_the_report_says_so() {
    for poll in [&[][..], &["--poll-us", "0"]] {
        let folder = Folder::new();
        let (socket, control) = (folder.path("s"), folder.path("c"));
        let (socket_text, control_text) = (folder.at("s"), folder.at("c"));
        let line = ["--json", "--socket", &socket_text, "--control", &control_text, "--device"];
        let pipeline = ["virtio-blk,queues=2,queue-size=256 -> stats -> memory,size=64M"];
        let daemon = Daemon::start(&[&line[..], &pipeline, poll].concat());
        let mut driver =
            BlkDriver::connect(&socket, &Options { queues: 2, ..Options::blk() }).expect("a disk");
        exercise::queues_at_once(&mut driver);
        let ask = || told(&tell(&control, &[r#"{"do":"stats"}"#])[0]["ok"][0]);

        let (begun, before, at_first) = (Instant::now(), processor_time(daemon.id(), "io-worker"), ask());
        assert!(at_first.0 > 0.0, "{poll:?}: it has worked");
        thread::sleep(IDLE);
        let grown = processor_time(daemon.id(), "io-worker") - before;
        let (elapsed, at_last) = (begun.elapsed().as_secs_f64(), ask());
        println!("{poll:?}: {grown} s in {elapsed} s, {at_first:?} and {at_last:?}");
        assert!(grown < elapsed / 4.0, "{poll:?}: {grown} s of {elapsed} s");
        // The report tells of the same: it never falls, and grew as little.
        let grown = at_last.0 - at_first.0;
        assert!((0.0..elapsed / 4.0).contains(&grown), "{poll:?}: {at_first:?} and {at_last:?}");

        daemon.signal("TERM");
        let (status, report, complaints) = daemon.end();
        assert_eq!((status.code(), &*complaints), (Some(0), ""), "{report}");
        let report: Value = serde_json::from_str(&report).expect("a line of JSON");
        let (seconds, shares) = told(&report["devices"][0]);
        assert!(seconds >= at_last.0, "{report}");
        assert!(shares.iter().all(|share| (0.0..=1.0).contains(share)), "{report}");
        let wanted = seconds / report["seconds"].as_f64().expect("seconds");
        assert!((shares.iter().sum::<f64>() - wanted).abs() < 0.1 * wanted + 0.01, "{wanted}: {report}");
    }
}
