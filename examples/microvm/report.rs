//! What a run was like, for people and for programs.

use std::fmt::Write;

use serde::Serialize;

use crate::common::report::{device_text, per};
use crate::devices::DeviceReport;
use crate::exits::ExitReport;
use crate::picture;

/// What a run was like.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Who drove the devices: `kvm`, or `in-process driver`.
    pub(crate) driven_by: &'static str,
    /// How it ended, in a few words.
    pub(crate) end: String,
    /// The process's exit code.
    pub(crate) code: u8,
    /// How long it took, in seconds.
    pub(crate) seconds: f64,
    pub(crate) devices: Vec<DeviceReport>,
    /// Exits of the guest; none without KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exits: Option<ExitReport>,
}

impl Report {
    /// One line of JSON.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    /// A page for people.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{} after {:.2} s ({})\n", self.end, self.seconds, self.driven_by);
        for device in &self.devices {
            text.push_str(&match &device.guest {
                Some(guest) => picture::of(device, guest, self.exits.as_ref()),
                None => device_text(&device.pipeline, &device.queues, &device.stages),
            });
        }
        if let Some(exits) = &self.exits {
            let requests = self.devices.iter().map(|device| device.totals()[0]).sum();
            let pictures = self.devices.iter().any(|device| device.guest.is_some());
            text.push_str(&if pictures {
                picture::exits(exits, requests)
            } else {
                exits_text(exits, requests)
            });
        }
        text
    }
}

fn exits_text(exits: &ExitReport, requests: u64) -> String {
    let mut text = String::from("\nVM exits to this process\n");
    for (name, _) in exits.vcpus.first().map(|vcpu| vcpu.exits.as_slice()).unwrap_or_default() {
        let count = exits.total(name);
        if count > 0 {
            let _ = writeln!(text, "    {name:<16}{count:>10}");
        }
    }
    for window in exits.mmio.iter().filter(|window| window.reads + window.writes > 0) {
        let _ = writeln!(
            text,
            "    {:<16}{:>10} register accesses, {} per request",
            window.name,
            window.reads + window.writes,
            per(window.reads + window.writes, requests)
        );
    }
    let counted = |name: &str| exits.counted_by_kvm(name);
    let all = counted("exits");
    if all > 0 {
        let _ = writeln!(text, "VM exits by KVM's own count: {all}, {} per request", per(all, requests));
        for name in ["io_exits", "mmio_exits", "halt_exits", "irq_exits", "irq_injections"] {
            let _ = writeln!(text, "    {name:<16}{:>10}", counted(name));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::RangeExits;
    use crate::common::report::QueueReport;
    use crate::exits::{KvmStat, VcpuReport};

    fn report() -> Report {
        let vcpu = VcpuReport {
            exits: vec![("port-read", 2), ("mmio-write", 3)],
            kvm: vec![KvmStat { name: "exits".to_owned(), value: 40 }],
        };
        let window = RangeExits { name: "disk \"a\"\n".to_owned(), reads: 0, writes: 3 };
        let exits = ExitReport { vcpus: vec![vcpu], vm: Vec::new(), ports: Vec::new(), mmio: vec![window] };
        let queue = QueueReport { requests: 10, doorbells: 2, interrupts: 1 };
        let device = DeviceReport::of_one_queue("virtio-blk -> null", queue);
        let end = "the guest ended with code 3".to_owned();
        Report { driven_by: "kvm", end, code: 3, seconds: 1.5, devices: vec![device], exits: Some(exits) }
    }

    #[test]
    fn a_run_in_text() {
        let text = report().text();
        for line in [
            "the guest ended with code 3 after 1.50 s (kvm)",
            "  10 requests on 1 queue(s): 0.200 doorbells and 0.100 interrupts per request",
            "VM exits by KVM's own count: 40, 4.000 per request",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} is missing in {text}");
        }
    }

    #[test]
    fn a_run_in_json() {
        let json: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
        assert_eq!(json["code"], 3);
        assert_eq!(json["devices"][0]["queues"][0]["doorbells"], 2);
        assert_eq!(json["exits"]["mmio"][0]["name"], "disk \"a\"\n");
        assert_eq!(json["exits"]["vcpus"][0]["exits"][1][1], 3);
    }
}
