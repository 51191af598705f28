//! One descriptor chain, resolved.

use iovirt_core::dma::{Access, DmaView, IovaRange, IovaSpans, MappedArea, SgLimits, SgList};

use super::layout::{DESC_ALIGN, DESC_INDIRECT, DESC_NEXT, DESC_SIZE, DESC_WRITE, Descriptor};
use super::{RingError, RingFeatures};

/// See [`Chain::weight`].
const DESCRIPTORS_PER_WEIGHT: usize = 256;

/// The buffers of one chain: what the device reads, and what it writes, each as one stream of bytes. A
/// device must not care how the driver cut them into descriptors (2.7.4).
///
/// Reused from one [`SplitQueue::pop`](super::SplitQueue::pop) to the next; it allocates only while it grows.
/// Move the buffers of a request on with [`SgList::slice_into`].
///
/// # What is let pass
///
/// - A descriptor of no bytes adds nothing, and its address is not looked at. The specification neither
///   forbids nor explains it.
/// - Flags of a descriptor that have no meaning are ignored, as is `VIRTQ_DESC_F_WRITE` of one that refers to
///   an indirect table (2.7.5.3.2).
/// - An indirect table may have up to [`Chain::MAX_INDIRECT`] entries, or the queue size if that is more.
///   A driver must not make chains longer than the queue size (2.7.5.3.1), but Linux does.
/// - A chain may have no buffers of either kind.
#[derive(Debug)]
pub struct Chain {
    readable: SgList,
    writable: SgList,
    /// The indirect table, while it is walked.
    table: SgList,
    /// The device's addresses of both, where they are translated.
    spans: IovaSpans,
    /// Descriptors that were read for it.
    descriptors: u32,
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

/// Where descriptors come from, how many there are, and what they may be.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) area: MappedArea<DESC_ALIGN>,
    pub(super) size: u16,
    pub(super) features: RingFeatures,
}

impl Table {
    /// The error for an index beyond the table, which is the head's or some `next`.
    #[cold]
    fn no_descriptor(&self, head: u16, index: u16) -> RingError {
        let size = self.size;
        if head >= size {
            RingError::HeadOutOfRange { head, size }
        } else {
            RingError::NextOutOfRange { next: index, size }
        }
    }
}

impl Chain {
    /// Most entries of an indirect table in a queue smaller than that.
    pub const MAX_INDIRECT: u16 = 1024;

    /// An empty chain.
    pub fn new() -> Self {
        // Every descriptor may lie across two regions. Memory is allocated as chains need it.
        let limits = SgLimits { segments: 1 << 16, host_bytes: 0 };
        let list = || SgList::with_limits(limits);
        Self { readable: list(), writable: list(), table: list(), spans: IovaSpans::EMPTY, descriptors: 0 }
    }

    /// What the device may read: all device-readable buffers in order.
    #[inline]
    pub fn readable(&self) -> &SgList {
        &self.readable
    }

    /// What the device may write: all device-writable buffers in order.
    #[inline]
    pub fn writable(&self) -> &SgList {
        &self.writable
    }

    /// The same, to write to it.
    #[inline]
    pub fn writable_mut(&mut self) -> &mut SgList {
        &mut self.writable
    }

    /// Both, to read one while writing the other.
    #[inline]
    pub fn parts_mut(&mut self) -> (&mut SgList, &mut SgList) {
        (&mut self.readable, &mut self.writable)
    }

    /// The device's addresses of all buffers, to be pinned; none where addresses are not translated.
    #[inline]
    pub fn spans(&self) -> &IovaSpans {
        &self.spans
    }

    /// How many chains it counts for where the work of a turn is bounded: one, and another one for each 256 descriptors, as there may be tens of
    /// thousands in the chains of a large ring.
    #[inline]
    pub fn weight(&self) -> usize {
        1 + self.descriptors as usize / DESCRIPTORS_PER_WEIGHT
    }

    /// Empties it. Not needed between chains.
    #[inline]
    pub fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }

    /// Lets go of a memory map that is not the view's any more, and empties the chain.
    pub fn rehome(&mut self, view: &DmaView) {
        for list in [&mut self.readable, &mut self.writable, &mut self.table] {
            list.clear();
            list.rehome(view.map());
        }
    }

    /// Resolves the chain that starts at `head`.
    #[inline]
    pub(super) fn fill(&mut self, table: &Table, head: u16, view: &DmaView) -> Result<(), RingError> {
        // Two copies of the walk: without translation, pins cost nothing.
        if view.is_translated() {
            self.fill_translated(table, head, view)
        } else {
            self.walk::<false>(table, head, view)
        }
    }

    #[inline(never)]
    fn fill_translated(&mut self, table: &Table, head: u16, view: &DmaView) -> Result<(), RingError> {
        self.spans.clear();
        self.walk::<true>(table, head, view)
    }

    #[inline]
    fn walk<const PIN: bool>(&mut self, table: &Table, head: u16, view: &DmaView) -> Result<(), RingError> {
        self.clear();
        let mut index = head;
        let mut order = Order { head, writing: false };
        for taken in 1..=u32::from(table.size) {
            let Some(descriptor) = Descriptor::load(&table.area, index) else {
                return Err(table.no_descriptor(head, index));
            };
            if descriptor.has(DESC_INDIRECT) {
                self.descriptors = taken + self.follow::<PIN>(table, descriptor, order, view)?;
                return self.check_len(head);
            }
            self.add::<PIN>(descriptor, &mut order, view)?;
            if !descriptor.has(DESC_NEXT) {
                self.descriptors = taken;
                return self.check_len(head);
            }
            index = descriptor.next();
        }
        // A `next` beyond the table in the last place is one too many either way.
        Err(if index < table.size { RingError::Loop { head } } else { table.no_descriptor(head, index) })
    }

    #[inline]
    fn check_len(&self, head: u16) -> Result<(), RingError> {
        let len = self.readable.len() + self.writable.len();
        if len > u64::from(u32::MAX) {
            return Err(RingError::TooLong { head, len });
        }
        Ok(())
    }

    /// Adds one buffer.
    #[expect(
        clippy::inline_always,
        reason = "half of what it costs were its call; most chains have one or three"
    )]
    #[inline(always)]
    fn add<const PIN: bool>(
        &mut self,
        descriptor: Descriptor,
        order: &mut Order,
        view: &DmaView,
    ) -> Result<(), RingError> {
        let len = u64::from(descriptor.len());
        if PIN && let Some(range) = IovaRange::new(descriptor.addr(), len) {
            self.spans.add(range);
        }
        if descriptor.has(DESC_WRITE) {
            order.writing = true;
            self.writable.push(view, descriptor.addr(), len, Access::Write)?;
        } else if order.writing {
            return Err(RingError::ReadableAfterWritable { head: order.head });
        } else {
            self.readable.push(view, descriptor.addr(), len, Access::Read)?;
        }
        Ok(())
    }

    /// Adds the buffers of an indirect table (2.7.5.3), read entry by entry, each once; says how many.
    #[inline(never)]
    fn follow<const PIN: bool>(
        &mut self,
        table: &Table,
        indirect: Descriptor,
        mut order: Order,
        view: &DmaView,
    ) -> Result<u32, RingError> {
        let entries = check_indirect(table, indirect)?;
        self.table.clear();
        self.table.push(view, indirect.addr(), u64::from(indirect.len()), Access::Read)?;
        let mut index = 0;
        for taken in 1..=u32::from(entries) {
            let mut bytes = [0; DESC_SIZE as usize];
            self.table.copy_to(DESC_SIZE * u64::from(index), &mut bytes)?;
            let descriptor = Descriptor::from_bytes(bytes);
            if descriptor.has(DESC_INDIRECT) {
                return Err(RingError::IndirectNested);
            }
            self.add::<PIN>(descriptor, &mut order, view)?;
            if !descriptor.has(DESC_NEXT) {
                return Ok(taken);
            }
            index = descriptor.next();
            if index >= entries {
                return Err(RingError::NextOutOfRange { next: index, size: entries });
            }
        }
        Err(RingError::Loop { head: order.head })
    }
}

/// The state of a walk: readable buffers come before writable ones (2.7.4.2).
#[derive(Debug, Clone, Copy)]
struct Order {
    head: u16,
    writing: bool,
}

/// The number of entries of an indirect table.
fn check_indirect(table: &Table, indirect: Descriptor) -> Result<u16, RingError> {
    if !table.features.indirect {
        return Err(RingError::IndirectNotNegotiated);
    }
    if indirect.has(DESC_NEXT) {
        return Err(RingError::IndirectWithNext);
    }
    let max = u32::from(table.size.max(Chain::MAX_INDIRECT)) * DESC_SIZE as u32;
    let len = indirect.len();
    if len == 0 || len > max || !len.is_multiple_of(DESC_SIZE as u32) {
        return Err(RingError::IndirectTableSize { len });
    }
    Ok((len / DESC_SIZE as u32) as u16)
}
