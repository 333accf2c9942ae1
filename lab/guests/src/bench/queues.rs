//! Queues of a device, one for each vCPU and all at once: a doorbell, and the interrupt that says that its work is done. What the host
//! executes for both, on all CPUs, waits for each other's locks included.

use super::*;
use crate::trap::{self, Frame, Shared};

const QUEUES: usize = 4;
/// Round trips of each queue in a window.
const TRIPS: u64 = 4;
const FIRST_GSI: u64 = 24;
const FIRST_VECTOR: u8 = 0x60;

static DONE: [AtomicU64; QUEUES] = [const { AtomicU64::new(0) }; QUEUES];
static ROUND: AtomicU64 = AtomicU64::new(0);
static AT_REST: AtomicU64 = AtomicU64::new(0);

fn completed(f: &mut Frame) {
    DONE[f.vector as usize & (QUEUES - 1)].fetch_add(1, Ordering::Relaxed);
    // Not `apic::eoi`, which asks in what mode the APIC is.
    wrmsr(0x80b, 0);
}

/// An address of its own for each, as virtio over PCI has them.
fn bell(queue: usize) -> u64 {
    DOORBELL + queue as u64 * 4
}

fn trips(queue: usize) {
    for _ in 0..TRIPS {
        let before = DONE[queue].load(Ordering::Relaxed);
        crate::mem::w16(bell(queue), 0);
        while DONE[queue].load(Ordering::Relaxed) == before {}
    }
}

/// A CPU with a queue, all but the first.
fn worker() {
    ready();
    let queue = index() as usize;
    let mut round = 0;
    AT_REST.fetch_add(1, Ordering::SeqCst);
    loop {
        while ROUND.load(Ordering::SeqCst) == round {}
        round += 1;
        trips(queue);
        AT_REST.fetch_add(1, Ordering::SeqCst);
    }
}

fn ready() {
    apic::to_x2apic();
    apic::enable();
    pin();
    sti();
}

test!(b_queues, "bench/queues", BENCH | cpus(QUEUES as u64));
fn b_queues() {
    static ROUTES: Shared<[[u64; 3]; QUEUES]> = Shared::new([[0; 3]; QUEUES]);
    if host::must(op::HOST_CPUS, &[]) < QUEUES as u64 {
        report::skip("the host has not a CPU for each vCPU")
    }
    for (queue, route) in ROUTES.get().iter_mut().enumerate() {
        let vector = FIRST_VECTOR as u64 + queue as u64;
        trap::on(vector as u8, completed);
        *route = [FIRST_GSI + queue as u64, 0xfee0_0000 | (queue as u64) << 12, vector];
    }
    host::must(op::ROUTE_MSI, &[ROUTES.get() as *mut _ as u64, QUEUES as u64]);
    for queue in 0..QUEUES {
        // The device is the eventfd: what rings it is its completion.
        let event = host::must(op::IOEVENTFD, &[bell(queue), 0, 0, 0]);
        host::must(op::IRQFD_OF, &[FIRST_GSI + queue as u64, event]);
    }
    smp::start_all(QUEUES);
    ready();
    (1..QUEUES).for_each(|queue| smp::run(queue, worker));
    let mut rests = QUEUES as u64 - 1;
    let all_rest = |rests: u64| while AT_REST.load(Ordering::SeqCst) != rests {};
    all_rest(rests);
    measure_host("queues", || {
        open(Of::Everybody);
        ROUND.fetch_add(1, Ordering::SeqCst);
        trips(0);
        rests += QUEUES as u64 - 1;
        all_rest(rests);
        close();
    });
}
