//! The capability MSRs (SDM vol. 3D, appendix A): which controls must be 1, which may be 1, what EPT and VPID offer.

/// Numbers of the capability MSRs.
#[allow(missing_docs)]
pub mod msr {
    pub const BASIC: u32 = 0x480;
    pub const PINBASED_CTLS: u32 = 0x481;
    pub const PROCBASED_CTLS: u32 = 0x482;
    pub const EXIT_CTLS: u32 = 0x483;
    pub const ENTRY_CTLS: u32 = 0x484;
    pub const MISC: u32 = 0x485;
    pub const CR0_FIXED0: u32 = 0x486;
    pub const CR0_FIXED1: u32 = 0x487;
    pub const CR4_FIXED0: u32 = 0x488;
    pub const CR4_FIXED1: u32 = 0x489;
    pub const VMCS_ENUM: u32 = 0x48a;
    /// Exists where the primary controls may activate secondary ones.
    pub const PROCBASED_CTLS2: u32 = 0x48b;
    /// Exists where EPT or VPID may be enabled.
    pub const EPT_VPID_CAP: u32 = 0x48c;
    /// The four "true" forms exist where BASIC bit 55 says so.
    pub const TRUE_PINBASED_CTLS: u32 = 0x48d;
    pub const TRUE_PROCBASED_CTLS: u32 = 0x48e;
    pub const TRUE_EXIT_CTLS: u32 = 0x48f;
    pub const TRUE_ENTRY_CTLS: u32 = 0x490;
    pub const VMFUNC: u32 = 0x491;
    pub const PROCBASED_CTLS3: u32 = 0x492;
}

/// IA32_VMX_BASIC (SDM vol. 3D, A.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Basic(pub u64);

impl Basic {
    /// For the first word of VMCS and VMXON regions.
    pub const fn revision(self) -> u32 {
        self.0 as u32 & 0x7fff_ffff
    }
    /// Bytes to allocate for either region, 1 to 4096.
    pub const fn region_size(self) -> u32 {
        (self.0 >> 32) as u32 & 0x1fff
    }
    /// Regions must lie below 4 GiB.
    pub const fn addresses_32_bits(self) -> bool {
        self.0 & 1 << 48 != 0
    }
    /// Memory type for accesses to regions; 6 is write-back.
    pub const fn memory_type(self) -> u8 {
        (self.0 >> 50) as u8 & 15
    }
    /// The "true" capability MSRs exist.
    pub const fn true_controls(self) -> bool {
        self.0 & 1 << 55 != 0
    }
    /// A hardware exception may be injected with or without error code whatever its vector.
    pub const fn any_error_code(self) -> bool {
        self.0 & 1 << 56 != 0
    }
}

/// What one 32-bit control word allows: bits 31:0 must be 1, bits 63:32 may be 1 (SDM vol. 3D, A.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed(pub u64);

impl Allowed {
    /// Bits that must be 1.
    pub const fn must(self) -> u32 {
        self.0 as u32
    }
    /// Bits that may be 1.
    pub const fn may(self) -> u32 {
        (self.0 >> 32) as u32
    }
    /// `wanted` as the CPU takes it.
    pub const fn adjust(self, wanted: u32) -> u32 {
        (wanted | self.must()) & self.may()
    }
}

/// IA32_VMX_MISC (SDM vol. 3D, A.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misc(pub u64);

impl Misc {
    /// The preemption timer counts down once each 2^n TSC ticks.
    pub const fn preemption_timer_shift(self) -> u32 {
        self.0 as u32 & 31
    }
    /// VM exits store EFER.LMA into the "IA-32e mode guest" entry control.
    pub const fn stores_lma(self) -> bool {
        self.0 & 1 << 5 != 0
    }
    /// VMXON does not forbid Intel Processor Trace.
    pub const fn pt_in_vmx(self) -> bool {
        self.0 & 1 << 14 != 0
    }
    /// Software events may be injected with an instruction length of 0.
    pub const fn zero_length_injection(self) -> bool {
        self.0 & 1 << 30 != 0
    }
}

/// IA32_VMX_EPT_VPID_CAP bits (SDM vol. 3D, A.10).
#[allow(missing_docs)]
pub mod ept_vpid {
    pub const EXECUTE_ONLY: u64 = 1 << 0;
    pub const WALK_4: u64 = 1 << 6;
    pub const WALK_5: u64 = 1 << 7;
    pub const UC: u64 = 1 << 8;
    pub const WB: u64 = 1 << 14;
    pub const PAGE_2M: u64 = 1 << 16;
    pub const PAGE_1G: u64 = 1 << 17;
    pub const INVEPT: u64 = 1 << 20;
    pub const ACCESSED_DIRTY: u64 = 1 << 21;
    pub const INVEPT_SINGLE: u64 = 1 << 25;
    pub const INVEPT_ALL: u64 = 1 << 26;
    pub const INVVPID: u64 = 1 << 32;
    pub const INVVPID_ADDRESS: u64 = 1 << 40;
    pub const INVVPID_SINGLE: u64 = 1 << 41;
    pub const INVVPID_ALL: u64 = 1 << 42;
    pub const INVVPID_RETAINING_GLOBALS: u64 = 1 << 43;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Skylake's primary controls as the MSR reads: default-1 bits stay set whatever is asked.
    #[test]
    fn adjust_adds_and_removes() {
        let a = Allowed(0xfff9_fffe_0401_e172);
        assert_eq!(a.adjust(0), 0x0401_e172);
        assert_eq!(a.adjust(1 << 7), 0x0401_e172 | 1 << 7);
        assert_eq!(a.adjust(1 << 17), 0x0401_e172, "a bit that may not be 1 goes away");
    }

    #[test]
    fn basic_fields() {
        let b = Basic(0x00da_0400_0000_0004);
        assert_eq!((b.revision(), b.region_size(), b.memory_type()), (4, 0x400, 6));
        assert!(b.true_controls() && !b.any_error_code() && !b.addresses_32_bits());
    }
}
