//! The contract of iovirt: requests, back-ends, stages, guest memory, workers and pipelines.

pub mod dma;
