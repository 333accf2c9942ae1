//! The log of page modifications.

use super::fake::{Bench, negotiate, skylake};
use crate::log::LogPage;
use crate::machine::{Machine, switched};
use exitless_vcpu::backend::{Backend, Exit};
use exitless_x86::vmx::caps::{ept_vpid, msr};
use exitless_x86::vmx::control::secondary;
use exitless_x86::vmx::field as f;
use std::sync::atomic::Ordering::Relaxed;

/// The guest writes pages until the log's index is this, and leaves.
fn fill(b: &mut Bench, index: u16, reason: u32) -> Exit {
    // SAFETY: the bench's page is leaked, and nobody else refers to it as anything but atomics.
    let page: &LogPage = unsafe { b.v.log.unwrap().cast().as_ref() };
    b.cpu.next(move |cpu, run| {
        for at in usize::from(index.wrapping_add(1))..512 {
            page.entries()[at].store((511 - at as u64) << 12, Relaxed);
        }
        cpu.store(f::PML_INDEX, index);
        cpu.store(f::EXIT_QUALIFICATION, 0);
        run.reason = reason;
        switched::EXIT
    });
    b.enter(false)
}

fn logs(b: &Bench) -> bool {
    b.m.get(f::SECONDARY_CONTROLS) & secondary::ENABLE_PML != 0
}

/// Nothing is logged before somebody asks, the index begins at the end, each entry is told once and in order, and a full log,
/// whose index has left the page, has 512.
#[test]
fn entries() {
    let mut b = Bench::new();
    b.run(10, 0);
    assert!(!logs(&b));
    assert_eq!((b.m.get(f::PML_ADDRESS), b.m.get(f::PML_INDEX), b.v.take_log()), (0xa000, 511, 0));
    b.v.set_logging(true);
    assert_eq!(fill(&mut b, 508, 10), Exit::Cpuid);
    assert!(logs(&b));
    assert_eq!(b.v.take_log(), 3);
    assert_eq!([0, 1, 2].map(|n| b.v.logged(n)), [0, 0x1000, 0x2000]);
    assert_eq!((b.m.get(f::PML_INDEX), b.v.take_log()), (511, 0));
    assert_eq!(fill(&mut b, 0xffff, 62), Exit::LogFull);
    assert_eq!((b.v.take_log(), b.v.logged(511), b.v.logged(512)), (512, 511 << 12, 0));
    // Zero is the last place, not yet written.
    fill(&mut b, 0, 10);
    assert_eq!(b.v.take_log(), 511);
    b.v.set_logging(false);
    b.run(10, 0);
    assert!(!logs(&b));
}

/// The log needs dirty bits, the CPU's control and the host's wish; without one of them nothing turns it on.
#[test]
fn needs() {
    let full = negotiate(&skylake()).unwrap();
    assert!(full.pml() && full.secondary & secondary::ENABLE_PML == 0, "it comes and goes");
    let mut clean = skylake();
    *clean.get_mut(&msr::EPT_VPID_CAP).unwrap() &= !ept_vpid::ACCESSED_DIRTY;
    let mut old = skylake();
    *old.get_mut(&msr::PROCBASED_CTLS2).unwrap() &= !(u64::from(secondary::ENABLE_PML) << 32);
    for table in [clean, old] {
        let caps = negotiate(&table).unwrap();
        assert!(!caps.pml());
        let mut b = Bench::with(&caps);
        b.load();
        b.v.set_logging(true);
        b.run(10, 0);
        assert!(!logs(&b));
        assert_eq!(b.v.take_log(), 0);
    }
}
