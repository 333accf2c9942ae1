//! Measurements: TSC ticks and exits of one operation, as loops without anything else inside; or what the host executes within
//! *windows* of a loop, by the emulator's count.

mod ipi;
mod overcommit;
mod queues;
mod timer;
mod yields;

use crate::config::*;
use crate::cpu::*;
use crate::{apic, host, report, smp, t_lazy, test, trap};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

unsafe extern "C" {
    fn bench_isr();
    static mut bench_count: u64;
}

/// Tells the emulator that a batch begins (`docs/lab-bochs.md`, "The ledger"): a NOP, to which a CPU does not mind the
/// displacement.
fn ledger_begin(mark: u64) {
    unsafe {
        asm!(".byte 0x0f, 0x1f, 0x80; .long 0x1ed9e201", in("rax") mark, options(nostack, preserves_flags))
    }
}

/// Tells the emulator that the batch has ended.
fn ledger_end(operations: u64) {
    unsafe {
        asm!(".byte 0x0f, 0x1f, 0x80; .long 0x1ed9e202", in("rax") operations, options(nostack, preserves_flags))
    }
}

/// Whose instructions the emulator counts in a window.
#[derive(Clone, Copy)]
enum Of {
    /// The host's CPU that this vCPU runs on; its thread must stay there (`pin`).
    ThisCpu = 0,
    Everybody = 1,
}

/// From here until the window closes, and outside of windows no more in this batch, the emulator counts.
fn open(of: Of) {
    let of = of as u64;
    unsafe {
        asm!(".byte 0x0f, 0x1f, 0x80; .long 0x1ed9e203", in("rax") of, options(nostack, preserves_flags))
    }
}

fn close() {
    unsafe { asm!(".byte 0x0f, 0x1f, 0x80; .long 0x1ed9e204", options(nostack, preserves_flags)) }
}

/// This vCPU's thread stays on the host's CPU of the same number.
fn pin() {
    host::must(op::MIGRATE, &[index() as u64]);
}

/// Marks of this process's batches: from this one on, `MARKS` of them.
fn first_mark() -> u64 {
    host::must(op::PROCESS, &[]) * MARKS
}
const MARKS: u64 = 32;

/// What the host executes for `f`, which opens and closes its windows; all of it if it opens none. Of short batches, one of
/// which the host's timer does not disturb.
fn measure_host<F: FnMut()>(name: &str, f: F) {
    measure_host_in(name, MARKS, 10, f)
}

fn measure_host_in<F: FnMut()>(name: &str, batches: u64, operations: u64, mut f: F) {
    f();
    let first = first_mark();
    for mark in first..first + batches {
        ledger_begin(mark);
        for _ in 0..operations {
            f();
        }
        ledger_end(operations);
    }
    host::must(op::BENCH_HOST, &[name.as_ptr() as u64, name.len() as u64, operations, first, batches]);
}

/// The time is that of the fastest batch, the one that the host disturbed least, and so is the ledger; exits are those of
/// all batches.
fn batches<F: FnMut() -> u64>(name: &str, n: u64, mut ticks_of_batch: F) {
    let (mut best, mut fastest) = (u64::MAX, 0);
    let first = first_mark();
    let exits0 = host::call(op::EXITS, &[]);
    for mark in first..first + BATCHES {
        ledger_begin(mark);
        let ticks = ticks_of_batch();
        ledger_end(n);
        if ticks < best {
            (best, fastest) = (ticks, mark);
        }
    }
    let exits1 = host::call(op::EXITS, &[]);
    // The second statistics call itself is one exit.
    let exits = if exits0 < 0 { !0 } else { (exits1 - exits0 - 1) as u64 };
    host::must(
        op::BENCH,
        &[name.as_ptr() as u64, name.len() as u64, best * BATCHES, n * BATCHES, exits, fastest],
    );
}

fn measure<F: FnMut()>(name: &str, n: u64, mut f: F) {
    f();
    batches(name, n, || {
        let t0 = rdtsc();
        for _ in 0..n {
            f();
        }
        rdtsc() - t0
    })
}

/// The ticks are those that `f` gives back.
fn measure_own<F: FnMut() -> u64>(name: &str, n: u64, mut f: F) {
    f();
    batches(name, n, || (0..n).map(|_| f()).sum())
}

/// In a page of the device that nothing else uses.
const DOORBELL: u64 = MMIO + 0x8000;

const BATCHES: u64 = 5;
const N: u64 = 250;

test!(b_empty, "bench/empty", BENCH);
fn b_empty() {
    measure("empty", N, || unsafe { asm!("") });
}

test!(b_cpuid, "bench/cpuid", BENCH);
fn b_cpuid() {
    measure("cpuid", N, || {
        cpuid(0, 0);
    });
}

test!(b_pio_write_kernel, "bench/pio_write_kernel", BENCH);
fn b_pio_write_kernel() {
    measure("pio_write_kernel", N, || outl(0x4d0, 0));
}

test!(b_pio_read_kernel, "bench/pio_read_kernel", BENCH);
fn b_pio_read_kernel() {
    measure("pio_read_kernel", N, || {
        inb(0x4d0);
    });
}

test!(b_pio_read_user, "bench/pio_read_user", BENCH);
fn b_pio_read_user() {
    measure("pio_read_user", N, || {
        inl(PIO_RAM);
    });
}

test!(b_pio_write_user, "bench/pio_write_user", BENCH);
fn b_pio_write_user() {
    measure("pio_write_user", N, || outl(PIO_RAM, 0));
}

test!(b_cr8_read, "bench/cr8_read", BENCH);
fn b_cr8_read() {
    measure("cr8_read", N, || {
        cr8();
    });
}

test!(b_cr8_write, "bench/cr8_write", BENCH);
fn b_cr8_write() {
    measure("cr8_write", N, || set_cr8(0));
}

test!(b_cr0_wp, "bench/cr0_wp_toggle", BENCH);
fn b_cr0_wp() {
    let c = cr0();
    measure("cr0_wp_toggle", N, || {
        set_cr0(c & !0x1_0000);
        set_cr0(c);
    });
}

fn amd() -> bool {
    cpuid(0, 0)[1] == 0x6874_7541
}

test!(b_vmcall, "bench/hypercall", BENCH);
fn b_vmcall() {
    // An unknown hypercall number returns -KVM_ENOSYS; the module patches or accepts either instruction.
    let amd = amd();
    measure("hypercall", N, || unsafe {
        if amd {
            asm!("vmmcall", inout("rax") 1000u64 => _, options(nostack))
        } else {
            asm!("vmcall", inout("rax") 1000u64 => _, options(nostack))
        }
    });
}

test!(b_wbinvd, "bench/wbinvd", BENCH);
fn b_wbinvd() {
    measure("wbinvd", N, || unsafe { asm!("wbinvd", options(nostack)) });
}

test!(b_mmio_write_user, "bench/mmio_write_user", BENCH);
fn b_mmio_write_user() {
    measure("mmio_write_user", N, || crate::mem::w32(MMIO, 0));
}

test!(b_mmio_read_user, "bench/mmio_read_user", BENCH);
fn b_mmio_read_user() {
    measure("mmio_read_user", N, || {
        crate::mem::r32(MMIO);
    });
}

test!(b_lapic_read, "bench/lapic_mmio_read", BENCH);
fn b_lapic_read() {
    apic::enable();
    measure("lapic_mmio_read", N, || {
        crate::mem::r32(apic::BASE + apic::ID as u64);
    });
}

test!(b_lapic_eoi, "bench/lapic_mmio_eoi", BENCH);
fn b_lapic_eoi() {
    apic::enable();
    measure("lapic_mmio_eoi", N, || crate::mem::w32(apic::BASE + apic::EOI as u64, 0));
}

test!(b_x2apic_eoi, "bench/eoi", BENCH);
fn b_x2apic_eoi() {
    apic::to_x2apic();
    apic::enable();
    measure("eoi", N, || wrmsr(0x80b, 0));
}

test!(b_ioeventfd, "bench/ioeventfd_pio", BENCH);
fn b_ioeventfd() {
    host::must(op::IOEVENTFD, &[0x5100, 2, 2, 0]);
    measure("ioeventfd_pio", N, || outw(0x5100, 0));
}

/// As virtio 1.0 over PCI rings: an address of its own for each queue, any length, any data.
test!(b_ioeventfd_mmio, "bench/ioeventfd_mmio", BENCH);
fn b_ioeventfd_mmio() {
    host::must(op::IOEVENTFD, &[DOORBELL, 0, 0, 0]);
    measure("ioeventfd_mmio", N, || crate::mem::w16(DOORBELL, 0));
}

/// As virtio over MMIO rings: the queue's number is the data.
test!(b_ioeventfd_mmio_data, "bench/ioeventfd_mmio_data", BENCH);
fn b_ioeventfd_mmio_data() {
    host::must(op::IOEVENTFD, &[DOORBELL, 4, 1, 7]);
    measure("ioeventfd_mmio_data", N, || crate::mem::w32(DOORBELL, 7));
}

test!(b_msr_apicbase, "bench/rdmsr_apic_base", BENCH);
fn b_msr_apicbase() {
    measure("rdmsr_apic_base", N, || {
        rdmsr(apic::MSR_APIC_BASE);
    });
}

fn gate(vector: usize, handler: unsafe extern "C" fn()) {
    trap::set_gate(vector, handler as *const () as u64, 0xe, 0, 0);
}
fn isr(vector: usize) {
    gate(vector, bench_isr);
}
fn count() -> u64 {
    unsafe { (&raw const bench_count).read_volatile() }
}

test!(b_tscdeadline, "bench/tscdeadline_immed", BENCH);
fn b_tscdeadline() {
    if host::cap(72) <= 0 {
        report::skip("no KVM_CAP_TSC_DEADLINE_TIMER")
    }
    apic::to_x2apic();
    apic::enable();
    isr(0x40);
    apic::write(apic::LVTT, apic::TSC_DEADLINE | 0x40);
    sti();
    measure("tscdeadline_immed", N, || {
        let before = count();
        wrmsr(apic::MSR_TSC_DEADLINE, 1);
        while count() == before {}
    });
}

test!(b_tscdeadline_arm, "bench/tscdeadline_far", BENCH);
fn b_tscdeadline_arm() {
    if host::cap(72) <= 0 {
        report::skip("no KVM_CAP_TSC_DEADLINE_TIMER")
    }
    apic::to_x2apic();
    apic::enable();
    apic::write(apic::LVTT, apic::TSC_DEADLINE | 0x40);
    let far = rdtsc() + (1 << 40);
    match t_lazy::setter(0x40) {
        Some(set) => measure("tscdeadline_far", N, || set(far)),
        None => measure("tscdeadline_far", N, || wrmsr(apic::MSR_TSC_DEADLINE, far)),
    }
}

test!(b_self_ipi, "bench/self_ipi", BENCH);
fn b_self_ipi() {
    apic::to_x2apic();
    apic::enable();
    isr(0x41);
    sti();
    measure("self_ipi", N, || {
        let before = count();
        wrmsr(0x83f, 0x41);
        while count() == before {}
    });
}

test!(b_self_ipi_hlt, "bench/self_ipi_sti_hlt", BENCH);
fn b_self_ipi_hlt() {
    apic::to_x2apic();
    apic::enable();
    isr(0x41);
    measure("self_ipi_sti_hlt", N, || {
        wrmsr(0x83f, 0x41);
        sti_hlt();
        cli();
    });
}

static STOP: AtomicBool = AtomicBool::new(false);
static READY: AtomicU64 = AtomicU64::new(0);

fn halting_target() {
    apic::to_x2apic();
    apic::enable();
    READY.store(1, Ordering::SeqCst);
    while !STOP.load(Ordering::Relaxed) {
        sti_hlt();
        cli();
    }
}
fn spinning_target() {
    apic::to_x2apic();
    apic::enable();
    sti();
    READY.store(1, Ordering::SeqCst);
    while !STOP.load(Ordering::Relaxed) {
        pause();
    }
}
fn ipi(name: &str, target: fn()) {
    smp::start_all(2);
    apic::to_x2apic();
    isr(0x42);
    smp::run(1, target);
    while READY.load(Ordering::SeqCst) == 0 {}
    measure(name, N, || {
        let before = count();
        wrmsr(0x830, 1 << 32 | 0x42);
        while count() == before {}
    });
}

test!(b_ipi, "bench/ipi_running", BENCH | cpus(2));
fn b_ipi() {
    ipi("ipi_running", spinning_target)
}

test!(b_ipi_hlt, "bench/ipi_wake_hlt", BENCH | cpus(2));
fn b_ipi_hlt() {
    ipi("ipi_wake_hlt", halting_target)
}
