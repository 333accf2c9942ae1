//! Asynchronous page faults (`exitless_async_pf`): the vCPU's side.
//!
//! The guest is told only where it could take an interrupt as well: at an instruction boundary, nothing on its way in, interrupts open. The
//! instruction runs again behind the handler, or when the vCPU has waited.

use crate::backend::{Backend, SlatFault};
use crate::entry;
use crate::host::Host;
use crate::shared::{Request, VcpuShared};
use crate::vcpu::Vcpu;
use core::mem::offset_of;
use exitless_async_pf::{Ended, Guest, WAKE_ALL, Wish};
use exitless_chooser::{Fallback, Mechanism::AsyncPf};
use exitless_policy::{Invalid, Origin};
use exitless_pv_abi::{KVM_PV_REASON_PAGE_NOT_PRESENT, kvm_vcpu_pv_apf_data};
use exitless_x86::exception::Exception;
use exitless_x86::regs::cr0;

/// Where the token is.
const TOKEN: u64 = offset_of!(kvm_vcpu_pv_apf_data, token) as u64;
/// Vectors below are illegal: the guest has not said which it wants.
const FIRST_VECTOR: u64 = 16;

/// MSR_KVM_ASYNC_PF_EN.
///
/// # Errors
/// No APIC to tell by, or no memory at the address.
pub fn set<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    value: u64,
) -> Result<(), Invalid> {
    let wish = Wish(value);
    if value != 0 && (!host.irqchip() || wish.is_on() && !host.is_ram(wish.area(), true)) {
        return Err(Invalid);
    }
    v.pv.async_pf = value;
    if wish.is_on() {
        // Also where user space restores it: what was told before is lost.
        v.async_pf.owe_wake_all();
        sh.request(Request::ASYNC_PF);
    } else {
        forget(v, sh);
    }
    Ok(())
}

/// MSR_KVM_ASYNC_PF_INT.
///
/// # Errors
/// No APIC.
pub fn set_vector<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    value: u64,
) -> Result<(), Invalid> {
    if !host.irqchip() {
        return Err(Invalid);
    }
    v.pv.async_pf_int = value;
    sh.request(Request::ASYNC_PF);
    Ok(())
}

/// MSR_KVM_ASYNC_PF_ACK: the guest has taken the token, the next may come.
pub fn acknowledge<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    value: u64,
    origin: Origin,
) {
    if value & 1 == 0 {
        return;
    }
    sh.pages.token_taken();
    match origin {
        Origin::Guest => ready(v, sh, host),
        Origin::Host => sh.request(Request::ASYNC_PF),
    }
}

/// Nobody is left who was told.
pub fn forget<B: Backend>(v: &mut Vcpu<B>, sh: &VcpuShared) {
    v.async_pf.forget();
    v.async_pf.go_on();
    sh.pages.token_taken();
}

fn tells<B: Backend>(v: &Vcpu<B>) -> bool {
    Wish(v.pv.async_pf).takes(Guest { cpl: v.b.cpl(), paging: v.b.cr0() & cr0::PG != 0 })
}

/// A slow page need not be waited for in place. Not with interrupts closed: such a guest can neither be told nor be woken by anything.
fn may<B: Backend>(v: &Vcpu<B>) -> bool {
    let idle = v.reinject.is_none() && v.exception.is_none() && !v.debug.acts();
    // A guest that halts without an exit is not halted by us.
    idle && entry::interrupts_open(v) && (!v.in_guest.hlt || tells(v))
}

/// The page at `hva` is slow: somebody else waits for it. `false`: the vCPU must.
pub fn begin<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    sh: &VcpuShared,
    host: &H,
    fault: SlatFault,
    hva: u64,
) -> bool {
    if !may(v) {
        return fallback(sh, Fallback::Form);
    }
    if let Some(place) = v.async_pf.find(hva) {
        // The guest does something else already, and came to the same page.
        v.async_pf.wait_for(place);
        return true;
    }
    let Some(place) = v.async_pf.begin(hva, fault.gpa, v.id) else {
        return fallback(sh, Fallback::Busy);
    };
    if !host.bring_page(hva, fault.write, place) {
        v.async_pf.cancel(place);
        return fallback(sh, Fallback::Busy);
    }
    sh.count_hit(AsyncPf);
    let reason = KVM_PV_REASON_PAGE_NOT_PRESENT.to_le_bytes();
    if tells(v)
        && v.write_guest(host, Wish(v.pv.async_pf).area(), &reason)
        && let Some(token) = v.async_pf.tell(place)
    {
        // Nothing stands in its way: no event is on its way in.
        v.raise(Exception::pf(0, token.into()));
    } else {
        v.async_pf.wait_for(place);
    }
    true
}

fn fallback(sh: &VcpuShared, why: Fallback) -> bool {
    sh.count_fallback(AsyncPf, why);
    false
}

/// Workers have ended, or the guest can hear more: what is owed is told, one token at a time.
pub fn ready<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) {
    let (ended, refused) = sh.pages.ended();
    while let Some(e) = v.async_pf.take_quiet(ended, refused) {
        settle(v, sh, host, &e);
    }
    while v.async_pf.owes(ended) && hears(v, sh, host) {
        let token = if v.async_pf.take_wake_all() {
            Some(WAKE_ALL)
        } else if let Some(e) = v.async_pf.take_told(ended, refused) {
            settle(v, sh, host, &e);
            e.token
        } else {
            None
        };
        if token.is_some_and(|token| !tell(v, sh, host, token)) {
            // Whoever the token was for looks again with all others, at the next occasion.
            v.async_pf.owe_wake_all();
            return;
        }
    }
}

/// The place is another page's from now on. One that has come is mapped: the guest goes on without a fault.
fn settle<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, e: &Ended) {
    sh.pages.settle(e.place);
    v.b.dirty_l1d();
    // Perhaps it did not come, is gone again, or there is no memory any more: the next fault finds out.
    let _ = host.slat_fault(e.gpa, false, false, false);
}

/// The guest takes interrupts of that vector, and has taken the last token.
fn hears<B: Backend, H: Host<Cpu = B::Cpu>>(v: &Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    let wish = Wish(v.pv.async_pf);
    let mut token = [0; 4];
    wish.is_on()
        && v.pv.async_pf_int >= FIRST_VECTOR
        && sh.apic.sw_enabled()
        && v.read_guest(host, wish.area() + TOKEN, &mut token)
        && token == [0; 4]
}

/// `false`: the word can be read, but not written.
fn tell<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H, token: u32) -> bool {
    let written = v.write_guest(host, Wish(v.pv.async_pf).area() + TOKEN, &token.to_le_bytes());
    if written {
        sh.pages.token_told();
        let _ = sh.apic.accept_edge(v.pv.async_pf_int as u8);
        v.event_dirty = true;
    }
    written
}

/// The vCPU waits for a page, which is there, or something else is to be done: it goes on.
pub fn goes_on<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, sh: &VcpuShared, host: &H) -> bool {
    let (ended, _) = sh.pages.ended();
    let on = v.async_pf.is_there(ended) || entry::interrupted(v, sh, host);
    if on {
        v.async_pf.go_on();
    }
    on
}
