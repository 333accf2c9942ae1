//! ioctls on a VM's fd: one line each.

use super::irq::RouteTable;
use super::{MAX_VCPU_IDS, MAX_VCPUS, Vm, irqfd};
use crate::dev::check_extension;
use crate::{global, statsfd, user, vendor};
use core::sync::atomic::{AtomicBool, Ordering};
use exitless_host::file::{FdKind, FdSlot};
use exitless_host::mem::{KArc, KBox, KSlice};
use exitless_host::{Errno, Result, pr_warn, time, uaccess};
use exitless_irqchip::lines::{LineStatus, Source};
use exitless_irqchip::msi::Msi;
use exitless_irqchip::pic::PicId;
use exitless_irqchip::routes::{self, DEFAULT_ROUTES, MAX_ROUTES};
use exitless_kvm_abi::*;
use exitless_memslots::MAX_SLOTS;
use exitless_vcpu::clock::tsc::Rate;

/// The dispatcher.
pub fn dispatch(vm: &Vm, cmd: u32, arg: usize) -> Result<isize> {
    vm.check_mm()?;
    match cmd {
        KVM_CHECK_EXTENSION => Ok(check_extension(arg)),
        KVM_CREATE_VCPU => create_vcpu(vm, arg),
        KVM_SET_USER_MEMORY_REGION => vm.set_region(&user::get(arg)?),
        KVM_GET_DIRTY_LOG => get_dirty_log(vm, &user::get(arg)?),
        // Nothing of ours lives at these addresses: real mode needs no help on SVM.
        KVM_SET_TSS_ADDR => set_tss(arg),
        KVM_SET_NR_MMU_PAGES => set_mmu_pages(arg),
        KVM_ENABLE_CAP => enable_cap(vm, &user::get(arg)?),
        KVM_SET_IDENTITY_MAP_ADDR => user::get::<u64>(arg).and_then(|_| before_vcpus(vm)),
        KVM_SET_BOOT_CPU_ID => set_boot_cpu(vm, arg),
        KVM_CREATE_IRQCHIP => create_irqchip(vm),
        KVM_GET_IRQCHIP => get_irqchip(vm, arg),
        KVM_SET_IRQCHIP => set_irqchip(vm, arg),
        KVM_CREATE_PIT => create_pit(vm, 0),
        KVM_CREATE_PIT2 => create_pit2(vm, &user::get(arg)?),
        KVM_GET_PIT2 => get_pit2(vm, arg),
        KVM_SET_PIT2 => set_pit2(vm, arg),
        KVM_REINJECT_CONTROL => reinject(vm, &user::get(arg)?),
        KVM_IRQ_LINE => irq_line(vm, &user::get(arg)?).map(|_| 0),
        KVM_IRQ_LINE_STATUS => irq_line_status(vm, arg),
        KVM_SET_GSI_ROUTING => set_routes(vm, arg),
        KVM_SIGNAL_MSI => signal_msi(vm, &user::get(arg)?),
        KVM_IRQFD => irqfd::ioctl(vm, &user::get(arg)?),
        KVM_IOEVENTFD => vm.ioeventfd(&user::get(arg)?),
        KVM_REGISTER_COALESCED_MMIO => vm.add_zone(&user::get(arg)?),
        KVM_UNREGISTER_COALESCED_MMIO => vm.remove_zones(&user::get(arg)?),
        KVM_GET_CLOCK => get_clock(vm, arg),
        KVM_SET_CLOCK => set_clock(vm, &user::get(arg)?),
        KVM_CREATE_DEVICE => create_device(&user::get(arg)?),
        KVM_GET_STATS_FD => statsfd::open(vm, None),
        KVM_GET_TSC_KHZ => Ok(vm.lock.lock().tsc_rate.khz() as isize),
        KVM_SET_TSC_KHZ => set_tsc_khz(vm, arg),
        _ => crate::control::vm_ioctl(vm, cmd, arg),
    }
}

fn create_vcpu(vm: &Vm, id: usize) -> Result<isize> {
    if id >= MAX_VCPU_IDS {
        return Err(Errno::EINVAL);
    }
    let id = id as u32;
    let mut config = vm.lock.lock();
    if config.max_id != 0 && id >= config.max_id {
        return Err(Errno::EINVAL);
    }
    if vm.each_vcpu().any(|v| v.id == id) {
        return Err(Errno::EEXIST);
    }
    if vm.vcpu_count() >= MAX_VCPUS {
        return Err(Errno::EINVAL);
    }
    vm.make_room(id)?;
    let slot = FdSlot::reserve()?;
    let bsp = id == config.boot_cpu;
    // SAFETY: `vm` is the object behind a KArc: this reference is the fd's own.
    let extra = unsafe { KArc::clone_raw(core::ptr::from_ref(vm)) }.ok_or(Errno::EINVAL)?;
    let v = crate::vcpu::create(vm, id, bsp, config.tsc_rate)?;
    let raw = KArc::into_raw(extra);
    let mut name = *b"kvm-vcpu:0000\0";
    for (place, digit) in [(9, id / 1000), (10, id / 100 % 10), (11, id / 10 % 10), (12, id % 10)] {
        if let Some(c) = name.get_mut(place) {
            *c = b'0' + digit as u8;
        }
    }
    let name = core::ffi::CStr::from_bytes_with_nul(&name).unwrap_or(c"kvm-vcpu");
    // SAFETY: the fd owns `raw`; its release callback takes it back. The vCPU lives as long as the VM.
    match unsafe { slot.open(FdKind::Vcpu, name, v.cast()) } {
        Ok(fd) => {
            // Nothing can fail any more: there is room, and a vCPU in the VM has its fd.
            vm.add_vcpu(v);
            config.vcpus += 1;
            Ok(fd.install() as isize)
        }
        Err(e) => {
            // SAFETY: no file was made: the reference is ours again.
            drop(unsafe { KArc::from_raw(raw) });
            // SAFETY: nor was the vCPU published.
            unsafe { crate::vcpu::free(v) };
            Err(e)
        }
    }
}

/// No device of that kind is here. A VMM that asks for VFIO's goes on without; what that means is said once.
fn create_device(d: &kvm_create_device) -> Result<isize> {
    static SAID: AtomicBool = AtomicBool::new(false);
    if d.type_ == KVM_DEV_TYPE_VFIO
        && d.flags & KVM_CREATE_DEVICE_TEST == 0
        && !SAID.swap(true, Ordering::Relaxed)
    {
        pr_warn!(
            "assigned devices must be kept coherent by their IOMMU: guests' WBINVD and PAT are without effect"
        );
    }
    Err(Errno::ENODEV)
}

fn before_vcpus(vm: &Vm) -> Result<isize> {
    if vm.lock.lock().vcpus != 0 { Err(Errno::EINVAL) } else { Ok(0) }
}

fn set_tss(addr: usize) -> Result<isize> {
    if addr as u64 > u64::from(u32::MAX) - 3 * 4096 { Err(Errno::EINVAL) } else { Ok(0) }
}

/// A limit for shadow page tables; nested paging has none, so any limit that stock KVM takes is kept.
fn set_mmu_pages(pages: usize) -> Result<isize> {
    const MIN: usize = 64;
    if pages < MIN { Err(Errno::EINVAL) } else { Ok(0) }
}

fn enable_cap(vm: &Vm, c: &kvm_enable_cap) -> Result<isize> {
    if c.flags != 0 {
        return Err(Errno::EINVAL);
    }
    match c.cap {
        KVM_CAP_MAX_VCPU_ID => set_max_id(vm, c.args[0]),
        KVM_CAP_SPLIT_IRQCHIP => split_irqchip(vm, c.args[0]),
        KVM_CAP_HALT_POLL => set_halt_poll(vm, c.args[0]),
        KVM_CAP_EXIT_ON_EMULATION_FAILURE => set_exit_on_failure(vm, c.args[0]),
        KVM_CAP_X86_DISABLE_EXITS => disable_exits(vm, c.args[0]),
        KVM_CAP_X2APIC_API => x2apic_api(vm, c.args[0]),
        _ => Err(Errno::EINVAL),
    }
}

/// Longest wait awake in HLT, ns; below it the module's parameter counts.
fn set_halt_poll(vm: &Vm, ns: u64) -> Result<isize> {
    let ns = u32::try_from(ns).map_err(|_| Errno::EINVAL)?;
    vm.halt_poll_ns.store(ns, Ordering::Relaxed);
    Ok(0)
}

fn set_exit_on_failure(vm: &Vm, on: u64) -> Result<isize> {
    if on > 1 {
        return Err(Errno::EINVAL);
    }
    vm.exit_on_failure.store(on != 0, Ordering::Relaxed);
    Ok(0)
}

/// What the host cannot let guests do is left out without a word, as on stock KVM; what was allowed stays so.
fn disable_exits(vm: &Vm, exits: u64) -> Result<isize> {
    if exits & !KVM_X86_DISABLE_VALID_EXITS != 0 {
        return Err(Errno::EINVAL);
    }
    let config = vm.lock.lock();
    if config.vcpus != 0 {
        return Err(Errno::EINVAL);
    }
    vm.idle_in_guest.fetch_or((exits & exitless_host::cpu::exits_to_disable()) as u32, Ordering::Relaxed);
    Ok(0)
}

/// 32-bit ids in MSIs and KVM_GET_LAPIC, and a device's 0xff as an id. What was asked for stays.
fn x2apic_api(vm: &Vm, flags: u64) -> Result<isize> {
    if flags & !X2APIC_API != 0 {
        return Err(Errno::EINVAL);
    }
    vm.x2apic_api.fetch_or(flags as u32, Ordering::Relaxed);
    Ok(0)
}

/// What KVM_CAP_X2APIC_API offers.
pub const X2APIC_API: u64 = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;

/// The limit of vCPU ids is set once.
fn set_max_id(vm: &Vm, limit: u64) -> Result<isize> {
    if limit > MAX_VCPU_IDS as u64 {
        return Err(Errno::EINVAL);
    }
    let mut config = vm.lock.lock();
    if config.max_id == limit as u32 {
        return Ok(0);
    }
    if config.max_id != 0 {
        return Err(Errno::EINVAL);
    }
    config.max_id = limit as u32;
    Ok(0)
}

fn set_boot_cpu(vm: &Vm, id: usize) -> Result<isize> {
    let mut config = vm.lock.lock();
    if config.vcpus != 0 {
        return Err(Errno::EBUSY);
    }
    config.boot_cpu = u32::try_from(id).map_err(|_| Errno::EINVAL)?;
    Ok(0)
}

fn get_dirty_log(vm: &Vm, log: &kvm_dirty_log) -> Result<isize> {
    // The upper half names an address space, of which there is one.
    if log.slot >= MAX_SLOTS {
        return Err(Errno::EINVAL);
    }
    vm.dirty_log(log.slot, log.dirty_bitmap as usize)
}

// --- interrupt controllers ---

fn create_irqchip(vm: &Vm) -> Result<isize> {
    let config = vm.lock.lock();
    if vm.lapics.load(Ordering::Acquire) {
        return Err(Errno::EEXIST);
    }
    if config.vcpus != 0 {
        return Err(Errno::EINVAL);
    }
    let mut table = KBox::<RouteTable>::zeroed().ok_or(Errno::ENOMEM)?;
    table.routes = KSlice::zeroed(DEFAULT_ROUTES).ok_or(Errno::ENOMEM)?;
    routes::default_routes(&mut table.routes).map_err(|_| Errno::EINVAL)?;
    let RouteTable { routes: list, pins } = &mut *table;
    pins.init(list);
    vm.init_chips();
    let old = vm.routes.replace(Some(table));
    vm.irqchip.store(true, Ordering::Release);
    vm.lapics.store(true, Ordering::Release);
    vm.retire(old);
    vm.rescan_eoi();
    Ok(0)
}

/// `KVM_CAP_SPLIT_IRQCHIP`: only the local APICs in the kernel. No GSI leads anywhere until user space says so.
fn split_irqchip(vm: &Vm, pins: u64) -> Result<isize> {
    if pins > MAX_ROUTES as u64 {
        return Err(Errno::EINVAL);
    }
    let config = vm.lock.lock();
    if vm.lapics.load(Ordering::Acquire) || config.vcpus != 0 {
        return Err(Errno::EEXIST);
    }
    vm.user_pins.store(pins as u32, Ordering::Release);
    vm.lapics.store(true, Ordering::Release);
    Ok(0)
}

/// The 8259 pair and the I/O APIC are here.
fn chip_ready(vm: &Vm) -> Result<()> {
    if vm.irqchip.load(Ordering::Acquire) { Ok(()) } else { Err(Errno::ENXIO) }
}

/// The local APICs are here: messages and routes have somewhere to go.
fn apics_ready(vm: &Vm) -> Result<()> {
    if vm.lapics.load(Ordering::Acquire) { Ok(()) } else { Err(Errno::ENXIO) }
}

fn get_irqchip(vm: &Vm, arg: usize) -> Result<isize> {
    chip_ready(vm)?;
    let mut c = KBox::<kvm_irqchip>::zeroed().ok_or(Errno::ENOMEM)?;
    uaccess::read_into(&mut *c, arg)?;
    let mut state = KBox::<kvm_ioapic_state>::zeroed().ok_or(Errno::ENOMEM)?;
    match c.chip_id {
        KVM_IRQCHIP_PIC_MASTER => put_chip(chip_bytes(&mut c), &vm.chips.lock().irq.pic.save(PicId::Master)),
        KVM_IRQCHIP_PIC_SLAVE => put_chip(chip_bytes(&mut c), &vm.chips.lock().irq.pic.save(PicId::Slave)),
        KVM_IRQCHIP_IOAPIC => {
            vm.chips.lock().irq.ioapic.save(&mut state);
            put_chip(chip_bytes(&mut c), &*state);
        }
        _ => return Err(Errno::EINVAL),
    }
    user::put(arg, &*c)
}

fn chip_bytes(c: &mut kvm_irqchip) -> &mut [u8] {
    bytemuck::cast_slice_mut(&mut c.chip)
}

fn put_chip<T: bytemuck::NoUninit>(to: &mut [u8], state: &T) {
    for (d, s) in to.iter_mut().zip(bytemuck::bytes_of(state)) {
        *d = *s;
    }
}

fn take_chip<T: bytemuck::Pod>(to: &mut T, from: &[u8]) {
    for (d, s) in bytemuck::bytes_of_mut(to).iter_mut().zip(from) {
        *d = *s;
    }
}

fn set_irqchip(vm: &Vm, arg: usize) -> Result<isize> {
    chip_ready(vm)?;
    let mut c = KBox::<kvm_irqchip>::zeroed().ok_or(Errno::ENOMEM)?;
    uaccess::read_into(&mut *c, arg)?;
    let mut ioapic = KBox::<kvm_ioapic_state>::zeroed().ok_or(Errno::ENOMEM)?;
    let mut pic: kvm_pic_state = bytemuck::Zeroable::zeroed();
    match c.chip_id {
        KVM_IRQCHIP_PIC_MASTER | KVM_IRQCHIP_PIC_SLAVE => {
            take_chip(&mut pic, chip_bytes(&mut c));
            let id = if c.chip_id == KVM_IRQCHIP_PIC_MASTER { PicId::Master } else { PicId::Slave };
            vm.load_pic(id, &pic);
        }
        KVM_IRQCHIP_IOAPIC => {
            take_chip(&mut *ioapic, chip_bytes(&mut c));
            vm.load_ioapic(&ioapic);
        }
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

fn create_pit2(vm: &Vm, config: &kvm_pit_config) -> Result<isize> {
    if config.flags & !KVM_PIT_SPEAKER_DUMMY != 0 {
        return Err(Errno::EINVAL);
    }
    create_pit(vm, config.flags)
}

fn create_pit(vm: &Vm, flags: u32) -> Result<isize> {
    let _guard = vm.lock.lock();
    chip_ready(vm).map_err(|_| Errno::ENOENT)?;
    if vm.pit.load(Ordering::Acquire) {
        return Err(Errno::EEXIST);
    }
    vm.chips.lock().pit.init(flags);
    vm.pit.store(true, Ordering::Release);
    vm.rescan_eoi();
    Ok(0)
}

fn pit_ready(vm: &Vm) -> Result<()> {
    if vm.pit.load(Ordering::Acquire) { Ok(()) } else { Err(Errno::ENXIO) }
}

fn get_pit2(vm: &Vm, arg: usize) -> Result<isize> {
    pit_ready(vm)?;
    let mut s: kvm_pit_state2 = bytemuck::Zeroable::zeroed();
    vm.chips.lock().pit.save(&mut s);
    user::put(arg, &s)
}

fn set_pit2(vm: &Vm, arg: usize) -> Result<isize> {
    pit_ready(vm)?;
    let s: kvm_pit_state2 = user::get(arg)?;
    vm.chips.lock().pit.load(&s, time::monotonic_ns());
    vm.pit_arm();
    Ok(0)
}

fn reinject(vm: &Vm, c: &kvm_reinject_control) -> Result<isize> {
    pit_ready(vm)?;
    vm.chips.lock().pit.set_reinject(c.pit_reinject != 0);
    vm.rescan_eoi();
    Ok(0)
}

fn irq_line(vm: &Vm, l: &kvm_irq_level) -> Result<LineStatus> {
    apics_ready(vm)?;
    Ok(vm.set_gsi(l.irq, Source::USERSPACE, l.level != 0))
}

fn irq_line_status(vm: &Vm, arg: usize) -> Result<isize> {
    let mut l: kvm_irq_level = user::get(arg)?;
    l.irq = irq_line(vm, &l)?.code() as u32;
    user::put(arg, &l)
}

fn set_routes(vm: &Vm, arg: usize) -> Result<isize> {
    apics_ready(vm).map_err(|_| Errno::EINVAL)?;
    let full = vm.irqchip.load(Ordering::Acquire);
    let head: kvm_irq_routing = user::get(arg)?;
    let n = head.nr as usize;
    if n > MAX_ROUTES || head.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let mut entries = KSlice::<kvm_irq_routing_entry>::zeroed(n).ok_or(Errno::ENOMEM)?;
    uaccess::read_slice(&mut entries, user::at(arg, size_of::<kvm_irq_routing>())?)?;
    let mut table = KBox::<RouteTable>::zeroed().ok_or(Errno::ENOMEM)?;
    table.routes = KSlice::zeroed(n).ok_or(Errno::ENOMEM)?;
    let RouteTable { routes: list, pins } = &mut *table;
    routes::build(&entries, full, vm.format(), list).map_err(|_| Errno::EINVAL)?;
    pins.init(list);
    let old = {
        let _guard = vm.wiring.lock();
        vm.routes.replace(Some(table))
    };
    vm.retire(old);
    vm.rescan_eoi();
    Ok(0)
}

fn signal_msi(vm: &Vm, m: &kvm_msi) -> Result<isize> {
    if !vm.lapics.load(Ordering::Acquire) || m.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let msi = Msi { address: m.address_lo, address_hi: m.address_hi, data: m.data };
    if !msi.is_valid(vm.format()) {
        return Err(Errno::EINVAL);
    }
    Ok(vm.signal_msi(msi).code() as isize)
}

// --- clock ---

/// The rate of vCPUs to come.
fn set_tsc_khz(vm: &Vm, arg: usize) -> Result<isize> {
    vm.lock.lock().tsc_rate = tsc_rate(arg)?;
    Ok(0)
}

/// The rate that `KVM_SET_TSC_KHZ` asks for.
pub fn tsc_rate(arg: usize) -> Result<Rate> {
    let scaling = global::get().and_then(vendor::tsc_scaling);
    Rate::asked(arg as u32, time::tsc_khz(), scaling).ok_or(Errno::EINVAL)
}

fn get_clock(vm: &Vm, arg: usize) -> Result<isize> {
    let mut c: kvm_clock_data = bytemuck::Zeroable::zeroed();
    let now = vm.read_clock();
    c.clock = now.ns;
    c.realtime = now.host.real_ns;
    c.flags = KVM_CLOCK_REALTIME;
    if now.stable {
        c.flags |= KVM_CLOCK_TSC_STABLE;
    }
    if now.host.by_tsc {
        c.flags |= KVM_CLOCK_HOST_TSC;
        c.host_tsc = now.host.tsc;
    }
    user::put(arg, &c)
}

fn set_clock(vm: &Vm, c: &kvm_clock_data) -> Result<isize> {
    if c.flags & !(KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC | KVM_CLOCK_TSC_STABLE) != 0 {
        return Err(Errno::EINVAL);
    }
    let mut ns = c.clock;
    if c.flags & KVM_CLOCK_REALTIME != 0 {
        // The clock went on while the VM was saved.
        ns = ns.wrapping_add(time::real_ns().saturating_sub(c.realtime));
    }
    vm.set_clock(ns);
    Ok(0)
}
