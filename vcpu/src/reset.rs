//! RESET, INIT and SIPI: the register values of SDM vol. 3A, table 10-1.

use crate::backend::{Backend, SysReg};
use crate::clock::tsc::Rate;
use crate::host::Host;
use crate::journal::Journal;
use crate::shared::{VcpuShared, mp};
use crate::vcpu::Vcpu;
use crate::vcpu::pv::Pv;
use crate::vcpu::stores::Stores;
use exitless_lapic::{Config, Reset};
use exitless_x86::regs::{Gpr, Gprs, SegReg, Segment, TableReg, cr0, dr6, dr7};

const DATA: u16 = Segment::P | Segment::S | 3;
const CODE: u16 = Segment::P | Segment::S | 11;
const LDT: u16 = Segment::P | 2;
const BUSY_TSS: u16 = Segment::P | 11;

fn flat(attrib: u16) -> Segment {
    Segment { base: 0, limit: 0xffff, selector: 0, attrib }
}

impl<B: Backend> Vcpu<B> {
    /// Makes every field a CPU after power-up. `b` is initialised by the owner before.
    pub fn init<H: Host<Cpu = B::Cpu>>(&mut self, sh: &VcpuShared, host: &H, id: u32, bsp: bool) {
        self.id = id;
        self.bsp = bsp;
        self.journal = Journal::default();
        self.stores = Stores::default();
        self.pending_port = None;
        self.user_interrupt = None;
        self.user_eoi = None;
        self.chosen = false;
        self.want_window = false;
        self.xcr0 = 1;
        self.pkru = 0;
        self.set_tsc_rate(sh, Rate::host(host.tsc_khz()), None);
        self.set_tsc_offset(sh, 0);
        self.started = false;
        self.msrs.init(host.arch_capabilities());
        self.lapic.init(&sh.apic, id, bsp, Config::default());
        self.b.set_sys_reg(SysReg::Pat, Self::PAT_RESET);
        self.reset(sh, host, false);
        // Without an APIC in the kernel, starting application processors is user space's business.
        self.set_mp(sh, if bsp || !host.irqchip() { mp::RUNNABLE } else { mp::UNINITIALIZED });
    }

    /// RESET (`init` false) or INIT.
    pub fn reset<H: Host<Cpu = B::Cpu>>(&mut self, sh: &VcpuShared, host: &H, init: bool) {
        self.reinject = None;
        self.exception = None;
        self.injecting = None;
        self.b.withdraw();
        self.nmi_pending = 0;
        let _ = sh.apic.take_nmis();
        crate::timer::lazy::forget(self, sh, host);
        crate::apic::raw::forget(self, sh);
        // Whoever runs after INIT has not told us about its memory.
        self.pv = Pv::default();
        sh.steal.set(None);
        crate::pv::async_pf::forget(self, sh);
        self.forget_instruction();
        self.dr = [0; 4];
        self.flush = true;
        self.event_dirty = true;
        self.registers_after_reset(init);
        if init {
            crate::timer::stop(self, sh);
            self.lapic.reset(&sh.apic, Reset::Init);
            crate::timer::sync(self, sh, host);
            host.apic_moved();
        }
    }

    fn registers_after_reset(&mut self, init: bool) {
        let b = &mut self.b;
        *b.gprs_mut() = Gprs::default();
        b.gprs_mut().set(Gpr::Rdx, 0x600);
        b.set_rflags(2);
        b.set_rip(0xfff0);
        b.set_interrupt_shadow(false);
        b.set_interrupt_window(false);
        b.set_nmi_masked(false);
        b.set_nmi_window(false);
        b.set_cr8(0);
        // INIT keeps CD and NW (SDM vol. 3A, table 10-1, note 2).
        let kept = if init { b.cr0() & (cr0::CD | cr0::NW) } else { cr0::CD | cr0::NW };
        b.set_cr0(cr0::ET | kept);
        b.set_cr2(0);
        b.set_cr3(0);
        b.set_cr4(0);
        b.set_efer(0);
        b.set_dr6(dr6::NEUTRAL);
        for s in [SegReg::Es, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
            b.set_segment(s, &flat(DATA));
        }
        let cs = Segment { base: 0xffff_0000, limit: 0xffff, selector: 0xf000, attrib: CODE };
        b.set_segment(SegReg::Cs, &cs);
        b.set_segment(SegReg::Ldtr, &flat(LDT));
        b.set_segment(SegReg::Tr, &flat(BUSY_TSS));
        let table = TableReg { base: 0, limit: 0xffff, reserved: 0 };
        b.set_gdtr(&table);
        b.set_idtr(&table);
        self.set_guest_dr7(dr7::FIXED);
        self.settle_debug_registers();
    }

    /// SIPI: real mode at `page` * 4096.
    pub fn start_at(&mut self, page: u8) {
        let cs = Segment {
            base: u64::from(page) << 12,
            limit: 0xffff,
            selector: u16::from(page) << 8,
            attrib: CODE,
        };
        self.b.set_segment(SegReg::Cs, &cs);
        self.b.set_rip(0);
        self.event_dirty = true;
    }
}
