//! Linux's events `kvm:*`; the C side is `linux/c/trace.c`.

use crate::ffi;

#[cfg(target_os = "none")]
unsafe extern "C" {
    /// `struct static_key`: only its address is used.
    static ex_traced: u8;
}

/// Somebody listens to one of the events. A no-op that the kernel patches to a jump then: 5 bytes that are one of its own no-ops, and
/// an entry in the table of such places, which has their distance, the jump's and the key's (`struct jump_entry`).
#[cfg(target_os = "none")]
#[inline(always)]
pub fn wanted() -> bool {
    // SAFETY: changes nothing but where it goes on; the key is one that C defines for such branches, false at load.
    unsafe {
        core::arch::asm!(
            "2: .byte 0x0f, 0x1f, 0x44, 0x00, 0x00",
            ".pushsection __jump_table, \"aw\"",
            ".balign 8",
            ".long 2b - .",
            ".long {yes} - .",
            ".quad {key} - .",
            ".popsection",
            yes = label { return true },
            key = sym ex_traced,
            options(nomem, nostack, preserves_flags),
        );
    }
    false
}

/// Nobody listens in unit tests.
#[cfg(not(target_os = "none"))]
pub fn wanted() -> bool {
    false
}

/// Which words an exit is told in: the field `isa`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Isa {
    /// Exit reasons of VMX.
    Vmx = 1,
    /// Exit codes of SVM.
    Svm = 2,
}

/// `kvm_entry`.
pub fn entry(vcpu: u32, rip: u64) {
    // SAFETY: takes numbers; any context in which RCU watches, as for all events here.
    unsafe { ffi::ex_trace_entry(vcpu, rip) }
}

/// `kvm_exit`: the reason, the vendor's two words on it, the event of the exit and its error code.
pub fn exit(
    vcpu: u32,
    isa: Isa,
    reason: u32,
    rip: u64,
    [info1, info2]: [u64; 2],
    [event, error_code]: [u32; 2],
) {
    // SAFETY: as above.
    unsafe { ffi::ex_trace_exit(vcpu, isa as u32, reason, rip, info1, info2, event, error_code) }
}

/// `kvm_cpuid`.
pub fn cpuid(function: u32, index: u32, answer: &[u64; 4], found: bool, used_max_basic: bool) {
    // SAFETY: as above; four words are read.
    unsafe { ffi::ex_trace_cpuid(function, index, answer.as_ptr(), found, used_max_basic) }
}

/// `kvm_msr`.
pub fn msr(write: bool, index: u32, data: u64, refused: bool) {
    // SAFETY: as above.
    unsafe { ffi::ex_trace_msr(write, index, data, refused) }
}

/// `kvm_apic`.
pub fn apic(write: bool, register: u32, value: u64) {
    // SAFETY: as above.
    unsafe { ffi::ex_trace_apic(write, register, value) }
}

/// `kvm_hypercall`.
pub fn hypercall(number: u64, operands: &[u64; 4]) {
    // SAFETY: as above; four words are read.
    unsafe { ffi::ex_trace_hypercall(number, operands.as_ptr()) }
}

/// `kvm_pio`.
pub fn pio(write: bool, port: u16, size: u8, count: u32, value: u32) {
    // SAFETY: as above.
    unsafe { ffi::ex_trace_pio(write, port.into(), size.into(), count, value) }
}

/// `kvm_mmio`; `kind`: 0 a read without data, 1 a read, 2 a write.
pub fn mmio(kind: u32, len: u8, gpa: u64, value: u64) {
    // SAFETY: as above.
    unsafe { ffi::ex_trace_mmio(kind, len.into(), gpa, value) }
}
