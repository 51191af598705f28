//! Latencies, counted in buckets that are at most 1/64 of their value wide.

/// Buckets for each power of two.
const STEPS: u64 = 64;
/// Values up to some 18 minutes in nanoseconds; longer ones count as that.
const POWERS: u64 = 40;

/// Counts of latencies in nanoseconds.
#[derive(Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; (STEPS * POWERS) as usize], total: 0 }
    }

    /// Counts one.
    #[inline]
    pub(crate) fn add(&mut self, nanos: u64) {
        let last = self.counts.len() - 1;
        self.counts[bucket(nanos).min(last)] += 1;
        self.total += 1;
    }

    /// Forgets all.
    pub(crate) fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }

    /// How many were counted.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The value that this share of all do not exceed, from 0 to 1; the middle of its bucket.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let wanted = (self.total as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return middle(bucket);
            }
        }
        0.0
    }
}

/// Values below `STEPS` have a bucket each; above, each power of two has `STEPS`.
#[inline]
fn bucket(nanos: u64) -> usize {
    if nanos < STEPS {
        return nanos as usize;
    }
    let shift = u64::from(nanos.ilog2() - STEPS.ilog2());
    (shift * STEPS + (nanos >> shift)) as usize
}

fn middle(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    if bucket < 2 * STEPS {
        return bucket as f64;
    }
    let shift = bucket / STEPS - 1;
    let low = (bucket - shift * STEPS) << shift;
    low as f64 + ((1u64 << shift) - 1) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_narrow_and_in_order() {
        let mut before = 0;
        for nanos in (0..5000).chain((11..38).map(|power| 3 << power)) {
            let at = bucket(nanos);
            assert!(at >= before, "{nanos}");
            before = at;
            assert!((middle(at) - nanos as f64).abs() <= nanos as f64 / 64.0, "{nanos} in {}", middle(at));
        }
    }

    #[test]
    fn quantiles_of_known_values() {
        let mut histogram = Histogram::new();
        assert!(histogram.quantile(0.5).abs() < 1e-9);
        for nanos in 1..=100 {
            histogram.add(nanos);
        }
        assert!((histogram.quantile(0.5) - 50.0).abs() < 1e-9);
        assert!((histogram.quantile(0.99) - 99.0).abs() < 1e-9);
        histogram.add(u64::MAX);
        assert_eq!(histogram.total(), 101);
        assert!(histogram.quantile(1.0) > 1e11);
        histogram.clear();
        assert_eq!(histogram.total(), 0);
    }
}
