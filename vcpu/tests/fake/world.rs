//! What guest CPU, operating system and user space share: memory, time, the model of pending interrupts, the log of devices.

// The tests of the backends, which are no_std, include this file.
#[allow(unused_imports)]
use std::prelude::v1::*;

use exitless_vcpu::chooser::Set;
use exitless_vcpu::host::Extended;
use exitless_vcpu::timer::{self, Due, Loan, Register};
use exitless_vcpu::times::Times;
use exitless_vcpu::traced::Trace;
use exitless_vcpu::{Request, VcpuShared};
use exitless_x86::apic::{DeliveryMode, InterruptMessage, Shorthand};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of RAM from address 0.
pub(crate) const RAM: usize = 4 << 20;
/// A read-only slot of one page.
pub(crate) const ROM: u64 = 0xc000_0000;
/// Two pages of a device in user space.
pub(crate) const USER_MMIO: u64 = 0xd000_0000;
/// One page of a chip in the kernel.
pub(crate) const CHIP_MMIO: u64 = 0xfec0_0000;
/// An address where somebody hears of any write.
pub(crate) const DOORBELL: u64 = 0xd800_0010;
/// Another, in a slot that guests may only read.
pub(crate) const ROM_DOORBELL: u64 = ROM + 0xe98;
/// The APIC's page.
pub(crate) const APIC: u64 = 0xfee0_0000;
/// Ports of a chip in the kernel: 16 from here.
pub(crate) const CHIP_PORT: u16 = 0x20;
/// A port with an eventfd.
pub(crate) const EVENT_PORT: u16 = 0x60;
/// A CPU that keeps house, and runs no vCPU.
pub(crate) const HOUSEKEEPER: u32 = 99;
/// Host TSC ticks a nanosecond.
pub(crate) const TICKS: u64 = 2;

/// What a device answers at address `at`.
pub(crate) fn pattern(at: u64) -> u8 {
    (at.wrapping_mul(7) ^ at >> 8).wrapping_add(3) as u8
}

/// The rest of the world does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Env {
    /// A device sends a fixed interrupt, edge triggered.
    Irq(u8),
    /// The same, by a sender that takes its time: so many points between one step and the next.
    SlowIrq(u8, u8),
    /// A vector that another vCPU's CPU sends (AVIC): so many points between its bit and its look at our entry, and so on. Elsewhere
    /// as [`Env::SlowIrq`].
    SentByCpu(u8, u8),
    /// A vector from a sender that took the CPU for one that delivers, and us for running: an announcement, and a notification
    /// that is spent on the host if we were not.
    LateIrq(u8),
    /// The 8259 pair asserts its output; acknowledging gives this vector.
    Pic(u8),
    Nmi,
    /// The scheduler takes the CPU away as soon as that may be told; when the thread has one again the guest's byte has this value.
    Preempt(u8),
    /// A sibling ends the halt.
    Unhalt,
    Init,
    Sipi(u8),
    /// Second-level translations changed: nothing may run on old ones.
    TlbFlush,
    /// A request without a story of its own.
    Ask(Request),
    /// Somebody moves the switches of mechanisms: these are on, and no others.
    Switch(u64),
    /// A signal for the thread.
    Signal,
    /// A signal whose handler sets `kvm_run.immediate_exit`.
    Immediate,
    /// Other return-to-user work, done without leaving.
    Work,
    /// The scheduler moves the thread.
    Move(u32),
    /// Time passes, ns.
    Time(u64),
    /// Somebody writes 8 bytes of RAM.
    Poke(u64, u64),
    /// What guest and host share is not resident, or is.
    Swap(bool),
    /// The host has taken this page away, or none.
    Lose(Option<u64>),
    /// The eldest worker ends, with its page or without.
    WorkerEnds(bool),
    /// These 8 bytes hold that, or the test fails.
    Peek(u64, u64),
    /// The host stops its tick, and lends no timer.
    NoTick,
}

/// Where a sender of an interrupt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Sets the request bit.
    Request(u8),
    /// Asks whether the CPU delivers.
    Which,
    /// Looks at our entry in the table.
    LookUp,
    Announce,
    /// Asks whether the target is in the guest.
    Look,
    Notify,
    Ask,
    Kick,
}

/// See [`World::trail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hand {
    /// The guest's XCR0, XSS and debug registers are loaded.
    Loaded,
    /// An entry, up to its exit.
    Entered,
    /// The host's are back.
    Unloaded,
    /// The backend was told that the slice is over.
    Ended,
    /// The host's handler of the interrupt with this vector.
    Interrupt(u8),
    /// Its handler of machine checks.
    MachineCheck,
}

/// One access that reached a device, in the kernel or in user space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Touch {
    pub(crate) user: bool,
    pub(crate) write: bool,
    pub(crate) at: u64,
    pub(crate) data: Vec<u8>,
}

/// What the host's tasks have in PKRU.
pub(crate) const HOST_PKRU: u32 = 0x5555_5554;

/// See the file's head.
pub(crate) struct World {
    pub(crate) sh: Rc<VcpuShared>,
    pub(crate) ram: RefCell<Vec<u8>>,
    pub(crate) log: RefCell<Vec<Touch>>,
    /// Who had the CPU in this slice, or in the last, in order: written by the fakes of the operating system and of the CPU
    /// alike, checked at each slice's end.
    pub(crate) trail: RefCell<Vec<Hand>>,
    /// What ran since the last entry may have brought anybody's data into the cache; and the hall said so.
    pub(crate) strangers: Cell<bool>,
    pub(crate) l1d_dirty: Cell<bool>,
    /// Whether the last entries flushed the cache: bit 0 the last one.
    pub(crate) flushed: Cell<u64>,
    /// The host's writes to guest memory.
    pub(crate) written: RefCell<Vec<(u64, Vec<u8>)>>,
    /// Pages whose second-level mapping exists.
    pub(crate) mapped: RefCell<BTreeSet<u64>>,
    /// Pages that take time, by number.
    pub(crate) slow_pages: RefCell<BTreeSet<u64>>,
    /// Those for which the vCPU's thread waited itself.
    pub(crate) waited: Cell<u32>,
    /// Workers that wait for pages: address, write, place.
    pub(crate) workers: RefCell<Vec<(u64, bool, u8)>>,
    /// There are no more of them.
    pub(crate) no_workers: Cell<bool>,
    /// Where the guest reads tokens, and the vector of the interrupt that comes with them.
    pub(crate) tokens: Cell<Option<(u64, u8)>>,
    /// Pages that were marked as devices'.
    pub(crate) marked: RefCell<BTreeSet<u64>>,
    /// Somebody wants to know what is written.
    pub(crate) logs: Cell<bool>,
    /// What the CPU's log told.
    pub(crate) dirty: RefCell<Vec<u64>>,
    /// Writes that [`DOORBELL`]'s listener heard of.
    pub(crate) rings: Cell<u32>,
    /// The host's reads of guest memory.
    pub(crate) reads: Cell<u32>,
    /// What strikes at coming points: points to let pass first, and the happening.
    pub(crate) schedule: RefCell<VecDeque<(u8, Env)>>,

    // --- the CPU the thread is on ---
    pub(crate) cpu: Cell<u32>,
    pub(crate) next_cpu: Cell<u32>,
    /// A reschedule IPI is pending there.
    pub(crate) ipi: Cell<bool>,
    /// A posted-interrupt notification is pending there.
    pub(crate) notified: Cell<bool>,
    /// Senders on other CPUs in the middle of it: points to let pass, points between steps, the next step.
    pub(crate) slow: RefCell<VecDeque<(u8, u8, Step)>>,
    pub(crate) in_slice: Cell<bool>,
    pub(crate) fpu_live: Cell<bool>,
    /// XCR0 and debug registers loaded for the guest.
    pub(crate) loaded: Cell<Option<(Extended, Option<[u64; 4]>)>>,
    /// The CPU's.
    pub(crate) pkru: Cell<u32>,
    /// The guest was given PRED_CMD.
    pub(crate) barriers_unseen: Cell<bool>,
    /// What a write to the chip in the kernel does to its writer, on this very CPU: nobody sends an IPI for it.
    pub(crate) chip_writes: Cell<Option<fn(&World)>>,
    pub(crate) signal: Cell<bool>,
    pub(crate) work: Cell<bool>,
    pub(crate) immediate: Cell<bool>,
    pub(crate) irqchip: Cell<bool>,
    /// Mechanisms that are switched on.
    pub(crate) wanted: Cell<Set>,
    /// Guest memory is never there for those who must not sleep.
    pub(crate) swapped: Cell<bool>,
    /// Nor is what guest and host share.
    pub(crate) shared_swapped: Cell<bool>,
    /// The page of the guest's lazy deadlines, if its timer's driver uses one.
    pub(crate) lazy: Cell<Option<u64>>,
    /// It subtracts what is told there.
    pub(crate) shifts: Cell<bool>,
    /// It requests its vector where that is told there.
    pub(crate) asks: Cell<bool>,
    /// So often the vector came early.
    pub(crate) early: Cell<u32>,
    /// The host has no page behind this one of the guest's, and no memory to make one.
    pub(crate) lost: Cell<Option<u64>>,
    /// User space has made this page of the guest's read-only.
    pub(crate) read_only: Cell<Option<u64>>,
    pub(crate) exits_on_failure: Cell<bool>,
    /// The local APIC is in the kernel, the 8259 pair and the I/O APIC are in user space.
    pub(crate) split: Cell<bool>,
    /// What devices send is level triggered.
    pub(crate) level: Cell<bool>,
    /// AVIC: the vCPU's entry in the table.
    pub(crate) entry: Cell<Option<&'static AtomicU64>>,
    /// With IPI virtualization: the entry in the PID-pointer table.
    pub(crate) pid: Cell<Option<&'static AtomicU64>>,
    /// The administrator lets guests send by themselves.
    pub(crate) raw_allowed: Cell<bool>,
    pub(crate) hardware_posts: Cell<bool>,
    /// How often all vCPUs were told to look at what was posted.
    pub(crate) looks: Cell<u32>,
    /// Another vCPU's APIC is not found by hardware.
    pub(crate) unfound: Cell<bool>,
    /// Ours is.
    pub(crate) found: Cell<bool>,
    pub(crate) edge_eois: Cell<bool>,
    pub(crate) script_over: Cell<bool>,

    // --- time ---
    /// Somebody measures.
    pub(crate) measured: Cell<bool>,
    pub(crate) times: Box<Times>,
    pub(crate) ns: Cell<u64>,
    pub(crate) timer: Cell<Option<u64>>,
    /// How often it posted its vector.
    pub(crate) posts: Cell<u32>,
    /// The guest idles without exits; some CPU keeps house for others.
    pub(crate) idles_in_guest: Cell<bool>,
    pub(crate) housekeeping: Cell<bool>,
    /// How often it was started.
    pub(crate) timer_starts: Cell<u32>,
    /// The CPU that the host's timer fires on.
    pub(crate) timer_cpu: Cell<u32>,
    /// The timer in the CPU: a moment of the host's TSC.
    pub(crate) cpu_timer: Cell<Option<u64>>,
    /// The CPU's APIC timer, which is the host's; see [`Tick`].
    pub(crate) tick: Tick,
    pub(crate) run_delay: Cell<u64>,
    /// The host's CPUs differ in their TSCs.
    pub(crate) unsteady: Cell<bool>,
    /// How far the host's TSC is behind where the vCPU left it.
    pub(crate) jump: Cell<i64>,
    /// The guest's TSC, ratio and offset, each time that the VM was told of another.
    pub(crate) tscs: RefCell<Vec<(u64, u64)>>,

    // --- models ---
    /// Vectors accepted by the APIC and not yet delivered, in order; twice if accepted again while the first is on its way.
    pub(crate) irr: RefCell<Vec<u8>>,
    pub(crate) isr: RefCell<BTreeSet<u8>>,
    pub(crate) tpr: Cell<u8>,
    /// The guest has its APIC in x2APIC mode.
    pub(crate) x2apic: Cell<bool>,
    /// The APIC is being reset: by the next entry nothing is left in it.
    pub(crate) apic_reset: Cell<bool>,
    /// The APIC was reset once: handlers may find nothing to end.
    pub(crate) apic_lost: Cell<bool>,
    pub(crate) pic: Cell<Option<u8>>,
    /// Acknowledged at the 8259 and not yet delivered.
    pub(crate) pic_acked: Cell<Option<u8>>,
    pub(crate) nmi_owed: Cell<bool>,
    pub(crate) flush_owed: Cell<bool>,
    /// A vector whose posting the world does not see (APIC timer, self-IPI): the APIC model does not judge it.
    pub(crate) timer_vector: Cell<u8>,
    /// Guest TSC before which the timer's vector must not come.
    pub(crate) timer_not_before: Cell<u64>,
    /// The deadline written last.
    pub(crate) timer_last: Cell<u64>,
    /// Deadlines written and not yet answered for.
    pub(crate) timer_arms: Cell<u32>,
    pub(crate) timer_owed: Cell<bool>,

    // --- counters ---
    pub(crate) quiesced: Cell<u32>,
    pub(crate) moved_apic: Cell<u32>,
    pub(crate) barriers: Cell<u32>,
    /// A frame whose page has a memory error, and what the thread was told of it.
    pub(crate) poisoned: Cell<Option<u64>>,
    /// Others win each race for memory.
    pub(crate) contended: Cell<bool>,
    pub(crate) memory_errors: RefCell<Vec<u64>>,
    /// The CPU has an indirect branch prediction barrier.
    pub(crate) has_barrier: Cell<bool>,
    /// Somebody listens to the events of traces.
    pub(crate) tracing: Cell<bool>,
    /// The last listener goes when so many events were heard.
    pub(crate) hears: Cell<usize>,
    /// What they heard.
    pub(crate) heard: RefCell<Vec<Trace>>,
    pub(crate) ipis: RefCell<Vec<InterruptMessage>>,
    /// Whom they name can be looked up, and is few.
    pub(crate) few: Cell<bool>,
    /// Plain commands name the sender too, whose mailbox has something then; no IPI tells a CPU what it did itself.
    pub(crate) own_share: Cell<bool>,
    pub(crate) slices: Cell<u32>,
    /// Since the guest was last entered.
    pub(crate) barren: Cell<u32>,
    /// APIC ids whose halt was ended, and those that the thread gave its time to.
    pub(crate) unhalted: RefCell<Vec<u32>>,
    pub(crate) yields: RefCell<Vec<u32>>,
    pub(crate) spins: Cell<u32>,
    pub(crate) polls: Cell<u32>,
    /// See [`Env::Preempt`].
    pub(crate) preempts: Cell<Option<u8>>,
    /// Where the guest's byte is, and after how many exits it was told.
    pub(crate) told: Cell<Option<(u64, u64)>>,
    /// No other thread wants the CPU.
    pub(crate) alone: Cell<bool>,
    /// Destinations that the guest meant.
    pub(crate) ipis_owed: RefCell<Vec<u32>>,
    pub(crate) eois: RefCell<Vec<(u8, bool)>>,
    pub(crate) wanted_eoi: Cell<Option<u8>>,
    pub(crate) blocks: Cell<u32>,
    pub(crate) points: Cell<u64>,

    // --- user space ---
    pub(crate) io_page: RefCell<Box<[u8; 4096]>>,
    pub(crate) answer: Cell<[u8; 8]>,
    pub(crate) xmm: RefCell<[[u8; 16]; 16]>,
    pub(crate) mmx: RefCell<[u64; 8]>,
    pub(crate) x87_status: Cell<u16>,
}

/// The CPU's APIC timer with its IRR bit, and the host that counts ticks by it.
#[derive(Default)]
pub(crate) struct Tick {
    /// Ticks of the TSC from one to the next; 0: the host's timer is of another kind.
    pub(crate) period: Cell<u64>,
    pub(crate) register: Cell<u64>,
    pub(crate) requested: Cell<bool>,
    /// LVTT names the notification.
    pub(crate) notifies: Cell<bool>,
    pub(crate) next: Cell<u64>,
    pub(crate) ticks: Cell<u32>,
    /// The latest was so late.
    pub(crate) latest: Cell<u64>,
    pub(crate) loan: Loan,
    /// What is requested was found to be the guest's: the host's handler will find nothing due.
    pub(crate) guests: Cell<bool>,
    pub(crate) loans: Cell<u32>,
    /// The kernel started or stopped a timer in this slice, and may have written the register.
    pub(crate) touched: Cell<bool>,
    /// So many ns pass between the closing of interrupts and the next slice's first entry.
    pub(crate) passes: Cell<u64>,
}

impl World {
    fn tsc(&self) -> u64 {
        self.ns.get() * TICKS
    }
    /// Time has passed, or the register was written.
    pub(crate) fn apic_timer(&self) {
        let at = self.tick.register.get();
        if at != 0 && at <= self.tsc() {
            self.tick.register.set(0);
            let by = if self.tick.notifies.get() { &self.notified } else { &self.tick.requested };
            by.set(true);
        }
    }
    /// The host starts to count by it.
    pub(crate) fn start_tick(&self, period: u64) {
        self.tick.period.set(period);
        self.tick.next.set(self.tsc() + period);
        self.tick.register.set(self.tick.next.get());
    }
    /// Interrupts are on: the host's handler.
    pub(crate) fn host_tick(&self) {
        if self.tick.period.get() == 0 {
            return;
        }
        assert!(!self.tick.loan.is_lent(), "interrupts on while the guest has the host's timer");
        self.apic_timer();
        let due = self.tsc() >= self.tick.next.get();
        if self.tick.requested.get() && !due && self.tick.guests.replace(false) {
            self.tick.requested.set(false);
        }
        if self.tick.requested.replace(false) {
            let late = self.tsc().checked_sub(self.tick.next.get()).expect("a tick for nothing");
            self.tick.latest.set(self.tick.latest.get().max(late));
            self.tick.ticks.set(self.tick.ticks.get() + 1);
            self.tick.next.set(self.tsc() + self.tick.period.get());
            self.tick.register.set(self.tick.next.get());
        }
        assert_eq!(self.tick.register.get(), self.tick.next.get(), "the host's tick is lost");
    }
    /// What the helpers do before the kernel starts a timer or wakes a thread.
    pub(crate) fn wants_timer(&self) {
        self.ns.set(self.ns.get() + 4 * u64::from(self.tick.loan.is_lent()));
        self.tick.loan.give_back(self);
        self.tick.touched.set(true);
    }
}

impl Register for World {
    fn now(&self) -> u64 {
        self.tsc()
    }
    fn read(&self) -> u64 {
        self.apic_timer();
        self.tick.register.get()
    }
    fn write(&self, deadline: u64) {
        self.tick.register.set(deadline);
        self.apic_timer();
    }
    fn requested(&self) -> bool {
        self.tick.requested.get()
    }
    fn notifies(&self, notifies: bool) {
        self.apic_timer();
        self.tick.notifies.set(notifies);
    }
}

impl World {
    pub(crate) fn new(sh: Rc<VcpuShared>) -> Rc<Self> {
        Rc::new(Self {
            sh,
            ram: RefCell::new(vec![0; RAM]),
            log: RefCell::default(),
            trail: RefCell::default(),
            strangers: Cell::default(),
            l1d_dirty: Cell::default(),
            flushed: Cell::default(),
            written: RefCell::default(),
            mapped: RefCell::default(),
            slow_pages: RefCell::default(),
            waited: Cell::default(),
            workers: RefCell::default(),
            no_workers: Cell::default(),
            tokens: Cell::default(),
            marked: RefCell::default(),
            logs: Cell::default(),
            dirty: RefCell::default(),
            rings: Cell::default(),
            reads: Cell::default(),
            schedule: RefCell::default(),
            cpu: Cell::new(0),
            next_cpu: Cell::new(0),
            ipi: Cell::new(false),
            notified: Cell::new(false),
            slow: RefCell::default(),
            in_slice: Cell::new(false),
            fpu_live: Cell::new(false),
            loaded: Cell::new(None),
            pkru: Cell::new(HOST_PKRU),
            barriers_unseen: Cell::new(false),
            chip_writes: Cell::new(None),
            signal: Cell::new(false),
            work: Cell::new(false),
            immediate: Cell::new(false),
            irqchip: Cell::new(true),
            wanted: Cell::new(Set::ALL),
            swapped: Cell::new(false),
            shared_swapped: Cell::new(false),
            lazy: Cell::new(None),
            shifts: Cell::new(false),
            asks: Cell::new(false),
            early: Cell::new(0),
            lost: Cell::new(None),
            read_only: Cell::new(None),
            exits_on_failure: Cell::new(false),
            split: Cell::new(false),
            level: Cell::new(false),
            entry: Cell::default(),
            pid: Cell::default(),
            raw_allowed: Cell::default(),
            hardware_posts: Cell::default(),
            looks: Cell::default(),
            unfound: Cell::default(),
            found: Cell::default(),
            edge_eois: Cell::default(),
            script_over: Cell::new(false),
            measured: Cell::new(false),
            times: Box::new(bytemuck::Zeroable::zeroed()),
            ns: Cell::new(1_000_000),
            timer: Cell::new(None),
            posts: Cell::new(0),
            idles_in_guest: Cell::new(false),
            housekeeping: Cell::new(false),
            timer_starts: Cell::new(0),
            timer_cpu: Cell::new(0),
            cpu_timer: Cell::new(None),
            tick: Tick::default(),
            run_delay: Cell::new(0),
            unsteady: Cell::new(false),
            jump: Cell::new(0),
            tscs: RefCell::default(),
            irr: RefCell::default(),
            isr: RefCell::default(),
            tpr: Cell::new(0),
            x2apic: Cell::new(false),
            apic_reset: Cell::new(false),
            apic_lost: Cell::new(false),
            pic: Cell::new(None),
            pic_acked: Cell::new(None),
            nmi_owed: Cell::new(false),
            flush_owed: Cell::new(false),
            timer_vector: Cell::new(0),
            timer_not_before: Cell::new(0),
            timer_last: Cell::new(0),
            timer_arms: Cell::new(0),
            timer_owed: Cell::new(false),
            quiesced: Cell::new(0),
            moved_apic: Cell::new(0),
            barriers: Cell::new(0),
            poisoned: Cell::new(None),
            contended: Cell::new(false),
            memory_errors: RefCell::default(),
            has_barrier: Cell::new(true),
            tracing: Cell::new(false),
            hears: Cell::new(usize::MAX),
            heard: RefCell::default(),
            ipis: RefCell::default(),
            few: Cell::new(true),
            own_share: Cell::new(false),
            slices: Cell::new(0),
            barren: Cell::new(0),
            unhalted: RefCell::default(),
            yields: RefCell::default(),
            spins: Cell::new(0),
            polls: Cell::new(0),
            preempts: Cell::new(None),
            told: Cell::new(None),
            alone: Cell::new(true),
            ipis_owed: RefCell::default(),
            eois: RefCell::default(),
            wanted_eoi: Cell::new(None),
            blocks: Cell::new(0),
            points: Cell::new(0),
            io_page: RefCell::new(Box::new([0; 4096])),
            answer: Cell::new([0; 8]),
            xmm: RefCell::new([[0; 16]; 16]),
            mmx: RefCell::new([0; 8]),
            x87_status: Cell::new(0),
        })
    }

    /// Something that may sleep was called.
    pub(crate) fn may_sleep(&self, what: &str) {
        assert!(!self.in_slice.get(), "{what} inside a slice");
    }

    /// As [`World::may_sleep`]: and the host may have to bring a page, or has business of its own.
    pub(crate) fn strange(&self, what: &str) {
        self.may_sleep(what);
        self.strangers.set(true);
    }

    /// While the guest runs nobody may take it for preempted.
    pub(crate) fn runs(&self) {
        let byte = self.told.get().map_or(0, |(at, _)| self.ram.borrow()[at as usize]);
        assert_eq!(byte, 0, "siblings still leave flushes to a vCPU that runs");
    }

    /// The guest's page tables are read outside of a slice: whoever reads them holds what they said.
    pub(crate) fn walks(&self) {
        let told = !self.in_slice.get() && self.sh.steal.to_tell().is_some();
        assert!(
            !told,
            "a sibling may leave a flush to us while what was translated is still in use (CVE-2022-39189)"
        );
    }

    /// An entry flushes what must not be found (L1TF).
    pub(crate) fn check_l1d(&self) {
        let flushes = self.l1d_dirty.take();
        assert!(flushes || !self.strangers.take(), "entered with anybody's data in the cache");
        self.strangers.set(false);
        self.flushed.set(self.flushed.get() << 1 | u64::from(flushes));
    }

    /// The host's own code runs: handlers, and softirqs behind them, which use the FPU and take kicks.
    pub(crate) fn host_runs(&self, hand: Hand) {
        assert!(self.in_slice.get(), "{hand:?} outside a slice: preemption may be on");
        assert!(self.loaded.get().is_none(), "{hand:?} on the guest's XCR0, XSS and debug registers");
        assert!(!self.sh.needs_ipi(), "{hand:?} in guest mode: kicks would find nobody");
        self.trail.borrow_mut().push(hand);
    }

    /// A slice ends: the guest's state was loaded before the first entry and gone before the host heard of anything.
    pub(crate) fn check_trail(&self) {
        let trail = self.trail.borrow();
        // While somebody listens, the host's state comes back at each event.
        if self.tracing.get() || !self.heard.borrow().is_empty() {
            return;
        }
        let (inside, outside) = trail.split_at(trail.iter().position(|h| *h == Hand::Unloaded).unwrap_or(0));
        assert!(inside.iter().skip(1).all(|h| *h == Hand::Entered), "{trail:?}");
        assert!(inside.first().is_none_or(|h| *h == Hand::Loaded), "{trail:?}");
        assert!(outside.iter().skip(1).all(|h| *h != Hand::Entered), "{trail:?}");
    }

    /// What a requester does: the request, then the kick if the mode asks for it.
    pub(crate) fn ask(&self, r: Request) {
        self.sh.request(r);
        if self.sh.needs_ipi() {
            self.ipi.set(true);
        }
    }

    fn host_timer(&self) {
        if self.timer.get().is_some_and(|t| t <= self.ns.get()) {
            self.timer.set(None);
            self.timer_fired();
        }
    }

    /// The host's timer fires, as `VcpuObj::timer_fired` in `linux/module` takes it.
    fn timer_fired(&self) {
        let tsc = || {
            self.ns.set(self.ns.get() + 1);
            self.ns.get() * TICKS
        };
        let again = |left: u64| self.timer.set(Some(self.ns.get() + left.div_ceil(TICKS)));
        match timer::host_fired(&self.sh, tsc, 1000, again) {
            (Due::Ask, _) => self.ask(Request::TIMER),
            (_, accepted) if accepted.is_new() => {
                self.posts.set(self.posts.get() + 1);
                let mut step = Some(Step::Which);
                while let Some(s) = step {
                    step = self.send(s);
                }
            }
            _ => {}
        }
    }

    /// Something happens now.
    pub(crate) fn happen(&self, e: Env) {
        match e {
            Env::Irq(v) => {
                let mut step = Some(Step::Request(v));
                while let Some(s) = step {
                    step = self.send(s);
                }
            }
            Env::SlowIrq(v, gap) => {
                let next = self.send(Step::Request(v));
                self.slow.borrow_mut().extend(next.map(|s| (gap, gap, s)));
            }
            Env::SentByCpu(v, gap) => {
                // Software sends where hardware does not find us.
                let sends = self.entry.get().is_some_and(|e| e.load(Ordering::SeqCst) >> 63 != 0);
                let next = self.send(Step::Request(v));
                let next = if sends { Some(Step::LookUp) } else { next };
                self.slow.borrow_mut().extend(next.map(|s| (gap, gap, s)));
            }
            Env::LateIrq(v) => {
                if self.sh.apic.post(v, false) {
                    self.irr.borrow_mut().push(v);
                }
                let _ = self.sh.apic.posted().announce();
                if self.rings() {
                    self.notified.set(self.sh.needs_ipi());
                } else if self.sh.needs_ipi() {
                    self.ipi.set(true);
                }
            }
            Env::Pic(v) => {
                self.pic.set(Some(v));
                self.ask(Request::EVENT);
            }
            Env::Nmi => {
                self.sh.apic.queue_nmi();
                self.nmi_owed.set(true);
                self.ask(Request::EVENT);
            }
            Env::Preempt(byte) => self.preempts.set(Some(byte)),
            Env::Unhalt => {
                self.sh.unhalted.store(true, Ordering::Relaxed);
                self.ask(Request::EVENT);
            }
            Env::Init => {
                self.apic_reset.set(true);
                self.apic_lost.set(true);
                self.sh.apic.accept(&message(DeliveryMode::INIT, 0));
                self.ask(Request::APIC_STATE);
            }
            Env::Sipi(page) => {
                self.sh.apic.accept(&message(DeliveryMode::STARTUP, page));
                self.ask(Request::APIC_STATE);
            }
            Env::TlbFlush => {
                self.flush_owed.set(true);
                self.mapped.borrow_mut().clear();
                self.ask(Request::TLB_FLUSH);
            }
            Env::Ask(r) => self.ask(r),
            Env::Switch(on) => {
                self.wanted.set(Set(on));
                self.ask(Request::MECHANISMS);
            }
            Env::Signal => {
                self.signal.set(true);
                self.ipi.set(true);
            }
            Env::Immediate => {
                self.immediate.set(true);
                self.signal.set(true);
                self.ipi.set(true);
            }
            Env::Work => {
                self.work.set(true);
                self.ipi.set(true);
            }
            Env::Move(cpu) => {
                self.next_cpu.set(cpu);
                self.work.set(true);
                self.ipi.set(true);
            }
            Env::Time(ns) => {
                self.ns.set(self.ns.get() + ns);
                // Whoever keeps house does so while the guest runs.
                if self.timer_cpu.get() == HOUSEKEEPER {
                    self.host_timer();
                }
            }
            Env::Poke(at, value) => assert!(self.write_ram(at, &value.to_le_bytes())),
            Env::Swap(out) => self.shared_swapped.set(out),
            Env::Lose(page) => self.lost.set(page),
            Env::WorkerEnds(there) => {
                let (gpa, _, place) = self.workers.borrow_mut().remove(0);
                if there {
                    self.slow_pages.borrow_mut().remove(&(gpa >> 12));
                }
                let interrupts = self.sh.pages.end(place, there);
                self.sh.request(Request::ASYNC_PF);
                self.ipi.set(self.ipi.get() || interrupts && self.sh.needs_ipi());
            }
            Env::Peek(at, value) => assert_eq!(self.u64_at(at), value, "at {at:#x}"),
            Env::NoTick => {
                [&self.tick.register, &self.tick.next, &self.tick.period].iter().for_each(|t| t.set(0))
            }
        }
    }

    /// A notification is as good as a kick: but a doorbell means nothing to a CPU whose guest is without AVIC by now.
    fn rings(&self) -> bool {
        self.entry.get().is_none() || self.sh.delivers.load(Ordering::Acquire)
    }

    /// One step of a sender, as `VcpuObj::notify` in `linux/module` takes them; what comes next.
    fn send(&self, step: Step) -> Option<Step> {
        match step {
            Step::Request(v) => {
                let sent = InterruptMessage { level: self.level.get(), ..message(DeliveryMode::FIXED, v) };
                let accepted = self.sh.apic.accept(&sent);
                accepted.is_new().then(|| self.irr.borrow_mut().push(v)).map(|()| Step::Which)
            }
            Step::Which => {
                Some(if self.sh.delivers.load(Ordering::Acquire) { Step::Announce } else { Step::Ask })
            }
            Step::LookUp => {
                let runs = self.entry.get().is_some_and(|e| e.load(Ordering::SeqCst) >> 62 & 1 != 0);
                Some(if runs { Step::Notify } else { Step::Which })
            }
            Step::Announce => {
                let _ = self.sh.apic.posted().announce();
                Some(Step::Look)
            }
            Step::Look if self.sh.needs_ipi() => Some(if self.rings() { Step::Notify } else { Step::Kick }),
            Step::Look => Some(Step::Ask),
            Step::Notify => {
                self.notified.set(true);
                None
            }
            Step::Ask => {
                self.sh.request(Request::EVENT);
                Some(Step::Kick)
            }
            Step::Kick => {
                if self.sh.needs_ipi() {
                    self.ipi.set(true);
                }
                None
            }
        }
    }

    /// Slow senders take their next steps.
    fn senders(&self) {
        let all = self.slow.take();
        for (wait, gap, step) in all {
            let next =
                if wait > 0 { Some((wait - 1, gap, step)) } else { self.send(step).map(|s| (gap, gap, s)) };
            self.slow.borrow_mut().extend(next);
        }
    }

    /// Slow senders come to their end.
    pub(crate) fn finish_senders(&self) {
        while !self.slow.borrow().is_empty() {
            self.senders();
        }
    }

    /// A posted vector is above all that would hold it back.
    pub(crate) fn deliverable(&self) -> bool {
        let held = self.tpr.get().max(self.isr.borrow().last().copied().unwrap_or(0)) >> 4;
        self.sh.apic.top_irr().is_some_and(|v| v >> 4 > held)
    }

    /// A point: due happenings strike, the timer fires, the thread moves if it may.
    pub(crate) fn point(&self) {
        self.points.set(self.points.get() + 1);
        assert!(self.points.get() < 2_000_000, "the run loop goes in circles");
        self.ns.set(self.ns.get() + 5);
        self.senders();
        loop {
            let due = match self.schedule.borrow_mut().front_mut() {
                Some((0, e)) => Some(*e),
                Some((n, _)) => {
                    *n -= 1;
                    None
                }
                None => None,
            };
            let Some(e) = due else { break };
            self.schedule.borrow_mut().pop_front();
            self.happen(e);
        }
        if !self.in_slice.get()
            && let Some(byte) = self.sh.steal.to_tell()
            && let Some(value) = self.preempts.take()
        {
            self.write_ram(byte, &[value]);
            self.sh.steal.note_told();
            // A sibling had its turn, and the CPU is lost once more on the way to the guest.
            if let Some(byte) = self.sh.steal.to_tell() {
                self.write_ram(byte, &[1]);
            }
            self.told.set(Some((byte, self.sh.stats.exits.get())));
            self.flush_owed.set(self.flush_owed.get() || value & 2 != 0);
            self.sh.returned.store(true, Ordering::Relaxed);
        }
        if !self.in_slice.get() && self.cpu.get() != self.next_cpu.get() {
            self.cpu.set(self.next_cpu.get());
            // What the preemption notifier does.
            self.sh.returned.store(true, Ordering::Relaxed);
            self.sh.request(Request::MOVED);
        }
        self.host_timer();
    }

    pub(crate) fn touch(&self, user: bool, write: bool, at: u64, data: &[u8]) {
        self.log.borrow_mut().push(Touch { user, write, at, data: data.to_vec() });
    }

    pub(crate) fn read_ram(&self, gpa: u64, buf: &mut [u8]) -> bool {
        self.reads.set(self.reads.get() + 1);
        if (ROM..ROM + 4096).contains(&gpa) {
            buf.iter_mut().enumerate().for_each(|(i, b)| *b = pattern(gpa + i as u64));
            return true;
        }
        let ram = self.ram.borrow();
        let Some(from) = usize::try_from(gpa).ok().and_then(|g| ram.get(g..)?.get(..buf.len())) else {
            return false;
        };
        buf.copy_from_slice(from);
        true
    }

    pub(crate) fn write_ram(&self, gpa: u64, data: &[u8]) -> bool {
        let mut ram = self.ram.borrow_mut();
        let Some(to) = usize::try_from(gpa).ok().and_then(|g| ram.get_mut(g..)?.get_mut(..data.len())) else {
            return false;
        };
        to.copy_from_slice(data);
        true
    }

    pub(crate) fn u64_at(&self, gpa: u64) -> u64 {
        u64::from(self.u32_at(gpa)) | u64::from(self.u32_at(gpa + 4)) << 32
    }

    pub(crate) fn u32_at(&self, gpa: u64) -> u32 {
        let mut b = [0; 4];
        assert!(self.read_ram(gpa, &mut b));
        u32::from_le_bytes(b)
    }
}

/// A message of a device.
pub(crate) fn message(mode: DeliveryMode, vector: u8) -> InterruptMessage {
    InterruptMessage {
        destination: 0,
        logical: false,
        mode,
        vector,
        level: false,
        assert: true,
        shorthand: Shorthand::None,
        x2apic: false,
    }
}
