//! Every helper of `linux/c/helpers/helpers.h`, in its order. A test compares the two lists.

use core::ffi::{c_char, c_int, c_void};

/// `struct ex_clock_snapshot`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct ClockSnapshot {
    pub(crate) tsc: u64,
    pub(crate) base_ns: u64,
    pub(crate) real_ns: u64,
}

/// `struct ex_gup_result`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct GupResult {
    pub(crate) pfn: u64,
    pub(crate) writable: u32,
    pub(crate) counted: u32,
}

#[allow(dead_code)] // The list mirrors the header; some helpers wait for their first user.
unsafe extern "C" {
    // bug.c

    // cpu.c
    pub(crate) fn ex_cpu_id() -> u32;
    pub(crate) fn ex_cpu_possible() -> u32;
    pub(crate) fn ex_cpu_is_possible(cpu: u32) -> bool;
    pub(crate) fn ex_cpu_is_online(cpu: u32) -> bool;
    pub(crate) fn ex_cpu_online_count() -> u32;
    pub(crate) fn ex_cpu_apic_id(cpu: u32) -> u32;
    pub(crate) fn ex_exits_to_disable() -> u64;
    pub(crate) fn ex_cpu_microcode() -> u32;
    pub(crate) fn ex_arch_capabilities() -> u64;
    pub(crate) fn ex_immunities() -> u64;
    pub(crate) fn ex_preempt_disable();
    pub(crate) fn ex_preempt_enable();
    pub(crate) fn ex_irq_save() -> usize;
    pub(crate) fn ex_irq_restore(flags: usize);
    pub(crate) fn ex_cpu_kick(cpu: u32);
    pub(crate) fn ex_cpu_post(cpu: u32);
    pub(crate) fn ex_notify(cpu: u32);
    pub(crate) fn ex_vm_born() -> c_int;
    pub(crate) fn ex_vm_gone();
    pub(crate) fn ex_on_one_cpu(cpu: u32, arg: *mut c_void, op: u32) -> c_int;
    pub(crate) fn ex_kick_set(wait: bool) -> *mut c_void;
    pub(crate) fn ex_kick_add(set: *mut c_void, cpu: u32);
    pub(crate) fn ex_kick_all_ack(set: *const c_void);
    pub(crate) fn ex_kick_all(set: *mut c_void);
    pub(crate) fn ex_post_all(set: *mut c_void);
    pub(crate) fn ex_hw_breakpoint_active() -> bool;
    pub(crate) fn ex_hw_breakpoint_restore();
    pub(crate) fn ex_ldt_reload();
    pub(crate) fn ex_ibpb();
    pub(crate) fn ex_ibpb_for_guest() -> bool;
    pub(crate) fn ex_host_spec_ctrl() -> u64;
    pub(crate) fn ex_host_has_spec_ctrl() -> bool;
    pub(crate) fn ex_host_has_ibpb() -> bool;
    pub(crate) fn ex_spec_ctrl_bits() -> u64;

    // debugfs.c
    pub(crate) fn ex_debugfs_dir_new(name: *const c_char) -> *mut c_void;
    pub(crate) fn ex_debugfs_dir_free(dir: *mut c_void);
    pub(crate) fn ex_debugfs_text(
        dir: *mut c_void,
        name: *const c_char,
        cookie: *mut c_void,
        kind: u32,
        knocks: bool,
    ) -> c_int;
    pub(crate) fn ex_debugfs_u64(dir: *mut c_void, name: *const c_char, value: *mut u64);

    // eventfd.c
    pub(crate) fn ex_eventfd_get(fd: c_int, ctx: *mut *mut c_void) -> c_int;
    pub(crate) fn ex_eventfd_put(ctx: *mut c_void);
    pub(crate) fn ex_eventfd_signal(ctx: *mut c_void);
    pub(crate) fn ex_eventfd_may_signal() -> bool;

    // fd.c
    pub(crate) fn ex_fd_reserve(flags: u32) -> c_int;
    pub(crate) fn ex_fd_unreserve(fd: c_int);
    pub(crate) fn ex_fd_open(
        kind: u32,
        name: *const c_char,
        object: *mut c_void,
        flags: u32,
        err: *mut c_int,
    ) -> *mut c_void;
    pub(crate) fn ex_fd_install(fd: c_int, file: *mut c_void);
    pub(crate) fn ex_fd_close(file: *mut c_void);

    // fpu.c
    pub(crate) fn ex_fpu_new() -> *mut c_void;
    pub(crate) fn ex_fpu_free(fpu: *mut c_void);
    pub(crate) fn ex_fpu_load_guest(fpu: *mut c_void);
    pub(crate) fn ex_fpu_put_guest(fpu: *mut c_void);
    pub(crate) fn ex_fpu_before_enter();
    pub(crate) fn ex_fpu_xmm(i: u32, value: *mut c_void, write: bool);
    pub(crate) fn ex_fpu_mmx(i: u32, value: *mut c_void, write: bool);
    pub(crate) fn ex_fpu_control() -> u16;
    pub(crate) fn ex_fpu_status() -> u16;
    pub(crate) fn ex_fpu_to_uabi(fpu: *mut c_void, buf: *mut c_void, size: u32, xfeatures: u64, pkru: u32);
    pub(crate) fn ex_fpu_from_uabi(fpu: *mut c_void, buf: *const c_void, xcr0: u64, pkru: *mut u32) -> c_int;
    pub(crate) fn ex_host_xcr0() -> u64;
    pub(crate) fn ex_host_xsaves() -> bool;
    pub(crate) fn ex_host_xss() -> u64;

    // hrtimer.c
    pub(crate) fn ex_timer_new(cookie: *mut c_void, kind: u32) -> *mut c_void;
    pub(crate) fn ex_timer_free(timer: *mut c_void);
    pub(crate) fn ex_timer_start(timer: *mut c_void, expires_ns: u64, pinned: bool);
    pub(crate) fn ex_timer_start_elsewhere(timer: *mut c_void, expires_ns: u64);
    pub(crate) fn ex_timer_start_again(timer: *mut c_void, expires_ns: u64);
    pub(crate) fn ex_keeps_house() -> bool;
    pub(crate) fn ex_timer_cancel(timer: *mut c_void) -> bool;
    pub(crate) fn ex_timer_try_cancel(timer: *mut c_void) -> c_int;
    pub(crate) fn ex_timer_bring(timer: *mut c_void);
    pub(crate) fn ex_timer_expires(timer: *const c_void) -> u64;

    // irqfd.c
    pub(crate) fn ex_irqfd_new(vm: *mut c_void, cookie: usize, fd: c_int, err: *mut c_int) -> *mut c_void;
    pub(crate) fn ex_irqfd_free(irqfd: *mut c_void);
    pub(crate) fn ex_irqfd_settle();
    pub(crate) fn ex_irqfd_is(irqfd: *const c_void, ctx: *const c_void) -> bool;

    // lock.c
    pub(crate) fn ex_spin_new(class: u32) -> *mut c_void;
    pub(crate) fn ex_spin_free(lock: *mut c_void);
    pub(crate) fn ex_spin_lock(lock: *mut c_void) -> usize;
    pub(crate) fn ex_spin_unlock(lock: *mut c_void, flags: usize);
    pub(crate) fn ex_mutex_new(class: u32) -> *mut c_void;
    pub(crate) fn ex_mutex_free(lock: *mut c_void);
    pub(crate) fn ex_mutex_lock(lock: *mut c_void);
    pub(crate) fn ex_mutex_lock_killable(lock: *mut c_void) -> c_int;
    pub(crate) fn ex_mutex_unlock(lock: *mut c_void);

    // mm.c
    pub(crate) fn ex_gup(hva: u64, write: bool, waits: bool, out: *mut GupResult) -> c_int;
    pub(crate) fn ex_page_release(pfn: u64, dirty: bool, accessed: bool);
    pub(crate) fn ex_host_level(mm: *mut c_void, hva: u64) -> u32;
    pub(crate) fn ex_pfn_is_ram(pfn: u64) -> bool;
    pub(crate) fn ex_mm_grab_current() -> *mut c_void;
    pub(crate) fn ex_mm_drop(mm: *mut c_void);
    pub(crate) fn ex_mm_current() -> *mut c_void;

    // mmu_notifier.c
    pub(crate) fn ex_mmu_notifier_new(cookie: *mut c_void, err: *mut c_int) -> *mut c_void;
    pub(crate) fn ex_mmu_notifier_free(notifier: *mut c_void);

    // perf.c
    pub(crate) fn ex_pmu_virt(on: bool);

    // printk.c
    pub(crate) fn ex_pr_info(text: *const c_char, len: u32);
    pub(crate) fn ex_pr_warn(text: *const c_char, len: u32);
    pub(crate) fn ex_pr_err(text: *const c_char, len: u32);

    // sched.c
    pub(crate) fn ex_vcpu_new(rust: *mut c_void) -> *mut c_void;
    pub(crate) fn ex_vcpu_free(vcpu: *mut c_void);
    pub(crate) fn ex_vcpu_load(vcpu: *mut c_void) -> u32;
    pub(crate) fn ex_vcpu_put(vcpu: *mut c_void);
    pub(crate) fn ex_vcpu_block(vcpu: *mut c_void) -> c_int;
    pub(crate) fn ex_vcpu_wake(vcpu: *mut c_void) -> bool;
    pub(crate) fn ex_run_delay_ns() -> u64;
    pub(crate) fn ex_vcpu_record_current(vcpu: *mut c_void);
    pub(crate) fn ex_vcpu_yield_to(vcpu: *mut c_void, preempt: bool) -> c_int;
    pub(crate) fn ex_halt_poll_ns() -> u64;
    pub(crate) fn ex_timer_advance_ns() -> c_int;
    pub(crate) fn ex_send_memory_error(hva: u64);
    pub(crate) fn ex_signal_pending() -> bool;
    pub(crate) fn ex_need_resched() -> bool;
    pub(crate) fn ex_cond_resched();
    pub(crate) fn ex_single_task_running() -> bool;
    pub(crate) fn ex_guest_work_pending() -> bool;
    pub(crate) fn ex_guest_work_word(mask: *mut u64) -> *const u64;
    pub(crate) fn ex_guest_work_handle() -> c_int;
    pub(crate) fn ex_current_pid() -> c_int;
    pub(crate) fn ex_current_euid() -> u32;
    pub(crate) fn ex_is_admin() -> bool;
    pub(crate) fn ex_in_compat_syscall() -> bool;
    pub(crate) fn ex_sigset_activate(set: u64);
    pub(crate) fn ex_sigset_deactivate();
    pub(crate) fn ex_cpu_relax();

    // slab.c
    pub(crate) fn ex_kvzalloc(size: usize, align: usize) -> *mut c_void;
    pub(crate) fn ex_kvmalloc_module(size: usize, align: usize) -> *mut c_void;
    pub(crate) fn ex_kvfree(ptr: *mut c_void);
    pub(crate) fn ex_pages_alloc(order: u32) -> *mut c_void;
    pub(crate) fn ex_pages_free(virt: *mut c_void, order: u32);
    pub(crate) fn ex_page_of(virt: *mut c_void) -> *mut c_void;
    pub(crate) fn ex_phys_of(virt: *const c_void) -> u64;
    pub(crate) fn ex_virt_of(phys: u64) -> *mut c_void;
    pub(crate) fn ex_sme_mask() -> u64;

    // srcu.c
    pub(crate) fn ex_srcu_new() -> *mut c_void;
    pub(crate) fn ex_srcu_free(srcu: *mut c_void);
    pub(crate) fn ex_srcu_read_lock(srcu: *mut c_void) -> c_int;
    pub(crate) fn ex_srcu_read_unlock(srcu: *mut c_void, idx: c_int);
    pub(crate) fn ex_srcu_synchronize(srcu: *mut c_void);
    pub(crate) fn ex_srcu_synchronize_expedited(srcu: *mut c_void);

    // timekeeping.c
    pub(crate) fn ex_monotonic_ns() -> u64;
    pub(crate) fn ex_real_ns() -> u64;
    pub(crate) fn ex_tsc_khz() -> u32;
    pub(crate) fn ex_tsc_unstable() -> bool;
    pub(crate) fn ex_tsc_mark_unstable();
    pub(crate) fn ex_clock_snapshot(out: *mut ClockSnapshot) -> bool;

    // uaccess.c
    pub(crate) fn ex_access_ok(addr: usize, len: usize) -> bool;
    pub(crate) fn ex_user_read(dst: *mut c_void, addr: usize, len: usize) -> c_int;
    pub(crate) fn ex_user_write(addr: usize, src: *const c_void, len: usize) -> c_int;
    pub(crate) fn ex_user_clear(addr: usize, len: usize) -> c_int;
    pub(crate) fn ex_user_read_atomic(dst: *mut c_void, addr: usize, len: usize) -> c_int;
    pub(crate) fn ex_user_read_u64_atomic(addr: usize, value: *mut u64) -> bool;
    pub(crate) fn ex_user_write_u8_atomic(addr: usize, value: u8) -> bool;
    pub(crate) fn ex_user_write_u64_atomic(addr: usize, value: u64) -> bool;
    pub(crate) fn ex_user_cmpxchg_u8(addr: usize, old: u8, new: u8) -> c_int;
    pub(crate) fn ex_user_cmpxchg_u16(addr: usize, old: u16, new: u16) -> c_int;
    pub(crate) fn ex_user_cmpxchg_u32(addr: usize, old: u32, new: u32) -> c_int;
    pub(crate) fn ex_user_cmpxchg_u64(addr: usize, old: u64, new: u64) -> c_int;

    // user_return.c
    pub(crate) fn ex_forget_user_return();

    // wait.c
    pub(crate) fn ex_wait_new() -> *mut c_void;
    pub(crate) fn ex_wait_free(wait: *mut c_void);
    pub(crate) fn ex_wait_seen(wait: *const c_void) -> u32;
    pub(crate) fn ex_wait_sleep(wait: *mut c_void, seen: u32);
    pub(crate) fn ex_wait_wake(wait: *mut c_void);

    // ../enter.c
    pub(crate) fn ex_svm_enter(
        vmcb: *const c_void,
        vmcb_pa: u64,
        regs: *mut u64,
        host_save_pa: u64,
        spec_ctrl: u64,
        host_debugctl: u64,
    ) -> u32;
    pub(crate) fn ex_svm_save_host(host_save_pa: u64) -> u32;
    pub(crate) fn ex_svm_debugctl() -> u64;
    pub(crate) fn ex_svm_set_debugctl(value: u64);
    pub(crate) fn ex_svm_wants_avic() -> bool;
    pub(crate) fn ex_machine_check();
    pub(crate) fn ex_slice_begin();
    pub(crate) fn ex_slice_end();

    // ../vmx.c
    pub(crate) fn ex_sleeper_new(vcpu: *mut c_void) -> *mut c_void;
    pub(crate) fn ex_sleeper_free(sleeper: *mut c_void);
    pub(crate) fn ex_sleeper_add(sleeper: *mut c_void) -> bool;
    pub(crate) fn ex_sleeper_remove(sleeper: *mut c_void);
    pub(crate) fn ex_sleepers_listen() -> bool;
    pub(crate) fn ex_workers_new(vcpu: *mut c_void) -> *mut c_void;
    pub(crate) fn ex_workers_free(workers: *mut c_void);
    pub(crate) fn ex_workers_bring(workers: *mut c_void, hva: u64, write: bool, place: u32) -> bool;
    pub(crate) fn ex_vmx_wants_apicv() -> bool;
    pub(crate) fn ex_vmx_wants_ipiv() -> bool;
    pub(crate) fn ex_vmx_allows_raw_ipi() -> bool;
    pub(crate) fn ex_vmx_fred() -> bool;
    pub(crate) fn ex_vmx_wants_timer() -> bool;
    pub(crate) fn ex_vmx_wants_pml() -> bool;
    pub(crate) fn ex_vmx_wants_vpid() -> bool;
    pub(crate) fn ex_vmx_guards_exec() -> bool;
    pub(crate) fn ex_vmx_host_x2apic() -> bool;
    pub(crate) fn ex_vmx_timer_fits() -> bool;
    pub(crate) fn ex_vmx_on(region_pa: u64) -> c_int;
    pub(crate) fn ex_vmx_off();
    pub(crate) fn ex_vmx_host_state(words: *mut u64);

    // ../mitigations.c
    pub(crate) fn ex_vmx_mitigations_begin() -> c_int;
    pub(crate) fn ex_vmx_flushes_l1d() -> bool;
    pub(crate) fn ex_svm_reduce_speculation();
    pub(crate) fn ex_svm_restore_speculation();
    pub(crate) fn ex_guests_begin();
    pub(crate) fn ex_guests_end();

    // ../trace.c
    pub(crate) fn ex_trace_entry(vcpu: u32, rip: u64);
    pub(crate) fn ex_trace_exit(
        vcpu: u32,
        isa: u32,
        reason: u32,
        rip: u64,
        info1: u64,
        info2: u64,
        event: u32,
        error_code: u32,
    );
    pub(crate) fn ex_trace_cpuid(
        function: u32,
        index: u32,
        answer: *const u64,
        found: bool,
        used_max_basic: bool,
    );
    pub(crate) fn ex_trace_msr(write: bool, index: u32, data: u64, refused: bool);
    pub(crate) fn ex_trace_apic(write: bool, reg: u32, value: u64);
    pub(crate) fn ex_trace_hypercall(number: u64, operands: *const u64);
    pub(crate) fn ex_trace_pio(write: bool, port: u32, size: u32, count: u32, value: u32);
    pub(crate) fn ex_trace_mmio(kind: u32, len: u32, gpa: u64, value: u64);
    pub(crate) fn ex_trace_emulate(
        rip: u64,
        code: u32,
        bytes: *const u8,
        length: u8,
        flags: u8,
        failed: bool,
    );
    pub(crate) fn ex_trace_fast_mmio(gpa: u64);
    pub(crate) fn ex_trace_ipi(icr: u32, destination: u32);
    pub(crate) fn ex_trace_accept(apicid: u32, mode: u16, level: bool, vector: u8);
    pub(crate) fn ex_trace_eoi(apicid: u32, vector: u8);
    pub(crate) fn ex_trace_pv_eoi(apicid: u32, vector: u8);
    pub(crate) fn ex_trace_inject_interrupt(vector: u8, soft: bool, again: bool);
    pub(crate) fn ex_trace_inject_exception(vector: u8, coded: bool, error_code: u32, again: bool);
    pub(crate) fn ex_trace_cr(write: bool, cr: u32, value: u64);
    pub(crate) fn ex_trace_timer_wait(vcpu: u32, late: i64);
    pub(crate) fn ex_trace_page_fault(vcpu: u32, rip: u64, address: u64, error_code: u64);
    pub(crate) fn ex_trace_log_full(vcpu: u32);
    pub(crate) fn ex_trace_user_exit(reason: u32, err: c_int);
    pub(crate) fn ex_trace_fpu(load: bool);
    pub(crate) fn ex_trace_wakeup(ns: u64, waited: bool, valid: bool);
    pub(crate) fn ex_trace_halt_poll(vcpu: u32, fresh: u32, old: u32);
    pub(crate) fn ex_trace_set_irq(gsi: u32, level: bool, source: u32);
    pub(crate) fn ex_trace_msi(address: u64, data: u64);
    pub(crate) fn ex_trace_ack(irqchip: u32, pin: u32);
}
