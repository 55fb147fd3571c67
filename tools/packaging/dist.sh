# `./x dist`: makes target/dist, what a release publishes. Sourced by `x`; the parts are sourced by this file.
#
# Scratch files are in target/dist-build: sources and build of FFmpeg, the unpacked archive, root file systems.
. tools/packaging/toolchain.sh
. tools/packaging/ffmpeg.sh
. tools/packaging/archive.sh
. tools/packaging/try.sh

DIST_PLATFORM=x86_64-linux

dist() {
    local build=$PWD/target/dist-build out=$PWD/target/dist version program
    version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
    case ${1:-} in
    '') ;;
    --try)
        try_dist "$out" "$build" "$version" "${@:2}"
        return
        ;;
    *) die "dist: $1: no such argument; give none, or --try after ./x dist" ;;
    esac
    [ "$(uname -m)" = x86_64 ] || die "dist: builds for x86-64 only; run it on such a machine"
    mkdir -p "$build"
    dist_packages
    setup
    toolchain
    ffmpeg_sources "$build/sources"
    build_ffmpeg "$build/sources" "$build/ffmpeg"
    program=$PWD/target/with-kernels/x86_64-unknown-linux-gnu/release/reel
    build_program "$program" "$build/ffmpeg"
    check_crates "$build/crates"
    write_files "$out" "$build" "$version" "$program"
    say "target/dist:"
    (cd "$out" && du -h --apparent-size -- * | sort -k2)
}

# Writes the files of a release into the folder $1, from the build folder $2, for version $3, with the program $4.
write_files() {
    local out=$1 build=$2 version=$3 program=$4 name=reel-$3-$DIST_PLATFORM
    say "writing the archive, the wheel and the rest"
    rm -rf "$out"
    mkdir -p "$out"
    lay_out "$build/archive/$name" "$program" "$build"
    write_archive "$build/archive" "$name" "$out"
    write_wheel "$build/archive/$name" "$build/wheel" "$out" "$version"
    tar -cf "$out/reel-$version-ffmpeg-sources.tar" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner \
        -C "$build" sources
    sed "s/^ARG VERSION=.*/ARG VERSION=$version/" tools/packaging/Containerfile >"$out/Containerfile"
    cp tools/packaging/install.sh "$out/"
    (cd "$out" && sha256sum -- * >SHA256SUMS)
}

# Installs Debian packages that only `dist` needs.
dist_packages() {
    local packages=() program package
    while read -r program package; do
        command -v "$program" >/dev/null || packages+=("$package")
    done <<<'nasm nasm
dpkg-source dpkg-dev
objdump binutils
make make
xz xz-utils'
    [ "${#packages[@]}" = 0 ] || install_packages "${packages[@]}"
}

# Builds the program $1 for the old glibc, with the headers of the FFmpeg in $2 and the kernels' machine code inside.
# The variable REEL_KERNELS may name the file of an earlier `reel kernels pack`, which saves one of the two builds.
build_program() {
    local program=$1 pack=${REEL_KERNELS:+$(realpath "$REEL_KERNELS")} kernels
    # FFmpeg's structs differ between major versions: the program is compiled with the headers of the libraries that it
    # will open.
    export PKG_CONFIG_PATH=$2/install/lib/pkgconfig
    if [ -z "$pack" ]; then
        cuda
        pack=$PWD/target/kernels.pack
        say "building for glibc $GLIBC"
        REEL_KERNELS='' zigbuild
        say "compiling the kernels for every architecture"
        "$program" kernels pack --out "$pack"
    fi
    say "building for glibc $GLIBC with the kernels inside"
    REEL_KERNELS=$pack zigbuild
    kernels=$("$program" doctor | grep 'built-in kernels' || true)
    [[ $kernels == *yes* && $kernels != *"out of date"* ]] ||
        die "dist: $pack is not that of this program's kernels; unset REEL_KERNELS, or run reel kernels pack again"
    check_glibc "$program"
}

# Packs every crate that can be published, in the folder $1, and checks the size of each: a package registry takes
# 10 MB. The packed sources are those of the build, so they are not compiled again.
check_crates() {
    local folder=$1 file
    say "packing the crates"
    rm -rf "$folder"
    cargo package --workspace --exclude reel-benches --exclude reel-fuzz --exclude reel-python --locked --no-verify \
        --allow-dirty --quiet --target-dir "$folder" 2>"$folder.log" || die "dist: cargo package failed: $(grep -m 1 '^error' "$folder.log")"
    for file in "$folder"/package/*.crate; do
        [ "$(stat -c %s "$file")" -le 10000000 ] ||
            die "dist: $file is larger than 10 MB; leave files out in its Cargo.toml"
    done
}

zigbuild() {
    cargo zigbuild --release --locked -p reel --bin reel --target x86_64-unknown-linux-gnu.$GLIBC \
        --target-dir target/with-kernels
}
