//! Exitless by its CPUID leaves: a base of its own, where hypervisors' leaves are.

use exitless_pv_abi::{EXITLESS_SIGNATURE, EXITLESS_VERSION};

/// What a guest finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// No Exitless, or nothing that it offers.
    Nothing,
    /// One that speaks another version.
    OtherVersion(u32),
    /// `exitless_feature` bits.
    Features(u32),
}

/// Looks at each base; `cpuid` answers a leaf with EAX to EDX.
pub fn find(cpuid: impl Fn(u32) -> [u32; 4]) -> Found {
    for base in (0x4000_0100..0x4001_0000).step_by(0x100) {
        let [highest, name @ ..] = cpuid(base);
        if name == EXITLESS_SIGNATURE && highest > base {
            let [features, version, ..] = cpuid(base + 1);
            return match version {
                EXITLESS_VERSION if features != 0 => Found::Features(features),
                EXITLESS_VERSION => Found::Nothing,
                other => Found::OtherVersion(other),
            };
        }
    }
    Found::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitless_pv_abi::exitless_feature::LAZY_DEADLINE;

    fn host(base: u32, features: u32, version: u32) -> impl Fn(u32) -> [u32; 4] {
        let [b, c, d] = EXITLESS_SIGNATURE;
        move |leaf| match leaf.wrapping_sub(base) {
            0 => [base + 1, b, c, d],
            1 => [features, version, 0, 0],
            // As CPUs answer leaves that they do not have: with those of another.
            _ => [0x16, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        }
    }

    #[test]
    fn on_each_host() {
        assert_eq!(find(host(0x4000_4500, LAZY_DEADLINE, 1)), Found::Features(LAZY_DEADLINE));
        assert_eq!(find(host(0x4000_ff00, 3, 1)), Found::Features(3));
        assert_eq!(find(host(0x4000_4500, 0, 1)), Found::Nothing);
        assert_eq!(find(host(0x4000_4500, 1, 2)), Found::OtherVersion(2));
        assert_eq!(find(host(0x4000_0000, 1, 1)), Found::Nothing, "that is KVM's place");
        assert_eq!(find(|_| [0; 4]), Found::Nothing);
    }
}
