//! The example `vhost-user` as a process: what it says, how it ends, what it tells of itself, and what it gives up.
//!
//! What passes over a socket is the matter of other tests; here it passes to show that the sandbox keeps nothing from it that it needs.

#[path = "vhost_user/card.rs"]
mod card;
#[path = "vhost_user/cut.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod cut;
#[path = "vhost_user_daemon/data.rs"]
mod data;
#[path = "vhost_user_daemon/ending.rs"]
mod ending;
#[path = "vhost_user/frames.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod frames;
#[path = "vhost_user_daemon/idle.rs"]
mod idle;
#[path = "vhost_user_daemon/process.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod process;
#[path = "vhost_user_daemon/prometheus.rs"]
mod prometheus;
#[path = "vhost_user/raw.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod raw;
#[path = "vhost_user/victim.rs"]
#[allow(dead_code, reason = "each test uses what it needs")]
mod victim;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cut::{Cutter, Shared};
use data::Server;
use iovirt_core::test_utils::{rounds_or, skipped};
use process::{Daemon, program, run, tell};
use serde_json::{Value, json};
use tempfile::TempDir;
use vhost_user_driver::blk::{BlkRequest, Operation};
use vhost_user_driver::{BlkDriver, Options};
use victim::Victim;

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder, and paths in it as text.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn at(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// A disk image.
    fn image(&self, name: &str) -> String {
        fs::File::create(self.path(name)).and_then(|file| file.set_len(1 << 20)).expect("an image");
        self.at(name)
    }

    /// What is in it, sorted.
    fn list(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("a folder");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

fn is_private_socket(path: &Path) -> bool {
    let metadata = fs::symlink_metadata(path).expect("a socket");
    metadata.file_type().is_socket() && metadata.permissions().mode() & 0o777 == 0o600
}

/// What an HTTP server answers: head and body.
fn get(mut stream: impl Read + Write) -> (String, String) {
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n").expect("it listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

#[test]
fn it_says_when_it_is_ready_and_ends_by_a_signal() {
    for signal in ["TERM", "INT"] {
        let folder = Folder::new();
        let (image, socket) = (folder.image("disk.img"), folder.at("disk.sock"));
        let pipeline = format!("virtio-blk -> stats -> file,path={image}");
        let daemon = Daemon::start(&["--socket", &socket, "--device", &pipeline]);
        assert_eq!(daemon.ready, format!("ready: {pipeline} on {socket}\n"));
        assert!(is_private_socket(socket.as_ref()));
        daemon.signal(signal);
        let (status, report, complaints) = daemon.end();
        assert_eq!((status.code(), &*complaints), (Some(0), ""), "{report}");
        let lines: Vec<&str> = report.lines().collect();
        assert!(lines[0].starts_with(&format!("ended by SIG{signal} after ")), "{report}");
        assert_eq!(lines[2], pipeline);
        assert!(lines[3].starts_with("  0 requests on 1 queue(s): "), "{report}");
        assert_eq!(folder.list(), ["disk.img"]);
    }
}

#[test]
fn several_devices_tell_of_themselves_and_are_told_what_to_do() {
    let folder = Folder::new();
    let image = folder.image("disk.img");
    let paths = ["disk.sock", "net.sock", "control"].map(|name| folder.at(name));
    let [disk, net, control] = &paths;
    let pipeline = format!("virtio-blk -> stats -> swappable -> fault -> file,path={image}");
    let daemon = Daemon::start(&[
        "--json",
        "--queues",
        "2",
        "--socket",
        disk,
        "--device",
        &pipeline,
        "--socket",
        net,
        "--device",
        "virtio-net,queues=1 -> stats -> swappable -> loopback",
        "--control",
        control,
        "--metrics",
        "127.0.0.1:0",
    ]);
    let ready = daemon.ready_json();
    let pipeline = pipeline.replace("virtio-blk", "virtio-blk,queues=2");
    assert_eq!(ready["ready"][0], json!({ "pipeline": pipeline, "socket": disk }));
    assert_eq!(ready["ready"][1]["socket"], json!(net));
    assert!(paths.iter().all(|path| is_private_socket(path.as_ref())));

    let address = ready["metrics"].as_str().expect("an address");
    let address = address.strip_prefix("http://").and_then(|rest| rest.strip_suffix("/metrics"));
    let (head, page) = get(TcpStream::connect(address.expect("a URL")).expect("it listens"));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
    check_page(&page, &pipeline);

    let path: &Path = control.as_ref();
    let replies = tell(
        path,
        &[
            r#"{"do":"devices"}"#,
            r#"{"do":"pause"}"#,
            r#"{"do":"resume","device":0}"#,
            r#"{"do":"resume"}"#,
            r#"{"do":"resize","device":0,"size":"2M"}"#,
            r#"{"do":"set","device":0,"to":"fault,every=3"}"#,
            r#"{"do":"release","device":0,"stage":"fault"}"#,
            r#"{"do":"swap","device":1,"to":"stats -> loopback"}"#,
            r#"{"do":"stats"}"#,
            r#"{"do":"grow"}"#,
        ],
    );
    assert_eq!(replies[0]["ok"][0]["stages"], json!(["stats", "swappable", "fault", "file"]));
    assert_eq!(replies[0]["ok"][1]["connected"], false);
    let told: Vec<Value> = replies[1..7].iter().map(|reply| reply["ok"].clone()).collect();
    assert_eq!(
        told,
        [
            json!("paused"),
            json!("running"),
            json!("running"),
            json!(2 << 20),
            json!("fault,every=3"),
            json!("released")
        ]
    );
    assert_eq!(fs::metadata(&image).expect("an image").len(), 2 << 20);
    assert_eq!(
        replies[7]["ok"]["pipeline"],
        "virtio-net,queues=1 -> stats -> swappable -> stats -> loopback"
    );
    assert_eq!(replies[8]["ok"][1]["stages"][0]["name"], "stats");
    assert!(replies[9]["error"].as_str().expect("an error").starts_with("this is no request: "));

    let told = run(&["--tell", control, r#"{"do":"quit"}"#]);
    assert_eq!((told.status.code(), &*told.stdout), (Some(0), &b"{\"ok\":\"the daemon ends\"}\n"[..]));
    let (status, report, complaints) = daemon.end();
    assert_eq!((status.code(), &*complaints), (Some(0), ""));
    let report: Value = serde_json::from_str(&report).expect("a line of JSON");
    assert_eq!(report["end"], "ended over the control socket");
    assert_eq!(report["devices"][0]["queues"].as_array().expect("queues").len(), 2);
    assert_eq!(folder.list(), ["disk.img"]);
}

/// Two devices, of which the first is a disk with that pipeline.
fn check_page(page: &str, pipeline: &str) {
    let families = prometheus::read(page).unwrap_or_else(|error| panic!("{error}\n{page}"));
    let value = |family: &str, labels: &[(&str, &str)]| families[family].value(labels);
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(value("iovirt_build_info", &version), Some(1.0));
    assert_eq!(value("iovirt_device_info", &[("device", "0"), ("pipeline", pipeline)]), Some(1.0));
    assert_eq!(value("iovirt_device_connected", &[("device", "1")]), Some(0.0));
    assert_eq!(value("iovirt_device_connections_total", &[("device", "0")]), Some(0.0));
    for name in ["requests", "doorbells", "interrupts"] {
        let family = format!("iovirt_queue_{name}_total");
        assert_eq!(value(&family, &[("device", "0"), ("queue", "1")]), Some(0.0), "{page}");
    }
    let reads = [("device", "0"), ("stage", "stats"), ("place", "0"), ("kind", "read")];
    for name in ["requests", "bytes", "failures"] {
        assert_eq!(value(&format!("iovirt_stage_{name}_total"), &reads), Some(0.0), "{page}");
    }
    let infinite = [("device", "0"), ("stage", "stats"), ("kind", "read"), ("le", "+Inf")];
    assert_eq!(value("iovirt_stage_latency_seconds", &infinite), Some(0.0));
    assert!(value("iovirt_worker_cpu_seconds_total", &[("device", "0"), ("worker", "0")]).is_some());
    assert!(value("process_start_time_seconds", &[]).is_some_and(|time| time > 1.7e9));
}

#[test]
fn metrics_are_told_on_a_unix_socket_too() {
    let folder = Folder::new();
    let metrics = folder.at("metrics.sock");
    let line = ["--socket", &folder.at("s"), "--device", "virtio-blk -> null", "--metrics", &metrics];
    let daemon = Daemon::start(&line);
    let (head, page) = get(UnixStream::connect(&metrics).expect("it listens"));
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let families = prometheus::read(&page).unwrap_or_else(|error| panic!("{error}\n{page}"));
    assert!(families["iovirt_stage_requests_total"].samples.is_empty());
    daemon.signal("TERM");
    assert_eq!(daemon.end().0.code(), Some(0));
    assert!(folder.list().is_empty());
}

/// Each thread's fields of `/proc`, by name.
fn status_of_threads(id: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).expect("threads");
    let status = |task: fs::DirEntry| fs::read_to_string(task.path().join("status")).expect("a status");
    tasks.map(|task| status(task.expect("an entry"))).collect()
}

#[test]
fn every_thread_is_shut_in_and_no_further_file_is_opened() {
    let folder = Folder::new();
    fs::create_dir(folder.path("sockets")).expect("a folder");
    fs::create_dir(folder.path("images")).expect("a folder");
    let (image, inside) = (folder.image("disk.img"), folder.image("images/new.img"));
    let (socket, control) = (folder.at("sockets/s"), folder.path("sockets/c"));
    let pipeline = format!("virtio-blk,queues=2 -> swappable -> file,path={image}");
    let control_text = control.display().to_string();
    let line = ["--json", "--socket", &socket, "--device", &pipeline, "--control", &control_text];
    let swap = |path: &str| format!(r#"{{"do":"swap","device":0,"to":"file,path={path}"}}"#);

    let daemon = Daemon::start(&line);
    let statuses = status_of_threads(daemon.id());
    // The main thread, a worker or two, one for the front-end, one for the control socket.
    assert!(statuses.len() >= 4, "{}", statuses.len());
    for status in &statuses {
        for field in ["NoNewPrivs:\t1", "Seccomp:\t2", "Seccomp_filters:\t3"] {
            assert!(status.lines().any(|line| line == field), "{field}: {status}");
        }
    }
    let whole = daemon.ready_json()["sandbox"] == "on";
    if !whole {
        skipped("this kernel lacks what the sandbox is made of");
    }
    let reply = &tell(&control, &[&swap(&inside)])[0];
    let error = reply["error"].as_str().unwrap_or_else(|| panic!("{reply}"));
    assert!(error.contains(&inside) && error.contains("open no further file or connection"), "{error}");
    assert!(!error.contains('\n'), "{error}");
    drop(daemon);

    let images = folder.at("images");
    let daemon = Daemon::start(&[&line[..], &["--allow", &images]].concat());
    let replies = tell(&control, &[&swap(&inside), &swap(&folder.image("other.img"))]);
    assert!(replies[0]["ok"]["pipeline"].as_str().is_some_and(|now| now.contains(&inside)), "{}", replies[0]);
    if whole {
        let error = replies[1]["error"].as_str().unwrap_or_else(|| panic!("{}", replies[1]));
        assert!(error.contains(&format!("nothing but files beneath --allow {images}")), "{error}");
    }
    drop(daemon);

    let daemon = Daemon::start(&[&line[..], &["--sandbox", "off"]].concat());
    assert_eq!(daemon.ready_json()["sandbox"], "off");
    assert!(status_of_threads(daemon.id()).iter().all(|status| status.contains("Seccomp:\t0")));
    assert!(tell(&control, &[&swap(&inside)])[0]["ok"].is_object());
}

/// Ten thousand front-ends that come, set up what they get to, and are gone in the middle of it.
#[test]
fn front_ends_without_number_leave_nothing_behind() {
    const WARM_UP: u64 = 500;
    const MAY_GROW: u64 = 2 << 20;
    let folder = Folder::new();
    let socket = folder.path("s");
    let image = folder.image("disk.img");
    let pipeline = format!("virtio-blk,queues=2 -> stats -> file,path={image}");
    let daemon = Daemon::start(&["--socket", &folder.at("s"), "--device", &pipeline, "--poll-us", "20"]);
    let options = Options { queues: 2, queue_size: 16, slots: 1, buffer: 4096, ..Options::blk() };
    let rounds = rounds_or(10_000);
    let mut before = None;
    for round in 0..rounds {
        match round % 4 {
            // Not a word.
            0 => drop(UnixStream::connect(&socket).expect("it listens")),
            // Memory, log and record, rings that are asked for nothing.
            1 => drop(Cutter::connect(&socket, Victim::Disk)),
            // A request that is returned, and one that is in flight.
            remainder => {
                let mut driver = BlkDriver::connect(&socket, &options).expect("a disk");
                for queue in &mut driver.queues {
                    queue.submit(0, BlkRequest { operation: Operation::Write, sector: 8, len: 4096 });
                    queue.publish().expect("a doorbell");
                }
                if remainder == 2 {
                    assert_eq!(driver.queues[0].next(PATIENCE).expect("a completion").status, 0);
                }
            }
        }
        if round == WARM_UP {
            before = Some(Held::of(&daemon, &socket));
        }
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.id())).expect("a process");
    let limit =
        limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit of descriptors");
    let [soft, hard] = [3, 4].map(|column| limit.split_whitespace().nth(column));
    assert_eq!(soft, hard, "as many descriptors as it may have");
    let now = Held::of(&daemon, &socket);
    let before = before.unwrap_or(now);
    println!("after {WARM_UP} front-ends {before:?}, after {rounds} {now:?}");
    assert_eq!(
        (now.descriptors, now.threads, now.mappings),
        (before.descriptors, before.threads, before.mappings)
    );
    assert!(now.resident < before.resident + MAY_GROW, "{} bytes more", now.resident - before.resident);
    daemon.signal("TERM");
    assert_eq!(daemon.end().0.code(), Some(0));
}

/// Killed with frames in flight, which nobody has a record of, it goes on with them.
#[test]
fn a_card_outlives_daemons_that_are_killed() {
    for stages in
        ["stats -> loopback", "fault,fail=transmit,every=3 -> delay,time=50us,jitter=300us -> loopback"]
    {
        let folder = Folder::new();
        let (path, socket) = (folder.path("s"), folder.at("s"));
        let pipeline = format!("virtio-net,queues=2,queue-size=256 -> {stages}");
        card::outlives_servers(rounds_or(150), || {
            (path.clone(), Daemon::start(&["--socket", &socket, "--device", &pipeline]))
        });
    }
}

/// What a process has of the host.
#[derive(Clone, Copy, Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    /// Of files.
    mappings: usize,
    /// In bytes.
    resident: u64,
}

impl Held {
    /// Of the daemon, once the last front-end is gone: the next one was connected, and has asked for something.
    fn of(daemon: &Daemon, socket: &Path) -> Self {
        let raw = raw::Raw::connect(socket);
        raw.ask(raw::code::GET_FEATURES, &[]);
        let at = |name: &str| format!("/proc/{}/{name}", daemon.id());
        let count = |name: &str| fs::read_dir(at(name)).expect("a process").count();
        let text = |name: &str| fs::read_to_string(at(name)).expect("a process");
        let resident = text("statm").split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        Self {
            descriptors: count("fd"),
            threads: count("task"),
            mappings: text("maps").lines().filter(|line| line.contains('/')).count(),
            resident: resident.expect("a number of pages") * 4096,
        }
    }
}

/// Files that a front-end shortens under the daemon: in its sandbox too that ends the session, and not the process.
#[test]
fn a_file_cut_under_the_daemon_does_not_end_it() {
    let folder = Folder::new();
    cut_under(Victim::Disk, "virtio-blk -> memory,size=1M");
    cut_under(Victim::Disk, &format!("virtio-blk -> file,path={}", folder.image("disk.img")));
    cut_under(Victim::Card, "virtio-net,queues=2 -> loopback");
}

/// The connection is that of all front-ends to come.
#[test]
fn a_file_cut_under_a_remote_disk_loses_no_connection() {
    let folder = Folder::new();
    let socket = folder.at("nbd");
    let Some(_server) = Server::on_a_socket(&socket) else {
        skipped("nbdkit is not installed");
        return;
    };
    cut_under(Victim::Disk, &format!("virtio-blk -> nbd,socket={socket}"));
}

fn cut_under(victim: Victim, pipeline: &str) {
    let folder = Folder::new();
    let socket = folder.path("s");
    let daemon = Daemon::start(&["--socket", &folder.at("s"), "--device", pipeline]);
    for &shared in Shared::of(victim) {
        let mut cutter = Cutter::connect(&socket, victim);
        is_served(&mut cutter);
        cutter.cut(shared);
        assert!(cutter.is_disconnected(), "{shared:?}, {pipeline}");
    }
    let mut cutter = Cutter::connect(&socket, victim);
    is_served(&mut cutter);
    assert_eq!(cutter.status(), 0, "{pipeline}");
    drop(cutter);
    daemon.signal("TERM");
    let (status, _, complaints) = daemon.end();
    assert_eq!(status.code(), Some(0));
    assert!(complaints.contains("the front-end shortened a file behind its memory"), "{complaints}");
}

fn is_served(cutter: &mut Cutter) {
    let begun = Instant::now();
    while !cutter.is_served() {
        assert!(begun.elapsed() < PATIENCE, "an honest request is not served");
    }
}

#[test]
fn what_cannot_be_done_is_said_in_one_sentence() {
    let folder = Folder::new();
    let socket = folder.at("s");
    let file = folder.image("file");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    let null = "virtio-blk -> null";
    let missing = format!("virtio-blk -> file,path={}", folder.at("missing"));
    let nowhere = folder.at("missing/s");
    let cases: [(i32, &[&str], &str); 10] = [
        (2, &[], "nothing to serve"),
        (2, &["--socket", &socket], "1 --socket and 0 --device are given"),
        (2, &["--socket", &socket, "--device", "virtio-blk -> nul"], "--device 'virtio-blk -> nul': "),
        (1, &["--socket", &socket, "--device", &missing], "missing"),
        (1, &["--socket", &file, "--device", null], &file),
        (1, &["--socket", &nowhere, "--device", null], &nowhere),
        (1, &["--socket", &socket, "--device", null, "--metrics", &taken], "in use"),
        (1, &["--socket", &socket, "--device", null, "--control", &file], "--control "),
        (1, &["--socket", &socket, "--device", null, "--allow", &nowhere], "--allow "),
        (1, &["--tell", &socket, "{}"], "cannot talk to "),
    ];
    for (code, line, says) in cases {
        let output = run(line);
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(code), "{line:?}: {said}");
        assert!(said.starts_with("vhost-user: ") && said.contains(says), "{line:?}: {said}");
        assert_eq!((said.matches('\n').count(), output.stdout.len()), (1, 0), "{line:?}: {said}");
    }
    assert_eq!(run(&["--sandbox", "maybe"]).status.code(), Some(2));
    assert_eq!(fs::metadata(&file).expect("a file").len(), 1 << 20);
    let stages = run(&["--list-stages"]);
    assert!(stages.status.success() && String::from_utf8_lossy(&stages.stdout).contains("virtio-net"));
    assert_eq!(folder.list(), ["file"]);
}

#[test]
fn a_socket_that_is_served_is_left_alone_and_a_dead_one_is_replaced() {
    let folder = Folder::new();
    let socket = folder.at("s");
    let line = ["--socket", &socket, "--device", "virtio-blk -> null"];
    let daemon = Daemon::start(&line);
    let second = run(&line);
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    daemon.kill();
    assert!(folder.path("s").exists());
    let daemon = Daemon::start(&line);
    daemon.signal("TERM");
    assert_eq!(daemon.end().0.code(), Some(0));
    assert!(folder.list().is_empty());
}

#[test]
fn it_goes_on_where_nobody_reads_what_it_says() {
    let folder = Folder::new();
    let socket = folder.at("s");
    let control = folder.path("c");
    let mut child = Command::new(program())
        .args(["--socket", &socket, "--device", "virtio-blk -> null", "--control"])
        .arg(&control)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    drop(child.stdout.take());
    while UnixStream::connect(&control).is_err() {
        assert!(child.try_wait().expect("a child").is_none(), "it ended");
        std::thread::yield_now();
    }
    assert_eq!(tell(&control, &[r#"{"do":"quit"}"#])[0]["ok"], "the daemon ends");
    assert_eq!(child.wait().expect("a child").code(), Some(0));
}
