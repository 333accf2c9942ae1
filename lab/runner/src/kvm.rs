//! The /dev/kvm API as plain system calls: descriptors, request numbers and thin typed wrappers.
//!
//! Nothing here hides an error or retries; the tests want to see what the kernel said. Numbers are those of
//! `<linux/kvm.h>`; structures come from `kvm-bindings`.

use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use kvm_bindings::*;

/// An errno value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The errno that the last failed call left.
    pub fn last() -> Errno {
        Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::io::Error::from_raw_os_error(self.0))
    }
}
impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
impl From<Errno> for String {
    fn from(e: Errno) -> String {
        e.to_string()
    }
}

/// Result of a system call.
pub type Result<T> = std::result::Result<T, Errno>;

const fn request(dir: u32, nr: u32, size: usize) -> u32 {
    dir << 30 | (size as u32) << 16 | 0xae << 8 | nr
}
const fn io(nr: u32) -> u32 {
    request(0, nr, 0)
}
const fn iow<T>(nr: u32) -> u32 {
    request(1, nr, size_of::<T>())
}
const fn ior<T>(nr: u32) -> u32 {
    request(2, nr, size_of::<T>())
}
const fn iowr<T>(nr: u32) -> u32 {
    request(3, nr, size_of::<T>())
}

/// Request numbers, named as in `<linux/kvm.h>` without the `KVM_` prefix.
#[allow(missing_docs)]
pub mod nr {
    use super::*;
    pub const GET_API_VERSION: u32 = io(0x00);
    pub const CREATE_VM: u32 = io(0x01);
    pub const GET_MSR_INDEX_LIST: u32 = iowr::<kvm_msr_list>(0x02);
    pub const CHECK_EXTENSION: u32 = io(0x03);
    pub const GET_VCPU_MMAP_SIZE: u32 = io(0x04);
    pub const GET_SUPPORTED_CPUID: u32 = iowr::<kvm_cpuid2>(0x05);
    pub const GET_EMULATED_CPUID: u32 = iowr::<kvm_cpuid2>(0x09);
    pub const GET_MSR_FEATURE_INDEX_LIST: u32 = iowr::<kvm_msr_list>(0x0a);
    pub const CREATE_VCPU: u32 = io(0x41);
    pub const GET_DIRTY_LOG: u32 = iow::<kvm_dirty_log>(0x42);
    pub const SET_NR_MMU_PAGES: u32 = io(0x44);
    pub const GET_NR_MMU_PAGES: u32 = io(0x45);
    pub const SET_USER_MEMORY_REGION: u32 = iow::<kvm_userspace_memory_region>(0x46);
    pub const SET_TSS_ADDR: u32 = io(0x47);
    pub const SET_IDENTITY_MAP_ADDR: u32 = iow::<u64>(0x48);
    pub const CREATE_IRQCHIP: u32 = io(0x60);
    pub const IRQ_LINE: u32 = iow::<kvm_irq_level>(0x61);
    pub const GET_IRQCHIP: u32 = iowr::<kvm_irqchip>(0x62);
    pub const SET_IRQCHIP: u32 = ior::<kvm_irqchip>(0x63);
    pub const IRQ_LINE_STATUS: u32 = iowr::<kvm_irq_level>(0x67);
    pub const REGISTER_COALESCED_MMIO: u32 = iow::<kvm_coalesced_mmio_zone>(0x67);
    pub const UNREGISTER_COALESCED_MMIO: u32 = iow::<kvm_coalesced_mmio_zone>(0x68);
    pub const SET_GSI_ROUTING: u32 = iow::<kvm_irq_routing>(0x6a);
    pub const REINJECT_CONTROL: u32 = io(0x71);
    pub const IRQFD: u32 = iow::<kvm_irqfd>(0x76);
    pub const CREATE_PIT2: u32 = iow::<kvm_pit_config>(0x77);
    pub const SET_BOOT_CPU_ID: u32 = io(0x78);
    pub const IOEVENTFD: u32 = iow::<kvm_ioeventfd>(0x79);
    pub const SET_CLOCK: u32 = iow::<kvm_clock_data>(0x7b);
    pub const GET_CLOCK: u32 = ior::<kvm_clock_data>(0x7c);
    pub const RUN: u32 = io(0x80);
    pub const GET_REGS: u32 = ior::<kvm_regs>(0x81);
    pub const SET_REGS: u32 = iow::<kvm_regs>(0x82);
    pub const GET_SREGS: u32 = ior::<kvm_sregs>(0x83);
    pub const SET_SREGS: u32 = iow::<kvm_sregs>(0x84);
    pub const TRANSLATE: u32 = iowr::<kvm_translation>(0x85);
    pub const INTERRUPT: u32 = iow::<u32>(0x86);
    pub const GET_MSRS: u32 = iowr::<kvm_msrs>(0x88);
    pub const SET_MSRS: u32 = iow::<kvm_msrs>(0x89);
    pub const SET_CPUID: u32 = iow::<kvm_cpuid>(0x8a);
    pub const SET_SIGNAL_MASK: u32 = iow::<kvm_signal_mask>(0x8b);
    pub const GET_FPU: u32 = ior::<kvm_fpu>(0x8c);
    pub const SET_FPU: u32 = iow::<kvm_fpu>(0x8d);
    pub const GET_LAPIC: u32 = ior::<kvm_lapic_state>(0x8e);
    pub const SET_LAPIC: u32 = iow::<kvm_lapic_state>(0x8f);
    pub const SET_CPUID2: u32 = iow::<kvm_cpuid2>(0x90);
    pub const GET_CPUID2: u32 = iowr::<kvm_cpuid2>(0x91);
    pub const TPR_ACCESS_REPORTING: u32 = iowr::<kvm_tpr_access_ctl>(0x92);
    pub const SET_VAPIC_ADDR: u32 = iow::<kvm_vapic_addr>(0x93);
    pub const GET_MP_STATE: u32 = ior::<kvm_mp_state>(0x98);
    pub const SET_MP_STATE: u32 = iow::<kvm_mp_state>(0x99);
    pub const NMI: u32 = io(0x9a);
    pub const SET_GUEST_DEBUG: u32 = iow::<kvm_guest_debug>(0x9b);
    pub const X86_SETUP_MCE: u32 = iow::<u64>(0x9c);
    pub const X86_GET_MCE_CAP_SUPPORTED: u32 = ior::<u64>(0x9d);
    pub const X86_SET_MCE: u32 = iow::<kvm_x86_mce>(0x9e);
    pub const GET_PIT2: u32 = ior::<kvm_pit_state2>(0x9f);
    pub const GET_VCPU_EVENTS: u32 = ior::<kvm_vcpu_events>(0x9f);
    pub const SET_PIT2: u32 = iow::<kvm_pit_state2>(0xa0);
    pub const SET_VCPU_EVENTS: u32 = iow::<kvm_vcpu_events>(0xa0);
    pub const GET_DEBUGREGS: u32 = ior::<kvm_debugregs>(0xa1);
    pub const SET_DEBUGREGS: u32 = iow::<kvm_debugregs>(0xa2);
    pub const SET_TSC_KHZ: u32 = io(0xa2);
    pub const GET_TSC_KHZ: u32 = io(0xa3);
    pub const ENABLE_CAP: u32 = iow::<kvm_enable_cap>(0xa3);
    pub const GET_XSAVE: u32 = ior::<[u8; 4096]>(0xa4);
    pub const SET_XSAVE: u32 = iow::<[u8; 4096]>(0xa5);
    pub const SIGNAL_MSI: u32 = iow::<kvm_msi>(0xa5);
    pub const GET_XCRS: u32 = ior::<kvm_xcrs>(0xa6);
    pub const SET_XCRS: u32 = iow::<kvm_xcrs>(0xa7);
    pub const KVMCLOCK_CTRL: u32 = io(0xad);
    pub const SMI: u32 = io(0xb7);
    pub const GET_NESTED_STATE: u32 = iowr::<[u8; 128]>(0xbe);
    pub const SET_NESTED_STATE: u32 = iow::<[u8; 128]>(0xbf);
    pub const GET_STATS_FD: u32 = io(0xce);
    pub const CREATE_DEVICE: u32 = iowr::<kvm_create_device>(0xe0);
    pub const SET_DEVICE_ATTR: u32 = iow::<kvm_device_attr>(0xe1);
    pub const GET_DEVICE_ATTR: u32 = iow::<kvm_device_attr>(0xe2);
}

/// A descriptor of the API: the system, a VM or a vCPU.
pub struct Fd(pub OwnedFd);

impl Fd {
    /// Takes over a raw descriptor.
    ///
    /// # Safety
    /// The descriptor must be open and owned by nobody else.
    pub unsafe fn from_raw(fd: RawFd) -> Fd {
        // SAFETY: the caller's promise.
        Fd(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The descriptor's number.
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// One ioctl with an integer argument (or an address, for tests of bad ones).
    pub fn call(&self, request: u32, arg: u64) -> Result<i32> {
        ioctl(self.raw(), request, arg)
    }

    /// An ioctl that reads a structure, writes it, or both.
    pub fn with<T>(&self, request: u32, arg: &mut T) -> Result<i32> {
        self.call(request, arg as *mut T as u64)
    }

    /// An ioctl whose argument the kernel only reads.
    pub fn set<T>(&self, request: u32, arg: &T) -> Result<i32> {
        self.call(request, arg as *const T as u64)
    }

    /// An ioctl that fills a structure.
    pub fn get<T>(&self, request: u32) -> Result<T> {
        // SAFETY: all structures of the API are valid when all bytes are zero.
        let mut v: T = unsafe { std::mem::zeroed() };
        self.with(request, &mut v)?;
        Ok(v)
    }

    /// KVM_CHECK_EXTENSION on this descriptor.
    pub fn cap(&self, cap: u32) -> i32 {
        self.call(nr::CHECK_EXTENSION, cap.into()).unwrap_or(-1)
    }

    /// KVM_ENABLE_CAP.
    pub fn enable_cap(&self, cap: u32, flags: u32, args: [u64; 4]) -> Result<i32> {
        let c = kvm_enable_cap { cap, flags, args, ..Default::default() };
        self.set(nr::ENABLE_CAP, &c)
    }
}

/// One ioctl on a raw descriptor.
pub fn ioctl(fd: RawFd, request: u32, arg: u64) -> Result<i32> {
    // SAFETY: whatever the request does is the caller's business; the tests own all memory that they pass.
    let r = unsafe { libc::ioctl(fd, request as libc::c_ulong as _, arg) };
    if r < 0 { Err(Errno::last()) } else { Ok(r) }
}

/// Opens the device.
pub fn open(path: &str) -> Result<Fd> {
    open_as(path, libc::O_RDWR)
}

/// Opens a device for reading only.
pub fn open_read(path: &str) -> Result<Fd> {
    open_as(path, libc::O_RDONLY)
}

fn open_as(path: &str, how: i32) -> Result<Fd> {
    let path = CString::new(path).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: a valid C string.
    let fd = unsafe { libc::open(path.as_ptr(), how | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(Errno::last());
    }
    // SAFETY: just opened.
    Ok(unsafe { Fd::from_raw(fd) })
}

/// KVM_CREATE_VM, type 0; a pending signal makes the kernel say EINTR, which is tried again.
pub fn create_vm(sys: &Fd) -> Result<Fd> {
    loop {
        match sys.call(nr::CREATE_VM, 0) {
            Err(Errno(libc::EINTR)) => {}
            // SAFETY: a new descriptor.
            r => return Ok(unsafe { Fd::from_raw(r?) }),
        }
    }
}

/// An eventfd, nonblocking.
pub fn eventfd() -> Result<Fd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(Errno::last());
    }
    // SAFETY: just opened.
    Ok(unsafe { Fd::from_raw(fd) })
}

/// Reads an eventfd's counter, 0 when it is empty.
pub fn event_read(fd: RawFd) -> u64 {
    let mut v = 0u64;
    // SAFETY: eight bytes of our own.
    let n = unsafe { libc::read(fd, &raw mut v as *mut _, 8) };
    if n == 8 { v } else { 0 }
}

/// Adds to an eventfd's counter.
pub fn event_write(fd: RawFd, v: u64) -> bool {
    // SAFETY: eight bytes of our own.
    unsafe { libc::write(fd, &raw const v as *const _, 8) == 8 }
}

/// A userfaultfd, for faults of the kernel too.
pub fn userfaultfd() -> Result<Fd> {
    /// `struct uffdio_api`: version, features, ioctls.
    const API: u32 = 3 << 30 | 24 << 16 | 0xaa << 8 | 0x3f;
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if fd < 0 {
        return Err(Errno::last());
    }
    // SAFETY: a new descriptor.
    let fd = unsafe { Fd::from_raw(fd as i32) };
    fd.with(API, &mut [0xaau64, 0, 0])?;
    Ok(fd)
}

/// Faults at pages that are missing there wait.
pub fn uffd_register(uffd: &Fd, addr: u64, len: u64) -> Result<i32> {
    /// `struct uffdio_register`: start, length, mode (missing pages), ioctls.
    const REGISTER: u32 = 3 << 30 | 32 << 16 | 0xaa << 8;
    uffd.with(REGISTER, &mut [addr, len, 1, 0])
}

/// Pages of zeroes come there.
pub fn uffd_zero(uffd: &Fd, addr: u64, len: u64) -> Result<i32> {
    /// `struct uffdio_zeropage`: start, length, mode, how much came.
    const ZEROPAGE: u32 = 3 << 30 | 32 << 16 | 0xaa << 8 | 4;
    uffd.with(ZEROPAGE, &mut [addr, len, 0, 0u64])
}

/// An anonymous or descriptor-backed mapping, unmapped on drop.
pub struct Map {
    ptr: *mut u8,
    len: usize,
}
// SAFETY: the mapping is plain shared memory; users synchronise as the API demands.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Anonymous private memory.
    pub fn anon(len: usize) -> Result<Map> {
        Map::new(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1, 0)
    }

    /// Shared mapping of a descriptor.
    pub fn fd(fd: RawFd, len: usize, offset: i64) -> Result<Map> {
        Map::new(len, libc::MAP_SHARED, fd, offset)
    }

    fn new(len: usize, flags: i32, fd: RawFd, offset: i64) -> Result<Map> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let p = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset)
        };
        if p == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(Map { ptr: p.cast(), len }) }
    }

    /// First address.
    pub fn ptr(&self) -> *mut u8 {
        self.ptr
    }
    /// First address, as a number.
    pub fn addr(&self) -> u64 {
        self.ptr as u64
    }
    /// Length in bytes.
    pub fn size(&self) -> usize {
        self.len
    }

    /// Copies bytes in; panics outside of the mapping.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        assert!(offset as usize + bytes.len() <= self.len);
        // SAFETY: inside the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ptr.add(offset as usize), bytes.len()) }
    }

    /// Copies bytes out; panics outside of the mapping.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        assert!(offset as usize + bytes.len() <= self.len);
        // SAFETY: inside the mapping.
        unsafe {
            std::ptr::copy_nonoverlapping(self.ptr.add(offset as usize), bytes.as_mut_ptr(), bytes.len())
        }
    }

    /// One 64-bit word.
    pub fn word(&self, offset: u64) -> u64 {
        let mut b = [0; 8];
        self.read(offset, &mut b);
        u64::from_le_bytes(b)
    }

    /// Writes one 64-bit word.
    pub fn set_word(&self, offset: u64, v: u64) {
        self.write(offset, &v.to_le_bytes());
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}

/// A buffer with a header and a variable number of entries, as KVM_GET_MSRS and others want it.
#[repr(C)]
pub struct Flex<H, E, const N: usize> {
    /// The fixed part.
    pub head: H,
    /// The entries.
    pub entries: [E; N],
}

/// A CPUID table of up to 256 entries.
pub type Cpuid = Flex<[u32; 2], kvm_cpuid_entry2, 256>;
/// Up to 64 MSRs.
pub type MsrBuf = Flex<[u32; 2], kvm_msr_entry, 64>;

/// All-zero value of an API structure.
pub fn zeroed<T>() -> Box<T> {
    // SAFETY: only used with structures of integers.
    unsafe { Box::new(std::mem::zeroed()) }
}

/// KVM_GET_SUPPORTED_CPUID.
pub fn supported_cpuid(sys: &Fd) -> Result<Box<Cpuid>> {
    let mut c: Box<Cpuid> = zeroed();
    c.head[0] = 256;
    sys.with(nr::GET_SUPPORTED_CPUID, &mut *c)?;
    Ok(c)
}

/// Reads one MSR of a vCPU; `None` when the kernel refuses that index.
pub fn get_msr(vcpu: &Fd, index: u32) -> Result<Option<u64>> {
    let mut m: Box<MsrBuf> = zeroed();
    m.head[0] = 1;
    m.entries[0].index = index;
    let n = vcpu.with(nr::GET_MSRS, &mut *m)?;
    Ok((n == 1).then_some(m.entries[0].data))
}

/// Writes one MSR of a vCPU; false when the kernel refuses it.
pub fn set_msr(vcpu: &Fd, index: u32, data: u64) -> Result<bool> {
    let mut m: Box<MsrBuf> = zeroed();
    m.head[0] = 1;
    m.entries[0].index = index;
    m.entries[0].data = data;
    Ok(vcpu.with(nr::SET_MSRS, &mut *m)? == 1)
}

/// KVM_SET_USER_MEMORY_REGION.
pub fn set_slot(vm: &Fd, slot: u32, flags: u32, gpa: u64, size: u64, host: u64) -> Result<i32> {
    let r = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: host,
    };
    vm.set(nr::SET_USER_MEMORY_REGION, &r)
}
