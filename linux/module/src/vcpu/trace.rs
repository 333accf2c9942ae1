//! The hall's events, as Linux has them.

use exitless_host::trace::{self, Isa};
use exitless_vcpu::traced::Trace;

/// Tells what the vCPU with this id did.
pub fn tell(vcpu: u32, isa: Isa, event: &Trace) {
    match *event {
        Trace::Entry { rip } => trace::entry(vcpu, rip),
        Trace::Exit { rip, info } => {
            trace::exit(vcpu, isa, info.reason, rip, [info.info1, info.info2], [info.event, info.error_code]);
        }
        Trace::Cpuid { function, index, ref answer, found, used_max_basic } => {
            trace::cpuid(function, index, answer, found, used_max_basic);
        }
        Trace::Msr { write, index, data, refused } => trace::msr(write, index, data, refused),
        Trace::Apic { write, register, value } => trace::apic(write, register, value),
        Trace::Hypercall { number, ref operands } => trace::hypercall(number, operands),
        Trace::Pio { write, port, size, count, data } => trace::pio(write, port, size, count, data),
        Trace::Mmio { kind, len, gpa, data } => trace::mmio(kind as u32, len, gpa, data),
    }
}
