//! Where a vCPU's time goes, while somebody measures: stamps at the borders of guest, module, user space and sleep.
//!
//! Off, which is the default, an exit pays two loads and branches, on the line that it looks for requests on. On, it pays two RDTSCs. Those do not
//! serialise: what is before or behind a border by some ten cycles is not told apart. Everything is in ticks of the host's TSC; where
//! that goes back from one CPU to the next, no time has passed.
//!
//! ```text
//!   guest ──exit──▶ fast ──────────────────────────entry──▶ guest
//!                     └─▶ kernel ─▶ (polled, halted, user)* ─▶ kernel ──entry──▶ guest
//! ```
//! What other threads take of the CPU counts for where this one was then; `steal_ns` says how much that was.

use crate::stats::{Counter, EXITS, slot};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};
use exitless_control_abi::times::{BUCKETS, bucket, field};

/// What time is spent on. In the ABI of /dev/exitless these have numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spent {
    /// In the guest.
    Guest,
    /// Exits answered straight after the exit.
    Fast,
    /// Everything else in KVM_RUN.
    Kernel,
    /// Between two KVM_RUNs.
    User,
    /// The thread sleeps: the vCPU is halted, or waits for a page.
    Halted,
    /// The vCPU is halted, the thread waits awake.
    Polled,
}

impl Spent {
    /// By number.
    pub const ALL: [Self; 6] =
        [Self::Guest, Self::Fast, Self::Kernel, Self::User, Self::Halted, Self::Polled];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Fast => "fast",
            Self::Kernel => "kernel",
            Self::User => "user",
            Self::Halted => "halted",
            Self::Polled => "polled",
        }
    }
}

/// What is late. In the ABI of /dev/exitless these have numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// From the APIC timer's deadline to the entry with its interrupt pending. Not those that the host's timer posts from another CPU
    /// or that the CPU fires for the guest: nobody here sees them.
    Timer,
    /// From the post of a sibling's IPI to the receiver's next entry. Not where the CPU delivers to a running guest.
    Ipi,
}

impl Late {
    /// By number.
    pub const ALL: [Self; 2] = [Self::Timer, Self::Ipi];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timer => "timer",
            Self::Ipi => "ipi",
        }
    }
}

/// Durations. Only the vCPU's thread writes.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Histogram {
    count: Counter,
    ticks: Counter,
    min: Counter,
    max: Counter,
    buckets: [Counter; BUCKETS],
}

impl Histogram {
    fn add(&self, ticks: u64) {
        if self.count.get() == 0 || ticks < self.min.get() {
            self.min.set(ticks);
        }
        self.max.set(self.max.get().max(ticks));
        self.count.bump();
        self.ticks.add(ticks);
        if let Some(b) = self.buckets.get(bucket(ticks)) {
            b.bump();
        }
    }

    fn merge(&self, of: &Self) {
        if of.count.get() == 0 {
            return;
        }
        if self.count.get() == 0 || of.min.get() < self.min.get() {
            self.min.set(of.min.get());
        }
        self.max.set(self.max.get().max(of.max.get()));
        self.count.add(of.count.get());
        self.ticks.add(of.ticks.get());
        self.buckets.iter().zip(&of.buckets).for_each(|(b, n)| b.add(n.get()));
    }

    /// By [`field`].
    pub fn fields(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let head = [
            (field::COUNT, &self.count),
            (field::TICKS, &self.ticks),
            (field::MIN, &self.min),
            (field::MAX, &self.max),
        ];
        let buckets = self.buckets.iter().enumerate().map(|(i, b)| (field::BUCKET + i as u32, b));
        head.into_iter().chain(buckets).map(|(f, c)| (f, c.get()))
    }
}

/// Rows of exits: what comes behind so many reasons is one row.
const ROWS: usize = 24;

/// The exits of one reason.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Row {
    /// Its place in [`crate::stats::Stats::by_exit`]; in the first row nothing.
    place: Counter,
    /// From the exit to the next entry, but for what follows.
    handled: Histogram,
    user: Counter,
    idle: Counter,
}

impl Row {
    /// The place in [`crate::stats::Stats::by_exit`].
    pub fn place(&self) -> usize {
        self.place.get() as usize
    }

    /// By [`field`].
    pub fn fields(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let more = [(field::USER, self.user.get()), (field::IDLE, self.idle.get())];
        self.handled.fields().chain(more)
    }
}

/// What was measured of one vCPU, from the first time on that somebody measured.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Times {
    /// By [`Spent`].
    pub spent: [Counter; Spent::ALL.len()],
    late: [Histogram; Late::ALL.len()],
    /// The row of an exit's place; 0: none yet.
    places: [AtomicU8; EXITS],
    taken: Counter,
    rows: [Row; ROWS],
}

impl Times {
    fn row(&self, place: usize) -> u8 {
        let Some(p) = self.places.get(place) else { return 0 };
        let have = p.load(Relaxed);
        let next = self.taken.get() + 1;
        if have != 0 || next >= ROWS as u64 {
            return have;
        }
        self.taken.set(next);
        if let Some(row) = self.rows.get(next as usize) {
            row.place.set(place as u64);
        }
        p.store(next as u8, Relaxed);
        next as u8
    }

    /// Rows by reason.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().skip(1)
    }

    /// What had no row of its own.
    pub fn others(&self) -> &Row {
        let [others, ..] = &self.rows;
        others
    }

    /// How late things were.
    pub fn late(&self) -> impl Iterator<Item = (Late, &Histogram)> {
        Late::ALL.into_iter().zip(&self.late)
    }

    fn was_late(&self, what: Late, ticks: u64) {
        if let Some(h) = self.late.get(what as usize) {
            h.add(ticks);
        }
    }

    /// Another vCPU's more; only the caller knows `self`.
    pub fn merge(&self, of: &Self) {
        self.spent.iter().zip(&of.spent).for_each(|(s, n)| s.add(n.get()));
        self.late.iter().zip(&of.late).for_each(|(s, n)| s.merge(n));
        // Before a row is looked for: those that have counted nothing have no reason yet.
        let counted = of.rows().filter(|r| r.handled.count.get() != 0);
        let rows = counted.map(|r| (self.row(r.place()), r));
        for (row, of) in rows.chain(core::iter::once((0, of.others()))) {
            if let Some(r) = self.rows.get(usize::from(row)) {
                r.handled.merge(&of.handled);
                r.user.add(of.user.get());
                r.idle.add(of.idle.get());
            }
        }
    }
}

/// Between two borders: what the vCPU's thread itself keeps.
#[derive(Clone, Copy, Debug, Default, bytemuck::Zeroable)]
pub struct Stopwatch {
    /// `last` is one.
    runs: bool,
    /// From an exit on, until something else than its fast path has begun.
    fast: bool,
    /// An exit has no entry behind it yet.
    open: bool,
    /// The row of that exit.
    row: u8,
    /// The last border.
    last: u64,
    handled: u64,
    user: u64,
    idle: u64,
    /// When the timer was due whose vector waits; 0: none.
    due: u64,
}

impl Stopwatch {
    /// Nobody measures any more.
    fn stop(&mut self) {
        self.runs = false;
        self.open = false;
        self.due = 0;
    }

    /// From the last border to `now` the vCPU was there.
    pub fn lap(&mut self, t: &Times, now: u64, spent: Spent) {
        let passed = now.wrapping_sub(core::mem::replace(&mut self.last, now));
        self.fast = false;
        if !core::mem::replace(&mut self.runs, true) || passed as i64 <= 0 {
            return;
        }
        if let Some(s) = t.spent.get(spent as usize) {
            s.add(passed);
        }
        match spent {
            Spent::Guest => {}
            Spent::Fast | Spent::Kernel => self.handled += passed,
            Spent::User => self.user += passed,
            Spent::Halted | Spent::Polled => self.idle += passed,
        }
    }

    /// A slice begins: what comes first is no exit's fast path. `on`: somebody measures.
    pub fn slice(&mut self, on: bool) {
        if on {
            self.fast = false;
        } else if self.runs {
            self.stop();
        }
    }

    /// Directly behind an exit of that number.
    pub fn exit(&mut self, t: &Times, now: u64, number: u64) {
        self.lap(t, now, Spent::Guest);
        (self.handled, self.user, self.idle) = (0, 0, 0);
        (self.open, self.fast, self.row) = (true, true, t.row(slot(number)));
    }

    /// Directly before an entry. `sent`: [`crate::VcpuShared::sent`].
    pub fn enter(&mut self, t: &Times, sent: &AtomicU64, now: u64) {
        let spent = if self.fast { Spent::Fast } else { Spent::Kernel };
        self.lap(t, now, spent);
        if core::mem::replace(&mut self.open, false)
            && let Some(row) = t.rows.get(usize::from(self.row))
        {
            row.handled.add(self.handled);
            row.user.add(self.user);
            row.idle.add(self.idle);
        }
        let posted = sent.load(Relaxed);
        if posted != 0 {
            sent.store(0, Relaxed);
            t.was_late(Late::Ipi, now.saturating_sub(posted));
        }
        if self.due != 0 {
            t.was_late(Late::Timer, now.saturating_sub(core::mem::take(&mut self.due)));
        }
    }

    /// The guest made the timer due by setting it, at `now`: it was not late before.
    pub fn set_late(&mut self, now: u64) {
        if self.due != 0 {
            self.due = self.due.max(now);
        }
    }

    /// The timer's vector was posted, which was due at `at`.
    pub fn timer_due(&mut self, at: u64) {
        if self.runs && self.due == 0 {
            self.due = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zeroed<T: bytemuck::Zeroable>() -> std::boxed::Box<T> {
        std::boxed::Box::new(T::zeroed())
    }

    fn fields(of: impl Iterator<Item = (u32, u64)>) -> std::vec::Vec<(u32, u64)> {
        of.filter(|(_, n)| *n != 0).collect()
    }

    /// A fast exit, one that went to user space, and a halt: each interval is counted once, and where it belongs.
    #[test]
    fn each_interval_is_counted_once() {
        let (t, sent) = (zeroed::<Times>(), AtomicU64::new(0));
        let mut w = Stopwatch::default();
        w.lap(&t, 1000, Spent::User);
        w.enter(&t, &sent, 1010);
        w.exit(&t, 1110, 0x72);
        w.enter(&t, &sent, 1115);
        w.exit(&t, 1215, 0x7b);
        w.lap(&t, 1225, Spent::Kernel);
        w.lap(&t, 1425, Spent::User);
        w.enter(&t, &sent, 1432);
        w.exit(&t, 1532, 0x78);
        w.lap(&t, 1540, Spent::Kernel);
        w.lap(&t, 1600, Spent::Polled);
        w.lap(&t, 1601, Spent::Kernel);
        w.lap(&t, 2601, Spent::Halted);
        w.enter(&t, &sent, 2605);
        let spent = Spent::ALL.map(|s| t.spent[s as usize].get());
        assert_eq!(spent, [300, 5, 10 + 10 + 7 + 8 + 1 + 4, 200, 1000, 60]);
        assert_eq!(spent.iter().sum::<u64>(), 2605 - 1000);
        let rows: std::vec::Vec<_> = t.rows().take(3).map(|r| (r.place(), fields(r.fields()))).collect();
        let b = |ticks| field::BUCKET + bucket(ticks) as u32;
        assert_eq!(rows[0], (0x72, std::vec![(0, 1), (1, 5), (2, 5), (3, 5), (b(5), 1)]));
        assert_eq!(rows[1], (0x7b, std::vec![(0, 1), (1, 17), (2, 17), (3, 17), (b(17), 1), (4, 200)]));
        assert_eq!(rows[2], (0x78, std::vec![(0, 1), (1, 13), (2, 13), (3, 13), (b(13), 1), (5, 1060)]));
    }

    /// A TSC that goes back, and measuring that ends in between: no time of either.
    #[test]
    fn no_time_is_made_up() {
        let (t, sent) = (zeroed::<Times>(), AtomicU64::new(0));
        let mut w = Stopwatch::default();
        w.enter(&t, &sent, 5000);
        w.exit(&t, 4000, 1);
        w.enter(&t, &sent, 4003);
        w.exit(&t, 4010, 1);
        w.stop();
        w.enter(&t, &sent, 9000);
        w.exit(&t, 9001, 1);
        assert_eq!(Spent::ALL.map(|s| t.spent[s as usize].get()), [8, 3, 0, 0, 0, 0]);
        assert_eq!(t.rows().next().map(|r| r.handled.count.get()), Some(1));
    }

    /// More reasons than rows: the rest is in the first. Sums of vCPUs keep reasons apart, whatever order they came in.
    #[test]
    fn rows_and_sums() {
        let (a, b, sum) = (zeroed::<Times>(), zeroed::<Times>(), zeroed::<Times>());
        let exits = |t: &Times, numbers: &[u64], ticks| {
            let (sent, mut w) = (AtomicU64::new(0), Stopwatch::default());
            let mut now = 1;
            for n in numbers {
                w.exit(t, now, *n);
                w.enter(t, &sent, now + ticks);
                now += ticks + 1;
            }
        };
        exits(&a, &[3, 4, 3], 10);
        exits(&b, &[4, 5], 30);
        sum.merge(&a);
        sum.merge(&b);
        let rows: std::vec::Vec<_> = sum.rows().take(3).map(|r| (r.place(), &r.handled)).collect();
        let seen = rows.iter().map(|(p, h)| (*p, h.count.get(), h.ticks.get(), h.min.get(), h.max.get()));
        assert_eq!(
            seen.collect::<std::vec::Vec<_>>(),
            [(3, 2, 20, 10, 10), (4, 2, 40, 10, 30), (5, 1, 30, 30, 30)]
        );
        let all: std::vec::Vec<u64> = (0..40).collect();
        exits(&b, &all, 2);
        assert_eq!(b.others().handled.count.get(), 40 - 23);
        sum.merge(&b);
        assert!(sum.others().handled.count.get() >= 17);
    }

    /// From the deadline and the post to the entry.
    #[test]
    fn lateness_ends_with_an_entry() {
        let (t, sent) = (zeroed::<Times>(), AtomicU64::new(0));
        let mut w = Stopwatch::default();
        w.timer_due(5);
        w.lap(&t, 10, Spent::Kernel);
        w.timer_due(20);
        sent.store(30, Relaxed);
        for now in [40, 50] {
            w.enter(&t, &sent, now);
        }
        let late: std::vec::Vec<_> = t.late().map(|(_, h)| (h.count.get(), h.ticks.get())).collect();
        assert_eq!(late, [(1, 20), (1, 10)]);
    }
}
