//! The builder: stages in reading order, from the guest to the hardware.

use super::{BoxBackend, BoxInterposer};
use crate::backend::Backend;
use crate::error::AttachError;
use crate::interposer::Interposer;
use crate::request::Request;

/// Collects stages from the top down and closes with a back-end.
///
/// The type grows with each stage, so a stack known at compile time is one type without an indirection:
///
/// ```
/// # use iovirt_core::pipeline::{BoxBackend, Pipeline};
/// # use iovirt_core::request::block::BlockRequest;
/// # use iovirt_core::stage::{EmulateFua, HookLayer};
/// # fn example(file: BoxBackend<BlockRequest>) -> Result<(), iovirt_core::AttachError> {
/// let stack = Pipeline::top().stage(HookLayer::new(EmulateFua)).backend(file)?;
/// let boxed = BoxBackend::new(stack);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pipeline<L> {
    layers: L,
}

/// No stage: what a [`Pipeline`] starts from.
#[derive(Clone, Copy, Debug)]
pub struct Identity;

/// Two stages, one above the other.
#[derive(Clone, Copy, Debug)]
pub struct Stack<Upper, Lower> {
    upper: Upper,
    lower: Lower,
}

impl Pipeline<Identity> {
    /// An empty pipeline: its first stage will be next to the device.
    pub fn top() -> Self {
        Self { layers: Identity }
    }

    /// Stacks boxed stages, given from the top down, above a boxed back-end.
    ///
    /// # Errors
    /// Where a stage refuses what is below it.
    pub fn boxed<R: Request>(
        stages: Vec<BoxInterposer<R>>,
        backend: BoxBackend<R>,
    ) -> Result<BoxBackend<R>, AttachError> {
        stages.into_iter().rev().try_fold(backend, |below, stage| Self::top().stage(stage).backend(below))
    }
}

impl<L> Pipeline<L> {
    /// Adds the next stage down.
    #[must_use]
    pub fn stage<S>(self, stage: S) -> Pipeline<Stack<L, S>> {
        Pipeline { layers: Stack { upper: self.layers, lower: stage } }
    }

    /// Closes the pipeline with what does the work.
    ///
    /// # Errors
    /// Where a stage refuses what is below it.
    pub fn backend<R, B>(self, backend: B) -> Result<L::Stacked, AttachError>
    where
        R: Request,
        B: Backend<R>,
        L: Interposer<R, B>,
    {
        self.layers.attach(backend)
    }
}

impl<R: Request, B: Backend<R>> Interposer<R, B> for Identity {
    type Stacked = B;

    fn attach(self, below: B) -> Result<B, AttachError> {
        Ok(below)
    }
}

impl<R, B, Upper, Lower> Interposer<R, B> for Stack<Upper, Lower>
where
    R: Request,
    B: Backend<R>,
    Lower: Interposer<R, B>,
    Upper: Interposer<R, Lower::Stacked>,
{
    type Stacked = Upper::Stacked;

    fn attach(self, below: B) -> Result<Self::Stacked, AttachError> {
        self.upper.attach(self.lower.attach(below)?)
    }
}
