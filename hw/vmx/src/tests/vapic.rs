//! What hardware does of the local APIC, the preemption timer, and the MSR bitmaps.

use super::fake::{Bench, cpuid, negotiate, skylake};
use crate::caps::{Caps, Wish};
use crate::machine::switched;
use crate::msr_bitmap::{SIZE, close_self_ipi, open, open_icr, open_x2apic};
use crate::vapic::SECONDARY;
use exitless_vcpu::backend::{ApicKind, Backend, Exit, InterruptStatus, Opened};
use exitless_x86::vmx::caps::msr;
use exitless_x86::vmx::control::{pin, primary, secondary as s, tertiary};
use exitless_x86::vmx::field as f;
use std::vec;
use std::vec::Vec;

/// A CPU that virtualises the APIC.
fn apicv() -> Bench {
    let mut t = skylake();
    let more = s::APIC_REGISTER_VIRTUALIZATION | s::VIRTUAL_INTERRUPT_DELIVERY;
    *t.get_mut(&msr::PROCBASED_CTLS2).unwrap() |= u64::from(more) << 32;
    let caps = negotiate(&t).unwrap();
    assert!(caps.apicv());
    let b = Bench::with(&caps);
    b.load();
    b
}

/// Each kind has its controls, its MSR bitmap and posted interrupts; only a change of the kind writes them.
#[test]
fn kinds() {
    const BOTH: u32 = s::APIC_REGISTER_VIRTUALIZATION | s::VIRTUAL_INTERRUPT_DELIVERY;
    let mut b = apicv();
    assert!(b.v.virtualizes_apic() && b.v.apic_page().is_some());
    for (kind, controls, posted, bitmap) in [
        (ApicKind::Software, s::VIRTUALIZE_APIC_ACCESSES, false, 0x10_0000),
        (ApicKind::XApic, BOTH | s::VIRTUALIZE_APIC_ACCESSES, true, 0x10_0000),
        (ApicKind::X2Apic, BOTH | s::VIRTUALIZE_X2APIC, true, 0x10_1000),
        (ApicKind::X2ApicOff, BOTH | s::VIRTUALIZE_X2APIC, true, 0x10_2000),
    ] {
        b.v.set_apic(kind);
        b.run(10, 0);
        assert_eq!(b.cpu.field(f::SECONDARY_CONTROLS) & SECONDARY, controls, "{kind:?}");
        assert_eq!(b.cpu.field(f::PIN_CONTROLS) & pin::POSTED_INTERRUPTS != 0, posted, "{kind:?}");
        assert_eq!(b.cpu.field(f::MSR_BITMAPS), bitmap, "{kind:?}");
    }
    b.cpu.clear_logs();
    b.run(10, 0);
    assert!(!b.cpu.wrote(f::PIN_CONTROLS) && !b.cpu.wrote(f::SECONDARY_CONTROLS));
    b.v.set_opened(Opened::SPEC_CTRL);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::MSR_BITMAPS), 0x10_9000, "the set's own bitmaps");
    assert!(!b.cpu.wrote(f::GUEST_INTERRUPT_STATUS) && !b.cpu.wrote(f::EOI_EXIT_BITMAP_0));
    b.cpu.clear_logs();
    b.v.set_opened(Opened::SPEC_CTRL);
    b.run(10, 0);
    assert!(!b.cpu.wrote(f::MSR_BITMAPS), "nothing changed");
}

/// One that sends IPIs too.
fn ipiv() -> Bench {
    let mut t = skylake();
    let more = s::APIC_REGISTER_VIRTUALIZATION | s::VIRTUAL_INTERRUPT_DELIVERY;
    *t.get_mut(&msr::PROCBASED_CTLS2).unwrap() |= u64::from(more) << 32;
    *t.get_mut(&msr::TRUE_PROCBASED_CTLS).unwrap() |= u64::from(primary::TERTIARY) << 32;
    t.insert(msr::PROCBASED_CTLS3, tertiary::IPI_VIRTUALIZATION);
    let b = Bench::with(&negotiate(&t).unwrap());
    b.load();
    b
}

/// The table is told once; the control and the open ICR come and go with the kind.
#[test]
fn ipi_virtualization() {
    let mut b = ipiv();
    assert!(b.v.posts_ipis());
    for (kind, control, bitmap) in [
        (ApicKind::X2Apic, 0, 0x10_1000),
        (ApicKind::X2ApicIpis, tertiary::IPI_VIRTUALIZATION, 0x10_5000),
        (ApicKind::X2ApicRaw, 0, 0x10_5000),
        (ApicKind::X2ApicOff, 0, 0x10_2000),
        (ApicKind::XApic, 0, 0x10_0000),
        (ApicKind::Software, 0, 0x10_0000),
    ] {
        b.v.set_apic(kind);
        b.run(10, 0);
        assert_eq!(b.cpu.field(f::TERTIARY_CONTROLS), control, "{kind:?}");
        assert_eq!(b.cpu.field(f::MSR_BITMAPS), bitmap, "{kind:?}");
        assert_ne!(b.cpu.field(f::PRIMARY_CONTROLS) & primary::TERTIARY, 0, "{kind:?}");
    }
    assert_eq!((b.cpu.field(f::PID_POINTER_TABLE), b.cpu.field(f::LAST_PID_POINTER_INDEX)), (0xb000, 0x1ff));
    let mut b = apicv();
    b.v.set_apic(ApicKind::X2Apic);
    b.run(10, 0);
    assert!(!b.v.posts_ipis() && !b.cpu.wrote(f::TERTIARY_CONTROLS) && !b.cpu.wrote(f::PID_POINTER_TABLE));
    assert_eq!(b.cpu.field(f::PRIMARY_CONTROLS) & primary::TERTIARY, 0);
}

/// The register of tertiary controls is read only where it is, and IPIs are sent only where all else is virtualised too.
#[test]
fn ipi_virtualization_is_asked_for() {
    let with = |secondary: u32, wish: bool| {
        let mut t = skylake();
        *t.get_mut(&msr::PROCBASED_CTLS2).unwrap() |= u64::from(secondary) << 32;
        *t.get_mut(&msr::TRUE_PROCBASED_CTLS).unwrap() |= u64::from(primary::TERTIARY) << 32;
        t.insert(msr::PROCBASED_CTLS3, tertiary::IPI_VIRTUALIZATION);
        let wish = Wish { ipiv: wish, ..negotiate(&t).unwrap().wish() };
        Caps::negotiate(cpuid(0x50654), |n| t[&n], wish).unwrap().ipiv()
    };
    let more = s::APIC_REGISTER_VIRTUALIZATION | s::VIRTUAL_INTERRUPT_DELIVERY;
    assert_eq!([with(more, true), with(more, false), with(0, true)], [true, false, false]);
}

/// Only the write of the ICR, among the writes that the others let exit.
#[test]
fn an_open_icr() {
    let mut plain = vec![0xff; SIZE];
    open_x2apic(&mut plain);
    let mut map = plain.clone();
    open_icr(&mut map);
    let changed: Vec<_> = (0..SIZE).filter(|i| map[*i] != plain[*i]).collect();
    assert_eq!(changed, [0x800 + 0x830 / 8]);
    assert_eq!(map[changed[0]] ^ plain[changed[0]], 1);
}

/// The first entry finds every field that the CPU will look at; a CPU without APICv has none of them.
#[test]
fn fields_of_a_fresh_vmcs() {
    let mut b = apicv();
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::POSTED_INTERRUPT_VECTOR), 0xf2);
    assert_eq!(b.cpu.field(f::POSTED_INTERRUPT_DESCRIPTOR), 0x7040);
    assert_eq!(b.cpu.field(f::APIC_ACCESS_ADDRESS), 0x8000);
    assert!(b.cpu.wrote(f::GUEST_INTERRUPT_STATUS) && b.cpu.wrote(f::EOI_EXIT_BITMAP_3));
    let mut b = Bench::new();
    assert!(!b.v.virtualizes_apic());
    b.v.set_apic(ApicKind::Software);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::SECONDARY_CONTROLS) & SECONDARY, 0);
    assert!(!b.cpu.wrote(f::GUEST_INTERRUPT_STATUS) && !b.cpu.wrote(f::EOI_EXIT_BITMAP_0));
    assert!(!b.cpu.wrote(f::POSTED_INTERRUPT_VECTOR) && !b.cpu.wrote(f::APIC_ACCESS_ADDRESS));
}

/// RVI in the lower byte, SVI in the upper; what is not written yet is read from memory, and then from where the CPU keeps it.
#[test]
fn interrupt_status() {
    let mut b = apicv();
    b.run(10, 0);
    let status = |requesting, servicing| InterruptStatus { requesting, servicing };
    b.v.set_interrupt_status(status(0x31, 0x52));
    assert_eq!(b.v.interrupt_status(), status(0x31, 0x52));
    b.cpu.clear_logs();
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::GUEST_INTERRUPT_STATUS), 0x5231);
    assert!(!b.cpu.wrote(f::PIN_CONTROLS) && !b.cpu.wrote(f::EOI_EXIT_BITMAP_0));
    b.cpu.store(f::GUEST_INTERRUPT_STATUS, 0x6142);
    assert_eq!(b.v.interrupt_status(), status(0x42, 0x61));
    b.cpu.clear_logs();
    b.run(10, 0);
    assert!(!b.cpu.wrote(f::GUEST_INTERRUPT_STATUS), "the CPU keeps it");
}

/// An EOI with nothing in service is one of vector 0: no exit for it. Only a change is written.
#[test]
fn eoi_exits() {
    let mut b = apicv();
    b.run(10, 0);
    let bitmaps = [f::EOI_EXIT_BITMAP_0, f::EOI_EXIT_BITMAP_1, f::EOI_EXIT_BITMAP_2, f::EOI_EXIT_BITMAP_3];
    b.v.set_eoi_exits([!0, 5, 0, 1 << 63]);
    b.run(10, 0);
    assert_eq!(bitmaps.map(|field| b.cpu.field(field)), [!0xffff, 5, 0, 1 << 63]);
    b.cpu.clear_logs();
    b.v.set_eoi_exits([!0, 5, 0, 1 << 63]);
    b.run(10, 0);
    assert!(!b.cpu.wrote(f::EOI_EXIT_BITMAP_0));
    b.v.set_eoi_exits([0; 4]);
    b.run(10, 0);
    assert_eq!(bitmaps.map(|field| b.cpu.field(field)), [0; 4]);
}

/// The count is what is left until the moment, at each entry anew; disarmed, the largest count is written once.
#[test]
fn preemption_timer() {
    let mut b = Bench::new();
    assert!(b.v.has_timer() && b.v.set_timer(None));
    b.run(10, 0);
    let on = |b: &Bench| b.cpu.field(f::PIN_CONTROLS) & pin::PREEMPTION_TIMER != 0;
    assert!(!on(&b) && !b.cpu.wrote(f::PREEMPTION_TIMER_VALUE));
    // This CPU's timer steps once in 128 ticks.
    b.cpu.tsc.set(0x1000);
    assert!(b.v.set_timer(Some(0x1000 + 10 * 128)));
    b.run(10, 0);
    assert!(on(&b));
    assert_eq!(b.cpu.field(f::PREEMPTION_TIMER_VALUE), 10);
    b.cpu.tsc.set(0x1000 + 4 * 128);
    b.cpu.clear_logs();
    b.v.set_timer(Some(0x1000 + 10 * 128));
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::PREEMPTION_TIMER_VALUE), 6);
    assert!(!b.cpu.wrote(f::PIN_CONTROLS));
    for _ in 0..2 {
        b.cpu.clear_logs();
        b.v.set_timer(Some(u64::MAX));
        b.run(10, 0);
        assert!(b.cpu.wrote(f::PREEMPTION_TIMER_VALUE), "too far is not never");
        assert_eq!(b.cpu.field(f::PREEMPTION_TIMER_VALUE), u32::MAX);
    }
    b.cpu.store(f::PREEMPTION_TIMER_VALUE, 0);
    b.v.set_timer(None);
    b.run(10, 0);
    assert!(on(&b), "it stays on");
    assert_eq!(b.cpu.field(f::PREEMPTION_TIMER_VALUE), u32::MAX);
    b.cpu.clear_logs();
    b.v.set_timer(None);
    b.run(10, 0);
    assert!(!b.cpu.wrote(f::PREEMPTION_TIMER_VALUE));
    let mut t = skylake();
    *t.get_mut(&msr::TRUE_PINBASED_CTLS).unwrap() &= !(u64::from(pin::PREEMPTION_TIMER) << 32);
    let mut b = Bench::with(&negotiate(&t).unwrap());
    b.load();
    assert!(!b.v.has_timer() && !b.v.set_timer(Some(1)));
    b.run(10, 0);
    assert!(!on(&b) && !b.cpu.wrote(f::PREEMPTION_TIMER_VALUE));
}

/// MSRs below 0x2000 whose reads and writes do not exit.
fn opened(map: &[u8]) -> [Vec<u32>; 2] {
    let free = |msr: u32, at: usize| map[at + msr as usize / 8] & 1 << (msr % 8) == 0;
    [0, 0x800].map(|at| (0..0x2000).filter(|&msr| free(msr, at)).collect())
}

/// What the CPU reads from the page or writes by itself; the rest of the x2APIC exits. Software-disabled, so do self-IPIs.
#[test]
fn x2apic_bitmap() {
    let mut map = vec![0xff; SIZE];
    open_x2apic(&mut map);
    let single = [0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f];
    let reads = single.into_iter().chain(0x810..=0x828).chain(0x832..=0x838).chain([0x83e]);
    assert_eq!(opened(&map), [reads.clone().collect(), vec![0x808, 0x80b, 0x83f]]);
    assert!(map[0x400..0x800].iter().chain(&map[0xc00..]).all(|b| *b == 0xff));
    close_self_ipi(&mut map);
    assert_eq!(opened(&map), [reads.collect(), vec![0x808, 0x80b]]);
}

/// A guest that uses SPEC_CTRL reads and writes it; the two commands are only written, the C-states' residencies only read.
#[test]
fn opened_bitmap() {
    for set in Opened::all() {
        let mut map = vec![0xff; SIZE];
        open(&mut map, set);
        let has = |one: Opened, msr: u32| set.has(one).then_some(msr);
        let spec_ctrl: Vec<u32> = has(Opened::SPEC_CTRL, 0x48).into_iter().collect();
        let commands = has(Opened::PRED_CMD, 0x49).into_iter().chain(has(Opened::FLUSH_CMD, 0x10b));
        let cstates: &[u32] = if set.has(Opened::CSTATES) { &[0x3fc, 0x3fd, 0x3fe, 0x660] } else { &[] };
        let reads: Vec<u32> = spec_ctrl.iter().chain(cstates).copied().collect();
        assert_eq!(opened(&map), [reads, spec_ctrl.into_iter().chain(commands).collect()]);
    }
}

/// The exit acknowledges an interrupt where it says so.
#[test]
fn acknowledged_interrupts() {
    let mut b = apicv();
    for (info, vector) in [(0x8000_0031, 0x31), (0x31, 0)] {
        b.cpu.next(move |cpu, run| {
            cpu.store(f::EXIT_INTERRUPTION_INFO, info);
            run.reason = 1;
            switched::EXIT
        });
        assert_eq!(b.enter(false), Exit::ExternalInterrupt);
        assert_eq!(b.v.acknowledged, vector);
        b.v.end();
        assert_eq!(b.v.acknowledged, 0);
    }
}
