//! The debugger in user space: steps, breakpoints in registers and in memory, events it injects, and what the guest sees of it.

use crate::fake::cpu::CODE;
use crate::fake::guest::*;
use crate::fake::world::{CHIP_MMIO, CHIP_PORT, USER_MMIO};
use crate::fake::{Env, Machine, Op};
use exitless_kvm_abi::{
    KVM_GUESTDBG_BLOCKIRQ as BLOCKIRQ, KVM_GUESTDBG_ENABLE as ENABLE, KVM_GUESTDBG_INJECT_BP as INJECT_BP,
    KVM_GUESTDBG_INJECT_DB as INJECT_DB, KVM_GUESTDBG_SINGLESTEP as STEP, KVM_GUESTDBG_USE_HW_BP as HW_BP,
    KVM_GUESTDBG_USE_SW_BP as SW_BP,
};
use exitless_vcpu::RunExit;
use exitless_vcpu::backend::{Backend, By, Event, Exit};
use exitless_vcpu::vcpu::breakpoints::Busy;
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, SegReg, cr4, rflags};

const BS: u64 = 1 << 14;
const NEUTRAL: u64 = 0xffff_0ff0;

fn debug(m: &mut Machine, control: u32, dr: [u64; 4], dr7: u64) {
    let [a, b, c, d] = dr;
    m.v.set_guest_debug(ENABLE | control, [a, b, c, d, 0, 0, 0, dr7]).unwrap();
}

fn step(m: &mut Machine) {
    m.v.b.traps = true;
    debug(m, STEP, [0; 4], 0);
}

fn stopped(pc: u64, conditions: u64, dr7: u64) -> RunExit {
    RunExit::Debug { exception: 1, pc, dr6: NEUTRAL | conditions, dr7 }
}

fn stepped(pc: u64) -> RunExit {
    stopped(pc, BS, 0x400)
}

/// The conditions of a #DB that hardware raises.
fn hit(payload: u64) -> Op {
    Op::Event(Exit::Exception(Exception { payload, ..Exception::plain(Vector::DB) }))
}

/// Every way an instruction ends without hardware: the step ends behind it, once, after user space had its share. The guest
/// sees nothing.
#[test]
fn steps_over_exits() {
    let all = [
        wbinvd(),
        pause(),
        cpuid(0, 0),
        told(cpuid(0, 0)),
        rdmsr(0xc000_0082),
        wrmsr(0xc000_0082, 0x1234),
        hypercall(99),
        mov_cr4(cr4::PGE),
        out(CHIP_PORT, 1, 1),
        input(CHIP_PORT, 1),
        out(0x80, 1, 1),
        input(0x80, 2),
        load(USER_MMIO),
        store(USER_MMIO, 1),
        add(USER_MMIO, 1),
        movs(USER_MMIO + 0xffe, USER_MMIO + 0x2ffe),
        with_rax(0, &[0x0f, 0x23, 0xf0], Exit::DrAccess),
    ];
    for op in all {
        let Op::Exit(insn) = &op else { panic!() };
        let behind = CODE + insn.bytes.len() as u64;
        let mut m = Machine::new([op.clone(), Op::Nop, Op::Nop]);
        step(&mut m);
        assert_eq!(m.go(), stepped(behind), "{op:?}");
        assert_eq!(m.v.b.ops.len(), 2, "{op:?}: the guest ran on");
        assert_eq!(m.go(), stepped(behind + 1), "{op:?}: hardware's step, and not the same again");
        m.v.set_guest_debug(0, [0; 8]).unwrap();
        assert_eq!(m.go(), RunExit::Interrupted, "{op:?}");
        assert_eq!((m.events(), m.v.b.rflags & rflags::TF), (vec![], 0), "{op:?}");
        assert_eq!(m.v.b.dr6 & 0xf00f, 0, "{op:?}: DR6 is the guest's");
    }
}

/// A repeated string instruction stops after each iteration.
#[test]
fn steps_over_iterations() {
    for op in [outs(0x80, 0x5000, 3, &[0; 12]), ins(0x80, 0x5000, 3), outs(CHIP_PORT, 0x5000, 3, &[0; 12])] {
        let mut m = Machine::new([op, Op::Nop]);
        step(&mut m);
        for (pc, left) in [(CODE, 2), (CODE, 1), (CODE + 2, 0)] {
            assert_eq!(m.go(), stepped(pc));
            assert_eq!(m.v.b.gprs.get(Gpr::Rcx), left);
        }
    }
}

/// An instruction that takes TF away ends the step it was in, and not those to come.
#[test]
fn steps_over_new_flags() {
    let mut m = Machine::new([Op::Popf(2), wbinvd(), Op::Nop]);
    step(&mut m);
    assert_eq!(m.go(), stepped(CODE + 1));
    assert_eq!(m.go(), stepped(CODE + 3));
    assert_eq!(m.go(), stepped(CODE + 4));
}

/// PUSHF under a step pushes the guest's TF, not the debugger's.
#[test]
fn steps_over_pushf() {
    for guests in [0, rflags::TF] {
        for (bytes, stepped_over) in [([0x9c, 0x90], true), ([0x90, 0x9c], false)] {
            let mut m = Machine::new([Op::Pushf, Op::Nop]);
            m.v.b.rflags = 0x202 | guests;
            m.w.write_ram(CODE, &bytes);
            step(&mut m);
            assert_eq!(m.go(), stepped(CODE + 1));
            let pushed = u64::from(m.w.u32_at(m.v.b.gprs.get(Gpr::Rsp)));
            let other = if stepped_over { guests } else { rflags::TF };
            assert_eq!(pushed, 0x202 | other, "{bytes:x?}");
        }
    }
}

/// HLT: the step comes first, and the vCPU is halted when it runs again. Without controllers in the kernel user space hears of
/// both, HLT first.
#[test]
fn steps_over_halt() {
    let mut m = Machine::new([hlt(), Op::Nop]);
    step(&mut m);
    assert_eq!(m.go(), stepped(CODE + 1));
    assert!(m.halted());
    m.happen(Env::Irq(0x41));
    m.v.set_guest_debug(0, [0; 8]).unwrap();
    m.go();
    assert_eq!(m.events(), [Event::Interrupt(0x41)]);
    let mut m = Machine::without_irqchip([hlt(), Op::Nop]);
    step(&mut m);
    assert_eq!(m.go(), RunExit::Hlt);
    assert_eq!(m.go(), stepped(CODE + 1));
}

/// An event is delivered before the instruction that was to be stepped: its handler runs through, with exits in it.
#[test]
fn handlers_are_not_stepped() {
    let mut m = Machine::new([Op::Nop, Op::Nop]);
    step(&mut m);
    m.happen(Env::Irq(0x41));
    assert_eq!(m.go(), stepped(CODE + 1));
    assert_eq!(m.events(), [Event::Interrupt(0x41)]);
}

/// ... unless the debugger has interrupts wait, NMIs too.
#[test]
fn interrupts_wait() {
    for virtualized in [false, true] {
        let ops = [Op::Nop, Op::Nop, Op::Nop];
        let mut m = if virtualized { Machine::virtual_apic(false, ops) } else { Machine::new(ops) };
        m.v.b.traps = true;
        m.v.b.interrupts_blocked = true;
        debug(&mut m, STEP | BLOCKIRQ, [0; 4], 0);
        m.happen(Env::Irq(0x41));
        m.happen(Env::Nmi);
        assert_eq!(m.go(), stepped(CODE + 1));
        assert_eq!(m.go(), stepped(CODE + 2));
        assert_eq!(m.events(), []);
        m.v.b.interrupts_blocked = false;
        m.v.set_guest_debug(0, [0; 8]).unwrap();
        m.go();
        assert_eq!(m.events(), [Event::Nmi, Event::Interrupt(0x41)]);
    }
}

/// The guest's own TF is not seen by the debugger's step, nor changed: it is there again afterwards.
#[test]
fn the_guests_own_step() {
    let mut m = Machine::new([wbinvd(), wbinvd(), Op::Cli]);
    m.v.b.rflags |= rflags::TF;
    debug(&mut m, STEP, [0; 4], 0);
    assert_eq!(m.go(), stepped(CODE + 2));
    assert_eq!(m.events(), []);
    m.v.set_guest_debug(0, [0; 8]).unwrap();
    assert_eq!(m.v.b.rflags & rflags::TF, rflags::TF);
    m.go();
    assert!(matches!(m.events()[..], [Event::Exception(Exception { vector: Vector::DB, payload: BS, .. })]));
    // Registers in force without steps: the trap of a skipped instruction is the guest's.
    let mut m = Machine::new([wbinvd(), Op::Cli]);
    m.v.b.rflags |= rflags::TF;
    debug(&mut m, HW_BP, [0x5000, 0, 0, 0], 0x402);
    m.go();
    assert_eq!(m.events().len(), 1);
    assert_eq!(m.v.b.dr6 & 0xf00f, BS);
}

/// A step that is due is told after a run that ended at once, and is gone when user space sends the guest elsewhere or stops
/// stepping.
#[test]
fn a_step_that_is_due() {
    let at_exit = || {
        let mut m = Machine::new([out(0x80, 1, 1), Op::Nop]);
        step(&mut m);
        assert!(matches!(m.run(), RunExit::Io { .. }));
        m.w.touch(true, true, 0x80, &[1]);
        m
    };
    let mut m = at_exit();
    m.w.immediate.set(true);
    assert_eq!(m.run(), RunExit::Interrupted);
    m.w.immediate.set(false);
    assert_eq!(m.run(), stepped(CODE + 1));
    let mut m = at_exit();
    m.v.forget_instruction();
    assert_eq!(m.run(), stepped(CODE + 2));
    let mut m = at_exit();
    m.v.set_guest_debug(ENABLE, [0; 8]).unwrap();
    assert_eq!(m.run(), RunExit::Interrupted);
    assert_eq!(m.events(), []);
}

/// Breakpoints in registers: the debugger's are loaded, the guest's stay what they are; a hit goes to user space and leaves the
/// guest's DR6 alone. A register that is not enabled has no hits. Bits that no entry would take are dropped.
#[test]
fn breakpoints_in_registers() {
    let mut m = Machine::new([Op::Nop, hit(3), Op::Nop]);
    m.v.dr = [5, 6, 7, 8];
    m.v.b.dr6 = 0xffff_4ff1;
    m.v.set_guest_dr7(0x455);
    m.v.settle_debug_registers();
    debug(&mut m, HW_BP, [0x1000, 0x2000, 0x3000, 0x4000], 0xffff_ffff_0000_00a8);
    assert_eq!(m.v.debug_registers(), Some([0x1000, 0x2000, 0x3000, 0x4000]));
    assert_eq!(m.go(), stopped(CODE + 1, 2, 0x4a8));
    assert_eq!((m.v.dr, m.v.guest_dr7(), m.v.b.dr6), ([5, 6, 7, 8], 0x455, 0xffff_4ff1));
    assert_eq!(m.go(), RunExit::Interrupted);
    assert_eq!(m.events(), []);
    m.v.set_guest_debug(0, [0; 8]).unwrap();
    assert_eq!((m.v.debug_registers(), m.v.b.dr7), (Some([5, 6, 7, 8]), 0x455), "the guest's are back");
    assert!(m.v.dr_live && !m.v.b.dr_intercept);
}

/// The guest reads and writes its debug registers under a debugger that has its own: nothing of either gets mixed.
#[test]
fn debug_registers_of_the_guest() {
    let mov = |n: u64, bytes: &[u8]| with_rax(n, bytes, Exit::DrAccess);
    let write = |dr: u8, n: u64| mov(n, &[0x0f, 0x23, 0xc0 | dr << 3]);
    let read = |dr: u8| mov(0, &[0x0f, 0x21, 0xc0 | dr << 3]);
    let mut m = Machine::new([write(0, 0x1111), write(3, 0x4444), write(6, 0), write(5, 0x403), Op::Nop]);
    debug(&mut m, HW_BP, [0x9000; 4], 0x401);
    m.go();
    assert_eq!((m.v.dr, m.v.guest_dr7(), m.v.b.dr6), ([0x1111, 0, 0, 0x4444], 0x403, NEUTRAL));
    assert_eq!((m.v.b.dr7, m.v.debug_registers()), (0x401, Some([0x9000; 4])));
    for (dr, value) in [(0, 0x1111), (3, 0x4444), (6, NEUTRAL), (7, 0x403), (4, NEUTRAL)] {
        m.then([read(dr), Op::Nop]);
        assert_eq!(m.v.b.gprs.get(Gpr::Rax), value, "DR{dr}");
    }
    m.v.b.cr4 |= cr4::DE;
    m.then([faulting(read(4)), Op::Nop]);
    assert_eq!(m.events(), [Event::Exception(Exception::ud())]);
    let mut ss = m.v.b.segment(SegReg::Ss);
    ss.attrib |= 0x60;
    m.v.b.set_segment(SegReg::Ss, &ss);
    m.then([faulting(read(0)), Op::Nop]);
    assert_eq!(m.events(), [Event::Exception(Exception::gp(0))]);
}

/// DR7.GD: the debugger's stops the guest before the access. The guest's own is a #DB, which clears it.
#[test]
fn general_detect() {
    let mov = || with_rax(0, &[0x0f, 0x21, 0xf0], Exit::DrAccess);
    let mut m = Machine::new([mov()]);
    debug(&mut m, HW_BP, [0; 4], 0x2400);
    assert_eq!(m.go(), stopped(CODE, 1 << 13, 0x2400));
    assert_eq!(m.v.b.dr6 & 0xf00f, 0);
    // Where hardware tells, it may have cleared GD.
    let mut m = Machine::new([hit(1 << 13)]);
    debug(&mut m, HW_BP, [0; 4], 0x2400);
    m.v.b.dr7 = 0x400;
    assert_eq!(m.go(), stopped(CODE, 1 << 13, 0x2400));
    let mut m = Machine::new([faulting(mov()), Op::Nop]);
    m.v.set_guest_dr7(0x2400);
    debug(&mut m, STEP, [0; 4], 0);
    m.go();
    assert!(matches!(m.events()[..], [Event::Exception(Exception { vector: Vector::DB, .. })]));
    assert_eq!((m.v.b.dr6 & 0xf00f, m.v.guest_dr7()), (1 << 13, 0x400));
}

/// INT3: to user space while it plants them; there the guest is at the INT3. One of the guest's own comes back as an event, and
/// returns behind the instruction. Without a debugger nobody hears of it.
#[test]
fn breakpoints_in_memory() {
    let mut m = Machine::new([Op::Nop, Op::Int3, Op::Nop]);
    debug(&mut m, SW_BP, [0; 4], 0);
    let bp = RunExit::Debug { exception: 3, pc: CODE + 1, dr6: NEUTRAL, dr7: 0x400 };
    assert_eq!(m.go(), bp);
    assert_eq!(m.events(), []);
    // As KVM_SET_VCPU_EVENTS does.
    m.v.exception = Some(Exception::plain(Vector::BP));
    m.go();
    assert_eq!(m.events(), [Event::Software(By::Int3OrInto, 3, 1)]);
    assert_eq!(m.v.b.rip, CODE + 3);
    assert_eq!(m.v.b.rflags & rflags::RF, 0, "a trap pushes no RF");
    m.v.set_guest_debug(0, [0; 8]).unwrap();
    m.then([Op::Int3, Op::Nop]);
    assert_eq!(m.events(), [Event::Software(By::Int3OrInto, 3, 1)]);
}

/// An INT3 that user space gave back and an exit interrupted is delivered all the same, and not told to user space again. But a
/// fault on the way goes first, and the INT3 executes again.
#[test]
fn interrupted_breakpoint() {
    let fault = Exit::Exception(Exception::ud());
    for (exit, events) in [
        (Exit::ExternalInterrupt, vec![Event::Software(By::Int3OrInto, 3, 1)]),
        (fault, vec![Event::Exception(Exception::ud())]),
    ] {
        let mut m = Machine::new([Op::Nop]);
        m.w.write_ram(CODE, &[0xcc]);
        debug(&mut m, SW_BP, [0; 4], 0);
        m.v.exception = Some(Exception::plain(Vector::BP));
        m.v.b.breaks.push_back(Some(exit));
        m.v.b.handlers = false;
        m.go();
        assert_eq!(m.events(), events);
    }
}

/// Events by KVM_SET_GUEST_DEBUG itself; one at a time. #DB says nothing of DR6: that is the debugger's to set.
#[test]
fn injected() {
    let mut m = Machine::new([Op::Nop]);
    m.v.b.dr6 = 0xffff_4ff1;
    assert_eq!(m.v.set_guest_debug(INJECT_DB, [0; 8]), Ok(()));
    assert_eq!(m.v.set_guest_debug(INJECT_BP, [0; 8]), Err(Busy));
    m.go();
    assert_eq!(m.events(), [Event::Exception(Exception::plain(Vector::DB))]);
    assert_eq!(m.v.b.dr6, 0xffff_4ff1);
    // An instruction of two bytes at RIP.
    m.w.write_ram(m.v.b.rip, &[0xcd, 3]);
    m.v.set_guest_debug(INJECT_BP, [0; 8]).unwrap();
    m.go();
    assert_eq!(m.events(), [Event::Software(By::Int3OrInto, 3, 2)]);
}

/// INIT resets the guest's registers and leaves the debugger's in force.
#[test]
fn init_keeps_the_debugger() {
    let mut m = Machine::new([Op::Nop]);
    m.v.set_guest_dr7(0x455);
    debug(&mut m, HW_BP, [0x9000; 4], 0x401);
    m.v.reset(&m.sh, &m.os, true);
    assert_eq!((m.v.guest_dr7(), m.v.b.dr7, m.v.debug_registers()), (0x400, 0x401, Some([0x9000; 4])));
}

/// Watchpoints of an instruction that the hall completes, on memory that is a device and on ports: the debugger's stop the guest
/// behind it, the guest's own are a #DB. Sizes, kinds, and each iteration of REP.
#[test]
fn watchpoints_on_devices() {
    const IO: u64 = 2;
    const WRITE: u64 = 1;
    const ACCESS: u64 = 3;
    let bytes = [0, 0, 1, 3, 3, 3, 3, 2, 2];
    let watch =
        |n: u32, kind: u64, len: usize| 0x400 | 2 << (2 * n) | (kind | bytes[len] << 2) << (16 + 4 * n);
    let cases = [
        (load(USER_MMIO + 4), ACCESS, USER_MMIO + 4, 4, true),
        (load(USER_MMIO + 4), ACCESS, USER_MMIO + 7, 1, true),
        (load(USER_MMIO + 4), ACCESS, USER_MMIO + 8, 4, false),
        (load(USER_MMIO + 4), ACCESS, USER_MMIO, 8, true),
        (load(USER_MMIO + 4), WRITE, USER_MMIO + 4, 4, false),
        (load(USER_MMIO + 4), IO, USER_MMIO + 4, 4, false),
        (store(USER_MMIO + 4, 1), WRITE, USER_MMIO + 4, 1, true),
        (store(USER_MMIO + 4, 1), ACCESS, USER_MMIO + 5, 2, true),
        (add(USER_MMIO, 1), WRITE, USER_MMIO, 4, true),
        (movs(USER_MMIO, USER_MMIO + 0x1000), ACCESS, USER_MMIO + 0x1000, 4, true),
        (out(0x80, 1, 1), IO, 0x80, 1, true),
        (out(0x80, 1, 1), IO, 0x81, 1, false),
        (input(0x80, 2), IO, 0x81, 1, true),
        (out(CHIP_PORT, 1, 1), IO, CHIP_PORT.into(), 1, true),
        (input(CHIP_PORT, 1), IO, CHIP_PORT.into(), 1, true),
        (input(CHIP_PORT, 1), ACCESS, CHIP_PORT.into(), 1, false),
        (told(input(CHIP_PORT, 1)), IO, CHIP_PORT.into(), 1, true),
    ];
    for (op, kind, at, len, hits) in cases {
        let Op::Exit(insn) = &op else { panic!() };
        let behind = CODE + insn.bytes.len() as u64;
        let dr7 = watch(2, kind, len);
        let mut m = Machine::new([op.clone(), Op::Nop]);
        m.v.b.cr4 |= cr4::DE;
        debug(&mut m, HW_BP, [at, at, at, at], dr7);
        let want = if hits { stopped(behind, 4, dr7) } else { RunExit::Interrupted };
        assert_eq!(m.go(), want, "{op:?} {kind} {at:#x} {len}");
        assert_eq!((m.events(), m.v.b.dr6 & 0xf00f), (vec![], 0));

        let mut m = Machine::new([op.clone(), Op::Nop]);
        m.v.b.cr4 |= cr4::DE;
        m.v.dr = [at; 4];
        m.v.set_guest_dr7(dr7);
        m.v.settle_debug_registers();
        assert_eq!(m.go(), RunExit::Interrupted);
        assert_eq!((m.events().len(), m.v.b.dr6 & 0xf), if hits { (1, 4) } else { (0, 0) }, "{op:?}");
    }
    // Without CR4.DE no port is watched.
    let mut m = Machine::new([out(0x80, 1, 1), Op::Nop]);
    debug(&mut m, HW_BP, [0x80; 4], watch(0, IO, 1));
    assert_eq!(m.go(), RunExit::Interrupted);
    // The second element.
    let mut m = Machine::new([ins(0x80, 0x5000, 3), Op::Nop]);
    let dr7 = watch(1, WRITE, 4);
    debug(&mut m, HW_BP, [0, 0x5004, 0, 0], dr7);
    assert_eq!(m.go(), stopped(CODE, 2, dr7));
    assert_eq!(m.v.b.gprs.get(Gpr::Rcx), 1);
}

/// A watchpoint and a step end in one stop.
#[test]
fn watchpoint_and_step() {
    let mut m = Machine::new([store(USER_MMIO, 1), Op::Nop]);
    debug(&mut m, STEP | HW_BP, [USER_MMIO, 0, 0, 0], 0x402 | 1 << 16);
    assert_eq!(m.go(), stopped(CODE + 5, BS | 1, 0x402 | 1 << 16));
    // A fault on the way to a hit leaves none to the next instruction.
    let mut m = Machine::new([Op::Nop, wbinvd(), Op::Nop]);
    m.v.debug.forget_hits();
    debug(&mut m, HW_BP, [USER_MMIO, 0, 0, 0], 0x402 | 1 << 16);
    m.v.touch(exitless_vcpu::vcpu::debug::Touch::Write, USER_MMIO, 1);
    assert_eq!(m.go(), RunExit::Interrupted);
}

/// An instruction that touched a watched device ends without a trap, by a fault of its own or because user space replaces the
/// registers: the next one that ends in the hall has none either.
#[test]
fn hits_of_an_instruction_that_came_to_nothing() {
    let Op::Exit(read) = load(CHIP_MMIO) else { panic!() };
    // LSS EAX: the device's selector is outside of the GDT.
    let mut m = Machine::new([Op::Event(read.exit), Op::Nop]);
    m.w.write_ram(CODE, &[&[0x0f, 0xb2, 5][..], &(CHIP_MMIO as u32).to_le_bytes()].concat());
    debug(&mut m, HW_BP, [CHIP_MMIO; 4], 0x402 | 3 << 16);
    assert_eq!(m.go(), RunExit::Interrupted);
    assert!(matches!(m.events()[..], [Event::Exception(Exception { vector: Vector::GP, .. })]));
    m.v.finish_skip(CODE);
    assert_eq!(m.then([Op::Nop]), RunExit::Interrupted);

    let mut m = Machine::new([load(USER_MMIO)]);
    debug(&mut m, HW_BP, [USER_MMIO; 4], 0x402 | 3 << 16);
    assert!(matches!(m.run(), RunExit::Mmio(_)));
    m.v.forget_instruction();
    m.v.b.forget();
    m.v.finish_skip(CODE);
    assert_eq!(m.then([Op::Nop]), RunExit::Interrupted);
}

/// TF behind an STI: it traps between the iterations of INS all the same. A locked instruction that lost all its races has done
/// nothing, and does not trap.
#[test]
fn traps_between_iterations() {
    let Op::Exit(block) = ins(CHIP_PORT, 0x5000, 3) else { panic!() };
    let mut m = Machine::new([Op::Event(block.exit), Op::Nop]);
    m.w.write_ram(CODE, &block.bytes);
    block.set.iter().for_each(|(r, v)| m.v.b.gprs.set(*r, *v));
    m.v.b.rflags |= rflags::TF;
    m.v.b.shadow = true;
    assert_eq!(m.go(), RunExit::Interrupted);
    let [Event::Exception(x)] = m.events()[..] else { panic!("{:?}", m.events()) };
    assert_eq!((x.vector, x.payload, m.v.b.gprs.get(Gpr::Rcx)), (Vector::DB, BS, 2));

    let Op::Exit(write) = store(USER_MMIO, 1) else { panic!() };
    let mut m = Machine::new([Op::Event(write.exit), Op::Nop]);
    // LOCK ADD [0x8000], EAX.
    m.w.write_ram(CODE, &[0xf0, 1, 5, 0, 0x80, 0, 0]);
    m.v.b.rflags |= rflags::TF;
    m.w.contended.set(true);
    assert_eq!((m.go(), m.events()), (RunExit::Interrupted, vec![]));
}

/// A debugger comes while user space fills a block of REP INS: the block is not lost, and the step ends behind it.
#[test]
fn a_step_that_begins_in_a_block() {
    let mut m = Machine::new([ins(0x80, 0x5000, 3), Op::Nop]);
    let exit = m.run();
    assert!(matches!(exit, RunExit::Io { count: 3, .. }));
    m.answer(exit);
    step(&mut m);
    assert_eq!(m.go(), stepped(CODE + 2));
    // And one that has left.
    let mut m = Machine::new([ins(0x80, 0x5000, 3), Op::Nop]);
    step(&mut m);
    let exit = m.run();
    assert!(matches!(exit, RunExit::Io { count: 1, .. }));
    m.answer(exit);
    m.v.set_guest_debug(0, [0; 8]).unwrap();
    assert_eq!(m.go(), RunExit::Interrupted);
}
