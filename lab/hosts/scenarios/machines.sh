# about: Guests on QEMU's other set-ups: q35 with its BIOS, the interrupt controllers split.
# cpus: 2
# memory: 1536
# in test: svm, vmx
# timeout: 240
# needs: guest

check load load_module
MACHINE=q35
check q35 guest 2 boot 60
# Skipped on a module that does not offer KVM_CAP_SPLIT_IRQCHIP.
split() {
    guest 2 boot 60 && return
    grep -q 'Could not enable split irqchip' "$guest_log" && return 4
    return 1
}
IRQCHIP=split
check q35-split split
MACHINE=
check microvm-split split
check unload unload_module
