//! Processors that do not exist: two plausible ones, and extremes.
#![allow(dead_code)] // Each test crate uses a part.

use exitless_kvm_abi::kvm_cpuid_entry2;
use exitless_policy::GuestCaps;
use exitless_policy::cpuid::{CpuidIndex, GuestCpuid, HostCpuid, supported};
use exitless_x86::cpuid::{CpuidResult, vendor};

pub(crate) const fn r(eax: u32, ebx: u32, ecx: u32, edx: u32) -> CpuidResult {
    CpuidResult { eax, ebx, ecx, edx }
}

/// A host described by a function.
pub(crate) struct Host<F: Fn(u32, u32) -> CpuidResult>(pub(crate) F, pub(crate) u64);

impl<F: Fn(u32, u32) -> CpuidResult> HostCpuid for Host<F> {
    fn cpuid(&self, leaf: u32, sub: u32) -> CpuidResult {
        (self.0)(leaf, sub)
    }
    fn xcr0(&self) -> u64 {
        self.1
    }
    fn gpa_bits(&self) -> u32 {
        48
    }
}

fn id(max: u32, v: [u32; 3]) -> CpuidResult {
    r(max, v[0], v[1], v[2])
}

fn xsave_component(i: u32) -> CpuidResult {
    match i {
        2 => r(256, 576, 0, 0),
        3 => r(64, 960, 0, 0),
        4 => r(64, 1024, 0, 0),
        5 => r(64, 1088, 0, 0),
        6 => r(512, 1152, 0, 0),
        7 => r(1024, 1664, 0, 0),
        9 => r(8, 2688, 0, 0),
        17 => r(64, 2752, 2, 0),
        18 => r(8192, 2816, 6, 0),
        _ => r(0, 0, 0, 0),
    }
}

/// Every feature bit there is, every leaf filled: whatever is not in the table must be filtered.
pub(crate) fn everything(v: [u32; 3]) -> impl HostCpuid {
    Host(
        move |leaf, sub| match leaf {
            0 => id(0x24, v),
            0x8000_0000 => id(0x8000_0028, v),
            // Caches without end.
            4 | 0x8000_001d => r(!0, !0, !0, !0),
            7 if sub <= 2 => r(if sub == 0 { 2 } else { !0 }, !0, !0, !0),
            0xd if sub >= 2 => xsave_component(sub),
            0x8000_0008 => r(0x0030_3934, !0, !0, !0),
            _ => r(!0, !0, !0, !0),
        },
        !0,
    )
}

/// The oldest we accept: long mode and nothing else.
pub(crate) fn nothing() -> impl HostCpuid {
    Host(
        |leaf, _| match leaf {
            0 => id(1, vendor::INTEL),
            // What real hardware answers beyond its maximum: the highest basic leaf, here all ones.
            1 => r(0x600, 0, 0, 0),
            0x8000_0000 => r(0x8000_0008, 0, 0, 0),
            0x8000_0001 => r(0, 0, 0, 1 << 29),
            0x8000_0008 => r(0x3024, 0, 0, 0),
            l if l < 0x8000_0000 => r(!0, !0, !0, !0),
            _ => r(0, 0, 0, 0),
        },
        0,
    )
}

/// A Zen 3: AVX2, PKU, PCID, no AVX-512.
pub(crate) fn zen3() -> impl HostCpuid {
    Host(
        |leaf, sub| match (leaf, sub) {
            (0, _) => id(0x10, vendor::AMD),
            (1, _) => r(0x00a2_0f12, 0x0b10_0800, 0x7efa_320b, 0x178b_fbff),
            (7, 0) => r(0, 0x219c_97a9, 0x0040_069c, 0x10),
            (0xd, 0) => r(0x207, 0x988, 0x988, 0),
            (0xd, 1) => r(0xf, 0x348, 0x1800, 0),
            (0xd, 2) => r(0x100, 0x240, 0, 0),
            (0xd, 9) => r(8, 0x980, 0, 0),
            (0x8000_0000, _) => id(0x8000_0023, vendor::AMD),
            (0x8000_0001, _) => r(0x00a2_0f12, 0x2000_0000, 0x75c2_37ff, 0x2fd3_fbff),
            (0x8000_0007, _) => r(0, 0x3b, 0, 0x6799),
            (0x8000_0008, _) => r(0x3030, 0x111e_f657, 0x400b, 0x1_0000),
            (0x8000_001d, 0) => r(0x4121, 0x01c0_003f, 0x3f, 0),
            (0x8000_001d, 1) => r(0x4122, 0x01c0_003f, 0x3f, 0),
            (0x8000_001d, 2) => r(0x4143, 0x01c0_003f, 0x3ff, 2),
            (0x8000_001d, 3) => r(0x2_c163, 0x03c0_003f, 0x7fff, 1),
            (0x8000_001e, _) => r(7, 0x101, 0, 0),
            (0x8000_0021, _) => r(0x4d, 0, 0, 0),
            _ => r(0, 0, 0, 0),
        },
        0x207,
    )
}

/// The supported list of a host.
pub(crate) fn list(host: &impl HostCpuid) -> Vec<kvm_cpuid_entry2> {
    let mut out = vec![kvm_cpuid_entry2::default(); 100];
    let n = supported(host, &mut out).expect("100 entries suffice");
    out.truncate(n);
    out
}

/// An index of the entries.
pub(crate) fn index(entries: &[kvm_cpuid_entry2]) -> CpuidIndex {
    let mut index: CpuidIndex = bytemuck::Zeroable::zeroed();
    index.build(entries);
    index
}

/// The summary of the entries.
pub(crate) fn caps(entries: &[kvm_cpuid_entry2], host: Option<&GuestCaps>) -> GuestCaps {
    let mut caps = GuestCaps::default();
    caps.compute(GuestCpuid::new(entries, &index(entries)), host);
    caps
}

/// The summary of what a host offers.
pub(crate) fn host_caps(host: &impl HostCpuid) -> GuestCaps {
    caps(&list(host), None)
}
