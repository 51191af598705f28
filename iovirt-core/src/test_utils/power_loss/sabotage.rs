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
    /// Does not wake its lane for the requests that it has left.
    ForgetsToWake,
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
    /// Says that it has one byte more than whole blocks.
    OddCapacity,
    /// Tells other capabilities each time it is asked.
    ChangesItsMind,
    /// Has a name that no description could have.
    NamesItselfBadly,
    /// A write with FUA fails as unsupported, instead of the flag being ignored.
    RefusesFua,
    /// The last block is out of range.
    RefusesLastBlock,
    /// A range without length is misaligned.
    RefusesNothing,
    /// A write completes and does nothing where other requests are in flight.
    LosesConcurrentWrites,
    /// A new queue finds zeroes in place of what was written before.
    ForgetsForNewQueues,
    /// Never completes the request that fills the queue.
    OneTooShallow,
    /// Seeks and then reads or writes where the cursor is, which other queues move as well.
    SharesItsCursor,
    /// Needs another poll after a drain to see that it rests, and does not wake its lane for it.
    ForgetsToWakeAtRest,
    /// Requests that come while it drains wait for the way back.
    DeafWhileDraining,
    /// Requests that come when it rests wait for the way back.
    DeafAtRest,
    /// A drain that has begun cannot be taken back before it rests.
    NoWayBack,
    /// Serves nothing once a queue went with requests in flight.
    DiesWithAQueue,
    /// Holds the requests of a queue that is gone, and so their memory, for ever.
    KeepsMemory,
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
        Self::ForgetsToWake,
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
        Self::OddCapacity,
        Self::ChangesItsMind,
        Self::NamesItselfBadly,
        Self::RefusesFua,
        Self::RefusesLastBlock,
        Self::RefusesNothing,
        Self::LosesConcurrentWrites,
        Self::ForgetsForNewQueues,
        Self::OneTooShallow,
        Self::SharesItsCursor,
        Self::ForgetsToWakeAtRest,
        Self::DeafWhileDraining,
        Self::DeafAtRest,
        Self::NoWayBack,
        Self::DiesWithAQueue,
        Self::KeepsMemory,
    ];

    /// The rule of the [conformance suite](crate::test_utils::conformance) that must notice it; others may as well.
    pub fn caught_by(self) -> &'static str {
        match self {
            Self::FlushDoesNothing | Self::IgnoresFua => "durability/write-back",
            Self::FlushMissesOne => "durability/write-back-no-fua",
            Self::CachesWrites => "durability/write-through",
            Self::LosesRequests
            | Self::StallsRequests
            | Self::CompletesTwice
            | Self::SwapsTags
            | Self::CountsWrong => "once/each",
            Self::ForgetsToWake => "wakes/completions",
            Self::AcceptsOutOfRange => "ranges/beyond-the-end",
            Self::AcceptsMisaligned => "ranges/misaligned",
            Self::WritesReadOnly => "caps/read-only",
            Self::RestsEarly => "drain/under-load",
            Self::NeverRests | Self::DeafAfterDrain => "drain/idle",
            Self::ReadsShort | Self::RepeatsSegment | Self::WritesBeside => "data/model",
            Self::ZeroesNothing => "zeroes/write-zeroes",
            Self::DiscardsBeside => "zeroes/discard",
            Self::AcceptsUnsupported => "caps/unsupported",
            Self::OddCapacity => "caps/well-formed",
            Self::ChangesItsMind => "caps/stable",
            Self::NamesItselfBadly => "caps/named",
            Self::RefusesFua => "caps/flush-and-fua",
            Self::RefusesLastBlock => "ranges/boundary",
            Self::RefusesNothing => "ranges/zero-length",
            Self::LosesConcurrentWrites => "data/under-load",
            Self::ForgetsForNewQueues => "data/another-queue",
            Self::OneTooShallow => "once/full-depth",
            Self::SharesItsCursor => "once/many-workers",
            Self::ForgetsToWakeAtRest => "wakes/rest",
            Self::DeafWhileDraining => "drain/serves-meanwhile",
            Self::DeafAtRest => "drain/serves-at-rest",
            Self::NoWayBack => "drain/way-back",
            Self::DiesWithAQueue => "dropping/in-flight",
            Self::KeepsMemory => "dropping/memory",
        }
    }
}
