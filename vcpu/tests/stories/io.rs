//! Ports and MMIO: answered in the kernel, by an eventfd or by user space; each access once, each instruction once.

use crate::fake::cpu::Instruction;
use crate::fake::guest::*;
use crate::fake::os::HVA;
use crate::fake::world::{
    APIC, CHIP_MMIO, CHIP_PORT, DOORBELL, EVENT_PORT, ROM, ROM_DOORBELL, Touch, USER_MMIO, pattern,
};
use crate::fake::{Env, Machine, Op};
use exitless_vcpu::backend::{Backend, Event, Exit, SlatFault};
use exitless_vcpu::outcome::suberror;
use exitless_vcpu::{Request, RunExit};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, SegReg, Segment, TableReg, cr0, efer, rflags};

/// IN and OUT of every width, in the kernel and at an eventfd (without leaving the slice), and in user space.
#[test]
fn ports() {
    for size in [1, 2, 4] {
        let v = 0x8765_4321;
        let ops = [
            out(CHIP_PORT, size, v),
            input(CHIP_PORT + 1, size),
            out(EVENT_PORT, size, v),
            out(0x80, size, v),
            input(0x84, size),
        ];
        let mut m = Machine::new(ops.clone().into_iter().chain([Op::Nop]));
        m.go();
        assert_eq!(m.answered.len(), 2);
        assert_eq!(m.answered[1], RunExit::Io { port: 0x84, size, count: 1, input: true });
        assert_eq!(m.sh.stats.fast.get(), 3);
        // The same with a CPU that tells the next RIP.
        let mut m = Machine::new(ops.map(told).into_iter().chain([Op::Nop]));
        m.go();
        assert_eq!(m.answered.len(), 2);
    }
}

/// A fast exit that interrupts its own vCPU: a kick would be an IPI to this CPU, and none is sent. Who enters again without a
/// look lets the guest close its interrupts first.
#[test]
fn a_chip_interrupts_its_writer() {
    let mut m = Machine::new([out(CHIP_PORT, 1, 7), Op::Cli, Op::Nop]);
    m.w.chip_writes.set(Some(|w| {
        w.happen(Env::Irq(0x41));
        w.ipi.set(false);
    }));
    m.go();
    assert_eq!(m.events(), [Event::Interrupt(0x41)]);
    assert_eq!(m.sh.stats.fast.get(), 1);
}

/// A fast exit that wakes a thread of this CPU: the scheduler marks the task and sends no IPI. The next fast exit must not be
/// reached before the scheduler was let in.
#[test]
fn a_chip_wakes_a_thread_of_this_cpu() {
    let mut m = Machine::new([out(CHIP_PORT, 1, 7), out(CHIP_PORT, 1, 8), out(CHIP_PORT, 1, 9), Op::Nop]);
    m.w.chip_writes
        .set(Some(|w| assert!(!w.work.replace(true), "a slice went on with the scheduler waiting")));
    m.go();
    assert_eq!(m.sh.stats.fast.get(), 3);
}

/// The code is swapped out, so nothing can be decoded with interrupts off: the same, the slow way.
#[test]
fn ports_and_cpuid_from_swapped_code() {
    let mut m =
        Machine::new([out(CHIP_PORT, 1, 7), input(CHIP_PORT + 1, 4), cpuid(0, 0), out(0x80, 2, 1), Op::Nop]);
    m.w.swapped.set(true);
    m.go();
    assert_eq!((m.sh.stats.fast.get(), m.answered.len()), (0, 1));
}

/// After OUT user space sees RIP behind it; after IN not until it has answered.
#[test]
fn what_user_space_sees_meanwhile() {
    let mut m = Machine::new([out(0x80, 1, 5), input(0x80, 1), Op::Nop]);
    let exit = m.run();
    assert_eq!(exit, RunExit::Io { port: 0x80, size: 1, count: 1, input: false });
    assert_eq!((m.v.b.rip, m.w.io_page.borrow()[0]), (0x1001, 5));
    m.answer(exit);
    let exit = m.run();
    assert_eq!(m.v.b.rip, 0x1001);
    m.answer(exit);
    m.go();
}

/// Elements of every exit for a port.
fn counts(m: &Machine) -> Vec<u32> {
    let count = |exit: &RunExit| if let RunExit::Io { count, .. } = exit { *count } else { 0 };
    m.answered.iter().map(count).collect()
}

/// REP OUTS and REP INS: in the kernel element by element, in user space REP INS in one go.
#[test]
fn string_ports() {
    let ram: Vec<u8> = (0..20).map(|i| i * 3 + 1).collect();
    for port in [CHIP_PORT, 0x80] {
        let mut m = Machine::new([outs(port, 0x8000, 5, &ram), ins(port, 0x9000, 4), Op::Nop]);
        m.w.write_ram(0x8000, &ram);
        m.go();
        assert_eq!(
            m.w.u32_at(0x900c).to_le_bytes(),
            std::array::from_fn(|i| crate::fake::world::pattern(u64::from(port) + i as u64))
        );
        assert_eq!(counts(&m), if port == 0x80 { &[1, 1, 1, 1, 1, 4][..] } else { &[] });
    }
}

/// A block across a page: up to the page's end, the element across both alone (its halves are two memory accesses), the rest.
/// 3 KiB go through the I/O page in one piece. OUTS goes element by element.
#[test]
fn string_ports_across_pages() {
    let ram: Vec<u8> = (0..3072u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let mut m = Machine::new([
        outs(0x80, 0x8400, 768, &ram),
        outs(0x80, 0x9ff6, 6, &ram),
        ins(0x80, 0xa3fe, 1024),
        Op::Nop,
    ]);
    m.w.write_ram(0x8400, &ram);
    m.w.write_ram(0x9ff6, &ram[..24]);
    m.go();
    let (outs, ins) = (vec![1; 768 + 6], [768, 1, 255]);
    assert_eq!(counts(&m), [&outs[..], &ins].concat());
}

/// REP OUTS from the read-only slot.
#[test]
fn string_ports_read_only() {
    let rom: Vec<u8> = (0..12).map(|i| crate::fake::world::pattern(ROM + i)).collect();
    let mut m = Machine::new([outs(0x80, ROM, 3, &rom), Op::Nop]);
    m.go();
    assert_eq!(m.answered, [RunExit::Io { port: 0x80, size: 4, count: 1, input: false }; 3]);
}

/// Interrupted after the block was asked: user space runs again with `immediate_exit`, the block completes, and only then
/// KVM_RUN returns; the page is read before anybody else uses it.
#[test]
fn a_block_completes_before_the_signal() {
    let mut m = Machine::new([ins(0x84, 0x9000, 6), Op::Nop]);
    let exit = m.run();
    assert_eq!(exit, RunExit::Io { port: 0x84, size: 4, count: 6, input: true });
    assert_eq!((m.v.b.rip, m.v.b.gprs.0[1]), (0x1000, 6), "nothing is done yet");
    m.answer(exit);
    m.w.immediate.set(true);
    assert_eq!(m.run(), RunExit::Interrupted);
    assert_eq!((m.v.b.rip, m.v.b.gprs.0[1]), (0x1002, 0));
    let element = std::array::from_fn(|i| crate::fake::world::pattern(0x84 + i as u64));
    assert!((0..6).all(|i| m.w.u32_at(0x9000 + 4 * i).to_le_bytes() == element));
    m.w.immediate.set(false);
    m.go();
}

/// An interrupt between two iterations of REP OUTS: the handler runs, the rest follows, no element twice.
#[test]
fn string_interrupted() {
    for points in 0..30 {
        let ram = [7; 16];
        let mut m = Machine::new([outs(0x80, 0x8000, 4, &ram), Op::Nop]);
        m.w.write_ram(0x8000, &ram);
        m.later(points, Env::Irq(0x41));
        m.go();
        m.finish();
        assert_eq!(m.events(), [Event::Interrupt(0x41)]);
    }
}

/// Loads and stores to user space, to a chip, to the read-only slot, across the pages between two of them.
#[test]
fn mmio() {
    let edge = USER_MMIO + 0xffe;
    let rom_end = ROM + 0xffe;
    let mut m = Machine::new([
        load(USER_MMIO),
        store(USER_MMIO + 4, 0x1122_3344),
        load(edge),
        store(edge, 0x5566_7788),
        load(CHIP_MMIO + 16),
        store(CHIP_MMIO, 9),
        store(ROM + 8, 1),
        load(rom_end),
        store(rom_end, 2),
        add(USER_MMIO, 5),
        add(CHIP_MMIO, 5),
        add(edge, 7),
        movs(USER_MMIO, USER_MMIO + 0x100),
        movs(edge, edge + 0x1000),
        movs(USER_MMIO, CHIP_MMIO),
        movs(CHIP_MMIO, USER_MMIO),
        Op::Nop,
    ]);
    m.go();
    assert_eq!(m.sh.stats.mmio_exits.get(), m.answered.len() as u64);
}

/// RAM that is not mapped yet: one fault, one mapping, and the instruction again.
#[test]
fn ram_faults() {
    let mut m = Machine::new([Op::Ram(0x5000), Op::Ram(0x5008), Op::Ram(0x6000), Op::Nop]);
    m.go();
    assert_eq!((m.sh.stats.pf_taken.get(), m.sh.stats.pf_fixed.get()), (2, 2));
}

/// immediate_exit: the pending access completes first, then KVM_RUN returns EINTR; RIP is behind the instruction.
#[test]
fn immediate_exit_completes() {
    for op in [input(0x80, 4), load(USER_MMIO), store(USER_MMIO, 3)] {
        let Op::Exit(i) = op.clone() else { panic!() };
        let end = 0x1000 + i.bytes.len() as u64;
        let mut m = Machine::new([op, Op::Nop]);
        let exit = m.run();
        m.answer(exit);
        m.w.immediate.set(true);
        assert_eq!(m.run(), RunExit::Interrupted);
        assert_eq!((m.v.b.rip, m.v.b.entries), (end, 1));
        m.w.immediate.set(false);
        m.go();
    }
    // An access in two pieces: the second is asked before the EINTR.
    let mut m = Machine::new([load(USER_MMIO + 0xffe), Op::Nop]);
    let exit = m.run();
    m.answer(exit);
    m.w.immediate.set(true);
    let exit = m.run();
    assert!(matches!(exit, RunExit::Mmio(_)));
    m.answer(exit);
    assert_eq!(m.run(), RunExit::Interrupted);
    assert_eq!(m.v.b.entries, 1);
    m.w.immediate.set(false);
    m.go();
}

/// A signal while user space is asked does not lose the answer.
#[test]
fn signal_after_the_answer() {
    let mut m = Machine::new([load(USER_MMIO + 0xffe), input(0x80, 1), Op::Nop]);
    let mut signals = 0;
    loop {
        match m.run() {
            RunExit::Interrupted if m.w.script_over.get() => break,
            RunExit::Interrupted => {
                signals += 1;
                m.w.signal.set(false);
            }
            exit => {
                m.answer(exit);
                m.happen(Env::Signal);
            }
        }
    }
    assert_eq!((m.answered.len(), signals), (3, 2));
}

/// User space replaces the registers instead of answering: the old instruction is forgotten.
#[test]
fn forgotten_instruction() {
    let mut m = Machine::new([load(USER_MMIO)]);
    assert!(matches!(m.run(), RunExit::Mmio(_)));
    m.v.forget_instruction();
    m.v.b.forget();
    m.v.b.rip = 0x2000;
    m.v.b.gprs.0[0] = 77;
    m.w.log.take();
    m.then([Op::Nop]);
    assert_eq!((m.v.b.gprs.0[0], m.v.b.rip), (77, 0x2001));
}

/// FADD [0xd0000000], which the emulator does not do.
fn unknown() -> Op {
    faulting(Op::Exit(Box::new(insn(&[0xd8, 0x05, 0, 0, 0, 0xd0], fault()))))
}

fn check_failure(exit: RunExit) {
    let RunExit::Internal { suberror: s, data, ndata } = exit else { panic!("{exit:?}") };
    assert_eq!((s, ndata), (suberror::EMULATION, 3));
    assert_eq!(data[0], 1, "instruction bytes are there");
    assert_eq!(data[1] & 0xffff_ff00, 0x0005_d800, "after the size");
}

/// What the emulator does not know: to user space with its bytes, and #UD for the guest when it runs again, as on stock KVM.
#[test]
fn unknown_instruction_on_mmio() {
    let mut m = Machine::new([unknown(), Op::Nop]);
    check_failure(m.go());
    assert_eq!(m.v.b.rip, 0x1000);
    m.go();
    assert_eq!(m.events(), [Event::Exception(Exception::ud())]);
}

/// The same in user code: #UD alone. QEMU goes on after the exit, and would come back with it for ever.
#[test]
fn unknown_instruction_of_user_code() {
    for cpl in [1, 3] {
        let mut m = Machine::new([unknown(), Op::Nop]);
        m.set_cpl(cpl);
        assert_eq!(m.go(), RunExit::Interrupted);
        assert_eq!(m.events(), [Event::Exception(Exception::ud())]);
    }
}

/// User space asked to hear of it (KVM_CAP_EXIT_ON_EMULATION_FAILURE): the exit, and no #UD.
#[test]
fn unknown_instruction_is_told() {
    for cpl in [0, 3] {
        let mut m = Machine::new([Op::Exit(Box::new(insn(&[0x0f, 0xae, 0x05, 0, 0, 0, 0xd0], fault())))]);
        m.set_cpl(cpl);
        m.w.exits_on_failure.set(true);
        let RunExit::Internal { suberror: suberror::EMULATION, .. } = m.go() else { panic!() };
        m.v.forget_instruction();
        m.v.b.rip += 7;
        assert_eq!((m.go(), m.events()), (RunExit::Interrupted, vec![]));
    }
}

/// An instruction that does not end where the fetch did: #GP(0) behind 15 bytes or the segment's end, the fault of the next page
/// otherwise.
#[test]
fn instructions_cut_short() {
    let long = [&[0x66; 14][..], &[0xa1]].concat();
    let end = |m: &mut Machine, at: u64, bytes: &[u8]| {
        m.w.write_ram(at, bytes);
        m.v.b.rip = at;
        assert_eq!(m.then([Op::Event(fault()), Op::Nop]), RunExit::Interrupted);
        m.events()
    };
    let mut m = Machine::new([]);
    assert_eq!(end(&mut m, 0x2000, &long), [Event::Exception(Exception::gp(0))]);
    let mut m = Machine::new([]);
    let cs = m.v.b.segment(SegReg::Cs);
    m.v.b.set_segment(SegReg::Cs, &Segment { limit: 0x2003, ..cs });
    assert_eq!(end(&mut m, 0x2000, &[0xa1, 0, 0, 0, 0xd0]), [Event::Exception(Exception::gp(0))]);
    // The last page of memory, as its directory has it.
    let mut m = Machine::new([]);
    m.v.b.cr0 |= 1 << 31;
    m.v.b.cr3 = 0x10_0000;
    m.w.write_ram(0x10_0000, &0x10_1007u32.to_le_bytes());
    m.w.write_ram(0x10_1008, &0x2007u32.to_le_bytes());
    assert_eq!(end(&mut m, 0x2ffc, &[0xa1, 0, 0, 0]), [Event::Exception(Exception::pf(0, 0x3000))]);
}

/// MOVSD from memory, of 7s, to a device.
fn movs_memory(device: u64) -> Op {
    let Op::Exit(mut i) = movs(0x8000, device) else { panic!() };
    i.owes.iter_mut().for_each(|t| t.data = vec![7; 4]);
    i.exit = Exit::Slat(SlatFault {
        gpa: device,
        write: true,
        fetch: false,
        present: false,
        table_walk: false,
        marked: false,
    });
    Op::Exit(i)
}

/// The host has lost a page of the guest's, and has no memory to make one. Nothing that a device has given or taken is lost or
/// done twice: KVM_RUN fails, and goes on where it was when there is memory again.
#[test]
fn host_out_of_memory() {
    let out_of_memory = |op: Op, page: u64, devices: usize| {
        let mut m = Machine::new([op.clone(), Op::Nop]);
        m.w.write_ram(0x8000, &[7; 0x1000]);
        m.w.lost.set(Some(page));
        assert_eq!(m.go(), RunExit::Error(-14), "{op:?}");
        assert_eq!(m.v.b.rip, 0x1000);
        assert_eq!(m.go(), RunExit::Error(-14), "{op:?}, again");
        assert_eq!(m.w.log.borrow().len(), devices, "{op:?}");
        m.w.lost.set(None);
        // The machine checks that the devices' accesses are those that the instruction owes.
        assert_eq!(m.go(), RunExit::Interrupted, "{op:?}");
    };
    for port in [CHIP_PORT, 0x80] {
        out_of_memory(ins(port, 0x9000, 1), 9, 1);
        out_of_memory(outs(port, 0x8000, 2, &[7; 8]), 8, 0);
    }
    // A block: from user space all of it, from the chip one by one.
    out_of_memory(ins(0x80, 0x9000, 6), 9, 6);
    out_of_memory(ins(CHIP_PORT, 0x9000, 6), 9, 1);
    for device in [USER_MMIO, CHIP_MMIO] {
        out_of_memory(movs(device, 0x9000), 9, 1);
        out_of_memory(movs_memory(device), 8, 0);
        out_of_memory(movs(device, 0x8ffe), 8, 1);
        out_of_memory(movs(device, 0x8ffe), 9, 1);
    }
    // The code itself: nothing was begun.
    let mut m = Machine::new([Op::Event(fault())]);
    m.w.lost.set(Some(1));
    assert_eq!((m.go(), m.events()), (RunExit::Error(-14), vec![]));
}

/// The page has a memory error: the signal comes first, and the instruction is finished when user space has mended it.
#[test]
fn memory_error_under_the_emulator() {
    let tells = |op: Op, page: u64, devices: usize| {
        let mut m = Machine::new([op.clone(), Op::Nop]);
        m.w.write_ram(0x8000, &[7; 0x1000]);
        m.w.poisoned.set(Some(page));
        let exit = loop {
            match m.run() {
                exit @ (RunExit::Io { .. } | RunExit::Mmio(_)) => m.answer(exit),
                exit => break exit,
            }
        };
        assert_eq!((exit, m.v.b.rip), (RunExit::Interrupted, 0x1000), "{op:?}");
        assert!(m.w.memory_errors.borrow().iter().all(|&hva| hva == HVA + (page << 12)));
        assert!(!m.w.memory_errors.borrow().is_empty() && !m.w.script_over.get(), "{op:?}");
        assert_eq!(m.w.log.borrow().len(), devices, "{op:?}");
        m.w.poisoned.set(None);
        m.w.signal.set(false);
        assert_eq!(m.go(), RunExit::Interrupted, "{op:?}");
    };
    for port in [CHIP_PORT, 0x80] {
        tells(ins(port, 0x9000, 1), 9, 1);
        tells(outs(port, 0x8000, 2, &[7; 8]), 8, 0);
    }
    tells(movs(USER_MMIO, 0x9000), 9, 1);
    tells(movs_memory(USER_MMIO), 8, 0);
    tells(movs(USER_MMIO, 0x8ffe), 9, 1);
}

fn fault() -> Exit {
    let Op::Exit(i) = load(USER_MMIO) else { panic!() };
    i.exit
}

/// An interrupt's frame or table lies in a device: nothing can deliver it.
#[test]
fn delivery_into_a_device() {
    let mut m = Machine::new([Op::World(Env::Irq(0x41)), Op::Nop]);
    m.v.b.breaks.push_back(Some(fault()));
    let RunExit::Internal { suberror: s, data, ndata } = m.go() else { panic!() };
    assert_eq!((s, ndata, data[3]), (suberror::DELIVERY_EV, 4, USER_MMIO));
}

/// CR3 leads out of memory: the fault cannot be delivered, nor the double fault, and the guest shuts down as on hardware
/// instead of failing inside.
#[test]
fn tables_in_a_device() {
    let Exit::Slat(walk) = fault() else { panic!() };
    let walk = Exit::Slat(SlatFault { table_walk: true, ..walk });
    let mut m = Machine::new([Op::Event(Exit::Exception(Exception::pf(2, 0x5000))), Op::Nop]);
    m.v.b.breaks.extend([Some(walk), Some(walk)]);
    assert_eq!(m.go(), RunExit::Shutdown);
}

/// The bytes hardware fetched are believed, not memory: another CPU may have changed it since.
#[test]
fn decode_assists() {
    let mut m = Machine::new([load(USER_MMIO), Op::Nop]);
    let Op::Exit(i) = load(USER_MMIO) else { panic!() };
    m.v.b.fetched = i.bytes.clone();
    let exit = m.run();
    m.w.write_ram(0x1000, &[0x0f, 0x0b, 0x0f, 0x0b]);
    m.answer(exit);
    m.go();
}

/// Code that the guest's own CPU can no longer fetch: paging is on and the tables say no. The guest gets the fault.
#[test]
fn code_unmapped_under_the_exit() {
    let mut m = Machine::new([faulting(wbinvd()), Op::Cli]);
    m.v.b.cr0 |= 1 << 31;
    m.v.b.cr3 = 0x10_0000;
    m.go();
    let [Event::Exception(x)] = m.events()[..] else { panic!() };
    assert_eq!(x, Exception::pf(0x0, 0x1000));
}

/// An instruction whose operand is [`USER_MMIO`], in its last four bytes.
fn on_device(bytes: &[u8], owes: Vec<Touch>) -> Op {
    let code = [bytes, &(USER_MMIO as u32).to_le_bytes()].concat();
    Op::Exit(Box::new(Instruction { owes, ..insn(&code, fault()) }))
}

fn touch(write: bool, at: u64, data: &[u8]) -> Touch {
    Touch { user: true, write, at: USER_MMIO + at, data: data.to_vec() }
}

fn answer(at: u64, n: u64) -> Vec<u8> {
    (at..at + n).map(|i| pattern(USER_MMIO + i)).collect()
}

/// MMX registers and the x87's words, and what stands before them: #UD, #NM, #MF.
#[test]
fn mmx_and_x87() {
    let load = || on_device(&[0x0f, 0x6f, 0x1d], vec![touch(false, 0, &answer(0, 8))]);
    let store = || on_device(&[0x0f, 0x7f, 0x15], vec![touch(true, 0, &[2, 0, 0, 0, 0, 0, 0, 9])]);
    let control = || on_device(&[0xd9, 0x3d], vec![touch(true, 0, &[0x7f, 3])]);
    let status = || on_device(&[0xdd, 0x3d], vec![touch(true, 0, &[0x80, 0])]);
    let mut m = Machine::new([load(), store(), control(), Op::Nop]);
    m.w.mmx.borrow_mut()[2] = 0x0900_0000_0000_0002;
    m.go();
    assert_eq!(m.w.mmx.borrow()[3].to_le_bytes()[..], answer(0, 8));
    let first = |op: Op, cr0: u64, status: u16| {
        let mut m = Machine::new([faulting(op), Op::Nop]);
        m.v.b.cr0 |= cr0;
        m.w.x87_status.set(status);
        m.go();
        m.events()
    };
    let plain = |v: Vector| vec![Event::Exception(Exception::plain(v))];
    for op in [load, store] {
        assert_eq!(first(op(), cr0::EM, 0), plain(Vector::UD));
        assert_eq!(first(op(), cr0::TS, 0), plain(Vector::NM));
        assert_eq!(first(op(), 0, 0x80), plain(Vector::MF));
    }
    assert_eq!(
        (first(control(), cr0::EM, 0), first(control(), cr0::TS, 0)),
        (plain(Vector::NM), plain(Vector::NM))
    );
    // FNSTSW does not wait.
    let mut m = Machine::new([status(), Op::Nop]);
    m.w.x87_status.set(0x80);
    m.go();
}

/// SMSW and LMSW exit as accesses to CR0, with their operand in a device: it is asked all the same.
#[test]
fn status_word_on_a_device() {
    let on = |bytes: &[u8], owes| {
        let Op::Exit(mut i) = on_device(bytes, owes) else { panic!() };
        i.exit = Exit::CrAccess;
        Op::Exit(i)
    };
    let smsw = on(&[0x0f, 0x01, 0x25], vec![touch(true, 0, &[0x11, 0])]);
    let lmsw = on(&[0x0f, 0x01, 0x35], vec![touch(false, 0, &answer(0, 2))]);
    let mut m = Machine::new([smsw, lmsw, Op::Nop]);
    m.go();
    let low = u64::from(answer(0, 1)[0]) & 0xe;
    assert_eq!(m.v.b.cr0, 0x11 | low);
}

/// MOV to SS from a device: the interrupt that waits comes one instruction later, and so does the single-step trap.
#[test]
fn stack_segment_from_a_device() {
    let mut m = Machine::new([on_device(&[0x8e, 0x15], vec![touch(false, 0, &answer(0, 2))])]);
    let selector = u16::from_le_bytes([answer(0, 1)[0], answer(1, 1)[0]]) & 0xfff8;
    let b = &mut m.v.b;
    b.set_gdtr(&TableReg { base: 0x20_0000, limit: 0xffff, ..TableReg::default() });
    m.w.write_ram(0x20_0000 + u64::from(selector), &0x00cf_f200_0000_ffff_u64.to_le_bytes());
    // The selector that the device answers has RPL 3.
    assert_eq!(answer(0, 1)[0] & 7, 3);
    m.set_cpl(3);
    m.v.b.rflags |= rflags::TF | rflags::IF;
    let exit = m.run();
    m.answer(exit);
    m.w.immediate.set(true);
    assert_eq!(m.run(), RunExit::Interrupted);
    assert!(m.v.b.shadow && m.v.b.held && m.v.exception.is_none(), "{:?}", m.v.exception);
    assert_eq!(m.v.b.segment(SegReg::Ss).selector, selector | 3);
}

/// 32-bit code on a 64-bit kernel: its TSS lies above 4 GiB, and the bitmap there is asked, across two pages.
#[test]
fn bitmap_of_a_64_bit_kernel() {
    const KERNEL: u64 = 0xffff_8000_0000_0000;
    let mut m = Machine::new([Op::Event(fault()), Op::Nop]);
    // 4-level tables: the code's page for the program, 2 MiB for the kernel.
    let tables = [
        (0x10_0000, 0x10_3007u64),
        (0x10_0800, 0x10_1007),
        (0x10_1000, 0x10_2007),
        (0x10_2000, 0x83),
        (0x10_3000, 0x10_4007),
        (0x10_4000, 0x10_5007),
        (0x10_5008, 0x1005),
    ];
    for (at, entry) in tables {
        m.w.write_ram(at, &entry.to_le_bytes());
    }
    m.w.write_ram(0x1000, &[0xee]);
    m.w.write_ram(0x5f87 + 102, &104u16.to_le_bytes());
    let b = &mut m.v.b;
    b.set_segment(
        SegReg::Tr,
        &Segment { base: KERNEL + 0x5f87, limit: 0x2067, selector: 0x28, attrib: 0x8b },
    );
    (b.cr0, b.cr3, b.cr4, b.efer) = (0x8000_0011, 0x10_0000, 0x20, 0x500);
    b.gprs.set(Gpr::Rdx, 0x80);
    m.set_cpl(3);
    assert_eq!(m.go(), RunExit::Interrupted);
    assert_eq!(m.w.log.take(), [Touch { user: true, write: true, at: 0x80, data: vec![0] }]);
}

/// In x2APIC mode, and with the APIC off, nothing answers in the APIC's page: loads give ones, and user space hears of no store,
/// which would be an MSI to it. Hardware or not.
#[test]
fn the_apics_page_without_registers() {
    for (hardware, x2apic) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut m = if hardware { Machine::virtual_apic(x2apic, []) } else { Machine::new([]) };
        if x2apic && !hardware {
            m.set_x2apic();
        }
        let off = if x2apic { Op::Nop } else { Op::ApicBase(APIC | 0x100) };
        m.then([off, store(APIC, 0xff), store(APIC + 0x80, 0x70), apic_load(0x20)]);
        assert_eq!(m.v.b.gprs.get(Gpr::Rax), 0xffff_ffff, "{hardware} {x2apic}");
        assert_eq!(m.v.lapic.tpr(), 0);
    }
}

/// 64-bit code at this privilege level, without paging: the fakes do not mind. Exits tell lengths.
fn rings(ops: impl IntoIterator<Item = Op>, cpl: u16) -> Machine {
    let mut m = Machine::new(ops.into_iter().chain([Op::Nop]));
    m.v.b.efer |= efer::LMA;
    let cs = m.v.b.segment(SegReg::Cs);
    let attrib = cs.attrib & !(Segment::DB | 0x60) | Segment::L | cpl << 5;
    m.v.b.set_segment(SegReg::Cs, &Segment { attrib, ..cs });
    m.set_cpl(cpl);
    m.v.b.tells_length = true;
    m
}

/// A doorbell is marked when it rings the first time, its instruction is read when it rings again, and from then on ringing reads
/// nothing of the guest's, neither code nor tables, and emulates nothing.
#[test]
fn a_doorbell_reads_nothing() {
    let mut m = rings([ring(false)], 0);
    m.go();
    assert_eq!(m.w.marked.take().into_iter().collect::<Vec<_>>(), [DOORBELL >> 12]);
    // All at one place, as a driver's.
    let again = |m: &mut Machine| {
        m.v.b.rip = 0x1100;
        assert_eq!(m.then([ring(true), Op::Nop]), RunExit::Interrupted);
        assert_eq!(m.v.b.rip, 0x1104);
    };
    again(&mut m);
    let (reads, emulated) = (m.w.reads.get(), m.sh.stats.insn_emulation.get());
    assert_eq!((m.w.rings.get(), emulated), (2, 2));
    for _ in 0..5 {
        again(&mut m);
    }
    assert_eq!(m.w.rings.get(), 7);
    assert_eq!((m.w.reads.get(), m.sh.stats.insn_emulation.get()), (reads, emulated));
    assert_eq!(
        m.w.flushed.get() & 0x55,
        0,
        "behind none of them anything that a guest must not find in the cache (L1TF)"
    );
    // A TF of the guest's still traps behind it.
    m.v.b.rflags |= rflags::TF;
    m.v.b.rip = 0x1100;
    m.then([ring(true)]);
    assert_eq!(m.w.reads.get(), reads);
    assert!(matches!(m.events()[..], [Event::Exception(Exception { vector: Vector::DB, .. })]));
}

/// What is known of an instruction is forgotten when user space replaces registers, for it may have replaced the system too; and an
/// access of the page walk is never an instruction's store.
#[test]
fn known_stores_are_forgotten() {
    let mut m = rings([ring(false)], 0);
    m.go();
    let again = |m: &mut Machine, table_walk: bool| {
        m.v.b.rip = 0x1100;
        let (rings, emulated) = (m.w.rings.get(), m.sh.stats.insn_emulation.get());
        let bell = change(ring(true), |i| {
            let Exit::Slat(fault) = &mut i.exit else { panic!("no fault") };
            fault.table_walk = table_walk;
        });
        m.then([bell, Op::Nop]);
        (m.w.rings.get() - rings, m.sh.stats.insn_emulation.get() - emulated)
    };
    assert_eq!([again(&mut m, false), again(&mut m, false), again(&mut m, true)], [(1, 1), (1, 0), (1, 1)]);
    m.v.forget_instruction();
    assert_eq!([again(&mut m, false), again(&mut m, false)], [(1, 1), (1, 0)]);
}

/// A doorbell in a slot that guests may only read gets no mark: all else in its page would exit for ever, and nobody could map it.
#[test]
fn read_only_memory_gets_no_mark() {
    let mut m = Machine::new([change(store(ROM_DOORBELL, 1), |i| i.owes.clear()), Op::Nop]);
    m.go();
    assert_eq!((m.w.rings.get(), m.w.marked.take().len()), (1, 0));
}

/// What does more than write is emulated each time, with all its effects; so is each access of a user program, an access
/// elsewhere in the page, and one that a breakpoint may watch.
#[test]
fn what_is_no_plain_store_is_emulated() {
    // XCHG [RDI], EAX; ADD [RDI], EAX; STOSD; MOV EAX, [RDI].
    let others: [(&[u8], bool, u32); 4] =
        [(&[0x87, 0x07], true, 1), (&[0x01, 0x07], true, 1), (&[0xab], false, 1), (&[0x8b, 0x07], true, 0)];
    for (bytes, reads, writes) in others {
        let mut m = rings([], 0);
        m.go();
        for n in 1..4 {
            m.v.b.rip = 0x1100;
            let emulated = m.sh.stats.insn_emulation.get();
            m.then([at_doorbell(bytes, reads, true), Op::Nop]);
            assert_eq!(m.w.rings.get(), n * writes);
            assert!(m.sh.stats.insn_emulation.get() > emulated);
        }
    }
    let mut m = rings([], 3);
    m.go();
    for n in 1..4 {
        m.v.b.rip = 0x1100;
        m.then([ring(true), Op::Nop]);
        assert_eq!((m.w.rings.get(), m.sh.stats.insn_emulation.get()), (n as u32, n));
    }
}

/// What the CPU logs reaches the VM at the end of each slice, while the vCPU still counts as in the guest (the fakes look), for who asks
/// for the log waits for no others; a full log is no more than that. Whether it logs is asked when the VM says that it has changed.
#[test]
fn the_log_is_told_with_each_slice() {
    let mut m = Machine::new([Op::Nop]);
    m.go();
    assert!(!m.v.b.logging);
    m.w.logs.set(true);
    m.happen(Env::Ask(Request::LOGGING));
    m.then([Op::Nop]);
    assert!(m.v.b.logging);
    m.v.b.log = vec![0x5000, 0x7000];
    m.then([Op::Event(Exit::LogFull), Op::Nop]);
    assert_eq!(m.w.dirty.take(), [0x5000, 0x7000]);
    m.v.b.log = vec![0x9000];
    m.v.b.ops.extend([out(0x80, 1, 1), Op::Nop]);
    let exit = m.run();
    assert!(matches!(exit, RunExit::Io { .. }));
    assert_eq!(m.w.dirty.take(), [0x9000]);
    m.answer(exit);
    m.w.logs.set(false);
    m.happen(Env::Ask(Request::LOGGING));
    m.go();
    assert!(!m.v.b.logging);
}

/// A misconfiguration that is no mark: user space hears of it, instead of the vCPU exiting for ever. With other exits in between the
/// marks were real, and memory came in their place.
#[test]
fn broken_tables_are_told() {
    let fault =
        SlatFault { gpa: 0x5000, write: true, fetch: false, present: false, table_walk: false, marked: true };
    let marked = || Op::Event(Exit::Slat(fault));
    let run = |ops: Vec<Op>| Machine::new(ops).go();
    assert_eq!(run((0..15).map(|_| marked()).collect()), RunExit::Interrupted);
    assert_eq!(run((0..40).flat_map(|_| [marked(), cpuid(0, 0)]).collect()), RunExit::Interrupted);
    let RunExit::Internal { suberror: 4, ndata: 2, .. } = run((0..16).map(|_| marked()).collect()) else {
        panic!("for ever")
    };
}
