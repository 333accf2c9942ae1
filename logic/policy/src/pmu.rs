//! Performance counters. None of them counts: what exists reads as zero, and forgets what is written.
//!
//! ```text
//!                        CPUID               RDPMC                 MSRs (`crate::msr`)
//!  AMD, four counters    none tells          0 to 3: zero          C001_0000 to 7: zero
//!  AMD, two more         PERFCTR_CORE        0 to 5: zero          C001_0200 to B: zero, else #GP
//!  Intel                 leaf 0AH: none      #GP                   P6's two, and AMD's four: zero, for guests that probe; else #GP
//! ```
//! PERFCTR_CORE and a leaf 0AH are not on offer, but user space may show the former. As stock KVM does without a PMU.

use crate::{GuestCaps, Invalid, Vendor};

/// RDPMC at a privilege level that may: the counter's value.
///
/// # Errors
/// [`Invalid`]: there is no such counter.
pub fn rdpmc(index: u32, caps: &GuestCaps) -> Result<u64, Invalid> {
    let counters = match (caps.vendor, caps.perfctr_core) {
        (Vendor::Intel, _) => 0,
        (Vendor::Amd, false) => 4,
        (Vendor::Amd, true) => 6,
    };
    if index < counters { Ok(0) } else { Err(Invalid) }
}
