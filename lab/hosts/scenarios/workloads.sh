# about: A Linux guest's requests and messages cost a tenth of the exits for deadlines, and a hundredth of those for IPIs, once the mechanisms are on.
# cpu: ipiv
# cpus: 2
# memory: 1024
# timeout: 120
# needs: guest exitless-guest load
# modules: exitless
# in test: vmx
# not on svm, ryzen: IPI virtualization and timer passthrough are Intel's

guest_extras
ON=lazy_deadline,+timer_passthrough,+ipi_virtualization
# Names of work say what is on meanwhile.
switch() {
    case "$1 $2" in
    begin*/off) words=-all ;;
    begin*/on) words="default,+$ON" ;;
    *) return 0 ;;
    esac
    echo "$(sed -n 's/^vm \([0-9]*\) .*/\1/p' /dev/exitless) $words" >/dev/exitless
}
measured() {
    AT_MARK=switch WORK=requests/off:200,requests/on:200,hackbench/off:4,hackbench/on:4
    # The guest stops its tick each time that it idles: two writes of the deadline or more.
    GUEST_APPEND="exitless.module=on cpuidle_haltpoll.force=1 cpuidle.governor=ladder"
    work_guest 4 /tmp/log || return 1
    grep -E ' (msr 0x0*(6e0|830)|mechanism|work) ' /tmp/log.figures
}
# msr WORK NUMBER: its accesses that exited, from begin to end.
msr() { awk -v work="$1" -v msr="0x00000$2" '$1 == work && $3 == "msr" && $4 == msr { n += $2 == "end" ? $5 : -$5 } END { print n + 0 }' /tmp/log.figures; }
# fewer WORK NUMBER FACTOR: with all on, by this factor at least.
fewer() {
    off=$(msr $1/off $2) on=$(msr $1/on $2)
    echo "$1, MSR 0x$2: $off off, $on on"
    [ $off -ge 100 ] && [ $((on * $3)) -le $off ]
}
check load eval 'PARAMS="$PARAMS ipiv=1 mechanisms=+host_tsc,+lazy_deadline" load_module'
check measured measured
check deadlines fewer requests 6e0 10
check ipis fewer hackbench 830 100
check unused wait_unused 5
check unload unload_module
