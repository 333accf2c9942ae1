//! The supported list: every CPUID leaf this host can offer, filtered (KVM_GET_SUPPORTED_CPUID).
//!
//! Leaves that describe the host's own topology (0BH, 1FH, 8000_001EH, the core counts) are present but zero: only the
//! VMM knows the guest's topology. Leaves not listed read as zero.

use super::HostCpuid;
use super::features::{Reg, filter, translate_speculation};
use crate::xsave;
use exitless_kvm_abi::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX as INDEXED, kvm_cpuid_entry2};
use exitless_pv_abi::{KVM_CPUID_FEATURES, KVM_CPUID_SIGNATURE, KVM_SIGNATURE, feature};
use exitless_x86::cpuid::{CpuidResult, leaf, leaf7_edx, vendor};

/// The list is never longer (kvmtool asks with room for 100).
pub const MAX_SUPPORTED: usize = 100;

/// The paravirtual features the module implements.
const PV_FEATURES: u32 = feature::CLOCKSOURCE
    | feature::NOP_IO_DELAY
    | feature::CLOCKSOURCE2
    | feature::ASYNC_PF
    | feature::STEAL_TIME
    | feature::PV_EOI
    | feature::PV_UNHALT
    | feature::PV_SEND_IPI
    | feature::PV_SCHED_YIELD
    | feature::PV_TLB_FLUSH
    | feature::POLL_CONTROL
    | feature::ASYNC_PF_INT
    | feature::CLOCKSOURCE_STABLE;

/// The caller's slice is too short for the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Writes the supported list to the start of `out` and returns its length.
///
/// # Errors
/// [`Full`] when `out` is too short; [`MAX_SUPPORTED`] entries always suffice.
pub fn supported<H: HostCpuid>(host: &H, out: &mut [kvm_cpuid_entry2]) -> Result<usize, Full> {
    let id = host.cpuid(leaf::VENDOR, 0);
    let host = &InRange { host, basic: id.eax, extended: host.cpuid(leaf::EXTENDED, 0).eax };
    let amd = [vendor::AMD, vendor::HYGON].contains(&[id.ebx, id.ecx, id.edx]);
    let mut list = List { host, xcr0: xsave::offered(host), amd, out, len: 0 };
    list.basic(id)?;
    list.hypervisor()?;
    list.extended()?;
    Ok(list.len)
}

/// The host's CPUID with zeros beyond its maximum, where Intel answers with the highest basic leaf instead.
struct InRange<'a, H> {
    host: &'a H,
    basic: u32,
    extended: u32,
}

impl<H: HostCpuid> HostCpuid for InRange<'_, H> {
    fn cpuid(&self, l: u32, sub: u32) -> CpuidResult {
        let max = if l < leaf::EXTENDED { self.basic } else { self.extended };
        if l <= max { self.host.cpuid(l, sub) } else { CpuidResult::default() }
    }
    fn xcr0(&self) -> u64 {
        self.host.xcr0()
    }
    fn gpa_bits(&self) -> u32 {
        self.host.gpa_bits()
    }
}

struct List<'a, H> {
    host: &'a H,
    xcr0: u64,
    amd: bool,
    out: &'a mut [kvm_cpuid_entry2],
    len: usize,
}

impl<H: HostCpuid> List<'_, H> {
    fn push(&mut self, function: u32, index: u32, flags: u32, r: CpuidResult) -> Result<(), Full> {
        let CpuidResult { eax, ebx, ecx, edx } = r;
        let place = self.out.get_mut(self.len).ok_or(Full)?;
        *place = kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding: [0; 3] };
        self.len += 1;
        Ok(())
    }

    /// A leaf without sub-leaves.
    fn plain(&mut self, function: u32, r: CpuidResult) -> Result<(), Full> {
        self.push(function, 0, 0, r)
    }

    /// The four registers with the table applied; registers without a row come out zero.
    fn features(&self, l: u32, sub: u32, r: CpuidResult) -> CpuidResult {
        let f = |reg, value| filter(l, sub, reg, value, self.xcr0);
        CpuidResult {
            eax: f(Reg::Eax, r.eax),
            ebx: f(Reg::Ebx, r.ebx),
            ecx: f(Reg::Ecx, r.ecx),
            edx: f(Reg::Edx, r.edx),
        }
    }

    fn basic(&mut self, id: CpuidResult) -> Result<(), Full> {
        let max = id.eax.clamp(leaf::XSAVE, if self.amd { leaf::XSAVE } else { leaf::TOPOLOGY_V2 });
        self.plain(leaf::VENDOR, CpuidResult { eax: max, ..id })?;
        self.signature()?;
        self.intel_caches()?;
        // No MONITOR, so no sub-states of MWAIT.
        self.plain(leaf::MONITOR, CpuidResult::default())?;
        self.plain(leaf::THERMAL_POWER, self.features(leaf::THERMAL_POWER, 0, CpuidResult::default()))?;
        self.structured()?;
        self.plain(leaf::PERFORMANCE_MONITORING, CpuidResult::default())?;
        self.push(leaf::TOPOLOGY, 0, INDEXED, CpuidResult::default())?;
        self.xsave()?;
        for l in [leaf::TSC, leaf::FREQUENCY].into_iter().filter(|&l| l <= max) {
            self.plain(l, CpuidResult::default())?;
        }
        if max >= leaf::TOPOLOGY_V2 {
            self.push(leaf::TOPOLOGY_V2, 0, INDEXED, CpuidResult::default())?;
        }
        Ok(())
    }

    /// Leaf 1: family and model, CLFLUSH line and the features; APIC id and core count are the VMM's.
    fn signature(&mut self) -> Result<(), Full> {
        let r = self.host.cpuid(leaf::FEATURES, 0);
        let f = self.features(leaf::FEATURES, 0, r);
        self.plain(leaf::FEATURES, CpuidResult { eax: r.eax, ebx: r.ebx & 0xffff, ..f })
    }

    /// Leaves 2 and 4, which AMD does not have.
    fn intel_caches(&mut self) -> Result<(), Full> {
        if self.amd {
            return Ok(());
        }
        self.plain(leaf::CACHE_DESCRIPTORS, self.host.cpuid(leaf::CACHE_DESCRIPTORS, 0))?;
        self.subleaves(leaf::CACHE_PARAMETERS, 0x3fff, |r| r.eax & 31 != 0)
    }

    /// Cache descriptions up to the first that `valid` denies, with EAX bits above `keep` (who shares it) cleared.
    fn subleaves(&mut self, l: u32, keep: u32, valid: impl Fn(&CpuidResult) -> bool) -> Result<(), Full> {
        for sub in 0..8 {
            let r = self.host.cpuid(l, sub);
            if !valid(&r) {
                return self.push(l, sub, INDEXED, CpuidResult::default());
            }
            self.push(l, sub, INDEXED, CpuidResult { eax: r.eax & keep, ..r })?;
        }
        Ok(())
    }

    /// Leaf 7 and its sub-leaf 1.
    fn structured(&mut self) -> Result<(), Full> {
        let mut r = self.host.cpuid(leaf::STRUCTURED_FEATURES, 0);
        translate_speculation(&mut r, &mut self.host.cpuid(leaf::ADDRESS_SIZES, 0));
        let last = r.eax.min(1);
        let mut f = self.features(leaf::STRUCTURED_FEATURES, 0, r);
        if self.amd {
            // No AMD processor has the register, and some guests refuse one that does.
            f.edx &= !leaf7_edx::ARCH_CAPABILITIES;
        }
        self.push(leaf::STRUCTURED_FEATURES, 0, INDEXED, CpuidResult { eax: last, ..f })?;
        if last == 1 {
            let f =
                self.features(leaf::STRUCTURED_FEATURES, 1, self.host.cpuid(leaf::STRUCTURED_FEATURES, 1));
            self.push(leaf::STRUCTURED_FEATURES, 1, INDEXED, f)?;
        }
        Ok(())
    }

    /// Leaf 0DH: the offered components. EBX (size for the current XCR0) is computed when the guest asks; here it is
    /// the size after reset, with the x87 state alone.
    fn xsave(&mut self) -> Result<(), Full> {
        let mask = self.xcr0;
        if mask == 0 {
            return self.push(leaf::XSAVE, 0, INDEXED, CpuidResult::default());
        }
        let host = self.host;
        let read = |i| host.cpuid(leaf::XSAVE, i);
        let d0 = CpuidResult {
            eax: mask as u32,
            ebx: xsave::BASE_SIZE,
            ecx: xsave::standard_size(mask, read),
            edx: (mask >> 32) as u32,
        };
        self.push(leaf::XSAVE, 0, INDEXED, d0)?;
        let d1 = self.features(leaf::XSAVE, 1, self.host.cpuid(leaf::XSAVE, 1));
        self.push(leaf::XSAVE, 1, INDEXED, CpuidResult { ebx: xsave::BASE_SIZE, ..d1 })?;
        for i in (2..63).filter(|i| mask >> i & 1 != 0) {
            let r = self.host.cpuid(leaf::XSAVE, i);
            self.push(leaf::XSAVE, i, INDEXED, CpuidResult { ecx: r.ecx & 2, edx: 0, ..r })?;
        }
        Ok(())
    }

    fn hypervisor(&mut self) -> Result<(), Full> {
        let [ebx, ecx, edx] = KVM_SIGNATURE;
        self.plain(KVM_CPUID_SIGNATURE, CpuidResult { eax: KVM_CPUID_FEATURES, ebx, ecx, edx })?;
        self.plain(KVM_CPUID_FEATURES, CpuidResult { eax: PV_FEATURES, ..CpuidResult::default() })
    }

    fn extended(&mut self) -> Result<(), Full> {
        let top = self.host.cpuid(leaf::EXTENDED, 0);
        let last = if self.amd { leaf::EXTENDED_FEATURES_2 } else { leaf::ADDRESS_SIZES };
        let max = top.eax.clamp(leaf::ADDRESS_SIZES, last);
        self.plain(leaf::EXTENDED, CpuidResult { eax: max, ..top })?;
        let e1 = self.host.cpuid(leaf::EXTENDED_FEATURES, 0);
        let f = self.features(leaf::EXTENDED_FEATURES, 0, e1);
        // EAX repeats the signature; EBX is AMD's brand and package.
        self.plain(leaf::EXTENDED_FEATURES, CpuidResult { eax: e1.eax, ebx: e1.ebx, ..f })?;
        for l in leaf::BRAND_0..=leaf::L2_L3_CACHE_TLB {
            self.plain(l, self.host.cpuid(l, 0))?;
        }
        self.plain(leaf::POWER_RAS, self.features(leaf::POWER_RAS, 0, self.host.cpuid(leaf::POWER_RAS, 0)))?;
        self.address_sizes()?;
        if self.amd { self.amd_extended(max) } else { Ok(()) }
    }

    /// Leaf 8000_0008: address widths and AMD's features; the core count is the VMM's.
    fn address_sizes(&mut self) -> Result<(), Full> {
        let mut r = self.host.cpuid(leaf::ADDRESS_SIZES, 0);
        translate_speculation(&mut self.host.cpuid(leaf::STRUCTURED_FEATURES, 0), &mut r);
        let f = self.features(leaf::ADDRESS_SIZES, 0, r);
        // Bits 23:16: the width of what can be mapped, where that is less than page tables may name; firmware places devices by
        // it. The host's own bits speak of the hypervisor below it.
        let held = self.host.gpa_bits();
        let mapped = if r.eax & 0xff > held { held << 16 } else { 0 };
        self.plain(leaf::ADDRESS_SIZES, CpuidResult { eax: r.eax & 0xffff | mapped, ..f })
    }

    fn amd_extended(&mut self, max: u32) -> Result<(), Full> {
        for l in [leaf::TLB_1G, leaf::PERFORMANCE_HINTS].into_iter().filter(|&l| l <= max) {
            self.plain(l, self.host.cpuid(l, 0))?;
        }
        if max >= leaf::CACHE_TOPOLOGY {
            self.subleaves(leaf::CACHE_TOPOLOGY, 0x3fff, |r| r.eax & 31 != 0)?;
        }
        if max >= leaf::PROCESSOR_TOPOLOGY {
            self.plain(leaf::PROCESSOR_TOPOLOGY, CpuidResult::default())?;
        }
        if max >= leaf::EXTENDED_FEATURES_2 {
            let r = self.host.cpuid(leaf::EXTENDED_FEATURES_2, 0);
            self.plain(leaf::EXTENDED_FEATURES_2, self.features(leaf::EXTENDED_FEATURES_2, 0, r))?;
        }
        Ok(())
    }
}
