//! Guest memory under change: slots that come, go, move, alias and log, and host mappings that change below them.

use crate::config::*;
use crate::cpu::*;
use crate::report::*;
use crate::{host, mem, smp, test};
use core::sync::atomic::{AtomicU64, Ordering};

const GPA: u64 = 0x8000_0000;
const SIZE: u64 = 0x20_0000;

fn slot(n: u64, gpa: u64, size: u64, offset: u64, flags: u64) {
    host::must(op::SLOT_SET, &[FREE_SLOT + n, gpa, size, offset, flags]);
}
fn pool(offset: u64) -> u64 {
    host::call(op::POOL_READ, &[offset]) as u64
}
fn pool_set(offset: u64, v: u64) {
    host::must(op::POOL_WRITE, &[offset, v]);
}

test!(add, "mem/slot_added_while_running");
fn add() {
    pool_set(0x1000, 0x1234);
    slot(0, GPA, SIZE, 0, 0);
    check_eq(mem::r64(GPA + 0x1000), 0x1234, "host's word");
    mem::w64(GPA + 0x2000, 0x5678);
    check_eq(pool(0x2000), 0x5678, "guest's word");
}

test!(delete, "mem/slot_deleted_becomes_mmio");
fn delete() {
    slot(0, GPA, SIZE, 0, 0);
    mem::w64(GPA, 1);
    slot(0, GPA, 0, 0, 0);
    let before = host::user_exits(6);
    check_eq(mem::r32(GPA) as u64, 0xffff_ffff, "nothing answers");
    mem::w32(GPA, 2);
    check_eq(host::user_exits(6) - before, 2, "MMIO exits");
    slot(0, GPA, SIZE, 0, 0);
    check_eq(mem::r64(GPA), 1, "the memory is back");
}

test!(mov, "mem/slot_moved");
fn mov() {
    slot(0, GPA, SIZE, 0, 0);
    mem::w64(GPA + 8, 0xabcd);
    host::must(op::SLOT_MOVE, &[FREE_SLOT, GPA + 0x1000_0000]);
    check_eq(mem::r64(GPA + 0x1000_0008), 0xabcd, "at the new place");
    check_eq(mem::r32(GPA + 8) as u64, 0xffff_ffff, "not at the old");
}

test!(replace, "mem/slot_other_memory_same_address");
fn replace() {
    pool_set(0, 0xa);
    pool_set(0x20_0000, 0xb);
    for _ in 0..10 {
        slot(0, GPA, SIZE, 0, 0);
        check_eq(mem::r64(GPA), 0xa, "first memory");
        slot(0, GPA, 0, 0, 0);
        slot(0, GPA, SIZE, 0x20_0000, 0);
        check_eq(mem::r64(GPA), 0xb, "second memory");
        slot(0, GPA, 0, 0, 0);
    }
}

test!(alias, "mem/two_slots_one_memory");
fn alias() {
    slot(0, GPA, SIZE, 0, 0);
    slot(1, GPA + 0x4000_0000, SIZE, 0, 0);
    mem::w64(GPA + 0x100, 0x77);
    check_eq(mem::r64(GPA + 0x4000_0100), 0x77, "the other view");
    mem::w64(GPA + 0x4000_0100, 0x88);
    check_eq(mem::r64(GPA + 0x100), 0x88, "the first view");
}

test!(small, "mem/one_page_slots");
fn small() {
    for i in 0..8 {
        slot(i, GPA + i * 0x2000, 0x1000, i * 0x1000, 0);
    }
    for i in 0..8 {
        mem::w64(GPA + i * 0x2000 + 0xff8, i);
    }
    for i in 0..8 {
        check_eq(pool(i * 0x1000 + 0xff8), i, "page");
        check_eq(mem::r32(GPA + i * 0x2000 + 0x1000) as u64, 0xffff_ffff, "hole");
    }
}

test!(readonly, "mem/read_only_slot");
fn readonly() {
    host::need_cap(81, "no KVM_CAP_READONLY_MEM");
    pool_set(0, 0x1111);
    slot(0, GPA, SIZE, 0, 2);
    check_eq(mem::r64(GPA), 0x1111, "read");
    let before = host::user_exits(6);
    mem::w64(GPA, 0x2222);
    check_eq(host::user_exits(6) - before, 1, "a write exits as MMIO");
    check_eq(mem::r64(GPA), 0x1111, "unchanged");
    let mut log = [[0; 3]; 64];
    check_eq(host::mmio_log(&mut log) as u64, 1, "accesses");
    check_eq(log[0][0], GPA, "address");
    check_eq(log[0][2], 0x2222, "data");
}

test!(readonly_exec, "mem/read_only_slot_executes");
fn readonly_exec() {
    host::need_cap(81, "no KVM_CAP_READONLY_MEM");
    pool_set(0, 0xc3_0000_002a_b8); // mov eax, 42; ret
    slot(0, GPA, SIZE, 0, 2);
    let f: extern "C" fn() -> u32 = unsafe { core::mem::transmute(GPA) };
    check_eq(f() as u64, 42, "code in ROM");
}

test!(flags, "mem/slot_becomes_read_only");
fn flags() {
    host::need_cap(81, "no KVM_CAP_READONLY_MEM");
    slot(0, GPA, SIZE, 0, 0);
    mem::w64(GPA, 1);
    slot(0, GPA, 0, 0, 0);
    slot(0, GPA, SIZE, 0, 2);
    mem::w64(GPA, 2);
    check_eq(mem::r64(GPA), 1, "a write after the change");
}

static BITMAP: crate::trap::Shared<[u64; 512]> = crate::trap::Shared::new([0; 512]);
fn dirty_pages() -> &'static [u64; 512] {
    host::must(op::DIRTY_LOG, &[FREE_SLOT, BITMAP.get() as *mut _ as u64]);
    BITMAP.get()
}

test!(dirty, "mem/dirty_log");
fn dirty() {
    slot(0, GPA, SIZE, 0, 1);
    dirty_pages();
    mem::w8(GPA + 3 * 4096, 1);
    mem::w8(GPA + 64 * 4096 + 5, 1);
    mem::r8(GPA + 7 * 4096);
    let d = dirty_pages();
    check_eq(d[0], 8, "pages 0-63");
    check_eq(d[1], 1, "pages 64-127");
    check_eq(dirty_pages()[0], 0, "the log is cleared by reading it");
    mem::w8(GPA + 3 * 4096, 2);
    check_eq(dirty_pages()[0], 8, "the same page again");
}

/// More pages than a CPU's log holds, between two looks: all of them, and no others.
test!(dirty_many, "mem/dirty_log_of_many_pages");
fn dirty_many() {
    const PAGES: u64 = 1600;
    slot(0, GPA, PAGES << 12, 0, 1);
    for round in 1..4 {
        for page in (0..PAGES).filter(|page| page % round == 0) {
            mem::w8(GPA + page * 4096, 1);
        }
        let d = dirty_pages();
        for page in 0..PAGES {
            let told = d[page as usize / 64] >> (page % 64) & 1;
            check_eq(told, u64::from(page % round == 0), "written and told");
        }
    }
    (0..PAGES).for_each(|page| _ = mem::r8(GPA + page * 4096));
    check(dirty_pages().iter().take(PAGES as usize / 64).all(|w| *w == 0), "reads are not told");
}

test!(dirty_toggle, "mem/dirty_log_switched_on_later");
fn dirty_toggle() {
    slot(0, GPA, SIZE, 0, 0);
    for i in 0..512 {
        mem::w8(GPA + i * 4096, 1);
    }
    slot(0, GPA, SIZE, 0, 1);
    dirty_pages();
    mem::w8(GPA + 9 * 4096, 2);
    check_eq(dirty_pages()[0], 1 << 9, "only the page written since");
    slot(0, GPA, SIZE, 0, 0);
    mem::w8(GPA + 10 * 4096, 2);
}

test!(dirty_huge, "mem/dirty_log_on_huge_pages");
fn dirty_huge() {
    host::must(op::POOL_HUGE, &[0, 4 << 20]);
    slot(0, GPA, 4 << 20, 0, 0);
    for i in 0..1024 {
        mem::w8(GPA + i * 4096, 1);
    }
    slot(0, GPA, 4 << 20, 0, 1);
    dirty_pages();
    mem::w8(GPA + 0x20_0000, 1);
    let d = dirty_pages();
    check_eq(d[8], 1, "one small page of a huge one");
    check_eq(d[9], 0, "its neighbours");
}

test!(dirty_port, "mem/dirty_log_of_string_in");
fn dirty_port() {
    slot(0, GPA, SIZE, 0, 1);
    mem::r8(GPA);
    dirty_pages();
    unsafe {
        core::arch::asm!("rep insb", in("dx") PIO_IN, inout("rdi") GPA + 0x1ff8 => _, inout("rcx") 16u64 => _)
    };
    check_eq(dirty_pages()[0], 6, "writes of the emulator are logged");
}

test!(dontneed, "mem/madvise_dontneed");
fn dontneed() {
    slot(0, GPA, SIZE, 0, 0);
    for _ in 0..5 {
        for i in 0..16 {
            mem::w64(GPA + i * 4096, 0x99);
        }
        host::must(op::POOL_DONTNEED, &[0, SIZE]);
        for i in 0..16 {
            check_eq(mem::r64(GPA + i * 4096), 0, "a fresh page");
        }
    }
}

test!(remap, "mem/munmap_and_map_again");
fn remap() {
    slot(0, GPA, SIZE, 0, 0);
    for i in 1..6u64 {
        mem::w64(GPA + 0x3000, i);
        check_eq(pool(0x3000), i, "host sees it");
        host::must(op::POOL_REMAP, &[0, SIZE]);
        check_eq(mem::r64(GPA + 0x3000), 0, "the new mapping");
        pool_set(0x3000, 100 + i);
        check_eq(mem::r64(GPA + 0x3000), 100 + i, "host writes it");
    }
}

test!(protect, "mem/mprotect_read_only_and_back");
fn protect() {
    slot(0, GPA, SIZE, 0, 0);
    mem::w64(GPA, 5);
    host::must(op::POOL_PROTECT, &[0, SIZE, 1]);
    check_eq(mem::r64(GPA), 5, "reads go on");
    host::must(op::POOL_PROTECT, &[0, SIZE, 3]);
    mem::w64(GPA, 6);
    check_eq(pool(0), 6, "writes go on");
}

static STOP: AtomicU64 = AtomicU64::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
fn writer() {
    while STOP.load(Ordering::SeqCst) == 0 {
        for i in 0..512 {
            mem::w64(GPA + i * 4096, i + 1);
        }
        ROUNDS.fetch_add(1, Ordering::SeqCst);
    }
    ROUNDS.store(!0, Ordering::SeqCst);
}
fn with_writer(f: fn()) {
    slot(0, GPA, SIZE, 0, 0);
    smp::start_all(2);
    smp::run(1, writer);
    for _ in 0..10 {
        let r = ROUNDS.load(Ordering::SeqCst);
        check(host::wait_ms(20_000, || ROUNDS.load(Ordering::SeqCst) != r), "the writer stands still");
        f();
    }
    STOP.store(1, Ordering::SeqCst);
    check(host::wait_ms(20_000, || ROUNDS.load(Ordering::SeqCst) == !0), "the writer does not end");
    for i in 0..512 {
        mem::w64(GPA + i * 4096, i);
    }
    check_eq(pool(511 * 4096), 511, "host and guest see the same memory");
}

test!(smp_dontneed, "mem/madvise_under_a_writing_vcpu", cpus(2));
fn smp_dontneed() {
    with_writer(|| {
        host::must(op::POOL_DONTNEED, &[0, SIZE]);
    });
}
test!(smp_remap, "mem/remap_under_a_reading_vcpu", cpus(2));
fn smp_remap() {
    // munmap leaves a gap in which a write would be an error, so the other vCPU works on another slot.
    slot(1, GPA + 0x4000_0000, SIZE, SIZE, 0);
    with_writer(|| {
        mem::w64(GPA + 0x4000_0000, 7);
        host::must(op::POOL_REMAP, &[SIZE, SIZE]);
        check_eq(mem::r64(GPA + 0x4000_0000), 0, "new memory");
    });
}
test!(smp_slots, "mem/slots_change_under_a_writing_vcpu", cpus(2));
fn smp_slots() {
    with_writer(|| {
        for i in 1..4 {
            slot(i, GPA + i * 0x1000_0000, SIZE, SIZE, 0);
            mem::w64(GPA + i * 0x1000_0000, i);
        }
        for i in 1..4 {
            slot(i, GPA + i * 0x1000_0000, 0, 0, 0);
        }
    });
}
/// Never exits by itself: whoever waits for this vCPU must make it come out, each time.
fn spinner() {
    while STOP.load(Ordering::Relaxed) == 0 {
        core::hint::spin_loop();
    }
    ROUNDS.store(!0, Ordering::SeqCst);
}
test!(smp_spin, "mem/slots_change_often_under_a_spinning_vcpu", cpus(2));
fn smp_spin() {
    smp::start_all(2);
    smp::run(1, spinner);
    for i in 0..400 {
        slot(1, GPA, SIZE, SIZE, 0);
        mem::w64(GPA, i);
        check_eq(pool(SIZE), i, "host's word");
        slot(1, GPA, 0, 0, 0);
    }
    STOP.store(1, Ordering::SeqCst);
    check(host::wait_ms(20_000, || ROUNDS.load(Ordering::SeqCst) == !0), "the spinner does not end");
}
test!(smp_log, "mem/dirty_log_under_a_writing_vcpu", cpus(2));
fn smp_log() {
    with_writer(|| {
        slot(0, GPA, SIZE, 0, 1);
        dirty_pages();
        let r = ROUNDS.load(Ordering::SeqCst);
        check(host::wait_ms(20_000, || ROUNDS.load(Ordering::SeqCst) > r + 1), "the writer stands still");
        let d = dirty_pages();
        check(d[..8].iter().all(|w| *w == !0), "all pages were written since");
        slot(0, GPA, SIZE, 0, 0);
    });
}

test!(huge, "mem/huge_pages", HUGE);
fn huge() {
    for i in 0..(12 << 20) / 4096u64 {
        mem::w64((16 << 20) + i * 4096, i);
    }
    for i in 0..(12 << 20) / 4096u64 {
        check_eq(mem::r64((16 << 20) + i * 4096), i, "page");
    }
}

test!(huge_split, "mem/huge_page_split_by_madvise");
fn huge_split() {
    host::must(op::POOL_HUGE, &[0, 8 << 20]);
    slot(0, GPA, 8 << 20, 0, 0);
    for i in 0..2048 {
        mem::w64(GPA + i * 4096, i);
    }
    host::must(op::POOL_DONTNEED, &[0x20_3000, 0x1000]);
    check_eq(mem::r64(GPA + 0x20_3000), 0, "the page dropped");
    check_eq(mem::r64(GPA + 0x20_4000), 0x204, "the next one");
}

test!(unaligned_slot, "mem/slot_and_host_address_unaligned_for_huge_pages");
fn unaligned_slot() {
    host::must(op::POOL_HUGE, &[0, 8 << 20]);
    slot(0, GPA + 0x1000, 4 << 20, 0x5000, 0);
    for i in 0..1024 {
        mem::w64(GPA + 0x1000 + i * 4096, i);
    }
    for i in 0..1024 {
        check_eq(pool(0x5000 + i * 4096), i, "page");
    }
}

test!(beyond, "mem/hole_reads_all_ones");
fn beyond() {
    for gpa in [0x2_0000_0000u64 - 0x1_0000_0000 - 0x1000_0000, 0xdead_0000, 0xc000_0000] {
        if (0xfec0_0000..0xfef0_0000).contains(&gpa) {
            continue;
        }
        check_eq(mem::r32(gpa) as u64, 0xffff_ffff, "hole");
    }
}

test!(high_gpa, "mem/slot_above_4_gib");
fn high_gpa() {
    slot(0, 0x8_0000_0000, SIZE, 0, 0);
    let va = mem::FREE_VA + 0x60_0000;
    mem::map(va, 0x8_0000_0000, mem::P | mem::W);
    mem::w64(va + 0x10, 0x1234_5678);
    check_eq(pool(0x10), 0x1234_5678, "host sees it");
}

test!(tables_in_slot, "mem/page_tables_in_a_slot_that_is_replaced");
fn tables_in_slot() {
    // The guest's own tables lie in a slot; after delete and re-add the walk must find them again.
    slot(0, GPA, SIZE, 0, 0);
    unsafe { core::ptr::copy_nonoverlapping(PML4 as *const u8, GPA as *mut u8, 4096) };
    set_cr3(GPA);
    for _ in 0..5 {
        host::must(op::SLOT_ZAP, &[FREE_SLOT]);
        set_cr3(GPA);
        check_eq(mem::r32(MMIO) as u64, mem::r32(MMIO) as u64, "MMIO");
        mem::w64(0x50_0000, 3);
    }
    set_cr3(PML4);
}

test!(self_modifying, "mem/code_changed_by_the_host");
fn self_modifying() {
    slot(0, GPA, SIZE, 0, 0);
    for i in 0..10u64 {
        pool_set(0, 0xc3_0000_0000_b8 | i << 8);
        let f: extern "C" fn() -> u32 = unsafe { core::mem::transmute(GPA) };
        check_eq(f() as u64, i, "new code");
    }
}
