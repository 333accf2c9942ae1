# about: Host CPUs go away and come back under a working guest.
# cpus: 4
# memory: 1536
# timeout: 240
# needs: guest

check load load_module
plug() {
    start_guest 4 forever /tmp/log
    wait_line 60 /tmp/log '^--- GUEST turn' || return 1
    for round in 1 2 3 4 5; do
        for cpu in 1 2 3; do
            echo 0 >/sys/devices/system/cpu/cpu$cpu/online || return 1
            sleep 0.3
            echo 1 >/sys/devices/system/cpu/cpu$cpu/online || return 1
        done
    done
    # All but one away, and all back.
    for cpu in 1 2 3; do echo 0 >/sys/devices/system/cpu/cpu$cpu/online || return 1; done
    sleep 1
    for cpu in 1 2 3; do echo 1 >/sys/devices/system/cpu/cpu$cpu/online || return 1; done
    turns=$(grep -c '^--- GUEST turn' /tmp/log)
    wait_line 60 /tmp/log '^--- GUEST turn' && sleep 15
    kill -0 $guest_pid || { cat /tmp/log; echo "the guest is gone"; return 1; }
    [ "$(grep -c '^--- GUEST turn' /tmp/log)" -gt "$turns" ] || { cat /tmp/log; echo "the guest stands still"; return 1; }
    kill -9 $guest_pid
    ! grep -qE 'WARNING:|BUG:|detected stall|soft lockup' /tmp/log
}
check plug plug
check unused wait_unused 5
# A module that comes while a CPU is away must serve it when it returns.
away() {
    unload_module || return 1
    echo 0 >/sys/devices/system/cpu/cpu3/online
    load_module || return 1
    echo 1 >/sys/devices/system/cpu/cpu3/online || return 1
    start_guest 1 boot /tmp/log
    taskset -p 8 $guest_pid >/dev/null
    wait $guest_pid
    cat /tmp/log
    guest_passed /tmp/log
}
check away away
check unload unload_module
