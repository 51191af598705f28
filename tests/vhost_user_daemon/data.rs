//! Data under the sandbox: what a pipeline needs while it runs is what the sandbox leaves it.

use super::process::Daemon;
use super::{Folder, PATIENCE, get, prometheus};
use iovirt::backends::block::file::{Direct, FileBackend, FileConfig};
use iovirt_core::test_utils::skipped;
use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use vhost_user_driver::{BlkDriver, Options, exercise};

/// What is below the disk: `A` and `B` stand for images.
const FILES: [&str; 9] = [
    "file,path=A",
    "file,path=A,engine=threads",
    "file,path=A,direct=on",
    "file,path=A,engine=threads,direct=on",
    "mirror [file,path=A | file,path=B,engine=threads]",
    "stripe [file,path=A | file,path=B]",
    "overlay [memory,size=64M | file,path=A,readonly=on]",
    "scheduled,group=array -> file,path=A",
    "swappable -> file,path=A",
];

/// A disk in its sandbox does all that disks do, its monitor leaves and comes again, and it ends while one is connected.
fn passes(folder: &Folder, below: &str) {
    let (socket, metrics) = (folder.path("s"), folder.at("m"));
    let pipeline = format!("virtio-blk,queues=2 -> stats -> {below}");
    let line = ["--socket", &folder.at("s"), "--device", &pipeline, "--metrics", &metrics];
    let daemon = Daemon::start(&line);
    let options = Options { queues: 2, ..Options::blk() };
    drop(BlkDriver::connect(&socket, &options).expect("a disk"));
    let mut driver = BlkDriver::connect(&socket, &options).expect("a disk");
    let sectors = driver.capacity().expect("a size");
    exercise::requests(&mut driver.queues[0], sectors, 1);
    exercise::ranges(&mut driver.queues[1]);
    exercise::queues_at_once(&mut driver);

    let (_, page) = get(UnixStream::connect(&metrics).expect("it listens"));
    let families = prometheus::read(&page).unwrap_or_else(|error| panic!("{error}\n{page}"));
    assert_eq!(families["iovirt_device_connected"].value(&[]), Some(1.0));
    assert_eq!(families["iovirt_device_connections_total"].value(&[]), Some(2.0));
    let writes = families["iovirt_stage_latency_seconds"].value(&[("kind", "write"), ("le", "+Inf")]);
    assert!(writes >= Some(2000.0), "{page}");
    assert!(families["iovirt_worker_cpu_seconds_total"].samples.iter().all(|(.., time)| *time > 0.0));

    daemon.signal("TERM");
    let (status, report, complaints) = daemon.end();
    assert_eq!((status.code(), &*complaints), (Some(0), ""), "{below}: {report}");
    assert!(report.contains("2 connection(s)"), "{report}");
    assert!(!socket.exists());
}

#[test]
fn data_passes_under_the_sandbox() {
    for below in FILES {
        let folder = Folder::new();
        let mut text = below.to_owned();
        for name in ["A", "B"] {
            let image = folder.path(name);
            File::create(&image).and_then(|file| file.set_len(exercise::SECTORS * 512)).expect("an image");
            text = text.replace(&format!("path={name}"), &format!("path={}", image.display()));
        }
        let direct = FileConfig { direct: Direct::On, ..FileConfig::new(folder.path("A")) };
        if below.contains("direct=on")
            && let Err(error) = FileBackend::open(direct)
        {
            skipped(format_args!("{below}: {error}"));
            continue;
        }
        passes(&folder, &text);
    }
}

/// A server of a disk in memory; ended with this value.
pub(crate) struct Server(Child);

impl Server {
    /// Starts it with further arguments and waits until somebody can connect; nothing where there is none.
    fn start(arguments: &[&str], is_there: impl Fn() -> bool) -> Option<Self> {
        let mut command = Command::new("nbdkit");
        command.arg("-f").args(arguments).args(["memory", "64M"]).stdin(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().ok()?;
        let mut server = Self(child);
        let begun = Instant::now();
        while !is_there() {
            assert!(server.0.try_wait().expect("a child").is_none(), "{arguments:?}: it ended");
            assert!(begun.elapsed() < PATIENCE, "{arguments:?}: it does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        Some(server)
    }

    pub(crate) fn on_a_socket(socket: &str) -> Option<Self> {
        Self::start(&["-U", socket], || UnixStream::connect(socket).is_ok())
    }

    /// On a port that was free a moment ago.
    fn on_a_port() -> Option<(Self, u16)> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("a port").port();
        let server = Self::start(&["-i", "127.0.0.1", "-p", &port.to_string()], || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Some((server?, port))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn data_passes_over_connections_under_the_sandbox() {
    let folder = Folder::new();
    let socket = folder.at("nbd");
    let (Some(_server), Some((_tcp, port))) = (Server::on_a_socket(&socket), Server::on_a_port()) else {
        skipped("nbdkit is not installed");
        return;
    };
    for below in [
        format!("nbd,socket={socket}"),
        format!("nbd,host=127.0.0.1,port={port}"),
        format!("nbd,host=localhost,port={port}"),
        format!("swappable -> nbd,socket={socket}"),
    ] {
        passes(&folder, &below);
    }
}
