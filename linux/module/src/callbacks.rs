//! The doors through which C calls in: one unsafe conversion each, then safe code.

use crate::vcpu::VcpuObj;
use crate::vm::{Vm, clock};
use crate::{control, dev, global, statsfd};
use core::ffi::{c_int, c_void};
use core::sync::atomic::Ordering::Relaxed;
use exitless_async_pf::Pot;
use exitless_host::mem::KArc;
use exitless_host::{Errno, cpu};

fn status(r: Result<(), Errno>) -> c_int {
    match r {
        Ok(()) => 0,
        Err(e) => e.to_int(),
    }
}

/// The VM behind an fd's private pointer.
///
/// # Safety
/// `p` came from `KArc::into_raw` and the fd (or the object whose cookie it is) still holds that reference.
unsafe fn vm<'a>(p: *mut c_void) -> &'a Vm {
    // SAFETY: the caller's reference keeps the VM alive.
    unsafe { &*p.cast::<Vm>() }
}

/// # Safety
/// `p` is a vCPU's object, which lives as long as its VM, to which the caller holds a reference.
unsafe fn vcpu<'a>(p: *mut c_void) -> &'a VcpuObj {
    // SAFETY: see the contract.
    unsafe { &*p.cast::<VcpuObj>() }
}

/// # Safety
/// `len` bytes at `at` can be read as long as the caller uses them.
unsafe fn bytes<'a>(at: *const u8, len: usize) -> &'a [u8] {
    // SAFETY: see the contract; where there are none the pointer does not count.
    if len == 0 { &[] } else { unsafe { core::slice::from_raw_parts(at, len) } }
}

/// # Safety
/// `len` initialised bytes at `at` are the caller's as long as it uses them.
unsafe fn bytes_mut<'a>(at: *mut u8, len: usize) -> &'a mut [u8] {
    // SAFETY: as above.
    if len == 0 { &mut [] } else { unsafe { core::slice::from_raw_parts_mut(at, len) } }
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_init() -> c_int {
    let ready = global::init();
    if ready.is_ok() {
        exitless_insn::init();
    }
    status(ready)
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_exit() {
    global::exit();
    #[cfg(target_os = "none")]
    // SAFETY: no fd is open and no vCPU exists, so the decoder, the allocator's one user, decodes no more.
    unsafe {
        exitless_host::alloc::free_all();
    }
    let (blocks, pages) = exitless_host::mem::live();
    if (blocks, pages) != (0, 0) {
        // The words make every log check stop: memory is lost until the machine restarts.
        exitless_host::pr_err!("BUG: exitless leaks {blocks} heap blocks and {pages} page runs");
    }
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_cpu_online(cpu: u32) -> c_int {
    status(global::cpu_online(cpu))
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_cpu_offline(cpu: u32) {
    global::cpu_offline(cpu);
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_cpu_emergency() {
    global::cpu_emergency();
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_on_cpu(arg: *mut c_void, op: u32) {
    if op == on_cpu::VMCS_LEAVES
        && let Some(slot) = global::get().and_then(|g| g.cpus.get(exitless_host::cpu::id() as usize))
    {
        // SAFETY: whoever asks waits for us and keeps the residence alive.
        unsafe { crate::vendor::vmx::leave_here(slot, arg) };
    }
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_user_return(cpu: u32) {
    if let Some(g) = global::get()
        && let Some(slot) = g.cpus.get(cpu as usize)
    {
        crate::vendor::user_return(g, slot);
    }
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_host_suspends() {
    clock::host_suspends();
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_host_resumes() {
    clock::host_resumes();
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_guests_stop() {
    clock::guests_stop();
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_guests_go_on() {
    clock::guests_go_on();
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_clock_source_changed() {
    clock::source_changed();
}

/// What one CPU may ask of another.
pub mod on_cpu {
    /// The VMCS whose residence is the argument leaves the CPU.
    pub const VMCS_LEAVES: u32 = 1;
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_dev_ioctl(cmd: u32, arg: usize) -> isize {
    exitless_host::errno::ret(dev::ioctl(cmd, arg))
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_control_ioctl(cmd: u32, arg: usize, writable: bool) -> isize {
    exitless_host::errno::ret(control::ioctl(cmd, arg, writable))
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_control_text(buf: *mut u8, len: usize) -> usize {
    // SAFETY: C gives a buffer of `len` bytes for the duration of the call.
    control::text(unsafe { bytes_mut(buf, len) })
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_control_words(words: *const u8, len: usize) -> c_int {
    // SAFETY: C gives `len` bytes for the duration of the call.
    status(control::written(unsafe { bytes(words, len) }))
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_mechanisms_set(words: *const u8, len: usize) -> c_int {
    // SAFETY: as above.
    status(control::set_defaults(unsafe { bytes(words, len) }))
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_mechanisms_get(buf: *mut u8, len: usize) -> c_int {
    // SAFETY: C gives a buffer of `len` bytes for the duration of the call.
    control::show_defaults(unsafe { bytes_mut(buf, len) }) as c_int
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_vm_ioctl(p: *mut c_void, cmd: u32, arg: usize) -> isize {
    // SAFETY: the fd's private pointer is its reference to the VM.
    let vm = unsafe { vm(p) };
    exitless_host::errno::ret(crate::vm::ioctl::dispatch(vm, cmd, arg))
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_vcpu_ioctl(p: *mut c_void, cmd: u32, arg: usize) -> isize {
    // SAFETY: the fd's private pointer is a vCPU; the fd holds a reference to its VM.
    let v = unsafe { vcpu(p) };
    exitless_host::errno::ret(crate::vcpu::ioctl::dispatch(v, cmd, arg))
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_vm_release(p: *mut c_void) {
    // SAFETY: the last close of the VM's fd: its reference comes back to us.
    if let Some(vm) = unsafe { KArc::<Vm>::from_raw(p.cast::<Vm>().cast_const()) } {
        vm.fd_closed();
    }
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_vcpu_release(p: *mut c_void) {
    // SAFETY: as above; the vCPU holds a reference to its VM on behalf of the fd, which ends here.
    unsafe { crate::vcpu::release(p.cast()) };
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_vm_stats(p: *mut c_void, from: u64, buf: *mut u8, len: usize) -> usize {
    // SAFETY: the file's private pointer is its reference to the VM; C gives a buffer of `len` bytes for the duration of the call.
    let (vm, buf) = unsafe { (vm(p), bytes_mut(buf, len)) };
    statsfd::read_vm(vm, from as usize, buf)
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_vcpu_stats(p: *mut c_void, from: u64, buf: *mut u8, len: usize) -> usize {
    // SAFETY: the file's private pointer is a vCPU, to whose VM the file holds a reference; the buffer as above.
    let (v, buf) = unsafe { (vcpu(p), bytes_mut(buf, len)) };
    statsfd::read_vcpu(v, from as usize, buf)
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_vm_stats_release(p: *mut c_void) {
    // SAFETY: the last close of the file: its reference comes back to us.
    drop(unsafe { KArc::<Vm>::from_raw(p.cast::<Vm>().cast_const()) });
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_vcpu_fault(p: *mut c_void, pgoff: usize) -> *mut c_void {
    // SAFETY: the mapping holds the file, the file holds the VM.
    let v = unsafe { vcpu(p) };
    v.page(pgoff)
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_irqfd_wakeup(p: *mut c_void, irqfd: usize) -> bool {
    // SAFETY: irqfds are dropped, and hangups settled, before their VM goes (`Vm::fd_closed`).
    let vm = unsafe { vm(p) };
    crate::vm::irqfd::fire_at_once(vm, irqfd)
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_irqfd_inject(p: *mut c_void, irqfd: usize) {
    // SAFETY: irqfds are dropped, and hangups settled, before their VM goes (`Vm::fd_closed`).
    let vm = unsafe { vm(p) };
    crate::vm::irqfd::fire(vm, irqfd);
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_irqfd_hangup(p: *mut c_void, irqfd: usize) {
    // SAFETY: irqfds are dropped, and hangups settled, before their VM goes (`Vm::fd_closed`).
    let vm = unsafe { vm(p) };
    crate::vm::irqfd::hangup(vm, irqfd);
}

/// Kinds of host timers.
pub mod timer_kind {
    /// A vCPU's APIC timer; the cookie is the vCPU.
    pub const APIC: u32 = 0;
    /// A VM's 8254; the cookie is the VM.
    pub const PIT: u32 = 1;
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_timer_fired(cookie: *mut c_void, kind: u32) -> u64 {
    match kind {
        timer_kind::APIC => {
            // SAFETY: the timer is cancelled before its vCPU is freed.
            let v = unsafe { vcpu(cookie) };
            v.timer_fired();
        }
        _ => {
            // SAFETY: the timer is cancelled before its VM is freed.
            let vm = unsafe { vm(cookie) };
            vm.pit_fired();
        }
    }
    exitless_host::timer::STOP
}

/// The APIC's timer of this CPU is lent, and the kernel is about to use it. Interrupts are off.
#[unsafe(no_mangle)]
extern "C" fn ex_rs_give_timer_back() {
    if let Some(g) = global::get()
        && let Some(slot) = g.cpus.get(cpu::id() as usize)
    {
        crate::vendor::vmx::give_timer_back(slot);
    }
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_sched_in(p: *mut c_void, cpu: u32) {
    // SAFETY: the notifier is registered only while its vCPU runs.
    let v = unsafe { vcpu(p) };
    v.sched_in(cpu);
    v.shared.rescheduled.store(true, Relaxed);
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_sched_out(p: *mut c_void, preempted: bool) {
    // SAFETY: as above.
    let v = unsafe { vcpu(p) };
    v.sched_out(preempted);
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_vcpu_wake_check(p: *mut c_void) -> bool {
    // SAFETY: called by the vCPU's own thread while it blocks.
    let v = unsafe { vcpu(p) };
    v.shared.must_wake()
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_hardware_posts() -> bool {
    global::get().is_some_and(crate::vendor::hardware_posts)
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_posted(p: *mut c_void) {
    // SAFETY: a vCPU is off the lists before it is freed.
    let v = unsafe { vcpu(p) };
    if v.shared.apic.posted().wants_wake_up() {
        v.wake();
    }
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_sleeps_elsewhere(p: *mut c_void) {
    // SAFETY: as above.
    let v = unsafe { vcpu(p) };
    v.shared.request(exitless_vcpu::Request::EVENT);
    v.wake();
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_page_brought(p: *mut c_void, place: u32, there: bool) {
    // SAFETY: a vCPU's workers lose sight of it, under the lock that this is called with, before it is freed.
    let v = unsafe { vcpu(p) };
    v.page_brought(place as u8, there);
}

static WORKERS: Pot = Pot::new();

#[unsafe(no_mangle)]
extern "C" fn ex_rs_worker_may(user: u32) -> bool {
    WORKERS.take(user)
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_worker_done(user: u32) {
    WORKERS.give(user);
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_mmu_invalidate_start(p: *mut c_void, start: u64, end: u64, blockable: bool) -> c_int {
    // SAFETY: the notifier is unregistered before its VM is freed.
    let vm = unsafe { vm(p) };
    vm.invalidate_start(start, end, blockable);
    0
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_mmu_invalidate_end(p: *mut c_void, start: u64, end: u64) {
    // SAFETY: as above.
    let vm = unsafe { vm(p) };
    vm.invalidate_end(start, end);
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_mmu_age(p: *mut c_void, start: u64, end: u64, clear: bool) -> c_int {
    // SAFETY: as above.
    let vm = unsafe { vm(p) };
    c_int::from(vm.age(start, end, clear))
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_mmu_release(p: *mut c_void) {
    // SAFETY: as above.
    let vm = unsafe { vm(p) };
    vm.zap_everything();
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_debugfs_knock(cookie: *mut c_void, kind: u32) {
    // SAFETY: as for `ex_rs_debugfs_show`.
    let vm = unsafe { vm(cookie) };
    crate::stats::knock(vm, kind);
}

#[unsafe(no_mangle)]
extern "C" fn ex_rs_debugfs_show(cookie: *mut c_void, kind: u32, buf: *mut u8, len: usize) -> usize {
    // SAFETY: C gives a buffer of `len` bytes for the duration of the call.
    let out = unsafe { core::slice::from_raw_parts_mut(buf, len) };
    // SAFETY: the directory is removed before its VM is freed.
    let vm = unsafe { vm(cookie) };
    crate::stats::show(vm, kind, out)
}
