//! Rates while the guest runs, in one line on standard error.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::control::Control;
use crate::devices::{Device, DeviceReport};
use crate::exits::ExitCounters;

/// How often the line is written.
const PERIOD: Duration = Duration::from_secs(1);
/// How often the end of the machine is looked for.
const LOOK: Duration = Duration::from_millis(50);

/// Counters at a time.
struct Sample {
    at: Instant,
    devices: Vec<DeviceReport>,
    exits: u64,
}

/// Where the line goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Screen {
    /// Standard error is a terminal of its own: the line is written over.
    Line,
    /// The guest's console is on that terminal, so the rates are its title.
    Title,
    /// Standard error is no terminal: a line each time.
    Log,
}

/// Shows rates until the machine stops.
pub(crate) fn start(devices: Arc<Vec<Device>>, exits: Vec<Arc<ExitCounters>>, control: Arc<Control>) {
    let screen = match (std::io::stderr().is_terminal(), std::io::stdout().is_terminal()) {
        (true, false) => Screen::Line,
        (true, true) => Screen::Title,
        (false, _) => Screen::Log,
    };
    let sample = move || Sample {
        at: Instant::now(),
        devices: devices.iter().map(Device::report).collect(),
        exits: exits.iter().map(|counters| counters.sum()).sum(),
    };
    thread::spawn(move || {
        let started = Instant::now();
        let mut before = sample();
        while !control.stopping() {
            thread::sleep(LOOK);
            if before.at.elapsed() < PERIOD {
                continue;
            }
            let now = sample();
            show(screen, &format!("{:.0} s {}", started.elapsed().as_secs_f64(), line(&before, &now)));
            before = now;
        }
        if screen == Screen::Line {
            eprintln!();
        }
    });
}

fn show(screen: Screen, line: &str) {
    let text = match screen {
        // Without wrapping while it is written, so that it stays one line.
        Screen::Line => format!("\r\x1b[?7l{line}\x1b[K\x1b[?7h"),
        Screen::Title => format!("\x1b]0;{line}\x07"),
        Screen::Log => format!("{line}\n"),
    };
    // Whoever closed standard error does not want to see it.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// What happened between two samples.
fn line(before: &Sample, now: &Sample) -> String {
    let seconds = now.at.duration_since(before.at).as_secs_f64();
    let rate = |count: u64| {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let rate = count as f64 / seconds;
        rate
    };
    let mut line = String::new();
    for (at, (device, earlier)) in now.devices.iter().zip(&before.devices).enumerate() {
        let requests = device.totals()[0].saturating_sub(earlier.totals()[0]);
        let name = device.pipeline.split([' ', ',']).next().unwrap_or("");
        let _ = write!(line, "| {at} {name} {} req/s", number(rate(requests)));
        let stages: Vec<_> = device
            .stages
            .iter()
            .zip(&earlier.stages)
            .map(|(stage, earlier)| (&stage.name, stage.stats.since(&earlier.stats)))
            .collect();
        if let Some((_, stats)) = stages.first() {
            let bytes = stats.kinds.iter().map(|kind| kind.bytes).sum();
            let _ = write!(line, " {:.1} MB/s", rate(bytes) / 1e6);
        }
        for (name, stats) in &stages {
            // The slowest kind: what a guest waits for.
            let p99 = stats.kinds.iter().filter_map(|kind| kind.latency.percentile(99.0)).max();
            let p99 = p99.map_or_else(|| "-".to_owned(), |p99| format!("{:.0} us", p99.as_secs_f64() * 1e6));
            let _ = write!(line, " {name} p99 {p99}");
        }
        line.push(' ');
    }
    let _ = write!(line, "| {} exits/s", number(rate(now.exits.saturating_sub(before.exits))));
    line
}

fn number(value: f64) -> String {
    if value < 10_000.0 { format!("{value:.0}") } else { format!("{:.1}k", value / 1e3) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::report::QueueReport;

    fn sample(at: Instant, requests: u64, exits: u64) -> Sample {
        let queue = QueueReport { requests, doorbells: 0, interrupts: 0 };
        let device = DeviceReport::of_one_queue("virtio-net,queues=2 -> null", queue);
        Sample { at, devices: vec![device], exits }
    }

    #[test]
    fn a_line_has_rates() {
        let start = Instant::now();
        let (before, now) = (sample(start, 100, 7), sample(start + Duration::from_secs(2), 500, 40_007));
        assert_eq!(line(&before, &now), "| 0 virtio-net 200 req/s | 20.0k exits/s");
    }
}
