//! Memory slots as an ABI: what is refused, what may change, and the dirty log's calls.

use crate::env::*;
use exitless_runner::kvm::{self, Map, nr, set_slot};
use kvm_bindings::*;
use libc::{EEXIST, EINVAL, ENOENT};

pub(crate) const TESTS: &[Test] = &[
    ("memory/alignment", alignment),
    ("memory/flags", flags),
    ("memory/overlap", overlap),
    ("memory/adjacent", adjacent),
    ("memory/delete", delete),
    ("memory/change_refused", change_refused),
    ("memory/move", moved),
    ("memory/wrap", wrap),
    ("memory/beyond_the_cpu", beyond_the_cpu),
    ("memory/slot_number", slot_number),
    ("memory/host_address", host_address),
    ("memory/same_host_memory_twice", twice),
    ("memory/many_slots", many),
    ("memory/log_flag_toggle", log_toggle),
    ("memory/dirty_log_errors", dirty_errors),
    ("memory/dirty_log_size", dirty_size),
    ("memory/moved_while_written", moved_while_written),
    ("memory/unmapped_host_memory", unmapped),
];

const PAGE: u64 = 4096;

fn alignment(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    errno!(set_slot(&vm, 0, 0, 0x800, PAGE, m.addr()), EINVAL, "guest address");
    errno!(set_slot(&vm, 0, 0, 0, 0x800, m.addr()), EINVAL, "size");
    errno!(set_slot(&vm, 0, 0, 0, PAGE, m.addr() + 0x800), EINVAL, "host address");
    set_slot(&vm, 0, 0, 0, PAGE, m.addr())?;
    Ok(())
}

fn flags(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    errno!(set_slot(&vm, 0, 0x80, 0, PAGE, m.addr()), EINVAL, "unknown flag");
    set_slot(&vm, 0, 1, 0, PAGE, m.addr())?;
    set_slot(&vm, 1, 2, PAGE, PAGE, m.addr())?;
    set_slot(&vm, 2, 3, 2 * PAGE, PAGE, m.addr())?;
    Ok(())
}

fn overlap(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    set_slot(&vm, 0, 0, 0x10000, 4 * PAGE, m.addr())?;
    for (gpa, size) in
        [(0x10000, PAGE), (0x13000, PAGE), (0xf000, 2 * PAGE), (0xf000, 16 * PAGE), (0x11000, PAGE)]
    {
        errno!(set_slot(&vm, 1, 0, gpa, size, m.addr()), EEXIST, "slot at {gpa:#x}");
    }
    Ok(())
}

fn adjacent(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    set_slot(&vm, 0, 0, 0x10000, 4 * PAGE, m.addr())?;
    set_slot(&vm, 1, 0, 0xf000, PAGE, m.addr())?;
    set_slot(&vm, 2, 0, 0x14000, PAGE, m.addr())?;
    Ok(())
}

fn delete(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    errno!(set_slot(&vm, 5, 0, 0, 0, 0), EINVAL, "deleting a slot that is not there");
    set_slot(&vm, 5, 0, 0, PAGE, m.addr())?;
    set_slot(&vm, 5, 0, 0, 0, 0)?;
    errno!(set_slot(&vm, 5, 0, 0, 0, 0), EINVAL, "deleting it again");
    set_slot(&vm, 6, 0, 0, PAGE, m.addr())?;
    Ok(())
}

fn change_refused(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    set_slot(&vm, 0, 0, 0, 2 * PAGE, m.addr())?;
    errno!(set_slot(&vm, 0, 0, 0, 3 * PAGE, m.addr()), EINVAL, "larger");
    errno!(set_slot(&vm, 0, 0, 0, PAGE, m.addr()), EINVAL, "smaller");
    errno!(set_slot(&vm, 0, 0, 0, 2 * PAGE, m.addr() + PAGE), EINVAL, "other host address");
    errno!(set_slot(&vm, 0, 2, 0, 2 * PAGE, m.addr()), EINVAL, "read-only");
    set_slot(&vm, 0, 0, 0, 2 * PAGE, m.addr())?; // nothing new is fine
    Ok(())
}

fn moved(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    set_slot(&vm, 0, 0, 0, 2 * PAGE, m.addr())?;
    set_slot(&vm, 1, 0, 0x10000, PAGE, m.addr())?;
    set_slot(&vm, 0, 0, 0x1000, 2 * PAGE, m.addr())?;
    errno!(set_slot(&vm, 0, 0, 0xf000, 2 * PAGE, m.addr()), EEXIST, "moved onto another");
    set_slot(&vm, 2, 0, 0, PAGE, m.addr())?;
    Ok(())
}

fn wrap(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    errno!(set_slot(&vm, 0, 0, 0u64.wrapping_sub(PAGE), 2 * PAGE, m.addr()), EINVAL, "guest address wraps");
    Ok(())
}

/// No guest frame beyond the CPU's physical addresses. Where those have more than 48 bits and the tables four levels, stock KVM
/// takes slots that it cannot map; that the tables count too is a unit test of `logic/memslots`.
fn beyond_the_cpu(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    let width = std::arch::x86_64::__cpuid(0x8000_0008).eax & 0xff;
    errno!(set_slot(&vm, 0, 0, 1 << width, PAGE, m.addr()), EINVAL, "a page at 2^{width}");
    errno!(set_slot(&vm, 0, 0, (1 << width) - PAGE, 2 * PAGE, m.addr()), EINVAL, "across 2^{width}");
    let held = width.min(48);
    set_slot(&vm, 0, 0, (1 << held) - PAGE, PAGE, m.addr())?;
    errno!(set_slot(&vm, 0, 0, 1 << width, PAGE, m.addr()), EINVAL, "moved to 2^{width}");
    Ok(())
}

fn slot_number(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    let n = vm.cap(KVM_CAP_NR_MEMSLOTS) as u32;
    errno!(set_slot(&vm, n, 0, 0, PAGE, m.addr()), EINVAL, "slot {n}");
    set_slot(&vm, n - 1, 0, 0, PAGE, m.addr())?;
    if vm.cap(KVM_CAP_MULTI_ADDRESS_SPACE) <= 1 {
        errno!(set_slot(&vm, 1 << 16, 0, 0x10000, PAGE, m.addr()), EINVAL, "address space 1");
    }
    errno!(set_slot(&vm, 7 << 16, 0, 0x10000, PAGE, m.addr()), EINVAL, "address space 7");
    Ok(())
}

fn host_address(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    errno!(set_slot(&vm, 0, 0, 0, PAGE, 0xffff_8000_0000_0000), EINVAL, "kernel address");
    errno!(set_slot(&vm, 0, 0, 0, PAGE, 0u64.wrapping_sub(PAGE)), EINVAL, "end of the address space");
    Ok(())
}

fn twice(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    set_slot(&vm, 0, 0, 0xe0000, 0x10000, m.addr())?;
    set_slot(&vm, 1, 0, 0xffff_0000, 0x10000, m.addr())?;
    Ok(())
}

fn many(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    let n = (vm.cap(KVM_CAP_NR_MEMSLOTS) as u32).min(256);
    for i in 0..n {
        set_slot(&vm, i, 0, u64::from(i) * 0x2000, PAGE, m.addr())?;
    }
    for i in (0..n).step_by(2) {
        set_slot(&vm, i, 0, 0, 0, 0)?;
    }
    for i in (0..n).step_by(2) {
        set_slot(&vm, i, 0, u64::from(i) * 0x2000, PAGE, m.addr())?;
    }
    Ok(())
}

fn log_toggle(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    for flags in [0, 1, 0, 1, 1, 0] {
        set_slot(&vm, 0, flags, 0, 16 * PAGE, m.addr())?;
    }
    Ok(())
}

fn log(vm: &kvm::Fd, slot: u32, bitmap: &mut [u64]) -> kvm::Result<i32> {
    let mut l = kvm_dirty_log { slot, ..Default::default() };
    l.__bindgen_anon_1.dirty_bitmap = bitmap.as_mut_ptr().cast();
    vm.set(nr::GET_DIRTY_LOG, &l)
}

fn dirty_errors(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x10000)?;
    let mut b = [0u64; 8];
    set_slot(&vm, 0, 0, 0, PAGE, m.addr())?;
    errno!(log(&vm, 0, &mut b), ENOENT, "a slot without logging");
    errno!(log(&vm, 1, &mut b), ENOENT, "a slot that is not there");
    errno!(log(&vm, 0xffff, &mut b), EINVAL, "an impossible slot");
    Ok(())
}

fn dirty_size(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let m = Map::anon(0x50000)?;
    set_slot(&vm, 0, 1, 0, 65 * PAGE, m.addr())?;
    let mut b = [!0u64; 3];
    log(&vm, 0, &mut b)?;
    same!(b[0], 0, "first word");
    same!(b[1], 0, "second word");
    same!(b[2], !0, "nothing behind it");
    Ok(())
}

/// The guest writes a page of a slot that logs and stays in the guest; the slot moves by a page. Where the CPU logs writes, it has
/// written down the old address: the page is dirty in the slot, wherever that is now.
fn moved_while_written(e: &Env) -> R {
    const SLOT: u64 = 0x10_0000;
    // 1000: mov es:[0x1000], al; out 0x10, al; mov es:[0x1000], al; mov [0x1100], al
    // 100c: cmp [0x1100], al; je 100c; hlt
    let code = [
        0x26, 0xa2, 0, 0x10, 0xe6, 0x10, 0x26, 0xa2, 0, 0x10, 0xa2, 0, 0x11, 0x38, 0x06, 0, 0x11, 0x74, 0xfa,
        0xf4,
    ];
    let g = e.guest(Chips::None, &code)?;
    let m = Map::anon(0x10000)?;
    set_slot(&g.vm, 1, 1, SLOT, 4 * PAGE, m.addr())?;
    let mut s: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    s.es.base = SLOT;
    g.vcpu.fd.set(nr::SET_SREGS, &s)?;
    let mut r: kvm_regs = g.vcpu.fd.get(nr::GET_REGS)?;
    r.rax = 1;
    g.vcpu.fd.set(nr::SET_REGS, &r)?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    let mut bits = [0u64];
    log(&g.vm, 1, &mut bits)?;
    same!(bits, [0b10], "the first write");
    std::thread::scope(|s| {
        let runs = s.spawn(|| g.vcpu.run_to(KVM_EXIT_HLT));
        let moved = (|| -> R {
            let mut there = [0];
            while there != [1] && !runs.is_finished() {
                std::thread::yield_now();
                g.mem.read(0x1100, &mut there);
            }
            set_slot(&g.vm, 1, 1, SLOT + PAGE, 4 * PAGE, m.addr())?;
            log(&g.vm, 1, &mut bits)?;
            ensure!(bits[0] & 0b10 != 0, "the second write is lost: {:#b}", bits[0]);
            Ok(())
        })();
        g.mem.write(0x1100, &[0]);
        runs.join().map_err(|_| Stop::Fail("the vCPU's thread".into()))??;
        moved
    })
}

/// A slot may be made over addresses without memory; only the access fails.
fn unmapped(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0x26, 0xa1, 0, 0, 0xf4])?; // mov ax, es:[0]; hlt
    let hole = Map::anon(0x10000)?;
    let address = hole.addr();
    drop(hole);
    set_slot(&g.vm, 1, 0, 0x10_0000, 0x10000, address)?;
    let mut s: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
    s.es.base = 0x10_0000;
    g.vcpu.fd.set(nr::SET_SREGS, &s)?;
    errno!(g.vcpu.run(), libc::EFAULT, "KVM_RUN");
    // With memory there the same vCPU goes on.
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
    // SAFETY: the range was ours a moment ago and this process has one thread.
    let p =
        unsafe { libc::mmap(address as *mut _, 0x10000, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    ensure!(p as u64 == address, "mmap");
    g.vcpu.run_to(KVM_EXIT_HLT)
}
