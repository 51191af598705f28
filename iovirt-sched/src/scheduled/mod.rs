//! `scheduled`: pipelines that share something below take turns in a group, in proportion to their weights.
//!
//! ```text
//! virtio-blk -> scheduled,group=array,weight=100 -> file,path=a.img
//! virtio-blk -> scheduled,group=array,weight=300 -> file,path=b.img
//! ```
//!
//! | option | default | meaning |
//! |---|---|---|
//! | `group` | required | the group that the pipeline joins |
//! | `weight` | `100` | its share, in proportion to the others of the group, 1 to 10000 |
//! | `depth` | | requests of the whole group that are below at once; 32 where nobody says |
//!
//! A group has one [scheduler](iovirt_core::IoScheduler), of a description [`Sfq`](crate::Sfq), for pipelines of any family and on
//! any number of workers. A pipeline is one flow, whatever number of queues it has.
//!
//! ```
//! use iovirt_core::pipeline::{BoxBackend, Pipeline};
//! use iovirt_core::request::block::BlockRequest;
//! use iovirt_core::scheduler::Weight;
//! use iovirt_sched::scheduled::{Groups, Scheduled, ScheduledControl};
//!
//! # fn example(disk: BoxBackend<BlockRequest>) -> Result<(), Box<dyn std::error::Error>> {
//! let groups = Groups::new();
//! let group = groups.open("array", None)?;
//! let stage = Scheduled::new(&group, Weight::DEFAULT);
//! let stack = BoxBackend::new(Pipeline::top().stage(stage).backend(disk)?);
//!
//! let control = stack.list_stages().control::<ScheduledControl>("scheduled").unwrap();
//! control.set_weight(Weight::new(300).unwrap());
//! # Ok(())
//! # }
//! ```
//!
//! # How it runs
//! `submit` puts a request into its slot. `kick` takes the group's lock once: it asks for all that is new, has the scheduler
//! say who may go, and fetches what this queue was granted; what others were granted goes into their mail, and their
//! lanes are woken. `poll` takes the lock once for all that completed, and again says who may go. The request itself never leaves
//! its worker.
//!
//! # Promises
//! * The lock is taken at most once in a `kick` and once in a `poll`, and not at all where there is nothing to tell and no mail.
//! * Tokens for frames wait for no turn and take no place: they are no work, and may be below for ever.
//! * A drain lets what waits go at once, past the depth; the pipeline is charged for it. While a queue drains nothing waits.
//! * A queue that is dropped gives back what it was granted, and takes back what it asked for; so does a pipeline.
//! * A receive token of a network passes, and takes no turn: it waits for what comes, and would hold its place meanwhile.
//! * A request that a stage below lost gives its turn back at the next poll: more cannot be below than the queue below says.
//! * Nothing is allocated for a request once queues have grown to their size.
//! * Nothing is saved or restored: shares are of the process.

mod config;
mod control;
mod group;
mod queue;
mod seat;
mod stage;
#[cfg(test)]
mod tests;

pub use config::ScheduledConfig;
pub use control::ScheduledControl;
pub use group::{FlowSnapshot, Group, Groups};
pub use queue::ScheduledQueue;
pub use stage::{Scheduled, ScheduledBackend};
