//! The local APIC in hardware: which controls an entry has, the virtual-APIC page, and which EOIs exit (SDM vol. 3C,
//! chapter 30). What goes into the page, and when, is the hall's decision.

use crate::machine::Machine;
use crate::vcpu::Vmx;
use exitless_vcpu::backend::{ApicKind, InterruptStatus};
use exitless_x86::vmx::control::{pin, secondary, tertiary};
use exitless_x86::vmx::field as f;

/// The host vector that tells a CPU to look at the posted-interrupt descriptor of the guest it runs. Linux has it for this:
/// `POSTED_INTR_VECTOR` (asserted in linux/c/vmx.c).
pub const NOTIFICATION: u8 = 0xf2;

/// The host vector that says that something was posted to a vCPU that sleeps. Linux has it for this: `POSTED_INTR_WAKEUP_VECTOR`.
pub const WAKE_UP: u8 = 0xf1;

/// What the VMCS is to say, and how much of that it does not say yet.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub(crate) struct Apic {
    kind: ApicKind,
    /// [`due`].
    due: u8,
    status: u16,
    eoi: [u64; 4],
}

/// What `Vmx::write_apic` has to write.
mod due {
    pub(super) const CONTROLS: u8 = 1;
    pub(super) const STATUS: u8 = 2;
    pub(super) const EOI: u8 = 4;
}

/// Controls that come and go with the APIC's mode.
pub(crate) const SECONDARY: u32 = secondary::VIRTUALIZE_APIC_ACCESSES
    | secondary::VIRTUALIZE_X2APIC
    | secondary::APIC_REGISTER_VIRTUALIZATION
    | secondary::VIRTUAL_INTERRUPT_DELIVERY;

/// Secondary controls for a kind. The page and the MSRs exclude each other (SDM vol. 3C, 27.2.1.1).
fn controls(kind: ApicKind) -> u32 {
    const BOTH: u32 = secondary::APIC_REGISTER_VIRTUALIZATION | secondary::VIRTUAL_INTERRUPT_DELIVERY;
    match kind {
        // The page may be mapped for other vCPUs: an access to it must exit.
        ApicKind::Software => secondary::VIRTUALIZE_APIC_ACCESSES,
        ApicKind::XApic => BOTH | secondary::VIRTUALIZE_APIC_ACCESSES,
        ApicKind::X2Apic | ApicKind::X2ApicOff | ApicKind::X2ApicIpis | ApicKind::X2ApicRaw => {
            BOTH | secondary::VIRTUALIZE_X2APIC
        }
    }
}

impl<M: Machine> Vmx<M> {
    pub(crate) fn apic_kind(&mut self, kind: ApicKind) {
        self.apic.kind = kind;
        self.controls_due();
    }

    /// The CPU can send IPIs, and there is a table that says where to.
    pub(crate) fn sends_ipis(&self) -> bool {
        self.caps.ipiv() && self.pages.pid_table_pa != 0
    }

    /// Pin-based, secondary or tertiary controls changed.
    pub(crate) fn controls_due(&mut self) {
        self.apic.due |= due::CONTROLS;
    }

    /// The fields that do not change, with the rest of the VMCS.
    pub(crate) fn prepare_apic(&mut self) {
        if self.caps.apicv() {
            self.m.put(f::POSTED_INTERRUPT_VECTOR, u16::from(NOTIFICATION));
            self.m.put(f::POSTED_INTERRUPT_DESCRIPTOR, self.pages.descriptor_pa);
            self.m.put(f::APIC_ACCESS_ADDRESS, self.pages.apic_access_pa);
            if self.sends_ipis() {
                self.m.put(f::PID_POINTER_TABLE, self.pages.pid_table_pa);
                self.m.put(f::LAST_PID_POINTER_INDEX, self.pages.last_pid);
            }
            self.apic.due |= due::STATUS | due::EOI;
        }
        self.apic.due |= due::CONTROLS;
    }

    /// Before an entry.
    pub(crate) fn write_apic(&mut self) {
        if self.apic.due != 0 {
            let due = core::mem::take(&mut self.apic.due);
            self.write_due(due);
        }
    }

    fn write_due(&mut self, due: u8) {
        if due & due::CONTROLS != 0 {
            self.write_apic_controls();
        }
        if due & due::STATUS != 0 {
            self.m.put(f::GUEST_INTERRUPT_STATUS, self.apic.status);
        }
        if due & due::EOI != 0 {
            let fields =
                [f::EOI_EXIT_BITMAP_0, f::EOI_EXIT_BITMAP_1, f::EOI_EXIT_BITMAP_2, f::EOI_EXIT_BITMAP_3];
            for (field, word) in fields.into_iter().zip(self.apic.eoi) {
                self.m.put(field, word);
            }
        }
    }

    fn write_apic_controls(&self) {
        let kind = self.apic.kind;
        let posted = if kind == ApicKind::Software { 0 } else { pin::POSTED_INTERRUPTS };
        let timer = if self.timer.on { pin::PREEMPTION_TIMER } else { 0 };
        self.m.put(f::PIN_CONTROLS, self.caps.pin | posted | timer);
        let apic = if self.caps.apicv() { controls(kind) } else { 0 };
        self.m.put(f::SECONDARY_CONTROLS, self.guest_controls() | apic);
        if self.caps.ipiv() {
            let ipis = kind == ApicKind::X2ApicIpis && self.sends_ipis();
            self.m.put(f::TERTIARY_CONTROLS, if ipis { tertiary::IPI_VIRTUALIZATION } else { 0 });
        }
        if self.caps.msr_bitmaps() {
            let [plain, x2apic, x2apic_off, lent, x2apic_lent, ipis, ipis_lent] =
                self.pages.msr_bitmaps.get(self.opened.index()).copied().unwrap_or_default();
            let bitmaps = match kind {
                ApicKind::XApic if self.lends => lent,
                ApicKind::X2ApicRaw if self.lends => ipis_lent,
                ApicKind::X2ApicRaw => ipis,
                ApicKind::X2ApicIpis if self.sends_ipis() && self.lends => ipis_lent,
                // A write that exits while it is lent would be one of software's alone.
                ApicKind::X2Apic | ApicKind::X2ApicIpis if self.lends => x2apic_lent,
                ApicKind::Software | ApicKind::XApic => plain,
                ApicKind::X2ApicIpis if self.sends_ipis() => ipis,
                ApicKind::X2Apic | ApicKind::X2ApicIpis => x2apic,
                ApicKind::X2ApicOff => x2apic_off,
            };
            self.m.put(f::MSR_BITMAPS, bitmaps);
        }
    }

    pub(crate) fn read_status(&self) -> InterruptStatus {
        let word = if self.apic.due & due::STATUS != 0 {
            self.apic.status
        } else {
            self.m.get(f::GUEST_INTERRUPT_STATUS)
        };
        InterruptStatus { requesting: word as u8, servicing: (word >> 8) as u8 }
    }

    pub(crate) fn write_status(&mut self, s: InterruptStatus) {
        self.apic.status = u16::from(s.requesting) | u16::from(s.servicing) << 8;
        self.apic.due |= due::STATUS;
    }

    pub(crate) fn write_eoi_exits(&mut self, mut vectors: [u64; 4]) {
        // An EOI with nothing in service is one of vector 0; vectors below 16 are exceptions.
        vectors[0] &= !0xffff;
        if self.apic.eoi != vectors {
            self.apic.eoi = vectors;
            self.apic.due |= due::EOI;
        }
    }
}
