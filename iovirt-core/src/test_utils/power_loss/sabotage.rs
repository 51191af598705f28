//! Promises broken on purpose.

/// One broken promise of a [`PowerLossDisk`](super::PowerLossDisk): what shows that a suite can fail.
///
/// A request that comes home twice is not easy to make: a request is not `Clone`, and completing it gives it away.
/// [`Sabotage::CompletesTwice`] has to forge a second one under the same tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Sabotage {
    /// A flush completes and makes nothing durable.
    FlushDoesNothing,
    /// A flush makes durable what it should but for the last sector written.
    FlushMissesOne,
    /// A write with FUA completes and stays in the cache.
    IgnoresFua,
    /// Calls itself write-through and keeps a volatile cache.
    CachesWrites,
    /// Every tenth request is dropped and never completes.
    LosesRequests,
    /// Every tenth request stays in flight for ever.
    StallsRequests,
    /// Every tenth request completes a second time, forged.
    CompletesTwice,
    /// Two requests come home with each other's tags.
    SwapsTags,
    /// A range beyond the end completes as done.
    AcceptsOutOfRange,
    /// A range that is not aligned completes as done.
    AcceptsMisaligned,
    /// A read-only disk accepts writes.
    WritesReadOnly,
    /// Says that it rests while requests are in flight.
    RestsEarly,
    /// Never comes to rest.
    NeverRests,
    /// Serves nothing after it was drained.
    DeafAfterDrain,
    /// `in_flight` leaves one out.
    CountsWrong,
    /// Reads leave the last sector of the memory as it was.
    ReadsShort,
    /// A write of several segments takes the first one twice.
    RepeatsSegment,
    /// A write lands one sector further where the disk has room for it.
    WritesBeside,
    /// Write-zeroes completes and does nothing.
    ZeroesNothing,
    /// Discard takes one sector more than it was asked to.
    DiscardsBeside,
    /// Operations that it says it cannot do complete as done.
    AcceptsUnsupported,
}

impl Sabotage {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::FlushDoesNothing,
        Self::FlushMissesOne,
        Self::IgnoresFua,
        Self::CachesWrites,
        Self::LosesRequests,
        Self::StallsRequests,
        Self::CompletesTwice,
        Self::SwapsTags,
        Self::AcceptsOutOfRange,
        Self::AcceptsMisaligned,
        Self::WritesReadOnly,
        Self::RestsEarly,
        Self::NeverRests,
        Self::DeafAfterDrain,
        Self::CountsWrong,
        Self::ReadsShort,
        Self::RepeatsSegment,
        Self::WritesBeside,
        Self::ZeroesNothing,
        Self::DiscardsBeside,
        Self::AcceptsUnsupported,
    ];
}
