//! CR0 with what hangs on it: EFER.LMA, translations, the PDPTEs.

use crate::backend::Backend;
use crate::host::Host;
use crate::vcpu::Vcpu;
use exitless_policy::control::{Mode as Switches, check_cr0};
use exitless_x86::regs::{SegReg, cr0};

/// The guest came to PAE paging, or to other tables there. `false`: a reserved bit is set in a present PDPTE (SDM vol. 3A,
/// 4.4.1), and nothing has changed.
pub(crate) fn follow_pdptes<B: Backend, H: Host<Cpu = B::Cpu>>(
    v: &mut Vcpu<B>,
    host: &H,
    before: &Switches,
) -> bool {
    if !v.b.uses_pdptes() || switches(v) == *before || v.load_pdptes(host) {
        return true;
    }
    v.b.set_cr0(before.cr0);
    v.b.set_cr3(before.cr3);
    v.b.set_cr4(before.cr4);
    v.b.set_efer(before.efer);
    false
}

/// The registers that hang together, as they are.
pub(crate) fn switches<B: Backend>(v: &Vcpu<B>) -> Switches {
    Switches {
        cr0: v.b.cr0(),
        cr3: v.b.cr3(),
        cr4: v.b.cr4(),
        efer: v.b.efer(),
        cs_long: v.b.segment(SegReg::Cs).long(),
    }
}

/// Writes CR0 and what follows it. `false`: #GP(0).
pub(crate) fn write_cr0<B: Backend>(v: &mut Vcpu<B>, new: u64) -> bool {
    let Ok(w) = check_cr0(new, &switches(v)) else { return false };
    if (w.cr0 ^ v.b.cr0()) & (cr0::PG | cr0::WP) != 0 {
        v.flush = true;
    }
    v.b.set_cr0(w.cr0);
    v.b.set_efer(w.efer);
    true
}

/// LMSW sets PE, MP, EM and TS, and never clears PE (SDM vol. 2A).
pub(crate) fn lmsw<B: Backend>(v: &mut Vcpu<B>, source: u64) -> bool {
    let old = v.b.cr0();
    write_cr0(v, old & !0xe | source & 0xf)
}

/// LMSW for the emulator. `false`: #GP(0), and nothing has changed.
pub(crate) fn load_msw<B: Backend, H: Host<Cpu = B::Cpu>>(v: &mut Vcpu<B>, host: &H, value: u16) -> bool {
    let before = switches(v);
    lmsw(v, u64::from(value)) && follow_pdptes(v, host, &before)
}
