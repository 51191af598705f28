//! Against servers that we did not write, and against one that lies.

mod lies;
mod peers;

use super::*;
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::BlockRequest;
use iovirt_core::test_utils::skipped;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server in a process of its own, which goes with this.
struct Server {
    child: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts that program with the arguments that `arguments` makes of the socket's path and the folder's; `None` where it
    /// is not installed.
    fn start(program: &str, arguments: impl FnOnce(&Path, &Path) -> Vec<String>) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let mut command = Command::new(program);
        command.args(arguments(&socket, folder.path())).stdin(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            skipped(format_args!("{program} is not installed"));
            return None;
        };
        let server = Self { child, socket, _folder: folder };
        let since = Instant::now();
        while std::os::unix::net::UnixStream::connect(&server.socket).is_err() {
            assert!(since.elapsed() < Duration::from_secs(20), "{program} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(server)
    }

    fn nbdkit(rest: &[&str]) -> Option<Self> {
        Self::start("nbdkit", |socket, _| {
            let fixed = ["-f", "-U", &socket.to_string_lossy()].map(str::to_owned);
            fixed.into_iter().chain(rest.iter().map(|&word| word.to_owned())).collect()
        })
    }

    fn config(&self) -> NbdConfig {
        NbdConfig::new(NbdAddress::Unix(self.socket.clone()))
    }

    fn connect(&self) -> BoxBackend<BlockRequest> {
        BoxBackend::new(NbdBackend::connect(self.config()).expect("a connection"))
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
