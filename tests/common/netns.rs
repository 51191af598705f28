//! A network namespace for a test: the test binary runs itself again in one, for that one test.

use iovirt_core::test_utils::skipped;
use std::process::Command;

/// Says so in the inner process.
const INSIDE: &str = "IOVIRT_TEST_IN_NAMESPACE";

/// Whether the caller is in a network namespace of its own and goes on. If not, its test is run in one, and the caller is
/// done; without the right to make one, it says so and is done as well.
pub(crate) fn enter(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let probe = Command::new("unshare")
        .args(["--net", "ip", "tuntap", "add", "dev", "probe", "mode", "tap"])
        .output();
    if !probe.is_ok_and(|output| output.status.success()) {
        skipped(format_args!("{test} needs root, /dev/net/tun, and the tools `unshare` and `ip`"));
        return false;
    }
    let status = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test} failed in its namespace");
    false
}

/// Runs `ip` with these words.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}
