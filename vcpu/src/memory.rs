//! Guest memory as page walks see it: with the right to sleep, in atomic context, or without leaving a trace.

use crate::host::Host;
use exitless_insn::GuestMemory;

/// Page tables read with the right to sleep. Those in a read-only slot keep their flags as they are.
pub struct PagedMemory<'a, H>(pub &'a H);
/// Page tables read in atomic context; accessed bits that cannot be set now count as missing memory.
pub struct AtomicMemory<'a, H>(pub &'a H);

impl<H: Host> GuestMemory for PagedMemory<'_, H> {
    fn read_u64(&self, gpa: u64) -> Option<u64> {
        // Page tables are nearly always resident: the cheap load first.
        self.0.read_u64_atomic(gpa).or_else(|| {
            let mut b = [0; 8];
            self.0.read_guest(gpa, &mut b).then(|| u64::from_le_bytes(b))
        })
    }
    fn read_u32(&self, gpa: u64) -> Option<u32> {
        let mut b = [0; 4];
        self.0.read_guest(gpa, &mut b).then(|| u32::from_le_bytes(b))
    }
    fn cmpxchg_u64(&self, gpa: u64, old: u64, new: u64) -> Option<bool> {
        self.0.cmpxchg_guest(gpa, 8, old, new).or_else(|| self.read_only(gpa))
    }
    fn cmpxchg_u32(&self, gpa: u64, old: u32, new: u32) -> Option<bool> {
        self.0.cmpxchg_guest(gpa, 4, u64::from(old), u64::from(new)).or_else(|| self.read_only(gpa))
    }
}

impl<H: Host> PagedMemory<'_, H> {
    fn read_only(&self, gpa: u64) -> Option<bool> {
        (self.0.is_ram(gpa, false) && !self.0.is_ram(gpa, true)).then_some(true)
    }
}

/// Page tables looked at without setting accessed or dirty bits (`KVM_TRANSLATE`).
pub struct ProbeMemory<'a, H>(pub &'a H);

impl<H: Host> GuestMemory for ProbeMemory<'_, H> {
    fn read_u64(&self, gpa: u64) -> Option<u64> {
        PagedMemory(self.0).read_u64(gpa)
    }
    fn read_u32(&self, gpa: u64) -> Option<u32> {
        PagedMemory(self.0).read_u32(gpa)
    }
    fn cmpxchg_u64(&self, _: u64, _: u64, _: u64) -> Option<bool> {
        Some(true)
    }
    fn cmpxchg_u32(&self, _: u64, _: u32, _: u32) -> Option<bool> {
        Some(true)
    }
}

impl<H: Host> GuestMemory for AtomicMemory<'_, H> {
    fn read_u64(&self, gpa: u64) -> Option<u64> {
        self.0.read_u64_atomic(gpa)
    }
    fn read_u32(&self, gpa: u64) -> Option<u32> {
        let mut b = [0; 4];
        self.0.read_guest_atomic(gpa, &mut b).then(|| u32::from_le_bytes(b))
    }
    fn cmpxchg_u64(&self, _: u64, _: u64, _: u64) -> Option<bool> {
        None
    }
    fn cmpxchg_u32(&self, _: u64, _: u32, _: u32) -> Option<bool> {
        None
    }
}
