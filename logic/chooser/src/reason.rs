//! Why a mechanism is not active, in words that an administrator can act on. The values are user space's: none is ever reused.

macro_rules! reasons {
    ($($name:ident = $value:literal, $words:literal;)*) => {
        /// See the file's head.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $words] $name = $value,)*
        }

        impl Reason {
            /// All of them.
            pub const ALL: &[Reason] = &[$(Reason::$name,)*];

            /// What it means, and what would change it.
            pub const fn words(self) -> &'static str {
                match self {
                    $(Reason::$name => $words,)*
                }
            }
        }
    };
}

reasons! {
    Active = 0, "active";
    SwitchedOff = 1, "switched off: for this VM, or in the defaults when it was created";
    Pending = 2, "nothing stands against it: the vCPU looks when it next enters the guest";
    NotBuilt = 3, "this version of the module does not have it";
    NoIrqchip = 4, "the VM's local APICs are in user space: KVM_CREATE_IRQCHIP or KVM_CAP_SPLIT_IRQCHIP puts them into the kernel (QEMU: -machine kernel-irqchip=on or split)";
    NoDelivery = 5, "the CPU does not deliver this vCPU's interrupts by itself: it cannot (APICv, AVIC), that is switched off (parameter apicv), or the guest's APIC is off";
    NoTimer = 6, "the CPU has no timer that runs while the guest does (Intel's VMX-preemption timer: not there, known to count wrongly, or switched off by parameter preemption_timer; AMD has none)";
    NoDeadline = 7, "the guest's CPUID does not show the TSC-deadline timer: the VMM leaves it out (QEMU: -cpu ..,+tsc-deadline), or the host has none";
    UnsteadyTsc = 8, "the host's CPUs have different TSCs: see its kernel log and clock source; it stays so until the module is loaded again";
    IdleExits = 9, "the guest leaves when it is idle: KVM_CAP_X86_DISABLE_EXITS lets it stay (QEMU: -overcommit cpu-pm=on)";
    NoHousekeeping = 10, "no CPU is set aside for housekeeping: the host's command line has no nohz_full=";
    NotInCpuid = 11, "the guest's CPUID does not show it (leaf 0x40000001): the VMM leaves it out";
    NoAvic = 12, "AVIC was not asked for when the module was loaded (parameter avic), or the CPU has none for APICs in x2APIC mode: the kernel's log says which";
    NoX2Apic = 13, "the guest's APIC is off, or in xAPIC mode: guests choose x2APIC mode where their CPUID shows it";
    EdgeEois = 14, "the host wants to hear of ends of edge-triggered interrupts: the 8254 makes up for lost ticks (QEMU: -global kvm-pit.lost_tick_policy=discard), or a resample irqfd is on an edge";
    NotAsked = 15, "the guest has not asked for it: its kernel module exitless-guest.ko does";
    OwnTsc = 16, "the guest's TSC is not the host's: it has an offset or another rate (mechanism host_tsc, before the vCPUs are made)";
    OtherTimer = 17, "the guest's APIC timer is not in TSC-deadline mode, or masked, or its APIC is off";
    IdlesInside = 18, "the guest stays when it is idle, where the CPU's timer for guest mode may stand still (KVM_CAP_X86_DISABLE_EXITS; QEMU: without -overcommit cpu-pm=on)";
    HostTimer = 19, "the host's tick is not from the local APIC's TSC-deadline timer with high resolution, or CPUs stop that timer in deep C-states (no ARAT): see the kernel's command line";
    NoIpiv = 20, "IPI virtualization was not asked for when the module was loaded (parameter ipiv), or the CPU has none: the kernel's log says which";
    ApartTsc = 21, "the guest's TSC is not the host's: it has another rate, or an offset that the guest does not add itself (its kernel module exitless-guest.ko does; or mechanism host_tsc, before the vCPUs are made)";
    NotAllowed = 22, "nobody allowed it when the module was loaded (parameter raw_ipi): guests that have it reach every CPU of the host (docs/security.md)";
    HostXApic = 23, "the host's APICs are in xAPIC mode: kernels use x2APIC mode with interrupt remapping, or under a hypervisor";
    HardwarePosts = 24, "hardware posts to this VM's vCPUs (IPI virtualization): what it reads there guests must not write";
    NoWindow = 25, "the vCPU's id is not below 1024, or the CPU has no posted interrupts (APICv), or the VMM has memory at 0xfee10000";
    NotRaw = 26, "the guest has not asked for it (exitless-guest.ko cannot yet), or user space has set registers since, or the vCPU was in user space and has not sent anything since";
    NotAgreed = 27, "the guest has not agreed that its timer's interrupt may come early, which it asks for in its own descriptor";
}
