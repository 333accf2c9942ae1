//! Paravirtual features: PV EOI, kvmclock, wall clock, steal time.

use crate::fake::cpu::PV_EOI_FLAG;
use crate::fake::guest::*;
use crate::fake::{Env, Machine, Op};
use exitless_vcpu::backend::Event;
use exitless_vcpu::{Request, RunExit};

fn irq(v: u8) -> Op {
    Op::World(Env::Irq(v))
}

/// One edge-triggered interrupt alone: the EOI is waived, and nothing exits for it.
#[test]
fn eoi_waived() {
    let mut m = Machine::new([irq(0x41), Op::Nop, Op::Nop]);
    m.enable_pv_eoi();
    m.go();
    assert_eq!(m.events(), [Event::Interrupt(0x41)]);
    assert_eq!(m.sh.stats.insn_emulation.get(), 0, "no write to the APIC's page");
    assert_eq!(m.v.lapic.top_isr(), None, "collected before user space can look");
    m.then([irq(0x31), Op::Nop, Op::Nop]);
    assert_eq!(m.events(), [Event::Interrupt(0x31)]);
}

/// Another vector waits below: its turn must come, so the EOI is not waived.
#[test]
fn eoi_not_waived_when_another_waits() {
    let mut m = Machine::new([Op::Cli, irq(0x41), irq(0x91), Op::Sti, Op::Nop, Op::Nop]);
    m.enable_pv_eoi();
    m.go();
    assert_eq!(m.events(), [Event::Interrupt(0x91), Event::Interrupt(0x41)]);
    assert_eq!(m.sh.stats.insn_emulation.get(), 1);
}

/// The waiver is withdrawn when another vector arrives during the handler.
#[test]
fn waiver_withdrawn() {
    let mut m = Machine::new([irq(0x41), Op::Nop, Op::Nop]);
    m.enable_pv_eoi();
    m.v.b.handlers = false;
    m.v.b.ops.clear();
    m.v.b.ops.extend([irq(0x41), irq(0x31), Op::PvEoi, Op::Iret, Op::Nop, Op::PvEoi, Op::Iret, Op::Nop]);
    m.go();
    assert_eq!(m.events(), [Event::Interrupt(0x41), Event::Interrupt(0x31)]);
    assert!(m.w.isr.borrow().is_empty());
}

/// A chip listens to the vector's EOI (interrupt shared by level, resampling irqfd): never waived.
#[test]
fn eoi_that_a_chip_wants() {
    let mut m = Machine::new([irq(0x41), Op::Nop]);
    m.enable_pv_eoi();
    m.w.wanted_eoi.set(Some(0x41));
    m.go();
    assert_eq!(*m.w.eois.borrow(), [(0x41, false)]);
}

/// The guest uses the waiver and then turns the feature off: the EOI it gave counts.
#[test]
fn waiver_used_then_off() {
    let mut m =
        Machine::new([irq(0x41), Op::PvEoi, wrmsr(0x4b56_4d04, 0), Op::Iret, irq(0x31), Op::Nop, Op::Nop]);
    m.enable_pv_eoi();
    m.v.b.handlers = false;
    m.go();
    assert_eq!(m.events(), [Event::Interrupt(0x41), Event::Interrupt(0x31)], "0x41 does not hold 0x31 back");
    assert_eq!(m.v.lapic.top_isr(), Some(0x31));
}

/// At an exit to user space nothing is on offer: KVM_GET_LAPIC tells the whole truth, and a copy of this machine elsewhere
/// gets its EOI.
#[test]
fn nothing_on_offer_outside() {
    let mut m = Machine::new([irq(0x41), input(0x80, 1), Op::PvEoi, Op::Iret, Op::Nop]);
    m.enable_pv_eoi();
    m.v.b.handlers = false;
    let exit = m.run();
    assert!(matches!(exit, RunExit::Io { .. }));
    assert_eq!(m.w.u32_at(PV_EOI_FLAG) & 1, 0);
    assert_eq!(m.v.lapic.top_isr(), Some(0x41));
    // The other machine knows the registers and MSRs only.
    m.v.pv.eoi_offered = false;
    m.answer(exit);
    m.go();
    assert_eq!(m.v.lapic.top_isr(), None);
}

/// A PV EOI word that is not memory costs nothing but the feature.
#[test]
fn eoi_word_nowhere() {
    let mut m = Machine::new([irq(0x41), Op::Nop]);
    m.v.pv.eoi = 0xfff_ffff_f001;
    m.go();
    assert_eq!(m.events(), [Event::Interrupt(0x41)]);
    assert!(m.w.isr.borrow().is_empty());
}

/// kvmclock: the page is written with an even version that grows by two, and names the guest's TSC of the pair.
#[test]
fn clock_page() {
    let mut m = Machine::new([wrmsr(0x4b56_4d01, 0x4_0001), Op::Nop]);
    m.v.tsc_offset = 5;
    m.go();
    let at = 0x4_0000;
    assert_eq!(m.w.u32_at(at), 2);
    assert_eq!((m.w.u32_at(at + 8), m.w.u32_at(at + 16)), (1005, 500));
    assert_eq!((m.w.u32_at(at + 24), m.w.u32_at(at + 28)), (0x8000_0000, 1 << 8));
    m.v.pv.stopped = true;
    m.happen(Env::Ask(Request::CLOCK));
    m.then([Op::Nop]);
    assert_eq!((m.w.u32_at(at), m.w.u32_at(at + 28)), (4, 3 << 8), "told once that it was stopped");
    m.happen(Env::Ask(Request::CLOCK));
    m.then([Op::Nop]);
    assert_eq!((m.w.u32_at(at), m.w.u32_at(at + 28)), (6, 1 << 8));
    m.then([wrmsr(0x4b56_4d01, 0), Op::Nop]);
    m.happen(Env::Ask(Request::CLOCK));
    m.then([Op::Nop]);
    assert_eq!(m.w.u32_at(at), 6, "switched off");
}

/// Replays the host's writes to the structure of `len` bytes at `at`, whose version lies at `version`: whoever reads it on
/// another CPU between two of them, or stopped in the middle of one, finds an odd version or a whole structure.
fn sequence_lock(m: &Machine, at: u64, len: usize, version: usize) {
    let mut now = vec![0; len];
    let (mut whole, mut writes) = (now.clone(), 0);
    for (gpa, data) in m.w.written.take() {
        let Some(from) = gpa.checked_sub(at).map(|f| f as usize).filter(|f| f + data.len() <= len) else {
            continue;
        };
        let old = now.clone();
        now[from..from + data.len()].copy_from_slice(&data);
        let odd = |s: &[u8]| s[version] & 1 != 0;
        let rest = |s: &[u8]| [&s[..version], &s[version + 4..]].concat();
        // A write that changes more than the version, and one word of at most 8 bytes, needs an odd version before it.
        let words = old.chunks(8).zip(now.chunks(8)).filter(|(a, b)| a != b).count();
        assert!(odd(&old) || rest(&old) == rest(&now) || words <= 2 && odd(&now), "{old:x?} -> {now:x?}");
        if !odd(&now) {
            assert!(rest(&old) == rest(&now) && odd(&old), "the even version comes last and alone");
            whole = now.clone();
        }
        writes += 1;
    }
    assert!(writes > 1 && whole == now, "it ends even");
}

/// Readers on other CPUs never see half an update: kvmclock, wall clock, steal time.
#[test]
fn updates_under_a_sequence_lock() {
    let mut m = Machine::new([
        wrmsr(0x4b56_4d01, 0x4_0001),
        wrmsr(0x4b56_4d00, 0x4_2000),
        wrmsr(0x4b56_4d03, 0x4_1001),
    ]);
    m.go();
    m.v.pv.stopped = true;
    m.w.run_delay.set(7777);
    m.happen(Env::Ask(Request::CLOCK));
    m.happen(Env::Ask(Request::STEAL));
    m.then([Op::Nop, wrmsr(0x4b56_4d00, 0x4_2000), Op::Nop]);
    let written = m.w.written.borrow().clone();
    for (at, len, version) in [(0x4_0000, 32, 0), (0x4_2000, 12, 0), (0x4_1000, 64, 8)] {
        *m.w.written.borrow_mut() = written.clone();
        sequence_lock(&m, at, len, version);
    }
}

/// The wall clock of guest time zero: seconds and nanoseconds, an even version.
#[test]
fn wall_clock() {
    let mut m = Machine::new([wrmsr(0x4b56_4d00, 0x4_2000), Op::Nop]);
    m.go();
    assert_eq!([0, 4, 8].map(|i| m.w.u32_at(0x4_2000 + i)), [2, 1_700_000_000, 123_456_789]);
}

/// Steal time: what the thread waited since the guest asked, added up; the version stays even; the guest's own fields stay.
#[test]
fn steal_time() {
    let mut m = Machine::new([]);
    m.w.run_delay.set(1000);
    m.w.write_ram(0x4_1000, &[0; 64]);
    m.w.write_ram(0x4_1020, &[0xee; 4]);
    m.then([wrmsr(0x4b56_4d03, 0x4_1001), Op::Nop]);
    assert_eq!(m.w.u32_at(0x4_1000), 0);
    m.w.run_delay.set(1500);
    m.happen(Env::Move(1));
    m.then([Op::Nop]);
    assert_eq!((m.w.u32_at(0x4_1000), m.w.u32_at(0x4_1008) % 2), (500, 0));
    m.happen(Env::Ask(Request::STEAL));
    m.then([Op::Nop]);
    assert_eq!((m.w.u32_at(0x4_1000), m.w.u32_at(0x4_1020)), (500, 0xeeee_eeee));
}
