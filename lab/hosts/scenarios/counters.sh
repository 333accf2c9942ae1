# about: The same micro guest leaves guest mode for the same reasons each time, exactly as often.
# cpus: 1
# memory: 768
# timeout: 120
# needs: runner
# in test: svm, vmx

check load load_module
# Left out: what the host does meanwhile (interrupts), the debug registers (one exit in each slice, and interrupts end slices), how
# long vCPUs wait for one another, and faults of the second level, whose number depends on the host's memory.
GUESTS="basic/ cpuid/ cr/ exc/ pio/ msr/read msr/write lapic/registers lapic/self_ipi_forms inject/all_vectors
    inject/sti_shadow ipi/self_ipi ipi/x2apic_icr"
counted() { runner run --exits $GUESTS | grep ^exits | grep -viE ' (host|EXTERNAL_INTERRUPT|interrupt|vintr|nmi|PAUSE_INSTRUCTION|EPT_VIOLATION|npf|read_dr|write_dr|DR_ACCESS) [0-9]+$'; }
same() {
    counted >/tmp/first
    # Stock KVM does not count by reason.
    [ -s /tmp/first ] || { [ $MODULE = kvm ] && return 4; echo "no counters"; return 1; }
    counted >/tmp/second
    diff /tmp/first /tmp/second || return 1
    echo "$(wc -l </tmp/first) counters of $(cut -d' ' -f2 /tmp/first | sort -u | wc -l) guests are equal"
}
check same same
check unload unload_module
