//! Paravirtual features: PV EOI, kvmclock, wall clock, steal time.

use crate::fake::cpu::PV_EOI_FLAG;
use crate::fake::guest::*;
use crate::fake::world::{TICKS, USER_MMIO};
use crate::fake::{Env, Machine, Op};
use core::sync::atomic::Ordering::Relaxed;
use exitless_vcpu::backend::{Backend, Event};
use exitless_vcpu::chooser::Mechanism::{Boost, HaltPollGuest, PvTlbFlush};
use exitless_vcpu::chooser::Set;
use exitless_vcpu::clock::tsc::{Rate, Scaling};
use exitless_vcpu::shared::mp;
use exitless_vcpu::{Request, RunExit};
use exitless_x86::apic::DeliveryMode;
use exitless_x86::exception::Exception;
use exitless_x86::regs::{Gpr, SegReg, Segment, efer};

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

const SEND_IPI: u64 = 10;
const KICK_CPU: u64 = 5;
const SCHED_YIELD: u64 = 11;

/// A machine in long mode, in 64-bit or 32-bit code; hypercalls may be answered in the slice.
fn in_long_mode(wide: bool, ops: impl IntoIterator<Item = Op>) -> Machine {
    let mut m = Machine::new(ops);
    m.v.b.efer |= efer::LMA;
    if wide {
        let cs = m.v.b.segment(SegReg::Cs);
        m.v.b.set_segment(SegReg::Cs, &Segment { attrib: cs.attrib & !Segment::DB | Segment::L, ..cs });
    }
    m
}

fn answer(m: &Machine) -> i64 {
    m.v.b.gprs.get(Gpr::Rax) as i64
}

/// KVM_HC_SEND_IPI: bits of two words name APIC ids from the lowest on; those that are there count. Few are sent to in the slice.
#[test]
fn ipis_by_hypercall() {
    let sent = |m: &Machine| m.w.ipis.borrow().iter().map(|i| (i.destination, i.vector)).collect::<Vec<_>>();
    let mut m = in_long_mode(true, [hypercall_with(SEND_IPI, [0b101, 0b10, 97, 0xfd]), Op::Cli]);
    m.go();
    assert_eq!(sent(&m), [(97, 0xfd), (99, 0xfd), (97 + 65, 0xfd)]);
    assert_eq!((answer(&m), m.sh.stats.fast.get()), (2, 1), "id 162 is nobody's");
    let mut m =
        in_long_mode(false, [hypercall_with(SEND_IPI, [0xff_0000_0001, 1, 0xff_0000_0000, 0x4fd]), Op::Cli]);
    m.go();
    assert_eq!(sent(&m), [(0, 0xfd), (32, 0xfd)], "words of 32 bits");
    assert!(m.w.ipis.borrow().iter().all(|i| i.mode == DeliveryMode::NMI && !i.logical && !i.level));
    let mut m =
        in_long_mode(true, [hypercall_with(SEND_IPI, [!0, !0, u64::from(u32::MAX) - 63, 0xfd]), Op::Cli]);
    m.go();
    assert_eq!(
        (sent(&m).len(), m.sh.stats.fast.get()),
        (64, 0),
        "no id behind the last; many are sent to with interrupts on"
    );
    for icr in [1 << 11, 1 << 18, 2 << 18, 3 << 18] {
        let mut m = in_long_mode(true, [hypercall_with(SEND_IPI, [1, 0, 0, icr | 0xfd]), Op::Cli]);
        m.go();
        assert_eq!((sent(&m), answer(&m)), (vec![], -22), "a destination of its own makes no sense");
    }
}

/// KVM_HC_KICK_CPU ends a halt, and who was kicked may run in our place: not where nobody else wants the CPU. KVM_HC_SCHED_YIELD likewise.
#[test]
fn kick_and_yield() {
    for (alone, yields) in [(true, vec![]), (false, vec![4, 6])] {
        let calls =
            [hypercall_with(KICK_CPU, [0, 4, 0, 0]), hypercall_with(SCHED_YIELD, [6, 0, 0, 0]), Op::Cli];
        let mut m = in_long_mode(true, calls);
        m.w.alone.set(alone);
        m.go();
        assert_eq!((&*m.w.unhalted.borrow(), &*m.w.yields.borrow()), (&vec![4], &yields));
        assert_eq!((answer(&m), m.sh.stats.fast.get()), (0, if alone { 2 } else { 0 }));
    }
}

/// User space has the APICs: who has which id is its business, and a kick that nobody takes must not keep HLT from it for ever.
#[test]
fn hypercalls_without_apics() {
    for (n, want) in [(SEND_IPI, -95), (KICK_CPU, 0)] {
        let mut m = Machine::without_irqchip([hypercall_with(n, [1, 0, 0, 0xfd]), Op::Cli]);
        m.v.b.efer |= efer::LMA;
        m.go();
        assert_eq!(i64::from(answer(&m) as i32), want);
        assert!(m.w.ipis.borrow().is_empty() && m.w.unhalted.borrow().is_empty());
    }
}

/// What the guest's CPUID does not show is unknown, and in user mode there is nothing at all.
#[test]
fn hypercalls_by_feature() {
    for (n, bit) in [(SEND_IPI, 11), (KICK_CPU, 7), (SCHED_YIELD, 13)] {
        let call = || [hypercall_with(n, [1, 0, 0, 0xfd]), Op::Cli];
        let untouched = |m: &Machine| {
            assert!(
                m.w.ipis.borrow().is_empty()
                    && m.w.unhalted.borrow().is_empty()
                    && m.w.yields.borrow().is_empty()
            );
        };
        let mut m = in_long_mode(true, call());
        m.w.alone.set(false);
        m.set_cpuid_with(|e| {
            if e.function == 0x4000_0001 {
                e.eax &= !(1 << bit);
            }
        });
        m.go();
        assert_eq!(answer(&m), -1000);
        untouched(&m);
        let mut m = in_long_mode(true, call());
        m.set_cpl(3);
        m.go();
        assert_eq!(answer(&m), -1);
        untouched(&m);
    }
}

/// A sibling ends the halt, with interrupts off too: once. Before the halt it ends the next one. What runs for another reason keeps
/// nothing of it.
#[test]
fn halt_ended_by_a_sibling() {
    let unhalt = || Op::World(Env::Unhalt);
    let mut m = Machine::new([Op::Cli, unhalt(), hlt(), Op::Nop, hlt(), Op::Nop]);
    m.go();
    assert_eq!(
        (m.v.mp_state, m.sh.stats.halt_wakeup.get(), m.v.b.ops.len()),
        (mp::HALTED, 1, 1),
        "asleep in the second"
    );
    m.w.happen(Env::Unhalt);
    m.go();
    assert_eq!((m.sh.stats.halt_wakeup.get(), m.v.b.ops.len()), (2, 0));
    assert!(!m.sh.unhalted.load(Relaxed));
}

const STEAL: u64 = 0x4_1000;
/// Where siblings look.
const PREEMPTED: usize = STEAL as usize + 16;

/// A guest with steal time.
fn stealing(ops: impl IntoIterator<Item = Op>) -> Machine {
    let mut m = Machine::new([]);
    m.w.write_ram(STEAL, &[0; 64]);
    m.then([wrmsr(0x4b56_4d03, STEAL | 1), Op::Nop]);
    m.v.b.ops.extend(ops);
    m
}

fn flush_hits(m: &Machine) -> u64 {
    m.sh.stats.deeds(PvTlbFlush).hits.get()
}

/// A vCPU that lost its CPU at a host's interrupt is told to be preempted; before the guest runs again that is taken back, whoever
/// changed it meanwhile, and a flush that was left to it is done. The fakes ask the same at every entry.
#[test]
fn a_flush_left_to_a_preempted_vcpu() {
    for (byte, flushes) in [(1, 0), (3, 1)] {
        let mut m = stealing([]);
        let before = m.v.b.flushes;
        m.then([Op::World(Env::Preempt(byte)), Op::World(Env::Work), Op::Nop, Op::Nop]);
        assert_eq!(m.w.told.get(), Some((PREEMPTED as u64, m.sh.stats.exits.get() - 1)));
        assert_eq!(m.w.ram.borrow()[PREEMPTED], 0);
        assert_eq!((m.v.b.flushes - before, flush_hits(&m)), (flushes, u64::from(flushes)));
    }
}

/// Where siblings win each race for the byte the flush is done unasked.
#[test]
fn a_flush_left_in_a_race() {
    let mut m = stealing([]);
    m.w.contended.set(true);
    m.then([Op::World(Env::Preempt(1)), Op::World(Env::Work), Op::Nop, Op::Nop]);
    assert_eq!((flush_hits(&m), m.w.ram.borrow()[PREEMPTED]), (1, 0));
}

/// Within an instruction that is emulated nobody is told, but behind it; and not before the guest asks, nor when it asks no more.
#[test]
fn not_told_in_the_middle() {
    // After the last exit, with which the script ends, at an instruction boundary.
    let told = |ops: Vec<Op>| {
        let mut m = stealing([Op::World(Env::Preempt(3))].into_iter().chain(ops));
        m.go();
        m.w.told.get().map(|(_, exits)| m.sh.stats.exits.get() - exits)
    };
    let work = || Op::World(Env::Work);
    assert_eq!(told(vec![work(), Op::Nop]), Some(1));
    assert_eq!(told(vec![input(0x80, 1), Op::Nop]), Some(0), "out to user space and back");
    assert_eq!(told(vec![store(USER_MMIO, 4), Op::Nop]), Some(0), "emulated");
    assert_eq!(told(vec![hlt()]), None, "asleep of its own will");
    assert_eq!(told(vec![wrmsr(0x4b56_4d03, 0), work(), Op::Nop]), None, "steal time is off");
    let mut m = stealing([Op::World(Env::Init), Op::Nop]);
    m.go();
    m.then([Op::World(Env::Preempt(3)), work(), Op::Nop]);
    assert_eq!(m.w.told.get(), None, "whoever runs after INIT asked for nothing");
}

/// With the switch off siblings are not told, so they send IPIs; a guest that cannot leave flushes to others is told all the same.
#[test]
fn switch_of_flushes() {
    let told = |m: &mut Machine| {
        m.happen(Env::Switch(Set::ALL.put(PvTlbFlush, false).0));
        m.then([Op::Nop]);
        m.then([Op::World(Env::Preempt(1)), Op::World(Env::Work), Op::Nop]);
        m.w.told.get().is_some()
    };
    assert!(!told(&mut stealing([])));
    let mut m = stealing([]);
    m.set_cpuid_with(|e| {
        if e.function == 0x4000_0001 {
            e.eax &= !(1 << 9);
        }
    });
    assert!(told(&mut m));
}

/// MSR_KVM_POLL_CONTROL is 1 at first; 0, and the host does not wait awake before it sleeps. Only bit 0 exists.
#[test]
fn poll_control() {
    let polls = |ops: Vec<Op>, on: Set| {
        let mut m =
            Machine::new([Op::World(Env::Switch(on.0)), Op::Nop].into_iter().chain(ops).chain([hlt()]));
        m.go();
        (m.w.polls.get() != 0, m.sh.stats.deeds(HaltPollGuest).hits.get())
    };
    let control = |value| wrmsr(0x4b56_4d05, value);
    assert_eq!(polls(vec![], Set::ALL), (true, 0));
    assert_eq!(polls(vec![control(0)], Set::ALL), (false, 1));
    assert_eq!(polls(vec![control(0), control(1)], Set::ALL), (true, 0));
    assert_eq!(polls(vec![control(0)], Set::ALL.put(HaltPollGuest, false)), (true, 0));
    let mut m = Machine::new([rdmsr(0x4b56_4d05), Op::Cli]);
    m.go();
    assert_eq!(m.v.b.gprs.get(Gpr::Rax), 1);
    m.then([faulting(control(2)), Op::Cli]);
    assert_eq!(m.events(), [Event::Exception(Exception::gp(0))]);
}

/// KVM_HC_CLOCK_PAIRING: the host's wall clock and the guest's TSC of one moment; where the host does not count by its TSC, no such thing.
#[test]
fn clock_pairing() {
    let call = |at, kind| hypercall_with(9, [at, kind, 0, 0]);
    let mut m = in_long_mode(true, [call(0x4_3000, 0), Op::Cli]);
    m.w.write_ram(0x4_3000, &[0xff; 64]);
    m.go();
    let words = [0, 4, 8, 16, 20, 24].map(|i| m.w.u32_at(0x4_3000 + i));
    let tsc = m.v.guest_tsc(5000);
    assert_eq!(answer(&m), 0);
    assert_eq!(words, [1_700_000_000, 0, 123_456_789, tsc as u32, (tsc >> 32) as u32, 0]);
    assert!(m.w.ram.borrow()[0x4_3018..0x4_3040].iter().all(|&b| b == 0));
    for (unsteady, at, kind, error) in
        [(true, 0x4_3000, 0, -95), (false, 0x4_3000, 1, -95), (false, 0xf000_0000, 0, -14)]
    {
        let mut m = in_long_mode(true, [call(at, kind), Op::Cli]);
        m.w.unsteady.set(unsteady);
        m.go();
        assert_eq!(answer(&m), error);
    }
}

/// A loop of PAUSEs: somebody else may run, where somebody else wants the CPU and the switch is on.
#[test]
fn spinning() {
    for (alone, on, spins) in
        [(false, Set::ALL, 1), (true, Set::ALL, 0), (false, Set::ALL.put(Boost, false), 0)]
    {
        let mut m = Machine::new([Op::World(Env::Switch(on.0)), Op::Nop, pause(), Op::Nop]);
        m.w.alone.set(alone);
        m.go();
        assert_eq!((m.w.spins.get(), m.sh.stats.deeds(Boost).hits.get()), (spins, u64::from(spins)));
    }
}

/// Under a debugger's steps the next instruction is read before each entry, through the guest's tables: nobody is told by then.
#[test]
fn not_told_while_looking_ahead() {
    let mut m = stealing([Op::World(Env::Work), Op::Nop, Op::Nop]);
    m.v.set_guest_debug(3, [0; 8]).unwrap();
    for _ in 0..3 {
        m.run();
    }
}

/// A guest that halts without an exit is not shown PV_UNHALT: nobody would hear that it waits for a kick.
#[test]
fn no_unhalt_where_hlt_stays_in_the_guest() {
    use exitless_pv_abi::feature::PV_UNHALT;
    for hlt in [false, true] {
        let mut m = Machine::new([]);
        m.v.in_guest.hlt = hlt;
        m.set_cpuid_with(|_| {});
        assert_eq!(m.v.cpuid.caps().pv & PV_UNHALT == 0, hlt);
        let shown = m.v.cpuid.entries().iter().find(|e| e.function == 0x4000_0001).unwrap().eax;
        assert_eq!(shown & PV_UNHALT == 0, hlt);
    }
}

/// A loop of PAUSEs exits later and later until the scheduler takes the CPU away; that KVM_RUN was called anew does not count.
#[test]
fn patience() {
    let mut m = Machine::new([pause(), pause(), Op::Nop]);
    m.go();
    assert_eq!(m.v.b.spins, 2);
    m.sh.returned.store(true, Relaxed);
    m.then([pause(), Op::Nop]);
    assert_eq!(m.v.b.spins, 3);
    m.sh.returned.store(true, Relaxed);
    m.sh.rescheduled.store(true, Relaxed);
    m.then([pause(), Op::Nop]);
    assert_eq!(m.v.b.spins, 1);
}
