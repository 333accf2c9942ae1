//! The guest's CPUID: the entries KVM_SET_CPUID2 gave, and what the instruction answers from them.
//!
//! ```text
//! leaf, sub --> entry of that leaf (and sub-leaf, if it counts)? --yes--> answer
//!                |no
//!                |-- leaf within its range's maximum ------------------> zeros (0BH, 1FH: ECX and EDX still)
//!                |-- beyond it, AMD rules -----------------------------> zeros
//!                `-- beyond it, Intel rules ----> the highest basic leaf (SDM vol. 2A, CPUID)
//! answer --> the bits that follow registers: OSXSAVE, OSPKE, APIC, XSAVE sizes
//! ```

use crate::xsave;
use bytemuck::Zeroable;
use exitless_kvm_abi::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use exitless_x86::cpuid::{CpuidResult, leaf, leaf1_ecx, leaf1_edx, leaf7_ecx, leafd_1_eax, vendor};
use exitless_x86::regs::cr4;

/// Most entries KVM_SET_CPUID2 takes.
pub const MAX_ENTRIES: usize = 256;

/// The order in which to search the entries: by leaf, and within a leaf as the VMM gave them.
/// All-zero is the index of no entries.
#[derive(Clone, Copy, Zeroable)]
#[repr(C)]
pub struct CpuidIndex {
    order: [u8; MAX_ENTRIES],
    len: u16,
}

impl CpuidIndex {
    /// Sorts anew; entries beyond [`MAX_ENTRIES`] are not found. An insertion sort: VMMs give nearly sorted lists.
    pub fn build(&mut self, entries: &[kvm_cpuid_entry2]) {
        self.len = 0;
        for (i, e) in entries.iter().take(MAX_ENTRIES).enumerate() {
            let n = self.len as usize;
            let place = self.sorted().partition_point(|&o| function(entries, o) <= e.function);
            let mut moved = i as u8;
            for slot in self.order.get_mut(place..=n).unwrap_or_default() {
                core::mem::swap(slot, &mut moved);
            }
            self.len += 1;
        }
    }

    fn sorted(&self) -> &[u8] {
        self.order.get(..self.len as usize).unwrap_or_default()
    }
}

fn function(entries: &[kvm_cpuid_entry2], i: u8) -> u32 {
    entries.get(i as usize).map_or(u32::MAX, |e| e.function)
}

/// Registers of the vCPU that show in CPUID.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dynamic {
    /// CR4.
    pub cr4: u64,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_APIC_BASE.EN.
    pub apic_enabled: bool,
}

/// The entries and their index, together.
#[derive(Clone, Copy)]
pub struct GuestCpuid<'a> {
    entries: &'a [kvm_cpuid_entry2],
    index: &'a CpuidIndex,
}

impl<'a> GuestCpuid<'a> {
    /// `index` must have been built from `entries`; otherwise entries are missed, nothing worse.
    pub fn new(entries: &'a [kvm_cpuid_entry2], index: &'a CpuidIndex) -> Self {
        Self { entries, index }
    }

    /// The entry for a leaf, exactly: the first the VMM gave whose sub-leaf is `sub` or does not count.
    pub fn find(&self, leaf: u32, sub: u32) -> Option<CpuidResult> {
        let order = self.index.sorted();
        let start = order.partition_point(|&o| function(self.entries, o) < leaf);
        order
            .get(start..)?
            .iter()
            .filter_map(|&o| self.entries.get(o as usize))
            .take_while(|e| e.function == leaf)
            .find(|e| e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || e.index == sub)
            .map(|e| CpuidResult { eax: e.eax, ebx: e.ebx, ecx: e.ecx, edx: e.edx })
    }

    /// What the instruction leaves in the registers: [`GuestCpuid::find`], the rules for what is not there, and the
    /// bits that follow registers.
    pub fn answer(&self, leaf: u32, sub: u32, now: &Dynamic) -> CpuidResult {
        match self.find(leaf, sub) {
            Some(r) => self.live(leaf, sub, r, now),
            None => self.missing(leaf, sub, now),
        }
    }

    /// Whether the answer may change while the entries stay: it follows registers, or is made up for what is not there.
    pub fn follows_registers(&self, l: u32, sub: u32) -> bool {
        matches!(l, leaf::FEATURES | leaf::STRUCTURED_FEATURES | leaf::XSAVE | leaf::EXTENDED_FEATURES)
            || self.find(l, sub).is_none()
    }

    fn missing(&self, l: u32, sub: u32, now: &Dynamic) -> CpuidResult {
        let highest = self.find(leaf::VENDOR, 0).map_or(0, |r| r.eax);
        if self.beyond_range(l) && !self.amd_rules() && highest != l {
            return self
                .find(highest, sub)
                .map_or_else(CpuidResult::default, |r| self.live(highest, sub, r, now));
        }
        match l {
            // The x2APIC id and the sub-leaf's number are told for any sub-leaf.
            leaf::TOPOLOGY | leaf::TOPOLOGY_V2 => self.find(l, 0).map_or_else(CpuidResult::default, |r| {
                CpuidResult { ecx: sub & 0xff, edx: r.edx, ..CpuidResult::default() }
            }),
            _ => CpuidResult::default(),
        }
    }

    /// Beyond the maximum its range's first leaf states; a range the VMM did not give has no leaves at all.
    fn beyond_range(&self, l: u32) -> bool {
        let first = match l {
            0x4000_0000..=0x4fff_ffff => l & 0xffff_ff00,
            0xc000_0000.. => 0xc000_0000,
            _ => l & 0x8000_0000,
        };
        self.find(first, 0).is_none_or(|r| l > r.eax)
    }

    fn amd_rules(&self) -> bool {
        self.find(leaf::VENDOR, 0)
            .is_some_and(|r| [vendor::AMD, vendor::HYGON].contains(&[r.ebx, r.ecx, r.edx]))
    }

    fn live(&self, l: u32, sub: u32, r: CpuidResult, now: &Dynamic) -> CpuidResult {
        match (l, sub) {
            (leaf::FEATURES, _) => CpuidResult {
                ecx: put(
                    r.ecx,
                    leaf1_ecx::OSXSAVE,
                    now.cr4 & cr4::OSXSAVE != 0 && r.ecx & leaf1_ecx::XSAVE != 0,
                ),
                edx: put(r.edx, leaf1_edx::APIC, now.apic_enabled && r.edx & leaf1_edx::APIC != 0),
                ..r
            },
            (leaf::STRUCTURED_FEATURES, 0) => CpuidResult {
                ecx: put(r.ecx, leaf7_ecx::OSPKE, now.cr4 & cr4::PKE != 0 && r.ecx & leaf7_ecx::PKU != 0),
                ..r
            },
            (leaf::XSAVE, 0) if r.eax != 0 => {
                CpuidResult { ebx: xsave::standard_size(now.xcr0, |i| self.component(i)), ..r }
            }
            (leaf::XSAVE, 1) if r.eax & (leafd_1_eax::XSAVEC | leafd_1_eax::XSAVES) != 0 => {
                CpuidResult { ebx: xsave::compacted_size(now.xcr0, |i| self.component(i)), ..r }
            }
            (leaf::EXTENDED_FEATURES, _) if self.amd_rules() => CpuidResult {
                edx: put(r.edx, leaf1_edx::APIC, now.apic_enabled && r.edx & leaf1_edx::APIC != 0),
                ..r
            },
            _ => r,
        }
    }

    fn component(&self, i: u32) -> CpuidResult {
        self.find(leaf::XSAVE, i).unwrap_or_default()
    }
}

fn put(word: u32, bit: u32, on: bool) -> u32 {
    if on { word | bit } else { word & !bit }
}
