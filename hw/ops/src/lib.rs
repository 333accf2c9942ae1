//! One privileged instruction each, with its contract. Nothing here decides.
#![no_std]

use core::arch::{asm, x86_64::__cpuid_count};
pub use exitless_x86::cpuid::CpuidResult;

/// Executes CPUID.
pub fn cpuid(leaf: u32, sub: u32) -> CpuidResult {
    let r = __cpuid_count(leaf, sub);
    CpuidResult { eax: r.eax, ebx: r.ebx, ecx: r.ecx, edx: r.edx }
}

/// Reads a model-specific register.
///
/// # Safety
/// CPL 0, and `msr` exists on this CPU (otherwise the kernel takes #GP).
pub unsafe fn rdmsr(msr: u32) -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: the caller vouches for the register; RDMSR touches no memory.
    unsafe {
        asm!("rdmsr", in("ecx") msr, out("eax") lo, out("edx") hi, options(nomem, nostack, preserves_flags))
    };
    u64::from(hi) << 32 | u64::from(lo)
}

/// Writes a model-specific register.
///
/// # Safety
/// CPL 0; `msr` exists and accepts `value`, and the new value breaks no invariant of the host kernel.
pub unsafe fn wrmsr(msr: u32, value: u64) {
    // SAFETY: the caller vouches for register and value.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nostack, preserves_flags));
    }
}

/// Reads the time-stamp counter, not ordered against other instructions.
pub fn rdtsc() -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: the module runs at CPL 0, where RDTSC never faults; in user space Linux leaves CR4.TSD clear.
    unsafe { asm!("rdtsc", out("eax") lo, out("edx") hi, options(nomem, nostack, preserves_flags)) };
    u64::from(hi) << 32 | u64::from(lo)
}

/// Reads the time-stamp counter when all instructions before have completed, writes of MSRs that serialise nothing among them.
pub fn rdtsc_behind() -> u64 {
    // SAFETY: LFENCE orders (SDM vol. 2A; on AMD the kernel makes it do so), and touches nothing.
    unsafe { asm!("lfence", options(nomem, nostack, preserves_flags)) };
    rdtsc()
}

/// Writes an extended control register.
///
/// # Safety
/// CPL 0 and CR4.OSXSAVE set; `value` is valid for the CPU; the kernel's own value is restored before anything
/// that may use extended state runs.
pub unsafe fn xsetbv(index: u32, value: u64) {
    // SAFETY: the caller vouches for the value.
    unsafe {
        asm!("xsetbv", in("ecx") index, in("eax") value as u32, in("edx") (value >> 32) as u32,
            options(nomem, nostack, preserves_flags));
    }
}

/// Reads an extended control register.
///
/// # Safety
/// CR4.OSXSAVE is set and `index` exists.
pub unsafe fn xgetbv(index: u32) -> u64 {
    let (lo, hi): (u32, u32);
    // SAFETY: the caller vouches for the register.
    unsafe {
        asm!("xgetbv", in("ecx") index, out("eax") lo, out("edx") hi, options(nomem, nostack, preserves_flags))
    };
    u64::from(hi) << 32 | u64::from(lo)
}

/// Reads PKRU.
///
/// # Safety
/// CR4.PKE is set.
pub unsafe fn rdpkru() -> u32 {
    let v: u32;
    // SAFETY: the caller vouches for CR4; RDPKRU wants 0 in ECX and clears EDX.
    unsafe {
        asm!("rdpkru", in("ecx") 0, out("eax") v, out("edx") _, options(nomem, nostack, preserves_flags))
    };
    v
}

/// Writes PKRU, which also guards the kernel's accesses to user pages.
///
/// # Safety
/// CR4.PKE is set; the task's value is back before anything needs user memory.
pub unsafe fn wrpkru(v: u32) {
    // SAFETY: the caller vouches for CR4 and the value; WRPKRU wants 0 in ECX and EDX.
    unsafe { asm!("wrpkru", in("ecx") 0, in("edx") 0, in("eax") v, options(nostack, preserves_flags)) };
}

macro_rules! debug_register {
    ($get:ident, $set:ident, $name:literal) => {
        /// Reads the debug register.
        ///
        /// # Safety
        /// CPL 0 and DR7.GD clear.
        pub unsafe fn $get() -> u64 {
            let v: u64;
            // SAFETY: the caller vouches for CPL and GD.
            unsafe { asm!(concat!("mov {}, ", $name), out(reg) v, options(nomem, nostack, preserves_flags)) };
            v
        }
        /// Writes the debug register.
        ///
        /// # Safety
        /// CPL 0, interrupts off, and the host's value is restored before interrupts are enabled.
        pub unsafe fn $set(v: u64) {
            // SAFETY: the caller vouches for the context.
            unsafe { asm!(concat!("mov ", $name, ", {}"), in(reg) v, options(nomem, nostack, preserves_flags)) };
        }
    };
}
debug_register!(dr0, set_dr0, "dr0");
debug_register!(dr1, set_dr1, "dr1");
debug_register!(dr2, set_dr2, "dr2");
debug_register!(dr3, set_dr3, "dr3");
debug_register!(dr6, set_dr6, "dr6");
debug_register!(dr7, set_dr7, "dr7");

/// Sets the global interrupt flag.
///
/// # Safety
/// EFER.SVME is set, and pending interrupts may be taken from now on.
pub unsafe fn stgi() {
    // SAFETY: the caller vouches for SVME and the context.
    unsafe { asm!("stgi", options(nostack, preserves_flags)) };
}

/// Reads CR4.
pub fn cr4() -> u64 {
    let v: u64;
    // SAFETY: the module runs at CPL 0, where reading CR4 has no effect.
    unsafe { asm!("mov {}, cr4", out(reg) v, options(nomem, nostack, preserves_flags)) };
    v
}
