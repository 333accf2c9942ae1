//! ioctls on a vCPU's fd: one line each, under the vCPU's lock.

use super::host::RunHost;
use super::{Loaded, VcpuObj, sync};
use crate::vendor::{Vendor, with_backend};
use crate::vm::ioctl::tsc_rate;
use crate::{global, user};
use core::mem::offset_of;
use core::sync::atomic::Ordering;
use exitless_host::fpu::UABI_SIZE;
use exitless_host::mem::KBox;
use exitless_host::{Errno, Result, uaccess};
use exitless_kvm_abi::*;
use exitless_policy::Origin;
use exitless_policy::control::check_xcr0;
use exitless_policy::cpuid::MAX_ENTRIES;
use exitless_policy::nested;
use exitless_vcpu::stats::waker;
use exitless_vcpu::{Request, Vcpu, timer};

/// One ioctl: the object, the vCPU proper, and the host for what needs one.
pub(super) struct Call<'a, B: Vendor> {
    pub v: &'a VcpuObj,
    pub inner: &'a mut Vcpu<B>,
    pub host: RunHost<'a, B>,
}

/// The dispatcher.
pub fn dispatch(v: &VcpuObj, cmd: u32, arg: usize) -> Result<isize> {
    v.vm().check_mm()?;
    // Nothing of the vCPU's owner: it answers while the guest runs.
    if cmd == KVM_GET_STATS_FD {
        return crate::statsfd::open(v.vm(), Some(v));
    }
    if !known(cmd) {
        return Err(Errno::ENOTTY);
    }
    if cmd == KVM_NMI && arg == 0 {
        v.notify(v.shared.apic.queue_nmi(), waker::OTHER);
        return Ok(0);
    }
    let _guard = v.lock.lock_killable()?;
    let kind = global::get().ok_or(Errno::ENXIO)?.kind;
    with_backend!(kind, B => {
        // SAFETY: the lock is held until the end of this function, and this is the only use under it.
        let inner = unsafe { v.own::<B>() };
        chosen(v, inner, cmd, arg)
    })
}

fn chosen<B: Vendor>(v: &VcpuObj, inner: &mut Vcpu<B>, cmd: u32, arg: usize) -> Result<isize> {
    if cmd == KVM_RUN {
        if arg != 0 {
            return Err(Errno::EINVAL);
        }
        let _loaded = Loaded::new(v);
        return sync::run(v, inner);
    }
    let _loaded = B::LOADED_FOR_IOCTLS.then(|| Loaded::new(v));
    let host = RunHost::new(v.vm(), v);
    host.lock();
    if v.tsc_jumped() {
        inner.follow_host_tsc(&v.shared, &host);
    }
    let mut call = Call { v, inner, host };
    call.dispatch(cmd, arg)
}

fn known(cmd: u32) -> bool {
    matches!(
        cmd,
        KVM_RUN
            | KVM_NMI
            | KVM_GET_REGS
            | KVM_SET_REGS
            | KVM_GET_SREGS
            | KVM_SET_SREGS
            | KVM_GET_FPU
            | KVM_SET_FPU
            | KVM_GET_MSRS
            | KVM_SET_MSRS
            | KVM_GET_CPUID2
            | KVM_SET_CPUID
            | KVM_SET_CPUID2
            | KVM_GET_LAPIC
            | KVM_SET_LAPIC
            | KVM_GET_MP_STATE
            | KVM_SET_MP_STATE
            | KVM_GET_VCPU_EVENTS
            | KVM_SET_VCPU_EVENTS
            | KVM_GET_DEBUGREGS
            | KVM_SET_DEBUGREGS
            | KVM_SET_GUEST_DEBUG
            | KVM_GET_XSAVE
            | KVM_SET_XSAVE
            | KVM_GET_XCRS
            | KVM_SET_XCRS
            | KVM_GET_TSC_KHZ
            | KVM_SET_TSC_KHZ
            | KVM_INTERRUPT
            | KVM_SET_SIGNAL_MASK
            | KVM_SET_VAPIC_ADDR
            | KVM_X86_SETUP_MCE
            | KVM_KVMCLOCK_CTRL
            | KVM_TRANSLATE
            | KVM_ENABLE_CAP
            | KVM_HAS_DEVICE_ATTR
            | KVM_GET_DEVICE_ATTR
            | KVM_SET_DEVICE_ATTR
            | KVM_GET_NESTED_STATE
            | KVM_SET_NESTED_STATE
    )
}

impl<B: Vendor> Call<'_, B> {
    fn dispatch(&mut self, cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            KVM_GET_REGS => user::put(arg, &self.get_regs()),
            KVM_SET_REGS => self.set_regs(&user::get(arg)?),
            KVM_GET_SREGS => self.get_sregs(arg),
            KVM_SET_SREGS => self.set_sregs(arg),
            KVM_GET_FPU => self.get_fpu(arg),
            KVM_SET_FPU => self.set_fpu(arg),
            KVM_GET_MSRS => self.get_msrs(arg),
            KVM_SET_MSRS => self.set_msrs(arg),
            KVM_GET_CPUID2 => self.get_cpuid(arg),
            KVM_SET_CPUID | KVM_SET_CPUID2 => self.set_cpuid(cmd, arg),
            KVM_GET_LAPIC => self.get_lapic(arg),
            KVM_SET_LAPIC => self.set_lapic(arg),
            KVM_GET_MP_STATE => self.get_mp_state(arg),
            KVM_SET_MP_STATE => self.set_mp_state(&user::get(arg)?),
            KVM_GET_VCPU_EVENTS => user::put(arg, &self.get_events()),
            KVM_SET_VCPU_EVENTS => self.set_events(&user::get(arg)?),
            KVM_GET_DEBUGREGS => user::put(arg, &self.get_debugregs()),
            KVM_SET_DEBUGREGS => self.set_debugregs(&user::get(arg)?),
            KVM_SET_GUEST_DEBUG => self.set_guest_debug(&user::get(arg)?),
            KVM_GET_XSAVE => self.get_xsave(arg),
            KVM_SET_XSAVE => self.set_xsave(arg),
            KVM_GET_XCRS => self.get_xcrs(arg),
            KVM_SET_XCRS => self.set_xcrs(arg),
            KVM_GET_TSC_KHZ => Ok(self.inner.rate.khz() as isize),
            KVM_SET_TSC_KHZ => self.set_tsc_khz(arg),
            KVM_INTERRUPT => self.interrupt(&user::get(arg)?),
            KVM_SET_SIGNAL_MASK => self.set_signal_mask(arg),
            KVM_SET_VAPIC_ADDR => self.set_vapic(user::get::<kvm_vapic_addr>(arg)?.vapic_addr),
            KVM_X86_SETUP_MCE => self.setup_mce(user::get(arg)?),
            KVM_KVMCLOCK_CTRL => self.kvmclock_ctrl(),
            KVM_TRANSLATE => self.translate(arg),
            KVM_GET_NESTED_STATE => self.get_nested(arg),
            KVM_SET_NESTED_STATE => self.set_nested(arg),
            KVM_ENABLE_CAP => enable_cap(&user::get(arg)?),
            KVM_HAS_DEVICE_ATTR => tsc_offset_attr(&user::get(arg)?).map(|_| 0),
            KVM_GET_DEVICE_ATTR => user::put(tsc_offset_attr(&user::get(arg)?)?, &self.inner.tsc_offset),
            KVM_SET_DEVICE_ATTR => self.set_tsc_offset(tsc_offset_attr(&user::get(arg)?)?),
            _ => Err(Errno::EINVAL),
        }
    }

    // --- MSRs ---

    fn get_msrs(&mut self, arg: usize) -> Result<isize> {
        user::each_msr(arg, |e, at| {
            match self.inner.read_msr(&self.v.shared, &self.host, e.index, Origin::Host) {
                Ok(v) => e.data = v,
                Err(_) => return Ok(false),
            }
            uaccess::write(at, e)?;
            Ok(true)
        })
    }

    fn set_msrs(&mut self, arg: usize) -> Result<isize> {
        let caps = &global::get().ok_or(Errno::ENXIO)?.supported().caps;
        user::each_msr(arg, |e, _| {
            Ok(self.inner.write_msr(&self.v.shared, &self.host, e.index, e.data, Origin::Host, caps).is_ok())
        })
    }

    // --- CPUID ---

    fn get_cpuid(&mut self, arg: usize) -> Result<isize> {
        let mut head: kvm_cpuid2 = user::get(arg)?;
        let list = self.inner.cpuid.entries();
        if (head.nent as usize) < list.len() {
            head.nent = list.len() as u32;
            user::put(arg, &head)?;
            return Err(Errno::E2BIG);
        }
        uaccess::write_slice(user::at(arg, size_of::<kvm_cpuid2>())?, list)?;
        head.nent = list.len() as u32;
        user::put(arg, &head)
    }

    /// `KVM_SET_CPUID2`, and `KVM_SET_CPUID`, whose entries have neither flags nor sub-leaves. A table that cannot be read
    /// changes nothing.
    fn set_cpuid(&mut self, cmd: u32, arg: usize) -> Result<isize> {
        let n = user::get::<kvm_cpuid2>(arg)?.nent as usize;
        let mut table = KBox::<[kvm_cpuid_entry2; MAX_ENTRIES]>::zeroed().ok_or(Errno::ENOMEM)?;
        let given = table.get_mut(..n).ok_or(Errno::E2BIG)?;
        let base = user::at(arg, size_of::<kvm_cpuid2>())?;
        if cmd == KVM_SET_CPUID {
            read_old_cpuid(given, base)?;
        } else {
            uaccess::read_slice(given, base)?;
        }
        if self.inner.started {
            return self.same_cpuid(given);
        }
        let caps = &global::get().ok_or(Errno::ENXIO)?.supported().caps;
        self.inner.cpuid.entries_mut().get_mut(..n).ok_or(Errno::E2BIG)?.copy_from_slice(given);
        self.inner.commit_cpuid(n, caps);
        let deadline = self.inner.cpuid.caps().tsc_deadline;
        let config = exitless_lapic::Config { tsc_deadline: deadline, ..*self.inner.lapic.config() };
        self.inner.lapic.set_config(config);
        Ok(0)
    }

    /// After the first run only the same table is accepted, as on stock KVM.
    fn same_cpuid(&self, given: &[kvm_cpuid_entry2]) -> Result<isize> {
        let words = |e: &kvm_cpuid_entry2| (e.function, e.index, e.eax, e.ebx, e.ecx, e.edx);
        let same = self.inner.cpuid.entries().iter().map(words).eq(given.iter().map(words));
        if same { Ok(0) } else { Err(Errno::EINVAL) }
    }

    // --- local APIC ---

    fn has_apic(&self) -> Result<()> {
        if self.v.vm().lapics.load(Ordering::Acquire) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn get_lapic(&mut self, arg: usize) -> Result<isize> {
        self.has_apic()?;
        let mut page = KBox::<[u8; 1024]>::zeroed().ok_or(Errno::ENOMEM)?;
        let now = timer::now(self.inner, exitless_vcpu::host::Host::now(&self.host));
        self.inner.lapic.set_x2apic_format(self.v.vm().has_32bit_ids());
        self.inner.lapic.save(&self.v.shared.apic, &now, &mut page);
        uaccess::write_slice(arg, &page[..])?;
        Ok(0)
    }

    fn set_lapic(&mut self, arg: usize) -> Result<isize> {
        self.has_apic()?;
        let mut page = KBox::<[u8; 1024]>::zeroed().ok_or(Errno::ENOMEM)?;
        uaccess::read_slice(&mut page[..], arg)?;
        let now = timer::now(self.inner, exitless_vcpu::host::Host::now(&self.host));
        self.inner.lapic.set_x2apic_format(self.v.vm().has_32bit_ids());
        self.inner.lapic.load(&self.v.shared.apic, &page, &now).map_err(|_| Errno::EINVAL)?;
        timer::sync(self.inner, &self.v.shared, &self.host);
        self.v.vm().apic_moved(self.v);
        self.v.shared.request(Request::EVENT);
        Ok(0)
    }

    fn set_vapic(&mut self, address: u64) -> Result<isize> {
        self.has_apic()?;
        // The TPR shadow page is a trick for 32-bit guests on CPUs without CR8 virtualisation: address 0 (none) only.
        if address == 0 { Ok(0) } else { Err(Errno::EINVAL) }
    }

    fn interrupt(&mut self, i: &kvm_interrupt) -> Result<isize> {
        if i.irq > 255 {
            return Err(Errno::EINVAL);
        }
        if self.v.vm().irqchip.load(Ordering::Acquire) {
            return Err(Errno::ENXIO);
        }
        if self.inner.user_interrupt.is_some() {
            return Err(Errno::EEXIST);
        }
        self.inner.user_interrupt = Some(i.irq as u8);
        self.v.shared.request(Request::EVENT);
        Ok(0)
    }

    // --- extended state ---

    fn image(&self) -> Result<KBox<[u8; UABI_SIZE]>> {
        let mut image = KBox::<[u8; UABI_SIZE]>::zeroed().ok_or(Errno::ENOMEM)?;
        self.v.registers_to_image(&mut image, self.inner.pkru);
        Ok(image)
    }

    /// Components user space may read and write: what the host saves, within the area of 4096 bytes.
    fn features(&self) -> u64 {
        super::state::image_features()
    }

    fn get_xsave(&mut self, arg: usize) -> Result<isize> {
        let image = self.image()?;
        uaccess::write_slice(arg, &image[..])?;
        Ok(0)
    }

    fn set_xsave(&mut self, arg: usize) -> Result<isize> {
        let mut image = KBox::<[u8; UABI_SIZE]>::zeroed().ok_or(Errno::ENOMEM)?;
        uaccess::read_slice(&mut image[..], arg)?;
        self.inner.pkru = self.v.fpu.from_uabi(&image, self.features(), self.inner.pkru)?;
        Ok(0)
    }

    fn get_fpu(&mut self, arg: usize) -> Result<isize> {
        let image = self.image()?;
        let mut f = KBox::<kvm_fpu>::zeroed().ok_or(Errno::ENOMEM)?;
        super::state::fpu_from_image(&mut f, &image);
        user::put(arg, &*f)
    }

    fn set_fpu(&mut self, arg: usize) -> Result<isize> {
        let mut f = KBox::<kvm_fpu>::zeroed().ok_or(Errno::ENOMEM)?;
        uaccess::read_into(&mut *f, arg)?;
        let mut image = self.image()?;
        super::state::image_from_fpu(&mut image, &f);
        // The image has PKRU as it was.
        self.v.fpu.from_uabi(&image, self.features(), self.inner.pkru)?;
        Ok(0)
    }

    fn get_xcrs(&mut self, arg: usize) -> Result<isize> {
        let mut x = KBox::<kvm_xcrs>::zeroed().ok_or(Errno::ENOMEM)?;
        x.nr_xcrs = 1;
        if let Some(first) = x.xcrs.first_mut() {
            first.value = self.inner.xcr0;
        }
        user::put(arg, &*x)
    }

    fn set_xcrs(&mut self, arg: usize) -> Result<isize> {
        let mut x = KBox::<kvm_xcrs>::zeroed().ok_or(Errno::ENOMEM)?;
        uaccess::read_into(&mut *x, arg)?;
        if x.nr_xcrs as usize > x.xcrs.len() || x.flags != 0 {
            return Err(Errno::EINVAL);
        }
        let caps = &global::get().ok_or(Errno::ENXIO)?.supported().caps;
        if let Some(e) = x.xcrs.iter().take(x.nr_xcrs as usize).find(|e| e.xcr == 0) {
            self.inner.xcr0 = check_xcr0(0, e.value, caps).map_err(|_| Errno::EINVAL)?;
        }
        Ok(0)
    }

    // --- the rest ---

    fn set_signal_mask(&mut self, arg: usize) -> Result<isize> {
        if arg == 0 {
            self.v.has_sigmask.store(false, Ordering::Relaxed);
            return Ok(0);
        }
        let head: kvm_signal_mask = user::get(arg)?;
        if head.len != 8 {
            return Err(Errno::EINVAL);
        }
        let mask: u64 = user::get(user::at(arg, size_of::<kvm_signal_mask>())?)?;
        self.v.sigmask.store(mask, Ordering::Relaxed);
        self.v.has_sigmask.store(true, Ordering::Relaxed);
        Ok(0)
    }

    fn setup_mce(&mut self, cap: u64) -> Result<isize> {
        self.inner.msrs.mce.setup(cap).map_err(|_| Errno::EINVAL)?;
        Ok(0)
    }

    fn kvmclock_ctrl(&mut self) -> Result<isize> {
        if self.inner.pv.system_time & 1 == 0 {
            return Err(Errno::EINVAL);
        }
        self.inner.pv.stopped = true;
        self.v.shared.request(Request::CLOCK);
        Ok(0)
    }

    fn set_tsc_khz(&mut self, arg: usize) -> Result<isize> {
        let rate = tsc_rate(arg)?;
        let g = global::get().ok_or(Errno::ENXIO)?;
        let before = self.inner.rate;
        self.v.set_tsc_rate(g, self.inner, rate);
        // Another rate's count means nothing: from 0, or with the vCPUs that have this rate already.
        if before.is_scaled() || rate.is_scaled() {
            let offset = self.v.vm().join_tsc(&rate);
            self.inner.move_tsc(&self.v.shared, &self.host, offset);
        }
        Ok(0)
    }

    fn set_tsc_offset(&mut self, from: usize) -> Result<isize> {
        let offset = user::get(from)?;
        self.v.vm().tsc_offset_set(offset, &self.inner.rate);
        self.inner.move_tsc(&self.v.shared, &self.host, offset);
        Ok(0)
    }

    fn get_nested(&self, arg: usize) -> Result<isize> {
        // The caller says how much room it has, and hears how much is needed.
        let at_size = user::at(arg, offset_of!(kvm_nested_state, size))?;
        if user::get::<u32>(at_size)? < nested::SIZE {
            user::put(at_size, &nested::SIZE)?;
            return Err(Errno::E2BIG);
        }
        user::put(arg, &nested::empty(B::NESTED))
    }

    fn set_nested(&self, arg: usize) -> Result<isize> {
        nested::check(B::NESTED, &user::get(arg)?).map_err(|_| Errno::EINVAL)?;
        Ok(0)
    }

    fn translate(&mut self, arg: usize) -> Result<isize> {
        use exitless_insn::{Access, translate};
        let mut t: kvm_translation = user::get(arg)?;
        let mode = self.inner.paging(0);
        let memory = exitless_vcpu::memory::ProbeMemory(&self.host);
        let exists = mode.has_linear(t.linear_address);
        let found = exists.then(|| translate(&memory, &mode, t.linear_address, Access::SYSTEM_READ).ok());
        let found = found.flatten();
        t.valid = u8::from(found.is_some());
        t.physical_address = found.unwrap_or(u64::MAX);
        t.writeable = 1;
        t.usermode = 0;
        user::put(arg, &t)
    }
}

fn read_old_cpuid(table: &mut [kvm_cpuid_entry2], base: usize) -> Result<()> {
    for (i, e) in table.iter_mut().enumerate() {
        let old: kvm_cpuid_entry = user::get(user::at(base, i * size_of::<kvm_cpuid_entry>())?)?;
        (e.function, e.eax, e.ebx, e.ecx, e.edx) = (old.function, old.eax, old.ebx, old.ecx, old.edx);
    }
    Ok(())
}

fn enable_cap(c: &kvm_enable_cap) -> Result<isize> {
    if c.flags != 0 {
        return Err(Errno::EINVAL);
    }
    match c.cap {
        // Paravirtual MSRs and hypercalls follow the guest's CPUID always.
        KVM_CAP_ENFORCE_PV_FEATURE_CPUID => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}

/// The only attribute: the TSC offset. Returns the address of the value in user space.
fn tsc_offset_attr(a: &kvm_device_attr) -> Result<usize> {
    if a.flags != 0 {
        return Err(Errno::EINVAL);
    }
    match (a.group, a.attr) {
        (KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET) => Ok(a.addr as usize),
        _ => Err(Errno::ENXIO),
    }
}
