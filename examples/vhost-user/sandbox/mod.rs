//! What the daemon gives up once its files are open, so that a monitor or a guest that takes it over gains little.
//!
//! | | what | where |
//! |---|---|---|
//! | `files` | Landlock: paths, TCP ports, abstract sockets and signals | each thread that is started later, so it comes before the first |
//! | `calls` | seccomp: system calls | all threads at once, so it comes last |
//!
//! Both imply `PR_SET_NO_NEW_PRIVS`. Neither needs a privilege. A [`Policy`] says what the devices still need.
//!
//! Seccomp does not see what an io_uring does; Landlock does, as a ring opens a file with the rights of the thread that made it. So where
//! Landlock is missing, code that was put into this process could open files through a ring.

mod calls;
mod files;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use iovirt::describe::{Chain, StageSpec};

use crate::error::Failure;
use crate::options::Place;

/// The port of an NBD server, where none is given.
const NBD_PORT: u16 = 10809;

/// What the devices need once their files are open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Directories beneath which files may be opened.
    pub(crate) allowed: Vec<PathBuf>,
    /// Directories in which sockets are made, and removed at the end.
    pub(crate) sockets: Vec<PathBuf>,
    /// TCP ports that may be connected to.
    pub(crate) ports: Vec<u16>,
    /// Whether Unix sockets may be connected to.
    pub(crate) unix: Connect,
    /// Whether names of hosts may have to be looked up.
    pub(crate) names: Names,
}

/// Whether something may be connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Connect {
    #[default]
    Never,
    Allowed,
}

/// How servers are named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Names {
    /// By their addresses.
    #[default]
    Addresses,
    /// By names that must be looked up.
    LookedUp,
}

impl Policy {
    /// What these devices need. `own` are further sockets of this process.
    pub(crate) fn of<'a>(
        places: &'a [Place],
        own: impl Iterator<Item = &'a Path>,
        allowed: &[PathBuf],
    ) -> Self {
        let mut policy = Self { allowed: allowed.to_vec(), ..Self::default() };
        for path in places.iter().map(|place| &*place.socket).chain(own) {
            let folder = match path.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
                _ => PathBuf::from("."),
            };
            if !policy.sockets.contains(&folder) {
                policy.sockets.push(folder);
            }
        }
        for place in places {
            policy.add_chain(&place.description.below);
        }
        policy
    }

    fn add_chain(&mut self, chain: &Chain) {
        self.add_backend(&chain.backend.stage);
        for branch in &chain.backend.branches {
            self.add_chain(branch);
        }
    }

    /// Most have all that they need open. An NBD server is connected to once for each queue.
    fn add_backend(&mut self, stage: &StageSpec) {
        if stage.name() != "nbd" {
            return;
        }
        let Some(host) = stage.get("host") else {
            self.unix = Connect::Allowed;
            return;
        };
        self.ports.push(stage.get("port").and_then(|port| port.parse().ok()).unwrap_or(NBD_PORT));
        if host.parse::<IpAddr>().is_err() {
            self.names = Names::LookedUp;
        }
    }
}

/// How far the sandbox reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it.
    Full,
    /// What the kernel offers; this is missing.
    Partial(String),
}

/// The first half: paths and ports. From now on, for this thread and those that it starts.
pub(crate) fn close_files(policy: &Policy) -> Result<Extent, Failure> {
    for path in &policy.allowed {
        if !path.is_dir() {
            let reason = "there is no such directory".to_owned();
            return Err(Failure::Allow { path: path.clone(), reason });
        }
    }
    files::restrict(policy).map_err(|error| Failure::Sandbox(format!("Landlock: {error}")))
}

/// The second half: system calls. From now on, for all threads.
pub(crate) fn close_calls(policy: &Policy) -> Result<(), Failure> {
    calls::restrict(policy).map_err(|error| Failure::Sandbox(format!("seccomp: {error}")))
}
