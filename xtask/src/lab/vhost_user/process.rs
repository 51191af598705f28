//! A program at work: what it says line by line, what is said to it, and its end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use crate::cmd::Cmd;
use crate::error::{Context, Error, Result};

/// How often something is looked at that does not tell by itself.
const AGAIN: Duration = Duration::from_millis(20);

/// A program at work. It is killed with this value.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    said: Vec<String>,
    deadline: Instant,
}

impl Process {
    /// Starts it. Its lines and its complaints go to `NAME.out` and `NAME.err` in the folder too, behind what is there.
    pub(crate) fn start(mut command: Command, folder: &Path, name: &str, deadline: Instant) -> Result<Self> {
        let log = |end: &str| {
            let path = folder.join(format!("{name}.{end}"));
            File::options().create(true).append(true).open(&path).context(path.display())
        };
        let mut out = log("out")?;
        command.current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log("err")?);
        let mut child = command.spawn().context(name)?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or_else(|| Error::new("no output"))?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            let (mut reader, mut bytes) = (BufReader::new(output), Vec::new());
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
                let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
                bytes.clear();
                // The log is for people.
                let _ = writeln!(out, "{line}");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { name: name.to_owned(), child, input, lines, said: Vec::new(), deadline })
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it said so far, as far as it was waited for.
    pub(crate) fn said(&self) -> &[String] {
        &self.said
    }

    /// Waits for a line with these words, among those that were not waited for yet.
    pub(crate) fn wait_for(&mut self, words: &str) -> Result<String> {
        loop {
            match self.lines.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let failed = line.contains("guest: FAILED");
                    self.said.push(line.clone());
                    if failed {
                        return Err(Error::new(line));
                    }
                    if line.contains(words) {
                        return Ok(line);
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(Error::new(format!("{} did not say '{words}' in time", self.name)));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::new(format!("{} ended before it said '{words}'", self.name)));
                }
            }
        }
    }

    /// Says a line to it.
    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        let input = self.input.as_mut().ok_or_else(|| Error::new("it hears nothing"))?;
        writeln!(input, "{line}").context(&self.name)
    }

    /// Whether it has not ended.
    pub(crate) fn is_alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Kills it, by a signal that it does not see.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill().context(&self.name)?;
        self.child.wait().context(&self.name)?;
        Ok(())
    }

    /// Asks it to end, by a signal that it sees.
    pub(crate) fn ask_to_end(&self) -> Result<()> {
        Cmd::new("sh").args(["-c", "kill -TERM \"$0\"", &self.id().to_string()]).quiet()
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        // What it says last.
        while let Ok(line) = self.lines.recv_timeout(self.deadline.saturating_duration_since(Instant::now()))
        {
            self.said.push(line);
        }
        until(
            self.deadline,
            || format!("{} did not end in time", self.name),
            || Ok(self.child.try_wait()?.is_some()),
        )?;
        self.child.wait().context(&self.name)
    }

    /// The shared memory that it maps: names of mapped `memfd` files, one for each mapping.
    pub(crate) fn mapped_memfds(&self) -> Result<Vec<String>> {
        let path = format!("/proc/{}/maps", self.id());
        let maps = fs::read_to_string(&path).context(&path)?;
        let name = |line: &str| Some(line[line.find("/memfd:")?..].to_owned());
        Ok(maps.lines().filter_map(name).collect())
    }

    /// What its descriptors are.
    pub(crate) fn descriptors(&self) -> Result<Vec<String>> {
        let path = format!("/proc/{}/fd", self.id());
        let mut descriptors = Vec::new();
        for entry in fs::read_dir(&path).context(&path)? {
            // One that was closed meanwhile has no name any more.
            if let Ok(target) = fs::read_link(entry?.path()) {
                descriptors.push(target.to_string_lossy().into_owned());
            }
        }
        descriptors.sort();
        Ok(descriptors)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is waited for all the same.
        let _ = self.kill();
    }
}

/// Waits until it is so.
pub(crate) fn until(
    deadline: Instant,
    otherwise: impl Fn() -> String,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<()> {
    while !is_so()? {
        if Instant::now() >= deadline {
            return Err(Error::new(otherwise()));
        }
        thread::sleep(AGAIN);
    }
    Ok(())
}
