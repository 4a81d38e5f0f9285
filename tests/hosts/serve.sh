# One boot for many commands: sourced by amdv.
#
# --serve PATH boots a host and makes PATH a link to its run directory once the host takes commands;
# --connect PATH sends it one. Requests and answers go over one virtio port, whose other end is the
# pair of fifos serve.in and serve.out; guest/host-init has the format. Commands run one at a time (a
# lock), and what one leaves running is killed at its end; files it leaves stay.

serve_run() {
    local qemu_pid parent_stdin end
    make_disk
    qemu_args serve
    mkfifo "$run_dir/serve.in" "$run_dir/serve.out"
    qemu+=(-chardev "file,id=console,path=$run_dir/console" -serial chardev:console
        -chardev "pipe,id=serve,path=$run_dir/serve" -device virtserialport,chardev=serve,name=amdv.serve)
    exec {parent_stdin}<&0
    spawn "${qemu[@]}" </dev/null >"$run_dir/qemu.log" 2>&1
    qemu_pid=$!
    # Not for reading alone yet: QEMU may not have opened its end.
    exec {answers}<>"$run_dir/serve.out"
    if ! serve_wait_ready "$qemu_pid"; then
        fail_with_console "the emulated host did not come up"
        return 125
    fi
    exec {answers}<&-
    ln -sfnT "$run_dir" "$sock" || die "cannot make $sock"
    served=$sock
    echo ready
    if [ $stdin = yes ]; then
        spawn cat <&"$parent_stdin" >/dev/null
        end=$!
        wait -n "$qemu_pid" "$end" || true
    else
        wait "$qemu_pid" || true
    fi
    if [ "$stdin" = yes ] && kill -0 "$qemu_pid" 2>/dev/null; then return 0; fi
    fail_with_console "the emulated host ended"
    return 125
}

# Waits for the host's first line, or for the end of QEMU (pid $1) or of the time.
serve_wait_ready() {
    local reader timer ended
    spawn sh -c 'read -r line && [ "$line" = ready ]' <&"$answers"
    reader=$!
    spawn sleep "${timeout/#0/infinity}"
    timer=$!
    wait -n -p ended "$1" "$reader" "$timer" || return 1
    [ "$ended" = "$reader" ]
}

# Opens the answers of the host in directory $1 as $answers. QEMU holds both ends of its fifos, so a
# dead host is an end of file here: the fifo is opened for reading alone, after an opening for both that
# keeps this one from waiting.
serve_open_answers() {
    local both
    exec {both}<>"$1/serve.out"
    exec {answers}<"$1/serve.out"
    exec {both}>&-
}

serve_connect() {
    local dir alive request lock tag line code out err
    dir=$(readlink -e "$sock") && [ -p "$dir/serve.in" ] || die "nothing serves at $sock"
    exec {lock}>>"$dir/request.lock"
    flock "$lock"
    # The server holds its directory's lock as long as it lives.
    exec {alive}<"$dir/lock"
    ! flock -n "$alive" || die "the host served at $sock has ended"
    exec {alive}<&-
    # Lengths in bytes, whatever the locale.
    local LC_ALL=C
    request=$(env_exports; shell_line "${command[@]}")
    serve_open_answers "$dir"
    tag=$(od -An -N 16 -tx1 /dev/urandom | tr -d ' \n')
    printf '%s %s %s\n%s\n' "$tag" "$timeout" $((${#request} + 1)) "$request" >"$dir/serve.in"
    # The host keeps the time; the extra is for a host that hangs itself. Lines that are not ours are an
    # answer whose client was killed (2>/dev/null: bash remarks on their zero bytes).
    while :; do
        read -r -t $((timeout > 0 ? timeout + 60 : 2147483)) line 2>/dev/null <&"$answers" ||
            die "the host served at $sock gave no answer"
        [[ $line == "$tag "* ]] && break
    done
    read -r _ code out err <<<"$line"
    head -c "$out" <&"$answers"
    head -c "$err" <&"$answers" >&2
    [ "$code" != 124 ] || echo "amdv: time-out: no result after $timeout s" >&2
    return "$code"
}
