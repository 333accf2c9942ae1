//! Model-specific registers: reads, writes, reserved bits and unknown ones, and what user space sees of them.

use crate::config::*;
use crate::cpu::*;
use crate::host;
use crate::report::*;
use crate::trap::{catch, expect};
use crate::{apic, test};

const GP: u64 = 13;

fn bad_write(msr: u32, v: u64, what: &str) {
    expect(GP, 0, what, || wrmsr(msr, v));
}

fn round_trip(msr: u32, v: u64, what: &str) {
    let old = rdmsr(msr);
    wrmsr(msr, v);
    check_eq(rdmsr(msr), v, what);
    check_eq(host::must(op::GET_MSR, &[msr as u64]), v, "KVM_GET_MSRS");
    wrmsr(msr, old);
    check_eq(rdmsr(msr), old, "old value");
}

test!(unknown_read, "msr/unknown_read");
fn unknown_read() {
    let c = expect(GP, 0, "RDMSR", || {
        rdmsr(0x1234_5678);
    });
    check_eq(unsafe { (c.rip as *const u16).read_unaligned() } as u64, 0x320f, "RIP is at the RDMSR");
}

test!(unknown_write, "msr/unknown_write");
fn unknown_write() {
    bad_write(0x1234_5678, 0, "WRMSR");
    bad_write(0xc001_ffff, 0, "WRMSR in the AMD range");
}

test!(efer, "msr/efer");
fn efer() {
    let e = rdmsr(0xc000_0080);
    check(e & 0x500 == 0x500, "LMA and LME");
    wrmsr(0xc000_0080, e & !1);
    check_eq(rdmsr(0xc000_0080), e & !1, "SCE off");
    wrmsr(0xc000_0080, e & !0x800);
    check_eq(rdmsr(0xc000_0080), e & !0x800, "NXE off");
    wrmsr(0xc000_0080, e);
    check_eq(rdmsr(0xc000_0080), e, "as before");
}

test!(efer_reserved, "msr/efer_reserved");
fn efer_reserved() {
    let e = rdmsr(0xc000_0080);
    bad_write(0xc000_0080, e | 1 << 1, "reserved bit 1");
    bad_write(0xc000_0080, e | 1 << 63, "reserved bit 63");
    bad_write(0xc000_0080, e & !0x100, "LME cleared while paging is on");
    check_eq(rdmsr(0xc000_0080), e, "unchanged");
}

test!(efer_lma, "msr/efer_lma_write_ignored");
fn efer_lma() {
    let e = rdmsr(0xc000_0080);
    // Linux hosts keep LMA whatever is written; a #GP is what some CPUs do.
    let _ = catch(|| wrmsr(0xc000_0080, e & !0x400));
    check_eq(rdmsr(0xc000_0080), e, "LMA stays");
}

test!(pat, "msr/pat");
fn pat() {
    round_trip(0x277, 0x0007_0406_0007_0406, "PAT");
    round_trip(0x277, 0x0504_0100_0706_0504 & 0x0707_0707_0707_0707, "all types");
    bad_write(0x277, 0x0007_0406_0007_0402, "type 2");
    bad_write(0x277, 0x0807_0406_0007_0406, "type 8");
}

test!(sysenter, "msr/sysenter");
fn sysenter() {
    round_trip(0x174, 0x08, "CS");
    round_trip(0x175, 0x1234_5678, "ESP");
    round_trip(0x176, 0x2345_6789, "EIP");
}

test!(syscall, "msr/syscall");
fn syscall() {
    round_trip(0xc000_0081, 0x0028_0008_1234_5678, "STAR");
    round_trip(0xc000_0082, 0xffff_8000_1234_5678, "LSTAR");
    round_trip(0xc000_0083, 0xffff_8000_8765_4321, "CSTAR");
    round_trip(0xc000_0084, 0x4700, "SFMASK");
}

test!(bases, "msr/fs_gs_kernel_gs_base");
fn bases() {
    round_trip(0xc000_0100, 0x7fff_1234_5678, "FS base");
    round_trip(0xc000_0101, 0xffff_8888_0000_1000, "GS base");
    round_trip(0xc000_0102, 0xffff_9999_0000_1000, "KERNEL_GS base");
    wrmsr(0xc000_0101, 0x1000);
    wrmsr(0xc000_0102, 0x2000);
    unsafe { core::arch::asm!("swapgs") };
    outb(PIO_RAM, 0); // an exit to user space in between
    check_eq(rdmsr(0xc000_0101), 0x2000, "GS base after SWAPGS");
    check_eq(rdmsr(0xc000_0102), 0x1000, "KERNEL_GS base after SWAPGS");
}

test!(fs_use, "msr/fs_base_addresses");
fn fs_use() {
    let p = crate::mem::page();
    crate::mem::w64(p + 8, 0x1122_3344);
    wrmsr(0xc000_0100, p);
    let v: u64;
    unsafe { core::arch::asm!("mov {}, fs:[8]", out(reg) v) }
    check_eq(v, 0x1122_3344, "load through FS");
}

test!(host_set, "msr/user_space_sets_and_gets");
fn host_set() {
    for msr in [0xc000_0081u32, 0xc000_0082, 0xc000_0084, 0xc000_0102, 0x277, 0x176] {
        let v = if msr == 0x277 { 0x0606_0606_0606_0606 } else { 0x1234_5000 };
        check_eq(host::must(op::SET_MSR, &[msr as u64, v]), 1, "KVM_SET_MSRS");
        check_eq(rdmsr(msr), v, "RDMSR after KVM_SET_MSRS");
    }
}

test!(tsc, "msr/tsc_monotone");
fn tsc() {
    let mut last = rdtsc();
    for i in 0..200 {
        if i % 20 == 0 {
            outb(PIO_RAM, 0);
        }
        let t = rdtsc();
        check(t > last, "RDTSC went back");
        let m = rdmsr(0x10);
        check(m > t, "RDMSR(TSC) is behind RDTSC");
        last = m;
    }
}

test!(tsc_write, "msr/tsc_write");
fn tsc_write() {
    let base = 1u64 << 50;
    wrmsr(0x10, base);
    let t = rdtsc();
    check(t >= base && t < base + (1 << 40), "TSC runs on from the value written");
    wrmsr(0x10, 0);
    check(rdtsc() < 1 << 40, "TSC written 0");
}

fn need_tsc_adjust() {
    if cpuid(7, 0)[1] & 2 == 0 {
        skip("no TSC_ADJUST")
    }
}

test!(tsc_adjust, "msr/tsc_adjust");
fn tsc_adjust() {
    need_tsc_adjust();
    check_eq(rdmsr(0x3b), 0, "after reset");
    let t0 = rdtsc();
    wrmsr(0x3b, 1 << 45);
    check_eq(rdmsr(0x3b), 1 << 45, "read back");
    let t1 = rdtsc();
    check(t1 - t0 >= 1 << 45 && t1 - t0 < (1 << 45) + (1 << 40), "the TSC moved by the adjustment");
    wrmsr(0x3b, 0);
    check(rdtsc() - t0 < 1 << 40, "and back");
}

test!(tsc_adjust_by_tsc, "msr/tsc_write_shows_in_tsc_adjust");
fn tsc_adjust_by_tsc() {
    need_tsc_adjust();
    let t = rdtsc();
    wrmsr(0x10, t + (1 << 45));
    let a = rdmsr(0x3b);
    check(a <= 1 << 45 && a > (1 << 45) - (1 << 42), "TSC_ADJUST after a write of the TSC");
}

test!(tsc_aux, "msr/tsc_aux_rdtscp");
fn tsc_aux() {
    if cpuid(0x8000_0001, 0)[3] & 1 << 27 == 0 {
        skip("no RDTSCP")
    }
    wrmsr(0xc000_0103, 0x1234);
    outb(PIO_RAM, 0);
    let aux: u32;
    unsafe { core::arch::asm!("rdtscp", out("eax") _, out("edx") _, out("ecx") aux) }
    check_eq(aux as u64, 0x1234, "RDTSCP");
    check_eq(rdmsr(0xc000_0103), 0x1234, "RDMSR");
}

test!(apic_base, "msr/apic_base");
fn apic_base() {
    let b = rdmsr(0x1b);
    check_eq(b, 0xfee0_0900, "BSP, enabled, default address");
    bad_write(0x1b, b | 1, "reserved bit 0");
    bad_write(0x1b, b | 1 << 60, "reserved bit 60");
    bad_write(0x1b, (b & !0x800) | 0x400, "x2APIC without enable");
}

test!(apic_base_transitions, "msr/apic_base_transitions");
fn apic_base_transitions() {
    apic::to_x2apic();
    bad_write(0x1b, 0xfee0_0900, "x2APIC to xAPIC in one step");
    wrmsr(0x1b, 0xfee0_0100);
    bad_write(0x1b, 0xfee0_0d00, "disabled to x2APIC in one step");
    wrmsr(0x1b, 0xfee0_0900);
    check_eq(rdmsr(0x1b), 0xfee0_0900, "xAPIC again");
}

test!(mtrr, "msr/mtrr");
fn mtrr() {
    if cpuid(1, 0)[3] & 1 << 12 == 0 {
        skip("no MTRRs")
    }
    let cap = rdmsr(0xfe);
    check(cap & 0xff >= 1, "number of variable ranges");
    round_trip(0x2ff, 0xc06, "default type write-back, enabled");
    round_trip(0x200, 0x8000_0000, "base 0");
    round_trip(0x201, 0xf_c000_0800, "mask 0");
    round_trip(0x250, 0x0606_0606_0606_0606, "fixed 64K");
    round_trip(0x26f, 0x0505_0505_0505_0505, "fixed 4K at f8000");
    bad_write(0x2ff, 0xc02, "default type 2");
    bad_write(0x250, 0x0606_0606_0606_0602, "fixed type 2");
    bad_write(0x200, 0x8000_0007, "variable type 7");
}

test!(mtrr_cap, "msr/mtrr_cap_is_read_only");
fn mtrr_cap() {
    bad_write(0xfe, 0, "MTRRcap");
}

test!(misc, "msr/misc_enable_readable");
fn misc() {
    // Reads of these must not fault; Linux does them without a net at boot.
    for m in [0x1a0u32, 0x1d9, 0x179, 0x17a, 0xc001_0015, 0x8b, 0xce] {
        if let Some(c) = catch(|| {
            rdmsr(m);
        }) {
            log_num("MSR ", m as u64);
            fail_eq(" faults: vector", c.vector, !0)
        }
    }
}

test!(mce, "msr/machine_check_banks");
fn mce() {
    if cpuid(1, 0)[3] & 1 << 7 == 0 {
        skip("no MCE")
    }
    let banks = rdmsr(0x179) & 0xff;
    for b in 0..banks as u32 {
        check_eq(rdmsr(0x401 + 4 * b), 0, "bank status");
        wrmsr(0x401 + 4 * b, 0);
    }
}

test!(x2apic_msrs_in_xapic, "msr/x2apic_range_in_xapic_mode");
fn x2apic_msrs_in_xapic() {
    expect(GP, 0, "RDMSR 0x802 in xAPIC mode", || {
        rdmsr(0x802);
    });
    bad_write(0x80b, 0, "EOI in xAPIC mode");
}

test!(debugctl, "msr/debugctl");
fn debugctl() {
    wrmsr(0x1d9, 0);
    check_eq(rdmsr(0x1d9), 0, "DEBUGCTL");
}

test!(rdpmc, "msr/rdpmc_agrees");
fn rdpmc() {
    fn read(i: u32) -> u64 {
        let (lo, hi): (u32, u32);
        unsafe { core::arch::asm!("rdpmc", in("ecx") i, out("eax") lo, out("edx") hi) }
        (hi as u64) << 32 | lo as u64
    }
    let amd = cpuid(0, 0)[1] == 0x6874_7541;
    if cpuid(0xa, 0)[0] & 0xff != 0 || amd && cpuid(0x8000_0001, 0)[2] & 1 << 23 != 0 {
        skip("a PMU")
    }
    // Without a PMU AMD's first four counters are there and stand still; their MSRs too.
    for i in 0..4 {
        wrmsr(0xc001_0000 + i, 0);
        check_eq(rdmsr(0xc001_0004 + i), 0, "counter by RDMSR");
        if amd {
            check_eq(read(i), 0, "counter by RDPMC");
        } else {
            expect(13, 0, "RDPMC", || _ = read(i));
        }
    }
    for i in [4, 5, 6, 0xffff] {
        expect(13, 0, "RDPMC of a counter that does not exist", || _ = read(i));
    }
    expect(13, 0, "a control of PERFCTR_CORE's", || _ = rdmsr(0xc001_0200));
    expect(13, 0, "a counter of PERFCTR_CORE's", || wrmsr(0xc001_0201, 0));
}
