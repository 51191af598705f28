//! apt: installing as root, and unpacking packages into our own folder, which needs no root.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::cmd::{self, Cmd};
use crate::error::{Context, Error, Result, write};

/// Whether this system has apt.
pub(crate) fn is_debian() -> bool {
    cmd::find("apt-get").is_some()
}

/// Whether we may install packages.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|data| data.uid() == 0)
}

/// Installs packages from the system's own sources. Where these cannot be installed beside what is there already (a
/// part of QEMU came from the backports), takes them from the backports of the same release.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    println!("installing {}", packages.join(" "));
    if plan(&[], packages).is_err() {
        apt_get(&[]).arg("update").quiet()?;
    }
    let Err(refused) = plan(&[], packages) else {
        return do_install(&[], packages);
    };
    let backports = backports().context(format_args!("{refused}\nand no backports either"))?;
    do_install(&backports, packages)
}

/// The options for every installation: never remove anything.
const INSTALL: [&str; 4] = ["install", "-y", "--no-install-recommends", "--no-remove"];

fn apt_get(options: &[String]) -> Cmd {
    Cmd::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
        .args(options)
}

fn plan(options: &[String], packages: &[&str]) -> Result<()> {
    apt_get(options).arg("-s").args(INSTALL).args(packages).quiet()
}

fn do_install(options: &[String], packages: &[&str]) -> Result<()> {
    apt_get(options).args(INSTALL).args(packages).quiet()
}

/// Where the packages of this system's release come from.
#[derive(Debug)]
pub(crate) struct Source {
    /// The address under which the release is.
    pub mirror: String,
    /// The release's code name.
    pub release: String,
}

/// Where this system's own packages come from.
pub(crate) fn source() -> Result<Source> {
    let targets = Cmd::new("apt-get").args(["indextargets", "--format", "$(REPO_URI) $(CODENAME)"]).text()?;
    let about = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let release = about
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .ok_or_else(|| Error::new("no VERSION_CODENAME in /etc/os-release"))?;
    let mirror = targets
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(_, suite)| *suite == release)
        .map(|(mirror, _)| mirror)
        .ok_or_else(|| Error::new(format!("no package source for {release}")))?;
    Ok(Source { mirror: mirror.to_owned(), release: release.to_owned() })
}

/// Options that make apt see the backports for one call, from lists of our own: the system's sources stay as they are.
fn backports() -> Result<Vec<String>> {
    let Source { mirror, release } = source()?;

    let folder = cmd::target().join("lab/apt");
    let list = folder.join("sources.list");
    let mut sources = fs::read_to_string("/etc/apt/sources.list").unwrap_or_default();
    let line = format!(
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {release}-backports main\n"
    );
    sources.push('\n');
    sources.push_str(&line);
    write(&list, sources)?;
    let lists = folder.join("lists");
    fs::create_dir_all(lists.join("partial")).context(lists.display())?;
    let options = vec![
        "-o".to_owned(),
        format!("Dir::Etc::SourceList={}", list.display()),
        "-o".to_owned(),
        format!("Dir::State::Lists={}", lists.display()),
        "-o".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
        "-t".to_owned(),
        format!("{release}-backports"),
    ];
    println!("taking them from {release}-backports");
    apt_get(&options).arg("update").quiet()?;
    Ok(options)
}

/// The contents of a Debian package, downloaded once and unpacked into `cache`; nothing is installed.
pub(crate) fn unpacked(cache: &Path, package: &str) -> Result<PathBuf> {
    let content = cache.join(package);
    if content.is_dir() {
        return Ok(content);
    }
    println!("fetching {package}");
    let work = cache.join(format!("{package}.part"));
    let _ = fs::remove_dir_all(&work);
    let tree = work.join("tree");
    fs::create_dir_all(&tree).context(tree.display())?;
    let download = || {
        Cmd::new("apt-get")
            .args(["-q", "-o", "APT::Sandbox::User=root", "download", package])
            .folder(&work)
            .quiet()
    };
    if let Err(error) = download() {
        if !is_root() {
            return Err(Error::new(format!(
                "{error}\nthe lists of packages may be old; run this and try again:\n    sudo apt-get update"
            )));
        }
        apt_get(&[]).arg("update").quiet()?;
        download()?;
    }
    let archive = fs::read_dir(&work)
        .context(work.display())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| Error::new(format!("apt-get download {package} left no file")))?;
    Cmd::new("dpkg").arg("-x").args([&archive, &tree]).quiet()?;
    fs::rename(&tree, &content).context(content.display())?;
    let _ = fs::remove_dir_all(&work);
    Ok(content)
}

/// The package that `package` depends on first.
pub(crate) fn points_to(package: &str) -> Result<String> {
    let first = dependencies(package)?.into_iter().next();
    first.ok_or_else(|| Error::new(format!("{package} depends on nothing")))
}

/// The packages that `package` depends on. One without any counts as unknown: the lists of packages may be missing.
pub(crate) fn dependencies(package: &str) -> Result<Vec<String>> {
    let ask = || -> Result<Vec<String>> {
        let said = Cmd::new("apt-cache").args(["depends", package]).text()?;
        let found: Vec<String> = said
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect();
        if found.is_empty() { Err(Error::new(format!("{package} depends on nothing"))) } else { Ok(found) }
    };
    ask().or_else(|error| {
        if !is_root() {
            return Err(Error::new(format!(
                "{error}\nthe lists of packages may be missing; run this and try again:\n    sudo apt-get update"
            )));
        }
        apt_get(&[]).arg("update").quiet()?;
        ask()
    })
}
