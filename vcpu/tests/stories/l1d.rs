//! L1TF: behind what the next entry flushes the L1 data cache. That nothing is forgotten of what brings pages or does the host's
//! business, the fake CPU checks at every entry of every story (`World::check_l1d`).

use crate::fake::guest::*;
use crate::fake::world::{CHIP_MMIO, CHIP_PORT, EVENT_PORT, USER_MMIO};
use crate::fake::{Env, Machine, Op};
use exitless_vcpu::Request;
use exitless_vcpu::backend::{Exit, TaskSource, TaskSwitch};
use exitless_x86::exception::{Exception, Vector};

const DEADLINE: u32 = 0x6e0;
const STEAL_TIME: u32 = 0x4b56_4d03;

/// Did the entry behind `op` flush?
fn flushed(m: &mut Machine, op: Op) -> bool {
    let before = m.v.b.entries;
    m.then([op, Op::Nop, Op::Nop]);
    let behind = m.v.b.entries - before - 1;
    assert!(behind > 0, "nothing exited");
    m.w.flushed.get() >> (behind - 1) & 1 != 0
}

fn exit(bytes: &[u8], exit: Exit) -> Op {
    change(wbinvd(), |i| (i.bytes, i.exit) = (bytes.to_vec(), exit))
}

/// What a guest does most: its own registers, tables and chips answer.
#[test]
fn lean_exits_flush_nothing() {
    for op in [
        cpuid(0, 0),
        rdmsr(0x1b),
        wrmsr(0xc000_0081, 1),
        wrmsr(DEADLINE, 0),
        hypercall(1),
        xsetbv(0, 3),
        mov_cr4(0x4_0000),
        pause(),
        rdpmc(0),
        exit(&[0x0f, 0x01, 0xc8], Exit::Monitor),
        exit(&[0x0f, 0x01, 0xc9], Exit::Mwait),
        wbinvd(),
        exit(&[0x0f, 0x08], Exit::Invd),
        Op::Dr7(0x400),
        input(CHIP_PORT, 1),
        out(CHIP_PORT, 4, 1),
        out(EVENT_PORT, 2, 1),
        Op::Event(Exit::LogFull),
        Op::Event(Exit::ExternalInterrupt),
        Op::Event(Exit::EoiInduced(0x30)),
        Op::World(Env::Irq(0x41)),
    ] {
        let mut m = Machine::new([]);
        m.v.b.cr4 |= 0x4_0000;
        m.go();
        assert!(!flushed(&mut m, op.clone()), "{op:?}");
    }
}

/// The emulator, faults that are resolved, handlers of the host's, and what is rare.
#[test]
fn the_others_flush() {
    let task = TaskSwitch { selector: 0x48, source: TaskSource::Call, error_code: None, resume: false };
    for op in [
        load(CHIP_MMIO),
        apic_load(0x20),
        store(USER_MMIO, 1),
        outs(CHIP_PORT, 0x5000, 1, &[0; 4]),
        Op::Ram(0x5000),
        Op::Event(Exit::Nmi),
        Op::Event(Exit::HostEvent),
        Op::Event(Exit::Exception(Exception::plain(Vector::AC))),
        Op::Event(Exit::Int1(1)),
        Op::Event(Exit::TaskSwitch(task)),
        apic_movs(0x390, 0x5000),
        vmrun(),
        faulting(exit(&[0x0f, 0x01, 0xfd], Exit::Rdpru)),
        Op::World(Env::Work),
        Op::World(Env::Ask(Request::STEAL)),
    ] {
        let mut m = Machine::new([]);
        m.user_msr(STEAL_TIME, 0x5001);
        m.go();
        assert!(flushed(&mut m, op.clone()), "{op:?}");
    }
}
