//! PCI: a bus with its configuration space, windows that move, and interrupts by line or by message.
//!
//! ```text
//!   vCPU ── ports 0xCF8, 0xCFC, ECAM ──► PciBus ── configuration space ──► PciFunction
//!        ── memory and port windows  ──►   │  ── registers in a BAR  ──►      │
//!                                          │                                  ├─ Msix ──► MsiSink
//!                       BarListener ◄── a window moved                        └─ LineInput ──► InterruptLine
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `address.rs` | [`PciAddress`], and what an ECAM offset or the address port selects |
//! | `config_space.rs` | [`ConfigSpace`]: 256 bytes, what of them is writable, BARs, capabilities |
//! | `function.rs` | [`PciFunction`], what a device on the bus is |
//! | `bus.rs` | [`PciBus`] |
//! | `firmware.rs` | places BARs as firmware would |
//! | `msix.rs` | [`Msix`]: table, pending bits, masks |
//! | `intx.rs` | [`LineInput`]: many functions on one level-triggered line |
//! | `host_bridge.rs` | [`HostBridge`], which a guest expects at 00.0 |
//!
//! One bus, number 0, with conventional configuration space (256 bytes; the extended space reads as zeroes). References are
//! to the PCI Local Bus Specification 3.0.

mod address;
mod bus;
mod config_space;
mod error;
mod firmware;
mod function;
mod host_bridge;
mod intx;
mod msix;
#[cfg(test)]
mod tests;

pub use address::PciAddress;
pub use bus::{BarListener, BarMove, PciBus, PciBusConfig};
pub use config_space::{Bar, Command, ConfigSpace, Identity, InterruptStatus};
pub use error::PciError;
pub use function::{IntxPin, PciFunction};
pub use host_bridge::HostBridge;
pub use intx::{LineInput, SharedLine};
pub use msix::{Msix, MsixState};

/// Bytes of a function's configuration space that exist.
pub const CONFIG_LEN: usize = 256;
/// Bytes that ECAM gives each function: the extended space is part of it (PCI Express 3.0, section 7.2.2).
pub const ECAM_FUNCTION_LEN: u64 = 4096;
/// Bytes of ECAM for the one bus.
pub const ECAM_LEN: u64 = 256 * ECAM_FUNCTION_LEN;
/// The first of the eight ports of the configuration mechanism (section 3.2.2.3.2).
pub const CONFIG_PORT: u16 = 0xcf8;
/// How many ports the configuration mechanism has.
pub const CONFIG_PORT_LEN: u64 = 8;
