//! First steps: the smallest things a module must do before anything else is worth a test.

use crate::config::*;
use crate::cpu::*;
use crate::report::{check, check_eq};
use crate::{host, mem, smp, test};

test!(hello, "basic/hello_long");
fn hello() {}

test!(hello_no_irqchip, "basic/hello_no_irqchip", NO_IRQCHIP);
fn hello_no_irqchip() {}

test!(memory, "basic/memory");
fn memory() {
    for i in 0..256u64 {
        mem::w64(0x40_0000 + i * 65536, i ^ 0x1234_5678_9abc_def0);
    }
    for i in 0..256u64 {
        check_eq(mem::r64(0x40_0000 + i * 65536), i ^ 0x1234_5678_9abc_def0, "word");
    }
}

test!(port_ram, "basic/port_out_in");
fn port_ram() {
    outb(PIO_RAM, 0x12);
    outw(PIO_RAM + 2, 0x3456);
    outl(PIO_RAM + 4, 0x789a_bcde);
    check_eq(inb(PIO_RAM) as u64, 0x12, "byte");
    check_eq(inw(PIO_RAM + 2) as u64, 0x3456, "word");
    check_eq(inl(PIO_RAM + 4) as u64, 0x789a_bcde, "long");
}

test!(mmio, "basic/mmio_read_write");
fn mmio() {
    check_eq(mem::r8(MMIO) as u64, mmio_pattern(MMIO) as u64, "first byte");
    mem::w32(MMIO + 8, 0xfeed_beef);
    check_eq(mem::r32(MMIO + 8) as u64, 0xfeed_beef, "word written");
}

test!(cpuid_vendor, "basic/cpuid");
fn cpuid_vendor() {
    let v = cpuid(0, 0);
    check(v[0] >= 1, "leaf 0 gives a highest leaf");
    check(v[1] != 0 && v[2] != 0 && v[3] != 0, "vendor");
    check(cpuid(1, 0)[2] >> 31 == 1, "hypervisor bit as set by user space");
}

test!(hlt_timer, "basic/host_service");
fn hlt_timer() {
    check(host::cap(0) == 1, "KVM_CAP_IRQCHIP");
    check(host::tsc_khz() > 1000, "TSC frequency");
}

test!(two_cpus, "basic/two_cpus", cpus(2));
fn two_cpus() {
    smp::start_all(2);
}

test!(four_cpus, "basic/four_cpus", cpus(4));
fn four_cpus() {
    smp::start_all(4);
}

test!(shutdown, "basic/triple_fault_shutdown");
fn shutdown() {
    host::expect_exit(8);
    unsafe {
        let null = [0u16; 5];
        core::arch::asm!("lidt [{}]", "ud2", in(reg) &null);
    }
}
