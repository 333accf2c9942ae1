#!/bin/sh
# SPDX-License-Identifier: MIT OR GPL-2.0-only
# Writes ex_config.h for one kernel: what it exports and what its headers say. Never asks for the version:
# stable series change APIs in the middle.
# usage: probe.sh KDIR > ex_config.h
set -eu
kdir=$1
symvers=$kdir/Module.symvers
[ -r "$symvers" ] || { echo "probe.sh: $symvers is missing: install the matching linux-headers package" >&2; exit 1; }

# Debian splits headers: the build directory's Makefile includes the common tree's.
common=$(sed -n 's#^include \(.*\)/Makefile$#\1#p' "$kdir/Makefile" | head -1)
[ -n "$common" ] && [ -d "$common/include" ] || common=$kdir
[ -d "$common/include/linux" ] || common=$kdir/source

# An export with a namespace is for certain modules only, which this one is not.
exported() { awk -v s="$2" '$2 == s && $5 == "" { f = 1 } END { exit !f }' "$symvers" && echo "#define $1 1" || echo "/* $1: $2 is not exported */"; }
header() { grep -qE "$3" "$common/$2" 2>/dev/null && echo "#define $1 1" || echo "/* $1: not in $2 */"; }

echo "/* Made by probe.sh: do not edit. */"
header   EX_HAVE_CPUHP_KVM_ONLINE     include/linux/cpuhotplug.h 'CPUHP_AP_KVM_ONLINE'
exported EX_HAVE_EMERGENCY_CALLBACK   cpu_emergency_register_virt_callback
exported EX_HAVE_SYSCORE_OBJECT       register_syscore
exported EX_HAVE_DO_MACHINE_CHECK    do_machine_check
exported EX_HAVE_EVENTFD_SIGNAL_COUNT eventfd_signal
exported EX_HAVE_FOLLOW_PFNMAP        follow_pfnmap_start
exported EX_HAVE_FPU_GUEST            fpu_alloc_guest_fpstate
header   EX_HAVE_FPU_UABI_XFEATURES   arch/x86/include/asm/fpu/api.h 'unsigned int size, u64 xfeatures'
exported EX_HAVE_HRTIMER_SETUP        hrtimer_setup
exported EX_HAVE_CR3_FAST             __get_current_cr3_fast
exported EX_HAVE_CR4_SHADOW           cr4_read_shadow
exported EX_HAVE_GUEST_MSRS           perf_guest_get_msrs
exported EX_HAVE_AMD_PMU_VIRT         amd_pmu_enable_virt
exported EX_HAVE_CURRENT_SAVE_FSGS   current_save_fsgs
header   EX_HAVE_RCU_NOTE_CPU        include/linux/rcutree.h 'rcu_virt_note_context_switch\(int cpu\)'
header   EX_HAVE_APIC_STATIC_CALLS    arch/x86/include/asm/apic.h '__apic_send_IPI_mask'
exported EX_HAVE_IPI_TRACEPOINT       __tracepoint_ipi_send_cpu
exported EX_HAVE_IBPB_EXIT_TO_USER    x86_ibpb_exit_to_user
header   EX_NEEDS_IBPB_EXIT_TO_USER   arch/x86/include/asm/nospec-branch.h 'x86_ibpb_exit_to_user'
exported EX_HAVE_SPEC_CTRL_CURRENT    x86_spec_ctrl_current
header   EX_HAVE_XFER_WITHOUT_VCPU    include/linux/entry-kvm.h 'xfer_to_guest_mode_handle_work\(void\)'
header   EX_HAVE_TASK_IS_RUNNABLE     include/linux/sched.h 'task_is_runnable'
header   EX_HAVE_RSB_VMEXIT           arch/x86/include/asm/cpufeatures.h 'X86_FEATURE_RSB_VMEXIT\b'
header   EX_HAVE_IBPB_ON_VMEXIT       arch/x86/include/asm/cpufeatures.h 'X86_FEATURE_IBPB_ON_VMEXIT'
header   EX_HAVE_CLEAR_BHB_VMEXIT     arch/x86/include/asm/nospec-branch.h 'macro CLEAR_BRANCH_HISTORY_VMEXIT'
exported EX_HAVE_X86_VERW_SEL         x86_verw_sel
exported EX_HAVE_MDS_VERW_SEL         mds_verw_sel
exported EX_HAVE_CPU_BUF_VM_CLEAR     cpu_buf_vm_clear
exported EX_HAVE_MMIO_STALE_DATA_CLEAR mmio_stale_data_clear
exported EX_HAVE_L1TF_VMX_MITIGATION  l1tf_vmx_mitigation
exported EX_HAVE_ITLB_MULTIHIT_MITIGATION itlb_multihit_kvm_mitigation
