# about: What kvmtool's guests live on: no ACPI, no I/O APIC, the 8259 pair through LINT0, the 8254; kvmtool itself if there.
# cpus: 2
# memory: 1536
# timeout: 240
# needs: guest kvmtool
# in test: no

check load load_module
# The same devices under QEMU's BIOS. Without ACPI's table of CPUs a guest that has a local APIC takes its ticks from the
# 8254 too, through the 8259 pair and LINT0.
MACHINE=q35
GUEST_APPEND="acpi=off noapic pci=conf1 exitless.seconds=1"
check pic guest 1 idle,sum 60
GUEST_APPEND="acpi=off noapic nolapic pci=conf1 exitless.seconds=1"
check pit guest 1 idle,sum 60
# kvmtool starts the kernel in real mode and brings a BIOS of a few bytes.
with_lkvm() {
    limit 60 lkvm run --name guest -c 1 -m 256 -k /guest/vmlinuz -i /guest/initrd --console serial \
        --network mode=none -p "quiet mitigations=off cryptomgr.notests panic=-1 exitless.job=idle,sum exitless.seconds=1" \
        </dev/null 2>&1 | tee /tmp/guest.lkvm
    guest_passed /tmp/guest.lkvm
}
if [ -x /lab/lkvm ]; then
    check lkvm with_lkvm
else
    echo "=== SKIP lkvm no kvmtool in Debian: name a static build (make lkvm-static) in EXITLESS_LKVM"
fi
check unused wait_unused 5
check unload unload_module
