//! Task switches: descriptors, the two TSS formats, and every refusal of SDM vol. 3A, table 8-1.

use exitless_insn::task::{
    BUSY, Cause, Descriptor, Format, Image, State, TYPE_BYTE, code_segment, data_segment, incoming, ldt,
    link, long_enough, lookup, provisional_code, provisional_stack, stack_segment, tss_address, unusable,
    vm86_segment,
};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Segment, TableReg, rflags};

/// A descriptor of base 0x12345678 and limit 0xabcde, with these bits 47:40 and flags (G, D/B, L, AVL).
fn descriptor(access: u8, flags: u8) -> Descriptor {
    Descriptor(0x1200_0034_5678_bcde | 0xa << 48 | u64::from(access) << 40 | u64::from(flags) << 52)
}

fn x(vector: Vector, code: u32) -> Exception {
    Exception { vector, error_code: Some(code), payload: 0 }
}

const GATE: Cause = Cause::Gate { external: true };

#[test]
fn descriptors() {
    let s = descriptor(0x93, 0b0100).segment(0x13);
    assert_eq!(s, Segment { base: 0x1234_5678, limit: 0xabcde, selector: 0x13, attrib: 0x493 });
    assert_eq!(descriptor(0x93, 0b1000).segment(0).limit, 0xabcd_efff);
    let d = descriptor(0x93, 0b0100);
    assert_eq!((d.type_byte(), d.0.to_le_bytes()[TYPE_BYTE as usize]), (0x93, 0x93));
    for (access, accessed) in [(0x92, false), (0x93, true), (0x89, true), (0x82, true)] {
        assert_eq!(descriptor(access, 0).accessed(), accessed, "{access:#x}");
    }
}

/// The null selector has no descriptor, whatever its RPL; all eight bytes must lie in the table; without an LDT there is
/// nothing in it.
#[test]
fn tables() {
    let gdtr = TableReg { base: 0x1000, limit: 0x17, reserved: 0 };
    let local = Segment { base: 0xffff_fff8, limit: 0xf, selector: 0x40, attrib: 0x82 };
    assert_eq!(lookup(0x13, &gdtr, &local), Some(0x1010));
    assert_eq!(lookup(0x18, &gdtr, &local), None);
    assert_eq!(lookup(0x10, &TableReg { limit: 0x16, ..gdtr }, &local), None);
    assert_eq!(lookup(3, &gdtr, &local), None);
    assert_eq!(lookup(4, &gdtr, &local), Some(0xffff_fff8), "entry 0 of an LDT counts");
    assert_eq!(lookup(0xc, &gdtr, &local), Some(0), "addresses wrap at 4 GiB");
    assert_eq!(lookup(0x14, &gdtr, &local), None);
    assert_eq!(lookup(4, &gdtr, &unusable(0)), None);
    assert_eq!(
        lookup(0xffff, &TableReg { limit: 0xffff, ..gdtr }, &Segment { limit: !0, ..local }),
        Some(0xfff0)
    );
}

/// The incoming TSS lies in the GDT. IRET blames the link it found with #TS, the others with #GP.
#[test]
fn tss_selectors() {
    let gdtr = TableReg { base: 0x1000, limit: 0x57, reserved: 0 };
    assert_eq!(tss_address(0x53, &gdtr, Cause::Jump), Ok(0x1050));
    for selector in [0, 3, 0x54, 0x58] {
        let code = u32::from(selector & 0xfffc);
        assert_eq!(tss_address(selector, &gdtr, Cause::Call), Err(x(Vector::GP, code)));
        assert_eq!(tss_address(selector, &gdtr, Cause::Iret), Err(x(Vector::TS, code)));
        assert_eq!(tss_address(selector, &gdtr, GATE), Err(x(Vector::GP, code | 1)));
        let inside = Cause::Gate { external: false };
        assert_eq!(tss_address(selector, &gdtr, inside), Err(x(Vector::GP, code)));
    }
}

#[test]
fn incoming_tss() {
    for (cause, busy, vector) in [
        (Cause::Call, 0, Vector::GP),
        (Cause::Jump, 0, Vector::GP),
        (GATE, 0, Vector::GP),
        (Cause::Iret, BUSY, Vector::TS),
    ] {
        let ext = cause.ext();
        let look = |access: u8| incoming(descriptor(access, 0), 0x4b, cause);
        assert_eq!(look(0x81 | busy), Ok(Format::Bits16));
        assert_eq!(look(0xe9 | busy), Ok(Format::Bits32), "DPL is not looked at");
        assert_eq!(look(0x89 | busy ^ BUSY), Err(x(vector, 0x48 | ext)), "{cause:?}, busy");
        for other in [0x80, 0x82, 0x84, 0x85, 0x8c, 0x8e, 0x93, 0x99] {
            assert_eq!(look(other), Err(x(vector, 0x48 | ext)), "{cause:?}, type {other:#x}");
        }
        assert_eq!(look(0x09 | busy), Err(x(Vector::NP, 0x48 | ext)));
        // The type counts before presence.
        assert_eq!(look(0x09 | busy ^ BUSY), Err(x(vector, 0x48 | ext)));
        for (typ, limit) in [(0x81u64, 0x2b), (0x89, 0x67)] {
            let tss = |limit: u64| Descriptor(typ << 40 | u64::from(busy) << 40 | limit);
            assert!(incoming(tss(limit), 0x48, cause).is_ok());
            assert_eq!(incoming(tss(limit - 1), 0x48, cause), Err(x(Vector::TS, 0x48 | ext)));
        }
    }
    let old = Segment { limit: 0x66, selector: 0x40, ..Segment::default() };
    assert_eq!(long_enough(&old, Format::Bits32, 1), Err(x(Vector::TS, 0x41)));
    assert_eq!(long_enough(&old, Format::Bits16, 1), Ok(()));
}

fn filled() -> Image {
    std::array::from_fn(|i| i as u8)
}

/// Fields of figure 8-2, each at its offset.
#[test]
fn load_32() {
    let mut image = filled();
    image[0x24..0x28].copy_from_slice(&u32::MAX.to_le_bytes());
    let s = State::load(Format::Bits32, &image);
    assert_eq!((s.cr3, s.eip, s.eflags), (Some(0x1f1e_1d1c), 0x2322_2120, 0x3f_7fd7));
    assert_eq!((s.gprs[0], s.gprs[4], s.gprs[7]), (0x2b2a_2928, 0x3b3a_3938, 0x4746_4544));
    assert_eq!(s.selectors, [0x4948, 0x4d4c, 0x5150, 0x5554, 0x5958, 0x5d5c]);
    assert_eq!((s.ldt, s.trap, link(&image)), (0x6160, false, 0x0100));
    image[0x64] = 1;
    assert!(State::load(Format::Bits32, &image).trap);
    assert!(s.vm86() && s.cpl() == 3);
    let s = State { eflags: 2, selectors: [0, 0x19, 0, 0, 0, 0], ..s };
    assert!(!s.vm86() && s.cpl() == 1);
}

/// Fields of figure 8-10. FS, GS and CR3 have no place there, nor has virtual-8086 mode.
#[test]
fn load_16() {
    let mut image = filled();
    image[0x10..0x14].copy_from_slice(&u32::MAX.to_le_bytes());
    let s = State::load(Format::Bits16, &image);
    assert_eq!((s.cr3, s.eip, s.eflags, s.ldt), (None, 0x0f0e, 0x7fd7, 0x2b2a));
    assert_eq!((s.gprs[0], s.gprs[1], s.gprs[7]), (0xffff, 0x1514, 0x2120));
    assert_eq!(s.selectors, [0x2322, 0x2524, 0x2726, 0x2928, 0, 0]);
    assert!(!s.vm86() && !s.trap);
}

/// What is saved comes back, and nothing else in the TSS changes: stacks, link, CR3, LDT, the upper halves of selectors.
#[test]
fn save() {
    let s = State {
        eip: 0x8765_4321,
        eflags: 0x0001_0246,
        gprs: std::array::from_fn(|i| 0x1111_1111 * (i as u32 + 1)),
        selectors: [8, 0x10, 0x18, 0x20, 0x28, 0x30],
        ..State::default()
    };
    for format in [Format::Bits16, Format::Bits32] {
        let mut image = [0xee; 104];
        s.save(format, &mut image);
        let (at, len) = format.dynamic();
        let outside = |i: &usize| !(at..at + len).contains(i);
        assert!((0..104).filter(outside).all(|i| image[i] == 0xee));
        let back = State::load(format, &image);
        if format == Format::Bits32 {
            assert_eq!((back.eip, back.eflags, back.gprs), (s.eip, s.eflags, s.gprs));
            assert_eq!(back.selectors, s.selectors);
            assert_eq!(image[0x4a..0x4c], [0xee; 2]);
        } else {
            assert_eq!((back.eip, back.eflags), (0x4321, 0x0246));
            assert_eq!((back.gprs[7], back.selectors), (0x8888, [8, 0x10, 0x18, 0x20, 0, 0]));
        }
    }
}

#[test]
fn local_tables() {
    assert_eq!(ldt(0x40, descriptor(0x82, 0), 0).map(|s| s.base), Ok(0x1234_5678));
    for access in [0x02, 0x89, 0x92, 0x80] {
        assert_eq!(ldt(0x40, descriptor(access, 0), 1), Err(x(Vector::TS, 0x41)));
    }
}

#[test]
fn code_segments() {
    let load = |selector, access| code_segment(selector, descriptor(access, 0b0100), 0);
    assert_eq!(load(0x18, 0x98).map(|s| s.attrib), Ok(0x499), "accessed from now on");
    assert_eq!(load(0x18, 0x99).map(|s| s.attrib), Ok(0x499), "as before");
    assert!(load(0x1b, 0xfa).is_ok() && load(0x1b, 0x9e).is_ok());
    assert_eq!(load(0x1b, 0x9a), Err(x(Vector::TS, 0x18)), "DPL is not the RPL");
    assert_eq!(load(0x18, 0xfe), Err(x(Vector::TS, 0x18)), "conforming, but of less privilege");
    assert_eq!(load(0x18, 0x92), Err(x(Vector::TS, 0x18)), "data");
    assert_eq!(load(0x18, 0x8b), Err(x(Vector::TS, 0x18)), "a system segment");
    assert_eq!(load(0x1c, 0x1a), Err(x(Vector::NP, 0x1c)));
}

#[test]
fn stack_segments() {
    let load = |selector, access, cpl| stack_segment(selector, descriptor(access, 0), cpl, 1);
    assert!(load(0x10, 0x92, 0).is_ok() && load(0x13, 0xf6, 3).is_ok());
    assert_eq!(load(0x13, 0x92, 0), Err(x(Vector::TS, 0x11)), "RPL");
    assert_eq!(load(0x10, 0xf2, 0), Err(x(Vector::TS, 0x11)), "DPL");
    assert_eq!(load(0x10, 0x90, 0), Err(x(Vector::TS, 0x11)), "read-only");
    assert_eq!(load(0x10, 0x9a, 0), Err(x(Vector::TS, 0x11)), "code");
    assert_eq!(load(0x10, 0x12, 0), Err(Exception::ss(0x11)), "absent");
}

#[test]
fn data_segments() {
    let load = |selector, access, cpl| data_segment(selector, descriptor(access, 0), cpl, 0);
    assert!(load(0x10, 0x90, 0).is_ok() && load(0x13, 0xf2, 3).is_ok() && load(0x18, 0x9a, 0).is_ok());
    assert!(load(0x1b, 0x9e, 3).is_ok(), "conforming code is everybody's");
    assert_eq!(load(0x18, 0x98, 0), Err(x(Vector::TS, 0x18)), "execute only");
    assert_eq!(load(0x10, 0x92, 3), Err(x(Vector::TS, 0x10)), "CPL above DPL");
    assert_eq!(load(0x13, 0x92, 0), Err(x(Vector::TS, 0x10)), "RPL above DPL");
    assert_eq!(load(0x10, 0x82, 0), Err(x(Vector::TS, 0x10)), "a system segment");
    assert_eq!(load(0x10, 0x12, 0), Err(x(Vector::NP, 0x10)));
}

/// A processor can be entered with these: virtual-8086 segments exactly as VM entry wants them, and before its load a CS that
/// is code of the new privilege level, whatever the old one was.
#[test]
fn made_up_segments() {
    let s = Segment { base: 0x1_2340, limit: 0xffff, selector: 0x1234, attrib: 0xf3 };
    assert_eq!(vm86_segment(0x1234), s);
    let cs = provisional_code(&s, 0x1b, 3);
    assert_eq!((cs.selector, cs.typ(), cs.dpl(), cs.present()), (0x1b, 0xb, 3, true));
    assert_eq!(provisional_code(&Segment { attrib: 0xc13, ..s }, 8, 0).attrib, 0xc9b, "its size stays");
    let ss = provisional_stack(0x23, 3);
    assert_eq!((ss.selector, ss.dpl(), ss.present()), (0x23, 3, false));
}

#[test]
fn causes() {
    assert!(Cause::Call.nests() && GATE.nests() && !Cause::Jump.nests() && !Cause::Iret.nests());
    assert_eq!(u64::from(State::load(Format::Bits32, &[0; 104]).eflags), rflags::FIXED);
}
