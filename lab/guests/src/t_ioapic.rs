//! I/O APIC, 8259 pair, 8254, MSI and irqfd: edges, levels, EOI and the ways of delivery.

use crate::apic::{self, eoi};
use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::t_smp::{READY, open, open_x2};
use crate::trap::{self, Frame};
use crate::{host, mem, smp, test};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);
fn count() -> u64 {
    COUNT.load(Ordering::SeqCst)
}
fn irq(_: &mut Frame) {
    COUNT.fetch_add(1, Ordering::SeqCst);
    eoi();
}

const IOAPIC: u64 = 0xfec0_0000;
pub fn io_write(index: u32, v: u32) {
    mem::w32(IOAPIC, index);
    mem::w32(IOAPIC + 0x10, v);
}
pub fn io_read(index: u32) -> u32 {
    mem::w32(IOAPIC, index);
    mem::r32(IOAPIC + 0x10)
}
pub fn redirect(pin: u32, v: u64) {
    io_write(0x11 + pin * 2, (v >> 32) as u32);
    io_write(0x10 + pin * 2, v as u32);
}
const LEVEL: u64 = 1 << 15;
const MASK: u64 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;

/// The 8259 pair is masked: the default routes send every GSI below 16 to both chips.
fn setup() {
    apic::enable();
    apic::write(apic::LVT0, 0x1_0700);
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    trap::on(0x40, irq);
    trap::on(0x41, irq);
}

test!(regs, "ioapic/registers");
fn regs() {
    check_eq(io_read(1) as u64 >> 16 & 0xff, 23, "highest entry");
    redirect(5, 0x0100_0000_0001_0037);
    check_eq(io_read(0x1a) as u64, 0x1_0037, "low half");
    check_eq(io_read(0x1b) as u64, 0x0100_0000, "high half");
    check(io_read(0x10 + 46) & 0x1_0000 != 0, "pins start masked");
    io_write(0x1a, 0xffff_ffff);
    check_eq(io_read(0x1a) as u64 & 0x5000, 0, "status bits are read-only");
}

test!(edge, "ioapic/edge");
fn edge() {
    setup();
    sti();
    redirect(4, 0x40);
    for i in 1..=3 {
        host::irq_line(4, 1);
        host::irq_line(4, 0);
        check_eq(count(), i, "one interrupt an edge");
    }
    host::irq_line(4, 1);
    host::irq_line(4, 1);
    check_eq(count(), 4, "a line that stays high is one edge");
    host::irq_line(4, 0);
}

test!(edge_masked, "ioapic/edge_while_masked");
fn edge_masked() {
    setup();
    sti();
    redirect(4, MASK | 0x40);
    host::irq_line(4, 1);
    host::irq_line(4, 0);
    check_eq(count(), 0, "masked");
    redirect(4, 0x40);
    host::irq_line(4, 1);
    host::irq_line(4, 0);
    check(count() >= 1, "a new edge after unmasking");
}

test!(level, "ioapic/level_remote_irr");
fn level() {
    static RIRR: AtomicU64 = AtomicU64::new(0);
    fn h(_: &mut Frame) {
        RIRR.store(io_read(0x10 + 20) as u64 & REMOTE_IRR as u64, Ordering::SeqCst);
        if COUNT.fetch_add(1, Ordering::SeqCst) == 2 {
            host::irq_line(10, 0);
        }
        eoi();
    }
    setup();
    trap::on(0x40, h);
    sti();
    redirect(10, LEVEL | 0x40);
    host::irq_line(10, 1);
    check(host::wait_ms(5000, || count() == 3), "delivered again after each EOI while the line is high");
    host::wait_ms(5, || false);
    check_eq(count(), 3, "quiet after the line went low");
    check_eq(RIRR.load(Ordering::SeqCst), REMOTE_IRR as u64, "remote IRR inside the handler");
    check_eq(io_read(0x10 + 20) as u64 & REMOTE_IRR as u64, 0, "remote IRR after EOI");
    check(apic::read(apic::TMR + 0x20) & 1 != 0, "TMR bit of the vector");
}

// ---- another vCPU's level interrupts ----

static TMR_BIT: AtomicU64 = AtomicU64::new(0);

/// Vector 0x40 by pin 10, level then edge and again, to CPU 1, which does nothing but wait for them: it reads the trigger mode of
/// each in the TMR.
fn tmr_of_others(x2: bool) {
    fn note(_: &mut Frame) {
        TMR_BIT.store(apic::read(apic::TMR + 0x20) as u64 & 1, Ordering::SeqCst);
        host::irq_line(10, 0);
        COUNT.fetch_add(1, Ordering::SeqCst);
        eoi();
    }
    setup();
    trap::on(0x40, note);
    smp::start_all(2);
    smp::run(1, if x2 { open_x2 } else { open });
    check(host::wait_ms(10_000, || READY.load(Ordering::SeqCst) == 1), "CPU 1 is not ready");
    for i in 1..=6 {
        let level = i % 2;
        redirect(10, 1 << 56 | if level != 0 { LEVEL } else { 0 } | 0x40);
        host::irq_line(10, 1);
        check(host::wait_ms(5000, || count() == i), "the interrupt did not come");
        check_eq(TMR_BIT.load(Ordering::SeqCst), level, "TMR bit of the vector");
    }
}

test!(tmr_xapic, "ioapic/tmr_of_a_running_cpu_xapic", cpus(2));
fn tmr_xapic() {
    tmr_of_others(false)
}
test!(tmr_x2apic, "ioapic/tmr_of_a_running_cpu_x2apic", cpus(2));
fn tmr_x2apic() {
    tmr_of_others(true)
}

test!(level_masked, "ioapic/level_pending_at_unmask");
fn level_masked() {
    fn h(_: &mut Frame) {
        COUNT.fetch_add(1, Ordering::SeqCst);
        host::irq_line(10, 0);
        eoi();
    }
    setup();
    trap::on(0x40, h);
    sti();
    redirect(10, LEVEL | MASK | 0x40);
    host::irq_line(10, 1);
    check_eq(count(), 0, "masked");
    redirect(10, LEVEL | 0x40);
    for _ in 0..10 {
        pause();
    }
    check_eq(count(), 1, "unmasking a high line delivers");
}

test!(logical, "ioapic/logical_destination");
fn logical() {
    setup();
    sti();
    apic::write(apic::LDR, 0x0100_0000);
    redirect(4, 1 << 56 | 1 << 11 | 0x40);
    host::irq_line(4, 1);
    host::irq_line(4, 0);
    check_eq(count(), 1, "logical destination");
    redirect(4, 2 << 56 | 1 << 11 | 0x40);
    host::irq_line(4, 1);
    host::irq_line(4, 0);
    check_eq(count(), 1, "another CPU's bit");
}

test!(nmi_mode, "ioapic/nmi_delivery");
fn nmi_mode() {
    setup();
    trap::on(2, |_| {
        COUNT.fetch_add(1, Ordering::SeqCst);
    });
    redirect(4, 4 << 8);
    host::irq_line(4, 1);
    host::irq_line(4, 0);
    check(host::wait_ms(100, || count() == 1), "NMI through the I/O APIC");
}

test!(status, "ioapic/irq_line_status");
fn status() {
    setup();
    redirect(4, 0x40);
    check_eq(host::must(op::IRQ_LINE, &[4, 1]), 1, "delivered to one");
    check_eq(host::must(op::IRQ_LINE, &[4, 1]), 0, "no new edge: coalesced");
    sti();
    check_eq(count(), 1, "interrupts");
}

test!(hlt, "ioapic/edge_wakes_hlt");
fn hlt() {
    setup();
    redirect(4, 0x40);
    host::after(20_000, op::IRQ_LINE, &[4, 1]);
    sti_hlt();
    check_eq(count(), 1, "interrupts");
}

// KVM's own default routes send GSI 0 to pin 0; user space moves it to pin 2 with a table of its own.
test!(pit_through_ioapic, "ioapic/pit_on_pin_0");
fn pit_through_ioapic() {
    setup();
    redirect(0, 0x40);
    outb(0x43, 0x34);
    outb(0x40, 0);
    outb(0x40, 0x10);
    sti();
    check(host::wait_ms(10_000, || count() >= 3), "PIT ticks through GSI 0, pin 0");
}

// ---- MSI ----

test!(msi, "msi/signal_msi");
fn msi() {
    setup();
    sti();
    check_eq(host::must(op::MSI, &[0xfee0_0000, 0x40]), 1, "delivered to one");
    check_eq(count(), 1, "fixed, physical");
    apic::write(apic::LDR, 0x0200_0000);
    host::must(op::MSI, &[0xfee0_2004, 0x40]);
    check_eq(count(), 2, "logical with RH clear and DM set");
    host::must(op::MSI, &[0xfee0_5000, 0x40]);
    check_eq(count(), 2, "a CPU that does not exist");
}

test!(msi_route, "msi/route_and_irqfd");
fn msi_route() {
    static ROUTES: trap::Shared<[[u64; 3]; 2]> =
        trap::Shared::new([[24, 0xfee0_0000, 0x40], [25, 0xfee0_0000, 0x41]]);
    setup();
    sti();
    host::must(op::ROUTE_MSI, &[ROUTES.get() as *mut _ as u64, 2]);
    let fd = host::must(op::IRQFD, &[24, 0]);
    for i in 1..=3 {
        host::must(op::EVENT_SIGNAL, &[fd]);
        check(host::wait_ms(1000, || count() == i), "irqfd on an MSI route");
    }
    host::must(op::IRQ_LINE, &[25, 1]);
    check_eq(count(), 4, "IRQ_LINE on an MSI route");
    host::must(op::IRQFD_OFF, &[24, fd]);
    host::must(op::EVENT_SIGNAL, &[fd]);
    host::wait_ms(20, || false);
    check_eq(count(), 4, "after deassignment");
}

test!(msi_reroute, "msi/route_change_while_assigned");
fn msi_reroute() {
    static A: trap::Shared<[[u64; 3]; 1]> = trap::Shared::new([[24, 0xfee0_0000, 0x40]]);
    static OTHER: AtomicU64 = AtomicU64::new(0);
    setup();
    trap::on(0x41, |_| {
        OTHER.fetch_add(1, Ordering::SeqCst);
        eoi();
    });
    sti();
    let fd = host::must(op::IRQFD, &[24, 0]); // no route yet
    host::must(op::EVENT_SIGNAL, &[fd]);
    host::wait_ms(10, || false);
    check_eq(count(), 0, "without a route nothing comes");
    host::must(op::ROUTE_MSI, &[A.get() as *mut _ as u64, 1]);
    host::must(op::EVENT_SIGNAL, &[fd]);
    check(host::wait_ms(1000, || count() == 1), "first route");
    A.get()[0][2] = 0x41;
    host::must(op::ROUTE_MSI, &[A.get() as *mut _ as u64, 1]);
    host::must(op::EVENT_SIGNAL, &[fd]);
    check(host::wait_ms(1000, || OTHER.load(Ordering::SeqCst) == 1), "second route");
}

test!(irqfd_edge, "irqfd/edge_on_ioapic");
fn irqfd_edge() {
    setup();
    sti();
    redirect(5, 0x40);
    let fd = host::must(op::IRQFD, &[5, 0]);
    for i in 1..=5 {
        host::must(op::EVENT_SIGNAL, &[fd]);
        check(host::wait_ms(1000, || count() == i), "irqfd");
    }
}

test!(irqfd_resample, "irqfd/level_resample");
fn irqfd_resample() {
    setup();
    sti();
    redirect(11, LEVEL | 0x40);
    let fd = host::must(op::IRQFD, &[11, 1]);
    for i in 1..=3 {
        host::must(op::EVENT_SIGNAL, &[fd]);
        check(host::wait_ms(1000, || count() == i), "irqfd with resampling");
        check(host::wait_ms(1000, || host::must(op::EVENT_READ, &[fd + 1]) == 1), "resample event after EOI");
        host::wait_ms(5, || false);
        check_eq(count(), i, "the EOI lowered the line");
    }
}

/// The EOI that lowers the line is a port's, of the 8259.
test!(irqfd_resample_pic, "irqfd/level_resample_pic");
fn irqfd_resample_pic() {
    pic_init();
    outb(0x4d0, 0x20);
    trap::on(0x75, pic_irq);
    outb(0x21, 0xdf);
    let fd = host::must(op::IRQFD, &[5, 1]);
    sti();
    for i in 1..=3 {
        host::must(op::EVENT_SIGNAL, &[fd]);
        check(host::wait_ms(1000, || count() == i), "irqfd with resampling");
        check(host::wait_ms(1000, || host::must(op::EVENT_READ, &[fd + 1]) == 1), "resample event after EOI");
        host::wait_ms(5, || false);
        check_eq(count(), i, "the EOI lowered the line");
    }
}

// ---- ioeventfd ----

test!(ioev_pio, "ioeventfd/port_datamatch");
fn ioev_pio() {
    let fd = host::must(op::IOEVENTFD, &[0x5100, 2, 1 | 2, 7]);
    outw(0x5100, 7);
    check_eq(host::must(op::EVENT_READ, &[fd]), 1, "matching word");
    outw(0x5100, 8);
    outb(0x5100, 7);
    outl(0x5100, 7);
    check_eq(host::must(op::EVENT_READ, &[fd]), 0, "other value or length");
    for _ in 0..5 {
        outw(0x5100, 7);
    }
    check_eq(host::must(op::EVENT_READ, &[fd]), 5, "counts up");
    host::must(op::IOEVENTFD_OFF, &[0x5100, 2, 1 | 2, 7, fd]);
    outw(0x5100, 7);
    check_eq(host::must(op::EVENT_READ, &[fd]), 0, "after deassignment");
}

test!(ioev_silent, "ioeventfd/no_user_exit");
fn ioev_silent() {
    host::must(op::IOEVENTFD, &[0x5100, 2, 2, 0]);
    let io = host::user_exits(2);
    for _ in 0..10 {
        outw(0x5100, 1);
    }
    check_eq(host::user_exits(2) - io, 1, "only the question itself exits");
    inw(0x5100);
    check_eq(host::user_exits(2) - io, 3, "a read still exits");
}

test!(ioev_mmio, "ioeventfd/mmio_sizes");
fn ioev_mmio() {
    let a = 0xd020_0000;
    let f1 = host::must(op::IOEVENTFD, &[a, 1, 1, 0x11]);
    let f2 = host::must(op::IOEVENTFD, &[a + 8, 2, 1, 0x2222]);
    let f4 = host::must(op::IOEVENTFD, &[a + 16, 4, 1, 0x4444_4444]);
    let f8 = host::must(op::IOEVENTFD, &[a + 24, 8, 1, 0x8888_8888_8888]);
    mem::w8(a, 0x11);
    mem::w16(a + 8, 0x2222);
    mem::w32(a + 16, 0x4444_4444);
    mem::w64(a + 24, 0x8888_8888_8888);
    for f in [f1, f2, f4, f8] {
        check_eq(host::must(op::EVENT_READ, &[f]), 1, "match");
    }
    mem::w8(a, 0x12);
    mem::w16(a + 8, 0x2223);
    mem::w32(a + 16, 1);
    mem::w64(a + 24, 1);
    mem::w32(a, 0x11);
    for f in [f1, f2, f4, f8] {
        check_eq(host::must(op::EVENT_READ, &[f]), 0, "mismatch");
    }
}

test!(ioev_wild, "ioeventfd/mmio_any_length");
fn ioev_wild() {
    let a = 0xd020_0000;
    let f = host::must(op::IOEVENTFD, &[a, 0, 0, 0]);
    mem::w8(a, 1);
    mem::w16(a, 2);
    mem::w32(a, 3);
    mem::w64(a, 4);
    check_eq(host::must(op::EVENT_READ, &[f]), 4, "every length");
    let before = host::user_exits(6);
    mem::w32(a + 4, 1);
    check_eq(host::user_exits(6) - before, 1, "another address goes to user space");
}

/// A doorbell in a page of its own, as virtio's over PCI: once its instruction is known, no write of it is emulated.
test!(ioev_bare, "ioeventfd/doorbell_emulates_nothing");
fn ioev_bare() {
    if amd() {
        skip("exits of these CPUs tell no length, and bytes only with decode assists")
    }
    let f = host::must(op::IOEVENTFD, &[BELL, 0, 0, 0]);
    // One instruction, as in a driver.
    #[inline(never)]
    fn ring(n: u16) {
        (0..n).for_each(|i| mem::w16(BELL, i));
    }
    ring(10);
    let (emulated, user) = (host::must(op::EMULATIONS, &[]), host::user_exits(6));
    ring(1000);
    check_eq(host::must(op::EMULATIONS, &[]) - emulated, 0, "emulated");
    check_eq(host::user_exits(6) - user, 0, "to user space");
    check_eq(host::must(op::EVENT_READ, &[f]), 1010, "every write told");
}

/// What reads the doorbell's address or changes registers does all that it does, also between plain writes of the same length.
test!(ioev_others, "ioeventfd/doorbell_and_other_instructions");
fn ioev_others() {
    let f = host::must(op::IOEVENTFD, &[BELL, 0, 0, 0]);
    let pattern = u32::from_le_bytes(core::array::from_fn(|i| mmio_pattern(BELL + i as u64)));
    let user = host::user_exits(6);
    for _ in 0..5 {
        for _ in 0..3 {
            mem::w32(BELL, 1);
        }
        let mut value: u32 = 5;
        // SAFETY: the device's register.
        unsafe { asm!("xchg [{}], {:e}", in(reg) BELL, inout(reg) value) };
        check_eq(value.into(), pattern.into(), "XCHG reads");
        let mut at = BELL;
        // SAFETY: as above.
        unsafe { asm!("stosd", inout("rdi") at, in("eax") 7) };
        check_eq(at, BELL + 4, "STOS moves on");
        check_eq(mem::r32(BELL).into(), pattern.into(), "MOV reads");
    }
    check_eq(host::user_exits(6) - user, 10, "reads go to user space");
    check_eq(host::must(op::EVENT_READ, &[f]), 25, "every write told");
}

/// Memory appears where a doorbell is, and goes again: a write is memory's or rings, as it is at that moment. User code rings too.
test!(ioev_memory, "ioeventfd/doorbell_becomes_memory");
fn ioev_memory() {
    let f = host::must(op::IOEVENTFD, &[BELL, 0, 0, 0]);
    for round in 0..4 {
        (0..5).for_each(|_| mem::w32(BELL, 1));
        check_eq(host::must(op::EVENT_READ, &[f]), 5, "rings");
        host::must(op::SLOT_SET, &[FREE_SLOT, BELL & !0xfff, 0x1000, round << 12, 0]);
        (0..5).for_each(|n| mem::w32(BELL, 0x100 + n));
        check_eq(mem::r32(BELL).into(), 0x104, "memory");
        check_eq(host::must(op::EVENT_READ, &[f]), 0, "silent");
        check_eq(
            host::must(op::POOL_READ, &[(round << 12) + (BELL & 0xfff)]) & 0xffff_ffff,
            0x104,
            "in the pool",
        );
        host::must(op::SLOT_SET, &[FREE_SLOT, BELL & !0xfff, 0, round << 12, 0]);
    }
    host::must(op::IOEVENTFD_OFF, &[BELL, 0, 0, 0, f]);
    let user = host::user_exits(6);
    mem::w32(BELL, 1);
    check_eq(host::user_exits(6) - user, 1, "nobody listens any more");
}

/// An address in a page of which nothing else is used.
const BELL: u64 = MMIO + 0x8010;

fn amd() -> bool {
    cpuid(0, 0)[1] == 0x6874_7541
}

test!(ioev_two, "ioeventfd/two_values_on_one_port");
fn ioev_two() {
    let a = host::must(op::IOEVENTFD, &[0x5100, 2, 3, 0]);
    let b = host::must(op::IOEVENTFD, &[0x5100, 2, 3, 1]);
    outw(0x5100, 0);
    outw(0x5100, 1);
    outw(0x5100, 1);
    check_eq(host::must(op::EVENT_READ, &[a]), 1, "value 0");
    check_eq(host::must(op::EVENT_READ, &[b]), 2, "value 1");
}

// ---- the 8259 pair ----

fn pic_init() {
    for (port, base, cascade) in [(0x20u16, 0x70u8, 4u8), (0xa0, 0x78, 2)] {
        outb(port, 0x11);
        outb(port + 1, base);
        outb(port + 1, cascade);
        outb(port + 1, 1);
        outb(port + 1, 0xff);
    }
    apic::enable();
    apic::write(apic::LVT0, 0x700);
}
fn pic_irq(f: &mut Frame) {
    COUNT.fetch_add(1, Ordering::SeqCst);
    if f.vector >= 0x78 {
        outb(0xa0, 0x20);
    }
    outb(0x20, 0x20);
}

test!(pic_line, "pic/irq_line");
fn pic_line() {
    pic_init();
    trap::on(0x74, pic_irq);
    outb(0x21, 0xef);
    sti();
    for i in 1..=3 {
        host::irq_line(4, 1);
        host::irq_line(4, 0);
        check(host::wait_ms(100, || count() == i), "interrupt through ExtINT");
    }
}

test!(pic_slave, "pic/slave");
fn pic_slave() {
    pic_init();
    trap::on(0x7c, pic_irq);
    outb(0x21, 0xfb);
    outb(0xa1, 0xef);
    sti();
    for i in 1..=3 {
        host::irq_line(12, 1);
        host::irq_line(12, 0);
        check(host::wait_ms(100, || count() == i), "interrupt through the cascade");
    }
}

test!(pic_mask, "pic/mask_and_irr");
fn pic_mask() {
    pic_init();
    trap::on(0x74, pic_irq);
    sti();
    host::irq_line(4, 1);
    check_eq(count(), 0, "masked");
    outb(0x20, 0x0a);
    check_eq(inb(0x20) as u64 & 0x10, 0x10, "IRR shows it");
    outb(0x21, 0xef);
    check(host::wait_ms(100, || count() == 1), "delivered when unmasked");
    host::irq_line(4, 0);
    outb(0x20, 0x0b);
    check_eq(inb(0x20) as u64, 0, "ISR after EOI");
    check_eq(inb(0x21) as u64, 0xef, "mask register");
}

test!(pic_if0, "pic/pending_until_sti");
fn pic_if0() {
    pic_init();
    trap::on(0x74, pic_irq);
    outb(0x21, 0xef);
    host::irq_line(4, 1);
    outb(PIO_RAM, 0);
    check_eq(count(), 0, "IF clear");
    sti();
    check(host::wait_ms(100, || count() == 1), "after STI");
    host::irq_line(4, 0);
}

test!(pic_hlt, "pic/wakes_hlt");
fn pic_hlt() {
    pic_init();
    trap::on(0x74, pic_irq);
    outb(0x21, 0xef);
    host::after(20_000, op::IRQ_LINE, &[4, 1]);
    sti_hlt();
    check_eq(count(), 1, "interrupts");
}

test!(pic_lint0, "pic/lint0_masked_blocks");
fn pic_lint0() {
    pic_init();
    trap::on(0x74, pic_irq);
    outb(0x21, 0xef);
    apic::write(apic::LVT0, 0x1_0700);
    sti();
    host::irq_line(4, 1);
    host::wait_ms(5, || false);
    check_eq(count(), 0, "LINT0 masked");
    apic::write(apic::LVT0, 0x700);
    // KVM looks at the line again when the PIC's output rises, not at the write of LINT0.
    outb(0x21, 0xff);
    outb(0x21, 0xef);
    check(host::wait_ms(100, || count() == 1), "LINT0 unmasked");
    host::irq_line(4, 0);
}

test!(pic_priority, "pic/priority_and_isr");
fn pic_priority() {
    fn high(_: &mut Frame) {
        // In service: IRQ 3; a lower priority (IRQ 5) must wait, a higher one would nest.
        outb(0x20, 0x0b);
        check_eq(inb(0x20) as u64, 8, "ISR");
        host::irq_line(5, 1);
        sti();
        host::wait_ms(2, || false);
        cli();
        check_eq(count(), 0, "IRQ 5 inside IRQ 3");
        outb(0x20, 0x20);
    }
    pic_init();
    trap::on(0x73, high);
    trap::on(0x75, pic_irq);
    outb(0x21, 0xd7);
    sti();
    host::irq_line(3, 1);
    host::irq_line(3, 0);
    check(host::wait_ms(100, || count() == 1), "IRQ 5 after the EOI");
    host::irq_line(5, 0);
}

test!(elcr, "pic/elcr_level");
fn elcr() {
    fn h(_: &mut Frame) {
        if COUNT.fetch_add(1, Ordering::SeqCst) == 2 {
            host::irq_line(5, 0);
        }
        outb(0x20, 0x20);
    }
    pic_init();
    outb(0x4d0, 0x20);
    check_eq(inb(0x4d0) as u64, 0x20, "ELCR");
    trap::on(0x75, h);
    outb(0x21, 0xdf);
    sti();
    host::irq_line(5, 1);
    check(host::wait_ms(100, || count() == 3), "level-triggered until it goes low");
    host::wait_ms(2, || false);
    check_eq(count(), 3, "quiet");
}

test!(pit_periodic, "pit/periodic_through_pic");
fn pit_periodic() {
    pic_init();
    trap::on(0x70, pic_irq);
    outb(0x21, 0xfe);
    outb(0x43, 0x34);
    outb(0x40, 0x00);
    outb(0x40, 0x10);
    sti();
    check(host::wait_ms(10_000, || count() >= 5), "five ticks");
}

test!(pit_oneshot, "pit/mode_0_once");
fn pit_oneshot() {
    pic_init();
    trap::on(0x70, pic_irq);
    outb(0x21, 0xfe);
    outb(0x43, 0x30);
    outb(0x40, 0x00);
    outb(0x40, 0x08);
    sti();
    check(host::wait_ms(5_000, || count() == 1), "terminal count");
    host::wait_ms(20, || false);
    check_eq(count(), 1, "once");
}

test!(pit_latch, "pit/latched_count_falls");
fn pit_latch() {
    outb(0x43, 0x34);
    outb(0x40, 0xff);
    outb(0x40, 0xff);
    let read = || {
        outb(0x43, 0);
        inb(0x40) as u64 | (inb(0x40) as u64) << 8
    };
    // The counter wraps every 55 ms; falling in most of the samples is what counts.
    let mut last = read();
    let mut falls = 0;
    for _ in 0..10 {
        let now = read();
        falls += (now < last) as u64;
        last = now;
    }
    check(falls >= 7, "the count falls");
}

test!(pit_readback, "pit/read_back");
fn pit_readback() {
    outb(0x43, 0x34);
    outb(0x40, 0x34);
    outb(0x40, 0x12);
    outb(0x43, 0xe2); // status of channel 0
    check_eq(inb(0x40) as u64 & 0x3f, 0x34, "status: access and mode");
}

test!(pit_ch2, "pit/channel_2_polling");
fn pit_ch2() {
    outb(0x61, (inb(0x61) & !3) | 1);
    outb(0x43, 0xb0);
    outb(0x42, 0x00);
    outb(0x42, 0x10);
    check_eq(inb(0x61) as u64 & 0x20, 0, "output low at first");
    check(host::wait_ms(5000, || inb(0x61) & 0x20 != 0), "output high at the end");
}

// ---- in-kernel local APICs only ----

test!(split_eoi, "split/msi_and_lapic", SPLIT);
fn split_eoi() {
    setup();
    sti();
    host::must(op::MSI, &[0xfee0_0000, 0x40]);
    check_eq(count(), 1, "MSI");
    check_eq(mem::r32(IOAPIC + 0x10) as u64, 0xffff_ffff, "the I/O APIC is user space's");
    apic::icr(0x4_4041, 0);
    check_eq(count(), 2, "self-IPI");
}
