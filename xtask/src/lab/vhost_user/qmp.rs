//! QEMU's machine protocol: a line of JSON asks, a line of JSON answers, and events come in between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::process::until;
use crate::error::{Context, Error, Result};

/// A connection to a monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    events: Vec<String>,
}

impl Qmp {
    /// Connects to the monitor as soon as it listens.
    pub(crate) fn connect(path: &Path, deadline: Instant) -> Result<Self> {
        let mut stream = None;
        until(
            deadline,
            || format!("nobody listens on {}", path.display()),
            || {
                stream = UnixStream::connect(path).ok();
                Ok(stream.is_some())
            },
        )?;
        let stream = stream.ok_or_else(|| Error::new("no monitor"))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut qmp = Self { reader: BufReader::new(stream), events: Vec::new() };
        let greeting = qmp.line()?;
        if !greeting.contains("\"QMP\"") {
            return Err(Error::new(format!("this is no monitor: {greeting}")));
        }
        qmp.ask(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok(qmp)
    }

    /// Asks for something that must be done; gives back the answer.
    pub(crate) fn ask(&mut self, request: &str) -> Result<String> {
        self.reader.get_mut().write_all(format!("{request}\n").as_bytes()).context("QEMU's monitor")?;
        loop {
            let line = self.line()?;
            if line.contains("\"event\":") {
                self.events.push(line);
            } else if line.contains("\"error\":") {
                return Err(Error::new(format!("{request}: {line}")));
            } else {
                return Ok(line);
            }
        }
    }

    /// The next event of one of these kinds, which may have come already.
    pub(crate) fn event(&mut self, kinds: &[&str]) -> Result<String> {
        let wanted =
            |line: &String| kinds.iter().any(|kind| line.contains(&format!("\"event\": \"{kind}\"")));
        loop {
            if let Some(at) = self.events.iter().position(wanted) {
                return Ok(self.events.remove(at));
            }
            let line = self.line().context(format_args!("waiting for {}", kinds.join(" or ")))?;
            self.events.push(line);
        }
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.reader.read_line(&mut line).context("QEMU's monitor")? {
            0 => Err(Error::new("QEMU's monitor is gone")),
            _ => Ok(line.trim_end().to_owned()),
        }
    }
}
