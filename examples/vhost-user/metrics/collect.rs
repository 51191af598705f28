//! What is told: one pass over the devices for each page.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use iovirt::backends::interposers::stats::{KindSnapshot, Latency, StatsControl, StatsSnapshot};
use iovirt::frontends::virtio::QueueCounters;

use super::text::{Kind, Page};
use crate::common::pipeline::Piped;
use crate::devices::Device;

/// Bounds of the histograms' buckets, as powers of two nanoseconds: 1 us to 17 s. A bucket ends a nanosecond below its power, as the
/// counters do that it is the sum of, so each count is exact.
const BOUNDS: std::ops::RangeInclusive<u32> = 10..=34;

/// Who is asked.
#[derive(Debug)]
pub(crate) struct Source {
    devices: Arc<Vec<Device>>,
    started: Duration,
}

/// What one device told, so that all numbers on a page are of one look at it.
struct Sample {
    number: String,
    info: [String; 3],
    connected: bool,
    connections: u64,
    queues: Vec<QueueCounters>,
    stages: Vec<StageSample>,
    workers: Vec<Option<Duration>>,
}

/// What one `stats` stage told. Its place in the pipeline tells apart those of one name.
struct StageSample {
    place: String,
    name: String,
    stats: StatsSnapshot,
}

impl Sample {
    fn of(number: usize, device: &Device) -> Self {
        let stages = device.stages();
        let measured = stages.iter().enumerate().filter_map(|(place, stage)| {
            let stats = stage.control::<StatsControl>()?.snapshot();
            Some(StageSample { place: place.to_string(), name: stage.name.clone(), stats })
        });
        let vhost_user = device.vhost_user();
        let socket = device.socket().display().to_string();
        Self {
            number: number.to_string(),
            info: [vhost_user.name().to_owned(), socket, device.description().to_string()],
            connected: vhost_user.is_connected(),
            connections: vhost_user.connections(),
            queues: vhost_user.counters(),
            stages: measured.collect(),
            workers: device.worker_times().collect(),
        }
    }
}

impl Source {
    /// These devices, since now.
    pub(crate) fn new(devices: Arc<Vec<Device>>) -> Self {
        let started = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { devices, started }
    }

    /// The page of this moment.
    pub(super) fn page(&self) -> String {
        let devices: Vec<Sample> =
            self.devices.iter().enumerate().map(|(number, device)| Sample::of(number, device)).collect();
        let mut page = Page::default();
        self.write_process(&mut page);
        write_devices(&mut page, &devices);
        write_queues(&mut page, &devices);
        write_stages(&mut page, &devices);
        write_kinds(&mut page, &devices);
        page.into_text()
    }

    fn write_process(&self, page: &mut Page) {
        page.family("iovirt_build_info", Kind::Gauge, "The version that runs; always 1.")
            .number(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        page.family("process_start_time_seconds", Kind::Gauge, "When the process began, since 1970.")
            .seconds(&[], self.started);
    }
}

fn write_devices(page: &mut Page, devices: &[Sample]) {
    let mut family = page.family(
        "iovirt_device_info",
        Kind::Gauge,
        "What a device is, and where it is to be found; always 1.",
    );
    for device in devices {
        let [name, socket, pipeline] = &device.info;
        let labels =
            [("device", &*device.number), ("name", name), ("socket", socket), ("pipeline", pipeline)];
        family.number(&labels, 1);
    }
    let mut family =
        page.family("iovirt_device_connected", Kind::Gauge, "Whether a front-end is connected: 1 or 0.");
    for device in devices {
        family.number(&[("device", &device.number)], u64::from(device.connected));
    }
    let mut family =
        page.family("iovirt_device_connections_total", Kind::Counter, "Front-ends that connected so far.");
    for device in devices {
        family.number(&[("device", &device.number)], device.connections);
    }
    let mut family = page.family(
        "iovirt_worker_cpu_seconds_total",
        Kind::Counter,
        "Time that a worker thread has had a processor.",
    );
    for device in devices {
        for (worker, time) in device.workers.iter().enumerate() {
            if let Some(time) = time {
                family.seconds(&[("device", &device.number), ("worker", &worker.to_string())], *time);
            }
        }
    }
}

fn write_queues(page: &mut Page, devices: &[Sample]) {
    /// A counter of a queue: its name, what it is, and where it is.
    type Row = (&'static str, &'static str, fn(&QueueCounters) -> u64);
    let rows: [Row; 3] = [
        ("iovirt_queue_requests_total", "Requests taken from the ring.", |queue| queue.chains),
        ("iovirt_queue_doorbells_total", "Doorbells that the driver rang.", |queue| queue.doorbells),
        ("iovirt_queue_interrupts_total", "Interrupts raised.", |queue| queue.interrupts),
    ];
    for (name, help, value) in rows {
        let mut family = page.family(name, Kind::Counter, help);
        for device in devices {
            for (queue, counters) in device.queues.iter().enumerate() {
                let labels = [("device", &*device.number), ("queue", &queue.to_string())];
                family.number(&labels, value(counters));
            }
        }
    }
}

/// The `stats` stages of all devices.
fn stages(devices: &[Sample]) -> impl Iterator<Item = (&Sample, &StageSample)> {
    devices.iter().flat_map(|device| device.stages.iter().map(move |stage| (device, stage)))
}

/// What those stages counted of each kind of request.
fn kinds(devices: &[Sample]) -> impl Iterator<Item = (&Sample, &StageSample, &KindSnapshot)> {
    stages(devices)
        .flat_map(|(device, stage)| stage.stats.kinds.iter().map(move |kind| (device, stage, kind)))
}

fn write_stages(page: &mut Page, devices: &[Sample]) {
    /// A number of a stage: its name, what it is, and where it is.
    type Row = (&'static str, Kind, &'static str, fn(&StatsSnapshot) -> u64);
    let rows: [Row; 2] = [
        ("iovirt_stage_requests_in_flight", Kind::Gauge, "Requests that are below the stage now.", |stats| {
            stats.in_flight
        }),
        (
            "iovirt_stage_lost_requests_total",
            Kind::Counter,
            "Requests that a stage below dropped.",
            |stats| stats.lost,
        ),
    ];
    for (name, kind, help, value) in rows {
        let mut family = page.family(name, kind, help);
        for (device, stage) in stages(devices) {
            let labels = [("device", &*device.number), ("stage", &stage.name), ("place", &stage.place)];
            family.number(&labels, value(&stage.stats));
        }
    }
}

fn write_kinds(page: &mut Page, devices: &[Sample]) {
    /// A counter of a kind of request: its name, what it is, and where it is.
    type Row = (&'static str, &'static str, fn(&KindSnapshot) -> u64);
    let rows: [Row; 3] = [
        ("iovirt_stage_requests_total", "Requests that completed, successfully or not.", |kind| kind.ops),
        ("iovirt_stage_bytes_total", "Bytes that successful requests moved.", |kind| kind.bytes),
        ("iovirt_stage_failures_total", "Requests that failed.", |kind| kind.failures),
    ];
    for (name, help, value) in rows {
        let mut family = page.family(name, Kind::Counter, help);
        for (device, stage, kind) in kinds(devices) {
            family.number(&labels(device, stage, kind), value(kind));
        }
    }
    let mut family = page.family(
        "iovirt_stage_latency_seconds",
        Kind::Histogram,
        "How long requests took below the stage, successful or not.",
    );
    for (device, stage, kind) in kinds(devices) {
        let (latency, labels) = (&kind.latency, labels(device, stage, kind));
        family.histogram(&labels, cumulated(latency), latency.count(), latency.sum());
    }
}

fn labels<'a>(device: &'a Sample, stage: &'a StageSample, kind: &'a KindSnapshot) -> [(&'a str, &'a str); 4] {
    [("device", &device.number), ("stage", &stage.name), ("place", &stage.place), ("kind", kind.name)]
}

/// How many requests took no longer than each bound.
fn cumulated(latency: &Latency) -> impl Iterator<Item = (Duration, u64)> {
    let mut buckets = latency.buckets().peekable();
    let mut seen = 0;
    BOUNDS.map(move |power| {
        let bound = Duration::from_nanos((1 << power) - 1);
        while let Some((_, held)) = buckets.next_if(|(upper, _)| *upper <= bound) {
            seen += held;
        }
        (bound, seen)
    })
}
