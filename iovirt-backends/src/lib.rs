//! What does the work and what sits between: back-ends and interposers for iovirt pipelines.

pub mod block;
