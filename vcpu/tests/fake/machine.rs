//! One vCPU put together: power-up, flat mode, APIC on, CPUID set; and user space that answers what it is asked.

use super::bare::bare;
use super::cpu::{Cpu, Op, PV_EOI_FLAG};
use super::os::Os;
use super::world::{Env, World, pattern};
use bytemuck::Zeroable;
use exitless_avic::Entry;
use exitless_kvm_abi::kvm_cpuid_entry2;
use exitless_policy::cpuid::{CpuidIndex, GuestCpuid};
use exitless_policy::{GuestCaps, Origin};
use exitless_posted::{Descriptor, PidPointer};
use exitless_vcpu::backend::{ApicPage, Backend, Event};
use exitless_vcpu::journal::Access;
use exitless_vcpu::shared::mp;
use exitless_vcpu::{RunExit, Vcpu, VcpuShared, run, timer};
use exitless_x86::apic::{lvt, reg};
use exitless_x86::regs::{SegReg, Segment, efer, rflags};
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

/// The APIC timer's vector.
pub(crate) const TIMER_VECTOR: u8 = 0xec;

/// The address of AVIC's backing page.
pub(crate) const BACKING: u64 = 0x12_3000;
/// And of its mailbox.
pub(crate) const MAILBOX: u64 = 0x45_6040;

/// Ticks that the CPU's timer counts at most.
pub(crate) const TIMER_LIMIT: u64 = 1 << 24;

/// See the file's head.
pub(crate) struct Machine {
    pub(crate) w: Rc<World>,
    pub(crate) sh: Rc<VcpuShared>,
    pub(crate) os: Os,
    pub(crate) v: Box<Vcpu<Cpu>>,
    /// Exits to user space that were answered.
    pub(crate) answered: Vec<RunExit>,
}

fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    let flags = u32::from(function == 7 || function == 0xd);
    kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Zeroable::zeroed() }
}

/// An AMD guest with x2APIC, TSC deadline, XSAVE (x87, SSE, AVX), long mode and all paravirtual features.
pub(crate) fn cpuid_entries() -> Vec<kvm_cpuid_entry2> {
    vec![
        entry(0, 0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        entry(1, 0, [0x0080_0f12, 0, 1 << 21 | 1 << 24 | 1 << 26, 1 << 9 | 1 << 25]),
        entry(7, 0, [0, 1 << 1 | 1 << 7 | 1 << 20, 0, 0]),
        entry(0xd, 0, [7, 0x340, 0x340, 0]),
        entry(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        entry(0x4000_0001, 0, [!0, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, 0, 1 << 11 | 1 << 20 | 1 << 27 | 1 << 29]),
        entry(0x8000_0008, 0, [0x3030, 1 << 12, 0, 0]),
    ]
}

impl Machine {
    /// The boot CPU after power-up, nothing set.
    pub(crate) fn power_up(bsp: bool, irqchip: bool) -> Self {
        Self::power_up_with(bsp, irqchip, false)
    }

    pub(crate) fn power_up_with(bsp: bool, irqchip: bool, avic: bool) -> Self {
        exitless_insn::init();
        let page: &'static ApicPage = Box::leak(Box::new(ApicPage::zeroed()));
        let mut sh = VcpuShared::zeroed();
        if avic {
            sh.apic.use_page_for_irr(page);
        } else {
            sh.apic.use_page(page);
            sh.apic.use_descriptor(Box::leak(Box::new(Descriptor::zeroed())));
        }
        let sh = Rc::new(sh);
        let w = World::new(sh.clone());
        w.irqchip.set(irqchip);
        let v = bare(Cpu::new(w.clone(), page));
        let mut m = Self { os: Os::new(w.clone()), w, sh, v: Box::new(v), answered: vec![] };
        if avic {
            m.install_avic();
        }
        m.v.init(&m.sh, &m.os, 0, bsp);
        m.set_cpuid();
        m
    }

    /// The usual machine, about to run `ops` with interrupts open.
    pub(crate) fn new(ops: impl IntoIterator<Item = Op>) -> Self {
        let mut m = Self::power_up(true, true);
        m.boot();
        m.v.b.rflags |= rflags::IF;
        m.v.b.ops.extend(ops);
        m
    }

    /// As [`Machine::new`] on a CPU that virtualises the APIC and has a timer for guest mode.
    pub(crate) fn virtual_apic(x2apic: bool, ops: impl IntoIterator<Item = Op>) -> Self {
        let mut m = Self::new(ops);
        m.v.b.apic.able = true;
        m.v.b.timer_limit = Some(TIMER_LIMIT);
        if x2apic {
            m.set_x2apic();
        }
        m
    }

    /// The same on a CPU with AVIC, the APIC in x2APIC mode.
    pub(crate) fn avic(ops: impl IntoIterator<Item = Op>) -> Self {
        let mut m = Self::power_up_with(true, true, true);
        m.boot();
        m.set_x2apic();
        m.v.b.rflags |= rflags::IF;
        m.v.b.ops.extend(ops);
        m
    }

    /// As [`Machine::virtual_apic`] in x2APIC mode, on a CPU that sends IPIs.
    pub(crate) fn ipiv(ops: impl IntoIterator<Item = Op>) -> Self {
        let mut m = Self::virtual_apic(true, ops);
        let word: &'static AtomicU64 = Box::leak(Box::default());
        m.w.pid.set(Some(word));
        m.v.b.apic.ipiv = true;
        // SAFETY: an entry is such a word, and nothing else.
        let pid = unsafe { &*core::ptr::from_ref(word).cast::<PidPointer>() };
        m.v.vapic.use_ipiv(pid, MAILBOX);
        m
    }

    fn install_avic(&mut self) {
        let word: &'static AtomicU64 = Box::leak(Box::default());
        self.w.entry.set(Some(word));
        self.v.b.apic.able = true;
        self.v.b.apic.avic = true;
        // SAFETY: an entry is such a word, and nothing else.
        let entry = unsafe { &*core::ptr::from_ref(word).cast::<Entry>() };
        self.v.vapic.use_avic(entry, BACKING);
    }

    /// All of the APIC's state is taken, and set in one that was never used; `early`: the deadline before the registers.
    pub(crate) fn renew_apic(&mut self, early: bool) {
        let now = timer::now(&self.v, exitless_vcpu::host::Host::now(&self.os));
        let mut page = [0; 1024];
        self.v.lapic.save(&self.sh.apic, &now, &mut page);
        let (base, deadline) = (self.v.lapic.apic_base(), self.v.lapic.tsc_deadline());
        let (config, bsp) = (*self.v.lapic.config(), self.v.bsp);
        self.v.lapic.init(&self.sh.apic, 0, bsp, config);
        timer::sync(&mut *self.v, &self.sh, &self.os);
        self.user_msr(0x1b, base);
        if early {
            self.user_msr(0x6e0, deadline);
        }
        self.v.lapic.load(&self.sh.apic, &page, &now).unwrap();
        timer::sync(&mut *self.v, &self.sh, &self.os);
        self.sh.request(exitless_vcpu::Request::EVENT);
        if !early {
            self.user_msr(0x6e0, deadline);
        }
    }

    /// KVM_SET_MSRS.
    pub(crate) fn user_msr(&mut self, msr: u32, value: u64) {
        let caps = *self.v.cpuid.caps();
        self.v.write_msr(&self.sh, &self.os, msr, value, Origin::Host, &caps).unwrap();
    }

    pub(crate) fn set_x2apic(&mut self) {
        self.user_msr(0x1b, self.v.lapic.apic_base() | 0x400);
        self.w.x2apic.set(true);
    }

    /// As [`Machine::new`], with user space having the interrupt controllers.
    pub(crate) fn without_irqchip(ops: impl IntoIterator<Item = Op>) -> Self {
        let mut m = Self::power_up(true, false);
        m.boot();
        m.v.b.rflags |= rflags::IF;
        m.v.b.ops.extend(ops);
        m
    }

    /// Flat mode, APIC on, timer in TSC-deadline mode.
    pub(crate) fn boot(&mut self) {
        self.v.b.flat();
        self.enable_apic();
    }

    pub(crate) fn enable_apic(&mut self) {
        let now = timer::now(&self.v, exitless_vcpu::host::Host::now(&self.os));
        let timer = u32::from(TIMER_VECTOR) | lvt::TIMER_DEADLINE;
        self.w.timer_vector.set(TIMER_VECTOR);
        for (r, v) in [(reg::SVR, 0x1ff), (reg::LVT_TIMER, timer), (reg::LVT_LINT0, 7 << 8)] {
            let _ = self.v.lapic.mmio_write(&self.sh.apic, r, v, &now);
        }
    }

    fn set_cpuid(&mut self) {
        self.set_cpuid_with(|_| {});
    }

    /// KVM_SET_CPUID2 on a host that offers all of it.
    pub(crate) fn set_cpuid_with(&mut self, change: impl Fn(&mut kvm_cpuid_entry2)) {
        let mut entries = cpuid_entries();
        entries.iter_mut().for_each(change);
        self.v.cpuid.entries_mut()[..entries.len()].copy_from_slice(&entries);
        let mut index = CpuidIndex::zeroed();
        index.build(&entries);
        let mut host = GuestCaps::default();
        host.compute(GuestCpuid::new(&entries, &index), None);
        self.v.commit_cpuid(entries.len(), &host);
    }

    /// Code of this privilege level runs.
    pub(crate) fn set_cpl(&mut self, cpl: u16) {
        let ss = self.v.b.segment(SegReg::Ss);
        self.v.b.set_segment(SegReg::Ss, &Segment { attrib: ss.attrib & !0x60 | cpl << 5, ..ss });
    }

    /// One KVM_RUN.
    pub(crate) fn run(&mut self) -> RunExit {
        // The backend's to know: the thread comes to the CPU anew.
        self.w.strangers.set(false);
        let exit = run(&mut *self.v, &self.sh, &self.os);
        assert!(!self.w.in_slice.get(), "left inside a slice");
        assert!(!self.sh.needs_ipi(), "left in guest mode");
        exit
    }

    /// Runs until the script is over, answering MMIO and ports; the exit that user space cannot answer, or `Interrupted` at
    /// the script's end.
    pub(crate) fn go(&mut self) -> RunExit {
        loop {
            let exit = self.run();
            match exit {
                RunExit::Interrupted if self.w.script_over.get() => {
                    self.w.script_over.set(false);
                    self.w.signal.set(false);
                    return exit;
                }
                RunExit::Interrupted => {
                    self.w.signal.set(false);
                    self.w.immediate.set(false);
                }
                RunExit::Io { .. } | RunExit::Mmio(_) => self.answer(exit),
                other => return other,
            }
        }
    }

    /// What a VMM does with an exit.
    pub(crate) fn answer(&mut self, exit: RunExit) {
        self.answered.push(exit);
        match exit {
            RunExit::Io { port, size, count, input } => {
                let mut page = self.w.io_page.borrow_mut();
                let size = usize::from(size.min(8));
                assert!(count >= 1 && size * count as usize <= page.len());
                for data in page.chunks_mut(size.max(1)).take(count as usize) {
                    if input {
                        data.iter_mut()
                            .enumerate()
                            .for_each(|(i, b)| *b = pattern(u64::from(port) + i as u64));
                    }
                    self.w.touch(true, !input, u64::from(port), data);
                }
                if !input {
                    page.fill(0xcc);
                }
            }
            RunExit::Mmio(e) => {
                let Access::Mmio { gpa } = e.access else { panic!("a port as MMIO") };
                let n = usize::from(e.len);
                let mut data = e.data;
                if !e.write {
                    (0..n).for_each(|i| data[i] = pattern(gpa + i as u64));
                    self.w.answer.set(data);
                }
                self.w.touch(true, e.write, gpa, &data[..n]);
            }
            _ => panic!("no answer to {exit:?}"),
        }
    }

    /// More for the guest to do, and run it.
    /// As far as the hall looks.
    pub(crate) fn long_mode(&mut self) {
        self.v.b.efer |= efer::LMA;
        let cs = self.v.b.segment(SegReg::Cs);
        self.v.b.set_segment(SegReg::Cs, &Segment { attrib: cs.attrib & !Segment::DB | Segment::L, ..cs });
    }

    pub(crate) fn then(&mut self, ops: impl IntoIterator<Item = Op>) -> RunExit {
        self.v.b.ops.extend(ops);
        self.go()
    }

    pub(crate) fn measure(&self, on: bool) {
        self.sh.measured.store(on, Ordering::Relaxed);
        self.w.measured.set(on);
    }

    pub(crate) fn happen(&self, e: Env) {
        self.w.happen(e);
    }

    /// After `points` more points.
    pub(crate) fn later(&self, points: u8, e: Env) {
        self.w.schedule.borrow_mut().push_back((points, e));
    }

    /// What is still to happen happens; the guest runs on a little.
    pub(crate) fn finish(&mut self) -> RunExit {
        for (_, e) in self.w.schedule.take() {
            self.w.happen(e);
        }
        self.w.finish_senders();
        self.then([Op::Nop, Op::Nop, Op::Nop])
    }

    /// What the guest got so far, forgotten with the answer.
    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.v.b.delivered)
    }

    pub(crate) fn halted(&self) -> bool {
        self.v.mp_state == mp::HALTED
    }

    /// The guest has PV EOI, as Linux sets it up.
    pub(crate) fn enable_pv_eoi(&mut self) {
        self.v.pv.eoi = PV_EOI_FLAG | 1;
    }
}
