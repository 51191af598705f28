//! Chains that were in flight when a device was saved, taken from the ring once more.

use super::QueueError;
use super::queue::{Chain, Head};
use super::ring::Ring;
use iovirt_core::dma::SgList;
use iovirt_core::stage::Client;
use iovirt_core::{Request, Tag};

/// A chain that was taken, with a tag and a list for its request.
pub(super) type Taken = (Head, Tag, Box<SgList>);

/// Reads the chain with that head again into `chain`, for a request that `client` will submit; `None` where all tags are out.
///
/// # Errors
/// Where the chain is broken.
pub(super) fn take_again<R: Request, T>(
    client: &mut Client<R, T>,
    ring: &mut Ring,
    chain: &mut Chain,
    head: u16,
) -> Result<Option<Taken>, QueueError> {
    let Some((tag, sg)) = client.begin() else { return Ok(None) };
    let head = Head::from_saved(head);
    match ring.reread(head, chain) {
        Ok(()) => Ok(Some((head, tag, sg))),
        Err(error) => {
            client.abandon(tag, sg);
            Err(error.into())
        }
    }
}
