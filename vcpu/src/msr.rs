//! Reading and writing any MSR: one line per kind.

use crate::apic::{choose, raw, vapic, work};
use crate::backend::{ApicKind, Backend, Opened, SysReg};
use crate::clock::tsc::{Rate, Scaling};
use crate::host::Host;
use crate::pv;
use crate::shared::{Request, VcpuShared};
use crate::timer;
use crate::vcpu::Vcpu;
use core::sync::atomic::Ordering::Relaxed;
use exitless_lapic::BaseCaps;
use exitless_policy::control::efer_write;
use exitless_policy::msr::{MsrKind as K, check_read, check_write};
use exitless_policy::{GuestCaps, Invalid, Origin};
use exitless_x86::apic::reg;
use exitless_x86::msr::{Msr, hwcr};

/// The interrupt command register.
const X2APIC_ICR: u32 = Msr::X2APIC.0 + (reg::ICR >> 4);

fn sys_reg(kind: K) -> Option<SysReg> {
    Some(match kind {
        K::Star => SysReg::Star,
        K::Lstar => SysReg::Lstar,
        K::Cstar => SysReg::Cstar,
        K::Sfmask => SysReg::Sfmask,
        K::KernelGsBase => SysReg::KernelGsBase,
        K::FsBase => SysReg::FsBase,
        K::GsBase => SysReg::GsBase,
        K::SysenterCs => SysReg::SysenterCs,
        K::SysenterEsp => SysReg::SysenterEsp,
        K::SysenterEip => SysReg::SysenterEip,
        K::Pat => SysReg::Pat,
        K::DebugCtl => SysReg::DebugCtl,
        K::SpecCtrl => SysReg::SpecCtrl,
        K::TscAux => SysReg::TscAux,
        _ => return None,
    })
}

impl<B: Backend> Vcpu<B> {
    /// RDMSR or KVM_GET_MSRS.
    ///
    /// # Errors
    /// [`Invalid`]: #GP(0), or the ioctl stops counting.
    pub fn read_msr<H: Host<Cpu = B::Cpu>>(
        &mut self,
        sh: &VcpuShared,
        host: &H,
        msr: u32,
        origin: Origin,
    ) -> Result<u64, Invalid> {
        let kind = check_read(msr, origin, self.cpuid.caps())?;
        if let Some(r) = sys_reg(kind) {
            return Ok(self.b.sys_reg(r));
        }
        match kind {
            K::Tsc => Ok(self.guest_tsc(host.now().tsc)),
            K::TscAdjust => Ok(self.msrs.tsc_adjust),
            K::TscDeadline => {
                timer::show(self, sh);
                let deadline = self.lapic.tsc_deadline();
                Ok(if origin == Origin::Guest {
                    timer::passthrough::as_read(self, deadline)
                } else {
                    deadline
                })
            }
            K::ApicBase => Ok(self.lapic.apic_base()),
            K::X2Apic(_) => {
                vapic::take_back(self, sh);
                let now = timer::now(self, host.now());
                self.lapic.msr_read(&sh.apic, msr, &now).map_err(|_| Invalid)
            }
            K::Efer => Ok(self.b.efer()),
            K::MiscEnable => Ok(self.msrs.misc_enable),
            K::UcodeRev => Ok(self.msrs.ucode_rev),
            K::ArchCapabilities => Ok(self.msrs.arch_capabilities),
            K::Hwcr => Ok(self.msrs.hwcr),
            K::MtrrDefType | K::MtrrFixed(_) | K::MtrrVariable(_) => self.msrs.mtrrs.read(kind),
            K::McgCap | K::McgStatus | K::McgCtl | K::McBank(_) => self.msrs.mce.read(kind, origin),
            K::PvWallClock(_) => Ok(self.pv.wall_clock),
            K::PvSystemTime(_) => Ok(self.pv.system_time),
            K::PvStealTime => Ok(self.pv.steal),
            K::PvEoi => Ok(self.pv.eoi),
            K::PvPollControl => Ok(u64::from(!self.pv.polls_itself)),
            K::PvAsyncPf => Ok(self.pv.async_pf),
            K::PvAsyncPfInt => Ok(self.pv.async_pf_int),
            K::PvAsyncPfAck => Ok(0),
            K::LazyDeadline => Ok(self.pv.lazy_deadline),
            K::Descriptor | K::Sequence | K::SequenceParts => Ok(self.pv.raw.read(kind)),
            K::Const(v) => Ok(v),
            _ => Err(Invalid),
        }
    }

    /// WRMSR or KVM_SET_MSRS; `host_caps` is the summary of the supported list.
    ///
    /// # Errors
    /// [`Invalid`]: #GP(0), or the ioctl stops counting.
    pub fn write_msr<H: Host<Cpu = B::Cpu>>(
        &mut self,
        sh: &VcpuShared,
        host: &H,
        msr: u32,
        value: u64,
        origin: Origin,
        host_caps: &GuestCaps,
    ) -> Result<(), Invalid> {
        let (kind, value) = check_write(msr, value, origin, self.cpuid.caps())?;
        if let Some(r) = sys_reg(kind) {
            self.b.set_sys_reg(r, value);
            match r {
                SysReg::TscAux => host.reload_tsc_aux(value),
                // Who uses it writes it often, with legacy IBRS twice for a system call.
                SysReg::SpecCtrl if value != 0 && self.cpuid.caps().spec_ctrl != 0 => {
                    self.open(self.opened.put(Opened::SPEC_CTRL, true));
                }
                _ => {}
            }
            return Ok(());
        }
        match kind {
            K::Tsc => self.write_tsc(sh, host, value, origin),
            K::TscAdjust => self.write_tsc_adjust(sh, host, value, origin),
            K::TscDeadline => self.write_deadline(sh, host, value, origin),
            K::ApicBase => return self.write_apic_base(sh, host, value, origin, host_caps),
            K::X2Apic(_) => return self.write_x2apic(sh, host, msr, value),
            K::Efer => return self.write_efer(value, origin, host_caps),
            K::MiscEnable => self.msrs.misc_enable = value,
            K::UcodeRev => self.msrs.ucode_rev = value,
            K::ArchCapabilities => self.msrs.arch_capabilities = value,
            K::Hwcr => self.msrs.hwcr = value,
            K::MtrrDefType | K::MtrrFixed(_) | K::MtrrVariable(_) => {
                return self.msrs.mtrrs.write(kind, value, self.cpuid.caps().maxphyaddr());
            }
            K::McgCap | K::McgStatus | K::McgCtl | K::McBank(_) => {
                let writable = self.msrs.hwcr & hwcr::MC_STATUS_WR_EN != 0;
                return self.msrs.mce.write(kind, value, origin, writable);
            }
            K::PredCmd => {
                // Only the guest's own wish counts: what user space restores has happened.
                if value != 0 && origin == Origin::Guest {
                    if !host.branch_barrier() {
                        return Err(Invalid);
                    }
                    self.open(self.opened.put(Opened::PRED_CMD, true));
                    host.barriers_unseen();
                }
            }
            K::FlushCmd => {
                if value != 0 && origin == Origin::Guest {
                    host.flush_l1d();
                }
            }
            K::PvWallClock(_) => {
                self.pv.wall_clock = value;
                pv::clock::write_wall(self, host);
            }
            K::PvSystemTime(_) => {
                self.pv.system_time = value;
                sh.request(Request::CLOCK);
            }
            K::PvStealTime => {
                pv::steal::set(self, sh, value);
                self.pv.last_delay = host.run_delay();
                sh.request(Request::STEAL);
            }
            K::PvEoi => {
                self.pv.eoi = value;
                self.pv.eoi_offered = false;
            }
            K::PvPollControl => self.pv.polls_itself = value == 0,
            K::PvAsyncPf => return pv::async_pf::set(self, sh, host, value),
            K::PvAsyncPfInt => return pv::async_pf::set_vector(self, sh, host, value),
            K::PvAsyncPfAck => pv::async_pf::acknowledge(self, sh, host, value, origin),
            K::LazyDeadline => return timer::lazy::set(self, sh, host, value),
            K::Descriptor => return raw::set(self, host, value, origin),
            K::Sequence | K::SequenceParts => return raw::set_sequence(self, kind, value),
            K::ExitlessIcr if raw::has_icr(self) => {
                self.write_x2apic(sh, host, X2APIC_ICR, value)?;
                if origin == Origin::Guest {
                    raw::again(self, sh, host);
                }
            }
            K::Const(_) => {}
            _ => return Err(Invalid),
        }
        Ok(())
    }

    /// WRMSR by the guest.
    ///
    /// # Errors
    /// As [`Vcpu::write_msr`].
    pub fn write_msr_guest<H: Host<Cpu = B::Cpu>>(
        &mut self,
        sh: &VcpuShared,
        host: &H,
        msr: u32,
        value: u64,
    ) -> Result<(), Invalid> {
        let caps = *self.cpuid.caps();
        self.write_msr(sh, host, msr, value, Origin::Guest, &caps)
    }

    /// Gives the TSC another offset.
    pub fn set_tsc_offset(&mut self, sh: &VcpuShared, offset: u64) {
        self.tsc_offset = offset;
        self.chosen = false;
        self.b.set_tsc_offset(offset);
        sh.tsc.offset.store(offset, Relaxed);
    }

    /// Lets the TSC count at another rate; the offset that fits is the caller's business. `scaling`: the CPU's.
    pub fn set_tsc_rate(&mut self, sh: &VcpuShared, rate: Rate, scaling: Option<Scaling>) {
        self.rate = rate;
        self.chosen = false;
        sh.tsc.ratio.store(rate.raw_ratio(), Relaxed);
        if let Some(scaling) = scaling {
            self.b.set_tsc_ratio(rate.ratio(scaling));
        }
    }

    /// Gives a TSC in use another offset: timers and clock pages follow.
    pub fn move_tsc<H: Host<Cpu = B::Cpu>>(&mut self, sh: &VcpuShared, host: &H, offset: u64) {
        timer::lazy::clear(self, sh, host);
        self.set_tsc_offset(sh, offset);
        timer::sync(self, sh, host);
        sh.request(Request::CLOCK);
        host.tsc_moved();
    }

    /// The host's TSC is not where this vCPU left it: another offset makes up for that.
    pub fn follow_host_tsc<H: Host<Cpu = B::Cpu>>(&mut self, sh: &VcpuShared, host: &H) {
        let jump = host.take_tsc_jump();
        let ticks = self.rate.guest_ticks(jump.unsigned_abs());
        let moved = if jump < 0 { ticks.wrapping_neg() } else { ticks };
        let owed = sh.tsc.take_owed();
        self.move_tsc(sh, host, self.tsc_offset.wrapping_add(owed).wrapping_add(moved));
    }

    /// A guest's write also moves TSC_ADJUST (SDM vol. 3B, 18.17.3); user space's sets the time of all vCPUs.
    fn write_tsc<H: Host<Cpu = B::Cpu>>(&mut self, sh: &VcpuShared, host: &H, value: u64, origin: Origin) {
        let offset = match origin {
            Origin::Host => host.match_tsc(value, &self.rate),
            Origin::Guest => {
                let offset = value.wrapping_sub(self.rate.guest_ticks(host.now().tsc));
                let moved = offset.wrapping_sub(self.tsc_offset);
                self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(moved);
                offset
            }
        };
        self.move_tsc(sh, host, offset);
    }

    fn write_tsc_adjust<H: Host<Cpu = B::Cpu>>(
        &mut self,
        sh: &VcpuShared,
        host: &H,
        value: u64,
        origin: Origin,
    ) {
        let moved = value.wrapping_sub(self.msrs.tsc_adjust);
        self.msrs.tsc_adjust = value;
        if origin == Origin::Guest && moved != 0 {
            self.move_tsc(sh, host, self.tsc_offset.wrapping_add(moved));
        }
    }

    fn write_deadline<H: Host<Cpu = B::Cpu>>(
        &mut self,
        sh: &VcpuShared,
        host: &H,
        value: u64,
        origin: Origin,
    ) {
        if origin == Origin::Host && !self.lapic.takes_tsc_deadline() {
            self.lapic.keep_tsc_deadline(value);
            return;
        }
        if timer::write_deadline(self, sh, host, value, host.now(), origin) {
            self.event_dirty = true;
            sh.request(Request::EVENT);
        }
    }

    fn write_apic_base<H: Host<Cpu = B::Cpu>>(
        &mut self,
        sh: &VcpuShared,
        host: &H,
        value: u64,
        origin: Origin,
        host_caps: &GuestCaps,
    ) -> Result<(), Invalid> {
        vapic::take_back(self, sh);
        // It may be disabled, and lose what is pending. Before the next slice it is looked at again.
        choose::retire(self, sh, host);
        let from_host = origin == Origin::Host;
        let caps = if from_host { host_caps } else { self.cpuid.caps() };
        let base = BaseCaps { x2apic: caps.x2apic, maxphyaddr: caps.maxphyaddr() };
        let asked = self.lapic.set_apic_base(&sh.apic, value, base, from_host).map_err(|_| Invalid)?;
        work::apply(self, sh, host, asked);
        Ok(())
    }

    fn write_x2apic<H: Host<Cpu = B::Cpu>>(
        &mut self,
        sh: &VcpuShared,
        host: &H,
        msr: u32,
        value: u64,
    ) -> Result<(), Invalid> {
        // Sending needs nothing that hardware changes, where it does not send itself.
        if msr != X2APIC_ICR || self.vapic.kind == ApicKind::X2ApicIpis {
            vapic::take_back(self, sh);
        }
        let now = timer::now(self, host.now());
        let asked = self.lapic.msr_write(&sh.apic, msr, value, &now).map_err(|_| Invalid)?;
        work::apply(self, sh, host, asked);
        Ok(())
    }

    fn write_efer(&mut self, value: u64, origin: Origin, host_caps: &GuestCaps) -> Result<(), Invalid> {
        let old = self.b.efer();
        let caps = if origin == Origin::Host { host_caps } else { self.cpuid.caps() };
        let new = efer_write(old, value, self.b.cr0(), origin, caps)?;
        self.b.set_efer(new);
        if old != new {
            self.flush = true;
        }
        Ok(())
    }

    /// User space has the APIC: CR8 comes from `kvm_run`.
    pub fn take_user_tpr(&mut self, sh: &VcpuShared, cr8: u64) {
        let _ = self.lapic.set_cr8(&sh.apic, (cr8 & 15) as u8);
    }
}
