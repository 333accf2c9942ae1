//! irqfds: an eventfd that raises a GSI. With a resample eventfd the line stays high until the guest's EOI.

use super::Vm;
use super::bus::Bell;
use core::sync::atomic::Ordering;
use exitless_host::eventfd::{EventFd, Irqfd};
use exitless_host::mem::{KArc, KBox, KSlice};
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
    /// Resampling: who hears of the guest's EOI.
    bell: Option<KArc<Bell>>,
    gsi: u32,
    _pad: [u8; 4],
}

/// Who hears of a GSI's EOI.
#[derive(bytemuck::Zeroable)]
struct Listener {
    bell: Option<KArc<Bell>>,
    gsi: u32,
    _pad: [u8; 4],
}

/// The published list.
#[derive(bytemuck::Zeroable)]
pub struct ListenerTable {
    items: KSlice<Listener>,
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
    if e.bell.is_some() {
        vm.set_gsi(e.gsi, Source::RESAMPLE, true);
        return true;
    }
    vm.pulse_few(e.gsi, Source::USERSPACE)
}

/// The eventfd was signalled before it was wired, or what it says is too much for [`fire_at_once`].
pub fn fire(vm: &Vm, cookie: usize) {
    // SAFETY: as above.
    let e = unsafe { &*(cookie as *const Entry) };
    if e.bell.is_some() {
        vm.set_gsi(e.gsi, Source::RESAMPLE, true);
    } else {
        vm.pulse_gsi(e.gsi, Source::USERSPACE);
    }
}

/// The eventfd was closed: the irqfd ends.
pub fn hangup(vm: &Vm, cookie: usize) {
    if let Some(e) = take(vm, |e| core::ptr::from_ref(e) as usize == cookie) {
        end(vm, e);
    }
}

fn take(vm: &Vm, mut which: impl FnMut(&Entry) -> bool) -> Option<KBox<Entry>> {
    let mut w = vm.wiring.lock();
    w.irqfds.iter_mut().find(|s| s.as_ref().is_some_and(|e| which(e)))?.take()
}

/// All of them; the VM's fd closed.
pub fn drop_all(vm: &Vm) {
    while let Some(e) = take(vm, |_| true) {
        end(vm, e);
    }
}

/// `e` was taken out of the list.
fn end(vm: &Vm, e: KBox<Entry>) {
    let (gsi, heard) = (e.gsi, e.bell.is_some());
    // It fires no more.
    drop(e);
    if heard {
        // Without memory the old list stays, and rings a bell that nobody waits for.
        let _ = listen(vm);
        // Under the lock: an irqfd that comes now has not raised it yet.
        let w = vm.wiring.lock();
        if !w.irqfds.iter().flatten().any(|e| e.bell.is_some() && e.gsi == gsi) {
            // The guest's EOI would have lowered it.
            vm.set_gsi(gsi, Source::RESAMPLE, false);
        }
    }
}

/// The guest ended interrupts of these GSIs (below 64): lines fall, and who listens hears of it. Any context.
pub fn resample(vm: &Vm, gsis: u64) {
    let _srcu = vm.srcu.read();
    // SAFETY: SRCU is held.
    let listeners = unsafe { vm.listeners.get() }.map_or(&[][..], |t| &t.items);
    for gsi in (0..RESAMPLE_GSIS).filter(|g| gsis >> g & 1 != 0) {
        vm.set_gsi(gsi, Source::RESAMPLE, false);
        for bell in listeners.iter().filter(|l| l.gsi == gsi).filter_map(|l| l.bell.as_ref()) {
            bell.ring();
        }
    }
}

/// A resampling irqfd came or went.
fn listen(vm: &Vm) -> Result<()> {
    let old = {
        let w = vm.wiring.lock();
        let heard = || w.irqfds.iter().flatten().filter(|e| e.bell.is_some());
        let mut table = KBox::<ListenerTable>::zeroed().ok_or(Errno::ENOMEM)?;
        table.items = KSlice::zeroed(heard().count()).ok_or(Errno::ENOMEM)?;
        for (place, e) in table.items.iter_mut().zip(heard()) {
            place.gsi = e.gsi;
            place.bell = e.bell.clone();
        }
        let old = vm.listeners.replace(Some(table));
        // After the list: whoever sees that somebody listens sees who. Under the lock: of two changes the later is the last.
        vm.resample_gsis
            .store(heard().fold(0, |m, e| m | 1u64 << (e.gsi % RESAMPLE_GSIS)), Ordering::Release);
        old
    };
    if old.is_some() {
        // Its only readers hold the SRCU. Not vCPUs' sections: those last over faults for which user space takes its time, and this may be
        // the worker that serves all VMs.
        vm.srcu.synchronize_expedited();
    }
    drop(old);
    vm.rescan_eoi();
    Ok(())
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
            end(vm, e);
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
    let fd = EventFd::from_fd(a.fd as i32)?;
    let mut entry = KBox::<Entry>::zeroed().ok_or(Errno::ENOMEM)?;
    entry.gsi = a.gsi;
    let heard = a.flags & KVM_IRQFD_FLAG_RESAMPLE != 0;
    if heard {
        entry.bell = Some(Bell::new(EventFd::from_fd(a.resamplefd as i32)?)?);
    }
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
        entry.irqfd = Some(Irqfd::create(vm_ptr, cookie, a.fd as i32)?);
        *place = Some(entry);
    }
    if heard && let Err(e) = listen(vm) {
        hangup(vm, cookie);
        return Err(e);
    }
    Ok(0)
}
