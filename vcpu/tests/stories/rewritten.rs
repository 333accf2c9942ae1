//! Another vCPU rewrites the instruction between its exit and the emulator's fetch. Whatever stands there then, it does what a
//! processor would let it do at that moment: a model with the guest's page tables, IOPL and permission bitmap says what.

use crate::fake::world::{CHIP_PORT, EVENT_PORT, ROM, USER_MMIO};
use crate::fake::{Machine, Op};
use exitless_kvm_abi::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_USE_HW_BP};
use exitless_vcpu::RunExit;
use exitless_vcpu::backend::{Backend, Event, Exit, IoAccess, SlatFault};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Gpr, SegReg, Segment, cr4, rflags};
use proptest::prelude::*;

const CODE: u64 = 0x1000;
const TSS: u64 = 0x5000;
const BITMAP: u64 = 104;
const DIRECTORY: u64 = 0x10_0000;
const LOW: u64 = 0x10_1000;
const HIGH: u64 = 0x10_2000;
/// Linear address of the first of [`PAGES`].
const WINDOW: u64 = 0x40_0000;

/// A page of the guest's: what it maps, and for whom.
#[derive(Clone, Copy, Debug)]
struct Page {
    gpa: u64,
    user: bool,
    write: bool,
}

const PAGES: [Page; 6] = [
    Page { gpa: 0x8000, user: true, write: true },
    Page { gpa: USER_MMIO, user: true, write: true },
    Page { gpa: USER_MMIO + 0x1000, user: true, write: false },
    Page { gpa: USER_MMIO, user: false, write: true },
    Page { gpa: 0x9000, user: false, write: true },
    Page { gpa: ROM, user: true, write: true },
];

/// What stands at RIP when the emulator looks.
#[derive(Clone, Copy, Debug)]
enum Code {
    Load(u64),
    Store(u64),
    Add(u64),
    Movs(u64, u64),
    In(u16),
    Out(u16),
    OutByte(u8),
    Ins(u16, u64),
    Outs(u16, u64),
    Sgdt(u64),
    MovDr,
    MovCr0,
    Lmsw,
    Clts,
}

/// One race.
#[derive(Clone, Debug)]
struct Race {
    exit: Exit,
    /// Where hardware walked to, if the CPU tells.
    linear: Option<u64>,
    /// The CPU tells the bytes that it executed; others stand there now.
    told: bool,
    code: Code,
    user: bool,
    iopl: u64,
    aligned: bool,
    tss_limit: u32,
    bitmap: u64,
}

/// A device access: write, address.
type Seen = (bool, u64);

struct Model<'a> {
    race: &'a Race,
    seen: Vec<Seen>,
}

impl Model<'_> {
    /// The hall's answer: accesses of devices, and the exception that ended them.
    fn run(mut self) -> (Vec<Seen>, Option<Vector>) {
        let end = self.execute().err();
        (self.seen, end)
    }

    fn execute(&mut self) -> Result<(), Vector> {
        match self.race.code {
            Code::Load(at) => self.access(at, false),
            Code::Store(at) => self.access(at, true),
            Code::Add(at) => {
                self.place(at, true)?;
                self.access(at, false)?;
                self.access(at, true)
            }
            Code::Movs(from, to) => {
                self.aligned(from)?;
                self.aligned(to)?;
                self.access(from, false)?;
                self.access(to, true)
            }
            Code::In(port) => self.port(port, 4, false),
            Code::Out(port) => self.port(port, 4, true),
            Code::OutByte(port) => self.port(u16::from(port), 1, true),
            Code::Ins(port, to) => {
                self.allowed(port, 4)?;
                self.place(to, true)?;
                self.port(port, 4, false)?;
                self.access(to, true)
            }
            Code::Outs(port, from) => {
                self.allowed(port, 4)?;
                self.access(from, false)?;
                self.port(port, 4, true)
            }
            Code::Sgdt(_) if self.race.user => Err(Vector::GP),
            Code::Sgdt(at) => {
                self.access(at, true)?;
                self.access(at + 2, true)
            }
            Code::MovDr | Code::MovCr0 | Code::Lmsw | Code::Clts => {
                if self.race.user {
                    Err(Vector::GP)
                } else {
                    Ok(())
                }
            }
        }
    }

    fn aligned(&self, at: u64) -> Result<(), Vector> {
        if self.race.aligned && self.race.user && at & 3 != 0 { Err(Vector::AC) } else { Ok(()) }
    }

    /// Where 4 bytes lie, if they may be accessed. What hardware had walked for says the same as the tables do, as nobody writes
    /// to those.
    fn place(&self, at: u64, write: bool) -> Result<u64, Vector> {
        self.aligned(at)?;
        let page = PAGES.get(((at - WINDOW) >> 12) as usize).ok_or(Vector::PF)?;
        let allowed = (page.user || !self.race.user) && (page.write || !write);
        if allowed { Ok(page.gpa | at & 0xfff) } else { Err(Vector::PF) }
    }

    fn access(&mut self, at: u64, write: bool) -> Result<(), Vector> {
        let gpa = self.place(at, write)?;
        if gpa >= ROM && (gpa & !0xfff != ROM || write) {
            self.seen.push((write, gpa));
        }
        Ok(())
    }

    fn port(&mut self, port: u16, size: u8, write: bool) -> Result<(), Vector> {
        self.allowed(port, size)?;
        self.seen.push((write, u64::from(port)));
        Ok(())
    }

    /// SDM vol. 1, 19.5.
    fn allowed(&self, port: u16, size: u8) -> Result<(), Vector> {
        let r = self.race;
        if !r.user || r.iopl == 3 {
            return Ok(());
        }
        let bytes = BITMAP + u64::from(port / 8) + 1;
        let set = |p: u16| r.bitmap.rotate_right(u32::from(p) & 63) & 1 != 0;
        if bytes > u64::from(r.tss_limit) || (port..port + u16::from(size)).any(set) {
            return Err(Vector::GP);
        }
        Ok(())
    }
}

fn bytes(code: Code) -> Vec<u8> {
    let direct = |op: &[u8], at: u64| [op, &(at as u32).to_le_bytes()].concat();
    match code {
        Code::Load(at) => direct(&[0xa1], at),
        Code::Store(at) => direct(&[0xa3], at),
        Code::Add(at) => direct(&[0x01, 0x05], at),
        Code::Movs(..) => vec![0xa5],
        Code::In(_) => vec![0xed],
        Code::Out(_) => vec![0xef],
        Code::OutByte(port) => vec![0xe6, port],
        Code::Ins(..) => vec![0x6d],
        Code::Outs(..) => vec![0x6f],
        Code::Sgdt(at) => direct(&[0x0f, 0x01, 0x05], at),
        Code::MovDr => vec![0x0f, 0x21, 0xc3],
        Code::MovCr0 => vec![0x0f, 0x22, 0xc0],
        Code::Lmsw => vec![0x0f, 0x01, 0xf0],
        Code::Clts => vec![0x0f, 0x06],
    }
}

fn registers(code: Code) -> Vec<(Gpr, u64)> {
    match code {
        Code::Movs(from, to) => vec![(Gpr::Rsi, from), (Gpr::Rdi, to)],
        Code::In(port) | Code::Out(port) => vec![(Gpr::Rdx, u64::from(port))],
        Code::Ins(port, to) => vec![(Gpr::Rdx, u64::from(port)), (Gpr::Rdi, to)],
        Code::Outs(port, from) => vec![(Gpr::Rdx, u64::from(port)), (Gpr::Rsi, from)],
        _ => vec![],
    }
}

/// Code, tables, the task state and the registers of that moment.
fn machine(r: &Race) -> Machine {
    let mut m = Machine::new([Op::Event(r.exit)]);
    let put = |at: u64, v: u64| assert!(m.w.write_ram(at, &(v as u32).to_le_bytes()));
    put(DIRECTORY, LOW | 7);
    put(DIRECTORY + 4, HIGH | 7);
    put(LOW + CODE / 1024, CODE | 5);
    put(LOW + TSS / 1024, TSS | 1);
    for page in [TSS + 0x1000, TSS + 0x2000] {
        put(LOW + page / 1024, page | 1);
    }
    for (i, p) in PAGES.iter().enumerate() {
        let rights = 1 | u64::from(p.write) << 1 | u64::from(p.user) << 2;
        put(HIGH + 4 * i as u64, p.gpa | rights);
    }
    if r.told {
        m.v.b.fetched = bytes(r.code);
        m.w.write_ram(CODE, &[0x0f, 0x0b]);
    } else {
        m.w.write_ram(CODE, &bytes(r.code));
    }
    if r.exit == Exit::DrAccess {
        // Only with a debugger in the way is the instruction looked at.
        let control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        m.v.set_guest_debug(control, [0, 0, 0, 0, 0, 0, 0, 0x400]).unwrap();
    }
    m.w.write_ram(TSS + 102, &(BITMAP as u16).to_le_bytes());
    for at in (0..0x2000).step_by(8) {
        m.w.write_ram(TSS + BITMAP + at, &r.bitmap.to_le_bytes());
    }
    m.set_cpl(if r.user { 3 } else { 0 });
    let b = &mut m.v.b;
    b.set_segment(SegReg::Tr, &Segment { base: TSS, limit: r.tss_limit, selector: 0x28, attrib: 0x8b });
    b.rflags |= r.iopl << 12 | if r.aligned { rflags::AC } else { 0 };
    b.cr4 |= cr4::UMIP;
    // PE, ET, WP, AM, PG.
    b.cr0 = 0x8005_0011;
    b.cr3 = DIRECTORY;
    b.rip = CODE;
    b.linear = r.linear;
    b.gprs.set(Gpr::Rax, 0x8005_0011);
    for (reg, v) in registers(r.code) {
        b.gprs.set(reg, v);
    }
    m
}

fn address() -> impl Strategy<Value = u64> {
    let offset = prop_oneof![4 => Just(0x10u64), 1 => Just(0x20), 1 => Just(0x21)];
    (0..PAGES.len() as u64 + 1, offset).prop_map(|(page, offset)| WINDOW + page * 0x1000 + offset)
}

fn code() -> impl Strategy<Value = Code> {
    let port = || prop_oneof![Just(0x80u16), Just(CHIP_PORT), Just(EVENT_PORT), 0x300..0x340u16];
    prop_oneof![
        3 => address().prop_map(Code::Load),
        3 => address().prop_map(Code::Store),
        1 => address().prop_map(Code::Add),
        1 => address().prop_map(Code::Sgdt),
        2 => (address(), address()).prop_map(|(a, b)| Code::Movs(a, b)),
        1 => port().prop_map(Code::In),
        1 => port().prop_map(Code::Out),
        1 => (0x60..0x90u8).prop_map(Code::OutByte),
        1 => (port(), address()).prop_map(|(p, a)| Code::Ins(p, a)),
        1 => (port(), address()).prop_map(|(p, a)| Code::Outs(p, a)),
    ]
}

/// Where hardware had walked to for an operand of user code's or the system's, its own access (to a descriptor, or the I/O
/// bitmap), a fetch, or tables; or a string instruction's port.
#[derive(Clone, Copy, Debug)]
enum Before {
    Operand(u64, bool),
    System(u64),
    Fetch(u64),
    Tables(u64),
    Port(bool),
    Table,
}

fn before() -> impl Strategy<Value = Before> {
    let at = || {
        (1..5u64, prop_oneof![3 => Just(0x10u64), 1 => Just(0x21)]).prop_map(|(p, o)| WINDOW + p * 0x1000 + o)
    };
    prop_oneof![
        4 => (at(), any::<bool>()).prop_map(|(at, write)| Before::Operand(at, write)),
        2 => at().prop_map(Before::System),
        1 => at().prop_map(Before::Fetch),
        1 => at().prop_map(Before::Tables),
        2 => any::<bool>().prop_map(Before::Port),
        1 => Just(Before::Table),
    ]
}

/// The exit, and its linear address; `None`: the walk would not have come that far.
fn exit(before: Before, user: bool) -> Option<(Exit, u64)> {
    let page = |at: u64| PAGES.get(((at - WINDOW) >> 12) as usize).filter(|p| p.gpa >= ROM + 0x1000);
    let slat = |at: u64, write: bool, fetch: bool, table_walk: bool, rights: bool| {
        let gpa = page(at).filter(|p| !rights || (p.user || !user) && (p.write || !write))?.gpa | at & 0xfff;
        Some((Exit::Slat(SlatFault { gpa, write, fetch, present: false, table_walk, marked: false }), at))
    };
    match before {
        Before::Operand(at, write) => slat(at, write, false, false, true),
        Before::System(at) => slat(at, false, false, false, false),
        Before::Fetch(at) => slat(at, false, true, false, true),
        // The tables lie in another device.
        Before::Tables(at) => {
            let gpa = (USER_MMIO + 0x5000) | at & 0xfff;
            Some((
                Exit::Slat(SlatFault {
                    gpa,
                    write: true,
                    fetch: false,
                    present: false,
                    table_walk: true,
                    marked: false,
                }),
                at,
            ))
        }
        Before::Table => Some((Exit::DescriptorTable, 0)),
        Before::Port(input) => {
            Some((Exit::Io(IoAccess { port: 0x80, size: 4, input, string: true, rep: false }), 0))
        }
    }
}

fn race() -> impl Strategy<Value = Race> {
    let control = prop_oneof![Just(Code::MovCr0), Just(Code::Lmsw), Just(Code::Clts)];
    let (limit, bitmap) = (
        prop_oneof![Just(BITMAP as u32 + 0x2000), Just(BITMAP as u32 + 0x20), Just(102u32)],
        prop_oneof![Just(0u64), Just(!0), any::<u64>(), (0..64u32).prop_map(|i| 1 << i)],
    );
    let control = control.prop_map(|code| (Exit::CrAccess, code));
    let registers = prop_oneof![3 => control, 1 => Just((Exit::DrAccess, Code::MovDr))];
    let both = prop_oneof![
        8 => (before(), code(), 0..3u8, any::<bool>()).prop_map(|(before, code, tells, same)| {
            (Err((before, tells)), if same { moved(code, before) } else { code })
        }),
        1 => registers.prop_map(|(exit, code)| (Ok(exit), code)),
    ];
    (both, any::<bool>(), 0..4u64, any::<bool>(), limit, bitmap).prop_filter_map(
        "no such walk",
        |((exit, code), user, iopl, aligned, tss_limit, bitmap)| {
            let (exit, linear, told) = match exit {
                Ok(exit) => (exit, None, false),
                Err((before, tells)) => seen_before(before, tells, code, user)?,
            };
            Some(Race { exit, linear, told, code, user, iopl, aligned, tss_limit, bitmap })
        },
    )
}

/// The code with its operand where hardware had walked to.
fn moved(code: Code, before: Before) -> Code {
    let at = match before {
        Before::Operand(at, _) | Before::System(at) | Before::Fetch(at) | Before::Tables(at) => at,
        Before::Port(_) | Before::Table => return code,
    };
    match code {
        Code::Load(_) => Code::Load(at),
        Code::Store(_) => Code::Store(at),
        Code::Add(_) => Code::Add(at),
        Code::Movs(_, to) => Code::Movs(at, to),
        _ => code,
    }
}

/// The exit, and what the CPU tells besides: nothing, the linear address, or the bytes, which are then those that made it.
fn seen_before(before: Before, tells: u8, code: Code, user: bool) -> Option<(Exit, Option<u64>, bool)> {
    let executed = match code {
        Code::Load(at) => Some(Before::Operand(at, false)),
        Code::Store(at) => Some(Before::Operand(at, true)),
        _ => None,
    };
    let told = tells == 2 && executed.is_some();
    let (exit, at) = exit(if told { executed? } else { before }, user)?;
    Some((exit, (tells == 1).then_some(at), told))
}

fn check(r: &Race) {
    let mut m = machine(r);
    m.go();
    let seen: Vec<Seen> = m.w.log.borrow().iter().map(|t| (t.write, t.at)).collect();
    let vector = m.events().iter().find_map(|e| match e {
        Event::Exception(x) => Some(x.vector),
        _ => None,
    });
    assert_eq!((seen, vector), Model { race: r, seen: vec![] }.run(), "{r:x?}");
    assert_eq!(m.v.b.cr0, 0x8005_0011 & if matches!((r.code, vector), (Code::Clts, None)) { !8 } else { !0 });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    /// See the file's head.
    #[test]
    fn as_the_processor_would(r in race()) {
        check(&r);
    }
}

fn slat(gpa: u64, write: bool) -> Exit {
    Exit::Slat(SlatFault { gpa, write, fetch: false, present: false, table_walk: false, marked: false })
}

const USER: Race = Race {
    exit: Exit::CrAccess,
    linear: None,
    told: false,
    code: Code::Clts,
    user: true,
    iopl: 0,
    aligned: false,
    tss_limit: BITMAP as u32 + 0x2000,
    bitmap: !0,
};

/// User code that may not use any port loads from a device, and another thread writes OUT over the load: #GP, and no port is
/// touched.
#[test]
fn out_in_place_of_a_load() {
    let r = Race { exit: slat(USER_MMIO + 0x10, false), code: Code::Out(0x80), ..USER };
    let mut m = machine(&r);
    m.go();
    assert_eq!(m.events(), [Event::Exception(Exception::gp(0))]);
    assert!(m.w.log.borrow().is_empty());
}

/// A device is mapped for reading only. Its load becomes a store: #PF, as the store alone would have had.
#[test]
fn store_in_place_of_a_load() {
    let at = WINDOW + 0x2010;
    let r = Race { exit: slat(USER_MMIO + 0x1010, false), code: Code::Store(at), ..USER };
    let mut m = machine(&r);
    m.go();
    assert_eq!(m.events(), [Event::Exception(Exception::pf(7, at))]);
    assert!(m.w.log.borrow().is_empty());
}

/// The I/O bitmap lies in a device, which only the system may touch. The IN that had it read becomes a load from there: #PF.
#[test]
fn load_in_place_of_a_system_access() {
    let at = WINDOW + 0x3010;
    let exit = slat(USER_MMIO + 0x10, false);
    let mut m = machine(&Race { exit, linear: Some(at), code: Code::Load(at), ..USER });
    m.go();
    assert_eq!(m.events(), [Event::Exception(Exception::pf(5, at))]);
    assert!(m.w.log.borrow().is_empty());
}

/// The kernel's load from one device becomes one from another, at the same offset: that one is read.
#[test]
fn another_device() {
    let exit = slat(USER_MMIO + 0x10, false);
    let code = Code::Load(WINDOW + 0x2010);
    let mut m = machine(&Race { exit, linear: Some(WINDOW + 0x1010), code, user: false, ..USER });
    m.go();
    assert_eq!(m.w.log.borrow().iter().map(|t| t.at).collect::<Vec<_>>(), [USER_MMIO + 0x1010]);
}

/// SMSW is user code's to execute, and exits where CR0 reads do; the MOV CR0 written over it is not.
#[test]
fn mov_cr0_in_place_of_smsw() {
    let mut m = machine(&Race { code: Code::MovCr0, ..USER });
    m.v.b.gprs.set(Gpr::Rax, 0x11);
    m.go();
    assert_eq!(m.events(), [Event::Exception(Exception::gp(0))]);
    assert_eq!(m.v.b.cr0, 0x8005_0011);
}

/// A debugger's INT3 over the load: the guest runs into it.
#[test]
fn breakpoint_in_place_of_a_load() {
    let mut m = Machine::new([Op::Event(slat(USER_MMIO, false)), Op::Nop]);
    m.w.write_ram(CODE, &[0xcc]);
    assert_eq!((m.go(), m.events()), (RunExit::Interrupted, vec![]));
    assert_eq!(m.v.b.entries, 2);
}

/// The guest's own INT3, whose frame lies in a device, on a CPU that tells only that: it would meet the exit for ever. User code
/// gets #UD.
#[test]
fn breakpoint_into_a_device() {
    let mut m = Machine::new([Op::Event(slat(USER_MMIO, true)), Op::Nop]);
    m.w.write_ram(CODE, &[0xcc]);
    m.v.b.own_event = true;
    m.set_cpl(3);
    assert_eq!((m.go(), m.events()), (RunExit::Interrupted, vec![Event::Exception(Exception::ud())]));
}
