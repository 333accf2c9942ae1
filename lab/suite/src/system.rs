//! The system descriptor: versions, capabilities, CPUID and MSR lists.

use crate::env::*;
use exitless_runner::kvm::{self, Cpuid, Flex, MsrBuf, nr, zeroed};
use kvm_bindings::*;
use libc::{E2BIG, EBADF, EFAULT, EINVAL, ENODEV, ENOTTY};

pub(crate) const TESTS: &[Test] = &[
    ("system/api_version", api_version),
    ("system/mmap_size", mmap_size),
    ("system/create_vm_type", create_vm_type),
    ("system/unknown_capability", unknown_capability),
    ("system/capabilities", capabilities),
    ("system/unknown_ioctl", unknown_ioctl),
    ("system/wrong_descriptor", wrong_descriptor),
    ("system/collisions_of_numbers", collisions),
    ("system/read_write_mmap", read_write_mmap),
    ("system/cpuid_e2big", cpuid_e2big),
    ("system/cpuid_contents", cpuid_contents),
    ("system/cpuid_bad_pointer", cpuid_bad_pointer),
    ("system/emulated_cpuid", emulated_cpuid),
    ("system/msr_list_e2big", msr_list_e2big),
    ("system/msr_list_contents", msr_list_contents),
    ("system/feature_msrs", feature_msrs),
    ("system/feature_msr_unknown", feature_msr_unknown),
    ("system/mce_capabilities", mce_capabilities),
];

type MsrList = Flex<u32, u32, 1024>;

fn api_version(e: &Env) -> R {
    let s = e.sys()?;
    same!(s.call(nr::GET_API_VERSION, 0)?, 12, "version");
    errno!(s.call(nr::GET_API_VERSION, 1), EINVAL, "argument 1");
    Ok(())
}

fn mmap_size(e: &Env) -> R {
    let s = e.sys()?;
    let n = s.call(nr::GET_VCPU_MMAP_SIZE, 0)?;
    ensure!(n >= 3 * 4096 && n % 4096 == 0, "size {n}");
    errno!(s.call(nr::GET_VCPU_MMAP_SIZE, 1), EINVAL, "argument 1");
    Ok(())
}

fn create_vm_type(e: &Env) -> R {
    errno!(e.sys()?.call(nr::CREATE_VM, 0x1234), EINVAL, "type 0x1234");
    Ok(())
}

fn unknown_capability(e: &Env) -> R {
    let (s, vm) = e.vm()?;
    for cap in [100_000u64, 0xffff_ffff, 1 << 40] {
        same!(s.call(nr::CHECK_EXTENSION, cap)?, 0, "cap {cap} on the system");
        same!(vm.call(nr::CHECK_EXTENSION, cap)?, 0, "cap {cap} on the VM");
    }
    Ok(())
}

/// Values that the five VMMs depend on (docs/kvm-api.md).
fn capabilities(e: &Env) -> R {
    let (s, vm) = e.vm()?;
    let one = [
        KVM_CAP_IRQCHIP,
        KVM_CAP_HLT,
        KVM_CAP_USER_MEMORY,
        KVM_CAP_SET_TSS_ADDR,
        KVM_CAP_EXT_CPUID,
        KVM_CAP_IRQFD,
        KVM_CAP_PIT2,
        KVM_CAP_PIT_STATE2,
        KVM_CAP_IOEVENTFD,
        KVM_CAP_VCPU_EVENTS,
        KVM_CAP_DEBUGREGS,
        KVM_CAP_XSAVE,
        KVM_CAP_MP_STATE,
        KVM_CAP_DESTROY_MEMORY_REGION_WORKS,
        KVM_CAP_JOIN_MEMORY_REGIONS_WORKS,
        KVM_CAP_INTERNAL_ERROR_DATA,
        KVM_CAP_SET_IDENTITY_MAP_ADDR,
        KVM_CAP_IRQ_INJECT_STATUS,
        KVM_CAP_USER_NMI,
        KVM_CAP_SIGNAL_MSI,
        KVM_CAP_IMMEDIATE_EXIT,
        KVM_CAP_READONLY_MEM,
        KVM_CAP_TSC_DEADLINE_TIMER,
        KVM_CAP_GET_TSC_KHZ,
        KVM_CAP_IOEVENTFD_ANY_LENGTH,
        KVM_CAP_X86_ROBUST_SINGLESTEP,
        KVM_CAP_SYNC_MMU,
        KVM_CAP_SPLIT_IRQCHIP,
        KVM_CAP_ASYNC_PF,
        KVM_CAP_ASYNC_PF_INT,
    ];
    for fd in [&s, &vm] {
        for cap in one {
            same!(fd.cap(cap), 1, "capability {cap}");
        }
        ensure!(fd.cap(KVM_CAP_IRQ_ROUTING) >= 25, "IRQ_ROUTING {}", fd.cap(KVM_CAP_IRQ_ROUTING));
        ensure!(fd.cap(KVM_CAP_MCE) >= 10, "MCE {}", fd.cap(KVM_CAP_MCE));
        ensure!(fd.cap(KVM_CAP_NR_MEMSLOTS) >= 32, "NR_MEMSLOTS {}", fd.cap(KVM_CAP_NR_MEMSLOTS));
        ensure!(fd.cap(KVM_CAP_NR_VCPUS) >= 1, "NR_VCPUS");
        ensure!(fd.cap(KVM_CAP_MAX_VCPUS) >= 4, "MAX_VCPUS");
        ensure!(fd.cap(KVM_CAP_MAX_VCPU_ID) >= fd.cap(KVM_CAP_MAX_VCPUS), "MAX_VCPU_ID");
        same!(fd.cap(KVM_CAP_COALESCED_MMIO), 2, "COALESCED_MMIO, the page of the ring");
        same!(fd.cap(KVM_CAP_MSI_DEVID), 0, "MSI_DEVID");
        ensure!(fd.cap(KVM_CAP_ADJUST_CLOCK) & 2 != 0, "ADJUST_CLOCK {:#x}", fd.cap(KVM_CAP_ADJUST_CLOCK));
        let xsave2 = fd.cap(KVM_CAP_XSAVE2);
        ensure!(xsave2 == 0 || xsave2 >= 4096, "XSAVE2 {xsave2}");
    }
    Ok(())
}

fn unknown_ioctl(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    // Stock KVM answers unknown numbers with EINVAL on the system and vCPU descriptors and ENOTTY on the VM's;
    // ENOTTY is right for all three as well.
    for (name, fd) in [("system", &g.sys), ("VM", &g.vm), ("vCPU", &g.vcpu.fd)] {
        for number in [0xaeffu32, 0xc008_aef0, 0x4000_1234, 0xffff_ffff] {
            match fd.call(number, 0) {
                Err(kvm::Errno(EINVAL | ENOTTY)) => {}
                other => return Err(Stop::Fail(format!("{number:#x} on the {name} descriptor: {other:?}"))),
            }
        }
    }
    Ok(())
}

fn wrong_descriptor(e: &Env) -> R {
    let g = e.idle(Chips::Full)?;
    let refused = |r: kvm::Result<i32>, what: &str| match r {
        Err(kvm::Errno(EINVAL | ENOTTY)) => Ok(()),
        other => Err(Stop::Fail(format!("{what}: {other:?}"))),
    };
    refused(g.sys.call(nr::CREATE_VCPU, 1), "CREATE_VCPU on the system")?;
    refused(g.sys.call(nr::RUN, 0), "RUN on the system")?;
    refused(g.vm.call(nr::RUN, 0), "RUN on the VM")?;
    refused(g.vm.call(nr::CREATE_VM, 0), "CREATE_VM on the VM")?;
    refused(g.vcpu.fd.call(nr::CREATE_VCPU, 1), "CREATE_VCPU on the vCPU")?;
    refused(g.vcpu.fd.call(nr::CREATE_IRQCHIP, 0), "CREATE_IRQCHIP on the vCPU")?;
    refused(g.vm.call(nr::KVMCLOCK_CTRL, 0), "KVMCLOCK_CTRL on the VM")?;
    errno!(kvm::ioctl(-1, nr::RUN, 0), EBADF, "no descriptor");
    Ok(())
}

/// Requests whose low bytes are equal must be told apart by direction and size.
fn collisions(e: &Env) -> R {
    let Small { vm, .. } = &e.idle(Chips::Full)?;
    let msi = kvm_msi { address_lo: 0xfee0_0000, data: 0x40, ..Default::default() };
    ensure!(vm.set(nr::SIGNAL_MSI, &msi).is_ok(), "SIGNAL_MSI");
    let line = kvm_irq_level { level: 0, ..Default::default() };
    ensure!(vm.set(nr::IRQ_LINE_STATUS, &line).is_ok(), "IRQ_LINE_STATUS");
    let zone = kvm_coalesced_mmio_zone { addr: 0xd000_0000, size: 4096, ..Default::default() };
    ensure!(vm.set(nr::REGISTER_COALESCED_MMIO, &zone).is_ok(), "REGISTER_COALESCED_MMIO");
    Ok(())
}

fn read_write_mmap(e: &Env) -> R {
    let s = e.sys()?;
    let mut b = [0u8; 8];
    // SAFETY: eight bytes of our own.
    let (r, w) = unsafe {
        (libc::read(s.raw(), b.as_mut_ptr().cast(), 8), libc::write(s.raw(), b.as_ptr().cast(), 8))
    };
    ensure!(r < 0 && w < 0, "read {r}, write {w}");
    errno!(kvm::Map::fd(s.raw(), 4096, 0).map(|_| 0), ENODEV, "mmap of the device");
    Ok(())
}

fn cpuid_e2big(e: &Env) -> R {
    let s = e.sys()?;
    let mut c: Box<Cpuid> = zeroed();
    for n in [0, 1, 3] {
        c.head[0] = n;
        errno!(s.with(nr::GET_SUPPORTED_CPUID, &mut *c), E2BIG, "{n} entries");
    }
    c.head[0] = 256;
    s.with(nr::GET_SUPPORTED_CPUID, &mut *c)?;
    let n = c.head[0]; // and so much room is left in the header
    s.with(nr::GET_SUPPORTED_CPUID, &mut *c)?;
    same!(c.head[0], n, "entries when there is exactly enough room");
    c.head[0] = n - 1;
    errno!(s.with(nr::GET_SUPPORTED_CPUID, &mut *c), E2BIG, "one entry too few");
    Ok(())
}

fn cpuid_contents(e: &Env) -> R {
    let c = kvm::supported_cpuid(&e.sys()?)?;
    let entries = &c.entries[..c.head[0] as usize];
    ensure!(entries.len() <= 100, "{} entries", entries.len());
    for leaf in [0u32, 1, 7, 0xd, 0x4000_0000, 0x4000_0001, 0x8000_0000, 0x8000_0001, 0x8000_0008] {
        ensure!(entries.iter().any(|e| e.function == leaf), "leaf {leaf:#x} is missing");
    }
    let find = |leaf: u32| {
        entries.iter().find(|e| e.function == leaf).map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    };
    ensure!(find(1)[2] >> 21 & 1 == 1, "x2APIC");
    same!(find(0x4000_0000)[1], 0x4b4d_564b, "KVM signature");
    ensure!(find(0x8000_0001)[3] >> 29 & 1 == 1, "long mode");
    for (i, a) in entries.iter().enumerate() {
        let twice = entries[..i].iter().any(|b| {
            b.function == a.function && (a.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || b.index == a.index)
        });
        ensure!(!twice, "leaf {:#x}.{} is there twice", a.function, a.index);
    }
    Ok(())
}

fn cpuid_bad_pointer(e: &Env) -> R {
    let s = e.sys()?;
    errno!(s.call(nr::GET_SUPPORTED_CPUID, 8), EFAULT, "address 8");
    errno!(s.call(nr::GET_MSR_INDEX_LIST, 8), EFAULT, "address 8");
    Ok(())
}

fn emulated_cpuid(e: &Env) -> R {
    let s = e.sys()?;
    if s.cap(KVM_CAP_EXT_EMUL_CPUID) <= 0 {
        return skip("no KVM_CAP_EXT_EMUL_CPUID");
    }
    let mut c: Box<Cpuid> = zeroed();
    errno!(s.with(nr::GET_EMULATED_CPUID, &mut *c), E2BIG, "no room");
    c.head[0] = 256;
    s.with(nr::GET_EMULATED_CPUID, &mut *c)?;
    let list = &c.entries[..c.head[0] as usize];
    let words: Vec<_> = list.iter().map(|e| (e.function, e.flags, e.eax, e.ebx, e.ecx, e.edx)).collect();
    let supported = kvm::supported_cpuid(&s)?;
    let rdtscp = supported.entries.iter().any(|e| e.function == 0x8000_0001 && e.edx >> 27 & 1 != 0);
    let rdpid = u32::from(rdtscp) << 22;
    same!(words, [(0, 0, 7, 0, 0, 0), (1, 0, 0, 0, 1 << 22, 0), (7, 1, 0, 0, rdpid, 0)], "MOVBE and RDPID");
    Ok(())
}

fn msr_list_e2big(e: &Env) -> R {
    let s = e.sys()?;
    let mut l: Box<MsrList> = zeroed();
    errno!(s.with(nr::GET_MSR_INDEX_LIST, &mut *l), E2BIG, "no room");
    let n = l.head;
    ensure!(n > 0, "the number needed is told");
    l.head = n;
    s.with(nr::GET_MSR_INDEX_LIST, &mut *l)?;
    same!(l.head, n, "number");
    Ok(())
}

fn msr_list_contents(e: &Env) -> R {
    let s = e.sys()?;
    let mut l: Box<MsrList> = zeroed();
    l.head = 1024;
    s.with(nr::GET_MSR_INDEX_LIST, &mut *l)?;
    let list = &l.entries[..l.head as usize];
    ensure!(list.len() <= 228, "{} MSRs: Cloud Hypervisor has room for 228", list.len());
    for m in [0x10u32, 0x174, 0x175, 0x176, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0102] {
        ensure!(list.contains(&m), "MSR {m:#x} is missing");
    }
    for (i, m) in list.iter().enumerate() {
        ensure!(!list[..i].contains(m), "MSR {m:#x} is there twice");
    }
    Ok(())
}

fn feature_msrs(e: &Env) -> R {
    let s = e.sys()?;
    if s.cap(KVM_CAP_GET_MSR_FEATURES) <= 0 {
        return skip("no KVM_CAP_GET_MSR_FEATURES");
    }
    let mut l: Box<MsrList> = zeroed();
    l.head = 1024;
    s.with(nr::GET_MSR_FEATURE_INDEX_LIST, &mut *l)?;
    let list = &l.entries[..l.head as usize];
    for m in [0x8b, 0x10a, 0x345] {
        ensure!(list.contains(&m), "MSR {m:#x} is missing");
    }
    for &m in list {
        let mut b: Box<MsrBuf> = zeroed();
        b.head[0] = 1;
        b.entries[0].index = m;
        same!(s.with(nr::GET_MSRS, &mut *b)?, 1, "feature MSR {m:#x}");
        if m == 0x10a {
            same!(
                kvm::get_msr(&e.idle(Chips::Full)?.vcpu.fd, m)?,
                Some(b.entries[0].data),
                "a new vCPU's {m:#x}"
            );
        }
    }
    Ok(())
}

fn feature_msr_unknown(e: &Env) -> R {
    let s = e.sys()?;
    if s.cap(KVM_CAP_GET_MSR_FEATURES) <= 0 {
        return skip("no KVM_CAP_GET_MSR_FEATURES");
    }
    let mut b: Box<MsrBuf> = zeroed();
    b.head[0] = 1;
    b.entries[0].index = 0x10;
    same!(s.with(nr::GET_MSRS, &mut *b)?, 0, "the TSC is no feature");
    Ok(())
}

fn mce_capabilities(e: &Env) -> R {
    let c: u64 = e.sys()?.get(nr::X86_GET_MCE_CAP_SUPPORTED)?;
    ensure!(c & 0xff >= 10 || c & 0xff == 0 && c != 0, "MCG_CAP {c:#x}");
    Ok(())
}
