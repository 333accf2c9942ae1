//! Lazy deadlines: the guest's half of the protocol, on a host that offers it (mechanism `lazy_deadline`). What ends the attending is
//! tried one by one: *armed* is 0 behind it, and the next deadline exits and comes.

use crate::apic::*;
use crate::config::*;
use crate::cpu::*;
use crate::own::{MSR_DESCRIPTOR, MSR_LAZY_DEADLINE as MSR, descriptor, offers};
use crate::report::*;
use crate::trap::{self, Frame, Shared};
use crate::{host, mem, smp, test};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst, fence};

const VECTOR: u8 = 0x40;
const TSC_ADJUST: u32 = 0x3b;

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Words([u64; 8]);
static PAGES: Shared<[Words; 4]> = Shared::new([Words([0; 8]); 4]);
static COUNTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static LAST: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

pub fn words() -> *mut u64 {
    PAGES.get()[index()].0.as_mut_ptr()
}
fn armed() -> u64 {
    // SAFETY: this CPU's page.
    unsafe { words().read_volatile() }
}
fn poke(word: usize, v: u64) {
    // SAFETY: inside of this CPU's page.
    unsafe { words().add(word).write_volatile(v) }
}
/// The host lends its timer to guests that subtract the offset which the page tells.
fn host_ticks() -> bool {
    offers(8)
}
/// And has it fire without an exit, for those that request their vector in their descriptor.
fn in_guest() -> bool {
    offers(0x12)
}
pub fn offered() -> bool {
    offers(1)
}
fn irq(_: &mut Frame) {
    LAST[index()].store(rdtsc(), SeqCst);
    COUNTS[index()].fetch_add(1, SeqCst);
    eoi();
}
fn count() -> u64 {
    COUNTS[index()].load(SeqCst)
}
pub fn us(n: u64) -> u64 {
    static KHZ: AtomicU64 = AtomicU64::new(0);
    if KHZ.load(SeqCst) == 0 {
        KHZ.store(host::tsc_khz(), SeqCst);
    }
    KHZ.load(SeqCst) * n / 1000
}
fn on_this_cpu() {
    to_x2apic();
    enable();
    trap::on(VECTOR, irq);
    write(LVTT, TSC_DEADLINE | VECTOR as u32);
    us(0);
    wrmsr(MSR, words() as u64 | 1);
    check_eq(rdmsr(MSR), words() as u64 | 1, "MSR");
    sti();
}
fn setup() {
    if !offered() {
        skip("no lazy deadlines")
    }
    on_this_cpu();
}
/// The guest's half; whether it exited.
pub fn set(t: u64) -> bool {
    let open = flags() & 0x200 != 0;
    cli();
    poke(1, t);
    fence(SeqCst);
    let a = armed();
    let exits = a == 0 || t < a;
    if exits {
        wrmsr(MSR_TSC_DEADLINE, t);
    }
    if open {
        sti();
    }
    exits
}
/// Without an exit of this CPU's.
fn spin_past(t: u64) {
    while rdtsc() <= t {
        pause();
    }
}
fn spin_until(n: u64) -> bool {
    let limit = rdtsc() + us(4_000_000);
    while count() != n && rdtsc() < limit {
        pause();
    }
    count() == n
}
const NEAR: u64 = 30_000;

/// Until the timer has come at `t` or behind it.
fn spin_until_it_came(t: u64) -> bool {
    let limit = t + us(4_000_000);
    while LAST[index()].load(SeqCst) < t && rdtsc() < limit {
        pause();
    }
    LAST[index()].load(SeqCst) >= t
}

/// The first exits; the last of later ones comes, not before the first, and *armed* is 0 behind it.
fn comes_later() {
    let n = count();
    let t = rdtsc() + us(NEAR);
    check(set(t), "the first did not exit");
    let mut last = t;
    for i in 1..20 {
        last = t + us(i * 500);
        set(last);
    }
    check(spin_until_it_came(last), "the last never came");
    // On a machine that is slow enough each has come.
    check((1..=20).contains(&(count() - n)), "came too often");
    check_eq(armed(), 0, "armed behind the last");
}

test!(found, "lazy/found_or_not");
fn found() {
    if offered() || host_ticks() || in_guest() {
        return on_this_cpu();
    }
    // Whoever does not offer it takes no page.
    if host::call(op::GET_MSR, &[MSR as u64]) >= 0 {
        trap::expect(13, 0, "WRMSR that enables what is not offered", || wrmsr(MSR, words() as u64 | 1));
        wrmsr(MSR, 0);
    } else {
        trap::expect(13, 0, "WRMSR of nobody's MSR", || wrmsr(MSR, 0));
    }
}

test!(later, "lazy/later_ones_do_not_exit");
fn later() {
    setup();
    cli();
    let t = rdtsc() + us(5_000_000);
    check(set(t), "from 0 and 0");
    check_eq(armed(), t, "armed");
    for later in [t, t + 1, t + us(100), t + us(50), u64::MAX] {
        check(!set(later), "a later one exited");
        check_eq(armed(), t, "armed stays");
    }
    check(set(t - 1), "an earlier one did not exit");
    check_eq(armed(), t - 1, "armed for the earlier one");
    set(t + us(1000));
    // To user space: the MSR holds what the guest wants, the page says that nobody looks.
    check_eq(host::must(op::GET_MSR, &[MSR_TSC_DEADLINE as u64]), t + us(1000), "the deadline outside");
    check_eq(armed(), 0, "armed behind a departure");
    check(set(t + us(2000)), "not written behind a departure");
    check_eq(rdmsr(MSR_TSC_DEADLINE), t + us(2000), "MSR");
    wrmsr(MSR_TSC_DEADLINE, 0);
    check_eq(armed(), 0, "armed behind a disarm");
}

test!(comes, "lazy/comes_at_the_last");
fn comes() {
    setup();
    for _ in 0..3 {
        comes_later();
    }
}

test!(halted, "lazy/comes_to_a_halted_cpu");
fn halted() {
    setup();
    cli();
    let t = rdtsc() + us(NEAR);
    let last = t + us(20_000);
    set(t);
    set(last);
    let in_time = rdtsc() < t;
    sti_hlt();
    check(LAST[index()].load(SeqCst) >= if in_time { last } else { t }, "woken early");
    check(spin_until_it_came(last), "the last never came");
    comes_later();
}

/// Each of them: attended before, not attended behind, and the next one comes.
fn ends(what: &str, end: impl FnOnce(u64)) {
    cli();
    let t = rdtsc() + us(5_000_000);
    set(t);
    set(t + us(1000));
    end(t + us(1000));
    check_eq(armed(), 0, what);
    wrmsr(MSR_TSC_DEADLINE, 0);
    sti();
    comes_later();
}

test!(each_end, "lazy/whatever_ends_it", timeout(120));
fn each_end() {
    setup();
    ends("LVTT masked", |_| {
        write(LVTT, MASKED | TSC_DEADLINE | VECTOR as u32);
        check_eq(armed(), 0, "masked");
        write(LVTT, TSC_DEADLINE | VECTOR as u32);
    });
    ends("another mode", |_| {
        write(LVTT, VECTOR as u32);
        check_eq(armed(), 0, "one-shot");
        write(LVTT, TSC_DEADLINE | VECTOR as u32);
    });
    ends("a deadline that has passed", |_| {
        let n = count();
        set(rdtsc() - 1);
        sti();
        check(spin_until(n + 1), "a past one did not come");
        cli();
    });
    ends("disarmed", |_| wrmsr(MSR_TSC_DEADLINE, 0));
    ends("switched off", |last| {
        wrmsr(MSR, 0);
        check_eq(rdmsr(MSR_TSC_DEADLINE), last, "the last deadline");
        wrmsr(MSR, words() as u64 | 1);
    });
    if cpuid(7, 0)[1] & 2 != 0 {
        ends("TSC_ADJUST", |_| wrmsr(TSC_ADJUST, rdmsr(TSC_ADJUST) + us(10)));
    }
    ends("the TSC", |_| wrmsr(0x10, rdtsc() + us(10)));
    ends("a departure", |_| outb(PIO_RAM, 0));
    ends("state saved and loaded", |_| {
        host::must(op::STATE_ROUND_TRIP, &[]);
    });
    ends("software-disabled", |_| {
        write(SVR, 0xff);
        check_eq(armed(), 0, "SVR");
        write(SVR, 0x1ff);
        write(LVTT, TSC_DEADLINE | VECTOR as u32);
    });
    ends("the APIC off and on", |_| {
        let base = rdmsr(MSR_APIC_BASE);
        wrmsr(MSR_APIC_BASE, base & !0xc00);
        check_eq(armed(), 0, "APIC_BASE");
        wrmsr(MSR_APIC_BASE, base & !0x400 | 0x800);
        wrmsr(MSR_APIC_BASE, base);
        enable();
        write(LVTT, TSC_DEADLINE | VECTOR as u32);
    });
}

test!(masked, "lazy/masked_while_a_later_one_waits");
fn masked() {
    setup();
    cli();
    let t = rdtsc() + us(NEAR);
    set(t);
    set(t + us(2000));
    write(LVTT, MASKED | TSC_DEADLINE | VECTOR as u32);
    let in_time = rdtsc() < t;
    spin_past(t + us(6000));
    check(set(rdtsc() + us(5_000_000)), "not written while masked");
    check_eq(armed(), 0, "attended while masked");
    write(LVTT, TSC_DEADLINE | VECTOR as u32);
    sti();
    check(count() == 0 || !in_time, "came while masked");
    wrmsr(MSR_TSC_DEADLINE, 0);
    comes_later();
}

test!(hostile, "lazy/hostile_words");
fn hostile() {
    setup();
    for garbage in [0, 1, 1 << 40, u64::MAX] {
        // Into armed: the host has its own.
        let n = count();
        check(set(rdtsc() + us(NEAR)), "not written");
        poke(0, garbage);
        // Else it came before the garbage.
        let in_time = count() == n;
        check(spin_until(n + 1), "not come with garbage in armed");
        check(armed() == 0 || !in_time, "armed behind it");
        poke(0, 0);
        // Into pending, once it is attended: this timer's own loss.
        set(rdtsc() + us(NEAR));
        poke(1, garbage);
        spin_past(rdtsc() + us(NEAR + 5000));
        wrmsr(MSR_TSC_DEADLINE, 0);
        check_eq(armed(), 0, "disarmed");
        comes_later();
    }
}

test!(other, "lazy/written_by_somebody_else");
fn other() {
    setup();
    set(rdtsc() + us(5_000_000));
    poke(1, u64::MAX);
    let t = rdtsc() + us(NEAR);
    wrmsr(MSR_TSC_DEADLINE, t);
    check_eq(armed(), 0, "attended for somebody else");
    check(spin_until(1), "the other's never came");
    check(LAST[index()].load(SeqCst) >= t, "came early");
}

test!(bad, "lazy/bad_addresses");
fn bad() {
    setup();
    let refused = |v: u64, what| {
        trap::expect(13, 0, what, || wrmsr(MSR, v));
        check_eq(rdmsr(MSR), words() as u64 | 1, "MSR behind it");
    };
    refused(MMIO | 1, "a device");
    refused(1 << 50 | 1, "no memory");
    refused(BASE | 1, "the APIC");
    for bit in (1..6).filter(|bit| !(*bit == 1 && host_ticks() || *bit == 2 && in_guest())) {
        refused(words() as u64 | 1 | 1 << bit, "reserved bits");
    }
    comes_later();
}

test!(gone, "lazy/page_gone_and_back");
fn gone() {
    setup();
    let at = 0x8000_0000u64;
    let slot = |size| host::must(op::SLOT_SET, &[FREE_SLOT, at, size, 0, 0]);
    let arm = || {
        let t = rdtsc() + us(NEAR);
        mem::w64(at + 8, t);
        wrmsr(MSR_TSC_DEADLINE, t);
    };
    slot(4096);
    mem::w64(at, 0);
    wrmsr(MSR, at | 1);
    let n = count();
    // Taken away while it is attended, and there again when the deadline has come.
    host::after(NEAR / 3, op::SLOT_SET, &[FREE_SLOT, at, 0, 0]);
    arm();
    check(spin_until(n + 1), "not come without the page");
    host::must(op::SLEEP_US, &[2 * NEAR]);
    slot(4096);
    check_eq(mem::r64(at), 0, "armed in the page that is back");
    // The host drops what is behind it.
    host::after(NEAR / 3, op::POOL_DONTNEED, &[0, 4096]);
    arm();
    check(spin_until(n + 2), "not come behind the page's loss");
    check_eq(mem::r64(at), 0, "armed in a fresh page");
    wrmsr(MSR, 0);
}

/// Deadlines all over the place, on each CPU at once: the last always comes.
fn storm() {
    let mut seed = index() as u64 + 1;
    for _ in 0..40 {
        let n = count();
        let mut last = 0;
        for _ in 0..20 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
            last = rdtsc() + us((seed >> 40) % 3000);
            set(last);
            if seed >> 60 == 0 {
                outb(PIO_RAM, 0);
            }
        }
        spin_past(last);
        let limit = rdtsc() + us(4_000_000);
        while LAST[index()].load(SeqCst) < last && rdtsc() < limit {
            pause();
        }
        check(count() > n && LAST[index()].load(SeqCst) >= last, "the last of many never came");
    }
}
static DONE: AtomicU64 = AtomicU64::new(0);
fn stormed() {
    on_this_cpu();
    storm();
    DONE.store(1, SeqCst);
}
test!(storms, "lazy/storm", cpus(2) | timeout(120));
fn storms() {
    setup();
    smp::start_all(2);
    smp::run(1, stormed);
    storm();
    check(host::wait_ms(60_000, || DONE.load(SeqCst) == 1), "the other CPU's storm does not end");
}

// ---- deadlines in the host's ticks ----

fn offset() -> u64 {
    // SAFETY: this CPU's page.
    unsafe { words().add(2).read_volatile() }
}
/// As [`set`], by a guest that subtracts what the host tells, and looks again behind each write.
fn set_shifted(t: u64) {
    let open = flags() & 0x200 != 0;
    cli();
    poke(1, t);
    fence(SeqCst);
    if armed() == 0 || t < armed() {
        loop {
            let told = offset();
            wrmsr(MSR_TSC_DEADLINE, t.wrapping_sub(told));
            if offset() == told {
                break;
            }
        }
    }
    if open {
        sti();
    }
}
/// This CPU subtracts, and its TSC has an offset that is no other's.
fn shifted_on_this_cpu() {
    on_this_cpu();
    wrmsr(MSR, words() as u64 | 3);
    if cpuid(7, 0)[1] & 2 != 0 {
        wrmsr(TSC_ADJUST, rdmsr(TSC_ADJUST) + us(50_000_000) * (1 + index() as u64));
    }
}
fn shifted() {
    if !host_ticks() {
        skip("no timer of the host's for a TSC with an offset")
    }
    shifted_on_this_cpu();
}

test!(shifted_arms, "ticks/armed_without_exits");
fn shifted_arms() {
    shifted();
    let before = host::must(op::EXITS, &[]);
    let n = count();
    for _ in 0..200 {
        set_shifted(rdtsc() + us(2_000_000));
    }
    check(offset() != 0, "the host tells no offset");
    let exits = host::must(op::EXITS, &[]) - before;
    check(exits < 100, "deadlines exit");
    check_eq(count(), n, "came early");
    // Outside it is in the guest's ticks, and the page says so.
    let t = rdtsc() + us(5_000_000);
    set_shifted(t);
    check_eq(host::must(op::GET_MSR, &[MSR_TSC_DEADLINE as u64]), t, "the deadline outside");
    check_eq(offset(), 0, "told behind a departure");
    // Stopped between its look and its write: what was written means what it wants.
    set_shifted(t);
    let told = offset();
    outb(PIO_RAM, 0);
    wrmsr(MSR_TSC_DEADLINE, t.wrapping_sub(told));
    check_eq(host::must(op::GET_MSR, &[MSR_TSC_DEADLINE as u64]), t, "the stale one outside");
    set_shifted(rdtsc() + us(NEAR));
    check(spin_until(n + 1), "the last never came");
}

test!(shifted_ends, "ticks/whatever_takes_it_back", timeout(120));
fn shifted_ends() {
    shifted();
    let lvtt = TSC_DEADLINE | VECTOR as u32;
    let each: [(&str, fn(u32)); 6] = [
        ("LVTT", |lvtt| write(LVTT, lvtt)),
        ("masked", |lvtt| {
            write(LVTT, MASKED | lvtt);
            write(LVTT, lvtt);
        }),
        ("the MSR", |_| {
            wrmsr(MSR, 0);
            wrmsr(MSR, words() as u64 | 3);
        }),
        ("the TSC", |_| wrmsr(0x10, rdtsc() + us(10))),
        ("state saved and loaded", |_| {
            host::must(op::STATE_ROUND_TRIP, &[]);
        }),
        ("a kernel that knows nothing of it", |_| {
            poke(1, 7);
            write(LVTT, TSC_DEADLINE | VECTOR as u32);
            wrmsr(MSR_TSC_DEADLINE, rdtsc() + us(4_000_000));
        }),
    ];
    for (what, end) in each {
        cli();
        set_shifted(rdtsc() + us(5_000_000));
        end(lvtt);
        check_eq(offset(), 0, what);
        wrmsr(MSR_TSC_DEADLINE, 0);
        sti();
        let t = rdtsc() + us(NEAR);
        set_shifted(t);
        check(spin_until_it_came(t), what);
    }
}

/// Deadlines all over the place, with departures and moves of the TSC between: none is early, and the last always comes.
fn shifted_storm() {
    let mut seed = index() as u64 + 1;
    for _ in 0..30 {
        let mut last = 0;
        let n = count();
        for _ in 0..20 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
            last = rdtsc() + us((seed >> 40) % 3000);
            set_shifted(last);
            match seed >> 60 {
                0 => outb(PIO_RAM, 0),
                1 => {
                    cpuid(0, 0);
                }
                _ => {}
            }
        }
        check(count() - n <= 20, "more than were set");
        check(spin_until_it_came(last), "the last of many never came");
    }
}
static SHIFTED_DONE: AtomicU64 = AtomicU64::new(0);
fn shifted_stormed() {
    shifted_on_this_cpu();
    shifted_storm();
    SHIFTED_DONE.store(1, SeqCst);
}
test!(shifted_storms, "ticks/storm", cpus(2) | timeout(120));
fn shifted_storms() {
    shifted();
    smp::start_all(2);
    smp::run(1, shifted_stormed);
    shifted_storm();
    check(host::wait_ms(60_000, || SHIFTED_DONE.load(SeqCst) == 1), "the other CPU's storm does not end");
}

// ---- deadlines that fire without an exit ----

static ASKED: [AtomicU64; 4] = [const { AtomicU64::new(VECTOR as u64) }; 4];
/// What this CPU waits for.
static WANTED: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
static EARLY: AtomicU64 = AtomicU64::new(0);
static OTHERS: AtomicU64 = AtomicU64::new(0);

fn inside() -> u64 {
    // SAFETY: this CPU's page.
    unsafe { words().add(3).read_volatile() }
}
/// The timer's vector in this CPU's own descriptor.
fn request() {
    let vector = ASKED[index()].load(SeqCst);
    let pir = (descriptor(index()) + vector / 64 * 8) as *const AtomicU64;
    // SAFETY: the window, which the host has said is there.
    unsafe { &*pir }.fetch_or(1 << (vector % 64), SeqCst);
}
/// What the host tells, the vector where it says so, the write, and a look behind it.
fn write_told(t: u64) {
    loop {
        let told = (offset(), inside());
        if told.1 != 0 {
            request();
        }
        wrmsr(MSR_TSC_DEADLINE, t.wrapping_sub(told.0));
        if (offset(), inside()) == told {
            break;
        }
    }
}
fn set_inside(t: u64) {
    let open = flags() & 0x200 != 0;
    cli();
    WANTED[index()].store(t, SeqCst);
    poke(1, t);
    fence(SeqCst);
    write_told(t);
    if open {
        sti();
    }
}
/// Early: requested again, and then it has come perhaps.
fn irq_inside(_: &mut Frame) {
    // `eoi` asks for the APIC's mode, which exits.
    let eoi = || wrmsr(0x80b, 0);
    let wanted = WANTED[index()].load(SeqCst);
    if wanted == 0 {
        // Told once more that it had come.
        return eoi();
    }
    if rdtsc() < wanted {
        EARLY.fetch_add(1, SeqCst);
        if inside() != 0 {
            request();
        }
        if rdtsc() < wanted {
            return eoi();
        }
    }
    WANTED[index()].store(0, SeqCst);
    LAST[index()].store(rdtsc(), SeqCst);
    COUNTS[index()].fetch_add(1, SeqCst);
    eoi();
}
fn inside_on_this_cpu() {
    on_this_cpu();
    trap::on(VECTOR, irq_inside);
    trap::on(0x41, |_| {
        OTHERS.fetch_add(1, SeqCst);
        eoi();
    });
    wrmsr(MSR_DESCRIPTOR, 1);
    wrmsr(MSR, words() as u64 | 5 | if host_ticks() { 2 } else { 0 });
}
fn inside_setup() {
    if !in_guest() {
        skip("no timer that fires without an exit")
    }
    inside_on_this_cpu();
}
/// Without PAUSE, of which loops exit.
fn came(t: u64) {
    let limit = t + us(4_000_000);
    while LAST[index()].load(SeqCst) < t && rdtsc() < limit {}
    check(LAST[index()].load(SeqCst) >= t, "never came");
}

test!(inside_fires, "inside/fires_without_exits");
fn inside_fires() {
    inside_setup();
    let before = host::must(op::EXITS, &[]);
    for n in 0..200 {
        let t = rdtsc() + us(20 + n % 30);
        set_inside(t);
        came(t);
    }
    check(inside() != 0, "not told to request it");
    let exits = host::must(op::EXITS, &[]) - before;
    check(exits < 100, "deadlines exit");
    check_eq(count(), 200, "deadlines that came");
    check_eq(inside(), 0, "told behind a departure");
    // Armed over a departure: user space finds it, and it comes once.
    let t = rdtsc() + us(NEAR);
    set_inside(t);
    check_eq(host::must(op::GET_MSR, &[MSR_TSC_DEADLINE as u64]), t, "the deadline outside");
    came(t);
    // And asleep.
    cli();
    let t = rdtsc() + us(NEAR);
    set_inside(t);
    while WANTED[0].load(SeqCst) != 0 {
        sti_hlt();
        cli();
    }
    sti();
    check(LAST[0].load(SeqCst) >= t, "woken early");
    check_eq(count(), 202, "in all");
}

static INSIDE_STOP: AtomicU64 = AtomicU64::new(0);
/// Notifies the first CPU, whose vector comes early by that.
fn notifier() {
    to_x2apic();
    enable();
    while INSIDE_STOP.load(SeqCst) == 0 {
        wrmsr(0x830, 0x41);
        for _ in 0..200 {
            pause();
        }
    }
}
test!(inside_storm, "inside/storm", cpus(2) | timeout(120));
fn inside_storm() {
    inside_setup();
    smp::start_all(2);
    smp::run(1, notifier);
    let mut seed = 1u64;
    for _ in 0..400 {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        let n = count();
        let mut t = rdtsc() + us((seed >> 40) % 300);
        set_inside(t);
        match seed >> 60 {
            0 => outb(PIO_RAM, 0),
            1 | 2 => {
                cpuid(0, 0);
            }
            3 => write(LVTT, TSC_DEADLINE | VECTOR as u32),
            4 => {
                t += us(50);
                set_inside(t);
            }
            5 => {
                wrmsr(MSR_TSC_DEADLINE, 0);
                t = rdtsc() + us(10);
                set_inside(t);
            }
            _ => {}
        }
        came(t);
        check(count() - n <= 2, "came too often");
    }
    INSIDE_STOP.store(1, SeqCst);
    check(OTHERS.load(SeqCst) != 0, "nothing else came");
}

/// How benchmarks set a deadline, of which this is the vector: by what the host offers that needs a guest that knows of it.
pub fn setter(vector: u8) -> Option<fn(u64)> {
    if in_guest() {
        ASKED[index()].store(vector.into(), SeqCst);
        wrmsr(MSR_DESCRIPTOR, 1);
        wrmsr(MSR, words() as u64 | 5 | if host_ticks() { 2 } else { 0 });
        return Some(set_inside);
    }
    if offered() {
        wrmsr(MSR, words() as u64 | 1);
        return Some(|t| {
            set(t);
        });
    }
    None
}
