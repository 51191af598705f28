//! What is measured: targets, loads, and what came out.

use std::collections::BTreeMap;
use std::fmt;

use clap::ValueEnum;
pub(crate) use vhost_user_driver::Client;

use super::queues::Queues;

/// What the servers serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Target {
    /// A disk that keeps nothing.
    Null,
    /// A file in memory.
    Tmpfs,
    /// A file on a disk, past the page cache.
    Direct,
}

impl Target {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Null, Self::Tmpfs, Self::Direct];

    /// A heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Null => "a disk that keeps nothing",
            Self::Tmpfs => "a file on tmpfs",
            Self::Direct => "a file on a disk, direct",
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Tmpfs => "tmpfs",
            Self::Direct => "direct",
        })
    }
}

/// What the client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    /// 4 KiB at random places.
    RandomRead,
    /// 4 KiB at random places.
    RandomWrite,
    /// 128 KiB one behind the other.
    SequentialRead,
    /// 128 KiB one behind the other.
    SequentialWrite,
}

impl Access {
    /// All of them.
    pub(crate) const ALL: [Self; 4] =
        [Self::RandomRead, Self::RandomWrite, Self::SequentialRead, Self::SequentialWrite];

    /// Bytes of a request.
    pub(crate) fn bytes(self) -> u32 {
        if self.is_random() { 4 << 10 } else { 128 << 10 }
    }

    /// Whether places are random.
    pub(crate) fn is_random(self) -> bool {
        matches!(self, Self::RandomRead | Self::RandomWrite)
    }

    /// Whether it reads.
    pub(crate) fn reads(self) -> bool {
        matches!(self, Self::RandomRead | Self::SequentialRead)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RandomRead => "4 KiB random read",
            Self::RandomWrite => "4 KiB random write",
            Self::SequentialRead => "128 KiB sequential read",
            Self::SequentialWrite => "128 KiB sequential write",
        })
    }
}

/// One load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Load {
    /// How the client learns of completions.
    pub client: Client,
    /// What it asks for.
    pub access: Access,
    /// Requests in flight.
    pub depth: u16,
}

/// What one run of a load gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Sample {
    /// Requests per second.
    pub iops: f64,
    /// Half of the requests took no longer, in nanoseconds.
    pub p50: f64,
    /// 99 of 100 took no longer, in nanoseconds.
    pub p99: f64,
    /// Processor time of the server for each request, in nanoseconds.
    pub cpu: f64,
    /// Doorbells for each request.
    pub kicks: f64,
    /// Times that the client was woken for each request.
    pub calls: f64,
}

/// One figure of several runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Summary {
    /// The one in the middle.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Summary {
    /// The summary of some values; nothing of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, least, most })
    }
}

/// A bare system call on the target's file: nanoseconds for one, and those of the processor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bare {
    /// From beginning to end.
    pub wall: f64,
    /// Of the processor.
    pub cpu: f64,
}

/// All that was measured. Servers go by their labels, in the order of the table of servers.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// The labels of a target's servers.
    pub servers: BTreeMap<Target, Vec<&'static str>>,
    /// Runs of each load.
    pub points: BTreeMap<(Target, &'static str, Load), Vec<Sample>>,
    /// Share of a processor that an idle server uses.
    pub idle: BTreeMap<(Target, &'static str), Vec<f64>>,
    /// `pread` and `pwrite` of the target's file.
    pub bare: BTreeMap<(Target, Access), Vec<Bare>>,
    /// What servers did with several queues.
    pub queues: Queues,
}

impl Results {
    /// Notes that a target has this server.
    pub(crate) fn add_server(&mut self, target: Target, label: &'static str) {
        let servers = self.servers.entry(target).or_default();
        if !servers.contains(&label) {
            servers.push(label);
        }
    }

    /// One figure of a load's runs.
    pub(crate) fn summary(
        &self,
        target: Target,
        server: &'static str,
        load: Load,
        figure: fn(&Sample) -> f64,
    ) -> Option<Summary> {
        Summary::of(self.points.get(&(target, server, load))?.iter().map(figure))
    }

    /// The depths that were measured.
    pub(crate) fn depths(&self) -> Vec<u16> {
        let mut depths: Vec<u16> = self.points.keys().map(|(_, _, load)| load.depth).collect();
        depths.sort_unstable();
        depths.dedup();
        depths
    }

    /// Whether anything was measured of this.
    pub(crate) fn has(&self, target: Target, client: Client, access: Access) -> bool {
        self.points
            .keys()
            .any(|(of, _, load)| *of == target && load.client == client && load.access == access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_the_middle_and_both_ends() {
        assert_eq!(Summary::of([]), None);
        assert_eq!(Summary::of([3.0, 1.0, 2.0]), Some(Summary { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Summary::of([4.0, 1.0]), Some(Summary { median: 2.5, least: 1.0, most: 4.0 }));
    }
}
