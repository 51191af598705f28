//! The stacks of the matrix: every stage over every back-end, built from descriptions, as users build them.

use iovirt::describe::Chain;
use iovirt::registry::Registry;
use iovirt_core::pipeline::BoxBackend;
use iovirt_core::request::block::BlockRequest;

/// Size of every disk of the matrix.
pub(crate) const SIZE: u64 = 1 << 20;

/// The back-ends, `IMAGE` standing for a fresh file of [`SIZE`] bytes in the folder that follows.
pub(crate) const BACKENDS: &[(&str, &str)] = &[
    ("memory,size=1M", ""),
    ("null,size=1M", ""),
    ("file,path=IMAGE,cache=write-back", "/tmp"),
    ("mirror [file,path=IMAGE | memory,size=1M]", "/dev/shm"),
    ("stripe,chunk=4K [file,path=IMAGE | memory,size=1M]", "/dev/shm"),
    ("overlay [file,path=IMAGE | memory,size=1M]", "/dev/shm"),
    ("file,path=IMAGE,inline=off", "/dev/shm"),
    ("file,path=IMAGE", "/dev/shm"),
    ("file,path=IMAGE,engine=threads,cache=write-back,inline=off", "/tmp"),
    ("file,path=IMAGE,direct=on,cache=write-back", "/tmp"),
];

/// Stages that say they change nothing.
pub(crate) const TRANSPARENT: &[&str] = &[
    "stats",
    "swappable",
    "fault",
    "delay,time=20us,jitter=50us",
    "scheduled,group=g,depth=4",
    "stats,name=upper -> swappable -> stats",
    "scheduled,group=g -> delay,time=10us -> scheduled,group=h",
];

pub(crate) fn build(text: &str, folder: &str) -> (BoxBackend<BlockRequest>, Option<tempfile::NamedTempFile>) {
    let image = (!folder.is_empty()).then(|| {
        let image = tempfile::Builder::new().prefix("iovirt-").tempfile_in(folder).unwrap();
        image.as_file().set_len(SIZE).unwrap();
        image
    });
    let path = image.as_ref().map_or(String::new(), |image| image.path().display().to_string());
    let chain: Chain = text.replace("IMAGE", &path).parse().unwrap();
    (Registry::standard().build_block(&chain).unwrap(), image)
}

/// Stages of a network that let everything pass, in the order in which it came: with `jitter`, frames would overtake each other.
pub(crate) const NET_STAGES: &[&str] = &[
    "stats",
    "fault",
    "filter",
    "delay,time=20us",
    "stats,name=upper -> filter -> stats",
    "filter -> delay,time=10us -> fault",
];

/// A back-end alone, and below each of those stages.
pub(crate) fn stacks<'a>(stages: &'a [&str], backend: &'a str) -> impl Iterator<Item = String> + 'a {
    let staged = stages.iter().map(move |stage| format!("{stage} -> {backend}"));
    std::iter::once(backend.to_owned()).chain(staged)
}
