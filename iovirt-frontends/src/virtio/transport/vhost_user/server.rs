//! The socket: one front-end after the other.

use super::device::VhostUserDevice;
use super::session::SessionEnd;
use iovirt_core::dma::ShrinkWatch;
use iovirt_core::log::LogLimiter;
use std::fs::Permissions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How long requests in flight may take at the end, unless [`VhostUserServer::with_patience`] says otherwise.
const PATIENCE: Duration = Duration::from_secs(30);

const STOP: u64 = 0;
const SOCKET: u64 = 1;
const SHRUNK: u64 = 2;

/// Stops whoever waits for it, from any thread and for good.
#[derive(Clone, Debug)]
pub struct Stopper {
    event: Arc<EventFd>,
    patience: Duration,
}

impl Stopper {
    /// One that has not stopped. A session that is stopped waits at most that long for requests in flight.
    ///
    /// # Errors
    /// Where the host has no descriptor left.
    pub fn new(patience: Duration) -> io::Result<Self> {
        Ok(Self { event: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?), patience })
    }

    /// Stops.
    pub fn stop(&self) {
        // It can only fail when the counter is full, and then it has stopped. It is never read, so every waiter sees it.
        let _ = self.event.write(1);
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }
}

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    /// It was stopped.
    Stop,
    /// Something came over the socket.
    Socket,
    /// The other end is gone, and what it sent last may be there still.
    Hangup,
    /// Somebody touched memory whose file the front-end has shortened.
    Shrunk,
    /// Nothing within the time.
    Nothing,
}

/// Waits for a socket, and for the stop.
#[derive(Debug)]
pub(super) struct Waiter {
    epoll: Epoll,
}

impl Waiter {
    pub(super) fn new(stopper: &Stopper, socket: &impl AsRawFd) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let socket_events = EventSet::IN | EventSet::READ_HANG_UP;
        for (fd, events, data) in
            [(stopper.event.as_raw_fd(), EventSet::IN, STOP), (socket.as_raw_fd(), socket_events, SOCKET)]
        {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, data))?;
        }
        Ok(Self { epoll })
    }

    /// Waits for that watch too.
    pub(super) fn watch(&self, watch: &ShrinkWatch) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, SHRUNK);
        self.epoll.ctl(ControlOperation::Add, watch.as_raw_fd(), event)
    }

    /// Waits at most that long, or for ever.
    pub(super) fn wait(&self, limit: Option<Duration>) -> io::Result<Ready> {
        let mut events = [EpollEvent::default(); 3];
        let timeout = limit.map_or(-1, |limit| i32::try_from(limit.as_millis()).unwrap_or(i32::MAX));
        let count = loop {
            match self.epoll.wait(timeout, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                waited => break waited?,
            }
        };
        let events = &events[..count];
        for (data, ready) in [(STOP, Ready::Stop), (SHRUNK, Ready::Shrunk)] {
            if events.iter().any(|event| event.data() == data) {
                return Ok(ready);
            }
        }
        let gone = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
        Ok(match events.first() {
            Some(event) if event.event_set().intersects(gone) => Ready::Hangup,
            Some(_) => Ready::Socket,
            None => Ready::Nothing,
        })
    }
}

/// Listens on a Unix socket, and serves one front-end after the other. The socket is gone with this value.
///
/// ```no_run
/// # fn example(disk: std::sync::Arc<dyn iovirt_frontends::virtio::VirtioDevice>) -> Result<(), Box<dyn std::error::Error>> {
/// use iovirt_core::{WorkerConfig, WorkerThread};
/// use iovirt_frontends::virtio::transport::vhost_user::{VhostUserDevice, VhostUserServer};
/// use std::sync::Arc;
///
/// let worker = WorkerThread::spawn("io", WorkerConfig::default())?;
/// let device = Arc::new(VhostUserDevice::new(disk, &[worker.handle().clone()])?);
/// let server = VhostUserServer::bind("disk.sock".as_ref(), device)?;
/// server.run()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct VhostUserServer {
    path: PathBuf,
    listener: UnixListener,
    device: Arc<VhostUserDevice>,
    stopper: Stopper,
    log: LogLimiter,
    leaves: LogLimiter,
}

impl VhostUserServer {
    /// A socket at `path` that is its owner's alone (mode 600). One that a dead process left behind is replaced.
    ///
    /// # Errors
    /// What the host says, such as `AddrInUse` where somebody listens there, or something else lies there.
    pub fn bind(path: &Path, device: Arc<VhostUserDevice>) -> io::Result<Self> {
        Self::with_patience(path, device, PATIENCE)
    }

    /// The same; a session that is stopped waits at most that long for requests in flight.
    ///
    /// # Errors
    /// As [`VhostUserServer::bind`].
    pub fn with_patience(path: &Path, device: Arc<VhostUserDevice>, patience: Duration) -> io::Result<Self> {
        let stopper = Stopper::new(patience)?;
        remove_dead(path)?;
        let listener = UnixListener::bind(path)?;
        let (log, leaves) = (LogLimiter::default(), LogLimiter::default());
        let server = Self { path: path.to_owned(), listener, device, stopper, log, leaves };
        std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
        server.listener.set_nonblocking(true)?;
        Ok(server)
    }

    /// Stops the server from any thread.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// The device.
    pub fn device(&self) -> &Arc<VhostUserDevice> {
        &self.device
    }

    /// Serves until it is stopped. A front-end that breaks the protocol is disconnected and logged.
    ///
    /// # Errors
    /// Where the host fails to poll or to accept, which it does only when it is out of descriptors.
    pub fn run(&self) -> io::Result<()> {
        let waiter = Waiter::new(&self.stopper, &self.listener)?;
        loop {
            match waiter.wait(None)? {
                Ready::Stop => return Ok(()),
                Ready::Nothing | Ready::Shrunk => continue,
                Ready::Socket | Ready::Hangup => {}
            }
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if is_passing(&error) => continue,
                Err(error) => return Err(error),
            };
            let device = self.device.name();
            match self.device.serve(stream, &self.stopper) {
                Ok(SessionEnd::Stopped) => return Ok(()),
                Ok(SessionEnd::Left) => {
                    // One that comes and goes in a loop is nothing to fill the log with.
                    if let Some(more) = self.leaves.admit() {
                        tracing::info!(device, more, "the front-end left");
                    }
                }
                Err(error) => {
                    if let Some(more) = self.log.admit() {
                        tracing::warn!(device, more, %error, "a front-end was disconnected");
                    }
                }
            }
        }
    }
}

/// Whether accepting failed for the client's sake.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), ConnectionAborted | Interrupted | WouldBlock)
}

impl Drop for VhostUserServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes a socket that a process left behind, and nothing else.
fn remove_dead(path: &Path) -> io::Result<()> {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && UnixStream::connect(path).is_err_and(refused) {
        return std::fs::remove_file(path);
    }
    Ok(())
}
