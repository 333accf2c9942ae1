//! Event injection: shadows, masks, NMIs, HLT, and delivery that itself takes exits.

use crate::apic::{self, eoi};
use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::trap::{self, Frame, Shared};
use crate::{host, mem, test};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

static COUNT: AtomicU64 = AtomicU64::new(0);
static RIP: AtomicU64 = AtomicU64::new(0);

fn count() -> u64 {
    COUNT.load(Ordering::SeqCst)
}
fn irq(f: &mut Frame) {
    COUNT.fetch_add(1, Ordering::SeqCst);
    RIP.store(f.rip, Ordering::SeqCst);
    eoi();
}
fn nmi(f: &mut Frame) {
    COUNT.fetch_add(1, Ordering::SeqCst);
    RIP.store(f.rip, Ordering::SeqCst);
}
fn setup() {
    apic::to_x2apic();
    apic::enable();
    trap::on(0x40, irq);
    trap::on(0x50, irq);
    trap::on(0x60, irq);
}
fn self_ipi(v: u64) {
    wrmsr(0x83f, v);
}

test!(if0, "inject/pending_until_sti");
fn if0() {
    setup();
    self_ipi(0x40);
    for _ in 0..10 {
        outb(PIO_RAM, 0);
        cpuid(0, 0);
    }
    check_eq(count(), 0, "delivered with IF clear");
    sti();
    check_eq(count(), 1, "delivered after STI");
}

/// Runs code with a pending interrupt; returns where it was recognised relative to label `0:` in the code.
macro_rules! recognised {
    ($($code:literal),*) => {{
        setup();
        self_ipi(0x40);
        let at: u64;
        unsafe {
            asm!($($code,)* "nop", "nop", "cli", "jmp 4f", "3: lea {at}, [rip + 2b]", "jmp 5f", "4: jmp 3b", "5:",
                at = out(reg) at, out("rax") _, out("rcx") _, out("rdx") _, inout("rsi") MMIO => _, out("rdi") _)
        }
        check_eq(count(), 1, "interrupts");
        check_eq(RIP.load(Ordering::SeqCst), at, "where the interrupt came");
    }};
}

test!(sti_shadow, "inject/sti_shadow");
fn sti_shadow() {
    recognised!("sti", "nop", "2:");
}
test!(sti_shadow_cpuid, "inject/sti_shadow_over_cpuid");
fn sti_shadow_cpuid() {
    recognised!("push rbx", "xor eax, eax", "sti", "cpuid", "2:", "pop rbx");
}
test!(sti_shadow_out, "inject/sti_shadow_over_out_user");
fn sti_shadow_out() {
    recognised!("mov edx, 0x5000", "sti", "out dx, al", "2:");
}
test!(sti_shadow_in, "inject/sti_shadow_over_in_kernel");
fn sti_shadow_in() {
    recognised!("sti", "in al, 0x21", "2:");
}
test!(sti_shadow_mmio, "inject/sti_shadow_over_mmio");
fn sti_shadow_mmio() {
    recognised!("sti", "mov eax, [rsi]", "2:");
}
test!(sti_shadow_msr, "inject/sti_shadow_over_rdmsr");
fn sti_shadow_msr() {
    recognised!("mov ecx, 0x1b", "sti", "rdmsr", "2:");
}
test!(sti_shadow_hlt, "inject/sti_shadow_over_hlt");
fn sti_shadow_hlt() {
    recognised!("sti", "hlt", "2:");
}
test!(movss_shadow, "inject/mov_ss_shadow");
fn movss_shadow() {
    // POPF opens the window; MOV SS is the instruction before which nothing is held off, the one after it is.
    recognised!("mov ecx, ss", "pushfq", "or qword ptr [rsp], 0x200", "mov ss, ecx", "popfq", "2:");
}
test!(popf_window, "inject/popf_opens_window");
fn popf_window() {
    recognised!("pushfq", "or qword ptr [rsp], 0x200", "popfq", "2:");
}

test!(priority, "inject/priority_order");
fn priority() {
    static ORDER: Shared<[u64; 4]> = Shared::new([0; 4]);
    fn note(f: &mut Frame) {
        ORDER.get()[count() as usize & 3] = f.vector;
        irq(f);
    }
    setup();
    for v in [0x40, 0x50, 0x60] {
        trap::on(v, note);
    }
    self_ipi(0x50);
    self_ipi(0x40);
    self_ipi(0x60);
    sti();
    check_eq(count(), 3, "interrupts");
    check_eq(ORDER.get()[0], 0x60, "first");
    check_eq(ORDER.get()[1], 0x50, "second");
    check_eq(ORDER.get()[2], 0x40, "third");
}

test!(same_vector, "inject/same_vector_coalesces");
fn same_vector() {
    setup();
    self_ipi(0x40);
    self_ipi(0x40);
    self_ipi(0x40);
    sti();
    check_eq(count(), 1, "interrupts");
}

test!(many, "inject/all_vectors");
fn many() {
    setup();
    for v in 0x20..=0xfeu64 {
        trap::on(v as u8, irq);
        self_ipi(v);
    }
    sti();
    check_eq(count(), 0xfe - 0x20 + 1, "interrupts");
}

test!(hlt_irq, "inject/hlt_wakes_by_delayed_interrupt");
fn hlt_irq() {
    setup();
    host::after(30_000, op::MSI, &[0xfee0_0000, 0x40]);
    sti_hlt();
    check_eq(count(), 1, "HLT ended without the interrupt");
}

test!(hlt_pending, "inject/hlt_with_pending_interrupt");
fn hlt_pending() {
    setup();
    self_ipi(0x40);
    sti_hlt();
    check_eq(count(), 1, "interrupts");
}

test!(user_pending, "inject/arrives_while_in_user_space");
fn user_pending() {
    setup();
    sti();
    host::after(1000, op::MSI, &[0xfee0_0000, 0x40]);
    for _ in 0..200 {
        host::must(op::SLEEP_US, &[20_000]);
        if count() != 0 {
            break;
        }
    }
    check_eq(count(), 1, "after an exit during which it came");
}

test!(kernel_running, "inject/arrives_while_guest_runs");
fn kernel_running() {
    setup();
    sti();
    for i in 1..=5 {
        host::after(2000, op::MSI, &[0xfee0_0000, 0x40]);
        check(host::wait_ms(5000, || count() == i), "no interrupt in a running guest");
    }
}

test!(signals, "inject/signal_storm");
fn signals() {
    setup();
    sti();
    host::must(op::KICK, &[0, 200, 200]);
    for i in 1..=50u64 {
        self_ipi(0x40);
        for _ in 0..2000 {
            pause();
        }
        check_eq(count(), i, "interrupts under signals");
    }
}

// ---- NMIs ----

test!(nmi_ioctl, "nmi/ioctl");
fn nmi_ioctl() {
    trap::on(2, nmi);
    host::must(op::NMI, &[0]);
    check_eq(count(), 1, "NMIs");
}

test!(nmi_if0, "nmi/ignores_if");
fn nmi_if0() {
    trap::on(2, nmi);
    cli();
    host::must(op::NMI, &[0]);
    check_eq(count(), 1, "NMIs");
}

test!(nmi_self, "nmi/self_by_icr");
fn nmi_self() {
    setup();
    trap::on(2, nmi);
    apic::icr(0x400, 0);
    check(host::wait_ms(1000, || count() == 1), "NMI by ICR");
}

test!(nmi_lint1, "nmi/lvt_lint1_untouched");
fn nmi_lint1() {
    setup();
    apic::write(apic::LVT1, 0x400);
    check_eq(apic::read(apic::LVT1) as u64, 0x400, "LINT1 as NMI");
}

test!(nmi_hlt, "nmi/wakes_hlt");
fn nmi_hlt() {
    trap::on(2, nmi);
    host::after(30_000, op::NMI, &[0]);
    hlt(); // IF clear
    check_eq(count(), 1, "NMIs");
}

test!(nmi_running, "nmi/arrives_while_guest_runs");
fn nmi_running() {
    trap::on(2, nmi);
    for i in 1..=5 {
        host::after(2000, op::NMI, &[0]);
        check(host::wait_ms(5000, || count() == i), "no NMI in a running guest");
    }
}

static DEPTH: AtomicU64 = AtomicU64::new(0);
static NESTED: AtomicU64 = AtomicU64::new(0);

fn nmi_sends_one(_: &mut Frame) {
    if DEPTH.fetch_add(1, Ordering::SeqCst) != 0 {
        NESTED.fetch_add(1, Ordering::SeqCst);
    }
    if COUNT.fetch_add(1, Ordering::SeqCst) == 0 {
        host::must(op::NMI, &[0]);
        for _ in 0..5 {
            cpuid(0, 0);
            outb(PIO_RAM, 0);
        }
    }
    DEPTH.fetch_sub(1, Ordering::SeqCst);
}

test!(nmi_blocked, "nmi/blocked_until_iret");
fn nmi_blocked() {
    trap::on(2, nmi_sends_one);
    host::must(op::NMI, &[0]);
    check(host::wait_ms(1000, || count() == 2), "the second NMI comes after the first");
    check_eq(NESTED.load(Ordering::SeqCst), 0, "NMI inside an NMI handler");
}

fn nmi_sends_three(f: &mut Frame) {
    if count() == 0 {
        host::must(op::NMI, &[0]);
        host::must(op::NMI, &[0]);
        host::must(op::NMI, &[0]);
    }
    nmi(f);
}

test!(nmi_limit, "nmi/pending_limit");
fn nmi_limit() {
    trap::on(2, nmi_sends_three);
    host::must(op::NMI, &[0]);
    host::wait_ms(50, || false);
    // At most one stays pending while the first is in service.
    check_eq(count(), 2, "NMIs in all");
}

test!(nmi_iret, "nmi/nested_iret_unblocks");
fn nmi_iret() {
    // An exception's IRET inside the handler ends the blocking early; the pending NMI then nests.
    fn handler(f: &mut Frame) {
        if count() == 0 {
            COUNT.fetch_add(1, Ordering::SeqCst);
            host::must(op::NMI, &[0]);
            unsafe { asm!("int3") };
            for _ in 0..100 {
                pause();
            }
            NESTED.store(count(), Ordering::SeqCst);
        } else {
            nmi(f);
        }
    }
    trap::on(3, |_| ());
    trap::on(2, handler);
    host::must(op::NMI, &[0]);
    check_eq(NESTED.load(Ordering::SeqCst), 2, "the second NMI nests after the IRET of #BP");
}

test!(nmi_and_irq, "nmi/before_interrupt");
fn nmi_and_irq() {
    static FIRST: AtomicU64 = AtomicU64::new(0);
    setup();
    trap::on(2, |_| {
        let _ = FIRST.compare_exchange(0, 2, Ordering::SeqCst, Ordering::SeqCst);
    });
    trap::on(0x40, |_| {
        let _ = FIRST.compare_exchange(0, 0x40, Ordering::SeqCst, Ordering::SeqCst);
        eoi();
    });
    self_ipi(0x40);
    host::must(op::NMI, &[0]);
    sti();
    check_eq(FIRST.load(Ordering::SeqCst), 2, "first event");
}

// ---- exits during delivery ----

const SLOT_GPA: u64 = 0x8000_0000;

/// Puts the IDT into a slot of its own and takes away its second-level mapping.
fn idt_in_slot() {
    host::must(op::SLOT_SET, &[FREE_SLOT, SLOT_GPA, 0x2000, 0, 0]);
    unsafe { core::ptr::copy_nonoverlapping(trap::idt_address() as *const u8, SLOT_GPA as *mut u8, 4096) };
    let d = [0xfffu16, SLOT_GPA as u16, (SLOT_GPA >> 16) as u16, 0, 0];
    unsafe { asm!("lidt [{}]", in(reg) &d) };
}
fn zap() {
    host::must(op::SLOT_ZAP, &[FREE_SLOT]);
}

test!(npf_irq, "inject/second_level_fault_during_interrupt");
fn npf_irq() {
    setup();
    idt_in_slot();
    for i in 1..=3 {
        self_ipi(0x40);
        zap();
        sti();
        cli();
        check_eq(count(), i, "the interrupt comes once");
    }
}

test!(npf_nmi, "inject/second_level_fault_during_nmi");
fn npf_nmi() {
    trap::on(2, nmi);
    idt_in_slot();
    for i in 1..=3 {
        zap();
        host::must(op::NMI, &[0]);
        check_eq(count(), i, "the NMI comes once");
    }
}

test!(npf_int, "inject/second_level_fault_during_int_n");
fn npf_int() {
    trap::on(0x80, nmi);
    idt_in_slot();
    for i in 1..=3 {
        zap();
        let after: u64;
        unsafe { asm!("int 0x80", "2:", "lea {}, [rip + 2b]", out(reg) after) };
        check_eq(count(), i, "the INT is delivered once");
        check_eq(RIP.load(Ordering::SeqCst), after, "return address");
    }
}

test!(npf_int3, "inject/second_level_fault_during_int3_and_int1");
fn npf_int3() {
    trap::on(3, nmi);
    trap::on(1, nmi);
    idt_in_slot();
    for i in 1..=3 {
        zap();
        let (mut after, mut after1): (u64, u64);
        unsafe { asm!("int3", "2:", "lea {}, [rip + 2b]", out(reg) after) };
        check_eq(count(), 2 * i - 1, "the INT3 is delivered once");
        check_eq(RIP.load(Ordering::SeqCst), after, "return address");
        zap();
        unsafe { asm!(".byte 0xf1", "2:", "lea {}, [rip + 2b]", out(reg) after1) };
        check_eq(count(), 2 * i, "the INT1 is delivered once");
        check_eq(RIP.load(Ordering::SeqCst), after1, "return address");
    }
}

test!(npf_int_shadow, "inject/second_level_fault_during_int_n_behind_sti");
fn npf_int_shadow() {
    // STI holds the interrupt back until the INT is done, also if its delivery takes an exit.
    static FIRST: AtomicU64 = AtomicU64::new(0);
    static AFTER: AtomicU64 = AtomicU64::new(0);
    fn soft(f: &mut Frame) {
        let _ = FIRST.compare_exchange(0, 0x80, Ordering::SeqCst, Ordering::SeqCst);
        AFTER.store(f.rip, Ordering::SeqCst);
    }
    fn hard(f: &mut Frame) {
        let _ = FIRST.compare_exchange(0, 0x40, Ordering::SeqCst, Ordering::SeqCst);
        irq(f);
    }
    setup();
    host::must(op::SLOT_SET, &[FREE_SLOT, SLOT_GPA, 0x2000, 0, 0]);
    trap::tss(0).ist[1] = SLOT_GPA + 0x2000;
    trap::set_gate(0x80, trap::stub(0x80), 0xe, 0, 2);
    trap::on(0x80, soft);
    trap::on(0x40, hard);
    for i in 1..=3 {
        FIRST.store(0, Ordering::SeqCst);
        self_ipi(0x40);
        zap();
        let after: u64;
        unsafe { asm!("sti", "int 0x80", "2:", "nop", "nop", "cli", "lea {}, [rip + 2b]", out(reg) after) };
        check_eq(count(), i, "the interrupt comes once");
        check_eq(FIRST.load(Ordering::SeqCst), 0x80, "what comes first");
        check_eq(AFTER.load(Ordering::SeqCst), after, "the INT returns behind itself");
        check_eq(RIP.load(Ordering::SeqCst), after, "where the interrupt comes");
    }
}

test!(npf_exception, "inject/second_level_fault_during_exception");
fn npf_exception() {
    idt_in_slot();
    for _ in 0..3 {
        zap();
        trap::expect(6, 0, "UD2", || unsafe { asm!("ud2") });
        zap();
        let c = trap::expect(14, 2, "page fault", || mem::w8(mem::FREE_VA, 1));
        check_eq(c.cr2, mem::FREE_VA, "CR2");
    }
}

test!(npf_stack, "inject/second_level_fault_on_the_frame");
fn npf_stack() {
    // The gate's stack (IST2) lies in a slot without second-level mapping.
    setup();
    host::must(op::SLOT_SET, &[FREE_SLOT, SLOT_GPA, 0x2000, 0, 0]);
    trap::tss(0).ist[1] = SLOT_GPA + 0x2000;
    trap::set_gate(0x40, trap::stub(0x40), 0xe, 0, 2);
    for i in 1..=3 {
        self_ipi(0x40);
        zap();
        sti();
        cli();
        check_eq(count(), i, "the interrupt comes once");
    }
}

test!(mmio_idt, "inject/idt_on_mmio_is_internal_error");
fn mmio_idt() {
    host::expect_exit(17);
    let d = [0xfffu16, MMIO as u16, (MMIO >> 16) as u16, 0, 0];
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &d) };
}

// ---- without in-kernel interrupt chips ----

test!(user_interrupt, "inject/kvm_interrupt", NO_IRQCHIP);
fn user_interrupt() {
    trap::on(0x40, nmi);
    sti();
    host::must(op::INTERRUPT, &[0x40]);
    check_eq(count(), 1, "KVM_INTERRUPT");
}

test!(user_window, "inject/interrupt_window", NO_IRQCHIP);
fn user_window() {
    trap::on(0x40, nmi);
    cli();
    host::must(op::WINDOW_INJECT, &[0x40]);
    for _ in 0..10 {
        cpuid(0, 0);
        outb(PIO_RAM, 0);
    }
    check_eq(count(), 0, "injected with IF clear");
    sti();
    for _ in 0..100 {
        pause();
    }
    check_eq(count(), 1, "injected when the window opened");
}

test!(user_hlt, "inject/hlt_exits_without_irqchip", NO_IRQCHIP);
fn user_hlt() {
    host::expect_exit(5);
    hlt();
    fail("HLT did not exit")
}

test!(user_hlt_window, "inject/hlt_then_interrupt_without_irqchip", NO_IRQCHIP);
fn user_hlt_window() {
    trap::on(0x40, nmi);
    cli();
    host::must(op::WINDOW_INJECT, &[0x40]);
    sti_hlt();
    check_eq(count(), 1, "interrupts");
}

test!(user_cr8, "inject/cr8_without_irqchip", NO_IRQCHIP);
fn user_cr8() {
    set_cr8(5);
    outb(PIO_RAM, 0);
    check_eq(cr8(), 5, "CR8");
}
