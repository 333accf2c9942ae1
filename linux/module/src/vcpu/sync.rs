//! `KVM_CAP_SYNC_REGS`: registers that travel in `kvm_run` with `KVM_RUN`, instead of by ioctls of their own.
//!
//! `kvm_dirty_regs` names the sets that user space has changed, taken before the run; `kvm_valid_regs` those it wants
//! after it, whatever the run returned.

use super::VcpuObj;
use super::host::RunHost;
use super::ioctl::Call;
use crate::vendor::Vendor;
use core::mem::offset_of;
use exitless_host::mem::KBox;
use exitless_host::{Errno, Result};
use exitless_kvm_abi::*;
use exitless_vcpu::Vcpu;

const VALID: usize = offset_of!(kvm_run, kvm_valid_regs);
const DIRTY: usize = offset_of!(kvm_run, kvm_dirty_regs);
const REGS: usize = offset_of!(kvm_run, s);

/// `KVM_RUN` with the registers around it. The caller holds the vCPU's lock and has it loaded.
pub fn run<B: Vendor>(v: &VcpuObj, inner: &mut Vcpu<B>) -> Result<isize> {
    let page = v.run_page();
    let (valid, dirty) = (page.u64_at(VALID), page.u64_at(DIRTY));
    if (valid | dirty) & !KVM_SYNC_X86_VALID_FIELDS != 0 {
        return Err(Errno::EINVAL);
    }
    if dirty != 0 {
        take(v, inner, dirty)?;
        page.put_u64(DIRTY, 0);
    }
    let result = super::run::run(v, inner);
    if valid != 0 {
        give(v, inner, valid)?;
    }
    result
}

fn take<B: Vendor>(v: &VcpuObj, inner: &mut Vcpu<B>, sets: u64) -> Result<()> {
    let mut s = KBox::<kvm_sync_regs>::zeroed().ok_or(Errno::ENOMEM)?;
    v.run_page().bytes(REGS, bytemuck::bytes_of_mut(&mut *s));
    let host = RunHost::new(v.vm(), v);
    host.lock();
    let mut call = Call { v, inner, host };
    if sets & KVM_SYNC_X86_REGS != 0 {
        call.set_regs(&s.regs)?;
    }
    if sets & KVM_SYNC_X86_SREGS != 0 {
        call.apply_sregs(&s.sregs)?;
    }
    if sets & KVM_SYNC_X86_EVENTS != 0 {
        call.set_events(&s.events)?;
    }
    Ok(())
}

fn give<B: Vendor>(v: &VcpuObj, inner: &mut Vcpu<B>, sets: u64) -> Result<()> {
    let mut s = KBox::<kvm_sync_regs>::zeroed().ok_or(Errno::ENOMEM)?;
    let page = v.run_page();
    let host = RunHost::new(v.vm(), v);
    let mut call = Call { v, inner, host };
    if sets & KVM_SYNC_X86_REGS != 0 {
        s.regs = call.get_regs();
        page.put_bytes(REGS + offset_of!(kvm_sync_regs, regs), bytemuck::bytes_of(&s.regs));
    }
    if sets & KVM_SYNC_X86_SREGS != 0 {
        call.fill_sregs(&mut s.sregs);
        page.put_bytes(REGS + offset_of!(kvm_sync_regs, sregs), bytemuck::bytes_of(&s.sregs));
    }
    if sets & KVM_SYNC_X86_EVENTS != 0 {
        s.events = call.get_events();
        page.put_bytes(REGS + offset_of!(kvm_sync_regs, events), bytemuck::bytes_of(&s.events));
    }
    Ok(())
}
