//! An address space, and who is in it.

use crate::table::{IntervalTable, MapRefused, Permissions, UnmapRefused};
use iovirt_core::Time;
use iovirt_core::dma::{
    Access, DmaFault, InvalidateStatus, InvalidateTicket, IovaRange, PinBoard, Translation,
};
use iovirt_core::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An I/O address space: ranges of I/O virtual addresses, each with where it lies in guest physical memory and what a
/// device may do there. Any number of [`Endpoint`](crate::Endpoint)s share it.
///
/// All methods may be called on any thread, a vCPU's too: they take a lock that no device takes, and wait for no I/O.
#[derive(Debug)]
pub struct Domain {
    table: IntervalTable,
    /// Also the lock that changes of the table are made under.
    members: Mutex<Vec<Member>>,
}

#[derive(Debug)]
struct Member {
    pins: Arc<PinBoard>,
    /// It was detached, and may still use what it translated before: until this is done.
    leaving: Option<InvalidateTicket>,
}

impl Domain {
    /// A domain that maps nothing, and takes at most `limit` mappings.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { table: IntervalTable::new(limit), members: Mutex::default() })
    }

    /// Maps `len` bytes from the I/O virtual address `iova` to guest physical `addr`. In any unit: whatever granule the
    /// guest is told to keep to is for the front-end to check.
    ///
    /// # Errors
    /// Where the range cannot be, overlaps a mapping, or is one too many; nothing has changed then.
    pub fn map(&self, iova: u64, len: u64, addr: u64, permissions: Permissions) -> Result<(), MapRefused> {
        let _changing = self.members();
        // What did not translate before does now: nobody holds anything that is out of date.
        self.table.map(iova, len, addr, permissions)
    }

    /// Removes all mappings within a range. From now on no device translates them; the ticket tells when none uses them.
    ///
    /// # Errors
    /// Where the range cannot be, or covers a mapping in part; nothing has changed then.
    pub fn unmap(&self, iova: u64, len: u64) -> Result<InvalidateTicket, UnmapRefused> {
        let mut members = self.members();
        let removed = self.table.unmap(iova, len)?;
        Ok(removed.map_or_else(InvalidateTicket::done, |range| invalidate(&mut members, range)))
    }

    /// Removes all mappings, as [`Domain::unmap`].
    pub fn clear(&self) -> InvalidateTicket {
        let mut members = self.members();
        self.table.clear();
        invalidate(&mut members, IovaRange::ALL)
    }

    /// How many mappings there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many devices are attached.
    pub fn devices(&self) -> usize {
        self.members().iter().filter(|member| member.leaving.is_none()).count()
    }

    pub(crate) fn translate(&self, iova: u64, access: Access) -> Result<Translation, DmaFault> {
        self.table.translate(iova, access)
    }

    /// From now on, unmaps wait for this device.
    pub(crate) fn add(&self, pins: &Arc<PinBoard>) {
        self.members().push(Member { pins: pins.clone(), leaving: None });
    }

    /// The device does not translate here any more. Unmaps wait for it until the ticket is done.
    pub(crate) fn remove(&self, pins: &Arc<PinBoard>, leaving: InvalidateTicket) {
        let mut members = self.members();
        // One wait is enough for a device that comes and goes: the last one waits for all that the ones before did.
        members.retain(|member| member.leaving.is_none() || !Arc::ptr_eq(&member.pins, pins));
        if let Some(member) = members.iter_mut().find(|member| Arc::ptr_eq(&member.pins, pins)) {
            member.leaving = Some(leaving);
        }
        forget_gone(&mut members);
    }

    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn invalidate(members: &mut Vec<Member>, range: IovaRange) -> InvalidateTicket {
    forget_gone(members);
    let mut ticket = InvalidateTicket::done();
    for member in members {
        ticket.join(member.pins.invalidate(range));
    }
    ticket
}

/// Forgets devices that were detached and have let go since.
fn forget_gone(members: &mut Vec<Member>) {
    // The time is for reports about stuck devices, which are made to whoever detached.
    let gone = |ticket: &mut InvalidateTicket| ticket.poll(Time::ZERO) == InvalidateStatus::Done;
    members.retain_mut(|member| !member.leaving.as_mut().is_some_and(gone));
}
