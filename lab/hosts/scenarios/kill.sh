# about: QEMU is killed 100 times (20 on a slow machine) at different moments; nothing is left behind and the next guest works.
# cpus: 2
# memory: 1536
# timeout: 420
# needs: guest

check load load_module
# After what is freed late is freed, and without caches that could be.
settled() {
    wait_unused 10 || return 1
    sleep 2
    echo 3 >/proc/sys/vm/drop_caches
    sleep 1
}
available() { sed -n 's/^MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo; }

# Two guests at a time; moments from before the first vCPU to the middle of the guest's work.
kill_round() {
    start_guest 2 forever /dev/null; one=$guest_pid
    start_guest 1 forever /dev/null; other=$guest_pid
    sleep $1
    kill -9 $one
    sleep 0.05
    kill -9 $other
    wait $one $other 2>/dev/null
    return 0
}
kills() {
    round=0
    before=0
    rounds=$(few 50)
    while [ $round -lt $rounds ]; do
        tenths=$(( ((round * 7) % 25 + 2) * SLOW ))
        [ $round = $((rounds / 2)) ] && tenths=120
        kill_round $((tenths / 10)).$((tenths % 10))
        round=$((round + 1))
        [ $((round % (rounds / 5))) = 0 ] && note "$((round * 2)) killed, $(available) kB free"
        # The first rounds fill caches that stay.
        [ $round = $((rounds / 5)) ] && { settled || return 1; before=$(available); cat /proc/meminfo >/tmp/meminfo; }
    done
    # KASAN keeps freed objects, up to a 32nd of memory; kmemleak looks for what is lost there.
    limit=16384
    [ "$KERNEL" = debug ] && limit=98304
    # A leak stays; what a dying process or a kernel thread still holds comes back, within seconds on an idle host.
    for look in 1 2 3 4 5 6; do
        settled || return 1
        lost=$((before - $(available)))
        echo "memory lost over $(((rounds - rounds / 5) * 2)) kills: $lost kB (look $look)"
        [ $lost -lt $limit ] && return 0
    done
    echo "kB before and after, where they differ by more than 1 MB:"
    awk 'NR == FNR { was[$1] = $2; next } { more = $2 - was[$1] } more > 1000 || more < -1000 { print "=== NOTE " $1, was[$1], $2 }' \
        /tmp/meminfo /proc/meminfo
    return 1
} 2>/dev/null
check kills kills
check next guest 2 boot 60
check unload unload_module
