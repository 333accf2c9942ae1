//! The guest's FPU and extended registers, kept by the kernel's own guest FPU object.
//!
//! ```text
//! KVM_RUN: load_guest ... { interrupts off: before_enter, (guest XCR0), run, (host XCR0), interrupts on } ... put_guest
//! ```
//! `load_guest` moves the guest's registers in for the whole KVM_RUN; a schedule in between saves and restores them by
//! itself, and `before_enter` makes sure they are in the CPU. Host XCR0, XSS and PKRU (which is in no such object) are back
//! before interrupts go on.

use crate::errno::check;
use crate::ffi;
use crate::handle::{Handle, handle_type};
use crate::{Errno, Result};
use core::marker::PhantomData;

/// The kernel's size limit for the register image of KVM_GET_XSAVE, bytes.
pub const UABI_SIZE: usize = 4096;

/// One guest's registers.
pub struct GuestFpu {
    handle: Handle,
}

handle_type!(GuestFpu, ffi::ex_fpu_free);

impl GuestFpu {
    /// In the state after reset. Process context.
    pub fn init(&mut self) -> Result<()> {
        if !self.handle.is_null() {
            return Err(Errno::EEXIST);
        }
        // SAFETY: returns null or an object.
        self.handle.set(unsafe { ffi::ex_fpu_new() });
        if self.handle.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// The task's registers out, the guest's in.
    ///
    /// # Safety
    /// Process context, interrupts on, no guest registers loaded by this task; [`GuestFpu::put_guest`] follows before
    /// the ioctl returns to user space.
    pub unsafe fn load_guest(&self) {
        // SAFETY: the caller's promise.
        unsafe { ffi::ex_fpu_load_guest(self.handle.get()) }
    }

    /// The guest's registers out, the task's in.
    ///
    /// # Safety
    /// This task has loaded this guest.
    pub unsafe fn put_guest(&self) {
        // SAFETY: the caller's promise.
        unsafe { ffi::ex_fpu_put_guest(self.handle.get()) }
    }

    /// The door to single registers.
    ///
    /// # Safety
    /// This task has loaded this guest, and does not put it away while the answer lives; process context, interrupts on.
    pub unsafe fn loaded(&self) -> Loaded<'_> {
        Loaded(PhantomData)
    }

    /// Writes the registers in XSAVE format (KVM_GET_XSAVE, and its first 512 bytes KVM_GET_FPU). `xfeatures` names the
    /// components user space knows; `pkru` is the guest's. Under the vCPU's mutex, not loaded.
    pub fn to_uabi(&self, image: &mut [u8], xfeatures: u64, pkru: u32) {
        let size = image.len() as u32;
        // SAFETY: image is size writable bytes; the helper writes no more.
        unsafe { ffi::ex_fpu_to_uabi(self.handle.get(), image.as_mut_ptr().cast(), size, xfeatures, pkru) }
    }

    /// Takes the registers from XSAVE format; returns the guest's PKRU if the image has one, else `pkru` unchanged.
    /// `EINVAL`: bits outside `xcr0` (the components that the guest may have), or reserved ones. Under the vCPU's
    /// mutex, not loaded.
    pub fn from_uabi(&self, image: &[u8; UABI_SIZE], xcr0: u64, pkru: u32) -> Result<u32> {
        let mut pkru = pkru;
        // SAFETY: the helper reads at most the image's size, 4096 bytes for all components outside AMX.
        check(unsafe {
            ffi::ex_fpu_from_uabi(self.handle.get(), image.as_ptr().cast(), xcr0, &raw mut pkru)
        })?;
        Ok(pkru)
    }
}

/// Single registers of a guest whose registers are loaded, without the image and without an allocation: the emulator's way. The
/// x87 registers change as by the MMX instructions that these are.
pub struct Loaded<'a>(PhantomData<&'a GuestFpu>);

impl Loaded<'_> {
    /// XMM register `i`, of 16.
    pub fn xmm(&self, i: usize) -> [u8; 16] {
        let mut v = [0; 16];
        // SAFETY: the promise of `GuestFpu::loaded`; the helper writes 16 bytes.
        unsafe { ffi::ex_fpu_xmm(i as u32, v.as_mut_ptr().cast(), false) };
        v
    }

    /// Writes it.
    pub fn set_xmm(&self, i: usize, mut v: [u8; 16]) {
        // SAFETY: the promise of `GuestFpu::loaded`; the helper reads 16 bytes.
        unsafe { ffi::ex_fpu_xmm(i as u32, v.as_mut_ptr().cast(), true) }
    }

    /// MMX register `i`, of 8; 0 while an x87 exception waits.
    pub fn mmx(&self, i: usize) -> u64 {
        let mut v = 0u64;
        // SAFETY: the promise of `GuestFpu::loaded`; the helper writes 8 bytes.
        unsafe { ffi::ex_fpu_mmx(i as u32, (&raw mut v).cast(), false) };
        v
    }

    /// Writes it, unless an x87 exception waits.
    pub fn set_mmx(&self, i: usize, mut v: u64) {
        // SAFETY: the promise of `GuestFpu::loaded`; the helper reads 8 bytes.
        unsafe { ffi::ex_fpu_mmx(i as u32, (&raw mut v).cast(), true) }
    }

    /// The x87 control word.
    pub fn control(&self) -> u16 {
        // SAFETY: the promise of `GuestFpu::loaded`.
        unsafe { ffi::ex_fpu_control() }
    }

    /// The x87 status word.
    pub fn status(&self) -> u16 {
        // SAFETY: the promise of `GuestFpu::loaded`.
        unsafe { ffi::ex_fpu_status() }
    }
}

/// Makes sure the registers that `load_guest` chose are in the CPU. Interrupts off, just before entry.
#[inline]
pub fn before_enter() {
    // SAFETY: process context of the task that loaded; does nothing when they are there already.
    unsafe { ffi::ex_fpu_before_enter() }
}

/// The host's XCR0; 0 without XSAVE.
pub fn host_xcr0() -> u64 {
    // SAFETY: reads a register.
    unsafe { ffi::ex_host_xcr0() }
}

/// The kernel uses XSAVES, or would.
pub fn host_xsaves() -> bool {
    // SAFETY: reads what the kernel knows of its CPUs.
    unsafe { ffi::ex_host_xsaves() }
}

/// The host's IA32_XSS; 0 without XSAVES.
pub fn host_xss() -> u64 {
    // SAFETY: reads a register, faults are caught.
    unsafe { ffi::ex_host_xss() }
}
