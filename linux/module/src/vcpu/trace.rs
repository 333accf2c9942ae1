//! The hall's events, as Linux has them.

use exitless_host::trace::{self, Isa};
use exitless_vcpu::backend::ExitInfo;
use exitless_vcpu::traced::Trace;
use exitless_x86::vmx::exit::BasicReason;

/// Tells what the vCPU with this id did.
pub fn tell(vcpu: u32, isa: Isa, event: &Trace) {
    match *event {
        Trace::Entry { rip } => trace::entry(vcpu, rip),
        Trace::Exit { rip, ref info, fault } => exit(vcpu, isa, rip, info, fault),
        Trace::Cpuid { function, index, ref answer, found, used_max_basic } => {
            trace::cpuid(function, index, answer, found, used_max_basic);
        }
        Trace::Msr { write, index, data, refused } => trace::msr(write, index, data, refused),
        Trace::Apic { write, register, value } => trace::apic(write, register, value),
        Trace::Hypercall { number, ref operands } => trace::hypercall(number, operands),
        Trace::Pio { write, port, size, count, data } => trace::pio(write, port, size, count, data),
        Trace::Mmio { kind, len, gpa, data } => trace::mmio(kind as u32, len, gpa, data),
        Trace::FastMmio { gpa } => trace::fast_mmio(gpa),
        Trace::Ipi { icr, destination } => trace::ipi(icr, destination),
        Trace::Eoi { vector } => trace::eoi(vcpu, vector),
        Trace::PvEoi { vector } => trace::pv_eoi(vcpu, vector),
        Trace::Interrupt { vector, soft, again } => trace::inject_interrupt(vector, soft, again),
        Trace::Exception { vector, error_code, again } => trace::inject_exception(vector, error_code, again),
        Trace::Cr { write, number, value } => trace::cr(write, number, value),
        Trace::TimerWait { late } => trace::timer_wait(vcpu, late),
        Trace::Emulates { rip, code, ref bytes, length, flags, failed } => {
            trace::emulate(rip, code, bytes, length, flags, failed);
        }
    }
}

/// The exit, and what stock KVM tells besides of its kind: a fault of the second level, but for VMX's misconfigurations, which mark
/// devices; a full log.
fn exit(vcpu: u32, isa: Isa, rip: u64, info: &ExitInfo, fault: Option<u64>) {
    const MISCONFIGURATION: u32 = BasicReason::EPT_MISCONFIGURATION.0 as u32;
    const FULL: u32 = BasicReason::PML_FULL.0 as u32;
    trace::exit(vcpu, isa, info.reason, rip, [info.info1, info.info2], [info.event, info.error_code]);
    if let Some(gpa) = fault.filter(|_| isa == Isa::Svm || info.reason != MISCONFIGURATION) {
        trace::page_fault(vcpu, rip, gpa, info.info1);
    }
    if isa == Isa::Vmx && info.reason == FULL {
        trace::log_full(vcpu);
    }
}
