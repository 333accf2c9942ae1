# about: The host is suspended to memory, where its TSC starts again, under guests whose clocks and timers go on.
# cpus: 1 2
# memory: 1024
# timeout: 300
# needs: runner guest
# not on vmx, ryzen: Bochs's machine does not sleep

clock=/sys/class/rtc/rtc0/wakealarm
# An alarm that comes before the machine sleeps does not wake it.
suspend() {
    echo 0 >$clock; echo +$((4 + 2 * PATIENCE)) >$clock
    echo mem >/sys/power/state
}
# under COMMAND...: the host sleeps while it runs, until it has had enough.
under() {
    "$@" &
    under_pid=$!
    under_left=10
    sleep 2
    while kill -0 $under_pid 2>/dev/null; do
        under_left=$((under_left - 1))
        [ $under_left -gt 0 ] || { kill -9 $under_pid; echo "it never ends"; return 1; }
        suspend || return 1
        sleep 3
    done
    wait $under_pid
}

check load load_module
check alone suspend
test=while_the_host_sleeps
# Stock KVM's pages never agree again after that.
[ $MODULE = exitless ] && test=agrees_when_the_host_has_slept
check clocks under runner run clock/$test
linux() {
    start_guest 2 forever /tmp/log
    wait_line 60 /tmp/log '^--- GUEST turn' || return 1
    for round in 1 2 3; do
        suspend || return 1
        turns=$(grep -c '^--- GUEST turn' /tmp/log)
        wait_line 60 /tmp/log '^--- GUEST turn' && sleep 5
        kill -0 $guest_pid || { cat /tmp/log; echo "the guest is gone"; return 1; }
    done
    linux_left=60
    while [ "$(grep -c '^--- GUEST turn' /tmp/log)" -le "$turns" ]; do
        linux_left=$((linux_left - 1))
        [ $linux_left -gt 0 ] || { cat /tmp/log; echo "the guest stands still"; return 1; }
        sleep 1
    done
    kill -9 $guest_pid
    # Its time never goes back.
    sed -n 's/^--- GUEST turn //p' /tmp/log | sort -n -c || { cat /tmp/log; return 1; }
    ! grep -E 'WARNING:|BUG:|detected stall|soft lockup|clocksource.*unstable' /tmp/log
}
check linux linux
check unused wait_unused 5
check unload unload_module
