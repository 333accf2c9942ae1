# about: CPUs with SPEC_CTRL and its like, and a host that uses them: guests reach theirs without an exit, the host's own is back behind them.
# cpu: spec-ctrl
# cpus: 1
# memory: 768
# host: mitigations=auto
# not on svm: QEMU's translator has no SPEC_CTRL
# in test: vmx, ryzen
# timeout: 200
# needs: runner fpu_load

check load load_module
check fpu_load insmod /lab/fpu_load.ko period_us=$((200 * SLOW))
check alone fpu_clean
check guests runner run spec/
check clean fpu_clean
check unused wait_unused 5
check remove rmmod fpu_load
check unload unload_module
