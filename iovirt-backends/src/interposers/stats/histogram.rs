//! Latencies in buckets: linear within each power of two, so that a bucket is at most 1/32 of its value wide.

use serde::ser::{Serialize, SerializeStruct, Serializer};
use std::time::Duration;

/// Buckets in each power of two, as a power of two.
const SUB_BITS: u32 = 5;
const SUB: u64 = 1 << SUB_BITS;
/// The first power of two, in nanoseconds, that is no longer told apart: 137 s.
const TOP_BITS: u32 = 37;

/// How many buckets there are.
pub(super) const BUCKETS: usize = ((TOP_BITS - SUB_BITS + 1) * SUB as u32) as usize;

/// The bucket of a latency in nanoseconds.
#[inline]
pub(super) fn bucket(nanos: u64) -> usize {
    let nanos = nanos.min((1 << TOP_BITS) - 1);
    // Below 64 ns each bucket is one nanosecond wide.
    let shift = (nanos | SUB).ilog2() - SUB_BITS;
    (u64::from(shift) * SUB + (nanos >> shift)) as usize
}

/// The largest latency in nanoseconds that a bucket holds.
pub(super) fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    let shift = (bucket / SUB).saturating_sub(1);
    ((bucket - shift * SUB + 1) << shift) - 1
}

/// How long requests took: a distribution with a resolution of 1/32, 3.1 percent.
///
/// It serialises as `{ count, mean_ns, p50_ns, p90_ns, p99_ns, p999_ns, max_ns, buckets }`; percentiles are `null` where
/// nothing was measured, and `buckets` are pairs of the largest latency in nanoseconds that a bucket holds and how many
/// requests it holds, without the empty ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency {
    pub(super) counts: Box<[u64]>,
    pub(super) sum: u64,
}

impl Default for Latency {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS].into(), sum: 0 }
    }
}

impl Latency {
    /// How many requests were measured.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The mean; `None` where nothing was measured. Exact up to a total of 584 years.
    pub fn mean(&self) -> Option<Duration> {
        self.sum.checked_div(self.count()).map(Duration::from_nanos)
    }

    /// The sum of all latencies. Exact up to a total of 584 years.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.sum)
    }

    /// The buckets that hold requests, from the shortest latency up: the largest latency that a bucket holds, and how many
    /// requests it holds. A bucket ends one nanosecond below each power of two nanoseconds.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let held = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        held.map(|(bucket, count)| (Duration::from_nanos(upper_bound(bucket)), *count))
    }

    /// What `percent` percent of the requests did not exceed (clamped to 0 to 100): never below the exact value, and above
    /// it by 1/32 at most. `None` where nothing was measured.
    pub fn percentile(&self, percent: f64) -> Option<Duration> {
        let count = self.count();
        // The cast takes what is no number for zero, and rounds numbers above 2^53, which no counter reaches in years.
        #[expect(clippy::cast_precision_loss, reason = "as said")]
        let rank = ((percent.clamp(0.0, 100.0) / 100.0 * count as f64).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        for (bucket, &held) in self.counts.iter().enumerate() {
            seen += held;
            if seen >= rank {
                return Some(Duration::from_nanos(upper_bound(bucket)));
            }
        }
        None
    }

    /// The longest, as exact as a percentile; `None` where nothing was measured.
    pub fn max(&self) -> Option<Duration> {
        self.percentile(100.0)
    }

    /// Takes away what was there at an earlier time.
    pub(super) fn subtract(&mut self, earlier: &Self) {
        self.sum = self.sum.wrapping_sub(earlier.sum);
        for (count, less) in self.counts.iter_mut().zip(&earlier.counts) {
            *count = count.saturating_sub(*less);
        }
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let nanos = |time: Option<Duration>| time.map(|time| time.as_nanos() as u64);
        let buckets: Vec<_> = self.buckets().map(|(bound, count)| (bound.as_nanos() as u64, count)).collect();
        let mut out = serializer.serialize_struct("Latency", 8)?;
        out.serialize_field("count", &self.count())?;
        out.serialize_field("mean_ns", &nanos(self.mean()))?;
        out.serialize_field("p50_ns", &nanos(self.percentile(50.0)))?;
        out.serialize_field("p90_ns", &nanos(self.percentile(90.0)))?;
        out.serialize_field("p99_ns", &nanos(self.percentile(99.0)))?;
        out.serialize_field("p999_ns", &nanos(self.percentile(99.9)))?;
        out.serialize_field("max_ns", &nanos(self.max()))?;
        out.serialize_field("buckets", &buckets)?;
        out.end()
    }
}
