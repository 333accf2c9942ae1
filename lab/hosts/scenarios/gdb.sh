# about: QEMU's debugger stub: breakpoints in registers and in memory, a watchpoint and single steps in a Linux guest's first code.
# cpus: 1
# memory: 1536
# in test: svm, vmx
# timeout: 120
# needs: guest suite

# The guest waits for the debugger, and does its job when that has left.
debugged() {
    start_guest 1 boot /tmp/log -S -chardev socket,id=gdb,path=/tmp/gdb,server=on,wait=off -gdb chardev:gdb
    gdb_left=$((20 * PATIENCE))
    until [ -S /tmp/gdb ]; do
        gdb_left=$((gdb_left - 1))
        [ $gdb_left -gt 0 ] || { cat /tmp/log; echo "QEMU opened no socket"; return 1; }
        sleep 0.5
    done
    limit 60 suite gdb /tmp/gdb || { kill $guest_pid; cat /tmp/log; return 1; }
    wait_line 60 /tmp/log '^--- GUEST done' || return 1
    cat /tmp/log
    guest_passed /tmp/log
}

check load load_module
check debugged debugged
check unused wait_unused 5
check unload unload_module
