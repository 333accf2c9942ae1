//! Paravirtual features: PV EOI, kvmclock, wall clock, steal time.

use crate::fake::cpu::PV_EOI_FLAG;
use crate::fake::guest::*;
use crate::fake::world::TICKS;
use crate::fake::{Env, Machine, Op};
use exitless_vcpu::backend::Event;
use exitless_vcpu::clock::tsc::{Rate, Scaling};
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
    assert_eq!((m.w.u32_at(at), m.w.u32_at(at + 28)), (4, 3 << 8), "told that it was stopped");
    m.happen(Env::Ask(Request::CLOCK));
    m.then([Op::Nop]);
    assert_eq!((m.w.u32_at(at), m.w.u32_at(at + 28)), (6, 3 << 8), "it has not seen that yet");
    m.w.write_ram(at + 29, &[1]);
    m.happen(Env::Ask(Request::CLOCK));
    m.then([Op::Nop]);
    assert_eq!((m.w.u32_at(at), m.w.u32_at(at + 28)), (8, 1 << 8), "it has, and is told once");
    m.then([wrmsr(0x4b56_4d01, 0), Op::Nop]);
    m.happen(Env::Ask(Request::CLOCK));
    m.then([Op::Nop]);
    assert_eq!(m.w.u32_at(at), 8, "switched off");
}

/// The host was suspended: who has a clock page is told, who has none is not told later.
#[test]
fn stopped_with_the_host() {
    let mut m = Machine::new([]);
    let stopped = |m: &Machine| {
        m.happen(Env::Ask(Request::STOPPED));
        m.happen(Env::Ask(Request::CLOCK));
    };
    stopped(&m);
    m.then([wrmsr(0x4b56_4d01, 0x4_0001), Op::Nop]);
    assert_eq!(m.w.u32_at(0x4_001c), 1 << 8);
    stopped(&m);
    m.then([Op::Nop]);
    assert_eq!(m.w.u32_at(0x4_001c), 3 << 8);
}

/// TSCs of the host that differ: the pages do not agree, and say so.
#[test]
fn clock_page_without_a_steady_tsc() {
    let mut m = Machine::new([wrmsr(0x4b56_4d01, 0x4_0001), Op::Nop]);
    m.w.unsteady.set(true);
    m.go();
    assert_eq!(m.w.u32_at(0x4_001c), 0);
}

/// A page whose version the guest left odd, as memory behind power-up may hold.
#[test]
fn clock_page_in_random_memory() {
    let mut m = Machine::new([wrmsr(0x4b56_4d01, 0x4_0001), Op::Nop]);
    m.w.write_ram(0x4_0000, &[0xff; 32]);
    m.go();
    assert_eq!(m.w.u32_at(0x4_0000) & 1, 0);
}

/// Each change of the TSC's offset is told to the VM, whoever makes it: others compare theirs.
#[test]
fn tsc_offsets_are_told() {
    let mut m = Machine::new([wrmsr(0x10, 1 << 40), Op::Nop]);
    m.go();
    let one = 1 << 48;
    assert_eq!(m.w.tscs.take(), [(one, m.v.tsc_offset)]);
    m.then([wrmsr(0x3b, 5), Op::Nop]);
    assert_eq!(m.w.tscs.take(), [(one, m.v.tsc_offset)]);
    m.user_msr(0x10, 77);
    assert_eq!(m.w.tscs.take(), [(one, m.v.tsc_offset)]);
}

/// The host's TSC fell back, or this CPU's is behind or before the last one's: the guest's goes on, at its rate, with its page and
/// its deadline.
#[test]
fn the_hosts_tsc_jumps() {
    let host = (TICKS * 1_000_000) as u32;
    for (khz, jump, moved) in
        [(host, 1000, 1000), (host, -70, -70), (host * 2, 1000, 2000), (host / 2, -1000, -500)]
    {
        let mut m =
            Machine::virtual_apic(false, [wrmsr(0x4b56_4d01, 0x4_0001), Op::Deadline(50_000), Op::Nop]);
        m.v.set_tsc_rate(&m.sh, Rate::asked(khz, host, Some(Scaling::VMX)).unwrap(), Some(Scaling::VMX));
        m.go();
        let (offset, version) = (m.v.tsc_offset, m.w.u32_at(0x4_0000));
        let armed = m.w.cpu_timer.get().unwrap();
        m.w.jump.set(jump);
        m.happen(Env::Ask(Request::TSC));
        m.then([Op::Nop]);
        assert_eq!(m.v.tsc_offset.wrapping_sub(offset) as i64, moved);
        assert_eq!(m.v.b.tsc_offset, m.v.tsc_offset);
        assert_eq!(m.w.tscs.take(), [m.sh.tsc.get()]);
        assert!(m.w.u32_at(0x4_0000) > version, "the page");
        let shift = armed.wrapping_sub(m.w.cpu_timer.get().unwrap()) as i64;
        assert!(shift.abs_diff(jump) < 100, "the deadline moved by {shift} for {jump}");
    }
}

/// vCPUs over two suspends of the host in which its TSC fell back: one that ran between them agrees with one that did not, at rates
/// that cut ticks off too.
#[test]
fn two_suspends() {
    let host = (TICKS * 1_000_000) as u32;
    for khz in [host, host / 2, host / 7 * 3] {
        let after = |between: bool| {
            let mut m = Machine::new([Op::Nop]);
            m.v.set_tsc_rate(&m.sh, Rate::asked(khz, host, Some(Scaling::VMX)).unwrap(), Some(Scaling::VMX));
            m.go();
            let offset = m.v.tsc_offset;
            for (back, runs) in [(1001, between), (2003, true)] {
                m.sh.tsc.host_back(back);
                if runs {
                    assert!(m.sh.tsc.owes());
                    m.happen(Env::Ask(Request::TSC));
                    m.then([Op::Nop]);
                    assert!(!m.sh.tsc.owes());
                    assert_eq!(m.sh.tsc.get().1, m.v.tsc_offset, "as others were told");
                }
            }
            m.v.tsc_offset.wrapping_sub(offset)
        };
        assert_eq!(after(true), after(false), "{khz} kHz");
    }
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
