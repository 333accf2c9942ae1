//! What the tests are written with: small VMs, a guest blob in real mode, and checks that say what went wrong.

use exitless_runner::kvm::{self, Errno, Fd, Map, nr};
use kvm_bindings::*;

/// Why a test ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    Skip(String),
    Fail(String),
}
impl From<Errno> for Stop {
    fn from(e: Errno) -> Stop {
        Stop::Fail(format!("unexpected error: {e}"))
    }
}
impl From<std::io::Error> for Stop {
    fn from(e: std::io::Error) -> Stop {
        Stop::Fail(format!("unexpected error: {e}"))
    }
}

/// Result of a test.
pub(crate) type R = Result<(), Stop>;
/// One test: `group/name` and its function.
pub(crate) type Test = (&'static str, fn(&Env) -> R);

/// The module under test is this project's, not stock KVM.
pub(crate) fn exitless() -> bool {
    std::path::Path::new("/sys/module/exitless").exists()
}

/// Fails with a text unless the condition holds.
macro_rules! ensure {
    ($c:expr, $($t:tt)+) => {
        if !$c {
            return Err($crate::env::Stop::Fail(format!($($t)+)));
        }
    };
}
/// Fails unless both are equal.
macro_rules! same {
    ($a:expr, $b:expr, $($t:tt)+) => {{
        let (a, b) = (&$a, &$b);
        if a != b {
            return Err($crate::env::Stop::Fail(format!("{}: got {a:?}, want {b:?}", format!($($t)+))));
        }
    }};
}
/// Fails unless the call failed with this errno.
macro_rules! errno {
    ($r:expr, $e:expr, $($t:tt)+) => {
        match $r {
            Err(exitless_runner::kvm::Errno(e)) if e == $e => {}
            other => {
                return Err($crate::env::Stop::Fail(format!(
                    "{}: got {other:?}, want {:?}", format!($($t)+), exitless_runner::kvm::Errno($e)
                )));
            }
        }
    };
}
pub(crate) use {ensure, errno, same};

/// Skips the test.
pub(crate) fn skip<T>(why: &str) -> Result<T, Stop> {
    Err(Stop::Skip(why.into()))
}

/// Where the tests find the module.
pub(crate) struct Env {
    pub(crate) device: String,
}

/// Which interrupt chips a VM has in the kernel.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chips {
    None,
    Full,
}

/// A VM with one vCPU and 1 MiB of memory.
pub(crate) struct Small {
    pub(crate) sys: Fd,
    pub(crate) vm: Fd,
    pub(crate) vcpu: Vcpu,
    pub(crate) mem: Map,
}

/// A vCPU and its shared page.
pub(crate) struct Vcpu {
    pub(crate) fd: Fd,
    pub(crate) map: Map,
}

pub(crate) const MEM: usize = 1 << 20;
pub(crate) const ENTRY: u64 = 0x1000;

impl Env {
    pub(crate) fn sys(&self) -> Result<Fd, Stop> {
        Ok(kvm::open(&self.device)?)
    }

    pub(crate) fn vm(&self) -> Result<(Fd, Fd), Stop> {
        let sys = self.sys()?;
        let vm = kvm::create_vm(&sys)?;
        Ok((sys, vm))
    }

    pub(crate) fn vm_with_chips(&self) -> Result<(Fd, Fd), Stop> {
        let (sys, vm) = self.vm()?;
        vm.call(nr::CREATE_IRQCHIP, 0)?;
        Ok((sys, vm))
    }

    /// A VM whose vCPU starts the given 16-bit code at 0:1000.
    pub(crate) fn guest(&self, chips: Chips, code: &[u8]) -> Result<Small, Stop> {
        let (sys, vm) = self.vm()?;
        if chips == Chips::Full {
            vm.call(nr::CREATE_IRQCHIP, 0)?;
        }
        let mem = Map::anon(MEM)?;
        kvm::set_slot(&vm, 0, 0, 0, MEM as u64, mem.addr())?;
        mem.write(ENTRY, code);
        let vcpu = vcpu(&sys, &vm, 0)?;
        exitless_runner::machine::set_cpuid(&sys, &vcpu.fd, 0)?;
        real_mode(&vcpu.fd, ENTRY)?;
        Ok(Small { sys, vm, vcpu, mem })
    }

    /// A vCPU with CPUID set and nothing to run.
    pub(crate) fn idle(&self, chips: Chips) -> Result<Small, Stop> {
        self.guest(chips, &[0xf4])
    }
}

pub(crate) fn vcpu(sys: &Fd, vm: &Fd, id: u64) -> Result<Vcpu, Stop> {
    let fd = vm.call(nr::CREATE_VCPU, id)?;
    // SAFETY: a new descriptor.
    let fd = unsafe { Fd::from_raw(fd) };
    let map = Map::fd(fd.raw(), sys.call(nr::GET_VCPU_MMAP_SIZE, 0)? as usize, 0)?;
    Ok(Vcpu { fd, map })
}

/// Real mode, CS base 0.
pub(crate) fn real_mode(fd: &Fd, rip: u64) -> R {
    let mut s: kvm_sregs = fd.get(nr::GET_SREGS)?;
    s.cs.base = 0;
    s.cs.selector = 0;
    fd.set(nr::SET_SREGS, &s)?;
    fd.set(nr::SET_REGS, &kvm_regs { rip, rsp: 0x800, rflags: 2, ..Default::default() })?;
    Ok(())
}

impl Vcpu {
    /// The shared page.
    #[allow(clippy::mut_from_ref)]
    pub(crate) fn page(&self) -> &mut kvm_run {
        // SAFETY: the tests touch the page only between two KVM_RUN calls of the same thread, save where they test the
        // opposite through single volatile bytes.
        unsafe { &mut *self.map.ptr().cast() }
    }

    /// KVM_RUN.
    pub(crate) fn run(&self) -> kvm::Result<i32> {
        self.fd.call(nr::RUN, 0)
    }

    /// KVM_RUN that must end with this exit reason.
    pub(crate) fn run_to(&self, reason: u32) -> R {
        self.run()?;
        let got = self.page().exit_reason;
        if got == KVM_EXIT_INTERNAL_ERROR && reason != got {
            // SAFETY: the reason says which member is valid.
            let i = unsafe { self.page().__bindgen_anon_1.internal };
            return Err(Stop::Fail(format!("internal error {}, want exit {reason}", i.suberror)));
        }
        same!(got, reason, "exit reason");
        Ok(())
    }

    pub(crate) fn regs(&self) -> Result<kvm_regs, Stop> {
        Ok(self.fd.get(nr::GET_REGS)?)
    }

    /// Port, size, direction (1 = out) and the first element of an I/O exit.
    pub(crate) fn io(&self) -> (u16, u8, u8, u32) {
        // SAFETY: called after an I/O exit.
        let io = unsafe { self.page().__bindgen_anon_1.io };
        let mut b = [0; 4];
        self.map.read(io.data_offset, &mut b[..usize::from(io.size).min(4)]);
        (io.port, io.size, io.direction, u32::from_le_bytes(b))
    }
}

/// The bytes of a structure, for comparisons.
pub(crate) fn bytes<T>(v: &T) -> &[u8] {
    // SAFETY: structures of integers without padding that matters; zeroed before.
    unsafe { std::slice::from_raw_parts((v as *const T).cast(), size_of::<T>()) }
}
