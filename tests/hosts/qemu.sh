# The QEMU that emulates the host: sourced by amdv.
#
# QEMU 7.2 (Debian 12) loses interrupts when it emulates AMD-V on two processors: hosts hung, and guests that poll crashed. The
# one of Debian 13 has not been seen to hang, and is a third faster. Where the installed one is older, a newer one is
# fetched from the release's backports, by the mirror that apt has here, and unpacked into the cache, not installed.
#
# The cache: $CACHE/qemu-CODENAME/ (see base.sh), complete or not there; its file `none` says why there is none.

readonly QEMU_WANTED=10
readonly QEMU_PACKAGES='qemu-system-x86 qemu-system-common qemu-system-data seabios'

# Sets emulator (a command) and cpu (QEMU's -cpu). Without ERMS the host's kernel clears and copies memory by words: TCG does
# `rep stosb` byte by byte, five times slower. Later features that build on it go with it.
find_emulator() {
    local codename fetched
    emulator=(qemu-system-x86_64) cpu=max,erms=off
    if [ "$(qemu_version "${emulator[@]}")" -lt $QEMU_WANTED ]; then
        # shellcheck source=/dev/null
        codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
        fetched=$CACHE/qemu-$codename
        fetch_emulator "$codename" "$fetched"
        [ ! -e "$fetched/usr" ] || emulator=("$fetched/usr/bin/qemu-system-x86_64" -L "$fetched/usr/share/qemu" -L "$fetched/usr/share/seabios")
    fi
    [ "$(qemu_version "${emulator[@]}")" -lt $QEMU_WANTED ] || cpu+=,fsrm=off,fzrm=off,fsrs=off,fsrc=off
}

# The major version of a QEMU; 0 if it does not run.
qemu_version() {
    { "$@" --version 2>/dev/null || true; } | sed -n '1s/^QEMU emulator version \([0-9]*\).*/\1/p' | grep . || echo 0
}

# Fetches QEMU of release $1's backports into $2, if that has not been tried.
fetch_emulator() {
    local lock tmp
    mkdir -p "$CACHE" || die "cannot make the cache directory $CACHE"
    exec {lock}>"$CACHE/lock"
    flock "$lock" || die "cannot lock $CACHE/lock"
    if [ ! -d "$2" ] || { [ "$refresh" = yes ] && [ -e "$2/none" ]; }; then
        echo "amdv: fetching a newer QEMU from $1-backports" >&2
        tmp=$(scratch)
        if ! unpack_emulator "$1" "$tmp" 2>"$tmp/log"; then
            echo "amdv: no newer QEMU: $(tail -n 1 "$tmp/log"); the installed one is used ($2/none)" >&2
            mkdir "$tmp/tree.none"
            mv "$tmp/log" "$tmp/tree.none/none"
            rm -rf "$tmp/tree"
            mv "$tmp/tree.none" "$tmp/tree"
        fi
        rm -rf "$2"
        mv -T "$tmp/tree" "$2"
        rm -rf "$tmp"
    fi
    exec {lock}>&-
}

# The packages' files in $2/tree. Fails, with the reason in its last line of stderr.
unpack_emulator() {
    local release=$1 dir=$2 site deb package opts
    mkdir -p "$dir"/{lists/partial,cache/archives/partial,debs,tree}
    # The mirror that has this release's own packages has its backports.
    # shellcheck disable=SC2016 # apt's variables
    site=$(apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' | awk -v r="$release" '!found && $2 == r {print $1; found = 1}')
    [ -n "$site" ] || { echo "apt has no mirror of the release '$release'" >&2; return 1; }
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site $release-backports main" >"$dir/sources.list"
    opts=(-q -o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=/nonexistent -o "Dir::State::lists=$dir/lists"
        -o "Dir::Cache=$dir/cache" -o APT::Sandbox::User=root -t "$release-backports")
    apt-get "${opts[@]}" update >&2 || return 1
    for package in $QEMU_PACKAGES; do
        (cd "$dir/debs" && apt-get "${opts[@]}" download "$package" >&2) || return 1
    done
    for deb in "$dir"/debs/*.deb; do
        dpkg-deb -x "$deb" "$dir/tree" || return 1
    done
    # Its libraries are those of the installed one.
    "$dir/tree/usr/bin/qemu-system-x86_64" --version >&2 || return 1
    [ "$(qemu_version "$dir/tree/usr/bin/qemu-system-x86_64")" -ge $QEMU_WANTED ] || { echo "that of $release-backports is not newer" >&2; return 1; }
}
