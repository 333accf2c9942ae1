//! Exits answered without leaving the slice: the guest, its APIC, whom IPIs reach and the counters are as with every switch off.

use crate::fake::cpu::CODE;
use crate::fake::guest::*;
use crate::fake::world::{APIC, Touch};
use crate::fake::{Env, Machine, Op};
use exitless_kvm_abi::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP};
use exitless_vcpu::backend::{Backend, Event, Exit, SlatFault};
use exitless_vcpu::chooser::{Fallback, Mechanism, Set};
use exitless_vcpu::host::{Host, PlainIpi};
use exitless_vcpu::{RunExit, timer};
use exitless_x86::apic::{DeliveryMode, InterruptMessage, Shorthand, reg};
use exitless_x86::regs::{Gpr, rflags};

/// The MSR of a register.
fn msr(at: u32) -> u32 {
    0x800 + (at >> 4)
}

fn write_apic(at: u32, value: u64) -> Op {
    wrmsr(msr(at), value)
}

/// Software has the APIC, which the guest has in x2APIC mode.
fn x2apic(ops: impl IntoIterator<Item = Op>) -> Machine {
    let mut m = Machine::new(ops);
    m.set_x2apic();
    m
}

/// What can be told of a vCPU.
#[derive(Debug, PartialEq)]
struct Seen {
    exits: Vec<RunExit>,
    events: Vec<Event>,
    ipis: Vec<InterruptMessage>,
    apic: Vec<u8>,
    registers: ([u64; 16], u64, u64, u64),
    counters: (Vec<(u32, u64)>, [u64; 5]),
}

/// A message without what nobody looks at: the level of what is no INIT, a destination beside a shorthand.
fn what_counts(m: InterruptMessage) -> InterruptMessage {
    let destination = if m.shorthand == Shorthand::None { m.destination } else { 0 };
    InterruptMessage { destination, assert: m.assert || m.mode != DeliveryMode::INIT, ..m }
}

/// Runs until the script is over, or user space has been asked for the debugger often enough.
fn seen(mut m: Machine) -> (Seen, Machine) {
    let mut exits = vec![];
    while exits.len() < 12 {
        let exit = m.go();
        exits.push(exit);
        if !matches!(exit, RunExit::Debug { .. }) {
            break;
        }
    }
    let mut apic = vec![0; 1024];
    m.v.lapic.save(&m.sh.apic, &timer::now(&m.v, m.os.now()), (&mut apic[..]).try_into().unwrap());
    let s = &m.sh.stats;
    let mut by_msr: Vec<_> = s.by_msr.rows().collect();
    by_msr.sort();
    let counters =
        [&s.exits, &s.halt_exits, &s.halt_wakeup, &s.irq_injections, &s.nmi_injections].map(|c| c.get());
    let seen = Seen {
        exits,
        events: m.events(),
        ipis: m.w.ipis.take().into_iter().map(what_counts).collect(),
        apic,
        registers: (m.v.b.gprs().0, m.v.b.rip(), m.v.b.rflags(), m.v.b.dr6()),
        counters: (by_msr, counters),
    };
    (seen, m)
}

fn tells(op: &Op) -> Op {
    match op {
        Op::Exit(_) => told(op.clone()),
        Op::Own(vector, op) => Op::Own(*vector, Box::new(tells(op))),
        other => other.clone(),
    }
}

/// The same with every mechanism and with none, on a CPU that tells the next RIP and on one that does not, plainly, under the guest's
/// own TF and under a debugger's step; the machines with every mechanism, and without TF.
fn same(make: impl Fn(Vec<Op>) -> Machine, ops: &[Op]) -> Vec<Machine> {
    let mut fast = vec![];
    for (next_rip, steps) in [(false, 0), (true, 0), (true, 1), (false, 2)] {
        let run = |wanted| {
            let mut m = make(ops.iter().map(|op| if next_rip { tells(op) } else { op.clone() }).collect());
            m.w.wanted.set(wanted);
            m.v.b.traps = steps != 0;
            match steps {
                1 => m.v.b.rflags |= rflags::TF,
                2 => m.v.set_guest_debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP, [0; 8]).unwrap(),
                _ => {}
            }
            seen(m)
        };
        let ((with, m), (without, slow)) = (run(Set::ALL), run(Set::NONE));
        assert_eq!(with, without, "{ops:x?}, next RIP {next_rip}, steps {steps}");
        assert_eq!(slow.sh.stats.fast.get(), 0, "every one of them has a switch");
        if steps == 0 {
            fast.push(m);
        }
    }
    fast
}

fn hits(m: &Machine, of: Mechanism) -> u64 {
    m.sh.stats.deeds(of).hits.get()
}

fn fallbacks(m: &Machine, of: Mechanism, why: Fallback) -> u64 {
    m.sh.stats.deeds(of).fallbacks[why as usize].get()
}

/// Values of the ICR's lower half: each delivery mode and shorthand with both destination modes, levels and trigger modes; vectors that
/// are and are not legal in turn.
fn commands() -> impl Iterator<Item = u32> {
    let modes = (0..8).map(|n| n << 8);
    let shorthands = modes.flat_map(|mode| (0..4).map(move |n| mode | n << 18));
    let bits = [0, 1 << 11, 1 << 14, 1 << 15, 3 << 14, 1 << 12];
    let all = shorthands.flat_map(move |command| bits.map(|bits| command | bits));
    all.zip([0x10, 0x51, 0x0f, 0xff, 0x52].into_iter().cycle()).map(|(command, vector)| command | vector)
}

/// The write of a command, of which the sender's own interrupt is one that the world's model must know of.
fn own(command: u32, write: Op) -> Op {
    let vector = command as u8;
    if command & 0xc_0700 == 1 << 18 && vector >= 16 { Op::Own(vector, Box::new(write)) } else { write }
}

/// Every form of the ICR in x2APIC mode, by software's APIC and by the CPU's.
#[test]
fn each_icr() {
    for virtually in [false, true] {
        for (n, command) in commands().enumerate() {
            let destination = [0, 1, 0xff, 0x1_0003, u32::MAX][n % 5];
            let value = u64::from(destination) << 32 | u64::from(command);
            let make = |ops: Vec<Op>| if virtually { Machine::virtual_apic(true, ops) } else { x2apic(ops) };
            let ops = [own(command, write_apic(reg::ICR, value)), rdmsr(msr(reg::ICR)), Op::Nop];
            let illegal = (command & 0xff) < 16 && command & 0x600 == 0;
            let [bytes, told]: [Machine; 2] = same(make, &ops).try_into().ok().unwrap();
            let quick = PlainIpi::of(value).is_some();
            for (m, quick) in [(bytes, false), (told, quick)] {
                let of = [Mechanism::IpiFastpath, Mechanism::IpiValidated].map(|of| hits(&m, of));
                assert_eq!(of, [u64::from(!illegal && !quick), u64::from(quick)], "{value:x}");
                let left = fallbacks(&m, Mechanism::IpiFastpath, Fallback::Form);
                assert_eq!(left, u64::from(illegal), "{value:x}");
            }
        }
    }
}

/// The same in the page where hardware has it: the exit comes behind the write. Delivery status reads clear.
#[test]
fn each_icr_of_the_page() {
    for (n, command) in commands().enumerate() {
        let destination = [0, 1, 0xff, 3][n % 4] << 24;
        let make = |ops: Vec<Op>| Machine::virtual_apic(false, ops);
        let store = |at: u32, v| store(APIC + u64::from(at), v);
        let send = own(command, store(reg::ICR, command));
        let ops = [store(reg::ICR2, destination), send, apic_load(reg::ICR), Op::Nop];
        for m in same(make, &ops) {
            assert_eq!(m.v.b.gprs.get(Gpr::Rax) as u32 & 1 << 12, 0, "{command:x}");
        }
    }
}

/// Software has the APIC, in xAPIC mode, and exits tell the bytes of what touches its page.
fn by_bytes(ops: impl IntoIterator<Item = Op>) -> Machine {
    let mut m = Machine::new(ops);
    m.v.b.tells_bytes = true;
    m
}

/// The same where exits tell the bytes of the store.
#[test]
fn each_icr_by_bytes() {
    for (n, command) in commands().enumerate() {
        let destination = [0, 1, 0xff, 3][n % 4] << 24;
        let write = |at: u32, v| store(APIC + u64::from(at), v);
        let illegal = (command & 0xff) < 16 && command & 0x600 == 0;
        for ops in [
            [
                write(reg::ICR2, destination),
                own(command, write(reg::ICR, command)),
                apic_load(reg::ICR),
                Op::Nop,
            ],
            [
                write(reg::ICR2, destination),
                own(command, constant(reg::ICR, command)),
                apic_load(reg::ICR2),
                Op::Nop,
            ],
        ] {
            for m in same(by_bytes, &ops) {
                let left = fallbacks(&m, Mechanism::IpiFastpath, Fallback::Form);
                let of = (hits(&m, Mechanism::IpiFastpath), left, hits(&m, Mechanism::MsrFastpath));
                assert_eq!(of, if illegal { (1, 1, 1) } else { (2, 0, 1) }, "{command:x}");
            }
        }
    }
}

/// MOV [APIC + at], v with the value in the instruction.
fn constant(at: u32, v: u32) -> Op {
    let code = [&[0xc7, 0x05][..], &((APIC as u32) + at).to_le_bytes(), &v.to_le_bytes()].concat();
    change(store(APIC + u64::from(at), v), |i| i.bytes = code)
}

/// Interrupts for the vCPU itself, their ends, and the TPR that holds them back: counted where they belong.
fn own_interrupts(make: impl Fn(Vec<Op>) -> Machine) {
    let ops = [
        Op::SelfIpi(0x41),
        Op::Nop,
        Op::Tpr(0x50),
        Op::SelfIpi(0x42),
        Op::SelfIpi(0x61),
        Op::Nop,
        Op::Tpr(0),
        Op::Nop,
    ];
    for m in same(make, &ops) {
        let of =
            [Mechanism::IpiFastpath, Mechanism::EoiFastpath, Mechanism::MsrFastpath].map(|of| hits(&m, of));
        assert_eq!(of, [3, 3, 2]);
    }
}

/// Interrupts, their ends and the TPR by the page, none of which leaves the slice. Other registers, and what is no register, do.
#[test]
fn the_page_by_bytes() {
    own_interrupts(by_bytes);
    let all = (0..0x400).step_by(4).filter(|at| ![reg::ICR, reg::EOI, reg::TPR].contains(at));
    for op in
        all.flat_map(|at| [apic_load(at), store(APIC + u64::from(at), 0x10_0031), constant(at, 0x10_0031)])
    {
        same(by_bytes, &[op, Op::Nop]);
    }
}

/// What the timer has left is told by a clock.
#[test]
fn the_count_by_bytes() {
    let write = |at: u32, v| store(APIC + u64::from(at), v);
    let ops = [
        write(reg::LVT_TIMER, 0x1_0031),
        write(reg::TMICT, 1 << 30),
        Op::World(Env::Time(1000)),
        apic_load(reg::TMCCT),
        Op::Nop,
    ];
    for m in same(by_bytes, &ops) {
        let count = m.v.b.gprs.get(Gpr::Rax);
        assert!(count > 1 << 29 && count < 1 << 30, "{count}");
    }
}

/// The page is where the guest has put it, and memory hides it.
#[test]
fn where_the_page_is() {
    const MOVED: u64 = 0xfed0_0000;
    let moved = |ops: Vec<Op>| {
        let mut m = by_bytes(ops);
        m.user_msr(0x1b, MOVED | 0x900);
        m
    };
    let there = change(store(MOVED + u64::from(reg::ICR), 0x51), |i| i.owes.clear());
    for m in same(moved, &[there, Op::Nop]) {
        assert_eq!(hits(&m, Mechanism::IpiFastpath), 1);
    }
    let at = APIC + u64::from(reg::ICR);
    let left = change(store(at, 0x51), |i| {
        i.owes = vec![Touch { user: true, write: true, at, data: vec![0x51, 0, 0, 0] }];
    });
    for m in same(moved, &[left, Op::Nop]) {
        assert!(m.w.ipis.borrow().is_empty());
    }
    let mut m = Machine::new([]);
    let (ram, offset) = (0x30_0000, u64::from(reg::ICR));
    m.user_msr(0x1b, ram | 0x900);
    m.v.b.fetched = [0xc7, 0x05, 0, 3, 0x30, 0, 0x51, 0, 0, 0].to_vec();
    let fault = SlatFault {
        gpa: ram + offset,
        write: true,
        fetch: false,
        present: false,
        table_walk: false,
        marked: false,
    };
    m.then([Op::Event(Exit::Slat(fault)), Op::Nop]);
    assert!(m.w.ipis.borrow().is_empty() && m.w.mapped.borrow().contains(&(ram >> 12)));
}

/// Whatever is not the plain store or load of the kernel's: read-modify-write, other sizes, an operand that another kind of access
/// faulted for, user code, breakpoints on data.
#[test]
fn not_by_bytes() {
    let icr = APIC + u64::from(reg::ICR);
    let slow = |make: &dyn Fn(Vec<Op>) -> Machine, op: Op| {
        for m in same(make, &[op.clone(), Op::Nop]) {
            assert_eq!(m.sh.stats.fast.get(), 0, "{op:x?}");
        }
    };
    let address = (icr as u32).to_le_bytes();
    let code = |front: &[u8]| change(store(icr, 0x51), |i| i.bytes = [front, &address].concat());
    for front in [&[0x66, 0xa3][..], &[0x01, 0x05], &[0xf2, 0x89, 0x05]] {
        slow(&by_bytes, change(code(front), |i| i.owes.clear()));
    }
    let user = |ops: Vec<Op>| {
        let mut m = by_bytes(ops);
        m.set_cpl(3);
        m
    };
    slow(&user, store(icr, 0x51));
    let watched = |ops: Vec<Op>| {
        let mut m = by_bytes(ops);
        m.v.dr[1] = icr;
        m.v.set_guest_dr7(0x10_0408);
        m.v.settle_debug_registers();
        m
    };
    slow(&watched, store(icr, 0x51));
    let reads = change(store(icr, 0x51), |i| {
        if let Exit::Slat(fault) = &mut i.exit {
            fault.write = false;
        }
    });
    slow(&by_bytes, reads);
}

/// Reserved bits fault, registers that are not there too, and nothing is sent.
#[test]
fn writes_that_fault() {
    let icr = [1 << 13, 1 << 16, 1 << 17, 1 << 20, 1 << 31].map(|bits| write_apic(reg::ICR, bits | 0x51));
    let others = [(reg::EOI, 1), (reg::TPR, 0x100), (reg::SELF_IPI, 0x141), (reg::ICR2, 0), (reg::ISR, 0)];
    for op in icr.into_iter().chain(others.map(|(at, v)| write_apic(at, v))) {
        for m in same(x2apic, &[faulting(op.clone()), Op::Nop]) {
            assert_eq!(m.sh.stats.fast.get(), 0, "{op:x?}");
        }
    }
    // As MSRs they are not there in xAPIC mode.
    for at in [reg::ICR, reg::EOI, reg::TPR, reg::SELF_IPI] {
        same(Machine::new, &[faulting(write_apic(at, 0)), Op::Nop]);
    }
}

/// More targets than a slice sends to, or none that can be looked up: sent once, the slow way.
#[test]
fn too_many_targets() {
    let make = |ops: Vec<Op>| {
        let m = x2apic(ops);
        m.w.few.set(false);
        m
    };
    for m in same(make, &[write_apic(reg::ICR, 3 << 18 | 0x51), Op::Nop]) {
        assert_eq!(fallbacks(&m, Mechanism::IpiFastpath, Fallback::Targets), 1);
        assert_eq!(m.sh.stats.fast.get(), 0);
    }
}

/// What the sender itself has to look at is looked at before the guest goes on, and only then does the slice's loop come into it.
#[test]
fn a_command_that_names_the_sender_too() {
    for (virtually, own) in [(false, false), (false, true), (true, false), (true, true)] {
        let ops = [
            tells(&write_apic(reg::ICR, 3 << 32 | 0x851)),
            tells(&write_apic(reg::ICR, 1 << 32 | 0x51)),
            Op::Nop,
        ];
        let mut m = if virtually { Machine::virtual_apic(true, []) } else { x2apic([]) };
        m.w.own_share.set(own);
        m.then(ops);
        assert_eq!((hits(&m, Mechanism::IpiValidated), m.w.ipis.borrow().len()), (2, 2));
    }
}

/// Nobody can tell where the instruction ends: nothing is sent before that is known.
#[test]
fn code_out_of_reach() {
    for op in [write_apic(reg::ICR, 1 << 32 | 0x51), Op::SelfIpi(0x41), rdmsr(0x1b)] {
        let mut m = x2apic([op, Op::Nop]);
        m.w.swapped.set(true);
        m.go();
        assert_eq!(m.sh.stats.fast.get(), 0);
        let sent = m.events().len() + m.w.ipis.take().len();
        assert!(sent <= 1);
    }
}

/// Interrupts for the vCPU itself, their ends, and the TPR that holds them back, none of which leaves the slice.
#[test]
fn an_interrupt_of_its_own() {
    own_interrupts(x2apic);
}

/// One slice from the first interrupt to the last, where nothing else happens.
#[test]
fn all_in_one_slice() {
    let slices = |m: &Machine| m.w.slices.get();
    let mut m = x2apic([Op::Nop]);
    m.go();
    let before = slices(&m);
    m.then([Op::SelfIpi(0x41), Op::Cli, Op::SelfIpi(0x42), Op::Sti, hlt(), Op::Nop, rdmsr(0x1b), Op::Nop]);
    assert_eq!(m.events(), [Event::Interrupt(0x41), Event::Interrupt(0x42)]);
    assert_eq!(slices(&m), before + 1);
}

/// HLT in the shadow of STI with something to take, at every place where it may be; and with nothing.
#[test]
fn halts() {
    for ops in [
        vec![Op::Cli, Op::SelfIpi(0x41), Op::Sti, hlt(), Op::Nop],
        vec![Op::Cli, Op::World(Env::Irq(0x41)), Op::Sti, hlt(), Op::Nop],
        vec![Op::Tpr(0x40), Op::World(Env::Irq(0x41)), hlt(), Op::Nop],
        vec![Op::Cli, Op::World(Env::Nmi), Op::Sti, hlt(), Op::Nop],
        vec![hlt(), Op::Nop],
    ] {
        same(x2apic, &ops);
        same(|ops| Machine::virtual_apic(true, ops), &ops);
        same(Machine::new, &ops);
    }
    let waiting = [Op::Cli, Op::SelfIpi(0x41), Op::Sti, hlt(), Op::Nop];
    for m in same(x2apic, &waiting).into_iter().chain(same(|ops| Machine::virtual_apic(true, ops), &waiting))
    {
        assert_eq!((hits(&m, Mechanism::HaltFastpath), m.w.blocks.get()), (1, 0));
    }
}

/// The end of an interrupt that a chip hears of is not for the slice.
#[test]
fn ends_that_chips_hear_of() {
    let make = |ops: Vec<Op>| {
        let m = x2apic(ops);
        m.w.wanted_eoi.set(Some(0x52));
        m
    };
    for m in same(make, &[Op::SelfIpi(0x52), Op::Nop, Op::Nop]) {
        assert_eq!(fallbacks(&m, Mechanism::EoiFastpath, Fallback::Form), 1);
        assert_eq!(*m.w.eois.borrow(), [(0x52, false)]);
    }
}

/// The guest ended an interrupt by the offer, and looks at its priority in the same slice: software's registers do not know yet.
#[test]
fn behind_an_offer() {
    let make = |ops: Vec<Op>| {
        let mut m = x2apic(ops);
        m.enable_pv_eoi();
        m
    };
    let mut m = make(vec![Op::SelfIpi(0x41), Op::Nop, rdmsr(msr(reg::PPR)), Op::Nop]);
    m.go();
    assert_eq!(m.v.b.gprs.get(Gpr::Rax), 0);
    same(make, &[Op::SelfIpi(0x41), Op::Nop, rdmsr(msr(reg::PPR)), Op::Nop]);
}

/// MSRs of every kind that the vCPU alone answers.
#[test]
fn reads() {
    let each = [0x1b, 0x277, 0x1a0, 0xfe, 0x2ff, 0xc000_0080, msr(reg::ID), msr(reg::VERSION)];
    for number in each {
        for m in same(x2apic, &[rdmsr(number), Op::Nop]) {
            assert_eq!(hits(&m, Mechanism::MsrFastpath), 1, "{number:x}");
        }
    }
    for m in same(x2apic, &[faulting(rdmsr(0x1234_5678)), Op::Nop]) {
        assert_eq!(fallbacks(&m, Mechanism::MsrFastpath, Fallback::Form), 1);
    }
}

/// A request, a signal or the scheduler that comes with a fast exit is seen before the guest runs on.
#[test]
fn what_else_waits() {
    let ask = Env::Ask(exitless_vcpu::Request::CLOCK);
    for env in [Env::Irq(0x41), Env::Nmi, Env::Signal, Env::Work, Env::TlbFlush, ask, Env::Immediate] {
        for (points, next_rip) in (0..16).flat_map(|points| [(points, false), (points, true)]) {
            let send = write_apic(reg::ICR, 1 << 32 | 0x51);
            let send = || if next_rip { tells(&send) } else { send.clone() };
            let mut m = x2apic([rdmsr(0x1b), send(), send(), rdmsr(0x1b), Op::Cli, Op::Nop]);
            m.later(points, env);
            m.go();
            m.finish();
            assert_eq!(m.w.ipis.borrow().len(), 2, "{env:?} {points}");
            assert_eq!(hits(&m, Mechanism::IpiValidated), if next_rip { 2 } else { 0 }, "{env:?} {points}");
            assert!(m.v.b.rip() > CODE);
        }
    }
}
