//! Starting QEMU.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::cmd::{self, Cmd, tail};
use crate::error::{Context, Error, Result};

/// QEMU's status when the host's `/init` came to its end and wrote 16 to the port: (16 << 1) | 1.
const CAME_TO_ITS_END: i32 = 33;

/// Who sees what runs in the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Screen {
    /// Its lines are handed to the caller.
    Lines,
    /// Its output is ours.
    Output,
    /// A person's terminal.
    Terminal,
}

/// When a program is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// So long after its start.
    Total(Duration),
    /// So long after the last line that it said.
    Silence(Duration),
}

impl Limit {
    fn seconds(self) -> u64 {
        let (Self::Total(time) | Self::Silence(time)) = self;
        time.as_secs()
    }

    /// The end, where something was heard just now.
    fn end(self, start: Instant) -> Instant {
        match self {
            Self::Total(time) => start + time,
            Self::Silence(time) => Instant::now() + time,
        }
    }
}

/// The lab machine: a host with KVM, emulated.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    /// The uncompressed kernel.
    pub kernel: &'a Path,
    /// The initial RAM disk.
    pub ramdisk: &'a Path,
    /// The work disk, which becomes `/lab`.
    pub work: &'a Path,
    /// Where the kernel's messages go.
    pub console: PathBuf,
    /// Who sees what runs in it.
    pub screen: Screen,
    /// When to give up; a terminal has no limit.
    pub limit: Limit,
}

impl Machine<'_> {
    /// Runs the machine to its end.
    pub(crate) fn run(&self, line: &mut dyn FnMut(&str)) -> Result<()> {
        let mut words = "console=ttyS0 panic=-1 quiet".to_owned();
        let mut serial = "stdio";
        if self.screen == Screen::Terminal {
            words.push_str(" lab.terminal=1");
            serial = "mon:stdio";
        }
        let mut command = Cmd::new("qemu-system-x86_64")
            .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", &cpu()])
            .args(["-smp", "2", "-m", "2048", "-no-reboot"])
            .args(["-nodefaults", "-display", "none", "-monitor", "none"])
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .args(["-serial", serial])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.ramdisk)
            .args(["-append", &words])
            .arg("-drive")
            .arg(drive("work", self.work))
            .args(["-device", "virtio-blk-pci,drive=work"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"])
            .into_inner();
        // Among other things, QEMU complains of every feature of the processor model that it does not emulate.
        let complaints = self.console.with_extension("qemu");
        command.stderr(File::create(&complaints).context(complaints.display())?);
        if self.screen != Screen::Terminal {
            command.stdin(Stdio::null());
        }
        let ended = match self.screen {
            Screen::Terminal => command.status().context("qemu-system-x86_64"),
            Screen::Output => wait(command, self.limit, None),
            Screen::Lines => wait(command, self.limit, Some(line)),
        };
        let why = match ended {
            Ok(status) if status.code() == Some(CAME_TO_ITS_END) => return Ok(()),
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        let complaints = fs::read_to_string(&complaints).unwrap_or_default();
        let complaints: Vec<&str> =
            complaints.lines().filter(|line| !line.contains("TCG doesn't support")).collect();
        Err(Error::new(format!(
            "the lab machine did not come to its end ({why}); its last messages:\n{}\n{}",
            self.last_messages(),
            complaints.join("\n")
        )))
    }

    /// The end of what the kernel said.
    pub(crate) fn last_messages(&self) -> String {
        let text = fs::read(&self.console).unwrap_or_default();
        tail(&String::from_utf8_lossy(&text), 40)
    }
}

/// A raw disk for QEMU. What is written to it need not survive a crash of this machine.
pub(crate) fn drive(id: &str, file: &Path) -> String {
    format!("if=none,id={id},file={},format=raw,cache=unsafe", file.display())
}

/// The newest processor model with SVM that was tried, or what an older QEMU has.
fn cpu() -> String {
    let models = Cmd::new("qemu-system-x86_64").args(["-cpu", "help"]).text().unwrap_or_default();
    let model = ["EPYC-v4", "EPYC-v3"].into_iter().find(|model| models.contains(model)).unwrap_or("EPYC");
    format!("{model},+svm,+npt")
}

/// Waits for the program to end, and ends it at the limit.
pub(crate) fn wait(
    mut command: Command,
    limit: Limit,
    lines: Option<&mut dyn FnMut(&str)>,
) -> Result<ExitStatus> {
    let program = command.get_program().to_string_lossy().into_owned();
    if lines.is_some() {
        command.stdout(Stdio::piped());
    }
    let mut child = command.spawn().context(&program)?;
    let end = match lines {
        Some(line) => follow(&mut child, limit, line),
        None => limit.end(Instant::now()),
    };
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Err(Error::new(format!(
                "{program} was ended after its time limit of {} s",
                limit.seconds()
            )));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Hands on the program's lines until it closes its output or the limit comes; tells how long it may go on.
fn follow(child: &mut Child, limit: Limit, line: &mut dyn FnMut(&str)) -> Instant {
    let start = Instant::now();
    let mut end = limit.end(start);
    let Some(output) = child.stdout.take() else {
        return end;
    };
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            if sender.send(text).is_err() {
                break;
            }
        }
    });
    while let Ok(text) = receiver.recv_timeout(end.saturating_duration_since(Instant::now())) {
        line(&text);
        end = limit.end(start);
    }
    end
}

/// A folder that is empty now.
pub(crate) fn empty_folder(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).context(folder.display())?;
    }
    fs::create_dir_all(folder).context(folder.display())
}

/// Where a run of the lab keeps its files.
pub(crate) fn folder() -> PathBuf {
    cmd::target().join("lab")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of a program that says one at a time, then none, and is given up.
    fn lines(limit: Limit) -> u32 {
        let mut command = Command::new("sh");
        command.args(["-c", "for n in 1 2 3 4 5 6 7 8; do echo $n; sleep 0.2; done; exec sleep 100"]);
        let mut said = 0;
        assert!(wait(command, limit, Some(&mut |_| said += 1)).is_err());
        said
    }

    #[test]
    fn a_program_is_given_up_after_its_silence_or_after_all_its_time() {
        let limit = Duration::from_secs(1);
        assert_eq!(lines(Limit::Silence(limit)), 8);
        assert!(lines(Limit::Total(limit)) < 8);
    }
}
