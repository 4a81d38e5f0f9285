#!/usr/bin/env bash
# Builds Bulkhead's guest kernels from Debian's linux-source package, the config fragments and the patches beside this
# script, into a cache outside the tree. A second call with the same inputs returns at once.
#
#   build.sh [--flavour hardware|nested|all] [--print-path]
#
# Results, in ${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-~/.cache}/bulkhead}/kernel:
#   <hash>/{vmlinux,bzImage,System.map,config,cmdline,manifest}   one directory per set of inputs, published by rename
#   hardware, nested                                              links to the newest build of that flavour
# It does not install or boot anything, and writes nowhere else.
set -euo pipefail

readonly SERIES=6.12
readonly PACKAGE=linux-source-$SERIES
readonly VERSION=2 # part of the hash: raise it when a change to this script must give another result

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/bulkhead}/kernel
flavours=(hardware nested)
print_path=false
tmp=
child=

say() { printf '%s\n' "kernel: $*" >&2; }
die() {
    say "$*"
    exit 1
}

usage() {
    say "usage: build.sh [--flavour hardware|nested|all] [--print-path]"
    exit 2
}

parse_arguments() {
    while (($#)); do
        case $1 in
        --flavour)
            case ${2-} in
            hardware | nested) flavours=("$2") ;;
            all) flavours=(hardware nested) ;;
            *) usage ;;
            esac
            shift 2
            ;;
        --print-path)
            print_path=true
            shift
            ;;
        *) usage ;;
        esac
    done
}

# The version of the source package that a build now would use.
source_version() {
    local version
    version=$(dpkg-query -W -f='${db:Status-Status} ${Version}' "$PACKAGE" 2>/dev/null) || version=
    if [[ $version == "installed "* ]]; then
        printf '%s\n' "${version#installed }"
        return
    fi
    command -v apt-cache >/dev/null || die "$PACKAGE is not installed and there is no apt to get it with"
    version=$(apt-cache policy "$PACKAGE" | sed -n 's/^  Candidate: //p')
    if [[ -z $version || $version == "(none)" ]]; then
        die "$PACKAGE is not installed and apt does not offer it: run 'apt-get update' or add Debian's security archive"
    fi
    printf '%s\n' "$version"
}

# One flavour's hash: everything that goes into its result.
input_hash() {
    local flavour=$1 version=$2
    {
        printf '%s\n' "$VERSION" "$version" "$(gcc --version | head -n1)" "$(ld --version | head -n1)"
        cd "$here"
        sha256sum base.config "$flavour.config" "$flavour.cmdline" patches/*.patch cc headers-*.h
    } | sha256sum | cut -c1-16
}

have_tools() {
    local tool
    for tool in gcc make flex bison bc xz tar patch perl; do
        command -v "$tool" >/dev/null || return 1
    done
    printf '#include <gelf.h>\n' | gcc -E -x c - >/dev/null 2>&1
}

ensure_tools() {
    local packages=(gcc make flex bison bc xz-utils tar patch perl libelf-dev libc6-dev)
    have_tools && return
    if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
        say "installing build tools"
        apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${packages[@]}" >&2
        have_tools && return
    fi
    die "build tools are missing: install ${packages[*]}"
}

# Leaves the path of the source tarball in $tarball.
find_source() {
    local version=$1 deb
    tarball=/usr/src/$PACKAGE.tar.xz
    if dpkg-query -W -f='${db:Status-Status}' "$PACKAGE" 2>/dev/null | grep -qx installed && [[ -r $tarball ]]; then
        return
    fi
    tarball=$cache/source/$version/usr/src/$PACKAGE.tar.xz
    [[ -r $tarball ]] && return
    say "fetching $PACKAGE $version"
    mkdir "$tmp/deb"
    (cd "$tmp/deb" && apt-get download "$PACKAGE=$version" >&2) ||
        die "cannot download $PACKAGE $version: install it, or run 'apt-get update' and try again"
    deb=("$tmp"/deb/*.deb)
    dpkg-deb -x "${deb[0]}" "$tmp/source"
    mkdir -p "$cache/source"
    rm -rf "${cache:?}/source/$version"
    mv "$tmp/source" "$cache/source/$version"
}

# Unpacks and patches the source once; the flavours build from it in directories of their own.
prepare_tree() {
    local patch
    tree=$tmp/tree
    [[ -d $tree ]] && return
    say "unpacking and patching the source"
    mkdir "$tree"
    # Two thirds of the source are drivers and processors that no guest has. Kconfig files stay: the configuration reads all.
    local skip=('*/Documentation/*/*' '*/arch/[!x]*/*.[chS]' '*/arch/[!x]*/boot/dts/*' '*/tools/testing/*' '*/sound/*.[ch]') dir
    for dir in gpu media net/ethernet net/wireless scsi staging infiniband; do
        skip+=("*/drivers/$dir/*.[ch]")
    done
    tar -xf "$tarball" -C "$tree" --strip-components=1 "${skip[@]/#/--exclude=}"
    for patch in "$here"/patches/*.patch; do
        patch -d "$tree" -p1 --no-backup-if-mismatch --batch <"$patch" >>"$log" 2>&1 ||
            fail "patch $(basename "$patch") does not apply to $PACKAGE"
    done
}

# Merges the fragments onto allnoconfig; a requested option that did not survive is an error that names it.
configure() {
    local flavour=$1 out=$2 line name want missing=()
    (cd "$tree" && scripts/kconfig/merge_config.sh -n -O "$out" "$here/base.config" "$here/$flavour.config") >>"$log" 2>&1 ||
        fail "cannot merge the $flavour configuration"
    while IFS= read -r line; do
        name=${line%%=*} want=${line#*=}
        if [[ $want == n ]]; then
            ! grep -q "^$name=" "$out/.config" || missing+=("$line")
        else
            grep -qxF "$line" "$out/.config" || missing+=("$line")
        fi
    done < <(cat "$here/base.config" "$here/$flavour.config" | grep '^CONFIG_' |
        awk -F= '{ last[$1] = $0 } END { for (n in last) print last[n] }' | sort)
    ((${#missing[@]} == 0)) || fail "options of the $flavour configuration did not survive: ${missing[*]}"
}

fail() {
    [[ -s ${log-} ]] && tail -n 30 "$log" >&2
    [[ -s ${log-} ]] && cp "$log" "$cache/failed.log" && say "whole log: $cache/failed.log"
    die "$*"
}

build_flavour() {
    local flavour=$1 hash=$2 version=$3 out=$tmp/$1 stage=$tmp/stage-$1
    say "building $flavour ($PACKAGE $version)"
    mkdir "$out" "$stage" "$out.headers"
    configure "$flavour" "$out"
    # Fixed names and date: the same inputs give the same bytes. In the background, so that a signal is acted on at once.
    BULKHEAD_HEADERS=$out.headers make -C "$tree" O="$out" -j"$(nproc)" CC="$here/cc" LOCALVERSION="-bulkhead-$flavour" KBUILD_BUILD_USER=bulkhead KBUILD_BUILD_HOST=bulkhead \
        KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 1970' vmlinux bzImage >>"$log" 2>&1 9>&- &
    child=$!
    wait "$child" || fail "the $flavour kernel does not build"
    child=
    strip -s -o "$stage/vmlinux.full" "$out/vmlinux"
    cp --sparse=always "$stage/vmlinux.full" "$stage/vmlinux"
    rm "$stage/vmlinux.full"
    cp "$out/arch/x86/boot/bzImage" "$stage/bzImage"
    cp "$out/System.map" "$stage/System.map"
    cp "$out/.config" "$stage/config"
    grep -v '^#' "$here/$flavour.cmdline" | tr '\n' ' ' | sed 's/ *$/\n/' >"$stage/cmdline"
    {
        printf 'flavour %s\nsource %s %s\ncompiler %s\n' "$flavour" "$PACKAGE" "$version" "$(gcc --version | head -n1)"
        (cd "$stage" && sha256sum vmlinux bzImage System.map config cmdline)
    } >"$stage/manifest"
    rm -rf "$out" "$out.headers" "${cache:?}/$hash"
    mv "$stage" "$cache/$hash"
}

# Points the flavour's link at a finished build, in one step.
link_flavour() {
    local flavour=$1 hash=$2
    [[ $(readlink "$cache/$flavour" 2>/dev/null) == "$hash" ]] && return
    ln -s "$hash" "$cache/.$flavour.$$"
    mv -T "$cache/.$flavour.$$" "$cache/$flavour"
}

clean_up() {
    # Its exit code, that of a killed one, would end this script before the next line.
    [[ -n $child ]] && kill "$child" 2>/dev/null && wait "$child" || true
    rm -rf "$tmp"
}

finished() { [[ -f $cache/$1/manifest ]]; }

main() {
    parse_arguments "$@"
    command -v gcc >/dev/null || ensure_tools
    local version flavour missing=false
    declare -A hashes
    version=$(source_version)
    for flavour in "${flavours[@]}"; do
        hashes[$flavour]=$(input_hash "$flavour" "$version")
        finished "${hashes[$flavour]}" || missing=true
    done
    if $missing; then
        mkdir -p "$cache"
        exec 9>"$cache/lock"
        flock -n 9 || { say "waiting for another build" && flock 9; }
        # With the lock held, whatever has this name was left by a build that was killed.
        rm -rf "$cache"/building.*
        tmp=$(mktemp -d "$cache/building.XXXXXX")
        log=$tmp/log
        trap clean_up EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        ensure_tools
        for flavour in "${flavours[@]}"; do
            finished "${hashes[$flavour]}" && continue
            find_source "$version"
            prepare_tree
            build_flavour "$flavour" "${hashes[$flavour]}" "$version"
        done
    fi
    for flavour in "${flavours[@]}"; do
        link_flavour "$flavour" "${hashes[$flavour]}"
        if $print_path; then
            printf '%s\n' "$cache/${hashes[$flavour]}/vmlinux"
        else
            say "$flavour: $cache/${hashes[$flavour]}/vmlinux"
        fi
    done
}

main "$@"
