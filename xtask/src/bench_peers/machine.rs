//! What the figures hold for: processor, kernel, versions.

use std::fs;

use crate::cmd::Cmd;
use crate::error::Result;

/// Facts of the machine and the programs, as a phrase.
pub(crate) fn facts() -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let qemu = Cmd::new("qemu-storage-daemon").arg("--version").text()?;
    let rust = Cmd::new("rustc").arg("--version").text()?;
    let (name, count) = processor(&cpuinfo);
    Ok(format!(
        "{count} processors ({name}), Linux {}, {}, Rust {}, iovirt {}",
        numbers(&kernel),
        qemu.lines().next().map_or("QEMU", |line| line.split(" (").next().unwrap_or(line)),
        rust.split(' ').nth(1).unwrap_or("?"),
        env!("CARGO_PKG_VERSION"),
    ))
}

/// How busy the machine was when this was asked: the average number of runnable threads of the last minute.
pub(crate) fn busyness() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

fn processor(cpuinfo: &str) -> (String, usize) {
    let name = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    let name = name.trim_start_matches(['\t', ' ', ':']).replace("(R)", "").replace("(TM)", "");
    (name, cpuinfo.lines().filter(|line| line.starts_with("processor")).count())
}

/// The first two numbers of a version.
fn numbers(version: &str) -> String {
    let mut parts = version.trim().split(['.', '-']);
    format!("{}.{}", parts.next().unwrap_or("?"), parts.next().unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_from_what_the_kernel_says() {
        let text =
            "processor\t: 0\nmodel name\t: Some(R) Processor(TM) 9\nprocessor\t: 1\nmodel name\t: Other\n";
        assert_eq!(processor(text), ("Some Processor 9".to_owned(), 2));
        assert_eq!(processor(""), ("unknown".to_owned(), 0));
        assert_eq!(numbers("6.18.44-local\n"), "6.18");
    }
}
