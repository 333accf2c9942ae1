//! Sizes and offsets of XSAVE state components (SDM vol. 1, 13.4; APM vol. 2, 11.5).

use crate::cpuid::HostCpuid;
use exitless_x86::cpuid::{leaf, xcr0};

/// Components that may be offered: their area stays within the 4096 bytes of `kvm_xsave`, and none needs a host-side
/// permission or a supervisor MSR.
pub const OFFERABLE: u64 = xcr0::X87 | xcr0::SSE | xcr0::AVX | xcr0::AVX512 | xcr0::PKRU;
/// Bytes of `kvm_xsave.region`.
pub const AREA_LIMIT: u32 = 4096;
/// Legacy region and header.
pub const BASE_SIZE: u32 = 512 + 64;
/// Components 2 to 62 are described by sub-leaves of the same number.
const FIRST: u32 = 2;
const LAST: u32 = 62;

/// One component's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Component {
    /// Bytes.
    pub size: u32,
    /// From the start of the area, standard form; 0 for supervisor components.
    pub offset: u32,
    /// Starts at a multiple of 64 in the compacted form.
    pub align64: bool,
}

/// Component `i` as CPUID.(0DH, i) describes it.
pub fn component(i: u32, read: impl Fn(u32) -> exitless_x86::cpuid::CpuidResult) -> Component {
    let r = read(i);
    Component { size: r.eax, offset: r.ebx, align64: r.ecx & 2 != 0 }
}

/// Bytes of the standard-form area for the components in `mask`.
pub fn standard_size(mask: u64, read: impl Fn(u32) -> exitless_x86::cpuid::CpuidResult) -> u32 {
    each(mask).fold(BASE_SIZE, |end, i| {
        let c = component(i, &read);
        end.max(c.offset.saturating_add(c.size))
    })
}

/// Bytes of the compacted-form area for the components in `mask`.
pub fn compacted_size(mask: u64, read: impl Fn(u32) -> exitless_x86::cpuid::CpuidResult) -> u32 {
    each(mask).fold(BASE_SIZE, |end, i| {
        let c = component(i, &read);
        let start = if c.align64 { end.saturating_add(63) & !63 } else { end };
        start.saturating_add(c.size)
    })
}

/// XCR0 bits to offer on this host: what it has, what we can switch, AVX-512 whole or not at all, within 4096 bytes.
pub fn offered<H: HostCpuid>(host: &H) -> u64 {
    let d0 = host.cpuid(leaf::XSAVE, 0);
    let hardware = u64::from(d0.edx) << 32 | u64::from(d0.eax);
    let mut mask = hardware & host.xcr0() & OFFERABLE;
    if mask & (xcr0::X87 | xcr0::SSE) != xcr0::X87 | xcr0::SSE {
        return 0;
    }
    if mask & xcr0::AVX == 0 || mask & xcr0::AVX512 != xcr0::AVX512 {
        mask &= !xcr0::AVX512;
    }
    if standard_size(mask, |i| host.cpuid(leaf::XSAVE, i)) > AREA_LIMIT {
        mask &= xcr0::X87 | xcr0::SSE | xcr0::AVX;
    }
    mask
}

/// The described components of a mask, ascending.
fn each(mask: u64) -> impl Iterator<Item = u32> {
    (FIRST..=LAST).filter(move |i| mask >> i & 1 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitless_x86::cpuid::CpuidResult;

    /// Intel client and server layout of AVX, AVX-512 and PKRU.
    fn intel(i: u32) -> CpuidResult {
        let (eax, ebx, ecx) = match i {
            2 => (256, 576, 0),
            5 => (64, 1088, 0),
            6 => (512, 1152, 0),
            7 => (1024, 1664, 0),
            9 => (8, 2688, 0),
            17 => (64, 2752, 2),
            18 => (8192, 2816, 6),
            _ => (0, 0, 0),
        };
        CpuidResult { eax, ebx, ecx, edx: 0 }
    }

    /// Guests size their buffers by these; a byte short and XSAVE overwrites their memory.
    #[test]
    fn sizes() {
        assert_eq!(standard_size(xcr0::X87 | xcr0::SSE, intel), 576);
        assert_eq!(standard_size(xcr0::X87 | xcr0::SSE | xcr0::AVX, intel), 832);
        let full = xcr0::X87 | xcr0::SSE | xcr0::AVX | xcr0::AVX512 | xcr0::PKRU;
        assert_eq!(standard_size(full, intel), 2696);
        assert_eq!(compacted_size(full, intel), 576 + 256 + 64 + 512 + 1024 + 8);
        // AMX: TILECFG is aligned to 64 bytes in the compacted form.
        assert_eq!(compacted_size(full | xcr0::XTILECFG, intel), 2496 + 64);
        assert_eq!(compacted_size(xcr0::X87 | xcr0::SSE | xcr0::PKRU | xcr0::XTILECFG, intel), 640 + 64);
        let packed = |_| CpuidResult { eax: 8, ..CpuidResult::default() };
        assert_eq!(compacted_size(3 << 9, packed), 576 + 16, "nobody asked for alignment");
    }

    struct Host<F = fn(u32) -> CpuidResult>(u64, u64, F);
    impl<F: Fn(u32) -> CpuidResult> HostCpuid for Host<F> {
        fn gpa_bits(&self) -> u32 {
            48
        }
        fn cpuid(&self, leaf: u32, sub: u32) -> CpuidResult {
            match (leaf, sub) {
                (0xd, 0) => CpuidResult { eax: self.0 as u32, ebx: 0, ecx: 0, edx: (self.0 >> 32) as u32 },
                (0xd, i) => (self.2)(i),
                _ => CpuidResult::default(),
            }
        }
        fn xcr0(&self) -> u64 {
            self.1
        }
    }

    /// AMX (8 KiB) would not fit `kvm_xsave`; MPX is gone from every OS; a host kernel may have switched AVX-512 off.
    #[test]
    fn offer_is_bounded() {
        let offer = |hardware, on| offered(&Host(hardware, on, intel as fn(u32) -> CpuidResult));
        assert_eq!(offer(0x602ff, 0x602ff), 0x2e7);
        assert_eq!(offer(0x2e7, 0x7), 0x7);
        assert_eq!(offer(0x2a7, !0), 0x207, "AVX-512 in part is none");
        assert_eq!(offer(0xe3, !0), 0x3, "AVX-512 needs AVX");
        assert_eq!(offer(0, !0), 0);
        assert_eq!(offer(0x1, !0), 0);
        for (end, offer) in [(4095, 0x207), (4096, 0x207), (4097, 7)] {
            let layout = |i| if i == 9 { CpuidResult { eax: 8, ebx: end - 8, ..intel(i) } } else { intel(i) };
            assert_eq!(offered(&Host(0x207, !0, layout)), offer, "an area that ends at {end}");
            assert_eq!(offered(&Host(0x203, !0, layout)), offer & 0x203, "and without AVX");
        }
    }
}
