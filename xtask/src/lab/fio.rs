//! fio for guests: Debian's own program, out of its package, on a small disk with the libraries that it uses.
//!
//! It is linked against the clients of Ceph, Gluster, NBD, RDMA and persistent memory as well, tens of mebibytes that the loader would read and
//! relocate at each start. Our jobs call none of them. One library of ours has their names and their symbols and takes
//! their place; who calls one of its functions is ended by a trap.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cmd::Cmd;
use crate::error::{Context, Error, Result, copy, write};
use crate::lab::filesystem;
use crate::lab::machine::empty_folder;
use crate::setup;

/// What fio's own package depends on and what its jobs really use: names begin so, whatever a release appends.
const USED: [&str; 4] = ["libc6", "libaio1", "libnuma1", "zlib1g"];
/// Room on the disk. The file is sparse.
const SIZE: u64 = 16 << 20;
/// The library that takes the place of the others.
const ABSENT: &str = "libabsent.so";

/// The disk: `bin/fio`, and its libraries and their loader in `lib`. Made once in `cache`.
pub(crate) fn disk(cache: &Path) -> Result<PathBuf> {
    let disk = cache.join("fio.img");
    if disk.is_file() {
        return Ok(disk);
    }
    let tree = cache.join("fio.tree");
    empty_folder(&tree)?;
    let program = tree.join("bin/fio");
    copy(&setup::unpacked(cache, "fio")?.join("usr/bin/fio"), &program)?;
    let libraries = tree.join("lib");
    let needs = Needs::of(&program)?;
    let mut there = BTreeMap::new();
    for package in setup::dependencies("fio")? {
        if USED.iter().any(|used| package.starts_with(used)) {
            shared_objects(&setup::unpacked(cache, &package)?, &mut there)?;
        }
    }
    let mut absent = BTreeSet::new();
    let mut known = BTreeSet::new();
    for name in needs.libraries.iter().map(String::as_str).chain(["ld-linux-x86-64.so.2"]) {
        let Some(file) = there.get(name) else {
            absent.insert(name.to_owned());
            continue;
        };
        copy(file, &libraries.join(name))?;
        known.extend(Needs::of(file)?.defined);
    }
    make_absent(&needs, &absent, &known, &libraries)?;
    // Written under another name first: a run that was ended leaves no half disk that the next one takes.
    let part = cache.join("fio.part");
    filesystem::make(&part, SIZE, &tree)?;
    fs::rename(&part, &disk).context(disk.display())?;
    fs::remove_dir_all(&tree).context(tree.display())?;
    Ok(disk)
}

/// The shared objects of an unpacked package that the loader finds, by name. (Converters between character sets lie deeper.)
fn shared_objects(tree: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let folders = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|folder| tree.join(folder));
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        for entry in fs::read_dir(folder).context(folder.display())? {
            let path = entry?.path();
            if let Some(name) = path.file_name().and_then(|name| name.to_str())
                && path.is_file()
            {
                found.insert(name.to_owned(), path);
            }
        }
    }
    Ok(())
}

/// What a program or library wants of others, and what it has to give.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    libraries: Vec<String>,
    /// The libraries whose versions of symbols are asked for, by version.
    versions: BTreeMap<String, String>,
    /// Symbols without a definition, with their versions where they have one.
    undefined: BTreeSet<(String, Option<String>)>,
    defined: BTreeSet<String>,
}

impl Needs {
    fn of(file: &Path) -> Result<Self> {
        let ask = |what: &str| Cmd::new("readelf").args(["-W", what]).arg(file).text();
        Ok(Self::read(&ask("--dynamic")?, &ask("--version-info")?, &ask("--dyn-syms")?))
    }

    /// From what `readelf` says.
    fn read(dynamic: &str, versions: &str, symbols: &str) -> Self {
        let mut needs = Self::default();
        for line in dynamic.lines().filter(|line| line.contains("(NEEDED)")) {
            let name = line.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
            needs.libraries.extend(name.map(|(name, _)| name.to_owned()));
        }
        let mut library = String::new();
        for line in versions.lines().skip_while(|line| !line.starts_with("Version needs")) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let after = |word: &str| Some(words[words.iter().position(|found| *found == word)? + 1]);
            if let Some(file) = after("File:") {
                file.clone_into(&mut library);
            } else if let Some(version) = after("Name:") {
                needs.versions.insert(version.to_owned(), library.clone());
            }
        }
        for line in symbols.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [number, _, _, kind, binding, _, section, name, ..] = words[..] else { continue };
            if !number.starts_with(|first: char| first.is_ascii_digit()) {
                continue;
            }
            let (name, version) = match name.split_once('@') {
                Some((name, version)) => (name, Some(version.trim_start_matches('@').to_owned())),
                None => (name, None),
            };
            if section != "UND" {
                needs.defined.insert(name.to_owned());
            } else if kind == "FUNC" && binding == "GLOBAL" {
                needs.undefined.insert((name.to_owned(), version));
            }
        }
        needs
    }
}

/// Makes the library that stands in for those that are not there, under each of their names.
fn make_absent(
    needs: &Needs,
    absent: &BTreeSet<String>,
    known: &BTreeSet<String>,
    libraries: &Path,
) -> Result<()> {
    let (code, versions) = stand_in(needs, absent, known);
    let (source, script) = (libraries.join("absent.c"), libraries.join("absent.map"));
    write(&source, code)?;
    write(&script, versions)?;
    Cmd::new("cc")
        .args(["-shared", "-fPIC", "-nostdlib", "-O2", "-s", "-o"])
        .arg(libraries.join(ABSENT))
        .arg(&source)
        .arg(format!("-Wl,--version-script={}", script.display()))
        .quiet()?;
    for file in [source, script] {
        fs::remove_file(&file).context(file.display())?;
    }
    for name in absent {
        let link = libraries.join(name);
        std::os::unix::fs::symlink(ABSENT, &link).context(link.display())?;
    }
    Ok(())
}

/// Its source, and the script that gives its symbols their versions.
fn stand_in(needs: &Needs, absent: &BTreeSet<String>, known: &BTreeSet<String>) -> (String, String) {
    let mut code = String::new();
    let mut nodes: BTreeMap<&str, String> = BTreeMap::new();
    for (version, library) in &needs.versions {
        if absent.contains(library) {
            nodes.insert(version, String::new());
        }
    }
    for (name, version) in &needs.undefined {
        match version {
            Some(version) => match nodes.get_mut(version.as_str()) {
                Some(node) => {
                    let _ = write!(node, " {name};");
                }
                None => continue,
            },
            None if known.contains(name) => continue,
            None => {}
        }
        let _ = writeln!(code, "void {name}(void) {{ __builtin_trap(); }}");
    }
    let mut script = String::new();
    for (version, names) in nodes {
        let _ = writeln!(script, "{version} {{ global:{names} }};");
    }
    (code, script)
}

/// The magic number in front of each block that fio wrote with `--verify`.
const MAGIC: [u8; 2] = 0xacca_u16.to_le_bytes();

/// An error unless all blocks of 4 KiB are such as fio writes them.
pub(crate) fn check_written(bytes: &[u8]) -> Result<()> {
    let strange = bytes.chunks(4096).position(|block| !block.starts_with(&MAGIC));
    strange.map_or(Ok(()), |block| Err(Error::new(format!("block {block} of fio's is not as fio wrote it"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DYNAMIC: &str = " 0x01 (NEEDED)  Shared library: [librbd.so.1]\n 0x1e (FLAGS)  BIND_NOW\n";
    const VERSIONS: &str = "Version symbols section\n  1: Name: no\nVersion needs section '.gnu.version_r':\n \
        000000: Version: 1  File: libnbd.so.0  Cnt: 1\n  0x0010:   Name: LIBNBD_1.0  Flags: none  Version: 10\n \
        0x20: Version: 1  File: libc.so.6  Cnt: 1\n  0x0030:   Name: GLIBC_2.2.5  Flags: none  Version: 3\n";
    const SYMBOLS: &str = "   Num:    Value          Size Type    Bind   Vis      Ndx Name\n \
        1: 0 0 FUNC    GLOBAL DEFAULT  UND nbd_close@LIBNBD_1.0 (10)\n \
        2: 0 0 FUNC    GLOBAL DEFAULT  UND puts@GLIBC_2.2.5 (3)\n \
        3: 0 0 FUNC    GLOBAL DEFAULT  UND rbd_open\n \
        4: 0 0 FUNC    GLOBAL DEFAULT  UND inflate\n \
        5: 0 0 NOTYPE  WEAK   DEFAULT  UND __gmon_start__\n \
        6: 7 8 FUNC    GLOBAL DEFAULT   15 fio_init\n";

    #[test]
    fn what_a_program_needs_is_read() {
        let needs = Needs::read(DYNAMIC, VERSIONS, SYMBOLS);
        assert_eq!(needs.libraries, ["librbd.so.1"]);
        assert_eq!(needs.versions["LIBNBD_1.0"], "libnbd.so.0");
        assert_eq!(needs.versions.len(), 2);
        assert_eq!(needs.undefined.len(), 4);
        assert_eq!(needs.defined, ["fio_init".to_owned()].into());
    }

    #[test]
    fn the_stand_in_has_what_the_absent_libraries_had() {
        let needs = Needs::read(DYNAMIC, VERSIONS, SYMBOLS);
        let absent = ["librbd.so.1", "libnbd.so.0"].map(str::to_owned).into();
        let (code, script) = stand_in(&needs, &absent, &["inflate".to_owned()].into());
        assert_eq!(script, "LIBNBD_1.0 { global: nbd_close; };\n");
        let functions: Vec<&str> = code.lines().filter_map(|line| line.split(['(', ' ']).nth(1)).collect();
        assert_eq!(functions, ["nbd_close", "rbd_open"]);
    }

    #[test]
    fn blocks_that_fio_did_not_write_are_found() {
        let mut bytes = vec![0; 8192];
        for block in bytes.chunks_mut(4096) {
            block[..2].copy_from_slice(&MAGIC);
        }
        assert!(check_written(&bytes).is_ok());
        bytes[4096] = 0;
        assert_eq!(check_written(&bytes).unwrap_err().to_string(), "block 1 of fio's is not as fio wrote it");
    }
}
