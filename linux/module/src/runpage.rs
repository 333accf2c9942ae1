//! `struct kvm_run`: a page that user space writes at any time. Read and written by volatile accesses of single fields
//! at the ABI's offsets; nothing read here is trusted twice.

use core::mem::offset_of;
use core::ptr::NonNull;
use exitless_kvm_abi::kvm_run;

/// The first page of a vCPU's mapping.
///
/// # Invariants
/// `base` is a page that lives as long as the vCPU and that the kernel only touches through this type.
#[derive(Clone, Copy)]
pub struct RunPage {
    base: NonNull<u8>,
}

macro_rules! access {
    ($get:ident, $put:ident, $t:ty) => {
        /// Reads the field at `offset`; 0 outside the page.
        pub fn $get(&self, offset: usize) -> $t {
            if offset > 4096 - size_of::<$t>() {
                return 0;
            }
            // SAFETY: inside the page (type invariant, check above), and every field of `kvm_run` is aligned.
            unsafe { self.base.as_ptr().add(offset).cast::<$t>().read_volatile() }
        }
        /// Writes the field at `offset`; nothing outside the page.
        pub fn $put(&self, offset: usize, value: $t) {
            if offset > 4096 - size_of::<$t>() {
                return;
            }
            // SAFETY: as above.
            unsafe { self.base.as_ptr().add(offset).cast::<$t>().write_volatile(value) }
        }
    };
}

impl RunPage {
    /// The page at `base`.
    ///
    /// # Safety
    /// See the type's invariants.
    pub unsafe fn new(base: NonNull<u8>) -> Self {
        Self { base }
    }
    access!(u8_at, put_u8, u8);
    access!(u16_at, put_u16, u16);
    access!(u32_at, put_u32, u32);
    access!(u64_at, put_u64, u64);

    /// `request_interrupt_window`.
    pub fn request_interrupt_window(&self) -> bool {
        self.u8_at(offset_of!(kvm_run, request_interrupt_window)) != 0
    }
    /// `immediate_exit`.
    pub fn immediate_exit(&self) -> bool {
        self.u8_at(offset_of!(kvm_run, immediate_exit)) != 0
    }
    /// `exit_reason`.
    pub fn set_exit_reason(&self, reason: u32) {
        self.put_u32(offset_of!(kvm_run, exit_reason), reason);
    }
    /// Bytes of the exit's union, from its start.
    pub fn put_bytes(&self, offset: usize, data: &[u8]) {
        for (i, b) in data.iter().enumerate() {
            self.put_u8(offset + i, *b);
        }
    }
    /// Reads bytes.
    pub fn bytes(&self, offset: usize, out: &mut [u8]) {
        for (i, b) in out.iter_mut().enumerate() {
            *b = self.u8_at(offset + i);
        }
    }
}

/// Where the union of exit data begins.
pub const EXIT: usize = 32;
