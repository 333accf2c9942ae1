//! The run loop under random sequences of guest operations, interrupted deliveries, requests, signals, moves between CPUs and
//! user-space answers. The machine in `fake/` asserts at every entry and every service; what is left at the end is asserted here.

mod fake;

use exitless_vcpu::backend::{By, Event, Exit, IoAccess, SlatFault, TaskSource, TaskSwitch};
use exitless_vcpu::shared::mp;
use exitless_vcpu::{Request, RunExit};
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::regs::{Segment, rflags};
use fake::cpu::Noise;
use fake::guest::*;
use fake::world::{CHIP_MMIO, CHIP_PORT, EVENT_PORT, ROM, USER_MMIO};
use fake::{Env, Machine, Op};
use proptest::collection::vec;
use proptest::prelude::*;

/// Vectors of devices: all but the timer's.
fn vector() -> impl Strategy<Value = u8> {
    prop_oneof![0x20..0x30u8, 0x20..=0xeb_u8, Just(0x10), Just(0xff)]
}

fn env() -> impl Strategy<Value = Env> {
    prop_oneof![
        6 => vector().prop_map(Env::Irq),
        3 => (vector(), 0..6u8).prop_map(|(v, gap)| Env::SlowIrq(v, gap)),
        2 => (vector(), 0..6u8).prop_map(|(v, gap)| Env::SentByCpu(v, gap)),
        1 => vector().prop_map(Env::LateIrq),
        1 => (8..16u8).prop_map(Env::Pic),
        2 => Just(Env::Nmi),
        2 => Just(Env::TlbFlush),
        1 => prop_oneof![
            Just(Request::EVENT), Just(Request::QUIESCE), Just(Request::TIMER), Just(Request::CLOCK),
            Just(Request::STEAL), Just(Request::TSC), Just(Request::STOPPED), Just(Request::SLEPT), Just(Request::TLB_FLUSH),
        ].prop_map(Env::Ask),
        2 => any::<u64>().prop_map(Env::Switch),
        1 => Just(Env::Signal),
        1 => Just(Env::Immediate),
        1 => Just(Env::Work),
        2 => (0..4u32).prop_map(Env::Move),
        1 => (0..100_000u64).prop_map(Env::Time),
    ]
}

/// Addresses of devices, near and across the edges of their pages.
fn device() -> impl Strategy<Value = u64> {
    prop_oneof![
        (0..16u64).prop_map(|i| USER_MMIO + 4 * i),
        (0xffc..0x1000u64).prop_map(|i| USER_MMIO + i),
        (0..16u64).prop_map(|i| CHIP_MMIO + 4 * i),
        (0xffd..0x1000u64).prop_map(|i| CHIP_MMIO + i),
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![Just(CHIP_PORT), Just(CHIP_PORT + 3), Just(EVENT_PORT), Just(0x80), Just(0xfff0)]
}

fn size() -> impl Strategy<Value = u8> {
    prop_oneof![Just(1u8), Just(2), Just(4)]
}

/// Where the guest's lazy deadlines are.
const LAZY_PAGE: u64 = 0x5_0000;

/// What REP OUTS sends.
const RAM_DATA: [u8; 12] = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 255, 254];

fn operation() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => Just(Op::Nop),
        2 => Just(Op::Sti),
        1 => Just(Op::Cli),
        2 => (0..17u8).prop_map(Op::Cr8),
        1 => any::<u8>().prop_map(Op::Tpr),
        2 => (0x40..0x48u64).prop_map(|p| Op::Ram(p << 12)),
        1 => prop_oneof![Just(0x400u64), Just(0x401), Just(0x455)].prop_map(Op::Dr7),
        1 => (0..50_000u64).prop_map(Op::Deadline),
        1 => (0x20..=0xeb_u8).prop_map(Op::SelfIpi),
        1 => any::<u8>().prop_map(Op::Ipi),
        1 => Just(Op::ReadCount),
        1 => Just(Op::Inhibit),
        5 => env().prop_map(Op::World),
        1 => Just(hlt()),
        2 => prop_oneof![
            Just(wbinvd()), Just(pause()), Just(vmrun()), Just(rdpmc(3)), Just(faulting(rdpmc(4))), Just(hypercall(1)),
            Just(cpuid(1, 0)), Just(told(cpuid(7, 0))), Just(faulting(rdmsr(0x1234_5678))),
            Just(wrmsr(0x4b56_4d01, 0x6_0001)), Just(wrmsr(0x4b56_4d03, 0x6_1001)), Just(rdmsr(0x10)),
            Just(faulting(wrmsr(0xfe, 1))), Just(mov_cr4(0x80)), Just(mov_cr4(0)), Just(faulting(mov_cr4(1 << 13))),
        ],
        1 => prop_oneof![
            Just(Exception::gp(8)), Just(Exception::ud()), Just(Exception::pf(2, 0x1234_5000)), Just(Exception::plain(Vector::DB)),
        ].prop_map(|x| Op::Event(Exit::Exception(x))),
        1 => prop_oneof![Just(Exit::Nmi), Just(Exit::HostEvent), Just(Exit::Timer), Just(Exit::ExternalInterrupt)].prop_map(Op::Event),
        1 => (port(), size(), any::<u32>()).prop_map(|(p, s, v)| out(p, s, v)),
        1 => (port(), size()).prop_map(|(p, s)| input(p, s)),
        1 => (port(), 1..4u64).prop_map(|(p, n)| outs(p, 0x8000, n, &RAM_DATA)),
        1 => (port(), 1..4u64).prop_map(|(p, n)| ins(p, 0x9000, n)),
        1 => device().prop_map(load),
        1 => (device(), any::<u32>()).prop_map(|(at, v)| store(at, v)),
        1 => (device(), any::<u32>()).prop_map(|(at, v)| add(at, v)),
        1 => (device(), device()).prop_map(|(a, b)| movs(a, b)),
        1 => Just(store(ROM + 4, 1)),
    ]
}

/// What the CPU does for the APIC.
#[derive(Clone, Copy, Debug)]
struct Hardware {
    apic: bool,
    /// AMD's.
    avic: bool,
    x2apic: bool,
    /// Ticks its timer counts at most, if there is one.
    timer: Option<u64>,
    /// The guest idles without exits, on a host whose housekeepers post its timers.
    posts: bool,
    /// The host's tick is the CPU's APIC timer, and comes so often; 0: it is not.
    tick: u64,
}

impl Hardware {
    /// After power-up, on such a CPU.
    fn power_up(self, bsp: bool, irqchip: bool) -> Machine {
        Machine::power_up_with(bsp, irqchip, self.avic)
    }

    fn install(self, m: &mut Machine) {
        m.v.b.apic.able = self.apic || self.avic;
        m.v.b.timer_limit = self.timer;
        // CPUs with such a timer do not tell bytes.
        m.v.b.tells_bytes = self.timer.is_none();
        m.w.idles_in_guest.set(self.posts);
        m.w.housekeeping.set(self.posts);
        if self.tick != 0 {
            m.w.start_tick(self.tick);
        }
        if self.x2apic {
            m.set_x2apic();
        }
    }
}

fn hardware() -> impl Strategy<Value = Hardware> {
    let timer = prop_oneof![Just(None), Just(Some(20_000)), Just(Some(1 << 24))];
    let tick = prop_oneof![Just(0), Just(3000u64), Just(50_000), Just(1 << 40)];
    (0..3u8, any::<bool>(), timer, any::<bool>(), tick).prop_map(|(apic, x2apic, timer, posts, tick)| {
        Hardware { tick, apic: apic == 1, avic: apic == 2, x2apic, timer, posts }
    })
}

/// What a delivery may run into: exits that do not make it fail.
fn obstacle() -> impl Strategy<Value = Option<Exit>> {
    let ram = SlatFault {
        gpa: 0x5000,
        write: true,
        fetch: false,
        present: false,
        table_walk: false,
        marked: false,
    };
    prop_oneof![
        3 => Just(None),
        1 => prop_oneof![Just(Exit::Slat(ram)), Just(Exit::ExternalInterrupt), Just(Exit::Nmi), Just(Exit::Timer), Just(Exit::HostEvent)].prop_map(Some),
    ]
}

/// Brings everything that is under way to its end: interrupts open, TPR 0, time passes, a halted CPU gets an NMI.
fn drain(m: &mut Machine) {
    let mut quiet = 0;
    for round in 0.. {
        assert!(round < 80, "does not come to rest");
        for (_, e) in m.w.schedule.take() {
            m.happen(e);
        }
        m.w.finish_senders();
        if m.halted() {
            m.happen(Env::Nmi);
        }
        m.happen(Env::Time(1_000_000));
        assert_eq!(m.then([Op::Cr8(0), Op::Sti, Op::Nop, Op::Nop, Op::Nop]), RunExit::Interrupted);
        quiet = if m.v.b.idle() && !m.halted() { quiet + 1 } else { 0 };
        if quiet == 3 {
            return;
        }
    }
}

/// At rest nothing is left anywhere: all that was sent arrived, all that was begun ended.
fn at_rest(m: &Machine) {
    let (w, v) = (&m.w, &m.v);
    assert!(w.irr.borrow().is_empty(), "never delivered: {:x?}", w.irr.borrow());
    assert!(w.isr.borrow().is_empty());
    assert_eq!((m.sh.apic.top_irr(), v.lapic.top_isr()), (None, None));
    assert!(!w.nmi_owed.get(), "an NMI was lost");
    assert!(!w.flush_owed.get(), "a flush was lost");
    assert!(!w.timer_owed.get(), "a deadline was lost");
    assert_eq!(w.cpu_timer.get(), None, "a timer runs for nothing");
    let over = !m.sh.timer.is_posted() || m.sh.timer.has_fired();
    assert!(!m.sh.timer.is_cpu() && !m.sh.timer.is_host() && over);
    assert_eq!(v.b.apic.taken, None);
    let sent: Vec<u32> = w.ipis.borrow().iter().map(|i| i.destination).collect();
    assert_eq!(sent, *w.ipis_owed.borrow(), "an IPI went elsewhere");
    assert_eq!((w.pic.get(), w.pic_acked.get()), (None, None));
    assert_eq!((v.exception, v.reinject, v.injecting, v.b.event, v.nmi_pending), (None, None, None, None, 0));
    assert!(!v.b.window && !v.b.nmi_window && !v.b.cr8_intercept, "a wish was never withdrawn");
    assert!(v.pending_port.is_none() && v.journal.awaiting().is_none());
    assert!(!w.in_slice.get() && !m.sh.needs_ipi());
}

/// `cases` unless PROPTEST_CASES says more.
fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").map(|_| ProptestConfig::default().cases);
    ProptestConfig { cases: asked.unwrap_or(cases), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(400))]

    /// Every interrupt sent is delivered once; no wake-up, flush, NMI or deadline is lost; each instruction completes once with
    /// its device accesses once; and all assertions of the machine hold on the way.
    #[test]
    fn nothing_lost_nothing_twice(
        ops in vec(operation(), 1..60),
        schedule in vec((0..12u8, env()), 0..25),
        breaks in vec(obstacle(), 0..25),
        pv_eoi: bool,
        swapped: bool,
        poor_nmi_window: bool,
        lazy: bool,
        tracing: bool,
        wanted in proptest::option::of(vector()),
        hardware in hardware(),
    ) {
        let mut m = hardware.power_up(true, true);
        m.boot();
        m.v.b.rflags |= rflags::IF;
        hardware.install(&mut m);
        if lazy {
            prop_assert_eq!(m.then([wrmsr(0x4558_4c00, LAZY_PAGE | 1)]), RunExit::Interrupted);
            m.w.lazy.set(Some(LAZY_PAGE));
        }
        m.v.b.ops.extend(ops);
        m.w.write_ram(0x8000, &RAM_DATA);
        if pv_eoi {
            m.enable_pv_eoi();
        }
        m.w.tracing.set(tracing);
        m.w.wanted_eoi.set(wanted);
        m.w.swapped.set(swapped);
        m.v.b.poor_nmi_window = poor_nmi_window;
        m.w.schedule.borrow_mut().extend(schedule);
        m.v.b.breaks.extend(breaks);
        prop_assert_eq!(m.go(), RunExit::Interrupted);
        drain(&mut m);
        at_rest(&m);
    }

    /// The same where, whenever KVM_RUN ends by a signal, the APIC's state is taken and set in a new one, under other switches.
    #[test]
    fn moved_at_any_moment(
        ops in vec(operation(), 1..60),
        schedule in vec((0..12u8, prop_oneof![2 => env(), 1 => Just(Env::Signal)]), 0..25),
        moves in vec((any::<bool>(), prop_oneof![Just(0), Just(!0), any::<u64>()]), 1..12),
        pv_eoi: bool,
        hardware in hardware(),
    ) {
        let mut m = hardware.power_up(true, true);
        m.boot();
        m.v.b.rflags |= rflags::IF;
        m.v.b.ops.extend(ops);
        hardware.install(&mut m);
        m.w.write_ram(0x8000, &RAM_DATA);
        if pv_eoi {
            m.enable_pv_eoi();
        }
        m.w.schedule.borrow_mut().extend(schedule);
        let mut moves = moves.into_iter();
        while !m.w.script_over.get() {
            match m.run() {
                exit @ (RunExit::Io { .. } | RunExit::Mmio(_)) => m.answer(exit),
                RunExit::Interrupted => {
                    m.w.signal.set(false);
                    m.w.immediate.set(false);
                    if let Some((early, switches)) = moves.next() {
                        m.renew_apic(early);
                        m.happen(Env::Switch(switches));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        m.w.script_over.set(false);
        drain(&mut m);
        at_rest(&m);
    }

    /// User space has the interrupt controllers: its vectors go in once, in order, each when the window is open.
    #[test]
    fn user_interrupts(ops in vec(operation(), 1..40), breaks in vec(obstacle(), 0..25), vectors in vec(0x20..=0xff_u8, 0..6)) {
        let ours = |o: &Op| {
            let apic = matches!(o, Op::Deadline(_) | Op::Tpr(_) | Op::SelfIpi(_) | Op::Ipi(_) | Op::ReadCount | Op::Inhibit);
            let sent = |e: &Env| matches!(e, Env::Irq(_) | Env::SlowIrq(..) | Env::SentByCpu(..) | Env::LateIrq(_));
            apic || matches!(o, Op::World(e) if sent(e) || matches!(e, Env::Pic(_)))
        };
        let ops = ops.into_iter().filter(|o| !ours(o)).chain([Op::Cr8(0), Op::Sti]).chain([Op::Nop, Op::Nop]);
        let mut m = Machine::without_irqchip(ops);
        m.w.write_ram(0x8000, &RAM_DATA);
        m.v.b.breaks.extend(breaks);
        let mut left = vectors.clone().into_iter();
        let mut next = left.next();
        for round in 0.. {
            prop_assert!(round < 1000, "goes in circles");
            m.v.want_window = next.is_some();
            match m.go() {
                RunExit::IrqWindowOpen => {
                    prop_assert!(m.v.user_interrupt.is_none());
                    m.v.user_interrupt = next.take();
                    next = left.next();
                }
                RunExit::Interrupted if next.is_none() && m.v.b.idle() && m.v.user_interrupt.is_none() => break,
                RunExit::Interrupted => m.v.b.ops.extend([Op::Sti, Op::Nop]),
                RunExit::Hlt | RunExit::SetTpr => {}
                other => panic!("{other:?}"),
            }
        }
        let got: Vec<u8> = m.events().iter().filter_map(|e| if let Event::Interrupt(v) = e { Some(*v) } else { None }).collect();
        prop_assert_eq!(got, vectors);
    }

    /// INIT and SIPI at any moment, among everything else: the activity state is that of the last of them, and the machine's
    /// assertions hold.
    #[test]
    fn startup_storms(bsp: bool, hardware in hardware(), events in vec((0..6u8, prop_oneof![
        2 => Just(Env::Init), 2 => (0..=255u8).prop_map(Env::Sipi), 1 => Just(Env::Nmi), 1 => Just(Env::TlbFlush),
        1 => Just(Env::Signal), 1 => Just(Env::Work), 1 => (0..4u32).prop_map(Env::Move), 1 => vector().prop_map(Env::Irq),
    ]), 0..30)) {
        let mut m = hardware.power_up(bsp, true);
        hardware.install(&mut m);
        m.v.b.handlers = false;
        let mut model = m.v.mp_state;
        for (_, e) in &events {
            model = match e {
                Env::Init if bsp => mp::RUNNABLE,
                Env::Init => mp::INIT_RECEIVED,
                Env::Sipi(_) if model == mp::INIT_RECEIVED => mp::RUNNABLE,
                _ => model,
            };
        }
        m.w.schedule.borrow_mut().extend(events);
        for _ in 0..20 {
            m.v.b.ops.extend((0..10).map(|_| Op::Nop));
            prop_assert_eq!(m.go(), RunExit::Interrupted);
        }
        for (_, e) in m.w.schedule.take() {
            m.happen(e);
        }
        m.go();
        prop_assert_eq!(m.v.mp_state, model);
    }

}

proptest! {
    #![proptest_config(config(150))]

    /// Whatever a CPU reports, with whatever is in its registers: the loop answers or leaves; it never panics, never leaves a
    /// slice open and never programs two events.
    #[test]
    fn survives_noise(
        steps in vec(any_noise(), 1..40),
        schedule in vec((0..12u8, env()), 0..10),
        irqchip: bool,
        user_interrupt: Option<u8>,
        want_window: bool,
        hardware in hardware(),
    ) {
        let mut m = hardware.power_up(true, irqchip);
        m.boot();
        hardware.install(&mut m);
        m.v.user_interrupt = user_interrupt;
        m.v.want_window = want_window;
        m.w.schedule.borrow_mut().extend(schedule);
        let mut rounds = steps.len() * 4 + 100;
        m.v.b.noise = Some(steps.into());
        while m.v.b.noise.as_ref().is_some_and(|n| !n.is_empty()) && rounds > 0 {
            rounds -= 1;
            match m.run() {
                exit @ (RunExit::Io { .. } | RunExit::Mmio(_)) => m.answer(exit),
                RunExit::IrqWindowOpen => m.v.want_window = false,
                RunExit::Interrupted => {
                    m.w.signal.set(false);
                    m.w.immediate.set(false);
                    m.w.script_over.set(false);
                    if m.v.mp_state != mp::RUNNABLE {
                        m.happen(Env::Nmi);
                        m.v.b.nmi_masked = false;
                    }
                }
                _ => {}
            }
        }
    }
}

fn any_exception() -> impl Strategy<Value = Exception> {
    (any::<u8>(), any::<Option<u32>>(), any::<u64>()).prop_map(|(v, error_code, payload)| Exception {
        vector: Vector(v),
        error_code,
        payload,
    })
}

fn any_exit() -> impl Strategy<Value = Exit> {
    let io = (any::<u16>(), 0..8u8, any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(port, size, input, string, rep)| Exit::Io(IoAccess { port, size, input, string, rep }));
    let slat = (address(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(gpa, write, fetch, present, table_walk)| {
            Exit::Slat(SlatFault { gpa, write, fetch, present, table_walk, marked: false })
        },
    );
    let plain = proptest::sample::select(vec![
        Exit::ExternalInterrupt,
        Exit::Nmi,
        Exit::InterruptWindow,
        Exit::NmiWindow,
        Exit::Cpuid,
        Exit::Hlt,
        Exit::Rdmsr,
        Exit::Wrmsr,
        Exit::CrAccess,
        Exit::Cr8Write,
        Exit::DrAccess,
        Exit::Hypercall,
        Exit::Invd,
        Exit::Wbinvd,
        Exit::Monitor,
        Exit::Mwait,
        Exit::Pause,
        Exit::Xsetbv,
        Exit::Rdpmc,
        Exit::Rdpru,
        Exit::Shutdown,
        Exit::VirtInstruction,
        Exit::HostEvent,
        Exit::Disabled,
        Exit::Timer,
    ]);
    let task = (0..0x80u16, 0..4u8, any_event(), any::<Option<u32>>(), any::<bool>()).prop_map(
        |(selector, source, event, error_code, resume)| {
            let source = match source {
                0 => TaskSource::Call,
                1 => TaskSource::Jump,
                2 => TaskSource::Iret,
                _ => TaskSource::Gate(event),
            };
            Exit::TaskSwitch(TaskSwitch { selector, source, error_code, resume })
        },
    );
    prop_oneof![
        6 => plain,
        1 => task,
        3 => io,
        3 => slat,
        1 => any_exception().prop_map(Exit::Exception),
        1 => any::<u8>().prop_map(Exit::Int1),
        1 => any::<u8>().prop_map(Exit::EoiInduced),
        1 => (0..0x1000u32).prop_map(Exit::ApicWrite),
        1 => (0..0x1000u32).prop_map(Exit::ApicAccess),
        1 => any::<u64>().prop_map(Exit::FailEntry),
        1 => any::<u64>().prop_map(Exit::Unknown),
    ]
}

/// Addresses: anything, and what lies near memory, devices and page edges.
fn address() -> impl Strategy<Value = u64> {
    let base = proptest::sample::select(vec![
        0,
        0x1000,
        0x3f_f000,
        0x40_0000,
        ROM,
        USER_MMIO,
        CHIP_MMIO,
        0xfee0_0000,
        0xffff_f000,
        !0xfff,
    ]);
    prop_oneof![any::<u64>(), (base, 0..0x1100u64).prop_map(|(b, o)| b.wrapping_add(o))]
}

/// Registers: anything, an address, an MSR number, or small.
fn register() -> impl Strategy<Value = u64> {
    let msr = proptest::sample::select(vec![
        0x10u64,
        0x1b,
        0x6e0,
        0x800,
        0x80b,
        0x830,
        0x83f,
        0x4b56_4d00,
        0x4b56_4d01,
        0x4b56_4d03,
        0x4b56_4d04,
        0xc000_0080,
        0x277,
        0x200,
        0x2ff,
    ]);
    prop_oneof![any::<u64>(), address(), msr, 0..16u64]
}

fn any_by() -> impl Strategy<Value = By> {
    prop_oneof![Just(By::IntN), Just(By::Int3OrInto), Just(By::Int1)]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        any::<u8>().prop_map(Event::Interrupt),
        Just(Event::Nmi),
        any_exception().prop_map(Event::Exception),
        (any_by(), any::<u8>(), any::<u8>()).prop_map(|(by, v, n)| Event::Software(by, v, n)),
    ]
}

/// Instruction bytes: anything, or instructions that reach far into the emulator.
fn code() -> impl Strategy<Value = Vec<u8>> {
    let real = proptest::sample::select(vec![
        vec![0x0f, 0x22, 0xe0],
        vec![0x0f, 0x22, 0xc0],
        vec![0x44, 0x0f, 0x22, 0xc0],
        vec![0xf0, 0x0f, 0x22, 0xc0],
        vec![0x0f, 0x01, 0x30],
        vec![0xf3, 0x6e],
        vec![0xf3, 0x6d],
        vec![0xf3, 0xa5],
        vec![0x8b, 0x00],
        vec![0x89, 0x01],
        vec![0x48, 0x8b, 0x06],
        vec![0x0f, 0x11, 0x00],
        vec![0xf0, 0x0f, 0xb1, 0x0b],
        vec![0x48, 0x0f, 0xc7, 0x0e],
    ]);
    prop_oneof![vec(any::<u8>(), 0..20), real]
}

fn any_noise() -> impl Strategy<Value = Noise> {
    let segment = (0..8usize, address(), any::<u32>(), any::<u16>(), any::<u16>()).prop_map(
        |(i, base, limit, selector, attrib)| (i, Segment { base, limit, selector, attrib: attrib & 0xfff }),
    );
    let odds = (any::<u8>(), any::<bool>(), any::<bool>());
    let event = proptest::option::weighted(0.2, any_event());
    let next = proptest::option::of(any::<u64>());
    (
        any_exit(),
        event,
        next,
        code(),
        [(); 16].map(|()| register()),
        [(); 7].map(|()| register()),
        segment,
        odds,
    )
        .prop_map(
            |(exit, interrupted, next, fetched, gprs, mut regs, segment, (cr8, shadow, nmi_masked))| {
                // Half of them are in a mode that exists.
                if cr8 & 0x10 != 0 {
                    regs[2] &= 0x7fff_ffff;
                }
                Noise { exit, interrupted, next, fetched, gprs, regs, cr8, segment, shadow, nmi_masked }
            },
        )
}
