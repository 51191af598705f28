//! Promises broken on purpose.

/// One broken promise of a [`Wire`](super::Wire): what shows that the suite for networks can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NetSabotage {
    /// Has an MTU that no network has.
    ImpossibleMtu,
    /// Tells other capabilities each time it is asked.
    ChangesItsMind,
    /// Has a name that no description could have.
    NamesItselfBadly,
    /// A frame of any length completes as sent.
    TakesAnyLength,
    /// The longest frame is too long.
    RefusesLongest,
    /// An offload, and a pair that there is not, complete as done.
    AcceptsUnsupported,
    /// The last byte of each frame is missing.
    CutsFrames,
    /// The part of a frame that lies in the second segment is what it was in the frame before.
    ForgetsSegments,
    /// What is left to be done to a frame is not said of it.
    ForgetsOffloads,
    /// What is left to be done to a frame is left to receivers that do not take it.
    LeavesToAnybody,
    /// Two frames that wait change places.
    ReordersFrames,
    /// A frame comes in the memory of some guest.
    GivesGuestMemory,
    /// A token completes as done before any frame came.
    CompletesEmptyTokens,
    /// Every tenth request is dropped and never completes.
    LosesRequests,
    /// Every tenth request completes a second time, forged.
    CompletesTwice,
    /// A frame that is sent and a token come home with each other's tags.
    SwapsTags,
    /// `in_flight` leaves one out.
    CountsWrong,
    /// A drain waits for a frame for each token.
    KeepsTokens,
    /// Says that it rests while tokens are in flight.
    RestsEarly,
    /// A drain gives back tokens without the frames that had come for them.
    DropsArrived,
    /// A token that is submitted while it drains waits for a frame.
    KeepsNewTokens,
    /// Takes no tokens after it was drained.
    DeafAfterDrain,
    /// Does not wake its lane for a frame.
    ForgetsToWake,
    /// Does not wake its lane when it rests.
    ForgetsToWakeAtRest,
    /// A pair is taken for ever by the first data plane that received on it.
    KeepsReceiver,
    /// Holds the requests of a data plane that is gone, and so their memory, for ever.
    KeepsMemory,
    /// All frames go to the first pair.
    MixesPairs,
}

impl NetSabotage {
    /// All of them.
    pub const ALL: &'static [Self] = &[
        Self::ImpossibleMtu,
        Self::ChangesItsMind,
        Self::NamesItselfBadly,
        Self::TakesAnyLength,
        Self::RefusesLongest,
        Self::AcceptsUnsupported,
        Self::CutsFrames,
        Self::ForgetsSegments,
        Self::ForgetsOffloads,
        Self::LeavesToAnybody,
        Self::ReordersFrames,
        Self::GivesGuestMemory,
        Self::CompletesEmptyTokens,
        Self::LosesRequests,
        Self::CompletesTwice,
        Self::SwapsTags,
        Self::CountsWrong,
        Self::KeepsTokens,
        Self::RestsEarly,
        Self::DropsArrived,
        Self::KeepsNewTokens,
        Self::DeafAfterDrain,
        Self::ForgetsToWake,
        Self::ForgetsToWakeAtRest,
        Self::KeepsReceiver,
        Self::KeepsMemory,
        Self::MixesPairs,
    ];

    /// The rule of the [suite](super) that must notice it; others may as well.
    pub fn caught_by(self) -> &'static str {
        match self {
            Self::ImpossibleMtu => "net/caps",
            Self::ChangesItsMind => "net/caps-stable",
            Self::NamesItselfBadly => "net/named",
            Self::TakesAnyLength | Self::RefusesLongest => "net/lengths",
            Self::AcceptsUnsupported => "net/unsupported",
            Self::CutsFrames | Self::ForgetsSegments => "net/frames",
            Self::ForgetsOffloads | Self::LeavesToAnybody => "net/offloads",
            Self::ReordersFrames => "net/order",
            Self::GivesGuestMemory => "net/host-memory",
            Self::CompletesEmptyTokens => "net/tokens-wait",
            Self::LosesRequests | Self::CompletesTwice | Self::SwapsTags | Self::CountsWrong => "net/once",
            Self::KeepsTokens | Self::RestsEarly | Self::DropsArrived => "net/drain",
            Self::KeepsNewTokens => "net/drain-meanwhile",
            Self::DeafAfterDrain => "net/way-back",
            Self::ForgetsToWake => "net/wakes-frames",
            Self::ForgetsToWakeAtRest => "net/wakes-rest",
            Self::KeepsReceiver => "net/dropping",
            Self::KeepsMemory => "net/dropping-memory",
            Self::MixesPairs => "net/pairs",
        }
    }
}
