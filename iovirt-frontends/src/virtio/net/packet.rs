//! The header in front of a frame (VIRTIO 1.2, section 5.1.6).

use iovirt_core::dma::SgList;
use iovirt_core::request::net::Offload;

/// Length of `struct virtio_net_hdr_v1` in bytes: the same with and without mergeable buffers since version 1.
pub(super) const HEADER_LEN: usize = 12;

/// The header of a frame that lies in so many of the guest's buffers.
#[inline]
pub(super) fn receive_header(buffers: u16, offload: Option<&Offload>) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    if let Some(offload) = offload {
        header[..Offload::LEN].copy_from_slice(&offload.to_bytes());
        header[Offload::LEN..].copy_from_slice(&buffers.to_le_bytes());
        return header;
    }
    // With the two bytes before it, so that the copy reads no more at once than was written at once.
    header[8..].copy_from_slice(&(u32::from(buffers) << 16).to_le_bytes());
    header
}

/// Moves a frame that the guest sends into `frame`, which is empty, and gives the fields of its header; `None` where the
/// header is not whole, there is no frame behind it, or the frame has more pieces than `frame` takes.
#[inline]
pub(super) fn take_frame(readable: &mut SgList, frame: &mut SgList) -> Option<Offload> {
    let mut header = [0; Offload::LEN];
    let len = readable.len().checked_sub(HEADER_LEN as u64).filter(|&len| len > 0)?;
    readable.copy_to(0, &mut header).ok()?;
    if readable.as_iovecs().len() == 1 {
        readable.slice_into(HEADER_LEN as u64, len, frame).ok()?;
    } else {
        readable.trim_front(HEADER_LEN as u64);
        frame.swap_segments(readable).ok()?;
    }
    Some(Offload::from_bytes(header))
}
