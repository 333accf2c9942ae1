# about: CPUs with SPEC_CTRL and its like, and a host that uses them: guests reach theirs without an exit, the host's own is back behind them.
# cpu: spec-ctrl
# cpus: 1
# memory: 768
# host: mitigations=auto
# not on svm: QEMU's translator has no SPEC_CTRL
# in test: vmx
# timeout: 200
# needs: runner fpu_load

counter() { cat /sys/module/fpu_load/parameters/$1; }
clean() {
    echo "runs $(counter runs) spec_ctrl $(counter spec_ctrl)"
    [ "$(counter runs)" -gt 100 ] || { echo "too few softirqs to tell anything"; return 1; }
    [ "$(counter spec_ctrl)" = 0 ]
}

check load load_module
check fpu_load insmod /lab/fpu_load.ko period_us=$((200 * SLOW))
check alone clean
check guests runner run spec/
check clean clean
check unused wait_unused 5
check remove rmmod fpu_load
check unload unload_module
