//! /dev/exitless, and its ioctls on a VM's descriptor: mechanisms listed, read and switched (`docs/control.md`). Stock KVM has none.

use crate::env::*;
use exitless_control_abi::*;
use exitless_runner::kvm::{self, Errno, Fd, nr};
use kvm_bindings::*;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, Ordering};

pub(crate) const TESTS: &[Test] = &[
    ("control/words", the_words),
    ("control/list", list),
    ("control/states", states),
    ("control/counters", counters),
    ("control/vcpus", vcpus),
    ("control/times", the_times),
    ("control/health", health_of),
    ("control/switch", switches),
    ("control/defaults", defaults),
    ("control/host_tsc", host_tsc),
    ("control/permissions", permissions),
    ("control/while_it_runs", while_it_runs),
    ("control/while_vms_end", while_vms_end),
    ("control/text", text),
];

const DEVICE: &str = "/dev/exitless";
const PARAMETER: &str = "/sys/module/exitless/parameters/mechanisms";

/// The device, for reading and writing.
fn device() -> Result<Fd, Stop> {
    if !exitless() {
        return skip("stock KVM has no /dev/exitless");
    }
    Ok(kvm::open(DEVICE)?)
}

fn words(fd: &Fd, kind: u32, number: u32) -> kvm::Result<(String, Words)> {
    let mut w = Words { kind, number, flags: 0, reserved: 0, name: [0; 32], text: [0; 208] };
    fd.with(EXITLESS_GET_WORDS, &mut w)?;
    let end = w.name.iter().position(|b| *b == 0).unwrap_or(32);
    Ok((String::from_utf8_lossy(&w.name[..end]).into_owned(), w))
}

/// The number of the mechanism of that name.
fn number(fd: &Fd, name: &str) -> Result<u32, Stop> {
    for n in 0.. {
        let Ok((found, _)) = words(fd, kind::MECHANISM, n) else { break };
        if found == name {
            return Ok(n);
        }
    }
    Err(Stop::Fail(format!("no mechanism {name}")))
}

fn bit(fd: &Fd, name: &str) -> Result<u64, Stop> {
    Ok(1 << number(fd, name)?)
}

fn count(fd: &Fd) -> usize {
    (0..).take_while(|n| words(fd, kind::MECHANISM, *n).is_ok()).count()
}

const NO_VM: VmRecord = VmRecord { id: 0, wanted: 0, pid: 0, uid: 0, vcpus: 0, reserved: 0 };

fn vms(fd: &Fd, from: u64, room: usize) -> kvm::Result<Vec<VmRecord>> {
    let mut records = vec![NO_VM; room];
    let record = size_of::<VmRecord>() as u32;
    let mut v = Vms { from, address: records.as_mut_ptr() as u64, record, count: room as u32 };
    fd.with(EXITLESS_LIST_VMS, &mut v)?;
    records.truncate(v.count as usize);
    Ok(records)
}

/// The VM that this process created last.
fn mine(fd: &Fd) -> Result<VmRecord, Stop> {
    let all = vms(fd, 0, 100)?;
    let pid = std::process::id() as i32;
    all.into_iter().rev().find(|vm| vm.pid == pid).ok_or(Stop::Fail("my VM is not listed".into()))
}

fn no_state() -> State {
    // Integers only.
    State { mechanism: 9999, reason: 0, flags: 0, active: 0, hits: 0, saved: 0, added: 0, fallbacks: [0; 16] }
}

fn get_states(fd: &Fd, vm: u64, vcpu: u32) -> kvm::Result<Vec<State>> {
    let mut records = vec![no_state(); 64];
    let record = size_of::<State>() as u32;
    let mut s = States { vm, address: records.as_mut_ptr() as u64, record, count: 64, vcpu, reserved: 0 };
    fd.with(EXITLESS_GET_STATES, &mut s)?;
    records.truncate(s.count as usize);
    Ok(records)
}

fn state_of(fd: &Fd, vm: u64, name: &str) -> Result<State, Stop> {
    Ok(get_states(fd, vm, ALL_VCPUS)?[number(fd, name)? as usize])
}

fn switch(fd: &Fd, vm: u64, on: u64, off: u64) -> kvm::Result<i32> {
    fd.set(EXITLESS_SWITCH, &Switch { vm, on, off, reserved: 0 })
}

fn the_words(e: &Env) -> R {
    let d = device()?;
    let (_sys, vm) = e.vm()?;
    for fd in [&d, &vm] {
        same!(fd.call(EXITLESS_GET_VERSION, 0)?, VERSION as i32, "version");
        errno!(fd.call(EXITLESS_GET_VERSION, 1), libc::EINVAL, "version with an argument");
        let names: Vec<_> = (0..).map_while(|n| words(fd, kind::MECHANISM, n).ok()).collect();
        ensure!(names.len() >= 18 && names.len() <= 64, "{} mechanisms", names.len());
        for (name, w) in &names {
            ensure!(!name.is_empty() && w.text[0] != 0 && w.text[207] == 0, "{name}: no words");
        }
        let port = words(fd, kind::MECHANISM, number(fd, "port_fastpath")?)?.1;
        same!(port.flags, about::DEFAULT, "port_fastpath");
        let posted = words(fd, kind::MECHANISM, number(fd, "posted_timer")?)?.1;
        same!(posted.flags, about::ROOT, "posted_timer");
        let boost = words(fd, kind::MECHANISM, number(fd, "boost")?)?.1;
        same!(boost.flags, about::DEFAULT | about::VM, "boost");
        same!(words(fd, kind::REASON, 0)?.1.text[..7], *b"active\0", "reason 0");
        same!(words(fd, kind::FALLBACK, 0)?.0, "form", "fallback 0");
        same!(words(fd, kind::COUNTER, 0)?.0, "exits", "counter 0");
        for kind in 0..kind::LATE + 2 {
            if kind != kind::EXIT {
                errno!(words(fd, kind, 64), libc::ENOENT, "number 64 of kind {kind}");
            }
            errno!(words(fd, kind, u32::MAX), libc::ENOENT, "the last number of kind {kind}");
        }
        // Another size, another ioctl: programs of another version's are told so.
        errno!(fd.with(EXITLESS_GET_WORDS + (8 << 16), &mut [0u8; 264]), libc::ENOTTY, "longer words");
        errno!(fd.with(EXITLESS_GET_STATES - (8 << 16), &mut [0u8; 64]), libc::ENOTTY, "shorter states");
        errno!(fd.call(EXITLESS_GET_WORDS, 8), libc::EFAULT, "words at 8");
    }
    errno!(d.call(nr::CREATE_VM, 0), libc::ENOTTY, "KVM_CREATE_VM there");
    errno!(vms(&vm, 0, 1), libc::ENOTTY, "a list on a VM's descriptor");
    Ok(())
}

fn list(e: &Env) -> R {
    let d = device()?;
    let g = e.idle(Chips::Full)?;
    let (_sys, second) = e.vm()?;
    let all = vms(&d, 0, 100)?;
    ensure!(all.is_sorted_by(|a, b| a.id < b.id), "in the order of their ids");
    let own: Vec<_> = all.iter().filter(|vm| vm.pid == std::process::id() as i32).collect();
    same!(own.len(), 2, "my VMs");
    same!((own[0].vcpus, own[1].vcpus), (1, 0), "their vCPUs");
    same!((own[0].uid, own[0].reserved), (0, 0), "root's");
    // In pieces.
    same!(vms(&d, own[0].id, 1)?, vec![*own[0]], "one from the first");
    same!(vms(&d, own[1].id, 100)?.first().copied(), Some(*own[1]), "from the second");
    same!(vms(&d, u64::MAX, 100)?, vec![], "from the end");
    same!(vms(&d, 0, 0)?, vec![], "no room");
    let mut bad = Vms { from: 0, address: 8, record: size_of::<VmRecord>() as u32, count: 1 };
    errno!(d.with(EXITLESS_LIST_VMS, &mut bad), libc::EFAULT, "records at 8");
    bad.record += 8;
    errno!(d.with(EXITLESS_LIST_VMS, &mut bad), libc::EINVAL, "another record");
    // The list keeps none alive.
    let gone = own[1].id;
    drop(second);
    ensure!(vms(&d, 0, 100)?.iter().all(|vm| vm.id != gone), "a VM that ended is listed");
    errno!(get_states(&d, gone, ALL_VCPUS), libc::ENOENT, "its states");
    drop(g);
    Ok(())
}

/// OUT 0x21, AL, to the 8259 in the kernel; OUT 0x10, AL, to user space; again.
const PORTS: [u8; 6] = [0xe6, 0x21, 0xe6, 0x10, 0xeb, 0xfa];

fn states(e: &Env) -> R {
    let d = device()?;
    let g = e.guest(Chips::Full, &PORTS)?;
    let id = mine(&d)?.id;
    const PENDING: u32 = 2;
    const NO_IRQCHIP: u32 = 4;
    let port = state_of(&d, id, "port_fastpath")?;
    same!((port.reason, port.flags, port.hits), (PENDING, state::WANTED, 0), "before it ran");
    for _ in 0..10 {
        g.vcpu.run_to(KVM_EXIT_IO)?;
    }
    let all = get_states(&d, id, ALL_VCPUS)?;
    same!(all.len(), count(&d), "states");
    ensure!(all.iter().enumerate().all(|(i, s)| s.mechanism == i as u32), "in the order of their numbers");
    same!(get_states(&g.vm, 0, ALL_VCPUS)?, all, "the same by the VM's descriptor");
    same!(get_states(&g.vm, id, 0)?, all, "the same of the one vCPU");
    let port = state_of(&d, id, "port_fastpath")?;
    same!((port.reason, port.flags, port.active), (0, state::WANTED | state::ACTIVE, 1), "then");
    ensure!(port.hits >= 9 && port.fallbacks.iter().sum::<u64>() >= 9, "counted: {port:?}");
    // Nobody's.
    errno!(get_states(&d, 0, ALL_VCPUS), libc::ENOENT, "VM 0");
    errno!(get_states(&d, u64::MAX, ALL_VCPUS), libc::ENOENT, "the last VM");
    errno!(get_states(&g.vm, id + 1, ALL_VCPUS), libc::ENOENT, "another's by a VM's descriptor");
    errno!(get_states(&d, id, 1), libc::ENOENT, "vCPU 1");
    let record = size_of::<State>() as u32;
    let mut s = States { vm: id, address: 8, record, count: 1, vcpu: 0, reserved: 0 };
    errno!(d.with(EXITLESS_GET_STATES, &mut s), libc::EFAULT, "records at 8");
    errno!(d.with(EXITLESS_GET_STATES, &mut States { reserved: 1, ..s }), libc::EINVAL, "reserved");
    errno!(d.with(EXITLESS_GET_STATES, &mut States { record: 8, ..s }), libc::EINVAL, "another record");
    let mut one = [no_state(); 2];
    s.address = one.as_mut_ptr() as u64;
    d.with(EXITLESS_GET_STATES, &mut s)?;
    same!((s.count, one[0].mechanism, one[1].mechanism), (1, 0, 9999), "room for one");
    // A reason, where there is no APIC in the kernel.
    let bare = e.guest(Chips::None, &PORTS)?;
    bare.vcpu.run_to(KVM_EXIT_IO)?;
    let timer = state_of(&bare.vm, 0, "timer_fastpath")?;
    same!((timer.reason, timer.flags), (NO_IRQCHIP, state::WANTED), "timer_fastpath");
    Ok(())
}

fn get_counters(fd: &Fd, vm: u64, vcpu: u32, what: u32, room: usize) -> kvm::Result<Vec<Counter>> {
    let mut records = vec![Counter { key: 0, count: 0 }; room];
    let record = size_of::<Counter>() as u32;
    let mut c = Counters { vm, address: records.as_mut_ptr() as u64, record, count: room as u32, vcpu, what };
    fd.with(EXITLESS_GET_COUNTERS, &mut c)?;
    records.truncate(c.count as usize);
    Ok(records)
}

/// What was counted, by exit, port, MSR and name; of one vCPU, and of all.
fn counters(e: &Env) -> R {
    let d = device()?;
    let g = e.guest(Chips::Full, &PORTS)?;
    let id = mine(&d)?.id;
    for _ in 0..10 {
        g.vcpu.run_to(KVM_EXIT_IO)?;
    }
    let sum = |of: &[Counter]| of.iter().map(|c| c.count).sum::<u64>();
    let ports = get_counters(&d, id, 0, kind::PORT, 100)?;
    same!(ports.iter().find(|c| c.key == 0x10).map(|c| c.count), Some(10), "port 10");
    same!(sum(&ports), 20, "ports");
    let exits = get_counters(&d, id, 0, kind::EXIT, 300)?;
    ensure!(exits.iter().all(|c| c.count != 0), "none that counts nothing");
    same!(get_counters(&g.vm, 0, ALL_VCPUS, kind::EXIT, 300)?, exits, "of all, by the VM's descriptor");
    let named = get_counters(&d, id, 0, kind::COUNTER, 100)?;
    same!(
        words(&d, kind::COUNTER, named.len() as u32).map(drop),
        Err(Errno(libc::ENOENT)),
        "as many as names"
    );
    same!(sum(&exits), named[0].count, "exits by reason and in sum");
    let io = exits
        .iter()
        .filter(|c| words(&d, kind::EXIT, c.key as u32).is_ok_and(|w| w.0.to_lowercase().contains("io")));
    ensure!(io.map(|c| c.count).sum::<u64>() >= 20, "exits for ports: {exits:?}");
    same!(get_counters(&d, id, 0, kind::MSR, 100)?, vec![], "no MSR was touched");
    same!(get_counters(&d, id, 0, kind::COUNTER, 3)?, named[..3].to_vec(), "room for three");
    same!(get_counters(&d, id, 0, kind::COUNTER, 0)?, vec![], "no room");
    errno!(get_counters(&d, id, 1, kind::PORT, 100), libc::ENOENT, "vCPU 1");
    let _second = vcpu(&g.sys, &g.vm, 7)?;
    same!(get_counters(&d, id, ALL_VCPUS, kind::PORT, 100)?, ports, "sums by port");
    same!(get_counters(&d, id, ALL_VCPUS, kind::MSR, 100)?, vec![], "sums by MSR");
    same!(get_counters(&d, id, 7, kind::PORT, 100)?, vec![], "of the second, which never ran");
    for what in [0, 2, kind::LATE + 1, u32::MAX] {
        errno!(get_counters(&d, id, ALL_VCPUS, what, 100), libc::EINVAL, "sums of kind {what}");
        errno!(get_counters(&d, id, 0, what, 100), libc::EINVAL, "kind {what}");
    }
    errno!(get_counters(&d, id + 1, 0, kind::EXIT, 100), libc::ENOENT, "another VM");
    errno!(get_counters(&g.vm, id + 1, 0, kind::EXIT, 100), libc::ENOENT, "another by a VM's descriptor");
    let mut bad = Counters { vm: id, address: 8, record: 16, count: 1, vcpu: 0, what: kind::EXIT };
    errno!(d.with(EXITLESS_GET_COUNTERS, &mut bad), libc::EFAULT, "records at 8");
    errno!(
        d.with(EXITLESS_GET_COUNTERS, &mut Counters { record: 24, ..bad }),
        libc::EINVAL,
        "another record"
    );
    Ok(())
}

fn measures(fd: &Fd, vm: u64, set: u32) -> kvm::Result<Measure> {
    let mut m = Measure { vm, set, on: 9, khz: 0, reserved: 0 };
    fd.with(EXITLESS_MEASURE, &mut m)?;
    Ok(m)
}

/// Time is measured from when it is asked for until it is not any more: what it was spent on, and each exit's.
fn the_times(e: &Env) -> R {
    let d = device()?;
    let g = e.guest(Chips::Full, &PORTS)?;
    let id = mine(&d)?.id;
    let get = |what| get_counters(&d, id, 0, what, 5000);
    g.vcpu.run_to(KVM_EXIT_IO)?;
    let m = measures(&d, id, measure::LOOK)?;
    ensure!(m.on == 0 && m.khz > 1000, "{m:?}");
    for what in [kind::SPENT, kind::TIME, kind::LATE] {
        same!(get(what)?, vec![], "kind {what} before");
    }
    same!(measures(&g.vm, 0, measure::ON)?.on, 1, "by the VM's descriptor");
    same!(measures(&d, id, measure::ON)?.on, 1, "once more");
    let second = vcpu(&g.sys, &g.vm, 7)?;
    for _ in 0..10 {
        g.vcpu.run_to(KVM_EXIT_IO)?;
    }
    same!(measures(&d, id, measure::OFF)?.on, 0, "over");
    let spent = get(kind::SPENT)?;
    let ticks = |name: &str| {
        let found = spent.iter().find(|c| {
            let (vcpu, n) = times::spent_parts(c.key);
            vcpu == 0 && words(&d, kind::SPENT, n).is_ok_and(|w| w.0 == name)
        });
        found.map_or(0, |c| c.count)
    };
    ensure!(ticks("guest") > 0 && ticks("user") > 0 && ticks("halted") == 0, "{spent:?}");
    let all = get_counters(&d, id, ALL_VCPUS, kind::SPENT, 100)?;
    same!(all.len(), 2 * spent.len(), "of both vCPUs");
    ensure!(all.iter().all(|c| times::spent_parts(c.key).0 == 0 || c.count == 0), "the second did not run");
    let exits = get(kind::TIME)?;
    let sum = |wanted: u32| -> u64 {
        exits.iter().filter(|c| times::parts(c.key).1 == wanted).map(|c| c.count).sum()
    };
    let buckets = exits.iter().filter(|c| times::parts(c.key).1 >= times::field::BUCKET);
    // The first run came in without an exit before it, and the last exit has no entry behind it.
    ensure!(sum(times::field::COUNT) >= 18, "{exits:?}");
    same!(buckets.map(|c| c.count).sum::<u64>(), sum(times::field::COUNT), "each is in a bucket");
    ensure!(sum(times::field::USER) > 0 && sum(times::field::USER) <= ticks("user"), "{exits:?}");
    let (least, most) = (sum(times::field::MIN), sum(times::field::MAX));
    ensure!(0 < least && least <= most && most <= sum(times::field::TICKS), "{least} to {most}");
    let mut sums = get_counters(&d, id, ALL_VCPUS, kind::TIME, 5000)?;
    let mut alone = exits.clone();
    sums.sort_by_key(|c| c.key);
    alone.sort_by_key(|c| c.key);
    same!(sums, alone, "sums");
    // Nobody measures any more.
    for _ in 0..3 {
        g.vcpu.run_to(KVM_EXIT_IO)?;
    }
    same!((get(kind::TIME)?, get(kind::SPENT)?), (exits, spent), "afterwards");
    same!(measures(&d, id, measure::ON)?.on, 1, "again");
    drop(second);
    // Who may not.
    let reader = kvm::open_read(DEVICE)?;
    errno!(measures(&reader, id, measure::OFF), libc::EBADF, "by who may read");
    same!(measures(&reader, id, measure::LOOK)?.on, 1, "who may look");
    errno!(measures(&d, id, 3), libc::EINVAL, "set 3");
    errno!(measures(&d, id + 1, measure::ON), libc::ENOENT, "another VM");
    errno!(measures(&g.vm, id + 1, measure::ON), libc::ENOENT, "another by a VM's descriptor");
    let mut bad = Measure { vm: id, set: 0, on: 0, khz: 0, reserved: 1 };
    errno!(d.with(EXITLESS_MEASURE, &mut bad), libc::EINVAL, "reserved");
    Ok(())
}

/// What tells whether all is well: of one vCPU that never ran, and of one that halted with interrupts masked.
fn health_of(e: &Env) -> R {
    let d = device()?;
    // HLT, with IF clear.
    let g = e.guest(Chips::Full, &[0xf4])?;
    let _second = vcpu(&g.sys, &g.vm, 7)?;
    let id = mine(&d)?.id;
    let get = |fd: &Fd, vm, size: u32| -> kvm::Result<Vec<HealthRecord>> {
        let mut records = vec![HealthRecord { id: 99, ..HealthRecord::default() }; 4];
        let mut v =
            Vcpus { vm, address: records.as_mut_ptr() as u64, record: size, count: 4, from: 0, reserved: 0 };
        fd.with(EXITLESS_LIST_HEALTH, &mut v)?;
        records.truncate(v.count as usize);
        Ok(records)
    };
    let fresh = get(&g.vm, 0, 64)?;
    same!((fresh.len(), fresh[0].id, fresh[1].id), (2, 0, 7), "both");
    same!((fresh[0].flags, fresh[0].asleep, fresh[0].exits), (0, 0, 0), "before it ran");
    same!(fresh[0].tsc_ratio, fresh[1].tsc_ratio, "the TSCs' rate");
    crate::run::catch_signals();
    let runner = std::sync::atomic::AtomicI32::new(0);
    let (asleep, flushed) = std::thread::scope(|s| {
        let runs = s.spawn(|| {
            // SAFETY: asks for a number.
            runner.store(unsafe { libc::gettid() }, Ordering::Release);
            g.vcpu.run()
        });
        let mut found = None;
        for _ in 0..10_000 {
            let now = get(&d, id, 64)?[0];
            if now.flags & health::HALTED != 0 && now.asleep != 0 {
                found = Some(now);
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        // Its translations are to be flushed, for which nobody wakes it.
        // SAFETY: memory of the guest's, mapped by `g`, which goes on to live.
        unsafe { libc::madvise(g.mem.addr() as *mut libc::c_void, MEM, libc::MADV_DONTNEED) };
        let flushed = get(&d, id, 64)?[0];
        while !runs.is_finished() {
            // SAFETY: a signal with a handler.
            unsafe {
                libc::syscall(libc::SYS_tgkill, libc::getpid(), runner.load(Ordering::Acquire), libc::SIGUSR1)
            };
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = runs.join();
        Ok::<_, Stop>((found.ok_or(Stop::Fail("it never slept".into()))?, flushed))
    })?;
    same!((flushed.asleep, flushed.requests), (asleep.asleep, 0), "its memory dropped");
    same!((asleep.flags, asleep.halts, asleep.wakes_at), (health::HALTED, 1, 0), "asleep");
    ensure!(asleep.exits >= 1, "{asleep:?}");
    let after = get(&d, id, 64)?[0];
    same!((after.asleep, after.flags), (0, health::HALTED), "behind KVM_RUN");
    errno!(get(&d, id, 40), libc::EINVAL, "another record");
    errno!(get(&d, id + 1, 64), libc::ENOENT, "another VM");
    Ok(())
}

fn vcpus(e: &Env) -> R {
    let d = device()?;
    let g = e.guest(Chips::Full, &PORTS)?;
    let _second = vcpu(&g.sys, &g.vm, 7)?;
    let id = mine(&d)?.id;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    let none = VcpuRecord { id: 99, cpu: 0, mp_state: 0, in_guest: 0, exits: 0, fast: 0, user: 0 };
    let get = |fd: &Fd, vm, from, room: usize| -> kvm::Result<Vec<VcpuRecord>> {
        let mut records = vec![none; room];
        let record = size_of::<VcpuRecord>() as u32;
        let address = records.as_mut_ptr() as u64;
        let mut v = Vcpus { vm, address, record, count: room as u32, from, reserved: 0 };
        fd.with(EXITLESS_LIST_VCPUS, &mut v)?;
        records.truncate(v.count as usize);
        Ok(records)
    };
    let all = get(&d, id, 0, 10)?;
    same!(all.iter().map(|v| v.id).collect::<Vec<_>>(), vec![0, 7], "ids");
    ensure!(all[0].exits >= 2 && all[0].user >= 1 && all[0].in_guest == 0, "the first: {:?}", all[0]);
    same!((all[1].exits, all[1].cpu, all[1].mp_state), (0, -1, KVM_MP_STATE_UNINITIALIZED), "the second");
    same!(get(&g.vm, 0, 0, 1)?, all[..1].to_vec(), "room for one");
    same!(get(&g.vm, id, 1, 10)?, all[1..].to_vec(), "behind the first");
    same!(get(&d, id, 2, 10)?, vec![], "behind the last");
    errno!(get(&d, id + 1, 0, 1), libc::ENOENT, "another VM");
    let mut bad = Vcpus { vm: id, address: 8, record: 40, count: 1, from: 0, reserved: 0 };
    errno!(d.with(EXITLESS_LIST_VCPUS, &mut bad), libc::EFAULT, "records at 8");
    errno!(d.with(EXITLESS_LIST_VCPUS, &mut Vcpus { reserved: 1, ..bad }), libc::EINVAL, "reserved");
    errno!(d.with(EXITLESS_LIST_VCPUS, &mut Vcpus { record: 8, ..bad }), libc::EINVAL, "another record");
    Ok(())
}

fn switches(e: &Env) -> R {
    const OFF: u32 = 1;
    let d = device()?;
    let g = e.guest(Chips::Full, &PORTS)?;
    let id = mine(&d)?.id;
    let port = bit(&d, "port_fastpath")?;
    let run = |n| (0..n).try_for_each(|_| g.vcpu.run_to(KVM_EXIT_IO));
    run(2)?;
    for (fd, vm) in [(&d, id), (&g.vm, 0), (&g.vm, id)] {
        switch(fd, vm, 0, port)?;
        run(1)?;
        let off = state_of(&d, id, "port_fastpath")?;
        same!((off.reason, off.flags, off.active), (OFF, 0, 0), "off");
        run(5)?;
        same!(state_of(&d, id, "port_fastpath")?, off, "off it counts nothing");
        switch(fd, vm, port, 0)?;
        run(5)?;
        let on = state_of(&d, id, "port_fastpath")?;
        ensure!(on.reason == 0 && on.hits >= off.hits + 4, "on again: {on:?}, before {off:?}");
    }
    let before = get_states(&d, id, ALL_VCPUS)?;
    for fd in [&d, &g.vm] {
        errno!(switch(fd, id, port, port), libc::EINVAL, "on and off");
        errno!(switch(fd, id, 1 << 63, 0), libc::EINVAL, "what does not exist on");
        errno!(switch(fd, id, 0, 1 << 63), libc::EINVAL, "what does not exist off");
        errno!(switch(fd, id + 1, 0, port), libc::ENOENT, "another VM");
        let reserved = Switch { vm: id, on: 0, off: port, reserved: 1 };
        errno!(fd.set(EXITLESS_SWITCH, &reserved), libc::EINVAL, "reserved");
    }
    let reader = kvm::open_read(DEVICE)?;
    errno!(switch(&reader, id, 0, port), libc::EBADF, "opened for reading");
    same!(get_states(&reader, id, ALL_VCPUS)?, before, "nothing moved");
    Ok(())
}

fn defaults(e: &Env) -> R {
    let d = device()?;
    let fresh = || -> Result<u64, Stop> {
        let (_sys, vm) = e.vm()?;
        let wanted = mine(&d)?.wanted;
        drop(vm);
        Ok(wanted)
    };
    let (_sys, before) = e.vm()?;
    let start = mine(&d)?;
    let (port, boost) = (bit(&d, "port_fastpath")?, bit(&d, "boost")?);
    ensure!(start.wanted & (port | boost) == port | boost, "defaults {:#x}", start.wanted);
    let told = |name| -> Result<u32, Stop> { Ok(words(&d, kind::MECHANISM, number(&d, name)?)?.1.flags) };
    switch(&d, 0, 0, port)?;
    let moved = fresh()?;
    same!(told("port_fastpath")? & about::DEFAULT, 0, "told");
    switch(&d, 0, port, 0)?;
    same!(moved, start.wanted & !port, "a VM created meanwhile");
    same!(fresh()?, start.wanted, "one created afterwards");
    // By the module's parameter, as read and as written.
    let shown = std::fs::read_to_string(PARAMETER)?;
    ensure!(shown.contains("+port_fastpath,") && shown.contains(",-posted_timer,"), "{shown}");
    std::fs::write(PARAMETER, "-all,+boost\n")?;
    let only = fresh()?;
    let bad = std::fs::write(PARAMETER, "+all,-bost").map_err(|e| Errno(e.raw_os_error().unwrap_or(0)));
    let still = fresh()?;
    std::fs::write(PARAMETER, &shown)?;
    same!((only, still), (boost, boost), "by the parameter");
    errno!(bad, libc::EINVAL, "a word that is no mechanism");
    same!(fresh()?, start.wanted, "as it was");
    same!(vms(&d, start.id, 1)?, vec![start], "the VM that was there before");
    drop(before);
    Ok(())
}

/// With `host_tsc` a new vCPU's TSC is the host's, and so it is when the VMM sets it to 0; another value is what it is. Without, it begins.
fn host_tsc(e: &Env) -> R {
    const TSC: u32 = 0x10;
    let d = device()?;
    let host = bit(&d, "host_tsc")?;
    let source = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    if source.trim() != "tsc" {
        return skip("the host's clock source is not the TSC");
    }
    let read = |vcpu: &Fd| -> Result<(u64, u64, u64), Stop> {
        // SAFETY: user space may read it, or the host would have no TSC as its clock source.
        let now = || unsafe { core::arch::x86_64::_rdtsc() };
        let before = now();
        let guests = kvm::get_msr(vcpu, TSC)?.ok_or(Stop::Fail("no TSC".into()))?;
        Ok((before, guests, now()))
    };
    let one = |on: bool| -> R {
        let g = e.guest(Chips::Full, &[0xf4])?;
        let vcpu = &g.vcpu.fd;
        for set in [false, true] {
            if set {
                ensure!(kvm::set_msr(vcpu, TSC, 0)?, "TSC not written");
            }
            let (before, guests, after) = read(vcpu)?;
            ensure!((before..=after).contains(&guests) == on, "{before} {guests} {after}, set: {set}, {on}");
        }
        let far = 1 << 50;
        ensure!(kvm::set_msr(vcpu, TSC, far)?, "TSC not written");
        let (before, guests, after) = read(vcpu)?;
        ensure!(guests >= far && guests - far < 1 << 40, "{before} {guests} {after} where {far} was set");
        Ok(())
    };
    one(false)?;
    switch(&d, 0, host, 0)?;
    let with = one(true);
    switch(&d, 0, 0, host)?;
    with
}

/// Another user: reads by a descriptor that it was given, switches what is its own, and nothing that others pay for.
fn permissions(e: &Env) -> R {
    let d = device()?;
    let sys = e.sys()?;
    let (_sys, roots) = e.vm()?;
    let id = mine(&d)?.id;
    let (port, posted) = (bit(&d, "port_fastpath")?, bit(&d, "posted_timer")?);
    let mut words =
        std::fs::OpenOptions::new().write(true).open(DEVICE).map_err(|e| Stop::Fail(e.to_string()))?;
    // SAFETY: this process is the test's own, and ends with it.
    same!(unsafe { libc::seteuid(1000) }, 0, "seteuid");
    let own = kvm::create_vm(&sys)?;
    let record = vms(&d, id + 1, 100)?.into_iter().find(|vm| vm.uid == 1000);
    let Some(record) = record else { return Err(Stop::Fail("the user's VM is not listed".into())) };
    let written = words.write(format!("{} -port_fastpath", record.id).as_bytes());
    same!(written.map_err(|e| e.raw_os_error()), Err(Some(libc::EPERM)), "words by another than who opened");
    errno!(kvm::open(DEVICE).map(drop), libc::EACCES, "opened by another user");
    errno!(kvm::open_read(DEVICE).map(drop), libc::EACCES, "opened by another user for reading");
    same!(get_states(&d, id, ALL_VCPUS)?.len(), count(&d), "read by a descriptor that was given");
    errno!(switch(&d, id, 0, port), libc::EPERM, "another user's VM");
    errno!(switch(&d, 0, 0, port), libc::EPERM, "the defaults");
    for (fd, vm) in [(&d, record.id), (&own, 0)] {
        switch(fd, vm, 0, port)?;
        switch(fd, vm, port, 0)?;
        errno!(switch(fd, vm, posted, 0), libc::EPERM, "what others pay for");
        errno!(switch(fd, vm, 0, posted | port), libc::EPERM, "off, with one that is its own");
    }
    same!(vms(&d, record.id, 1)?, vec![record], "nothing moved");
    // The VM's own process, and nobody but root for that row.
    switch(&roots, 0, 0, port)?;
    errno!(switch(&roots, 0, posted, 0), libc::EPERM, "a VM's process that is not root's any more");
    // SAFETY: as above.
    same!(unsafe { libc::seteuid(0) }, 0, "seteuid");
    switch(&d, record.id, posted, port)?;
    same!(vms(&d, record.id, 1)?[0].wanted, (record.wanted | posted) & !port, "root moves all of them");
    Ok(())
}

/// Counters are read and switches moved while the guest runs: it goes on, and each switch takes effect without its help.
fn while_it_runs(e: &Env) -> R {
    let d = device()?;
    // Ports of the 8259 in the kernel, for ever: no exit that user space would see.
    let g = e.guest(Chips::Full, &[0xe6, 0x21, 0xeb, 0xfc])?;
    let id = mine(&d)?.id;
    let port = bit(&d, "port_fastpath")?;
    std::thread::scope(|s| {
        let runs = s.spawn(|| g.vcpu.run());
        let until = |what: &str, holds: &dyn Fn(State) -> bool| -> R {
            for _ in 0..10_000 {
                if holds(state_of(&d, id, "port_fastpath")?) {
                    return Ok(());
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            Err(Stop::Fail(format!("{what}: {:?}", state_of(&d, id, "port_fastpath")?)))
        };
        let done = (|| -> R {
            for _ in 0..20 {
                let hits = state_of(&d, id, "port_fastpath")?.hits;
                until("hits", &|s| s.hits > hits)?;
                switch(&d, id, 0, port)?;
                until("off", &|s| s.active == 0)?;
                let hits = state_of(&d, id, "port_fastpath")?.hits;
                same!(state_of(&d, id, "port_fastpath")?.hits, hits, "hits while off");
                switch(&g.vm, 0, port, 0)?;
                until("on", &|s| s.active == 1)?;
            }
            Ok(())
        })();
        // The loop's end: a port of user space.
        g.mem.write(ENTRY + 1, &[0x10]);
        let ended = runs.join().map_err(|_| Stop::Fail("the vCPU's thread panicked".into()))?;
        done?;
        ended?;
        same!(g.vcpu.page().exit_reason, KVM_EXIT_IO, "exit reason");
        Ok(())
    })
}

/// VMs come and go while others list, read and switch them: whoever is late finds nothing.
fn while_vms_end(e: &Env) -> R {
    let d = device()?;
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        let reader = || -> R {
            let mut seen = 0u64;
            while !over.load(Ordering::Relaxed) || seen == 0 {
                for vm in vms(&d, 0, 8)? {
                    let late = |r: kvm::Result<i32>| if r == Err(Errno(libc::ENOENT)) { Ok(0) } else { r };
                    late(get_states(&d, vm.id, ALL_VCPUS).map(|_| 0))?;
                    late(switch(&d, vm.id, vm.wanted & 0xff, 0))?;
                    seen += 1;
                }
            }
            Ok(())
        };
        let readers = [s.spawn(reader), s.spawn(reader)];
        let made = (0..60).try_for_each(|i| -> R {
            let g = e.guest(Chips::Full, &PORTS)?;
            if i % 2 == 0 {
                g.vcpu.run_to(KVM_EXIT_IO)?;
            }
            Ok(())
        });
        over.store(true, Ordering::Relaxed);
        let _last = e.guest(Chips::Full, &PORTS)?;
        for r in readers {
            r.join().map_err(|_| Stop::Fail("a reader panicked".into()))??;
        }
        made
    })
}

fn text(e: &Env) -> R {
    let d = device()?;
    let g = e.guest(Chips::Full, &PORTS)?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    let id = mine(&d)?.id;
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let read = |file: &mut std::fs::File| -> Result<String, Stop> {
        let mut text = String::new();
        file.seek(SeekFrom::Start(0))?;
        file.read_to_string(&mut text)?;
        Ok(text)
    };
    let first = read(&mut file)?;
    ensure!(first.starts_with("exitless 1\ndefaults "), "{first}");
    let pid = std::process::id();
    let line = format!("\nvm {id} pid {pid} uid 0 vcpus 1\n");
    let Some((_, own)) = first.split_once(&line) else {
        return Err(Stop::Fail(format!("no line {line:?} in {first}")));
    };
    ensure!(own.lines().take_while(|l| l.starts_with("  ")).count() == count(&d), "{own}");
    ensure!(
        own.contains("\n  port_fastpath on active 1/1 hits 1 saved 0 added 0 nobody 1: active\n"),
        "{own}"
    );
    // More VMs than fit at first.
    let many: Vec<_> = (0..20).map(|_| e.vm()).collect::<Result<_, _>>()?;
    let long = read(&mut file)?;
    same!(long.matches("\nvm ").count(), vms(&d, 0, 100)?.len(), "VMs in the text");
    drop(many);
    file.write_all(format!("{id} -port_fastpath,-boost").as_bytes())?;
    g.vcpu.run_to(KVM_EXIT_IO)?;
    let own = read(&mut file)?;
    ensure!(own.contains("\n  port_fastpath off active 0/1 hits 1 "), "{own}");
    let mut refused = |words: &str, want: i32| -> R {
        let r = file.write(words.as_bytes()).map_err(|e| Errno(e.raw_os_error().unwrap_or(0)));
        errno!(r, want, "{words:?} written");
        Ok(())
    };
    refused(&format!("{id} -port"), libc::EINVAL)?;
    refused(&format!("{id}"), libc::EINVAL)?;
    refused("x -all", libc::EINVAL)?;
    refused("\u{fffd} -all", libc::EINVAL)?;
    refused(&format!("{} -all", u64::MAX), libc::ENOENT)?;
    refused(&format!("0 {}", "-all,".repeat(1000)), libc::E2BIG)?;
    Ok(())
}
