//! Clean bits: a CPU that keeps what it read of a VMCB, and finds each group that changed behind a clean bit.
//!
//! It plays in every test of the backend: `ex_svm_enter` asks it before and after each entry.

use super::{ALL, CACHED, Machine};
use core::sync::atomic::Ordering::Relaxed;
use exitless_vcpu::backend::{Backend, Event, Instructions, SysReg};
use exitless_x86::regs::{Gpr, SegReg, Segment, TableReg};
use exitless_x86::svm::{Vmcb, clean};
use proptest::prelude::*;
use std::cell::Cell;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

/// What one CPU keeps of one VMCB: which CPU (its save area's address), and the groups.
pub(super) struct Cached {
    host: u64,
    groups: Vec<Vec<u64>>,
}

/// The fields of each group, in the order of the clean bits (APM vol. 2, table 15-9).
fn groups(b: &Vmcb) -> Vec<Vec<u64>> {
    let (c, s) = (&b.control, &b.save);
    let seg = |x: exitless_x86::svm::VmcbSeg| {
        [u64::from(x.selector) << 48 | u64::from(x.attrib) << 32 | u64::from(x.limit), x.base]
    };
    let cr = u64::from(c.intercept_cr_read) << 16 | u64::from(c.intercept_cr_write);
    let dr = u64::from(c.intercept_dr_read) << 16 | u64::from(c.intercept_dr_write);
    let pause = u64::from(c.pause_filter_threshold) << 16 | u64::from(c.pause_filter_count);
    let others = [c.intercept_exceptions, c.intercept1, c.intercept2, c.intercept3].map(u64::from);
    vec![
        [&[cr, dr, pause, c.tsc_offset][..], &others].concat(),
        vec![c.iopm_base_pa, c.msrpm_base_pa],
        vec![u64::from(c.asid)],
        vec![u64::from(c.int_ctl), u64::from(c.int_vector)],
        vec![c.nested_cr3, s.g_pat],
        vec![s.cr0, s.cr3, s.cr4, s.efer],
        vec![s.dr6, s.dr7],
        [seg(s.gdtr), seg(s.idtr)].concat(),
        [&seg(s.cs)[..], &seg(s.ds), &seg(s.ss), &seg(s.es), &[u64::from(s.cpl)]].concat(),
        vec![s.cr2],
        vec![s.dbgctl, s.br_from, s.br_to, s.last_excp_from, s.last_excp_to],
        vec![c.avic_vapic_bar, c.avic_backing_page, c.avic_logical_id, c.avic_physical_id],
    ]
}

/// VMRUN reads what is not clean; what is clean it has.
pub(super) fn before(vmcb: &Vmcb, host: u64) {
    let now = groups(vmcb);
    assert_eq!(vmcb.control.clean >> now.len(), 0, "reserved bits");
    CACHED.with_borrow(|cached| {
        let cached = cached.get(&core::ptr::from_ref(vmcb).addr().try_into().unwrap());
        for (bit, group) in now.iter().enumerate().filter(|(bit, _)| vmcb.control.clean >> bit & 1 != 0) {
            let cached = cached.filter(|c| c.host == host).expect("clean, and never seen here");
            assert_eq!(cached.groups[bit], *group, "clean bit {bit}, and changed");
        }
    });
}

/// #VMEXIT writes the guest's state back, and keeps it.
pub(super) fn after(vmcb: &Vmcb, host: u64, failed: bool) {
    let at = core::ptr::from_ref(vmcb).addr().try_into().unwrap();
    CACHED.with_borrow_mut(|cached| {
        if failed || vmcb.control.exit_code == u64::MAX {
            cached.remove(&at);
        } else {
            cached.insert(at, Cached { host, groups: groups(vmcb) });
        }
    });
}

/// The clean field that the next entry has.
fn next(m: &mut Machine) -> u32 {
    let seen = Rc::new(Cell::new(0));
    let see = seen.clone();
    m.enter(move |vmcb| {
        see.set(vmcb.control.clean);
        vmcb.control.exit_code = 0x72;
    });
    seen.get()
}

/// What most exits change (registers, RIP, an event) the CPU reads anyway: nothing is dirty. Each other setter dirties its own
/// group, and only with another value.
#[test]
fn what_changed_is_dirty_and_nothing_else() {
    let mut m = Machine::new(&ALL);
    assert_eq!(next(&mut m), clean::NONE, "the first entry");
    m.v.set_rip(0x1234);
    m.v.set_rflags(0x202);
    m.v.gprs_mut().set(Gpr::Rax, 7);
    m.v.gprs_mut().set(Gpr::Rsp, 8);
    m.v.inject(Event::Interrupt(0x20));
    m.v.set_interrupt_shadow(true);
    m.v.set_sys_reg(SysReg::FsBase, 3);
    assert_eq!(next(&mut m), clean::ALL);
    let cs = Segment { base: 1, ..m.v.segment(SegReg::Cs) };
    type Change<'a> = &'a dyn Fn(&mut crate::Svm);
    let one: [(u32, Change<'_>); 10] = [
        (clean::INTERCEPTS, &|v| v.set_tsc_offset(5)),
        (clean::INTERCEPTS | clean::TPR, &|v| v.set_interrupt_window(true)),
        (clean::TPR, &|v| v.set_cr8(3)),
        (clean::NP, &|v| v.set_slat_root(0x5000)),
        (clean::CRX, &|v| v.set_cr3(0x6000)),
        (clean::DRX, &|v| v.set_dr7(0x400)),
        (clean::DT, &|v| v.set_gdtr(&TableReg { base: 1, limit: 2, reserved: 0 })),
        (clean::SEG, &|v| v.set_segment(SegReg::Cs, &cs)),
        (clean::CR2, &|v| v.set_cr2(9)),
        (clean::LBR, &|v| v.set_sys_reg(SysReg::DebugCtl, 1)),
    ];
    for (group, change) in one {
        change(&mut m.v);
        assert_eq!(next(&mut m), clean::ALL & !group, "{group:#x}");
        change(&mut m.v);
        assert_eq!(next(&mut m), clean::ALL, "{group:#x} again");
    }
}

/// Another CPU has not seen the VMCB, and when it comes back the first one's copy is old; nor has a CPU whose SVM was off, in a
/// suspend say.
#[test]
fn another_cpu_reads_everything() {
    let mut m = Machine::new(&ALL);
    m.cpu.host_save_pa.store(0x1000, Relaxed);
    let mut other = crate::PerCpu::none();
    other.enable(1, ALL.asids, 0);
    other.host_save_pa.store(0x2000, Relaxed);
    let mut seen = vec![];
    for moves in [false, false, true, false, true, false] {
        if moves {
            core::mem::swap(&mut m.cpu, &mut other);
        }
        seen.push(next(&mut m));
    }
    m.cpu.enable(0, ALL.asids, 0);
    CACHED.with_borrow_mut(|c| c.clear());
    seen.extend([next(&mut m), next(&mut m)]);
    let (none, all) = (clean::NONE, clean::ALL);
    assert_eq!(seen, [none, all, none, all, none, all, none, all]);
}

/// VMRUN that faults, or refuses the state, and a shutdown leave nothing to rely on.
#[test]
fn an_entry_that_failed_reads_everything() {
    let mut m = Machine::new(&ALL);
    for code in [u64::MAX, 0xffff_ffff, 0x7f] {
        next(&mut m);
        m.exit(code, 0, 0);
        assert_eq!(next(&mut m), clean::NONE);
    }
    m.enter_with(false, |_, _| true);
    assert_eq!(next(&mut m), clean::NONE);
}

/// One step of a vCPU's life.
#[derive(Clone, Copy, Debug)]
struct Step {
    what: u8,
    value: u64,
}

const SEGMENTS: [SegReg; 8] =
    [SegReg::Es, SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs, SegReg::Ldtr, SegReg::Tr];

const SYS_REGS: [SysReg; 18] = [
    SysReg::Star,
    SysReg::Lstar,
    SysReg::Cstar,
    SysReg::Sfmask,
    SysReg::KernelGsBase,
    SysReg::FsBase,
    SysReg::GsBase,
    SysReg::SysenterCs,
    SysReg::SysenterEsp,
    SysReg::SysenterEip,
    SysReg::Pat,
    SysReg::DebugCtl,
    SysReg::LastBranchFrom,
    SysReg::LastBranchTo,
    SysReg::LastIntFrom,
    SysReg::LastIntTo,
    SysReg::SpecCtrl,
    SysReg::TscAux,
];

/// What the guest did before it exited: the CPU writes all of it back.
fn guest_runs(b: &mut Vmcb, x: u64) {
    (b.save.cr0, b.save.cr2, b.save.cr3) = (x, x ^ 1, x ^ 2);
    (b.save.dr6, b.save.dr7) = (x ^ 3, x ^ 4);
    (b.save.rip, b.save.rflags) = (x ^ 5, x & 0x2_0302 | 2);
    b.save.cs.base = x ^ 6;
    b.save.gdtr.limit = x as u32;
    b.control.int_ctl = b.control.int_ctl & !0xf | (x & 0xf) as u32;
    b.control.int_state = (x & 1) as u32;
}

impl Step {
    fn run(self, m: &mut Machine, others: &mut [crate::PerCpu]) {
        let (v, x, on) = (&mut m.v, self.value, self.value & 1 != 0);
        let segment = Segment { base: x, limit: x as u32, selector: x as u16, attrib: x as u16 & 0xfff };
        match self.what {
            0 => v.set_interrupt_window(on),
            1 => v.set_nmi_window(on),
            2 => v.set_cr8_intercept(on),
            3 => v.set_dr_intercept(on),
            4 => v.set_bp_intercept(on),
            5 => v.set_step(on),
            6 => v.set_tsc_offset(x),
            7 => v.set_slat_root(x),
            8 => v.set_cr0(x),
            9 => v.set_cr2(x),
            10 => v.set_cr3(x),
            11 => v.set_cr4(x),
            12 => v.set_efer(x),
            13 => v.set_dr6(x),
            14 => v.set_dr7(x),
            15 => v.set_cr8(x as u8),
            16 => v.set_gdtr(&TableReg { base: x, limit: 7, reserved: 0 }),
            17 => v.set_idtr(&TableReg { base: x, limit: 7, reserved: 0 }),
            18 => v.set_segment(SEGMENTS[x as usize % 8], &segment),
            19 => v.set_sys_reg(SYS_REGS[x as usize % 18], x),
            20 => v.inject(Event::Nmi),
            21 => v.set_nmi_masked(on),
            22 => v.set_instructions(Instructions { rdtscp: on, ..Instructions::default() }),
            23 => _ = v.take_interrupted(),
            24 => v.set_rflags(x & 0x2_0302),
            25 => core::mem::swap(&mut m.cpu, &mut others[x as usize % 2]),
            26 => {
                let cpu = (m.cpu.host_save_pa.load(Relaxed) >> 12) as u32;
                m.cpu.enable(cpu, ALL.asids, 0);
                CACHED.with_borrow_mut(|c| c.clear());
            }
            27 => _ = m.enter_with(on, |_, _| true),
            _ => {
                let codes = [0x60, 0x72, 0x74, 0x41, 0x400, u64::MAX];
                _ = m.enter_with(on, move |b, _| {
                    guest_runs(b, x);
                    b.control.exit_code = codes[x as usize % codes.len()];
                    false
                });
            }
        }
    }
}

proptest! {
    /// Whatever a vCPU does in whatever order, on whichever CPU: no group is called clean that the CPU has not as it is now.
    /// The setters' groups are named in one table, the CPU's in another; a field that stands in the wrong group, or a write past
    /// the setters, fails here.
    #[test]
    fn no_change_is_forgotten(steps in prop::collection::vec((0..40u8, any::<u64>()), 1..80)) {
        CACHED.with_borrow_mut(|c| c.clear());
        let mut m = Machine::new(&ALL);
        m.cpu.host_save_pa.store(0x1000, Relaxed);
        let mut others: Vec<_> = (2..4u32).map(|n| {
            let cpu = crate::PerCpu::none();
            cpu.enable(n, ALL.asids, 0);
            cpu.host_save_pa.store(u64::from(n) << 12, Relaxed);
            cpu
        }).collect();
        for (what, value) in steps {
            Step { what, value }.run(&mut m, &mut others);
            next(&mut m);
        }
    }
}
