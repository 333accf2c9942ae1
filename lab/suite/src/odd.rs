//! Guest memory on odd pages of the host (lab/hosts/modules/odd_pages): with memory errors, or without a page at all.

use crate::env::*;
use exitless_runner::kvm::{Map, nr, set_slot};
use kvm_bindings::*;
use libc::{EFAULT, EINTR};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(crate) const TESTS: &[Test] = &[
    ("odd/memory_error", memory_error),
    ("odd/memory_error_of_a_write", memory_error_of_a_write),
    ("odd/memory_error_while_blocked", memory_error_while_blocked),
    ("odd/memory_error_under_the_emulator", memory_error_under_the_emulator),
    ("odd/no_page", no_page),
    ("odd/frames", frames),
    ("odd/frames_taken_back", frames_taken_back),
    ("odd/device", device),
];

const SLOT: u64 = 0x10_0000;
/// mov eax, es:[0]; hlt, and on: the same again.
const READ: &[u8] = &[0x66, 0x26, 0xa1, 0, 0, 0xf4, 0x66, 0x26, 0xa1, 0, 0, 0xf4];
/// mov dword es:[0], 0x11223344; hlt
const WRITE: &[u8] = &[0x66, 0x26, 0xc7, 0x06, 0, 0, 0x44, 0x33, 0x22, 0x11, 0xf4];

/// Kinds of pages: where they begin in the device.
mod kind {
    pub(super) const POISON: u64 = 0;
    pub(super) const MISSING: u64 = 0x100;
    pub(super) const MEMORY: u64 = 0x200;
    pub(super) const RESERVED: u64 = 0x300;
    pub(super) const DEVICE: u64 = 0x400;
}

/// A VM with one odd page at [`SLOT`], which is also where ES begins.
struct Odd {
    g: Small,
    device: File,
    page: Map,
}

impl Odd {
    fn new(e: &Env, code: &[u8], kind: u64) -> Result<Self, Stop> {
        let device = match File::options().read(true).write(true).open("/dev/odd_pages") {
            Ok(device) => device,
            Err(_) => return skip("needs the lab's module odd_pages"),
        };
        let page = Map::fd(device.as_raw_fd(), 4096, (kind * 4096) as i64)?;
        let g = e.guest(Chips::None, code)?;
        set_slot(&g.vm, 1, 0, SLOT, 4096, page.addr())?;
        let mut s: kvm_sregs = g.vcpu.fd.get(nr::GET_SREGS)?;
        s.es.base = SLOT;
        g.vcpu.fd.set(nr::SET_SREGS, &s)?;
        let mut odd = Self { g, device, page };
        odd.say(b"o")?;
        Ok(odd)
    }
    fn say(&mut self, letter: &[u8; 1]) -> R {
        Ok(self.device.write_all(letter)?)
    }
    /// The guest's next read of the page's first word.
    fn read(&self) -> Result<u64, Stop> {
        self.g.vcpu.run_to(KVM_EXIT_HLT)?;
        Ok(self.g.vcpu.regs()?.rax)
    }
    /// What user space finds there.
    fn word(&self) -> u64 {
        let mut b = [0; 4];
        self.page.read(0, &mut b);
        u32::from_le_bytes(b).into()
    }
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);
static CODE: AtomicU32 = AtomicU32::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static BITS: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_sigbus(_: i32, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel's structure; for SIGBUS the address lies behind three words and padding, its size behind it.
    let (code, address, bits) =
        unsafe { ((*info).si_code, (*info).si_addr() as u64, *info.cast::<u8>().add(24).cast::<i16>()) };
    CODE.store(code as u32, Ordering::Relaxed);
    ADDRESS.store(address, Ordering::Relaxed);
    BITS.store(bits as u32, Ordering::Relaxed);
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

fn catch_sigbus() {
    // SAFETY: the handler only stores numbers.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
    }
}

/// SIGBUS tells the page's address in this process, KVM_RUN returns as with any signal, and once the page is another the guest
/// goes on where it was.
fn poisoned(e: &Env, code: &[u8]) -> R {
    let mut odd = Odd::new(e, code, kind::POISON)?;
    catch_sigbus();
    odd.say(b"p")?;
    for round in 1..=2 {
        errno!(odd.g.vcpu.run(), EINTR, "KVM_RUN");
        same!(odd.g.vcpu.page().exit_reason, KVM_EXIT_INTR, "exit reason");
        same!(SIGNALS.load(Ordering::Relaxed), round, "signals");
        same!(CODE.load(Ordering::Relaxed), 4, "si_code: BUS_MCEERR_AR");
        same!(ADDRESS.load(Ordering::Relaxed), odd.page.addr(), "si_addr");
        same!(BITS.load(Ordering::Relaxed), 12, "si_addr_lsb");
        same!(odd.g.vcpu.regs()?.rip, ENTRY, "rip");
    }
    odd.say(b"o")?;
    odd.g.vcpu.run_to(KVM_EXIT_HLT)?;
    same!(SIGNALS.load(Ordering::Relaxed), 2, "signals at the end");
    Ok(())
}

fn memory_error(e: &Env) -> R {
    poisoned(e, READ)
}

fn memory_error_of_a_write(e: &Env) -> R {
    poisoned(e, WRITE)
}

/// With SIGBUS blocked the guest tries for ever; other signals still end KVM_RUN.
fn memory_error_while_blocked(e: &Env) -> R {
    let mut odd = Odd::new(e, READ, kind::POISON)?;
    odd.say(b"p")?;
    extern "C" fn nothing(_: i32) {}
    // SAFETY: signals of this process, which has one thread; the handler does nothing.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&mut set, libc::SIGBUS);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        libc::signal(libc::SIGALRM, nothing as *const () as usize);
        libc::alarm(1);
    }
    errno!(odd.g.vcpu.run(), EINTR, "KVM_RUN");
    same!(odd.g.vcpu.regs()?.rip, ENTRY, "rip");
    odd.say(b"o")?;
    odd.g.vcpu.run_to(KVM_EXIT_HLT)
}

/// REP OUTSB from the page. Stock KVM asks user space for the bytes, as if a device lay there.
fn memory_error_under_the_emulator(e: &Env) -> R {
    // xor si, si; mov cx, 2; mov dx, 0x99; es rep outsb; hlt
    let code = [0x31, 0xf6, 0xb9, 2, 0, 0xba, 0x99, 0, 0x26, 0xf3, 0x6e, 0xf4];
    let mut odd = Odd::new(e, &code, kind::POISON)?;
    catch_sigbus();
    odd.say(b"p")?;
    match odd.g.vcpu.run() {
        Ok(_) => {
            same!(odd.g.vcpu.page().exit_reason, KVM_EXIT_MMIO, "stock's exit");
            return Ok(());
        }
        r => errno!(r, EINTR, "KVM_RUN"),
    }
    same!(CODE.load(Ordering::Relaxed), 4, "si_code: BUS_MCEERR_AR");
    same!(ADDRESS.load(Ordering::Relaxed), odd.page.addr(), "si_addr");
    odd.say(b"o")?;
    odd.page.write(0, &[0x5a, 0xa5]);
    for byte in [0x5a, 0xa5] {
        odd.g.vcpu.run_to(KVM_EXIT_IO)?;
        same!(odd.g.vcpu.io(), (0x99, 1, 1, byte), "exit");
    }
    odd.g.vcpu.run_to(KVM_EXIT_HLT)
}

fn no_page(e: &Env) -> R {
    let mut odd = Odd::new(e, READ, kind::MISSING)?;
    odd.say(b"p")?;
    errno!(odd.g.vcpu.run(), EFAULT, "KVM_RUN");
    odd.say(b"o")?;
    odd.g.vcpu.run_to(KVM_EXIT_HLT)
}

/// Frames that a driver maps without pages: the guest reads and writes what user space does.
fn frames(e: &Env) -> R {
    for kind in [kind::MEMORY, kind::RESERVED] {
        let odd = Odd::new(e, READ, kind)?;
        same!(odd.read()?, odd.word(), "what the guest reads in {kind:#x}");
        odd.page.write(0, &0xabcdu32.to_le_bytes());
        same!(odd.read()?, 0xabcd, "what user space wrote in {kind:#x}");
        let odd = Odd::new(e, WRITE, kind)?;
        odd.g.vcpu.run_to(KVM_EXIT_HLT)?;
        same!(odd.word(), 0x1122_3344, "what the guest wrote in {kind:#x}");
    }
    Ok(())
}

/// The driver takes the frame back: the guest finds the new one, as user space does.
fn frames_taken_back(e: &Env) -> R {
    for kind in [kind::MEMORY, kind::RESERVED] {
        let mut odd = Odd::new(e, READ, kind)?;
        odd.page.write(0, &1u32.to_le_bytes());
        same!(odd.read()?, 1, "before");
        odd.say(b"s")?;
        odd.page.write(0, &2u32.to_le_bytes());
        same!(odd.read()?, 2, "behind in {kind:#x}");
    }
    Ok(())
}

/// Registers of a device of the host.
fn device(e: &Env) -> R {
    let odd = Odd::new(e, READ, kind::DEVICE)?;
    let word = odd.word();
    ensure!(word != 0 && word != 0xffff_ffff, "the host has no HPET");
    same!(odd.read()?, word, "capabilities of the HPET");
    Ok(())
}
