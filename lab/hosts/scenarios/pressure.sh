# about: The host swaps, merges and collapses the memory of two working guests: no byte of theirs changes.
# cpus: 2
# memory: 1536
# timeout: 240
# needs: guest swap

# Swap space in compressed memory.
swap_on() {
    for module in $SWAP_MODULES; do insmod "/lab/$module" || return 1; done
    echo 512M >/sys/block/zram0/disksize
    mkswap /dev/zram0 && swapon /dev/zram0
}
# Same pages become one as soon as they are seen, neighbours a large one. A slow machine would do nothing else.
eager() {
    slower=$((SLOW * SLOW * SLOW))
    echo $((10000 / slower)) >/sys/kernel/mm/ksm/pages_to_scan
    echo 10 >/sys/kernel/mm/ksm/sleep_millisecs
    echo 1 >/sys/kernel/mm/ksm/run
    thp=/sys/kernel/mm/transparent_hugepage
    echo always >$thp/enabled
    echo 10 >$thp/khugepaged/scan_sleep_millisecs
    echo 10 >$thp/khugepaged/alloc_sleep_millisecs
    echo $((4096 / slower)) >$thp/khugepaged/pages_to_scan
}
events() { sed -n "s/^$1 //p" /proc/vmstat; }

# Takes memory away from the guests every three seconds until they are done.
squeeze() {
    most=0
    while kill -0 $first 2>/dev/null || kill -0 $second 2>/dev/null; do
        # Less than asked for may be there: not an error of ours.
        echo 48M >/cg/guests/memory.reclaim 2>/dev/null
        now=$(cat /sys/kernel/mm/ksm/pages_sharing)
        [ "$now" -gt $most ] && most=$now
        sleep 3
    done
    echo $most >/tmp/merged
}
work() {
    mkdir -p /cg && mount -t cgroup2 cgroup /cg && echo +memory >/cg/cgroup.subtree_control && mkdir /cg/guests || return 1
    before="$(events pswpout) $(events pswpin)"
    for log in first second; do
        start_guest 2 memory /tmp/$log
        echo $guest_pid >/cg/guests/cgroup.procs || return 1
        eval $log=$guest_pid
    done
    squeeze
    sed 's/^/first:  /' /tmp/first
    sed 's/^/second: /' /tmp/second
    set -- $before
    out=$(($(events pswpout) - $1)) in=$(($(events pswpin) - $2)) merged=$(cat /tmp/merged)
    note "$out pages swapped out, $in in, up to $merged merged, $(events thp_collapse_alloc) large ones made"
    # Pages that came late, and what else the host told by interrupt.
    note "callbacks of the first guest:$(sed -n 's/.*hypervisor callbacks//p' /tmp/first | tr -s ' ')"
    guest_passed /tmp/first && guest_passed /tmp/second || return 1
    # Otherwise this has shown nothing.
    [ $out -gt 5000 ] && [ $in -gt 1000 ] || { echo "there was no pressure"; return 1; }
    # On the debug kernel nothing was merged before the guests were done.
    [ "$KERNEL" = debug ] || [ "$merged" -gt 1000 ] || { echo "nothing was merged"; return 1; }
}
check swap swap_on
check eager eager
check load load_module
check work work
check unused wait_unused 5
check unload unload_module
check swapoff swapoff /dev/zram0
