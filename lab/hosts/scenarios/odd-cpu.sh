# about: A CPU without SVM: the module does not load over it, keeps it away from virtual machines, and makes none while it is there.
# cpus: 3
# odd cpu: svm=off
# memory: 1536
# timeout: 180
# needs: guest runner
# modules: exitless
# not on vmx, ryzen: Bochs's CPUs are all alike

# The last CPU is the odd one.
odd=/sys/devices/system/cpu/cpu2/online
refused() {
    insmod /modules/irqbypass.ko
    ! taskset 1 insmod /lab/exitless.ko && dmesg | grep -q 'exitless: cpu 2 cannot run guests'
} 2>/dev/null
check refused refused
check offline eval 'echo 0 >$odd'
check load load_module
away() {
    start_guest 2 forever /tmp/log
    wait_line 60 /tmp/log '^--- GUEST turn' || return 1
    for round in 1 2 3; do
        ! echo 1 >$odd || { echo "it came online"; return 1; }
        [ "$(cat $odd)" = 0 ] || return 1
    done
    turns=$(grep -c '^--- GUEST turn' /tmp/log)
    sleep 10
    [ "$(grep -c '^--- GUEST turn' /tmp/log)" -gt "$turns" ] || { cat /tmp/log; echo "the guest stands still"; return 1; }
    kill -9 $guest_pid
    wait_unused 5
} 2>/dev/null
check away away
# Nobody minds it without virtual machines; but there cannot be any then.
there() {
    echo 1 >$odd || return 1
    runner run smp/ping_pong_running >/tmp/there && return 1
    grep -q 'Device or resource busy\|EBUSY' /tmp/there || { cat /tmp/there; return 1; }
    echo 0 >$odd || return 1
    runner run smp/ping_pong_running
}
check there there
check unload unload_module
