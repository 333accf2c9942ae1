//! Register state between `struct kvm_*` and the vCPU.

use super::VcpuObj;
use super::ioctl::Call;
use crate::vendor::Vendor;
use crate::{global, user};
use core::sync::atomic::Ordering;
use exitless_host::fpu::UABI_SIZE;
use exitless_host::mem::KBox;
use exitless_host::{Errno, Result, uaccess};
use exitless_kvm_abi::*;
use exitless_policy::Origin;
use exitless_policy::control::{Mode, check_dr6, check_dr7, check_state};
use exitless_vcpu::Request;
use exitless_vcpu::backend::{By, Event};
use exitless_vcpu::shared::mp;
use exitless_x86::cpuid::xcr0;
use exitless_x86::exception::{Exception, Vector};
use exitless_x86::msr::Msr;
use exitless_x86::regs::{Gpr, Gprs, SegReg, Segment, TableReg};

/// The order of `struct kvm_regs` before RIP.
const REGS: [Gpr; 16] = [
    Gpr::Rax,
    Gpr::Rbx,
    Gpr::Rcx,
    Gpr::Rdx,
    Gpr::Rsi,
    Gpr::Rdi,
    Gpr::Rsp,
    Gpr::Rbp,
    Gpr::R8,
    Gpr::R9,
    Gpr::R10,
    Gpr::R11,
    Gpr::R12,
    Gpr::R13,
    Gpr::R14,
    Gpr::R15,
];

const SEGMENTS: [SegReg; 8] =
    [SegReg::Cs, SegReg::Ds, SegReg::Es, SegReg::Fs, SegReg::Gs, SegReg::Ss, SegReg::Tr, SegReg::Ldtr];

fn to_kvm(s: &Segment) -> kvm_segment {
    let bit = |n: u16| (s.attrib >> n & 1) as u8;
    let mut k: kvm_segment = bytemuck::Zeroable::zeroed();
    (k.base, k.limit, k.selector) = (s.base, s.limit, s.selector);
    k.type_ = s.typ();
    k.present = bit(7);
    k.dpl = s.dpl();
    k.db = bit(10);
    k.s = bit(4);
    k.l = bit(9);
    k.g = bit(11);
    k.avl = bit(8);
    k.unusable = u8::from(!s.present());
    k
}

fn from_kvm(k: &kvm_segment) -> Segment {
    let mut attrib = u16::from(k.type_ & 15)
        | u16::from(k.s & 1) << 4
        | u16::from(k.dpl & 3) << 5
        | u16::from(k.present & 1) << 7
        | u16::from(k.avl & 1) << 8
        | u16::from(k.l & 1) << 9
        | u16::from(k.db & 1) << 10
        | u16::from(k.g & 1) << 11;
    if k.unusable != 0 {
        attrib &= !Segment::P;
    }
    Segment { base: k.base, limit: k.limit, selector: k.selector, attrib }
}

fn to_kvm_table(t: &TableReg) -> kvm_dtable {
    let mut k: kvm_dtable = bytemuck::Zeroable::zeroed();
    (k.base, k.limit) = (t.base, t.limit as u16);
    k
}

fn from_kvm_table(k: &kvm_dtable) -> TableReg {
    TableReg { base: k.base, limit: u32::from(k.limit), reserved: 0 }
}

impl<B: Vendor> Call<'_, B> {
    pub(super) fn get_regs(&self) -> kvm_regs {
        let mut words = [0u64; 18];
        let g: &Gprs = self.inner.b.gprs();
        for (w, r) in words.iter_mut().zip(REGS) {
            *w = g.get(r);
        }
        words[16] = self.inner.b.rip();
        words[17] = self.inner.b.rflags();
        bytemuck::cast(words)
    }

    pub(super) fn set_regs(&mut self, regs: &kvm_regs) -> Result<isize> {
        let words: [u64; 18] = bytemuck::cast(*regs);
        let from = self.linear_rip();
        let b = &mut self.inner.b;
        for (w, r) in words.iter().zip(REGS) {
            b.gprs_mut().set(r, *w);
        }
        b.set_rip(words[16]);
        b.set_rflags(words[17]);
        self.inner.exception = None;
        self.inner.forget_sequence();
        self.moved_from(from);
        self.v.shared.request(Request::EVENT);
        Ok(0)
    }

    fn linear_rip(&self) -> u64 {
        self.inner.b.segment(SegReg::Cs).base.wrapping_add(self.inner.b.rip())
    }

    /// User space may change registers while it answers an exit (QEMU's vmport does): the instruction then completes on
    /// top of that. It is forgotten when the guest is to go on elsewhere.
    fn moved_from(&mut self, linear_rip: u64) {
        if self.linear_rip() != linear_rip {
            self.inner.forget_instruction();
        }
    }

    pub(super) fn get_sregs(&mut self, arg: usize) -> Result<isize> {
        let mut s = KBox::<kvm_sregs>::zeroed().ok_or(Errno::ENOMEM)?;
        self.fill_sregs(&mut s);
        user::put(arg, &*s)
    }

    pub(super) fn fill_sregs(&self, s: &mut kvm_sregs) {
        let b = &self.inner.b;
        let places =
            [&mut s.cs, &mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss, &mut s.tr, &mut s.ldt];
        for (place, r) in places.into_iter().zip(SEGMENTS) {
            *place = to_kvm(&b.segment(r));
        }
        s.gdt = to_kvm_table(&b.gdtr());
        s.idt = to_kvm_table(&b.idtr());
        (s.cr0, s.cr2, s.cr3, s.cr4) = (b.cr0(), b.cr2(), b.cr3(), b.cr4());
        s.efer = b.efer();
        s.cr8 = u64::from(self.inner.lapic.cr8());
        s.apic_base = self.inner.lapic.apic_base();
        if let Some(vector) = self.pending_vector()
            && let Some(w) = s.interrupt_bitmap.get_mut(usize::from(vector >> 6))
        {
            *w |= 1 << (vector & 63);
        }
    }

    /// An external interrupt that is neither in the APIC nor in the guest.
    fn pending_vector(&self) -> Option<u8> {
        match (self.inner.injecting.or(self.inner.reinject), self.inner.user_interrupt) {
            (Some(Event::Interrupt(v)), _) | (_, Some(v)) => Some(v),
            _ => None,
        }
    }

    pub(super) fn set_sregs(&mut self, arg: usize) -> Result<isize> {
        let mut s = KBox::<kvm_sregs>::zeroed().ok_or(Errno::ENOMEM)?;
        uaccess::read_into(&mut *s, arg)?;
        self.apply_sregs(&s)
    }

    pub(super) fn apply_sregs(&mut self, s: &kvm_sregs) -> Result<isize> {
        let from = self.linear_rip();
        let cs = from_kvm(&s.cs);
        let mode = Mode { cr0: s.cr0, cr3: s.cr3, cr4: s.cr4, efer: s.efer, cs_long: cs.long() };
        let host_caps = &global::get().ok_or(Errno::ENXIO)?.supported().caps;
        // Before KVM_SET_CPUID2 nothing is known of the guest, and what the host can do is allowed.
        let blank = self.inner.cpuid.entries().is_empty();
        let guest_caps = if blank { host_caps } else { self.inner.cpuid.caps() };
        check_state(&mode, guest_caps, host_caps).map_err(|_| Errno::EINVAL)?;
        self.inner.forget_sequence();
        let base = Msr::APIC_BASE.0;
        self.inner
            .write_msr(&self.v.shared, &self.host, base, s.apic_base, Origin::Host, host_caps)
            .map_err(|_| Errno::EINVAL)?;
        let b = &mut self.inner.b;
        for (k, r) in [&s.cs, &s.ds, &s.es, &s.fs, &s.gs, &s.ss, &s.tr, &s.ldt].into_iter().zip(SEGMENTS) {
            b.set_segment(r, &from_kvm(k));
        }
        b.set_gdtr(&from_kvm_table(&s.gdt));
        b.set_idtr(&from_kvm_table(&s.idt));
        b.set_efer(s.efer);
        b.set_cr0(s.cr0 | exitless_x86::regs::cr0::ET);
        b.set_cr2(s.cr2);
        b.set_cr3(s.cr3);
        b.set_cr4(s.cr4);
        let _ = self.inner.lapic.set_cr8(&self.v.shared.apic, (s.cr8 & 15) as u8);
        // Entries that cannot be loaded make the next entry fail and say so.
        self.inner.load_pdptes(&self.host);
        self.inner.flush = true;
        self.moved_from(from);
        self.queue_user(&s.interrupt_bitmap);
        self.wake_old_boot_vcpu(s);
        self.v.shared.request(Request::EVENT);
        Ok(0)
    }

    fn queue_user(&mut self, bitmap: &[u64; 4]) {
        let first = bitmap.iter().enumerate().find(|(_, w)| **w != 0);
        if let Some((i, w)) = first
            && !self.v.vm().irqchip.load(Ordering::Acquire)
        {
            self.inner.user_interrupt = Some((i as u8) << 6 | w.trailing_zeros() as u8);
        }
    }

    /// User space that predates KVM_SET_MP_STATE starts the boot CPU by putting it at the reset vector.
    fn wake_old_boot_vcpu(&mut self, s: &kvm_sregs) {
        let reset = s.cs.selector == 0xf000 && s.cs.base == 0xffff_0000 && s.cr0 & 1 == 0;
        if self.inner.bsp && reset && self.inner.b.rip() == 0xfff0 && self.inner.mp_state == mp::UNINITIALIZED
        {
            self.inner.set_mp(&self.v.shared, mp::RUNNABLE);
        }
    }

    pub(super) fn get_mp_state(&mut self, arg: usize) -> Result<isize> {
        exitless_vcpu::request::apic_state(self.inner, &self.v.shared, &self.host);
        let ends = self.inner.mp_state == mp::HALTED && self.v.shared.unhalted.load(Ordering::Relaxed);
        let mp_state = if ends { mp::RUNNABLE } else { self.inner.mp_state };
        user::put(arg, &kvm_mp_state { mp_state })
    }

    pub(super) fn set_mp_state(&mut self, m: &kvm_mp_state) -> Result<isize> {
        let in_kernel = self.v.vm().lapics.load(Ordering::Acquire);
        match m.mp_state {
            mp::RUNNABLE => {}
            mp::UNINITIALIZED | mp::INIT_RECEIVED | mp::HALTED if in_kernel => {}
            mp::SIPI_RECEIVED if in_kernel => {
                // The vector comes with KVM_SET_VCPU_EVENTS, before or after.
                self.inner.set_mp(&self.v.shared, mp::INIT_RECEIVED);
                self.inner.forget_instruction();
                self.v.shared.apic.restore_sipi();
                self.v.shared.request(Request::APIC_STATE);
                return Ok(0);
            }
            _ => return Err(Errno::EINVAL),
        }
        self.inner.set_mp(&self.v.shared, m.mp_state);
        if m.mp_state != mp::RUNNABLE {
            self.inner.forget_instruction();
        }
        self.v.shared.request(Request::EVENT);
        Ok(0)
    }

    pub(super) fn get_events(&mut self) -> kvm_vcpu_events {
        let mut e: kvm_vcpu_events = bytemuck::Zeroable::zeroed();
        let i = &*self.inner;
        let event = i.delivery();
        let exception = match (i.exception, event) {
            (Some(x), _) | (None, Some(Event::Exception(x))) => Some(x),
            (None, Some(Event::Software(By::Int3OrInto, v, _))) => Some(Exception::plain(Vector(v))),
            _ => None,
        };
        if let Some(x) = exception {
            e.exception.injected = 1;
            e.exception.nr = x.vector.0;
            e.exception.has_error_code = u8::from(x.error_code.is_some());
            e.exception.error_code = x.error_code.unwrap_or(0);
        }
        if let Some(Event::Interrupt(v)) = event {
            e.interrupt.injected = 1;
            e.interrupt.nr = v;
        }
        let (mov_ss, sti) = i.b.shadow_of();
        e.interrupt.shadow =
            (u8::from(mov_ss) * KVM_X86_SHADOW_INT_MOV_SS) | (u8::from(sti) * KVM_X86_SHADOW_INT_STI);
        e.nmi.injected = u8::from(event == Some(Event::Nmi));
        e.nmi.pending = u8::from(i.nmi_pending != 0 || self.v.shared.apic.has_nmis());
        e.nmi.masked = u8::from(i.nmi_masked());
        e.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW;
        e
    }

    pub(super) fn set_events(&mut self, e: &kvm_vcpu_events) -> Result<isize> {
        const KNOWN: u32 = KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SIPI_VECTOR
            | KVM_VCPUEVENT_VALID_SHADOW
            | KVM_VCPUEVENT_VALID_SMM;
        if e.flags & !KNOWN != 0
            || (e.exception.injected != 0 && (e.exception.nr > 31 || e.exception.nr == 2))
        {
            return Err(Errno::EINVAL);
        }
        if e.flags & KVM_VCPUEVENT_VALID_SMM != 0 && e.smi.smm != 0 {
            // No system management mode here.
            return Err(Errno::EINVAL);
        }
        if e.flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR != 0 && self.v.vm().lapics.load(Ordering::Acquire) {
            self.v.shared.apic.restore_sipi_vector(e.sipi_vector as u8);
        }
        let i = &mut *self.inner;
        let event = if e.interrupt.injected != 0 {
            Some(Event::Interrupt(e.interrupt.nr))
        } else {
            (e.nmi.injected != 0).then_some(Event::Nmi)
        };
        i.restore_delivery(event, e.nmi.masked != 0);
        i.exception = (e.exception.injected != 0).then(|| Exception {
            vector: Vector(e.exception.nr),
            error_code: (e.exception.has_error_code != 0).then_some(e.exception.error_code),
            payload: if e.exception.nr == 14 { i.b.cr2() } else { 0 },
        });
        if e.flags & KVM_VCPUEVENT_VALID_SHADOW != 0 {
            match e.interrupt.shadow {
                // Of MOV SS alone, as only CPUs that tell them apart say.
                KVM_X86_SHADOW_INT_MOV_SS => i.b.hold_by_mov_ss(),
                shadow => i.b.set_interrupt_shadow(shadow != 0),
            }
        }
        if e.flags & KVM_VCPUEVENT_VALID_NMI_PENDING != 0 {
            i.nmi_pending = e.nmi.pending.min(2);
            let _ = self.v.shared.apic.take_nmis();
        }
        self.v.shared.request(Request::EVENT);
        Ok(0)
    }

    pub(super) fn get_debugregs(&self) -> kvm_debugregs {
        let mut d: kvm_debugregs = bytemuck::Zeroable::zeroed();
        d.db = self.inner.dr;
        d.dr6 = self.inner.b.dr6();
        d.dr7 = self.inner.guest_dr7();
        d
    }

    pub(super) fn set_debugregs(&mut self, d: &kvm_debugregs) -> Result<isize> {
        let dr6 = check_dr6(d.dr6).map_err(|_| Errno::EINVAL)?;
        let dr7 = check_dr7(d.dr7).map_err(|_| Errno::EINVAL)?;
        if d.flags != 0 {
            return Err(Errno::EINVAL);
        }
        self.inner.dr = d.db;
        self.inner.b.set_dr6(dr6);
        self.inner.set_guest_dr7(dr7);
        self.inner.settle_debug_registers();
        Ok(0)
    }

    pub(super) fn set_guest_debug(&mut self, d: &kvm_guest_debug) -> Result<isize> {
        self.inner.set_guest_debug(d.control, d.debugreg).map_err(|_| Errno::EBUSY)?;
        Ok(0)
    }
}

/// The legacy area of the XSAVE image (SDM vol. 1, table 10-2) as `struct kvm_fpu`.
pub(super) fn fpu_from_image(f: &mut kvm_fpu, image: &[u8; UABI_SIZE]) {
    let byte = |at: usize| image.get(at).copied().unwrap_or(0);
    let half = |at: usize| u16::from_le_bytes([byte(at), byte(at + 1)]);
    f.fcw = half(0);
    f.fsw = half(2);
    f.ftwx = image[4];
    f.last_opcode = half(6);
    let mut word = [0; 8];
    word.copy_from_slice(&image[8..16]);
    f.last_ip = u64::from_le_bytes(word);
    word.copy_from_slice(&image[16..24]);
    f.last_dp = u64::from_le_bytes(word);
    f.mxcsr = u32::from(half(24)) | u32::from(half(26)) << 16;
    for (r, from) in f.fpr.iter_mut().zip(image[32..160].chunks_exact(16)) {
        r.copy_from_slice(from);
    }
    for (r, from) in f.xmm.iter_mut().zip(image[160..416].chunks_exact(16)) {
        r.copy_from_slice(from);
    }
}

/// The other way; marks x87 and SSE as present.
pub(super) fn image_from_fpu(image: &mut [u8; UABI_SIZE], f: &kvm_fpu) {
    image[0..2].copy_from_slice(&f.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&f.fsw.to_le_bytes());
    image[4] = f.ftwx;
    image[6..8].copy_from_slice(&f.last_opcode.to_le_bytes());
    image[8..16].copy_from_slice(&f.last_ip.to_le_bytes());
    image[16..24].copy_from_slice(&f.last_dp.to_le_bytes());
    image[24..28].copy_from_slice(&f.mxcsr.to_le_bytes());
    for (r, to) in f.fpr.iter().zip(image[32..160].chunks_exact_mut(16)) {
        to.copy_from_slice(r);
    }
    for (r, to) in f.xmm.iter().zip(image[160..416].chunks_exact_mut(16)) {
        to.copy_from_slice(r);
    }
    image[512] |= 3;
}

/// Components of the XSAVE image that user space may read and write.
pub(super) fn image_features() -> u64 {
    global::get().map_or(3, |g| g.supported().caps.xcr0 | 3)
}

impl VcpuObj {
    /// The XSAVE image of registers that are not loaded, and of `pkru`. Some kernels also report components that the guest does
    /// not have and refuse them when they come back: the header loses those.
    pub(super) fn registers_to_image(&self, image: &mut [u8; UABI_SIZE], pkru: u32) {
        let features = image_features();
        self.fpu.to_uabi(&mut image[..], features, pkru);
        for (b, keep) in image[512..520].iter_mut().zip(features.to_le_bytes()) {
            *b &= keep;
        }
        // Its value comes from `pkru`; the kernel's header tells of the thread's own. Without the bit it would be read as 0, all keys open.
        if features & xcr0::PKRU != 0
            && let Some(b) = image.get_mut(513)
        {
            *b |= (xcr0::PKRU >> 8) as u8;
        }
    }
}
