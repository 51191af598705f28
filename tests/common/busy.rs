//! A network on which there always is a frame to be received, and every frame that is sent is gone.

use iovirt_core::pipeline::{EventListener, Stages};
use iovirt_core::request::net::{NetCaps, NetError, NetOp, NetOutput, NetRequest};
use iovirt_core::state::{StageStates, StateError};
use iovirt_core::{Backend, BackendError, Completions, Depth, Mode, Queue, WorkerContext};
use std::sync::Arc;

pub(crate) struct BusyNetwork {
    caps: Arc<NetCaps>,
    frame: Arc<[u8]>,
}

impl BusyNetwork {
    /// It brings that frame, again and again.
    pub(crate) fn new(frame: &[u8]) -> Self {
        Self { caps: Arc::new(NetCaps::new(1500, 1)), frame: frame.into() }
    }
}

impl Backend<NetRequest> for BusyNetwork {
    type Queue = BusyQueue;

    fn caps(&self) -> Arc<NetCaps> {
        self.caps.clone()
    }

    fn open(&self, _: &mut WorkerContext<'_>, _: Depth) -> Result<BusyQueue, BackendError> {
        Ok(BusyQueue { frame: self.frame.clone(), held: Vec::new(), draining: false })
    }

    fn stages(&self, stages: &mut Stages) {
        stages.push("busy");
    }

    fn subscribe(&self, _: &Arc<dyn EventListener>) {}

    fn save(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }

    fn restore(&self, _: &mut StageStates) -> Result<(), StateError> {
        Ok(())
    }
}

pub(crate) struct BusyQueue {
    frame: Arc<[u8]>,
    held: Vec<NetRequest>,
    draining: bool,
}

impl BusyQueue {
    fn finish(&self, request: &mut NetRequest) -> NetOutput {
        if request.op() == NetOp::Receive {
            if self.draining {
                return NetOutput::Failed(NetError::Aborted);
            }
            let sg = request.sg_mut();
            sg.push_host(self.frame.len())
                .and_then(|()| sg.copy_from(0, &self.frame))
                .expect("room for a frame");
        }
        NetOutput::Done
    }
}

impl Queue<NetRequest> for BusyQueue {
    fn submit(&mut self, _: &mut WorkerContext<'_>, request: NetRequest) {
        self.held.push(request);
    }

    fn kick(&mut self, _: &mut WorkerContext<'_>) {}

    fn poll(&mut self, _: &mut WorkerContext<'_>, done: &mut Completions<NetRequest>) {
        for mut request in std::mem::take(&mut self.held) {
            let output = self.finish(&mut request);
            done.push(request, output);
        }
    }

    fn drain(&mut self, cx: &mut WorkerContext<'_>) {
        self.draining = true;
        cx.run_again();
    }

    fn resume(&mut self, _: &mut WorkerContext<'_>) {
        self.draining = false;
    }

    fn mode(&self) -> Mode {
        match (self.draining, self.held.is_empty()) {
            (false, _) => Mode::Running,
            (true, false) => Mode::Draining,
            (true, true) => Mode::Quiesced,
        }
    }

    fn in_flight(&self) -> usize {
        self.held.len()
    }
}
