//! MSRs that live in the vCPU itself.

use exitless_policy::mce::Mce;
use exitless_policy::msr::find;
use exitless_policy::mtrr::Mtrrs;
use exitless_x86::msr::Msr;

/// All-zero before `init`.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct MsrState {
    pub(crate) misc_enable: u64,
    pub(crate) ucode_rev: u64,
    pub(crate) arch_capabilities: u64,
    pub(crate) hwcr: u64,
    pub(crate) tsc_adjust: u64,
    pub(crate) mtrrs: Mtrrs,
    /// Machine check banks.
    pub mce: Mce,
}

impl MsrState {
    /// Values after power-up: from the table, and what the host says.
    pub fn init(&mut self, arch_capabilities: u64) {
        self.arch_capabilities = arch_capabilities;
        let reset = |m: Msr| find(m.0).map_or(0, |(row, _)| row.reset);
        self.misc_enable = reset(Msr::MISC_ENABLE);
        self.ucode_rev = reset(Msr::BIOS_SIGN_ID);
        self.hwcr = 0;
        self.tsc_adjust = 0;
        self.mtrrs = Mtrrs::default();
        self.mce.init();
    }
}
