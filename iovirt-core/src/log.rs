//! Keeping the host's log readable: a guest can make a device complain as often as it likes, so whoever complains about
//! what a guest, a file or a peer did asks a [`LogLimiter`] first.

use crate::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets through at most so many lines per interval, and counts the rest.
///
/// ```
/// use iovirt_core::log::LogLimiter;
/// use std::time::Duration;
///
/// let limiter = LogLimiter::new(2, Duration::from_secs(60));
/// let admitted = (0..100).filter(|_| limiter.admit().is_some()).count();
/// assert_eq!(admitted, 2);
/// ```
#[derive(Debug)]
pub struct LogLimiter {
    lines: u32,
    interval: Duration,
    window: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    start: Option<Instant>,
    admitted: u32,
    suppressed: u64,
}

impl LogLimiter {
    /// At most `lines` lines in each `interval`.
    pub fn new(lines: u32, interval: Duration) -> Self {
        Self { lines, interval, window: Mutex::default() }
    }

    /// Whether a line may be written now; if so, how many were not since the last one that was. Takes a lock: for the
    /// way of errors only.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.start.is_none_or(|start| now.saturating_duration_since(start) >= self.interval) {
            window.start = Some(now);
            window.admitted = 0;
        }
        if window.admitted >= self.lines {
            window.suppressed += 1;
            return None;
        }
        window.admitted += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

impl Default for LogLimiter {
    /// Ten lines in ten seconds.
    fn default() -> Self {
        Self::new(10, Duration::from_secs(10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_is_counted_and_told_later() {
        let limiter = LogLimiter::new(2, Duration::from_secs(1));
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(limiter.admit_at(at(0)), Some(0));
        assert_eq!(limiter.admit_at(at(1)), Some(0));
        assert_eq!(limiter.admit_at(at(2)), None);
        assert_eq!(limiter.admit_at(at(999)), None);
        assert_eq!(limiter.admit_at(at(1000)), Some(2));
        assert_eq!(limiter.admit_at(at(1001)), Some(0));
        assert_eq!(limiter.admit_at(at(1002)), None);
    }
}
