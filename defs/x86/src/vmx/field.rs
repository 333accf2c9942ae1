//! Every VMCS field, typed: a field's width decides the type of its value, a read-only field cannot be written
//! (SDM vol. 3C, 25.11.2, and vol. 3D, appendix B).
//!
//! An encoding holds both facts (bits 14:13 width, bits 11:10 kind); [`Field::new`] compares them with the type when the
//! crate is compiled, so that a number in the wrong list does not build.

use core::marker::PhantomData;

/// A field's width.
pub trait Width {
    /// What a field of this width holds.
    type Value: Copy;
    /// Bits 14:13 of the encoding.
    const CODE: u32;
    /// To the 64 bits that VMWRITE takes.
    fn raw(v: Self::Value) -> u64;
    /// From the 64 bits that VMREAD gives.
    fn value(raw: u64) -> Self::Value;
}

/// Whether a field can be written.
pub trait Access {
    /// VMWRITE fails unless the CPU allows writes to exit-information fields, which nobody here relies on.
    const READ_ONLY: bool;
}

macro_rules! width {
    ($name:ident, $value:ty, $code:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Clone, Copy, Debug)]
        pub enum $name {}
        impl Width for $name {
            type Value = $value;
            const CODE: u32 = $code;
            fn raw(v: $value) -> u64 {
                u64::from(v)
            }
            fn value(raw: u64) -> $value {
                raw as $value
            }
        }
    };
}
width!(W16, u16, 0, "16 bits.");
width!(W64, u64, 1, "64 bits.");
width!(W32, u32, 2, "32 bits.");
width!(Natural, u64, 3, "Natural width: 64 bits on the processors this runs on.");

/// Read with VMREAD, written with VMWRITE.
#[derive(Clone, Copy, Debug)]
pub enum Rw {}
/// VM-exit information: VMREAD only.
#[derive(Clone, Copy, Debug)]
pub enum Ro {}
impl Access for Rw {
    const READ_ONLY: bool = false;
}
impl Access for Ro {
    const READ_ONLY: bool = true;
}

/// One field of the VMCS.
#[derive(Debug)]
pub struct Field<W, A = Rw> {
    encoding: u16,
    is: PhantomData<(W, A)>,
}

impl<W, A> Clone for Field<W, A> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<W, A> Copy for Field<W, A> {}

impl<W: Width, A: Access> Field<W, A> {
    /// The field with this encoding ("full" access: bit 0 clear).
    const fn new(encoding: u16) -> Self {
        let e = encoding as u32;
        assert!(e >> 13 & 3 == W::CODE, "the encoding is of another width");
        assert!((e >> 10 & 3 == 1) == A::READ_ONLY, "the encoding is of another kind");
        assert!(e & 0x9001 == 0, "reserved bits, or the high half of a 64-bit field");
        Self { encoding, is: PhantomData }
    }

    /// The operand of VMREAD and VMWRITE.
    pub const fn encoding(self) -> u32 {
        self.encoding as u32
    }
}

macro_rules! fields {
    ($(#[$doc:meta] $width:ident $access:ident { $($name:ident = $encoding:literal),* $(,)? })*) => { $($(
        #[$doc]
        pub const $name: Field<$width, $access> = Field::new($encoding);
    )*)* };
}

fields! {
    /// 16-bit control field (SDM vol. 3D, table B-1).
    W16 Rw {
        VPID = 0x0000, POSTED_INTERRUPT_VECTOR = 0x0002, EPTP_INDEX = 0x0004, HLAT_PREFIX_SIZE = 0x0006,
        LAST_PID_POINTER_INDEX = 0x0008,
    }
    /// 16-bit guest-state field (SDM vol. 3D, table B-2).
    W16 Rw {
        GUEST_ES_SELECTOR = 0x0800, GUEST_CS_SELECTOR = 0x0802, GUEST_SS_SELECTOR = 0x0804,
        GUEST_DS_SELECTOR = 0x0806, GUEST_FS_SELECTOR = 0x0808, GUEST_GS_SELECTOR = 0x080a,
        GUEST_LDTR_SELECTOR = 0x080c, GUEST_TR_SELECTOR = 0x080e, GUEST_INTERRUPT_STATUS = 0x0810,
        PML_INDEX = 0x0812,
    }
    /// 16-bit host-state field (SDM vol. 3D, table B-3).
    W16 Rw {
        HOST_ES_SELECTOR = 0x0c00, HOST_CS_SELECTOR = 0x0c02, HOST_SS_SELECTOR = 0x0c04,
        HOST_DS_SELECTOR = 0x0c06, HOST_FS_SELECTOR = 0x0c08, HOST_GS_SELECTOR = 0x0c0a,
        HOST_TR_SELECTOR = 0x0c0c,
    }
    /// 64-bit control field (SDM vol. 3D, table B-4).
    W64 Rw {
        IO_BITMAP_A = 0x2000, IO_BITMAP_B = 0x2002, MSR_BITMAPS = 0x2004, EXIT_MSR_STORE_ADDRESS = 0x2006,
        EXIT_MSR_LOAD_ADDRESS = 0x2008, ENTRY_MSR_LOAD_ADDRESS = 0x200a, EXECUTIVE_VMCS = 0x200c,
        PML_ADDRESS = 0x200e, TSC_OFFSET = 0x2010, VIRTUAL_APIC_ADDRESS = 0x2012, APIC_ACCESS_ADDRESS = 0x2014,
        POSTED_INTERRUPT_DESCRIPTOR = 0x2016, VM_FUNCTION_CONTROLS = 0x2018, EPT_POINTER = 0x201a,
        EOI_EXIT_BITMAP_0 = 0x201c, EOI_EXIT_BITMAP_1 = 0x201e, EOI_EXIT_BITMAP_2 = 0x2020,
        EOI_EXIT_BITMAP_3 = 0x2022, EPTP_LIST_ADDRESS = 0x2024, VMREAD_BITMAP = 0x2026, VMWRITE_BITMAP = 0x2028,
        VE_INFORMATION_ADDRESS = 0x202a, XSS_EXITING_BITMAP = 0x202c, ENCLS_EXITING_BITMAP = 0x202e,
        SPP_TABLE_POINTER = 0x2030, TSC_MULTIPLIER = 0x2032, TERTIARY_CONTROLS = 0x2034,
        ENCLV_EXITING_BITMAP = 0x2036, PCONFIG_EXITING_BITMAP = 0x203e, HLAT_POINTER = 0x2040,
        PID_POINTER_TABLE = 0x2042, SECONDARY_EXIT_CONTROLS = 0x2044, SPEC_CTRL_MASK = 0x204a,
        SPEC_CTRL_SHADOW = 0x204c,
    }
    /// 64-bit read-only field (SDM vol. 3D, table B-5).
    W64 Ro { GUEST_PHYSICAL_ADDRESS = 0x2400 }
    /// 64-bit guest-state field (SDM vol. 3D, table B-6).
    W64 Rw {
        VMCS_LINK_POINTER = 0x2800, GUEST_DEBUGCTL = 0x2802, GUEST_PAT = 0x2804, GUEST_EFER = 0x2806,
        GUEST_PERF_GLOBAL_CTRL = 0x2808, GUEST_PDPTE0 = 0x280a, GUEST_PDPTE1 = 0x280c, GUEST_PDPTE2 = 0x280e,
        GUEST_PDPTE3 = 0x2810, GUEST_BNDCFGS = 0x2812, GUEST_RTIT_CTL = 0x2814, GUEST_LBR_CTL = 0x2816,
        GUEST_PKRS = 0x2818,
    }
    /// 64-bit host-state field (SDM vol. 3D, table B-7).
    W64 Rw {
        HOST_PAT = 0x2c00, HOST_EFER = 0x2c02, HOST_PERF_GLOBAL_CTRL = 0x2c04, HOST_PKRS = 0x2c06,
    }
    /// 32-bit control field (SDM vol. 3D, table B-8).
    W32 Rw {
        PIN_CONTROLS = 0x4000, PRIMARY_CONTROLS = 0x4002, EXCEPTION_BITMAP = 0x4004, PF_ERROR_CODE_MASK = 0x4006,
        PF_ERROR_CODE_MATCH = 0x4008, CR3_TARGET_COUNT = 0x400a, EXIT_CONTROLS = 0x400c,
        EXIT_MSR_STORE_COUNT = 0x400e, EXIT_MSR_LOAD_COUNT = 0x4010, ENTRY_CONTROLS = 0x4012,
        ENTRY_MSR_LOAD_COUNT = 0x4014, ENTRY_INTERRUPTION_INFO = 0x4016, ENTRY_EXCEPTION_ERROR_CODE = 0x4018,
        ENTRY_INSTRUCTION_LENGTH = 0x401a, TPR_THRESHOLD = 0x401c, SECONDARY_CONTROLS = 0x401e, PLE_GAP = 0x4020,
        PLE_WINDOW = 0x4022, INSTRUCTION_TIMEOUT = 0x4024,
    }
    /// 32-bit read-only field (SDM vol. 3D, table B-9).
    W32 Ro {
        VM_INSTRUCTION_ERROR = 0x4400, EXIT_REASON = 0x4402, EXIT_INTERRUPTION_INFO = 0x4404,
        EXIT_INTERRUPTION_ERROR_CODE = 0x4406, IDT_VECTORING_INFO = 0x4408, IDT_VECTORING_ERROR_CODE = 0x440a,
        EXIT_INSTRUCTION_LENGTH = 0x440c, EXIT_INSTRUCTION_INFO = 0x440e,
    }
    /// 32-bit guest-state field (SDM vol. 3D, table B-10).
    W32 Rw {
        GUEST_ES_LIMIT = 0x4800, GUEST_CS_LIMIT = 0x4802, GUEST_SS_LIMIT = 0x4804, GUEST_DS_LIMIT = 0x4806,
        GUEST_FS_LIMIT = 0x4808, GUEST_GS_LIMIT = 0x480a, GUEST_LDTR_LIMIT = 0x480c, GUEST_TR_LIMIT = 0x480e,
        GUEST_GDTR_LIMIT = 0x4810, GUEST_IDTR_LIMIT = 0x4812, GUEST_ES_ACCESS_RIGHTS = 0x4814,
        GUEST_CS_ACCESS_RIGHTS = 0x4816, GUEST_SS_ACCESS_RIGHTS = 0x4818, GUEST_DS_ACCESS_RIGHTS = 0x481a,
        GUEST_FS_ACCESS_RIGHTS = 0x481c, GUEST_GS_ACCESS_RIGHTS = 0x481e, GUEST_LDTR_ACCESS_RIGHTS = 0x4820,
        GUEST_TR_ACCESS_RIGHTS = 0x4822, GUEST_INTERRUPTIBILITY = 0x4824, GUEST_ACTIVITY = 0x4826,
        GUEST_SMBASE = 0x4828, GUEST_SYSENTER_CS = 0x482a, PREEMPTION_TIMER_VALUE = 0x482e,
    }
    /// 32-bit host-state field (SDM vol. 3D, table B-11).
    W32 Rw { HOST_SYSENTER_CS = 0x4c00 }
    /// Natural-width control field (SDM vol. 3D, table B-12).
    Natural Rw {
        CR0_MASK = 0x6000, CR4_MASK = 0x6002, CR0_SHADOW = 0x6004, CR4_SHADOW = 0x6006, CR3_TARGET_0 = 0x6008,
    }
    /// Natural-width read-only field (SDM vol. 3D, table B-13).
    Natural Ro {
        EXIT_QUALIFICATION = 0x6400, IO_RCX = 0x6402, IO_RSI = 0x6404, IO_RDI = 0x6406, IO_RIP = 0x6408,
        GUEST_LINEAR_ADDRESS = 0x640a,
    }
    /// Natural-width guest-state field (SDM vol. 3D, table B-14).
    Natural Rw {
        GUEST_CR0 = 0x6800, GUEST_CR3 = 0x6802, GUEST_CR4 = 0x6804, GUEST_ES_BASE = 0x6806,
        GUEST_CS_BASE = 0x6808, GUEST_SS_BASE = 0x680a, GUEST_DS_BASE = 0x680c, GUEST_FS_BASE = 0x680e,
        GUEST_GS_BASE = 0x6810, GUEST_LDTR_BASE = 0x6812, GUEST_TR_BASE = 0x6814, GUEST_GDTR_BASE = 0x6816,
        GUEST_IDTR_BASE = 0x6818, GUEST_DR7 = 0x681a, GUEST_RSP = 0x681c, GUEST_RIP = 0x681e,
        GUEST_RFLAGS = 0x6820, GUEST_PENDING_DEBUG = 0x6822, GUEST_SYSENTER_ESP = 0x6824,
        GUEST_SYSENTER_EIP = 0x6826, GUEST_S_CET = 0x6828, GUEST_SSP = 0x682a, GUEST_SSP_TABLE = 0x682c,
    }
    /// Natural-width host-state field (SDM vol. 3D, table B-15).
    Natural Rw {
        HOST_CR0 = 0x6c00, HOST_CR3 = 0x6c02, HOST_CR4 = 0x6c04, HOST_FS_BASE = 0x6c06, HOST_GS_BASE = 0x6c08,
        HOST_TR_BASE = 0x6c0a, HOST_GDTR_BASE = 0x6c0c, HOST_IDTR_BASE = 0x6c0e, HOST_SYSENTER_ESP = 0x6c10,
        HOST_SYSENTER_EIP = 0x6c12, HOST_RSP = 0x6c14, HOST_RIP = 0x6c16, HOST_S_CET = 0x6c18, HOST_SSP = 0x6c1a,
        HOST_SSP_TABLE = 0x6c1c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The world switch in assembly knows these by number.
    #[test]
    fn numbers_that_assembly_repeats() {
        assert_eq!(HOST_RSP.encoding(), 0x6c14);
        assert_eq!(HOST_RIP.encoding(), 0x6c16);
        assert_eq!(EXIT_REASON.encoding(), 0x4402);
        assert_eq!(EXIT_INTERRUPTION_INFO.encoding(), 0x4404);
    }

    /// The i-th field of a segment lies 2i behind that of ES, in each of the four groups; the backend counts on it.
    #[test]
    fn segment_fields_are_evenly_spaced() {
        assert_eq!(GUEST_TR_SELECTOR.encoding() - GUEST_ES_SELECTOR.encoding(), 14);
        assert_eq!(GUEST_TR_BASE.encoding() - GUEST_ES_BASE.encoding(), 14);
        assert_eq!(GUEST_TR_LIMIT.encoding() - GUEST_ES_LIMIT.encoding(), 14);
        assert_eq!(GUEST_TR_ACCESS_RIGHTS.encoding() - GUEST_ES_ACCESS_RIGHTS.encoding(), 14);
        assert_eq!(GUEST_LDTR_BASE.encoding() - GUEST_ES_BASE.encoding(), 12);
    }

    #[test]
    fn widths_cut_values() {
        fn value<W: Width>(_: Field<W, Rw>, raw: u64) -> W::Value {
            W::value(raw)
        }
        assert_eq!(value(GUEST_ES_SELECTOR, 0x12345), 0x2345);
        assert_eq!(value(GUEST_ES_LIMIT, 0x1_2345_6789), 0x2345_6789);
        assert_eq!(value(GUEST_RIP, u64::MAX), u64::MAX);
    }
}
