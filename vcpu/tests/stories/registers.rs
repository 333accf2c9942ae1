//! CPUID, MSRs, control registers, XCR0, debug registers, hypercalls; what they refuse.

use crate::fake::guest::*;
use crate::fake::world::HOST_PKRU;
use crate::fake::{Machine, Op};
use exitless_vcpu::RunExit;
use exitless_vcpu::backend::{Backend, Event, Exit, Instructions, Opened, SysReg};
use exitless_vcpu::host::Extended;
use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, TableReg, cr4};

const GP: Event = Event::Exception(Exception::gp(0));
const UD: Event = Event::Exception(Exception::ud());

/// CPUID stays in the slice, with hardware's next RIP or by decoding.
#[test]
fn cpuid_is_fast() {
    for wrap in [|o| o, told] {
        let mut m = Machine::new([wrap(cpuid(0, 0)), Op::Cli]);
        m.go();
        assert_eq!(m.v.b.gprs.get(Gpr::Rbx), 0x6874_7541);
        assert_eq!((m.sh.stats.fast.get(), m.sh.stats.exits.get()), (1, 2));
    }
}

/// RDMSR and WRMSR of what exists, and #GP for what does not, is read-only, hidden or given a bad value.
#[test]
fn msrs() {
    let mut m = Machine::new([wrmsr(0xc000_0082, 0xffff_8000_1234_0000), rdmsr(0xc000_0082), Op::Nop]);
    m.go();
    assert_eq!(m.v.b.gprs.edx_eax(), 0xffff_8000_1234_0000);
    for op in [
        rdmsr(0x1234_5678),
        wrmsr(0x1234_5678, 0),
        wrmsr(0xfe, 1),
        rdmsr(0x49),
        wrmsr(0xc000_0082, 1 << 50),
        wrmsr(0xc000_0080, 1 << 12),
        rdmsr(0x802),
        wrmsr(0x277, 0x0202),
        rdmsr(0x48),
        // PRED_CMD: bits other than IBPB; FLUSH_CMD, which no CPUID here offers.
        wrmsr(0x49, 2),
        wrmsr(0x49, 1 << 32 | 1),
        wrmsr(0x10b, 1),
    ] {
        let mut m = Machine::new([faulting(op.clone()), Op::Nop]);
        m.go();
        assert_eq!(m.events(), [GP], "{op:?}");
    }
    let mut m = Machine::new([wrmsr(0x49, 1), wrmsr(0x49, 0), Op::Nop]);
    m.go();
    assert_eq!(m.w.barriers.get(), 1);
    // A CPU without it, whatever CPUID the guest was given.
    let mut m = Machine::new([faulting(wrmsr(0x49, 1)), wrmsr(0x49, 0), Op::Nop]);
    m.w.has_barrier.set(false);
    m.go();
    assert_eq!(m.events(), [GP]);
}

/// SPEC_CTRL and PRED_CMD are the guest's own after it has used them, FLUSH_CMD from the start; what CPUID hides is taken back.
#[test]
fn opened_msrs() {
    let set = |m: &mut Machine, edx: u32| {
        m.set_cpuid_with(|e| {
            if e.function == 7 {
                e.edx = edx
            }
        });
        m.v.b.opened
    };
    let mut m =
        Machine::new([wrmsr(0x48, 0), rdmsr(0x48), wrmsr(0x49, 0), faulting(wrmsr(0x48, 8)), Op::Nop]);
    assert_eq!(set(&mut m, 1 << 26 | 1 << 27 | 1 << 28), Opened::FLUSH_CMD);
    m.go();
    assert_eq!((m.v.b.opened, m.w.barriers_unseen.get()), (Opened::FLUSH_CMD, false));
    m.then([wrmsr(0x48, 2), wrmsr(0x49, 1), Op::Nop]);
    let all = Opened::FLUSH_CMD.put(Opened::SPEC_CTRL, true).put(Opened::PRED_CMD, true);
    assert_eq!((m.v.b.opened, m.w.barriers_unseen.get()), (all, true));
    assert_eq!(set(&mut m, 1 << 26), all.put(Opened::FLUSH_CMD, false));
    assert_eq!(set(&mut m, 0), Opened::PRED_CMD, "AMD's leaf has IBPB");
    // What user space restores counts too, and may have bits that only the CPU knows of.
    let mut m = Machine::new([Op::Nop]);
    set(&mut m, 1 << 26);
    m.user_msr(0x48, 1);
    assert!(m.v.b.opened.has(Opened::SPEC_CTRL));
}

/// x2APIC: the mode by APIC_BASE, registers by MSR, an IPI by ICR, EOI of nothing.
#[test]
fn x2apic() {
    let mut m =
        Machine::new([wrmsr(0x1b, 0xfee0_0d00), wrmsr(0x830, 5 << 32 | 0xc0), wrmsr(0x80b, 0), Op::Nop]);
    m.go();
    assert_eq!(m.events(), []);
    let ipis = m.w.ipis.borrow();
    assert_eq!((ipis.len(), ipis[0].destination, ipis[0].vector), (1, 5, 0xc0));
    assert_eq!(m.w.moved_apic.get(), 1);
}

/// XSETBV: only with CR4.OSXSAVE (#UD), only combinations the guest has (#GP); loaded with the next slice.
#[test]
fn xcr0() {
    let mut m = Machine::new([faulting(xsetbv(0, 1)), Op::Nop]);
    m.go();
    assert_eq!(m.events(), [UD]);
    let mut m =
        Machine::new([xsetbv(0, 7), Op::Nop, faulting(xsetbv(0, 5)), faulting(xsetbv(0, 0xff)), Op::Nop]);
    m.v.b.cr4 |= cr4::OSXSAVE;
    m.go();
    assert_eq!(m.events(), [GP, GP]);
    assert_eq!(m.v.xcr0, 7);
    let mut m = Machine::new([faulting(xsetbv(1, 1)), faulting(xsetbv(0, 0)), Op::Nop]);
    m.v.b.cr4 |= cr4::OSXSAVE;
    m.go();
    assert_eq!(m.events(), [GP, GP]);
}

/// Only what the guest can use is switched: XCR0 and IA32_XSS with CR4.OSXSAVE, PKRU with CR4.PKE or its component.
#[test]
fn extended_state() {
    let mut m = Machine::new([]);
    (m.v.xcr0, m.v.pkru) = (7, 12);
    assert_eq!(m.v.extended(), Extended::default());
    m.v.b.cr4 = cr4::OSXSAVE;
    assert_eq!(m.v.extended(), Extended { xcr0: Some(7), xsaves: true, pkru: None });
    m.v.b.cr4 = cr4::PKE;
    assert_eq!(m.v.extended(), Extended { pkru: Some(12), ..Extended::default() });
    (m.v.b.cr4, m.v.xcr0) = (cr4::OSXSAVE, 0x207);
    assert_eq!(m.v.extended(), Extended { xcr0: Some(0x207), xsaves: true, pkru: Some(12) });
}

/// The guest's PKRU is its own from slice to slice, and what the emulator's page walks look at; the host's is back between them.
#[test]
fn protection_keys() {
    let mut m = Machine::new([Op::Pkru(0, 0x1234), cpuid(0, 0), wbinvd(), Op::Pkru(0x1234, 12), Op::Nop]);
    m.v.b.cr4 = cr4::PKE;
    m.go();
    assert_eq!((m.v.pkru, m.v.paging(3).pkru, m.w.pkru.get()), (12, 12, HOST_PKRU));
    m.v.pkru = 48;
    m.then([Op::Pkru(48, 3), Op::Nop]);
    assert_eq!(m.v.pkru, 3);
}

/// CR4: bits the guest has, and a flush for every change; #GP for the others.
#[test]
fn cr4_writes() {
    let mut m = Machine::new([mov_cr4(cr4::PGE), Op::Nop]);
    m.go();
    let flushes = m.v.b.flushes;
    m.then([mov_cr4(cr4::PGE), Op::Nop]);
    assert_eq!((m.v.b.cr4, m.v.b.flushes), (cr4::PGE, flushes));
    m.then([mov_cr4(cr4::PGE | cr4::OSXSAVE), Op::Nop]);
    assert_eq!(m.v.b.flushes, flushes + 1);
    m.then([
        faulting(mov_cr4(cr4::VMXE)),
        faulting(mov_cr4(cr4::LA57)),
        faulting(mov_cr4(cr4::PCIDE)),
        Op::Nop,
    ]);
    assert_eq!(m.events(), [GP, GP, GP]);
}

/// An emulated CPU reports accesses of every control register while CR0's are intercepted: they do what they always do.
#[test]
fn other_control_registers() {
    let at = |n: u64, bytes: &[u8]| with_rax(n, bytes, Exit::CrAccess);
    let mut m = Machine::new([at(0x7000, &[0x0f, 0x22, 0xd8]), at(0x1234, &[0x0f, 0x22, 0xd0]), Op::Nop]);
    let flushes = m.v.b.flushes;
    m.go();
    assert_eq!((m.v.b.cr3, m.v.b.cr2, m.v.b.flushes), (0x7000, 0x1234, flushes + 2), "power-up flushes too");
    for (modrm, value) in [(0xd8, 0x7000), (0xd0, 0x1234), (0xe0, m.v.b.cr4)] {
        m.then([at(!0, &[0x0f, 0x20, modrm]), Op::Nop]);
        assert_eq!(m.v.b.gprs.get(Gpr::Rax), value, "{modrm:#x}");
    }
}

/// Debug registers: the first access loads them for the slice; they stay while a breakpoint is armed, then go.
#[test]
fn debug_registers() {
    let mut m = Machine::new([Op::Event(Exit::DrAccess), Op::Nop]);
    m.v.dr = [1, 2, 3, 4];
    m.go();
    assert!(m.v.b.dr_intercept && !m.v.dr_live);
    assert_eq!(m.v.dr, [1, 2, 3, 4]);
    m.v.b.dr7 = 0x401;
    m.then([Op::Event(Exit::DrAccess), Op::Nop, wbinvd(), Op::Nop]);
    assert!(!m.v.b.dr_intercept && m.v.dr_live, "armed: loaded in every slice");
    m.v.b.dr7 = 0x400;
    m.then([wbinvd(), Op::Nop]);
    assert!(m.v.b.dr_intercept && !m.v.dr_live);
}

/// Instructions the guest does not have, and those that do nothing.
#[test]
fn refused_and_ignored() {
    let mut m = Machine::new([vmrun(), faulting(rdpmc(4)), wbinvd(), pause(), Op::Nop]);
    m.go();
    assert_eq!(m.events(), [UD, GP]);
}

/// AMD's first four counters are always there, for user code where CR4.PCE says so; they read as their MSRs do.
#[test]
fn counters() {
    let all = (0..4).flat_map(|i| [rdpmc(i), rdmsr(0xc001_0004 + i as u32)]);
    let mut m = Machine::new(all.chain([faulting(rdpmc(4)), faulting(rdpmc(!0)), Op::Nop]));
    m.go();
    assert_eq!(m.events(), [GP, GP]);
    for (pce, user) in [(false, false), (false, true), (true, true)] {
        let op = if user && !pce { faulting(rdpmc(0)) } else { rdpmc(0) };
        let mut m = Machine::new([op, Op::Nop]);
        m.v.b.cr4 = if pce { cr4::PCE } else { 0 };
        if user {
            m.set_cpl(3);
        }
        m.go();
    }
}

/// KVM_SET_CPUID2 tells the backend what the guest may find.
#[test]
fn shown_instructions() {
    let m = Machine::new([]);
    let shown = Instructions { rdtscp: true, ..Instructions::default() };
    assert_eq!(m.v.b.shown, shown, "{:?}", m.v.cpuid.caps());
}

/// SGDT on a CPU whose UMIP is made of exits: done at CPL 0, refused at CPL 3.
#[test]
fn descriptor_tables() {
    for cpl in [0, 3] {
        // sgdt [0x5000]
        let sgdt = || with_rax(0, &[0x0f, 0x01, 0x05, 0, 0x50, 0, 0], Exit::DescriptorTable);
        let mut m = Machine::new([if cpl == 0 { sgdt() } else { faulting(sgdt()) }, Op::Nop]);
        m.v.b.set_gdtr(&TableReg { base: 0x1234_5678, limit: 0x7f, reserved: 0 });
        m.v.b.cr4 = cr4::UMIP;
        if cpl != 0 {
            m.set_cpl(cpl);
        }
        m.go();
        let stored = if cpl == 0 { (0x5678_007f, 0x1234) } else { (0, 0) };
        assert_eq!((m.w.u32_at(0x5000), m.w.u32_at(0x5004) & 0xffff), stored);
        assert_eq!(m.events(), if cpl == 0 { vec![] } else { vec![GP] });
    }
}

/// Hypercalls: unknown ones say so, in 32 bits here.
#[test]
fn hypercalls() {
    let mut m = Machine::new([hypercall(99), Op::Cli]);
    m.go();
    assert_eq!(m.v.b.gprs.get(Gpr::Rax), (-1000i32) as u32 as u64);
    let mut m = Machine::new([hypercall(1), Op::Cli]);
    m.go();
    assert_eq!(m.v.b.gprs.get(Gpr::Rax), 0);
}

/// VMCALL on a CPU whose hypercall is VMMCALL raises #UD: answered all the same, with the code as it was. Any other invalid
/// instruction gets its #UD, and so does the hypercall in real mode.
#[test]
fn foreign_hypercall() {
    let ud = Exit::Exception(Exception::ud());
    let vmcall = |n| with_rax(n, &[0x0f, 0x01, 0xc1], ud);
    let mut m = Machine::new([vmcall(99), vmcall(1), Op::Cli]);
    m.go();
    assert_eq!((m.v.b.gprs.get(Gpr::Rax), m.sh.stats.hypercalls.get()), (0, 2));
    assert_eq!(m.events(), []);
    let mut m = Machine::new([faulting(with_rax(1, &[0x0f, 0x0b], ud)), Op::Cli]);
    m.go();
    assert_eq!(m.events(), [UD]);
    let mut m = Machine::new([faulting(vmcall(1)), Op::Cli]);
    m.v.b.cr0 &= !1;
    m.go();
    assert_eq!(m.events(), [UD]);
}

/// MOVBE and RDPID on a CPU that has neither: emulated for a guest whose CPUID has them, #UD for one whose CPUID has not, and for
/// MOVBE with LOCK.
#[test]
fn instructions_the_cpu_lacks() {
    let ud = Exit::Exception(Exception::ud());
    let code = [&[0x0f, 0x38, 0xf0, 0x08][..], &[0xf3, 0x0f, 0xc7, 0xfa], &[0xf0, 0x0f, 0x38, 0xf0, 0x08]];
    for has in [true, false] {
        let [movbe, rdpid, locked] = code.map(|bytes| with_rax(0x8000, bytes, ud));
        let ops = if has { [movbe, rdpid, faulting(locked)] } else { [movbe, rdpid, locked].map(faulting) };
        let mut m = Machine::new(ops.into_iter().chain([Op::Cli]));
        m.w.write_ram(0x8000, &[1, 2, 3, 4, 5, 6, 7, 8]);
        m.v.b.set_sys_reg(SysReg::TscAux, 0x1234);
        if has {
            let host = *m.v.cpuid.caps();
            for e in m.v.cpuid.entries_mut().iter_mut().filter(|e| [1, 7].contains(&e.function)) {
                e.ecx |= 1 << 22;
            }
            let len = m.v.cpuid.entries().len();
            m.v.commit_cpuid(len, &host);
        }
        m.go();
        let got = [Gpr::Rcx, Gpr::Rdx].map(|r| m.v.b.gprs.get(r));
        let (want, faults) = if has { ([0x0102_0304, 0x1234], 1) } else { ([0, 0x600], 3) };
        assert_eq!((got, m.events()), (want, vec![UD; faults]));
    }
}

/// Without controllers in the kernel, lowering CR8 is user space's to know; raising it is not.
#[test]
fn cr8_without_irqchip() {
    let mut m = Machine::without_irqchip([Op::Cr8(7), Op::Nop, Op::Cr8(3), Op::Nop]);
    assert_eq!(m.go(), RunExit::SetTpr);
    assert_eq!((m.v.lapic.cr8(), m.v.b.ops.len()), (3, 1));
    m.go();
}
