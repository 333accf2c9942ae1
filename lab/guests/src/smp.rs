//! Application processors: INIT and SIPI, then each runs the function it is given.
#![allow(dead_code)]

use crate::config::MAX_CPUS;
use crate::{apic, cpu, host, report, trap};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

static WORK: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];
pub static UP: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

unsafe extern "C" {
    static sipi_page: u8;
}

pub fn sipi_vector() -> u32 {
    (&raw const sipi_page as u64 >> 12) as u32
}

#[unsafe(no_mangle)]
extern "C" fn ap_main(index: u32) -> ! {
    apic::enable();
    UP[index as usize % MAX_CPUS].fetch_add(1, Ordering::SeqCst);
    loop {
        let f = WORK[index as usize % MAX_CPUS].swap(0, Ordering::SeqCst);
        if f != 0 {
            // SAFETY: only `run` stores here, and it stores function pointers.
            let f: fn() = unsafe { core::mem::transmute(f) };
            f();
        }
        cpu::pause();
    }
}

/// Starts an application processor and waits until it is up.
pub fn start(index: usize) {
    let before = UP[index].load(Ordering::SeqCst);
    apic::icr(0x0000_4500, index as u32); // INIT, assert
    apic::icr(0x0000_4600 | sipi_vector(), index as u32);
    if !host::wait_ms(10_000, || UP[index].load(Ordering::SeqCst) != before) {
        report::fail("an application processor did not start")
    }
}

/// Starts all application processors; CPU 0's APIC gets enabled too.
pub fn start_all(count: usize) {
    apic::enable();
    for i in 1..count {
        start(i);
    }
}

/// Gives a started application processor something to do.
pub fn run(index: usize, f: fn()) {
    WORK[index].store(f as usize, Ordering::SeqCst);
}

/// CPUs that read one clock: none may read less than another has read before.
pub struct Race {
    newest: AtomicU64,
    back: AtomicU64,
    done: AtomicU64,
}

impl Race {
    pub const fn new() -> Race {
        Race { newest: AtomicU64::new(0), back: AtomicU64::new(0), done: AtomicU64::new(0) }
    }

    /// This CPU's part.
    pub fn run(&self, rounds: u32, clock: fn() -> u64) {
        for _ in 0..rounds {
            self.once(clock);
        }
        self.done.fetch_add(1, Ordering::SeqCst);
    }

    /// One reading.
    pub fn once(&self, clock: fn() -> u64) {
        let seen = self.newest.load(Ordering::SeqCst);
        let now = clock();
        if now < seen {
            self.back.fetch_max(seen - now, Ordering::SeqCst);
        }
        self.newest.fetch_max(now, Ordering::SeqCst);
    }

    /// How far it went back, once so many CPUs are through.
    pub fn back(&self, cpus: u64) -> u64 {
        report::check(host::wait_ms(20_000, || self.done.load(Ordering::SeqCst) == cpus), "not finished");
        self.furthest()
    }

    /// How far it has gone back.
    pub fn furthest(&self) -> u64 {
        self.back.load(Ordering::SeqCst)
    }
}

/// Waits until an application processor has taken its work.
pub fn taken(index: usize) -> bool {
    WORK[index].load(Ordering::SeqCst) == 0
}

pub fn tr_of(index: usize) {
    trap::load_tr(index)
}
