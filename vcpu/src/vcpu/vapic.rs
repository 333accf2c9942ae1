//! Where the APIC's registers are.

use crate::backend::{ApicKind, Backend, InterruptStatus};
use exitless_avic::Entry;
use exitless_posted::PidPointer;
use exitless_x86::apic::reg;

/// What the hall remembers of it.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub struct Vapic {
    /// What entries do with the APIC.
    pub kind: ApicKind,
    /// The page is home.
    pub(crate) in_page: bool,
    /// Registers that only software writes have changed since the page got them.
    pub(crate) stale: bool,
    /// AVIC, IPI virtualization: what stood for and against it before the last slice.
    pub(crate) x2apic: bool,
    pub(crate) edge_eois: bool,
    /// Hardware senders find the APIC.
    pub(crate) found: bool,
    /// IPI virtualization: the vCPU's entry in the VM's table, and the address of its mailbox.
    pub(crate) pid: Option<&'static PidPointer>,
    pub(crate) mailbox: u64,
    /// AVIC: the vCPU's entry in the VM's table, and the address of its page.
    pub(crate) entry: Option<&'static Entry>,
    pub(crate) backing: u64,
}

impl Vapic {
    /// The CPU delivers interrupts by itself.
    pub fn on(&self) -> bool {
        self.kind != ApicKind::Software
    }
    /// The CPU has AVIC. Before the vCPU first runs.
    pub fn use_avic(&mut self, entry: &'static Entry, backing: u64) {
        (self.entry, self.backing) = (Some(entry), backing);
    }
    /// CPUs post IPIs to the mailbox of this vCPU, which is at `mailbox`. Before the vCPU first runs.
    pub fn use_ipiv(&mut self, pid: &'static PidPointer, mailbox: u64) {
        (self.pid, self.mailbox) = (Some(pid), mailbox);
    }
    /// The IRR is in the page, whoever has the other registers.
    pub(crate) fn keeps_irr(&self) -> bool {
        self.entry.is_some()
    }
    /// Software wrote a register.
    pub fn written(&mut self) {
        self.stale = true;
    }
}

/// The page is home, and the vCPU's own thread has a vector for its IRR.
pub(crate) fn request<B: Backend>(b: &mut B, vector: u8) {
    let Some(page) = b.apic_page() else { return };
    let at = reg::IRR + u32::from(vector / 32) * 16;
    page.write(at, page.read(at) | 1 << (vector % 32));
    let now = b.interrupt_status();
    if vector > now.requesting {
        b.set_interrupt_status(InterruptStatus { requesting: vector, ..now });
    }
}
