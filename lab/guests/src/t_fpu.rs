//! x87, SSE and AVX state: it survives exits to a user space that uses the same registers, moves and other vCPUs.

use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::trap::expect;
use crate::{host, smp, test};
use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

#[repr(C, align(64))]
struct Area([u64; 128]);

fn fill(seed: u64) -> Area {
    let mut a = Area([0; 128]);
    for (i, w) in a.0.iter_mut().enumerate() {
        *w = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(i as u64);
    }
    a
}

/// Loads xmm0-15 from an area, runs a service, stores them again; true when nothing changed.
pub fn sse_keeps(seed: u64, f: fn()) -> bool {
    let src = fill(seed);
    let mut dst = Area([0; 128]);
    unsafe {
        asm!(
            "movaps xmm0, [r12]", "movaps xmm1, [r12+16]", "movaps xmm2, [r12+32]", "movaps xmm3, [r12+48]",
            "movaps xmm4, [r12+64]", "movaps xmm5, [r12+80]", "movaps xmm6, [r12+96]", "movaps xmm7, [r12+112]",
            "movaps xmm8, [r12+128]", "movaps xmm9, [r12+144]", "movaps xmm10, [r12+160]",
            "movaps xmm11, [r12+176]", "movaps xmm12, [r12+192]", "movaps xmm13, [r12+208]",
            "movaps xmm14, [r12+224]", "movaps xmm15, [r12+240]",
            "call {f}",
            "movaps [r13], xmm0", "movaps [r13+16], xmm1", "movaps [r13+32], xmm2", "movaps [r13+48], xmm3",
            "movaps [r13+64], xmm4", "movaps [r13+80], xmm5", "movaps [r13+96], xmm6", "movaps [r13+112], xmm7",
            "movaps [r13+128], xmm8", "movaps [r13+144], xmm9", "movaps [r13+160], xmm10",
            "movaps [r13+176], xmm11", "movaps [r13+192], xmm12", "movaps [r13+208], xmm13",
            "movaps [r13+224], xmm14", "movaps [r13+240], xmm15",
            f = in(reg) f, in("r12") &src, in("r13") &mut dst, clobber_abi("C"),
        )
    }
    src.0[..32] == dst.0[..32]
}

/// A service that touches no vector register on the guest's side: the block is prepared before.
static mut BLOCK: [u64; 8] = [0; 8];
fn prepare(op: u64, a0: u64) {
    unsafe { (&raw mut BLOCK).write_volatile([op, a0, 0, 0, 0, 0, 0, 0]) }
}
fn fire() {
    unsafe { asm!("out dx, eax", in("dx") PORT_CMD, in("eax") (&raw const BLOCK) as u64 as u32) }
}

test!(sse_exit, "fpu/sse_survives_user_exit");
fn sse_exit() {
    prepare(op::CLOBBER_FPU, 0);
    for i in 0..20 {
        check(sse_keeps(i, fire), "SSE registers changed");
    }
}

test!(sse_kernel, "fpu/sse_survives_kernel_exits");
fn sse_kernel() {
    fn exits() {
        for _ in 0..5 {
            unsafe {
                asm!("xor eax, eax", "push rbx", "cpuid", "pop rbx", out("eax") _, out("ecx") _, out("edx") _)
            }
        }
    }
    for i in 0..20 {
        check(sse_keeps(i, exits), "SSE registers changed");
    }
}

test!(sse_migrate, "fpu/sse_survives_migration");
fn sse_migrate() {
    let n = host::must(op::HOST_CPUS, &[]);
    if n < 2 {
        skip("one host CPU")
    }
    for i in 0..10 {
        prepare(op::MIGRATE, i & 1);
        check(sse_keeps(i, fire), "SSE registers changed");
    }
}

test!(sse_state, "fpu/sse_survives_get_set_xsave");
fn sse_state() {
    prepare(op::STATE_ROUND_TRIP, 0);
    for i in 0..3 {
        check(sse_keeps(i, fire), "SSE registers changed");
    }
}

fn avx_on() {
    if cpuid(1, 0)[2] & 1 << 28 == 0 {
        skip("no AVX")
    }
    set_cr4(cr4() | 1 << 18);
    xsetbv(0, 7);
}

/// The same with ymm0-3 and ymm15.
pub fn avx_keeps(seed: u64, f: fn()) -> bool {
    let src = fill(seed);
    let mut dst = Area([0; 128]);
    unsafe {
        asm!(
            "vmovaps ymm0, [r12]", "vmovaps ymm1, [r12+32]", "vmovaps ymm2, [r12+64]", "vmovaps ymm3, [r12+96]",
            "vmovaps ymm15, [r12+128]",
            "call {f}",
            "vmovaps [r13], ymm0", "vmovaps [r13+32], ymm1", "vmovaps [r13+64], ymm2", "vmovaps [r13+96], ymm3",
            "vmovaps [r13+128], ymm15",
            f = in(reg) f, in("r12") &src, in("r13") &mut dst, clobber_abi("C"),
        )
    }
    src.0[..20] == dst.0[..20]
}

test!(avx_exit, "fpu/avx_survives_user_exit");
fn avx_exit() {
    avx_on();
    prepare(op::CLOBBER_FPU, 0);
    for i in 0..20 {
        check(avx_keeps(i, fire), "AVX registers changed");
    }
}

test!(avx_migrate, "fpu/avx_survives_migration");
fn avx_migrate() {
    avx_on();
    if host::must(op::HOST_CPUS, &[]) < 2 {
        skip("one host CPU")
    }
    for i in 0..10 {
        prepare(op::MIGRATE, i & 1);
        check(avx_keeps(i, fire), "AVX registers changed");
    }
}

test!(avx_state, "fpu/avx_survives_get_set_xsave");
fn avx_state() {
    avx_on();
    prepare(op::STATE_ROUND_TRIP, 0);
    for i in 0..3 {
        check(avx_keeps(i, fire), "AVX registers changed");
    }
}

test!(x87, "fpu/x87_survives_user_exit");
fn x87() {
    let (a, mut b, mut c) = (3.25f64, 0f64, 0f64);
    unsafe {
        asm!("fninit", "fld qword ptr [{0}]", "fldpi", in(reg) &a, options(nostack));
        prepare(op::CLOBBER_FPU, 0);
        fire();
        asm!("fstp qword ptr [{1}]", "fstp qword ptr [{0}]", in(reg) &mut b, in(reg) &mut c, options(nostack));
    }
    check_eq(b.to_bits(), a.to_bits(), "st1");
    check_eq(c.to_bits(), core::f64::consts::PI.to_bits(), "pi");
}

test!(mxcsr, "fpu/control_words_survive");
fn mxcsr() {
    let (m, f) = (0x3f80u32, 0x0f7fu16);
    let (mut m2, mut f2) = (0u32, 0u16);
    unsafe {
        asm!("ldmxcsr [{0}]", "fldcw [{1}]", in(reg) &m, in(reg) &f);
        prepare(op::CLOBBER_FPU, 0);
        fire();
        asm!("stmxcsr [{0}]", "fnstcw [{1}]", in(reg) &mut m2, in(reg) &mut f2);
    }
    check_eq(m2 as u64, m as u64, "MXCSR");
    check_eq(f2 as u64, f as u64, "x87 control word");
}

static DONE: AtomicU32 = AtomicU32::new(0);
fn busy() {
    prepare(op::MIGRATE, 0);
    host::must(op::MIGRATE, &[0]);
    let id = index() as u64;
    fn spin() {
        for _ in 0..20000 {
            pause();
        }
        inb(PIO_RAM);
    }
    for i in 0..20 {
        if !sse_keeps(id << 32 | i, spin) {
            fail("SSE registers mixed up between vCPUs")
        }
    }
    DONE.fetch_add(1, Ordering::SeqCst);
}

test!(shared_cpu, "fpu/vcpus_on_one_host_cpu", cpus(3));
fn shared_cpu() {
    smp::start_all(3);
    smp::run(1, busy);
    smp::run(2, busy);
    busy();
    check(host::wait_ms(20_000, || DONE.load(Ordering::SeqCst) == 3), "the other vCPUs did not finish");
}

/// Computes and exits for a while, without touching vector registers: interrupts of the host come in between.
fn meanwhile() {
    let until = rdtsc() + host::tsc_khz() * 5;
    while rdtsc() < until {
        for _ in 0..2000 {
            unsafe { asm!("nop", options(nomem, nostack, preserves_flags)) }
        }
        let _ = cpuid(1, 0);
    }
}

/// Breakpoints where nothing ever is, so that the CPU holds the guest's debug registers too.
const BREAKPOINTS: [u64; 4] = [0x7f01_1000, 0x7f02_2000, 0x7f03_3000, 0x7f04_4000];

fn with_breakpoints(keeps: fn(u64, fn()) -> bool, what: &str) {
    unsafe {
        asm!("mov dr0, {0}", "mov dr1, {1}", "mov dr2, {2}", "mov dr3, {3}", "mov dr7, {4}",
            in(reg) BREAKPOINTS[0], in(reg) BREAKPOINTS[1], in(reg) BREAKPOINTS[2], in(reg) BREAKPOINTS[3],
            in(reg) 0x455u64);
    }
    for i in 0..100 {
        check(keeps(i, meanwhile), what);
        let dr: [u64; 4];
        unsafe {
            let (a, b, c, d): (u64, u64, u64, u64);
            asm!("mov {0}, dr0", "mov {1}, dr1", "mov {2}, dr2", "mov {3}, dr3",
                out(reg) a, out(reg) b, out(reg) c, out(reg) d);
            dr = [a, b, c, d];
        }
        check(dr == BREAKPOINTS, "debug registers changed");
    }
}

// Interrupts of the host hit a guest whose XCR0 is not the host's, with registers full. Where their handlers ran on the guest's
// XCR0, the host panicked, or XMM0 was lost. Scenario `softirq-fpu` gives the host something to do in them.
test!(interrupted_sse, "fpu/interrupted_at_reset_xcr0", timeout(60));
fn interrupted_sse() {
    // Only who could look at XCR0 has one of its own.
    set_cr4(cr4() | 1 << 18);
    with_breakpoints(sse_keeps, "SSE registers changed");
}

test!(interrupted_avx, "fpu/interrupted_avx", timeout(60));
fn interrupted_avx() {
    avx_on();
    with_breakpoints(avx_keeps, "AVX registers changed");
}

/// zmm0, zmm15, zmm31 and k1.
pub fn avx512_keeps(seed: u64, f: fn()) -> bool {
    let src = fill(seed);
    let mut dst = Area([0; 128]);
    unsafe {
        asm!(
            "vmovaps zmm0, [r12]", "vmovaps zmm15, [r12+64]", "vmovaps zmm31, [r12+128]", "kmovw k1, [r12+192]",
            "call {f}",
            "vmovaps [r13], zmm0", "vmovaps [r13+64], zmm15", "vmovaps [r13+128], zmm31", "kmovw [r13+192], k1",
            f = in(reg) f, in("r12") &src, in("r13") &mut dst, clobber_abi("C"),
        )
    }
    src.0[..24] == dst.0[..24] && src.0[24] as u16 == dst.0[24] as u16
}

test!(interrupted_avx512, "fpu/interrupted_avx512", timeout(60));
fn interrupted_avx512() {
    if cpuid(7, 0)[1] & 1 << 16 == 0 {
        skip("no AVX-512")
    }
    set_cr4(cr4() | 1 << 18);
    xsetbv(0, 0xe7);
    with_breakpoints(avx512_keeps, "AVX-512 registers changed");
}

test!(xsaves, "fpu/xsaves");
fn xsaves() {
    if cpuid(0xd, 1)[0] & 1 << 3 == 0 {
        skip("no XSAVES")
    }
    expect(6, 0, "XSAVES with CR4.OSXSAVE clear", || save_compact(&mut Area([0; 128])));
    set_cr4(cr4() | 1 << 18);
    xsetbv(0, 3);
    check_eq(rdmsr(XSS), 0, "IA32_XSS after reset");
    wrmsr(XSS, 0);
    expect(13, 0, "a component that does not exist", || wrmsr(XSS, 1 << 20));
    check_eq(host::must(op::GET_MSR, &[XSS as u64]), 0, "KVM_GET_MSRS");
    let mut area = Area([0; 128]);
    unsafe { asm!("movaps xmm7, [{}]", in(reg) &fill(7)) };
    save_compact(&mut area);
    check_eq(area.0[65], 1 << 63 | 3, "XCOMP_BV");
    unsafe {
        asm!("xorps xmm7, xmm7");
        inb(PIO_RAM);
        asm!("xrstors [{}]", in(reg) &area, in("eax") !0, in("edx") !0);
        let mut v = Area([0; 128]);
        asm!("movaps [{}], xmm7", in(reg) &mut v);
        check(v.0[..2] == fill(7).0[..2], "XMM7 behind XRSTORS");
    }
}

const XSS: u32 = 0xda0;

fn save_compact(area: &mut Area) {
    unsafe { asm!("xsaves [{}]", in(reg) area, in("eax") !0, in("edx") !0) }
}
