//! The daemon as a process.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The example's program, as the sources are now.
///
/// A test of its own crate depends on no example, so cargo is asked for it: where it is there already, that takes a moment.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = std::env::current_exe().expect("the test itself");
        // `target/PROFILE/deps/this`
        let profile = test.ancestors().nth(2).expect("the folder of the profile");
        let target = profile.parent().expect("the target directory");
        let name = match profile.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => "dev",
            Some(name) => name,
        };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args(["build", "--quiet", "--package", "iovirt", "--example", "vhost-user", "--profile", name])
            .arg("--target-dir")
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo");
        assert!(built.success(), "the example is not built");
        profile.join("examples/vhost-user")
    })
}

/// A daemon that is ready; killed where a test leaves it behind.
pub(crate) struct Daemon {
    child: Child,
    output: BufReader<ChildStdout>,
    /// Its first line.
    pub(crate) ready: String,
}

impl Daemon {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(program())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut ready = String::new();
        output.read_line(&mut ready).expect("a line");
        let daemon = Self { child, output, ready };
        let ready = !daemon.ready.is_empty();
        assert!(ready, "{arguments:?}: it is not ready: {}", daemon.kill());
        daemon
    }

    /// Its first line as JSON.
    pub(crate) fn ready_json(&self) -> Value {
        serde_json::from_str(&self.ready).expect("a line of JSON")
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, by name.
    pub(crate) fn signal(&self, name: &str) {
        let line = format!("kill -{name} {}", self.id());
        assert!(Command::new("sh").args(["-c", &line]).status().expect("a shell").success());
    }

    /// Waits for its end: how it ended, the rest of its standard output, and its standard error.
    pub(crate) fn end(mut self) -> (ExitStatus, String, String) {
        let mut said = String::new();
        self.output.read_to_string(&mut said).expect("text");
        let status = self.child.wait().expect("a child");
        let mut complaints = String::new();
        self.child.stderr.take().expect("a pipe").read_to_string(&mut complaints).expect("text");
        (status, said, complaints)
    }

    /// Sends it SIGKILL, and does not wait for its end.
    pub(crate) fn strike(&mut self) {
        self.child.kill().expect("a child");
    }

    /// Waits for its end, whatever it had to say.
    pub(crate) fn wait(&mut self) {
        self.child.wait().expect("a child");
    }

    /// Kills it; what it had to complain about.
    pub(crate) fn kill(mut self) -> String {
        let _ = self.child.kill();
        self.end().2
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs it to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).stdin(Stdio::null()).output().expect("a process")
}

/// Sends lines to a control socket and gives a reply for each.
pub(crate) fn tell(socket: &Path, lines: &[&str]) -> Vec<Value> {
    let mut stream = UnixStream::connect(socket).expect("a control socket");
    let mut replies = BufReader::new(stream.try_clone().expect("a descriptor")).lines();
    let mut ask = |line: &&str| {
        writeln!(stream, "{line}").expect("it listens");
        let reply = replies.next().expect("a reply").expect("text");
        serde_json::from_str(&reply).expect("JSON")
    };
    lines.iter().map(&mut ask).collect()
}
