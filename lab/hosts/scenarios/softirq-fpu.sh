# about: The host uses its FPU in softirqs on every CPU, and looks at whose state it finds there, while guests' registers are full.
# cpu: pku
# cpus: 1 2 4
# memory: 768
# timeout: 180
# needs: runner fpu_load
# in test: svm 2, vmx 1 2

counter() { cat /sys/module/fpu_load/parameters/$1; }
clean() {
    for clean_name in runs xcr0 xss pkru spec_ctrl dr7 lost; do echo "$clean_name $(counter $clean_name)"; done
    [ "$(counter runs)" -gt 100 ] || { echo "too few softirqs to tell anything"; return 1; }
    [ "$(counter xcr0)$(counter xss)$(counter pkru)$(counter spec_ctrl)$(counter dr7)$(counter lost)" = 000000 ]
}

check load load_module
check fpu_load insmod /lab/fpu_load.ko period_us=$((200 * SLOW))
check alone clean
check guests runner run fpu/ keys/
check clean clean
check unused wait_unused 5
check remove rmmod fpu_load
check unload unload_module
