//! From exit reasons to the hall's words.

use super::fake::Bench;
use crate::exit::name;
use crate::machine::switched;
use exitless_vcpu::backend::{
    Backend, By, Event, Exit, IoAccess, NoSender, SlatFault, TaskSource, TaskSwitch,
};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::vmx::access_rights as ar;
use exitless_x86::vmx::field as f;

#[test]
fn reasons() {
    let table = [
        (1, Exit::ExternalInterrupt),
        (2, Exit::Shutdown),
        (3, Exit::HostEvent),
        (4, Exit::HostEvent),
        (7, Exit::InterruptWindow),
        (8, Exit::NmiWindow),
        (10, Exit::Cpuid),
        (11, Exit::VirtInstruction),
        (12, Exit::Hlt),
        (13, Exit::Invd),
        (15, Exit::Rdpmc),
        (18, Exit::Hypercall),
        (29, Exit::DrAccess),
        (31, Exit::Rdmsr),
        (32, Exit::Wrmsr),
        (36, Exit::Mwait),
        (39, Exit::Monitor),
        (40, Exit::Pause),
        (66, Exit::Unknown(66)),
        (50, Exit::VirtInstruction),
        (53, Exit::VirtInstruction),
        (54, Exit::Wbinvd),
        (55, Exit::Xsetbv),
        (46, Exit::DescriptorTable),
        (47, Exit::DescriptorTable),
        (71, Exit::Unknown(71)),
    ];
    let mut b = Bench::new();
    for (reason, exit) in table {
        assert_eq!(b.run(reason, 0), exit, "reason {reason}");
        assert_eq!(b.v.exit_number(), u64::from(reason));
    }
    // VMX; RDTSCP, RDRAND, INVPCID, VMFUNC, ENCLS, RDSEED; XSAVES to PCONFIG; UMWAIT to ENCLV; SEAMCALL to UWRMSR; MSRs by immediate.
    let refused = (19..=27).chain([51, 57, 58, 59, 60, 61, 63, 64, 65, 84, 85]).chain(67..=70).chain(76..=81);
    for reason in refused {
        assert_eq!(b.run(reason, 0), Exit::VirtInstruction, "reason {reason}");
    }
}

/// No reason that hardware could ever give panics or passes for another.
#[test]
fn any_reason_has_an_answer() {
    let mut b = Bench::new();
    for reason in (0..0x80).chain([0x100, 0x7fff, 0xffff]) {
        let exit = b.run(reason, u64::MAX);
        if name(u64::from(reason)).is_none() {
            assert!(
                matches!(exit, Exit::Unknown(_) | Exit::HostEvent | Exit::VirtInstruction),
                "{reason}: {exit:?}"
            );
        }
        let _ = (b.v.take_interrupted(), b.v.next_rip());
    }
}

#[test]
fn entry_failures_tell_why() {
    let mut b = Bench::new();
    assert_eq!(b.run(1 << 31 | 33, 0), Exit::FailEntry(0x8000_0021));
    assert_eq!(b.v.exit_number(), 33);
    b.cpu.next(|cpu, _| {
        cpu.store(f::VM_INSTRUCTION_ERROR, 7);
        switched::FAILED
    });
    assert_eq!(b.enter(false), Exit::FailEntry(7));
    assert_eq!(b.v.next_rip(), None);
}

/// The emergency path of a restart turns VMX off under a running module.
#[test]
fn vmx_off_is_no_fault() {
    let mut b = Bench::new();
    b.cpu.next(|_, _| switched::OFF);
    assert_eq!(b.enter(false), Exit::Disabled);
    assert_eq!(b.v.take_interrupted(), None);
}

#[test]
fn ports() {
    let mut b = Bench::new();
    let io = |port, size, input, string, rep| Exit::Io(IoAccess { port, size, input, string, rep });
    assert_eq!(b.run(30, 0x03f8_0008), io(0x3f8, 1, true, false, false));
    assert_eq!(b.run(30, 0x0cfc_0003), io(0xcfc, 4, false, false, false));
    assert_eq!(b.run(30, 0x01f0_0039), io(0x1f0, 2, true, true, true));
}

fn slat(qualification: u64) -> SlatFault {
    let mut b = Bench::new();
    b.cpu.next(move |cpu, run| {
        cpu.store(f::GUEST_PHYSICAL_ADDRESS, 0xfee0_0300);
        cpu.store(f::EXIT_QUALIFICATION, qualification);
        run.reason = 48;
        switched::EXIT
    });
    match b.enter(false) {
        Exit::Slat(s) => s,
        other => panic!("{other:?}"),
    }
}

#[test]
fn ept_violations() {
    let base = SlatFault {
        gpa: 0xfee0_0300,
        write: false,
        fetch: false,
        present: false,
        table_walk: false,
        marked: false,
    };
    assert_eq!(slat(0x181), base);
    assert_eq!(slat(0x182), SlatFault { write: true, ..base });
    assert_eq!(slat(0x184), SlatFault { fetch: true, ..base });
    assert_eq!(slat(0x1aa), SlatFault { write: true, present: true, ..base });
    for permission in [0x188, 0x190, 0x1a0] {
        assert_eq!(slat(permission), SlatFault { present: true, ..base }, "{permission:#x}");
    }
    assert_eq!(slat(0x083), SlatFault { write: true, table_walk: true, ..base });
    assert_eq!(slat(0x001), SlatFault { table_walk: true, ..base }, "PDPTEs");
}

/// A misconfiguration is a mark, and tells where it lies and no more: not a linear address either, whatever the field still holds.
/// The instruction is known by place, segment and length.
#[test]
fn device_marks() {
    let mut b = Bench::new();
    b.cpu.next(move |cpu, run| {
        cpu.store(f::GUEST_PHYSICAL_ADDRESS, 0xd000_0010);
        cpu.store(f::GUEST_LINEAR_ADDRESS, 0x1234);
        cpu.store(f::EXIT_QUALIFICATION, 0x187);
        cpu.store(f::EXIT_INSTRUCTION_LENGTH, 3);
        run.reason = 49;
        switched::EXIT
    });
    let Exit::Slat(s) = b.enter(false) else { panic!("no fault") };
    assert_eq!((s.gpa, s.write, s.fetch, s.table_walk, s.marked), (0xd000_0010, true, false, false, true));
    assert_eq!(b.v.fault_linear(), None);
    assert_eq!(b.v.next_rip(), None, "the manual has no length here");
    let at = b.v.stopped().unwrap();
    assert_eq!((at.rip, at.code, at.length), (b.v.rip(), b.v.code_attributes(), 3));
}

#[test]
fn control_registers() {
    let mut b = Bench::new();
    assert_eq!(b.run(28, 0x008), Exit::Cr8Write);
    assert_eq!(b.run(28, 0x000), Exit::CrAccess);
    assert_eq!(b.run(28, 0x004), Exit::CrAccess);
    assert_eq!(b.run(28, 0x030), Exit::CrAccess, "LMSW");
    assert_eq!(b.run(28, 0x018), Exit::CrAccess, "MOV from CR8 is never asked for");
}

fn exception(b: &mut Bench, info: u32, code: u32, qualification: u64) -> Exit {
    b.cpu.next(move |cpu, run| {
        cpu.store(f::EXIT_INTERRUPTION_ERROR_CODE, code);
        cpu.store(f::EXIT_QUALIFICATION, qualification);
        run.reason = 0;
        run.interruption = info;
        switched::EXIT
    });
    b.enter(false)
}

#[test]
fn exceptions_and_nmis() {
    let mut b = Bench::new();
    assert_eq!(exception(&mut b, 0x8000_0202, 0, 0), Exit::Nmi);
    assert_eq!(exception(&mut b, 0x8000_0312, 0, 0), Exit::Exception(Exception::plain(Vector::MC)));
    assert!(!b.v.debug_touched, "that is #DB's");
    assert_eq!(exception(&mut b, 0x8000_0b0e, 2, 0x7777), Exit::Exception(Exception::pf(2, 0x7777)));
    assert!(!b.v.nmi_masked(), "no IRET has faulted");
    assert!(matches!(exception(&mut b, 0x8000_0301, 0, 1), Exit::Exception(_)) && b.v.debug_touched);
    let ac = Exception { vector: Vector::AC, error_code: Some(0), payload: 0 };
    assert_eq!(exception(&mut b, 0x8000_0b11, 0, 0), Exit::Exception(ac));
}

/// The exit leaves DR6 alone, and so do we: what a #DB is about comes with it.
#[test]
fn debug_exceptions_say_what_for() {
    let mut b = Bench::new();
    b.v.set_dr6(0xffff_0ff0 | 1 << 15 | 1 << 1);
    let db = Exception { payload: 1 << 14 | 1, ..Exception::plain(Vector::DB) };
    assert_eq!(exception(&mut b, 0x8000_0301, 0, 1 << 16 | 1 << 14 | 1), Exit::Exception(db));
    assert_eq!(b.v.dr6(), 0xffff_0ff0 | 1 << 15 | 1 << 1);
}

fn at(rip: u64, length: u32, rights: u32) -> Option<u64> {
    let mut b = Bench::new();
    b.cpu.next(move |cpu, run| {
        cpu.store(f::GUEST_RIP, rip);
        cpu.store(f::EXIT_INSTRUCTION_LENGTH, length);
        cpu.store(f::GUEST_CS_ACCESS_RIGHTS, rights);
        run.reason = 10;
        switched::EXIT
    });
    b.enter(false);
    b.v.next_rip()
}

/// The instruction's length is read once for an exit, and anew for the next.
#[test]
fn length_is_read_once() {
    let mut b = Bench::new();
    for (length, want) in [(2, 0x1002), (3, 0x1003)] {
        b.cpu.next(move |cpu, run| {
            cpu.store(f::GUEST_RIP, 0x1000);
            cpu.store(f::EXIT_INSTRUCTION_LENGTH, length);
            run.reason = 10;
            switched::EXIT
        });
        b.enter(false);
        b.cpu.clear_logs();
        assert_eq!([b.v.next_rip(), b.v.next_rip()], [Some(want); 2]);
        let reads = b.cpu.reads.borrow();
        assert_eq!(reads.iter().filter(|r| **r == f::EXIT_INSTRUCTION_LENGTH.encoding()).count(), 1);
    }
}

#[test]
fn next_rip() {
    let (code, long) = (ar::P | ar::S | 11, ar::P | ar::S | 11 | ar::L);
    assert_eq!(at(0x1000, 2, code), Some(0x1002));
    assert_eq!(at(0xffff_fffe, 2, code), Some(0), "32-bit code wraps");
    assert_eq!(at(0xffff_fffe, 2, long), Some(0x1_0000_0000));
    assert_eq!(at(0xffff_ffff_8000_0000, 3, long), Some(0xffff_ffff_8000_0003));
    assert_eq!(at(0x1000, 0, code), None, "a length hardware cannot mean");
    assert_eq!(at(0x1000, 16, code), None);
}

/// EPT violations have no instruction length.
#[test]
fn next_rip_of_instructions_only() {
    let mut b = Bench::new();
    b.run(48, 0);
    assert_eq!(b.v.next_rip(), None);
}

/// A triple fault may leave the vCPU in shutdown; whoever resets it must be able to run it.
#[test]
fn triple_fault_leaves_an_active_vcpu() {
    let mut b = Bench::new();
    b.cpu.next(|cpu, run| {
        cpu.store(f::GUEST_ACTIVITY, 2);
        run.reason = 2;
        switched::EXIT
    });
    assert_eq!(b.enter(false), Exit::Shutdown);
    assert_eq!(b.cpu.field(f::GUEST_ACTIVITY), 0);
}

/// The exit of a task switch with this qualification, vectoring information and RFLAGS, and the RIP it tells.
fn task(qualification: u64, vectoring: u32, flags: u64) -> (Exit, Option<u64>, Option<Event>) {
    let mut b = Bench::new();
    b.cpu.next(move |cpu, run| {
        cpu.store(f::EXIT_QUALIFICATION, qualification);
        cpu.store(f::IDT_VECTORING_INFO, vectoring);
        cpu.store(f::IDT_VECTORING_ERROR_CODE, 0x18);
        cpu.store(f::EXIT_INSTRUCTION_LENGTH, 2);
        cpu.store(f::GUEST_RIP, 0x1000);
        cpu.store(f::GUEST_RFLAGS, flags);
        run.reason = 9;
        switched::EXIT
    });
    let exit = b.v.enter(b.percpu, false, || NoSender);
    let next = b.v.next_rip();
    (exit, next, b.v.take_interrupted())
}

#[test]
fn task_switches() {
    let exit = |source, error_code, resume| {
        Exit::TaskSwitch(TaskSwitch { selector: 0x48, source, error_code, resume })
    };
    for (bits, source) in [(0, TaskSource::Call), (1, TaskSource::Iret), (2, TaskSource::Jump)] {
        let q = bits << 30 | 0x48;
        assert_eq!(task(q, 0, 2), (exit(source, None, false), Some(0x1002), None));
        assert_eq!(task(q, 0, 0x1_0002), (exit(source, None, true), Some(0x1002), None));
    }
    let gate = 0xc000_0048;
    let gp = Event::Exception(Exception::gp(0x18));
    let out = (exit(TaskSource::Gate(gp), Some(0x18), true), None, Some(gp));
    assert_eq!(task(gate, 0x8000_0b0d, 0x1_0002), out);
    let db = Event::Exception(Exception::plain(Vector::DB));
    assert_eq!(task(gate, 0x8000_0301, 2), (exit(TaskSource::Gate(db), None, false), None, Some(db)));
    for (info, event) in [(0x8000_0031, Event::Interrupt(0x31)), (0x8000_0202, Event::Nmi)] {
        let out = (exit(TaskSource::Gate(event), None, false), None, Some(event));
        assert_eq!(task(gate, info, 2), out);
    }
    // Software events tell their length, and are not to be delivered again: the switch has them.
    for (info, by, vector) in
        [(0x8000_0430, By::IntN, 0x30), (0x8000_0603, By::Int3OrInto, 3), (0x8000_0501, By::Int1, 1)]
    {
        let source = TaskSource::Gate(Event::Software(by, vector, 2));
        assert_eq!(task(gate, info, 2), (exit(source, None, false), Some(0x1002), None));
    }
    assert_eq!(task(gate, 0, 2), (Exit::Unknown(9), None, None));
}

/// The low 12 bits alone tell which register; an acknowledged interrupt is one only where the exit says so.
#[test]
fn apic_offsets() {
    let mut b = Bench::new();
    assert_eq!(b.run(56, 0xffff_f390), Exit::ApicWrite(0x390));
    assert_eq!(b.run(44, 0xffff_10b0), Exit::ApicAccess(0xb0));
    assert_eq!(b.run(45, 0x1_0031), Exit::EoiInduced(0x31));
}

/// RIP behind the instruction, in the VMCS at once: where nothing but RIP changes with it.
#[test]
fn instructions_are_stepped_over() {
    // RIP, length, RFLAGS, interruptibility; where to.
    let table: [(u64, u32, u64, u32, Option<u64>); 9] = [
        (0x1000, 2, 2, 0, Some(0x1002)),
        (0x1000, 15, 2, 8, Some(0x100f)),
        (0xffff_fffd, 2, 2, 0, Some(0xffff_ffff)),
        (0xffff_fffe, 2, 2, 0, None),
        (0x1_0000_0000, 2, 2, 0, Some(0x1_0000_0002)),
        (0x1000, 2, 2, 1, None),
        (0x1000, 2, 2, 2, None),
        (0x1000, 2, 0x102, 0, None),
        (0x1000, 2, 0x1_0002, 0, None),
    ];
    for (rip, length, flags, shadow, to) in table {
        for known in [false, true] {
            let mut b = Bench::new();
            b.cpu.next(move |cpu, run| {
                cpu.store(f::GUEST_RIP, rip);
                cpu.store(f::EXIT_INSTRUCTION_LENGTH, length);
                cpu.store(f::GUEST_RFLAGS, flags);
                cpu.store(f::GUEST_INTERRUPTIBILITY, shadow);
                run.reason = 10;
                switched::EXIT
            });
            b.enter(false);
            if known {
                assert_eq!((b.v.rip(), b.v.rflags()), (rip, flags));
            }
            assert_eq!(b.v.skip_instruction(), to.is_some(), "{rip:#x} {length} {flags:#x} {shadow}");
            assert_eq!(b.v.rip(), to.unwrap_or(rip));
            assert_eq!(b.cpu.field(f::GUEST_RIP), to.unwrap_or(rip));
            assert_eq!(b.v.rflags(), flags);
        }
    }
    let mut b = Bench::new();
    b.run(10, 0);
    b.v.set_rip(0x2000);
    assert!(!b.v.skip_instruction(), "a change that waits would be lost");
}

#[test]
fn the_longest_instruction() {
    let mut b = Bench::new();
    for (length, behind) in [(15, Some(15)), (16, None)] {
        b.cpu.next(move |cpu, run| {
            cpu.store(f::EXIT_INSTRUCTION_LENGTH, length);
            run.reason = 10;
            switched::EXIT
        });
        b.enter(false);
        assert_eq!(b.v.next_rip(), behind);
    }
}

/// Counters and traces call them as KVM's tools do.
#[test]
fn names() {
    #[rustfmt::skip]
    let known = [
        (0, "EXCEPTION_NMI"), (1, "EXTERNAL_INTERRUPT"), (2, "TRIPLE_FAULT"), (3, "INIT_SIGNAL"), (4, "SIPI_SIGNAL"),
        (7, "INTERRUPT_WINDOW"), (8, "NMI_WINDOW"), (9, "TASK_SWITCH"), (10, "CPUID"), (12, "HLT"), (13, "INVD"),
        (14, "INVLPG"), (15, "RDPMC"), (16, "RDTSC"), (18, "VMCALL"), (19, "VMCLEAR"), (20, "VMLAUNCH"),
        (21, "VMPTRLD"), (22, "VMPTRST"), (23, "VMREAD"), (24, "VMRESUME"), (25, "VMWRITE"), (26, "VMOFF"),
        (27, "VMON"), (28, "CR_ACCESS"), (29, "DR_ACCESS"), (30, "IO_INSTRUCTION"), (31, "MSR_READ"),
        (32, "MSR_WRITE"), (33, "INVALID_STATE"), (34, "MSR_LOAD_FAIL"), (36, "MWAIT_INSTRUCTION"),
        (37, "MONITOR_TRAP_FLAG"), (39, "MONITOR_INSTRUCTION"), (40, "PAUSE_INSTRUCTION"),
        (41, "MCE_DURING_VMENTRY"), (43, "TPR_BELOW_THRESHOLD"), (44, "APIC_ACCESS"), (45, "EOI_INDUCED"),
        (46, "GDTR_IDTR"), (47, "LDTR_TR"), (48, "EPT_VIOLATION"), (49, "EPT_MISCONFIG"), (50, "INVEPT"),
        (51, "RDTSCP"), (52, "PREEMPTION_TIMER"), (53, "INVVPID"), (54, "WBINVD"), (55, "XSETBV"),
        (56, "APIC_WRITE"), (57, "RDRAND"), (58, "INVPCID"), (59, "VMFUNC"), (60, "ENCLS"), (61, "RDSEED"),
        (62, "PML_FULL"), (63, "XSAVES"), (64, "XRSTORS"), (65, "PCONFIG"), (67, "UMWAIT"), (68, "TPAUSE"),
        (69, "LOADIWKEY"), (70, "ENCLV"), (74, "BUS_LOCK"), (76, "SEAMCALL"), (77, "TDCALL"),
    ];
    for number in 0..0x100 {
        let expected = known.iter().find(|(n, _)| *n == number).map(|(_, name)| *name);
        assert_eq!(name(number), expected, "{number}");
    }
}

/// A violation tells the linear address; a misconfiguration leaves the field as it was.
#[test]
fn linear_addresses() {
    let mut b = Bench::new();
    for (reason, linear) in [(48, Some(0x1234)), (49, None)] {
        b.cpu.next(move |cpu, run| {
            cpu.store(f::GUEST_LINEAR_ADDRESS, 0x1234);
            run.reason = reason;
            switched::EXIT
        });
        b.enter(false);
        assert_eq!(b.v.fault_linear(), linear);
    }
}

/// An event was interrupted only where the exit says so, whatever else the field holds.
#[test]
fn nothing_was_interrupted() {
    let mut b = Bench::new();
    for (info, event) in [(0x31, None), (0x8000_0031, Some(Event::Interrupt(0x31)))] {
        b.cpu.next(move |cpu, run| {
            cpu.store(f::IDT_VECTORING_INFO, info);
            run.reason = 48;
            switched::EXIT
        });
        b.enter(false);
        assert_eq!(b.v.take_interrupted(), event);
    }
}
