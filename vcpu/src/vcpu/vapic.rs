//! Where the APIC's registers are.

use crate::backend::ApicKind;

/// What the hall remembers of it.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub struct Vapic {
    /// What entries do with the APIC.
    pub kind: ApicKind,
    /// The page is home.
    pub(crate) in_page: bool,
    /// Registers that only software writes have changed since the page got them.
    pub(crate) stale: bool,
}

impl Vapic {
    /// The CPU delivers interrupts by itself.
    pub fn on(&self) -> bool {
        self.kind != ApicKind::Software
    }
    /// Software wrote a register.
    pub fn written(&mut self) {
        self.stale = true;
    }
}
