//! The VMX backend: one Intel VT-x virtual CPU behind the hall's [`Backend`] trait.
//!
//! Twin of `hw/svm`: same file names, same verbs. Where VMX differs:
//! the VMCS is only reachable on the CPU where it is loaded ([`Residence`]), so registers are cached ([`cache`]);
//! host state is the VMCS's business ([`host`]); syscall MSRs change hands in software ([`host`] too).
//!
//! ```text
//!            load (VMPTRLD)            enter (IRQs off)                exit
//!   memory ───────────────▶ current ───────────────────▶ live, guest ───────▶ live, host ──┐
//!     ▲        clear_here     │ ▲   host state and MSRs       ▲                            │
//!     └──────── (VMCLEAR) ────┘ └──────────── put ────────────┴────────────────────────────┘
//! ```
//! *Live*: the guest's syscall MSRs and no host selectors are in the CPU; `put` undoes that before anyone else may look.
//!
//! With APIC virtualisation ([`vapic`]) an exit acknowledges the external interrupt that caused it, and the backend
//! calls the kernel's handler when the slice is over; without, the interrupt stays pending and is taken when the host enables interrupts.
//!
//! [`Backend`]: exitless_vcpu::backend::Backend
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]

#[cfg(test)]
extern crate std;

pub mod cache;
pub mod caps;
pub mod enter;
pub mod exit;
pub mod host;
pub mod inject;
pub mod lend;
pub mod log;
pub mod machine;
pub mod msr_bitmap;
pub mod ops;
pub mod percpu;
pub mod pmu;
pub mod residence;
pub mod state;
pub mod timer;
pub mod vapic;
pub mod vcpu;

pub use caps::{Caps, Missing};
pub use machine::{Hardware, Machine};
pub use percpu::{HostState, PerCpu};
pub use residence::{LoadError, Residence};
pub use vcpu::{MsrBitmaps, Pages, Vmx};

#[cfg(test)]
mod tests;
