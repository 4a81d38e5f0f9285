#!/usr/bin/env bash
# Make a real Debian container image, with Debian's own tools (mmdebstrap, umoci) and not with ours:
# what Bulkhead reads in its tests was written by others.
#
#   debian.sh [--rootfs] [--refresh] OUT_DIR
#
# OUT_DIR/debian-oci/         OCI image layout, tag latest
# OUT_DIR/debian.tar          the same as an OCI archive
# OUT_DIR/debian-docker.tar   the same as a docker archive, tag debian:latest
# OUT_DIR/debian-rootfs/      with --rootfs (needs root): the image unpacked by umoci
#
# Cached in ${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-~/.cache}/bulkhead}/images/, by the hash of this script
# and its inputs; --refresh makes it anew from the packages of today. BULKHEAD_DEBIAN_SUITE (bookworm)
# and BULKHEAD_DEBIAN_MIRROR (mmdebstrap's own choice) say where Debian comes from.
#
# The image: Env PATH and BULKHEAD_IMAGE=debian, Cmd ["bash"], WorkingDir /srv; user app (1000), also in
# group extra (2000). Three layers; in the end /opt/layers holds
#   kept             "layer 1"
#   replaced         "layer 2", was "layer 1"                 removed, removed-dir/   gone (whiteouts)
#   opaque/          new alone; old and sub/ are hidden by an opaque marker
#   file-to-dir/     holds f; was a file                       dir-to-file   a file; was a directory
#   link-a link-b    one inode; so are kept and kept-link, in layer 1
#   capable          file capability cap_net_bind_service=ep   xattr         user.bulkhead=layer 2
#   setuid           mode 4755     sticky/  mode 1777          owned         1000:2000
#   null             character device 1:3                      fifo
#   symlink          -> kept                                   dangling      -> /nowhere
#   long/...         a path of more than 255 bytes in all      ümläut        a name in UTF-8
#   sparse           1 MiB, all zero but its last byte
set -euo pipefail

readonly SUITE=${BULKHEAD_DEBIAN_SUITE:-bookworm}
readonly MIRROR=${BULKHEAD_DEBIAN_MIRROR:-}
readonly CACHE=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}/images
SELF=$(readlink -f "${BASH_SOURCE[0]}")
readonly SELF

die() {
    echo "debian.sh: $*" >&2
    exit 1
}

usage() {
    echo "usage: debian.sh [--rootfs] [--refresh] OUT_DIR" >&2
    exit "$1"
}

need_tools() {
    local entry
    for entry in mmdebstrap:mmdebstrap umoci:umoci jq:jq setcap:libcap2-bin setfattr:attr flock:util-linux; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${entry%%:*}" >/dev/null ||
            die "${entry%%:*} is missing; install it with: apt-get install ${entry#*:}"
    done
    # Owners, devices and capabilities in a layer take root, or what pretends to be it.
    as_root=()
    if [ "$(id -u)" != 0 ]; then
        command -v fakeroot >/dev/null || die "without root, fakeroot is needed: apt-get install fakeroot"
        as_root=(fakeroot --)
    fi
}

# Layer 1: Debian, minimal, without documentation and translations.
base_layer() {
    local out=$1 args=(--variant=minbase --include=usr-is-merged
        --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr
        # The chroot is thrown away if anything fails: no need to sync each file.
        --dpkgopt=force-unsafe-io)
    local path
    for path in doc man locale info lintian; do args+=(--dpkgopt="path-exclude=/usr/share/$path/*"); done
    args+=(--dpkgopt='path-include=/usr/share/doc/*/copyright'
        --customize-hook="$SELF --fill-layer-1 \"\$1\"")
    mmdebstrap "${args[@]}" "$SUITE" "$out" ${MIRROR:+"$MIRROR"} >"$out.log" 2>&1 || {
        tail -n 30 "$out.log" >&2
        [ "$(id -u)" = 0 ] || echo "without root, mmdebstrap needs fakechroot, or uidmap and a range of yours in /etc/subuid" >&2
        die "mmdebstrap could not make $SUITE"
    }
}

# What later layers change. Runs as mmdebstrap's hook, with the root it made.
fill_layer_1() {
    local root=$1 d=$1/opt/layers
    mkdir -p "$d"/{removed-dir/sub,opaque/sub,dir-to-file}
    for f in kept replaced removed removed-dir/f removed-dir/sub/f opaque/old opaque/sub/f file-to-dir dir-to-file/f; do
        echo 'layer 1' >"$d/$f"
    done
    ln "$d/kept" "$d/kept-link"
    echo 'app:x:1000:1000:app:/home/app:/bin/bash' >>"$root/etc/passwd"
    echo 'app:x:1000:' >>"$root/etc/group"
    echo 'extra:x:2000:app' >>"$root/etc/group"
    install -d -o 1000 -g 1000 "$root/home/app"
    echo bulkhead-debian >"$root/etc/hostname"
    rm -rf "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/var/log/*.log "$root"/var/log/apt \
        "$root/var/cache/ldconfig/aux-cache"
}

# Layer 2: additions, replacements and whiteouts (OCI image specification, "Layer Filesystem Changeset").
fill_layer_2() {
    local d=$1/opt/layers long name
    mkdir -p "$d"/{file-to-dir,sticky}
    for f in replaced file-to-dir/f dir-to-file link-a xattr setuid owned ümläut; do echo 'layer 2' >"$d/$f"; done
    : >"$d/.wh.removed"
    : >"$d/.wh.removed-dir"
    ln "$d/link-a" "$d/link-b"
    cp /bin/true "$d/capable"
    # fakeroot takes a file's real owner when it learns of it by an attribute: name the owner first.
    chown 0:0 "$d/xattr" "$d/capable"
    setfattr -n user.bulkhead -v 'layer 2' "$d/xattr"
    setcap cap_net_bind_service=ep "$d/capable"
    chown 1000:2000 "$d/owned"
    chmod 4755 "$d/setuid"
    chmod 1777 "$d/sticky"
    mknod "$d/null" c 1 3
    chmod 666 "$d/null"
    mkfifo "$d/fifo"
    ln -s kept "$d/symlink"
    ln -s /nowhere "$d/dangling"
    name=$(printf '%0100d' 0)
    long=$d/long/$name/$name/$name
    mkdir -p "$long"
    echo 'layer 2' >"$long/f"
    truncate -s $((1024 * 1024 - 1)) "$d/sparse"
    printf x >>"$d/sparse"
}

# Layer 3: an opaque directory, a hard link to a file of a layer below.
fill_layer_3() {
    local d=$1/opt/layers
    mkdir -p "$d/opaque"
    : >"$d/opaque/.wh..wh..opq"
    echo 'layer 3' >"$d/opaque/new"
}

# Runs under root or fakeroot: fills a directory and packs it as a layer.
make_layer() {
    local n=$1 dir=$2 out=$3
    mkdir "$dir"
    "fill_layer_$n" "$dir"
    # The marker files come first, as the specification advises; tar keeps the order of a sorted list.
    tar -C "$dir" --sort=name --numeric-owner --format=posix --xattrs --xattrs-include='*' -cf "$out" opt
    rm -rf "$dir"
}

make_oci() {
    local oci=$1 layers=$2 n
    umoci init --layout "$oci"
    umoci new --image "$oci:latest"
    for n in 1 2 3; do
        umoci raw add-layer --image "$oci:latest" --history.created_by "debian.sh, layer $n" "$layers/$n.tar" ||
            die "umoci could not add layer $n"
    done
    umoci config --image "$oci:latest" --architecture amd64 --os linux \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --config.env BULKHEAD_IMAGE=debian --config.cmd bash --config.workingdir /srv
    umoci gc --layout "$oci"
}

# A docker archive ("docker save", image specification 1.2) of the OCI layout: the same configuration,
# the same layers unpacked, named by their own digests. umoci does not write it.
make_docker() {
    local oci=$1 layers=$2 out=$3 dir=$4 manifest config n id list=''
    mkdir "$dir"
    manifest=$(jq -er '.manifests[0].digest | sub(":"; "/")' "$oci/index.json")
    config=$(jq -er '.config.digest | sub(":"; "/")' "$oci/blobs/$manifest")
    cp "$oci/blobs/$config" "$dir/${config##*/}.json"
    for n in 1 2 3; do
        id=$(jq -er ".rootfs.diff_ids[$n - 1] | sub(\"sha256:\"; \"\")" "$oci/blobs/$config")
        mkdir "$dir/$id"
        ln "$layers/$n.tar" "$dir/$id/layer.tar"
        list+="${list:+ }$id/layer.tar"
    done
    jq -cn --arg config "${config##*/}.json" --arg layers "$list" \
        '[{Config: $config, RepoTags: ["debian:latest"], Layers: ($layers | split(" "))}]' >"$dir/manifest.json"
    tar -C "$dir" --sort=name --owner=0 --group=0 --numeric-owner -cf "$out" .
    rm -rf "$dir"
}

build() {
    local tmp n
    rm -rf "$CACHE"/building.*
    tmp=$(mktemp -d "$CACHE/building.XXXXXX")
    # The hook runs in mmdebstrap's namespace, as another user perhaps.
    chmod 755 "$tmp"
    trap 'rm -rf "$tmp"' EXIT
    echo "debian.sh: making a Debian $SUITE image, once" >&2
    mkdir "$tmp/layers" "$tmp/image"
    base_layer "$tmp/layers/1.tar"
    for n in 2 3; do "${as_root[@]}" "$SELF" --make-layer $n "$tmp/tree" "$tmp/layers/$n.tar"; done
    make_oci "$tmp/image/debian-oci" "$tmp/layers"
    make_docker "$tmp/image/debian-oci" "$tmp/layers" "$tmp/image/debian-docker.tar" "$tmp/docker"
    tar -C "$tmp/image/debian-oci" --sort=name --owner=0 --group=0 --numeric-owner -cf "$tmp/image/debian.tar" .
    rm -rf "${CACHE:?}/$key"
    mv -T "$tmp/image" "$CACHE/$key"
    rm -rf "$tmp"
    trap - EXIT
}

# Copies of the cached image: appear complete or not at all.
publish() {
    local out=$1 name
    mkdir -p "$out"
    for name in debian-oci debian.tar debian-docker.tar; do
        rm -rf "${out:?}/.$name.new"
        cp -a --reflink=auto "$CACHE/$key/$name" "$out/.$name.new"
        rm -rf "${out:?}/$name"
        mv -T "$out/.$name.new" "$out/$name"
    done
    [ $rootfs = yes ] || return 0
    [ "$(id -u)" = 0 ] || die "--rootfs needs root: the tree has owners and devices"
    rm -rf "$out/.rootfs.new"
    umoci raw unpack --image "$CACHE/$key/debian-oci:latest" "$out/.rootfs.new" >&2 || die "umoci could not unpack the image"
    rm -rf "$out/debian-rootfs"
    mv -T "$out/.rootfs.new" "$out/debian-rootfs"
}

main() {
    rootfs=no refresh=no
    case ${1:-} in
        --fill-layer-1) fill_layer_1 "$2"; return ;;
        --make-layer) make_layer "$2" "$3" "$4"; return ;;
    esac
    while [ $# -gt 0 ]; do
        case $1 in
            --rootfs) rootfs=yes; shift ;;
            --refresh) refresh=yes; shift ;;
            -h | --help) usage 0 ;;
            -*) usage 1 ;;
            *) break ;;
        esac
    done
    [ $# -eq 1 ] || usage 1
    need_tools
    mkdir -p "$CACHE" || die "cannot make the cache directory $CACHE"
    key=debian-$SUITE-$({ echo "$SUITE $MIRROR $(id -u)"; cat "$SELF"; } | sha256sum | cut -c1-16)
    local lock
    exec {lock}>"$CACHE/lock"
    flock "$lock"
    if [ $refresh = yes ] || [ ! -d "$CACHE/$key" ]; then build {lock}>&-; fi
    publish "$1"
}

main "$@"
