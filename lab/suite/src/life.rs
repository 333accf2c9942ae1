//! Lifetimes: descriptors closed in any order, mappings that outlive them, processes that die, and leaks.

use crate::env::*;
use exitless_runner::kvm::{self, Fd, Map, nr};
use kvm_bindings::*;
use std::time::Duration;

pub(crate) const TESTS: &[Test] = &[
    ("life/close_order", close_order),
    ("life/vcpu_runs_after_vm_closed", vm_closed),
    ("life/mapping_outlives_descriptors", mapping),
    ("life/mapped_twice_through_a_duplicate", mapped_twice),
    ("life/mapping_limits", mapping_limits),
    ("life/many_times", many_times),
    ("life/no_descriptor_leak", no_leak),
    ("life/close_on_exec", close_on_exec),
    ("life/killed_while_running", killed),
    ("life/killed_while_halted", killed_halted),
    ("life/closed_while_another_thread_runs", closed_running),
    ("life/memory_unmapped_before_close", unmapped_first),
    ("life/eventfds_assigned_at_close", assigned),
    ("life/vcpu_fd_passed_to_a_child", passed),
    ("life/slots_and_vcpus_under_load", load),
];

fn close_order(e: &Env) -> R {
    for order in 0..6 {
        let Small { sys, vm, vcpu, mem } = e.guest(Chips::Full, &[0xe6, 0x10])?;
        vcpu.run_to(KVM_EXIT_IO)?;
        let Vcpu { fd, map } = vcpu;
        let mut things: Vec<Option<Box<dyn std::any::Any>>> = vec![
            Some(Box::new(sys)),
            Some(Box::new(vm)),
            Some(Box::new(fd)),
            Some(Box::new(map)),
            Some(Box::new(mem)),
        ];
        for i in 0..5 {
            let step = [1, 2, 3, 4, 1, 1][order];
            let index = (order + i * step) % 5;
            things[index].take();
        }
        things.clear();
    }
    Ok(())
}

fn vm_closed(e: &Env) -> R {
    let Small { sys, vm, vcpu, mem } = e.guest(Chips::None, &[0xe6, 0x10, 0xf4])?;
    drop((vm, sys));
    vcpu.run_to(KVM_EXIT_IO)?;
    vcpu.run_to(KVM_EXIT_HLT)?;
    drop(mem);
    Ok(())
}

fn mapping(e: &Env) -> R {
    let Small { sys, vm, vcpu, mem } = e.guest(Chips::None, &[0xe6, 0x10])?;
    vcpu.run_to(KVM_EXIT_IO)?;
    let Vcpu { fd, map } = vcpu;
    drop((fd, vm, sys, mem));
    let mut b = [0; 4096];
    map.read(0, &mut b);
    map.write(0, &b);
    let reason = u32::from_le_bytes([b[8], b[9], b[10], b[11]]);
    same!(reason, KVM_EXIT_IO, "exit reason in the page");
    Ok(())
}

fn mapped_twice(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0xe6, 0x10, 0xf4])?;
    // SAFETY: a duplicate of our own descriptor.
    let twin = unsafe { Fd::from_raw(libc::dup(g.vcpu.fd.raw())) };
    let size = g.sys.call(nr::GET_VCPU_MMAP_SIZE, 0)? as usize;
    let map = Map::fd(twin.raw(), size, 0)?;
    let second = Vcpu { fd: twin, map };
    g.vcpu.run_to(KVM_EXIT_IO)?;
    same!(second.page().exit_reason, KVM_EXIT_IO, "seen through the second mapping");
    second.page().immediate_exit = 1;
    errno!(g.vcpu.run(), libc::EINTR, "KVM_RUN");
    second.page().immediate_exit = 0;
    drop(g.vcpu);
    second.run_to(KVM_EXIT_HLT)
}

fn mapping_limits(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let size = g.sys.call(nr::GET_VCPU_MMAP_SIZE, 0)? as usize;
    Map::fd(g.vcpu.fd.raw(), 4096, 0)?;
    Map::fd(g.vcpu.fd.raw(), 4096, 4096)?;
    Map::fd(g.vcpu.fd.raw(), size, 0)?;
    // A page beyond the end maps at most to a page that faults.
    if let Ok(m) = Map::fd(g.vcpu.fd.raw(), 4096, 1 << 30) {
        same!(m.size(), 4096, "size");
    }
    Ok(())
}

fn many_times(e: &Env) -> R {
    for i in 0..100 {
        let g = e.guest(if i % 2 == 0 { Chips::Full } else { Chips::None }, &[0xe6, 0x10])?;
        g.vcpu.run_to(KVM_EXIT_IO)?;
    }
    Ok(())
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, |d| d.count())
}

fn no_leak(e: &Env) -> R {
    let before = descriptors();
    for _ in 0..20 {
        let g = e.guest(Chips::Full, &[0xe6, 0x10])?;
        g.vcpu.run_to(KVM_EXIT_IO)?;
        errno!(g.vm.call(nr::CREATE_VCPU, 0), libc::EEXIST, "vCPU 0 again");
    }
    same!(descriptors(), before, "open descriptors");
    Ok(())
}

fn close_on_exec(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    for (name, fd) in [("VM", &g.vm), ("vCPU", &g.vcpu.fd)] {
        // SAFETY: no pointers.
        let f = unsafe { libc::fcntl(fd.raw(), libc::F_GETFD) };
        same!(f & libc::FD_CLOEXEC, libc::FD_CLOEXEC, "close-on-exec of the {name} descriptor");
    }
    Ok(())
}

fn in_child(f: impl FnOnce()) -> i32 {
    // SAFETY: one thread at this point.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        f();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(0) };
    }
    pid
}

fn kill_and_wait(pid: i32) -> R {
    std::thread::sleep(Duration::from_millis(300));
    // SAFETY: our own child.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    for _ in 0..1000 {
        let mut status = 0;
        // SAFETY: our own child.
        if unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } == pid {
            ensure!(libc::WIFSIGNALED(status), "the child ended by itself: {status:#x}");
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(Stop::Fail("the killed process does not go away".into()))
}

fn run_for_ever(e: &Env, code: &[u8]) {
    if let Ok(g) = e.guest(Chips::Full, code) {
        loop {
            let _ = g.vcpu.run();
        }
    }
}

fn killed(e: &Env) -> R {
    let pid = in_child(|| run_for_ever(e, &[0xeb, 0xfe]));
    kill_and_wait(pid)
}

fn killed_halted(e: &Env) -> R {
    let pid = in_child(|| run_for_ever(e, &[0xf4]));
    kill_and_wait(pid)?;
    let pid = in_child(|| {
        if let Ok((s, vm)) = e.vm_with_chips()
            && let (Ok(_bsp), Ok(ap)) = (vcpu(&s, &vm, 0), vcpu(&s, &vm, 1))
        {
            loop {
                let _ = ap.run();
            }
        }
    });
    kill_and_wait(pid)
}

fn closed_running(e: &Env) -> R {
    let pid = in_child(|| {
        if let Ok(Small { sys, vm, vcpu, mem }) = e.guest(Chips::Full, &[0xeb, 0xfe]) {
            let raw = vcpu.fd.raw();
            std::thread::spawn(move || {
                let _ = kvm::ioctl(raw, nr::RUN, 0);
            });
            std::thread::sleep(Duration::from_millis(100));
            drop((vcpu, vm, sys, mem));
        }
        loop {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    kill_and_wait(pid)
}

fn unmapped_first(e: &Env) -> R {
    let Small { sys, vm, vcpu, mem } = e.guest(Chips::None, &[0xe6, 0x10, 0xeb, 0xfc])?;
    vcpu.run_to(KVM_EXIT_IO)?;
    drop(mem);
    errno!(vcpu.run(), libc::EFAULT, "KVM_RUN without memory");
    drop((vcpu, vm, sys));
    Ok(())
}

fn assigned(e: &Env) -> R {
    for _ in 0..20 {
        let (_s, vm) = e.vm_with_chips()?;
        let a = kvm::eventfd()?;
        let b = kvm::eventfd()?;
        vm.set(nr::IRQFD, &kvm_irqfd { fd: a.raw() as u32, gsi: 5, ..Default::default() })?;
        vm.set(nr::IOEVENTFD, &kvm_ioeventfd { addr: 0x1000, len: 4, fd: b.raw(), ..Default::default() })?;
        drop(vm);
        ensure!(kvm::event_write(a.raw(), 1), "the eventfd lives on");
    }
    Ok(())
}

fn passed(e: &Env) -> R {
    let g = e.guest(Chips::None, &[0xe6, 0x10, 0xf4])?;
    // The child keeps duplicates of everything for a while; the parent's own close must not disturb anyone.
    let pid = in_child(|| std::thread::sleep(Duration::from_millis(200)));
    g.vcpu.run_to(KVM_EXIT_IO)?;
    drop(g);
    let mut status = 0;
    // SAFETY: our own child.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    same!(status, 0, "child");
    Ok(())
}

fn load(e: &Env) -> R {
    // A running vCPU while another thread adds and deletes slots and vCPUs.
    let g = e.guest(Chips::Full, &[0xe6, 0x10, 0xeb, 0xfc])?;
    let extra = Map::anon(0x10000)?;
    let fd = &g.vcpu.fd;
    std::thread::scope(|s| {
        let runner = s.spawn(move || (0..3000).all(|_| fd.call(nr::RUN, 0) == Ok(0)));
        for i in 0..100u64 {
            kvm::set_slot(&g.vm, 1, 0, 0x20_0000, 0x10000, extra.addr())?;
            if i < 8 {
                drop(vcpu(&g.sys, &g.vm, 1 + i)?);
            }
            kvm::set_slot(&g.vm, 1, 0, 0, 0, 0)?;
        }
        ensure!(runner.join().unwrap_or(false), "a KVM_RUN failed");
        Ok(())
    })
}
