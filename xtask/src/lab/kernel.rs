//! The kernels of the lab machine and of its guests: Debian's own, as they are in the packages.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::cmd::Cmd;
use crate::error::{Context, Error, Result, read, write};
use crate::setup;

/// A series of kernels that guests run. Always the one for clouds: everything needed is in it, and it boots faster than
/// the full one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Series {
    /// That of Debian 12.
    #[value(name = "6.1")]
    V6_1,
    /// That of Debian 13, which Debian 12 has beside its own.
    #[value(name = "6.12")]
    V6_12,
}

impl Series {
    /// All of them.
    pub(crate) const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// As people call it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    /// Packages that point to the newest kernel of the series, if to any.
    fn pointers(self) -> [String; 2] {
        [format!("linux-image-{}-cloud-amd64", self.name()), NEWEST.to_owned()]
    }

    /// Whether a package holds a kernel of this series.
    fn has(self, package: &str) -> bool {
        package
            .strip_prefix("linux-image-")
            .is_some_and(|rest| rest.starts_with(&format!("{}.", self.name())))
    }
}

/// Points to the kernel for clouds that the system's own release has.
const NEWEST: &str = "linux-image-cloud-amd64";

/// An unpacked kernel package.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The compressed image, as a boot loader takes it.
    pub image: PathBuf,
    /// The uncompressed kernel, which starts without unpacking itself.
    pub elf: PathBuf,
    /// The kernel's version.
    pub release: String,
    modules: BTreeMap<String, PathBuf>,
    built_in: String,
}

/// A module of the kernel.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its name, as `modprobe` takes it.
    pub name: String,
    /// The uncompressed file.
    pub content: Vec<u8>,
}

impl Kernel {
    /// Fetches the kernel that the system's own release has into `cache`, once.
    pub(crate) fn newest(cache: &Path) -> Result<Self> {
        Self::unpacked(cache, &pointed(cache, NEWEST)?)
    }

    /// Fetches the newest kernel of a series that the system's package sources have into `cache`, once.
    pub(crate) fn of(cache: &Path, series: Series) -> Result<Self> {
        let packages = series.pointers().map(|pointer| pointed(cache, &pointer));
        let package = packages.into_iter().flatten().find(|package| series.has(package)).ok_or_else(|| {
            Error::new(format!(
                "the package sources of this system have no kernel {} for clouds: name another by --kernel",
                series.name()
            ))
        })?;
        Self::unpacked(cache, &package)
    }

    fn unpacked(cache: &Path, package: &str) -> Result<Self> {
        let tree = setup::unpacked(cache, package)?;
        let release = package.strip_prefix("linux-image-").unwrap_or(package).to_owned();
        let image = tree.join(format!("boot/vmlinuz-{release}"));
        let elf = tree.join("vmlinux");
        if !elf.is_file() {
            unpack(&image, &elf).context(format_args!("unpacking {}", image.display()))?;
        }
        // A system with a merged /usr has its modules there.
        let folder = ["lib/modules", "usr/lib/modules"]
            .iter()
            .map(|folder| tree.join(folder).join(&release))
            .find(|folder| folder.is_dir())
            .ok_or_else(|| Error::new(format!("{package} holds no modules")))?;
        let mut modules = BTreeMap::new();
        collect(&folder.join("kernel"), &mut modules)?;
        let built_in = folder.join("modules.builtin");
        let built_in = fs::read_to_string(&built_in).context(built_in.display())?;
        Ok(Self { image, elf, release, modules, built_in })
    }

    /// These modules and all that they depend on, in the order in which they can be loaded. What is built in is left
    /// out.
    pub(crate) fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut ordered = Vec::new();
        for name in names {
            self.add(name, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(&self, name: &str, ordered: &mut Vec<Module>) -> Result<()> {
        let name = plain(name);
        if ordered.iter().any(|module| module.name == name) || self.is_built_in(&name) {
            return Ok(());
        }
        let path = self
            .modules
            .get(&name)
            .ok_or_else(|| Error::new(format!("kernel {} has no module {name}", self.release)))?;
        let content = match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => Cmd::new("xz").arg("-dc").arg(path).output()?,
            Some("zst") => Cmd::new("zstd").arg("-dc").arg(path).output()?,
            _ => read(path)?,
        };
        for dependency in dependencies(&content) {
            self.add(&dependency, ordered)?;
        }
        ordered.push(Module { name, content });
        Ok(())
    }

    fn is_built_in(&self, name: &str) -> bool {
        self.built_in
            .lines()
            .filter_map(|line| line.rsplit('/').next()?.strip_suffix(".ko"))
            .any(|built_in| plain(built_in) == name)
    }
}

/// The package that another points to; asked once.
fn pointed(cache: &Path, pointer: &str) -> Result<String> {
    let known = cache.join(pointer);
    if !known.is_file() {
        write(&known, setup::points_to(pointer)?)?;
    }
    fs::read_to_string(&known).context(known.display())
}

/// The kernel writes a module's name with either dash.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn collect(folder: &Path, modules: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).context(folder.display())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, modules)?;
        } else if let Some((name, _)) = path.file_name().and_then(|name| name.to_str()?.split_once(".ko")) {
            modules.insert(plain(name), path);
        }
    }
    Ok(())
}

/// What a module says it depends on: the entry `depends=a,b` of its information section.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = &module[start + KEY.len()..];
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&value[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Unpacks the kernel out of its compressed image. Linux' boot protocol says where it lies.
fn unpack(image: &Path, elf: &Path) -> Result<()> {
    const SECTOR: usize = 512;
    let bytes = read(image)?;
    let field = |at: usize| -> Result<usize> {
        let field = bytes
            .get(at..at + 4)
            .and_then(|field| field.try_into().ok())
            .ok_or_else(|| Error::new("too short for a kernel"))?;
        Ok(u32::from_le_bytes(field) as usize)
    };
    if bytes.get(0x202..0x206) != Some(b"HdrS") {
        return Err(Error::new("no boot header"));
    }
    let setup_sectors = match bytes[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (setup_sectors + 1) * SECTOR + field(0x248)?;
    // Behind the compressed stream stands the size of what is in it.
    let end = start + field(0x24c)? - 4;
    let payload = bytes.get(start..end).ok_or_else(|| Error::new("the kernel lies outside of the image"))?;
    let program = match payload {
        [0x02, 0x21, 0x4c, 0x18, ..] => "lz4",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x1f, 0x8b, ..] => "gzip",
        _ => return Err(Error::new("compressed in an unknown way")),
    };
    let packed = elf.with_extension("packed");
    write(&packed, payload)?;
    let file = File::open(&packed).context(packed.display())?;
    let unpacked = Cmd::new(program).arg("-dc").stdin(file).output()?;
    fs::remove_file(&packed).context(packed.display())?;
    if !unpacked.starts_with(b"\x7fELF") {
        return Err(Error::new("what was in it is no ELF file"));
    }
    // Written under another name first: a run that was ended leaves no half file that the next one takes.
    let part = elf.with_extension("part");
    write(&part, unpacked)?;
    fs::rename(&part, elf).context(elf.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_belong_to_a_series() {
        assert!(Series::V6_1.has("linux-image-6.1.0-56-cloud-amd64"));
        assert!(!Series::V6_1.has("linux-image-6.12.117+deb12-cloud-amd64"));
        assert!(Series::V6_12.has("linux-image-6.12.117+deb12-cloud-amd64"));
    }

    #[test]
    fn dependencies_are_read_from_the_information_section() {
        let module = b"junk\0license=GPL\0depends=kvm,irqbypass\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["kvm", "irqbypass"]);
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }
}
