//! A VM's clock, kvmclock: one pair of host TSC and guest time from which all vCPUs' pages are written.
//!
//! Two things count it, the *TSC* where it counts the same on all CPUs for ever and the kernel's own clock source is it, the
//! host's *base* clock (raw, on during suspend) otherwise:
//! ```text
//!          the source changes: a new pair, same time
//!   TSC ◀──────────────────────────────────────────▶ base
//!    └── suspend ── resume: the TSC up to the suspend, the base across it ──▶ TSC or base
//! ```
//! *Stable* it is while it counts by the TSC and the vCPUs' TSCs agree: only then may a guest read one vCPU's page on another.
//! The pair stays the same while the TSC counts, so that the pages of all vCPUs hold the same one.

pub mod tsc;
pub mod units;

use tsc::{Rate, factors};

/// One instant of the host's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
pub struct Instant {
    /// The TSC.
    pub tsc: u64,
    /// The base clock: boot time that nobody steers, ns.
    pub base: u64,
    /// The kernel counts time by the TSC, so that is the same on all CPUs for ever, as far as it knows.
    pub by_tsc: bool,
    /// The TSC is the same on all CPUs, whether the kernel counts by it or not.
    pub steady: bool,
}

/// See the file's head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Zeroable)]
pub struct Clock {
    /// When the pair was taken.
    pair: Instant,
    /// Guest time then, ns.
    ns: u64,
    /// The TSC's rate, as pvclock's factors.
    mul: u32,
    shift: i32,
    stable: bool,
}

impl Clock {
    /// Guest time zero is now; the TSC's rate is `khz`.
    pub fn start(khz: u32, now: Instant) -> Self {
        let (mul, shift) = factors(khz);
        Self { pair: now, ns: 0, mul, shift, stable: false }
    }

    /// Guest time at an instant not before the pair's, ns.
    pub fn at(&self, now: &Instant) -> u64 {
        let passed = if self.pair.by_tsc && now.by_tsc {
            scale(since(now.tsc, self.pair.tsc), self.mul, self.shift)
        } else {
            since(now.base, self.pair.base)
        };
        self.ns.wrapping_add(passed)
    }

    /// `KVM_SET_CLOCK`: guest time is `ns` now.
    pub fn set(&mut self, ns: u64, now: Instant) {
        self.ns = ns;
        self.pair = now;
    }

    /// May pages say that they agree?
    pub fn stable(&self) -> bool {
        self.stable
    }

    /// Host TSC and guest time for a page that is written now. By the base clock each page has a fresh pair.
    pub fn page(&mut self, now: Instant) -> (u64, u64) {
        if !(self.pair.by_tsc && now.by_tsc) {
            self.set(self.at(&now), now);
        }
        (self.pair.tsc, self.ns)
    }

    /// The vCPUs' TSCs agree or do not; the host's source may be another. `true`: all pages must be written again.
    pub fn settle(&mut self, agree: bool, now: Instant) -> bool {
        let stable = agree && now.by_tsc;
        let other_source = now.by_tsc != self.pair.by_tsc;
        if other_source {
            self.set(self.at(&now), now);
        }
        let changed = stable != self.stable || other_source;
        self.stable = stable;
        changed
    }

    /// The host was suspended at one instant and is back at another, whose TSC has nothing to do with the first.
    pub fn resume(&mut self, suspended: &Instant, now: Instant) {
        let slept = since(now.base, suspended.base);
        self.set(self.at(suspended).wrapping_add(slept), now);
        self.stable &= now.by_tsc;
    }
}

/// From `then` to `now`; nothing, if another CPU has taken the pair in between.
fn since(now: u64, then: u64) -> u64 {
    let passed = now.wrapping_sub(then);
    if passed as i64 >= 0 { passed } else { 0 }
}

fn scale(ticks: u64, mul: u32, shift: i32) -> u64 {
    let t = if shift < 0 { ticks >> -shift } else { ticks << shift };
    // 64 x 32 bits without a wide division: both halves.
    let (hi, lo) = (t >> 32, t & 0xffff_ffff);
    hi.wrapping_mul(u64::from(mul)).wrapping_add((lo * u64::from(mul)) >> 32)
}

/// The TSC that a write by user space gives a vCPU: that of the others, if it means the same time.
///
/// The VM has one *generation* at a time: the offset that the last write got which meant another time. As stock KVM, user space
/// restores vCPUs one after the other with values that were saved one after the other; who writes about the value that the
/// last write would have become by now, give or take a second, means the same time. So does 0, the TSC after power-up.
#[derive(Clone, Copy, Debug, bytemuck::Zeroable)]
pub struct Generation {
    /// The offset, and the rate that it belongs to.
    offset: u64,
    rate: Rate,
    /// What the TSC was when it began, and the base clock then.
    first: Mark,
    /// The last write.
    last: Mark,
    /// There is one.
    begun: bool,
    /// User space has set a TSC: values mean times. Until then the TSCs count from some start that means nothing.
    by_user: bool,
    /// One that begins with nobody's value is at the host's.
    at_hosts: bool,
    _pad: [u8; 5],
}

/// A TSC's value at a time of the base clock.
#[derive(Clone, Copy, Debug, bytemuck::Zeroable)]
struct Mark {
    value: u64,
    base: u64,
}

impl Mark {
    fn grown(&self, rate: &Rate, now: &Instant) -> u64 {
        self.value.wrapping_add(rate.ticks_in(since(now.base, self.base)))
    }
}

impl Generation {
    /// A new vCPU, or one at another rate: its offset.
    pub fn join(&mut self, rate: &Rate, now: &Instant) -> u64 {
        self.given(0, true, rate, now)
    }

    /// From now on a generation that begins with no value, or with 0, has the host's TSC, where that is the same on all CPUs; or with 0
    /// again. A value that user space writes stays what it is.
    pub fn start_at_hosts(&mut self, on: bool) {
        self.at_hosts = on;
    }

    /// User space writes `value` into the TSC: the offset.
    pub fn write(&mut self, value: u64, rate: &Rate, now: &Instant) -> u64 {
        let meant = value == 0 || self.by_user && self.means_now(value, rate, now);
        self.by_user = true;
        self.given(value, meant, rate, now)
    }

    /// User space gives a vCPU this offset.
    pub fn set_offset(&mut self, offset: u64, rate: &Rate, now: &Instant) {
        let value = rate.guest_ticks(now.tsc).wrapping_add(offset);
        self.by_user = true;
        self.begin(value, rate, now);
    }

    /// The host's TSC went back by so many ticks.
    pub fn host_tsc_back(&mut self, ticks: u64) {
        self.offset = self.offset.wrapping_add(self.rate.guest_ticks(ticks));
    }

    fn means_now(&self, value: u64, rate: &Rate, now: &Instant) -> bool {
        let second = u64::from(rate.khz()) * 1000;
        let near = |at: u64| value.wrapping_sub(at).wrapping_add(second - 1) < 2 * second - 1;
        near(self.last.grown(rate, now)) || near(rate.guest_ticks(now.tsc).wrapping_add(self.offset))
    }

    fn given(&mut self, value: u64, same: bool, rate: &Rate, now: &Instant) -> u64 {
        if !(same && self.begun && self.rate.khz() == rate.khz()) {
            let at_hosts = self.at_hosts && value == 0 && now.steady && !rate.is_scaled();
            self.begin(if at_hosts { now.tsc } else { value }, rate, now);
            return self.offset;
        }
        self.last = Mark { value, base: now.base };
        if now.steady {
            return self.offset;
        }
        // On this CPU that offset would mean another time.
        self.first.grown(rate, now).wrapping_sub(rate.guest_ticks(now.tsc))
    }

    fn begin(&mut self, value: u64, rate: &Rate, now: &Instant) {
        self.first = Mark { value, base: now.base };
        self.last = self.first;
        self.offset = value.wrapping_sub(rate.guest_ticks(now.tsc));
        (self.rate, self.begun) = (*rate, true);
    }
}

/// Do these TSCs, given by ratio and offset, all agree? Nobody's do not.
pub fn agree(mut tscs: impl Iterator<Item = (u64, u64)>) -> bool {
    tscs.next().is_some_and(|first| tscs.all(|t| t == first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::tsc::Scaling;
    use proptest::prelude::*;

    const KHZ: u32 = 2_000_000;
    const SECOND: u64 = KHZ as u64 * 1000;

    fn at(ms: u64) -> Instant {
        Instant {
            tsc: 1_000_000 + ms * u64::from(KHZ),
            base: 500 + ms * 1_000_000,
            by_tsc: true,
            steady: true,
        }
    }
    fn host() -> Rate {
        Rate::host(KHZ)
    }
    fn none() -> Generation {
        bytemuck::Zeroable::zeroed()
    }
    fn value(offset: u64, now: &Instant) -> u64 {
        now.tsc.wrapping_add(offset)
    }

    /// vCPUs made one after the other have one TSC, that of the first.
    #[test]
    fn new_vcpus_agree() {
        let mut g = none();
        let first = g.join(&host(), &at(0));
        assert_eq!(value(first, &at(0)), 0);
        assert_eq!(g.join(&host(), &at(700)), first);
        assert_eq!(g.join(&host(), &at(70_000)), first);
    }

    /// QEMU restores vCPUs one after the other with the values that it saved one after the other: one offset, however long all
    /// of them take, if each follows the one before within a second.
    #[test]
    fn a_restore_gives_one_offset() {
        for step in [0, 300, 900] {
            let mut g = none();
            for _ in 0..8 {
                g.join(&host(), &at(0));
            }
            let saved = 500 * SECOND;
            let first = g.write(saved, &host(), &at(100));
            assert_eq!(value(first, &at(100)), saved);
            for i in 1..8 {
                // Saved at once, and restored at once.
                assert_eq!(g.write(saved, &host(), &at(100 + i * step)), first, "{i} after {step} ms each");
            }
        }
    }

    /// The same value much later means another time.
    #[test]
    fn apart() {
        let mut g = none();
        g.join(&host(), &at(0));
        let first = g.write(5 * SECOND, &host(), &at(0));
        let second = g.write(5 * SECOND, &host(), &at(1500));
        assert_eq!(first.wrapping_sub(second), 3 * SECOND / 2);
        // The edges of a second.
        let now = at(100_000);
        let (before, after) = (value(second, &now) - SECOND, value(second, &now) + SECOND);
        assert_eq!(g.clone_write(before + 1, &now), second);
        assert_ne!(g.clone_write(before, &now), second);
        assert_eq!(g.clone_write(after - 1, &now), second);
        assert_ne!(g.clone_write(after, &now), second);
        // Back to the others: near their time now, and what was written last does not matter.
        assert_eq!(g.write(0, &host(), &at(200_000)), second);
        let now = at(300_000);
        assert_eq!(g.clone_write(value(second, &now) + 500, &now), second);
    }

    impl Generation {
        fn clone_write(self, value: u64, now: &Instant) -> u64 {
            let mut copy = self;
            copy.write(value, &host(), now)
        }
    }

    /// A first value is taken as it is, however near to the count since the VM's start.
    #[test]
    fn the_first_value_counts() {
        let mut g = none();
        let start = g.join(&host(), &at(0));
        let set = g.write(SECOND / 2, &host(), &at(100));
        assert_ne!(set, start);
        assert_eq!(value(set, &at(100)), SECOND / 2);
        // But zero is no value: all start again together.
        let mut g = none();
        let start = g.join(&host(), &at(0));
        assert_eq!(g.write(0, &host(), &at(100)), start);
    }

    /// Who may have the host's TSC has it, as long as nobody writes a value; 0 is none. A value that was restored stays, for later 0s too.
    #[test]
    fn at_the_hosts() {
        let mut g = none();
        g.start_at_hosts(true);
        assert_eq!((g.join(&host(), &at(5)), g.write(0, &host(), &at(100))), (0, 0));
        assert_eq!(g.join(&host(), &at(70_000)), 0, "added late");
        let restored = g.write(500 * SECOND, &host(), &at(71_000));
        assert_eq!(value(restored, &at(71_000)), 500 * SECOND);
        assert_eq!(g.write(0, &host(), &at(72_000)), restored);
        // Not at another rate, nor where CPUs differ: there it would be no CPU's.
        let double = Rate::asked(KHZ * 2, KHZ, Some(Scaling::VMX)).unwrap();
        for (rate, steady) in [(double, true), (host(), false)] {
            let mut g = none();
            g.start_at_hosts(true);
            let now = Instant { steady, ..at(5) };
            assert_eq!(rate.guest_ticks(now.tsc).wrapping_add(g.join(&rate, &now)), 0);
        }
    }

    /// After KVM_VCPU_TSC_OFFSET whoever joins, writes 0, or writes about that time gets that offset.
    #[test]
    fn offsets_set_by_user_space() {
        let mut g = none();
        g.join(&host(), &at(0));
        let offset = 1000 * SECOND;
        g.set_offset(offset, &host(), &at(10));
        g.set_offset(offset, &host(), &at(20));
        assert_eq!(g.join(&host(), &at(60_000)), offset, "added late");
        assert_eq!(g.write(0, &host(), &at(61_000)), offset, "reset");
        let now = at(70_000);
        assert_eq!(g.write(value(offset, &now) + SECOND / 3, &host(), &now), offset, "near");
        assert_ne!(g.write(value(offset, &now) + 2 * SECOND, &host(), &now), offset, "far");
    }

    /// Another rate is another generation, even for 0; its own vCPUs share it.
    #[test]
    fn another_rate() {
        let double = Rate::asked(KHZ * 2, KHZ, Some(Scaling::VMX)).unwrap();
        let mut g = none();
        let first = g.join(&host(), &at(0));
        let other = g.join(&double, &at(100));
        assert_ne!(other, first);
        assert_eq!(double.guest_ticks(at(100).tsc).wrapping_add(other), 0);
        assert_eq!(g.join(&double, &at(200)), other);
        assert_ne!(g.join(&host(), &at(300)), first);
    }

    /// The host's TSC fell back in a suspend: whoever joins then agrees with the corrected vCPUs.
    #[test]
    fn after_the_hosts_tsc_fell_back() {
        let mut g = none();
        g.join(&host(), &at(0));
        let offset = g.write(77 * SECOND, &host(), &at(1000));
        g.host_tsc_back(1234);
        assert_eq!(g.join(&host(), &at(1)), offset + 1234);
        let now = Instant { base: 1 << 60, ..at(2000) };
        assert_eq!(g.write(value(offset, &now) + SECOND / 2, &host(), &now), offset + 1234, "near");
    }

    /// CPUs whose TSCs differ: the same time is another offset on each, and what a vCPU joins is the time.
    #[test]
    fn without_a_steady_tsc() {
        let here = |ms, ahead| Instant { tsc: at(ms).tsc + ahead, steady: false, by_tsc: false, ..at(ms) };
        let mut g = none();
        g.join(&host(), &here(0, 0));
        let saved = 90 * SECOND;
        let first = g.write(saved, &host(), &here(10, 0));
        let second = g.write(saved + 5, &host(), &here(510, 777));
        assert_eq!(second, first.wrapping_sub(777));
        assert_eq!(value(g.join(&host(), &here(10_010, 3)), &here(10_010, 3)), saved + 10 * SECOND);
    }

    #[test]
    fn agreement() {
        assert!(!agree([].into_iter()), "of nobody");
        assert!(agree([(1, 5)].into_iter()));
        assert!(agree([(1, 5), (1, 5), (1, 5)].into_iter()));
        assert!(!agree([(1, 5), (1, 5), (1, 6)].into_iter()), "offsets");
        assert!(!agree([(1, 5), (2, 5)].into_iter()), "rates");
    }

    /// The flag falls with the agreement or the source, and comes back with both; the pages are due at each change, and only then.
    #[test]
    fn stable_while_all_agree() {
        let mut c = Clock::start(KHZ, at(0));
        assert!(!c.stable());
        assert!(c.settle(true, at(1)) && c.stable());
        assert!(!c.settle(true, at(2)), "nothing new");
        assert!(c.settle(false, at(3)) && !c.stable(), "offsets differ");
        assert!(c.settle(true, at(4)) && c.stable(), "and agree again");
        let off = |ms| Instant { by_tsc: false, ..at(ms) };
        assert!(c.settle(true, off(5)) && !c.stable(), "another source, or the TSC is unstable");
        assert!(!c.settle(true, off(6)));
        assert!(c.settle(true, at(7)) && c.stable());
    }

    /// While it counts by the TSC all pages hold one pair, agreed or not.
    #[test]
    fn one_pair_for_all_pages() {
        let mut c = Clock::start(KHZ, at(0));
        c.settle(true, at(1));
        let pair = c.page(at(2));
        assert_eq!(c.page(at(5000)), pair);
        c.settle(false, at(6000));
        assert_eq!(c.page(at(7000)), pair);
        let off = Instant { by_tsc: false, ..at(8000) };
        c.settle(false, off);
        let fresh = c.page(off);
        assert_eq!(fresh, (off.tsc, 8_000_000_000));
        let off = Instant { base: off.base + 5, tsc: 17, ..off };
        assert_eq!(c.page(off), (17, fresh.1 + 5), "whatever the TSC says");
    }

    /// Across a suspend in which the TSC began again the clock goes on by the base clock.
    #[test]
    fn suspended() {
        let mut c = Clock::start(KHZ, at(0));
        c.settle(true, at(0));
        let back = Instant { tsc: 40, ..at(10_000) };
        c.resume(&at(4000), back);
        assert!(c.stable());
        assert_eq!(c.at(&back), 10_000_000_000);
        assert_eq!(c.page(back), (40, 10_000_000_000));
        let again = Instant { tsc: 1, base: back.base + 7, by_tsc: false, ..back };
        c.resume(&back, again);
        assert!(!c.stable(), "and unstable from here on");
        assert_eq!(c.at(&Instant { tsc: 0, base: back.base + 9, ..again }), 10_000_000_009);
    }

    /// An instant that another CPU took just before the pair.
    #[test]
    fn a_late_reader() {
        let mut c = Clock::start(KHZ, at(5));
        c.set(1000, at(10));
        assert_eq!(c.at(&at(9)), 1000);
    }

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Pass(u64),
        Source(bool),
        Agree(bool),
        Suspend { ns: u64, tsc: Option<u64> },
        Page,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0u64..50_000_000_000).prop_map(Event::Pass),
            1 => any::<bool>().prop_map(Event::Source),
            1 => any::<bool>().prop_map(Event::Agree),
            1 => (0u64..1 << 50, proptest::option::of(0u64..1 << 40)).prop_map(|(ns, tsc)| Event::Suspend { ns, tsc }),
            2 => Just(Event::Page),
        ]
    }

    proptest! {
        /// Whatever happens to the host, the clock never goes back, and is right to a millionth.
        #[test]
        fn never_back(events in proptest::collection::vec(event(), 1..60)) {
            let mut now = at(0);
            let mut c = Clock::start(KHZ, now);
            let (mut last, mut agreed, begin) = (0, true, now.base);
            c.settle(true, now);
            for e in events {
                match e {
                    Event::Pass(ns) => {
                        now.tsc += ns * u64::from(KHZ) / 1_000_000;
                        now.base += ns;
                    }
                    Event::Source(by_tsc) => {
                        now.by_tsc = by_tsc;
                        c.settle(agreed, now);
                    }
                    Event::Agree(yes) => {
                        agreed = yes;
                        c.settle(agreed, now);
                    }
                    Event::Suspend { ns, tsc } => {
                        let before = now;
                        now.base += ns;
                        now.tsc = tsc.unwrap_or(now.tsc + ns);
                        c.resume(&before, now);
                    }
                    Event::Page => {
                        let (_, ns) = c.page(now);
                        prop_assert!(ns <= c.at(&now));
                    }
                }
                let t = c.at(&now);
                prop_assert!(t >= last, "{t} after {last}");
                let real = now.base - begin;
                prop_assert!(t.abs_diff(real) <= real / 1_000_000 + 1000, "{t}, and {real} ns passed");
                prop_assert!(c.stable() == (agreed && now.by_tsc));
                last = t;
            }
        }
    }
}
