//! Chance from a seed, for stages that a test wants to see do the same again.

/// `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014). Not for secrets.
#[derive(Clone, Debug)]
pub(super) struct Chance {
    state: u64,
}

impl Chance {
    /// The sequence of one queue of a stage.
    pub(super) fn new(seed: u64, queue: u64) -> Self {
        let mut chance = Self { state: seed };
        // Seeds next to one another, and queues next to one another, must not give sequences that overlap.
        let scattered = chance.next();
        Self { state: scattered ^ queue.wrapping_mul(0xd6e8_feb8_6659_fd93) }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`; zero where `limit` is zero.
    #[inline]
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit)) >> 64) as u64
    }
}
