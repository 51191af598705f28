//! The control plane.

use super::{StripeConfig, StripeFan};
use iovirt_core::request::block::{BlockCaps, BlockRequest, SECTOR};
use iovirt_core::stage::fanout::common_caps;
use iovirt_core::stage::{FanOutStage, FannedOut};
use iovirt_core::{AttachError, Backend, Depth, WorkerContext};
use std::sync::Arc;

/// One disk out of several; see the [module](super).
#[derive(Debug)]
pub struct Stripe {
    config: StripeConfig,
}

impl Stripe {
    /// A stage of that configuration.
    ///
    /// # Errors
    /// Where the chunk is zero, no multiple of 512 bytes, or too large.
    pub fn new(config: &StripeConfig) -> Result<Self, AttachError> {
        let chunk = config.chunk;
        if chunk == 0 || !chunk.is_multiple_of(SECTOR) || chunk > StripeConfig::MAX_CHUNK {
            let reason = format!("chunk={chunk} is not allowed: multiples of 512 from 512 to 1G are");
            return Err(AttachError::new(&config.name, reason));
        }
        Ok(Self { config: config.clone() })
    }

    /// One disk out of these.
    ///
    /// # Errors
    /// As [`Stripe::new`], and where the chunk is no multiple of their block size, or larger than one of them.
    pub fn over<B: Backend<BlockRequest>>(
        config: &StripeConfig,
        branches: Vec<B>,
    ) -> Result<FannedOut<BlockRequest, Self, B>, AttachError> {
        FannedOut::new(Self::new(config)?, branches)
    }
}

impl FanOutStage<BlockRequest> for Stripe {
    type FanOut = StripeFan;

    fn name(&self) -> &str {
        &self.config.name
    }

    fn caps(&self, branches: &[Arc<BlockCaps>]) -> Result<BlockCaps, AttachError> {
        let (chunk, count) = (self.config.chunk, branches.len() as u64);
        let refuse = |reason: String| Err(AttachError::new(&self.config.name, reason));
        let mut caps = common_caps(branches);
        if !chunk.is_multiple_of(u64::from(caps.logical_block)) {
            return refuse(format!(
                "chunk={chunk} is not allowed: multiples of {} are, the block size of the back-ends",
                caps.logical_block
            ));
        }
        let capacity = (caps.capacity / chunk * chunk).checked_mul(count);
        let Some(capacity) = capacity.filter(|&bytes| bytes > 0 && i64::try_from(bytes).is_ok()) else {
            return refuse(format!(
                "{count} back-ends of {} bytes in chunks of {chunk} make no disk: it would be empty or beyond 2^63",
                caps.capacity
            ));
        };
        caps.capacity = capacity;
        caps.optimal_io = u32::try_from(chunk * count).unwrap_or(0);
        // Of as many whole rows, wherever they begin, each branch has as many chunks.
        let longest = |on_branch: u64| on_branch.max((on_branch / chunk * chunk).saturating_mul(count));
        if let Some(zeroes) = &mut caps.write_zeroes {
            zeroes.max_bytes = longest(zeroes.max_bytes);
        }
        if let Some(discard) = &mut caps.discard {
            discard.max_bytes = longest(discard.max_bytes);
            // Where chunks end is where ranges are cut.
            discard.reads_zero &= chunk.is_multiple_of(u64::from(discard.alignment.max(1)));
        }
        Ok(caps)
    }

    fn fan_out(&self, _: &mut WorkerContext<'_>, _: Depth) -> StripeFan {
        StripeFan::new(self.config.chunk)
    }
}
