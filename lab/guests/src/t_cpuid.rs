//! CPUID: what user space set is what the guest sees, plus the bits that follow the vCPU's own state.

use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::trap::{expect, expect_or_skip};
use crate::{apic, smp, test};
use core::arch::asm;

const AMD: u32 = 0x6874_7541;

test!(custom, "cpuid/custom_leaf");
fn custom() {
    // The runner adds these two entries (see `set_cpuid`).
    let a = cpuid(0x4000_0100, 0);
    check_eq(a[0] as u64, 0x1111_1111, "eax of the plain leaf");
    check_eq(a[3] as u64, 0x4444_4444, "edx of the plain leaf");
    check_eq(cpuid(0x4000_0101, 5)[1] as u64, 0x5555_0005, "sub-leaf 5");
    check_eq(cpuid(0x4000_0101, 6)[1] as u64, 0, "sub-leaf 6 is not there");
}

test!(plain_ignores_ecx, "cpuid/plain_leaf_ignores_ecx");
fn plain_ignores_ecx() {
    check_eq(cpuid(0x4000_0100, 77)[0] as u64, 0x1111_1111, "eax with ECX 77");
}

test!(out_of_range, "cpuid/out_of_range");
fn out_of_range() {
    if cpuid(0, 0)[1] != AMD {
        skip("the rule for Intel differs")
    }
    let r = cpuid(0x0fff_0000, 0);
    check_eq((r[0] | r[1] | r[2] | r[3]) as u64, 0, "a leaf beyond the highest reads zero");
}

test!(upper_halves, "cpuid/zeroes_upper_halves");
fn upper_halves() {
    let (a, c, d): (u64, u64, u64);
    unsafe {
        core::arch::asm!("push rbx", "mov rax, -1", "shl rax, 32", "mov rcx, rax", "mov rdx, rax", "cpuid", "pop rbx",
            out("rax") a, out("rcx") c, out("rdx") d)
    }
    check_eq((a | c | d) >> 32, 0, "upper halves");
}

test!(osxsave, "cpuid/osxsave_follows_cr4");
fn osxsave() {
    if cpuid(1, 0)[2] & 1 << 26 == 0 {
        skip("no XSAVE")
    }
    check(cpuid(1, 0)[2] & 1 << 27 == 0, "OSXSAVE before");
    set_cr4(cr4() | 1 << 18);
    check(cpuid(1, 0)[2] & 1 << 27 != 0, "OSXSAVE after");
    set_cr4(cr4() & !(1 << 18));
    check(cpuid(1, 0)[2] & 1 << 27 == 0, "OSXSAVE again");
}

test!(xsave_size, "cpuid/xsave_size_follows_xcr0");
fn xsave_size() {
    if cpuid(1, 0)[2] & 1 << 26 == 0 || cpuid(0xd, 0)[0] & 4 == 0 {
        skip("no AVX state")
    }
    set_cr4(cr4() | 1 << 18);
    xsetbv(0, 3);
    check_eq(cpuid(0xd, 0)[1] as u64, 576, "size with x87 and SSE");
    xsetbv(0, 7);
    check_eq(cpuid(0xd, 0)[1] as u64, 832, "size with AVX");
}

test!(apic_bit, "cpuid/apic_bit_follows_apic_base");
fn apic_bit() {
    check(cpuid(1, 0)[3] & 1 << 9 != 0, "APIC bit");
    let base = rdmsr(apic::MSR_APIC_BASE);
    wrmsr(apic::MSR_APIC_BASE, base & !0x800);
    check(cpuid(1, 0)[3] & 1 << 9 == 0, "APIC bit while disabled");
    wrmsr(apic::MSR_APIC_BASE, base);
    check(cpuid(1, 0)[3] & 1 << 9 != 0, "APIC bit again");
}

static IDS: crate::trap::Shared<[u32; 4]> = crate::trap::Shared::new([99; 4]);
test!(apic_ids, "cpuid/apic_id_per_cpu", cpus(4));
fn apic_ids() {
    fn note() {
        IDS.get()[index()] = cpuid(1, 0)[1] >> 24;
    }
    smp::start_all(4);
    for i in 1..4 {
        smp::run(i, note);
    }
    note();
    let ok = crate::host::wait_ms(5000, || {
        (0..4).all(|i| unsafe { (&raw const IDS.get()[i]).read_volatile() } == i as u32)
    });
    check(ok, "initial APIC ids are 0 to 3");
}

test!(signature, "cpuid/kvm_signature");
fn signature() {
    let s = cpuid(0x4000_0000, 0);
    check(s[0] >= 0x4000_0001, "highest hypervisor leaf");
    check_eq(s[1] as u64, 0x4b4d_564b, "KVMK");
    check_eq(s[2] as u64, 0x564b_4d56, "VMKV");
    check_eq(s[3] as u64, 0x4d, "M");
}

// ---- instructions that a CPU can be told to refuse ----

fn rdtscp() {
    unsafe { asm!("rdtscp", out("eax") _, out("ecx") _, out("edx") _) }
}
fn rdpid() {
    unsafe { asm!(".byte 0xf3, 0x0f, 0xc7, 0xf8", out("rax") _) }
}
fn invpcid() {
    // Everything, global pages too.
    let descriptor = [0u64; 2];
    unsafe { asm!("invpcid {}, [{}]", in(reg) 2u64, in(reg) &descriptor) }
}
fn rdrand() {
    unsafe { asm!("rdrand rax", out("rax") _) }
}
fn rdseed() {
    unsafe { asm!("rdseed rax", out("rax") _) }
}

test!(shown, "cpuid/shown_instructions");
fn shown() {
    let (l1, l7, e1) = (cpuid(1, 0), cpuid(7, 0), cpuid(0x8000_0001, 0));
    for (has, f) in [
        (e1[3] >> 27 & 1, rdtscp as fn()),
        (l7[2] >> 22 & 1, rdpid),
        (l7[1] >> 10 & 1, invpcid),
        (l1[2] >> 30 & 1, rdrand),
        (l7[1] >> 18 & 1, rdseed),
    ] {
        if has != 0 {
            f();
        }
    }
}

test!(hidden, "cpuid/hidden_instructions", FEW);
fn hidden() {
    if cpuid(0, 0)[1] == AMD {
        // SVM cannot hide the others.
        for (f, what) in [(rdtscp as fn(), "RDTSCP"), (invpcid, "INVPCID")] {
            expect_or_skip(6, 0, what, f);
        }
        return;
    }
    let all = [
        (rdtscp as fn(), "RDTSCP"),
        (rdpid, "RDPID"),
        (invpcid, "INVPCID"),
        (rdrand, "RDRAND"),
        (rdseed, "RDSEED"),
    ];
    for (f, what) in all {
        expect(6, 0, what, f);
    }
}
