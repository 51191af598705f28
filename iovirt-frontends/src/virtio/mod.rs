//! Virtio, after *Virtual I/O Device (VIRTIO) Version 1.2*; sections are cited from there.

pub mod queue;
