/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* What C and Rust say to each other: the callbacks Rust defines (ex_rs_*) and the few shared C names. */
#ifndef EX_H
#define EX_H

#include <linux/types.h>
#include "ex_config.h"

struct page;
struct file_operations;
struct kvm_vcpu;

/* Module and CPU life cycle. */
int ex_rs_init(void);
void ex_rs_exit(void);
int ex_rs_cpu_online(u32 cpu);
void ex_rs_cpu_offline(u32 cpu);
void ex_rs_cpu_emergency(void);
void ex_rs_on_cpu(void *arg, u32 op);
void ex_rs_user_return(u32 cpu);
void ex_rs_host_suspends(void);
void ex_rs_host_resumes(void);
void ex_rs_guests_stop(void);
void ex_rs_guests_go_on(void);
void ex_rs_clock_source_changed(void);

/* Files. */
long ex_rs_dev_ioctl(u32 cmd, unsigned long arg);
long ex_rs_vm_ioctl(void *vm, u32 cmd, unsigned long arg);
long ex_rs_vcpu_ioctl(void *vcpu, u32 cmd, unsigned long arg);
void ex_rs_vm_release(void *vm);
void ex_rs_vcpu_release(void *vcpu);
size_t ex_rs_vm_stats(void *vm, u64 from, char *buf, size_t len);
size_t ex_rs_vcpu_stats(void *vcpu, u64 from, char *buf, size_t len);
void ex_rs_vm_stats_release(void *vm);
struct page *ex_rs_vcpu_fault(void *vcpu, unsigned long pgoff);
size_t ex_rs_debugfs_show(void *cookie, u32 kind, char *buf, size_t len);
void ex_rs_debugfs_knock(void *cookie, u32 kind);

size_t ex_rs_control_text(char *buf, size_t len);
int ex_rs_control_words(const char *words, size_t len);
long ex_rs_control_ioctl(u32 cmd, unsigned long arg, bool writable);
int ex_rs_mechanisms_set(const char *words, size_t len);
int ex_rs_mechanisms_get(char *buf, size_t len);

/* Events. */
bool ex_rs_irqfd_wakeup(void *vm, unsigned long irqfd);
void ex_rs_irqfd_inject(void *vm, unsigned long irqfd);
void ex_rs_irqfd_hangup(void *vm, unsigned long irqfd);
u64 ex_rs_timer_fired(void *cookie, u32 kind);
void ex_rs_give_timer_back(void);

/* Scheduler. */
void ex_rs_sched_in(void *vcpu, u32 cpu);
void ex_rs_sched_out(void *vcpu, bool preempted);
bool ex_rs_vcpu_wake_check(void *vcpu);
bool ex_rs_hardware_posts(void);
void ex_rs_posted(void *vcpu);
void ex_rs_sleeps_elsewhere(void *vcpu);

/* Memory. */
void ex_rs_page_brought(void *vcpu, u32 place, bool there);
bool ex_rs_worker_may(u32 user);
void ex_rs_worker_done(u32 user);
int ex_rs_mmu_invalidate_start(void *vm, u64 start, u64 end, bool blockable);
void ex_rs_mmu_invalidate_end(void *vm, u64 start, u64 end);
int ex_rs_mmu_age(void *vm, u64 start, u64 end, bool clear);
void ex_rs_mmu_release(void *vm);

/* Between C files. */
void ex_cpu_fit(u32 cpu, bool fit);
int ex_cpu_welcome(u32 cpu);
extern const struct file_operations ex_dev_fops;
int ex_irqfd_setup(void);
void ex_sleepers_setup(void);
void ex_sleepers_teardown(void);
int ex_kicks_setup(void);
void ex_kicks_teardown(void);
void ex_irqfd_teardown(void);
void ex_guest_gets_device_memory(void);
int ex_workers_setup(void);
void ex_workers_teardown(void);
void ex_perf_setup(void);
void ex_perf_teardown(void);
int ex_sched_setup(void);
void ex_sched_teardown(void);
void ex_timekeeping_setup(void);
void ex_timekeeping_teardown(void);
void ex_debugfs_setup(void);
void ex_debugfs_teardown(void);
void ex_control_setup(void);
void ex_control_teardown(void);

#endif
