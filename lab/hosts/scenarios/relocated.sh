# about: A Linux guest sets timers at a high rate on each vCPU while QEMU migrates it: to Exitless with all mechanisms on, with all off, to stock KVM and back.
# cpus: 2
# memory: 1536
# timeout: 240
# needs: guest exitless-guest load
# modules: exitless
# in test: no
# not on ryzen: as on svm

guest_extras
mkfifo /tmp/answers
exec 3<>/tmp/answers
GUEST_INPUT=/tmp/answers
GUEST_MEMORY=192
# Without nested virtualization, which Exitless has not.
GUEST_CPU=max,vmx=off,svm=off
GUEST_APPEND="exitless.module=on exitless.period=700"
ON=+lazy_deadline
[ $VENDOR = amd ] || ON=$ON,+timer_passthrough,+host_tsc
defaults() { echo "0 $1" >/dev/exitless; }

# One QEMU after the other: place N has its monitor in /tmp/mon.N, its log in /tmp/log.N.
place() {
    n=$1; shift
    mkfifo /tmp/mon.$n.in /tmp/mon.$n.out
    start_guest 4 timers /tmp/log.$n -chardev pipe,id=mon,path=/tmp/mon.$n -mon chardev=mon "$@"
    cat /tmp/mon.$n.out >/tmp/said.$n &
}
# Its timers go on.
goes_on() { wait_line 60 /tmp/log.$1 '^--- GUEST turn' || { cat /tmp/said.*; return 1; }; }
say() { echo "$2" >/tmp/mon.$1.in; }
# The guest leaves place N for URI: it runs while its memory is sent again and again, and stands still for the rest. Then QEMU ends.
leave() {
    say $1 "migrate_set_parameter max-bandwidth 0"
    say $1 "migrate_set_parameter downtime-limit 1"
    say $1 "migrate -d \"$2\""
    sleep 5
    say $1 "migrate_set_parameter downtime-limit 20000"
    leave_left=$((60 * PATIENCE))
    until grep -q '^Migration status: completed' /tmp/said.$1; do
        leave_left=$((leave_left - 1))
        [ $leave_left -gt 0 ] || { cat /tmp/said.$1; return 1; }
        say $1 "info migrate"
        sleep 1
    done
    grep -E '^(total time|downtime|dirty sync count):' /tmp/said.$1 | tail -n 3
    say $1 quit
}
born() { defaults default,$ON && place 0 && goes_on 0; }
# To a QEMU beside it, on the same module with these defaults.
live() {
    defaults $3
    place $2 -incoming unix:/tmp/way.$2
    live_left=$((20 * PATIENCE))
    until [ -S /tmp/way.$2 ]; do
        live_left=$((live_left - 1))
        [ $live_left -gt 0 ] || { cat /tmp/log.$2; return 1; }
        sleep 0.2
    done
    leave $1 unix:/tmp/way.$2 || return 1
    goes_on $2
}
# To a file, and from there to another module, loaded meanwhile.
saved() {
    leave $1 "exec:cat >/tmp/state" && wait_unused 60 || return 1
    unload_module || return 1
    MODULE=$3
    load_module || return 1
    [ $MODULE = kvm ] || defaults $4
    place $2 -incoming "exec:cat /tmp/state"
    goes_on $2
}
# What has come to be active in all vCPUs where the guest is now, and done something: its module asks once a second at most.
used() {
    used_left=$((40 * PATIENCE))
    until grep -E "^  $1 on active 4/4 hits [1-9]" /dev/exitless; do
        used_left=$((used_left - 1))
        [ $used_left -gt 0 ] || { cat /dev/exitless; return 1; }
        sleep 0.5
    done
}
ended() {
    echo enough >&3
    wait_line 60 /tmp/log.$1 '^--- GUEST done' || return 1
    cat /tmp/log.$1
    guest_passed /tmp/log.$1
}
check load load_module
check born born
check to_all_on live 0 1 default,$ON
check lazy_there used lazy_deadline
check to_all_off live 1 2 -all
check to_stock saved 2 3 kvm
MODULE=kvm
check back saved 3 4 exitless default,$ON
MODULE=exitless
check lazy_again used lazy_deadline
check ended ended 4
check unused wait_unused 20
check unload unload_module
