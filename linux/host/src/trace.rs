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

/// `kvm_emulate_insn`: code at `rip` in the segment that begins at `code`; `flags`: CR0.PE, EFLAGS.VM, CS.D, CS.L.
pub fn emulate(rip: u64, code: u32, bytes: &[u8; 15], length: u8, flags: u8, failed: bool) {
    // SAFETY: as above; 15 bytes are read.
    unsafe { ffi::ex_trace_emulate(rip, code, bytes.as_ptr(), length.min(15), flags, failed) }
}

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $t:ty),*) => $c:ident($($pass:expr),*);)*) => {$(
        $(#[$doc])*
        pub fn $name($($arg: $t),*) {
            // SAFETY: takes numbers.
            unsafe { ffi::$c($($pass),*) }
        }
    )*};
}

events! {
    /// `kvm_fast_mmio`.
    fast_mmio(gpa: u64) => ex_trace_fast_mmio(gpa);
    /// `kvm_apic_ipi`.
    ipi(icr: u32, destination: u32) => ex_trace_ipi(icr, destination);
    /// `kvm_apic_accept_irq`; `mode`: the delivery mode's number.
    accept(apic: u32, mode: u8, level: bool, vector: u8) => ex_trace_accept(apic, u16::from(mode) << 8, level, vector);
    /// `kvm_eoi`.
    eoi(apic: u32, vector: u8) => ex_trace_eoi(apic, vector);
    /// `kvm_pv_eoi`.
    pv_eoi(apic: u32, vector: u8) => ex_trace_pv_eoi(apic, vector);
    /// `kvm_inj_virq`; `again`: its delivery was interrupted.
    inject_interrupt(vector: u8, soft: bool, again: bool) => ex_trace_inject_interrupt(vector, soft, again);
    /// `kvm_inj_exception`.
    inject_exception(vector: u8, error_code: Option<u32>, again: bool) =>
        ex_trace_inject_exception(vector, error_code.is_some(), error_code.unwrap_or(0), again);
    /// `kvm_cr`.
    cr(write: bool, number: u8, value: u64) => ex_trace_cr(write, u32::from(number), value);
    /// `kvm_wait_lapic_expire`: by how many ticks the timer was late; negative: early.
    timer_wait(vcpu: u32, late: i64) => ex_trace_timer_wait(vcpu, late);
    /// `kvm_page_fault`.
    page_fault(vcpu: u32, rip: u64, address: u64, error_code: u64) =>
        ex_trace_page_fault(vcpu, rip, address, error_code);
    /// `kvm_pml_full`.
    log_full(vcpu: u32) => ex_trace_log_full(vcpu);
    /// `kvm_userspace_exit`; `err`: what KVM_RUN returns.
    user_exit(reason: u32, err: i32) => ex_trace_user_exit(reason, err);
    /// `kvm_fpu`: the guest's registers are loaded, or put away.
    fpu(load: bool) => ex_trace_fpu(load);
    /// `kvm_vcpu_wakeup`: so long it slept, or waited awake; `valid`: for something.
    wakeup(ns: u64, waited: bool, valid: bool) => ex_trace_wakeup(ns, waited, valid);
    /// `kvm_halt_poll_ns`: how long it waits awake from now on, and until now, ns.
    halt_poll(vcpu: u32, now: u64, before: u64) => ex_trace_halt_poll(vcpu, now as u32, before as u32);
    /// `kvm_set_irq`; `source`: KVM's number of it.
    set_irq(gsi: u32, level: bool, source: u32) => ex_trace_set_irq(gsi, level, source);
    /// `kvm_msi_set_irq`.
    msi(address: u64, data: u32) => ex_trace_msi(address, u64::from(data));
    /// `kvm_ack_irq`; `chip`: KVM_IRQCHIP_*.
    ack(chip: u32, pin: u32) => ex_trace_ack(chip, pin);
}
