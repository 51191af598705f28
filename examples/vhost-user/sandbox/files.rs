//! Landlock: paths, TCP ports, abstract sockets and signals.

use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, PathBeneath, PathFd, PathFdError,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use super::{Extent, Names, Policy};

/// The version up to which rights are given up: what later ones add is not among the matters of this page.
const KNOWN: ABI = ABI::V6;

/// What the host's resolver reads.
const RESOLVER: [&str; 5] =
    ["/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/gai.conf", "/etc/host.conf"];

/// Why paths could not be given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    #[error(transparent)]
    Path(#[from] PathFdError),
    #[error(transparent)]
    Ruleset(#[from] RulesetError),
}

/// Restricts this thread, and those that it starts.
pub(super) fn restrict(policy: &Policy) -> Result<Extent, FilesError> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::from_all(KNOWN))?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    let images = AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::ReadDir
        | AccessFs::Truncate
        // Of block devices.
        | AccessFs::IoctlDev;
    for path in &policy.allowed {
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, images))?;
    }
    // Where there is no such directory, whoever makes the socket says so.
    for folder in policy.sockets.iter().filter_map(|path| PathFd::new(path).ok()) {
        ruleset = ruleset.add_rule(PathBeneath::new(folder, AccessFs::MakeSock | AccessFs::RemoveFile))?;
    }
    if policy.names == Names::LookedUp {
        let read: BitFlags<AccessFs> = AccessFs::ReadFile.into();
        // Not every host has each.
        for file in RESOLVER.iter().filter_map(|path| PathFd::new(Path::new(path)).ok()) {
            ruleset = ruleset.add_rule(PathBeneath::new(file, read))?;
        }
    }
    for port in &policy.ports {
        ruleset = ruleset.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    let status = ruleset.restrict_self()?;
    Ok(match (status.ruleset, status.landlock) {
        (RulesetStatus::FullyEnforced, _) => Extent::Full,
        (RulesetStatus::PartiallyEnforced, LandlockStatus::Available { effective_abi, .. }) => {
            Extent::Partial(format!(
                "this kernel's Landlock is of version {}, and version {} gives up more",
                effective_abi as i32, KNOWN as i32
            ))
        }
        _ => Extent::Partial(
            "this kernel has no Landlock, which would keep this process from other files and ports".into(),
        ),
    })
}
