//! Writes of the guest that need no exit: ioeventfds, which become a signal of an eventfd, and coalesced zones, whose
//! writes wait in a ring until user space looks.
//!
//! The ring is one page per VM, shared with user space: two indices, `first` (user space takes from there) and `last`
//! (we add there), and the entries. Equal indices: empty; `last` one behind `first`: full, the write exits as usual.

use super::Vm;
use crate::runpage::RunPage;
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};
use exitless_bus::{self as bus, Key, Write};
use exitless_host::eventfd::{EventFd, may_signal};
use exitless_host::mem::{KArc, KBox, KSlice};
use exitless_host::{Errno, Result};
use exitless_kvm_abi::{
    KVM_COALESCED_MMIO_MAX, KVM_IOEVENTFD_FLAG_DATAMATCH, KVM_IOEVENTFD_FLAG_DEASSIGN,
    KVM_IOEVENTFD_FLAG_PIO, kvm_coalesced_mmio, kvm_coalesced_mmio_ring, kvm_coalesced_mmio_zone,
    kvm_ioeventfd,
};
use exitless_nospec::below;

/// ioeventfds of one VM, at most.
const MAX_EVENTS: usize = 1024;

/// Coalesced zones of one VM, at most (stock KVM: 1000 devices on a bus).
const MAX_ZONES: usize = 1000;

/// An eventfd, which successive tables share.
#[derive(bytemuck::Zeroable)]
pub struct Bell {
    fd: Option<EventFd>,
}

/// One registration.
#[derive(Clone, bytemuck::Zeroable)]
pub struct Event {
    key: Key,
    bell: Option<KArc<Bell>>,
}

/// The published list, in the order of keys.
#[derive(bytemuck::Zeroable)]
pub struct EventTable {
    items: KSlice<Event>,
}

/// A range of addresses or ports.
#[derive(Clone, Copy, bytemuck::Zeroable)]
struct Zone {
    addr: u64,
    size: u64,
    pio: bool,
}

/// The published list of zones.
#[derive(bytemuck::Zeroable)]
pub struct ZoneTable {
    items: KSlice<Zone>,
}

impl Zone {
    fn of(z: &kvm_coalesced_mmio_zone) -> Result<Self> {
        if z.pio > 1 {
            Err(Errno::EINVAL)
        } else {
            Ok(Self { addr: z.addr, size: z.size.into(), pio: z.pio != 0 })
        }
    }

    /// All of `len` bytes at `addr` lie inside.
    fn holds(&self, pio: bool, addr: u64, len: u64) -> bool {
        let inside = |offset: u64| offset.checked_add(len).is_some_and(|end| end <= self.size);
        self.pio == pio && addr.checked_sub(self.addr).is_some_and(inside)
    }
}

impl Bell {
    /// Rings `fd`.
    pub fn new(fd: EventFd) -> Result<KArc<Self>> {
        let mut bell = KArc::<Self>::zeroed().ok_or(Errno::ENOMEM)?;
        bell.get_mut().ok_or(Errno::EINVAL)?.fd = Some(fd);
        Ok(bell)
    }

    /// Any context.
    pub fn ring(&self) {
        if let Some(fd) = &self.fd {
            fd.signal();
        }
    }
}

impl Event {
    fn fd(&self) -> Option<&EventFd> {
        self.bell.as_ref().and_then(|b| b.fd.as_ref())
    }

    fn signal(&self) {
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }

    fn is(&self, key: &Key, fd: &EventFd) -> bool {
        self.key == *key && self.fd() == Some(fd)
    }
}

impl Vm {
    /// A write that ends in the kernel: an eventfd's, or one that may wait in the ring. `false`: neither, the ring is full, or
    /// not in this context. The caller is in a read section.
    pub fn quiet_write(&self, pio: bool, addr: u64, data: &[u8]) -> bool {
        may_signal() && (self.event_write(pio, addr, data) || self.coalesce(pio, addr, data))
    }

    /// The registrations. The caller is in a read section, or holds the wiring lock.
    fn events(&self) -> &[Event] {
        // SAFETY: see above.
        unsafe { self.events.get() }.map_or(&[], |t| &t.items)
    }

    fn event_write(&self, pio: bool, addr: u64, data: &[u8]) -> bool {
        let hit = bus::find(self.events(), |e| e.key, &Write::new(pio, addr, data));
        hit.inspect(|e| e.signal()).is_some()
    }

    /// Whoever hears of any write at `gpa` hears of one. `false`: nobody, or not in this context. The caller is in a read section.
    pub fn ring(&self, gpa: u64) -> bool {
        let hit = bus::find_any(self.events(), |e| e.key, gpa);
        hit.filter(|_| may_signal()).inspect(|e| e.signal()).is_some()
    }

    /// Somebody hears of any write at `gpa`. The caller is in a read section.
    pub fn is_doorbell(&self, gpa: u64) -> bool {
        bus::find_any(self.events(), |e| e.key, gpa).is_some()
    }

    /// `KVM_IOEVENTFD`.
    pub fn ioeventfd(&self, a: &kvm_ioeventfd) -> Result<isize> {
        const KNOWN: u32 =
            KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_DEASSIGN | KVM_IOEVENTFD_FLAG_PIO;
        let matches = a.flags & KVM_IOEVENTFD_FLAG_DATAMATCH != 0;
        let bad = a.flags & !KNOWN != 0
            || !matches!(a.len, 0 | 1 | 2 | 4 | 8)
            || a.addr.checked_add(u64::from(a.len)).is_none()
            || (a.len == 0 && matches);
        if bad {
            return Err(Errno::EINVAL);
        }
        let fd = EventFd::from_fd(a.fd)?;
        let pio = a.flags & KVM_IOEVENTFD_FLAG_PIO != 0;
        let data = if matches { a.datamatch } else { 0 };
        let key = Key { pio, addr: a.addr, len: a.len, matches, data };
        if a.flags & KVM_IOEVENTFD_FLAG_DEASSIGN != 0 {
            return self.remove_event(&key, &fd);
        }
        self.add_event(Event { key, bell: Some(Bell::new(fd)?) })
    }

    /// The caller holds the wiring lock.
    fn rebuild(
        &self,
        keep: impl Fn(&Event) -> bool,
        mut add: Option<Event>,
    ) -> Result<Option<KBox<EventTable>>> {
        let kept = || self.events().iter().filter(|e| keep(e));
        let n = kept().count() + usize::from(add.is_some());
        if n > MAX_EVENTS {
            return Err(Errno::ENOSPC);
        }
        let mut table = KBox::<EventTable>::zeroed().ok_or(Errno::ENOMEM)?;
        table.items = KSlice::zeroed(n).ok_or(Errno::ENOMEM)?;
        let mut old = kept().peekable();
        for place in table.items.iter_mut() {
            let behind = |new: &mut Event| old.peek().is_none_or(|next| new.key < next.key);
            if let Some(e) = add.take_if(behind).or_else(|| old.next().cloned()) {
                *place = e;
            }
        }
        Ok(self.events.replace(Some(table)))
    }

    fn add_event(&self, want: Event) -> Result<isize> {
        let old = {
            let _guard = self.wiring.lock();
            if self.events().iter().any(|e| e.key.collides(&want.key)) {
                return Err(Errno::EEXIST);
            }
            self.rebuild(|_| true, Some(want))?
        };
        self.retire(old);
        Ok(0)
    }

    fn remove_event(&self, key: &Key, fd: &EventFd) -> Result<isize> {
        let old = {
            let _guard = self.wiring.lock();
            if !self.events().iter().any(|e| e.is(key, fd)) {
                return Err(Errno::ENOENT);
            }
            self.rebuild(|e| !e.is(key, fd), None)?
        };
        self.retire(old);
        Ok(0)
    }

    // --- coalesced zones ---

    fn coalesce(&self, pio: bool, addr: u64, data: &[u8]) -> bool {
        // SAFETY: the run loop is in its read section.
        let Some(table) = (unsafe { self.zones.get() }) else { return false };
        if !table.items.iter().any(|z| z.holds(pio, addr, data.len() as u64)) {
            return false;
        }
        let Some(page) = self.ring.as_ref().and_then(|r| NonNull::new(r.as_ptr())) else { return false };
        // SAFETY: the page lives as long as the VM, and the kernel touches it only here.
        let ring = unsafe { RunPage::new(page) };
        let _guard = self.ring_lock.lock();
        ring_push(ring, pio, addr, data)
    }

    /// `KVM_REGISTER_COALESCED_MMIO`.
    pub fn add_zone(&self, z: &kvm_coalesced_mmio_zone) -> Result<isize> {
        let zone = Zone::of(z)?;
        self.change_zones(|_| true, Some(zone))
    }

    /// `KVM_UNREGISTER_COALESCED_MMIO`: every zone that holds the given one goes. None there is no error.
    pub fn remove_zones(&self, z: &kvm_coalesced_mmio_zone) -> Result<isize> {
        let gone = Zone::of(z)?;
        self.change_zones(|z| !z.holds(gone.pio, gone.addr, gone.size), None)
    }

    fn change_zones(&self, keep: impl Fn(&Zone) -> bool, add: Option<Zone>) -> Result<isize> {
        let old = {
            let _guard = self.wiring.lock();
            // SAFETY: the wiring lock is held, under which alone the table changes.
            let now = unsafe { self.zones.get() };
            let kept = || now.into_iter().flat_map(|t| t.items.iter()).filter(|z| keep(z));
            let n = kept().count() + usize::from(add.is_some());
            if n > MAX_ZONES {
                return Err(Errno::ENOSPC);
            }
            let mut table = KBox::<ZoneTable>::zeroed().ok_or(Errno::ENOMEM)?;
            table.items = KSlice::zeroed(n).ok_or(Errno::ENOMEM)?;
            for (place, z) in table.items.iter_mut().zip(kept().copied().chain(add)) {
                *place = z;
            }
            self.zones.replace(Some(table))
        };
        self.retire(old);
        Ok(0)
    }

    /// Frees a table once no reader can see it.
    pub fn retire<T>(&self, old: Option<KBox<T>>) {
        if old.is_some() {
            self.synchronize();
        }
        drop(old);
    }
}

/// Adds an entry; `false`: full, or user space wrote nonsense into the indices. The caller holds the ring's lock.
fn ring_push(ring: RunPage, pio: bool, addr: u64, data: &[u8]) -> bool {
    let first = ring.u32_at(offset_of!(kvm_coalesced_mmio_ring, first));
    let last = ring.u32_at(offset_of!(kvm_coalesced_mmio_ring, last));
    if first >= KVM_COALESCED_MMIO_MAX || last >= KVM_COALESCED_MMIO_MAX {
        return false;
    }
    let next = (last + 1) % KVM_COALESCED_MMIO_MAX;
    if next == first {
        return false;
    }
    // Pairs with user space's order: it reads an entry before it moves `first` on.
    fence(Ordering::Acquire);
    let at = size_of::<kvm_coalesced_mmio_ring>()
        + below(last as usize, KVM_COALESCED_MMIO_MAX as usize) * size_of::<kvm_coalesced_mmio>();
    let mut bytes = [0; 8];
    for (d, s) in bytes.iter_mut().zip(data) {
        *d = *s;
    }
    ring.put_u64(at + offset_of!(kvm_coalesced_mmio, phys_addr), addr);
    ring.put_u32(at + offset_of!(kvm_coalesced_mmio, len), data.len() as u32);
    ring.put_u32(at + offset_of!(kvm_coalesced_mmio, pio), u32::from(pio));
    ring.put_u64(at + offset_of!(kvm_coalesced_mmio, data), u64::from_le_bytes(bytes));
    // User space sees the entry before the index that covers it.
    fence(Ordering::Release);
    ring.put_u32(offset_of!(kvm_coalesced_mmio_ring, last), next);
    true
}
