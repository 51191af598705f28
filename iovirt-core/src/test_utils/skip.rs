//! Tests that lack something of the host.

use std::fmt::Display;

/// The variable that makes a skipped test a failed one; its value does not matter, as long as there is one.
pub const NO_SKIP_VARIABLE: &str = "IOVIRT_NO_SKIP";

/// Says that a test, or a part of it, does not run here, and why: the caller returns behind it.
///
/// ```no_run
/// use iovirt_core::test_utils::skipped;
///
/// # fn is_root() -> bool { false }
/// if !is_root() {
///     skipped("mounting a file system takes root");
///     return;
/// }
/// ```
///
/// # Panics
/// Where [`NO_SKIP_VARIABLE`] is set, as `cargo xtask test` does: what is green there has run.
pub fn skipped(reason: impl Display) {
    let forbidden = std::env::var_os(NO_SKIP_VARIABLE).is_some_and(|value| !value.is_empty());
    assert!(!forbidden, "SKIPPED: {reason}; with {NO_SKIP_VARIABLE} set, a test that does not run fails");
    eprintln!("SKIPPED: {reason}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Says so in the inner process.
    const INSIDE: &str = "IOVIRT_TEST_SKIPS";

    #[test]
    fn lacks_something() {
        if std::env::var_os(INSIDE).is_some() {
            skipped("the moon is not full");
        }
    }

    #[test]
    fn what_is_skipped_fails_where_nothing_may_be_skipped() {
        let run = |no_skip: Option<&str>| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "test_utils::skip::tests::lacks_something", "--nocapture"]);
            command.env(INSIDE, "1").env_remove(NO_SKIP_VARIABLE);
            command.envs(no_skip.map(|value| (NO_SKIP_VARIABLE, value)));
            let output = command.output().unwrap();
            let words = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(words.contains("SKIPPED: the moon is not full"), "{words}");
            assert!(words.contains("running 1 test"), "{words}");
            output.status.success()
        };
        assert!(run(None) && run(Some("")));
        assert!(!run(Some("1")));
    }
}
