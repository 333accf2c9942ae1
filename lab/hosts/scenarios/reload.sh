# about: The module is unloaded and loaded 50 times (10 on a slow machine); a running guest keeps it; a guest works after it all.
# cpus: 2
# memory: 1536
# in test: svm, vmx
# timeout: 180
# needs: guest

check load load_module
again() {
    for round in $(seq $(few 50)); do
        unload_module && load_module || { echo "round $round"; return 1; }
    done
}
check again again
held() {
    start_guest 1 idle /tmp/log
    wait_line 60 /tmp/log '^--- GUEST job idle' || return 1
    unload_module 2>/dev/null && { echo "a module in use was unloaded"; return 1; }
    wait $guest_pid
    cat /tmp/log
    guest_passed /tmp/log
}
check held held
check unused wait_unused 5
check unload unload_module
