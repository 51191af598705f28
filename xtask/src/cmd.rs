//! Running other programs.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::error::{Context, Error, Result};

/// Folders with administrators' tools (`mkfs.ext4`, `depmod`), which are not in everyone's `PATH`.
const MORE_FOLDERS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// Where a program is, if it is installed.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|folder| folder.join(program)).find(|file| {
        file.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    })
}

fn search_path() -> OsString {
    let mut folders: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    folders.extend(MORE_FOLDERS.iter().map(PathBuf::from));
    env::join_paths(folders).unwrap_or_default()
}

/// A program about to be run.
#[derive(Debug)]
pub(crate) struct Cmd {
    command: Command,
}

impl Cmd {
    /// Prepares to run `program` in the root of the repository.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.current_dir(root()).env("PATH", search_path());
        Self { command }
    }

    /// The cargo that runs us.
    pub(crate) fn cargo() -> Self {
        let mut cmd = Self::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        // Set by the cargo that started us for this package; a cargo below it must not take them for its own.
        for (name, _) in env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST") {
                cmd.command.env_remove(name);
            }
        }
        cmd
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs in this folder.
    pub(crate) fn folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Takes this file as standard input.
    pub(crate) fn stdin(mut self, file: File) -> Self {
        self.command.stdin(file);
        self
    }

    /// The command itself, for what needs its pipes.
    pub(crate) fn into_inner(self) -> Command {
        self.command
    }

    /// The command line, for messages.
    pub(crate) fn line(&self) -> String {
        let mut line = self.command.get_program().to_string_lossy().into_owned();
        for argument in self.command.get_args() {
            line.push(' ');
            line.push_str(&argument.to_string_lossy());
        }
        line
    }

    /// Runs it silently and gives back what it printed; a failure tells its last words.
    pub(crate) fn output(mut self) -> Result<Vec<u8>> {
        let line = self.line();
        let Output { status, stdout, stderr } = self.command.output().context(&line)?;
        if status.success() {
            return Ok(stdout);
        }
        let said = if stderr.is_empty() { &stdout } else { &stderr };
        Err(Error::new(format!("{line}: {status}\n{}", tail(&String::from_utf8_lossy(said), 20))))
    }

    /// As [`Cmd::output`], as text.
    pub(crate) fn text(self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.output()?).into_owned())
    }

    /// Runs it silently.
    pub(crate) fn quiet(self) -> Result<()> {
        self.output().map(|_| ())
    }

    /// Runs it with our own input and output, after printing the command line.
    pub(crate) fn show(mut self) -> Result<()> {
        let line = self.line();
        println!("$ {line}");
        let status = self.command.status().context(&line)?;
        if status.success() { Ok(()) } else { Err(Error::new(format!("{line}: {status}"))) }
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
