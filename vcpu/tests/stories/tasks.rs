//! Hardware task switches: what reaches the two TSS, the descriptors and the registers, and what each failure leaves behind.

use crate::fake::cpu::CODE;
use crate::fake::{Env, Machine, Op};
use exitless_vcpu::RunExit;
use exitless_vcpu::backend::{Backend, By, Event, Exit, TaskSource, TaskSwitch};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, SegReg, Segment, TableReg, cr0, cr4, efer, rflags};

const GDT: u64 = 0x8_0000;
const OLD: u64 = 0x8_1000;
/// Crosses a page.
const NEW: u64 = 0x8_2fc0;
const NEW_ENTRY: u64 = CODE + 0x800;
const DIRECTORY: u64 = 0x8_4000;

const CALL: &[u8] = &[0x9a, 0, 0, 0, 0, 0x48, 0];

fn x(vector: Vector, code: u32) -> Event {
    Event::Exception(Exception { vector, error_code: Some(code), payload: 0 })
}

fn put32(m: &Machine, at: u64, v: u32) {
    assert!(m.w.write_ram(at, &v.to_le_bytes()));
}

fn put16(m: &Machine, at: u64, v: u16) {
    assert!(m.w.write_ram(at, &v.to_le_bytes()));
}

fn byte(m: &Machine, at: u64) -> u8 {
    m.w.u32_at(at) as u8
}

fn describe(m: &Machine, selector: u64, base: u64, limit: u64, access: u64, flags: u64) {
    let d = limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 15) << 48
        | flags << 52
        | base >> 24 << 56;
    assert!(m.w.write_ram(GDT + selector, &d.to_le_bytes()));
}

/// Byte 5 of a descriptor.
fn access(m: &Machine, selector: u64) -> u8 {
    byte(m, GDT + selector + 5)
}

/// A machine in the task of selector 0x40, about to run `code`; the task of 0x48 waits in NEW.
fn machine(code: &[u8]) -> Machine {
    let mut m = Machine::new([]);
    assert!(m.w.write_ram(CODE, code));
    describe(&m, 0x08, 0, 0xfffff, 0x9b, 0xc);
    describe(&m, 0x10, 0, 0xfffff, 0x92, 0xc);
    describe(&m, 0x18, 0, 0xfffff, 0xfb, 0xc);
    describe(&m, 0x20, 0, 0xfffff, 0xf3, 0xc);
    describe(&m, 0x28, 0x8_3800, 0xff, 0x82, 0);
    describe(&m, 0x40, OLD, 0x67, 0x8b, 0);
    describe(&m, 0x48, NEW, 0x67, 0x89, 0);
    m.v.b.set_gdtr(&TableReg { base: GDT, limit: 0x57, reserved: 0 });
    m.v.b.set_segment(SegReg::Tr, &Segment { base: OLD, limit: 0x67, selector: 0x40, attrib: 0x8b });
    m.v.b.gprs.set(Gpr::Rbx, 0x1111);
    m.v.b.dr7 = 0x755;
    put32(&m, NEW + 0x20, NEW_ENTRY as u32);
    put32(&m, NEW + 0x24, 2);
    put32(&m, NEW + 0x34, 0x4321);
    put32(&m, NEW + 0x38, 0x2_1000);
    for (i, s) in [0x10, 8, 0x10, 0x10, 0, 0].into_iter().enumerate() {
        put16(&m, NEW + 0x48 + 4 * i as u64, s);
    }
    m
}

fn to(source: TaskSource) -> TaskSwitch {
    let error_code = match source {
        TaskSource::Gate(Event::Exception(x)) => x.error_code,
        _ => None,
    };
    TaskSwitch { selector: 0x48, source, error_code, resume: false }
}

fn go(m: &mut Machine, t: TaskSwitch) -> RunExit {
    m.then([Op::Event(Exit::TaskSwitch(t)), Op::Nop])
}

/// The new task's first instruction was a NOP.
fn arrived(m: &Machine) {
    assert_eq!((m.v.b.rip, m.v.b.gprs.get(Gpr::Rbx)), (NEW_ENTRY + 1, 0x4321));
    let tr = Segment { base: NEW, limit: 0x67, selector: 0x48, attrib: 0x8b };
    assert_eq!(m.v.b.segment(SegReg::Tr), tr);
    assert_ne!(m.v.b.cr0 & cr0::TS, 0);
    assert_eq!(m.v.b.dr7, 0x600, "local breakpoints go");
    assert_eq!(m.v.reinject, None);
}

/// CALL nests: both tasks are busy, the link leads back, NT is set. EIP behind the instruction is saved.
#[test]
fn call() {
    let mut m = machine(CALL);
    m.v.b.rflags |= rflags::NT | rflags::RF;
    go(&mut m, to(TaskSource::Call));
    arrived(&m);
    assert_eq!(m.v.b.rflags, 2 | rflags::NT);
    assert_eq!((access(&m, 0x40), access(&m, 0x48)), (0x8b, 0x8b));
    assert_eq!(m.w.u32_at(NEW) as u16, 0x40);
    assert_eq!(m.w.u32_at(OLD + 0x20) as u64, CODE + CALL.len() as u64);
    let flags = rflags::FIXED | rflags::IF | rflags::NT;
    assert_eq!(u64::from(m.w.u32_at(OLD + 0x24)), flags, "RF is what the exit said");
    assert_eq!((m.w.u32_at(OLD + 0x34), m.w.u32_at(OLD + 0x4c)), (0x1111, 8));
    assert_eq!(m.v.b.segment(SegReg::Ss), Segment { base: 0, limit: !0, selector: 0x10, attrib: 0xc93 });
    assert_eq!(access(&m, 0x10), 0x93, "accessed now");
    assert!(!m.v.b.segment(SegReg::Fs).present());
    assert_eq!(m.events(), []);
}

/// JMP: the old task is free, nothing leads back.
#[test]
fn jump() {
    let mut m = machine(&[0xea, 0, 0, 0, 0, 0x48, 0]);
    put16(&m, NEW, 0x7777);
    go(&mut m, TaskSwitch { resume: true, ..to(TaskSource::Jump) });
    arrived(&m);
    assert_eq!((access(&m, 0x40), access(&m, 0x48)), (0x89, 0x8b));
    assert_eq!((m.w.u32_at(NEW) as u16, m.v.b.rflags), (0x7777, 2));
    assert_eq!(u64::from(m.w.u32_at(OLD + 0x24)) & rflags::RF, rflags::RF);
}

/// IRET to a task that is busy: NT goes from what is saved, NMIs unmask.
#[test]
fn iret() {
    let mut m = machine(&[0xcf]);
    describe(&m, 0x48, NEW, 0x67, 0x8b, 0);
    m.v.b.rflags |= rflags::NT;
    m.v.b.nmi_masked = true;
    go(&mut m, to(TaskSource::Iret));
    arrived(&m);
    assert_eq!((access(&m, 0x40), access(&m, 0x48)), (0x89, 0x8b));
    assert_eq!(u64::from(m.w.u32_at(OLD + 0x24)) & rflags::NT, 0);
    assert!(!m.v.b.nmi_masked);
    // To one that is not: #TS, and the old task goes on as it was.
    let mut m = machine(&[0xcf]);
    go(&mut m, to(TaskSource::Iret));
    assert_eq!(m.events(), [x(Vector::TS, 0x48)]);
    assert_eq!((m.v.b.segment(SegReg::Tr).selector, access(&m, 0x40)), (0x40, 0x8b));
}

/// An exception through a gate: EIP is that of the fault, the code lies on the new stack.
#[test]
fn exception() {
    let mut m = machine(&[0x90]);
    let gp = Exception::gp(0x1238);
    m.v.b.rflags |= rflags::RF;
    let t = TaskSwitch { resume: true, ..to(TaskSource::Gate(Event::Exception(gp))) };
    m.v.exception = Some(gp);
    m.v.b.breaks.push_back(Some(Exit::TaskSwitch(t)));
    m.then([Op::Nop]);
    arrived(&m);
    assert_eq!(m.w.u32_at(OLD + 0x20) as u64, CODE);
    assert_eq!((m.v.b.gprs.get(Gpr::Rsp), m.w.u32_at(0x2_0ffc)), (0x2_0ffc, 0x1238));
    assert_eq!(m.events(), [], "the event is not delivered again");
}

/// INT n: EIP behind it. An interrupt, an NMI: EIP where they struck; the NMI masks others. None of them comes twice.
#[test]
fn events_without_code() {
    let mut m = machine(&[0xcd, 0x80]);
    go(&mut m, to(TaskSource::Gate(Event::Software(By::IntN, 0x80, 2))));
    arrived(&m);
    assert_eq!(m.w.u32_at(OLD + 0x20) as u64, CODE + 2);
    assert_eq!(m.v.b.gprs.get(Gpr::Rsp), 0x2_1000);
    for (happening, event) in [(Env::Irq(0x41), Event::Interrupt(0x41)), (Env::Nmi, Event::Nmi)] {
        let mut m = machine(&[0x90]);
        m.v.b.breaks.push_back(Some(Exit::TaskSwitch(to(TaskSource::Gate(event)))));
        m.happen(happening);
        m.then([Op::Nop]);
        arrived(&m);
        assert_eq!(m.w.u32_at(OLD + 0x20) as u64, CODE);
        assert_eq!(m.v.b.nmi_masked, event == Event::Nmi);
        assert_eq!(m.events(), []);
    }
}

/// The 286's TSS: no FS, GS and CR3, 16 bits of everything; the code is pushed as 2 bytes, SP wraps in them.
#[test]
fn small_tss() {
    let mut m = machine(&[0x90]);
    describe(&m, 0x48, NEW, 0x2b, 0x81, 0);
    describe(&m, 0x10, 0, 0xffff, 0x93, 0);
    for (at, v) in [(0x0e, NEW_ENTRY as u16), (0x10, 2), (0x18, 0x4321), (0x1a, 0)] {
        put16(&m, NEW + at, v);
    }
    for (i, s) in [0x10, 8, 0x10, 0, 0].into_iter().enumerate() {
        put16(&m, NEW + 0x22 + 2 * i as u64, s);
    }
    let np = Exception { vector: Vector::NP, error_code: Some(0x7_0018), payload: 0 };
    m.v.exception = Some(np);
    m.v.b.breaks.push_back(Some(Exit::TaskSwitch(to(TaskSource::Gate(Event::Exception(np))))));
    m.then([Op::Nop]);
    assert_eq!((m.v.b.rip, m.v.b.gprs.get(Gpr::Rbx)), (NEW_ENTRY + 1, 0x4321));
    assert_eq!((m.v.b.gprs.get(Gpr::Rsp), m.w.u32_at(0xfffe) as u16), (0xfffe, 0x18));
    assert_eq!(m.v.b.segment(SegReg::Tr).attrib, 0x83);
}

/// Privilege 3, an LDT, and a stack segment that lies in it.
#[test]
fn user_task_with_ldt() {
    let mut m = machine(CALL);
    assert!(m.w.write_ram(0x8_3808, &0x00cf_f300_0000_ffffu64.to_le_bytes()));
    for (at, s) in [(0x60, 0x28u16), (0x4c, 0x1b), (0x50, 0xf), (0x54, 0x23), (0x48, 0)] {
        put16(&m, NEW + at, s);
    }
    go(&mut m, to(TaskSource::Call));
    arrived(&m);
    assert_eq!((m.v.b.cpl(), m.v.b.segment(SegReg::Ss).selector), (3, 0xf));
    assert_eq!(m.v.b.segment(SegReg::Ldtr).base, 0x8_3800);
}

/// Virtual-8086 mode is entered with no look at descriptors.
#[test]
fn vm86_task() {
    let mut m = machine(CALL);
    put32(&m, NEW + 0x24, (rflags::VM | 2) as u32);
    put16(&m, NEW + 0x4c, 0xffff);
    put32(&m, NEW + 0x20, 0x10);
    m.then([Op::Event(Exit::TaskSwitch(to(TaskSource::Call)))]);
    assert_eq!((m.v.b.cpl(), m.v.b.rip), (3, 0x10));
    let cs = Segment { base: 0xf_fff0, limit: 0xffff, selector: 0xffff, attrib: 0xf3 };
    assert_eq!(m.v.b.segment(SegReg::Cs), cs);
    assert_eq!(m.events(), []);
}

/// CR3 changes under paging, and only then; segments are found through the new tables.
#[test]
fn address_spaces() {
    let mut m = machine(CALL);
    put32(&m, NEW + 0x1c, DIRECTORY as u32);
    go(&mut m, to(TaskSource::Call));
    assert_eq!(m.v.b.cr3, 0);
    let mut m = machine(CALL);
    for at in [0x9_0000, DIRECTORY] {
        put32(&m, at, 0x83);
    }
    put32(&m, NEW + 0x1c, DIRECTORY as u32);
    (m.v.b.cr0, m.v.b.cr3, m.v.b.cr4) = (m.v.b.cr0 | cr0::PG, 0x9_0000, cr4::PSE);
    let flushes = m.v.b.flushes;
    go(&mut m, to(TaskSource::Call));
    arrived(&m);
    assert_eq!((m.v.b.cr3, m.v.b.flushes), (DIRECTORY, flushes + 2), "power-up flushes too");
    // The new tables hold no GDT: the new task's page fault.
    let mut m = machine(CALL);
    put32(&m, 0x9_0000, 0x83);
    put32(&m, NEW + 0x1c, DIRECTORY as u32);
    (m.v.b.cr0, m.v.b.cr3, m.v.b.cr4) = (m.v.b.cr0 | cr0::PG, 0x9_0000, cr4::PSE);
    m.v.b.handlers = false;
    m.then([Op::Event(Exit::TaskSwitch(to(TaskSource::Call)))]);
    assert_eq!(m.events(), [Event::Exception(Exception::pf(0, GDT + 8))]);
    assert_eq!((m.v.b.segment(SegReg::Tr).selector, m.v.b.cr3), (0x48, DIRECTORY));
}

/// Before the commit nothing has changed: neither memory nor registers.
#[test]
fn refused() {
    let check = |vector, code, spoil: &dyn Fn(&mut Machine)| {
        let mut m = machine(CALL);
        m.v.b.handlers = false;
        spoil(&mut m);
        let (before, tr) = (m.w.ram.borrow().clone(), m.v.b.segment(SegReg::Tr));
        m.then([Op::Event(Exit::TaskSwitch(to(TaskSource::Call)))]);
        let e = Exception { vector, error_code: Some(code), payload: m.v.b.cr2 };
        assert_eq!(m.events(), [Event::Exception(e)]);
        assert_eq!((m.v.b.segment(SegReg::Tr), m.v.b.cr0 & cr0::TS), (tr, 0));
        assert!(*m.w.ram.borrow() == before, "{vector:?}: memory changed");
    };
    check(Vector::GP, 0x48, &|m| describe(m, 0x48, NEW, 0x67, 0x8b, 0));
    check(Vector::GP, 0x48, &|m| describe(m, 0x48, NEW, 0x67, 0x92, 0));
    check(Vector::NP, 0x48, &|m| describe(m, 0x48, NEW, 0x67, 0x09, 0));
    check(Vector::TS, 0x48, &|m| describe(m, 0x48, NEW, 0x66, 0x89, 0));
    check(Vector::GP, 0x48, &|m| m.v.b.set_gdtr(&TableReg { base: GDT, limit: 0x47, reserved: 0 }));
    check(Vector::TS, 0x40, &|m| {
        m.v.b.set_segment(SegReg::Tr, &Segment { base: OLD, limit: 0x66, selector: 0x40, attrib: 0x8b });
    });
    // A TSS that is not mapped. The tables of the first 4 MiB exist, with every page accessed and dirty.
    for (base, write) in [(OLD, true), (NEW, false)] {
        check(Vector::PF, if write { 2 } else { 0 }, &|m| {
            put32(m, 0x9_0000, 0x9_1023);
            for i in 0..1024 {
                let present = u32::from(i != base >> 12) * 3;
                put32(m, 0x9_1000 + 4 * i, (i << 12) as u32 | 0x60 | present);
            }
            (m.v.b.cr0, m.v.b.cr3) = (m.v.b.cr0 | cr0::PG, 0x9_0000);
        });
    }
}

/// After the commit the new task has the fault, and the processor a state it can be entered with.
#[test]
fn bad_new_task() {
    for (at, selector, vector) in [
        (0x60, 0x10, Vector::TS),
        (0x60, 0x2c, Vector::TS),
        (0x4c, 0x10, Vector::TS),
        (0x4c, 0, Vector::TS),
        (0x4c, 0x1b, Vector::TS),
        (0x50, 0, Vector::TS),
        (0x50, 0x30, Vector::SS),
        (0x50, 0x08, Vector::TS),
        (0x54, 0x58, Vector::TS),
        (0x54, 0x30, Vector::NP),
        (0x5c, 0x0c, Vector::TS),
    ] {
        let mut m = machine(CALL);
        describe(&m, 0x30, 0, 0xfffff, 0x12, 0xc);
        put16(&m, NEW + at, selector);
        m.v.b.handlers = false;
        m.then([Op::Event(Exit::TaskSwitch(to(TaskSource::Call)))]);
        // CS of privilege 3 is fine, SS of privilege 0 is then not.
        let code = if selector == 0x1b { 0x10 } else { u32::from(selector & 0xfffc) };
        assert_eq!(m.events(), [x(vector, code)], "{selector:#x} at {at:#x}");
        let [cs, ss] = [SegReg::Cs, SegReg::Ss].map(|r| m.v.b.segment(r));
        assert!(cs.present() && cs.typ() & 8 != 0 && cs.dpl() == ss.dpl(), "{cs:x?} {ss:x?}");
        assert_eq!(m.v.b.segment(SegReg::Tr).selector, 0x48);
        assert_eq!(m.v.b.gprs.get(Gpr::Rbx), 0x4321);
    }
}

/// The new task starts outside of its code segment, or has no room for the code.
#[test]
fn limits() {
    let mut m = machine(CALL);
    describe(&m, 0x08, 0, 0xfff, 0x9b, 4);
    m.v.b.handlers = false;
    m.then([Op::Event(Exit::TaskSwitch(to(TaskSource::Call)))]);
    assert_eq!(m.events(), [x(Vector::GP, 0)]);
    let mut m = machine(&[0x90]);
    describe(&m, 0x10, 0, 0xfff, 0x93, 4);
    m.v.b.handlers = false;
    let ac = Exception { vector: Vector::AC, error_code: Some(0), payload: 0 };
    m.v.exception = Some(ac);
    m.v.b.breaks.push_back(Some(Exit::TaskSwitch(to(TaskSource::Gate(Event::Exception(ac))))));
    m.then([]);
    assert_eq!(m.events(), [x(Vector::SS, 1)]);
}

/// A fault on the way to the handler of another is a double fault; on the way to that one's handler, the end. An interrupt's
/// switch that fails is that fault and no more.
#[test]
fn faults_of_a_gate() {
    for (first, then) in
        [(Vector::GP, Some(x(Vector::DF, 0))), (Vector::DF, None), (Vector::AC, Some(x(Vector::NP, 0x49)))]
    {
        let mut m = machine(&[0x90]);
        describe(&m, 0x48, NEW, 0x67, 0x09, 0);
        m.v.b.handlers = false;
        let e = Exception { vector: first, error_code: Some(0), payload: 0 };
        m.v.exception = Some(e);
        m.v.b.breaks.push_back(Some(Exit::TaskSwitch(to(TaskSource::Gate(Event::Exception(e))))));
        let exit = m.then([]);
        assert_eq!(exit, if then.is_some() { RunExit::Interrupted } else { RunExit::Shutdown });
        assert_eq!(m.events(), Vec::from_iter(then));
    }
    let mut m = machine(&[0x90]);
    describe(&m, 0x48, NEW, 0x67, 0x09, 0);
    m.v.b.handlers = false;
    m.v.b.breaks.push_back(Some(Exit::TaskSwitch(to(TaskSource::Gate(Event::Interrupt(0x41))))));
    m.happen(Env::Irq(0x41));
    m.then([]);
    assert_eq!(m.events(), [x(Vector::NP, 0x49)]);
}

/// The T bit: a debug trap before the first instruction.
#[test]
fn debug_trap() {
    let mut m = machine(CALL);
    put16(&m, NEW + 0x64, 1);
    m.v.b.handlers = false;
    m.then([Op::Event(Exit::TaskSwitch(to(TaskSource::Call)))]);
    let db = Exception { vector: Vector::DB, error_code: None, payload: 1 << 15 };
    assert_eq!(m.events(), [Event::Exception(db)]);
    assert_eq!(m.v.b.dr6 & 0xe00f, 1 << 15);
}

/// A TSS in a device, and exits that no processor makes: to user space, as any instruction that cannot be emulated.
#[test]
fn beyond_us() {
    for spoil in [
        |m: &mut Machine| describe(m, 0x48, crate::fake::world::USER_MMIO, 0x67, 0x89, 0),
        |m: &mut Machine| m.v.b.set_segment(SegReg::Tr, &Segment::default()),
        |m: &mut Machine| m.v.b.cr0 &= !cr0::PE,
        |m: &mut Machine| m.v.b.efer |= efer::LMA,
    ] {
        let mut m = machine(CALL);
        spoil(&mut m);
        let exit = m.then([Op::Event(Exit::TaskSwitch(to(TaskSource::Call)))]);
        assert!(matches!(exit, RunExit::Internal { suberror: 1, .. }), "{exit:?}");
    }
}
