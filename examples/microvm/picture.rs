//! A pipeline under the built-in guest as a picture: what stands above what, and beside each part what it counted.

use std::fmt::Write;
use std::time::Duration;

use crate::common::report::{StageReport, per, size, time};
use crate::devices::DeviceReport;
use crate::exits::ExitReport;
use crate::guest::{GuestDevice, Phase, PhaseReport};

/// Columns of the names on the left.
const LEFT: usize = 14;

/// The picture of one device.
pub(crate) fn of(device: &DeviceReport, guest: &GuestDevice, exits: Option<&ExitReport>) -> String {
    let mut picture = Picture(format!("\n{}\n\n", device.pipeline));
    let [requests, doorbells, interrupts] = device.totals();
    picture.part("guest", &guest_lines(guest));
    picture.wire(&[
        format!(
            "│  per request: {} doorbells (ioeventfds, so no exits), {} interrupts{}",
            per(doorbells, requests),
            per(interrupts, requests),
            accesses(device, exits)
                .map(|count| format!(", {} exits", per(count, requests)))
                .unwrap_or_default(),
        ),
        "▼".to_owned(),
    ]);
    let Some(description) = &device.description else { return picture.0 };
    let queues: Vec<String> = device.queues.iter().map(|queue| queue.requests.to_string()).collect();
    let mut front = vec![format!("{requests} requests through rings of {} entries", guest.queue_size)];
    if queues.len() > 1 {
        front.push(format!("by queue: {}", queues.join(", ")));
    }
    picture.part(&description.frontend.to_string(), &front);
    let mut measured = device.stages.iter();
    for stage in &description.below.stages {
        picture.wire(&["│".to_owned()]);
        let stats = (stage.name() == "stats").then(|| measured.next()).flatten();
        picture.part(&stage.to_string(), &stats.map(stage_lines).unwrap_or_default());
    }
    picture.wire(&["▼".to_owned()]);
    let mut end: Vec<String> = measured.flat_map(stage_lines).collect();
    end.extend(guest.image_is_right.map(|right| {
        let what = if right { "holds the same bytes" } else { "DOES NOT HOLD what the guest wrote" };
        format!("read by this process, the image {what}")
    }));
    picture.part(&description.below.backend.to_string(), &end);
    picture.0
}

/// What all devices together cost in exits.
pub(crate) fn exits(exits: &ExitReport, requests: u64) -> String {
    let count = |kinds: &[&str]| -> u64 { kinds.iter().map(|kind| exits.total(kind)).sum() };
    let registers = count(&["mmio-read", "mmio-write"]);
    let ports = count(&["port-read", "port-write"]);
    let mut text = format!(
        "\nVM exits to this process: {registers} for registers, {} per request; {ports} by ports, for the guest's report",
        per(registers, requests)
    );
    let pci = exits.mmio.iter().find(|window| window.name == "pci memory" && window.reads > 0);
    if let Some(window) = pci {
        let _ = write!(
            text,
            " and PCI's configuration\n  of those for registers, {} on PCI",
            window.reads + window.writes
        );
    }
    let all = exits.counted_by_kvm("exits");
    if all > 0 {
        let _ = write!(
            text,
            "\nVM exits by KVM's own count: {all}, {} per request; the guest was halted {} times",
            per(all, requests),
            exits.counted_by_kvm("halt_exits")
        );
    }
    text.push('\n');
    text
}

struct Picture(String);

impl Picture {
    /// A part: its name, or its whole text on a line of its own where it is long, and lines beside it.
    fn part(&mut self, name: &str, lines: &[String]) {
        let text = &mut self.0;
        if name.chars().count() >= LEFT && !lines.is_empty() {
            let _ = writeln!(text, "  {name}");
            for line in lines {
                let _ = writeln!(text, "  {:LEFT$}{line}", "");
            }
            return;
        }
        let mut names = [name].into_iter().chain(std::iter::repeat(""));
        for line in lines.iter().map(String::as_str).chain(lines.is_empty().then_some("")) {
            let row = format!("  {:LEFT$}{line}", names.next().unwrap_or_default());
            let _ = writeln!(text, "{}", row.trim_end());
        }
    }

    /// What is between two parts.
    fn wire(&mut self, lines: &[String]) {
        for line in lines {
            let _ = writeln!(self.0, "    {line}");
        }
    }
}

/// What the guest did and found.
fn guest_lines(guest: &GuestDevice) -> Vec<String> {
    let mut lines: Vec<String> = guest.phases.iter().map(phase_line).collect();
    lines.extend(guest.trouble.as_ref().map(|trouble| format!("WRONG: {trouble}")));
    lines
}

fn phase_line(phase: &PhaseReport) -> String {
    let micros = |micros: f64| time(Duration::from_secs_f64(micros.max(0.0) / 1e6));
    let (what, answered) = match phase.phase {
        Phase::Write => ("writes", "answered after"),
        Phase::Flush => ("flushes", "answered after"),
        Phase::Read | Phase::ReadAlone => ("reads", "answered after"),
        Phase::Frames | Phase::FramesAlone => ("frames", "back after"),
    };
    let moved = if phase.bytes > 0 {
        format!("of {}", each(phase.bytes / phase.requests.max(1)))
    } else {
        String::new()
    };
    let together = match phase.batch {
        0 | 1 => "one by one".to_owned(),
        batch => format!("{batch} at a time"),
    };
    let mut line = format!(
        "{what:<8} {:>5} {moved:<9} {together:<13} {answered:>14} {:>7}",
        phase.requests,
        micros(phase.wait_mean)
    );
    let wrong = u64::from(phase.mismatches) + u64::from(phase.failures);
    if wrong > 0 {
        let _ = write!(line, "   {wrong} WRONG");
    } else if phase.verified > 0 {
        let _ = write!(line, "   {} compared", size(phase.verified.into()));
    }
    line
}

fn each(bytes: u32) -> String {
    if bytes.is_multiple_of(1024) { format!("{} KiB", bytes >> 10) } else { format!("{bytes} B") }
}

/// What a `stats` stage measured, a line for each kind of request.
fn stage_lines(stage: &StageReport) -> Vec<String> {
    let kinds = stage.stats.kinds.iter().filter(|kind| kind.ops > 0);
    kinds
        .map(|kind| {
            let at = |percent| kind.latency.percentile(percent).map_or_else(|| "-".to_owned(), time);
            let failed = match (kind.failures, kind.name) {
                (0, _) => String::new(),
                // Those that wait when a device is reset.
                (count, "receive") => format!("   {count} came home empty"),
                (count, _) => format!("   {count} FAILED"),
            };
            format!(
                "{:<8} {:>5} {:>9}   p50 {:>8}   p99 {:>8}{failed}",
                kind.name,
                kind.ops,
                size(kind.bytes),
                at(50.0),
                at(99.0)
            )
        })
        .collect()
}

/// How often the guest left for a register of the device, where that is known: the windows of PCI are counted together.
fn accesses(device: &DeviceReport, exits: Option<&ExitReport>) -> Option<u64> {
    let window = exits?.mmio.iter().find(|window| Some(&window.name) == device.window.as_ref())?;
    Some(window.reads + window.writes)
}
