//! The CPU's own APIC timer in a guest's hands: lent when a slice begins, back when it ends.
//!
//! Vocabulary: the *register* is IA32_TSC_DEADLINE of this CPU, of which the host's clock event device is the owner. *H* is what the
//! host waits for, *G* what the guest does; both are moments of the CPU's TSC. While it is *lent* the register holds G, and H lives in
//! a timer that ends guest mode. Interrupts are off all the while, so nobody but the guest writes the register.
//!
//! ```text
//!           lend: reads H, writes G              give_back: reads G, writes H
//!   host's ─────────────────────────▶ lent ─────────────────────────────────▶ owed ── settle ──▶ host's
//!     ▲ H is 0 or passes, or the vector │ the vector comes: rang                (what the guest left)
//!     │ is requested: not now           │
//!     └─────────────────────────────────┘ stays lent
//! ```
//! A register that reads 0 was *disarmed* (WRMSR of 0) or has *fired*: the two differ in the vector, which the exit acknowledged
//! ([`Loan::rang`]) or which is still requested ([`Register::requested`]). That is looked at before anything can acknowledge it.
//!
//! *Inside*: the timer's vector is the posted-interrupt notification while it is lent, so that G fires without an exit: the CPU delivers what
//! the guest has requested in its own descriptor. Outside of guest mode that notification does nothing, and the request that is still
//! there tells, as a register of 0 does, that it came. The vector changes before the deadline, at both ends: H never fires as the other.
//!
//! What else in the kernel may start a timer calls [`Loan::give_back`] first; who lent it settles later, in the same slice.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// This CPU's timer. Interrupts are off.
pub trait Register {
    /// The TSC, behind all accesses before.
    fn now(&self) -> u64;
    /// RDMSR of IA32_TSC_DEADLINE.
    fn read(&self) -> u64;
    /// WRMSR of it: a moment that has passed fires at once, 0 disarms.
    fn write(&self, deadline: u64);
    /// The timer's vector is in the IRR. Ordered behind [`Register::read`].
    fn requested(&self) -> bool;
    /// LVTT names the notification, or the timer's own vector again; nothing else of it changes. Ordered before the accesses behind it.
    fn notifies(&self, notifies: bool);
}

/// What the guest left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What is armed; 0: nothing.
    pub deadline: u64,
    /// A deadline has come, and the guest is to have its interrupt.
    pub rang: bool,
    /// The guest has written the register.
    pub wrote: bool,
    /// It was lent inside: [`Found::rang`] is not known, the guest's request tells.
    pub inside: bool,
}

/// One CPU's, for that CPU alone. All-zero: the host's.
#[derive(Debug, Default, bytemuck::Zeroable)]
#[repr(C)]
pub struct Loan {
    /// H; 0: not lent, since what is 0 is never lent.
    host: AtomicU64,
    /// G as it was last known.
    given: AtomicU64,
    /// G as it was found.
    left: AtomicU64,
    rang: AtomicBool,
    wrote: AtomicBool,
    owed: AtomicBool,
    inside: AtomicBool,
    _pad: [u8; 4],
}

impl Loan {
    /// Nothing is lent.
    pub const fn none() -> Self {
        Self {
            host: AtomicU64::new(0),
            given: AtomicU64::new(0),
            left: AtomicU64::new(0),
            rang: AtomicBool::new(false),
            wrote: AtomicBool::new(false),
            owed: AtomicBool::new(false),
            inside: AtomicBool::new(false),
            _pad: [0; 4],
        }
    }

    /// What the host waits for, while the guest has the register.
    #[inline]
    pub fn host(&self) -> Option<u64> {
        Some(self.host.load(Relaxed)).filter(|h| *h != 0)
    }

    /// The guest has the register.
    #[inline]
    pub fn is_lent(&self) -> bool {
        self.host.load(Relaxed) != 0
    }

    /// Puts the guest's deadline there, which is 0 or has not passed. `false`: not now. A host that waits for nothing may have stopped its
    /// timer, or have an interrupt pending whose vector would be taken for the guest's; one whose moment has passed has, also if that came
    /// only now; and one that has written the register since interrupts are off may: what it replaced could have come by then, and be another's,
    /// the guest's own perhaps. `quiet`: nobody has. Then what it waits for has not come while it stands there, and no look at the IRR is needed.
    pub fn lend(&self, r: &impl Register, guest: u64, quiet: bool) -> bool {
        let host = r.read();
        if host <= r.now() {
            return false;
        }
        r.write(guest);
        if host <= r.now() || !quiet && r.requested() {
            // A host's deadline that has passed fires now. The guest's, if it has, is still software's.
            r.write(host);
            return false;
        }
        self.lent(host, guest, false);
        true
    }

    /// The same, inside. Whatever vector of the timer's own is requested is the host's then, and exits.
    pub fn lend_inside(&self, r: &impl Register, guest: u64) -> bool {
        let host = r.read();
        if host <= r.now() {
            return false;
        }
        r.notifies(true);
        r.write(guest);
        if host <= r.now() {
            // It may have come as a notification. What is written fires by the host's vector.
            r.notifies(false);
            r.write(host);
            return false;
        }
        self.lent(host, guest, true);
        true
    }

    fn lent(&self, host: u64, guest: u64, inside: bool) {
        self.given.store(guest, Relaxed);
        self.rang.store(false, Relaxed);
        self.wrote.store(false, Relaxed);
        self.inside.store(inside, Relaxed);
        self.host.store(host, Relaxed);
    }

    /// It is lent, and fires inside.
    #[inline]
    pub fn is_inside(&self) -> bool {
        self.is_lent() && self.inside.load(Relaxed)
    }

    /// An exit acknowledged the timer's vector. H is not in the register, and was not due when it was lent: it is the guest's.
    pub fn rang(&self) {
        // What the guest armed before has fired; what it arms from now on shows.
        self.wrote.store(self.wrote.load(Relaxed) || self.given.load(Relaxed) == 0, Relaxed);
        self.given.store(0, Relaxed);
        self.rang.store(true, Relaxed);
    }

    /// It did since the last call.
    pub fn take_rang(&self) -> bool {
        let rang = self.rang.load(Relaxed);
        if rang {
            self.rang.store(false, Relaxed);
        }
        rang
    }

    /// The register is the host's again, with its deadline, also one that has passed: that fires now. Harmless if nothing is lent.
    pub fn give_back(&self, r: &impl Register) {
        let Some(host) = self.host() else { return };
        let inside = self.inside.load(Relaxed);
        if inside {
            r.notifies(false);
        }
        let (given, mut left) = (self.given.load(Relaxed), r.read());
        // One that fired and was written anew since shows by its moment; of what was written without being told nobody knows.
        let looks = !inside && (left == 0 || given != left && given <= r.now());
        let rang = looks && r.requested();
        if rang && left != 0 {
            // Written; and it may be what fired between the two looks.
            self.wrote.store(true, Relaxed);
            left = r.read();
        }
        r.write(host);
        self.host.store(0, Relaxed);
        self.left.store(left, Relaxed);
        if rang {
            self.rang();
        }
        let wrote = self.wrote.load(Relaxed) || left != self.given.load(Relaxed);
        self.wrote.store(wrote, Relaxed);
        self.owed.store(true, Relaxed);
    }

    /// Takes it back, if that was not done, and tells what the guest left; `None`: it was not lent since the last call.
    pub fn settle(&self, r: &impl Register) -> Option<Found> {
        self.give_back(r);
        if !self.owed.load(Relaxed) {
            return None;
        }
        self.owed.store(false, Relaxed);
        let (deadline, wrote) = (self.left.load(Relaxed), self.wrote.load(Relaxed));
        Some(Found { deadline, rang: self.take_rang(), wrote, inside: self.inside.load(Relaxed) })
    }
}

/// Whether a vCPU's writes go to the register: from its first on that exits, until [`IDLE`] slices have passed without one. A vCPU that
/// does not arm its timer pays for no loan. All-zero: closed.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
#[repr(C)]
pub struct Opening {
    open: bool,
    idle: u8,
    refused: bool,
    quiet: bool,
    /// The vector that is requested while it is lent inside; 0: none.
    asked: u8,
}

/// A loan costs a slice about a third of the exit that it may save.
const IDLE: u8 = 8;

impl Opening {
    /// The register is to be lent, and the host may do so in this slice.
    #[inline]
    pub fn takes_writes(&self) -> bool {
        self.open && !self.refused
    }

    /// A slice begins.
    pub fn begin(&mut self) {
        (self.refused, self.quiet) = (false, true);
    }

    /// A timer of the kernel's was started or stopped, or exits have come that may: the register may have been written, and what that replaced
    /// may have come.
    #[inline]
    pub fn touched(&mut self) {
        self.quiet = false;
    }

    /// This loan is the first that is tried in this slice, before its first exit, and nobody has started or stopped a timer since interrupts are off.
    pub fn take_quiet(&mut self) -> bool {
        core::mem::replace(&mut self.quiet, false)
    }

    /// Not in this slice: the host needs its timer.
    pub fn refused(&mut self) {
        self.refused = true;
    }

    /// It is lent inside, and this vector requested.
    pub fn asks(&mut self, vector: u8) {
        self.asked = vector;
    }

    /// Which that was.
    pub fn asked(&self) -> u8 {
        self.asked
    }

    /// A deadline was written by an exit.
    pub fn armed(&mut self) {
        (self.open, self.idle, self.quiet) = (true, 0, false);
    }

    /// A loan is over.
    pub fn used(&mut self, wrote: bool) {
        self.idle = if wrote { 0 } else { self.idle.saturating_add(1) };
        if self.idle >= IDLE {
            self.close();
        }
    }

    /// Not any more.
    pub fn close(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// A CPU: its TSC, its timer, and the timer's bit of its IRR; the timer that ends guest mode is the test's.
    #[derive(Default)]
    struct Cpu {
        tsc: Cell<u64>,
        deadline: Cell<u64>,
        irr: Cell<bool>,
        /// LVTT names the notification, and it is requested.
        notifies: Cell<bool>,
        notified: Cell<bool>,
        reads: Cell<u32>,
        writes: Cell<u32>,
        looks: Cell<u32>,
        /// How long each access takes, in turn, from the lowest four bits on.
        pace: Cell<u64>,
    }

    impl Cpu {
        /// An access takes its time.
        fn works(&self) {
            let pace = self.pace.get();
            self.pace.set(pace.rotate_right(4));
            if pace & 7 != 0 {
                self.passes(pace & 7);
            }
        }
        fn armed(at: u64, tsc: u64) -> Self {
            Self { deadline: Cell::new(at), tsc: Cell::new(tsc), ..Self::default() }
        }
        fn tick(&self) {
            if self.deadline.get() != 0 && self.deadline.get() <= self.tsc.get() {
                self.deadline.set(0);
                let by = if self.notifies.get() { &self.notified } else { &self.irr };
                by.set(true);
            }
        }
        fn passes(&self, ticks: u64) {
            self.tsc.set(self.tsc.get().saturating_add(ticks));
            self.tick();
        }
        /// WRMSR, by whom ever.
        fn wrmsr(&self, deadline: u64) {
            self.deadline.set(deadline);
            self.tick();
        }
        /// The vector exits, if it is requested: acknowledged, and ended.
        fn exits(&self, loan: &Loan) -> bool {
            let exits = self.irr.replace(false);
            if exits {
                loan.rang();
            }
            exits
        }
    }

    impl Register for Cpu {
        fn now(&self) -> u64 {
            self.works();
            self.tsc.get()
        }
        fn read(&self) -> u64 {
            self.works();
            self.reads.set(self.reads.get() + 1);
            self.deadline.get()
        }
        fn write(&self, deadline: u64) {
            self.works();
            self.writes.set(self.writes.get() + 1);
            self.wrmsr(deadline);
        }
        fn requested(&self) -> bool {
            self.works();
            self.looks.set(self.looks.get() + 1);
            self.irr.get()
        }
        fn notifies(&self, notifies: bool) {
            self.works();
            self.notifies.set(notifies);
        }
    }

    fn found(deadline: u64, rang: bool, wrote: bool) -> Option<Found> {
        Some(Found { deadline, rang, wrote, inside: false })
    }

    /// Fault 1 of the published patches: a register of 0 was taken for nothing new, so that a cancelled deadline stayed and fired later.
    #[test]
    fn a_cancelled_deadline_is_gone() {
        let (cpu, loan) = (Cpu::armed(1000, 10), Loan::none());
        assert!(loan.lend(&cpu, 500, false));
        cpu.wrmsr(0);
        assert_eq!(loan.settle(&cpu), found(0, false, true));
        assert_eq!(loan.settle(&cpu), None, "told once");
    }

    /// Fault 1, its other half: 0 because it fired is told apart by the vector, wherever that is.
    #[test]
    fn a_deadline_that_fired_is_not_taken_for_cancelled() {
        for by_exit in [true, false] {
            let (cpu, loan) = (Cpu::armed(1000, 10), Loan::none());
            assert!(loan.lend(&cpu, 500, false));
            cpu.passes(600);
            if by_exit {
                assert!(cpu.exits(&loan));
            }
            assert_eq!(loan.settle(&cpu), found(0, true, false));
        }
    }

    /// Fault 1, its third part: the guest's deadline may be the host's to the tick.
    #[test]
    fn equal_deadlines_are_two() {
        let (cpu, loan) = (Cpu::armed(1000, 10), Loan::none());
        assert!(loan.lend(&cpu, 0, false));
        cpu.wrmsr(1000);
        assert_eq!(loan.settle(&cpu), found(1000, false, true));
        assert_eq!(cpu.deadline.get(), 1000);
        assert!(loan.lend(&cpu, 1000, false));
        cpu.passes(990);
        assert!(cpu.exits(&loan));
        assert_eq!(loan.settle(&cpu), found(0, true, false));
        assert!(cpu.irr.get(), "and the host has its own, in the moment that it is written");
    }

    /// Fault 2: the host's deadline was written back only if it lay ahead, and its tick stopped.
    #[test]
    fn a_host_deadline_that_passed_fires_when_it_comes_back() {
        for late in 990..1100 {
            let (cpu, loan) = (Cpu::armed(1000, 10), Loan::none());
            assert!(loan.lend(&cpu, 0, false));
            cpu.passes(late);
            assert_eq!(loan.settle(&cpu), found(0, false, false));
            assert!(cpu.irr.get(), "lost after {late}");
        }
    }

    /// Fault 3, that far deadlines wrapped in 32 bits, is the backend's (`hw/vmx/src/timer.rs`); here none is ever changed.
    #[test]
    fn far_deadlines_stay_what_they_are() {
        for far in [u64::from(u32::MAX) + 2, 1 << 63, u64::MAX] {
            let (cpu, loan) = (Cpu::armed(far, 10), Loan::none());
            assert!(loan.lend(&cpu, far, false));
            assert_eq!((loan.host(), cpu.deadline.get()), (Some(far), far));
            assert_eq!(loan.settle(&cpu), found(far, false, false));
            assert_eq!(cpu.deadline.get(), far);
        }
    }

    /// Fault 4: the host's timer went off by an interrupt that the CPU sent itself. Here it is the register's, and one.
    #[test]
    fn the_host_is_told_by_its_own_timer_once() {
        let (cpu, loan) = (Cpu::armed(1000, 10), Loan::none());
        assert!(loan.lend(&cpu, 5000, false));
        cpu.passes(1000);
        assert!(!cpu.irr.get(), "not in the guest");
        assert_eq!(loan.settle(&cpu), found(5000, false, false));
        assert!(cpu.irr.replace(false) && cpu.deadline.get() == 0);
        loan.give_back(&cpu);
        assert!(!cpu.irr.get(), "and not again");
    }

    /// Fault 6: an expiry of the guest's ran the host's handler. It is acknowledged for the guest, and the host's deadline stays.
    #[test]
    fn a_guests_expiry_is_not_the_hosts() {
        let (cpu, loan) = (Cpu::armed(1000, 10), Loan::none());
        assert!(loan.lend(&cpu, 100, false));
        for n in 1..5 {
            cpu.passes(100);
            assert!(cpu.exits(&loan) && loan.take_rang() && !loan.take_rang());
            cpu.wrmsr(100 * (n + 1));
        }
        assert_eq!(loan.settle(&cpu), found(500, false, true));
        assert!(!cpu.irr.get() && cpu.deadline.get() == 1000);
    }

    /// The vector of a host's deadline that has passed would look like the guest's: nothing is lent then, nor to one that has none.
    #[test]
    fn not_now() {
        for (host, now) in [(0, 5), (5, 5), (5, 6)] {
            let (cpu, loan) = (Cpu::armed(host, now), Loan::none());
            assert!(!loan.lend(&cpu, 500, false) && !loan.is_lent());
            assert_eq!((cpu.deadline.get(), cpu.writes.get()), (host, 0));
            assert_eq!(loan.settle(&cpu), None);
        }
    }

    /// The host's deadline comes while it is about to be lent, to a guest that has none: the vector that is requested is the host's.
    #[test]
    fn the_host_is_faster() {
        for (late, quiet) in (1..7).flat_map(|late| [(late, true), (late, false)]) {
            let (cpu, loan) = (Cpu::armed(1000, 999 - late), Loan::none());
            // From the look at the clock to the write.
            cpu.pace.set(late << 8);
            cpu.passes(late);
            assert!(!loan.lend(&cpu, 0, quiet), "{late}");
            assert!(cpu.irr.get() && !loan.is_lent() && loan.settle(&cpu).is_none());
        }
    }

    /// The guest's comes between the look at the register and the host's deadline, when the kernel takes its timer back: software has that
    /// deadline, and the vector that is requested does not bring it once more.
    #[test]
    fn one_deadline_is_one_interrupt() {
        let (cpu, loan) = (Cpu::armed(1000, 10), Loan::none());
        assert!(loan.lend(&cpu, 500, false));
        cpu.passes(489);
        cpu.pace.set(1 << 4);
        loan.give_back(&cpu);
        assert!(cpu.irr.get());
        assert_eq!(loan.settle(&cpu), found(500, false, false), "software's, which has passed");
        assert!(!loan.lend(&cpu, 0, false), "what is requested would be taken for another");
        assert_eq!(cpu.deadline.get(), 1000);
    }

    /// What the guest wrote anew fires between the look at the register and that at the IRR: it has fired, and is not armed as well.
    #[test]
    fn fires_between_two_looks() {
        let (cpu, loan) = (Cpu::armed(1000, 10), Loan::none());
        assert!(loan.lend(&cpu, 500, false));
        cpu.wrmsr(520);
        cpu.passes(508);
        cpu.pace.set(3 << 8);
        assert_eq!(loan.settle(&cpu), found(0, true, true));
    }

    /// Two deadlines written since it was lent: the first fired, and its vector has not exited yet.
    #[test]
    fn the_first_of_two() {
        let (cpu, loan) = (Cpu::armed(1000, 10), Loan::none());
        assert!(loan.lend(&cpu, 0, false));
        cpu.wrmsr(500);
        cpu.passes(490);
        cpu.wrmsr(700);
        assert_eq!(loan.settle(&cpu), found(700, true, true));
    }

    /// A slice costs two reads and two writes; a look at the IRR only if the register does not tell, or the kernel may have used it.
    #[test]
    fn what_a_slice_costs() {
        for quiet in [true, false] {
            for (writes, looks) in [(None, 0), (Some(700), 0), (Some(0), 1)] {
                let (cpu, loan) = (Cpu::armed(1000, 10), Loan::none());
                assert!(loan.lend(&cpu, 500, quiet));
                if let Some(deadline) = writes {
                    cpu.wrmsr(deadline);
                }
                loan.settle(&cpu);
                let looked = (cpu.reads.get(), cpu.writes.get(), cpu.looks.get());
                assert_eq!(looked, (2, 2, looks + u32::from(!quiet)));
            }
        }
    }

    /// The kernel needs its timer in the middle of a slice: it has it, and what the guest left is told later, once.
    #[test]
    fn given_back_in_between() {
        let (cpu, loan) = (Cpu::armed(1000, 10), Loan::none());
        assert!(loan.lend(&cpu, 100, false));
        cpu.passes(100);
        loan.give_back(&cpu);
        assert!(!loan.is_lent() && cpu.deadline.get() == 1000);
        // The kernel's own, nearer.
        cpu.wrmsr(600);
        loan.give_back(&cpu);
        assert_eq!(loan.settle(&cpu), found(0, true, false));
        assert_eq!(cpu.deadline.get(), 600, "what the kernel wrote since is not undone");
    }

    #[test]
    fn opened_by_use() {
        let mut o = Opening::default();
        assert!(!o.takes_writes());
        o.armed();
        for _ in 0..100 {
            o.used(false);
            o.used(true);
            assert!(o.takes_writes());
        }
        o.refused();
        o.armed();
        assert!(!o.takes_writes(), "whatever exits in that slice");
        o.begin();
        for n in 0..IDLE {
            assert!(o.takes_writes(), "{n}");
            o.used(false);
        }
        assert!(!o.takes_writes());
    }

    #[derive(Clone, Copy, Debug)]
    enum Act {
        Passes(u64),
        /// Relative; the past too.
        Arms(i64),
        Disarms,
        /// So much later an exit of any other kind, before what is requested exits: the slice ends, and another begins.
        Exits(u64),
        /// Or the kernel needs its timer.
        Kernel(u64),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            (0..300u64).prop_map(Act::Passes),
            (-50..400i64).prop_map(Act::Arms),
            Just(Act::Disarms),
            (0..60u64).prop_map(Act::Exits),
            (0..60u64).prop_map(Act::Kernel),
        ];
        proptest::collection::vec(act, 1..80)
    }

    proptest! {
        /// Against a timer of the guest's own, with accesses that take their time: each of its deadlines comes once, none that it cancelled
        /// or replaced comes, none early; and the host's tick comes no later than the end of guest mode that its moment brings.
        #[test]
        fn as_two_timers(acts in acts(), pace in any::<u64>()) {
            const TICK: u64 = 250;
            let (cpu, loan) = (Cpu::armed(TICK, 0), Loan::none());
            cpu.pace.set(pace);
            let mut next = TICK;
            let mut guest = Guest::default();
            // Something of the guest's fired since interrupts were on: its vector may be requested still.
            let mut fired = false;
            for act in acts {
                let before = guest.wanted;
                // A slice begins. What is due fires in software.
                if !loan.is_lent() {
                    guest.lend(&cpu, &loan, true);
                }
                match act {
                    Act::Passes(ticks) | Act::Exits(ticks) | Act::Kernel(ticks) => {
                        for _ in 0..ticks {
                            cpu.passes(1);
                            guest.look(&cpu);
                            // The timer that ends guest mode.
                            if loan.host().is_some_and(|h| h <= cpu.tsc.get()) {
                                break;
                            }
                        }
                    }
                    Act::Arms(left) => {
                        let to = cpu.tsc.get().saturating_add_signed(left).max(1);
                        guest.arms(&cpu, &loan, to);
                    }
                    Act::Disarms => guest.arms(&cpu, &loan, 0),
                }
                let other = matches!(act, Act::Exits(_) | Act::Kernel(_));
                if !other && loan.is_lent() && cpu.exits(&loan) && loan.take_rang() {
                    guest.had += 1;
                }
                let host_due = loan.host().is_some_and(|h| h <= cpu.tsc.get());
                if matches!(act, Act::Kernel(_)) && !host_due {
                    // It needs its timer, and the guest goes on in the same slice.
                    loan.give_back(&cpu);
                    guest.settle(&cpu, &loan);
                    guest.lend(&cpu, &loan, false);
                } else if host_due || other {
                    guest.settle(&cpu, &loan);
                }
                // Interrupts are on: the host's handler, for what the host armed; or it looks for nothing, where the guest's was requested.
                fired |= guest.wanted != before;
                if !loan.is_lent() {
                    let now = cpu.tsc.get();
                    if cpu.irr.replace(false) {
                        prop_assert!(now >= next || fired, "the host was interrupted for nothing");
                    } else {
                        prop_assert!(now < next, "the tick is lost");
                    }
                    if now >= next {
                        next = now + TICK;
                        cpu.wrmsr(next);
                    }
                    fired = false;
                }
                guest.look(&cpu);
                prop_assert!(guest.had <= guest.wanted, "early, or more than there were");
            }
            guest.settle(&cpu, &loan);
            guest.expire(&cpu);
            prop_assert_eq!(guest.had, guest.wanted, "lost");
            prop_assert_eq!(guest.known, guest.own);
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Inside {
        Passes(u64),
        Arms(i64),
        Disarms,
        /// Something else notifies the vCPU.
        Notified,
        /// So much time between two entries, as of an exit of another kind.
        Exits(u64),
        /// The slice ends, so much after the last exit.
        Ends(u64),
    }

    fn inside() -> impl Strategy<Value = Vec<Inside>> {
        let act = prop_oneof![
            (0..300u64).prop_map(Inside::Passes),
            (-50..400i64).prop_map(Inside::Arms),
            Just(Inside::Disarms),
            Just(Inside::Notified),
            (0..60u64).prop_map(Inside::Exits),
            (0..60u64).prop_map(Inside::Ends),
        ];
        proptest::collection::vec(act, 1..80)
    }

    /// A guest that requests its vector before each write, and what it is told.
    #[derive(Default)]
    struct Asker {
        requested: Cell<bool>,
        /// By a timer of its own.
        own: Cell<u64>,
        wanted: Cell<u32>,
        had: Cell<u32>,
        early: Cell<u32>,
    }

    impl Asker {
        fn look(&self, now: u64) {
            if self.own.get() != 0 && self.own.get() <= now {
                self.own.set(0);
                self.wanted.set(self.wanted.get() + 1);
            }
        }
        /// Its handler: early, it asks again.
        fn interrupted(&self, now: u64) {
            self.look(now);
            if self.had.get() < self.wanted.get() {
                self.had.set(self.wanted.get());
            } else {
                self.early.set(self.early.get() + 1);
            }
            self.requested.set(self.own.get() != 0);
        }
        /// Guest mode: the CPU takes what is requested, with a notification of anybody's.
        fn runs(&self, cpu: &Cpu) {
            if cpu.notified.replace(false) && self.requested.replace(false) {
                self.interrupted(cpu.tsc.get());
            }
        }
        fn writes(&self, cpu: &Cpu, to: u64) {
            self.look(cpu.tsc.get());
            self.requested.set(to != 0 || self.requested.get());
            self.own.set(to);
            cpu.wrmsr(to);
            self.look(cpu.tsc.get());
        }
    }

    proptest! {
        /// Inside: each deadline that comes is seen by the guest, none is early but by somebody else's notification, and the host's tick
        /// comes no later than the end of guest mode that its moment brings, by its own vector.
        #[test]
        fn fires_inside(acts in inside(), pace in any::<u64>()) {
            const TICK: u64 = 250;
            let (cpu, loan, guest) = (Cpu::armed(TICK, 0), Loan::none(), Asker::default());
            cpu.pace.set(pace);
            let (mut next, mut known, mut others, mut spurious) = (TICK, 0u64, 0, false);
            for act in acts {
                if !loan.is_lent() {
                    // Software's, as any deadline; what it puts there it requests.
                    if known != 0 && known <= cpu.tsc.get() {
                        known = 0;
                        guest.interrupted(cpu.tsc.get());
                    }
                    guest.requested.set(known != 0);
                    if !loan.lend_inside(&cpu, known) {
                        guest.requested.set(false);
                    }
                }
                let lent = loan.is_lent();
                if lent {
                    guest.runs(&cpu);
                }
                match act {
                    Inside::Passes(ticks) => for _ in 0..ticks {
                        cpu.passes(1);
                        guest.look(cpu.tsc.get());
                        if lent {
                            guest.runs(&cpu);
                            if loan.host().is_some_and(|h| h <= cpu.tsc.get()) {
                                break;
                            }
                        }
                    },
                    Inside::Arms(_) | Inside::Disarms if !lent => {}
                    Inside::Arms(left) => {
                        guest.writes(&cpu, cpu.tsc.get().saturating_add_signed(left).max(1));
                        guest.runs(&cpu);
                    }
                    Inside::Disarms => guest.writes(&cpu, 0),
                    Inside::Notified => {
                        others += 1;
                        cpu.notified.set(true);
                        if lent {
                            guest.runs(&cpu);
                        }
                    }
                    Inside::Exits(ticks) | Inside::Ends(ticks) => cpu.passes(ticks),
                }
                guest.look(cpu.tsc.get());
                if lent && (matches!(act, Inside::Ends(_)) || loan.host().is_some_and(|h| h <= cpu.tsc.get())) {
                    let f = loan.settle(&cpu).unwrap();
                    prop_assert!(f.inside && !f.rang && cpu.looks.get() == 0);
                    known = f.deadline;
                    // Between the change of the vector and that of the deadline it fires by the host's.
                    spurious = known != 0 && known <= cpu.tsc.get();
                    if guest.requested.replace(false) && known == 0 {
                        // Came outside; or the guest has disarmed it since, and bears that.
                        others += u32::from(guest.own.get() == 0 && guest.had.get() == guest.wanted.get());
                        spurious = true;
                        guest.interrupted(cpu.tsc.get());
                    }
                    prop_assert!(!cpu.notifies.get());
                }
                if !loan.is_lent() {
                    prop_assert!(!cpu.notifies.get());
                    // Interrupts are on.
                    cpu.notified.set(false);
                    let now = cpu.tsc.get();
                    if cpu.irr.replace(false) {
                        prop_assert!(now >= next || spurious, "the host was interrupted for nothing");
                    } else {
                        prop_assert!(now < next, "the tick is lost");
                    }
                    if now >= next {
                        next = now + TICK;
                        cpu.wrmsr(next);
                    }
                    spurious = false;
                }
                prop_assert!(guest.early.get() <= others, "early");
            }
            if let Some(f) = loan.settle(&cpu) {
                known = f.deadline;
                if guest.requested.replace(false) && known == 0 {
                    guest.interrupted(cpu.tsc.get());
                }
            }
            guest.look(cpu.tsc.get());
            prop_assert!(guest.had.get() == guest.wanted.get() || known != 0 && known <= cpu.tsc.get(), "lost");
        }
    }

    /// A guest, by a timer of its own and by what it is given.
    #[derive(Default)]
    struct Guest {
        own: u64,
        wanted: u32,
        had: u32,
        /// What software knows is armed, outside of loans.
        known: u64,
    }

    impl Guest {
        fn look(&mut self, cpu: &Cpu) {
            if self.own != 0 && self.own <= cpu.tsc.get() {
                self.own = 0;
                self.wanted += 1;
            }
        }
        fn expire(&mut self, cpu: &Cpu) {
            self.look(cpu);
            if self.known != 0 && self.known <= cpu.tsc.get() {
                self.known = 0;
                self.had += 1;
            }
        }
        fn lend(&mut self, cpu: &Cpu, loan: &Loan, quiet: bool) {
            self.expire(cpu);
            if loan.lend(cpu, self.known, quiet) {
                self.known = 0;
                self.look(cpu);
                // What is requested ends guest mode before the first instruction.
                self.had += u32::from(cpu.exits(loan) && loan.take_rang());
            }
            self.look(cpu);
        }
        fn settle(&mut self, cpu: &Cpu, loan: &Loan) {
            if let Some(f) = loan.settle(cpu) {
                self.had += u32::from(f.rang);
                self.known = f.deadline;
            }
            self.look(cpu);
        }
        fn arms(&mut self, cpu: &Cpu, loan: &Loan, to: u64) {
            // What software has fires when it comes.
            self.expire(cpu);
            let past = to != 0 && to <= cpu.tsc.get();
            self.wanted += u32::from(past);
            self.own = if past { 0 } else { to };
            if loan.is_lent() {
                cpu.wrmsr(to)
            } else {
                self.known = to
            };
        }
    }
}
