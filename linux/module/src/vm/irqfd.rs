//! irqfds: an eventfd that raises a GSI. With a resample eventfd the line stays high until the guest's EOI.

use super::Vm;
use core::sync::atomic::Ordering;
use exitless_host::eventfd::{EventFd, Irqfd};
use exitless_host::mem::KBox;
use exitless_host::{Errno, Result};
use exitless_irqchip::lines::Source;
use exitless_irqchip::routes::MAX_ROUTES;
use exitless_kvm_abi::{KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, kvm_irqfd};

/// irqfds of one VM, at most.
pub const MAX_IRQFDS: usize = 1024;

/// GSIs below this can be resampled: each has a bit in `Vm::resample_gsis`. The I/O APIC has 24 pins, so that only routes of user
/// space's own making lead from others to one.
const RESAMPLE_GSIS: u32 = u64::BITS;

/// One irqfd. Its address is the cookie that C calls back with.
#[derive(bytemuck::Zeroable)]
pub struct Entry {
    irqfd: Option<Irqfd>,
    gsi: u32,
    resample: bool,
    _pad: [u8; 3],
}

/// What the wiring lock protects.
#[derive(bytemuck::Zeroable)]
pub struct Wiring {
    irqfds: [Option<KBox<Entry>>; MAX_IRQFDS],
}

/// The eventfd was signalled; interrupts are off. `false`: [`fire`] must follow, with interrupts on.
pub fn fire_at_once(vm: &Vm, cookie: usize) -> bool {
    // SAFETY: the cookie is an `Entry` that is freed only after its `Irqfd`, whose drop waits for this callback.
    let e = unsafe { &*(cookie as *const Entry) };
    if e.resample {
        vm.set_gsi(e.gsi, Source::RESAMPLE, true);
        return true;
    }
    vm.pulse_few(e.gsi, Source::USERSPACE)
}

/// The eventfd was signalled before it was wired, or what it says is too much for [`fire_at_once`].
pub fn fire(vm: &Vm, cookie: usize) {
    // SAFETY: as above.
    let e = unsafe { &*(cookie as *const Entry) };
    if e.resample {
        vm.set_gsi(e.gsi, Source::RESAMPLE, true);
    } else {
        vm.pulse_gsi(e.gsi, Source::USERSPACE);
    }
}

/// The eventfd was closed: the irqfd ends.
pub fn hangup(vm: &Vm, cookie: usize) {
    let entry = take(vm, |e| core::ptr::from_ref(e) as usize == cookie);
    drop(entry);
}

fn take(vm: &Vm, mut which: impl FnMut(&Entry) -> bool) -> Option<KBox<Entry>> {
    let mut w = vm.wiring.lock();
    w.irqfds.iter_mut().find(|s| s.as_ref().is_some_and(|e| which(e)))?.take()
}

/// All of them; the VM's fd closed.
pub fn drop_all(vm: &Vm) {
    while let Some(e) = take(vm, |_| true) {
        drop(e);
    }
}

/// The guest ended interrupts of these GSIs (below 64): lines fall, resample eventfds are signalled. May sleep.
pub fn resample(vm: &Vm, gsis: u64) {
    for gsi in (0..64).filter(|g| gsis >> g & 1 != 0) {
        vm.set_gsi(gsi, Source::RESAMPLE, false);
        let w = vm.wiring.lock();
        for e in w.irqfds.iter().flatten().filter(|e| e.resample && e.gsi == gsi) {
            if let Some(i) = &e.irqfd {
                i.resample();
            }
        }
    }
}

fn watch(vm: &Vm) {
    let bits = {
        let w = vm.wiring.lock();
        w.irqfds
            .iter()
            .flatten()
            .filter(|e| e.resample && e.gsi < RESAMPLE_GSIS)
            .fold(0, |m, e| m | 1u64 << e.gsi)
    };
    vm.resample_gsis.store(bits, Ordering::Release);
    vm.rescan_eoi();
}

/// `KVM_IRQFD`.
pub fn ioctl(vm: &Vm, a: &kvm_irqfd) -> Result<isize> {
    if a.flags & !(KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE) != 0 || a.gsi as usize >= MAX_ROUTES {
        return Err(Errno::EINVAL);
    }
    if a.flags & KVM_IRQFD_FLAG_DEASSIGN != 0 {
        let fd = EventFd::from_fd(a.fd as i32)?;
        while let Some(e) =
            take(vm, |e| e.gsi == a.gsi && e.irqfd.as_ref().is_some_and(|i| i.is_bound_to(&fd)))
        {
            drop(e);
        }
        watch(vm);
        if !vm.wiring.lock().irqfds.iter().flatten().any(|e| e.resample && e.gsi == a.gsi) {
            // The guest's EOI would have lowered it.
            vm.set_gsi(a.gsi, Source::RESAMPLE, false);
        }
        return Ok(0);
    }
    let resample = a.flags & KVM_IRQFD_FLAG_RESAMPLE != 0;
    if resample && a.gsi >= RESAMPLE_GSIS {
        return Err(Errno::EINVAL);
    }
    // The EOI that resampling waits for is an I/O APIC's or 8259's.
    let needed = if resample { &vm.irqchip } else { &vm.lapics };
    if !needed.load(Ordering::Acquire) {
        return Err(Errno::EINVAL);
    }
    assign(vm, a)
}

fn assign(vm: &Vm, a: &kvm_irqfd) -> Result<isize> {
    let resample = a.flags & KVM_IRQFD_FLAG_RESAMPLE != 0;
    let fd = EventFd::from_fd(a.fd as i32)?;
    let mut entry = KBox::<Entry>::zeroed().ok_or(Errno::ENOMEM)?;
    entry.gsi = a.gsi;
    entry.resample = resample;
    let cookie = entry.as_ptr() as usize;
    let vm_ptr = core::ptr::from_ref(vm).cast_mut().cast();
    {
        let mut w = vm.wiring.lock();
        let bound = |e: &KBox<Entry>| e.irqfd.as_ref().is_some_and(|i| i.is_bound_to(&fd));
        if w.irqfds.iter().flatten().any(bound) {
            return Err(Errno::EBUSY);
        }
        // A place first: an irqfd must not be dropped under the lock, and from its creation on the close of its eventfd
        // looks for it in the list.
        let place = w.irqfds.iter_mut().find(|s| s.is_none()).ok_or(Errno::ENOSPC)?;
        entry.irqfd =
            Some(Irqfd::create(vm_ptr, cookie, a.fd as i32, resample.then_some(a.resamplefd as i32))?);
        *place = Some(entry);
    }
    watch(vm);
    Ok(0)
}
