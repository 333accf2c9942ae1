//! ioeventfds: writes of the guest that become a signal of an eventfd, without user space.

use super::Vm;
use exitless_host::eventfd::EventFd;
use exitless_host::mem::{KArc, KBox, KSlice};
use exitless_host::{Errno, Result};
use exitless_kvm_abi::{
    KVM_IOEVENTFD_FLAG_DATAMATCH, KVM_IOEVENTFD_FLAG_DEASSIGN, KVM_IOEVENTFD_FLAG_PIO, kvm_ioeventfd,
};

/// ioeventfds of one VM, at most.
const MAX_EVENTS: usize = 1024;

/// One registration.
#[derive(bytemuck::Zeroable)]
pub struct Event {
    addr: u64,
    datamatch: u64,
    fd: Option<EventFd>,
    len: u32,
    pio: bool,
    matches: bool,
    pad: [u8; 2],
}

/// The published list.
#[derive(bytemuck::Zeroable)]
pub struct EventTable {
    items: KSlice<Option<KArc<Event>>>,
}

impl Event {
    /// A write of `data` at `addr` is ours.
    fn hit(&self, pio: bool, addr: u64, data: &[u8]) -> bool {
        if self.pio != pio || self.addr != addr || (self.len != 0 && self.len as usize != data.len()) {
            return false;
        }
        let mut w = [0; 8];
        for (d, s) in w.iter_mut().zip(data) {
            *d = *s;
        }
        !self.matches || u64::from_le_bytes(w) == self.datamatch
    }

    /// Two registrations that one write could hit.
    fn collides(&self, other: &Event) -> bool {
        self.pio == other.pio
            && self.addr == other.addr
            && (self.len == 0
                || other.len == 0
                || (self.len == other.len
                    && (!self.matches || !other.matches || self.datamatch == other.datamatch)))
    }

    fn same(&self, other: &Event, fd: &EventFd) -> bool {
        self.pio == other.pio
            && self.addr == other.addr
            && self.len == other.len
            && self.matches == other.matches
            && (!self.matches || self.datamatch == other.datamatch)
            && self.fd.as_ref().is_some_and(|f| f == fd)
    }
}

impl Vm {
    /// Signals the eventfd of a write; `false`: none. The caller holds SRCU.
    pub fn event_write(&self, pio: bool, addr: u64, data: &[u8]) -> bool {
        // SAFETY: SRCU is held by the run loop.
        let Some(table) = (unsafe { self.events.get() }) else { return false };
        let hit = table.items.iter().flatten().find(|e| e.hit(pio, addr, data));
        if let Some(fd) = hit.and_then(|e| e.fd.as_ref()) {
            fd.signal();
        }
        hit.is_some()
    }

    /// `KVM_IOEVENTFD`.
    pub fn ioeventfd(&self, a: &kvm_ioeventfd) -> Result<isize> {
        const KNOWN: u32 = KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_DEASSIGN | KVM_IOEVENTFD_FLAG_PIO;
        let matches = a.flags & KVM_IOEVENTFD_FLAG_DATAMATCH != 0;
        let bad = a.flags & !KNOWN != 0
            || !matches!(a.len, 0 | 1 | 2 | 4 | 8)
            || a.addr.checked_add(u64::from(a.len)).is_none()
            || (a.len == 0 && matches);
        if bad {
            return Err(Errno::EINVAL);
        }
        let mut want = KArc::<Event>::zeroed().ok_or(Errno::ENOMEM)?;
        let fd = EventFd::from_fd(a.fd)?;
        let e = want.get_mut().ok_or(Errno::EINVAL)?;
        e.addr = a.addr;
        e.len = a.len;
        e.pio = a.flags & KVM_IOEVENTFD_FLAG_PIO != 0;
        e.matches = matches;
        e.datamatch = a.datamatch;
        if a.flags & KVM_IOEVENTFD_FLAG_DEASSIGN != 0 {
            return self.remove_event(&want, &fd);
        }
        e.fd = Some(fd);
        self.add_event(want)
    }

    fn rebuild(&self, keep: impl Fn(&Event) -> bool, add: Option<KArc<Event>>) -> Result<Option<KBox<EventTable>>> {
        // SAFETY: the caller holds the wiring lock, under which alone the table changes.
        let old = unsafe { self.events.get() };
        let kept = || old.into_iter().flat_map(|t| t.items.iter().flatten()).filter(|e| keep(e));
        let n = kept().count() + usize::from(add.is_some());
        if n > MAX_EVENTS {
            return Err(Errno::ENOSPC);
        }
        let mut table = KBox::<EventTable>::zeroed().ok_or(Errno::ENOMEM)?;
        table.items = KSlice::zeroed(n).ok_or(Errno::ENOMEM)?;
        for (place, e) in table.items.iter_mut().zip(kept().cloned().chain(add)) {
            *place = Some(e);
        }
        Ok(self.events.replace(Some(table)))
    }

    fn add_event(&self, want: KArc<Event>) -> Result<isize> {
        let old = {
            let _guard = self.wiring.lock();
            // SAFETY: the wiring lock is held.
            let table = unsafe { self.events.get() };
            if table.is_some_and(|t| t.items.iter().flatten().any(|e| e.collides(&want))) {
                return Err(Errno::EEXIST);
            }
            self.rebuild(|_| true, Some(want))?
        };
        self.retire(old);
        Ok(0)
    }

    fn remove_event(&self, want: &Event, fd: &EventFd) -> Result<isize> {
        let old = {
            let _guard = self.wiring.lock();
            // SAFETY: the wiring lock is held.
            let table = unsafe { self.events.get() };
            if !table.is_some_and(|t| t.items.iter().flatten().any(|e| e.same(want, fd))) {
                return Err(Errno::ENOENT);
            }
            self.rebuild(|e| !e.same(want, fd), None)?
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
