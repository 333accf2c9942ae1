//! Services of the runner: a command block at a physical address, announced through one port write.
#![allow(dead_code)]

use crate::config::*;
use crate::cpu::{outl, rdtsc};
use core::cell::UnsafeCell;

#[repr(C, align(64))]
struct Command([u64; 8]);
struct Blocks(UnsafeCell<[Command; MAX_CPUS]>);
// SAFETY: each CPU uses its own block.
unsafe impl Sync for Blocks {}
static BLOCKS: Blocks = Blocks(UnsafeCell::new([const { Command([0; 8]) }; MAX_CPUS]));

/// Runs a service and returns its result; negative results are errno values.
pub fn call(op: u64, a: &[u64]) -> i64 {
    unsafe {
        let c = (BLOCKS.0.get() as *mut Command).add(crate::cpu::index()) as *mut u64;
        c.write_volatile(op);
        for i in 0..6 {
            c.add(1 + i).write_volatile(a.get(i).copied().unwrap_or(0));
        }
        c.add(7).write_volatile(0);
        outl(PORT_CMD, c as u64 as u32);
        c.add(7).read_volatile() as i64
    }
}

/// Runs a service that must succeed.
pub fn must(op: u64, a: &[u64]) -> u64 {
    let r = call(op, a);
    if (-4095..0).contains(&r) {
        crate::report::log_num("host service ", op);
        crate::report::fail_eq(" failed", r as u64, 0)
    }
    r as u64
}

/// Runs a service later, from another thread of the runner.
pub fn after(us: u64, op: u64, a: &[u64]) {
    let mut args = [us, op, 0, 0, 0, 0];
    args[2..2 + a.len()].copy_from_slice(a);
    must(op::AFTER, &args);
}

pub fn cap(n: u64) -> i64 {
    call(op::QUERY_CAP, &[n])
}

/// Ends the test as skipped unless the capability is there.
pub fn need_cap(n: u64, name: &str) {
    if cap(n) <= 0 {
        crate::report::skip(name)
    }
}

pub fn irq_line(gsi: u64, level: u64) {
    // The status may be -1 for a masked line, which is no error.
    call(op::IRQ_LINE, &[gsi, level]);
}

/// The calling vCPU's thread goes to one of the host's first two CPUs, by chance.
pub fn move_somewhere() {
    let cpus = must(op::HOST_CPUS, &[]).min(2);
    must(op::MIGRATE, &[(rdtsc() >> 8) % cpus]);
}

pub fn tsc_khz() -> u64 {
    must(op::TSC_KHZ, &[])
}

/// Spins until the condition holds; false after this many milliseconds.
pub fn wait_ms<F: FnMut() -> bool>(ms: u64, mut f: F) -> bool {
    let limit = rdtsc() + tsc_khz() * ms;
    loop {
        if f() {
            return true;
        }
        if rdtsc() > limit {
            return false;
        }
        crate::cpu::pause();
    }
}

/// Exits of one kind of this VM that reached user space so far.
pub fn user_exits(reason: u64) -> u64 {
    must(op::USER_EXITS, &[reason])
}

/// The test passes when this CPU's next exit to user space is of this kind.
pub fn expect_exit(reason: u32) {
    outl(PORT_EXPECT, reason);
}

pub fn mmio_log(buf: &mut [[u64; 3]; 64]) -> usize {
    must(op::MMIO_LOG, &[buf as *mut _ as u64]) as usize
}
