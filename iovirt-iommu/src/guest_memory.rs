//! An endpoint as `vm-memory` knows IOMMUs, for devices that others wrote.

use crate::endpoint::Endpoint;
use iovirt_core::dma::{Access, IovaRange, Lease, Translate};
use std::ops::Deref;
use std::sync::Arc;
use vm_memory::iommu::{Error, Iommu, Iotlb, IotlbIterator, IovaRange as TheirRange};
use vm_memory::{GuestAddress, Permissions};

/// An [`Endpoint`] as [`vm_memory::Iommu`]: for `vm_memory::IommuMemory`, behind which a device copies.
///
/// The range of an access is held by a [`Lease`] until the copy is over, so an unmap of it waits for that; a device
/// that keeps a pointer for longer is not covered. An access takes a lock and builds a table of its own mappings.
#[derive(Debug, Clone)]
pub struct EndpointIommu(pub Arc<Endpoint>);

/// The mappings of one access, held as long as it lasts.
#[derive(Debug)]
pub struct HeldMappings {
    mappings: Iotlb,
    _lease: Option<Lease>,
}

impl Deref for HeldMappings {
    type Target = Iotlb;

    fn deref(&self) -> &Iotlb {
        &self.mappings
    }
}

impl Iommu for EndpointIommu {
    type IotlbGuard<'a> = HeldMappings;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<HeldMappings>, Error> {
        let refused =
            |reason: String| Error::CannotResolve { iova_range: TheirRange { base: iova, length }, reason };
        // Theirs are ranges without their end, which cannot reach the last address.
        if iova.0.checked_add(length as u64).is_none() {
            return Err(refused("it ends beyond 64 bits".into()));
        }
        let held = IovaRange::new(iova.0, length as u64).map(|range| self.0.pins().lease(range));
        let mut mappings = Iotlb::new();
        let mut done = 0;
        while done < length {
            let at = iova.0 + done as u64;
            let piece = self.resolve(at, access).map_err(|fault| refused(fault.to_string()))?;
            let len = piece.len.min((length - done) as u64) as usize;
            mappings.set_mapping(GuestAddress(at), GuestAddress(piece.addr), len, access)?;
            done += len;
        }
        let held = HeldMappings { mappings, _lease: held };
        Iotlb::lookup(held, iova, length, access).map_err(|_| refused("it is not mapped".into()))
    }
}

impl EndpointIommu {
    /// The mapping at `iova`, if it allows all of `access`. Where nothing is asked for, reading is.
    fn resolve(
        &self,
        iova: u64,
        access: Permissions,
    ) -> Result<iovirt_core::dma::Translation, iovirt_core::dma::DmaFault> {
        let write = match access {
            Permissions::No | Permissions::Read => None,
            Permissions::Write | Permissions::ReadWrite => Some(self.0.translate(iova, 1, Access::Write)?),
        };
        match (access, write) {
            (Permissions::Write, Some(found)) => Ok(found),
            _ => self.0.translate(iova, 1, Access::Read),
        }
    }
}
