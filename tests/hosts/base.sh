# What the emulated host boots, built once and cached: sourced by amdv.
#
# Fetches Debian's cloud kernel and busybox as packages (unpacked, not installed) and makes from them
# the initramfs, the tree of the root disk, the kernel's ELF image and an initramfs for that kernel as
# a guest. Does not run QEMU.
#
# The cache, ${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-~/.cache}/bulkhead}/hosts/:
#   lock                    held while fetching or building
#   kernel -> pkg-VERSION   the package in use
#   pkg-VERSION/            linux-image and busybox-static, unpacked
#   base-HASH/              vmlinuz vmlinux initrd guest-initrd root/; HASH is of everything it is made from
# Directories appear complete or not at all (built aside, then renamed).

readonly CACHE=${BULKHEAD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/bulkhead}/hosts
readonly META_PACKAGE=linux-image-cloud-amd64

# Loaded by the initramfs, to reach the root disk and the streams.
readonly BOOT_MODULES='virtio_pci virtio_blk virtio_console'
# On the root disk: loaded at start (kvm) or by name when wanted (the kernel calls modprobe itself).
readonly HOST_MODULES='kvm-amd tun vhost_net vhost_vsock erofs squashfs overlay loop fuse virtiofs veth
    bridge br_netfilter nf_tables nft_chain_nat nft_masq nft_ct xt_MASQUERADE nf_nat dm-mod vsock_loopback'
# In the initramfs of this kernel as a guest.
readonly GUEST_MODULES='virtio_mmio virtio_pci virtio_blk virtio_net virtio_console virtio-rng
    virtio_balloon vmw_vsock_virtio_transport virtio_pmem nd_pmem erofs squashfs overlay virtiofs'
# glibc programs find these even where nobody looked up what they need.
readonly RUNTIME_LIBS='/lib64/ld-linux-x86-64.so.2 libc.so.6 libm.so.6 libgcc_s.so.1 libdl.so.2
    libpthread.so.0 librt.so.1 libresolv.so.2 libnss_files.so.2'

die() {
    echo "amdv: $*" >&2
    exit 125
}

need_tools() {
    local entry
    for entry in qemu-system-x86_64:qemu-system-x86 cpio:cpio mke2fs:e2fsprogs lz4:lz4 flock:util-linux \
        setpriv:util-linux dpkg-deb:dpkg ldd:libc-bin; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${entry%%:*}" >/dev/null ||
            die "${entry%%:*} is missing; install it with: apt-get install ${entry#*:}"
    done
}

# Sets $base to a complete base directory.
prepare_base() {
    local lock
    mkdir -p "$CACHE" || die "cannot make the cache directory $CACHE"
    exec {lock}>"$CACHE/lock"
    flock "$lock" || die "cannot lock $CACHE/lock"
    if [ "$refresh" = yes ] || [ ! -d "$CACHE/kernel/" ]; then fetch_packages; fi
    pkg=$(readlink -f "$CACHE/kernel")
    release=$(cd "$pkg/lib/modules" && echo *)
    base=$CACHE/base-$(base_key)
    [ -d "$base" ] || build_base
    # Closing gives the lock back; nothing started from here on may inherit it.
    exec {lock}>&-
}

# A directory beside the final one, for what is being built. Leftovers of a killed build go first:
# the lock is held, so nobody else is building.
scratch() {
    rm -rf "$CACHE"/building.*
    mktemp -d "$CACHE/building.XXXXXX"
}

apt_download() {
    local opts=(-q)
    # apt's own user cannot write into root's directories; it says so at length and goes on as root anyway.
    [ "$(id -u)" != 0 ] || opts+=(-o APT::Sandbox::User=root)
    (cd "$1" && apt-get "${opts[@]}" download "$2" >"$1/apt.log" 2>&1) ||
        { cat "$1/apt.log" >&2; die "apt-get could not download the package $2"; }
}

fetch_packages() {
    local tmp image version
    image=$(apt-cache depends "$META_PACKAGE" 2>/dev/null | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ {print $2; exit}')
    if [ -z "$image" ] && [ "$(id -u)" = 0 ]; then
        apt-get -q update >&2 || die "apt-get update failed"
        image=$(apt-cache depends "$META_PACKAGE" | awk '$1 == "Depends:" && $2 ~ /^linux-image-[0-9]/ {print $2; exit}')
    fi
    [ -n "$image" ] || die "apt knows no package $META_PACKAGE; run apt-get update"
    version=$(apt-cache show --no-all-versions "$image" | awk '$1 == "Version:" {print $2; exit}')
    if [ ! -d "$CACHE/pkg-$version" ]; then
        echo "amdv: fetching $image $version and busybox-static" >&2
        tmp=$(scratch)
        apt_download "$tmp" "$image"
        apt_download "$tmp" busybox-static
        mkdir "$tmp/tree"
        local deb
        for deb in "$tmp"/*.deb; do
            dpkg-deb -x "$deb" "$tmp/tree" || die "cannot unpack ${deb##*/}"
        done
        [ -f "$tmp/tree/bin/busybox" ] && ls "$tmp"/tree/boot/vmlinuz-* >/dev/null || die "$image holds no kernel"
        # One release directory: the path names the kernel's release later.
        "$tmp/tree/bin/busybox" depmod -b "$tmp/tree" "$(ls "$tmp/tree/lib/modules")" || die "depmod failed"
        mv -T "$tmp/tree" "$CACHE/pkg-$version"
        rm -rf "$tmp"
    fi
    ln -sfn "pkg-$version" "$CACHE/kernel.new"
    mv -T "$CACHE/kernel.new" "$CACHE/kernel"
}

# Where the loader finds a library of this machine.
# Reads all that ldconfig says: one whose reader is gone fails, if it is still at it.
lib_path() {
    case $1 in
        /*) echo "$1" ;;
        *) PATH=$PATH:/sbin ldconfig -p | awk -v n="$1" '!found && $1 == n && /x86-64/ {print $NF; found = 1}' ;;
    esac
}

base_key() {
    {
        echo "$pkg"
        sha256sum <"$HERE/base.sh"
        sha256sum "$HERE"/guest/* | cut -d' ' -f1
        local lib path
        for lib in $RUNTIME_LIBS; do
            path=$(lib_path "$lib")
            [ -z "$path" ] || stat -Lc '%n %s %Y' "$path"
        done
    } | sha256sum | cut -c1-16
}

# The modules named and all they need, in loading order, as paths under lib/modules/RELEASE.
module_closure() {
    local name
    for name; do
        awk -v want="$name" -F: '
            { n = $1; sub(/.*\//, "", n); sub(/\.ko.*/, "", n); gsub(/-/, "_", n) }
            BEGIN { gsub(/-/, "_", want) }
            n == want { k = split($2, dep, " "); for (i = k; i > 0; i--) print dep[i]; print $1; found = 1 }
            END { exit !found }' "$pkg/lib/modules/$release/modules.dep" || die "kernel $release has no module $name"
    done | awk '!seen[$0]++'
}

# A module without the signature at its end (kernel document "Kernel module signing facility": data,
# signature, 12 bytes whose last four are the signature's big-endian length, a magic of 28 bytes).
# Nothing here enforces it, and hashing each module under emulation costs more than loading it.
copy_module() {
    local size=0 length
    size=$(stat -c %s "$1")
    if [ "$(tail -c 28 "$1" | tr -d '\n')" = '~Module signature appended~' ]; then
        length=$((16#$(tail -c 32 "$1" | head -c 4 | od -An -tx1 | tr -d ' \n')))
        size=$((size - 40 - length))
    fi
    head -c "$size" "$1" >"$2"
}

install_modules() {
    local root=$1 dir=lib/modules/$release file list
    shift
    list=$(module_closure "$@")
    for file in $list; do
        mkdir -p "$root/$dir/${file%/*}"
        copy_module "$pkg/$dir/$file" "$root/$dir/$file"
    done
    printf '%s\n' "$list"
}

pack_cpio() {
    (cd "$1" && find . -print0 | LC_ALL=C sort -z | cpio --null --quiet -o -H newc -R 0:0 --reproducible) >"$2"
}

build_base() {
    local tmp
    tmp=$(scratch)
    echo "amdv: building ${base##*/} for kernel $release" >&2
    cp "$pkg"/boot/vmlinuz-* "$tmp/vmlinuz"
    extract_vmlinux "$tmp/vmlinuz" "$tmp/vmlinux"
    build_initrd "$tmp"
    build_root "$tmp/root"
    build_guest_initrd "$tmp"
    mv -T "$tmp" "$base"
}

build_initrd() {
    local dir=$1/initrd.d
    mkdir -p "$dir"/{bin,dev,proc,sys,newroot}
    cp "$pkg/bin/busybox" "$dir/bin/busybox"
    # shellcheck disable=SC2086 # lists of words
    install_modules "$dir" $BOOT_MODULES | sed "s|^|/lib/modules/$release/|" >"$dir/modules"
    cp "$HERE/guest/host-initrd-init" "$dir/init"
    pack_cpio "$dir" "$1/initrd"
    rm -rf "$dir"
}

build_root() {
    local root=$1 lib path applet
    mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,etc,dev,proc,sys,tmp,run/amdv,root,home/user,lib64,var/tmp,mnt}
    chmod 1777 "$root/tmp" "$root/var/tmp"
    cp "$pkg/bin/busybox" "$root/bin/busybox"
    for applet in $("$pkg/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
    done
    ln -s ../bin/modprobe "$root/sbin/modprobe"
    # shellcheck disable=SC2086 # lists of words
    install_modules "$root" $HOST_MODULES >/dev/null
    cp "$pkg/lib/modules/$release"/modules.builtin* "$root/lib/modules/$release/"
    "$pkg/bin/busybox" depmod -b "$root" "$release" || die "depmod failed"
    for lib in $RUNTIME_LIBS; do
        path=$(lib_path "$lib")
        [ -n "$path" ] || continue
        mkdir -p "$root${path%/*}"
        cp -L "$path" "$root$path"
    done
    cp "$HERE/guest/host-init" "$root/sbin/init"
    printf 'root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\nkvm:x:105:user\nuser:x:1000:\nnogroup:x:65534:\n' >"$root/etc/group"
    printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
    echo amdv >"$root/etc/hostname"
}

build_guest_initrd() {
    local dir=$1/guest.d
    mkdir -p "$dir"/{bin,dev,proc,sys,mnt,tmp}
    cp "$pkg/bin/busybox" "$dir/bin/busybox"
    # shellcheck disable=SC2086 # lists of words
    install_modules "$dir" $GUEST_MODULES | sed "s|^|/lib/modules/$release/|" >"$dir/modules"
    cp "$HERE/guest/guest-init" "$dir/init"
    pack_cpio "$dir" "$1/guest-initrd"
    rm -rf "$dir"
}

# Integer of $3 bytes, little-endian, at offset $2 of file $1.
le_int() {
    local hex
    hex=$(od -An -v -tx1 -j "$2" -N "$3" "$1" | tr -d '\n' | awk '{for (i = NF; i > 0; i--) printf "%s", $i}')
    echo $((16#$hex))
}

# The ELF inside a bzImage (kernel document "The Linux/x86 Boot Protocol": setup_sects 0x1f1,
# payload_offset 0x248, payload_length 0x24c). Debian's cloud kernel packs it with LZ4; the last four
# bytes of the payload are its unpacked size and no part of the LZ4 stream.
extract_vmlinux() {
    local image=$1 out=$2 start length
    start=$((($(le_int "$image" $((0x1f1)) 1) + 1) * 512 + $(le_int "$image" $((0x248)) 4)))
    length=$(le_int "$image" $((0x24c)) 4)
    dd if="$image" iflag=skip_bytes,count_bytes skip="$start" count=$((length - 4)) bs=1M status=none |
        lz4 -dcq >"$out" || die "cannot unpack the ELF of ${image##*/}: its payload is not LZ4"
    [ "$(stat -c %s "$out")" = "$(le_int "$image" $((start + length - 4)) 4)" ] || die "the ELF of ${image##*/} has the wrong size"
}
