//! VMX operation on this CPU, on and off, and what a VM exit must find here; the code is in `linux/c/vmx.c`.

use crate::Result;
use crate::errno::check;
use crate::ffi;

/// Words of `struct ex_vmx_host_state`.
pub const STATE_WORDS: usize = 13;

/// VMXON with the region at this physical address. Interrupts off. `EBUSY`: somebody else is in VMX operation here; `EIO`:
/// the processor refuses.
pub fn on(region_pa: u64) -> Result<()> {
    // SAFETY: the helper refuses where VMX is on; a fault of VMXON is caught.
    check(unsafe { ffi::ex_vmx_on(region_pa) }).map(drop)
}

/// The person who loaded the module, and the kernel, let the CPU virtualise the APIC.
pub fn wants_apicv() -> bool {
    // SAFETY: reads a parameter and a feature bit.
    unsafe { ffi::ex_vmx_wants_apicv() }
}

/// The module's parameter `ipiv`.
pub fn wants_ipiv() -> bool {
    // SAFETY: reads a flag.
    unsafe { ffi::ex_vmx_wants_ipiv() }
}

/// The module's parameter `raw_ipi`.
pub fn allows_raw_ipi() -> bool {
    // SAFETY: reads a flag.
    unsafe { ffi::ex_vmx_allows_raw_ipi() }
}

/// The kernel takes its events by FRED, where interrupts and NMIs that an exit took cannot be handed over through gates.
pub fn fred() -> bool {
    // SAFETY: reads a feature bit.
    unsafe { ffi::ex_vmx_fred() }
}

/// APIC timers may be in the CPU's timer, which counts TSC ticks.
pub fn wants_timer() -> bool {
    // SAFETY: reads a parameter and a flag of the kernel's.
    unsafe { ffi::ex_vmx_wants_timer() }
}

/// The module's parameter `pml`.
pub fn wants_pml() -> bool {
    // SAFETY: reads a flag.
    unsafe { ffi::ex_vmx_wants_pml() }
}

/// The module's parameter `vpid`.
pub fn wants_vpid() -> bool {
    // SAFETY: reads a flag.
    unsafe { ffi::ex_vmx_wants_vpid() }
}

/// Decides what is done against faults of the CPU, from what the kernel was started with and the module's parameters. Once,
/// at load, before the other functions; `linux/c/module.c` undoes it.
pub fn begin_mitigations() -> Result<()> {
    // SAFETY: process context.
    check(unsafe { ffi::ex_vmx_mitigations_begin() }).map(drop)
}

/// Entries must flush the L1 data cache when it is dirty.
pub fn flushes_l1d() -> bool {
    // SAFETY: reads what was decided at load.
    unsafe { ffi::ex_vmx_flushes_l1d() }
}

/// Guests must not execute from large pages.
pub fn guards_exec() -> bool {
    // SAFETY: reads what the kernel decided at boot.
    unsafe { ffi::ex_vmx_guards_exec() }
}

/// The host's APICs are in x2APIC mode.
pub fn host_x2apic() -> bool {
    // SAFETY: reads a register.
    unsafe { ffi::ex_vmx_host_x2apic() }
}

/// The host's tick is the local APIC's timer in TSC-deadline mode, such that it can be lent to guests.
pub fn timer_fits() -> bool {
    // SAFETY: reads a register of this CPU's APIC, whichever it is, and what the kernel knows of its clocks.
    unsafe { ffi::ex_vmx_timer_fits() }
}

/// VMXOFF, after every VMCS here was cleared. Interrupts off. Harmless when a shutdown was faster.
pub fn off() {
    // SAFETY: a fault of VMXOFF is caught.
    unsafe { ffi::ex_vmx_off() }
}

/// The host's state on this CPU, as `exitless_vmx::HostState` lays it out; constant while the CPU is online. Preemption
/// off.
pub fn state(words: &mut [u64; STATE_WORDS]) {
    // SAFETY: the structure has that many words (asserted in C).
    unsafe { ffi::ex_vmx_host_state(words.as_mut_ptr()) }
}
