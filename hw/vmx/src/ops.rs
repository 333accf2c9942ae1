//! VMX instructions, one function each. None of them can fault the host.
//!
//! An emergency restart leaves VMX operation on all CPUs while code like this still runs; from then on each of these
//! instructions is #UD. So each has an entry in the kernel's exception table that continues behind it with the result
//! "failed". The table's format (three 32-bit words: faulting instruction and continuation, both relative, and type 1) is
//! asserted in linux/c/vmx.c.

use core::arch::asm;

/// An exception-table entry from label 2 to label 3.
macro_rules! fixup {
    () => {
        ".pushsection __ex_table, \"a\"\n.balign 4\n.long 2b - .\n.long 3b - .\n.long 1\n.popsection"
    };
}

/// VMREAD of the current VMCS; 0 when there is none, or no such field.
#[inline]
pub fn vmread(encoding: u32) -> u64 {
    let value;
    // SAFETY: VMREAD to a register changes that register and flags; a fault continues at label 3 with the 0 in place. A
    // failing VMREAD leaves its operand alone.
    unsafe {
        asm!("2: vmread {value}, {field}", "3:", fixup!(),
            field = in(reg) u64::from(encoding), value = inout(reg) 0u64 => value, options(nomem, nostack));
    }
    value
}

/// VMWRITE to the current VMCS. `false`: there is none, or no such field, or VMX is off.
#[inline]
pub fn vmwrite(encoding: u32, value: u64) -> bool {
    let failed: u8;
    // SAFETY: VMWRITE changes the VMCS only, which Rust never sees as memory; what the fields mean for memory safety is
    // the business of the entry. A fault continues at label 3.
    unsafe {
        asm!("2: vmwrite {field}, {value}", "setna {failed}", "3:", fixup!(),
            field = in(reg) u64::from(encoding), value = in(reg) value, failed = inout(reg_byte) 1u8 => failed,
            options(nostack));
    }
    failed == 0
}

macro_rules! by_address {
    ($name:ident, $doc:literal) => {
        #[doc = $doc]
        /// `false`: the processor refused the address, or VMX is off.
        pub fn $name(pa: u64) -> bool {
            let failed: u8;
            // SAFETY: the operand is a local; the region behind `pa` belongs to the processor while its VMCS is active
            // (`Residence` owns it). A fault continues at label 3.
            unsafe {
                asm!(concat!("2: ", stringify!($name), " qword ptr [{at}]"), "setna {failed}", "3:", fixup!(),
                    at = in(reg) &raw const pa, failed = inout(reg_byte) 1u8 => failed, options(nostack));
            }
            failed == 0
        }
    };
}
by_address!(vmclear, "VMCLEAR: writes the VMCS at `pa` back to memory and makes it inactive here.");
by_address!(vmptrld, "VMPTRLD: makes the VMCS at `pa` current.");

macro_rules! by_descriptor {
    ($mnemonic:literal, $kind:ident, $first:expr) => {{
        let failed: u8;
        let descriptor = [$first, 0u64];
        // SAFETY: drops cached translations only; the operand is a local. A fault continues at label 3.
        unsafe {
            asm!(concat!("2: ", $mnemonic, " {kind}, xmmword ptr [{at}]"), "setna {failed}", "3:", fixup!(),
                kind = in(reg) $kind, at = in(reg) &raw const descriptor,
                failed = inout(reg_byte) 1u8 => failed, options(nostack));
        }
        failed == 0
    }};
}

/// INVEPT of this type. `false`: the processor refused the operands, or VMX is off.
pub fn invept(kind: u64, eptp: u64) -> bool {
    by_descriptor!("invept", kind, eptp)
}

/// INVVPID of this type, not for single addresses. `false`: the processor refused the operands, or VMX is off.
pub fn invvpid(kind: u64, vpid: u16) -> bool {
    by_descriptor!("invvpid", kind, u64::from(vpid))
}

/// DS, ES, FS, GS and LDTR selectors.
pub fn selectors() -> (u16, u16, u16, u16, u16) {
    let (ds, es, fs, gs, ldt): (u64, u64, u64, u64, u64);
    // SAFETY: reads selectors; SLDT is not faulting at CPL 0.
    unsafe {
        asm!("mov {ds:e}, ds", "mov {es:e}, es", "mov {fs:e}, fs", "mov {gs:e}, gs", "sldt {ldt:e}",
            ds = out(reg) ds, es = out(reg) es, fs = out(reg) fs, gs = out(reg) gs, ldt = out(reg) ldt,
            options(nomem, nostack, preserves_flags));
    }
    (ds as u16, es as u16, fs as u16, gs as u16, ldt as u16)
}

/// Runs `f` with interrupts off on this CPU, for a handful of instructions: the kernel's tracing of interrupt flags does
/// not hear of it.
pub fn without_interrupts<R>(f: impl FnOnce() -> R) -> R {
    let flags: u64;
    // SAFETY: CPL 0: CLI does not fault; the flags are put back below.
    unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
    let r = f();
    if flags & exitless_x86::regs::rflags::IF != 0 {
        // SAFETY: interrupts were on before.
        unsafe { asm!("sti", options(nostack)) };
    }
    r
}
