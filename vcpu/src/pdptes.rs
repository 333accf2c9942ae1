//! The four page-directory-pointer-table entries of PAE paging, for a backend whose VM entry loads them from a place of
//! its own (SDM vol. 3A, 4.4.1; vol. 3C, 27.3.2.4).

use crate::backend::Backend;
use crate::host::Host;
use crate::vcpu::Vcpu;

/// An entry that counts.
const PRESENT: u64 = 1;
/// Bits 2:1 and 8:5.
const RESERVED: u64 = 0x1e6;

impl<B: Backend> Vcpu<B> {
    /// Reads the guest's PDPTEs, as MOV to CR0, CR3 and CR4 do, where the backend wants them. `false`: a present one has a
    /// reserved bit set, or they cannot be read; the backend keeps what it had. May sleep.
    pub fn load_pdptes<H: Host<Cpu = B::Cpu>>(&mut self, host: &H) -> bool {
        if !self.b.uses_pdptes() {
            return true;
        }
        let mut bytes = [0; 32];
        if !self.read_guest(host, self.b.cr3() & 0xffff_ffe0, &mut bytes) {
            return false;
        }
        let mut entries = [0; 4];
        for (e, b) in entries.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *e = u64::from_le_bytes(*b);
        }
        let reserved = RESERVED | self.cpuid.caps().phys_reserved();
        if entries.iter().any(|e| e & PRESENT != 0 && e & reserved != 0) {
            return false;
        }
        self.b.set_pdptes(entries);
        true
    }
}
