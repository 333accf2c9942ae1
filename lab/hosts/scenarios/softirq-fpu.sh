# about: The host uses its FPU in softirqs on every CPU, and looks at whose state it finds there, while guests' registers are full.
# cpu: pku
# cpus: 1 2 4
# memory: 768
# timeout: 180
# needs: runner fpu_load
# in test: svm 2, vmx 1 2

check load load_module
check fpu_load insmod /lab/fpu_load.ko period_us=$((200 * SLOW))
check alone fpu_clean
check guests runner run fpu/ keys/
check clean fpu_clean
check unused wait_unused 5
check remove rmmod fpu_load
check unload unload_module
