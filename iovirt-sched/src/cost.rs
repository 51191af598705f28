//! What a request costs, as one number.

use iovirt_core::Cost;

/// What a request costs as one number: so much for each operation, and so much for each byte that it moves.
///
/// A linear model with a term for each operation is what disks and networks are close to: see IOCost (Heo et al.: "IOCost: Block
/// IO Control for Containers in Datacenters", ASPLOS 2022), whose model has the same two terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CostModel {
    /// The cost of an operation.
    pub per_op: u32,
    /// The cost of a byte.
    pub per_byte: u32,
}

impl Default for CostModel {
    /// An operation costs as much as 16 KiB that are moved.
    fn default() -> Self {
        Self { per_op: 16 << 10, per_byte: 1 }
    }
}

impl CostModel {
    /// Every operation costs the same.
    pub const OPS: Self = Self { per_op: 1, per_byte: 0 };

    /// The cost of a request: at least 1, so that no request is free, and at most `u32::MAX`.
    #[inline]
    pub fn units(&self, cost: Cost) -> u32 {
        let ops = u64::from(self.per_op).saturating_mul(u64::from(cost.ops));
        let bytes = u64::from(self.per_byte).saturating_mul(cost.bytes);
        ops.saturating_add(bytes).clamp(1, u64::from(u32::MAX)) as u32
    }
}
