//! The servers: their command lines, starting and stopping them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use clap::ValueEnum;
use vhost_user_driver::options::feature;
use vhost_user_driver::{BlkDriver, BlkQueue, Options, Session, sys};

use super::files::{Files, open};
use super::floor::{Floor, Wakes};
use super::points::Target;
use crate::cmd::{self, Cmd};
use crate::error::{Context, Error, Result};

/// Who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Family {
    /// QEMU's storage daemon.
    Qsd,
    /// Our daemon, the example `vhost-user`.
    Iovirt,
    /// A device in a thread of this program.
    Floor,
}

/// What makes a server of a family.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// QEMU's, with this file engine and these options of its I/O thread.
    Qsd { aio: &'static str, thread: &'static str },
    /// Ours, with these arguments.
    Iovirt(&'static [&'static str]),
    /// The floor.
    Floor(Wakes),
}

/// A server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Server {
    /// What it is called in tables.
    pub label: &'static str,
    /// What it serves.
    pub target: Target,
    kind: Kind,
}

const fn qsd(target: Target, label: &'static str, aio: &'static str, thread: &'static str) -> Server {
    Server { label, target, kind: Kind::Qsd { aio, thread } }
}

const fn iovirt(target: Target, label: &'static str, arguments: &'static [&'static str]) -> Server {
    Server { label, target, kind: Kind::Iovirt(arguments) }
}

const fn floor(target: Target, label: &'static str, wakes: Wakes) -> Server {
    Server { label, target, kind: Kind::Floor(wakes) }
}

const SLEEPING: &[&str] = &["--poll-us", "0"];

/// All servers. QEMU's are those that were quickest in some column of a larger field.
#[rustfmt::skip]
const SERVERS: &[Server] = &[
    qsd(Target::Null, "QEMU, polls", "", ""),
    qsd(Target::Null, "QEMU, sleeps", "", ",poll-max-ns=0"),
    iovirt(Target::Null, "iovirt, sleeps", SLEEPING),
    iovirt(Target::Null, "iovirt", &[]),
    floor(Target::Null, "floor: ring only, sleeps", Wakes::Sleeping),
    floor(Target::Null, "floor: ring only, polls", Wakes::Polling),

    qsd(Target::Tmpfs, "QEMU, io_uring", "io_uring", ""),
    qsd(Target::Tmpfs, "QEMU, threads", "threads", ""),
    iovirt(Target::Tmpfs, "iovirt, sleeps", SLEEPING),
    iovirt(Target::Tmpfs, "iovirt", &[]),
    floor(Target::Tmpfs, "floor: pread/pwrite, sleeps", Wakes::Sleeping),
    floor(Target::Tmpfs, "floor: pread/pwrite, polls", Wakes::Polling),

    qsd(Target::Direct, "QEMU, native", "native", ""),
    qsd(Target::Direct, "QEMU, io_uring", "io_uring", ""),
    iovirt(Target::Direct, "iovirt, sleeps", SLEEPING),
    iovirt(Target::Direct, "iovirt", &[]),
    floor(Target::Direct, "floor: pread/pwrite, sleeps", Wakes::Sleeping),
    floor(Target::Direct, "floor: pread/pwrite, polls", Wakes::Polling),
];

/// Ours, which every target has: as it comes first.
pub(crate) const OURS: [Ours; 2] = [
    Ours { label: "iovirt", sentence: "Our daemon as it comes" },
    Ours { label: "iovirt, sleeps", sentence: "Our daemon with `--poll-us 0`" },
];

/// One of ours, with a sentence's beginning for it.
#[derive(Debug)]
pub(crate) struct Ours {
    pub label: &'static str,
    pub sentence: &'static str,
}

/// The servers of a target that belong to these families.
pub(crate) fn of(target: Target, families: &[Family]) -> impl Iterator<Item = Server> {
    SERVERS
        .iter()
        .copied()
        .filter(move |server| server.target == target && families.contains(&server.family()))
}

/// Of the servers of a target, those that are compared by their queues: QEMU's as it comes, and ours that sleeps, as its
/// clients sleep on the same processors.
pub(crate) fn with_queues(target: Target, families: &[Family]) -> impl Iterator<Item = Server> {
    of(target, families).filter(|server| match server.kind {
        Kind::Qsd { aio, thread } => aio != "threads" && thread.is_empty(),
        Kind::Iovirt(arguments) => arguments == SLEEPING,
        Kind::Floor(_) => false,
    })
}

/// The family of a label.
pub(crate) fn family(label: &str) -> Option<Family> {
    SERVERS.iter().find(|server| server.label == label).map(Server::family)
}

/// Where and with whom servers run.
#[derive(Debug)]
pub(crate) struct Place {
    /// The server's processor.
    pub server_cpu: usize,
    /// What commands begin with, so that they have their processor and their priority.
    pub prefix: Vec<String>,
    /// Our daemon.
    pub daemon: PathBuf,
    /// A folder for sockets and what servers say.
    pub folder: PathBuf,
}

/// A server at work, and the client's end.
#[derive(Debug)]
pub(crate) struct Running {
    /// The client's queues.
    queues: Vec<BlkQueue>,
    work: Work,
}

#[derive(Debug)]
enum Work {
    /// The connection lasts as long as this does.
    Process {
        process: Process,
        _session: Session,
    },
    Thread(Floor),
}

/// A server's process, which ends with this; and the file of what it says.
#[derive(Debug)]
struct Process {
    child: Child,
    words: PathBuf,
}

impl Process {
    /// The last that it said.
    fn last_words(&self) -> String {
        cmd::tail(&fs::read_to_string(&self.words).unwrap_or_default(), 10)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Its place in the table.
    fn number(&self) -> usize {
        SERVERS.iter().position(|server| server.label == self.label).unwrap_or(SERVERS.len())
    }

    /// Whether it costs nothing while nobody asks for anything, so that it can stand beside another that is measured.
    pub(crate) fn rests(&self) -> bool {
        self.family() != Family::Floor
    }

    fn family(&self) -> Family {
        match self.kind {
            Kind::Qsd { .. } => Family::Qsd,
            Kind::Iovirt(_) => Family::Iovirt,
            Kind::Floor(_) => Family::Floor,
        }
    }

    /// Starts it and connects to it.
    pub(crate) fn start(&self, place: &Place, files: &Files, options: &Options) -> Result<Running> {
        if let Kind::Floor(wakes) = self.kind {
            let file = files.path(self.target).map(|path| open(path, self.target)).transpose()?;
            let (floor, queue) = Floor::start(wakes, file, options, place.server_cpu)?;
            return Ok(Running { queues: vec![queue], work: Work::Thread(floor) });
        }
        let socket = place.folder.join(format!("socket-{}", self.number()));
        if socket.exists() {
            fs::remove_file(&socket).context(socket.display())?;
        }
        let words = place.folder.join(format!("server-{}.log", self.number()));
        let said = File::create(&words).context(words.display())?;
        let arguments = self.command(place, files, &socket, options.queues);
        let mut command = Cmd::new(&arguments[0]).args(&arguments[1..]).into_inner();
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn().context(self.label)?;
        let process = Process { child, words };
        match connect(&socket, options) {
            Ok(BlkDriver { session, queues }) => {
                Ok(Running { queues, work: Work::Process { process, _session: session } })
            }
            Err(error) => {
                Err(Error::new(format!("{}: {error}\n{}", arguments.join(" "), process.last_words())))
            }
        }
    }

    /// Its command line. Not for the floor, which has none.
    fn command(&self, place: &Place, files: &Files, socket: &Path, queues: u16) -> Vec<String> {
        let mut line = place.prefix.clone();
        let socket = socket.display();
        match self.kind {
            Kind::Qsd { aio, thread } => line.extend([
                "qemu-storage-daemon".to_owned(),
                "--object".to_owned(),
                format!("iothread,id=io{thread}"),
                "--blockdev".to_owned(),
                self.qsd_node(aio, files),
                "--export".to_owned(),
                format!(
                    "type=vhost-user-blk,id=e,node-name=d,addr.type=unix,addr.path={socket},writable=on,iothread=io,\
                     num-queues={queues}"
                ),
            ]),
            Kind::Iovirt(arguments) => {
                line.push(place.daemon.display().to_string());
                line.extend(["--socket".to_owned(), socket.to_string()]);
                line.extend(["--device".to_owned(), self.pipeline(files, queues)]);
                line.extend(arguments.iter().map(ToString::to_string));
            }
            Kind::Floor(_) => {}
        }
        line
    }

    fn qsd_node(&self, aio: &str, files: &Files) -> String {
        match files.path(self.target) {
            None => format!("null-co,node-name=d,size={},read-zeroes=off", files.bytes()),
            Some(path) => {
                let direct = if self.target == Target::Direct { ",cache.direct=on" } else { "" };
                format!("driver=file,node-name=d,filename={},locking=off,aio={aio}{direct}", path.display())
            }
        }
    }

    fn pipeline(&self, files: &Files, queues: u16) -> String {
        match files.path(self.target) {
            None => format!("virtio-blk,queues={queues} -> null,size={},fill=off", files.bytes()),
            Some(path) => {
                let direct = if self.target == Target::Direct { ",direct=on" } else { "" };
                format!(
                    "virtio-blk,queues={queues} -> file,path={},lock=off,cache=write-back{direct}",
                    path.display()
                )
            }
        }
    }
}

/// Connects. Without indirect descriptors the ring would have no room for the largest depth.
fn connect(socket: &Path, options: &Options) -> Result<BlkDriver> {
    let driver = BlkDriver::connect(socket, options).context("connecting")?;
    if driver.session.features() & feature::INDIRECT_DESC == 0 {
        return Err(Error::new("the server offers no indirect descriptors"));
    }
    if driver.queues.len() != usize::from(options.queues) {
        return Err(Error::new(format!("{} queues, not {}", driver.queues.len(), options.queues)));
    }
    Ok(driver)
}

impl Running {
    /// Processor time that the server has used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.work.cpu()
    }

    /// The client's queues, and the server's clock.
    pub(crate) fn parts(&mut self) -> (&mut [BlkQueue], impl Fn() -> Result<Duration> + Sync + '_) {
        (&mut self.queues, || self.work.cpu())
    }

    /// The process, if it is one.
    pub(crate) fn process(&self) -> Option<u32> {
        match &self.work {
            Work::Process { process, .. } => Some(process.child.id()),
            Work::Thread(_) => None,
        }
    }

    /// Ends it; a process by force.
    pub(crate) fn stop(self) -> Result<()> {
        match self.work {
            Work::Process { .. } => Ok(()),
            Work::Thread(floor) => floor.stop(),
        }
    }

    /// An error of the client's, with what the server said last.
    pub(crate) fn explain(&self, error: &Error) -> Error {
        match &self.work {
            Work::Process { process, .. } => Error::new(format!("{error}\n{}", process.last_words())),
            Work::Thread(_) => Error::new(error.to_string()),
        }
    }
}

impl Work {
    fn cpu(&self) -> Result<Duration> {
        match self {
            Self::Process { process, .. } => {
                sys::time_of_process(process.child.id() as i32).context("the server's clock")
            }
            Self::Thread(floor) => floor.cpu(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique_for_a_target_and_have_one_family() {
        for target in Target::ALL {
            let all = [Family::Qsd, Family::Iovirt, Family::Floor];
            let mut labels: Vec<_> = of(target, &all).map(|server| server.label).collect();
            for server in of(target, &all) {
                assert_eq!(family(server.label), Some(server.family()));
            }
            assert_eq!(of(target, &[Family::Floor]).count(), 2);
            let ours: Vec<_> = of(target, &[Family::Iovirt]).map(|server| server.label).collect();
            assert!(OURS.iter().all(|own| ours.contains(&own.label)) && ours.len() == OURS.len());
            let count = labels.len();
            labels.sort_unstable();
            labels.dedup();
            assert_eq!(labels.len(), count);
        }
    }
}
