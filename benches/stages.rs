//! What each stage and back-end costs in the whole path of a boxed device, beside the device over nothing in the same run: a disk over `null`, a card
//! over `loopback`. The stacks are descriptions, built from the registry as users build them. A stage that has no row here is an error.
//!
//! A batch: the driver makes 32 reads of 4 KiB (32 frames of 64 bytes and as many receive buffers) available and rings the doorbell, and the worker steps
//! until all are back. Over `file` and `nbd` it sleeps where it must wait. `IMAGE` stands for an image of 1 MiB that is in the page cache, `SOCKET` for
//! the socket of a server in a process of its own. A row whose server the host lacks is left out, and says so.
//!
//! `cargo bench --bench stages` first prints a table: all rows in turns, so that a busy machine is busy for each; the fastest and the median, and how many
//! times that is of the plain device. Criterion's own measurements follow; their times are per batch, and each is taken by itself.

use blk::{Disk, plain};
use criterion::{Criterion, Throughput, criterion_group};
use host::Server;
use iovirt::registry::{Family, Registry, StageInfo, StageKind};
use net::{Card, PAGES};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

#[path = "fixture/blk.rs"]
#[allow(dead_code, reason = "other benches use more of it")]
mod blk;
#[path = "fixture/host.rs"]
mod host;
#[path = "fixture/net.rs"]
#[allow(dead_code, reason = "other benches use more of it")]
mod net;

const BATCH: u16 = 32;
const FRAME: u32 = 64;
/// Where the build is, most likely a disk.
const DISK: &str = env!("CARGO_TARGET_TMPDIR");

/// What a row needs of the host.
#[derive(Clone, Copy)]
enum Needs {
    Nothing,
    /// `IMAGE` in that folder.
    Image(&'static str),
    /// `SOCKET` of that program.
    Server(&'static str),
}

use Needs::{Image, Nothing, Server as Served};

/// What is below a disk; the first row is the plain one.
const DISKS: [(&str, Needs); 15] = [
    ("null,fill=off", Nothing),
    ("stats -> null,fill=off", Nothing),
    ("swappable -> null,fill=off", Nothing),
    ("fault -> null,fill=off", Nothing),
    ("delay,time=0us -> null,fill=off", Nothing),
    ("scheduled,group=a -> null,fill=off", Nothing),
    ("mirror [null,fill=off | null,fill=off]", Nothing),
    ("stripe [null,fill=off | null,fill=off]", Nothing),
    ("memory,size=1M", Nothing),
    ("null,size=1M", Nothing),
    ("overlay [memory,size=1M | null,size=1M]", Nothing),
    ("file,path=IMAGE", Image(host::MEMORY)),
    ("file,path=IMAGE", Image(DISK)),
    ("nbd,socket=SOCKET", Served("nbdkit")),
    ("nbd,socket=SOCKET", Served("qemu-nbd")),
];

/// What is below a card; the first row is the plain one.
const CARDS: [&str; 7] = [
    "loopback",
    "stats -> loopback",
    "swappable -> loopback",
    "fault -> loopback",
    "filter -> loopback",
    "delay,time=0us -> loopback",
    "scheduled,group=a -> loopback",
];

/// Stages that another bench measures.
const ELSEWHERE: [(&str, &str); 1] = [("tap", "net_path")];

/// A device of a row.
enum Device {
    Disk(Disk),
    Card(Card),
}

impl Device {
    fn turn(&mut self) {
        match self {
            Self::Disk(disk) => disk.turn_to_the_end(BATCH),
            Self::Card(card) => card.turn(BATCH),
        }
    }

    fn check(&self) {
        match self {
            Self::Disk(disk) => disk.check(),
            Self::Card(card) => card.check(),
        }
    }
}

/// A device, and what of the host goes with it.
struct Row {
    group: &'static str,
    name: String,
    device: Device,
    _image: Option<NamedTempFile>,
    _server: Option<Server>,
}

impl Row {
    /// `None` where the host lacks its server, which it says.
    fn disk(below: &str, needs: Needs) -> Option<Self> {
        let (mut name, mut chain) = (below.to_owned(), below.to_owned());
        let (mut image, mut server) = (None, None);
        match needs {
            Nothing => {}
            Image(folder) => {
                let made = image.insert(host::image(Path::new(folder)));
                name += if folder == host::MEMORY { ", on tmpfs" } else { ", on a disk" };
                chain = chain.replace("IMAGE", &made.path().display().to_string());
            }
            Served(program) => {
                let Some(started) = Server::start(program) else {
                    println!("{below}: left out, {program} is not installed");
                    return None;
                };
                name = format!("{name}, {program}");
                chain = chain.replace("SOCKET", &server.insert(started).socket());
            }
        }
        let stack = Registry::standard().build_block(&chain.parse().expect("a description")).expect("a disk");
        let device = Device::Disk(Disk::new(&plain(), stack));
        Some(Self { group: "disk", name, device, _image: image, _server: server })
    }

    fn card(below: &str) -> Self {
        let chain = below.parse().expect("a description");
        let stack = Registry::standard().build_net(&chain).expect("a network");
        let device = Device::Card(Card::new(FRAME, PAGES, stack));
        Self { group: "card", name: below.to_owned(), device, _image: None, _server: None }
    }

    /// The rows of a table: those of disks, and those of cards.
    fn all() -> [Vec<Self>; 2] {
        let disks = DISKS.into_iter().filter_map(|(below, needs)| Self::disk(below, needs)).collect();
        [disks, CARDS.into_iter().map(Self::card).collect()]
    }
}

/// Each stage and back-end of the registry is in some row of each device that it fits.
fn every_stage_has_a_row() {
    let words = |text: &'static str| text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    let disks: Vec<_> = DISKS.into_iter().flat_map(|(below, _)| words(below)).collect();
    let cards: Vec<_> = CARDS.into_iter().flat_map(words).collect();
    for row in Registry::standard().rows().filter(|row| row.kind() != StageKind::FrontEnd) {
        let StageInfo { name, family, .. } = row.info();
        let is_elsewhere = ELSEWHERE.iter().any(|(stage, _)| stage == name);
        for (rows, other) in [(&disks, Family::Net), (&cards, Family::Block)] {
            let has_row = *family == other || is_elsewhere || rows.contains(name);
            assert!(has_row, "no row of `{}` has `{name}`", rows[0]);
        }
    }
}

/// Nanoseconds per request of one measurement, once the caches have forgotten the row before.
fn sample(device: &mut Device) -> f64 {
    const WARM_UP: u32 = 8;
    const TURNS: u32 = 32;
    (0..WARM_UP).for_each(|_| device.turn());
    let start = Instant::now();
    (0..TURNS).for_each(|_| device.turn());
    start.elapsed().as_nanos() as f64 / f64::from(TURNS * u32::from(BATCH))
}

/// Measures all in turns and prints the fastest and the median of each, and how many times the first row's.
fn in_turns(rows: &mut [Row]) {
    const SAMPLES: usize = 100;
    let mut found = vec![Vec::with_capacity(SAMPLES); rows.len()];
    for _ in 0..SAMPLES {
        for (row, found) in rows.iter_mut().zip(&mut found) {
            found.push(sample(&mut row.device));
        }
    }
    for samples in &mut found {
        samples.sort_by(f64::total_cmp);
    }
    for (row, samples) in rows.iter().zip(&found) {
        let [fastest, median] = [0, SAMPLES / 2].map(|at| (samples[at], samples[at] / found[0][at]));
        println!(
            "{} {:<42} fastest {:>7.0} ns {:>6.2}x  median {:>7.0} ns {:>6.2}x",
            row.group, row.name, fastest.0, fastest.1, median.0, median.1
        );
    }
}

fn by_criterion(criterion: &mut Criterion) {
    for mut rows in Row::all() {
        let Some(name) = rows.first().map(|row| row.group) else { continue };
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(BATCH.into()));
        for row in &mut rows {
            group.bench_function(&row.name, |b| b.iter(|| row.device.turn()));
            row.device.check();
        }
        group.finish();
    }
}

fn quick() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}

criterion_group!(name = benches; config = quick(); targets = by_criterion);

fn main() {
    every_stage_has_a_row();
    if std::env::args().any(|argument| argument == "--bench") {
        for mut rows in Row::all() {
            in_turns(&mut rows);
        }
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
