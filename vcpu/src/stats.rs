//! Counters of one vCPU: exits by the vendor's number, MSR exits by MSR, port exits by port, and KVM's own names.
//!
//! Only the vCPU's thread writes, with plain load and store (no locked instruction); anyone may read at any time and
//! sees each counter whole, if a moment old.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use exitless_chooser::{COUNT, Fallback, Mechanism};

/// Exit numbers below this have a counter of their own; 0x400 and up fold to the last rows.
pub const EXITS: usize = 192;
/// Rows of the per-MSR and per-port tables; what does not fit is counted as "other".
pub const ROWS: usize = 64;

/// Who ended a halt, as far as that is known.
#[allow(missing_docs)]
pub mod waker {
    /// Nobody who is named here: an NMI, user space, hardware that posted by itself.
    pub const OTHER: u8 = 0;
    pub const TIMER: u8 = 1;
    pub const IPI: u8 = 2;
    pub const DEVICE: u8 = 3;
    /// KVM_HC_KICK_CPU.
    pub const SIBLING: u8 = 4;
    pub const COUNT: usize = 5;
}

/// A counter written by one thread.
#[derive(bytemuck::Zeroable, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn bump(&self) {
        self.0.store(self.0.load(Relaxed).wrapping_add(1), Relaxed);
    }
    /// So many more.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }
    /// That is the value.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }
    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
    /// Where the value lies, for a file that shows it.
    pub fn as_ptr(&self) -> *const u64 {
        self.0.as_ptr()
    }
}

/// Times of nanoseconds by the powers of two: place 0 is for 0, place `n` for those from `2^(n-1)` on, the last for all longer ones.
#[derive(bytemuck::Zeroable)]
#[repr(transparent)]
pub struct Histogram(pub [Counter; Histogram::SIZE]);

impl Histogram {
    /// Places: stock KVM's.
    pub const SIZE: usize = 32;

    /// One more of so many ns.
    pub fn note(&self, ns: u64) {
        let place = (u64::BITS - ns.leading_zeros()) as usize;
        if let Some(c) = self.0.get(place.min(Self::SIZE - 1)) {
            c.bump();
        }
    }
}

/// A small table keyed by number + 1 (0 = free row), filled in order of appearance, open addressed.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Keyed {
    keys: [AtomicU32; ROWS],
    counts: [Counter; ROWS],
    /// Counts of keys that gave their row away.
    pub other: Counter,
}

impl Keyed {
    /// Counts one event of `key` (any value but `u32::MAX`). Where its places are taken, the rarest key there makes room: what
    /// counts often while the guest runs is shown, whatever came first.
    pub fn bump(&self, key: u32) {
        self.add(key, 1);
    }

    /// The same for so many.
    #[inline(always)]
    pub fn add(&self, key: u32, n: u64) {
        let tag = key.wrapping_add(1);
        let start = key.wrapping_mul(0x9e37_79b1) >> 26;
        let mut rarest: Option<(&AtomicU32, &Counter)> = None;
        for probe in 0..8 {
            let i = (start.wrapping_add(probe) % ROWS as u32) as usize;
            let (Some(k), Some(c)) = (self.keys.get(i), self.counts.get(i)) else { continue };
            let have = k.load(Relaxed);
            if have == 0 {
                k.store(tag, Relaxed);
            }
            if have == 0 || have == tag {
                c.add(n);
                return;
            }
            if rarest.is_none_or(|(_, r)| c.get() < r.get()) {
                rarest = Some((k, c));
            }
        }
        if let Some((k, c)) = rarest {
            self.other.add(c.get());
            c.0.store(n, Relaxed);
            k.store(tag, Relaxed);
        }
    }

    /// All rows in use: key and count.
    pub fn rows(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.keys.iter().zip(self.counts.iter()).filter_map(|(k, c)| {
            let tag = k.load(Relaxed);
            (tag != 0).then(|| (tag.wrapping_sub(1), c.get()))
        })
    }
}

/// Places of a [`Sums`].
const SUMS: usize = 1024;

/// Counts of many vCPUs by key, added up: each vCPU's rows are gone through once.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Sums {
    /// The key + 1; 0: free.
    tags: [u64; SUMS],
    counts: [u64; SUMS],
    /// Counts of keys for which there was no place, and of those that had none in their vCPU.
    pub other: u64,
}

impl Sums {
    /// One vCPU's more.
    pub fn add(&mut self, table: &Keyed) {
        table.rows().for_each(|(key, n)| self.count(key, n));
        self.other = self.other.wrapping_add(table.other.get());
    }

    fn count(&mut self, key: u32, n: u64) {
        let tag = u64::from(key) + 1;
        let start = key.wrapping_mul(0x9e37_79b1) >> 22;
        for probe in 0..16 {
            let i = (start.wrapping_add(probe) % SUMS as u32) as usize;
            let (Some(t), Some(c)) = (self.tags.get_mut(i), self.counts.get_mut(i)) else { continue };
            if *t == 0 {
                *t = tag;
            }
            if *t == tag {
                *c = c.wrapping_add(n);
                return;
            }
        }
        self.other = self.other.wrapping_add(n);
    }

    /// All keys and their counts.
    pub fn rows(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let taken = self.tags.iter().zip(&self.counts);
        taken.filter_map(|(t, n)| Some((t.checked_sub(1)? as u32, *n)))
    }
}

/// What one mechanism did in one vCPU.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Deeds {
    /// Cases it took.
    pub hits: Counter,
    /// Cases it left to the way there always is, by [`Fallback`].
    pub fallbacks: [Counter; Fallback::COUNT],
    /// Exits of the guest that there would have been without it, on this vCPU or another, as far as that can be told.
    pub saved: Counter,
    /// Exits that there were for it alone.
    pub added: Counter,
}

/// The counters of one vCPU.
#[derive(bytemuck::Zeroable)]
#[repr(C)]
pub struct Stats {
    /// By the vendor's exit number; see [`slot`].
    pub by_exit: [Counter; EXITS],
    /// RDMSR and WRMSR exits by MSR.
    pub by_msr: Keyed,
    /// Port exits by port.
    pub by_port: Keyed,
    /// By mechanism.
    pub deeds: [Deeds; COUNT],
    /// All exits.
    pub exits: Counter,
    /// Exits answered without enabling interrupts.
    pub fast: Counter,
    /// Returns to user space for I/O, MMIO, signals.
    pub user: Counter,
    /// KVM's own names, for tools that look for them.
    pub io_exits: Counter,
    /// MMIO accesses that went to user space.
    pub mmio_exits: Counter,
    /// HLT exits.
    pub halt_exits: Counter,
    /// Wake-ups out of HLT.
    pub halt_wakeup: Counter,
    /// HLTs that ended while the thread still waited awake.
    pub halt_polled: Counter,
    /// Waits awake.
    pub halt_polls: Counter,
    /// How long those were that brought a wake-up, ns.
    pub halt_poll_success_ns: Counter,
    /// And those that did not.
    pub halt_poll_fail_ns: Counter,
    /// How long the thread slept in HLT, ns.
    pub halt_wait_ns: Counter,
    /// Waits awake that brought a wake-up, by how long they were.
    pub polls_won: Histogram,
    /// Those that did not.
    pub polls_lost: Histogram,
    /// Sleeps in HLT, by how long they were.
    pub sleeps: Histogram,
    /// 1 while the thread sleeps in HLT.
    pub blocking: Counter,
    /// What ended halts, by [`waker`].
    pub wakes: [Counter; waker::COUNT],
    /// How long the thread waited for a CPU in KVM_RUN, ns.
    pub steal_ns: Counter,
    /// Exits for host interrupts.
    pub irq_exits: Counter,
    /// Interrupts given to the guest.
    pub irq_injections: Counter,
    /// NMIs given to the guest.
    pub nmi_injections: Counter,
    /// Exits because an interrupt window opened.
    pub irq_window_exits: Counter,
    /// Returns to user space for a signal.
    pub signal_exits: Counter,
    /// Instructions emulated.
    pub insn_emulation: Counter,
    /// Hypercalls.
    pub hypercalls: Counter,
    /// Second-level faults.
    pub pf_taken: Counter,
    /// Second-level faults resolved with a page.
    pub pf_fixed: Counter,
    /// Flushes of guest-physical translations.
    pub tlb_flush: Counter,
    /// Requests looked at.
    pub req_event: Counter,
}

/// The row of an exit number: 0 to 0x9f as they are, 0x400 to 0x40f behind them, everything else in the last.
pub fn slot(number: u64) -> usize {
    match number {
        0..=0xa7 => number as usize,
        0x400..=0x40f => 0xa8 + (number as usize & 15),
        _ => EXITS - 1,
    }
}

/// The exit number of a row; the inverse of [`slot`].
pub fn number(row: usize) -> u64 {
    match row {
        0..=0xa7 => row as u64,
        0xa8..=0xb7 => 0x400 + (row as u64 - 0xa8),
        _ => u64::MAX,
    }
}

impl Stats {
    /// The counters of a mechanism.
    pub fn deeds(&self, m: Mechanism) -> &Deeds {
        let [first, ..] = &self.deeds;
        // For the compiler: every mechanism has its own.
        self.deeds.get(m as usize).unwrap_or(first)
    }

    /// Counts one exit.
    pub fn exit(&self, exit_number: u64) {
        self.exits_of(exit_number, 1);
    }

    /// Counts `n` exits of one kind.
    #[inline(always)]
    pub fn exits_of(&self, exit_number: u64, n: u64) {
        self.exits.add(n);
        if let Some(c) = self.by_exit.get(slot(exit_number)) {
            c.add(n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row names the exit number that leads to it.
    #[test]
    fn rows_and_numbers_agree() {
        for n in (0..0xa8).chain(0x400..0x410).chain([u64::MAX]) {
            assert_eq!(number(slot(n)), n);
        }
    }

    /// Each power of two begins a place, and what is too long for all is in the last.
    #[test]
    fn times_by_powers_of_two() {
        let h: Histogram = bytemuck::Zeroable::zeroed();
        for (ns, place) in
            [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (1 << 30, 31), ((1 << 30) - 1, 30), (u64::MAX, 31)]
        {
            let before = h.0[place].get();
            h.note(ns);
            assert_eq!(h.0[place].get(), before + 1, "{ns}");
        }
    }

    /// More keys than rows: nothing is lost, the rest is "other".
    #[test]
    fn keyed_counts_add_up() {
        let t: std::boxed::Box<Keyed> = std::boxed::Box::new(bytemuck::Zeroable::zeroed());
        for k in 0..200 {
            t.bump(k);
            t.bump(k);
        }
        let sum: u64 = t.rows().map(|(_, c)| c).sum();
        assert_eq!(sum + t.other.get(), 400);
    }

    fn zeroed<T: bytemuck::Zeroable>() -> std::boxed::Box<T> {
        std::boxed::Box::new(T::zeroed())
    }

    /// A key that several vCPUs have is one row with the sum; more keys than places are "other".
    #[test]
    fn sums_of_many_vcpus() {
        let mut sums = zeroed::<Sums>();
        for vcpu in 0..3u32 {
            let t = zeroed::<Keyed>();
            for key in [0, 0x6e0, u32::MAX - 1, 100 + vcpu] {
                (0..=vcpu).for_each(|_| t.bump(key));
            }
            t.other.add(10);
            sums.add(&t);
        }
        let mut rows: std::vec::Vec<_> = sums.rows().collect();
        rows.sort_unstable();
        assert_eq!(rows, [(0, 6), (100, 1), (101, 2), (102, 3), (0x6e0, 6), (u32::MAX - 1, 6)]);
        assert_eq!(sums.other, 30);
        (0..5000).for_each(|key| sums.count(key, 2));
        let all: u64 = sums.rows().map(|(_, n)| n).sum();
        assert_eq!(all + sums.other, 24 + 30 + 10_000);
        assert!(sums.rows().count() > SUMS * 9 / 10);
    }
}
