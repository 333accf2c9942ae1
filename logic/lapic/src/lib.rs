//! The local APIC as pure decisions: registers, priority, LVT, timer, EOI, save and restore.
//!
//! # Vocabulary
//! * **owner**: the thread that runs the vCPU. Only it touches [`Lapic`].
//! * **sender**: any CPU or device with an interrupt for the vCPU. It touches only [`Shared`].
//! * **pending**: a bit in the IRR; **in service**: a bit in the ISR; **PPR**: the priority that a vector must beat.
//! * **publish**: the owner copies what senders must know (ids, mode, LINT entries, PPR) into [`Shared`].
//!
//! ```text
//!  I/O APIC, MSI, ICR ──route()──▶ Shared (TMR, IRR, NMI, INIT, SIPI) ──pending()/ack()──▶ Lapic (ISR) ──eoi()──▶ EoiWork
//!                                        ▲                                    │
//!                                        └────────── expire() ◀── Timer ◀── LVTT, TMICT, TSC_DEADLINE
//! ```
//! What the decisions cannot do themselves (send an IPI, program a host timer, tell the I/O APIC) comes back as [`Work`].
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

mod access;
mod base;
mod bitmap;
mod hardware;
mod lapic;
mod page;
mod route;
mod shared;
mod state;
mod timer;
mod work;

pub use base::{BaseCaps, Mode};
pub use lapic::{Lapic, Reset};
pub use page::ApicPage;
pub use route::{Delivered, Targets, named, route, route_few};
pub use shared::{Accepted, Shared, Startup};
pub use state::BadState;
pub use timer::{Armed, Now};
pub use work::{Config, EoiWork, Gp, Work};
