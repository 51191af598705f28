//! Level-triggered interrupt lines that several functions share (section 2.2.6).

use iovirt_core::irq::InterruptLine;
use iovirt_core::sync::{Arc, Mutex, PoisonError};
use std::sync::atomic::{AtomicBool, Ordering};

/// A line that is asserted while at least one of its inputs is.
#[derive(Clone, Debug)]
pub struct SharedLine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    line: Arc<dyn InterruptLine>,
    asserted: Mutex<usize>,
}

impl SharedLine {
    /// In front of that line.
    pub fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self { shared: Arc::new(Shared { line, asserted: Mutex::new(0) }) }
    }

    /// One more input.
    pub fn input(&self) -> LineInput {
        LineInput { shared: self.shared.clone(), asserted: AtomicBool::new(false) }
    }
}

/// One function's end of a line. Quiet when it is dropped.
#[derive(Debug)]
pub struct LineInput {
    shared: Arc<Shared>,
    asserted: AtomicBool,
}

impl LineInput {
    /// Asserts the line, if this input has not done so already.
    pub fn assert(&self) {
        let mut count = self.shared.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.asserted.swap(true, Ordering::Relaxed) {
            *count += 1;
            if *count == 1 {
                self.shared.line.assert();
            }
        }
    }

    /// Lets go of the line; it stays asserted while another input holds it.
    pub fn deassert(&self) {
        let mut count = self.shared.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        if self.asserted.swap(false, Ordering::Relaxed) {
            *count -= 1;
            if *count == 0 {
                self.shared.line.deassert();
            }
        }
    }
}

impl Drop for LineInput {
    fn drop(&mut self) {
        self.deassert();
    }
}
