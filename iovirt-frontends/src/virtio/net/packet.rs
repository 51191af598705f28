//! The header in front of a frame (VIRTIO 1.2, section 5.1.6).

use iovirt_core::dma::SgList;
use iovirt_core::request::net::Offload;

/// Length of `struct virtio_net_hdr_v1` in bytes: the same with and without mergeable buffers since version 1.
pub(super) const HEADER_LEN: usize = 12;

/// The header of a frame that lies in so many of the guest's buffers.
pub(super) fn receive_header(buffers: u16) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    header[10..].copy_from_slice(&buffers.to_le_bytes());
    header
}

/// Takes the header off a frame that the guest sends; `None` where it is not whole.
#[inline]
pub(super) fn take_header(readable: &mut SgList) -> Option<Offload> {
    let mut header = [0; Offload::LEN];
    if readable.len() < HEADER_LEN as u64 || readable.copy_to(0, &mut header).is_err() {
        return None;
    }
    readable.trim_front(HEADER_LEN as u64);
    Some(Offload::from_bytes(header))
}
