//! Events: encodings, what VM entry refuses, and deliveries that an exit interrupted.

use super::fake::Bench;
use crate::inject::{Encoded, decode, encode};
use exitless_vcpu::backend::{Backend, By, Event, Exit};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::cr0;
use exitless_x86::vmx::field as f;

fn x(vector: Vector, error_code: Option<u32>) -> Event {
    Event::Exception(Exception { vector, error_code, payload: 0 })
}

fn plain(info: u32) -> Encoded {
    Encoded { info, code: 0, length: 0 }
}

#[test]
fn encodings() {
    assert_eq!(encode(Event::Interrupt(0x31), true, false), plain(0x8000_0031));
    assert_eq!(encode(Event::Nmi, true, false), plain(0x8000_0202));
    assert_eq!(encode(x(Vector::UD, None), true, false), plain(0x8000_0306));
    assert_eq!(
        encode(x(Vector::GP, Some(0x18)), true, false),
        Encoded { info: 0x8000_0b0d, code: 0x18, length: 0 }
    );
}

/// VM entry fails unless an error code comes exactly with the vectors that push one, and in protected mode only.
#[test]
fn error_codes_are_what_entry_accepts() {
    for v in 0..32u8 {
        for given in [None, Some(0xffff_0004u32)] {
            let real = encode(x(Vector(v), given), false, false);
            assert_eq!(real.info & 1 << 11, 0, "real mode pushes none");
            let e = encode(x(Vector(v), given), true, false);
            assert_eq!(e.info & 1 << 11 != 0, matches!(v, 8 | 10..=14 | 17), "vector {v}");
            assert_eq!(e.code >> 16, 0);
        }
    }
    assert_ne!(encode(x(Vector::CP, Some(1)), true, true).info & 1 << 11, 0);
    assert_eq!(encode(x(Vector::GP, None), true, true).info & 1 << 11, 0);
}

/// INT3, INTO and INT1 have types of their own; the length is what RIP moves by.
#[test]
fn software_events() {
    let e = |by, v, n| encode(Event::Software(by, v, n), true, false);
    let plain = |info, length| Encoded { info, code: 0, length };
    assert_eq!(e(By::IntN, 0x80, 2), plain(0x8000_0480, 2));
    assert_eq!(e(By::IntN, 0x80, 0).length, 2);
    assert_eq!(e(By::Int3OrInto, 3, 1), plain(0x8000_0603, 1));
    assert_eq!(e(By::Int3OrInto, 4, 0), plain(0x8000_0604, 1));
    assert_eq!(e(By::Int3OrInto, 3, 2), plain(0x8000_0603, 2), "a prefix does not change what it is");
    assert_eq!(e(By::IntN, 3, 2), plain(0x8000_0403, 2), "CD 03 is INT n");
    assert_eq!(e(By::Int1, 1, 0), plain(0x8000_0501, 1));
    assert_eq!(e(By::Int1, 1, 2), plain(0x8000_0501, 2));
    assert_eq!(e(By::IntN, 0x20, 99).length, 15);
}

#[test]
fn decoding_is_the_way_back() {
    let events = [
        Event::Interrupt(0x31),
        Event::Nmi,
        x(Vector::UD, None),
        x(Vector::GP, Some(8)),
        Event::Software(By::IntN, 0x80, 2),
        Event::Software(By::IntN, 3, 2),
        Event::Software(By::Int3OrInto, 3, 2),
        Event::Software(By::Int1, 1, 1),
    ];
    for event in events {
        let e = encode(event, true, false);
        assert_eq!(decode(e.info, e.code, e.length, 0), Some(event));
    }
    assert_eq!(decode(0x31, 0, 0, 0), None, "not valid");
    for kind in [1, 7] {
        assert_eq!(decode(0x8000_0031 | kind << 8, 0, 0, 0), None, "no such type");
    }
    let pf = decode(0x8000_0b0e, 2, 0, 0x1234);
    assert_eq!(pf, Some(Event::Exception(Exception::pf(2, 0x1234))));
}

#[test]
fn injection_reaches_the_vmcs_once() {
    let mut b = Bench::new();
    b.v.set_cr0(cr0::PE);
    b.v.set_cr2(0xbeef_0000);
    b.v.inject(Event::Exception(Exception::pf(6, 0xdead_0000)));
    b.cpu.next(|cpu, run| {
        assert_eq!(cpu.field(f::ENTRY_INTERRUPTION_INFO), 0x8000_0b0e);
        assert_eq!(cpu.field(f::ENTRY_EXCEPTION_ERROR_CODE), 6);
        assert_eq!(run.cr2, 0xbeef_0000, "user space may have written it since");
        run.reason = 10;
        crate::machine::switched::EXIT
    });
    b.enter(false);
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::ENTRY_INTERRUPTION_INFO) >> 31, 0);
    // The same event again is a change, although memory once held the same word.
    b.v.inject(Event::Exception(Exception::pf(6, 0xdead_0000)));
    b.cpu.next(|cpu, run| {
        assert_eq!(cpu.field(f::ENTRY_INTERRUPTION_INFO), 0x8000_0b0e);
        run.reason = 10;
        crate::machine::switched::EXIT
    });
    b.enter(false);
}

#[test]
fn withdrawn_events_are_gone() {
    let mut b = Bench::new();
    b.v.inject(Event::Nmi);
    assert!(b.v.nmi_masked(), "as good as delivered");
    b.v.withdraw();
    assert!(!b.v.nmi_masked());
    b.run(10, 0);
    assert_eq!(b.cpu.field(f::ENTRY_INTERRUPTION_INFO), 0);
}

/// An entry that failed did not deliver: the event must not sneak in with a later one.
#[test]
fn failed_entries_keep_nothing() {
    for late in [true, false] {
        let mut b = Bench::new();
        b.run(10, 0);
        b.v.inject(Event::Interrupt(0x40));
        if late {
            assert!(matches!(b.run(1 << 31 | 33, 0), Exit::FailEntry(_)));
        } else {
            b.cpu.next(|_, _| crate::machine::switched::FAILED);
            assert!(matches!(b.enter(false), Exit::FailEntry(_)));
        }
        assert_eq!(b.v.take_interrupted(), None);
        b.cpu.next(|cpu, run| {
            assert_eq!(cpu.field(f::ENTRY_INTERRUPTION_INFO) >> 31, 0);
            run.reason = 10;
            crate::machine::switched::EXIT
        });
        assert_eq!(b.enter(false), Exit::Cpuid);
    }
}

fn interrupted(b: &mut Bench, reason: u32, vectoring: u32, code: u32) -> Option<Event> {
    b.cpu.next(move |cpu, run| {
        cpu.store(f::IDT_VECTORING_INFO, vectoring);
        cpu.store(f::IDT_VECTORING_ERROR_CODE, code);
        cpu.store(f::EXIT_INSTRUCTION_LENGTH, 2);
        run.reason = reason;
        crate::machine::switched::EXIT
    });
    b.enter(false);
    b.v.take_interrupted()
}

#[test]
fn interrupted_deliveries_come_back() {
    let mut b = Bench::new();
    assert_eq!(interrupted(&mut b, 48, 0x8000_0031, 0), Some(Event::Interrupt(0x31)));
    assert_eq!(b.v.take_interrupted(), None, "reading it forgets it");
    assert_eq!(interrupted(&mut b, 48, 0x8000_0b0d, 0x10), Some(x(Vector::GP, Some(0x10))));
    assert_eq!(interrupted(&mut b, 48, 0, 0), None);
}

/// INT n is delivered again as what it was. Run again it would come without the shadow of the STI before it, and a pending
/// interrupt first.
#[test]
fn software_events_come_back() {
    for (info, by, vector) in [
        (0x8000_0480u32, By::IntN, 0x80),
        (0x8000_0603, By::Int3OrInto, 3),
        (0x8000_0604, By::Int3OrInto, 4),
        (0x8000_0501, By::Int1, 1),
    ] {
        let mut b = Bench::new();
        b.v.set_cr0(cr0::PE);
        let event = interrupted(&mut b, 48, info, 0);
        assert_eq!(event, Some(Event::Software(by, vector, 2)));
        b.v.inject(event.unwrap());
        b.cpu.next(move |cpu, run| {
            assert_eq!(cpu.field(f::ENTRY_INTERRUPTION_INFO), info);
            assert_eq!(cpu.field(f::ENTRY_INSTRUCTION_LENGTH), 2);
            run.reason = 10;
            crate::machine::switched::EXIT
        });
        b.enter(false);
    }
}

/// INT1 exits although #DB is what is intercepted: nothing has happened yet, and no debug register changes.
#[test]
fn int1_is_no_exception() {
    for length in [1, 2] {
        let mut b = Bench::new();
        b.v.set_dr6(0xffff_4ff1);
        b.cpu.next(move |cpu, run| {
            cpu.store(f::EXIT_INSTRUCTION_LENGTH, length);
            run.reason = 0;
            run.interruption = 0x8000_0501;
            crate::machine::switched::EXIT
        });
        assert_eq!(b.enter(false), Exit::Int1(length as u8));
        assert_eq!((b.v.dr6(), b.v.take_interrupted()), (0xffff_4ff1, None));
    }
}

/// An instruction cannot have begun while an event was being delivered: the field is not even read.
#[test]
fn instruction_exits_interrupt_nothing() {
    let mut b = Bench::new();
    assert_eq!(interrupted(&mut b, 10, 0x8000_0031, 0), None);
    assert_eq!(b.cpu.read_count(f::IDT_VECTORING_INFO), 0);
}

/// Hardware masked NMIs when it began to deliver; the second delivery wants them unmasked again.
#[test]
fn interrupted_nmi_unmasks() {
    let mut b = Bench::new();
    b.run(10, 0);
    b.v.set_nmi_masked(true);
    b.run(10, 0);
    assert_eq!(interrupted(&mut b, 48, 0x8000_0202, 0), Some(Event::Nmi));
    assert!(!b.v.nmi_masked());
}

/// The guest's IRET unmasked NMIs, then faulted: it will run again, and only then may an NMI come.
#[test]
fn faulting_iret_masks_again() {
    let mut b = Bench::new();
    b.run(48, 1 << 12 | 1);
    assert!(b.v.nmi_masked());
    // So does the exit for a full log, whose write was the IRET's.
    b.v.set_nmi_masked(false);
    assert_eq!(b.run(62, 1 << 12), exitless_vcpu::backend::Exit::LogFull);
    assert!(b.v.nmi_masked());
    // But not when the fault hit the delivery of an event.
    let mut b = Bench::new();
    b.cpu.next(|cpu, run| {
        cpu.store(f::IDT_VECTORING_INFO, 0x8000_0031);
        cpu.store(f::EXIT_QUALIFICATION, 1 << 12 | 1);
        run.reason = 48;
        crate::machine::switched::EXIT
    });
    b.enter(false);
    assert!(!b.v.nmi_masked());
    // The same for intercepted exceptions, where the flag stands in the interruption information; never for #DF.
    for (vector, masks) in [(17, true), (8, false)] {
        let mut b = Bench::new();
        b.cpu.next(move |_, run| {
            run.reason = 0;
            run.interruption = 0x8000_1300 | vector;
            crate::machine::switched::EXIT
        });
        b.enter(false);
        assert_eq!(b.v.nmi_masked(), masks);
    }
}
