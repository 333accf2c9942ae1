//! Interrupts between vCPUs, the sender alone: what its CPU executes from the write of the interrupt command register to the next
//! instruction, while each target runs the guest on a CPU of its own.

use super::*;
use crate::t_raw;

unsafe extern "C" {
    fn bench_isr_xapic();
    fn bench_nmi();
}

const VECTOR: u8 = 0x42;
const LOGICAL: u32 = 1 << 11;
const LOWEST: u32 = 1 << 8;
const NMI: u32 = 4 << 8;
const OTHERS: u32 = 3 << 18;

static X2APIC: AtomicBool = AtomicBool::new(false);

/// One form of the command: its low half and destination.
struct Form {
    x2apic: bool,
    low: u32,
    dest: u32,
    /// vCPUs with the sender.
    cpus: u64,
    /// Handlers that run for one command.
    arrivals: u64,
}

fn ready() {
    if X2APIC.load(Ordering::SeqCst) {
        apic::to_x2apic();
    }
    apic::enable();
    pin();
}

/// Without PAUSE, which may exit.
fn target() {
    ready();
    sti();
    READY.fetch_add(1, Ordering::SeqCst);
    while !STOP.load(Ordering::Relaxed) {}
}

/// Starts the targets; true once each runs.
fn start(cpus: u64) {
    if host::must(op::HOST_CPUS, &[]) < cpus {
        report::skip("the host has not a CPU for each vCPU")
    }
    smp::start_all(cpus as usize);
    ready();
    for index in 1..cpus as usize {
        smp::run(index, target);
    }
    while READY.load(Ordering::SeqCst) != cpus - 1 {}
}

/// Waits until the handlers have run, then looks whether another one does.
fn sends(name: &str, form: &Form) {
    X2APIC.store(form.x2apic, Ordering::SeqCst);
    gate(VECTOR as usize, if form.x2apic { bench_isr } else { bench_isr_xapic });
    gate(2, bench_nmi);
    start(form.cpus);
    // Each target for itself, without an exit, where the host offers that.
    let raw = form.x2apic && form.low & NMI == 0 && form.arrivals == form.cpus - 1 && t_raw::offered();
    if raw {
        t_raw::ask();
    }
    let low = form.low | if form.low & NMI == 0 { VECTOR as u32 } else { 0 };
    let mut sent = 0;
    measure_host(name, || {
        if raw {
            open(Of::ThisCpu);
            (1..form.cpus).for_each(|target| drop(t_raw::send(VECTOR, target as usize)));
            close();
        } else if form.x2apic {
            let command = (form.dest as u64) << 32 | low as u64;
            open(Of::ThisCpu);
            wrmsr(0x830, command);
            close();
        } else {
            crate::mem::w32(apic::BASE + apic::ICR2 as u64, form.dest << 24);
            open(Of::ThisCpu);
            crate::mem::w32(apic::BASE + apic::ICR as u64, low);
            close();
        }
        sent += form.arrivals;
        while count() < sent {}
    });
    host::wait_ms(1, || count() != sent);
    report::check_eq(count(), sent, "handlers that ran");
}

test!(b_send, "bench/ipi_send", BENCH | cpus(2));
fn b_send() {
    sends("ipi_send", &Form { x2apic: true, low: 0, dest: 1, cpus: 2, arrivals: 1 })
}

/// All of a cluster but the sender: the only form that names eight targets.
test!(b_send_8, "bench/ipi_send_8", BENCH | cpus(9));
fn b_send_8() {
    sends("ipi_send_8", &Form { x2apic: true, low: LOGICAL, dest: 0x1fe, cpus: 9, arrivals: 8 })
}

test!(b_send_others, "bench/ipi_send_others", BENCH | cpus(4));
fn b_send_others() {
    sends("ipi_send_others", &Form { x2apic: true, low: OTHERS, dest: 0, cpus: 4, arrivals: 3 })
}

test!(b_send_cluster, "bench/ipi_send_cluster", BENCH | cpus(2));
fn b_send_cluster() {
    sends("ipi_send_cluster", &Form { x2apic: true, low: LOGICAL, dest: 2, cpus: 2, arrivals: 1 })
}

test!(b_send_lowest, "bench/ipi_send_lowest", BENCH | cpus(4));
fn b_send_lowest() {
    sends("ipi_send_lowest", &Form { x2apic: true, low: LOWEST | LOGICAL, dest: 0xe, cpus: 4, arrivals: 1 })
}

test!(b_send_nmi, "bench/ipi_send_nmi", BENCH | cpus(2));
fn b_send_nmi() {
    sends("ipi_send_nmi", &Form { x2apic: true, low: NMI, dest: 1, cpus: 2, arrivals: 1 })
}

test!(b_send_xapic, "bench/ipi_send_xapic", BENCH | cpus(2));
fn b_send_xapic() {
    sends("ipi_send_xapic", &Form { x2apic: false, low: 0, dest: 1, cpus: 2, arrivals: 1 })
}
