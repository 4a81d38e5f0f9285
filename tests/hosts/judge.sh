# What the output of a test program on the emulated AMD-V host tells of the tests, and what of the emulation: sourced by
# tests/run. docs/test-hosts.md says what the emulation is known for.

# Whether the emulated host itself broke in a run with output $1 and exit code $2, under QEMU's major version $3.
host_broke() {
    case $2 in
        # Its kernel panicked.
        125) grep '^amdv: the emulated host ended without a result' "$1" >/dev/null ;;
        # It hung: those before version 10 lose interrupts.
        124) [ "$3" -lt 10 ] ;;
        *) false ;;
    esac
}

# The tests in output $1 that failed because the emulated processor crashed their guest.
crashed_tests() {
    awk '/^---- .* stdout ----$/ { name = $2; next } /^failures:$/ { name = "" }
         name != "" && /the guest crashed \(triple fault\)/ { print name; name = "" }' "$1"
}

# The output $1 with those tests told as skipped.
without_crashes() {
    local crashed
    crashed=$(crashed_tests "$1" | wc -l)
    awk -v n="$crashed" '/^test result: / { $4 += n; $6 -= n; if ($6 == 0) $3 = "ok." } { print }' "$1"
    crashed_tests "$1" | sed 's|.*|SKIP &: the emulated processor crashed its guest (triple fault), docs/test-hosts.md|'
}
