# about: Guests on QEMU's other set-ups: q35 with its BIOS, the interrupt controllers split; QEMU shows the module's statistics.
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
# No guest but the BIOS, which finds nothing to start.
query_stats() {
    say() { echo "{\"execute\":\"$1\"$2}"; }
    (
        say qmp_capabilities
        sleep $((2 * SLOW))
        say query-stats ',"arguments":{"target":"vm"}'
        say query-stats ',"arguments":{"target":"vcpu"}'
        say quit
        sleep 2
    ) | limit 60 qemu-system-x86_64 -nodefaults -display none -M microvm,ioapic2=off,rtc=on -accel kvm -m 64 -qmp stdio >/tmp/qmp 2>&1
    cut -c1-2000 /tmp/qmp
    grep -q '"name": "pages_4k", "value": [1-9]' /tmp/qmp && grep -q '"name": "exits", "value": [1-9]' /tmp/qmp &&
        grep -q '"name": "halt_wait_hist", "value": \[' /tmp/qmp
}
check query-stats query_stats
check unload unload_module
