//! A device in front of an address space.

use crate::domain::Domain;
use crate::fault::{DeviceId, FaultQueue, FaultRecord};
use arc_swap::ArcSwapOption;
use iovirt_core::dma::{
    Access, DmaFault, FaultReason, InvalidateTicket, IovaRange, PinBoard, Translate, Translation,
};
use iovirt_core::sync::{Arc, Mutex, PoisonError};

/// A device as the IOMMU knows it: its number, the domain it is attached to, its pins, and where its faults go. Give it to
/// the device's memory by [`DmaSpace::with_translate`](iovirt_core::dma::DmaSpace::with_translate).
///
/// Without a domain every access is a fault. Faults are recorded and end as errors of the access; what the device makes of
/// them is its own.
#[derive(Debug)]
pub struct Endpoint {
    id: DeviceId,
    domain: ArcSwapOption<Domain>,
    /// One attach or detach at a time.
    moving: Mutex<()>,
    pins: Arc<PinBoard>,
    faults: Arc<FaultQueue>,
}

impl Endpoint {
    /// A device that is attached to no domain.
    pub fn new(id: DeviceId, faults: &Arc<FaultQueue>) -> Arc<Self> {
        Arc::new(Self {
            id,
            domain: ArcSwapOption::empty(),
            moving: Mutex::default(),
            pins: PinBoard::new(),
            faults: faults.clone(),
        })
    }

    /// Its number.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// The domain it is attached to.
    pub fn domain(&self) -> Option<Arc<Domain>> {
        self.domain.load_full()
    }

    /// Attaches the device to a domain and detaches it from the one before: from now on it translates there. The ticket
    /// tells when it uses nothing of the one before.
    pub fn attach(&self, domain: &Arc<Domain>) -> InvalidateTicket {
        self.move_to(Some(domain))
    }

    /// Detaches the device: from now on every access is a fault. The ticket tells when it uses nothing any more.
    pub fn detach(&self) -> InvalidateTicket {
        self.move_to(None)
    }

    fn move_to(&self, domain: Option<&Arc<Domain>>) -> InvalidateTicket {
        let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(domain) = domain {
            // Before the device can translate there: no unmap may miss it.
            domain.add(&self.pins);
        }
        let before = self.domain.swap(domain.cloned());
        let ticket = self.pins.invalidate(IovaRange::ALL);
        if let Some(before) = before {
            before.remove(&self.pins, self.pins.invalidate(IovaRange::ALL));
        }
        ticket
    }
}

impl Translate for Endpoint {
    fn pins(&self) -> &Arc<PinBoard> {
        &self.pins
    }

    fn translate(&self, iova: u64, _: u64, access: Access) -> Result<Translation, DmaFault> {
        let found = match &*self.domain.load() {
            Some(domain) => domain.translate(iova, access),
            None => Err(DmaFault { iova, access, reason: FaultReason::NoDomain }),
        };
        found.inspect_err(|&fault| self.faults.record(FaultRecord { device: self.id, fault }))
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // The domain goes on waiting for what is pinned: pins hold the board, not the endpoint.
        drop(self.detach());
    }
}
