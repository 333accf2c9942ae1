/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Every ex_* helper Rust may call, in one list: linux/host/src/ffi.rs mirrors it line by line.
 * Plain integers and pointers only; no logic beyond what a macro or an inline of the kernel needs.
 */
#ifndef EX_HELPERS_H
#define EX_HELPERS_H

#include "ex.h"

#define EX_LOCK_CLASSES 14

struct ex_clock_snapshot {
	u64 tsc;
	u64 base_ns;
	u64 real_ns;
};

struct ex_gup_result {
	u64 pfn;
	u32 writable;
	u32 counted; /* we hold a page reference: give it back with ex_page_release */
};

/* cpu.c */
u32 ex_cpu_id(void);
u32 ex_cpu_possible(void);
bool ex_cpu_is_possible(u32 cpu);
bool ex_cpu_is_online(u32 cpu);
u32 ex_cpu_online_count(void);
u32 ex_cpu_apic_id(u32 cpu);
u64 ex_exits_to_disable(void);
u32 ex_cpu_microcode(void);
u64 ex_arch_capabilities(void);
u64 ex_immunities(void);
void ex_preempt_disable(void);
void ex_preempt_enable(void);
unsigned long ex_irq_save(void);
void ex_irq_restore(unsigned long flags);
void ex_cpu_kick(u32 cpu);
void ex_cpu_post(u32 cpu);
void ex_notify(u32 cpu);
int ex_vm_born(void);
void ex_vm_gone(void);
int ex_on_one_cpu(u32 cpu, void *arg, u32 op);
void *ex_kick_set(bool wait);
void ex_kick_add(void *set, u32 cpu);
void ex_kick_all_ack(const void *set);
void ex_kick_all(void *set);
void ex_post_all(void *set);
bool ex_hw_breakpoint_active(void);
void ex_hw_breakpoint_restore(void);
void ex_ldt_reload(void);
void ex_ibpb(void);
bool ex_ibpb_for_guest(void);
u64 ex_host_spec_ctrl(void);
bool ex_host_has_spec_ctrl(void);
bool ex_host_has_ibpb(void);
u64 ex_spec_ctrl_bits(void);

/* debugfs.c */
void *ex_debugfs_dir_new(const char *name);
void ex_debugfs_dir_free(void *dir);
int ex_debugfs_text(void *dir, const char *name, void *cookie, u32 kind, bool knocks);
void ex_debugfs_u64(void *dir, const char *name, u64 *value);

/* eventfd.c */
int ex_eventfd_get(int fd, void **ctx);
void ex_eventfd_put(void *ctx);
void ex_eventfd_signal(void *ctx);
bool ex_eventfd_may_signal(void);

/* fd.c */
int ex_fd_reserve(u32 flags);
void ex_fd_unreserve(int fd);
void *ex_fd_open(u32 kind, const char *name, void *object, u32 flags, int *err);
void ex_fd_install(int fd, void *file);
void ex_fd_close(void *file);

/* fpu.c */
void *ex_fpu_new(void);
void ex_fpu_free(void *fpu);
void ex_fpu_load_guest(void *fpu);
void ex_fpu_put_guest(void *fpu);
void ex_fpu_before_enter(void);
void ex_fpu_xmm(u32 i, void *value, bool write);
void ex_fpu_mmx(u32 i, void *value, bool write);
u16 ex_fpu_control(void);
u16 ex_fpu_status(void);
void ex_fpu_to_uabi(void *fpu, void *buf, u32 size, u64 xfeatures, u32 pkru);
int ex_fpu_from_uabi(void *fpu, const void *buf, u64 xcr0, u32 *pkru);
u64 ex_host_xcr0(void);
bool ex_host_xsaves(void);
u64 ex_host_xss(void);

/* hrtimer.c */
void *ex_timer_new(void *cookie, u32 kind);
void ex_timer_free(void *timer);
void ex_timer_start(void *timer, u64 expires_ns, bool pinned);
void ex_timer_start_elsewhere(void *timer, u64 expires_ns);
void ex_timer_start_again(void *timer, u64 expires_ns);
bool ex_keeps_house(void);
bool ex_timer_cancel(void *timer);
int ex_timer_try_cancel(void *timer);
void ex_timer_bring(void *timer);
u64 ex_timer_expires(const void *timer);

/* irqfd.c */
void *ex_irqfd_new(void *vm, unsigned long cookie, int fd, int *err);
void ex_irqfd_free(void *irqfd);
void ex_irqfd_settle(void);
bool ex_irqfd_is(const void *irqfd, const void *ctx);

/* lock.c */
void *ex_spin_new(u32 class);
void ex_spin_free(void *lock);
unsigned long ex_spin_lock(void *lock);
void ex_spin_unlock(void *lock, unsigned long flags);
void *ex_mutex_new(u32 class);
void ex_mutex_free(void *lock);
void ex_mutex_lock(void *lock);
int ex_mutex_lock_killable(void *lock);
void ex_mutex_unlock(void *lock);

/* mm.c */
int ex_gup(u64 hva, bool write, bool waits, struct ex_gup_result *out);
void ex_page_release(u64 pfn, bool dirty, bool accessed);
u32 ex_host_level(void *mm, u64 hva);
bool ex_pfn_is_ram(u64 pfn);
void *ex_mm_grab_current(void);
void ex_mm_drop(void *mm);
void *ex_mm_current(void);

/* mmu_notifier.c */
void *ex_mmu_notifier_new(void *cookie, int *err);
void ex_mmu_notifier_free(void *notifier);

/* perf.c */
void ex_pmu_virt(bool on);

/* printk.c */
void ex_pr_info(const char *text, u32 len);
void ex_pr_warn(const char *text, u32 len);
void ex_pr_err(const char *text, u32 len);

/* sched.c */
void *ex_vcpu_new(void *rust);
void ex_vcpu_free(void *vcpu);
u32 ex_vcpu_load(void *vcpu);
void ex_vcpu_put(void *vcpu);
int ex_vcpu_block(void *vcpu);
bool ex_vcpu_wake(void *vcpu);
u64 ex_run_delay_ns(void);
void ex_vcpu_record_current(void *vcpu);
int ex_vcpu_yield_to(void *vcpu, bool preempt);
u64 ex_halt_poll_ns(void);
int ex_timer_advance_ns(void);
void ex_send_memory_error(u64 hva);
bool ex_signal_pending(void);
bool ex_need_resched(void);
void ex_cond_resched(void);
bool ex_single_task_running(void);
bool ex_guest_work_pending(void);
const unsigned long *ex_guest_work_word(unsigned long *mask);
int ex_guest_work_handle(void);
int ex_current_pid(void);
u32 ex_current_euid(void);
bool ex_is_admin(void);
bool ex_in_compat_syscall(void);
void ex_sigset_activate(u64 set);
void ex_sigset_deactivate(void);
void ex_cpu_relax(void);

/* slab.c */
void *ex_kvzalloc(size_t size, size_t align);
void *ex_kvmalloc_module(size_t size, size_t align);
void ex_kvfree(void *ptr);
void *ex_pages_alloc(u32 order);
void ex_pages_free(void *virt, u32 order);
void *ex_page_of(void *virt);
u64 ex_phys_of(const void *virt);
void *ex_virt_of(u64 phys);
u64 ex_sme_mask(void);

/* srcu.c */
void *ex_srcu_new(void);
void ex_srcu_free(void *srcu);
int ex_srcu_read_lock(void *srcu);
void ex_srcu_read_unlock(void *srcu, int idx);
void ex_srcu_synchronize(void *srcu);
void ex_srcu_synchronize_expedited(void *srcu);

/* timekeeping.c */
u64 ex_monotonic_ns(void);
u64 ex_real_ns(void);
u32 ex_tsc_khz(void);
bool ex_tsc_unstable(void);
void ex_tsc_mark_unstable(void);
bool ex_clock_snapshot(struct ex_clock_snapshot *out);

/* uaccess.c */
bool ex_access_ok(unsigned long addr, unsigned long len);
int ex_user_read(void *dst, unsigned long addr, unsigned long len);
int ex_user_write(unsigned long addr, const void *src, unsigned long len);
int ex_user_clear(unsigned long addr, unsigned long len);
int ex_user_read_atomic(void *dst, unsigned long addr, unsigned long len);
bool ex_user_read_u64_atomic(unsigned long addr, u64 *value);
bool ex_user_write_u8_atomic(unsigned long addr, u8 value);
bool ex_user_write_u64_atomic(unsigned long addr, u64 value);
int ex_user_cmpxchg_u8(unsigned long addr, u8 old, u8 new);
int ex_user_cmpxchg_u16(unsigned long addr, u16 old, u16 new);
int ex_user_cmpxchg_u32(unsigned long addr, u32 old, u32 new);
int ex_user_cmpxchg_u64(unsigned long addr, u64 old, u64 new);

/* user_return.c */
void ex_forget_user_return(void);

/* wait.c */
void *ex_wait_new(void);
void ex_wait_free(void *wait);
u32 ex_wait_seen(const void *wait);
void ex_wait_sleep(void *wait, u32 seen);
void ex_wait_wake(void *wait);

/* ../enter.c */
struct ex_spec_ctrl;
u32 ex_svm_enter(const void *vmcb, u64 vmcb_pa, u64 *regs, u64 host_save_pa, struct ex_spec_ctrl *spec_ctrl,
		 u64 host_debugctl);
u32 ex_svm_save_host(u64 host_save_pa);
u64 ex_svm_debugctl(void);
void ex_svm_set_debugctl(u64 value);
bool ex_svm_wants_avic(void);
void ex_machine_check(void);
void ex_slice_begin(void);
void ex_slice_end(void);

/* wakeup.c */
void *ex_sleeper_new(void *vcpu);
void ex_sleeper_free(void *sleeper);
bool ex_sleeper_add(void *sleeper);
void ex_sleeper_remove(void *sleeper);
bool ex_sleepers_listen(void);

/* workers.c */
void *ex_workers_new(void *vcpu);
void ex_workers_free(void *workers);
bool ex_workers_bring(void *workers, u64 hva, bool write, u32 place);

/* ../vmx.c */
bool ex_vmx_wants_apicv(void);
bool ex_vmx_wants_ipiv(void);
bool ex_vmx_allows_raw_ipi(void);
bool ex_vmx_fred(void);
bool ex_vmx_wants_timer(void);
bool ex_vmx_wants_pml(void);
bool ex_vmx_wants_vpid(void);
bool ex_vmx_guards_exec(void);
bool ex_vmx_host_x2apic(void);
bool ex_vmx_timer_fits(void);
int ex_vmx_on(u64 region_pa);
void ex_vmx_off(void);
void ex_vmx_host_state(u64 *words);

/* ../mitigations.c */
int ex_vmx_mitigations_begin(void);
bool ex_vmx_flushes_l1d(void);
void ex_svm_reduce_speculation(void);
void ex_svm_restore_speculation(void);
void ex_guests_begin(void);
void ex_guests_end(void);

/* ../trace.c */
void ex_trace_entry(u32 vcpu, u64 rip);
void ex_trace_exit(u32 vcpu, u32 isa, u32 reason, u64 rip, u64 info1, u64 info2, u32 event, u32 error_code);
void ex_trace_cpuid(u32 function, u32 index, const u64 *answer, bool found, bool used_max_basic);
void ex_trace_msr(bool write, u32 index, u64 data, bool refused);
void ex_trace_apic(bool write, u32 reg, u64 value);
void ex_trace_hypercall(u64 number, const u64 *operands);
void ex_trace_pio(bool write, u32 port, u32 size, u32 count, u32 value);
void ex_trace_mmio(u32 type, u32 len, u64 gpa, u64 value);
void ex_trace_emulate(u64 rip, u32 code, const u8 *bytes, u8 length, u8 flags, bool failed);
void ex_trace_fast_mmio(u64 gpa);
void ex_trace_ipi(u32 icr, u32 destination);
void ex_trace_accept(u32 apicid, u16 mode, bool level, u8 vector);
void ex_trace_eoi(u32 apicid, u8 vector);
void ex_trace_pv_eoi(u32 apicid, u8 vector);
void ex_trace_inject_interrupt(u8 vector, bool soft, bool again);
void ex_trace_inject_exception(u8 vector, bool coded, u32 error_code, bool again);
void ex_trace_cr(bool write, u32 cr, u64 value);
void ex_trace_timer_wait(u32 vcpu, s64 late);
void ex_trace_page_fault(u32 vcpu, u64 rip, u64 address, u64 error_code);
void ex_trace_log_full(u32 vcpu);
void ex_trace_user_exit(u32 reason, int err);
void ex_trace_fpu(bool load);
void ex_trace_wakeup(u64 ns, bool waited, bool valid);
void ex_trace_halt_poll(u32 vcpu, u32 fresh, u32 old);
void ex_trace_set_irq(u32 gsi, bool level, u32 source);
void ex_trace_msi(u64 address, u64 data);
void ex_trace_ack(u32 irqchip, u32 pin);

#endif
