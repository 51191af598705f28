//! Temporary images in place of the files that descriptions name, so that a try-out writes over nobody's data.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use iovirt::describe::{Chain, Description};
use tempfile::{NamedTempFile, TempPath};

/// Size of an image in bytes. It is sparse.
const SIZE: u64 = 256 << 20;
/// Interposers below which data lie as they were written.
const TRANSPARENT: [&str; 6] = ["stats", "fault", "delay", "filter", "scheduled", "swappable"];

/// The images of one pipeline, removed when they are dropped.
#[derive(Debug)]
pub(crate) struct Images(Vec<TempPath>);

impl Images {
    /// Puts a new image in place of every file of the pipeline.
    pub(crate) fn in_place_of_files(description: &mut Description) -> io::Result<Self> {
        let mut images = Vec::new();
        replace(&mut description.below, &mut images)?;
        Ok(Self(images))
    }

    /// The image that holds the disk's data byte for byte, where there is one.
    pub(crate) fn of_whole_disk<'a>(&'a self, description: &Description) -> Option<&'a Path> {
        let chain = &description.below;
        let plain = chain.stages.iter().all(|stage| TRANSPARENT.contains(&stage.name()));
        let file = chain.backend.stage.name() == "file";
        self.0.first().filter(|_| plain && file).map(AsRef::as_ref)
    }
}

fn replace(chain: &mut Chain, images: &mut Vec<TempPath>) -> io::Result<()> {
    let stage = &mut chain.backend.stage;
    if stage.name() == "file" {
        let image = tempfile::Builder::new().prefix("iovirt-").suffix(".img").tempfile()?;
        image.as_file().set_len(SIZE)?;
        let path = NamedTempFile::into_temp_path(image);
        *stage = stage.clone().with("path", path.to_string_lossy());
        if stage.get("readonly").is_some() {
            *stage = stage.clone().with("readonly", "off");
        }
        images.push(path);
    }
    chain.backend.branches.iter_mut().try_for_each(|branch| replace(branch, images))
}

/// The first of `blocks` blocks of the image that is not what it should be.
pub(crate) fn first_wrong<const BLOCK: usize>(
    image: &Path,
    blocks: u64,
    content: impl Fn(u64) -> [u8; BLOCK],
) -> io::Result<Option<u64>> {
    let file = std::fs::File::open(image)?;
    let mut bytes = [0; BLOCK];
    for block in 0..blocks {
        file.read_exact_at(&mut bytes, block * BLOCK as u64)?;
        if bytes != content(block) {
            return Ok(Some(block));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iovirt::registry::Registry;

    #[test]
    fn every_file_is_replaced_and_the_images_go_away() {
        let text = "virtio-blk -> stats -> mirror [file,path=a,readonly=on | stats -> file,path=b]";
        let mut description = Registry::standard().parse(text).unwrap();
        let images = Images::in_place_of_files(&mut description).unwrap();
        let text = description.to_string();
        let paths: Vec<_> = images.0.iter().map(|path| path.to_path_buf()).collect();
        assert_eq!(paths.len(), 2);
        for path in &paths {
            assert!(text.contains(&*path.to_string_lossy()) && path.exists(), "{text}");
        }
        assert!(!text.contains("readonly=on") && images.of_whole_disk(&description).is_none());
        drop(images);
        assert!(paths.iter().all(|path| !path.exists()));
    }

    #[test]
    fn a_wrong_block_is_found() {
        let mut description = Registry::standard().parse("virtio-blk -> stats -> file,path=a").unwrap();
        let images = Images::in_place_of_files(&mut description).unwrap();
        let image = images.of_whole_disk(&description).unwrap();
        assert_eq!(first_wrong(image, 10, |_| [0; 512]).unwrap(), None);
        assert_eq!(first_wrong(image, 10, |block| [u8::from(block == 7); 512]).unwrap(), Some(7));
    }
}
