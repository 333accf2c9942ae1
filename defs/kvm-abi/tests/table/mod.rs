//! Every structure with its fields and every constant of the crate, as the comparison needs them: name and value.
//! `layout.rs` fails when the crate's sources name something this table does not.

use exitless_kvm_abi::*;
use std::mem::{offset_of, size_of};

/// One structure: its name, its size, its fields with their offsets.
pub(crate) struct Struct {
    pub(crate) name: &'static str,
    pub(crate) size: usize,
    pub(crate) fields: Vec<(&'static str, usize)>,
}

macro_rules! structs {
    ($($name:ident { $($field:ident)* })*) => {
        pub(crate) fn structs() -> Vec<Struct> {
            vec![$(Struct {
                name: stringify!($name),
                size: size_of::<$name>(),
                fields: vec![$((stringify!($field), offset_of!($name, $field))),*],
            }),*]
        }
    };
}

macro_rules! consts {
    ($($name:ident)*) => {
        pub(crate) fn consts() -> Vec<(&'static str, u64)> {
            vec![$((stringify!($name), $name as u64)),*]
        }
    };
}

structs! {
    kvm_irq_level { irq level }
    kvm_irqchip { chip_id pad chip }
    kvm_pic_state {
        last_irr irr imr isr priority_add irq_base read_reg_select poll special_mask init_state
        auto_eoi rotate_on_auto_eoi special_fully_nested_mode init4 elcr elcr_mask
    }
    kvm_ioapic_state { base_address ioregsel id irr pad redirtbl }
    kvm_pit_channel_state {
        count latched_count count_latched status_latched status read_state write_state write_latch
        rw_mode mode bcd gate count_load_time
    }
    kvm_pit_state { channels }
    kvm_pit_state2 { channels flags reserved }
    kvm_pit_config { flags pad }
    kvm_reinject_control { pit_reinject reserved }
    kvm_irq_routing { nr flags }
    kvm_irq_routing_entry { gsi type_ flags pad u }
    kvm_irq_routing_irqchip { irqchip pin }
    kvm_irq_routing_msi { address_lo address_hi data devid }
    kvm_irq_routing_hv_sint { vcpu sint }
    kvm_msi { address_lo address_hi data flags devid pad }
    kvm_irqfd { fd gsi flags resamplefd pad }
    kvm_ioeventfd { datamatch addr len fd flags pad }
    kvm_create_device { type_ fd flags }
    kvm_device_attr { flags group attr addr }
    kvm_run {
        request_interrupt_window immediate_exit padding1 exit_reason ready_for_interrupt_injection
        if_flag flags cr8 apic_base exit kvm_valid_regs kvm_dirty_regs s
    }
    kvm_run_hw { hardware_exit_reason }
    kvm_run_fail_entry { hardware_entry_failure_reason cpu pad }
    kvm_run_ex { exception error_code }
    kvm_run_io { direction size port count data_offset }
    kvm_debug_exit_arch { exception pad pc dr6 dr7 }
    kvm_run_mmio { phys_addr data len is_write pad }
    kvm_run_hypercall { nr args ret longmode pad }
    kvm_run_tpr_access { rip is_write pad }
    kvm_run_internal { suberror ndata data }
    kvm_run_emulation_failure { suberror ndata flags insn_size insn_bytes }
    kvm_run_system_event { type_ ndata data }
    kvm_run_eoi { vector }
    kvm_hyperv_exit { type_ pad1 u }
    kvm_xen_exit { type_ pad u }
    kvm_run_msr { error pad reason index data }
    kvm_run_notify { flags }
    kvm_run_memory_fault { flags gpa size }
    kvm_memory_region { slot flags guest_phys_addr memory_size }
    kvm_memory_alias { slot flags guest_phys_addr memory_size target_phys_addr }
    kvm_userspace_memory_region { slot flags guest_phys_addr memory_size userspace_addr }
    kvm_userspace_memory_region2 {
        slot flags guest_phys_addr memory_size userspace_addr guest_memfd_offset guest_memfd pad1
        pad2
    }
    kvm_memory_attributes { address size attributes flags }
    kvm_create_guest_memfd { size flags reserved }
    kvm_pre_fault_memory { gpa size flags padding }
    kvm_dirty_log { slot padding1 dirty_bitmap }
    kvm_clear_dirty_log { slot num_pages first_page dirty_bitmap }
    kvm_dirty_gfn { flags slot offset }
    kvm_coalesced_mmio_zone { addr size pio }
    kvm_coalesced_mmio { phys_addr len pio data }
    kvm_coalesced_mmio_ring { first last }
    kvm_stats_header { flags name_size num_desc id_offset desc_offset data_offset }
    kvm_stats_desc { flags exponent size offset bucket_size }
    kvm_regs { rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags }
    kvm_lapic_state { regs }
    kvm_segment { base limit selector type_ present dpl db s l g avl unusable padding }
    kvm_dtable { base limit padding }
    kvm_sregs { cs ds es fs gs ss tr ldt gdt idt cr0 cr2 cr3 cr4 cr8 efer apic_base interrupt_bitmap }
    kvm_sregs2 { cs ds es fs gs ss tr ldt gdt idt cr0 cr2 cr3 cr4 cr8 efer apic_base flags pdptrs }
    kvm_fpu { fpr fcw fsw ftwx pad1 last_opcode last_ip last_dp xmm mxcsr pad2 }
    kvm_msrs { nmsrs pad }
    kvm_msr_entry { index reserved data }
    kvm_msr_list { nmsrs }
    kvm_cpuid { nent padding }
    kvm_cpuid_entry { function eax ebx ecx edx padding }
    kvm_cpuid2 { nent padding }
    kvm_cpuid_entry2 { function index flags eax ebx ecx edx padding }
    kvm_translation { linear_address physical_address valid writeable usermode pad }
    kvm_interrupt { irq }
    kvm_signal_mask { len }
    kvm_tpr_access_ctl { enabled flags reserved }
    kvm_vapic_addr { vapic_addr }
    kvm_mp_state { mp_state }
    kvm_guest_debug { control pad debugreg }
    kvm_vcpu_events_exception { injected nr has_error_code pending error_code }
    kvm_vcpu_events_interrupt { injected nr soft shadow }
    kvm_vcpu_events_nmi { injected pending masked pad }
    kvm_vcpu_events_smi { smm pending smm_inside_nmi latched_init }
    kvm_vcpu_events {
        exception interrupt nmi sipi_vector flags smi triple_fault_pending reserved
        exception_has_payload exception_payload
    }
    kvm_debugregs { db dr6 dr7 flags reserved }
    kvm_xsave { region }
    kvm_xcr { xcr reserved value }
    kvm_xcrs { nr_xcrs flags xcrs padding }
    kvm_sync_regs { regs sregs events }
    kvm_x86_mce { status addr misc mcg_status bank pad1 pad2 }
    kvm_nested_state { flags format size hdr }
    kvm_clock_data { clock flags pad0 realtime host_tsc pad }
    kvm_enable_cap { cap flags args pad }
    kvm_msr_filter { flags pad ranges }
    kvm_msr_filter_range { flags nmsrs base pad bitmap }
    kvm_pmu_event_filter { action nevents fixed_counter_bitmap flags pad }
    kvm_xen_hvm_config { flags msr blob_addr_32 blob_addr_64 blob_size_32 blob_size_64 pad2 }
    kvm_hyperv_eventfd { conn_id fd flags padding }
    kvm_enc_region { addr size }
    kvm_one_reg { id addr }
}

consts! {
    KVM_CAP_IRQCHIP KVM_CAP_HLT KVM_CAP_MMU_SHADOW_CACHE_CONTROL KVM_CAP_USER_MEMORY KVM_CAP_SET_TSS_ADDR
    KVM_CAP_VAPIC KVM_CAP_EXT_CPUID KVM_CAP_CLOCKSOURCE KVM_CAP_NR_VCPUS KVM_CAP_NR_MEMSLOTS KVM_CAP_PIT
    KVM_CAP_NOP_IO_DELAY KVM_CAP_PV_MMU KVM_CAP_MP_STATE KVM_CAP_COALESCED_MMIO KVM_CAP_SYNC_MMU
    KVM_CAP_IOMMU KVM_CAP_DESTROY_MEMORY_REGION_WORKS KVM_CAP_USER_NMI KVM_CAP_SET_GUEST_DEBUG
    KVM_CAP_REINJECT_CONTROL KVM_CAP_IRQ_ROUTING KVM_CAP_IRQ_INJECT_STATUS KVM_CAP_ASSIGN_DEV_IRQ
    KVM_CAP_JOIN_MEMORY_REGIONS_WORKS KVM_CAP_MCE KVM_CAP_IRQFD KVM_CAP_PIT2 KVM_CAP_SET_BOOT_CPU_ID
    KVM_CAP_PIT_STATE2 KVM_CAP_IOEVENTFD KVM_CAP_SET_IDENTITY_MAP_ADDR KVM_CAP_XEN_HVM
    KVM_CAP_ADJUST_CLOCK KVM_CAP_INTERNAL_ERROR_DATA KVM_CAP_VCPU_EVENTS KVM_CAP_HYPERV
    KVM_CAP_HYPERV_VAPIC KVM_CAP_HYPERV_SPIN KVM_CAP_PCI_SEGMENT KVM_CAP_INTR_SHADOW KVM_CAP_DEBUGREGS
    KVM_CAP_X86_ROBUST_SINGLESTEP KVM_CAP_ENABLE_CAP KVM_CAP_XSAVE KVM_CAP_XCRS KVM_CAP_ASYNC_PF
    KVM_CAP_TSC_CONTROL KVM_CAP_GET_TSC_KHZ KVM_CAP_MAX_VCPUS KVM_CAP_ONE_REG KVM_CAP_TSC_DEADLINE_TIMER
    KVM_CAP_SYNC_REGS KVM_CAP_PCI_2_3 KVM_CAP_KVMCLOCK_CTRL KVM_CAP_SIGNAL_MSI KVM_CAP_READONLY_MEM
    KVM_CAP_IRQFD_RESAMPLE KVM_CAP_DEVICE_CTRL KVM_CAP_EXT_EMUL_CPUID KVM_CAP_HYPERV_TIME
    KVM_CAP_IOAPIC_POLARITY_IGNORED KVM_CAP_ENABLE_CAP_VM KVM_CAP_IOEVENTFD_NO_LENGTH
    KVM_CAP_VM_ATTRIBUTES KVM_CAP_CHECK_EXTENSION_VM KVM_CAP_DISABLE_QUIRKS KVM_CAP_X86_SMM
    KVM_CAP_MULTI_ADDRESS_SPACE KVM_CAP_GUEST_DEBUG_HW_BPS KVM_CAP_GUEST_DEBUG_HW_WPS
    KVM_CAP_SPLIT_IRQCHIP KVM_CAP_IOEVENTFD_ANY_LENGTH KVM_CAP_HYPERV_SYNIC KVM_CAP_VCPU_ATTRIBUTES
    KVM_CAP_MAX_VCPU_ID KVM_CAP_X2APIC_API KVM_CAP_MSI_DEVID KVM_CAP_IMMEDIATE_EXIT
    KVM_CAP_X86_DISABLE_EXITS KVM_CAP_HYPERV_SYNIC2 KVM_CAP_HYPERV_VP_INDEX KVM_CAP_GET_MSR_FEATURES
    KVM_CAP_HYPERV_EVENTFD KVM_CAP_HYPERV_TLBFLUSH KVM_CAP_NESTED_STATE KVM_CAP_MSR_PLATFORM_INFO
    KVM_CAP_HYPERV_SEND_IPI KVM_CAP_COALESCED_PIO KVM_CAP_HYPERV_ENLIGHTENED_VMCS
    KVM_CAP_EXCEPTION_PAYLOAD KVM_CAP_MANUAL_DIRTY_LOG_PROTECT KVM_CAP_HYPERV_CPUID
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 KVM_CAP_PMU_EVENT_FILTER KVM_CAP_HYPERV_DIRECT_TLBFLUSH
    KVM_CAP_HALT_POLL KVM_CAP_ASYNC_PF_INT KVM_CAP_LAST_CPU KVM_CAP_SMALLER_MAXPHYADDR KVM_CAP_STEAL_TIME
    KVM_CAP_X86_USER_SPACE_MSR KVM_CAP_X86_MSR_FILTER KVM_CAP_ENFORCE_PV_FEATURE_CPUID
    KVM_CAP_SYS_HYPERV_CPUID KVM_CAP_DIRTY_LOG_RING KVM_CAP_X86_BUS_LOCK_EXIT KVM_CAP_SET_GUEST_DEBUG2
    KVM_CAP_SGX_ATTRIBUTE KVM_CAP_VM_COPY_ENC_CONTEXT_FROM KVM_CAP_PTP_KVM KVM_CAP_HYPERV_ENFORCE_CPUID
    KVM_CAP_SREGS2 KVM_CAP_EXIT_HYPERCALL KVM_CAP_BINARY_STATS_FD KVM_CAP_EXIT_ON_EMULATION_FAILURE
    KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM KVM_CAP_VM_GPA_BITS KVM_CAP_XSAVE2 KVM_CAP_SYS_ATTRIBUTES
    KVM_CAP_PMU_CAPABILITY KVM_CAP_DISABLE_QUIRKS2 KVM_CAP_VM_TSC_CONTROL KVM_CAP_SYSTEM_EVENT_DATA
    KVM_CAP_X86_TRIPLE_FAULT_EVENT KVM_CAP_X86_NOTIFY_VMEXIT KVM_CAP_VM_DISABLE_NX_HUGE_PAGES
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP KVM_CAP_PMU_EVENT_MASKED_EVENTS
    KVM_CAP_USER_MEMORY2 KVM_CAP_MEMORY_FAULT_INFO KVM_CAP_MEMORY_ATTRIBUTES KVM_CAP_GUEST_MEMFD
    KVM_CAP_VM_TYPES KVM_CAP_PRE_FAULT_MEMORY KVM_CAP_X86_APIC_BUS_CYCLES_NS KVM_CAP_X86_GUEST_MODE
    KVM_IRQCHIP_PIC_MASTER KVM_IRQCHIP_PIC_SLAVE KVM_IRQCHIP_IOAPIC KVM_NR_IRQCHIPS KVM_IOAPIC_NUM_PINS
    KVM_PIT_FLAGS_HPET_LEGACY KVM_PIT_FLAGS_SPEAKER_DATA_ON KVM_PIT_SPEAKER_DUMMY KVM_IRQ_ROUTING_IRQCHIP
    KVM_IRQ_ROUTING_MSI KVM_IRQ_ROUTING_S390_ADAPTER KVM_IRQ_ROUTING_HV_SINT KVM_IRQ_ROUTING_XEN_EVTCHN
    KVM_MSI_VALID_DEVID KVM_IRQFD_FLAG_DEASSIGN KVM_IRQFD_FLAG_RESAMPLE KVM_IOEVENTFD_FLAG_DATAMATCH
    KVM_IOEVENTFD_FLAG_PIO KVM_IOEVENTFD_FLAG_DEASSIGN KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY
    KVM_IOEVENTFD_VALID_FLAG_MASK KVM_CREATE_DEVICE_TEST KVM_DEV_TYPE_VFIO KVM_DEV_VFIO_GROUP
    KVM_DEV_VFIO_GROUP_ADD KVM_DEV_VFIO_GROUP_DEL KVM_X86_XCOMP_GUEST_SUPP KVM_EXIT_UNKNOWN
    KVM_EXIT_EXCEPTION KVM_EXIT_IO KVM_EXIT_HYPERCALL KVM_EXIT_DEBUG KVM_EXIT_HLT KVM_EXIT_MMIO
    KVM_EXIT_IRQ_WINDOW_OPEN KVM_EXIT_SHUTDOWN KVM_EXIT_FAIL_ENTRY KVM_EXIT_INTR KVM_EXIT_SET_TPR
    KVM_EXIT_TPR_ACCESS KVM_EXIT_NMI KVM_EXIT_INTERNAL_ERROR KVM_EXIT_WATCHDOG KVM_EXIT_SYSTEM_EVENT
    KVM_EXIT_IOAPIC_EOI KVM_EXIT_HYPERV KVM_EXIT_X86_RDMSR KVM_EXIT_X86_WRMSR KVM_EXIT_DIRTY_RING_FULL
    KVM_EXIT_AP_RESET_HOLD KVM_EXIT_X86_BUS_LOCK KVM_EXIT_XEN KVM_EXIT_NOTIFY KVM_EXIT_MEMORY_FAULT
    KVM_INTERNAL_ERROR_EMULATION KVM_INTERNAL_ERROR_SIMUL_EX KVM_INTERNAL_ERROR_DELIVERY_EV
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    KVM_EXIT_IO_IN KVM_EXIT_IO_OUT KVM_EXIT_HYPERV_SYNIC KVM_EXIT_HYPERV_HCALL KVM_EXIT_HYPERV_SYNDBG
    KVM_EXIT_XEN_HCALL KVM_SYSTEM_EVENT_SHUTDOWN KVM_SYSTEM_EVENT_RESET KVM_SYSTEM_EVENT_CRASH
    KVM_SYSTEM_EVENT_WAKEUP KVM_SYSTEM_EVENT_SUSPEND KVM_SYSTEM_EVENT_SEV_TERM KVM_MSR_EXIT_REASON_INVAL
    KVM_MSR_EXIT_REASON_UNKNOWN KVM_MSR_EXIT_REASON_FILTER KVM_NOTIFY_CONTEXT_INVALID KVM_RUN_X86_SMM
    KVM_RUN_X86_BUS_LOCK SYNC_REGS_SIZE_BYTES KVM_RUN_EXIT_SIZE KVM_RUN_EXIT_OFFSET KVMIO KVM_API_VERSION
    KVM_GET_API_VERSION KVM_CREATE_VM KVM_GET_MSR_INDEX_LIST KVM_CHECK_EXTENSION KVM_GET_VCPU_MMAP_SIZE
    KVM_GET_SUPPORTED_CPUID KVM_GET_EMULATED_CPUID KVM_GET_MSR_FEATURE_INDEX_LIST KVM_SET_MEMORY_REGION
    KVM_CREATE_VCPU KVM_GET_DIRTY_LOG KVM_SET_MEMORY_ALIAS KVM_SET_NR_MMU_PAGES KVM_GET_NR_MMU_PAGES
    KVM_SET_USER_MEMORY_REGION KVM_SET_TSS_ADDR KVM_SET_IDENTITY_MAP_ADDR KVM_SET_USER_MEMORY_REGION2
    KVM_CREATE_IRQCHIP KVM_IRQ_LINE KVM_GET_IRQCHIP KVM_SET_IRQCHIP KVM_CREATE_PIT KVM_GET_PIT KVM_SET_PIT
    KVM_IRQ_LINE_STATUS KVM_REGISTER_COALESCED_MMIO KVM_UNREGISTER_COALESCED_MMIO KVM_SET_GSI_ROUTING
    KVM_REINJECT_CONTROL KVM_IRQFD KVM_CREATE_PIT2 KVM_SET_BOOT_CPU_ID KVM_IOEVENTFD KVM_XEN_HVM_CONFIG
    KVM_SET_CLOCK KVM_GET_CLOCK KVM_GET_PIT2 KVM_SET_PIT2 KVM_SIGNAL_MSI KVM_SET_PMU_EVENT_FILTER
    KVM_MEMORY_ENCRYPT_OP KVM_MEMORY_ENCRYPT_REG_REGION KVM_MEMORY_ENCRYPT_UNREG_REGION KVM_HYPERV_EVENTFD
    KVM_CLEAR_DIRTY_LOG KVM_GET_SUPPORTED_HV_CPUID KVM_X86_SET_MSR_FILTER KVM_RESET_DIRTY_RINGS
    KVM_GET_STATS_FD KVM_SET_MEMORY_ATTRIBUTES KVM_CREATE_GUEST_MEMFD KVM_CREATE_DEVICE
    KVM_SET_DEVICE_ATTR KVM_GET_DEVICE_ATTR KVM_HAS_DEVICE_ATTR KVM_RUN KVM_GET_REGS KVM_SET_REGS
    KVM_GET_SREGS KVM_SET_SREGS KVM_TRANSLATE KVM_INTERRUPT KVM_GET_MSRS KVM_SET_MSRS KVM_SET_CPUID
    KVM_SET_SIGNAL_MASK KVM_GET_FPU KVM_SET_FPU KVM_GET_LAPIC KVM_SET_LAPIC KVM_SET_CPUID2 KVM_GET_CPUID2
    KVM_TPR_ACCESS_REPORTING KVM_SET_VAPIC_ADDR KVM_GET_MP_STATE KVM_SET_MP_STATE KVM_NMI
    KVM_SET_GUEST_DEBUG KVM_X86_SETUP_MCE KVM_X86_GET_MCE_CAP_SUPPORTED KVM_X86_SET_MCE
    KVM_GET_VCPU_EVENTS KVM_SET_VCPU_EVENTS KVM_GET_DEBUGREGS KVM_SET_DEBUGREGS KVM_SET_TSC_KHZ
    KVM_GET_TSC_KHZ KVM_ENABLE_CAP KVM_GET_XSAVE KVM_SET_XSAVE KVM_GET_XCRS KVM_SET_XCRS KVM_GET_ONE_REG
    KVM_SET_ONE_REG KVM_KVMCLOCK_CTRL KVM_SMI KVM_GET_NESTED_STATE KVM_SET_NESTED_STATE KVM_GET_SREGS2
    KVM_SET_SREGS2 KVM_GET_XSAVE2 KVM_PRE_FAULT_MEMORY KVM_MEM_LOG_DIRTY_PAGES KVM_MEM_READONLY
    KVM_MEM_GUEST_MEMFD KVM_MEMORY_ATTRIBUTE_PRIVATE KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
    KVM_DIRTY_LOG_INITIALLY_SET KVM_DIRTY_GFN_F_DIRTY KVM_DIRTY_GFN_F_RESET KVM_DIRTY_GFN_F_MASK
    KVM_PIO_PAGE_OFFSET KVM_COALESCED_MMIO_PAGE_OFFSET KVM_DIRTY_LOG_PAGE_OFFSET KVM_COALESCED_MMIO_MAX
    KVM_STATS_TYPE_MASK KVM_STATS_TYPE_CUMULATIVE KVM_STATS_TYPE_INSTANT KVM_STATS_TYPE_PEAK
    KVM_STATS_TYPE_LINEAR_HIST KVM_STATS_TYPE_LOG_HIST KVM_STATS_UNIT_MASK KVM_STATS_UNIT_NONE
    KVM_STATS_UNIT_BYTES KVM_STATS_UNIT_SECONDS KVM_STATS_UNIT_CYCLES KVM_STATS_UNIT_BOOLEAN
    KVM_STATS_BASE_MASK KVM_STATS_BASE_POW10 KVM_STATS_BASE_POW2 KVM_NR_INTERRUPTS KVM_APIC_REG_SIZE
    KVM_MAX_XCRS KVM_SREGS2_FLAGS_PDPTRS_VALID KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    KVM_CPUID_FLAG_STATEFUL_FUNC KVM_CPUID_FLAG_STATE_READ_NEXT KVM_MP_STATE_RUNNABLE
    KVM_MP_STATE_UNINITIALIZED KVM_MP_STATE_INIT_RECEIVED KVM_MP_STATE_HALTED KVM_MP_STATE_SIPI_RECEIVED
    KVM_MP_STATE_AP_RESET_HOLD KVM_GUESTDBG_ENABLE KVM_GUESTDBG_SINGLESTEP KVM_GUESTDBG_USE_SW_BP
    KVM_GUESTDBG_USE_HW_BP KVM_GUESTDBG_INJECT_DB KVM_GUESTDBG_INJECT_BP KVM_GUESTDBG_BLOCKIRQ
    KVM_VCPUEVENT_VALID_NMI_PENDING KVM_VCPUEVENT_VALID_SIPI_VECTOR KVM_VCPUEVENT_VALID_SHADOW
    KVM_VCPUEVENT_VALID_SMM KVM_VCPUEVENT_VALID_PAYLOAD KVM_VCPUEVENT_VALID_TRIPLE_FAULT
    KVM_X86_SHADOW_INT_MOV_SS KVM_X86_SHADOW_INT_STI KVM_SYNC_X86_REGS KVM_SYNC_X86_SREGS
    KVM_SYNC_X86_EVENTS KVM_SYNC_X86_VALID_FIELDS KVM_STATE_NESTED_FORMAT_VMX KVM_STATE_NESTED_FORMAT_SVM
    KVM_STATE_NESTED_GUEST_MODE KVM_STATE_NESTED_RUN_PENDING KVM_STATE_NESTED_EVMCS
    KVM_STATE_NESTED_MTF_PENDING KVM_STATE_NESTED_GIF_SET KVM_VCPU_TSC_CTRL KVM_VCPU_TSC_OFFSET
    KVM_CLOCK_TSC_STABLE KVM_CLOCK_REALTIME KVM_CLOCK_HOST_TSC KVM_X86_DISABLE_EXITS_MWAIT
    KVM_X86_DISABLE_EXITS_HLT KVM_X86_DISABLE_EXITS_PAUSE KVM_X86_DISABLE_EXITS_CSTATE
    KVM_X86_DISABLE_VALID_EXITS KVM_X2APIC_API_USE_32BIT_IDS KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
    KVM_BUS_LOCK_DETECTION_OFF KVM_BUS_LOCK_DETECTION_EXIT KVM_PMU_CAP_DISABLE
    KVM_X86_NOTIFY_VMEXIT_ENABLED KVM_X86_NOTIFY_VMEXIT_USER KVM_X86_QUIRK_LINT0_REENABLED
    KVM_X86_QUIRK_CD_NW_CLEARED KVM_X86_QUIRK_LAPIC_MMIO_HOLE KVM_X86_QUIRK_OUT_7E_INC_RIP
    KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT KVM_X86_QUIRK_FIX_HYPERCALL_INSN
    KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS KVM_MSR_FILTER_MAX_RANGES KVM_MSR_FILTER_MAX_BITMAP_SIZE
    KVM_MSR_FILTER_DEFAULT_ALLOW KVM_MSR_FILTER_DEFAULT_DENY KVM_MSR_FILTER_READ KVM_MSR_FILTER_WRITE
    KVM_PMU_EVENT_ALLOW KVM_PMU_EVENT_DENY
}
