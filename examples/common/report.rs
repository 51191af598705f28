//! What a device did, for people and for programs.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use iovirt::backends::interposers::stats::{StatsControl, StatsSnapshot};
use iovirt::core::pipeline::Stages;
use iovirt::frontends::virtio::QueueCounters;
use serde::Serialize;

/// What one queue did.
#[derive(Debug, Serialize)]
pub(crate) struct QueueReport {
    pub(crate) requests: u64,
    pub(crate) doorbells: u64,
    pub(crate) interrupts: u64,
}

impl From<QueueCounters> for QueueReport {
    fn from(counters: QueueCounters) -> Self {
        let QueueCounters { chains, doorbells, interrupts, .. } = counters;
        Self { requests: chains, doorbells, interrupts }
    }
}

/// What a stage of a pipeline measured.
#[derive(Debug, Serialize)]
pub(crate) struct StageReport {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) stats: StatsSnapshot,
}

/// What the `stats` stages among these measured so far.
pub(crate) fn stages(stages: &Stages) -> Vec<StageReport> {
    let stage = |(name, control): (&str, Arc<StatsControl>)| StageReport {
        name: name.to_owned(),
        stats: control.snapshot(),
    };
    stages.controls::<StatsControl>().map(stage).collect()
}

/// Sums over queues: requests, doorbells, interrupts.
pub(crate) fn totals(queues: &[QueueReport]) -> [u64; 3] {
    queues.iter().fold([0; 3], |[requests, doorbells, interrupts], queue| {
        [requests + queue.requests, doorbells + queue.doorbells, interrupts + queue.interrupts]
    })
}

/// A device, its queues and its stages, as lines that begin with an empty one.
pub(crate) fn device_text(pipeline: &str, queues: &[QueueReport], stages: &[StageReport]) -> String {
    let [requests, doorbells, interrupts] = totals(queues);
    let mut text = format!("\n{pipeline}\n");
    let _ = writeln!(
        text,
        "  {requests} requests on {} queue(s): {} doorbells and {} interrupts per request",
        queues.len(),
        per(doorbells, requests),
        per(interrupts, requests),
    );
    if queues.len() > 1 {
        let requests: Vec<String> = queues.iter().map(|queue| queue.requests.to_string()).collect();
        let _ = writeln!(text, "  requests by queue: {}", requests.join(", "));
    }
    for stage in stages {
        text.push_str(&stage_text(stage));
    }
    text
}

fn stage_text(stage: &StageReport) -> String {
    let mut text = format!(
        "  {:<14}{:>10}{:>12}{:>8}{:>10}{:>10}{:>10}{:>10}\n",
        stage.name, "requests", "bytes", "failed", "p50", "p90", "p99", "max"
    );
    for kind in stage.stats.kinds.iter().filter(|kind| kind.ops > 0) {
        let at = |percent| kind.latency.percentile(percent).map_or_else(|| "-".to_owned(), time);
        let _ = writeln!(
            text,
            "    {:<12}{:>10}{:>12}{:>8}{:>10}{:>10}{:>10}{:>10}",
            kind.name,
            kind.ops,
            size(kind.bytes),
            kind.failures,
            at(50.0),
            at(90.0),
            at(99.0),
            at(100.0)
        );
    }
    text
}

/// So many per request.
pub(crate) fn per(count: u64, requests: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    if requests == 0 { "-".to_owned() } else { format!("{:.3}", count as f64 / requests as f64) }
}

/// A time in a unit that suits it.
pub(crate) fn time(time: Duration) -> String {
    let nanos = time.as_nanos();
    match nanos {
        0..10_000 => format!("{nanos} ns"),
        10_000..10_000_000 => format!("{} us", nanos / 1000),
        _ => format!("{} ms", nanos / 1_000_000),
    }
}

/// A number of bytes in a unit that suits it.
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..10_240 => format!("{bytes} B"),
        10_240..10_485_760 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}
