//! The vCPU's state by ioctl: what is written comes back, what is invalid is refused, bad pointers are EFAULT.

use crate::env::*;
use exitless_runner::kvm::{self, Cpuid, Errno, Flex, MsrBuf, nr, zeroed};
use kvm_bindings::*;
use libc::{E2BIG, EFAULT, EINVAL, ENXIO};

pub(crate) const TESTS: &[Test] = &[
    ("state/regs", regs),
    ("state/regs_reserved_flags", regs_flags),
    ("state/reset", reset),
    ("state/sregs", sregs),
    ("state/sregs_invalid", sregs_invalid),
    ("state/sregs_long_mode", sregs_long),
    ("state/sregs_interrupt_bitmap", sregs_bitmap),
    ("state/fpu", fpu),
    ("state/xsave", xsave),
    ("state/xsave_matches_fpu", xsave_fpu),
    ("state/xsave_invalid", xsave_invalid),
    ("state/xcrs", xcrs),
    ("state/debugregs", debugregs),
    ("state/vcpu_events", events),
    ("state/vcpu_events_invalid", events_invalid),
    ("state/mp_state", mp_state),
    ("state/mp_state_without_irqchip", mp_state_bare),
    ("state/sipi_received", sipi_received),
    ("state/lapic", lapic),
    ("state/lapic_reset", lapic_reset),
    ("state/lapic_absent", lapic_absent),
    ("state/apic_base", apic_base),
    ("state/cpuid", cpuid),
    ("state/cpuid_limits", cpuid_limits),
    ("state/cpuid_after_run", cpuid_after_run),
    ("state/cpuid_old_call", cpuid_old),
    ("state/cpuid_half_readable", cpuid_half_readable),
    ("state/msrs_listed", msrs_listed),
    ("state/msrs_stop_at_the_first_bad_one", msrs_stop),
    ("state/msrs_too_many", msrs_many),
    ("state/msrs_boot_set", msrs_boot),
    ("state/msr_invalid_values", msr_invalid),
    ("state/tsc_khz", tsc_khz),
    ("state/tsc_khz_of_the_vm", tsc_khz_of_vm),
    ("state/interrupt_errors", interrupt),
    ("state/nmi", nmi),
    ("state/kvmclock_ctrl", kvmclock_ctrl),
    ("state/translate", translate),
    ("state/setup_mce", mce),
    ("state/nested", nested),
    ("state/nested_invalid", nested_invalid),
    ("state/vapic_and_tpr_reporting", vapic),
    ("state/signal_mask_errors", signal_mask),
    ("state/guest_debug_errors", guest_debug),
    ("state/smi", smi),
    ("state/bad_pointers", bad_pointers),
    ("state/from_another_thread", other_thread),
];

fn regs(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let a = kvm_regs {
        rax: 1,
        rbx: 2,
        rcx: 3,
        rdx: 4,
        rsi: 5,
        rdi: 6,
        rsp: 7,
        rbp: 8,
        r8: 9,
        r9: 10,
        r10: 11,
        r11: 12,
        r12: 13,
        r13: 14,
        r14: 15,
        r15: u64::MAX,
        rip: 0x1234,
        rflags: 0x246,
    };
    g.vcpu.fd.set(nr::SET_REGS, &a)?;
    same!(g.vcpu.regs()?, a, "registers");
    Ok(())
}

fn regs_flags(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    g.vcpu.fd.set(nr::SET_REGS, &kvm_regs { rflags: 0, ..Default::default() })?;
    same!(g.vcpu.regs()?.rflags & 2, 2, "bit 1 of the flags is always set");
    Ok(())
}

fn reset(e: &Env) -> R {
    let (s, vm) = e.vm_with_chips()?;
    let (a, b) = (vcpu(&s, &vm, 0)?, vcpu(&s, &vm, 1)?);
    let r: kvm_sregs = a.fd.get(nr::GET_SREGS)?;
    same!(r.cr0, 0x6000_0010, "CR0");
    same!(r.cs.selector, 0xf000, "CS");
    same!(r.cs.base, 0xffff_0000, "CS base");
    same!(r.idt.limit, 0xffff, "IDT limit");
    same!(r.apic_base, 0xfee0_0900, "APIC base of vCPU 0");
    same!(a.regs()?.rip, 0xfff0, "RIP");
    same!(a.regs()?.rflags, 2, "flags");
    let r: kvm_sregs = b.fd.get(nr::GET_SREGS)?;
    same!(r.apic_base, 0xfee0_0800, "APIC base of vCPU 1");
    let m: kvm_mp_state = a.fd.get(nr::GET_MP_STATE)?;
    same!(m.mp_state, KVM_MP_STATE_RUNNABLE, "vCPU 0");
    let m: kvm_mp_state = b.fd.get(nr::GET_MP_STATE)?;
    same!(m.mp_state, KVM_MP_STATE_UNINITIALIZED, "vCPU 1");
    Ok(())
}

fn sregs(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut a: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    a.ds.base = 0x12340;
    a.ds.selector = 0x1234;
    a.es.limit = 0x1_ffff;
    a.tr.base = 0x5000;
    a.ldt.selector = 0x28;
    a.ldt.base = 0x6000;
    a.gdt = kvm_dtable { base: 0x7000, limit: 0x7f, ..Default::default() };
    a.idt = kvm_dtable { base: 0x8000, limit: 0x3ff, ..Default::default() };
    a.cr2 = 0xdead_0000;
    a.cr4 = 0x600;
    a.cr8 = 3;
    g.vcpu.fd.set(nr::SET_SREGS, &a)?;
    let b: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    same!(b, a, "special registers");
    Ok(())
}

fn sregs_invalid(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let a: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    let bad = |what: &str, f: fn(&mut kvm_sregs)| -> R {
        let mut b = a;
        f(&mut b);
        errno!(g.vcpu.fd.set(nr::SET_SREGS, &b), EINVAL, "{what}");
        let now: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
        same!(now, a, "after {what}");
        Ok(())
    };
    bad("reserved bit of CR4", |s| s.cr4 |= 1 << 31)?;
    bad("long mode without PAE", |s| (s.efer, s.cr0) = (0x500, 0x8000_0011))?;
    bad("APIC base with x2APIC but not enabled", |s| s.apic_base = 0xfee0_0400)?;
    bad("APIC base with reserved bits", |s| s.apic_base |= 1)?;
    Ok(())
}

fn sregs_long(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut a: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    (a.cr0, a.cr3, a.cr4, a.efer) = (0x8000_0033, 0x9000, 0x6a0, 0xd00);
    (a.cs.l, a.cs.db, a.cs.type_, a.cs.g, a.cs.limit) = (1, 0, 0xb, 1, 0xffff_ffff);
    g.vcpu.fd.set(nr::SET_SREGS, &a)?;
    let b: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    same!((b.cr0, b.cr3, b.cr4, b.efer), (a.cr0, a.cr3, a.cr4, a.efer), "control registers");
    same!(b.cs.l, 1, "CS.L");
    Ok(())
}

fn sregs_bitmap(e: &Env) -> R {
    let g = e.idle(Chips::None)?;
    let mut a: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    a.interrupt_bitmap[1] = 1 << 5;
    g.vcpu.fd.set(nr::SET_SREGS, &a)?;
    let b: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    same!(b.interrupt_bitmap, a.interrupt_bitmap, "pending interrupt");
    Ok(())
}

fn fpu(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut a: kvm_fpu = g.vcpu.fd.get(nr::GET_FPU)?;
    same!(a.fcw, 0x37f, "control word after reset");
    a.fcw = 0x27f; // MXCSR is left alone by stock KVM's calls, so it is not looked at
    for (i, r) in a.xmm.iter_mut().enumerate() {
        *r = [i as u8 + 1; 16];
    }
    a.fpr[3][0] = 0x55;
    g.vcpu.fd.set(nr::SET_FPU, &a)?;
    let b: kvm_fpu = g.vcpu.fd.get(nr::GET_FPU)?;
    same!((b.fcw, b.xmm, b.fpr), (a.fcw, a.xmm, a.fpr), "FPU");
    Ok(())
}

type Xsave = [u32; 1024];

fn xsave(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut a: Box<Xsave> = zeroed();
    g.vcpu.fd.with(nr::GET_XSAVE, &mut *a)?;
    for i in 0..64 {
        a[40 + i] = 0x1000 + i as u32; // xmm
    }
    a[128] |= 3;
    g.vcpu.fd.set(nr::SET_XSAVE, &*a)?;
    let mut b: Box<Xsave> = zeroed();
    g.vcpu.fd.with(nr::GET_XSAVE, &mut *b)?;
    same!(a[40..104], b[40..104], "xmm registers");
    ensure!(b[128] & 2 != 0, "XSTATE_BV {:#x}", b[128]);
    Ok(())
}

fn xsave_fpu(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    // SSE in use first: KVM_SET_FPU does not change XSTATE_BV on stock KVM.
    let mut b: Box<Xsave> = zeroed();
    g.vcpu.fd.with(nr::GET_XSAVE, &mut *b)?;
    b[6] = 0x1f80;
    b[128] |= 3;
    g.vcpu.fd.set(nr::SET_XSAVE, &*b)?;
    let mut f: kvm_fpu = g.vcpu.fd.get(nr::GET_FPU)?;
    f.xmm[5] = [0x5a; 16];
    g.vcpu.fd.set(nr::SET_FPU, &f)?;
    let mut b: Box<Xsave> = zeroed();
    g.vcpu.fd.with(nr::GET_XSAVE, &mut *b)?;
    same!(b[40 + 20..40 + 24], [0x5a5a_5a5au32; 4], "xmm5");
    Ok(())
}

fn xsave_invalid(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut a: Box<Xsave> = zeroed();
    g.vcpu.fd.with(nr::GET_XSAVE, &mut *a)?;
    a[129] |= 1 << 31; // XSTATE_BV bit 63
    errno!(g.vcpu.fd.set(nr::SET_XSAVE, &*a), EINVAL, "a component that does not exist");
    a[129] &= !(1 << 31);
    a[6] = 0xffff_0000; // MXCSR
    a[128] |= 2;
    errno!(g.vcpu.fd.set(nr::SET_XSAVE, &*a), EINVAL, "reserved bits of MXCSR");
    Ok(())
}

fn xcrs(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut a: kvm_xcrs = g.vcpu.fd.get(nr::GET_XCRS)?;
    same!((a.nr_xcrs, a.xcrs[0].value), (1, 1), "after reset");
    a.xcrs[0].value = 3;
    g.vcpu.fd.set(nr::SET_XCRS, &a)?;
    let b: kvm_xcrs = g.vcpu.fd.get(nr::GET_XCRS)?;
    same!(b.xcrs[0].value, 3, "XCR0");
    a.xcrs[0].value = 2;
    errno!(g.vcpu.fd.set(nr::SET_XCRS, &a), EINVAL, "XCR0 without x87");
    a.nr_xcrs = 100;
    errno!(g.vcpu.fd.set(nr::SET_XCRS, &a), EINVAL, "100 registers");
    a.nr_xcrs = 1;
    a.flags = 1;
    errno!(g.vcpu.fd.set(nr::SET_XCRS, &a), EINVAL, "flags");
    Ok(())
}

fn debugregs(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut a: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
    same!((a.dr6, a.dr7), (0xffff_0ff0, 0x400), "after reset");
    a.db = [0x1000, 0x2000, 0x3000, 0x4000];
    a.dr7 = 0x403;
    g.vcpu.fd.set(nr::SET_DEBUGREGS, &a)?;
    let b: kvm_debugregs = g.vcpu.fd.get(nr::GET_DEBUGREGS)?;
    same!((b.db, b.dr6, b.dr7), (a.db, a.dr6, a.dr7), "debug registers");
    errno!(g.vcpu.fd.set(nr::SET_DEBUGREGS, &kvm_debugregs { flags: 1, ..a }), EINVAL, "flags");
    errno!(
        g.vcpu.fd.set(nr::SET_DEBUGREGS, &kvm_debugregs { dr7: 1 << 32, ..a }),
        EINVAL,
        "upper half of DR7"
    );
    errno!(
        g.vcpu.fd.set(nr::SET_DEBUGREGS, &kvm_debugregs { dr6: 1 << 32, ..a }),
        EINVAL,
        "upper half of DR6"
    );
    Ok(())
}

fn events(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut a: kvm_vcpu_events = g.vcpu.fd.get(nr::GET_VCPU_EVENTS)?;
    same!(
        (a.exception.injected, a.interrupt.injected, a.nmi.injected, a.nmi.pending),
        (0, 0, 0, 0),
        "nothing pending"
    );
    a.nmi.pending = 1;
    a.nmi.masked = 1;
    a.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
    g.vcpu.fd.set(nr::SET_VCPU_EVENTS, &a)?;
    let b: kvm_vcpu_events = g.vcpu.fd.get(nr::GET_VCPU_EVENTS)?;
    same!((b.nmi.pending, b.nmi.masked), (1, 1), "NMI");
    a.exception.injected = 1;
    a.exception.nr = 13;
    a.exception.has_error_code = 1;
    a.exception.error_code = 0x18;
    g.vcpu.fd.set(nr::SET_VCPU_EVENTS, &a)?;
    let b: kvm_vcpu_events = g.vcpu.fd.get(nr::GET_VCPU_EVENTS)?;
    same!((b.exception.injected, b.exception.nr, b.exception.error_code), (1, 13, 0x18), "exception");
    // One on its way masks no other yet.
    let mut c = kvm_vcpu_events { flags: KVM_VCPUEVENT_VALID_NMI_PENDING, ..*zeroed() };
    c.nmi.injected = 1;
    for _ in 0..2 {
        g.vcpu.fd.set(nr::SET_VCPU_EVENTS, &c)?;
        c = g.vcpu.fd.get(nr::GET_VCPU_EVENTS)?;
        same!(
            (c.nmi.injected, c.nmi.masked, c.nmi.pending, c.exception.injected),
            (1, 0, 0, 0),
            "NMI on its way"
        );
    }
    Ok(())
}

fn events_invalid(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let a: kvm_vcpu_events = g.vcpu.fd.get(nr::GET_VCPU_EVENTS)?;
    errno!(g.vcpu.fd.set(nr::SET_VCPU_EVENTS, &kvm_vcpu_events { flags: 1 << 31, ..a }), EINVAL, "flags");
    let mut b = a;
    (b.exception.injected, b.exception.nr) = (1, 40);
    errno!(g.vcpu.fd.set(nr::SET_VCPU_EVENTS, &b), EINVAL, "exception 40");
    (b.exception.injected, b.exception.nr) = (1, 2);
    errno!(g.vcpu.fd.set(nr::SET_VCPU_EVENTS, &b), EINVAL, "exception 2");
    Ok(())
}

fn mp_state(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    for m in
        [KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE]
    {
        g.vcpu.fd.set(nr::SET_MP_STATE, &kvm_mp_state { mp_state: m })?;
        let b: kvm_mp_state = g.vcpu.fd.get(nr::GET_MP_STATE)?;
        same!(b.mp_state, m, "state");
    }
    Ok(())
}

fn mp_state_bare(e: &Env) -> R {
    let g = e.idle(Chips::None)?;
    g.vcpu.fd.set(nr::SET_MP_STATE, &kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })?;
    let r = g.vcpu.fd.set(nr::SET_MP_STATE, &kvm_mp_state { mp_state: KVM_MP_STATE_SIPI_RECEIVED });
    errno!(r, EINVAL, "SIPI received without a local APIC");
    Ok(())
}

/// A vCPU that was saved between its SIPI and its start: state and vector come back by two ioctls, in any order.
fn sipi_received(e: &Env) -> R {
    for vector_first in [false, true] {
        let g = e.guest(Chips::Full, &[0xf4])?;
        g.mem.write(0x7000, &[0xe6, 0x33]); // out 0x33, al
        let ap = vcpu(&g.sys, &g.vm, 1)?;
        exitless_runner::machine::set_cpuid(&g.sys, &ap.fd, 1)?;
        let state = || ap.fd.set(nr::SET_MP_STATE, &kvm_mp_state { mp_state: KVM_MP_STATE_SIPI_RECEIVED });
        let mut events: kvm_vcpu_events = ap.fd.get(nr::GET_VCPU_EVENTS)?;
        same!(events.flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR, 0, "the vector is never told");
        (events.flags, events.sipi_vector) = (KVM_VCPUEVENT_VALID_SIPI_VECTOR, 7);
        let vector = || ap.fd.set(nr::SET_VCPU_EVENTS, &events);
        if vector_first {
            vector()?;
            state()?;
        } else {
            state()?;
            vector()?;
        }
        ap.run_to(KVM_EXIT_IO)?;
        same!(ap.io().0, 0x33, "port");
        let s: kvm_sregs = ap.fd.get(nr::GET_SREGS)?;
        same!((s.cs.selector, s.cs.base), (0x700, 0x7000), "CS, vector first: {vector_first}");
        let m: kvm_mp_state = ap.fd.get(nr::GET_MP_STATE)?;
        same!(m.mp_state, KVM_MP_STATE_RUNNABLE, "state");
    }
    Ok(())
}

pub(crate) fn reg(l: &kvm_lapic_state, o: usize) -> u32 {
    u32::from_le_bytes([l.regs[o] as u8, l.regs[o + 1] as u8, l.regs[o + 2] as u8, l.regs[o + 3] as u8])
}
pub(crate) fn set_reg(l: &mut kvm_lapic_state, o: usize, v: u32) {
    for (i, b) in v.to_le_bytes().into_iter().enumerate() {
        l.regs[o + i] = b as _;
    }
}

fn lapic(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut a: kvm_lapic_state = g.vcpu.fd.get(nr::GET_LAPIC)?;
    set_reg(&mut a, 0x350, 0x700); // LINT0 ExtINT
    set_reg(&mut a, 0x360, 0x400); // LINT1 NMI
    set_reg(&mut a, 0xf0, 0x1ff);
    set_reg(&mut a, 0x80, 0x20);
    set_reg(&mut a, 0x200 + 0x20, 1); // IRR: vector 0x40
    g.vcpu.fd.set(nr::SET_LAPIC, &a)?;
    let b: kvm_lapic_state = g.vcpu.fd.get(nr::GET_LAPIC)?;
    for o in [0x20, 0x30, 0x80, 0xd0, 0xe0, 0xf0, 0x220, 0x320, 0x350, 0x360, 0x370, 0x3e0] {
        same!(reg(&b, o), reg(&a, o), "register {o:#x}");
    }
    Ok(())
}

fn lapic_reset(e: &Env) -> R {
    let (s, vm) = e.vm_with_chips()?;
    for id in [0u64, 3] {
        let v = vcpu(&s, &vm, id)?;
        let l: kvm_lapic_state = v.fd.get(nr::GET_LAPIC)?;
        same!(reg(&l, 0x20), (id as u32) << 24, "ID");
        same!(reg(&l, 0x30) & 0xff, 0x14, "version");
        same!(reg(&l, 0xe0), 0xffff_ffff, "DFR");
        same!(reg(&l, 0xf0), 0xff, "SVR");
        same!(reg(&l, 0x320), 0x1_0000, "LVT timer");
        same!(reg(&l, 0x370), 0x1_0000, "LVT error");
    }
    Ok(())
}

fn lapic_absent(e: &Env) -> R {
    let g = e.idle(Chips::None)?;
    errno!(g.vcpu.fd.get::<kvm_lapic_state>(nr::GET_LAPIC), EINVAL, "GET_LAPIC");
    errno!(g.vcpu.fd.set(nr::SET_LAPIC, &kvm_lapic_state::default()), EINVAL, "SET_LAPIC");
    Ok(())
}

fn apic_base(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    same!(kvm::get_msr(&g.vcpu.fd, 0x1b)?, Some(0xfee0_0900), "MSR");
    ensure!(kvm::set_msr(&g.vcpu.fd, 0x1b, 0xfee0_0d00)?, "x2APIC mode by KVM_SET_MSRS");
    let s: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    same!(s.apic_base, 0xfee0_0d00, "the same in KVM_GET_SREGS");
    let l: kvm_lapic_state = g.vcpu.fd.get(nr::GET_LAPIC)?;
    g.vcpu.fd.set(nr::SET_LAPIC, &l)?;
    Ok(())
}

fn cpuid(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut a = kvm::supported_cpuid(&g.sys)?;
    g.vcpu.fd.with(nr::SET_CPUID2, &mut *a)?;
    let mut b: Box<Cpuid> = zeroed();
    b.head[0] = 256;
    g.vcpu.fd.with(nr::GET_CPUID2, &mut *b)?;
    // Stock 6.1 leaves the number as user space gave it; later kernels store the true one.
    ensure!(b.head[0] == a.head[0] || b.head[0] == 256, "{} entries", b.head[0]);
    for (x, y) in a.entries.iter().zip(&b.entries).take(a.head[0] as usize) {
        same!(
            (x.function, x.index, x.eax),
            (y.function, y.index, y.eax),
            "leaf {:#x}.{}",
            x.function,
            x.index
        );
    }
    Ok(())
}

fn cpuid_limits(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut b: Box<Cpuid> = zeroed();
    b.head[0] = 1;
    errno!(g.vcpu.fd.with(nr::GET_CPUID2, &mut *b), E2BIG, "GET_CPUID2 with room for one");
    b.head[0] = 100_000;
    errno!(g.vcpu.fd.with(nr::SET_CPUID2, &mut *b), E2BIG, "SET_CPUID2 with 100000 entries");
    b.head[0] = 0;
    g.vcpu.fd.with(nr::SET_CPUID2, &mut *b)?;
    Ok(())
}

fn cpuid_after_run(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0xf4, 0xf4])?;
    let mut a = kvm::supported_cpuid(&g.sys)?;
    g.vcpu.fd.with(nr::SET_CPUID2, &mut *a)?;
    g.vcpu.run_to(KVM_EXIT_HLT)?;
    g.vcpu.fd.with(nr::SET_CPUID2, &mut *a)?; // the same again is fine
    a.entries[0].eax ^= 1;
    errno!(g.vcpu.fd.with(nr::SET_CPUID2, &mut *a), EINVAL, "a change after KVM_RUN");
    Ok(())
}

/// The old call's entries have neither flags nor sub-leaves.
fn cpuid_old(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut a: Box<Flex<[u32; 2], kvm_cpuid_entry, 8>> = zeroed();
    a.head[0] = 2;
    for (i, e) in a.entries.iter_mut().enumerate().take(2) {
        let n = i as u32;
        *e = kvm_cpuid_entry { function: n, eax: 1, ebx: n, ecx: 1 << 21, edx: 0x1234, padding: 77 };
    }
    g.vcpu.fd.with(nr::SET_CPUID, &mut *a)?;
    let mut b: Box<Cpuid> = zeroed();
    b.head[0] = 256;
    g.vcpu.fd.with(nr::GET_CPUID2, &mut *b)?;
    // 6.1 does not tell how many there are.
    same!((b.entries[2].function, b.entries[2].eax), (0, 0), "a third entry");
    for (n, e) in b.entries.iter().enumerate().take(2) {
        same!((e.function, e.index, e.flags), (n as u32, 0, 0), "entry {n}");
        same!((e.eax, e.ebx, e.ecx & 1 << 21, e.edx & 0x30), (1, n as u32, 1 << 21, 0x30), "entry {n}");
    }
    a.head[0] = 300;
    errno!(g.vcpu.fd.with(nr::SET_CPUID, &mut *a), E2BIG, "300 entries");
    Ok(())
}

/// The second half of the table is not there: the first has changed nothing.
fn cpuid_half_readable(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let table = |fd: &kvm::Fd| -> Result<Vec<u8>, Stop> {
        let mut c: Box<Cpuid> = zeroed();
        c.head[0] = 256;
        fd.with(nr::GET_CPUID2, &mut *c)?;
        Ok(bytes(&*c).to_vec())
    };
    let before = table(&g.vcpu.fd)?;
    let m = kvm::Map::anon(8192)?;
    // SAFETY: the second page of the mapping, which nothing has a reference into.
    let gone = unsafe { libc::mprotect(m.ptr().add(4096).cast(), 4096, libc::PROT_NONE) };
    same!(gone, 0, "mprotect");
    let head = 4096 - 8 - 2 * size_of::<kvm_cpuid_entry2>() as u64;
    m.write(head, &4u32.to_le_bytes());
    errno!(g.vcpu.fd.call(nr::SET_CPUID2, m.addr() + head), EFAULT, "SET_CPUID2");
    ensure!(table(&g.vcpu.fd)? == before, "the table has changed");
    Ok(())
}

type MsrList = Flex<u32, u32, 1024>;

/// QEMU and crosvm give up when one listed MSR cannot be read or written back.
fn msrs_listed(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut l: Box<MsrList> = zeroed();
    l.head = 1024;
    g.sys.with(nr::GET_MSR_INDEX_LIST, &mut *l)?;
    let mut bad = Vec::new();
    for &m in &l.entries[..l.head as usize] {
        match kvm::get_msr(&g.vcpu.fd, m)? {
            None => bad.push(format!("{m:#x} does not read")),
            Some(v) => {
                if !kvm::set_msr(&g.vcpu.fd, m, v)? {
                    bad.push(format!("{m:#x} refuses its own value {v:#x}"));
                }
            }
        }
    }
    // Stock KVM lists some Intel feature MSRs that it refuses to write; QEMU leaves them alone.
    let known = ["0x10a ", "0x345 ", "0x480 ", "0x48", "0x49", "0xc001102"];
    bad.retain(|b| !known.iter().any(|k| b.starts_with(k)));
    ensure!(bad.is_empty(), "{}", bad.join(", "));
    Ok(())
}

fn msrs_stop(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut b: Box<MsrBuf> = zeroed();
    b.head[0] = 4;
    for (i, m) in [0x174, 0x175, 0x1234_5678, 0x176].into_iter().enumerate() {
        b.entries[i].index = m;
        b.entries[i].data = 0x50 + i as u64;
    }
    same!(g.vcpu.fd.with(nr::SET_MSRS, &mut *b)?, 2, "SET_MSRS");
    same!(kvm::get_msr(&g.vcpu.fd, 0x175)?, Some(0x51), "the second was set");
    same!(kvm::get_msr(&g.vcpu.fd, 0x176)?, Some(0), "the fourth was not");
    same!(g.vcpu.fd.with(nr::GET_MSRS, &mut *b)?, 2, "GET_MSRS");
    b.head[0] = 0;
    same!(g.vcpu.fd.with(nr::GET_MSRS, &mut *b)?, 0, "none asked for");
    Ok(())
}

fn msrs_many(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut b: Box<MsrBuf> = zeroed();
    b.head[0] = 100_000;
    errno!(g.vcpu.fd.with(nr::GET_MSRS, &mut *b), E2BIG, "GET_MSRS");
    errno!(g.vcpu.fd.with(nr::SET_MSRS, &mut *b), E2BIG, "SET_MSRS");
    Ok(())
}

/// The set that Firecracker and Cloud Hypervisor write in one call and want counted in full.
fn msrs_boot(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut b: Box<MsrBuf> = zeroed();
    let set = [
        (0x174u32, 0u64),
        (0x175, 0),
        (0x176, 0),
        (0xc000_0081, 0),
        (0xc000_0082, 0),
        (0xc000_0083, 0),
        (0xc000_0084, 0),
        (0xc000_0102, 0),
        (0x10, 0),
        (0x1a0, 1),
        (0x2ff, 0x806),
    ];
    b.head[0] = set.len() as u32;
    for (i, (index, data)) in set.into_iter().enumerate() {
        b.entries[i].index = index;
        b.entries[i].data = data;
    }
    same!(g.vcpu.fd.with(nr::SET_MSRS, &mut *b)?, set.len() as i32, "MSRs set");
    Ok(())
}

fn msr_invalid(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    for (m, v) in [
        (0x277u32, 0x02u64),
        (0xc000_0080, 1 << 63),
        (0x1b, 0xfee0_0401),
        (0x2ff, 0x02),
        (0xc000_0082, 1 << 62),
    ] {
        ensure!(!kvm::set_msr(&g.vcpu.fd, m, v)?, "MSR {m:#x} took {v:#x}");
    }
    Ok(())
}

fn tsc_khz(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let khz = g.vcpu.fd.call(nr::GET_TSC_KHZ, 0)?;
    ensure!(khz > 1000, "{khz} kHz");
    g.vcpu.fd.call(nr::SET_TSC_KHZ, khz as u64)?;
    same!(g.vcpu.fd.call(nr::GET_TSC_KHZ, 0)?, khz, "after setting the same");
    g.vcpu.fd.call(nr::SET_TSC_KHZ, 0)?;
    same!(g.vcpu.fd.call(nr::GET_TSC_KHZ, 0)?, khz, "0: the host's");
    if g.vm.call(nr::CHECK_EXTENSION, KVM_CAP_TSC_CONTROL.into())? == 0 {
        return Ok(());
    }
    g.vcpu.fd.call(nr::SET_TSC_KHZ, khz as u64 * 2)?;
    same!(g.vcpu.fd.call(nr::GET_TSC_KHZ, 0)?, khz * 2, "another rate");
    errno!(g.vcpu.fd.call(nr::SET_TSC_KHZ, u64::from(u32::MAX)), EINVAL, "too fast");
    same!(g.vcpu.fd.call(nr::GET_TSC_KHZ, 0)?, khz * 2, "as before");
    Ok(())
}

/// The VM's rate is that of the vCPUs to come.
fn tsc_khz_of_vm(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let khz = g.vm.call(nr::GET_TSC_KHZ, 0)?;
    same!(g.vcpu.fd.call(nr::GET_TSC_KHZ, 0)?, khz, "of the first vCPU");
    same!(
        g.vm.call(nr::CHECK_EXTENSION, KVM_CAP_VM_TSC_CONTROL.into())?,
        { g.vm.call(nr::CHECK_EXTENSION, KVM_CAP_TSC_CONTROL.into())? },
        "the capabilities agree"
    );
    if g.vm.call(nr::CHECK_EXTENSION, KVM_CAP_TSC_CONTROL.into())? == 0 {
        return Ok(());
    }
    g.vm.call(nr::SET_TSC_KHZ, khz as u64 / 2)?;
    same!(g.vm.call(nr::GET_TSC_KHZ, 0)?, khz / 2, "of the VM");
    let second = vcpu(&g.sys, &g.vm, 1)?.fd;
    same!(second.call(nr::GET_TSC_KHZ, 0)?, khz / 2, "of a vCPU made later");
    same!(g.vcpu.fd.call(nr::GET_TSC_KHZ, 0)?, khz, "of the one before");
    errno!(g.vm.call(nr::SET_TSC_KHZ, u64::from(u32::MAX)), EINVAL, "too fast");
    Ok(())
}

fn interrupt(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    errno!(g.vcpu.fd.set(nr::INTERRUPT, &0x40u32), ENXIO, "with in-kernel chips");
    let g = e.idle(Chips::None)?;
    errno!(g.vcpu.fd.set(nr::INTERRUPT, &256u32), EINVAL, "vector 256");
    g.vcpu.fd.set(nr::INTERRUPT, &0x40u32)?;
    Ok(())
}

fn nmi(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    g.vcpu.fd.call(nr::NMI, 0)?;
    let b: kvm_vcpu_events = g.vcpu.fd.get(nr::GET_VCPU_EVENTS)?;
    same!(b.nmi.pending, 1, "pending NMI");
    Ok(())
}

fn kvmclock_ctrl(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    errno!(g.vcpu.fd.call(nr::KVMCLOCK_CTRL, 0), EINVAL, "before the guest uses the clock");
    Ok(())
}

fn translate(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mut t = kvm_translation { linear_address: 0x1234, ..Default::default() };
    g.vcpu.fd.with(nr::TRANSLATE, &mut t)?;
    same!((t.physical_address, t.valid), (0x1234, 1), "without paging");
    // Between 4 GiB and the last address stock KVM answers with the address itself, which no such guest can form.
    t.linear_address = u64::MAX;
    g.vcpu.fd.with(nr::TRANSLATE, &mut t)?;
    same!((t.physical_address, t.valid), (u64::MAX, 0), "no address of 32 bits");
    Ok(())
}

/// The header of KVM_GET_NESTED_STATE and room for the largest state (VMX: two pages).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq)]
struct Nested {
    flags: u16,
    format: u16,
    size: u32,
    hdr: [u64; 15],
    data: [u64; 1024],
}

const NESTED_SVM: u16 = 1;
const GIF_SET: u16 = 1 << 8;

fn nested_of(fd: &kvm::Fd, size: u32) -> kvm::Result<Nested> {
    let mut n = Nested { flags: 0, format: 0, size, hdr: [0; 15], data: [0; 1024] };
    fd.with(nr::GET_NESTED_STATE, &mut n).map(|_| n)
}

/// Cloud Hypervisor reads and restores it for every vCPU, without asking for the capability: nothing is nested, so the header is all.
fn nested(e: &Env) -> R {
    let (a, b) = (e.idle(Chips::Full)?, e.idle(Chips::Full)?);
    let cap = a.vm.cap(KVM_CAP_NESTED_STATE) as usize;
    ensure!((128..=size_of::<Nested>()).contains(&cap), "KVM_CAP_NESTED_STATE {cap}");
    let n = nested_of(&a.vcpu.fd, cap as u32)?;
    same!(n.size, 128, "size");
    same!(n.data, [0; 1024], "data");
    let header = if n.format == NESTED_SVM { [0; 2] } else { [u64::MAX; 2] };
    same!(n.flags, if n.format == NESTED_SVM { GIF_SET } else { 0 }, "flags");
    same!((&n.hdr[..2], &n.hdr[2..]), (&header[..], &[0; 13][..]), "header");
    b.vcpu.fd.set(nr::SET_NESTED_STATE, &n)?;
    same!(nested_of(&b.vcpu.fd, cap as u32)?, n, "another vCPU's");
    Ok(())
}

fn nested_invalid(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    for size in [0, 127] {
        let mut small = Nested { flags: 0, format: 0, size, hdr: [7; 15], data: [0; 1024] };
        errno!(g.vcpu.fd.with(nr::GET_NESTED_STATE, &mut small), E2BIG, "room for {size} bytes");
        same!((small.size, small.hdr), (128, [7; 15]), "after room for {size} bytes");
    }
    let n = nested_of(&g.vcpu.fd, 128)?;
    let refused = |what: &str, f: fn(&mut Nested)| -> R {
        let mut bad = n;
        f(&mut bad);
        errno!(g.vcpu.fd.set(nr::SET_NESTED_STATE, &bad), EINVAL, "{what}");
        Ok(())
    };
    refused("size 127", |n| n.size = 127)?;
    refused("an unknown flag", |n| n.flags |= 0x1000)?;
    refused("guest mode", |n| n.flags |= 1)?;
    refused("a pending run", |n| n.flags |= 2)?;
    refused("the other vendor's format", |n| n.format ^= 1)?;
    if n.format == NESTED_SVM {
        refused("GIF clear without SVM", |n| n.flags = 0)?;
    } else {
        refused("a VMCS without VMXON", |n| n.hdr[1] = 0x1000)?;
        refused("an address that is none", |n| n.hdr[0] = 0x1001)?;
        refused("SMM", |n| n.hdr[2] = 1)?;
        refused("an unknown flag of VMX", |n| n.hdr[2] = 1 << 33)?;
    }
    same!(nested_of(&g.vcpu.fd, 128)?, n, "afterwards");
    Ok(())
}

fn mce(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let supported: u64 = g.sys.get(nr::X86_GET_MCE_CAP_SUPPORTED)?;
    g.vcpu.fd.set(nr::X86_SETUP_MCE, &(0x100_010a & (supported | 0xff)))?;
    same!(kvm::get_msr(&g.vcpu.fd, 0x179)?.map(|c| c & 0xff), Some(10), "banks");
    same!(kvm::get_msr(&g.vcpu.fd, 0x400)?, Some(u64::MAX), "bank 0 control");
    errno!(g.vcpu.fd.set(nr::X86_SETUP_MCE, &0xffu64), EINVAL, "255 banks");
    errno!(g.vcpu.fd.set(nr::X86_SETUP_MCE, &0u64), EINVAL, "no bank");
    Ok(())
}

fn vapic(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    g.vcpu.fd.set(nr::SET_VAPIC_ADDR, &0u64)?;
    match g.vcpu.fd.with(nr::TPR_ACCESS_REPORTING, &mut kvm_tpr_access_ctl::default()) {
        Ok(_) | Err(Errno(EINVAL | libc::ENOTTY)) => Ok(()), // QEMU ignores the answer
        other => Err(Stop::Fail(format!("TPR_ACCESS_REPORTING: {other:?}"))),
    }
}

fn signal_mask(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let mask: [u32; 3] = [4, 0, 0]; // length, 8 bytes of set
    errno!(g.vcpu.fd.set(nr::SET_SIGNAL_MASK, &mask), EINVAL, "length 4");
    let mask: [u32; 3] = [8, 0, 0];
    g.vcpu.fd.set(nr::SET_SIGNAL_MASK, &mask)?;
    g.vcpu.fd.call(nr::SET_SIGNAL_MASK, 0)?; // no mask again
    Ok(())
}

fn guest_debug(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    if g.vm.cap(KVM_CAP_SET_GUEST_DEBUG) <= 0 {
        return skip("no KVM_CAP_SET_GUEST_DEBUG");
    }
    g.vcpu.fd.set(nr::SET_GUEST_DEBUG, &kvm_guest_debug { control: 3, ..Default::default() })?;
    g.vcpu.fd.set(nr::SET_GUEST_DEBUG, &kvm_guest_debug::default())?;
    Ok(())
}

fn smi(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    if g.vm.cap(KVM_CAP_X86_SMM) > 0 {
        g.vcpu.fd.call(nr::SMI, 0)?;
        return Ok(());
    }
    match g.vcpu.fd.call(nr::SMI, 0) {
        Err(Errno(EINVAL | libc::ENOTTY)) => Ok(()),
        other => Err(Stop::Fail(format!("KVM_SMI without KVM_CAP_X86_SMM: {other:?}"))),
    }
}

fn bad_pointers(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    for (name, n) in [
        ("GET_REGS", nr::GET_REGS),
        ("SET_REGS", nr::SET_REGS),
        ("GET_SREGS", nr::GET_SREGS),
        ("SET_SREGS", nr::SET_SREGS),
        ("GET_FPU", nr::GET_FPU),
        ("SET_FPU", nr::SET_FPU),
        ("GET_XSAVE", nr::GET_XSAVE),
        ("SET_XSAVE", nr::SET_XSAVE),
        ("GET_XCRS", nr::GET_XCRS),
        ("SET_XCRS", nr::SET_XCRS),
        ("GET_DEBUGREGS", nr::GET_DEBUGREGS),
        ("SET_DEBUGREGS", nr::SET_DEBUGREGS),
        ("GET_VCPU_EVENTS", nr::GET_VCPU_EVENTS),
        ("SET_VCPU_EVENTS", nr::SET_VCPU_EVENTS),
        ("GET_MP_STATE", nr::GET_MP_STATE),
        ("SET_MP_STATE", nr::SET_MP_STATE),
        ("GET_LAPIC", nr::GET_LAPIC),
        ("SET_LAPIC", nr::SET_LAPIC),
        ("GET_MSRS", nr::GET_MSRS),
        ("SET_MSRS", nr::SET_MSRS),
        ("GET_CPUID2", nr::GET_CPUID2),
        ("SET_CPUID2", nr::SET_CPUID2),
        ("SET_SIGNAL_MASK", nr::SET_SIGNAL_MASK),
        ("X86_SETUP_MCE", nr::X86_SETUP_MCE),
        ("TRANSLATE", nr::TRANSLATE),
        ("GET_NESTED_STATE", nr::GET_NESTED_STATE),
        ("SET_NESTED_STATE", nr::SET_NESTED_STATE),
        ("SET_VAPIC_ADDR", nr::SET_VAPIC_ADDR),
    ] {
        for address in [8u64, 0xffff_8000_0000_0000] {
            errno!(g.vcpu.fd.call(n, address), EFAULT, "{name} at {address:#x}");
        }
    }
    Ok(())
}

fn other_thread(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let fd = &g.vcpu.fd;
    std::thread::scope(|s| {
        for t in 0..4u64 {
            s.spawn(move || {
                for i in 0..100 {
                    let _ = fd.set(
                        nr::SET_REGS,
                        &kvm_regs { rax: t << 32 | i, rbx: t << 32 | i, rflags: 2, ..Default::default() },
                    );
                    let _ = fd.get::<kvm_regs>(nr::GET_REGS);
                }
            });
        }
    });
    let r = g.vcpu.regs()?;
    same!(r.rax, r.rbx, "one whole write");
    Ok(())
}
