//! What a run was like, for people and for programs.

use std::fmt::Write;

use crate::bus::RangeExits;
use crate::exits::KvmStat;
use crate::machine::Outcome;

/// One line for people.
pub(crate) fn text(outcome: &Outcome) -> String {
    let exits = &outcome.exits;
    let ports = exits.total("port-read") + exits.total("port-write");
    let mmio = exits.total("mmio-read") + exits.total("mmio-write");
    let seconds = outcome.ran.as_secs_f64();
    let what = outcome.stop.describe();
    format!("{what} after {seconds:.2} s and {ports} port and {mmio} memory exits")
}

/// One line of JSON.
pub(crate) fn json(outcome: &Outcome) -> String {
    let exits = &outcome.exits;
    let vcpus: Vec<String> = exits
        .vcpus
        .iter()
        .map(|vcpu| {
            let kinds = vcpu.exits.iter().map(|(name, count)| (*name, count.to_string()));
            format!("{{\"exits\":{},\"kvm\":{}}}", object(kinds), stats(&vcpu.kvm))
        })
        .collect();
    format!(
        "{{\"end\":{},\"code\":{},\"seconds\":{:.6},\"vcpus\":[{}],\"kvm\":{},\"ports\":{},\"mmio\":{}}}",
        string(&outcome.stop.describe()),
        outcome.stop.exit_code(),
        outcome.ran.as_secs_f64(),
        vcpus.join(","),
        stats(&exits.vm),
        ranges(&exits.ports),
        ranges(&exits.mmio),
    )
}

fn stats(stats: &[KvmStat]) -> String {
    object(stats.iter().map(|stat| (stat.name.as_str(), stat.value.to_string())))
}

fn ranges(ranges: &[RangeExits]) -> String {
    object(ranges.iter().map(|range| {
        (range.name.as_str(), format!("{{\"reads\":{},\"writes\":{}}}", range.reads, range.writes))
    }))
}

/// An object of values that are JSON already.
fn object<'a>(fields: impl Iterator<Item = (&'a str, String)>) -> String {
    let fields: Vec<String> = fields.map(|(name, value)| format!("{}:{value}", string(name))).collect();
    format!("{{{}}}", fields.join(","))
}

fn string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if u32::from(control) < 0x20 => {
                // Writing to a string does not fail.
                let _ = write!(quoted, "\\u{:04x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::Stop;
    use crate::exits::{ExitReport, VcpuReport};

    #[test]
    fn a_run_in_text_and_json() {
        let vcpu = VcpuReport { exits: vec![("port-read", 2), ("mmio-write", 3)], kvm: Vec::new() };
        let window = RangeExits { name: "disk \"a\"\n".to_owned(), reads: 0, writes: 3 };
        let exits = ExitReport {
            vcpus: vec![vcpu],
            vm: vec![KvmStat { name: "pages".to_owned(), value: 7 }],
            ports: Vec::new(),
            mmio: vec![window],
        };
        let outcome = Outcome { stop: Stop::ExitPort(3), ran: Duration::from_millis(1500), exits };
        assert_eq!(text(&outcome), "the guest ended with code 3 after 1.50 s and 2 port and 3 memory exits");
        assert_eq!(
            json(&outcome),
            concat!(
                r#"{"end":"the guest ended with code 3","code":3,"seconds":1.500000,"#,
                r#""vcpus":[{"exits":{"port-read":2,"mmio-write":3},"kvm":{}}],"kvm":{"pages":7},"#,
                r#""ports":{},"mmio":{"disk \"a\"\u000a":{"reads":0,"writes":3}}}"#
            )
        );
    }
}
