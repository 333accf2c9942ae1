//! What C calls: `guest/c/exg.h` has the list.

use crate::cpu::Cpu;
use crate::find::{Found, find};
use core::arch::x86_64::__cpuid;

/// What this guest finds: features; bit 31: one of another version; 0: nothing.
#[unsafe(no_mangle)]
extern "C" fn ex_rs_find() -> u32 {
    let cpuid = |leaf| {
        let r = __cpuid(leaf);
        [r.eax, r.ebx, r.ecx, r.edx]
    };
    match find(cpuid) {
        Found::Nothing => 0,
        Found::OtherVersion(_) => 1 << 31,
        Found::Features(features) => features & !(1 << 31),
    }
}

/// [`Cpu::set`].
#[unsafe(no_mangle)]
extern "C" fn ex_rs_set(cpu: *const Cpu, deadline: u64) -> bool {
    // SAFETY: C gives this CPU's, which lives until no CPU can come here.
    unsafe { &*cpu }.set(deadline)
}

unsafe extern "C" {
    fn exg_wrmsr_deadline(value: u64);
}

/// [`Cpu::write`].
#[unsafe(no_mangle)]
extern "C" fn ex_rs_write(cpu: *const Cpu, deadline: u64) {
    // SAFETY: the CPU as above; C's function takes any value.
    unsafe { (*cpu).write(deadline, |value| exg_wrmsr_deadline(value)) }
}

/// [`Cpu::wrote`].
#[unsafe(no_mangle)]
extern "C" fn ex_rs_wrote(cpu: *const Cpu, deadline: u64, now: u64, second: u64) -> bool {
    // SAFETY: as above.
    unsafe { &*cpu }.wrote(deadline, now, second)
}

/// [`Cpu::asks`].
#[unsafe(no_mangle)]
extern "C" fn ex_rs_asks(cpu: *const Cpu, now: u64, second: u64) {
    // SAFETY: as above.
    unsafe { &*cpu }.asks(now, second);
}
