# about: Guests send IPIs by themselves (pvipi_raw): each comes once, to targets that run, sleep and wait for a CPU, wherever senders are stopped.
# cpu: x2apic
# cpus: 2
# memory: 768
# not on svm, ryzen: posted-interrupt descriptors are Intel's
# in test: vmx
# timeout: 240
# needs: runner

check load eval 'PARAMS="$PARAMS raw_ipi=1" load_module'
# Sends without an exit, or is skipped: where nobody offers it.
keys() {
    runner run raw/found_or_not raw/to_running >/tmp/keys || { cat /tmp/keys; return 1; }
    cat /tmp/keys
    grep -q "^test raw/to_running \.\.\. $1" /tmp/keys
}
there=ok
[ $MODULE = kvm ] && there=skipped
check not_offered keys skipped
offer() { [ $MODULE = kvm ] || echo "0 $1pvipi_raw" >/dev/exitless; }
check offer offer +
check offered keys $there
check sends runner run raw/
check switched runner run --switch raw/storm raw/stopped_at
# A guest beside it stays well.
beside() {
    runner run raw/scribbled >/tmp/scribbles &
    runner run smp/ping_pong lapic/self_ipi ipi/ || return 1
    wait $! && cat /tmp/scribbles
}
check beside beside
check withdraw offer -
check withdrawn keys skipped
check unused wait_unused 5
check unload unload_module
# Without the administrator's word there is nothing to switch on.
refused() { load_module && offer + && keys skipped; }
check refused refused
check unload_again unload_module
