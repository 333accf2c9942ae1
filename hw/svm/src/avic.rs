//! The local APIC in hardware (AVIC, APM vol. 2, 15.29), for APICs in x2APIC mode: what the VMCB says of it. What goes into the
//! backing page, and when, is the hall's decision.

use crate::vcpu::{AvicPages, Svm};
use exitless_vcpu::backend::{ApicKind, ApicPage, Opened};
use exitless_x86::apic::{apic_base, reg};
use exitless_x86::svm::avic::MAX_INDEX;
use exitless_x86::svm::int_ctl;

/// Both bits: x2AVIC.
const ON: u32 = int_ctl::AVIC | int_ctl::X2AVIC;

impl Svm {
    /// The fields that do not change, with the rest of the VMCB.
    pub(crate) fn init_avic(&mut self, pages: AvicPages) {
        self.apic_page = Some(pages.backing);
        let c = &mut self.vmcb;
        c.set_avic_vapic_bar(apic_base::DEFAULT_ADDRESS);
        c.set_avic_backing_page(pages.backing_pa);
        c.set_avic_logical_id(pages.logical_pa);
        c.set_avic_physical_id(pages.physical_pa | u64::from(MAX_INDEX));
    }

    /// The guest's entries are with AVIC.
    pub(crate) fn avic_on(&self) -> bool {
        self.apic_kind != ApicKind::Software
    }

    pub(crate) fn apic(&mut self, kind: ApicKind) {
        self.apic_kind = kind;
        let now = self.control().int_ctl & !ON;
        self.vmcb.set_int_ctl(if self.avic_on() { now | ON } else { now });
        self.choose_maps();
    }

    /// The MSR permission maps for what the guest has for itself, and for its APIC.
    pub(crate) fn choose_maps(&mut self) {
        let apic = match self.apic_kind {
            ApicKind::X2Apic => 1,
            ApicKind::X2ApicIpis => 2,
            _ => 0,
        };
        let maps = self
            .msrpm_pa
            .get(self.opened.index() % Opened::COMMON_SETS)
            .and_then(|set| set.get(apic))
            .copied();
        self.vmcb.set_msrpm_base_pa(maps.unwrap_or_default());
    }

    pub(crate) fn backing_page(&self) -> Option<&ApicPage> {
        // SAFETY: the owner of the pages promises that this one lives as long as `self`; it is made of atomics.
        self.apic_page.map(|page| unsafe { page.as_ref() })
    }

    /// VMRUN computes from the page what it delivers, but takes the priority of CR8 from V_TPR, which the page follows at the guest's
    /// writes only.
    pub(crate) fn load_tpr(&mut self) {
        let tpr = self.backing_page().map_or(0, |page| page.read(reg::TPR) >> 4 & 15);
        self.vmcb.set_int_ctl(self.control().int_ctl & !int_ctl::V_TPR | tpr);
    }
}

/// The MSR permission maps of one set of [`Opened`]: without AVIC, with it, and with IPIs.
pub type MsrMaps = [[u64; 3]; Opened::COMMON_SETS];
