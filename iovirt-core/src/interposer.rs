//! A stage between a device and a back-end.

use crate::backend::Backend;
use crate::error::AttachError;
use crate::request::Request;

/// Stands above a back-end and is one to what is above: told what is below, it may refuse it.
///
/// Composition is by type, so that a stack known at compile time costs no indirection; [`pipeline`](crate::pipeline)
/// has the boxed form for stacks that come from a description. Most authors implement
/// [`HookStage`](crate::stage::HookStage) instead of this trait.
pub trait Interposer<R: Request, B: Backend<R>> {
    /// The stack with this stage on top.
    type Stacked: Backend<R>;

    /// Stands above `below`. The capabilities of the result are this stage's statement of how it changes those below:
    /// none is weakened silently.
    ///
    /// # Errors
    /// Where the stack below lacks what this stage needs.
    fn attach(self, below: B) -> Result<Self::Stacked, AttachError>;
}
