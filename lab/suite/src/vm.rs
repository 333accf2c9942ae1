//! The VM descriptor: chips, clock, addresses, vCPU creation and capabilities to enable.

use crate::env::*;
use exitless_runner::kvm::{Errno, Fd, nr};
use kvm_bindings::*;
use libc::{EBUSY, EEXIST, EFAULT, EINVAL, ENXIO};

pub(crate) const TESTS: &[Test] = &[
    ("vm/irqchip_twice", irqchip_twice),
    ("vm/irqchip_after_vcpu", irqchip_after_vcpu),
    ("vm/irqchip_ignores_its_argument", irqchip_argument),
    ("vm/irqchip_absent", irqchip_absent),
    ("vm/irqchip_round_trip", irqchip_round_trip),
    ("vm/irqchip_any_state", irqchip_any_state),
    ("vm/irqchip_bad_id", irqchip_bad_id),
    ("vm/pit_twice", pit_twice),
    ("vm/pit_absent", pit_absent),
    ("vm/pit_round_trip", pit_round_trip),
    ("vm/pit_flags", pit_flags),
    ("vm/pit_reinject", pit_reinject),
    ("vm/clock_runs", clock_runs),
    ("vm/clock_set", clock_set),
    ("vm/clock_flags", clock_flags),
    ("vm/tss_address", tss_address),
    ("vm/identity_map_address", identity_map),
    ("vm/boot_cpu_id", boot_cpu_id),
    ("vm/vcpu_twice", vcpu_twice),
    ("vm/vcpu_id_limit", vcpu_id_limit),
    ("vm/vcpu_sparse_ids", vcpu_sparse),
    ("vm/vcpu_many", vcpu_many),
    ("vm/enable_unknown_capability", enable_unknown),
    ("vm/enable_capability_flags", enable_flags),
    ("vm/split_irqchip", split),
    ("vm/split_irqchip_limits", split_limits),
    ("vm/disable_exits", disable_exits),
    ("vm/mmu_pages", mmu_pages),
    ("vm/bad_pointers", bad_pointers),
    ("vm/two_vms", two_vms),
];

fn irqchip_twice(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    errno!(vm.call(nr::CREATE_IRQCHIP, 0), EEXIST, "second CREATE_IRQCHIP");
    Ok(())
}

fn irqchip_after_vcpu(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let fd = vm.call(nr::CREATE_VCPU, 0)?;
    errno!(vm.call(nr::CREATE_IRQCHIP, 0), EINVAL, "CREATE_IRQCHIP after a vCPU");
    // SAFETY: ours.
    drop(unsafe { Fd::from_raw(fd) });
    Ok(())
}

fn irqchip_argument(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    vm.call(nr::CREATE_IRQCHIP, 0x1234_5678)?;
    Ok(())
}

fn irqchip_absent(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    errno!(vm.get::<kvm_irqchip>(nr::GET_IRQCHIP), ENXIO, "GET_IRQCHIP");
    errno!(vm.set(nr::SET_IRQCHIP, &kvm_irqchip::default()), ENXIO, "SET_IRQCHIP");
    errno!(vm.set(nr::IRQ_LINE, &kvm_irq_level::default()), ENXIO, "IRQ_LINE");
    Ok(())
}

fn irqchip_round_trip(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    for id in 0..3 {
        let mut a = kvm_irqchip { chip_id: id, ..Default::default() };
        vm.with(nr::GET_IRQCHIP, &mut a)?;
        if id == 2 {
            // SAFETY: chip 2 is the I/O APIC.
            let r = unsafe { &mut a.chip.ioapic };
            same!(r.base_address, 0xfec0_0000, "address of the I/O APIC");
            // SAFETY: an entry is a union of integers.
            ensure!(r.redirtbl.iter().all(|e| unsafe { e.bits } & 0x1_0000 != 0), "pins start masked");
            r.redirtbl[7].bits = 0x0100_0000_0001_8035;
            r.ioregsel = 0x10;
        } else {
            (a.chip.pic.imr, a.chip.pic.irq_base) = (0xa5, 0x30 + 8 * id as u8);
        }
        vm.set(nr::SET_IRQCHIP, &a)?;
        let mut b = kvm_irqchip { chip_id: id, ..Default::default() };
        vm.with(nr::GET_IRQCHIP, &mut b)?;
        ensure!(bytes(&a) == bytes(&b), "chip {id} differs after SET and GET");
    }
    Ok(())
}

/// States that no chip has come back as they were, as from stock KVM: a unit test of the kvm-ioctls crate sets one.
fn irqchip_any_state(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    for id in 0..2 {
        let mut a = kvm_irqchip { chip_id: id, ..Default::default() };
        a.chip.pic.irq_base = 10;
        vm.set(nr::SET_IRQCHIP, &a)?;
        let mut b = kvm_irqchip { chip_id: id, ..Default::default() };
        vm.with(nr::GET_IRQCHIP, &mut b)?;
        ensure!(bytes(&a) == bytes(&b), "chip {id} differs after SET and GET");
    }
    Ok(())
}

fn irqchip_bad_id(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    let mut c = kvm_irqchip { chip_id: 3, ..Default::default() };
    errno!(vm.with(nr::GET_IRQCHIP, &mut c), EINVAL, "GET of chip 3");
    errno!(vm.with(nr::SET_IRQCHIP, &mut c), EINVAL, "SET of chip 3");
    Ok(())
}

fn pit_twice(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    let c = kvm_pit_config::default();
    vm.set(nr::CREATE_PIT2, &c)?;
    errno!(vm.set(nr::CREATE_PIT2, &c), EEXIST, "second CREATE_PIT2");
    Ok(())
}

fn pit_absent(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    errno!(vm.get::<kvm_pit_state2>(nr::GET_PIT2), ENXIO, "GET_PIT2");
    errno!(vm.set(nr::SET_PIT2, &kvm_pit_state2::default()), ENXIO, "SET_PIT2");
    errno!(vm.set(nr::REINJECT_CONTROL, &[0u32; 8]), ENXIO, "REINJECT_CONTROL");
    Ok(())
}

fn pit_round_trip(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    vm.set(nr::CREATE_PIT2, &kvm_pit_config { flags: 1, ..Default::default() })?;
    let mut a: kvm_pit_state2 = vm.get(nr::GET_PIT2)?;
    a.channels[1].count = 0x1234;
    a.channels[1].mode = 2;
    a.channels[2].gate = 1;
    vm.set(nr::SET_PIT2, &a)?;
    let b: kvm_pit_state2 = vm.get(nr::GET_PIT2)?;
    same!(b.channels[1].count, 0x1234, "count");
    same!(b.channels[1].mode, 2, "mode");
    same!(b.channels[2].gate, 1, "gate");
    Ok(())
}

fn pit_flags(e: &Env) -> R {
    for flags in [0, 1] {
        let (_s, vm) = e.vm_with_chips()?;
        vm.set(nr::CREATE_PIT2, &kvm_pit_config { flags, ..Default::default() })?;
        // After vCPUs, as QEMU does it.
        let (_s, vm) = e.vm_with_chips()?;
        let fd = vm.call(nr::CREATE_VCPU, 0)?;
        // SAFETY: ours.
        let _fd = unsafe { Fd::from_raw(fd) };
        vm.set(nr::CREATE_PIT2, &kvm_pit_config { flags, ..Default::default() })?;
    }
    Ok(())
}

fn pit_reinject(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    vm.set(nr::CREATE_PIT2, &kvm_pit_config::default())?;
    for v in [0u8, 1, 0] {
        vm.set(nr::REINJECT_CONTROL, &kvm_reinject_control { pit_reinject: v, ..Default::default() })?;
    }
    Ok(())
}

fn clock_runs(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let a: kvm_clock_data = vm.get(nr::GET_CLOCK)?;
    std::thread::sleep(std::time::Duration::from_millis(20));
    let b: kvm_clock_data = vm.get(nr::GET_CLOCK)?;
    let d = b.clock.wrapping_sub(a.clock);
    ensure!((20_000_000..10_000_000_000).contains(&d), "20 ms became {d} ns");
    Ok(())
}

fn clock_set(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    vm.set(nr::SET_CLOCK, &kvm_clock_data { clock: 5_000_000_000_000, ..Default::default() })?;
    let a: kvm_clock_data = vm.get(nr::GET_CLOCK)?;
    ensure!((5_000_000_000_000..5_100_000_000_000).contains(&a.clock), "clock {}", a.clock);
    Ok(())
}

fn clock_flags(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    errno!(vm.set(nr::SET_CLOCK, &kvm_clock_data { flags: 0x80, ..Default::default() }), EINVAL, "flag 80");
    Ok(())
}

fn tss_address(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    vm.call(nr::SET_TSS_ADDR, 0xfffb_d000)?;
    vm.call(nr::SET_TSS_ADDR, 0xfeff_d000)?;
    errno!(vm.call(nr::SET_TSS_ADDR, 0xffff_f000), EINVAL, "too close to 4 GiB");
    Ok(())
}

fn identity_map(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    vm.set(nr::SET_IDENTITY_MAP_ADDR, &0xfeff_c000u64)?;
    let fd = vm.call(nr::CREATE_VCPU, 0)?;
    errno!(vm.set(nr::SET_IDENTITY_MAP_ADDR, &0xfeff_c000u64), EINVAL, "after a vCPU");
    // SAFETY: ours.
    drop(unsafe { Fd::from_raw(fd) });
    Ok(())
}

fn boot_cpu_id(e: &Env) -> R {
    let (s, vm) = e.vm_with_chips()?;
    if vm.cap(KVM_CAP_SET_BOOT_CPU_ID) <= 0 {
        return skip("no KVM_CAP_SET_BOOT_CPU_ID");
    }
    vm.call(nr::SET_BOOT_CPU_ID, 1)?;
    let (a, b) = (vcpu(&s, &vm, 0)?, vcpu(&s, &vm, 1)?);
    errno!(vm.call(nr::SET_BOOT_CPU_ID, 0), EBUSY, "after a vCPU");
    let (x, y): (kvm_sregs, kvm_sregs) = (a.fd.get(nr::GET_SREGS)?, b.fd.get(nr::GET_SREGS)?);
    same!(x.apic_base, 0xfee0_0800, "vCPU 0 is no BSP");
    same!(y.apic_base, 0xfee0_0900, "vCPU 1 is");
    Ok(())
}

fn vcpu_twice(e: &Env) -> R {
    let (s, vm) = e.vm()?;
    let _v = vcpu(&s, &vm, 0)?;
    errno!(vm.call(nr::CREATE_VCPU, 0), EEXIST, "vCPU 0 again");
    Ok(())
}

fn vcpu_id_limit(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    let max = vm.cap(KVM_CAP_MAX_VCPU_ID) as u64;
    errno!(vm.call(nr::CREATE_VCPU, max), EINVAL, "id {max}");
    errno!(vm.call(nr::CREATE_VCPU, u64::from(u32::MAX)), EINVAL, "id ffffffff");
    Ok(())
}

fn vcpu_sparse(e: &Env) -> R {
    let (s, vm) = e.vm_with_chips()?;
    let a = [3u64, 0, 17, 200].map(|id| vcpu(&s, &vm, id));
    for v in a {
        let v = v?;
        let _: kvm_regs = v.fd.get(nr::GET_REGS)?;
    }
    Ok(())
}

fn vcpu_many(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    let max = vm.cap(KVM_CAP_MAX_VCPUS) as u64;
    let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
    // SAFETY: our own structure; failure only means the old limit.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    let mut fds = Vec::new();
    for id in 0..max {
        match vm.call(nr::CREATE_VCPU, id) {
            // SAFETY: new.
            Ok(fd) => fds.push(unsafe { Fd::from_raw(fd) }),
            Err(Errno(libc::ENOMEM)) if id > 100 => return skip("not enough memory for all"),
            Err(x) => return Err(Stop::Fail(format!("vCPU {id} of {max}: {x}"))),
        }
    }
    if vm.cap(KVM_CAP_MAX_VCPU_ID) as u64 > max {
        errno!(vm.call(nr::CREATE_VCPU, max), EINVAL, "one more than KVM_CAP_MAX_VCPUS");
    }
    Ok(())
}

fn enable_unknown(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    errno!(g.vm.enable_cap(99_999, 0, [0; 4]), EINVAL, "unknown capability on the VM");
    errno!(g.vcpu.fd.enable_cap(99_999, 0, [0; 4]), EINVAL, "unknown capability on the vCPU");
    Ok(())
}

fn enable_flags(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    errno!(vm.enable_cap(KVM_CAP_SPLIT_IRQCHIP, 1, [24, 0, 0, 0]), EINVAL, "flags");
    Ok(())
}

fn split(e: &Env) -> R {
    let (s, vm) = e.vm()?;
    vm.enable_cap(KVM_CAP_SPLIT_IRQCHIP, 0, [24, 0, 0, 0])?;
    errno!(vm.enable_cap(KVM_CAP_SPLIT_IRQCHIP, 0, [24, 0, 0, 0]), EEXIST, "twice");
    errno!(vm.call(nr::CREATE_IRQCHIP, 0), EEXIST, "CREATE_IRQCHIP after it");
    let v = vcpu(&s, &vm, 0)?;
    let _: kvm_lapic_state = v.fd.get(nr::GET_LAPIC)?;
    errno!(vm.get::<kvm_irqchip>(nr::GET_IRQCHIP), ENXIO, "GET_IRQCHIP");
    Ok(())
}

fn split_limits(e: &Env) -> R {
    let (s, vm) = e.vm()?;
    errno!(vm.enable_cap(KVM_CAP_SPLIT_IRQCHIP, 0, [100_000, 0, 0, 0]), EINVAL, "too many pins");
    let _v = vcpu(&s, &vm, 0)?;
    errno!(vm.enable_cap(KVM_CAP_SPLIT_IRQCHIP, 0, [24, 0, 0, 0]), EEXIST, "after a vCPU");
    Ok(())
}

/// Before vCPUs alone; unknown bits are refused, and what the host cannot let guests do is offered to nobody.
fn disable_exits(e: &Env) -> R {
    let (s, vm) = e.vm()?;
    let offered = u64::from(vm.cap(KVM_CAP_X86_DISABLE_EXITS) as u32);
    let always =
        u64::from(KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE | KVM_X86_DISABLE_EXITS_CSTATE);
    let all = always | u64::from(KVM_X86_DISABLE_EXITS_MWAIT);
    ensure!(offered & always == always && offered & !all == 0, "offers {offered:#x}");
    errno!(vm.enable_cap(KVM_CAP_X86_DISABLE_EXITS, 0, [1 << 4, 0, 0, 0]), EINVAL, "an unknown bit");
    errno!(vm.enable_cap(KVM_CAP_X86_DISABLE_EXITS, 1, [0; 4]), EINVAL, "flags");
    for exits in [0, always, all] {
        vm.enable_cap(KVM_CAP_X86_DISABLE_EXITS, 0, [exits, 0, 0, 0])?;
    }
    let _v = vcpu(&s, &vm, 0)?;
    // Stock KVM takes it without an effect on this vCPU; its later versions refuse.
    match vm.enable_cap(KVM_CAP_X86_DISABLE_EXITS, 0, [all, 0, 0, 0]) {
        Ok(_) | Err(Errno(EINVAL)) => {}
        other => return Err(Stop::Fail(format!("after a vCPU: {other:?}"))),
    }
    Ok(())
}

fn mmu_pages(e: &Env) -> R {
    let (_s, vm) = e.vm()?;
    // Without shadow paging there is nothing to limit; QEMU calls it only with an option.
    match vm.call(nr::SET_NR_MMU_PAGES, 1) {
        Err(Errno(EINVAL | libc::ENOTTY)) => Ok(()),
        other => Err(Stop::Fail(format!("SET_NR_MMU_PAGES 1: {other:?}"))),
    }
}

fn bad_pointers(e: &Env) -> R {
    let (_s, vm) = e.vm_with_chips()?;
    vm.set(nr::CREATE_PIT2, &kvm_pit_config::default())?;
    for (name, n) in [
        ("SET_USER_MEMORY_REGION", nr::SET_USER_MEMORY_REGION),
        ("GET_DIRTY_LOG", nr::GET_DIRTY_LOG),
        ("IRQ_LINE", nr::IRQ_LINE),
        ("IRQ_LINE_STATUS", nr::IRQ_LINE_STATUS),
        ("GET_IRQCHIP", nr::GET_IRQCHIP),
        ("SET_IRQCHIP", nr::SET_IRQCHIP),
        ("GET_PIT2", nr::GET_PIT2),
        ("SET_PIT2", nr::SET_PIT2),
        ("GET_CLOCK", nr::GET_CLOCK),
        ("SET_CLOCK", nr::SET_CLOCK),
        ("SET_IDENTITY_MAP_ADDR", nr::SET_IDENTITY_MAP_ADDR),
        ("IRQFD", nr::IRQFD),
        ("IOEVENTFD", nr::IOEVENTFD),
        ("SET_GSI_ROUTING", nr::SET_GSI_ROUTING),
        ("SIGNAL_MSI", nr::SIGNAL_MSI),
        ("ENABLE_CAP", nr::ENABLE_CAP),
        ("REGISTER_COALESCED_MMIO", nr::REGISTER_COALESCED_MMIO),
    ] {
        for address in [8u64, 0xffff_8000_0000_0000] {
            errno!(vm.call(n, address), EFAULT, "{name} at {address:#x}");
        }
    }
    Ok(())
}

fn two_vms(e: &Env) -> R {
    let code = [0xe6, 0x10, 0xf4]; // out 0x10, al; hlt
    let a = e.guest(Chips::None, &code)?;
    let b = e.guest(Chips::None, &code)?;
    for g in [&a, &b, &a, &b] {
        match g.vcpu.run() {
            Ok(_) => {}
            Err(x) => return Err(x.into()),
        }
    }
    same!(a.vcpu.page().exit_reason, KVM_EXIT_HLT, "VM a");
    same!(b.vcpu.page().exit_reason, KVM_EXIT_HLT, "VM b");
    Ok(())
}
