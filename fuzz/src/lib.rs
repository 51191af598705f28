//! What the fuzz targets do with their input, and the seeds that they start from.
//!
//! Each module has `run`, which a target calls with any bytes, and `seeds`, which the checked-in corpus is made of. The
//! tests of this crate run every seed, and see that the files in `seeds/` are those that `seeds` gives.

pub mod blk_request;
pub mod chains;
pub mod describe;
pub mod device;
pub mod input;
pub mod mmio_registers;
pub mod msix;
pub mod nbd_replies;
pub mod net_ctrl;
pub mod net_frames;
pub mod pci_config;
pub mod pci_registers;
pub mod ring_walker;
pub mod saved_state;
pub mod vhost_user;

/// A target: its name, what it does with an input, and its seeds.
pub type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// All targets.
pub const TARGETS: [Target; 12] = [
    ("ring_walker", ring_walker::run, ring_walker::seeds),
    ("blk_request", blk_request::run, blk_request::seeds),
    ("mmio_registers", mmio_registers::run, mmio_registers::seeds),
    ("net_ctrl", net_ctrl::run, net_ctrl::seeds),
    ("net_frames", net_frames::run, net_frames::seeds),
    ("nbd_replies", nbd_replies::run, nbd_replies::seeds),
    ("msix", msix::run, msix::seeds),
    ("pci_config", pci_config::run, pci_config::seeds),
    ("pci_registers", pci_registers::run, pci_registers::seeds),
    ("describe", describe::run, describe::seeds),
    ("saved_state", saved_state::run, saved_state::seeds),
    ("vhost_user", vhost_user::run, vhost_user::seeds),
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    /// With `IOVIRT_WRITE_SEEDS` set the files are written; without, they are compared.
    #[test]
    fn the_seeds_are_checked_in_and_pass() {
        let write = std::env::var_os("IOVIRT_WRITE_SEEDS").is_some();
        for (name, run, seeds) in super::TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
            if write {
                fs::create_dir_all(&folder).unwrap();
            }
            for (number, seed) in seeds().into_iter().enumerate() {
                run(&seed);
                let file = folder.join(format!("{number:02}"));
                if write {
                    fs::write(&file, &seed).unwrap();
                }
                let found = fs::read(&file).unwrap_or_default();
                assert!(found == seed, "{name}: seed {number} is out of date: run with IOVIRT_WRITE_SEEDS=1");
            }
        }
    }
}
