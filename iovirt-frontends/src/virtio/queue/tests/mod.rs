//! Tests of the split virtqueue.
